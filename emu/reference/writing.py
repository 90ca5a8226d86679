"""What is written: dynamic operands, programmed anew for every sample.

Sources: the lognormal and Gaussian variants of stored values; write noise and conductance clipping of the ClipFormer
paper.
"""

import numpy as np
from numpy.typing import NDArray

from emu.contract.structure import Controls, Structure
from emu.reference.mapping import lowest_conductance
from emu.reference.programming import disturbed_number
from emu.reference.random import Stream, run_time_normals

_CELLS = 4
_BITS_OF_CELL = 2
_LARGEST_CODE = 255


def written(
    w: NDArray[np.float32], matrix: int, sample: int, structure: Structure, controls: Controls
) -> NDArray[np.float64]:
    """Return v [K, N], float64, of one matrix of a dynamic operand in units of its scale, w.

    `matrix` is its index within its sample, `sample` the index of that sample in the data set.
    """
    if structure.write == "none":
        return w.astype(np.float64)
    k, n = w.shape

    def normals(stream: Stream) -> NDArray[np.float64]:
        return run_time_normals(
            controls.seed,
            controls.read_seed,
            structure.site,
            stream,
            np.full(k, sample, dtype=np.int64),
            matrix * k + np.arange(k, dtype=np.int64),
            n,
        )

    sigma = controls.strength * controls.numbers["write.sigma"]
    if structure.write in ("lognormal_g", "clipformer"):
        device = _lognormal if structure.write == "lognormal_g" else _clipformer
        zero = np.float32(0)
        positive = device(np.maximum(w, zero), sigma * normals(Stream.WRITE), structure, controls)
        return positive - device(np.maximum(-w, zero), sigma * normals(Stream.WRITE_NEGATIVE), structure, controls)
    return disturbed_number(structure.write, w.astype(np.float64), sigma * normals(Stream.WRITE), sigma**2)


def _lognormal(
    q: NDArray[np.float32], theta: NDArray[np.float64], structure: Structure, controls: Controls
) -> NDArray[np.float64]:
    r = lowest_conductance(controls)
    conductance: NDArray[np.float64] = (r + (1 - r) * q.astype(np.float64)) * np.exp(theta)
    return conductance


def _clipformer(
    q: NDArray[np.float32], theta: NDArray[np.float64], structure: Structure, controls: Controls
) -> NDArray[np.float64]:
    """Return the conductances of one device: moved towards zero, limited, written with noise that grows with them."""
    numbers, r = controls.numbers, lowest_conductance(controls)
    if numbers["write.bits"]:
        most = np.float32(2 ** numbers["write.bits"] - 1)
        q = np.rint(q * most) / most
    moved = np.maximum(r + (1 - r) * q.astype(np.float64) - numbers["write.alpha"] * r, r)
    limited = np.maximum(np.minimum(moved, numbers["write.beta"]), r)
    p = (limited - r) / (1 - r)
    spread = np.sqrt(p) if structure.write_cells == "composite" else _spread_of_cells(p)
    return np.clip(r + (1 - r) * (p + numbers["write.gamma"] * theta * spread), r, 1.0)


def _spread_of_cells(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the amplitude of the noise of a code in four cells of two bits, each with its own noise."""
    code = np.rint(_LARGEST_CODE * p).astype(np.int64)
    largest_digit = 2**_BITS_OF_CELL - 1
    variance = np.zeros_like(p)
    for cell in range(_CELLS):
        digit = (code >> (_BITS_OF_CELL * cell)) & largest_digit
        variance += (largest_digit * 4.0**cell / _LARGEST_CODE) ** 2 * digit / largest_digit
    return np.sqrt(variance)
