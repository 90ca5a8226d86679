"""Tells which sites hold the same weight: they share one physical array, and its disturbances."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.dataflow import sizes_of, tensor_of
from emu.rewriter.find import Product
from emu.rewriter.quantized import QuantizedTensor

Share = Literal["by-content", "by-name", "never"]
_SAMPLED = 64  # rows, and columns of each


@dataclass(frozen=True, eq=False)
class Held:
    """What the array of one site holds.

    Attributes:
        value: the constant that it comes from.
        tensor: its content; None for an operand that is written anew for every sample.
        transposed: whether the array holds the transpose of the tensor, seen as a matrix [first axis, all others].
        factor: what the content is multiplied by.
        stack: number of parts of equal size that the first axis has where it is transposed, each an array of its own.

    """

    value: ir.Value
    tensor: ir.TensorProtocol | None
    transposed: bool = False
    factor: float = 1.0
    stack: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the content as it lies in the array."""
        assert self.tensor is not None, "only stored content is compared"
        sizes = sizes_of(self.tensor)
        if not self.transposed:
            return sizes
        matrix = math.prod(sizes[1:]), sizes[0] // self.stack
        return matrix if self.stack == 1 else (self.stack, *matrix)

    @property
    def matrix(self) -> np.ndarray:
        """The content as it lies in the array, without the factor. A view; not kept, for it may be read from a file."""
        assert self.tensor is not None, "only stored content is compared"
        array = self.tensor.numpy()
        if not self.transposed:
            return array
        if self.stack == 1:
            return array.reshape(len(array), -1).T
        return array.reshape(self.stack, len(array) // self.stack, -1).swapaxes(1, 2)

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for equal content, and nearly always different for different content: a few rows stand for all."""
        matrix = self.matrix
        rows = matrix[:: max(1, len(matrix) // _SAMPLED)]
        sample = np.ascontiguousarray(rows.reshape(len(rows), -1)[:, :_SAMPLED])
        # Integer codes and floats of equal value are different things to store.
        return isinstance(self.tensor, QuantizedTensor), self.shape, self.factor, sample.tobytes()

    def is_constant(self) -> bool:
        """Whether all values are the same: zeros and ones that no training has touched say nothing about sharing."""
        matrix = self.matrix
        return bool((matrix[0] == matrix.flat[0]).all() and (matrix == matrix.flat[0]).all())

    def equals(self, other: "Held") -> bool:
        """Whether both arrays hold the same values."""
        return self.key == other.key and np.array_equal(self.matrix, other.matrix)


def held_by(product: Product) -> Held:
    """What the array of a product holds: the weight with transposes and factors of the node worked in."""
    node = product.node
    if not product.stored:
        return Held(product.matrix, None)
    tensor = tensor_of(product.matrix)
    if node.op_type == "Gemm":
        return Held(
            product.matrix,
            tensor,
            bool(node.attributes.get_int("transB", 0)),
            node.attributes.get_float("alpha", 1.0),
        )
    if product.convolution is not None:
        return Held(product.matrix, tensor, transposed=True, stack=product.convolution.groups)
    return Held(product.matrix, tensor)


def arrays_of(sites: Sequence[Held], share: Share, devices: Sequence[str] | None = None) -> list[int]:
    """The array of every site: the lowest index of the sites that it shares its array with, else its own.

    Args:
        sites: what each site holds, by index.
        share: `by-content` (equal shape and values), `by-name` (the same initializer, also through Identity nodes) or
            `never`. The content of an initializer counts as it lies in the array: a transpose is not the same.
        devices: name of each site's device, if there are several: arrays of different devices are different arrays.

    """
    if share == "never":
        return list(range(len(sites)))
    arrays: list[int] = []
    named: dict[tuple[object, ...], int] = {}
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, held in enumerate(sites):
        array = index
        if held.tensor is not None:
            device = devices[index] if devices else ""
            name = device, held.value, held.transposed, held.factor, held.stack
            array = named.setdefault(name, index)
            if share == "by-content" and array == index and held.tensor.size and not held.is_constant():
                before = alike.setdefault((device, *held.key), [])
                array = next((other for other in before if held.equals(sites[other])), index)
                if array == index:
                    before.append(index)
                named[name] = array
        arrays.append(array)
    return arrays


def transposes_of(index: int, sites: Sequence[Held]) -> list[int]:
    """Sites that hold the transpose of what site `index` holds: tied weights in different layouts."""
    held = sites[index]
    if held.tensor is None or len(held.shape) != 2 or not held.tensor.size or held.is_constant():
        return []
    found = []
    for other, candidate in enumerate(sites):
        if other == index or candidate.tensor is None or candidate.factor != held.factor:
            continue
        if candidate.shape != held.shape[::-1]:
            continue
        if candidate.value is held.value or np.array_equal(candidate.matrix, held.matrix.T):
            found.append(other)
    return found


def check_share(share: str) -> None:
    """Raises `InputError` for an unknown way to share."""
    if share not in get_args(Share):
        raise InputError(f"share is '{share}': expected {', '.join(get_args(Share))}.")
