"""Versions of a model: what old exporters wrote is brought to today's form, and what is written asks for little."""

import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir

from emu.errors import InputError

OLDEST_OPSET = 11  # Slice and Pad with inputs: the nodes that rewriting adds are written for this one and later
_LARGEST_DENSE = 1 << 29  # elements of a sparse tensor that is written out in full: what a file can hold in float32
_INITIALIZERS_BEYOND_INPUTS = 4  # the IR version from which an initializer need not be an input
# The IR versions that brought element types.
_BROUGHT = {
    9: ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"),
    10: ("INT4", "UINT4"),
    11: ("FLOAT4E2M1",),
    12: ("FLOAT8E8M0",),
    13: ("INT2", "UINT2"),
}


def lowest_ir_version(model: ir.Model) -> int:
    """The lowest IR version that a model needs: an older runtime refuses a newer one, whatever the model holds."""
    opset = onnx.helper.make_opsetid("", model.opset_imports.get("", OLDEST_OPSET))
    needed = int(onnx.helper.find_min_ir_version_for([opset], ignore_unknown=True))
    kinds = {kind.name for graph in (model.graph, *model.graph.subgraphs()) for kind in _types(graph)}
    by_type = [version for version, names in _BROUGHT.items() if kinds & set(names)]
    return max(_INITIALIZERS_BEYOND_INPUTS, needed, *by_type)


def _types(graph: ir.Graph) -> Iterator[ir.DataType]:
    values = (*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs))
    return (value.dtype for value in values if value.dtype is not None)


def modernized(proto: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, list[str]]:
    """The same function as a model that the rest of the rewriter can read, and a sentence on every change.

    Args:
        proto: a model; it is not changed.
        name: how to call the model in an error.

    Raises:
        InputError: a sparse weight whose indices lie outside it, or an opset that onnx's converter cannot raise.

    """
    notes = []
    if proto.graph.sparse_initializer or any(_holds_sparse(node) for node in proto.graph.node):
        proto = _dense(proto, name)
        notes.append("sparse weights were written out in full")
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        proto = _converted(proto, opset, name)
        notes.append(f"opset {opset} was converted to opset {OLDEST_OPSET} by onnx's version converter")
    return proto, notes


def _dense(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    dense = onnx.ModelProto()
    dense.CopyFrom(proto)
    for sparse in proto.graph.sparse_initializer:
        dense.graph.initializer.append(_written_out(sparse, sparse.values.name, name))
    del dense.graph.sparse_initializer[:]
    for node in dense.graph.node:
        if _holds_sparse(node):
            tensor = _written_out(node.attribute[0].sparse_tensor, node.output[0], name)
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))
    return dense


def _holds_sparse(node: onnx.NodeProto) -> bool:
    """Whether a Constant node gives a sparse tensor."""
    return node.op_type == "Constant" and [each.name for each in node.attribute] == ["sparse_value"]


def _written_out(sparse: onnx.SparseTensorProto, called: str, name: str) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    sizes = list(sparse.dims)
    total = math.prod(sizes)
    if any(size < 0 for size in sizes) or total > _LARGEST_DENSE:
        raise InputError(
            f"{name} is not supported: sparse tensor '{called}' has the shape {sizes}, which cannot be written out in "
            f"full; export it as a dense weight of at most {_LARGEST_DENSE} elements."
        )
    if indices.ndim == 2 and indices.shape[1] == len(sizes):
        indices = indices @ np.array([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))], dtype=np.int64)
    if indices.shape != values.shape or (indices.size and not 0 <= indices.min() <= indices.max() < total):
        raise InputError(
            f"{name} is not a valid ONNX model: the indices of sparse tensor '{called}' do not fit "
            f"its shape {sizes}; export it again."
        )
    array = np.zeros(tuple(sizes), dtype=values.dtype)
    array.flat[indices] = values
    return onnx.numpy_helper.from_array(array, called)


def _converted(proto: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(proto, OLDEST_OPSET)
    except Exception as error:  # the converter is C++ and raises many kinds
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"{name} uses opset {opset}, which onnx's version converter cannot raise to {OLDEST_OPSET} ({reason}): "
            f"export it with opset_version={OLDEST_OPSET} or newer."
        ) from None
