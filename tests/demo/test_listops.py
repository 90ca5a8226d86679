"""The generated task: labels are right, and the same seed makes the same data."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from emu.demo import data_path


@pytest.fixture
def listops(examples: Path) -> ModuleType:
    return importlib.import_module("listops")


def value_of(text: str) -> int:
    """Evaluates by rewriting innermost lists until a digit is left: nothing in common with the generator."""
    tokens = text.split()
    while len(tokens) > 1:
        close = tokens.index("]")
        start = max(i for i in range(close) if tokens[i].startswith("["))
        digits = sorted(tokens[start + 1 : close])
        result = {
            "[MAX": digits[-1],
            "[MIN": digits[0],
            "[FIRST": tokens[start + 1],
            "[LAST": tokens[close - 1],
        }[tokens[start]]
        tokens[start : close + 1] = [result]
    return int(tokens[0])


def test_every_label_is_the_value_of_its_expression(listops: ModuleType) -> None:
    samples = listops.generate(2000, seed=3)
    for row, label in zip(samples.input_ids, samples.labels, strict=True):
        text = listops.text_of(row)
        assert value_of(text) == label, text


def test_the_evaluator_of_this_test_knows_a_nested_list() -> None:
    assert value_of("[MAX 3 [MIN 7 4 9 ] 1 ]") == 4


def test_same_seed_same_samples_and_another_seed_others(listops: ModuleType) -> None:
    first, again, other = (listops.generate(50, seed=seed) for seed in (7, 7, 8))
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(first.input_ids, other.input_ids)


def test_samples_are_distinct_fit_and_are_masked(listops: ModuleType) -> None:
    samples = listops.generate(500, seed=1)
    assert samples.input_ids.shape == (500, 32) and samples.input_ids.dtype == samples.labels.dtype == np.int64
    assert len({row.tobytes() for row in samples.input_ids}) == 500
    assert samples.input_ids.max() < len(listops.VOCABULARY)
    np.testing.assert_array_equal(samples.attention_mask, samples.input_ids != 0)
    assert (samples.input_ids[:, 0] == listops.TOKEN_IDS["[CLS]"]).all()


def test_excluded_samples_never_appear(listops: ModuleType) -> None:
    held_out = listops.generate(200, seed=5)
    samples = listops.generate(200, seed=5, exclude=held_out)  # the same seed would give the same ones
    assert not {row.tobytes() for row in samples.input_ids} & {row.tobytes() for row in held_out.input_ids}


def test_all_operations_depths_and_classes_occur(listops: ModuleType) -> None:
    samples = listops.generate(500, seed=2)
    texts = [listops.text_of(row) for row in samples.input_ids]
    for operation in ("[MAX", "[MIN", "[FIRST", "[LAST"):
        assert sum(operation in text for text in texts) > 100
    assert 50 < sum(text.count("[") == 1 for text in texts) < 450
    assert np.bincount(samples.labels, minlength=10).min() > 20


def test_shipped_data_are_what_the_generator_makes(listops: ModuleType) -> None:
    with np.load(data_path("listops_test")) as data:
        texts = [listops.text_of(row) for row in data["input_ids"]]
        assert [value_of(text) for text in texts] == data["labels"].tolist()
        for name, array in listops.generate(1000, seed=1_000_000)._asdict().items():
            np.testing.assert_array_equal(data[name], array)
