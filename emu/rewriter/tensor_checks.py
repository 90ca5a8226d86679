"""Refuses tensors that do not hold as many numbers as their shape says, wherever they stand in a model."""

import math
from collections.abc import Iterator

import onnx

from emu.errors import InputError

# Where a tensor keeps its numbers if not in raw_data, and how many of them one entry holds (a part of one: complex).
_FIELDS = {
    **dict.fromkeys(["FLOAT"], ("float_data", 1.0)),
    **dict.fromkeys(["DOUBLE"], ("double_data", 1.0)),
    **dict.fromkeys(["COMPLEX64"], ("float_data", 0.5)),
    **dict.fromkeys(["COMPLEX128"], ("double_data", 0.5)),
    **dict.fromkeys(["INT64"], ("int64_data", 1.0)),
    **dict.fromkeys(["UINT32", "UINT64"], ("uint64_data", 1.0)),
    **dict.fromkeys(["STRING"], ("string_data", 1.0)),
    **dict.fromkeys(["INT4", "UINT4", "FLOAT4E2M1"], ("int32_data", 2.0)),
    **dict.fromkeys(["INT2", "UINT2"], ("int32_data", 4.0)),
}


def check_tensors(proto: onnx.ModelProto, name: str) -> None:
    """Looks at every tensor of a model whose data lie in the model itself.

    Args:
        proto: the model.
        name: how to call it in an error.

    Raises:
        InputError: a negative dimension, an element type that ONNX does not have, or more or fewer numbers than the
            shape asks for.

    """
    for tensor in (tensor for graph in (proto.graph, *proto.functions) for tensor in _tensors(graph)):
        if any(size < 0 for size in tensor.dims):
            raise InputError(
                f"{name} is not a valid ONNX model: tensor '{tensor.name}' has the shape {list(tensor.dims)}, "
                "with a negative size; export it again."
            )
        if tensor.data_type not in onnx.TensorProto.DataType.values() or not tensor.data_type:
            raise InputError(
                f"{name} is not a valid ONNX model: tensor '{tensor.name}' is of the element type {tensor.data_type}, "
                "which ONNX does not have; export it again."
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.HasField("raw_data"):
            continue  # bytes are counted where the tensor is read
        field, per_entry = _FIELDS.get(onnx.TensorProto.DataType.Name(tensor.data_type), ("int32_data", 1.0))
        needed = math.ceil(math.prod(tensor.dims) / per_entry)
        found = len(getattr(tensor, field))
        if found != needed:
            raise InputError(
                f"{name} is not a valid ONNX model: tensor '{tensor.name}' holds {found} numbers, its shape "
                f"{list(tensor.dims)} needs {needed}; export it again."
            )


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)
