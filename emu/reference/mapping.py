"""From weights to target conductances and back: scales, rounding, encodings, bit slices.

Sources: CrossSim's mapping and bit slices; aihwkit's pair of conductances. Conductances are in units of g_max.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import TRANSFORM
from emu.contract.structure import Controls, Structure
from emu.reference.arrays import Array, namespace, smallest


def scales(w: Array, structure: Structure, controls: Controls, of_sample: Array | None = None) -> Array:
    """Return the scale of each column in each row tile, float32 [..., row tiles, N], from undisturbed W [..., K, N].

    A scale is the largest |W| of what shares it, or with `mapping.percentile` the |W| of that rank; 1 where that is 0.
    `of_sample` [..., 1] is that of all matrices of a sample, where these share one. Of operands that are scaled key by
    key along the rows it is 1: see `row_scales`.
    """
    xp, row_tiles = namespace(w), structure.row_tiles(w.shape[-2])
    magnitude, s = xp.abs(w), xp.zeros_like(w[..., : len(row_tiles), :])
    if of_sample is not None:
        s[...] = of_sample[..., None, :]
    elif structure.write_scaling == "calibrated":
        s[...] = controls.operand_range
    elif structure.write_scaling == "token":
        s[...] = 1 if structure.key_axis == "rows" else largest(magnitude, controls)[..., None, :]
    elif structure.scaling == "tensor":
        s[...] = largest(_in_one_column(magnitude), controls)[..., None, :]
    elif structure.scaling == "column":
        s[...] = largest(magnitude, controls)[..., None, :]
    else:
        for tile, rows in enumerate(row_tiles):
            for columns in structure.column_tiles(w.shape[-1]):
                inside = magnitude[..., rows, columns]
                by_column = structure.scaling == "tile_column"
                s[..., tile, columns] = largest(inside if by_column else _in_one_column(inside), controls)
    s[s == 0] = 1
    return s


def row_scales(w: Array, structure: Structure, controls: Controls) -> Array | None:
    """Return the scale of each row of written operands [..., K, N], float32 [..., K], where each key has its own."""
    if structure.write_scaling != "token" or structure.key_axis != "rows":
        return None
    magnitude = namespace(w).abs(w)
    s = largest(magnitude.swapaxes(-1, -2), controls)
    s[s == 0] = 1
    return s


def largest(magnitude: Array, controls: Controls) -> Array:
    """Return the largest magnitude of each column of [..., count, columns], or the one of the percentile's rank."""
    count = magnitude.shape[-2]
    if count == 0:
        return magnitude.sum(axis=-2)
    if "mapping.percentile" not in controls.numbers:
        return namespace(magnitude).amax(magnitude, axis=-2)
    return smallest(magnitude, int(np.ceil(controls.numbers["mapping.percentile"] * count)))


def _in_one_column(values: Array) -> Array:
    return values.reshape(*values.shape[:-2], -1, 1)


def spread(of_tiles: Array, structure: Structure, rows: int) -> Array:
    """Return a number of every column in every row tile [..., row tiles, N] for each weight [..., K, N]."""
    tiles = structure.row_tiles(rows)
    return of_tiles[..., np.repeat(np.arange(len(tiles)), [tile.stop - tile.start for tile in tiles]), :]


def normalized(w: Array, s: Array, structure: Structure, controls: Controls) -> Array:
    """Return w = W / s rounded to codes of `weight_bits`, float32 [..., K, N]; s is that of each weight."""
    xp = namespace(w)
    unit = w / s
    if structure.encoding != "weight" or clips_to_scale(structure, controls):
        unit = xp.clip(unit, -1, 1)
    if structure.weight_bits == 0:
        return unit
    most = 2 ** (structure.weight_bits - 1) - 1
    return xp.round(unit * most) / most


def clips_to_scale(structure: Structure, controls: Controls) -> bool:
    """Whether numbers beyond their scale are limited to it."""
    return "mapping.percentile" in controls.numbers or structure.write_scaling == "calibrated"


def changes_targets(structure: Structure, controls: Controls) -> bool:
    """Whether what is written is rounded, moved or limited before."""
    numbers = controls.numbers
    return structure.write != "none" and bool(numbers.get("write.bits", 0) or TRANSFORM & numbers.keys())


