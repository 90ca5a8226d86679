"""Losses against numbers worked out apart from this project, and against their equations in NumPy."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from emu.errors import InputError
from emu.train.losses import (
    blocks_mse,
    cdeit_hard_loss,
    cdeit_soft_loss,
    cross_entropy,
    hard_distillation_loss,
    kl_divergence,
    noise_aware_loss,
    soft_distillation_loss,
)

# One sample whose losses were worked out apart from this project.
STUDENT = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
LABEL = torch.tensor([0])
TAU = 3.0
CE = 0.40760596444438046
KL_TEACHER_STUDENT = 0.04328207916390781
KL_STUDENT_TEACHER = 0.04490778272338403


def near(value: float) -> Any:
    return pytest.approx(value, rel=0, abs=1e-7)


def logits(*shape: int, seed: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ZS, ZD, ZT, FFN = (logits(4, 3, seed=seed) for seed in range(4))
ZC = logits(4, 5, seed=4)
LABELS = torch.tensor([0, 2, 1, 1])
CORRUPTIONS = torch.tensor([0, 4, 2, 3])


def softmax(z: Any) -> Any:
    e = np.exp(np.asarray(z) - np.asarray(z).max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def ce(z: Any, labels: Any) -> float:
    return float(-np.log(softmax(z)[np.arange(len(z)), np.asarray(labels)]).mean())


def kl(z_true: Any, z: Any, tau: float) -> float:
    p, q = softmax(np.asarray(z_true) / tau), softmax(np.asarray(z) / tau)
    return float((p * np.log(p / q)).sum(axis=-1).mean())


class TestWorkedNumbers:
    def test_cross_entropy(self) -> None:
        assert cross_entropy(STUDENT, LABEL).item() == near(CE)

    def test_divergence_in_both_directions(self) -> None:
        assert kl_divergence(STUDENT, TEACHER, TAU).item() == near(KL_TEACHER_STUDENT)
        assert kl_divergence(STUDENT, TEACHER, TAU, direction="student_teacher").item() == near(KL_STUDENT_TEACHER)

    def test_soft_distillation(self) -> None:
        parts = soft_distillation_loss(STUDENT, STUDENT, TEACHER, LABEL)
        assert parts.total.item() == near(0.39857233845977535)
        assert parts.labels.item() == near(CE)
        assert parts.teacher.item() == near(9 * KL_TEACHER_STUDENT)

    def test_soft_distillation_as_its_equation_is_printed(self) -> None:
        parts = soft_distillation_loss(STUDENT, STUDENT, TEACHER, LABEL, direction="student_teacher")
        assert parts.total.item() == near(0.5 * CE + 4.5 * KL_STUDENT_TEACHER)

    def test_hard_distillation(self) -> None:
        parts = hard_distillation_loss(STUDENT, STUDENT, TEACHER, LABEL)
        assert parts.total.item() == near(0.9076059644443804)

    def test_noise_aware_loss(self) -> None:
        blocks = [torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)]
        clean = [torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)]
        parts = noise_aware_loss(STUDENT, TEACHER, LABEL, blocks, clean, beta=0.25, gamma=0.5, temperature=TAU)
        assert parts.cross_entropy.item() == near(CE)
        assert parts.kl.item() == near(KL_TEACHER_STUDENT)
        assert parts.mse.item() == near(2.5)
        assert parts.total.item() == near(CE + 0.25 * 9 * KL_TEACHER_STUDENT + 0.5 * 2.5)


class TestNoiseAwareLoss:
    def test_a_student_that_equals_its_teacher_only_pays_for_labels(self) -> None:
        blocks = [logits(4, 6, 8, seed=9)]
        parts = noise_aware_loss(ZS, ZS, LABELS, blocks, blocks, beta=3, gamma=5, temperature=2)
        assert parts.total.item() == near(ce(ZS, LABELS))
        assert parts.kl.item() == near(0) and parts.mse.item() == 0

    def test_every_block_counts_the_same_whatever_its_size(self) -> None:
        students = [torch.ones(2, 3, 4), torch.ones(2, 5, 16)]
        teachers = [torch.zeros(2, 3, 4), 3 * torch.ones(2, 5, 16)]
        assert blocks_mse(students, teachers).item() == near((1 + 4) / 2)

    def test_padding_changes_nothing(self) -> None:
        student, teacher = logits(2, 3, 4, seed=1), logits(2, 3, 4, seed=2)
        mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
        kept = torch.cat([(student - teacher)[0], (student - teacher)[1, :1]])
        assert blocks_mse([student], [teacher], mask).item() == near(kept.square().mean().item())
        longer = [torch.cat([each, torch.full((2, 2, 4), 9.0 * i)], dim=1) for i, each in enumerate((student, teacher))]
        longer_mask = torch.cat([mask, torch.zeros(2, 2, dtype=mask.dtype)], dim=1)
        assert blocks_mse([longer[0]], [longer[1]], longer_mask).item() == near(kept.square().mean().item())

    def test_logits_of_tokens_leave_out_padding_and_unlabelled_tokens(self) -> None:
        student, teacher = logits(2, 3, 4, seed=1), logits(2, 3, 4, seed=2)
        labels = torch.tensor([[1, -100, 3], [0, -100, -100]])
        mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
        parts = noise_aware_loss(student, teacher, labels, [student], [teacher], attention_mask=mask)
        scored, kept = labels != -100, mask == 1
        assert parts.cross_entropy.item() == near(ce(student[scored], labels[scored]))
        assert parts.kl.item() == near(kl(teacher[kept], student[kept], 1))

    def test_start_and_end_of_an_answer_are_averaged(self) -> None:
        blocks = [torch.zeros(4, 1, 1)]
        start, end = (noise_aware_loss(z, ZT, LABELS, blocks, blocks) for z in (ZS, ZD))
        both = noise_aware_loss((ZS, ZD), (ZT, ZT), (LABELS, LABELS), blocks, blocks)
        assert both.total.item() == near((start.total.item() + end.total.item()) / 2)

    def test_no_gradient_reaches_the_teacher(self) -> None:
        student, teacher = ZS.clone().requires_grad_(), ZT.clone().requires_grad_()
        mine, theirs = torch.ones(1, 2, 3, requires_grad=True), torch.zeros(1, 2, 3, requires_grad=True)
        noise_aware_loss(student, teacher, LABELS, [mine], [theirs]).total.backward()
        assert student.grad is not None and mine.grad is not None
        assert teacher.grad is None and theirs.grad is None

    def test_a_batch_without_any_label_has_no_cross_entropy_but_a_gradient(self) -> None:
        student = ZS.clone().requires_grad_()
        loss = cross_entropy(student, torch.full((4,), -100))
        loss.backward()
        assert loss.item() == 0 and not student.grad.any()


class TestLabels:
    def test_soft_labels_that_are_certain_are_labels(self) -> None:
        certain = torch.nn.functional.one_hot(LABELS, 3).float()
        for smoothing in (0.0, 0.1):
            assert cross_entropy(ZS, certain, smoothing).item() == near(cross_entropy(ZS, LABELS, smoothing).item())

    def test_soft_labels_mix_cross_entropies(self) -> None:
        labels = torch.tensor([[0.7, 0.3, 0.0]] * 4)
        expected = 0.7 * ce(ZS, [0] * 4) + 0.3 * ce(ZS, [1] * 4)
        assert cross_entropy(ZS, labels).item() == near(expected)

    def test_label_smoothing_spreads_over_all_classes(self) -> None:
        spread = np.mean([ce(ZS, [c] * 4) for c in range(3)])
        assert cross_entropy(ZS, LABELS, 0.1).item() == near(0.9 * ce(ZS, LABELS) + 0.1 * spread)


class TestDistillation:
    def test_the_class_token_learns_labels_and_the_distillation_token_the_teacher(self) -> None:
        soft = soft_distillation_loss(ZS, ZD, ZT, LABELS, weight=0.3)
        assert soft.total.item() == near(0.7 * ce(ZS, LABELS) + 0.3 * 9 * kl(ZT, ZD, 3))
        hard = hard_distillation_loss(ZS, ZD, ZT, LABELS)
        assert hard.total.item() == near((ce(ZS, LABELS) + ce(ZD, ZT.argmax(-1))) / 2)

    def test_dividing_by_batch_and_classes_is_deits_own_code(self) -> None:
        T, alpha = 2.0, 0.5
        functional = torch.nn.functional
        # losses.py of the DeiT repository
        distillation = (
            functional.kl_div(
                functional.log_softmax(ZD / T, dim=1),
                functional.log_softmax(ZT / T, dim=1),
                reduction="sum",
                log_target=True,
            )
            * (T * T)
            / ZD.numel()
        )
        expected = functional.cross_entropy(ZS, LABELS) * (1 - alpha) + distillation * alpha
        parts = soft_distillation_loss(ZS, ZD, ZT, LABELS, temperature=T, weight=alpha, reduction="batch_classes")
        assert parts.total.item() == near(expected.item())

    def test_smoothing_leaves_the_teachers_classes_alone(self) -> None:
        plain, smooth = (hard_distillation_loss(ZS, ZD, ZT, LABELS, label_smoothing=s) for s in (0.0, 0.1))
        assert smooth.teacher.item() == near(plain.teacher.item())
        assert smooth.labels.item() != near(plain.labels.item())


class TestCDeiT:
    def test_hard_loss_is_equation_6(self) -> None:
        parts = cdeit_hard_loss(ZS, ZD, ZC, ZT, LABELS, CORRUPTIONS, adjustment_logits=FFN)
        expected = (ce(ZS + FFN, LABELS) + ce(ZD, ZT.argmax(-1)) + ce(ZC, CORRUPTIONS)) / 3
        assert parts.total.item() == near(expected)

    def test_soft_loss_is_equation_7(self) -> None:
        parts = cdeit_soft_loss(ZS, ZD, ZC, ZT, LABELS, CORRUPTIONS, adjustment_logits=FFN, weight=0.4)
        expected = 0.6 * (ce(ZS + FFN, LABELS) + ce(ZC, CORRUPTIONS)) / 2 + 0.4 * 9 * kl(ZT, ZD, 3)
        assert parts.total.item() == near(expected)

    def test_without_a_layer_the_three_tokens_weigh_the_same(self) -> None:
        hard = cdeit_hard_loss(ZS, ZD, ZC, ZT, LABELS, CORRUPTIONS)
        assert hard.total.item() == near((ce(ZS, LABELS) + ce(ZD, ZT.argmax(-1)) + ce(ZC, CORRUPTIONS)) / 3)
        soft = cdeit_soft_loss(ZS, ZD, ZC, ZT, LABELS, CORRUPTIONS, weight=0.1)
        assert soft.total.item() == near((ce(ZS, LABELS) + 9 * kl(ZT, ZD, 3) + ce(ZC, CORRUPTIONS)) / 3)

    def test_labels_and_corruptions_may_be_soft(self) -> None:
        soft = torch.nn.functional.one_hot
        hard = cdeit_hard_loss(ZS, ZD, ZC, ZT, LABELS, CORRUPTIONS, adjustment_logits=FFN)
        mixed = cdeit_hard_loss(
            ZS, ZD, ZC, ZT, soft(LABELS, 3).float(), soft(CORRUPTIONS, 5).float(), adjustment_logits=FFN
        )
        assert mixed.total.item() == near(hard.total.item())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: cross_entropy(ZS, LABELS[:2]), r"Labels of shape \[2\] do not fit logits of shape \[4, 3\]"),
        (lambda: cross_entropy(ZS, LABELS, 1.5), "label_smoothing is 1.5"),
        (lambda: kl_divergence(ZS, ZC), "use a teacher with the same classes"),
        (lambda: kl_divergence(ZS, ZT, 0), "temperature is 0"),
        (lambda: kl_divergence(ZS, ZT, reduction="sum"), "reduction is 'sum': give batchmean or batch_classes"),
        (lambda: kl_divergence(ZS, ZT, direction="both"), "direction is 'both'"),
        (lambda: soft_distillation_loss(ZS, ZD, ZT, LABELS, weight=2), "weight is 2"),
        (lambda: hard_distillation_loss(ZS, ZD, ZC, LABELS), "use a teacher with the same classes"),
        (lambda: cdeit_hard_loss(ZS, ZD, ZC, ZT, LABELS, CORRUPTIONS, adjustment_logits=ZC), r"give FFN\(Zc\)"),
        (lambda: blocks_mse([], []), "at least one"),
        (lambda: blocks_mse([ZS], [ZS, ZS]), "1 blocks, the teacher of 2"),
        (lambda: blocks_mse([ZS], [ZC]), "output of block 0"),
        (lambda: blocks_mse([logits(2, 3, 4, seed=0)] * 2, [logits(2, 3, 4, seed=0)] * 2, ZS), "attention mask"),
        (lambda: noise_aware_loss((ZS, ZS), ZS, LABELS, [ZS], [ZS]), "gives 2 logits, the teacher 1"),
    ],
)
def test_what_does_not_fit_is_said(wrong: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        wrong()
