"""What an array holds: from weights through mapping, programming, drift, stuck cells and wires to what is read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.contract.structure import Controls, Structure
from emu.reference.arrays import Array, Normals, as_type
from emu.reference.drift import compensation, drifted
from emu.reference.faults import stuck, stuck_as_listed
from emu.reference.mapping import (
    Mapping,
    clips_to_scale,
    lowest_conductance,
    mapping_of,
    normalized,
    row_scales,
    scales,
    spread,
    targets,
)
from emu.reference.programming import DeviceArray, clipped, programmed, programmed_numbers
from emu.reference.random import Stream, stored_normals
from emu.reference.wires import through_wires
from emu.reference.writing import written

_LEAST_NET = 1e-7


@dataclass(frozen=True)
class Stored:
    """Matrices as their arrays hold them: weight = s (sum_i factors[i] v[i] - offset)."""

    v: Array
    """What a unit input finds, in units of g_max (plain numbers: of the scale), float32 [slices, ..., K, N]; of pairs
    that are converted apart [2 slices, ..., K, N]: the positive and the negative device of each slice."""
    s: Array
    """Scale of every column in every row tile, with the factor of compensation, [..., row tiles, N]."""
    mapping: Mapping
    weights: Array
    """W', what all of this amounts to, float32 [..., K, N]."""
    unit_column: Array | None = None
    """v of the column of cells that holds 0, [slices, K, 1], where the offset is corrected by reading it."""
    matrix: int = 0
    """Index in a stack of matrices."""
    squares: Array | None = None
    """Sum of g^2 over the devices of each weight, like v, where read noise is in proportion to it."""
    row_scales: Array | None = None
    """What inputs are multiplied by before they are fed, [..., K], where each row has a scale of its own."""


def stored(
    w: NDArray[np.float32],
    faulty: NDArray[np.float32],
    structure: Structure,
    controls: Controls,
    matrix: int = 0,
) -> Stored:
    """Return what the array holds of the constant W [K, N]; `faulty` is W after bit flips.

    `matrix` is the index of W in a stack of matrices. What is fixed with the chip follows from `seed`, what every
    programming draws anew also from `read_seed`.
    """
    rows, columns = w.shape
    s = scales(w, structure, controls).astype(np.float64)
    mapping = mapping_of(structure, controls)
    # A flipped exponent may make any number, also none.
    with np.errstate(all="ignore"):
        unit = normalized(faulty, spread(s, structure, rows).astype(np.float32), structure, controls)
        unit_column = squares = None
        if structure.encoding == "weight":
            v = programmed_numbers(unit, DeviceArray(structure, controls, rows, columns, matrix=matrix))[None]
        else:
            before, after = _cells(unit, structure, controls, matrix)
            v = after.v
            if structure.compensation != "none":
                early, late = (_unit_weights(each.v, mapping) for each in (before, after))
                devices = before.squares[0], after.squares[0]
                s = s * compensation(early, late, devices, structure, controls, matrix)
            if structure.encoding == "offset" and structure.offset_correction == "unit_column":
                zeros = np.zeros((rows, 1), dtype=np.float32)
                unit_column = _cells(zeros, structure, controls, matrix, of_unit_column=True)[1].v.astype(np.float32)
            if structure.read_noise == "proportional":
                squares = after.squares.astype(np.float32)
        if "program.modifier" in controls.numbers:
            v[0] = v[0] + mapping.span * _modifier(unit, structure, controls, matrix)
        weights = held_weights(v, s, mapping, structure).astype(np.float32)
    if _holds_the_number_itself(structure):
        weights = faulty
    return Stored(v.astype(np.float32), s, mapping, weights, unit_column, matrix, squares)


def stored_operand(
    b: Array, normals: Normals, structure: Structure, controls: Controls, of_sample: Array | None = None
) -> Stored:
    """Return what arrays hold of dynamic operands [..., K, N], written with these normals; `of_sample` as for `scales`.

    On NumPy or PyTorch; the normals are [..., K, columns].
    """
    mapping = mapping_of(structure, controls)
    s, of_rows = scales(b, structure, controls, of_sample), row_scales(b, structure, controls)
    divisor = spread(s, structure, b.shape[-2]) if of_rows is None else of_rows[..., None]
    unit = normalized(b, divisor, structure, controls)
    devices = written(unit, normals, structure, controls)
    v = _difference(devices)[None]
    weights = b
    if structure.write != "none" or clips_to_scale(structure, controls):
        held = held_weights(v, s, mapping, structure)
        weights = as_type(held if of_rows is None else held * of_rows[..., None], b)
    of_devices = structure.devices and structure.read_noise == "proportional"
    squares = as_type(_squares(devices)[None], b) if of_devices else None
    return Stored(as_type(v, b), s, mapping, weights, squares=squares, row_scales=of_rows)


def _holds_the_number_itself(structure: Structure) -> bool:
    changed = {"mapping.percentile", "program.modifier"} & set(structure.entries)
    return structure.encoding == "weight" and structure.program == "none" and not structure.weight_bits and not changed