@dataclass(frozen=True)
class Mapping:
    """How the weights of one site lie in conductances g, and w = sum_i factors[i] v_i - offset."""

    lowest: float
    """r = g_min / g_max."""
    factors: tuple[float, ...]
    """f_i: what a unit of v in slice i is worth in weights."""
    offset: float
    """O: what all cells hold beside the weight, in weights."""

    @property
    def span(self) -> float:
        """R = 1 - r."""
        return 1 - self.lowest


def mapping_of(structure: Structure, controls: Controls) -> Mapping:
    """Return the mapping of a site with conductances, or the trivial one of plain numbers."""
    mapping = _mapping_of_pairs(structure, controls)
    if not structure.converts_apart:
        return mapping
    return replace(mapping, factors=tuple(sign * f for f in mapping.factors for sign in (1, -1)))


def _mapping_of_pairs(structure: Structure, controls: Controls) -> Mapping:
    if structure.encoding == "weight" and not writes_conductances(structure):
        return Mapping(lowest=0.0, factors=(1.0,), offset=0.0)
    r = lowest_conductance(controls)
    span = 1 - r
    if structure.slice_bits > 0:
        d, b = structure.slice_bits, structure.weight_bits
        most = 2**d - 1
        factors = tuple(2.0 ** (i * d) * most / ((2 ** (b - 1) - 1) * span) for i in range(structure.weight_slices))
        offset = 0.0
        if structure.encoding == "offset":
            digits = [(2 ** (b - 1) >> (i * d)) & most for i in range(structure.weight_slices)]
            offset = sum(f * (r + span * digit / most) for f, digit in zip(factors, digits, strict=True))
        return Mapping(r, factors, offset)
    if structure.encoding == "offset":
        used = span * _used_share(_cell_bits(controls))
        return Mapping(r, (2 / span,), (1 - used / 2) * 2 / span)
    return Mapping(r, (1 / span,), 0.0)


def writes_conductances(structure: Structure) -> bool:
    """Whether a dynamic operand is held by pairs of conductances."""
    return structure.write in ("lognormal_g", "clipformer")


def lowest_conductance(controls: Controls) -> float:
    """Return r = g_min / g_max, 0 where there are no conductances."""
    return controls.numbers.get("mapping.g_min_us", 0.0) / controls.numbers.get("mapping.g_max_us", 1.0)


def levels_of_cell(structure: Structure, controls: Controls) -> int:
    """Return the number of steps between the levels of one cell, 0 for an analog one."""
    bits = structure.slice_bits or _cell_bits(controls)
    return 2**bits - 1 if bits else 0


def targets(
    w: NDArray[np.float32], weight_slice: int, negative: bool, structure: Structure, controls: Controls
) -> NDArray[np.float64]:
    """Return the target conductance of one device of every weight, float64 [K, N], from w of `normalized`.

    Levels are decided in float32.
    """
    r = lowest_conductance(controls)
    share: NDArray[Any]
    if structure.slice_bits > 0:
        share = _digits(w, weight_slice, negative, structure)
    else:
        half, one = np.float32(0.5), np.float32(1)
        sided = -w if negative else w
        if structure.encoding == "differential":
            share = np.maximum(sided, np.float32(0))
        elif structure.encoding == "two_sided":
            share = (one + sided) * half
        else:
            used = _used_share(_cell_bits(controls))
            share = np.float32(1 - used) + np.float32(used) * (w * half + half)
        if _cell_bits(controls):
            most = np.float32(2 ** _cell_bits(controls) - 1)
            share = np.rint(share * most) / most
    return r + (1 - r) * share.astype(np.float64)


def _digits(w: NDArray[np.float32], weight_slice: int, negative: bool, structure: Structure) -> NDArray[np.float64]:
    """Return the digit that a cell of one slice holds, as a share of the largest digit."""
    most_code = 2 ** (structure.weight_bits - 1) - 1
    code = np.rint(w * np.float32(most_code)).astype(np.int64)
    if structure.encoding == "offset":
        code = code + 2 ** (structure.weight_bits - 1)
    else:
        code = np.maximum(-code if negative else code, 0)
    most_digit = 2**structure.slice_bits - 1
    digit: NDArray[np.float64] = ((code >> (weight_slice * structure.slice_bits)) & most_digit) / most_digit
    return digit


def _cell_bits(controls: Controls) -> int:
    return int(controls.numbers.get("mapping.cell_bits", 0))


def _used_share(cell_bits: int) -> float:
    """Return R'/R: with an even number of levels an offset leaves the lowest one out, so that 0 lies on a level."""
    return (2**cell_bits - 2) / (2**cell_bits - 1) if cell_bits else 1.0
