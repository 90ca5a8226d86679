"""Ranges and codes of DAC and ADC, slices of inputs and weights, and the errors of an ADC."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.errors import InputError
from emu.reference import Stream, Trace, periphery, run_time_normals, stored_normals

from .nodes import dynamic, first_rows, held, normal, stored

# CrossSim 3.2.0, reference run: W is [out, in], Rmin 1 kOhm, Rmax 10 kOhm.
W = np.array([[0.5, -0.25, 1, 0], [-1, 0.75, 0.1, 0.33], [0.2, 0.2, 0.2, 0.2]]).T
X = np.array([[0.3, -1, 1, 0.05]])
MAPPING = {"mapping.g_min_us": 100.0, "mapping.g_max_us": 1000.0}
PAIR = {"encoding": "differential"}
DAC = {"dac.bits": 8, "dac.steps": 0, "dac.bound": 1, "dac.max": 1}
ADC = {"adc.bits": 8, "adc.steps": 0}


def adc(kind: str, code: str = "sign_magnitude", **numbers: float) -> dict[str, Any]:
    """A node with an ADC only; numbers by the name after `adc.`."""
    entries = {"adc.bits": 0, "adc.steps": 0} | {f"adc.{name}": value for name, value in numbers.items()}
    return {"adc": kind, "adc_code": code, "numbers": entries}


@pytest.mark.parametrize("slice_bits", [0, 1, 2, 3])
def test_inputs_in_slices_are_those_of_crosssim(slice_bits):
    """CrossSim's SignMagnitudeDAC of 8 bits, whole or in slices."""
    y = stored(X, W, dac="fixed", dac_slice_bits=slice_bits, numbers={**MAPPING, **DAC}, **PAIR)
    np.testing.assert_allclose(y, [[1.399606, -0.933622, 0.069291]], atol=1e-6)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"adc": "rows", "adc_code": "offset_binary"}, [1.411765, -0.923747, 0.087146]),
        ({"adc": "rows", "adc_code": "sign_magnitude"}, [1.399825, -0.944882, 0.069991]),
        (
            {"adc": "calibrated", "adc_code": "offset_binary", "ranges": (1, -2, 2, 1)},
            [1.40305, -0.932462, 0.078431],
        ),
    ],
    ids=["quantizer max", "sign magnitude max", "quantizer calibrated"],
)
def test_outputs_are_those_of_crosssim(node, expected):
    np.testing.assert_allclose(stored(X, W, numbers={**MAPPING, **ADC}, **PAIR, **node), [expected], atol=1e-6)


@pytest.mark.parametrize("slice_bits", [1, 2, 3])
def test_slices_of_an_input_add_up_to_its_code(slice_bits):
    """Source: CrossSim's bit-serial input, 0.3 -> 38/127 = 0.299213, -0.77 -> -98/127 = -0.771654, 1 -> 1."""
    y = stored([[0.3, -0.77, 1.0]], np.eye(3), dac="fixed", dac_slice_bits=slice_bits, numbers=DAC)
    np.testing.assert_allclose(y, [[0.2992125984, -0.7716535433, 1.0]], rtol=1e-6)


# What the codes of each kind are, over [-1, 1] with few steps.


@pytest.mark.parametrize(
    ("code", "steps", "expected"),
    [
        # Steps of 0.5, -1 to 1: halves to even.
        ("sign_magnitude", 4, [-1, -1, -0.5, 0, 0, 0, 0.5, 1, 1]),
        # Steps of 2/3: -1, -1/3, 1/3, 1; 0 lies between two and goes to the even one, code 2.
        ("offset_binary", 3, [-1, -1, -1 / 3, -1 / 3, 1 / 3, 1 / 3, 1 / 3, 1, 1]),
        # Steps of 0.5, one fewer above: -1 to 0.5.
        ("twos_complement", 4, [-1, -1, -0.5, 0, 0, 0, 0.5, 0.5, 0.5]),
    ],
)
def test_codes_of_an_adc(code, steps, expected):
    x = np.array([[-1.5, -1, -0.6, -0.1, 0, 0.25, 0.6, 0.8, 1.5]])
    y = stored([[1.0]], x / 1.5, **adc("fixed", code, steps=steps, bound=1 / 1.5), scaling="tensor")
    np.testing.assert_allclose(y * 1.5, [expected], atol=1e-6)


