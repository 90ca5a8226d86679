"""A clean model is held against chance, and labels that are only numbered otherwise are found."""

import numpy as np
import pytest

from emu.errors import InputError
from emu.evaluation.plausibility import Answers, refuse_below_chance, warnings_of

RANDOM = np.random.default_rng(0)


def answers(labels: np.ndarray, right: float, classes: int, order: np.ndarray | None = None) -> Answers:
    """Answers of which so many are right, but for the order of the labels."""
    predicted = np.where(RANDOM.random(len(labels)) < right, labels, RANDOM.integers(0, classes, len(labels)))
    return Answers.of_classes(labels if order is None else order[labels], predicted, classes)


def test_chance_is_that_of_the_same_answers_in_random_order() -> None:
    assert Answers.of_classes(np.array([0, 0, 0, 1]), np.zeros(4, int), 2).chance == 0.75  # always the same answer
    assert Answers.of_classes(np.array([0, 1, 2, 3]), np.array([0, 1, 2, 3]), 4).chance == 0.25
    assert Answers.of_classes(np.zeros(4, int), np.zeros(4, int), 5).chance == 0.2  # one class tells no order


def test_a_model_that_always_answers_the_same_is_no_better_than_chance() -> None:
    labels = (RANDOM.random(300) < 0.1).astype(int)
    always = Answers.of_classes(labels, np.zeros(300, int), 2)
    assert always.accuracy > 0.85 and "would be right by chance" in warnings_of(always)[0]
    with pytest.raises(InputError, match="A model answers .* no more than the .* of chance"):
        refuse_below_chance(always, "A model")


def test_a_trained_model_is_believed_also_on_rare_classes() -> None:
    for right, classes in ((0.95, 2), (0.6, 10), (0.7, 100)):
        found = answers(RANDOM.integers(0, classes, 2000), right, classes)
        assert warnings_of(found) == ()
        refuse_below_chance(found, "A model")
    rare = (np.arange(2000) % 50 == 0).astype(int)
    assert warnings_of(answers(rare, 0.98, 2)) == ()


@pytest.mark.parametrize("by", [1, -1])
def test_a_shift_is_found_with_few_samples(by: int) -> None:
    labels = np.arange(60) % 10
    said = warnings_of(Answers.of_classes(labels, (labels + by) % 10, 10))[-1]
    assert "Labels shifted by one would repair it: 100.00%" in said and ("one more" if by > 0 else "one less") in said


def test_an_order_is_named_only_if_other_samples_confirm_it() -> None:
    labels = np.arange(40) % 20  # two samples a class: any order that fits one of them fits by accident
    assert "order would" not in " ".join(warnings_of(Answers.of_classes(labels, RANDOM.permutation(labels), 20)))
    many = np.arange(400) % 20
    permuted = answers(many, 0.9, 20, np.roll(np.arange(20), 7))
    assert (
        "Classes in another order would repair it" in warnings_of(permuted)[-1]
        and "and 10 more" in (warnings_of(permuted)[-1])
    )


def test_exchanged_classes_of_a_binary_model_are_named() -> None:
    swapped = answers(np.arange(100) % 2, 0.9, 2, np.array([1, 0]))
    assert "(0 as 1, 1 as 0)" in warnings_of(swapped)[-1]
    with pytest.raises(InputError, match="classes in another order would repair it"):
        refuse_below_chance(swapped, "A model")


def test_undefined_answers_are_wrong() -> None:
    some = Answers.of_classes(np.arange(100) % 2, np.where(np.arange(100) < 90, -1, np.arange(100) % 2), 2)
    assert some.accuracy == 0.1 and some.chance == pytest.approx(0.05)


def test_choices_of_their_own_have_a_chance_and_no_order() -> None:
    taken = Answers(np.zeros(50, int), np.arange(50) % 4, None, 0.25)
    assert len(warnings_of(taken)) == 1
