"""Stacks of weights, W [G, K, N]: G arrays in one node."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.agreement.one_crossbar import law_of
from emu.contract.codes import stored_codes
from emu.reference.crossbar import crossbar_matmul, crossbar_matmul_quantized, flipped_bits, stuck_cells
from emu.reference.crossbar import stored_weight as twin_stored_weight
from emu.reference.periphery import Trace
from emu.runtime import library, session
from tests.custom_ops.devices import stored_devices
from tests.custom_ops.one_node import controls, one_node_model, random_ranges, run_one_node
from tests.custom_ops.test_contract import clean_product
from tests.custom_ops.test_native_equals_twin import INSTRUCTION_SETS, assert_agree, available, wide_case, words
from tests.reference.nodes import PLAIN_STORED

AVAILABLE = tuple(filter(available, INSTRUCTION_SETS))


@st.composite
def stacks(draw: st.DrawFn) -> dict[str, Any]:
    """A node with a stack of weights, its operands and its controls."""
    attributes, numbers = draw(stored_devices())
    matrices, rows = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    depth, columns = draw(st.integers(1, 30)), draw(st.integers(1, 20))
    batch = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(("own", "own", "same", "rows", "samples in rows", "deep")))
    own = draw(st.sampled_from((1, matrices)))
    leading, axes = {
        "own": ((batch, matrices, rows), (0, -1)),
        "same": ((batch, 1, rows), (0, -1)),
        "rows": ((batch,), (0, -1)),
        "samples in rows": ((own, batch), (1, -1)),
        "deep": ((batch, 2, own, rows), (0, 1, -1)),
    }[kind]
    axis = draw(st.sampled_from(axes))
    heads = draw(st.sampled_from((0, 0, 1, 2)))
    attributes |= {"sample_axis": axis, "heads": heads, "head_axis": "matrix" if heads else "none"}
    attributes["array"] = draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(words))
    tiles = -(-depth // attributes["tile_rows"]) if attributes["tile_rows"] else 1
    feeds = controls(
        list(numbers.values()),
        strength=draw(st.sampled_from((1.0, 0.5, 0.0))),
        seed=draw(words),
        read_seed=draw(st.sampled_from((0, 7))),
        sample=draw(st.sampled_from((0, 5, [0, batch], [7, batch], [3, 2]))),
        head=draw(st.sampled_from((-1, -1, 0, max(0, heads - 1)))),
        ranges=random_ranges(attributes, tiles * matrices, rng),
        position=draw(st.sampled_from(([], [0], [5], [2**31]))),
    )
    left = rng.standard_normal((*leading, depth), np.float32)
    right = rng.standard_normal((matrices, depth, columns), np.float32)
    right *= np.arange(1, matrices + 1, dtype=np.float32)[:, None, None]  # each needs a scale of its own
    return {"attributes": attributes, "left": left, "right": right, "feeds": feeds}


@given(case=stacks(), instruction_set=st.sampled_from(AVAILABLE))
@settings(deadline=None, max_examples=250)
def test_stacks_agree_with_the_twin(case: dict[str, Any], instruction_set: str) -> None:
    trace = Trace()
    expected = crossbar_matmul(case["left"], case["right"], **case["feeds"], trace=trace, **case["attributes"])
    library.use_instruction_set(instruction_set)
    try:
        native = run_one_node("CrossbarMatMul", case["attributes"], (case["left"], case["right"]), case["feeds"])
    finally:
        library.use_instruction_set("best")
    assert native.shape == expected.shape
    assert_agree(native, expected, trace, case, case["right"])


@given(case=stacks(), data=st.data())
@settings(deadline=None, max_examples=80)
def test_quantized_stacks_agree_with_the_twin(case: dict[str, Any], data: st.DataObject) -> None:
    matrices, rows, columns = case["right"].shape
    bits = data.draw(st.sampled_from((2, 4, 8, 16)))
    block = data.draw(st.sampled_from((0, 0, 3, 16)))
    shape = (matrices, -(-rows // block), columns) if block else data.draw(st.sampled_from(((), (matrices, columns))))
    limit = 2 ** (bits - 1)
    rng = np.random.default_rng(1)
    codes = rng.integers(-limit, limit, case["right"].shape)
    scale = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    zero_point = rng.integers(-limit, limit, shape).astype(np.float32)
    case["attributes"] |= {"code_bits": bits, "block_rows": block}
    if case["attributes"]["fault_protection"] != "none":
        case["attributes"]["fault_mask"] = 2**bits - 1
    operands = (case["left"], stored_codes(codes, bits), scale, zero_point)
    trace = Trace()
    expected = crossbar_matmul_quantized(*operands, **case["feeds"], trace=trace, **case["attributes"])
    native = run_one_node("CrossbarMatMulQuantized", case["attributes"], operands, case["feeds"])
    assert_agree(native, expected, trace, case, 2**bits * scale)


@pytest.mark.parametrize("shape", [(5, 384), (2, 5, 384), (2, 1, 5, 384), (3, 2, 5, 384)])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_stack_of_one_matrix_is_that_matrix_to_the_bit(shape: tuple[int, ...], strength: float) -> None:
    case = wide_case(True)
    case["feeds"] |= {"strength": np.asarray([strength], np.float32), "sample": np.asarray(3)}
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    single = run_one_node("CrossbarMatMul", case["attributes"], (x, case["right"]), case["feeds"])
    stack = run_one_node("CrossbarMatMul", case["attributes"], (x, case["right"][None]), case["feeds"])
    np.testing.assert_array_equal(stack, single if len(shape) > 2 else single[None])


@pytest.mark.parametrize("matrices", [1, 2, 5])
@pytest.mark.parametrize("depth", [9, 256, 300])
def test_exact_products_of_a_stack_are_onnxruntimes_to_the_bit(matrices: int, depth: int) -> None:
    """As those of each matrix by itself, which onnxruntime packs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, matrices, 30, depth), np.float32)
    w = rng.standard_normal((matrices, depth, 21), np.float32)
    y = run_one_node("CrossbarMatMul", PLAIN_STORED, (x, w), controls([], strength=0.0))
    for g in range(matrices):
        np.testing.assert_array_equal(y[:, g], clean_product(x[:, g].copy(), w[g], constant=True))


