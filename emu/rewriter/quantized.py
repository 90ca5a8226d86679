"""Weights that a model keeps as integer codes: a float tensor to the graph; codes, scale, zero point to an array."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from emu.rewriter.dataflow import sizes_of

# Element types of codes: how many bits they have, and whether they are unsigned.
CODE_TYPES = {
    ir.DataType[name]: (bits, name.startswith("U"))
    for bits in (2, 4, 8, 16)
    for name in (f"INT{bits}", f"UINT{bits}")
    if name in ir.DataType.__members__  # an older onnx-ir knows no codes of 2 bits
}


class QuantizedTensor(ir.LazyTensor):
    """A float tensor with the values (code - zero_point) * scale, computed when they are asked for.

    Attributes:
        bits: bits of one code: 2, 4, 8 or 16.
        codes: gives the codes as int8 (int16 for 16 bits), two's complement: unsigned codes u as u - 2^(bits - 1).
        scale: float32, of the tensor's rank; along each axis one entry per block of `blocks`, or a single one.
        zero_point: as `scale`; for unsigned codes less by 2^(bits - 1).
        blocks: how many elements along each axis share an entry of `scale`.

    """

    def __init__(
        self,
        codes: Callable[[], np.ndarray],
        sizes: Sequence[int],
        scale: np.ndarray,
        zero_point: np.ndarray,
        blocks: Sequence[int],
        bits: int,
        dtype: ir.DataType = ir.DataType.FLOAT,
        name: str | None = None,
    ) -> None:
        """Shares the arrays that it is given."""
        super().__init__(self._dequantized, dtype, ir.Shape(sizes), name=name)
        self.codes = codes
        self.sizes = tuple(sizes)
        self.scale, self.zero_point = np.broadcast_arrays(scale, zero_point)
        self.blocks = tuple(blocks)
        self.bits = bits

    @property
    def shares_scale(self) -> str:
        """What shares one scale, for matrices [.., K, N]: `tensor`, `column` or `block` (some rows of a column)."""
        return "tensor" if self.scale.size == 1 else "column" if self.scale.shape[-2] == 1 else "block"

    def cast(self, dtype: ir.DataType) -> "QuantizedTensor":
        """The same codes, seen as numbers of another float type."""
        return self._with(self.codes, self.sizes, self.scale, self.zero_point, self.blocks, dtype)

    def scaled(self, factor: float | np.ndarray) -> "QuantizedTensor":
        """The same codes, with every value `factor` times as large; an array of factors broadcasts to the tensor."""
        return self._refined(np.asarray(factor, dtype=np.float32), lambda scale, zero, each: (scale * each, zero))

    def shifted(self, offset: np.ndarray) -> "QuantizedTensor":
        """The same codes, with `offset` added to their zero points; it broadcasts to the tensor."""
        return self._refined(np.asarray(offset, dtype=np.float32), lambda scale, zero, each: (scale, zero + each))

    def _refined(
        self, array: np.ndarray, change: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    ) -> "QuantizedTensor":
        """Scales and zero points changed by an array: where it varies, every element gets one of its own."""
        array = array.reshape((1,) * (len(self.sizes) - array.ndim) + array.shape)
        scale, zero_point, blocks = self.scale, self.zero_point, list(self.blocks)
        for axis, size in enumerate(array.shape):
            if size > 1:
                scale, zero_point, blocks[axis] = self._spread(scale, axis), self._spread(zero_point, axis), 1
        scale, zero_point = change(scale, zero_point, array)
        return self._with(self.codes, self.sizes, scale, zero_point, blocks, self.dtype)

    def transposed(self, order: Sequence[int]) -> "QuantizedTensor":
        """The axes in another order."""
        return self._with(
            lambda: self.codes().transpose(order),
            [self.sizes[axis] for axis in order],
            self.scale.transpose(order),
            self.zero_point.transpose(order),
            [self.blocks[axis] for axis in order],
            self.dtype,
        )

    def reshaped(self, sizes: Sequence[int]) -> "QuantizedTensor":
        """Another shape of the same elements; each gets a scale of its own where no whole blocks would share one."""
        scale, zero_point = self.scale, self.zero_point
        shape, blocks = _reshaped_scales(self.sizes, self.scale.shape, self.blocks, sizes)
        if shape is None:
            scale, zero_point = (np.broadcast_to(each, self.sizes) for each in self._spread_all())
            shape, blocks = list(sizes), [1] * len(sizes)
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        return self._with(lambda: self.codes().reshape(sizes), sizes, scale, zero_point, blocks, self.dtype)

    def matrix(self, transposed: bool, stack: int = 1) -> "QuantizedTensor":
        """The matrix [K, N] in an array, or a stack of them [stack, K, N].

        Args:
            transposed: whether it is the transpose of the tensor seen as [first axis, all others].
            stack: number of parts of equal size that the first axis of such a tensor has, each an array of its own.

        """
        if not transposed:
            return self
        first, others = self.sizes[0], math.prod(self.sizes[1:])
        if stack == 1:
            return self.reshaped((first, others)).transposed((1, 0))
        flat = self.reshaped((first, others))
        scale, zero_point = (
            each.reshape(stack, -1, each.shape[1]) if len(each) > 1 else each[None]
            for each in (flat.scale, flat.zero_point)
        )
        blocks = [1 if flat.scale.shape[0] > 1 else stack, flat.blocks[0], flat.blocks[1]]
        blocks[1] = 1 if flat.scale.shape[0] > 1 else first // stack
        sizes = (stack, first // stack, others)
        parts = flat._with(lambda: flat.codes().reshape(sizes), sizes, scale, zero_point, blocks, flat.dtype)
        return parts.transposed((0, 2, 1))

    def parameters(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Scale and zero point of a matrix [K, N] as an array takes them, and how many rows share one (0 for all).

        Both are float32 [], [N] or [ceil(K / rows), N]; of a stack [stack, K, N]: [], [stack, N] or
        [stack, ceil(K / rows), N].
        """
        if self.shares_scale == "tensor":
            return self.scale.reshape(()), self.zero_point.reshape(()), 0
        scale, zero_point = self.scale, self.zero_point
        for axis in (*range(len(self.sizes) - 2), len(self.sizes) - 1):
            scale, zero_point = self._spread(scale, axis), self._spread(zero_point, axis)
        shape = (*self.sizes[:-2], scale.shape[-2], self.sizes[-1])
        scale, zero_point = np.broadcast_to(scale, shape), np.broadcast_to(zero_point, shape)
        if self.shares_scale == "column":
            return scale[..., 0, :], zero_point[..., 0, :], 0
        return scale, zero_point, self.blocks[-2]

    def _with(
        self,
        codes: Callable[[], np.ndarray],
        sizes: Sequence[int],
        scale: np.ndarray,
        zero_point: np.ndarray,
        blocks: Sequence[int],
        dtype: ir.DataType,
    ) -> "QuantizedTensor":
        return QuantizedTensor(codes, sizes, scale, zero_point, blocks, self.bits, dtype, self.name)

    def _dequantized(self) -> ir.TensorProtocol:
        scale, zero_point = self._spread_all()
        values = (self.codes().astype(np.float32) - zero_point) * scale
        return ir.tensor(np.ascontiguousarray(values).astype(self.dtype.numpy(), copy=False), name=self.name)

    def _spread_all(self) -> tuple[np.ndarray, np.ndarray]:
        scale, zero_point = self.scale, self.zero_point
        for axis in range(len(self.sizes)):
            scale, zero_point = self._spread(scale, axis), self._spread(zero_point, axis)
        return scale, zero_point

    def _spread(self, array: np.ndarray, axis: int) -> np.ndarray:
        """One entry per element along an axis, or a single one."""
        block = self.blocks[axis]
        if array.shape[axis] == 1 or block == 1:
            return array
        whole = np.repeat(array, block, axis=axis)
        return whole[(slice(None),) * axis + (slice(self.sizes[axis]),)]


