"""Calibrated ranges of row tiles and slices: what a node reads of a row, and what it refuses."""

from typing import Any

import numpy as np
import pytest

from emu.errors import InputError
from emu.reference import crossbar_matmul
from tests.custom_ops.one_node import controls, run_one_node
from tests.reference.nodes import PLAIN_STORED

NUMBERS = {"dac.bits": 0, "dac.steps": 20, "dac.bound": 1, "adc.bits": 0, "adc.steps": 12}
NUMBERS |= {"mapping.g_min_us": 0, "mapping.g_max_us": 1}
CALIBRATED: dict[str, Any] = {
    "entries": ",".join(NUMBERS),
    "dac": "calibrated",
    "adc": "calibrated",
    "encoding": "differential",
    "weight_bits": 8,
    "slice_bits": 4,
    "tile_rows": 4,
}


def outputs(x: Any, w: Any, ranges: Any, **attributes: Any) -> list[Any]:
    """Return what the native library and the twin give, each the product or its refusal."""
    node, feeds = {**PLAIN_STORED, **CALIBRATED, **attributes}, controls(list(NUMBERS.values()), ranges=ranges)
    found: list[Any] = []
    for compute in (
        lambda: run_one_node("CrossbarMatMul", node, (x, w), feeds),
        lambda: crossbar_matmul(x, w, **feeds, **node),
    ):
        try:
            found.append(compute())
        except (InputError, Exception) as error:  # onnxruntime has exceptions of its own
            found.append(str(error))
    return found


def operands(matrices: int = 1, rows: int = 6) -> tuple[Any, Any]:
    draw = np.random.default_rng(1)
    w = draw.standard_normal((matrices, rows, 5), np.float32)
    return draw.standard_normal((matrices, 7, rows), np.float32), w if matrices > 1 else w[0]


def by_hand(x: Any, w: Any, ranges: Any) -> Any:
    """The product of one matrix with ranges [tiles, slices, 4]."""
    largest, code = np.abs(w).max(), np.rint(np.abs(w) / np.abs(w).max() * 127).astype(int)
    y = 0
    for t, k in enumerate((slice(0, 4), slice(4, 6))):
        alpha = ranges[t, 0, 0]
        fed = np.clip(np.rint(x[..., k] / alpha * 10) / 10, -1, 1)
        for i, factor in enumerate((15 / 127, 16 * 15 / 127)):
            current = fed @ (np.sign(w[k]) * (code[k] >> 4 * i & 15) / 15)
            bound = np.abs(ranges[t, i, 1:3]).max()
            step = 2 * bound / 12
            y = y + np.clip(np.rint(current / step) * step, -bound, bound) * factor * alpha * largest
    return y


def test_every_tile_has_its_inputs_and_every_slice_its_outputs() -> None:
    x, w = operands()
    ranges = np.array([[[1.7, -2.03, 1, 1], [9, -0.5, 0.71, 1]], [[2.3, -1, 1.57, 1], [9, -0.31, 0.2, 1]]], np.float32)
    for y in outputs(x[0], w, ranges.ravel(), range_tiles=2, range_slices=2):
        np.testing.assert_allclose(y, by_hand(x[0], w, ranges), rtol=0, atol=1e-5 * np.abs(y).max())
    shared = np.repeat(ranges[:1, :1], 2, axis=0).repeat(2, axis=1)
    for y in outputs(x[0], w, ranges[0, 0]):
        np.testing.assert_allclose(y, by_hand(x[0], w, shared), rtol=0, atol=1e-5 * np.abs(y).max())


def test_tiles_of_a_stack_are_counted_over_its_matrices() -> None:
    x, w = operands(matrices=3)
    ranges = np.random.default_rng(2).uniform((1, -2, 0.3, 1), (2, -0.5, 2, 1), (3, 2, 1, 4)).astype(np.float32)
    for y in outputs(x, w, ranges.ravel(), range_tiles=6, sample_axis=-1):
        alone = [by_hand(*each) for each in zip(x, w, ranges.repeat(2, axis=2), strict=True)]
        np.testing.assert_allclose(y, alone, rtol=0, atol=1e-5 * np.abs(y).max())


def test_a_row_may_be_longer_and_a_polarity_that_is_not_converted_apart_is_not_read() -> None:
    x, w = operands()
    ranges = np.random.default_rng(2).uniform((1, -2, 0.3, 1), (2, -0.5, 2, 1), (4, 4)).astype(np.float32)
    both = ranges.repeat(2, axis=0)
    both[1::2, 1:3] = -9, 9
    one = outputs(x[0], w, ranges.ravel(), range_tiles=2, range_slices=2)
    other = outputs(x[0], w, [*both.ravel(), *[np.nan] * 8], range_tiles=2, range_slices=2, range_polarities=2)
    np.testing.assert_array_equal(one, other)


def test_a_node_of_an_earlier_version_has_one_range() -> None:
    x, w = operands()
    node = {name: value for name, value in PLAIN_STORED.items() if not name.startswith("range_")} | CALIBRATED
    feeds = controls(list(NUMBERS.values()), ranges=(1.7, -1, 2.03, 1))
    expected = outputs(x[0], w, (1.7, -1, 2.03, 1))
    np.testing.assert_array_equal(run_one_node("CrossbarMatMul", node, (x[0], w), feeds), expected[0])
    np.testing.assert_array_equal(crossbar_matmul(x[0], w, **feeds, **node), expected[1])
    python = run_one_node("CrossbarMatMul", node, (x[0], w), feeds, ops="python")
    np.testing.assert_array_equal(python, expected[1])


FOUR = (1, -1, 1, 1)


@pytest.mark.parametrize(
    ("attributes", "ranges", "says"),
    [
        ({"range_tiles": 3}, FOUR * 3, "attribute 'range_tiles' is 3, expected 1 or 2, the row tiles of 'W'."),
        ({"range_slices": 3}, FOUR * 3, "attribute 'range_slices' is 3, expected 1, or the number of slices of a"),
        ({"range_slices": 0}, FOUR, "attribute 'range_slices' is 0, expected a whole number from 1 to 16."),
        ({"range_polarities": 3}, FOUR, "attribute 'range_polarities' is 3, expected 1 or 2."),
        (
            {"encoding": "offset", "range_polarities": 2},
            FOUR * 2,
            "attribute 'range_polarities' is 2, expected 1 unless values are held by pairs of devices.",
        ),
        ({"range_tiles": 2}, FOUR, "input 'ranges' has shape [1, 4], expected [1, 4 R], one row for each site and R"),
        ({}, (*FOUR, 1), "input 'ranges' has shape [1, 5], expected [1, 4 R], one row for each site and R at least 1"),
        ({"range_tiles": 2}, (*FOUR, 0, -1, 1, 1), "input 'ranges' has the activation 0 for this site, expected"),
        ({"range_slices": 2}, (*FOUR, 1, 1, 1, 1), "input 'ranges' has the outputs 1 to 1 for this site, expected"),
    ],
)
def test_what_is_refused_is_refused_alike(attributes: dict[str, Any], ranges: Any, says: str) -> None:
    x, w = operands()
    for said in outputs(x[0], w, ranges, **attributes):
        assert isinstance(said, str) and says in said
