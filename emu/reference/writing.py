"""What is written: dynamic operands, programmed anew for every sample.

Sources: the lognormal and Gaussian variants of stored values; write noise and the transform (shift and clip) of the
ClipFormer paper.
"""

from emu.contract.schema import TRANSFORM
from emu.contract.structure import Controls, Structure
from emu.reference.arrays import Array, Cells, Normals, as_type, namespace, put
from emu.reference.mapping import changes_targets, lowest_conductance, writes_conductances
from emu.reference.programming import disturbed_number
from emu.reference.random import Stream

_CELLS = 4
_BITS_OF_CELL = 2
_LARGEST_CODE = 255


def written(
    w: Array, normals: Normals, structure: Structure, controls: Controls, cells: Cells | None = None
) -> list[Array]:
    """Return what holds dynamic operands that are w in units of their scale: numbers, or the devices of pairs.

    Each [..., K, N], in the type of the normals [..., K, N].
    """
    if structure.write == "none":
        return [w]
    xp = namespace(w)
    columns = slice(structure.first_column, structure.first_column + w.shape[-1])
    sigma = controls.numbers["write.sigma"]
    sigma_device = controls.numbers.get("write.sigma_device", 0.0) if cells is not None else 0.0

    def noise(negative: bool) -> Array:
        of_write = sigma * normals(Stream.WRITE_NEGATIVE if negative else Stream.WRITE, part=columns)
        if cells is not None and sigma_device:
            of_write = of_write + sigma_device * put(cells.normals(negative, columns), of_write)
        return controls.strength * of_write

    theta = noise(False)
    pair = [_target(sign * w, theta, structure, controls) for sign in (1, -1)]
    if not writes_conductances(structure):
        of_pair = (pair[0] - pair[1]) / (1 - lowest_conductance(controls))
        number = of_pair if changes_targets(structure, controls) else as_type(w, theta)
        variance = controls.strength**2 * (sigma**2 + sigma_device**2)
        return [disturbed_number(structure.write, number, theta, variance)]
    held = []
    for negative, (g, own) in enumerate(zip(pair, (theta, noise(True)), strict=True)):
        stuck = _stuck(bool(negative), columns, cells, structure, controls, g)
        if structure.write == "clipformer":
            held.append(_clipformer(g, own, stuck, structure, controls))
        else:
            held.append(_held_by_one_cell(g * xp.exp(own), stuck, controls))
    return held


def _stuck(
    negative: bool, columns: slice, cells: Cells | None, structure: Structure, controls: Controls, like: Array
) -> list[tuple[Array, Array]]:
    """Return which cells of each device are stuck low, and which high: [..., K, N] of each cell; none if none can."""
    if cells is None or "write.stuck_low" not in controls.numbers:
        return []
    low, high = (float(controls.probability(f"write.stuck_{name}")) for name in ("low", "high"))
    count = _CELLS if structure.write == "clipformer" and structure.write_cells == "cells" else 1
    uniforms = [cells.stuck_uniforms(negative, cell, columns) for cell in range(count)]
    masks = [(u <= low, (u > low) & (u > 1 - high)) for u in uniforms]
    return [(put(at_low, like) > 0, put(at_high, like) > 0) for at_low, at_high in masks]


def _held_by_one_cell(g: Array, stuck: list[tuple[Array, Array]], controls: Controls) -> Array:
    """Return conductances of devices that are one cell each, which may be stuck."""
    xp, r = namespace(g), lowest_conductance(controls)
    for low, high in stuck:
        g = xp.where(low, xp.full_like(g, r), xp.where(high, xp.ones_like(g), g))
    return g


def _target(w: Array, theta: Array, structure: Structure, controls: Controls) -> Array:
    """Return the conductances that one device of each pair should have: rounded, moved, limited; in theta's type."""
    xp, numbers, r = namespace(w), controls.numbers, lowest_conductance(controls)
    q = xp.clip(w, 0, None)
    if bits := int(numbers.get("write.bits", 0)):
        q = xp.round(q * (2**bits - 1)) / (2**bits - 1)
    g = r + (1 - r) * as_type(q, theta)
    if not TRANSFORM & numbers.keys():
        return g
    alpha, beta = numbers.get("write.alpha", 0.0), numbers.get("write.beta", 1.0)
    if structure.key_axis == "rows":
        alpha, beta = numbers.get("write.alpha_value", alpha), numbers.get("write.beta_value", beta)
    return xp.clip(xp.clip(xp.clip(g - alpha * r, r, None), None, beta), r, None)


def _clipformer(
    g: Array, theta: Array, stuck: list[tuple[Array, Array]], structure: Structure, controls: Controls
) -> Array:
    """Return the conductances of one device, written with noise that grows with them."""
    xp, r, exponent = namespace(g), lowest_conductance(controls), controls.numbers.get("write.exponent", 0.5)
    p, gamma = xp.clip((g - r) / (1 - r), 0, None), controls.numbers["write.gamma"]
    if structure.write_cells == "cells":
        p, spread = _in_cells(p, exponent, stuck)
        return xp.clip(r + (1 - r) * (p + gamma * theta * spread), r, 1.0)
    held = xp.clip(r + (1 - r) * (p + gamma * theta * p**exponent), r, 1.0)
    return _held_by_one_cell(held, stuck, controls)


def _in_cells(p: Array, exponent: float, stuck: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return a code in four cells of two bits, and the amplitude of its noise: each cell's own, none if stuck."""
    xp = namespace(p)
    code = xp.asarray(xp.round(_LARGEST_CODE * p), dtype=xp.int64)
    largest_digit = 2**_BITS_OF_CELL - 1
    held, variance = p, xp.zeros_like(p)
    for cell in range(_CELLS):
        share = ((code >> (_BITS_OF_CELL * cell)) & largest_digit) / largest_digit
        weight = largest_digit * 4.0**cell / _LARGEST_CODE
        own = weight**2 * share ** (2 * exponent)
        if stuck:
            low, high = stuck[cell]
            held = held + weight * xp.where(low, -share, xp.where(high, 1 - share, 0 * share))
            own = xp.where(low | high, 0 * own, own)
        variance += own
    return held, xp.sqrt(variance)
