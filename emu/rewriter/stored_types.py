"""The type that a weight has in the model's file, which a copy of it in float32 remembers."""

from collections.abc import Iterable

import onnx_ir as ir

from emu.rewriter.dataflow import tensor_of

_KEY = "emu.stored_type"
_NAMES = {
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT8E4M3FN: "float8_e4m3",
    ir.DataType.FLOAT8E5M2: "float8_e5m2",
}
# Operators that leave every number what it is; all but Concat take it from their first input.
_MOVES = ("Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Concat")


def stored_type(value: ir.Value) -> str:
    """What a constant is stored as: `float32`, or one of the shorter types of `emu.contract.schema.FLOATS`."""
    tensor = tensor_of(value)
    known = value.meta.get(_KEY)
    return str(known or _NAMES.get(tensor.dtype if tensor is not None else ir.DataType.FLOAT, "float32"))


def keep_type(copy: ir.Value, source: ir.Value) -> None:
    """Lets a wider copy of a constant remember what that is stored as."""
    copy.meta[_KEY] = stored_type(source)


def keep_type_of(copy: ir.Value, nodes: Iterable[ir.Node]) -> None:
    """Likewise for a constant that nodes have computed, if they only moved and cast others of one type."""
    nodes = list(nodes)
    if not all(node.op_type in _MOVES for node in nodes):
        return
    made = {output for node in nodes for output in node.outputs}
    read = [value for node in nodes for value in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]
    sources = [value for value in read if value is not None and value not in made]
    if len({stored_type(source) for source in sources}) == 1:
        keep_type(copy, sources[0])
