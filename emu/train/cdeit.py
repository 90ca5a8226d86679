"""CDeiT: a DeiT with a third token, which learns how an image is corrupted, as a Hugging Face model.

The model of the corrupted-image distillation study, on transformers' own DeiT blocks. Importing this module registers
it, so that `AutoConfig` and `AutoModelForImageClassification` load it like any other.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, DeiTConfig, DeiTModel, PreTrainedModel
from transformers.models.beit.modeling_beit import BeitDropPath
from transformers.models.deit.modeling_deit import DeiTEmbeddings, DeiTLayer, DeiTPreTrainedModel
from transformers.models.vit.modeling_vit import ViTLayer
from transformers.utils.generic import ModelOutput

from emu.errors import InputError
from emu.train.losses import cross_entropy

Inference = Literal["average", "linear", "gelu"]
_STRATEGIES = ("average", "linear", "gelu")
_SOURCES = ("cdeit", "deit", "vit")
_NOT_KEPT = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype")
_CORRUPTION_TOKEN = "deit.embeddings.corruption_token"
_UNUSED = ("deit.pooler.", "deit.embeddings.mask_token")  # parts of other models on the same encoder


class CDeiTConfig(DeiTConfig):
    """Configuration of a CDeiT: that of a DeiT, and

    Args:
        inference: how the tokens' logits become the answer, the study's three strategies. Zs, Zd and Zc are the logits
            of the class, distillation and corruption token; FFN maps Zc to classes.
            "average" (1): (Zs + Zd) / 2, there is no FFN;
            "linear" (2): (Zs + Zd + FFN(Zc)) / 3, FFN is one linear layer (the study's best);
            "gelu" (3): the same with two linear layers and GELU between.
        corruptions: number of kinds of corruption that Zc tells apart. Zc has one more, index 0, for clean images.
        adjustment_size: width between the two layers of "gelu"; None for `hidden_size`. The study does not say.
        drop_path_rate: stochastic depth (Huang et al. 2016): the share of samples for which the last block's two
            branches are skipped in training; rises linearly from 0 in the first block. 0 to below 1.
        **settings: those of `DeiTConfig`, such as `num_labels` and `hidden_size`.

    Raises:
        InputError: a value is out of range.
    """

    model_type = "cdeit"

    def __init__(
        self,
        inference: Inference = "linear",
        corruptions: int = 10,
        adjustment_size: int | None = None,
        drop_path_rate: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if inference not in _STRATEGIES:
            raise InputError(f"inference is '{inference}': give {', '.join(_STRATEGIES[:-1])} or {_STRATEGIES[-1]}.")
        if corruptions < 1:
            raise InputError(f"corruptions is {corruptions}: give the number of kinds of corruption, 1 or more.")
        _check_rate(drop_path_rate)
        self.inference = inference
        self.corruptions = corruptions
        self.adjustment_size = adjustment_size
        self.drop_path_rate = drop_path_rate


@dataclass
class CDeiTOutput(ModelOutput):
    """What a CDeiT gives; what is None is left out when it is read by position.

    Attributes:
        loss: cross-entropy of `logits`, if labels were given. The study's losses are in `emu.train.losses`.
        logits: `[batch, classes]`, the answer by the configured strategy.
        cls_logits: Zs, `[batch, classes]`, of the class token. This and the next three: in training, or if asked for.
        distillation_logits: Zd, `[batch, classes]`, of the distillation token.
        corruption_logits: Zc, `[batch, corruptions + 1]`, of the corruption token; index 0 is clean.
        adjustment_logits: FFN(Zc), `[batch, classes]`, which the losses add to Zs; None if `inference` is "average".
        hidden_states: if asked for: `[batch, 3 + patches, width]` before the first block and after every block.
        attentions: if asked for: `[batch, heads, 3 + patches, 3 + patches]` of every block.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cls_logits: Tensor | None = None
    distillation_logits: Tensor | None = None
    corruption_logits: Tensor | None = None
    adjustment_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CDeiTEmbeddings(DeiTEmbeddings):
    """Tokens in order: class, distillation, corruption, patches.

    The corruption token and its position embedding are one learned vector, as only their sum is ever used; so the
    position embeddings keep the shape of a DeiT's and its checkpoints fit.
    """

    def __init__(self, config: CDeiTConfig) -> None:
        super().__init__(config)
        self.corruption_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, pixel_values: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """`[batch, channels, height, width]` -> `[batch, 3 + patches, width]`."""
        embeddings = super().forward(pixel_values, *arguments, **options)
        corruption = self.dropout(self.corruption_token.expand(embeddings.shape[0], -1, -1))
        return torch.cat((embeddings[:, :2], corruption, embeddings[:, 2:]), dim=1)


class CDeiTModel(DeiTModel):
    """The encoder: a `DeiTModel` with a corruption token and stochastic depth."""

    config_class = CDeiTConfig

    def __init__(self, config: CDeiTConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.embeddings = CDeiTEmbeddings(config)
        add_stochastic_depth(self, config.drop_path_rate)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if isinstance(module, CDeiTEmbeddings):
            # As DeiT is trained; transformers' zeros would give all three tokens the same start.
            for name in ("cls_token", "distillation_token", "corruption_token", "position_embeddings"):
                nn.init.trunc_normal_(getattr(module, name), std=self.config.initializer_range)


class CDeiTForImageClassification(DeiTPreTrainedModel):
    """A DeiT whose third token learns how the image is corrupted and so corrects the class.

    Weights have the names of transformers' `DeiTForImageClassificationWithTeacher`; new are
    `deit.embeddings.corruption_token`, `corruption_classifier` and, but for "average", `corruption_adjustment`.
    """

    config_class = CDeiTConfig

    def __init__(self, config: CDeiTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deit = CDeiTModel(config)
        width, kinds = config.hidden_size, config.corruptions + 1
        self.cls_classifier = nn.Linear(width, config.num_labels)
        self.distillation_classifier = nn.Linear(width, config.num_labels)
        self.corruption_classifier = nn.Linear(width, kinds)
        self.corruption_adjustment = _adjustment(config, kinds)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_token_logits: bool | None = None,
        return_dict: bool | None = None,
    ) -> CDeiTOutput | tuple[Any, ...]:
        """The answer for a batch and, while it trains, what the losses need.

        Args:
            pixel_values: `[batch, channels, height, width]`, as the model's image processor gives them.
            head_mask: as in a DeiT.
            labels: int64 `[batch]`, or soft labels `[batch, classes]`, for `loss`.
            interpolate_pos_encoding: as in a DeiT.
            output_hidden_states: give them; None as configured.
            output_attentions: give them, which needs `attn_implementation="eager"`; None as configured.
            output_token_logits: give the logits of each token beside `logits`; None: in training mode only, so that an
                exported model has `logits` alone and none of the layers that they do without.
            return_dict: False for a tuple of what is not None.
        """
        config = self.config
        outputs = self.deit(
            pixel_values,
            head_mask=head_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            return_dict=True,
        )
        tokens = outputs.last_hidden_state
        cls_logits = self.cls_classifier(tokens[:, 0])
        distillation_logits = self.distillation_classifier(tokens[:, 1])
        corruption_logits = self.corruption_classifier(tokens[:, 2])
        if self.corruption_adjustment is None:
            adjustment_logits = None
            logits = (cls_logits + distillation_logits) / 2
        else:
            adjustment_logits = self.corruption_adjustment(corruption_logits)
            logits = (cls_logits + distillation_logits + adjustment_logits) / 3
        all_logits = self.training if output_token_logits is None else output_token_logits
        output = CDeiTOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            cls_logits=cls_logits if all_logits else None,
            distillation_logits=distillation_logits if all_logits else None,
            corruption_logits=corruption_logits if all_logits else None,
            adjustment_logits=adjustment_logits if all_logits else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        wanted = config.use_return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    @classmethod
    def from_deit(cls, model: PreTrainedModel, **settings: Any) -> "CDeiTForImageClassification":
        """A CDeiT that starts from a trained DeiT or ViT.

        Encoder and embeddings are copied; so is the classifier, to class and distillation token, if the classes are as
        many. A model without a distillation token gives its class token's values to both. What is left, above all the
        corruption token and its layers, is drawn at random from torch's global generator.

        Args:
            model: a `DeiTForImageClassificationWithTeacher`, `DeiTForImageClassification`,
                `ViTForImageClassification`, `DeiTModel`, `ViTModel` or CDeiT of transformers. It stays as it is.
            **settings: of `CDeiTConfig`, such as `num_labels`, `inference` or `drop_path_rate`; the others are the
                model's.

        Returns:
            The new model, in evaluation mode, on the CPU.

        Raises:
            InputError: the model is of another architecture, or a setting changes its encoder's shape.
        """
        source = model.config
        if source.model_type not in _SOURCES:
            raise InputError(f"A CDeiT starts from a model of type {' or '.join(_SOURCES)}, not '{source.model_type}'.")
        kept = {name: value for name, value in source.to_dict().items() if name not in _NOT_KEPT}
        if settings.get("num_labels", source.num_labels) != source.num_labels:
            kept = {name: value for name, value in kept.items() if name not in ("id2label", "label2id")}
        kept["attn_implementation"] = source._attn_implementation
        new = cls(CDeiTConfig(**{**kept, **settings}))
        weights = new.state_dict()
        given = _as_deit({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
        for name in sorted((weights.keys() | given.keys()) - {_CORRUPTION_TOKEN}):
            here, there = weights.get(name), given.get(name)
            if name.startswith("deit.") and (here is None or there is None or here.shape != there.shape):
                raise InputError(
                    f"'{name}' is {_shape(there)} in the model but {_shape(here)} with these settings: leave out those "
                    "that change the encoder's shape."
                )
        for name, tensor in weights.items():
            if name in given and given[name].shape == tensor.shape:
                tensor.copy_(given[name])
        new.eval()
        return new


def add_stochastic_depth(model: nn.Module, rate: float) -> None:
    """Lets a ViT's or DeiT's residual branches be skipped at random in training, which transformers' lack.

    Stochastic depth as DeiT is trained (Huang et al. 2016): in training each sample skips the two branches of block i
    of n with probability rate * i / (n - 1), independently, and branches that are kept are divided by the probability
    to be kept. Weights and their names, and the model in evaluation mode, stay as they are. Draws come from torch's
    global generator.

    Args:
        model: holds an encoder like `ViTEncoder` or `DeiTEncoder`; changed in place. A second call replaces the rate.
        rate: of the last block, 0 to below 1.

    Raises:
        InputError: the rate is out of range, or the model has no such encoder.
    """
    _check_rate(rate)
    blocks: list[Any] = [each for each in model.modules() if isinstance(each, ViTLayer | DeiTLayer)]
    if not blocks:
        raise InputError(f"{type(model).__name__} has no blocks of a ViT or DeiT: stochastic depth is for these.")
    for i, block in enumerate(blocks):
        # The last thing that happens to a branch, before it is added, is this dropout.
        for end in (block.attention.output, block.output):
            dropout = end.dropout[0] if isinstance(end.dropout, nn.Sequential) else end.dropout
            own = rate * i / max(1, len(blocks) - 1)
            end.dropout = nn.Sequential(dropout, BeitDropPath(own)).train(dropout.training) if own else dropout


def _adjustment(config: CDeiTConfig, kinds: int) -> nn.Module | None:
    """FFN of the study: from corruption logits to class logits."""
    if config.inference == "average":
        return None
    if config.inference == "linear":
        return nn.Linear(kinds, config.num_labels)
    between = config.adjustment_size or config.hidden_size
    return nn.Sequential(nn.Linear(kinds, between), nn.GELU(), nn.Linear(between, config.num_labels))


def _as_deit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a ViT, a DeiT or their bare encoders by the names of a DeiT with two heads."""
    if not any(name.startswith(("deit.", "vit.")) for name in weights):
        weights = {f"deit.{name}": tensor for name, tensor in weights.items()}
    renamed = {f"deit.{name[4:]}" if name.startswith("vit.") else name: weights[name] for name in weights}
    renamed = {name: tensor for name, tensor in renamed.items() if not name.startswith(_UNUSED)}
    positions, token = "deit.embeddings.position_embeddings", "deit.embeddings.distillation_token"
    if token not in renamed:
        renamed[token] = renamed["deit.embeddings.cls_token"].clone()
        renamed[positions] = torch.cat((renamed[positions][:, :1], renamed[positions]), dim=1)
    for part in ("weight", "bias"):
        if f"classifier.{part}" in renamed:
            for head in ("cls_classifier", "distillation_classifier"):
                renamed[f"{head}.{part}"] = renamed[f"classifier.{part}"]
    return renamed


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise InputError(f"drop_path_rate is {rate}: give a number from 0 to below 1.")


AutoConfig.register("cdeit", CDeiTConfig, exist_ok=True)
AutoModelForImageClassification.register(CDeiTConfig, CDeiTForImageClassification, exist_ok=True)