@pytest.mark.parametrize(("code", "by_steps"), [("sign_magnitude", 14), ("offset_binary", 15), ("twos_complement", 16)])
def test_steps_of_four_bits(code, by_steps):
    x, w = normal(5, 20), normal(20, 6)
    np.testing.assert_array_equal(
        stored(x, w, **adc("rows", code, bits=4)), stored(x, w, **adc("rows", code, steps=by_steps))
    )


@pytest.mark.parametrize(("code", "steps", "expected"), [("sign_magnitude", 4, 0.5), ("offset_binary", 3, 1 / 3)])
def test_codes_of_a_dac(code, steps, expected):
    numbers = {"dac.bits": 0, "dac.steps": steps, "dac.bound": 1, "dac.max": 2}
    y = stored([[0.8, -0.8, 5, -5]], np.eye(4), dac="fixed", dac_code=code, numbers=numbers)
    np.testing.assert_allclose(y, [[2 * expected, -2 * expected, 2, -2]], rtol=1e-6)
    by_bits = {**numbers, "dac.steps": 0, "dac.bits": 4}
    by_steps = {**numbers, "dac.steps": 14 if code == "sign_magnitude" else 15}
    x, w = normal(3, 4), normal(4, 5)
    np.testing.assert_array_equal(
        stored(x, w, dac="fixed", dac_code=code, numbers=by_bits),
        stored(x, w, dac="fixed", dac_code=code, numbers=by_steps),
    )


def test_a_calibrated_dac_reads_its_sites_range():
    numbers = {"dac.bits": 0, "dac.steps": 4, "dac.bound": 1}
    y = stored([[1.0, 3.2, 9]], np.eye(3), dac="calibrated", numbers=numbers, ranges=(4, 0, 0, 0), site=1)
    np.testing.assert_allclose(y, [[0, 4, 4]])


def test_an_absmax_range_may_have_a_limit():
    numbers = {"dac.bits": 0, "dac.steps": 0, "dac.bound": 1, "dac.limit": 2}
    y = stored([[1.0, -5], [1, 0.5]], np.eye(2), dac="absmax", numbers=numbers)
    np.testing.assert_allclose(y, [[1, -2], [1, 0.5]])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("offset_binary", [-0.5, -0.5, 1, 2.5]),
        ("sign_magnitude", [-2.5, -0.9, 1, 2.5]),
        ("twos_complement", [-2.5, -0.9, 1, 2.5]),
    ],
)
def test_a_calibrated_adc_without_steps_clips_to_its_range(code, expected):
    """Asymmetric only where the codes are."""
    w = np.array([[-4, -0.9, 1, 4]]) / 4
    y = stored([[4.0]], w, **adc("calibrated", code), ranges=(1, -0.5, 2.5, 1))
    np.testing.assert_allclose(y, [expected], rtol=1e-6)


def test_an_asymmetric_range_uses_all_its_codes():
    """-1 to 3 in four steps of 1; codes of two's complement take the larger magnitude, 3, in steps of 1.5."""
    w, node = np.array([[-4, -0.6, 0.7, 2.6, 4]]) / 4, {"ranges": (1, -1, 3, 1)}
    y = stored([[4.0]], w, **adc("calibrated", "offset_binary", steps=4), **node)
    np.testing.assert_allclose(y, [[-1, -1, 1, 3, 3]], atol=1e-6)
    y = stored([[4.0]], w, **adc("calibrated", "twos_complement", steps=4), **node)
    np.testing.assert_allclose(y, [[-3, 0, 0, 1.5, 1.5]], atol=1e-6)


def test_the_range_of_rows_is_that_of_each_tile():
    """Tiles of 4 and 2 rows of ones, two steps: 4 and 2 are the top codes; 1 of 4 is nothing."""
    x = np.array([[1.0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1]])
    y = stored(x, np.ones((6, 1)), tile_rows=4, **adc("rows", steps=2))
    np.testing.assert_allclose(y, [[6], [2]])
    clipped = stored(2 * x, np.ones((6, 1)), tile_rows=4, **adc("rows"))
    np.testing.assert_allclose(clipped, [[6], [4]])


