"""What a graph is like between two steps of its normalization: the words in which steps say what they need and give.

Steps are ordered by them, and tests check after every step that what was given still holds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from emu.rewriter.dataflow import is_standard, sizes_of, tensor_of
from emu.rewriter.passes.expand_conv_transpose import why_not_expanded as why_blocks_stay
from emu.rewriter.passes.expand_fused import can_expand
from emu.rewriter.passes.expand_fused import why_not_expanded as why_fused_stays
from emu.rewriter.passes.expand_quantized import is_quantized
from emu.rewriter.passes.expand_quantized import why_not_expanded as why_quantized_stays
from emu.rewriter.passes.fold_weights import constant_nodes, constant_values, is_product, weight_operands
from emu.rewriter.quantized import QuantizedTensor

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Condition:
    """Something that is true of a graph, in words and as a test of it."""

    says: str
    holds: Callable[[ir.Model], bool]


def _has_names(model: ir.Model) -> bool:
    names = [node.name for node in model.graph]
    return all(names) and len(set(names)) == len(names)


def _codes_are_stored(model: ir.Model) -> bool:
    constants = constant_values(model.graph)
    quantized = (node for node in model.graph if is_quantized(node))
    inputs = (value for node in quantized for value in node.inputs if value in constants)
    return all(
        tensor_of(value) is not None for value in inputs if all(map(is_standard, constant_nodes(value, constants)))
    )


def _blocks_are_products(model: ir.Model) -> bool:
    nodes = (node for node in model.graph if is_standard(node) and node.op_type == "ConvTranspose")
    kernels = ((node, tensor_of(node.inputs[1])) for node in nodes)
    return all(kernel is None or why_blocks_stay(node, sizes_of(kernel)) is not None for node, kernel in kernels)


def _weights_are_on_the_right(model: ir.Model) -> bool:
    constants = constant_values(model.graph)
    products = [node for node in model.graph if is_standard(node) and node.op_type == "MatMul"]
    turned = (node for node in products if node.inputs[0] in constants and node.inputs[1] not in constants)
    return all(node.inputs[1] is None or node.inputs[1].shape is None for node in turned)


def _weights_are_stored(model: ir.Model) -> bool:
    constants = constant_values(model.graph)
    operands = (value for node in model.graph if is_product(node) for value in weight_operands(node))
    return all(tensor_of(value) is not None for value in operands if value in constants)


def _codes_are_kept(model: ir.Model) -> bool:
    """No product takes what a DequantizeLinear makes of constants: that is a tensor which knows its codes."""
    constants = constant_values(model.graph)
    for node in model.graph:
        for value in weight_operands(node)[:1] if is_product(node) else ():
            if any(each.op_type == "DequantizeLinear" for each in constant_nodes(value, constants)):
                return False
    return True


INLINED = Condition("functions of the model are written out", lambda model: not model.functions)
NAMED = Condition("every node has a name of its own", _has_names)
CODES_STORED = Condition("codes, scales and zero points that follow from constants are constants", _codes_are_stored)
PLAIN_CODES = Condition(
    "quantized operators are DequantizeLinear, float, QuantizeLinear",
    lambda model: not any(is_quantized(node) and why_quantized_stays(node) is None for node in model.graph),
)
PLAIN_FUSED = Condition(
    "fused operators are plain nodes",
    lambda model: not any(can_expand(node) and why_fused_stays(node) is None for node in model.graph),
)
PLAIN_BLOCKS = Condition("transposed convolutions without overlap are products", _blocks_are_products)
TURNED = Condition("weights are second operands", _weights_are_on_the_right)
CODES_KEPT = Condition("dequantized weights of products know their codes", _codes_are_kept)
STORED = Condition("weights that follow from constants are constants", _weights_are_stored)
FLOAT32 = Condition(
    "stored weights of products have single precision",
    lambda model: (
        not any(
            value.dtype in _HALF and not isinstance(value.const_value, QuantizedTensor)
            for node in model.graph
            if is_product(node)
            for value in weight_operands(node)
        )
    ),
)
