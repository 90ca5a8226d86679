"""How each architecture is built and what its parameters do: the truth that the rewriter's labels are tested against.

The truth comes from module names, which a person read and wrote down here. The rewriter never looks at names.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LAYER = r"(?:^|\.)(?:layer|layers|h|blocks)\.(\d+)(?:\.|$)"


@dataclass(frozen=True)
class Architecture:
    """One architecture at its real widths.

    Attributes:
        make: gives the model, and its example inputs by name.
        source: the published configuration that it follows, and what was cut.
        components: what the parameters do, as patterns of parameter names; the first that fits counts. None: a product
            that is no site.
        attention: pattern of the modules that compute attention.
        heads: number of query heads by layer, and of key heads.
        dynamic_axes: axes with free sizes, by input.
        products: what the products of activations in one attention module do, in order of computation.
        layers: pattern of the modules that are blocks, with their number.
        stages: number of blocks in each stage, where blocks are numbered within stages.
        repeats: pattern of the module that is all layers at once, called again and again.
        reused: components of a parameter's products in order of use, where one parameter serves several.
        held_out: whether the rewriter was developed without looking at it.
        exporters: which of `torchscript`, `dynamo`, `dynamo23` (opset 23) and `optimum`.
        task: what optimum calls its task.

    """

    make: Callable[[], tuple[Any, dict[str, Any]]]
    source: str
    components: dict[str, str | None]
    attention: str
    heads: Callable[[int], tuple[int, int]]
    dynamic_axes: dict[str, dict[int, str]]
    products: tuple[str, ...] = ("attention_scores", "attention_context")
    layers: str = LAYER
    stages: tuple[int, ...] = ()
    repeats: str = ""
    reused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: bool = False
    exporters: tuple[str, ...] = ("torchscript", "dynamo")
    task: str = ""

    def layer(self, path: str, uses_before: int) -> int | None:
        """The block that a module path belongs to."""
        if self.stages:
            found = re.search(r"\.layers\.(\d+)(?:\.blocks\.(\d+))?", path)
            if found is None:
                return None
            before = sum(self.stages[: int(found[1])])
            # What joins two stages is counted to the block before it.
            return before + (int(found[2]) if found[2] else self.stages[int(found[1])] - 1)
        if self.repeats:
            return uses_before if re.search(self.repeats, path) else None
        found = re.search(self.layers, path)
        return int(found[1]) if found else None

    def component(self, parameter: str, uses_before: int) -> str | None:
        """What the product with a parameter does, None if it is no site.

        Raises:
            LookupError: nobody wrote that down.

        """
        for pattern, components in self.reused.items():
            if re.search(pattern, parameter):
                return components[uses_before]
        for pattern, component in self.components.items():
            if re.search(pattern, parameter):
                return component
        raise LookupError(f"no component is given for {parameter}")


def _image(side: int = 224) -> dict[str, Any]:
    import torch

    return {"pixel_values": torch.randn(2, 3, side, side)}


def _text(*names: str) -> dict[str, Any]:
    import torch

    ids = torch.randint(5, 100, (2, 16))
    values = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {name: values[name] for name in names}


IMAGE_AXES = {"pixel_values": {0: "batch"}}
TEXT_AXES = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask", "token_type_ids")}

_VIT = {
    r"patch_embeddings\.projection": "patch_embedding",
    r"attention\.attention\.query": "query",
    r"attention\.attention\.key": "key",
    r"attention\.attention\.value": "value",
    r"attention\.output\.dense": "attention_output",
    r"intermediate\.dense|mlp\.fc1": "ffn_up",
    r"\d\.output\.dense|mlp\.fc2": "ffn_down",
    r"classifier": "classifier",
}
_BERT = {
    r"embeddings_project": "embedding_projection",
    r"self\.query": "query",
    r"self\.key": "key",
    r"self\.value": "value",
    r"attention\.output\.dense": "attention_output",
    r"intermediate\.dense": "ffn_up",
    r"\d\.output\.dense": "ffn_down",
    r"pooler\.dense|classifier\.dense": "pooler",
    r"classifier": "classifier",
}


def _vit(**sizes: Any) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        from transformers import ViTConfig, ViTForImageClassification

        return ViTForImageClassification(ViTConfig(num_labels=1000, **sizes)), _image()

    return make


def _deit(model: str, **sizes: Any) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        import transformers

        config = transformers.DeiTConfig(num_labels=1000, **sizes)
        return getattr(transformers, model)(config), _image()

    return make


def _text_model(model: str, *inputs: str, **settings: Any) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        import transformers

        kind = getattr(transformers, model)
        return kind(kind.config_class(**settings)), _text(*inputs)

    return make


def _dinov2() -> tuple[Any, dict[str, Any]]:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    config = Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=4, image_size=518, num_labels=1000)
    return Dinov2ForImageClassification(config), _image()


def _swin() -> tuple[Any, dict[str, Any]]:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(depths=[2, 2, 2, 2], attn_implementation="eager", num_labels=1000)
    return SwinForImageClassification(config), _image()


def _clip() -> tuple[Any, dict[str, Any]]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(num_hidden_layers=4, projection_dim=512)), _image()


def _mae() -> tuple[Any, dict[str, Any]]:
    from transformers import ViTMAEConfig, ViTMAEModel

    return ViTMAEModel(ViTMAEConfig(num_hidden_layers=4, mask_ratio=0.0)), _image()


def _dpt() -> tuple[Any, dict[str, Any]]:
    from transformers import DPTConfig, DPTForDepthEstimation

    config = DPTConfig(num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3])
    return DPTForDepthEstimation(config), _image(384)


def _sam() -> tuple[Any, dict[str, Any]]:
    from transformers import SamVisionConfig, SamVisionModel

    config = SamVisionConfig(num_hidden_layers=4, image_size=448, global_attn_indexes=[2])
    return SamVisionModel(config), _image(448)


def _heads(queries: int, keys: int | None = None) -> Callable[[int], tuple[int, int]]:
    return lambda layer: (queries, keys or queries)


ARCHITECTURES = {
    "vit_base": Architecture(
        _vit(),
        "google/vit-base-patch16-224",
        _VIT,
        r"attention\.attention$",
        _heads(12),
        IMAGE_AXES,
        exporters=("torchscript",),
    ),
    "vit_small": Architecture(
        _vit(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_hidden_layers=4),
        "WinKawaks/vit-small-patch16-224, 4 of 12 layers",
        _VIT,
        r"attention\.attention$",
        _heads(6),
        IMAGE_AXES,
        exporters=("torchscript", "dynamo", "dynamo23", "optimum"),
        task="image-classification",
    ),
    "deit_tiny": Architecture(
        _deit(
            "DeiTForImageClassification",
            hidden_size=192,
            num_attention_heads=3,
            intermediate_size=768,
            num_hidden_layers=4,
        ),
        "facebook/deit-tiny-patch16-224, 4 of 12 layers",
        _VIT,
        r"attention\.attention$",
        _heads(3),
        IMAGE_AXES,
        exporters=("dynamo",),
    ),
    "deit_small_distilled": Architecture(
        _deit(
            "DeiTForImageClassificationWithTeacher",
            hidden_size=384,
            num_attention_heads=6,
            intermediate_size=1536,
            num_hidden_layers=4,
        ),
        "facebook/deit-small-distilled-patch16-224, 4 of 12 layers",
        _VIT,
        r"attention\.attention$",
        _heads(6),
        IMAGE_AXES,
    ),
    "dinov2_small": Architecture(
        _dinov2,
        "facebook/dinov2-small at 224 pixels, 4 of 12 layers",
        _VIT,
        r"attention\.attention$",
        _heads(6),
        IMAGE_AXES,
    ),
    "swin_tiny": Architecture(
        _swin,
        "microsoft/swin-tiny-patch4-window7-224, 2 of 6 blocks in the third stage",
        {
            r"patch_embeddings\.projection": "patch_embedding",
            r"self\.query": "query",
            r"self\.key": "key",
            r"self\.value": "value",
            r"attention\.output\.dense": "attention_output",
            r"intermediate\.dense": "ffn_up",
            r"\d\.output\.dense": "ffn_down",
            r"downsample\.reduction": "other",
            r"classifier": "classifier",
        },
        r"attention\.self$",
        lambda layer: (3 * 2 ** (layer // 2),) * 2,
        IMAGE_AXES,
        stages=(2, 2, 2, 2),
    ),
    "bert_base": Architecture(
        _text_model(
            "BertForSequenceClassification", "input_ids", "attention_mask", "token_type_ids", num_hidden_layers=4
        ),
        "google-bert/bert-base-uncased, 4 of 12 layers",
        _BERT,
        r"attention\.self$",
        _heads(12),
        TEXT_AXES,
        exporters=("torchscript", "dynamo", "dynamo23", "optimum"),
        task="text-classification",
    ),
    "distilbert": Architecture(
        _text_model("DistilBertForSequenceClassification", "input_ids", "attention_mask"),
        "distilbert/distilbert-base-uncased",
        {
            r"q_lin": "query",
            r"k_lin": "key",
            r"v_lin": "value",
            r"out_lin": "attention_output",
            r"lin1": "ffn_up",
            r"lin2": "ffn_down",
            r"pre_classifier": "pooler",
            r"classifier": "classifier",
        },
        r"\.attention$",
        _heads(12),
        TEXT_AXES,
    ),
    "roberta_base": Architecture(
        _text_model(
            "RobertaForSequenceClassification",
            "input_ids",
            "attention_mask",
            num_hidden_layers=4,
            vocab_size=50265,
            max_position_embeddings=514,
            type_vocab_size=1,
        ),
        "FacebookAI/roberta-base, 4 of 12 layers",
        _BERT,
        r"attention\.self$",
        _heads(12),
        TEXT_AXES,
    ),
    "albert_base": Architecture(
        _text_model(
            "AlbertForSequenceClassification",
            "input_ids",
            "attention_mask",
            "token_type_ids",
            hidden_size=768,
            num_attention_heads=12,
            intermediate_size=3072,
            num_hidden_layers=4,
        ),
        "albert/albert-base-v2, 4 of 12 repeats of its layer",
        {
            r"embedding_hidden_mapping_in": "embedding_projection",
            r"attention\.query": "query",
            r"attention\.key": "key",
            r"attention\.value": "value",
            r"attention\.dense": "attention_output",
            r"\.ffn\.": "ffn_up",
            r"ffn_output": "ffn_down",
            r"pooler": "pooler",
            r"classifier": "classifier",
        },
        r"\.attention$",
        _heads(12),
        TEXT_AXES,
        repeats=r"albert_layers",
    ),
    "deberta_v3_small": Architecture(
        _text_model(
            "DebertaV2ForSequenceClassification",
            "input_ids",
            "attention_mask",
            vocab_size=128100,
            hidden_size=768,
            num_attention_heads=12,
            intermediate_size=3072,
            num_hidden_layers=3,
            type_vocab_size=0,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            max_relative_positions=-1,
        ),
        "microsoft/deberta-v3-small, 3 of 6 layers",
        {
            r"value_proj": "value",
            r"attention\.output\.dense": "attention_output",
            r"intermediate\.dense": "ffn_up",
            r"\d\.output\.dense": "ffn_down",
            r"pooler": "pooler",
            r"classifier": "classifier",
        },
        r"attention\.self$",
        _heads(12),
        TEXT_AXES,
        products=("attention_scores", "position_scores", "position_scores", "attention_context"),
        reused={
            r"query_proj": ("query", "position_projection"),
            r"key_proj": ("key", "position_projection"),
        },
    ),
    "gpt2": Architecture(
        _text_model("GPT2LMHeadModel", "input_ids", "attention_mask", n_layer=4, use_cache=False),
        "openai-community/gpt2, 4 of 12 layers",
        {
            r"c_attn": "query_key_value",
            r"attn\.c_proj": "attention_output",
            r"c_fc": "ffn_up",
            r"mlp\.c_proj": "ffn_down",
            r"wte|lm_head": "classifier",
        },
        r"\.attn$",
        _heads(12),
        TEXT_AXES,
        exporters=("dynamo", "optimum"),
        task="text-generation",
    ),
    "smollm_135m": Architecture(
        _text_model(
            "LlamaForCausalLM",
            "input_ids",
            "attention_mask",
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=4,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            use_cache=False,
        ),
        "HuggingFaceTB/SmolLM-135M, a Llama with grouped queries, 4 of 30 layers",
        {
            r"q_proj": "query",
            r"k_proj": "key",
            r"v_proj": "value",
            r"o_proj": "attention_output",
            r"gate_proj": "ffn_gate",
            r"up_proj": "ffn_up",
            r"down_proj": "ffn_down",
            r"embed_tokens|lm_head": "classifier",
        },
        r"\.self_attn$",
        _heads(9, 3),
        TEXT_AXES,
        exporters=("dynamo", "optimum"),
        task="text-generation",
    ),
    "electra_small": Architecture(
        _text_model(
            "ElectraForSequenceClassification",
            "input_ids",
            "attention_mask",
            "token_type_ids",
            num_hidden_layers=4,
        ),
        "google/electra-small-discriminator, 4 of 12 layers",
        _BERT,
        r"attention\.self$",
        _heads(4),
        TEXT_AXES,
        held_out=True,
    ),
    "mpnet_base": Architecture(
        _text_model(
            "MPNetForSequenceClassification",
            "input_ids",
            "attention_mask",
            num_hidden_layers=4,
            vocab_size=30527,
            max_position_embeddings=514,
        ),
        "microsoft/mpnet-base, 4 of 12 layers",
        {
            r"attn\.q\.": "query",
            r"attn\.k\.": "key",
            r"attn\.v\.": "value",
            r"attn\.o\.": "attention_output",
            **_BERT,
        },
        r"attention\.attn$",
        _heads(12),
        TEXT_AXES,
        held_out=True,
    ),
    "clip_vision_base": Architecture(
        _clip,
        "the image encoder of openai/clip-vit-base-patch32, 4 of 12 layers",
        {
            r"patch_embedding": "patch_embedding",
            r"q_proj": "query",
            r"k_proj": "key",
            r"v_proj": "value",
            r"out_proj": "attention_output",
            r"fc1": "ffn_up",
            r"fc2": "ffn_down",
            r"visual_projection": "classifier",
        },
        r"\.self_attn$",
        _heads(12),
        IMAGE_AXES,
        held_out=True,
    ),
    "vit_mae_base": Architecture(
        _mae,
        "the encoder of facebook/vit-mae-base, 4 of 12 layers, no patch masked",
        _VIT,
        r"attention\.attention$",
        _heads(12),
        IMAGE_AXES,
        held_out=True,
    ),
    "dpt_base": Architecture(
        _dpt,
        "DPT with a ViT of base width (Intel/dpt-large is its large sibling), 4 of 12 layers",
        {
            **_VIT,
            r"readout_projects": "other",
            r"reassemble_stage\.layers\.\d\.projection": "other",
            r"neck|head": "other",
        },
        r"attention\.attention$",
        _heads(12),
        IMAGE_AXES,
        layers=r"encoder\.layer\.(\d+)",
        held_out=True,
    ),
    "sam_base": Architecture(
        _sam,
        "the image encoder of facebook/sam-vit-base at 448 pixels, 4 of 12 layers (the third sees the whole image)",
        {
            r"patch_embed\.projection": "patch_embedding",
            r"attn\.qkv": "query_key_value",
            r"attn\.proj": "attention_output",
            r"mlp\.lin1": "ffn_up",
            r"mlp\.lin2": "ffn_down",
            r"neck": "other",
        },
        r"\.attn$",
        _heads(12),
        IMAGE_AXES,
        held_out=True,
    ),
}