@pytest.mark.parametrize(
    ("node", "numbers", "step"),
    [
        # One digit of a weight times one digit of an input, in units of g_max.
        ({**PAIR, "weight_bits": 8, "slice_bits": 2, "dac_slice_bits": 1}, {}, 0.9 / 3 / 1),
        ({**PAIR, "weight_bits": 8, "slice_bits": 2, "dac_slice_bits": 2}, {}, 0.9 / 3 / 3),
        ({**PAIR}, {"mapping.cell_bits": 4}, 0.9 / 15 / 7),
        ({**PAIR, "weight_bits": 5}, {}, 0.9 / 15 / 7),
        ({"weight_bits": 5}, {}, 1 / 15 / 7),
        ({"weight_bits": 5, "dac_code": "offset_binary"}, {}, 1 / 15 / 7.5),
    ],
    ids=str,
)
def test_a_granular_step_is_the_smallest_difference_of_outputs(node, numbers, step):
    """One weight of full scale and a small input: the output is a whole number of steps; eight bits bound it."""
    numbers = {**MAPPING, "dac.bits": 4, "dac.steps": 0, "dac.bound": 1, "dac.max": 1, **ADC, **numbers}
    x, w = np.clip(normal(40, 30), -1, 1), normal(30, 8)
    lossless = stored(x, w, dac="fixed", adc="granular", numbers={**numbers, "adc.bits": 16}, **node)
    without = stored(x, w, dac="fixed", numbers=numbers, **node)
    if node.get("dac_code") != "offset_binary":
        # Every output is on a step, so that conversion loses nothing.
        np.testing.assert_allclose(lossless, without, rtol=1e-4, atol=1e-4)
    if "slice_bits" in node:
        return
    gain = np.abs(w).max() / (0.9 if "encoding" in node else 1)
    steps = stored(x, w, dac="fixed", adc="granular", numbers={**numbers, "adc.bits": 16}, **node) / gain / step
    np.testing.assert_allclose(steps, np.rint(steps), atol=2e-3)
    top = stored(100 * np.ones((1, 30)), np.ones((30, 1)), dac="fixed", adc="granular", numbers=numbers, **node)
    assert top[0, 0] == pytest.approx(127 * step / (0.9 if "encoding" in node else 1), rel=1e-4)


def test_an_absmax_adc_without_sign_magnitude_clips():
    """Two's complement has no code for the largest value; an odd number of steps none for the middle."""
    w = np.array([[4.0, 2.2, 0, -4]]) / 4
    twos = stored([[4.0]], w, **adc("absmax", "twos_complement", steps=4))
    np.testing.assert_allclose(twos, [[2, 2, 0, -4]], atol=1e-6)
    binary = stored([[4.0]], w, **adc("absmax", "offset_binary", steps=3))
    np.testing.assert_allclose(binary, [[4, 4 / 3, 4 / 3, -4]], atol=1e-6)


# Slices.


@given(
    weight_bits=st.integers(3, 9),
    slice_bits=st.integers(1, 4),
    dac_bits=st.integers(3, 9),
    dac_slice_bits=st.integers(1, 4),
    encoding=st.sampled_from(["differential", "offset"]),
    correction=st.sampled_from(["digital", "unit_column"]),
    seed=st.integers(0, 100),
)
@settings(deadline=None)
def test_slices_change_nothing_without_noise_and_adc(
    weight_bits, slice_bits, dac_bits, dac_slice_bits, encoding, correction, seed
):
    x, w = normal(3, 7, seed=seed), normal(7, 4, seed=seed + 1)
    numbers = {**MAPPING, "dac.bits": dac_bits, "dac.steps": 0, "dac.bound": 1}
    node = {"encoding": encoding, "offset_correction": correction, "weight_bits": weight_bits, "dac": "absmax"}
    whole = stored(x, w, numbers=numbers, tile_rows=4, **node)
    sliced = stored(x, w, numbers=numbers, tile_rows=4, slice_bits=slice_bits, dac_slice_bits=dac_slice_bits, **node)
    np.testing.assert_allclose(sliced, whole, rtol=1e-4, atol=1e-4)


