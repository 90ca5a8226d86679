"""Keeps the integer codes of quantized weights: DequantizeLinear of constants becomes one tensor that knows its codes.

Layout around it (Transpose, Reshape and the like) goes into the codes, so that an array holds what the model stores.
"""

import numpy as np
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.builder import add_initializer
from emu.rewriter.dataflow import is_standard, sizes_of, tensor_of
from emu.rewriter.node_evaluator import NodeEvaluator
from emu.rewriter.passes.fold_weights import constant_array, constant_nodes, constant_values, remove_unused
from emu.rewriter.quantized import CODE_TYPES, QuantizedTensor, quantized_tensor

_LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast")


class KeepCodesPass(ir.passes.InPlacePass):
    """Replaces dequantized constant weights of products by initializers with a `QuantizedTensor`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at the second operand of every product of the main graph; products that share codes still do."""
        evaluator = NodeEvaluator(model)
        constants = constant_values(model.graph)
        made: dict[tuple[object, ...], ir.Value] = {}
        modified = False
        for node in list(model.graph):
            weight = weight_of(node)
            nodes = constant_nodes(weight, constants) if weight is not None else []
            chain = dequantized(weight, nodes) if weight is not None else None
            if weight is None or chain is None or not all(evaluator.can_run(each) for each in nodes):
                continue
            key = tuple(_content(each) for each in chain)
            if key not in made:
                tensor = _tensor(chain, constants, evaluator)
                if tensor is None:
                    continue
                made[key] = _initializer(model.graph, weight, tensor)
            node.replace_input_with(1, made[key])
            remove_unused(model.graph, nodes)
            modified = True
        return ir.passes.PassResult(model, modified)


def weight_of(node: ir.Node) -> ir.Value | None:
    """The operand of a product that may be a weight."""
    product = is_standard(node) and node.op_type in ("MatMul", "Gemm", "Conv")
    return node.inputs[1] if product and len(node.inputs) > 1 else None


def dequantized(weight: ir.Value, nodes: list[ir.Node]) -> list[ir.Node] | None:
    """The DequantizeLinear among `nodes` that `weight` comes from, and the layout nodes after it, in order."""
    chain: list[ir.Node] = []
    value: ir.Value | None = weight
    while value is not None and (node := value.producer()) is not None and node in nodes and is_standard(node):
        chain.insert(0, node)
        if node.op_type == "DequantizeLinear":
            return chain
        value = node.inputs[0] if node.op_type in _LAYOUT and node.inputs else None
    return None


def why_not(weight: ir.Value, nodes: list[ir.Node]) -> str | None:
    """Why the codes of a weight that `nodes` compute from constants cannot be kept; None if they can."""
    sources = [node for node in nodes if node.op_type == "DequantizeLinear"]
    if not sources:
        return None
    chain = dequantized(weight, nodes)
    if chain is None or len(sources) > 1:
        return "its codes go through more than a change of layout"
    codes, _, *zero_point = chain[0].inputs
    kinds = [value.dtype for value in (codes, *zero_point) if value is not None and value.dtype is not None]
    if any(kind not in CODE_TYPES for kind in kinds):
        return f"its codes are of type {kinds[0].name.lower()}, not int8, uint8, int4 or uint4"
    return None


def _content(node: ir.Node) -> tuple[object, ...]:
    """What a node computes; its first input is told by the node before it, except for a DequantizeLinear's."""
    inputs = node.inputs if node.op_type == "DequantizeLinear" else node.inputs[1:]
    attributes = tuple(sorted((name, str(each.value)) for name, each in node.attributes.items()))
    return node.op_type, tuple(inputs), attributes


def _tensor(chain: list[ir.Node], constants: set[ir.Value], evaluator: NodeEvaluator) -> QuantizedTensor | None:
    source, *layout = chain
    codes, scale, *zero_point = source.inputs
    assert codes is not None and scale is not None, "the checker has seen to it"
    stored = tensor_of(codes)
    if stored is None:  # codes that the graph computes: quantized here, or transposed
        stored = ir.tensor(constant_array(codes, constants, evaluator))
    scales = constant_array(scale, constants, evaluator)
    zeros = constant_array(zero_point[0], constants, evaluator) if zero_point and zero_point[0] is not None else None
    if stored.dtype not in CODE_TYPES:
        return None
    block = source.attributes.get_int("block_size", 0)
    axis = source.attributes.get_int("axis", 1)
    try:
        tensor = quantized_tensor(stored, scales, zeros, axis, block, ir.DataType.from_numpy(scales.dtype))
    except ValueError:
        raise InputError(
            f"Node '{source.name}' (DequantizeLinear): its scale {list(scales.shape)} or zero point does not fit codes "
            f"{list(sizes_of(stored))} at axis {axis}: export the model again."
        ) from None
    for node in layout:
        tensor = _after(tensor, node, constants, evaluator)
    return tensor


def _after(
    tensor: QuantizedTensor, node: ir.Node, constants: set[ir.Value], evaluator: NodeEvaluator
) -> QuantizedTensor:
    """What a layout node makes of a tensor."""
    if node.op_type == "Identity":
        return tensor
    if node.op_type == "Cast":
        return tensor.cast(ir.DataType(node.attributes.get_int("to", 1)))
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", list(reversed(range(len(tensor.sizes)))))
        return tensor.transposed(list(order))
    # What the operator says about a tensor of this shape, without its content.
    probe = np.broadcast_to(np.int8(0), tensor.sizes)
    others = [None if each is None else constant_array(each, constants, evaluator) for each in node.inputs[1:]]
    return tensor.reshaped(evaluator.run(node, [probe, *others])[0].shape)


def _initializer(graph: ir.Graph, weight: ir.Value, tensor: QuantizedTensor) -> ir.Value:
    """A new initializer, which takes over the name of `weight` unless something else needs it."""
    name = weight.name or "weight"
    if weight.is_graph_output() or any(weight_of(node) is not weight or place != 1 for node, place in weight.uses()):
        name = f"{name}.codes"
    else:
        weight.name = None
    return add_initializer(graph, name, tensor)
