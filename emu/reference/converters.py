"""DAC and ADC: every code is decided in float32, in the order of the page, so that it is the same everywhere.

Sources: aihwkit's converters (`sign_magnitude`), CrossSim's quantizers, input slices and ranges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import DYNAMIC
from emu.contract.structure import Controls, Structure
from emu.reference.mapping import levels_of_cell, lowest_conductance


def input_range(x: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.float32]:
    """Return alpha of every row of X [R, K], float32 [R]: the activation that maps to 1."""
    if structure.dac == "absmax":
        largest: NDArray[np.float32] = np.max(np.abs(x), axis=1)
        limit = controls.numbers.get("dac.limit")
        return largest if limit is None else np.minimum(largest, np.float32(limit))
    alpha = {
        "fixed": controls.numbers.get("dac.max", 1.0),
        "calibrated": controls.input_range,
        "none": 1.0,
    }[structure.dac]
    return np.full(x.shape[0], alpha, dtype=np.float32)


def through_dac(
    x: NDArray[np.float32], alpha: NDArray[np.float32], structure: Structure, controls: Controls
) -> NDArray[np.float32]:
    """Return x1 of X [R, K], float32; alpha [R] is the activation that maps to 1."""
    x1 = x * (np.float32(1) / alpha)[:, None]
    if structure.dac == "none":
        return x1
    n, bound = controls.dac_steps(structure), controls.numbers["dac.bound"]
    if n > 0:
        to_code, to_value = np.float32(n / (2 * bound)), np.float32(2 * bound / n)
        if structure.dac_code == "offset_binary":
            x1 = np.rint((x1 + np.float32(bound)) * to_code) * to_value - np.float32(bound)
        else:
            x1 = np.rint(x1 * to_code) * to_value
    return np.clip(x1, np.float32(-bound), np.float32(bound))


def input_digits(
    x1: NDArray[np.float32], structure: Structure, controls: Controls
) -> list[tuple[NDArray[np.float32], float]]:
    """Return the slices in which x1 is fed, lowest digit first, and the weight h of each."""
    s = structure.dac_slice_bits
    if s == 0:
        return [(x1, 1.0)]
    most = controls.dac_steps(structure) // 2
    code = np.rint(np.abs(x1) * np.float32(most)).astype(np.int64)
    digits = []
    for index in range(controls.input_slices(structure)):
        digit = ((code >> (index * s)) & (2**s - 1)).astype(np.float32)
        digits.append((np.sign(x1) * (digit / np.float32(2**s - 1)), 2.0 ** (index * s) * (2**s - 1) / most))
    return digits


@dataclass(frozen=True)
class AdcRange:
    """The range of an ADC for every row, float64 [rows, 1]."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def bound(self) -> NDArray[np.float64]:
        """B, the larger magnitude."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def adc_range(y: NDArray[np.float32], tile_rows: int, structure: Structure, controls: Controls) -> AdcRange:
    """Return the range for y [rows, columns of a tile] of a tile with so many rows; 1 where absmax finds only zeros."""
    if structure.adc == "calibrated" and structure.adc_code == "offset_binary":
        low, high = controls.output_range
        return AdcRange(np.full((len(y), 1), low), np.full((len(y), 1), high))
    if structure.adc == "absmax":
        bound = np.max(np.abs(y), axis=1, keepdims=True).astype(np.float64)
        bound = np.where(bound == 0, 1.0, bound)
        return AdcRange(-bound, bound)
    if structure.adc == "none":
        same = np.inf
    elif structure.adc == "fixed":
        same = controls.numbers["adc.bound"]
    elif structure.adc == "calibrated":
        same = max(map(abs, controls.output_range))
    elif structure.adc == "rows":
        same = float(tile_rows)
    else:
        same = _smallest_step(structure, controls) * controls.adc_steps(structure) / 2
    return AdcRange(np.full((len(y), 1), -same), np.full((len(y), 1), same))


def through_adc(
    y: NDArray[np.float32], limits: AdcRange, structure: Structure, controls: Controls
) -> NDArray[np.float32]:
    """Return y [rows, columns] after the ADC, float32."""
    n = controls.adc_steps(structure)
    low, high = limits.low.astype(np.float32), limits.high.astype(np.float32)
    if structure.adc == "none":
        return y
    if n == 0:
        clips = structure.adc in ("fixed", "calibrated", "rows")
        unquantized: NDArray[np.float32] = np.clip(y, low, high) if clips else y
        return unquantized
    width = limits.high - limits.low
    to_code, to_value = (n / width).astype(np.float32), (width / n).astype(np.float32)
    if structure.adc_code == "offset_binary":
        value: NDArray[np.float32] = np.rint((y - low) * to_code) * to_value + low
    else:
        value = np.rint(y * to_code) * to_value
    if structure.adc_code == "twos_complement":
        high = (limits.high - width / n).astype(np.float32)
    if structure.adc == "absmax" and structure.adc_code == "sign_magnitude":
        return value
    kept: NDArray[np.float32] = np.clip(value, low, high)
    return kept


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
        margin = margin + np.abs(y) / limits.bound * margin.max(axis=1, keepdims=True)
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
    input_steps = 2**structure.dac_slice_bits - 1 if structure.dac_slice_bits else dac_steps / 2
    if input_steps == 0:
        raise structure.error(
            "attribute 'adc' is 'granular', expected 'dac_slice_bits' or a DAC with steps to say how many levels an "
            "input has."
        )
    in_conductances = structure.encoding != "weight"
    if structure.op == DYNAMIC:
        in_conductances = structure.write in ("lognormal_g", "clipformer")
    span = 1 - lowest_conductance(controls) if in_conductances else 1.0
    return span / (weight_steps * input_steps)