def test_every_slice_is_converted_by_itself():
    """Code 6 = 2 + 1 * 4 of 7 (3 magnitude bits in slices of 2), read with one step of 1 over -1 to 1.

    Slices hold 2/3 and 1/3: read as 1 and 0, worth 3/7 and 12/7.
    """
    node = {**PAIR, "weight_bits": 4, "slice_bits": 2}
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 10.0, "adc.bits": 0, "adc.steps": 2, "adc.bound": 1}
    y = stored([[1.0]], [[6 / 7, 1.0]], adc="fixed", numbers=numbers, **node)
    np.testing.assert_allclose(y, [[3 / 7, 3 / 7]], rtol=1e-5)


def test_every_reading_has_noise_of_its_own():
    """Two weight slices and two input slices: readings 0 to 3, weighted by f and h."""
    node = {**PAIR, "weight_bits": 5, "slice_bits": 2, "dac": "fixed", "dac_slice_bits": 2}
    numbers = {
        "mapping.g_min_us": 0.0,
        "mapping.g_max_us": 10.0,
        "dac.bits": 5,
        "dac.steps": 0,
        "dac.bound": 1,
        "dac.max": 1,
        "read.output_noise": 0.1,
    }
    w = np.zeros((3, 6))
    w[0, 0] = 1
    y = stored(np.zeros((2, 3)), w, numbers=numbers, seed=1, read_seed=2, **node)
    f, h = [3 / 15, 12 / 15], [3 / 15, 12 / 15]
    expected = np.zeros((2, 6))
    for i in range(2):
        for j in range(2):
            noise = run_time_normals(1, 2, 0, Stream.READ, *first_rows(2), part=slice(0, 6), reading=2 * i + j)
            expected += 0.1 * noise * f[i] * h[j]
    np.testing.assert_allclose(y, expected, rtol=1e-5)


# The offset.


def test_the_offset_is_taken_off_digitally_without_noise_of_its_own():
    x, w = normal(4, 9), normal(9, 5, seed=1)
    numbers = {**MAPPING, "read.output_noise": 0.05}
    noisy = stored(x, w, encoding="offset", numbers=numbers, seed=3) - x.astype(np.float64) @ w
    noise = run_time_normals(3, 0, 0, Stream.READ, *first_rows(4), part=slice(0, 5))
    np.testing.assert_allclose(noisy, 0.05 * noise * np.abs(w).max() * 2 / 0.9, atol=1e-5)


def test_the_unit_column_has_cells_and_noise_of_its_own():
    """Programmed with streams 24 and up, read with stream 66; taken off all columns alike."""
    x, w = normal(4, 9), normal(9, 5, seed=1)
    node = {"encoding": "offset", "offset_correction": "unit_column", "program": "normal_independent"}
    numbers = {**MAPPING, "read.output_noise": 0.05, "program.sigma": 0.02, "program.sigma_cycle": 0.01}
    y = stored(x, w, numbers=numbers, seed=3, read_seed=4, array=2, site=1, **node)
    r, s, f = 0.1, np.abs(w).max(), 2 / 0.9

    def array(target: Any, first: int, columns: int) -> Any:
        return (
            target
            + 0.02 * stored_normals(3, 0, 2, first, 9, columns)
            + 0.01 * stored_normals(3, 4, 2, first + 2, 9, columns)
        )

    def reading(v: Any, stream: Stream, columns: int) -> Any:
        return x @ v + 0.05 * run_time_normals(3, 4, 1, stream, *first_rows(4), part=slice(0, columns))

    weights = array(r + 0.9 * (w / s + 1) / 2, 0, 5)
    zeros = array(np.full((9, 1), r + 0.45), 24, 1)
    expected = s * f * (reading(weights, Stream.READ, 5) - reading(zeros, Stream.UNIT_COLUMN_READ, 1))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_the_unit_column_is_converted_like_a_column():
    """x = 1, 1; w = 1, -1: v = 1 and 0 with r = 0; the column of zeros holds 0.5, 0.5. Steps of 0.75: 1 -> 0.75."""
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 10.0, "adc.bits": 0, "adc.steps": 8, "adc.bound": 3}
    node = {"encoding": "offset", "adc": "fixed", "numbers": numbers}
    w, x = [[1.0], [-1.0]], [[1.0, 1.0]]
    unit = stored(x, w, offset_correction="unit_column", **node)
    np.testing.assert_allclose(unit, [[0]], atol=1e-6)
    digital = stored(x, w, **node)
    np.testing.assert_allclose(digital, [[2 * (0.75 - 1)]], atol=1e-6)


