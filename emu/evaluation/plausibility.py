"""Whether a clean model can be believed: its accuracy against chance, and renumbered labels that would repair it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError
from emu.evaluation.statistics import wilson_interval

CAUSES = (
    "the order of the classes and the labels, how the inputs were prepared (mean and std of pixels, tokenizer), and "
    "that the model is trained"
)
_NAMED = 10  # classes in a sentence


@dataclass(frozen=True)
class Answers:
    """What a model answered, and what is right.

    Args:
        labels: right classes, int `[samples]`.
        predicted: the model's, int `[samples]`; -1 for none.
        classes: how many the model has; None where every sample has choices of its own.
        chance: share of right answers that answers without knowledge would have, 0 to 1.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    classes: int | None
    chance: float

    @classmethod
    def of_classes(cls, labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> "Answers":
        """Those of a classifier; chance is the accuracy of the same answers in random order (Cohen 1960).

        Where all samples are of one class their order tells nothing, and chance is one of all classes.
        """
        right = np.bincount(labels, minlength=classes) / len(labels)
        given = np.bincount(predicted[predicted >= 0], minlength=classes) / len(labels)
        chance = 1 / classes if (right > 0).sum() < 2 else float(right @ given)
        return cls(labels, predicted, classes, chance)

    @property
    def right(self) -> int:
        """Right answers."""
        return int((self.labels == self.predicted).sum())

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.right / len(self.labels)

    @property
    def unknown(self) -> tuple[int, int]:
        """Classes that are given to their own samples no more often than to all, and the classes that there are."""
        present = np.unique(self.labels)
        own = [np.mean(self.predicted[self.labels == each] == each) for each in present]
        overall = [np.mean(self.predicted == each) for each in present]
        return int(np.sum(np.array(own) <= np.array(overall))), len(present)

    @property
    def is_below_chance(self) -> bool:
        """Whether no more answers are right than would be without knowledge."""
        return self.accuracy <= self.chance


def warnings_of(answers: Answers) -> tuple[str, ...]:
    """What is suspicious about the answers of a clean model, as sentences.

    Accuracy whose 95 % interval (Wilson) reaches chance, or is less, or that comes from less than half of the classes,
    as that of random weights may; and labels shifted by one, or renumbered, with which significantly more are right.
    """
    low, high = wilson_interval(answers.right, len(answers.labels))
    found = []
    if low <= answers.chance:
        found.append(
            f"The clean model answers {answers.accuracy:.2%} right (95 % interval {low:.2%} to {high:.2%}), and "
            f"{answers.chance:.2%} would be right by chance: check {CAUSES}."
        )
    elif answers.classes is not None:
        unknown, present = answers.unknown
        if 2 * unknown >= present > 1:
            found.append(
                f"The clean model answers {answers.accuracy:.2%} right, but {unknown} of {present} classes no better "
                f"than by chance: check {CAUSES}."
            )
    repaired = _shifted(answers) or _renumbered(answers)
    return (*found, repaired) if repaired else tuple(found)


def refuse_below_chance(answers: Answers, what: str) -> None:
    """Refuses to study what disturbance costs a model that knows nothing.

    Raises:
        InputError: no more answers are right than by chance.
    """
    if answers.is_below_chance:
        repaired = _shifted(answers) or _renumbered(answers)
        raise InputError(
            f"{what} answers {answers.accuracy:.2%} right without any disturbance, no more than the "
            f"{answers.chance:.2%} of chance, so that nothing can be lost: "
            + (f"{repaired[0].lower()}{repaired[1:-1]}" if repaired else f"check {CAUSES}")
            + ". Run it nevertheless with --anyway."
        )


def _shifted(answers: Answers) -> str | None:
    """The sentence for labels that count from another number."""
    classes = answers.classes
    if classes is None or classes < 3:
        return None
    for by in (1, -1):
        right = int((answers.predicted == (answers.labels + by) % classes).sum())
        if _is_better(right, answers):
            said = "one more" if by > 0 else "one less"
            return (
                f"Labels shifted by one would repair it: {right / len(answers.labels):.2%} of the answers are the "
                f"label's number and {said}, so that the data seem to count classes from another number."
            )
    return None


def _renumbered(answers: Answers) -> str | None:
    """The sentence for classes in another order, which one half of the samples shows and the other confirms.

    Less than half of the answers right is no repair: the best order makes that of random weights, too.
    """
    if answers.classes is None or _is_in_order(answers):
        return None
    half = _halves(answers.labels)
    right = 0
    for part in (half, ~half):
        number = _best_numbers(answers, part)
        right += int((answers.predicted[~part] == number[answers.labels[~part]]).sum())
    if not _is_better(right, answers) or 2 * right < len(half):
        return None
    number = _best_numbers(answers, np.ones(len(half), bool))
    moved = [label for label in np.unique(answers.labels) if number[label] != label]
    if not moved:
        return None
    shown = ", ".join(f"{label} as {number[label]}" for label in moved[:_NAMED])
    shown += f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
    return (
        f"Classes in another order would repair it: {right / len(half):.2%} of the answers would be right with the "
        f"labels renumbered ({shown})."
    )


def _is_in_order(answers: Answers) -> bool:
    """Whether every class is the most frequent answer to its own samples, so that no other order is better."""
    confusion = _confusion(answers, np.ones(len(answers.labels), bool))
    present = np.unique(answers.labels)
    return bool((confusion[present].max(axis=1) <= confusion[present, present]).all())


def _is_better(right: int, answers: Answers) -> bool:
    total = len(answers.labels)
    least = max(wilson_interval(answers.right, total)[1], answers.chance)
    return wilson_interval(right, total)[0] > least


def _halves(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Every other sample of each class."""
    order = np.argsort(labels, kind="stable")
    half = np.zeros(len(labels), bool)
    starts = np.searchsorted(labels[order], labels[order])
    half[order] = (np.arange(len(labels)) - starts) % 2 == 0
    return half


def _best_numbers(answers: Answers, part: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The number for each class, each used once, with which most of these samples are right, int `[classes]`."""
    from scipy.optimize import linear_sum_assignment

    confusion = _confusion(answers, part)
    confusion += 1e-6 * np.eye(len(confusion))  # where nothing speaks for another number, the own one
    return np.asarray(linear_sum_assignment(-confusion)[1], np.int64)


def _confusion(answers: Answers, part: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How often each class `[label, answer]` was answered for these samples."""
    assert answers.classes is not None
    given = part & (answers.predicted >= 0)
    confusion = np.zeros((answers.classes, answers.classes))
    np.add.at(confusion, (answers.labels[given], answers.predicted[given]), 1)
    return confusion
