"""The training loop: transformers' own, on an emulated chip, with the losses of distillation."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D

from emu.errors import InputError
from emu.evaluation.data import DataSet
from emu.files import whole_file
from emu.train.augmentation import Augmentation
from emu.train.folders import reason
from emu.train.losses import (
    cdeit_hard_loss,
    cdeit_soft_loss,
    cross_entropy,
    hard_distillation_loss,
    noise_aware_loss,
    soft_distillation_loss,
)
from emu.train.noise import Chip
from emu.train.settings import Finetuning

CHECKPOINT_MARK = "complete.json"  # written last: a checkpoint without it was interrupted

Batch = dict[str, Tensor]


def write_whole(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


class Samples(torch.utils.data.Dataset[Batch]):
    """The samples of a data set as batches of tensors, by the names that a model of transformers takes.

    Args:
        dataset: arrays and labels.
        corruptions: how each image was corrupted, int64 `[samples]`, 0 for not at all; None where it is not known.
    """

    def __init__(self, dataset: DataSet, corruptions: np.ndarray[Any, np.dtype[np.int64]] | None = None) -> None:
        self.dataset, self.corruptions = dataset, corruptions

    def __len__(self) -> int:
        return self.dataset.rows

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, rows: list[int]) -> Batch:
        """The samples with these indices, as PyTorch's loader asks for them."""
        chosen = {
            name: torch.from_numpy(np.asarray(array[rows], self.dataset.dtypes[name]))
            for name, array in self.dataset.arrays.items()
        }
        chosen["labels"] = torch.from_numpy(np.asarray(self.dataset.labels[rows], np.int64))
        if self.corruptions is not None:
            chosen["corruptions"] = torch.from_numpy(self.corruptions[rows])
        return chosen


class ChipTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """`transformers.Trainer` for a student on a noisy chip; all that it offers, such as several GPUs, stays as it is.

    Args:
        model: the student; its chip's hooks are on it already.
        arguments: of the loop.
        settings: loss, noise, clipping.
        chip: of the student; None to train a digital model.
        teacher: the clean model, for losses that have one.
        train: training samples.
        evaluation: samples on which accuracy is measured after each epoch, None for none.
        augmentation: what is done to images.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        settings: Finetuning,
        chip: Chip | None,
        teacher: PreTrainedModel | None,
        train: Samples,
        evaluation: Samples | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=evaluation,
            data_collator=_as_it_is,
            compute_metrics=_accuracy,
            callbacks=[_Chip(settings, chip, model)],
        )
        self.settings, self.chip, self.teacher, self.augmentation = settings, chip, teacher, augmentation
        self.model_accepts_loss_kwargs = False  # every loss here is the mean of its batch
        self.classes = int(model.config.num_labels)
        self.kinds = int(getattr(model.config, "corruptions", 0)) + 1
        self._parts: dict[str, list[float]] = {}
        self._evaluated = 0  # batches of this process, in the evaluation that runs
        if teacher is not None:
            nn.Module.to(teacher, arguments.device).eval().requires_grad_(False)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch; in evaluation the cross-entropy of the answers."""
        inputs = dict(inputs)
        labels, corruptions = inputs.pop("labels"), inputs.pop("corruptions", None)
        if not model.training:
            if self.chip is not None:  # processes take batches in turn
                batch = self._evaluated * self.args.world_size + self.args.process_index
                self.chip.sample = batch * self.args.per_device_eval_batch_size
                self._evaluated += 1
            outputs = model(**inputs)
            loss = cross_entropy(outputs.logits.float(), labels)
            return (loss, {"logits": outputs.logits}) if return_outputs else loss
        inputs, labels, corruptions = self._augmented(inputs, labels, corruptions)
        if self.chip is not None and self.settings.strength_schedule == "random":
            self.chip.strength = self.settings.strength * float(torch.rand(()))
        blocks = self.settings.compares_blocks
        outputs = model(**inputs, **({"output_hidden_states": True} if blocks else {}))
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(**inputs, **({"output_hidden_states": True} if blocks else {}))
        loss, parts = self._loss(outputs, taught, labels, corruptions, inputs.get("attention_mask"))
        if not math.isfinite(float(loss.detach())):
            raise InputError(
                f"The loss is {float(loss.detach())} at step {self.state.global_step + 1} (epoch "
                f"{self.state.epoch or 0:.2f}): lower the learning rate (--learning-rate) or the noise of the device."
            )
        for name, value in parts.items():
            self._parts.setdefault(name, []).append(float(value.detach()))
        return (loss, outputs) if return_outputs else loss

    def _augmented(
        self, inputs: Batch, labels: Tensor, corruptions: Tensor | None
    ) -> tuple[Batch, Tensor, Tensor | None]:
        if self.augmentation is None:
            return inputs, labels, corruptions
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        together, classes = labels, self.classes
        if corruptions is not None:  # mixed like the labels, so both go side by side
            one_hot = nn.functional.one_hot
            both = one_hot(labels, self.classes), one_hot(corruptions, self.kinds)
            together, classes = torch.cat(both, dim=1).float(), self.classes + self.kinds
        pixels, soft = self.augmentation.batch(inputs["pixel_values"], together, classes, generator)
        inputs = {**inputs, "pixel_values": pixels}
        if corruptions is None:
            return inputs, soft, None
        return inputs, soft[:, : self.classes], soft[:, self.classes :]

    def _loss(
        self, outputs: Any, taught: Any, labels: Tensor, corruptions: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        settings = self.settings
        options: dict[str, Any] = {"label_smoothing": settings.label_smoothing}
        soft: dict[str, Any] = {
            "temperature": settings.temperature,
            "weight": settings.distillation_weight,
            "reduction": settings.reduction,
            "direction": settings.direction,
        }
        logits = outputs.logits.float()
        if settings.method == "noise":
            loss = cross_entropy(logits, labels, settings.label_smoothing)
            return loss, {"cross_entropy": loss}
        assert taught is not None, "every other method has a teacher"
        target = taught.logits.float()
        if settings.method == "distillation":
            blocks = settings.compares_blocks
            parts = noise_aware_loss(
                logits,
                target,
                labels,
                [each.float() for each in outputs.hidden_states[1:]] if blocks else [],
                [each.float() for each in taught.hidden_states[1:]] if blocks else [],
                beta=settings.beta,
                gamma=settings.gamma,
                temperature=settings.temperature or 1.0,
                reduction=settings.reduction,
                direction=settings.direction,
                attention_mask=mask if blocks else None,
                **options,
            )
            hidden = ("total",) if blocks else ("total", "mse")
            return parts.total, {name: value for name, value in parts._asdict().items() if name not in hidden}
        loss_of: Any
        of_class = _token_logits(outputs, "cls_logits", logits)
        of_teacher_token = _token_logits(outputs, "distillation_logits", logits)
        if settings.method in ("deit_soft", "deit_hard"):
            loss_of = hard_distillation_loss
            if settings.method == "deit_soft":
                loss_of, options = soft_distillation_loss, {**soft, **options}
            distilled = loss_of(of_class, of_teacher_token, target, labels, **options)
        else:
            assert corruptions is not None, "checked when the data were loaded"
            of_corruption = outputs.corruption_logits.float()
            added = outputs.adjustment_logits
            options["adjustment_logits"] = None if added is None else added.float()
            loss_of = cdeit_hard_loss
            if settings.method == "cdeit_soft":
                loss_of, options = cdeit_soft_loss, {**soft, **options}
            distilled = loss_of(of_class, of_teacher_token, of_corruption, target, labels, corruptions, **options)
        return distilled.total, {name: value for name, value in distilled._asdict().items() if name != "total"}

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Accuracy and loss on the chip of seed 0, at full strength; does not change how training goes on."""
        if self.chip is not None:
            self.chip.strength = self.settings.strength
        self._evaluated = 0
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # loading batches draws too
            measured: dict[str, float] = super().evaluate(*arguments, **keywords)
        return measured

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """Adds the parts of the loss, means since the last time over all processes."""
        if "loss" in logs and self._parts:
            means = torch.tensor([[float(np.mean(each)) for each in self._parts.values()]], device=self.args.device)
            of_all = self.accelerator.gather(means).mean(dim=0).tolist()
            logs = {**logs, **dict(zip(self._parts, of_all, strict=True))}
            self._parts.clear()
        super().log(logs, *arguments, **keywords)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # every process writes the state of its generators
            if self.args.should_save:
                (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
                done = {"step": self.state.global_step, "epoch": self.state.epoch}
                write_whole(folder / CHECKPOINT_MARK, json.dumps(done))
        except (OSError, RuntimeError, SafetensorError) as error:  # of Python, PyTorch's writer and safetensors'
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(
                f"The checkpoint {folder} cannot be written: {reason(error)}. Make room, then go on with --resume."
            ) from None


class _Chip(TrainerCallback):
    """What happens to chip and weights between steps."""

    def __init__(self, settings: Finetuning, chip: Chip | None, model: PreTrainedModel) -> None:
        self.settings, self.chip, self.model = settings, chip, model

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.process_index and not state.global_step:
            torch.manual_seed(args.seed + args.process_index)  # every process has chips of its own

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.chip is None or self.settings.strength_schedule == "random":
            return
        done = 1.0
        if self.settings.strength_schedule == "linear":
            done = min(1.0, (state.global_step + 1) / max(1, state.max_steps // 2))
        self.chip.strength = self.settings.strength * done

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.settings.clip_weights is None:
            return
        kind, limit = self.settings.clip_weights
        with torch.no_grad():
            for weight in self._stored():
                most = limit if kind == "fixed" else limit * float(weight.std())
                weight.clamp_(-most, most)

    def _stored(self) -> list[Tensor]:
        """The weights that lie in arrays, or would: without a chip those of every product."""
        if self.chip is not None:
            return [weight for _name, weight in self.chip.parameters()]
        products = (nn.Linear, nn.Conv2d, Conv1D)
        return [each.weight for each in self.model.modules() if isinstance(each, products)]


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _token_logits(outputs: Any, name: str, otherwise: Tensor) -> Tensor:
    """Logits of one token, those of the model where it has none of its own."""
    found = getattr(outputs, name, None)
    return otherwise if found is None else found.float()


def _accuracy(prediction: Any) -> dict[str, float]:
    logits: Any = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": float((logits.argmax(axis=-1) == prediction.label_ids).mean())}
