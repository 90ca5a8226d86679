"""NaN and infinity: what is read must show them, whatever the instruction set makes of minimum and maximum."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.reference.crossbar import crossbar_matmul, crossbar_matmul_dynamic
from emu.reference.periphery import Trace
from emu.runtime import library
from tests.custom_ops.one_node import controls, run_one_node
from tests.custom_ops.test_native_equals_twin import INSTRUCTION_SETS, assert_agree, available, cases
from tests.reference.nodes import PLAIN_DYNAMIC, PLAIN_STORED

BAD = (np.nan, np.inf, -np.inf)
AVAILABLE = tuple(filter(available, INSTRUCTION_SETS))

ADC = {"adc.bits": 8.0, "adc.steps": 0.0}
DAC = {"dac.bits": 8.0, "dac.steps": 0.0, "dac.bound": 1.0}
CELLS = {"mapping.g_min_us": 1.0, "mapping.g_max_us": 25.0}
# What stands between X and Y: attributes, and the numbers that they need.
PERIPHERIES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "dac absmax": ({"dac": "absmax"}, DAC),
    "dac absmax with a limit": ({"dac": "absmax"}, {**DAC, "dac.limit": 1.5}),
    "dac of 256 steps": ({"dac": "absmax"}, {**DAC, "dac.steps": 256.0}),
    "dac of 10 bits": ({"dac": "absmax"}, {**DAC, "dac.bits": 10.0}),
    "dac without steps": ({"dac": "absmax"}, {**DAC, "dac.bits": 0.0}),
    "dac fixed": ({"dac": "fixed"}, {**DAC, "dac.max": 2.0}),
    "dac calibrated": ({"dac": "calibrated"}, DAC),
    "dac offset_binary": ({"dac": "fixed", "dac_code": "offset_binary"}, {**DAC, "dac.max": 2.0}),
    "input slices": ({"dac": "absmax", "dac_slice_bits": 2}, DAC),
    "adc absmax": ({"adc": "absmax"}, ADC),
    "adc fixed": ({"adc": "fixed"}, {**ADC, "adc.bound": 4.0}),
    "adc fixed without steps": ({"adc": "fixed"}, {**ADC, "adc.bits": 0.0, "adc.bound": 4.0}),
    "adc calibrated": ({"adc": "calibrated"}, ADC),
    "adc rows": ({"adc": "rows"}, ADC),
    "adc granular": ({"dac": "absmax", "adc": "granular", "weight_bits": 4}, {**DAC, **ADC}),
    "adc offset_binary": ({"adc": "calibrated", "adc_code": "offset_binary"}, ADC),
    "adc twos_complement": ({"adc": "absmax", "adc_code": "twos_complement"}, ADC),
    "bound management": (
        {"dac": "absmax", "adc": "fixed", "bound_management": "iterative"},
        {**DAC, **ADC, "adc.bound": 0.5, "adc.max_bound_factor": 2.0**20, "adc.max_bound_resolution": 1e30},
    ),
    "output noise": ({}, {"read.output_noise": 0.1}),
    "input noise": ({"dac": "absmax"}, {**DAC, "read.input_noise": 0.1}),
    "pcm_read": ({"read_noise": "pcm_read"}, {"read.weight_noise": 0.1}),
    "additive": ({"dac": "absmax", "read_noise": "additive_constant"}, {**DAC, "read.weight_noise": 0.1}),
    "ir drop": ({"ir_drop": "formula"}, {"read.ir_drop": 1.0, "read.ir_drop_ratio": 500.0}),
}  # fmt: skip
STORED_ONLY: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "offset": ({"encoding": "offset", "dac": "absmax", "adc": "rows"}, {**DAC, **ADC, **CELLS}),
    "unit column": (
        {"encoding": "offset", "offset_correction": "unit_column", "dac": "fixed", "adc": "absmax"},
        {**DAC, "dac.max": 2.0, **ADC, **CELLS},
    ),
    "weight slices": (
        {"encoding": "differential", "weight_bits": 4, "slice_bits": 1, "dac": "calibrated", "adc": "rows"},
        {**DAC, **ADC, **CELLS},
    ),
}


@pytest.fixture(params=AVAILABLE)
def instruction_set(request: pytest.FixtureRequest) -> Any:
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set("best")


def with_numbers(plain: dict[str, Any], periphery: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    attributes, numbers = {**PERIPHERIES, **STORED_ONLY}[periphery]
    if plain is PLAIN_DYNAMIC and "weight_bits" in attributes:
        attributes = {**attributes, "adc": "rows"}  # operands have no levels
        del attributes["weight_bits"]
    feeds = controls(list(numbers.values()), ranges=(2.0, -3.0, 2.0, 1.0), head=changes.pop("head", -1))
    return {**plain, "entries": ",".join(numbers), "tile_rows": 16, **attributes, **changes}, feeds


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("periphery", [*PERIPHERIES, *STORED_ONLY])
def test_a_row_of_x_that_is_not_finite_is_nan_in_all_of_y(periphery: str, bad: float, instruction_set: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 30, 40), np.float32)
    w = rng.standard_normal((40, 21), np.float32)
    x[0, 3, 7] = x[1, 29, 39] = bad
    x[1, 5, 20] = bad  # the only number of its row: all other tiles have alpha 0
    x[1, 5, :20] = x[1, 5, 21:] = 0
    attributes, feeds = with_numbers(PLAIN_STORED, periphery)
    y = run_one_node("CrossbarMatMul", attributes, (x, w), feeds)
    trace = Trace()
    expected = crossbar_matmul(x, w, **feeds, trace=trace, **attributes)
    lost = np.zeros((2, 30), np.bool_)
    lost[0, 3] = lost[1, 29] = lost[1, 5] = True
    for one in (y, expected):
        assert np.isnan(one[lost]).all()
        assert np.isfinite(one[~lost]).all()
    case = {"attributes": attributes, "feeds": feeds, "left": x[~lost]}
    trace.undecided = trace.undecided[~lost]
    assert_agree(y[~lost], expected[~lost], trace, case, w)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("periphery", PERIPHERIES)
def test_a_matrix_of_b_that_is_not_finite_is_nan_in_all_of_its_rows(
    periphery: str, bad: float, instruction_set: str
) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((2, 3, 5, 40), np.float32)
    b = rng.standard_normal((2, 3, 40, 21), np.float32)
    b[1, 2, 7, 3] = bad
    a[0, 1, 4, 30] = bad
    lost = np.zeros((2, 3, 5), np.bool_)
    lost[1, 2] = lost[0, 1, 4] = True
    for scaling in ("matrix", "sample"):
        attributes, feeds = with_numbers(PLAIN_DYNAMIC, periphery, write_scaling=scaling)
        del feeds["faults"]
        if scaling == "sample":  # its matrices share one scale
            lost[1] = True
        for y in (
            run_one_node("CrossbarMatMulDynamic", attributes, (a, b), feeds),
            crossbar_matmul_dynamic(a, b, **feeds, **attributes),
        ):
            assert np.isnan(y[lost]).all()
            assert np.isfinite(y[~lost]).all()


@pytest.mark.parametrize("write", ["lognormal_w", "gauss_range", "clipformer"])
def test_a_matrix_that_is_written_and_not_read_is_nan_too(write: str, instruction_set: str) -> None:
    b = np.ones((2, 4, 3), np.float32)
    b[1, 2, 2] = np.inf
    a = np.ones((2, 2, 4), np.float32)
    numbers = {"write.sigma": 0.1, **({} if write != "clipformer" else CELLS)}
    if write == "clipformer":
        numbers |= {"write.gamma": 3.0, "write.alpha": 1.0, "write.beta": 1.0, "write.bits": 8.0}
    attributes = {**PLAIN_DYNAMIC, "entries": ",".join(numbers), "write": write}
    feeds = controls(list(numbers.values()))
    del feeds["faults"]
    for y in (
        run_one_node("CrossbarMatMulDynamic", attributes, (a, b), feeds),
        crossbar_matmul_dynamic(a, b, **feeds, **attributes),
    ):
        assert np.isnan(y[1]).all()
        assert np.isfinite(y[0]).all()


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("head", [0, 1])
def test_with_one_head_all_of_the_row_is_nan(axis: str, head: int, instruction_set: str) -> None:
    """Also where the number that is not finite meets the exact part of the product only."""
    x = np.ones((1, 4, 6), np.float32)
    x[0, 1, 0], x[0, 2, 5] = np.inf, np.nan
    w = np.ones((6, 4), np.float32)
    attributes, feeds = with_numbers(PLAIN_STORED, "adc fixed", heads=2, head_axis=axis, head=head)
    for y in (
        run_one_node("CrossbarMatMul", attributes, (x, w), feeds),
        crossbar_matmul(x, w, **feeds, **attributes),
    ):
        np.testing.assert_array_equal(np.isnan(y).all(axis=2), [[False, True, True, False]])
        assert np.isfinite(y[0, [0, 3]]).all()


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_what_is_not_read_is_plain_arithmetic(strength: float, instruction_set: str) -> None:
    """Infinity stays infinity, and other columns stay numbers where nothing makes them NaN."""
    x = np.ones((2, 3), np.float32)
    x[0, 1] = np.inf
    w = np.array([[1, 1], [1, -2], [1, 1]], np.float32)
    periphery = "adc fixed" if strength == 0 else None
    attributes, feeds = with_numbers(PLAIN_STORED, periphery) if periphery else (PLAIN_STORED, controls([]))
    feeds["strength"] = np.asarray([strength], np.float32)
    for y in (run_one_node("CrossbarMatMul", attributes, (x, w), feeds), crossbar_matmul(x, w, **feeds, **attributes)):
        np.testing.assert_array_equal(y, [[np.inf, -np.inf], [3, 0]])


def test_inputs_too_small_to_divide_by_contribute_nothing(instruction_set: str) -> None:
    x = np.full((1, 2, 20), 1e-40, np.float32)
    x[0, 1, :16] = 1
    w = np.ones((20, 3), np.float32)
    attributes, feeds = with_numbers(PLAIN_STORED, "dac absmax")
    for y in (run_one_node("CrossbarMatMul", attributes, (x, w), feeds), crossbar_matmul(x, w, **feeds, **attributes)):
        np.testing.assert_allclose(y, [[[0] * 3, [16] * 3]], rtol=1e-6)


@st.composite
def spoilt_cases(draw: st.DrawFn) -> dict[str, Any]:
    """A node of which some operands are not finite."""
    case = draw(cases())
    for name in ("left",) if case["stored"] else ("left", "right"):
        operand = case[name].reshape(-1)
        for _ in range(draw(st.integers(0, 3))):
            operand[draw(st.integers(0, operand.size - 1))] = draw(st.sampled_from(BAD))
    case["instruction_set"] = draw(st.sampled_from(AVAILABLE))
    return case


@given(case=spoilt_cases())
@settings(deadline=None, max_examples=300)
def test_native_equals_twin_where_operands_are_not_finite(case: dict[str, Any]) -> None:
    trace = Trace()
    twin = crossbar_matmul if case["stored"] else crossbar_matmul_dynamic
    with np.errstate(all="ignore"):
        expected = twin(case["left"], case["right"], **case["feeds"], trace=trace, **case["attributes"])
    library.use_instruction_set(case["instruction_set"])
    try:
        op = "CrossbarMatMul" if case["stored"] else "CrossbarMatMulDynamic"
        native = run_one_node(op, case["attributes"], (case["left"], case["right"]), case["feeds"])
    finally:
        library.use_instruction_set("best")
    for test in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(test(native), test(expected))
    finite = np.isfinite(expected)
    trace.undecided = trace.undecided[finite]
    numbers = {name: np.nan_to_num(case[name], nan=0, posinf=0, neginf=0) for name in ("left", "right")}
    assert_agree(native[finite], expected[finite], trace, {**case, **numbers}, numbers["right"])
