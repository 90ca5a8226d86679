"""What is written: dynamic operands, programmed anew for every sample.

Sources: the lognormal and Gaussian variants of stored values; write noise and the transform (shift and clip) of the
ClipFormer paper.
"""

from emu.contract.schema import TRANSFORM
from emu.contract.structure import Controls, Structure
from emu.reference.arrays import Array, Normals, as_type, namespace
from emu.reference.mapping import changes_targets, lowest_conductance, writes_conductances
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
    pair = [_target(sign * w, theta, structure, controls) for sign in (1, -1)]
    if not writes_conductances(structure):
        of_pair = (pair[0] - pair[1]) / (1 - lowest_conductance(controls))
        number = of_pair if changes_targets(structure, controls) else as_type(w, theta)
        return [disturbed_number(structure.write, number, theta, sigma**2)]
    negative = sigma * normals(Stream.WRITE_NEGATIVE, part=columns)
    if structure.write == "lognormal_g":
        return [g * xp.exp(noise) for g, noise in zip(pair, (theta, negative), strict=True)]
    return [_clipformer(g, noise, structure, controls) for g, noise in zip(pair, (theta, negative), strict=True)]


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


def _clipformer(g: Array, theta: Array, structure: Structure, controls: Controls) -> Array:
    """Return the conductances of one device, written with noise that grows with them."""
    xp, r, exponent = namespace(g), lowest_conductance(controls), controls.numbers.get("write.exponent", 0.5)
    p = xp.clip((g - r) / (1 - r), 0, None)
    spread = p**exponent if structure.write_cells == "composite" else _spread_of_cells(p, exponent)
    return xp.clip(r + (1 - r) * (p + controls.numbers["write.gamma"] * theta * spread), r, 1.0)


def _spread_of_cells(p: Array, exponent: float) -> Array:
    """Return the amplitude of the noise of a code in four cells of two bits, each with its own noise."""
    xp = namespace(p)
    code = xp.asarray(xp.round(_LARGEST_CODE * p), dtype=xp.int64)
    largest_digit = 2**_BITS_OF_CELL - 1
    variance = xp.zeros_like(p)
    for cell in range(_CELLS):
        digit = (code >> (_BITS_OF_CELL * cell)) & largest_digit
        variance += (largest_digit * 4.0**cell / _LARGEST_CODE) ** 2 * (digit / largest_digit) ** (2 * exponent)
    return xp.sqrt(variance)
