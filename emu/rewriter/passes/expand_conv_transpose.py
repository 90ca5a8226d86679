"""Writes a ConvTranspose whose stride is its kernel as the product of its pixels that it is.

Every pixel becomes a block of its own, so blocks are the rows of a product with the kernel [channels, outputs * block],
or with a stack of such kernels, one for each group. Other strides add up overlapping blocks: they stay.
"""

import math
from collections.abc import Sequence

import onnx_ir as ir

from emu.rewriter.batch import Batch
from emu.rewriter.dataflow import is_standard
from emu.rewriter.passes.expand_fused_body import Body, Names
from emu.rewriter.passes.fold_weights import constant_values
from emu.rewriter.shapes import probe


class ExpandConvTransposePass(ir.passes.InPlacePass):
    """Expands the ConvTranspose nodes of the main graph that `why_not_expanded` has no reason against."""

    def __init__(self, batch: Batch) -> None:
        """`batch` says where the model's samples lie."""
        super().__init__()
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """The MatMul keeps the node's name."""
        nodes = [node for node in model.graph if is_standard(node) and node.op_type == "ConvTranspose"]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        constants, shapes = constant_values(model.graph), probe(model, self._batch).base
        names, opset = Names(model.graph), model.opset_imports.get("", 1)
        modified = False
        for node in nodes:
            sizes = shapes.get(node.inputs[1])
            if sizes is None or node.inputs[1] not in constants or why_not_expanded(node, sizes) is not None:
                continue
            body = Body(node, opset, names, lambda value: None)
            body.swap([_expand(body, sizes)])
            modified = True
        return ir.passes.PassResult(model, modified)


def why_not_expanded(node: ir.Node, kernel: Sequence[int] | None) -> str | None:
    """What makes a ConvTranspose more than a product of its pixels, None if nothing does.

    Args:
        node: the node.
        kernel: shape of its kernel, None if it is unknown.

    """
    if kernel is None or len(kernel) < 3:
        return "the shape of its kernel is unknown"
    sides = list(kernel[2:])
    attributes = node.attributes
    if list(attributes.get_ints("strides", [1] * len(sides))) != sides:
        return "its stride is not its kernel: blocks overlap"
    if kernel[0] % max(1, attributes.get_int("group", 1)):
        return "its channels do not divide into its groups"
    shifted = any(attributes.get_ints("pads", [])) or any(attributes.get_ints("output_padding", []))
    # With this stride the padding of SAME is none.
    if shifted or "output_shape" in attributes:
        return "it cuts or pads its result"
    return "it is dilated" if any(each != 1 for each in attributes.get_ints("dilations", [])) else None


def _expand(body: Body, kernel: Sequence[int]) -> ir.Value:
    x, bias = body.needed(0), body.given(2)
    channels, own, *sides = kernel
    groups, places = body.node.attributes.get_int("group", 1), len(sides)
    outputs = groups * own
    shape = body.op("Shape", x)
    image = body.slice(shape, 0, 2, places + 2)
    batch = body.slice(shape, 0, 0, 1)
    if groups == 1:
        pixels = body.transpose(x, 0, *range(2, places + 2), 1)
        weight = body.reshape(body.needed(1), channels, own * math.prod(sides))
    else:  # [batch, groups, pixels, channels of a group] and a kernel for each group
        parts = body.op("Concat", batch, body.ints(groups, channels // groups, -1), axis=0)
        pixels = body.transpose(body.op("Reshape", x, parts), 0, 1, 3, 2)
        weight = body.reshape(body.needed(1), groups, channels // groups, own * math.prod(sides))
    blocks = body.op("MatMul", pixels, weight, name=body.node.name)
    if groups > 1:  # the groups of a pixel side by side again
        blocks = body.transpose(blocks, 0, 2, 1, 3)
    split = body.op("Concat", batch, image, body.ints(outputs, *sides), axis=0)
    blocks = body.op("Reshape", blocks, split)
    # [batch, rows, columns, outputs, kernel rows, kernel columns]: each side of the image beside that of its block
    order = [axis for place in range(places) for axis in (1 + place, 2 + places + place)]
    blocks = body.transpose(blocks, 0, 1 + places, *order)
    sizes = body.op("Mul", image, body.ints(*sides))
    result = body.op("Reshape", blocks, body.op("Concat", batch, body.ints(outputs), sizes, axis=0))
    if bias is None:
        return result
    return body.op("Add", result, body.reshape(bias, 1, outputs, *([1] * places)))
