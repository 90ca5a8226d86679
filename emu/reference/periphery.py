"""What is read: one tile after another through DAC, wires, noise and ADC, with bound management.

Source: aihwkit's analog matrix-vector product (Rasch et al., AICAS 2021), per input vector; slices as in CrossSim.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import DYNAMIC
from emu.contract.structure import Controls, Structure
from emu.reference.converters import adc_range, input_digits, input_range, near_tie, through_adc, through_dac
from emu.reference.random import Stream, run_time_normals, stored_normals
from emu.reference.storing import Stored

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
    stored: Stored,
    structure: Structure,
    controls: Controls,
    sample: NDArray[np.int64],
    row: NDArray[np.int64],
    tolerance: float | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the product of X [R, K] with what an array holds [K, N] as the array delivers it, float32 [R, N].

    sample, row: int64 [R], where each row of X lies in the data set. Rows of X that are not finite give NaN.
    The second result marks the undecided outputs (see `Trace`), bool [R, N], all False without a tolerance.
    """
    rows, columns = stored.weights.shape
    y = np.zeros((x.shape[0], columns))
    undecided = np.zeros(y.shape, dtype=np.bool_)
    errors = _adc_errors(stored, structure, controls)
    lost: NDArray[np.bool_] = ~np.all(np.isfinite(x), axis=1)
    x = np.where(lost[:, None], np.float32(0), x)
    for start in range(0, x.shape[0], _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        for tile, k in enumerate(structure.row_tiles(rows)):
            alpha = input_range(x[part, k], structure, controls)
            place = _Place(tile, k, rows, columns, sample[part], row[part])
            inputs = _Inputs(x[part, k], alpha, place, structure, controls)
            with np.errstate(divide="ignore", over="ignore"):
                lit = np.flatnonzero(np.isfinite(np.float32(1) / alpha))
            for n in structure.column_tiles(columns):
                reader = _Tile(stored, n, errors, inputs, tolerance)
                reader.add(y[part, n], undecided[part, n], lit)
            if stored.mapping.offset != 0:
                offset, unsure = _offset(stored, inputs, lit, tolerance)
                y[start + lit] -= offset * alpha[lit, None].astype(np.float64) * stored.s[tile]
                undecided[start + lit] |= unsure
    y[lost], undecided[lost] = np.nan, False
    return y.astype(np.float32), undecided


@dataclass(frozen=True)
class _Place:
    """Where a row tile lies in the arrays that run-time noise is indexed by."""

    tile: int
    k: slice
    rows: int
    columns: int
    sample: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class _Inputs:
    """Rows of X in one row tile, and the input range of each."""

    x: NDArray[np.float32]
    alpha: NDArray[np.float32]
    place: _Place
    structure: Structure
    controls: Controls

    def fed(self, rows: NDArray[np.int64], b: np.float32) -> list[tuple[NDArray[np.float32], float]]:
        """Return what the array is fed for some rows with inputs divided by b: every input slice and its weight."""
        structure, controls, place = self.structure, self.controls, self.place
        x1 = through_dac(self.x[rows], self.alpha[rows] * b, structure, controls)
        amplitude = controls.strength * controls.numbers.get("read.input_noise", 0.0)
        if amplitude > 0:
            normals = run_time_normals(
                controls.seed,
                controls.read_seed,
                structure.site,
                Stream.INPUT_NOISE,
                place.sample[rows],
                place.row[rows],
                place.rows,
                part=place.k,
            )
            x1 = (x1 + amplitude * normals).astype(np.float32)
        return input_digits(x1, structure, controls)

    def noise(
        self, stream: Stream, rows: NDArray[np.int64], columns: int, part: slice, reading: int
    ) -> NDArray[np.float64]:
        """Return the normals of one reading of some rows."""
        place, controls = self.place, self.controls
        return run_time_normals(
            controls.seed,
            controls.read_seed,
            self.structure.site,
            stream,
            place.sample[rows],
            place.row[rows],
            columns,
            tile=place.tile,
            reading=reading,
            part=part,
        )


@dataclass(frozen=True)
class _AdcErrors:
    """Gain (about 1) and offset of the ADC of every column, float64 [slices, row tiles, N]."""

    gain: NDArray[np.float64]
    offset: NDArray[np.float64]


@dataclass(frozen=True)
class _Tile:
    """One tile: a row tile and a column tile."""

    stored: Stored
    n: slice
    errors: _AdcErrors | None
    inputs: _Inputs
    tolerance: float | None

    def add(self, y_sum: NDArray[np.float64], undecided: NDArray[np.bool_], lit: NDArray[np.int64]) -> None:
        """Add the tile's contribution to `y_sum`, repeating saturated rows with halved inputs."""
        structure, controls = self.inputs.structure, self.inputs.controls
        place, tile = self.inputs.place, self.inputs.place.tile
        waiting, repeats = lit, 0
        while len(waiting) > 0:
            b = np.float32(2**repeats)
            again = np.zeros(len(waiting), dtype=np.bool_)
            may_repeat = structure.bound_management == "iterative" and not _is_last_repeat(
                float(b), structure, controls
            )
            total = np.zeros((len(waiting), y_sum.shape[1]))
            fed = self.inputs.fed(waiting, b)
            for i, f in enumerate(self.stored.mapping.factors):
                v = self.stored.v[i, place.k, self.n]
                for j, (x1, h) in enumerate(fed):
                    reading = repeats if structure.bound_management == "iterative" else i * len(fed) + j
                    y, margin = self._analog(x1, v, i, waiting, reading)
                    limits = adc_range(y, v.shape[0], structure, controls)
                    if may_repeat:
                        again = np.any(np.abs(y) > limits.high.astype(np.float32), axis=1)
                    if self.tolerance is not None:
                        at_tie = near_tie(y, self.tolerance * margin, limits, structure, controls)
                        undecided[waiting[~again]] |= at_tie[~again]
                        if may_repeat:
                            undecided[waiting[_near_bound(y, self.tolerance * margin, controls)]] = True
                    total += through_adc(y, limits, structure, controls).astype(np.float64) * (f * h)
            done = waiting[~again]
            scale = (self.inputs.alpha[done] * b)[:, None] * self.stored.s[tile, self.n]
            y_sum[done] += total[~again] * scale
            waiting = waiting[again]
            repeats += 1

    def _analog(
        self, x1: NDArray[np.float32], v: NDArray[np.float32], weight_slice: int, rows: NDArray[np.int64], reading: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return y before the ADC's code, float32, and the sum of the magnitudes that were added up to it."""
        structure, controls, place = self.inputs.structure, self.inputs.controls, self.inputs.place
        inputs, held = x1.astype(np.float64), v.astype(np.float64)
        y, margin = inputs @ held, np.abs(inputs) @ np.abs(held)
        if structure.ir_drop == "formula":
            drop = _dropped(inputs, held, margin, controls)
            y, margin = y - drop, margin + np.abs(drop)
        amplitude = _noise_amplitude(inputs, held, structure, controls)
        if np.any(amplitude > 0):
            y = y + amplitude * self.inputs.noise(Stream.READ, rows, place.columns, self.n, reading)
        margin = margin + amplitude
        if self.errors is not None:
            gain = self.errors.gain[weight_slice, place.tile, self.n]
            offset = self.errors.offset[weight_slice, place.tile, self.n]
            y, margin = y * gain + offset, margin * np.abs(gain) + np.abs(offset)
        return y.astype(np.float32), margin


def _offset(
    stored: Stored, inputs: _Inputs, rows: NDArray[np.int64], tolerance: float | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return what is subtracted from every row for cells that hold an offset, float64 [rows, 1], and where unsure."""
    structure, controls, place = inputs.structure, inputs.controls, inputs.place
    total = np.zeros((len(rows), 1))
    unsure = np.zeros((len(rows), 1), dtype=np.bool_)
    fed = inputs.fed(rows, np.float32(1))
    for j, (x1, h) in enumerate(fed):
        if stored.unit_column is None:
            total += stored.mapping.offset * h * x1.astype(np.float64).sum(axis=1, keepdims=True)
            continue
        inward = x1.astype(np.float64)
        for i, f in enumerate(stored.mapping.factors):
            column = stored.unit_column[i, place.k].astype(np.float64)
            exact, margin = inward @ column, np.abs(inward) @ np.abs(column)
            if structure.ir_drop == "formula":
                drop = _dropped(inward, column, margin, controls)
                exact, margin = exact - drop, margin + np.abs(drop)
            amplitude = _noise_amplitude(inward, column, structure, controls)
            if np.any(amplitude > 0):
                noise = inputs.noise(Stream.UNIT_COLUMN_READ, rows, 1, slice(None), i * len(fed) + j)
                exact = exact + amplitude * noise
            y = exact.astype(np.float32)
            limits = adc_range(y, len(column), structure, controls)
            if tolerance is not None:
                unsure |= near_tie(y, tolerance * (margin + amplitude), limits, structure, controls)
            total += f * h * through_adc(y, limits, structure, controls).astype(np.float64)
    return total, unsure


def _adc_errors(stored: Stored, structure: Structure, controls: Controls) -> _AdcErrors | None:
    """Return the errors of the ADCs of a chip, None where they have none."""
    if structure.adc == "none" or "adc.gain_sigma" not in controls.numbers:
        return None
    rows, columns = stored.weights.shape
    tiles, adcs = len(structure.row_tiles(rows)), -(-columns // structure.adc_columns)
    array = structure.site if structure.op == DYNAMIC else structure.array

    def normals(stream: Stream) -> NDArray[np.float64]:
        of_adcs = [
            stored_normals(
                controls.seed, 0, array, stream, tiles, adcs, weight_slice=i, first_row=stored.matrix * tiles
            )
            for i in range(len(stored.v))
        ]
        return np.array(of_adcs)[:, :, np.arange(columns) // structure.adc_columns]

    gain = 1 + controls.strength * controls.numbers["adc.gain_sigma"] * normals(Stream.ADC_GAIN)
    return _AdcErrors(gain, controls.strength * controls.numbers["adc.offset_sigma"] * normals(Stream.ADC_OFFSET))


def _dropped(
    x1: NDArray[np.float64], v: NDArray[np.float64], current: NDArray[np.float64], controls: Controls
) -> NDArray[np.float64]:
    """Return what the wires take from y by aihwkit's formula; `current` is |x1| |v|."""
    rows = v.shape[0]
    a = rows / controls.numbers["read.ir_drop_ratio"] * current
    away = 1 - (1 - np.arange(rows) / rows) ** 2
    share: NDArray[np.float64] = controls.numbers["read.ir_drop"] * a * (a * (0.05 * a - 0.2) + 0.5)
    along: NDArray[np.float64] = (x1 * away) @ v
    return share * along


def _noise_amplitude(
    x1: NDArray[np.float64], v: NDArray[np.float64], structure: Structure, controls: Controls
) -> NDArray[np.float64]:
    """Return the standard deviation of the noise on y, float64 [rows, 1] or [rows, columns]."""
    squares = x1**2
    variance = np.full((x1.shape[0], 1), controls.numbers.get("read.output_noise", 0.0) ** 2)
    if structure.read_noise != "none":
        c = controls.numbers["read.weight_noise"]
        if structure.read_noise == "additive_constant":
            grows = squares.sum(axis=1, keepdims=True)
        else:
            grows = squares @ (np.abs(v) if structure.read_noise == "pcm_read" else v**2)
        variance = variance + c**2 * grows
    amplitude: NDArray[np.float64] = controls.strength * np.sqrt(variance)
    return amplitude


def _is_last_repeat(b: float, structure: Structure, controls: Controls) -> bool:
    """Return whether a product with inputs divided by b stands even when it saturates."""
    numbers = controls.numbers
    if b > numbers["adc.max_bound_factor"]:
        return True
    n = controls.dac_steps(structure)
    return n > 0 and b > numbers["adc.max_bound_resolution"] / (2 * numbers["dac.bound"] / n)


def _near_bound(y: NDArray[np.float32], margin: NDArray[np.float64], controls: Controls) -> NDArray[np.bool_]:
    """Return the rows of which an error of `margin` in y could change whether they saturate."""
    excess = np.abs(y) - controls.numbers["adc.bound"]
    surely_saturates = np.any(excess > margin, axis=1)
    surely_fits = np.all(excess < -margin, axis=1)
    near: NDArray[np.bool_] = ~(surely_saturates | surely_fits)
    return near