def test_matrices_of_a_stack_differ_in_chip_noise_and_converters() -> None:
    numbers = {"read.output_noise": 0.0, "adc.bits": 0.0, "adc.steps": 0.0, "adc.gain_sigma": 0.0}
    numbers |= {"adc.offset_sigma": 0.0, "program.sigma": 0.0, "program.sigma_cycle": 0.0}
    x, w = np.full((1, 1, 4, 6), 0.1, np.float32), np.ones((3, 6, 8), np.float32)
    attributes = {**PLAIN_STORED, "program": "gauss_range", "adc": "rows", "entries": ",".join(numbers)}
    for name in ("read.output_noise", "adc.gain_sigma", "adc.offset_sigma", "program.sigma"):
        feeds = controls(list({**numbers, name: 0.1}.values()))
        y = run_one_node("CrossbarMatMul", attributes, (x, w), feeds)[0].reshape(3, -1)
        assert len(np.unique(y.ravel())) >= 3 * 8
    y = run_one_node("CrossbarMatMul", attributes, (x, w), controls(list(numbers.values())))
    assert len(np.unique(y)) == 1


@pytest.mark.parametrize("scale", ["tensor", "column"])
@pytest.mark.parametrize("code_range", ["symmetric", "asymmetric"])
def test_flipped_codes_of_a_stack_are_equal_to_the_bit(scale: str, code_range: str) -> None:
    w = np.random.default_rng(2).standard_normal((3, 70, 37), np.float32)
    w *= np.asarray([1, 10, 100], np.float32)[:, None, None]
    faults = {"fault_source": "random", "fault_storage": "int", "fault_range": code_range, "fault_scale": scale}
    attributes: dict[str, Any] = {**PLAIN_STORED, **faults, "entries": "faults.ber"}
    device = np.asarray([1e-2], np.float32)
    native = library.programmed_weight(w, attributes, device, seed=5)
    expected = twin_stored_weight(w, device, np.ones(1, np.float32), np.zeros((0, 2), np.int64), 5, 0, **attributes)
    np.testing.assert_array_equal(native, expected)
    if scale == "column":  # of each matrix
        alone = library.programmed_weight(w[0], attributes, np.asarray([0], np.float32))
        np.testing.assert_array_equal(library.programmed_weight(w, attributes, np.asarray([0], np.float32))[0], alone)


