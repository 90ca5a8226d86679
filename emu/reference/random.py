"""Counter-based random numbers: every value is a pure function of seed, array or site, stream and its place.

Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.contract.schema import Stream as Stream

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10
_VALUES_PER_BLOCK = 4
# Blocks computed at once: bounds the memory of the intermediate words, and keeps them in the processor's cache.
_BLOCKS_AT_ONCE = 1 << 15

_Words = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]


def philox4x32(c0: ArrayLike, c1: ArrayLike, c2: ArrayLike, c3: ArrayLike, k0: ArrayLike, k1: ArrayLike) -> _Words:
    """Return the four words of Philox4x32-10 for counters and keys that broadcast against each other.

    Counter and key words are integers from 0 to 2^32 - 1. Every result has the broadcast shape, uint32.
    """
    words = (np.asarray(word, dtype=np.uint64) for word in (c0, c1, c2, c3, k0, k1))
    a, b, c, d, key0, key1 = np.broadcast_arrays(*words)
    for round_index in range(_ROUNDS):
        if round_index > 0:
            key0, key1 = ((key + step) & _MASK for key, step in zip((key0, key1), _KEY_STEPS, strict=True))
        product_a = _MULTIPLIERS[0] * a
        product_c = _MULTIPLIERS[1] * c
        a, b, c, d = (
            (product_c >> _HALF) ^ b ^ key0,
            product_c & _MASK,
            (product_a >> _HALF) ^ d ^ key1,
            product_a & _MASK,
        )
    return a.astype(np.uint32), b.astype(np.uint32), c.astype(np.uint32), d.astype(np.uint32)


def uniform(word: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return ((x >> 8) + 1) * 2^-24 for each word x: 2^24 values in (0, 1]."""
    return ((word >> np.uint32(8)).astype(np.float64) + 1.0) * 2.0**-24


