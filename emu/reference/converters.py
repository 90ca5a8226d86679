"""DAC and ADC: every code is decided in float32, in the order of the page, so that it is the same everywhere.

Sources: aihwkit's converters (`sign_magnitude`), CrossSim's quantizers, input slices and ranges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import DYNAMIC
from emu.contract.structure import Controls, Structure
from emu.reference.arrays import Array, as_type, namespace
from emu.reference.mapping import levels_of_cell, lowest_conductance, writes_conductances


def input_range(x: Array, tile: int, structure: Structure, controls: Controls) -> Array:
    """Return alpha of every row of X [..., R, K], float32 [..., R, 1]: the activation that maps to 1.

    `tile` is the number of the row tile, counted over all matrices of a stack.
    """
    xp = namespace(x)
    if structure.dac in ("absmax", "max", "absmax_sum"):
        largest = xp.amax(x if structure.dac == "max" else xp.abs(x), axis=-1, keepdims=True)
        if "dac.limit" in controls.numbers:
            largest = xp.clip(largest, None, controls.numbers["dac.limit"])
        if structure.dac != "absmax_sum":
            return largest
        weight, resolution = (controls.numbers[f"dac.{name}"] for name in ("assumed_weight", "sum_resolution"))
        return _range_of_sum(x, largest, weight, resolution, structure, controls)
    alpha = {
        "fixed": controls.numbers.get("dac.max", 1.0),
        "calibrated": controls.input_range(tile),
        "none": 1.0,
    }[structure.dac]
    return xp.full_like(x[..., :1], alpha)


def worst_case_range(x: Array, structure: Structure, controls: Controls) -> Array:
    """Return alpha of every row of X [..., R, K] with which its sums stay within the ADC, 1 where inputs are 0."""
    xp, numbers = namespace(x), controls.numbers
    largest = xp.amax(xp.abs(x), axis=-1, keepdims=True)
    if "dac.limit" in numbers:
        largest = xp.clip(largest, None, numbers["dac.limit"])
    weight, resolution = numbers["adc.assumed_weight"], numbers["adc.max_bound_resolution"]
    alpha = _range_of_sum(x, largest, weight, resolution, structure, controls)
    return xp.where(alpha == 0, xp.ones_like(alpha), alpha)


def _range_of_sum(
    x: Array, largest: Array, weight: float, resolution: float, structure: Structure, controls: Controls
) -> Array:
    """Return the input range that keeps the larger sum of one sign, times a weight, within the ADC's bound.

    At least `largest` [..., R, 1], and at most so much more that inputs keep a resolution. Computed in float64.
    """
    xp, n = namespace(x), controls.dac_steps(structure)
    exact, least = (xp.asarray(each, dtype=xp.float64) for each in (x, largest))
    sums = [xp.clip(sign * exact, 0, None).sum(axis=-1, keepdims=True) for sign in (1, -1)]
    of_sum = xp.maximum(*sums) * weight / controls.numbers["adc.bound"]
    if n > 0:
        of_sum = xp.minimum(of_sum, least * (resolution / (2 * controls.numbers["dac.bound"] / n)))
    return as_type(xp.maximum(least, of_sum), x)


def through_dac(
    x: Array, alpha: Array, structure: Structure, controls: Controls, uniforms: Array | None = None
) -> Array:
    """Return x1 of X [..., R, K], float32; alpha [..., R, 1] is the activation that maps to 1.

    With uniforms [..., R, K] values are rounded at random.
    """
    xp = namespace(x)
    x1 = x * (1 / alpha)
    if structure.dac == "none":
        return x1
    n, bound = controls.dac_steps(structure), controls.numbers["dac.bound"]
    if n > 0:
        to_code, to_value = n / (2 * bound), 2 * bound / n
        if uniforms is not None:
            x1 = x1 + (as_type(uniforms, x1) - 0.5) * to_value
        if structure.dac_code == "offset_binary":
            x1 = xp.round((x1 + bound) * to_code) * to_value - bound
        else:
            x1 = xp.round(x1 * to_code) * to_value
    return xp.clip(x1, -bound, bound)


def input_digits(x1: Array, structure: Structure, controls: Controls) -> list[tuple[Array, float]]:
    """Return what is converted by itself: the slices of x1, lowest digit first, and the weight h of each.

    Where the slices are added up before conversion, that is x1 again.
    """
    return [(x1, 1.0)] if structure.dac_slice_sum == "analog" else _digits(x1, structure, controls)


def squares_fed(x1: Array, structure: Structure, controls: Controls) -> Array:
    """Return what the variance of read noise grows with: the squares of x1, or of the slices that add up to it."""
    if structure.dac_slice_sum == "digital":
        return x1**2
    return sum((h * digit) ** 2 for digit, h in _digits(x1, structure, controls))


def _digits(x1: Array, structure: Structure, controls: Controls) -> list[tuple[Array, float]]:
    s = structure.dac_slice_bits
    if s == 0:
        return [(x1, 1.0)]
    xp = namespace(x1)
    most, most_digit = controls.dac_steps(structure) // 2, 2**s - 1
    code = xp.asarray(xp.round(xp.abs(x1) * most), dtype=xp.int64)
    return [
        (
            xp.sign(x1) * (as_type((code >> (index * s)) & most_digit, x1) / most_digit),
            2.0 ** (index * s) * most_digit / most,
        )
        for index in range(controls.input_slices(structure))
    ]


@dataclass(frozen=True)
class AdcRange:
    """The range of an ADC: numbers, or float64 [..., rows, 1] where it follows the outputs."""

    low: Array
    high: Array


def adc_range(
    y: Array, tile_rows: int, place: tuple[int, int, int], structure: Structure, controls: Controls
) -> AdcRange:
    """Return the range for y [..., rows, columns of a tile] of a tile with so many rows; 1 where absmax finds zeros.

    `place` is the number of the row tile, counted over all matrices of a stack, the slice, and 1 for the negative one
    of two devices that are converted apart.
    """
    if structure.adc == "absmax":
        xp = namespace(y)
        bound = xp.asarray(xp.amax(xp.abs(y), axis=-1, keepdims=True), dtype=xp.float64)
        bound = xp.where(bound == 0, 1.0, bound)
        return AdcRange(-bound, bound)
    if structure.adc == "none":
        same = np.inf
    elif structure.adc == "fixed":
        same = controls.numbers["adc.bound"]
    elif structure.adc == "calibrated":
        low, high = controls.output_range(*place)
        if structure.adc_code == "offset_binary":
            return AdcRange(low, high)
        same = max(abs(low), abs(high))
    elif structure.adc == "rows":
        same = float(tile_rows)
    else:
        same = _smallest_step(structure, controls) * controls.adc_steps(structure) / 2
    return AdcRange(-same, same)


def most_without_saturation(limits: AdcRange, structure: Structure, controls: Controls) -> float:
    """Return the largest |y| that the ADC of a fixed range has a code for: half a step beyond a last code at B."""
    n = controls.adc_steps(structure)
    ends_at_bound = structure.adc_code == "sign_magnitude" and n > 0 and n % 2 == 0
    return float(limits.high) * (1 + 1 / n if ends_at_bound else 1)


def dithered(y: Array, uniforms: Array, limits: AdcRange, structure: Structure, controls: Controls) -> Array:
    """Return y with what makes the ADC round it at random: up to half a step, in the type of y."""
    n = controls.adc_steps(structure)
    if n == 0:
        return y
    step = (limits.high - limits.low) / n
    return y + (as_type(uniforms, y) - 0.5) * (step if isinstance(step, float) else as_type(step, y))


def through_adc(y: Array, limits: AdcRange, structure: Structure, controls: Controls) -> Array:
    """Return y [..., rows, columns] after the ADC, float32."""
    xp = namespace(y)
    n = controls.adc_steps(structure)
    if structure.adc == "none":
        return y
    if n == 0:
        clips = structure.adc in ("fixed", "calibrated", "rows")
        return xp.clip(y, limits.low, limits.high) if clips else y
    # Computed in float64 and rounded once, numbers as arrays.
    width = limits.high - limits.low
    highest = limits.high - width / n if structure.adc_code == "twos_complement" else limits.high
    low, high, to_code, to_value = (
        each if isinstance(each, float) else as_type(each, y) for each in (limits.low, highest, n / width, width / n)
    )
    if structure.adc_code == "offset_binary":
        value = xp.round((y - low) * to_code) * to_value + low
    else:
        value = xp.round(y * to_code) * to_value
    if structure.adc == "absmax" and structure.adc_code == "sign_magnitude":
        return value
    return xp.clip(value, low, high)


def near_tie(
    y: NDArray[np.float32],
    margin: NDArray[np.float64],
    limits: AdcRange,
    structure: Structure,
    controls: Controls,
) -> NDArray[np.bool_]:
    """Return where an error of `margin` in y could change the ADC's code."""
    n = controls.adc_steps(structure)
    if n == 0:
        return np.zeros(y.shape, dtype=np.bool_)
    if structure.adc == "absmax":
        # The range is itself a y and moves with the same error.
        margin = margin + np.abs(y) / limits.high * margin.max(axis=-1, keepdims=True)
    per_step = n / (limits.high - limits.low)
    zero = limits.low if structure.adc_code == "offset_binary" else 0.0
    code = (y - zero) * per_step
    distance = np.abs(code - np.floor(code) - 0.5)
    # Beyond one step outside the range, clipping gives the bound whatever the code.
    inside = (y > limits.low - 1 / per_step) & (y < limits.high + 1 / per_step)
    rounding = np.abs(code) * 2.0**-22  # of the code itself, before it becomes whole
    near: NDArray[np.bool_] = (distance <= margin * per_step + rounding) & inside
    return near


def _smallest_step(structure: Structure, controls: Controls) -> float:
    """Return how far apart two outputs are at least: one digit of a weight times one digit of an input."""
    weight_steps = levels_of_cell(structure, controls)
    if weight_steps == 0 and structure.weight_bits > 0:
        weight_steps = 2 ** (structure.weight_bits - 1) - 1
    if weight_steps == 0:
        raise structure.error(
            "attribute 'adc' is 'granular', expected 'slice_bits', 'mapping.cell_bits' or 'weight_bits' to say "
            "how many levels a weight has."
        )
    dac_steps = controls.dac_steps(structure)
    by_slice = structure.dac_slice_bits > 0 and structure.dac_slice_sum == "digital"
    input_steps = 2**structure.dac_slice_bits - 1 if by_slice else dac_steps / 2
    if input_steps == 0:
        raise structure.error(
            "attribute 'adc' is 'granular', expected 'dac_slice_bits' or a DAC with steps to say how many levels an "
            "input has."
        )
    in_conductances = structure.encoding != "weight"
    if structure.op == DYNAMIC:
        in_conductances = writes_conductances(structure)
    span = 1 - lowest_conductance(controls) if in_conductances else 1.0
    return span / (weight_steps * input_steps)
