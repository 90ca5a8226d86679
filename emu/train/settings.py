"""What a finetuning does, as plain data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from emu.errors import InputError

Method = Literal["distillation", "noise", "deit_soft", "deit_hard", "cdeit_soft", "cdeit_hard"]
Schedule = Literal["constant", "linear", "random"]
Decay = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16", "float16"]
Gradient = Literal["straight_through", "reparametrized"]
Direction = Literal["teacher_student", "student_teacher"]
Reduction = Literal["batchmean", "batch_classes"]
Clip = tuple[Literal["fixed", "gaussian"], float]


@dataclass(frozen=True)
class Finetuning:
    """How a model is trained.

    Attributes:
        method: the loss. `distillation`: cross-entropy + beta T^2 KL + gamma MSE of block outputs, the student being
            the model on a noisy chip and the teacher the clean model; `noise`: cross-entropy alone, on the chip
            (variation-aware training); `deit_soft`, `deit_hard`, `cdeit_soft`, `cdeit_hard`: those of
            `emu.train.losses`.
        device: the chip on which the student runs, a preset or a file; None to train a digital model.
        set: changes of the device.
        only: sites that are emulated.
        exclude: sites that are digital.
        map: other devices for some sites.
        gradient: how gradients reach the clean weights, see `emu.train.Chip`.
        drop_connect: share of the stored weights set to zero.
        strength: factor on every disturbance while training.
        strength_schedule: `constant`; `linear` from 0 to the strength over the first half of the steps; `random`:
            uniform between 0 and the strength, drawn for each batch.
        clip_weights: after each step, limit the stored weights: ("fixed", limit) or ("gaussian", number of standard
            deviations of each matrix), as aihwkit does.
        beta: weight of the divergence.
        gamma: weight of the difference of block outputs.
        temperature: of the divergence; None for 1, or 3 for the losses of DeiT and CDeiT.
        direction: of the divergence.
        reduction: of the divergence.
        distillation_weight: lambda of DeiT's and CDeiT's soft losses.
        label_smoothing: share of a label spread over all classes.
        epochs: passes over the data.
        batch_size: samples at once, on each device.
        accumulate: batches for one step of the optimizer.
        learning_rate: AdamW's, at its peak.
        decay: how it falls.
        warmup: share of the steps in which it rises.
        weight_decay: AdamW's.
        largest_gradient: gradients are clipped to this norm.
        precision: of products and activations while training; weights stay float32.
        teacher_epochs: epochs in which the classifier of the teacher is trained first, everything else frozen.
        drop_path_rate: of stochastic depth.
        augmentation: arguments of `emu.train.augmentation.Augmentation`.
        workers: processes that prepare batches beside training, for large sets of images.
        seed: of everything that is drawn.

    Raises:
        InputError: a setting is out of its range.
    """

    method: Method = "distillation"
    device: str | None = "rram"
    set: Mapping[str, Any] = field(default_factory=dict)
    only: str | None = None
    exclude: str | None = None
    map: Sequence[str] = ()
    gradient: Gradient = "straight_through"
    drop_connect: float = 0.0
    strength: float = 1.0
    strength_schedule: Schedule = "constant"
    clip_weights: Clip | None = None
    beta: float = 1.0
    gamma: float = 1.0
    temperature: float | None = None
    direction: Direction = "teacher_student"
    reduction: Reduction = "batchmean"
    distillation_weight: float = 0.5
    label_smoothing: float = 0.0
    epochs: float = 5
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-4
    decay: Decay = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.05
    largest_gradient: float = 1.0
    precision: Precision = "float32"
    teacher_epochs: float = 0
    drop_path_rate: float = 0.0
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature is None:
            usual = 1.0 if self.method in ("distillation", "noise") else 3.0
            object.__setattr__(self, "temperature", usual)
        for name, choices in (
            ("method", get_args(Method)),
            ("strength_schedule", get_args(Schedule)),
            ("decay", get_args(Decay)),
            ("precision", get_args(Precision)),
            ("gradient", get_args(Gradient)),
            ("direction", get_args(Direction)),
            ("reduction", get_args(Reduction)),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is '{getattr(self, name)}' and must be one of {', '.join(choices)}.")
        for name, low, high in (
            ("drop_connect", 0, 0.999),
            ("strength", 0, 1e6),
            ("beta", 0, 1e6),
            ("gamma", 0, 1e6),
            ("temperature", 1e-6, 1e6),
            ("distillation_weight", 0, 1),
            ("label_smoothing", 0, 0.999),
            ("epochs", 1e-6, 1e6),
            ("batch_size", 1, 2**20),
            ("accumulate", 1, 2**20),
            ("learning_rate", 0, 100),
            ("warmup", 0, 1),
            ("weight_decay", 0, 100),
            ("largest_gradient", 1e-9, 1e9),
            ("teacher_epochs", 0, 1e6),
            ("drop_path_rate", 0, 0.999),
            ("workers", 0, 1024),
            ("seed", 0, 2**32 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)} and must be {low:g} to {high:g}.")
        if self.clip_weights is not None and not (
            self.clip_weights[0] in ("fixed", "gaussian") and self.clip_weights[1] > 0
        ):
            raise InputError(
                f"clip_weights is {self.clip_weights} and must be 'fixed' or 'gaussian' and a limit above 0."
            )
        if self.device is None:
            given = [name for name in ("set", "only", "exclude", "map", "drop_connect") if getattr(self, name)]
            if given:
                raise InputError(
                    f"Without a device there is no chip for {', '.join(given)}: name one, or leave them out."
                )
        if self.teacher_epochs and not self.has_teacher:
            raise InputError(
                f"teacher_epochs is for a loss with a teacher, and '{self.method}' has none: leave it out."
            )

    @property
    def has_teacher(self) -> bool:
        """Whether the loss has a teacher."""
        return self.method != "noise"

    @property
    def compares_blocks(self) -> bool:
        """Whether the loss compares block outputs with the teacher's."""
        return self.method == "distillation" and self.gamma > 0

    @property
    def has_corruptions(self) -> bool:
        """Whether the data must say how each image is corrupted."""
        return self.method in ("cdeit_soft", "cdeit_hard")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """How settings that were saved as plain data differ from these, as `name: saved, now`."""
        mine = self.as_dict()
        names = [each.name for each in fields(self) if saved.get(each.name) != mine[each.name]]
        return [f"{name} was {saved.get(name)} and is {mine[name]}" for name in names]