def fine_uniform(word: NDArray[np.uint32], second: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return (x >> 8) * 2^-24 + ((y >> 3) + 1) * 2^-53 for words x and second words y: 2^53 values in (0, 1]."""
    rest = ((second >> np.uint32(3)).astype(np.float64) + 1.0) * 2.0**-53
    return (word >> np.uint32(8)).astype(np.float64) * 2.0**-24 + rest


def stored_normals(
    seed: int,
    cycle_seed: int,
    array: int,
    stream: int,
    rows: int,
    columns: int,
    *,
    weight_slice: int = 0,
    first_row: int = 0,
) -> NDArray[np.float64]:
    """Return the standard normals of rows of a stored array from `first_row` on, float64 [rows, columns].

    `cycle_seed` is 0 for what is fixed with the chip and `read_seed` for what is redrawn at every programming.
    """
    return _stored(_normals, seed, cycle_seed, array, stream, rows, columns, weight_slice, first_row)


def stored_uniforms(
    seed: int,
    cycle_seed: int,
    array: int,
    stream: int,
    rows: int,
    columns: int,
    *,
    weight_slice: int = 0,
    first_row: int = 0,
) -> NDArray[np.float64]:
    """Return uniforms in (0, 1] of a stored array, float64 [rows, columns]; see `stored_normals`."""
    return _stored(_uniforms, seed, cycle_seed, array, stream, rows, columns, weight_slice, first_row)


def stored_words(
    seed: int,
    cycle_seed: int,
    array: int,
    stream: int,
    rows: int,
    columns: int,
    *,
    weight_slice: int = 0,
    first_row: int = 0,
) -> NDArray[np.uint32]:
    """Return the words behind the uniforms of a stored array, uint32 [rows, columns]; see `stored_normals`."""
    values = _stored(_words, seed, cycle_seed, array, stream, rows, columns, weight_slice, first_row)
    return values.astype(np.uint32)


def run_time_normals(
    seed: int,
    read_seed: int,
    site: int,
    stream: int,
    sample: NDArray[np.int64],
    matrix: NDArray[np.int64],
    position: NDArray[np.int64],
    *,
    part: slice,
    tile: int = 0,
    reading: int = 0,
    uniform: bool = False,
) -> NDArray[np.float64]:
    """Return standard normals (or uniforms in (0, 1]) of run-time noise, float64 [rows, columns of `part`].

    `sample`, `matrix` and `position` (int64 [rows]) say where every row lies: in which sample of the data set, in
    which matrix of that sample, and where on its sequence. `part` are columns of the array, `tile` is its row tile and
    `reading` the index of the reading (`pass` of the page).
    """
    first_block, last_block = part.start // _VALUES_PER_BLOCK, _blocks(part.stop)
    c3 = (int(stream) + (tile << 8) + (reading << 24)) & 0xFFFFFFFF
    samples, own = np.unique(sample, return_inverse=True)
    k0, k1, _, _ = philox4x32(samples.astype(np.uint64) & _MASK, 0, 0, Stream.SAMPLE_KEY, seed, read_seed)
    values = np.empty((len(sample), max(0, part.stop - part.start)))
    rows_at_once = max(1, _BLOCKS_AT_ONCE // max(1, last_block - first_block))
    for start in range(0, len(sample), rows_at_once):
        now = slice(start, start + rows_at_once)
        row = own.reshape(-1)[now, None]
        block = np.arange(first_block, last_block, dtype=np.uint64)[None]
        c1, c2 = position[now, None].astype(np.uint64) & _MASK, (matrix[now, None] << 16) + site
        words = philox4x32(block, c1, c2.astype(np.uint64) & _MASK, c3, k0[row], k1[row])
        skipped = part.start - first_block * _VALUES_PER_BLOCK
        values[now] = (_uniforms if uniform else _normals)(*words)[:, skipped : skipped + values.shape[1]]
    return values


def adc_normals(seed: int, site: int, stream: int, tiles: slice, adcs: slice, weight_slice: int) -> NDArray[np.float64]:
    """Return standard normals of the converters of a written operand, float64 [row tiles, ADCs]."""
    tile = np.arange(tiles.start, tiles.stop, dtype=np.uint64)[:, None]
    block = np.arange(adcs.start // _VALUES_PER_BLOCK, _blocks(adcs.stop), dtype=np.uint64)[None]
    words = philox4x32(block, tile, site, int(stream) + (weight_slice << 8), seed, 0)
    skipped = adcs.start % _VALUES_PER_BLOCK
    return _normals(*words)[:, skipped : skipped + adcs.stop - adcs.start]


def _stored(
    values_of: Callable[..., NDArray[Any]],
    seed: int,
    cycle_seed: int,
    array: int,
    stream: int,
    rows: int,
    columns: int,
    weight_slice: int,
    first_row: int,
) -> NDArray[np.float64]:
    blocks_per_row = _blocks(columns)
    values = np.empty((rows, columns))
    rows_at_once = max(1, _BLOCKS_AT_ONCE // max(1, blocks_per_row))
    for start in range(0, rows, rows_at_once):
        row = np.arange(first_row + start, first_row + min(rows, start + rows_at_once), dtype=np.uint64)
        block = _block_indices(row, blocks_per_row, 0, blocks_per_row)
        words = philox4x32(block & _MASK, block >> _HALF, array, int(stream) + (weight_slice << 8), seed, cycle_seed)
        values[start : start + rows_at_once] = values_of(*words)[:, :columns]
    return values


def _blocks(columns: int) -> int:
    return -(-columns // _VALUES_PER_BLOCK)


def _block_indices(row: NDArray[np.uint64], blocks_per_row: int, first: int, last: int) -> NDArray[np.uint64]:
    """Return the blocks `first` to `last` of each row, uint64 [rows, last - first]."""
    first_of_row: NDArray[np.uint64] = row[:, None] * np.uint64(blocks_per_row)
    return np.add(first_of_row, np.arange(first, last, dtype=np.uint64), dtype=np.uint64)


def _uniforms(*words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return the four uniforms of each block side by side, float64 [rows, 4 * blocks]."""
    return uniform(_words(*words))


def _words(*words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the four words of each block side by side, uint32 [rows, 4 * blocks]."""
    return np.stack(words, axis=-1).reshape(words[0].shape[0], -1)


def _normals(*words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return the four normals of each block side by side, float64 [rows, 4 * blocks]: Box-Muller on two pairs."""
    x0, x1, x2, x3 = words
    radius_01, angle_01 = np.sqrt(-2 * np.log(uniform(x0))), 2 * np.pi * uniform(x1)
    radius_23, angle_23 = np.sqrt(-2 * np.log(uniform(x2))), 2 * np.pi * uniform(x3)
    normals = (
        radius_01 * np.cos(angle_01),
        radius_01 * np.sin(angle_01),
        radius_23 * np.cos(angle_23),
        radius_23 * np.sin(angle_23),
    )
    return np.stack(normals, axis=-1).reshape(x0.shape[0], -1)
