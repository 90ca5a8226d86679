"""Where rows of an activation lie: sample, matrix and position, which run-time noise is keyed by."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import LARGEST_WORD, MOST_MATRICES
from emu.contract.structure import Controls, Structure
from emu.reference.random import run_time_normals


@dataclass(frozen=True)
class Places:
    """Of rows in any arrangement; all int64, of the same shape."""

    sample: NDArray[np.int64]
    """Index in the stream of samples."""
    of_batch: NDArray[np.int64]
    """Index in the batch."""
    matrix: NDArray[np.int64]
    """Index within the sample."""
    position: NDArray[np.int64]
    """Absolute; negative for padding."""
    within: NDArray[np.int64]
    """Index among all rows of the sample."""

    def __getitem__(self, index: Any) -> "Places":
        return self.arranged(lambda each: each[index])

    def arranged(self, change: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> "Places":
        """The same rows in another arrangement."""
        return Places(*(change(getattr(self, name)) for name in vars(self)))

    def normals(
        self,
        structure: Structure,
        controls: Controls,
        stream: int,
        *,
        part: slice,
        tile: int = 0,
        reading: int = 0,
        uniform: bool = False,
    ) -> NDArray[np.float64]:
        """Return standard normals (uniforms) of one reading of these rows, float64 [rows, columns of `part`]."""
        site, seeds = structure.site, (controls.seed, controls.read_seed)
        where = self.sample, self.matrix, self.position
        return run_time_normals(*seeds, site, stream, *where, part=part, tile=tile, reading=reading, uniform=uniform)


def places(leading: tuple[int, ...], axis: int, controls: Controls, of_stack: bool = False) -> Places:
    """Return where rows lie that have these leading dimensions.

    `axis` carries the samples: -1 for none (all is sample 0), beyond these dimensions for the first sample only.
    `of_stack`: the last dimension holds the rows of a matrix, even if it carries the samples.
    """
    index = np.indices(leading, dtype=np.int64) if leading else np.zeros((0,), np.int64)
    if axis < 0 or axis >= len(leading):
        of_batch = np.zeros(leading, np.int64)
        of_sample = list(zip(index, leading, strict=True))
        along = len(leading) - 1
        first = 0 if axis < 0 else controls.first_sample
    else:
        first, length = controls.first_sample, leading[axis]
        f = length // samples_along(length, controls) if length > 0 else 1
        of_batch = index[axis] // f
        of_sample = [(index[i] % f, f) if i == axis else (index[i], size) for i, size in enumerate(leading)]
        last = axis == len(leading) - 1
        along = axis if last and (axis == 0 or of_stack) else len(leading) - 1 - last
        if last and along < axis:  # all dimensions before that of the samples together
            of_sample = [(_flat(of_sample[:axis], leading), math.prod(leading[:axis])), of_sample[axis]]
            along = 0
    matrix = _flat([each for i, each in enumerate(of_sample) if i != along], leading)
    position = of_sample[along][0] if of_sample else np.zeros(leading, np.int64)
    starts = controls.positions
    if len(starts):
        position = position + starts[np.zeros_like(of_batch) if len(starts) == 1 else of_batch]
    within = _flat(of_sample, leading)
    return Places(first + of_batch, of_batch, matrix, position, within)


def rows_of_operand(matrices: Places, first: int, count: int) -> Places:
    """Return where the rows of matrices of B lie, [..., count], that are written from row `first` of the array on."""
    shape = (*np.shape(matrices.sample), count)
    rows = np.broadcast_to(first + np.arange(count), shape)
    sample, of_batch, matrix = (
        np.broadcast_to(np.asarray(each)[..., None], shape)
        for each in (matrices.sample, matrices.of_batch, matrices.within)
    )
    return Places(sample, of_batch, matrix, position=rows, within=rows)


def keys_that_count(
    shape: tuple[int, ...], of_batch: int, structure: Structure, controls: Controls
) -> tuple[slice, slice, int]:
    """Return rows and columns of the matrices of B of a sample that are no padding, and the first key's position."""
    every = slice(0, shape[-2]), slice(0, shape[-1])
    if structure.key_axis == "none" or not len(controls.keys):
        return *every, 0
    count = shape[-2] if structure.key_axis == "rows" else shape[-1]
    last, counted = controls.keys[0 if len(controls.keys) == 1 else of_batch].tolist()
    begin = min(count, max(0, count - last))
    keys = slice(begin, max(begin, min(count, counted - last + count)))
    first = last - count + begin
    return (keys, every[1], first) if structure.key_axis == "rows" else (every[0], keys, first)


def _flat(indices: list[tuple[NDArray[np.int64], int]], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the row-major index of some dimensions, given index and size of each."""
    flat = np.zeros(shape, np.int64)
    for index, size in indices:
        flat = flat * size + index
    return flat


def samples_along(length: int, controls: Controls) -> int:
    """Return how many samples lie along an axis: its length where that is no multiple of the number of samples."""
    samples = length if controls.samples is None else controls.samples
    return samples if samples > 0 and length > 0 and length % samples == 0 else length


def check_places(leading: tuple[int, ...], axis: int, structure: Structure, controls: Controls, stack: bool) -> None:
    """Check that positions and matrices of every sample fit the words of a counter.

    Raises InputError where they do not, or are given for another number of samples.
    """
    samples = samples_along(leading[axis], controls) if 0 <= axis < len(leading) else 1
    for name, given in (("position", len(controls.positions)), ("keys", len(controls.keys))):
        if given > 1 and given != samples:
            raise structure.error(f"input '{name}' is for {given} samples, expected none, 1 or {samples}.")
    if math.prod(leading) == 0:
        return
    where = places(leading, axis, controls, stack)
    matrices = int(where.matrix.max()) + 1
    rows = int(where.within.max() + 1) // matrices
    for start in controls.positions.tolist():
        if not -rows < start <= LARGEST_WORD + 1 - rows:
            raise structure.error(
                f"input 'position' is {start} for the first of {rows} rows, expected positions that end between 0 and "
                "2^32 - 1."
            )
    if matrices > MOST_MATRICES:
        raise structure.error(
            f"one sample has {matrices} matrices of {rows} rows, and noise tells {MOST_MATRICES} of 2^32 apart; split "
            "the input."
        )
