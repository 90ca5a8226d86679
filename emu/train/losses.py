"""What training minimizes: noise-aware distillation, and distillation as in DeiT and with a corruption token.

Pure functions of tensors. Logits are raw scores, before any softmax; every loss is in nats. No gradient reaches a
teacher.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from emu.errors import InputError

Reduction = Literal["batchmean", "batch_classes"]
Direction = Literal["teacher_student", "student_teacher"]
IGNORED_LABEL = -100

_T = TypeVar("_T")


class LossParts(NamedTuple):
    """A noise-aware loss and what it is made of, scalars `[]`; the parts are before their weights."""

    total: Tensor
    cross_entropy: Tensor
    kl: Tensor
    mse: Tensor


class DistillationParts(NamedTuple):
    """A distillation loss and what its tokens contribute, scalars `[]`; the parts are before their weights."""

    total: Tensor
    labels: Tensor
    teacher: Tensor
    corruptions: Tensor


def noise_aware_loss(
    student_logits: Tensor | tuple[Tensor, ...],
    teacher_logits: Tensor | tuple[Tensor, ...],
    labels: Tensor | tuple[Tensor, ...],
    student_blocks: Sequence[Tensor],
    teacher_blocks: Sequence[Tensor],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
    direction: Direction = "teacher_student",
    label_smoothing: float = 0.0,
    attention_mask: Tensor | None = None,
) -> LossParts:
    """Cross-entropy + beta T^2 KL + gamma MSE: the student is the model on a noisy chip, the teacher the clean model.

    The loss of the RRAM variation study of ViT and DeiT, which leaves open beta, gamma, T, the direction of the
    divergence and which outputs are compared: the defaults, and all that follows, are choices of this project.

    - KL is `kl_divergence` of the logits; with `attention_mask` and logits for each token, of the tokens that it keeps.
    - MSE is the mean squared difference of a block's outputs over tokens and width, then the mean over blocks. So it
      depends neither on the depth nor on the length of the padding.
    - A tuple of logits (the start and the end of an answer) gives the mean of each part over the tuple.

    Args:
        student_logits: `[batch, classes]`, `[batch, tokens, classes]`, or a tuple of such.
        teacher_logits: the same shapes.
        labels: classes, an integer for each row of logits (-100: not scored), or soft labels of the logits' shape;
            a tuple if the logits are one.
        student_blocks: the output of every transformer block, none if they are not compared; each
            `[batch, tokens, width]` (any number of dimensions between the first and the last).
        teacher_blocks: the same shapes.
        beta: weight of the divergence.
        gamma: weight of the difference of block outputs.
        temperature: T, divides the logits before the divergence; > 0.
        reduction: of the divergence: "batchmean" (mean over rows) or "batch_classes" (over rows and classes).
        direction: "teacher_student" for KL(teacher || student), "student_teacher" for KL(student || teacher).
        label_smoothing: share of a label that is spread over all classes, 0 to 1.
        attention_mask: `[batch, tokens]`, 0 where a text is padded: these tokens are left out.

    Returns:
        The loss and its parts.

    Raises:
        InputError: shapes do not fit each other, or an option is out of range.
    """
    students, teachers, right = (_as_tuple(each) for each in (student_logits, teacher_logits, labels))
    if not len(students) == len(teachers) == len(right):
        raise InputError(
            f"The student gives {len(students)} logits, the teacher {len(teachers)}, and there are {len(right)} "
            "labels: give the same number of each."
        )
    cross_entropies, divergences = [], []
    for student, teacher, label in zip(students, teachers, right, strict=True):
        cross_entropies.append(cross_entropy(student, label, label_smoothing))
        keep = _kept_rows(student, attention_mask)
        divergences.append(kl_divergence(student, teacher, temperature, reduction, direction, keep))
    labelled, divergence = torch.stack(cross_entropies).mean(), torch.stack(divergences).mean()
    difference = torch.zeros_like(labelled)
    if student_blocks or teacher_blocks:
        difference = blocks_mse(student_blocks, teacher_blocks, attention_mask)
    total = labelled + beta * temperature**2 * divergence + gamma * difference
    return LossParts(total, labelled, divergence, difference)


def soft_distillation_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 3.0,
    weight: float = 0.5,
    reduction: Reduction = "batchmean",
    direction: Direction = "teacher_student",
    label_smoothing: float = 0.0,
) -> DistillationParts:
    """(1 - lambda) CE(Zs, y) + lambda tau^2 KL(Zs / tau, Zt / tau): DeiT's soft distillation.

    Equation 4 of the corrupted-image distillation study, with its tau and lambda (Touvron et al. 2021 print lambda 0.1,
    and their code defaults to 0.5 with tau 1). The equation writes the student first; its usual code, and the default
    here, is KL(teacher || student). DeiT's code divides by batch times classes: `reduction="batch_classes"`.

    Args:
        class_logits: `[batch, classes]` of the class token.
        distillation_logits: `[batch, classes]` of the distillation token; the class token's again for a student that
            has none.
        teacher_logits: `[batch, classes]`.
        labels: int64 `[batch]`, or soft labels `[batch, classes]`.
        temperature: tau, > 0.
        weight: lambda, 0 to 1.
        reduction: of the divergence: "batchmean" or "batch_classes".
        direction: "teacher_student" or "student_teacher".
        label_smoothing: share of a label that is spread over all classes, 0 to 1.

    Raises:
        InputError: shapes do not fit each other, or an option is out of range.
    """
    _check_share("weight", weight)
    labelled = cross_entropy(class_logits, labels, label_smoothing)
    taught = temperature**2 * kl_divergence(distillation_logits, teacher_logits, temperature, reduction, direction)
    return DistillationParts((1 - weight) * labelled + weight * taught, labelled, taught, torch.zeros_like(labelled))


def hard_distillation_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    weight: float = 0.5,
    label_smoothing: float = 0.0,
) -> DistillationParts:
    """1/2 CE(Zs, y) + 1/2 CE(Zs, argmax Zt): DeiT's hard distillation.

    Equation 5 of the corrupted-image distillation study (Touvron et al. 2021, equation 3). As in DeiT's code, label
    smoothing acts on the labels and not on the teacher's classes.

    Args:
        class_logits: `[batch, classes]` of the class token.
        distillation_logits: `[batch, classes]` of the distillation token; the class token's again for a student that
            has none.
        teacher_logits: `[batch, classes]`.
        labels: int64 `[batch]`, or soft labels `[batch, classes]`.
        weight: of the teacher's part, 0 to 1; the equation has 1/2.
        label_smoothing: share of a label that is spread over all classes, 0 to 1.

    Raises:
        InputError: shapes do not fit each other, or an option is out of range.
    """
    _check_share("weight", weight)
    labelled = cross_entropy(class_logits, labels, label_smoothing)
    taught = _teacher_cross_entropy(distillation_logits, teacher_logits)
    return DistillationParts((1 - weight) * labelled + weight * taught, labelled, taught, torch.zeros_like(labelled))


def cdeit_hard_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    corruption_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    corruptions: Tensor,
    *,
    adjustment_logits: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> DistillationParts:
    """1/3 CE(Zs + FFN(Zc), y) + 1/3 CE(Zd, argmax Zt) + 1/3 CE(Zc, c): CDeiT's hard distillation.

    Equation 6 of the corrupted-image distillation study. Without FFN (the study's first strategy) it is the mean of the
    three tokens' losses.

    Args:
        class_logits: Zs, `[batch, classes]`.
        distillation_logits: Zd, `[batch, classes]`.
        corruption_logits: Zc, `[batch, kinds]`.
        teacher_logits: Zt, `[batch, classes]`.
        labels: y, int64 `[batch]`, or soft labels `[batch, classes]`.
        corruptions: c, how each image was corrupted, int64 `[batch]`, or soft `[batch, kinds]`.
        adjustment_logits: FFN(Zc), `[batch, classes]`, which `CDeiTForImageClassification` gives; None in the first
            strategy.
        label_smoothing: share of a label that is spread over all classes, 0 to 1; not for the teacher's classes.

    Raises:
        InputError: shapes do not fit each other, or an option is out of range.
    """
    labelled = cross_entropy(_adjusted(class_logits, adjustment_logits), labels, label_smoothing)
    taught = _teacher_cross_entropy(distillation_logits, teacher_logits)
    corrupted = cross_entropy(corruption_logits, corruptions, label_smoothing)
    return DistillationParts((labelled + taught + corrupted) / 3, labelled, taught, corrupted)


def cdeit_soft_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    corruption_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    corruptions: Tensor,
    *,
    adjustment_logits: Tensor | None = None,
    temperature: float = 3.0,
    weight: float = 0.5,
    reduction: Reduction = "batchmean",
    direction: Direction = "teacher_student",
    label_smoothing: float = 0.0,
) -> DistillationParts:
    """(1 - lambda) [CE(Zs + FFN(Zc), y) + CE(Zc, c)] / 2 + lambda tau^2 KL(Zd / tau, Zt / tau): CDeiT's soft one.

    Equation 7 of the corrupted-image distillation study. Without FFN (the study's first strategy) it is the mean of the
    three tokens' losses, `weight` being of no use: (CE(Zs, y) + tau^2 KL + CE(Zc, c)) / 3, where counting tau^2 to the
    distillation token's loss is a choice of this project.

    Args:
        class_logits: Zs, `[batch, classes]`.
        distillation_logits: Zd, `[batch, classes]`.
        corruption_logits: Zc, `[batch, kinds]`.
        teacher_logits: Zt, `[batch, classes]`.
        labels: y, int64 `[batch]`, or soft labels `[batch, classes]`.
        corruptions: c, how each image was corrupted, int64 `[batch]`, or soft `[batch, kinds]`.
        adjustment_logits: FFN(Zc), `[batch, classes]`, which `CDeiTForImageClassification` gives; None in the first
            strategy.
        temperature: tau, > 0.
        weight: lambda, 0 to 1.
        reduction: of the divergence: "batchmean" or "batch_classes".
        direction: "teacher_student" or "student_teacher".
        label_smoothing: share of a label that is spread over all classes, 0 to 1.

    Raises:
        InputError: shapes do not fit each other, or an option is out of range.
    """
    _check_share("weight", weight)
    labelled = cross_entropy(_adjusted(class_logits, adjustment_logits), labels, label_smoothing)
    taught = temperature**2 * kl_divergence(distillation_logits, teacher_logits, temperature, reduction, direction)
    corrupted = cross_entropy(corruption_logits, corruptions, label_smoothing)
    if adjustment_logits is None:
        total = (labelled + taught + corrupted) / 3
    else:
        total = (1 - weight) * (labelled + corrupted) / 2 + weight * taught
    return DistillationParts(total, labelled, taught, corrupted)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the rows of logits that have a label; 0 if none has.

    Args:
        logits: `[..., classes]`.
        labels: integers `[...]` (-100: not scored), or soft labels `[..., classes]`.
        label_smoothing: share of a label that is spread over all classes, 0 to 1.

    Raises:
        InputError: shapes do not fit each other, or the smoothing is out of range.
    """
    _check_share("label_smoothing", label_smoothing)
    soft = labels.is_floating_point()
    if labels.shape != (logits.shape if soft else logits.shape[:-1]):
        raise InputError(
            f"Labels of shape {list(labels.shape)} do not fit logits of shape {list(logits.shape)}: give integers "
            f"{list(logits.shape[:-1])} or, as float, soft labels {list(logits.shape)}."
        )
    rows = logits.flatten(0, -2)
    if soft:
        return functional.cross_entropy(rows, labels.flatten(0, -2).to(rows.dtype), label_smoothing=label_smoothing)
    flat = labels.flatten().long()
    if not (flat != IGNORED_LABEL).any():
        return rows.sum() * 0.0
    return functional.cross_entropy(rows, flat, ignore_index=IGNORED_LABEL, label_smoothing=label_smoothing)


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    reduction: Reduction = "batchmean",
    direction: Direction = "teacher_student",
    keep: Tensor | None = None,
) -> Tensor:
    """Divergence of two softmax distributions at a temperature T, without the factor T^2.

    Args:
        student_logits: `[..., classes]`.
        teacher_logits: the same shape; no gradient reaches them.
        temperature: divides the logits; > 0.
        reduction: "batchmean", the mean over rows, or "batch_classes", the sum divided by rows times classes.
        direction: "teacher_student" for KL(teacher || student), "student_teacher" for KL(student || teacher).
        keep: bool `[...]`, the rows that count; None for all.

    Returns:
        Nats, a scalar `[]`; 0 if no row counts.

    Raises:
        InputError: shapes do not fit each other, or an option is out of range.
    """
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"The student's logits have shape {list(student_logits.shape)}, the teacher's "
            f"{list(teacher_logits.shape)}: use a teacher with the same classes and inputs."
        )
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}: give a number above 0.")
    divide_by = _choice("reduction", reduction, {"batchmean": 1, "batch_classes": student_logits.shape[-1]})
    student = functional.log_softmax(student_logits / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    first, second = _choice(
        "direction", direction, {"teacher_student": (teacher, student), "student_teacher": (student, teacher)}
    )
    # kl_div(input, target) is KL(target || input), and defines 0 log 0 as 0.
    rows = functional.kl_div(second, first, reduction="none", log_target=True).sum(dim=-1) / divide_by
    return _mean_of_kept(rows, keep)


def blocks_mse(
    student_blocks: Sequence[Tensor], teacher_blocks: Sequence[Tensor], attention_mask: Tensor | None = None
) -> Tensor:
    """Mean over blocks of the mean squared difference over tokens and width.

    Args:
        student_blocks: outputs of the blocks, each `[batch, tokens, width]`.
        teacher_blocks: the same shapes; no gradient reaches them.
        attention_mask: `[batch, tokens]`, 0 for the tokens to leave out; None for none.

    Raises:
        InputError: numbers or shapes of blocks differ, there are none, or the mask does not fit.
    """
    if len(student_blocks) != len(teacher_blocks) or not student_blocks:
        raise InputError(
            f"The student has the outputs of {len(student_blocks)} blocks, the teacher of {len(teacher_blocks)}: give "
            "one output of each for every block, and at least one."
        )
    means = []
    for number, (student, teacher) in enumerate(zip(student_blocks, teacher_blocks, strict=True)):
        if student.shape != teacher.shape:
            raise InputError(
                f"The output of block {number} has shape {list(student.shape)} in the student and "
                f"{list(teacher.shape)} in the teacher: use a teacher of the same architecture."
            )
        tokens = (student - teacher.detach()).square().mean(dim=-1)
        if attention_mask is not None and attention_mask.shape != tokens.shape:
            raise InputError(
                f"The attention mask has shape {list(attention_mask.shape)}, but block {number} gives tokens of shape "
                f"{list(tokens.shape)}: give a mask of that shape."
            )
        means.append(_mean_of_kept(tokens, None if attention_mask is None else attention_mask != 0))
    return torch.stack(means).mean()


def _teacher_cross_entropy(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    if logits.shape != teacher_logits.shape:
        raise InputError(
            f"The student's logits have shape {list(logits.shape)}, the teacher's {list(teacher_logits.shape)}: use a "
            "teacher with the same classes and inputs."
        )
    return cross_entropy(logits, teacher_logits.detach().argmax(dim=-1))


def _adjusted(class_logits: Tensor, adjustment_logits: Tensor | None) -> Tensor:
    if adjustment_logits is None:
        return class_logits
    if adjustment_logits.shape != class_logits.shape:
        raise InputError(
            f"adjustment_logits has shape {list(adjustment_logits.shape)}, the class logits "
            f"{list(class_logits.shape)}: give FFN(Zc), one number for each class."
        )
    return class_logits + adjustment_logits


def _kept_rows(logits: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Which rows of logits a mask keeps, if there is one row for each token."""
    if attention_mask is None or logits.shape[:-1] != attention_mask.shape:
        return None
    return attention_mask != 0


def _mean_of_kept(values: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return values.mean()
    return values.masked_fill(~keep, 0).sum() / keep.sum().clamp(min=1)


def _as_tuple(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tensors if isinstance(tensors, tuple) else (tensors,)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value}: give a number from 0 to 1.")


def _choice(name: str, value: str, choices: dict[str, _T]) -> _T:
    if value not in choices:
        raise InputError(f"{name} is '{value}': give {' or '.join(choices)}.")
    return choices[value]
