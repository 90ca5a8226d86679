"""What is written: dynamic operands, programmed anew for every sample.

Sources: the lognormal and Gaussian variants of stored values; write noise and conductance clipping of the ClipFormer
paper.
"""

from emu.contract.structure import Controls, Structure
from emu.reference.arrays import Array, Normals, as_type, namespace
from emu.reference.mapping import lowest_conductance, writes_conductances
from emu.reference.programming import disturbed_number
from emu.reference.random import Stream

_CELLS = 4
_BITS_OF_CELL = 2
_LARGEST_CODE = 255


def written(w: Array, normals: Normals, structure: Structure, controls: Controls) -> list[Array]:
    """Return what holds dynamic operands that are w in units of their scale: numbers, or the devices of pairs.

    Each [..., K, N], in the type of the normals [..., K, N].
    """
    if structure.write == "none":
        return [w]
    xp = namespace(w)
    sigma = controls.strength * controls.numbers["write.sigma"]
    columns = slice(structure.first_column, structure.first_column + w.shape[-1])
    theta = sigma * normals(Stream.WRITE, part=columns)
    if not writes_conductances(structure):
        return [disturbed_number(structure.write, as_type(w, theta), theta, sigma**2)]
    device = _lognormal if structure.write == "lognormal_g" else _clipformer
    negative = sigma * normals(Stream.WRITE_NEGATIVE, part=columns)
    return [
        device(xp.clip(sign * w, 0, None), noise, structure, controls) for sign, noise in ((1, theta), (-1, negative))
    ]


def _lognormal(q: Array, theta: Array, structure: Structure, controls: Controls) -> Array:
    r = lowest_conductance(controls)
    return (r + (1 - r) * as_type(q, theta)) * namespace(q).exp(theta)


def _clipformer(q: Array, theta: Array, structure: Structure, controls: Controls) -> Array:
    """Return the conductances of one device: moved towards zero, limited, written with noise that grows with them."""
    xp, numbers, r = namespace(q), controls.numbers, lowest_conductance(controls)
    if numbers["write.bits"]:
        most = 2 ** int(numbers["write.bits"]) - 1
        q = xp.round(q * most) / most
    moved = xp.clip(r + (1 - r) * as_type(q, theta) - numbers["write.alpha"] * r, r, None)
    limited = xp.clip(xp.clip(moved, None, numbers["write.beta"]), r, None)
    p = (limited - r) / (1 - r)
    spread = xp.sqrt(p) if structure.write_cells == "composite" else _spread_of_cells(p)
    return xp.clip(r + (1 - r) * (p + numbers["write.gamma"] * theta * spread), r, 1.0)


def _spread_of_cells(p: Array) -> Array:
    """Return the amplitude of the noise of a code in four cells of two bits, each with its own noise."""
    xp = namespace(p)
    code = xp.asarray(xp.round(_LARGEST_CODE * p), dtype=xp.int64)
    largest_digit = 2**_BITS_OF_CELL - 1
    variance = xp.zeros_like(p)
    for cell in range(_CELLS):
        digit = (code >> (_BITS_OF_CELL * cell)) & largest_digit
        variance += (largest_digit * 4.0**cell / _LARGEST_CODE) ** 2 * digit / largest_digit
    return xp.sqrt(variance)