def held_weights(v: Array, s: Array, mapping: Mapping, structure: Structure) -> Array:
    """Return the weights [..., K, N] that v [slices, ..., K, N] stands for with scales s [..., row tiles, N]."""
    return spread(s, structure, v.shape[-2]) * _unit_weights(v, mapping)


def _unit_weights(v: Array, mapping: Mapping) -> Array:
    """Return the weights in units of their scale, [..., K, N], that v [slices, ..., K, N] stands for."""
    return sum(f * of_slice for f, of_slice in zip(mapping.factors, v, strict=True)) - mapping.offset


@dataclass(frozen=True)
class _Found:
    """What reading finds of the devices of weights, [slices, K, N]: v, and the sum of g^2."""

    v: NDArray[np.float64]
    squares: NDArray[np.float64]


def _cells(
    w: NDArray[np.float32], structure: Structure, controls: Controls, matrix: int, of_unit_column: bool = False
) -> tuple[_Found, _Found]:
    """Return what is found before drift (as if there were none) and after it."""
    before: list[tuple[Array, Array]] = []
    after: list[tuple[Array, Array]] = []
    for weight_slice in range(structure.weight_slices):
        arrays = [
            DeviceArray(structure, controls, w.shape[0], w.shape[1], weight_slice, negative, of_unit_column, matrix)
            for negative in ((False, True) if structure.has_pairs else (False,))
        ]
        target = [targets(w, weight_slice, array.negative, structure, controls) for array in arrays]
        held = [programmed(g, array) for g, array in zip(target, arrays, strict=True)]
        if structure.compensation != "none" or structure.drift == "none":
            found = [_as_found(g, array) for g, array in zip(held, arrays, strict=True)]
            before += _as_converted(found, structure)
        if structure.drift == "none":
            continue
        unit: NDArray[np.float64] | float = 1.0
        if structure.drift_pairs == "net":
            held, unit = _net_pair(held, structure, controls)
        aged = [
            clipped(drifted(g, x, array), structure, controls) for g, x, array in zip(held, target, arrays, strict=True)
        ]
        found = [_as_found(g, array) for g, array in zip(aged, arrays, strict=True)]
        after += [(unit * v, unit**2 * squares) for v, squares in _as_converted(found, structure)]
    return _found(before), _found(after or before)


def _found(slices: list[tuple[Array, Array]]) -> _Found:
    return _Found(np.array([v for v, _ in slices]), np.array([squares for _, squares in slices]))


def _as_found(g: NDArray[np.float64], array: DeviceArray) -> NDArray[np.float64]:
    """Return conductances as reading finds them: with stuck cells, through the wires."""
    structure, controls = array.structure, array.controls
    lowest = lowest_conductance(controls)
    if structure.has_stuck_cells:
        g = stuck(g, array.stuck_uniforms(), lowest, controls)
    if controls.faults.size and not array.of_unit_column:
        g = stuck_as_listed(g, array.weight_slice, array.negative, lowest, controls, array.matrix)
    return through_wires(g, structure, controls) if structure.ir_drop == "network" else g


def _as_converted(devices: list[Array], structure: Structure) -> list[tuple[Array, Array]]:
    """Return v and the sum of g^2 of what is converted by itself: a pair, or each of its devices."""
    groups = [[g] for g in devices] if structure.converts_apart else [devices]
    return [(_difference(group), _squares(group)) for group in groups]


def _difference(devices: list[Array]) -> Array:
    return devices[0] - devices[1] if len(devices) == 2 else devices[0]


def _squares(devices: list[Array]) -> Array:
    return sum(g**2 for g in devices)


def _net_pair(
    pair: list[NDArray[np.float64]], structure: Structure, controls: Controls
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the pair that holds only the difference of a pair, over the whole range of its tile, and that range."""
    r = lowest_conductance(controls)
    net = (pair[0] - pair[1]) / (1 - r)
    most = np.maximum(_largest_of_tile(net, structure), _LEAST_NET)
    return [r + (1 - r) * np.maximum(sign * net, 0) / most for sign in (1, -1)], most


def _modifier(w: NDArray[np.float32], structure: Structure, controls: Controls, matrix: int) -> NDArray[np.float64]:
    """Return normal noise in proportion to the largest weight of each tile. Source: aihwkit's weight modifiers."""
    first_row = matrix * w.shape[0]
    normals = stored_normals(controls.seed, 0, structure.array, Stream.MODIFIER, *w.shape, first_row=first_row)
    amplitude = controls.strength * controls.numbers["program.modifier"]
    return amplitude * _largest_of_tile(w.astype(np.float64), structure) * normals


def _largest_of_tile(values: NDArray[np.float64], structure: Structure) -> NDArray[np.float64]:
    """Return for each weight the largest magnitude in its tile."""
    largest = np.empty_like(values)
    for k in structure.row_tiles(values.shape[0]):
        for n in structure.column_tiles(values.shape[1]):
            largest[k, n] = np.max(np.abs(values[k, n]))
    return largest