def test_faults_drawn_in_a_stack_and_listed_are_the_same() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 3, 4, 20), np.float32), rng.standard_normal((3, 20, 7), np.float32)
    numbers = {"mapping.g_min_us": 1.0, "mapping.g_max_us": 25.0}
    drawn = {"faults.ber": 0.02, "faults.stuck_low": 0.05, "faults.stuck_high": 0.05}
    shared = {**PLAIN_STORED, "fault_storage": "int", "encoding": "differential"}
    random = {**shared, "fault_source": "random", "entries": ",".join({**numbers, **drawn})}
    feeds = controls([*numbers.values(), *drawn.values()], seed=9)
    y = run_one_node("CrossbarMatMul", random, (x, w), feeds)
    of_array = {name: feeds[name] for name in ("device", "strength", "faults", "seed", "read_seed")}
    faults = np.concatenate([find(w, **of_array, **random) for find in (flipped_bits, stuck_cells)])
    assert (faults // 256).max() > 2 * 20 * 7
    listed = {**shared, "fault_source": "list", "entries": ",".join(numbers)}
    listed_feeds = controls(list(numbers.values()), seed=9, faults=faults)
    np.testing.assert_array_equal(run_one_node("CrossbarMatMul", listed, (x, w), listed_feeds), y)
    beyond = controls(list(numbers.values()), faults=[3 * 20 * 7 * 256])
    with pytest.raises(Exception, match="names an element, bit or device that the array does not have"):
        run_one_node("CrossbarMatMul", listed, (x, w), beyond)


def test_arrays_of_a_stack_for_python_are_those_of_the_twin() -> None:
    w = np.random.default_rng(4).standard_normal((3, 20, 7), np.float32)
    numbers = {"program.sigma": 0.1, "program.sigma_cycle": 0.0, "mapping.g_min_us": 1.0, "mapping.g_max_us": 25.0}
    attributes = {**PLAIN_STORED, "program": "lognormal_g", "encoding": "offset", "offset_correction": "unit_column"}
    attributes |= {"tile_rows": 8, "scaling": "tile", "entries": ",".join(numbers), "dac": "none"}
    device = np.asarray(list(numbers.values()), np.float32)
    v, scales, column, _ = library.programmed_array(w, attributes, device, 1, 3, True, seed=2)
    assert v.shape == (1, 3, 20, 7)
    assert scales.shape == (3, 3, 7)
    assert column is not None and column.shape == (1, 3, 20)
    r = 1 / 25
    held = scales.repeat([8, 8, 4], axis=1) * (v[0] * 2 / (1 - r) - (1 - (1 - r) / 2) * 2 / (1 - r))
    expected = twin_stored_weight(w, device, np.ones(1, np.float32), np.zeros((0, 2), np.int64), 2, 0, **attributes)
    np.testing.assert_allclose(held, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(library.programmed_weight(w, attributes, device, seed=2), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "axis", "sentence"),
    [
        ((2, 2, 4, 6), 1, "'sample_axis' is 1, the axis of the matrices of W"),
        ((2, 4, 6), 0, "'sample_axis' is 0, the axis of the matrices of W"),
        ((4, 6), 1, "expected rank 3 or more because attribute 'sample_axis' is 1"),
        ((3, 4, 6), -1, r"cannot be multiplied; expected \[..., G, M, K\]"),
        ((2, 4, 5), -1, "cannot be multiplied"),
    ],
)
def test_operands_that_do_not_fit_a_stack_are_an_error(shape: tuple[int, ...], axis: int, sentence: str) -> None:
    x, w = np.ones(shape, np.float32), np.ones((2, 6, 3), np.float32)
    attributes = {**PLAIN_STORED, "sample_axis": axis}
    with pytest.raises(Exception, match=sentence):
        run_one_node("CrossbarMatMul", attributes, (x, w), controls([]))
    with pytest.raises(ValueError, match="emu: CrossbarMatMul at site 0"):
        crossbar_matmul(x, w, **controls([]), **attributes)


def test_a_weight_of_another_rank_is_an_error() -> None:
    x, w = np.ones((2, 6), np.float32), np.ones((1, 1, 6, 3), np.float32)
    with pytest.raises(Exception, match=r"the weight has shape .*; expected \[K, N\] or \[G, K, N\]"):
        session(one_node_model("CrossbarMatMul", PLAIN_STORED, w)).run(None, {"X": x, **controls([])})


def test_one_session_keeps_what_was_read_for_each_read_seed() -> None:
    w = np.random.default_rng(6).standard_normal((8, 6), np.float32)
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 25.0, **law_of("pcm", time_s=86400.0)}
    numbers |= {"drift.scale": 1.0, "drift.read_scale": 1.0}
    attributes = {**PLAIN_STORED, "encoding": "differential", "drift": "power_law_fit", "entries": ",".join(numbers)}
    running = session(one_node_model("CrossbarMatMul", attributes, w))
    feeds = controls(list(numbers.values()))
    first, other, again = (
        running.run(None, {"X": np.eye(8, dtype=np.float32), **feeds, "read_seed": np.int64(r)})[0] for r in (0, 1, 0)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
