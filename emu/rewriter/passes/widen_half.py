"""Makes products of half precision compute in float32, the precision of the crossbar operators.

Activations are cast before the product and the result is cast back; weights are widened once, when the model is
written.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from emu.rewriter.batch import Batch
from emu.rewriter.builder import add_initializer
from emu.rewriter.dataflow import is_standard, sizes_of, tensor_of
from emu.rewriter.passes.expand_fused_body import Body, Names
from emu.rewriter.quantized import QuantizedTensor
from emu.rewriter.shapes import probe
from emu.rewriter.stored_types import keep_type

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PRODUCTS = ("MatMul", "Gemm", "Conv")


class WidenHalfPass(ir.passes.InPlacePass):
    """Casts the operands of every float16 or bfloat16 product of the main graph to float32, and its result back."""

    def __init__(self, batch: Batch) -> None:
        """`batch` says where the model's samples lie."""
        super().__init__()
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Products keep their names; an operand that several products read is cast once."""
        if not any(kind in _HALF for kind in _types(model)):
            return ir.passes.PassResult(model, modified=False)
        shapes = probe(model, self._batch).base
        names = Names(model.graph)
        opset = model.opset_imports.get("", 1)
        wide: dict[ir.Value, ir.Value] = {}
        modified = False
        for node in list(model.graph):
            if not is_standard(node) or node.op_type not in _PRODUCTS:
                continue
            kind = next((kind for value in node.inputs if (kind := shapes.dtype(value)) in _HALF), None)
            if kind is None:
                continue
            body = Body(node, opset, names, lambda value: None)
            operands = [each and _widened(model.graph, names, body, each, wide) for each in node.inputs]
            attributes = {name: each.value for name, each in node.attributes.items()}
            result = body.op(node.op_type, *operands, name=node.name, **attributes)
            body.swap([body.op("Cast", result, to=int(kind))])
            modified = True
        return ir.passes.PassResult(model, modified)


def _types(model: ir.Model) -> Iterator[ir.DataType | None]:
    """Element types that the model's inputs, constants and casts bring in."""
    yield from (value.dtype for value in (*model.graph.inputs, *model.graph.initializers.values()))
    for node in model.graph:
        if node.op_type == "Cast":
            yield ir.DataType(node.attributes.get_int("to", 0))
        elif node.op_type == "Constant" and (tensor := tensor_of(node.outputs[0])) is not None:
            yield tensor.dtype


def _widened(graph: ir.Graph, names: Names, body: Body, value: ir.Value, wide: dict[ir.Value, ir.Value]) -> ir.Value:
    """The operand in float32."""
    if value not in wide:
        tensor = tensor_of(value)
        if tensor is None:
            wide[value] = body.op("Cast", value, to=int(ir.DataType.FLOAT))
            wide[value].shape, wide[value].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        else:
            wide[value] = add_initializer(graph, names.fresh(f"{value.name}.float32"), _widened_tensor(tensor))
            keep_type(wide[value], value)
    return wide[value]


def _widened_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, QuantizedTensor):
        return tensor.cast(ir.DataType.FLOAT)
    shape = ir.Shape(sizes_of(tensor))
    return ir.LazyTensor(lambda: ir.tensor(tensor.numpy().astype(np.float32)), ir.DataType.FLOAT, shape)
