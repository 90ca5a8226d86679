"""What is read: one tile after another through DAC, noise and ADC, with bound management.

Source: aihwkit's analog matrix-vector product (Rasch et al., AICAS 2021), per input vector.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emu.reference.random import Stream, run_time_normals
from emu.reference.structure import Controls, Structure

# Rows of X taken through the periphery at once: rows are independent, this only bounds the memory.
_ROWS_AT_ONCE = 2048


@dataclass
class Trace:
    """Tells which outputs another float32 implementation may decide otherwise.

    An ADC code or a saturation hangs on a comparison. Where a value lies within `tolerance` of the threshold,
    relative to the sum of the magnitudes that were added up to it, a different order of summation may fall on the
    other side; such an output is `undecided` and a comparison should leave it out.
    """

    tolerance: float = 2e-6
    undecided: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """Set by the operator: bool, the shape of its output."""


def read(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    s: NDArray[np.float32],
    structure: Structure,
    controls: Controls,
    sample: NDArray[np.int64],
    row: NDArray[np.int64],
    tolerance: float | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the product of X [R, K] with the stored values W' [K, N] as the array delivers it, float32 [R, N].

    s: float32 [row tiles, N] from `scales`; sample, row: int64 [R], where each row of X lies in the data set.
    The second result marks the undecided outputs (see `Trace`), bool [R, N], all False without a tolerance.
    """
    y = np.zeros((x.shape[0], w.shape[1]))
    undecided = np.zeros(y.shape, dtype=np.bool_)
    for start in range(0, x.shape[0], _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        for tile, k in enumerate(structure.row_tiles(w.shape[0])):
            alpha = _input_range(x[rows, k], structure, controls)
            for n in structure.column_tiles(w.shape[1]):
                _read_tile(
                    y[rows, n],
                    undecided[rows, n],
                    x[rows, k],
                    w[k, n] / s[tile, n],
                    s[tile, n],
                    alpha,
                    structure,
                    controls,
                    _Place(tile, w.shape[1], n, sample[rows], row[rows]),
                    tolerance,
                )
    return y.astype(np.float32), undecided


@dataclass(frozen=True)
class _Place:
    """Where a tile's outputs lie in the array that read noise is indexed by."""

    tile: int
    columns: int
    part: slice
    sample: NDArray[np.int64]
    row: NDArray[np.int64]


def _read_tile(
    y_sum: NDArray[np.float64],
    undecided: NDArray[np.bool_],
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    s: NDArray[np.float32],
    alpha: NDArray[np.float32],
    structure: Structure,
    controls: Controls,
    place: _Place,
    tolerance: float | None,
) -> None:
    """Add one tile's contribution to `y_sum`, repeating saturated rows with halved inputs."""
    waiting = np.flatnonzero(alpha != 0)
    attempt = 0
    while len(waiting) > 0:
        b = np.float32(2**attempt)
        x1 = _through_dac(x[waiting], alpha[waiting] * b, structure, controls)
        exact = x1.astype(np.float64) @ w.astype(np.float64)
        amplitude = _noise_amplitude(x1, w, structure, controls)
        if np.any(amplitude > 0):
            exact += amplitude * run_time_normals(
                controls.seed,
                controls.read_seed,
                structure.site,
                Stream.READ,
                place.sample[waiting],
                place.row[waiting],
                place.columns,
                tile=place.tile,
                attempt=attempt,
                part=place.part,
            )
        y = exact.astype(np.float32)

        again = np.zeros(len(waiting), dtype=np.bool_)
        may_repeat = structure.bound_management == "iterative" and not _is_last_attempt(float(b), structure, controls)
        if may_repeat:
            again = np.any(np.abs(y) > np.float32(controls.numbers["adc.bound"]), axis=1)
        if tolerance is not None:
            margin = tolerance * (np.abs(x1).astype(np.float64) @ np.abs(w).astype(np.float64) + amplitude)
            at_tie = _near_tie(y, margin, structure, controls)
            undecided[waiting[~again]] |= at_tie[~again]
            if may_repeat:
                undecided[waiting[_near_bound(y, margin, controls)]] = True

        done = ~again
        rows = waiting[done]
        y_sum[rows] += _through_adc(y[done], structure, controls).astype(np.float64) * (alpha[rows] * b)[:, None] * s
        waiting = waiting[again]
        attempt += 1


def _input_range(x: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.float32]:
    """Return alpha of every row, float32 [R]: the activation that maps to 1."""
    if structure.dac == "absmax":
        largest: NDArray[np.float32] = np.max(np.abs(x), axis=1)
        return largest
    alpha = controls.numbers["dac.max"] if structure.dac == "fixed" else 1.0
    return np.full(x.shape[0], alpha, dtype=np.float32)


def _through_dac(
    x: NDArray[np.float32], input_range: NDArray[np.float32], structure: Structure, controls: Controls
) -> NDArray[np.float32]:
    """Return x1, float32: every operation is a float32 one, so that codes are equal to the bit everywhere."""
    x1 = x * (np.float32(1) / input_range)[:, None]
    if structure.dac == "none":
        return x1
    n, bound = controls.steps("dac"), controls.numbers["dac.bound"]
    if n > 0:
        x1 = np.rint(x1 * np.float32(n / (2 * bound))) * np.float32(2 * bound / n)
    return np.clip(x1, np.float32(-bound), np.float32(bound))


def _noise_amplitude(
    x1: NDArray[np.float32], w: NDArray[np.float32], structure: Structure, controls: Controls
) -> NDArray[np.float64]:
    """Return the standard deviation of the noise on y, float64 [rows, 1] or [rows, columns]."""
    squares = x1.astype(np.float64) ** 2
    so = controls.numbers["read.output_noise"] if structure.has_output_noise else 0.0
    variance = np.full((x1.shape[0], 1), so**2)
    if structure.read_noise == "additive_constant":
        variance = variance + controls.numbers["read.weight_noise"] ** 2 * squares.sum(axis=1, keepdims=True)
    elif structure.read_noise == "pcm_read":
        variance = variance + controls.numbers["read.weight_noise"] ** 2 * (squares @ np.abs(w).astype(np.float64))
    amplitude: NDArray[np.float64] = controls.strength * np.sqrt(variance)
    return amplitude


def _through_adc(y: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.float32]:
    """Return y after the ADC, float32."""
    if structure.adc == "none":
        return y
    n = controls.steps("adc")
    bound = _output_range(y, structure, controls)
    if n > 0:
        y = np.rint(y * (n / (2 * bound)).astype(np.float32)) * (2 * bound / n).astype(np.float32)
    return y if structure.adc == "absmax" else np.clip(y, (-bound).astype(np.float32), bound.astype(np.float32))


def _output_range(y: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.float64]:
    """Return B of every row, float64 [rows, 1]; 1 where all of y is 0, which any range turns to 0."""
    if structure.adc == "fixed":
        return np.full((y.shape[0], 1), controls.numbers["adc.bound"])
    largest = np.max(np.abs(y), axis=1, keepdims=True).astype(np.float64)
    return np.where(largest == 0, 1.0, largest)


def _is_last_attempt(b: float, structure: Structure, controls: Controls) -> bool:
    """Return whether a product with inputs divided by b stands even when it saturates."""
    numbers = controls.numbers
    if b > numbers["adc.max_bound_factor"]:
        return True
    n = 0 if structure.dac == "none" else controls.steps("dac")
    return n > 0 and b > numbers["adc.max_bound_resolution"] / (2 * numbers["dac.bound"] / n)


def _near_tie(
    y: NDArray[np.float32], margin: NDArray[np.float64], structure: Structure, controls: Controls
) -> NDArray[np.bool_]:
    """Return where an error of `margin` in y could change the ADC's code."""
    n = 0 if structure.adc == "none" else controls.steps("adc")
    if n == 0:
        return np.zeros(y.shape, dtype=np.bool_)
    bound = _output_range(y, structure, controls)
    if structure.adc == "absmax":
        # The range is itself a y and moves with the same error.
        margin = margin + np.abs(y) / bound * margin.max(axis=1, keepdims=True)
    code = y * (n / (2 * bound))
    distance = np.abs(code - np.floor(code) - 0.5)
    # Beyond one step outside the range, clipping gives the bound whatever the code.
    near: NDArray[np.bool_] = (distance <= margin * (n / (2 * bound))) & (np.abs(code) < n / 2 + 1)
    return near


def _near_bound(y: NDArray[np.float32], margin: NDArray[np.float64], controls: Controls) -> NDArray[np.bool_]:
    """Return the rows of which an error of `margin` in y could change whether they saturate."""
    excess = np.abs(y) - controls.numbers["adc.bound"]
    surely_saturates = np.any(excess > margin, axis=1)
    surely_fits = np.all(excess < -margin, axis=1)
    near: NDArray[np.bool_] = ~(surely_saturates | surely_fits)
    return near
