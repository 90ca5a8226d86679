"""Codes of every width in both implementations: their bytes, stacks, windows and faults."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emu.contract.codes import read_codes, stored_codes
from emu.reference import flipped_bits
from emu.reference.crossbar import crossbar_matmul_quantized
from emu.reference.periphery import Trace
from tests.custom_ops.one_node import controls, run_one_node
from tests.custom_ops.test_native_equals_twin import assert_agree
from tests.reference.nodes import PLAIN_QUANTIZED

WIDTHS = (2, 4, 8, 16)
SHAPES = {"matrix": (36, 50), "stack": (3, 36, 50), "window": (2, 36, 50)}
WINDOW = "3,1,1,1,1;3,1,1,1,1"
RANDOM = {"fault_source": "random", "fault_storage": "int", "entries": "faults.ber"}


def codes_of(bits: int, *shape: int) -> NDArray[Any]:
    limit = 2 ** (bits - 1)
    return np.random.default_rng(bits).integers(-limit, limit, shape).astype(np.int16 if bits > 8 else np.int8)


def node(bits: int, kind: str, block: int = 0, **changes: Any) -> dict[str, Any]:
    """A node with its operands; all of its scales differ."""
    rng = np.random.default_rng(7)
    *stack, rows, columns = SHAPES[kind]
    codes = codes_of(bits, *SHAPES[kind])
    x_shape = {"matrix": (5, rows), "stack": (2, *stack, 4, rows), "window": (2, 8, 5, 6)}[kind]
    shape = (*stack, -(-rows // block), columns) if block else (*stack, columns)
    scale = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    zero_point = rng.integers(-1, 2, shape).astype(np.float32)  # codes of any width, so words of zeros can be listed
    x = rng.standard_normal(x_shape, np.float32)
    window = {"window": WINDOW} if kind == "window" else {}
    attributes = {**PLAIN_QUANTIZED, **window, "code_bits": bits, "block_rows": block, "array": 2, **changes}
    return {
        "attributes": attributes, "left": x, "codes": codes, "zero_point": zero_point,
        "operands": (x, stored_codes(codes, bits), scale, zero_point),
    }  # fmt: skip


def run_both(case: dict[str, Any], feeds: dict[str, Any]) -> NDArray[np.float32]:
    """What the native operator gives, which is what the twin gives."""
    trace = Trace()
    native = run_one_node("CrossbarMatMulQuantized", case["attributes"], case["operands"], feeds)
    expected = crossbar_matmul_quantized(*case["operands"], **feeds, trace=trace, **case["attributes"])
    assert native.shape == expected.shape
    assert_agree(native, expected, trace, {**case, "feeds": feeds}, expected)
    return native


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("block", [0, 5])
def test_codes_of_every_width_agree(bits: int, kind: str, block: int) -> None:
    case = node(bits, kind, block, program="lognormal_w", entries="program.sigma,program.sigma_cycle")
    clean, noisy = (run_both(case, controls([sigma, 0.0], seed=3)) for sigma in (0.0, 0.1))
    assert not np.array_equal(clean, noisy)


def test_a_code_of_sixteen_bits_is_its_low_byte_and_its_high_byte() -> None:
    stored = np.array([[[-2, -1], [0, 1], [-1, 0]], [[0, -128], [-1, 127], [1, 0]]], np.int8)
    codes = [[-2, 256, 255], [-32768, 32767, 1]]
    assert read_codes(stored, 16).tolist() == codes
    np.testing.assert_array_equal(stored_codes(np.array(codes), 16), stored)
    operands = (np.eye(2, dtype=np.float32), stored, np.float32(0.5), np.float32(0))
    for y in (
        run_one_node("CrossbarMatMulQuantized", {**PLAIN_QUANTIZED, "code_bits": 16}, operands, controls([])),
        crossbar_matmul_quantized(*operands, **controls([]), **{**PLAIN_QUANTIZED, "code_bits": 16}),
    ):
        assert (2 * y).tolist() == codes


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("protection", ["none", "highest", "secded", "secded_zero"])
def test_faults_of_codes_agree_and_replay_as_a_list(bits: int, kind: str, protection: str) -> None:
    every, highest = 2**bits - 1, 1 << (bits - 1)
    mask, name = (highest, "none") if protection == "highest" else (every, protection)
    case = node(bits, kind, **RANDOM, fault_mask=mask, fault_protection=name)
    drawn = run_both(case, controls([0.02], seed=5))
    assert not np.array_equal(drawn, run_both(case, controls([0.0], seed=5)))

    feeds = controls([0.02], seed=5)
    inputs = {each: feeds[each] for each in ("device", "strength", "faults", "seed", "read_seed")}
    zero_point = case["zero_point"][..., None, :]
    listed = flipped_bits(case["codes"], zero_point=zero_point, **inputs, **case["attributes"])
    assert listed.size > 5 and listed.max() < case["codes"].size * 256 and (listed % 256 < bits).all()
    if protection == "highest":
        assert (listed % 256 == bits - 1).all()
    case["attributes"] |= {"fault_source": "list", "fault_protection": "none", "entries": ""}
    np.testing.assert_array_equal(run_both(case, controls([], faults=listed, array=2)), drawn)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_listed_fault_is_element_times_256_plus_bit(bits: int) -> None:
    codes = np.zeros((2, 3, 4), np.int64)
    operands = (np.eye(3, dtype=np.float32), stored_codes(codes, bits), np.float32(1), np.float32(0))
    attributes = {**PLAIN_QUANTIZED, "code_bits": bits, "fault_source": "list", "fault_storage": "int"}
    faults = np.array([(1 * 12 + 2 * 4 + 3) * 256 + bits - 1, 5 * 256])
    expected = codes.copy()
    expected[1, 2, 3], expected[0, 1, 1] = -(2 ** (bits - 1)), 1
    for y in (
        run_one_node("CrossbarMatMulQuantized", attributes, operands, controls([], faults=faults)),
        crossbar_matmul_quantized(*operands, **controls([], faults=faults), **attributes),
    ):
        np.testing.assert_array_equal(y, expected)
    with pytest.raises(Exception, match=f"{256 + bits} names an element, bit or device that the array does not have"):
        run_one_node("CrossbarMatMulQuantized", attributes, operands, controls([], faults=[256 + bits]))
    with pytest.raises(Exception, match=f"'faults' has {256 + bits}, .* expected bits below {bits}"):
        crossbar_matmul_quantized(*operands, **controls([], faults=[256 + bits]), **attributes)
