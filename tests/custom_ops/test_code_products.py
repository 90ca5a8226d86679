"""Products of 8-bit input codes, which fast processors take from fixed-point weights: what their packing could break.

On other processors the same tests run through the product of floats.
"""

from typing import Any

import numpy as np
import pytest

from emu.reference.crossbar import crossbar_matmul, crossbar_matmul_dynamic
from emu.runtime import session
from tests.custom_ops.one_node import controls, one_node_model, run_one_node
from tests.reference.nodes import PLAIN_DYNAMIC, PLAIN_STORED

NUMBERS = {"dac.bits": 0.0, "dac.steps": 256.0, "dac.bound": 1.0}


def converted(plain: dict[str, int | str], **changes: int | str) -> dict[str, int | str]:
    return {**plain, "entries": ",".join(NUMBERS), "dac": "absmax", **changes}


def feeds(**changes: float) -> dict[str, Any]:
    return controls(list({**NUMBERS, **changes}.values()))


def compare(
    left: Any, right: Any, attributes: dict[str, int | str], inputs: dict[str, Any], tolerance: float = 2e-6
) -> None:
    expected = crossbar_matmul(left, right, **inputs, **attributes)
    native = run_one_node("CrossbarMatMul", attributes, (left, right), inputs)
    np.testing.assert_allclose(native, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("ends", ["positive", "negative", "both"])
def test_both_ends_of_256_steps_count(ends: str) -> None:
    """256 steps have 257 codes, one more than a byte: -128 and 128 both occur where a row holds both extremes."""
    rng = np.random.default_rng(0)
    left = rng.uniform(-0.9, 0.9, (5, 37)).astype(np.float32)
    left[:, 7] = 1 if ends != "negative" else -1
    if ends == "both":
        left[:, [3, 30]] = -1, 1
        left[2, 3] = 0  # one row without
    right = rng.standard_normal((37, 21), np.float32)
    right[7] *= 30
    attributes = converted(PLAIN_STORED)
    compare(left, right, attributes, feeds())
    # The largest output, by which an ADC of 65536 steps is scaled, is that of the whole row too.
    attributes |= {"adc": "absmax", "entries": f"{attributes['entries']},adc.bits,adc.steps"}
    compare(left, right, attributes, controls([*NUMBERS.values(), 0.0, 65536.0]), tolerance=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 49])
@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (3, 16), (4, 17), (65, 15), (130, 40)])
def test_every_remainder_of_rows_depth_and_columns(rows: int, depth: int, columns: int) -> None:
    rng = np.random.default_rng(1)
    left = rng.standard_normal((rows, depth), np.float32)
    right = rng.standard_normal((depth, columns), np.float32)
    compare(left, right, converted(PLAIN_STORED, tile_rows=64), feeds(**{"dac.steps": 254.0}))


def test_columns_of_very_different_size_keep_their_precision() -> None:
    rng = np.random.default_rng(2)
    left = rng.standard_normal((4, 64), np.float32)
    sizes = np.array([1e-12, 1e-6, 1, 1e6, 0], np.float32)
    right = rng.standard_normal((64, 5), np.float32) * sizes
    attributes = converted(PLAIN_STORED, scaling="column")
    inputs = feeds(**{"dac.steps": 254.0})
    expected = crossbar_matmul(left, right, **inputs, **attributes)
    native = run_one_node("CrossbarMatMul", attributes, (left, right), inputs)
    largest = np.abs(expected).max(axis=0)
    np.testing.assert_array_less(np.abs(native - expected).max(axis=0), 2e-6 * largest + 1e-30)
    # With one scale for all, what is far below the largest column is still there.
    plain = run_one_node("CrossbarMatMul", converted(PLAIN_STORED), (left, right), inputs)
    np.testing.assert_allclose(plain[:, 1], expected[:, 1], rtol=0, atol=2e-6 * largest[1])


def test_the_number_of_bits_changes_within_one_session() -> None:
    """At 10 bits the inputs are no bytes any more, so the stored weights must be packed otherwise."""
    rng = np.random.default_rng(3)
    left = rng.standard_normal((6, 50), np.float32)
    right = rng.standard_normal((50, 20), np.float32)
    attributes = converted(PLAIN_STORED)
    running = session(one_node_model("CrossbarMatMul", attributes, right))
    for bits in (8.0, 10.0, 4.0, 0.0, 8.0):
        inputs = controls([bits, 0.0, 1.0])
        expected = crossbar_matmul(left, right, **inputs, **attributes)
        fed = {"X": left, **inputs}
        np.testing.assert_allclose(running.run(None, fed)[0], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_written_operand_that_is_no_number_stays_visible(bad: float) -> None:
    rng = np.random.default_rng(4)
    left = rng.standard_normal((1, 3, 40), np.float32)
    right = rng.standard_normal((1, 40, 20), np.float32)
    right[0, 5, 2] = bad
    inputs = feeds(**{"dac.steps": 254.0})
    del inputs["faults"]
    attributes = converted(PLAIN_DYNAMIC, scaling="column")
    with np.errstate(invalid="ignore"):
        expected = crossbar_matmul_dynamic(left, right, **inputs, **attributes)
    native = run_one_node("CrossbarMatMulDynamic", attributes, (left, right), inputs)
    assert not np.isfinite(expected[..., 2]).any()
    assert not np.isfinite(native[..., 2]).any()
    others = np.arange(20) != 2
    np.testing.assert_allclose(native[..., others], expected[..., others], rtol=0, atol=1e-5)


def test_a_flipped_exponent_leaves_the_rest_of_its_column() -> None:
    """A stored float of 1e38 that meets a zero input must not take the digits of the other weights."""
    rng = np.random.default_rng(5)
    left = rng.standard_normal((8, 64), np.float32)
    left[:4] = 0  # then only inputs of a few rows count
    left[:4, ::7] = rng.standard_normal((4, 10), np.float32)
    right = rng.standard_normal((64, 40), np.float32)
    attributes = converted(PLAIN_STORED, fault_source="random", fault_storage="float32")
    attributes |= {"fault_mask": 1 << 30, "entries": f"{attributes['entries']},faults.ber"}
    inputs = controls([*NUMBERS.values(), 0.002], seed=1)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = crossbar_matmul(left, right, **inputs, **attributes)
    native = run_one_node("CrossbarMatMul", attributes, (left, right), inputs)
    usual = np.abs(expected) < 100
    assert usual[:4].any(axis=0).sum() > usual[4:].any(axis=0).sum()  # columns with a huge weight are told apart
    np.testing.assert_allclose(native[usual], expected[usual], rtol=0, atol=1e-5 * np.abs(right).max())


def test_a_tile_too_deep_for_whole_numbers_goes_through_floats() -> None:
    left = np.ones((1, 140_000), np.float32)
    right = np.ones((140_000, 1), np.float32)
    native = run_one_node("CrossbarMatMul", converted(PLAIN_STORED), (left, right), feeds(**{"dac.steps": 254.0}))
    np.testing.assert_allclose(native, 140_000, rtol=1e-5)


@pytest.mark.parametrize(("bits", "slice_bits"), [(8.0, 8), (2.0, 2), (4.0, 4), (5.0, 4)])
def test_a_slice_wider_than_the_codes_holds_them_whole(bits: float, slice_bits: int) -> None:
    rng = np.random.default_rng(6)
    left = rng.standard_normal((6, 30), np.float32)
    right = rng.standard_normal((30, 12), np.float32)
    compare(left, right, converted(PLAIN_STORED, dac_slice_bits=slice_bits), controls([bits, 0.0, 1.0]))
