"""Gives digital products their quantized weights back: what is no site keeps its integer codes."""

import numpy as np
import onnx_ir as ir

from emu.rewriter.builder import add_initializer
from emu.rewriter.passes.expand_fused_body import Names
from emu.rewriter.quantized import QuantizedTensor

_AXIS_OPSET = 13  # the opset from which DequantizeLinear takes a scale for each index of an axis
_INT16_OPSET = 21  # that from which it takes codes of 16 bits


class RestoreCodesPass(ir.passes.InPlacePass):
    """Puts DequantizeLinear before what reads a `QuantizedTensor` that is left in a rewritten graph.

    Its codes have 16 bits if the model's have, else 8.

    Weights whose blocks share a scale become float: onnxruntime would multiply blocks of codes with quantized
    activations, which the model does not ask for.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Leaves a tensor as it is where the opset has no DequantizeLinear for it."""
        names = Names(model.graph)
        opset = model.opset_imports.get("", 1)
        nodes = []
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if isinstance(tensor, QuantizedTensor) and (node := _dequantize(model.graph, names, tensor, opset)):
                value.replace_all_uses_with(node.outputs[0])
                model.graph.initializers.pop(value.name or "")
                nodes.append(node)
        if nodes:
            model.graph.insert_before(next(iter(model.graph)), nodes)
        return ir.passes.PassResult(model, bool(nodes))


def _dequantize(graph: ir.Graph, names: Names, tensor: QuantizedTensor, opset: int) -> ir.Node | None:
    axes = [axis for axis, size in enumerate(tensor.scale.shape) if size > 1]
    blocked = any(tensor.scale.shape[axis] != tensor.sizes[axis] for axis in axes)
    kind = ir.DataType.INT16 if tensor.bits > 8 else ir.DataType.INT8
    zero_point = tensor.zero_point.astype(kind.numpy())
    if kind is ir.DataType.INT16 and opset < _INT16_OPSET:
        return None
    if len(axes) > 1 or blocked or (axes and opset < _AXIS_OPSET) or tensor.dtype is not ir.DataType.FLOAT:
        return None
    if not np.array_equal(zero_point, tensor.zero_point):
        return None
    codes = ir.LazyTensor(lambda: ir.tensor(np.ascontiguousarray(tensor.codes())), kind, ir.Shape(tensor.sizes))
    shape = [-1] if axes else []
    inputs = [
        add_initializer(graph, names.fresh(f"{tensor.name}.{part}"), each)
        for part, each in (
            ("codes", codes),
            ("scale", ir.tensor(np.ascontiguousarray(tensor.scale.reshape(shape)))),
            ("zero_point", ir.tensor(np.ascontiguousarray(zero_point.reshape(shape)))),
        )
    ]
    name = names.fresh(f"{tensor.name}.dequantized")
    output = ir.Value(name=name, shape=ir.Shape(tensor.sizes), type=ir.TensorType(ir.DataType.FLOAT))
    attributes = {"axis": axes[0]} if axes else {}
    return ir.node("DequantizeLinear", inputs, attributes, outputs=[output], name=name)
