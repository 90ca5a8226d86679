"""Codes of a quantized weight, as `docs/operators.md` has them: their bytes, and the numbers that they stand for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.signedinteger[Any]]  # int8, or int16 if they have 16 bits


def stored_codes(codes: NDArray[Any], bits: int) -> NDArray[np.int8]:
    """Return codes as the operator takes them, int8 [.., K, N], or [.., K, N, 2] if they have 16 bits."""
    if bits <= 8:
        return np.ascontiguousarray(codes, dtype=np.int8)
    return np.ascontiguousarray(codes, dtype="<i2").view(np.int8).reshape(*codes.shape, 2)


def read_codes(stored: NDArray[np.int8], bits: int) -> Codes:
    """Return the codes [.., K, N] that `stored_codes` was given."""
    if bits <= 8:
        return stored
    low, high = stored[..., 0].view(np.uint8), stored[..., 1]
    return high.astype(np.int16) * np.int16(256) + low


def of_each_code(parameter: NDArray[np.float32], rows: int, block_rows: int) -> NDArray[np.float32]:
    """Return a scale or zero point in a shape that broadcasts to codes [.., K, N] with so many rows."""
    if block_rows:
        return parameter[..., np.arange(rows) // block_rows, :]
    return parameter if parameter.ndim == 0 else parameter[..., None, :]


def numbers_of(
    codes: Codes, scale: NDArray[np.float32], zero_point: NDArray[np.float32], block_rows: int
) -> NDArray[np.float32]:
    """Return the weights that codes [.., K, N] stand for, float32."""
    scale, zero_point = (of_each_code(each, codes.shape[-2], block_rows) for each in (scale, zero_point))
    return ((codes.astype(np.float32) - zero_point) * scale).astype(np.float32)
