"""What time makes of programmed conductances, and the digital factor that undoes its mean.

Sources: the forms of aihwkit's PCM-like, Hermes, custom-drift and CMO models, and its global drift compensation.
Conductances are in units of g_max; x is the target, from which a device's exponent follows.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import FIT, NUMBERS
from emu.contract.structure import Controls, Structure
from emu.reference.converters import adc_range, through_adc
from emu.reference.mapping import mapping_of
from emu.reference.programming import DeviceArray
from emu.reference.random import Stream, stored_normals

_Values = NDArray[np.float64]
_Numbers = Mapping[str, float]

_LEAST_CONDUCTANCE = 1e-7
_LEAST_MEAN = 1e-4
_LEAST_LOG_US = 1e-3


def drifted(g: _Values, target: _Values, array: DeviceArray) -> _Values:
    """Return the programmed conductances g after `drift.time_s`, float64 [K, N]; `target` is what was programmed."""
    structure, numbers, strength = array.structure, array.controls.numbers, array.controls.strength
    time_s, scale = numbers["drift.time_s"], numbers["drift.scale"]
    match structure.drift:
        case "power_law":
            t0_s = numbers["drift.t0_s"]
            spread = numbers["drift.nu_sigma"] * array.normals(Stream.DRIFT)
            return g * (max(time_s, t0_s) / t0_s) ** -((numbers["drift.nu"] + strength * spread) * scale)
        case "log_time":
            return _log_time(g, array)
        case "relaxation":
            tau_s = numbers["drift.tau_s"] * np.exp(strength * numbers["drift.tau_sigma"] * array.normals(Stream.DRIFT))
            final = numbers["drift.final_us"] / numbers["mapping.g_max_us"]
            return final + (g - final) * np.exp(-scale * time_s / tau_s)
    mean, spread = exponent(target, structure, numbers)
    nu = np.abs(mean + strength * spread * array.normals(Stream.DRIFT)) * scale
    t0_s, t_read_s = numbers["drift.t0_s"], numbers["drift.t_read_s"]
    h = g * ((time_s + t0_s) / t0_s) ** -nu
    noise = read_noise(g, numbers) * _growth_of_noise(time_s + t0_s, t_read_s)
    return h + h * strength * numbers["drift.read_scale"] * noise * array.normals(Stream.PROGRAMMED_READ)


def exponent(target: _Values, structure: Structure, numbers: _Numbers) -> tuple[_Values, _Values]:
    """Return mean and spread of the drift exponent of devices with these targets."""
    if structure.drift == "power_law_fit":
        return _fit("nu", target, numbers), _fit("nu_sigma", target, numbers)
    target_us, mean, spread = (
        [numbers[f"drift.{kind}.{k}"] for k in range(structure.drift_points)]
        for kind in ("target_us", "mean_nu", "std_nu")
    )
    g_us = target * numbers["mapping.g_max_us"]
    return np.interp(g_us, target_us, mean), np.interp(g_us, target_us, spread)


def read_noise(g: _Values, numbers: _Numbers) -> _Values:
    """Return the relative amplitude Q of low-frequency noise by the programmed conductance."""
    if numbers.get("drift.read.q", 0.0) == 0:
        return _fit("read", g, numbers)
    power = np.maximum(g, _LEAST_CONDUCTANCE) ** _number("drift.read.power", numbers)
    return np.minimum(numbers["drift.read.q"] / power, _number("drift.read.cap", numbers))


def compensation(
    before: _Values,
    after: _Values,
    squares: tuple[_Values, _Values],
    structure: Structure,
    controls: Controls,
    matrix: int = 0,
) -> _Values:
    """Return the factor of every column in every row tile, float64 [row tiles, N].

    before, after: float64 [K, N], the weights in units of their scale before and after drift; `squares` likewise, the
    sums of g^2 over their devices; `matrix` is the index of the matrix in its stack.
    """
    rows, columns = before.shape
    row_tiles, column_tiles = structure.row_tiles(rows), structure.column_tiles(columns)
    baseline = _as_read(before, squares[0], Stream.COMPENSATION_BASELINE, structure, controls, matrix)
    reading = _as_read(after, squares[1], Stream.COMPENSATION_READING, structure, controls, matrix)
    axis = 0 if structure.compensation.startswith("column") else None
    factor = np.ones((len(row_tiles), columns))
    for tile, k in enumerate(row_tiles):
        for n in column_tiles:
            before_mean = np.maximum(np.mean(np.abs(baseline[k, n]), axis=axis), _LEAST_MEAN)
            after_mean = np.maximum(np.mean(np.abs(reading[k, n]), axis=axis), _LEAST_MEAN)
            factor[tile, n] = before_mean / after_mean
    return factor


def _fit(name: str, g: _Values, numbers: _Numbers) -> _Values:
    """Return a fit: a logarithm with limits below its joint, a polynomial above it."""
    joint, slope, offset, low, high, *c = (_number(f"drift.{name}.{part}", numbers) for part in FIT)
    x = np.maximum(g, _LEAST_CONDUCTANCE)
    below = np.clip(slope * np.log(x) + offset, low, high)
    return np.where(x < joint, below, c[0] + c[1] * x + c[2] * x**2 + c[3] * x**3)


def _number(name: str, numbers: _Numbers) -> float:
    return numbers.get(name, NUMBERS[name].absent)


def _growth_of_noise(time_s: float, t_read_s: float) -> float:
    """Return the square root of the logarithm by which low-frequency noise grows."""
    return math.sqrt(math.log((time_s + t_read_s) / (2 * t_read_s)))


def _log_time(g: _Values, array: DeviceArray) -> _Values:
    """Shift and spread that grow with the logarithm of time, in microsiemens; noise that grows with that of G."""
    numbers, strength = array.controls.numbers, array.controls.strength
    time_s, scale, g_max_us = numbers["drift.time_s"], numbers["drift.scale"], numbers["mapping.g_max_us"]
    if time_s == 0:
        return g
    elapsed = math.log(time_s / numbers["drift.t0_s"])
    spread_us = (numbers["drift.spread_us"] * elapsed + numbers["drift.spread_t0_us"]) * array.normals(Stream.DRIFT)
    h_us = g * g_max_us + (numbers["drift.shift_us"] * elapsed + strength * spread_us) * scale
    noise_us = numbers["drift.read_us"] * _growth_of_noise(time_s, numbers["drift.t_read_s"])
    read_us = noise_us * np.log10(np.maximum(h_us, _LEAST_LOG_US)) * array.normals(Stream.PROGRAMMED_READ)
    return (h_us + strength * numbers["drift.read_scale"] * read_us) / g_max_us


def _as_read(
    w: _Values, squares: _Values, stream: Stream, structure: Structure, controls: Controls, matrix: int
) -> _Values:
    """Return the weights as products with unit vectors find them: with read noise, through a fixed ADC."""
    if structure.compensation.endswith("exact"):
        return w
    normals = stored_normals(controls.seed, 0, structure.array, stream, *w.shape, first_row=matrix * w.shape[0])
    amplitude = np.sqrt(
        controls.numbers.get("read.output_noise", 0.0) ** 2 + _weight_noise(w, squares, structure, controls) ** 2
    )
    reading = w + controls.strength * amplitude * normals
    if structure.adc != "fixed":
        return reading
    (unit,) = mapping_of(structure, controls).factors
    in_cells = (reading / unit).astype(np.float32)
    converted = through_adc(in_cells, adc_range(in_cells, 0, (0, 0, 0), structure, controls), structure, controls)
    return converted.astype(np.float64) * unit


def _weight_noise(w: _Values, squares: _Values, structure: Structure, controls: Controls) -> _Values:
    """Return the amplitude of read noise of weights or devices on a product with a unit vector."""
    (unit,) = mapping_of(structure, controls).factors
    match structure.read_noise:
        case "none":
            return np.zeros_like(w)
        case "additive_constant":
            grows = np.ones_like(w)
        case "pcm_read":
            grows = np.sqrt(np.abs(w))
        case "proportional":
            grows = unit * np.sqrt(squares)
        case "independent":
            grows = unit * np.sqrt(np.full_like(w, structure.devices))
    return controls.numbers["read.weight_noise"] * grows
