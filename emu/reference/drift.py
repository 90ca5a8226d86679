"""What time makes of programmed conductances, and the digital factor that undoes its mean.

Sources: aihwkit's PCM-like, Hermes, state-independent and CMO models, and its global drift compensation. Conductances
are in units of g_max; x is the target, from which a device's exponent follows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.contract.structure import Controls, Structure
from emu.reference.converters import adc_range, through_adc
from emu.reference.mapping import mapping_of
from emu.reference.programming import DeviceArray
from emu.reference.random import Stream, stored_normals

_Values = NDArray[np.float64]

_LEAST_TARGET = 1e-7
_LEAST_MEAN = 1e-4
_LEAST_CMO_US = 1e-3


@dataclass(frozen=True)
class _PhaseChange:
    """A model of power-law drift with an exponent that depends on the target, and of low-frequency read noise."""

    t0_s: float
    t_read_s: float
    mean_exponent: Callable[[_Values], _Values]
    spread_of_exponent: Callable[[_Values], _Values]
    read_noise: Callable[[_Values], _Values]
    """Relative amplitude Q of read noise by the programmed conductance."""


def _hermes_exponent(x: _Values) -> _Values:
    low = np.clip(-0.0387 * np.log(x) - 0.0182, 0.072, 0.13)
    return np.where(x < 0.0945, low, -0.0436 * x**2 - 0.0126 * x + 0.0736)


def _hermes_pair_spread(x: _Values) -> _Values:
    low = np.clip(-0.0117 * np.log(x) - 0.0057, 0.0091, 0.04)
    return np.where(x < 0.3055, low, -0.0118 * x**2 + 0.0093 * x + 0.0073)


def _hermes_pair_read(g: _Values) -> _Values:
    x = np.maximum(g, _LEAST_TARGET)
    low = np.clip(-0.0117 * np.log(x) - 0.0069, 0.015, 0.04)
    return np.where(x < 0.16, low, 0.0069 * x**3 - 0.0280 * x**2 + 0.0211 * x + 0.0123)


def _hermes_single_spread(x: _Values) -> _Values:
    low = np.clip(-0.0120 * np.log(x) - 0.0023, 0.0124, 0.04)
    return np.where(x < 0.3039, low, -0.0165 * x**2 + 0.0116 * x + 0.0104)


def _hermes_single_read(g: _Values) -> _Values:
    x = np.maximum(g, _LEAST_TARGET)
    low = np.clip(-0.0078 * np.log(x) + 0.0038, 0.0179, 0.04)
    return np.where(x < 0.1591, low, 0.0664 * x**3 - 0.1352 * x**2 + 0.0768 * x + 0.0088)


_PHASE_CHANGE = {
    "pcm": _PhaseChange(
        t0_s=20,
        t_read_s=250e-9,
        mean_exponent=lambda x: np.clip(-0.0155 * np.log(x) + 0.0244, 0.049, 0.1),
        spread_of_exponent=lambda x: np.clip(-0.0125 * np.log(x) - 0.0059, 0.008, 0.045),
        read_noise=lambda g: np.minimum(0.0088 / np.maximum(g**0.65, 1e-3), 0.2),
    ),
    "hermes_pair": _PhaseChange(300, 512e-9, _hermes_exponent, _hermes_pair_spread, _hermes_pair_read),
    "hermes_single": _PhaseChange(200, 512e-9, _hermes_exponent, _hermes_single_spread, _hermes_single_read),
}
_STATE_INDEPENDENT_T0_S = 20
_STATE_INDEPENDENT_T_READ_S = 250e-9


def drifted(g: _Values, target: _Values, array: DeviceArray) -> _Values:
    """Return the programmed conductances g after `drift.time_s`, float64 [K, N]; `target` is what was programmed."""
    controls = array.controls
    time_s, scale, strength = controls.numbers["drift.time_s"], controls.numbers["drift.scale"], controls.strength
    model = array.structure.drift
    if model == "power_law":
        t0_s = controls.numbers["drift.t0_s"]
        spread = controls.numbers["drift.nu_sigma"] * array.normals(Stream.DRIFT)
        nu = (controls.numbers["drift.nu"] + strength * spread) * scale
        return g * (max(time_s, t0_s) / t0_s) ** -nu
    read_scale = controls.numbers["drift.read_scale"]
    if model == "cmo":
        return _cmo(g, time_s, scale, read_scale, array)
    if model == "state_independent":
        nu = np.abs(0.1 + strength * 0.05 * array.normals(Stream.DRIFT)) * scale
        h = g * ((time_s + _STATE_INDEPENDENT_T0_S) / _STATE_INDEPENDENT_T0_S) ** -nu
        growth = _growth_of_noise(time_s, _STATE_INDEPENDENT_T0_S, _STATE_INDEPENDENT_T_READ_S)
        return h + strength * read_scale * h * growth / controls.numbers["mapping.g_max_us"] * array.normals(
            Stream.PROGRAMMED_READ
        )
    of = _PHASE_CHANGE[model]
    x = np.maximum(target, _LEAST_TARGET)
    nu = np.abs(of.mean_exponent(x) + strength * of.spread_of_exponent(x) * array.normals(Stream.DRIFT)) * scale
    h = g * ((time_s + of.t0_s) / of.t0_s) ** -nu
    noise = of.read_noise(g) * _growth_of_noise(time_s, of.t0_s, of.t_read_s)
    return h + h * strength * read_scale * noise * array.normals(Stream.PROGRAMMED_READ)


def compensation(before: _Values, after: _Values, structure: Structure, controls: Controls, matrix: int = 0) -> _Values:
    """Return the factor of every column in every row tile, float64 [row tiles, N].

    before, after: float64 [K, N], the weights in units of their scale before and after drift; `matrix` is the index of
    the matrix in its stack.
    """
    rows, columns = before.shape
    row_tiles, column_tiles = structure.row_tiles(rows), structure.column_tiles(columns)
    baseline = _as_read(before, Stream.COMPENSATION_BASELINE, structure, controls, matrix)
    reading = _as_read(after, Stream.COMPENSATION_READING, structure, controls, matrix)
    axis = 0 if structure.compensation.startswith("column") else None
    factor = np.ones((len(row_tiles), columns))
    for tile, k in enumerate(row_tiles):
        for n in column_tiles:
            before_mean = np.maximum(np.mean(np.abs(baseline[k, n]), axis=axis), _LEAST_MEAN)
            after_mean = np.maximum(np.mean(np.abs(reading[k, n]), axis=axis), _LEAST_MEAN)
            factor[tile, n] = before_mean / after_mean
    return factor


def _growth_of_noise(time_s: float, t0_s: float, t_read_s: float) -> float:
    """Return the square root of the logarithm by which low-frequency noise grows."""
    return math.sqrt(math.log((time_s + t0_s + t_read_s) / (2 * t_read_s)))


def _cmo(g: _Values, time_s: float, scale: float, read_scale: float, array: DeviceArray) -> _Values:
    """Relaxation of CMO/HfOx ReRAM in microsiemens. Source: Falcone et al., as in aihwkit's ReRamCMONoiseModel."""
    if time_s == 0:
        return g
    strength, g_max_us = array.controls.strength, array.controls.numbers["mapping.g_max_us"]
    spread_us = (0.04201137 * math.log(time_s) + 0.41183342) * scale * array.normals(Stream.DRIFT)
    h_us = g * g_max_us - 0.08900206 * math.log(time_s) * scale + strength * spread_us
    noise = 0.0277316483 * math.sqrt(math.log((time_s + 1e-6) / 2e-6))
    noise_us = noise * np.log10(np.maximum(h_us, _LEAST_CMO_US)) * array.normals(Stream.PROGRAMMED_READ)
    return (h_us + strength * read_scale * noise_us) / g_max_us