def quantized_tensor(
    tensor: ir.TensorProtocol,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    axis: int,
    block: int,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> QuantizedTensor:
    """What DequantizeLinear makes of constants.

    Args:
        tensor: codes of one of `CODE_TYPES`.
        scale: one number, a number for each index of `axis`, or of the rank of `tensor` with a number for each block.
        zero_point: as `scale`, or one number; None for 0.
        axis: along which scales differ, counted from the end if negative.
        block: elements of `axis` that share a scale, 0 for scales that are not blocked.
        dtype: of the result.

    Raises:
        ValueError: scale or zero point do not fit the codes.

    """
    bits, unsigned = CODE_TYPES[ir.DataType(tensor.dtype)]
    sizes = sizes_of(tensor)
    shift = 1 << (bits - 1) if unsigned else 0
    axis %= max(1, len(sizes))

    kind = np.int16 if bits == 16 else np.int8

    def codes() -> np.ndarray:
        return (tensor.numpy().astype(np.int32) - shift).astype(kind)

    def laid_out(array: np.ndarray) -> np.ndarray:
        array = np.asarray(array).astype(np.float32)
        if array.size == 1:
            return array.reshape((1,) * len(sizes))
        return array if block else array.reshape([-1 if each == axis else 1 for each in range(len(sizes))])

    zeros = laid_out(np.zeros(()) if zero_point is None else zero_point) - np.float32(shift)
    blocks = [max(1, block) if each == axis else size for each, size in enumerate(sizes)]
    scales, zeros = np.broadcast_arrays(laid_out(scale), zeros)
    wanted = [(1, -(-size // max(1, share)), size) for size, share in zip(sizes, blocks, strict=True)]
    if any(one not in allowed for one, allowed in zip(scales.shape, wanted, strict=True)):
        raise ValueError("the scale does not fit the codes")
    blocks = [1 if one == size else share for one, size, share in zip(scales.shape, sizes, blocks, strict=True)]
    return QuantizedTensor(codes, sizes, scales, zeros, blocks, bits, dtype)


def picked(tensors: Sequence[QuantizedTensor], pick: Callable[[Sequence[np.ndarray]], np.ndarray]) -> QuantizedTensor:
    """What `pick` takes from arrays of the shapes of `tensors`, with the scale of each code that it takes.

    The tensors have codes of the same bits. Along an axis where no scale differs, all codes share one.
    """
    spread = [[np.broadcast_to(part, each.sizes) for part in each._spread_all()] for each in tensors]
    scale, zero_point = pick([part for part, _ in spread]), pick([part for _, part in spread])
    sizes = scale.shape
    blocks = [1] * len(sizes)
    for axis, size in enumerate(sizes):
        first = scale.take([0], axis=axis), zero_point.take([0], axis=axis)
        if size > 1 and (scale == first[0]).all() and (zero_point == first[1]).all():
            (scale, zero_point), blocks[axis] = first, size
    bits, dtype, name = tensors[0].bits, tensors[0].dtype, tensors[0].name

    def codes() -> np.ndarray:
        return pick([each.codes() for each in tensors])

    return QuantizedTensor(codes, sizes, scale, zero_point, blocks, bits, dtype, name)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 2, 4 or 8 bits from bytes, along the last axis; the low bits of a byte come first."""
    parts = np.stack([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], axis=-1)
    return parts.reshape(*packed.shape[:-1], -1)


def _reshaped_scales(
    old: Sequence[int], scales: Sequence[int], blocks: Sequence[int], new: Sequence[int]
) -> tuple[list[int] | None, list[int]]:
    """Shape of the scales, and blocks, after a reshape from `old` to `new` sizes; None where blocks would be cut.

    They are not if there is a single scale, or if every axis with several stays whole and alone.
    """
    shape, shared = [1] * len(new), list(new)
    for axis, count in enumerate(scales):
        if count == 1:
            continue
        before = math.prod(old[:axis])
        place = next((i for i, size in enumerate(new) if size == old[axis] and math.prod(new[:i]) == before), None)
        if place is None:
            return None, shared
        shape[place], shared[place] = count, blocks[axis]
    return shape, shared
