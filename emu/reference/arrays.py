"""What the laws compute with: NumPy in the oracle, PyTorch in training, on any device.

A law names only operations that both libraries have; what they call differently is here.
"""

import sys
from typing import Any, Protocol

import numpy as np

Array = Any
"""An array of NumPy or a tensor of PyTorch: all arrays of one computation are of the same library and device."""


class Normals(Protocol):
    """A source of run-time noise for rows whose places it knows."""

    def __call__(self, stream: int, *, part: slice, tile: int = 0, reading: int = 0, uniform: bool = False) -> Array:
        """Return standard normals (or uniforms in (0, 1]) of one reading, [..., rows, columns of `part`]; as for
        `random.run_time_normals`.
        """


def namespace(array: Array) -> Any:
    """Return the library that an array is of: `numpy`, or `torch` where something has imported it."""
    return np if isinstance(array, np.ndarray | np.generic) else sys.modules["torch"]


def as_type(array: Array, like: Array) -> Array:
    """Return an array in the type of another one."""
    return namespace(array).asarray(array, dtype=like.dtype)


def smallest(array: Array, rank: int) -> Array:
    """Return the value of that rank, from 1 for the smallest, of each column of [..., count, columns]."""
    if namespace(array) is np:
        return np.partition(array, rank - 1, axis=-2)[..., rank - 1, :]
    return array.kthvalue(rank, -2).values


def surely_none(mask: Array) -> bool:
    """Return whether no value of a mask is set; False for a tensor without values (PyTorch's `meta` device)."""
    return not getattr(mask, "is_meta", False) and not bool(mask.any())
