"""What is read: one tile after another through DAC, wires, noise and ADC, with bound management.

Source: aihwkit's analog matrix-vector product (Rasch et al., AICAS 2021), per input vector; slices as in CrossSim.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import DYNAMIC
from emu.contract.structure import Controls, Structure
from emu.reference.arrays import Array, Normals, as_type, namespace, surely_none
from emu.reference.converters import (
    AdcRange,
    adc_range,
    dithered,
    input_digits,
    input_range,
    most_without_saturation,
    near_tie,
    squares_fed,
    through_adc,
    through_dac,
    worst_case_range,
)
from emu.reference.places import Places
from emu.reference.random import Stream, adc_normals, stored_normals
from emu.reference.storing import Stored

# Rows of X taken through the periphery at once: rows are independent, this only bounds the memory.
_ROWS_AT_ONCE = 2048
# The inverse of an input range up to here is no finite float32.
_DARK = 2.0**-128


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
    places: Places,
    tolerance: float | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the product of X [R, K] with what an array holds [K, N] as the array delivers it, float32 [R, N].

    `places` says where each row of X lies. Rows of X that are not finite give NaN.
    The second result marks the undecided outputs (see `Trace`), bool [R, N], all False without a tolerance.
    """
    y = np.empty((len(x), stored.weights.shape[-1]), np.float32)
    undecided = np.zeros(y.shape, dtype=np.bool_)
    errors = column_errors(stored, structure, controls)
    column = None if stored.unit_column is None else stored.unit_column.astype(np.float64)
    squares = None if stored.squares is None else stored.squares.astype(np.float64)
    exact = replace(
        stored, v=stored.v.astype(np.float64), s=stored.s.astype(np.float64), unit_column=column, squares=squares
    )
    lost: NDArray[np.bool_] = ~np.all(np.isfinite(x), axis=1)
    x = np.where(lost[:, None], np.float32(0), x)
    for start in range(0, len(x), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        normals = partial(places[part].normals, structure, controls)
        observer = None if tolerance is None else _Undecided(undecided[part], tolerance, structure, controls)
        y[part] = Reading(exact, errors, structure, controls, normals, observer).of(x[part])
    y[lost], undecided[lost] = np.nan, False
    return y, undecided


class Observer:
    """What looks on while a product is read."""

    def fed(self, k: slice, x: Array, alpha: Array) -> None:
        """Rows of X [..., R, K of the tile] are about to be fed, with these input ranges [..., R, 1]."""

    def converted(
        self, tile: int, n: slice, y: Array, margin: Callable[[], Array], limits: AdcRange, rows: Array, again: Array
    ) -> None:
        """Outputs y [..., R, N of the tile] met the range of an ADC.

        `margin` gives the sum of the magnitudes that were added up to y. Only those of `rows` count, bool [..., R, 1],
        and of these `again` are repeated with smaller inputs (None where none may be).
        """

    def converted_unit_column(self, y: Array, margin: Callable[[], Array], limits: AdcRange, rows: Array) -> None:
        """The same of the unit column's y [..., R, 1], which all columns share."""


@dataclass(frozen=True)
class _Undecided(Observer):
    """Marks what a small error would change, in `marks` [R, N]."""

    marks: NDArray[np.bool_]
    tolerance: float
    structure: Structure
    controls: Controls

    def converted(
        self, tile: int, n: slice, y: Array, margin: Callable[[], Array], limits: AdcRange, rows: Array, again: Array
    ) -> None:
        stand = rows
        error = self.tolerance * margin()
        if again is not None:
            stand = rows & ~again
            self.marks[:, n] |= rows & _near_bound(
                y, error, most_without_saturation(limits, self.structure, self.controls)
            )
        self.marks[:, n] |= stand & near_tie(y, error, limits, self.structure, self.controls)

    def converted_unit_column(self, y: Array, margin: Callable[[], Array], limits: AdcRange, rows: Array) -> None:
        self.marks[...] |= rows & near_tie(y, self.tolerance * margin(), limits, self.structure, self.controls)


@dataclass(frozen=True)
class Reading:
    """One reading of what arrays hold; currents add up in the type of v and s, codes are decided in that of X."""

    stored: Stored
    errors: Mapping[str, Array]
    """Of `column_errors`."""
    structure: Structure
    controls: Controls
    normals: Normals
    observer: Observer | None = None

    def of(self, x: Array) -> Array:
        """Return the product of finite X [..., R, K] with v [slices, ..., K, N], in the type of X."""
        if self.stored.row_scales is not None:
            x = x * self.stored.row_scales[..., None, :]
        return as_type(sum(self._parts(x)), x)

    def _number(self, tile: int) -> int:
        """The number of a row tile in hand among those of all matrices, or of all that is written."""
        if self.structure.op == DYNAMIC:
            return self.structure.first_tile + tile
        return self.stored.matrix * self.stored.s.shape[-2] + tile

    def _parts(self, x: Array) -> Iterator[Array]:
        """Yield what is added up to the product, [..., R, N]."""
        xp, columns = namespace(x), self.stored.v[0].shape[-1]
        amplitude = self.controls.strength * self.controls.numbers.get("read.input_noise", 0.0)
        for tile, k in enumerate(self.structure.row_tiles(x.shape[-1])):
            alpha = input_range(x[..., k], self._number(tile), self.structure, self.controls)
            if self.observer is not None:
                self.observer.fed(k, x[..., k], alpha)
            lit = alpha > _DARK
            noise = None
            if amplitude > 0:
                noise = amplitude * self.normals(Stream.INPUT_NOISE, part=_from(self.structure.first_row, k))
            uniforms = None
            if self.structure.dac_rounding == "stochastic":
                uniforms = self._rounding(Stream.INPUT_NOISE, part=_from(self.structure.first_row, k))
            fed = xp.where(lit, alpha, 1.0)
            inputs = _Inputs(x[..., k], fed, lit, noise, uniforms, self.structure, self.controls)
            parts = [self._tile(tile, k, n, inputs) for n in self.structure.column_tiles(columns)]
            yield xp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
            if self.stored.mapping.offset != 0:
                offset = self._offset(tile, k, inputs) * xp.where(lit, alpha, 0.0)
                yield -offset * self.stored.s[..., tile : tile + 1, :]

    def _tile(self, tile: int, k: slice, n: slice, inputs: "_Inputs") -> Array:
        """Return what one tile adds to the product; rows that saturate are read again with halved inputs."""
        structure, controls, stored = self.structure, self.controls, self.stored
        xp = namespace(inputs.x)
        managed, worst = structure.bound_management != "none", structure.bound_management == "worst_case"
        scale_of_codes = controls.numbers.get("adc.scale", 1.0)
        result, rows, repeats = 0, inputs.lit, 0
        while True:
            if worst and repeats == 1:
                inputs = replace(inputs, alpha=worst_case_range(inputs.x, structure, controls))
            b = 2.0 ** max(0, repeats - worst)
            may_repeat = managed and not _is_last_repeat(b, structure, controls)
            again, total = None, 0
            fed = inputs.fed(b)
            for i, f in enumerate(stored.mapping.factors):
                weight_slice, negative = divmod(i, 2) if structure.converts_apart else (i, 0)
                v = stored.v[i][..., k, n]
                errors = {name: each[i, tile, n] for name, each in self.errors.items()}
                for j, (x1, h) in enumerate(fed):
                    reading = repeats if managed else weight_slice * len(fed) + j
                    stream = Stream.READ_NEGATIVE_ARRAY if negative else Stream.READ
                    part = _from(structure.first_column, n)
                    place: dict[str, Any] = {"part": part, "tile": structure.first_tile + tile}
                    noise = partial(self._noise, stream, **place, reading=reading)
                    squares = None if stored.squares is None else stored.squares[i][..., k, n]
                    cells = _Cells(v, squares, max(1, structure.devices), rounds_variances(structure))
                    y, margin = self._analog(x1, cells, noise, errors, structure.first_row + k.start)
                    depth = structure.tile_depth(v.shape[-2])
                    of_range = (self._number(tile), weight_slice, negative)
                    limits = adc_range(y, depth, of_range, structure, controls)
                    if structure.adc_rounding == "stochastic":
                        y = dithered(y, self._rounding(stream, **place, reading=reading), limits, structure, controls)
                    if may_repeat:
                        most = most_without_saturation(limits, structure, controls)
                        again = xp.any(xp.abs(y) > most, axis=-1, keepdims=True)
                    if self.observer is not None:
                        self.observer.converted(tile, n, y, margin, limits, rows, again)
                    total = total + as_type(through_adc(y, limits, structure, controls), v) * (f * h * scale_of_codes)
            stand = rows if again is None else rows & ~again
            scale = xp.where(stand, inputs.alpha * b, 0.0) * stored.s[..., tile : tile + 1, n]
            result = result + total * scale
            if again is None or not bool((rows & again).any()):
                return result
            rows, repeats = rows & again, repeats + 1

    def _offset(self, tile: int, k: slice, inputs: "_Inputs") -> Array:
        """Return what is subtracted from every row for cells that hold an offset, [..., R, 1]."""
        structure, controls, mapping = self.structure, self.controls, self.stored.mapping
        total, fed = 0, inputs.fed(1.0)
        for j, (x1, h) in enumerate(fed):
            if self.stored.unit_column is None:
                total = total + mapping.offset * h * as_type(x1, self.stored.v).sum(axis=-1, keepdims=True)
                continue
            for i, f in enumerate(mapping.factors):
                column = self.stored.unit_column[i][k]
                reading = i * len(fed) + j
                stream = Stream.UNIT_COLUMN_READ
                of_column: dict[str, Any] = {"part": slice(0, 1), "tile": tile, "reading": reading}
                noise = partial(self._noise, stream, **of_column)
                y, margin = self._analog(x1, _Cells(column), noise, None, k.start)
                limits = adc_range(y, column.shape[0], (self._number(tile), i, 0), structure, controls)
                if structure.adc_rounding == "stochastic":
                    y = dithered(y, self._rounding(stream, **of_column), limits, structure, controls)
                if self.observer is not None:
                    self.observer.converted_unit_column(y, margin, limits, inputs.lit)
                total = total + f * h * as_type(through_adc(y, limits, structure, controls), column)
        return total * self.controls.numbers.get("adc.scale", 1.0)

    def _noise(self, stream: Stream, of_outputs: bool = False, **place: Any) -> Array:
        """Return normals of a stream, or of the stream of output noise where that acts by itself."""
        return self.normals(stream + (Stream.OUTPUT_NOISE - Stream.READ if of_outputs else 0), **place)

    def _rounding(self, noise: Stream, **place: Any) -> Array:
        """Return the uniforms of random rounding where noise of that stream acts."""
        return self.normals(Stream.ROUNDING + noise - Stream.READ, **place, uniform=True)

    def _analog(
        self,
        x1: Array,
        cells: "_Cells",
        noise: Callable[..., Array],
        errors: Mapping[str, Array] | None,
        first_row: int,
    ) -> tuple[Array, Callable[[], Array]]:
        """Return y before the ADC's code, in the type of x1, and what gives the sum of the magnitudes in it.

        `errors` are those of the columns, None for a unit column, which has none and is linear.
        """
        xp, v, errors_of = namespace(x1), cells.v, errors or {}
        shape = None if errors is None else _shape_of_outputs(errors_of, self.controls)
        inputs = as_type(x1, v)
        y, dropped = inputs @ v, 0
        if self.structure.ir_drop == "formula":
            dropped = _dropped(inputs, v, first_row, self.structure, self.controls)
            y = y - dropped
        of_outputs = self.controls.numbers.get("read.output_noise", 0.0)
        std = errors_of.get("noise", of_outputs)
        amplitude = _noise_amplitude(inputs, cells, std if shape is None else 0.0, self.structure, self.controls)
        if amplitude is not None:
            y = y + amplitude * noise()
        behind = self.controls.strength * std
        if shape is not None:
            y = shape(y)
            if of_outputs > 0:
                y = y + behind * noise(of_outputs=True)
        if "gain" in errors_of:
            y = y * errors_of["gain"] + errors_of["offset"]

        def margin() -> Array:
            total = xp.abs(inputs) @ xp.abs(v) + abs(dropped) + (0 if amplitude is None else amplitude)
            if shape is not None:
                total = total * _steepest_slope(self.controls) + behind
            return total * xp.abs(errors_of["gain"]) + xp.abs(errors_of["offset"]) if "gain" in errors_of else total

        return as_type(y, x1), margin


@dataclass(frozen=True)
class _Cells:
    """What one slice of a tile holds: v [..., K, N], and of each the sum of g^2 over its devices (None: v^2), and how
    many these are. `rounded`: the variance of their noise is computed to 8 bits.
    """

    v: Array
    squares: Array | None = None
    devices: int = 1
    rounded: bool = False


@dataclass(frozen=True)
class _Inputs:
    """Rows of X in one row tile, the input range of each (1 where it is none), and which are read at all."""

    x: Array
    alpha: Array
    lit: Array
    noise: Array | None
    uniforms: Array | None
    structure: Structure
    controls: Controls

    def fed(self, b: float) -> list[tuple[Array, float]]:
        """Return what the array is fed with inputs divided by b: every input slice and its weight."""
        x1 = through_dac(self.x, self.alpha * b, self.structure, self.controls, self.uniforms)
        if self.noise is not None:
            x1 = as_type(x1 + self.noise, x1)
        asymmetry = self.controls.numbers.get("dac.asymmetry", 0.0)
        if asymmetry != 0:
            x1 = namespace(x1).where(x1 < 0, x1 * (1 - asymmetry), x1)
        return input_digits(x1, self.structure, self.controls)


def _from(first: int, part: slice) -> slice:
    return slice(first + part.start, first + part.stop)


def column_errors(stored: Stored, structure: Structure, controls: Controls) -> dict[str, NDArray[np.float64]]:
    """Return what makes columns differ, float64 [slices, row tiles, N] each, if anything does.

    `gain` (about 1) and `offset` of their ADCs, the standard deviation of their output `noise`, and how much their
    outputs `bend`.
    """
    numbers, strength = controls.numbers, controls.strength
    rows, columns = stored.weights.shape[-2:]
    tiles, column = len(structure.row_tiles(rows)), structure.first_column + np.arange(columns)

    def of_slice(stream: Stream, i: int, adc: NDArray[np.int64]) -> NDArray[np.float64]:
        adcs = slice(int(adc[0]), int(adc[-1]) + 1)
        if structure.op == DYNAMIC:
            first = structure.first_tile
            own = adc_normals(controls.seed, structure.site, stream, slice(first, first + tiles), adcs, i)
        else:
            place = {"weight_slice": i, "first_row": stored.matrix * tiles}
            own = stored_normals(controls.seed, 0, structure.array, stream, tiles, adcs.stop, **place)
        return own[:, adc - adcs.start if structure.op == DYNAMIC else adc]

    def normals(stream: Stream, share: int = 1) -> NDArray[np.float64]:
        return np.array([of_slice(stream, i, column // share) for i in range(len(stored.v))])

    errors: dict[str, NDArray[np.float64]] = {}
    if structure.adc != "none" and "adc.gain_sigma" in numbers:
        share = structure.adc_columns
        errors["gain"] = 1 + strength * numbers["adc.gain_sigma"] * normals(Stream.ADC_GAIN, share)
        errors["offset"] = strength * numbers["adc.offset_sigma"] * normals(Stream.ADC_OFFSET, share)
    if numbers.get("read.output_noise_spread", 0.0) > 0:
        share_of_mean = 1 + strength * numbers["read.output_noise_spread"] * normals(Stream.OUTPUT_NOISE_SPREAD)
        errors["noise"] = np.abs(numbers["read.output_noise"] * share_of_mean)
    if numbers.get("adc.nonlinearity", 0.0) > 0:
        share_of_mean = np.ones((len(stored.v), tiles, columns))
        if numbers.get("adc.nonlinearity_sigma", 0.0) > 0:
            share_of_mean += strength * numbers["adc.nonlinearity_sigma"] * normals(Stream.NONLINEARITY_SPREAD)
        errors["bend"] = np.abs(numbers["adc.nonlinearity"] / numbers["adc.bound"] * share_of_mean)
    return errors


def _shape_of_outputs(errors: Mapping[str, Array], controls: Controls) -> Callable[[Array], Array] | None:
    """Return what saturating and asymmetric outputs make of y; None where outputs are linear."""
    asymmetry, bend = controls.numbers.get("adc.asymmetry", 0.0), errors.get("bend")
    if asymmetry == 0 and bend is None:
        return None

    def shape(y: Array) -> Array:
        xp = namespace(y)
        if bend is not None:
            y = _slope_at_zero(controls) * y / (1 + bend * xp.abs(y))
        return xp.where(y < 0, y * (1 - asymmetry), y) if asymmetry != 0 else y

    return shape


def _slope_at_zero(controls: Controls) -> float:
    """Return the factor with which the slope of bent outputs is 1 at `adc.slope_calibration`."""
    nonlinearity, place = (controls.numbers.get(f"adc.{each}", 0.0) for each in ("nonlinearity", "slope_calibration"))
    return (1 + nonlinearity * place) ** 2


def _steepest_slope(controls: Controls) -> float:
    return _slope_at_zero(controls) * max(1.0, 1 - controls.numbers.get("adc.asymmetry", 0.0))


def _dropped(x1: Array, v: Array, first_row: int, structure: Structure, controls: Controls) -> Array:
    """Return what the wires take from y by aihwkit's formula; `first_row` is that of v in the arrays."""
    xp, rows = namespace(x1), structure.tile_depth(v.shape[-2])
    a = rows / controls.numbers["read.ir_drop_ratio"] * (xp.abs(x1) @ xp.abs(v))
    offset = first_row % rows if structure.key_axis == "rows" and structure.tile_rows else 0
    before = xp.cumsum(xp.ones_like(x1[..., :1, :]), -1) - 1 + offset  # place in the tile: 0, 1, ..
    away = 1 - (1 - before / rows) ** 2
    return controls.numbers["read.ir_drop"] * a * (a * (0.05 * a - 0.2) + 0.5) * ((x1 * away) @ v)


def _noise_amplitude(
    x1: Array, cells: _Cells, constant: Array, structure: Structure, controls: Controls
) -> Array | None:
    """Return the standard deviation of the noise on y: a number, [..., R, 1] or [..., R, N]; None without noise.

    `constant` is that of output noise, a number or [N].
    """
    xp, c = namespace(x1), controls.numbers.get("read.weight_noise", 0.0)
    if structure.read_noise == "none" or c == 0:
        none = isinstance(constant, float) and controls.strength * constant == 0
        return None if none else controls.strength * constant
    squares = squares_fed(x1, structure, controls)
    match structure.read_noise:
        case "pcm_read":
            grows = sum_of_variances(squares, xp.abs(cells.v), cells.rounded)
        case "proportional":
            squared = cells.v**2 if cells.squares is None else cells.squares
            grows = sum_of_variances(squares, squared, cells.rounded)
        case _:
            devices = cells.devices if structure.read_noise == "independent" else 1
            grows = devices * squares.sum(axis=-1, keepdims=True)
    return controls.strength * xp.sqrt(constant**2 + c**2 * grows)


def rounds_variances(structure: Structure) -> bool:
    """Return whether variances of read noise are computed to 8 bits: of stored values that cannot be out of all
    proportion, unless input slices are added up first. Steps of what is written at run time would grow with it.
    """
    if structure.op == DYNAMIC or structure.dac_slice_sum == "analog":
        return False
    return structure.fault_storage in ("none", "int") and structure.program != "function"


def sum_of_variances(squares: Array, weights: Array, rounded: bool) -> Array:
    """Return squares [..., R, K] @ weights [..., K, N], both in whole steps if `rounded`: of 8 bits, or of 16 in rows
    where the largest square is more than 64 times the mean.
    """
    if not rounded:
        return squares @ weights
    xp = namespace(squares)
    codes = _codes(weights, -2, 127 * 257)
    narrow = _keep_sum(_codes(squares, -1, 255), squares, -1) @ _keep_sum(xp.floor((codes + 128) / 256), weights, -2)
    uneven = xp.amax(squares, -1, keepdims=True) * squares.shape[-1] > 64 * squares.sum(axis=-1, keepdims=True)
    if surely_none(uneven):
        return narrow
    wide = _keep_sum(_codes(squares, -1, 65535), squares, -1) @ _keep_sum(codes, weights, -2)
    return xp.where(uneven, wide, narrow)


def _codes(values: Array, axis: int, most: int) -> Array:
    """Return values >= 0 as codes up to `most` along an axis, by arithmetic in float32."""
    xp = namespace(values)
    largest = xp.asarray(xp.amax(values, axis, keepdims=True), dtype=xp.float32)
    factor = xp.asarray(most / xp.where(largest > 0, largest, 1.0), dtype=xp.float32)
    return as_type(xp.round(xp.asarray(values, dtype=xp.float32) * factor), values)


def _keep_sum(codes: Array, values: Array, axis: int) -> Array:
    """Return codes times the step with which they add up to the values."""
    xp, total = namespace(codes), codes.sum(axis=axis, keepdims=True)
    return codes * (values.sum(axis=axis, keepdims=True) / xp.where(total > 0, total, 1.0))


def _is_last_repeat(b: float, structure: Structure, controls: Controls) -> bool:
    """Return whether a product with inputs divided by b stands even when it saturates."""
    numbers = controls.numbers
    if b > numbers["adc.max_bound_factor"]:
        return True
    n = controls.dac_steps(structure)
    return n > 0 and b > numbers["adc.max_bound_resolution"] / (2 * numbers["dac.bound"] / n)


def _near_bound(y: NDArray[np.float32], margin: NDArray[np.float64], most: float) -> NDArray[np.bool_]:
    """Return the rows [R, 1] of which an error of `margin` in y could change whether they saturate."""
    excess = np.abs(y) - most
    surely_saturates = np.any(excess > margin, axis=1, keepdims=True)
    surely_fits = np.all(excess < -margin, axis=1, keepdims=True)
    near: NDArray[np.bool_] = ~(surely_saturates | surely_fits)
    return near
