"""What CrossSim and aihwkit publish, stated once more in NumPy, against one crossbar of emu.

CrossSim 3.2.0: `cores/balanced_core.py` and `circuits/adc/quantizer_adc.py`. aihwkit 1.2.0:
`rpucuda/rpu_forward_backward_pass.cpp` and `utility_functions.h`. Statements are of the formula alone: no
code of emu is behind what is expected.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.agreement.one_crossbar import Crossbar

ROWS, COLUMNS, VECTORS = 48, 20, 32
_RNG = np.random.default_rng(7)
X = _RNG.uniform(-1, 1, (VECTORS, ROWS))
W = _RNG.standard_normal((ROWS, COLUMNS)) * 0.3
ON_OFF = 10.0


def quantized(y: NDArray[Any], bound: float, bits: int) -> NDArray[Any]:
    """CrossSim's converter with a sign and a magnitude: 2^bits - 1 levels from -bound to bound."""
    most = 2 ** (bits - 1) - 1
    return np.clip(np.rint(y / bound * most), -most, most) / most * bound


def balanced_core(
    x: NDArray[Any],
    w: NDArray[Any],
    input_bits: int,
    adc_bits: int,
    slice_size: int = 0,
    subtract_current_in_xbar: bool = True,
    adc_per_ibit: bool = False,
) -> NDArray[Any]:
    """The product of a one-sided pair of cores; its ADCs take all that the rows could give."""
    largest, span = np.abs(w).max(), 1 - 1 / ON_OFF
    cores = [1 / ON_OFF + span * np.maximum(sign * w / largest, 0) for sign in (1, -1)]
    bound, magnitude_bits = float(len(w)), input_bits - 1
    most = 2**magnitude_bits - 1
    code = np.rint(x * most)

    def currents(fed: NDArray[Any]) -> list[NDArray[Any]]:
        of_cores = [fed @ core for core in cores]
        return [of_cores[0] - of_cores[1]] if subtract_current_in_xbar else of_cores

    if slice_size == 0:
        outputs, converted = currents(code / most), False
    else:
        slices, converted = -(-magnitude_bits // slice_size), adc_per_ibit
        outputs = [np.zeros((len(x), w.shape[1]))] * (1 if subtract_current_in_xbar else 2)
        for k in range(slices):
            digit = (np.abs(code).astype(int) >> (k * slice_size)) % 2**slice_size
            now = currents(np.sign(code) * digit / (2**slice_size - 1))
            now = [quantized(y, bound, adc_bits) for y in now] if adc_per_ibit else now
            # Charge is added, and divided for the next slice.
            outputs = [(before + y) / 2**slice_size for before, y in zip(outputs, now, strict=True)]
        gain = (2**slice_size - 1) * 2 ** (slice_size * slices - magnitude_bits) * (most + 1) / most
        outputs = [y * gain for y in outputs]
    if not converted:
        outputs = [quantized(y, bound, adc_bits) for y in outputs]
    return (outputs[0] - outputs[-1] if len(outputs) == 2 else outputs[0]) * largest / span


def emulated(crossbar: Crossbar, input_bits: int, adc_bits: int, **settings: Any) -> NDArray[Any]:
    numbers = {"mapping.g_min_us": 25 / ON_OFF, "mapping.g_max_us": 25.0, "dac.bits": input_bits, "dac.steps": 0}
    numbers |= {"dac.bound": 1.0, "dac.max": 1.0, "adc.bits": adc_bits, "adc.steps": 0}
    pair = {"encoding": "differential", "dac": "fixed", "adc": "rows", "numbers": numbers}
    return crossbar.stored(X, W, **{**pair, **settings})


def assert_agrees(y: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal but for values at ties between two codes, which floats of 32 bits decide otherwise."""
    error = np.abs(y - expected) / np.abs(expected).max()
    assert np.mean(error > 1e-5) < 0.01
    assert error.max() < 0.2


@pytest.mark.parametrize("adc_bits", [6, 8, 11])
@pytest.mark.parametrize("pairs", ["subtracted", "separate"])
def test_pairs_are_converted_as_by_crosssim(crossbar: Crossbar, pairs: str, adc_bits: int) -> None:
    expected = balanced_core(X, W, 8, adc_bits, subtract_current_in_xbar=pairs == "subtracted")
    assert_agrees(emulated(crossbar, 8, adc_bits, adc_pairs=pairs), expected)


@pytest.mark.parametrize("slice_size", [1, 2, 3])
@pytest.mark.parametrize("pairs", ["subtracted", "separate"])
@pytest.mark.parametrize("sum_of_slices", ["digital", "analog"])
def test_slices_of_inputs_are_added_up_as_by_crosssim(
    crossbar: Crossbar, sum_of_slices: str, pairs: str, slice_size: int
) -> None:
    separate, digital = pairs == "separate", sum_of_slices == "digital"
    expected = balanced_core(X, W, 8, 8, slice_size, not separate, digital)
    y = emulated(crossbar, 8, 8, adc_pairs=pairs, dac_slice_sum=sum_of_slices, dac_slice_bits=slice_size)
    assert_agrees(y, expected)


def test_conversion_apart_costs_accuracy_as_in_crosssim() -> None:
    """Of the two figures that docs/agreement.md compares: 6 bits over all that the rows could give."""
    exact = np.rint(X * 127) / 127 @ W
    apart, together = (balanced_core(X, W, 8, 6, subtract_current_in_xbar=each) for each in (False, True))
    errors = [np.sqrt(np.mean((y - exact) ** 2)) / np.sqrt(np.mean(exact**2)) for y in (apart, together)]
    assert errors[0] > 1.2 * errors[1]


@pytest.mark.parametrize("kind", ["additive_constant", "proportional", "independent"])
def test_noise_of_slices_that_add_up_is_drawn_for_each(crossbar: Crossbar, kind: str) -> None:
    """A device is read once per slice: variances add up with the squares of the slices' weights."""
    x = np.full((4000, 8), 1.0)
    x[:, ::2] = 85 / 127  # digits 1, 0, 1, ..
    w = np.linspace(0.2, 1, 8)[:, None]
    numbers = {"mapping.g_min_us": 2.5, "mapping.g_max_us": 25.0, "dac.bits": 8, "dac.steps": 0, "dac.bound": 1.0}
    numbers |= {"dac.max": 1.0, "adc.bits": 0, "adc.steps": 0, "adc.bound": 1e3, "read.weight_noise": 0.05}
    y = crossbar.stored(
        x, w, encoding="differential", dac="fixed", dac_slice_bits=1, dac_slice_sum="analog", adc="fixed",
        read_noise=kind, numbers=numbers, sample_axis=0,
    )  # fmt: skip
    digits = np.array([[code >> k & 1 for code in np.rint(x[0] * 127).astype(int)] for k in range(7)])
    fed = ((digits * (2.0 ** np.arange(7) / 127)[:, None]) ** 2).sum(axis=0)
    pair = np.array([0.1 + 0.9 * w[:, 0], np.full(8, 0.1)])
    per_cell = {"additive_constant": 1.0, "proportional": (pair**2).sum(axis=0), "independent": 2.0}[kind]
    assert np.std(y) == pytest.approx(0.05 / 0.9 * np.sqrt((fed * per_cell).sum()), rel=0.04)


def test_each_array_of_a_pair_converted_apart_has_its_own_noise(crossbar: Crossbar) -> None:
    x, w = np.ones((4000, 4)), np.array([[1.0], [-0.5], [0.25], [0.75]])
    numbers = {"mapping.g_min_us": 2.5, "mapping.g_max_us": 25.0, "adc.bits": 0, "adc.steps": 0, "adc.bound": 1e3}
    numbers |= {"read.output_noise": 0.3, "read.weight_noise": 0.1}
    y = crossbar.stored(
        x, w, encoding="differential", adc="fixed", adc_pairs="separate", read_noise="proportional", numbers=numbers,
        sample_axis=0,
    )  # fmt: skip
    g = 0.1 + 0.9 * np.array([np.maximum(w, 0), np.maximum(-w, 0)])
    assert np.std(y) == pytest.approx(np.sqrt(2 * 0.3**2 + 0.1**2 * (g**2).sum()) / 0.9, rel=0.04)
    assert np.mean(y) == pytest.approx(w.sum(), abs=0.03)


def aihwkit_numbers(**numbers: float) -> dict[str, float]:
    """Steps of aihwkit's converters that are off unless given, bounds that nothing reaches."""
    off = {"dac.bits": 0, "dac.steps": 0, "dac.bound": 1.0, "adc.bits": 0, "adc.steps": 0, "adc.bound": 1e4}
    return {**off, **{name.replace("__", "."): value for name, value in numbers.items()}}


def rounded_at_random(value: NDArray[Any], step: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of aihwkit's rint(value / step + u - 1/2) step, u uniform between 0 and 1."""
    share = value / step - np.floor(value / step)
    return value, step * np.sqrt(share * (1 - share))


@pytest.mark.parametrize("adc", ["fixed", "absmax"])
def test_outputs_are_rounded_at_random_as_by_aihwkit(crossbar: Crossbar, adc: str) -> None:
    w = np.array([[0.5, 0.2, -0.13, 0.0, 1.0]])
    numbers = {"adc.bits": 0, "adc.steps": 20, **({"adc.bound": 1.0} if adc == "fixed" else {})}
    y = crossbar.stored(np.ones((20000, 1)), w, adc=adc, adc_rounding="stochastic", numbers=numbers, sample_axis=0)
    mean, std = rounded_at_random(w[0], 0.1)
    np.testing.assert_allclose(y.mean(axis=0), mean, atol=0.0012)
    np.testing.assert_allclose(y.std(axis=0), std, atol=0.0012)
    assert set(np.rint(y[:, 2] / 0.1)) == {-2, -1}


def test_inputs_are_rounded_at_random_as_by_aihwkit(crossbar: Crossbar) -> None:
    x = np.tile([1.0, 0.03, -0.77, 0.0], (20000, 1))
    numbers = aihwkit_numbers(dac__steps=20)
    y = crossbar.stored(x, np.eye(4), dac="absmax", dac_rounding="stochastic", numbers=numbers_of_dac(numbers),
                        sample_axis=0)  # fmt: skip
    mean, std = rounded_at_random(x[0], 0.1)
    np.testing.assert_allclose(y.mean(axis=0), mean, atol=0.0012)
    np.testing.assert_allclose(y.std(axis=0), std, atol=0.0012)
    correlation = np.corrcoef(y[:, 1], y[:, 2])[0, 1]
    assert abs(correlation) < 0.03
    again = crossbar.stored(x[:1000], np.eye(4), dac="absmax", dac_rounding="stochastic",
                            numbers=numbers_of_dac(numbers), sample_axis=0, sample=500)  # fmt: skip
    np.testing.assert_array_equal(again, y[500:1500])  # keyed by the sample, not by its place in the batch


def numbers_of_dac(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name.startswith("dac.")}


def quantized_by_steps(value: NDArray[Any], steps: int, bound: float) -> NDArray[Any]:
    """aihwkit's converter with a resolution of 1 / steps."""
    step = 2 * bound / steps
    return np.clip(np.rint(value / step) * step, -bound, bound)


def np_sum_range(x: NDArray[Any], assumed_wmax: float, out_bound: float, max_bm_res: float, steps: int) -> Any:
    """computeNoiseManagement, AbsMaxNPSum."""
    largest = np.abs(x).max(axis=1)
    total = np.maximum(np.maximum(x, 0).sum(axis=1), np.maximum(-x, 0).sum(axis=1))
    return np.maximum(largest, np.minimum(largest / (2 / steps) * max_bm_res, total * assumed_wmax / out_bound))


DAC_STEPS, ADC_STEPS = 256, 512  # every code can be halved, so that no repeated input is a tie


def aihwkit_tile(
    x: NDArray[Any],
    w: NDArray[Any],
    alpha: NDArray[Any],
    out_bound: float,
    *,
    worst_case: NDArray[Any] | None = None,
    managed: bool = False,
    inp_asymmetry: float = 0.0,
    out_asymmetry: float = 0.0,
    nonlinearity: float = 0.0,
    slope_calibration: float = 0.0,
    max_bm_res: float = 0.25,
) -> NDArray[Any]:
    """forwardVector, row by row: largest weight 1, no noise."""
    y = np.empty((len(x), w.shape[1]))
    for row, vector in enumerate(x):
        scale, reduction, bm_round = alpha[row], 0.5, 0
        if scale <= 0:
            y[row] = 0
            continue
        while True:
            reduction *= 2
            if bm_round == 1 and worst_case is not None:
                scale, reduction = worst_case[row], 1.0
            bm_round += 1
            fed = quantized_by_steps(vector / (scale * reduction), DAC_STEPS, 1.0)
            value = np.where(fed < 0, fed * (1 - inp_asymmetry), fed) @ w
            factor = (1 + nonlinearity / out_bound * slope_calibration * out_bound) ** 2
            value = factor * value / (1 + np.abs(nonlinearity / out_bound * value))
            value = np.where(value < 0, value * (1 - out_asymmetry), value)
            step = 2 * out_bound / ADC_STEPS
            value = np.rint(value / step) * step
            saturates = np.any(np.abs(value) > out_bound)
            value = np.clip(value, -out_bound, out_bound)
            last = reduction > 1000 or reduction > max_bm_res / (2 / DAC_STEPS)
            if not (managed and saturates) or last:
                break
        y[row] = value * scale * reduction
    return y


def tile(crossbar: Crossbar, x: NDArray[Any], w: NDArray[Any], dac: str, bound: float, **settings: Any) -> Any:
    numbers = {"dac.bits": 0, "dac.steps": DAC_STEPS, "dac.bound": 1.0}
    numbers |= {"adc.bits": 0, "adc.steps": ADC_STEPS, "adc.bound": bound, **settings.pop("numbers", {})}
    return crossbar.stored(x, w, dac=dac, adc="fixed", numbers=numbers, **settings)


UNIT_W = W / np.abs(W).max()
MANAGED = {"adc.max_bound_factor": 1000, "adc.max_bound_resolution": 0.25}


def test_noise_management_by_the_largest_value(crossbar: Crossbar) -> None:
    x = X - 0.3
    x[0] = -np.abs(x[0])  # without a positive input there is no range
    expected = aihwkit_tile(x, UNIT_W, x.max(axis=1), 20.0)
    assert_agrees(tile(crossbar, x, UNIT_W, "max", 20.0), expected)
    assert not expected[0].any() and np.abs(expected[1:]).max(axis=1).min() > 0


@pytest.mark.parametrize("bound", [0.5, 2.0, 8.0])
def test_noise_management_by_the_sum_of_inputs(crossbar: Crossbar, bound: float) -> None:
    x = np.abs(X)
    alpha = np_sum_range(x, 0.6, bound, 0.25, DAC_STEPS)
    numbers = {"dac.assumed_weight": 0.6, "dac.sum_resolution": 0.25}
    assert_agrees(tile(crossbar, x, UNIT_W, "absmax_sum", bound, numbers=numbers),
                  aihwkit_tile(x, UNIT_W, alpha, bound))  # fmt: skip
    assert np.any(alpha > np.abs(x).max(axis=1))


@pytest.mark.parametrize("bound", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("management", ["iterative", "worst_case"])
def test_bound_management_on_inputs_that_saturate(crossbar: Crossbar, management: str, bound: float) -> None:
    x = np.abs(X)
    largest = np.abs(x).max(axis=1)
    worst = np_sum_range(x, 0.4, bound, 0.25, DAC_STEPS) if management == "worst_case" else None
    expected = aihwkit_tile(x, UNIT_W, largest, bound, managed=True, worst_case=worst)
    numbers = MANAGED | ({"adc.assumed_weight": 0.4} if management == "worst_case" else {})
    y = tile(crossbar, x, UNIT_W, "absmax", bound, bound_management=management, numbers=numbers)
    assert_agrees(y, expected)
    unmanaged = aihwkit_tile(x, UNIT_W, largest, bound)
    assert np.mean(np.any(unmanaged != expected, axis=1)) > 0.3  # rows that saturate


@pytest.mark.parametrize("slope_calibration", [0.0, 0.5])
def test_outputs_bend_and_lose_by_their_sign(crossbar: Crossbar, slope_calibration: float) -> None:
    laws = {"inp_asymmetry": 0.1, "out_asymmetry": 0.2, "nonlinearity": 0.4, "slope_calibration": slope_calibration}
    expected = aihwkit_tile(X, UNIT_W, np.abs(X).max(axis=1), 6.0, **laws)
    numbers = {"dac.asymmetry": 0.1, "adc.asymmetry": 0.2, "adc.nonlinearity": 0.4, "adc.scale": 3.0}
    numbers |= {"adc.slope_calibration": slope_calibration}
    assert_agrees(tile(crossbar, X, UNIT_W, "absmax", 6.0, numbers=numbers), 3 * expected)


def test_columns_differ_in_noise_and_nonlinearity_and_chips_differ_too(crossbar: Crossbar) -> None:
    x, w = np.ones((2000, 1)), np.ones((1, 200))
    numbers = {"adc.bits": 0, "adc.steps": 0, "adc.bound": 10.0, "adc.nonlinearity": 2.0, "adc.nonlinearity_sigma": 0.3}
    numbers |= {"read.output_noise": 0.01, "read.output_noise_spread": 0.4}
    y, other = (
        crossbar.stored(x, w, adc="fixed", numbers=numbers, sample_axis=0, seed=seed, read_seed=7) for seed in (1, 2)
    )
    stds, means = y.std(axis=0), y.mean(axis=0)
    assert np.mean(stds) == pytest.approx(0.01, rel=0.1)
    assert np.std(stds) == pytest.approx(0.004, rel=0.2)
    bends = 1 / means - 1  # y = 1 / (1 + n)
    assert np.mean(bends) == pytest.approx(0.2, rel=0.08)
    assert np.std(bends) == pytest.approx(0.06, rel=0.2)
    assert abs(np.corrcoef(stds, other.std(axis=0))[0, 1]) < 0.3


def test_output_noise_comes_behind_outputs_that_bend(crossbar: Crossbar) -> None:
    """Weight noise is bent with the product, output noise is not; both have streams of their own."""
    x, w = np.ones((20000, 1)), np.array([[1.0]])
    numbers = {"adc.bits": 0, "adc.steps": 0, "adc.bound": 1.0, "adc.nonlinearity": 1.0, "adc.asymmetry": 0.0}
    noises = {"read.output_noise": 0.04, "read.weight_noise": 0.1}
    y = crossbar.stored(x, w, adc="fixed", read_noise="additive_constant", numbers=numbers | noises, sample_axis=0)
    slope = 1 / (1 + 1) ** 2  # of y / (1 + y) at 1
    assert np.std(y) == pytest.approx(np.hypot(0.1 * slope, 0.04), rel=0.03)
    assert np.mean(y) == pytest.approx(0.5, abs=0.005)