def _as_read(w: _Values, stream: Stream, structure: Structure, controls: Controls, matrix: int) -> _Values:
    """Return the weights as products with unit vectors find them: with read noise, through a fixed ADC."""
    if structure.compensation.endswith("exact"):
        return w
    normals = stored_normals(controls.seed, 0, structure.array, stream, *w.shape, first_row=matrix * w.shape[0])
    amplitude = np.sqrt(
        controls.numbers.get("read.output_noise", 0.0) ** 2 + _weight_noise(w, structure, controls) ** 2
    )
    reading = w + controls.strength * amplitude * normals
    if structure.adc != "fixed":
        return reading
    (unit,) = mapping_of(structure, controls).factors
    in_cells = (reading / unit).astype(np.float32)
    converted = through_adc(in_cells, adc_range(in_cells, 0, structure, controls), structure, controls)
    return converted.astype(np.float64) * unit


def _weight_noise(w: _Values, structure: Structure, controls: Controls) -> _Values:
    """Return the amplitude of weight read noise on a product with a unit vector."""
    if structure.read_noise == "none":
        return np.zeros_like(w)
    magnitude = np.abs(w)
    grows = {"additive_constant": np.ones_like(w), "pcm_read": np.sqrt(magnitude), "proportional": magnitude}
    return controls.numbers["read.weight_noise"] * grows[structure.read_noise]