def test_a_stuck_unit_column_shifts_every_column():
    """All cells stuck at the top: every column and the unit column read the sum of x, so all outputs are 0."""
    x, w = normal(4, 9), normal(9, 5)
    numbers = {**MAPPING, "faults.stuck_low": 0.0, "faults.stuck_high": 1.0, "read.output_noise": 0.0}
    node = {"encoding": "offset", "offset_correction": "unit_column", "fault_source": "random"}
    np.testing.assert_allclose(stored(x, w, numbers=numbers, **node), np.zeros((4, 5)), atol=1e-5)


# Errors of an ADC.


def test_an_adc_has_a_gain_and_an_offset_of_its_own():
    """Two columns share one; row tiles and chips differ; runs do not."""
    x, w = normal(4, 10), normal(10, 7, seed=1)
    numbers = {**ADC, "adc.bits": 0, "adc.gain_sigma": 0.1, "adc.offset_sigma": 0.05}
    node = {"adc": "absmax", "adc_columns": 2, "tile_rows": 6, "numbers": numbers}
    y = stored(x, w, strength=2.0, seed=3, array=1, site=2, **node)
    s, expected = np.abs(w).max(), np.zeros((4, 7))
    gain, offset = (
        stored_normals(3, 0, 1, stream, 2, 4)[:, [0, 0, 1, 1, 2, 2, 3]]
        for stream in (Stream.ADC_GAIN, Stream.ADC_OFFSET)
    )
    for tile, k in enumerate((slice(0, 6), slice(6, 10))):
        expected += x[:, k] @ w[k] * (1 + 0.2 * gain[tile]) + 0.1 * s * offset[tile]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stored(x, w, strength=2.0, seed=3, array=1, site=2, read_seed=9, **node), y)


def test_the_adcs_of_a_dynamic_site_are_those_of_the_site():
    a, b = normal(2, 3, 6), normal(2, 6, 5, seed=1)
    numbers = {**ADC, "adc.bits": 0, "adc.gain_sigma": 0.1, "adc.offset_sigma": 0.0}
    y = dynamic(a, b, adc="absmax", numbers=numbers, seed=3, array=1, site=2)
    gain = 1 + 0.1 * stored_normals(3, 0, 2, Stream.ADC_GAIN, 1, 5)
    np.testing.assert_allclose(y, a @ b * gain, rtol=1e-4)


def test_each_weight_slice_has_its_own_adcs():
    node = {**PAIR, "weight_bits": 5, "slice_bits": 2, "adc": "absmax"}
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 10.0, **ADC, "adc.bits": 0}
    numbers |= {"adc.gain_sigma": 0.1, "adc.offset_sigma": 0.0}
    (y,) = stored([[1.0]], [[1.0]], numbers=numbers, seed=3, **node)[0]
    first, second = (1 + 0.1 * stored_normals(3, 0, 0, Stream.ADC_GAIN, 1, 1, weight_slice=i)[0, 0] for i in (0, 1))
    assert y == pytest.approx((3 * first + 12 * second) / 15, rel=1e-5)


def test_errors_are_made_before_the_code_is_chosen():
    """A gain far above 1 saturates: the output ends at the bound."""
    numbers = {**ADC, "adc.bound": 1.5, "adc.gain_sigma": 0.0, "adc.offset_sigma": 10.0}
    y = stored([[1.0]], np.ones((1, 200)), adc="fixed", numbers=numbers)
    assert (np.abs(y) <= 1.5).all() and (np.abs(y) == 1.5).mean() > 0.8


# What another implementation may decide otherwise.


