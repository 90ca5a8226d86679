"""Weights stored as floats of every type in both implementations, against ml_dtypes: rounding, flips, decoding."""

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from emu.contract.schema import FLOATS
from emu.reference import flipped_bits, stored_weight
from emu.runtime.library import programmed_weight
from tests.reference.nodes import PLAIN_STORED

FLOAT_KINDS = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def of_many_sizes(kind: str, *shape: int) -> NDArray[np.float32]:
    """Weights from below the smallest number of a type to above its largest, and ties between its numbers."""
    rng = np.random.default_rng(3)
    most = np.log2(float(ml_dtypes.finfo(FLOAT_KINDS[kind]).max)) + 1
    w = rng.standard_normal(shape) * np.exp2(rng.uniform(-most - 12, min(most, 126), shape))
    numbers = rng.standard_normal(shape).astype(FLOAT_KINDS[kind]).astype(np.float64)
    ties = numbers * (1 + 2.0 ** -(ml_dtypes.finfo(FLOAT_KINDS[kind]).nmant + 1))
    return np.where(rng.random(shape) < 0.2, ties, w).astype(np.float32)


@pytest.mark.parametrize("kind", FLOAT_KINDS)
def test_floats_are_stored_as_their_type_in_both(kind: str) -> None:
    """Rounded as ml_dtypes does, but to the largest number beyond it."""
    w = of_many_sizes(kind, 300, 40)
    most = float(ml_dtypes.finfo(FLOAT_KINDS[kind]).max)
    expected = np.clip(w, -most, most).astype(FLOAT_KINDS[kind]).astype(np.float32)
    bits = FLOATS[kind].bits
    attributes = {**PLAIN_STORED, "fault_source": "list", "fault_storage": kind, "fault_mask": 2**bits - 1}
    device, listed = np.zeros(0, np.float32), np.zeros((0, 2), np.int64)
    held = [
        programmed_weight(w, attributes, device, faults=listed),
        stored_weight(w, device, np.ones(1, np.float32), listed, np.int64(0), np.int64(0), **attributes),
    ]
    for each in held:
        np.testing.assert_array_equal(each.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", FLOAT_KINDS)
@pytest.mark.parametrize("protection", ["none", "secded", "secded_zero"])
def test_flips_of_floats_agree_and_are_those_of_their_bits(kind: str, protection: str) -> None:
    w = of_many_sizes(kind, 200, 33)
    bits = FLOATS[kind].bits
    stored = np.clip(w, *(float(sign * ml_dtypes.finfo(FLOAT_KINDS[kind]).max) for sign in (-1, 1)))
    patterns = stored.astype(FLOAT_KINDS[kind]).view(f"u{bits // 8}")
    attributes = {**PLAIN_STORED, "fault_source": "random", "fault_storage": kind, "fault_mask": 2**bits - 1}
    attributes |= {"fault_protection": protection, "entries": "faults.ber"}
    numbers = np.array([0.05 if protection == "none" else 0.02], np.float32)
    controls_of = numbers, np.ones(1, np.float32), np.zeros((0, 2), np.int64), np.int64(7), np.int64(0)
    native = programmed_weight(w, attributes, numbers, seed=7)
    np.testing.assert_array_equal(native, stored_weight(w, *controls_of, **attributes))  # NaN where NaN is
    element, bit = np.divmod(flipped_bits(w, *controls_of, **attributes), 256)
    assert abs(len(bit) / (w.size * bits) - numbers[0]) < 0.01 or protection != "none"
    np.bitwise_xor.at(patterns.ravel(), element, (1 << bit).astype(patterns.dtype))
    np.testing.assert_array_equal(native, patterns.view(FLOAT_KINDS[kind]).astype(np.float32))


@pytest.mark.parametrize("kind", FLOAT_KINDS)
def test_every_pattern_is_the_number_of_its_bits(kind: str) -> None:
    """All that one flip can make of a few numbers, NaN and infinities among them."""
    bits = FLOATS[kind].bits
    ones = np.ones((bits, 1), np.float32) * np.float32(1.5)
    patterns = np.full((bits, 1), 1.5).astype(FLOAT_KINDS[kind]).view(f"u{bits // 8}")
    patterns ^= (1 << np.arange(bits))[:, None].astype(patterns.dtype)
    attributes = {**PLAIN_STORED, "fault_source": "list", "fault_storage": kind, "fault_mask": 2**bits - 1}
    faults = np.array([(0, 256 * bit + bit) for bit in range(bits)])
    held = programmed_weight(ones, attributes, np.zeros(0, np.float32), faults=faults)
    np.testing.assert_array_equal(held, patterns.view(FLOAT_KINDS[kind]).astype(np.float32))
