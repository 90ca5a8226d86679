"""Convolutions as products: the rows that a window cuts out of images, one for each place where it fits."""

import math

import numpy as np
from numpy.typing import NDArray

from emu.contract.structure import Structure


def rows_of(
    x: NDArray[np.float32], w_shape: tuple[int, ...], structure: Structure
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Return the rows that meet W [G, K, N], float32 [B, G, P, K], and how many places there are along each axis.

    x: float32 [B, G C, d1, ..]. K counts channels of the group, then places in the window; P, the product of the
    numbers of places, is in row-major order.
    Raises InputError where X, W and the window do not fit each other.
    """
    window = structure.window
    if x.ndim != 2 + len(window):
        raise structure.error(
            f"input 'X' has rank {x.ndim}, expected {2 + len(window)} because 'window' has {len(window)} axes."
        )
    groups, depth, _ = w_shape
    places = math.prod(axis.size for axis in window)
    if depth % places or x.shape[1] * places != groups * depth:
        raise structure.error(
            f"input 'X' has {x.shape[1]} channels, expected {groups} groups of {depth} / {places}, the number of rows "
            "of W over that of the places in the 'window'."
        )
    positions = tuple(axis.positions(size) for axis, size in zip(window, x.shape[2:], strict=True))
    if min(positions) < 1:
        raise structure.error(f"attribute 'window' does not fit into X {list(x.shape)} with its padding.")
    padded = np.pad(x, [(0, 0), (0, 0), *((axis.before, axis.after) for axis in window)])
    batch, channels = x.shape[0], depth // places
    rows = np.empty((batch, groups, *positions, channels, places), dtype=np.float32)
    for place, offsets in enumerate(np.ndindex(*(axis.size for axis in window))):
        met = tuple(
            slice(offset * axis.dilation, offset * axis.dilation + (count - 1) * axis.stride + 1, axis.stride)
            for offset, axis, count in zip(offsets, window, positions, strict=True)
        )
        values = padded[(slice(None), slice(None), *met)].reshape(batch, groups, channels, *positions)
        rows[..., place] = np.moveaxis(values, 2, -1)
    return rows.reshape(batch, groups, math.prod(positions), depth), positions