def test_a_tie_of_any_slice_leaves_the_output_undecided():
    """Slices hold 2/3 and 1/3, 1/3 and 1/3 (code 5), and 0 and 1/3 (code 4) of full scale; a tie lies at 1/3."""
    trace = Trace()
    node = {**PAIR, "weight_bits": 4, "slice_bits": 2, "adc": "fixed"}
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 10.0, "adc.bits": 0, "adc.steps": 6, "adc.bound": 2}
    stored([[1.0]], [[7 / 7, 5 / 7, 0, 3 / 7]], trace=trace, numbers=numbers, **node)
    # Steps of 2/3: 1/3 is a tie; 1, 2/3 and 0 are none (1 is a tie as well: 1.5 steps).
    assert trace.undecided.tolist() == [[True, True, False, True]]


def test_a_tie_of_the_unit_column_leaves_its_row_undecided():
    """The column of zeros reads 0.5 for an input of 1: a tie of steps of 1; for 0.5 it reads 0.25."""
    trace = Trace()
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 10.0, "adc.bits": 0, "adc.steps": 4, "adc.bound": 2}
    node = {"encoding": "offset", "offset_correction": "unit_column", "adc": "fixed", "numbers": numbers}
    stored([[1.0], [0.5]], [[1.0, -0.5, -1]], trace=trace, **node)
    assert trace.undecided.tolist() == [[True] * 3, [True, False, False]]


@pytest.mark.parametrize("code", ["sign_magnitude", "offset_binary", "twos_complement"])
@pytest.mark.parametrize("kind", ["fixed", "absmax", "calibrated", "rows"])
def test_sums_in_float32_change_only_undecided_codes(kind, code, monkeypatch):
    """A fine ADC and sums taken one float32 after another: some codes differ, every one of them announced."""
    x, w = normal(60, 300), normal(300, 100, seed=1)
    bits = 16 if kind == "rows" else 14
    numbers = {"adc.bits": bits, "adc.steps": 0, "adc.bound": 60, "adc.gain_sigma": 0.1, "adc.offset_sigma": 0.1}
    node = {"adc": kind, "adc_code": code, "numbers": numbers, "ranges": (1, -20, 60, 1), "tile_rows": 100}
    trace = Trace()
    y = stored(x, w, trace=trace, **node)
    analog = periphery.Reading._analog

    def in_float32(reading: Any, x1: Any, cells: Any, *place: Any) -> Any:
        exact, margin = analog(reading, x1, cells, *place)
        v = cells.v
        change = np.cumsum(x1[:, :, None] * v[None], axis=1, dtype=np.float32)[:, -1] - x1.astype(np.float64) @ v
        return (exact + change).astype(np.float32), margin

    monkeypatch.setattr(periphery.Reading, "_analog", in_float32)
    differs = np.abs(stored(x, w, **node) - y) > 1e-4
    assert differs.any()
    assert not (differs & ~trace.undecided).any()
    assert trace.undecided.mean() < 0.35


def test_what_a_chip_holds_is_what_it_multiplies_with():
    """A read without errors is the product with `stored_weight`, for every encoding."""
    x, w = normal(5, 30), normal(30, 12, seed=1)
    numbers = {**MAPPING, "program.sigma": 0.05, "program.sigma_cycle": 0.02, "read.output_noise": 0.0}
    for encoding in ("differential", "two_sided", "offset"):
        node = {"encoding": encoding, "program": "normal_independent", "tile_rows": 8, "scaling": "tile_column"}
        expected = x.astype(np.float64) @ held(w, numbers=numbers, seed=2, **node)
        np.testing.assert_allclose(stored(x, w, numbers=numbers, seed=2, **node), expected, rtol=1e-4, atol=1e-4)


def test_a_granular_dynamic_site_needs_levels():
    with pytest.raises(InputError, match="how many levels a weight has"):
        dynamic(normal(1, 2, 3), normal(1, 3, 2), adc="granular", dac="fixed", numbers={**DAC, **ADC})


def test_the_unit_column_loses_as_much_along_its_wire_as_any_column():
    """Weights of 0 in every column: what the wires take from them is taken from the unit column too."""
    numbers = {**MAPPING, "read.ir_drop": 1.0, "read.ir_drop_ratio": 100.0}
    node = {"encoding": "offset", "ir_drop": "formula", "numbers": numbers}
    x, w = np.abs(normal(3, 8)), np.zeros((8, 4))
    np.testing.assert_allclose(stored(x, w, offset_correction="unit_column", **node), np.zeros((3, 4)), atol=1e-5)
    assert (stored(x, w, **node) < -0.01).all()
