"""Writes a ConvTranspose whose stride is its kernel as the product of its pixels that it is.

Every pixel becomes a block of its own, so blocks are the rows of a product with the kernel [channels, outputs * block].
Other strides add up overlapping blocks: they stay.
"""

import math

import onnx_ir as ir

from emu.rewriter.dataflow import is_standard, sizes_of, tensor_of
from emu.rewriter.passes.expand_fused_body import Body, Names
from emu.rewriter.passes.fold_weights import constant_values


class ExpandConvTransposePass(ir.passes.InPlacePass):
    """Expands the ConvTranspose nodes of the main graph that `why_not_expanded` has no reason against."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """The MatMul keeps the node's name."""
        constants = constant_values(model.graph)
        names, opset = Names(model.graph), model.opset_imports.get("", 1)
        modified = False
        for node in list(model.graph):
            if is_standard(node) and node.op_type == "ConvTranspose" and why_not_expanded(node) is None:
                body = Body(node, opset, names, lambda value: None)
                if body.needed(1) in constants:
                    body.swap([_expand(body)])
                    modified = True
        return ir.passes.PassResult(model, modified)


def why_not_expanded(node: ir.Node) -> str | None:
    """What makes a ConvTranspose more than a product of its pixels, None if nothing does."""
    kernel = tensor_of(node.inputs[1])
    if kernel is None:
        return "its kernel is no constant"
    sides = list(sizes_of(kernel)[2:])
    attributes = node.attributes
    if list(attributes.get_ints("strides", [1] * len(sides))) != sides:
        return "its stride is not its kernel: blocks overlap"
    if attributes.get_int("group", 1) != 1:
        return "it has several groups"
    shifted = any(attributes.get_ints("pads", [])) or any(attributes.get_ints("output_padding", []))
    if (
        shifted
        or "output_shape" in attributes
        or attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        return "it cuts or pads its result"
    return "it is dilated" if any(each != 1 for each in attributes.get_ints("dilations", [])) else None


def _expand(body: Body) -> ir.Value:
    x, kernel, bias = body.needed(0), body.needed(1), body.given(2)
    tensor = tensor_of(kernel)
    assert tensor is not None, "why_not_expanded() has seen to it"
    channels, outputs, *sides = sizes_of(tensor)
    places = len(sides)
    pixels = body.transpose(x, 0, *range(2, places + 2), 1)
    weight = body.reshape(kernel, channels, outputs * math.prod(sides))
    blocks = body.op("MatMul", pixels, weight, name=body.node.name)
    shape = body.op("Shape", x)
    image = body.slice(shape, 0, 2, places + 2)
    batch = body.slice(shape, 0, 0, 1)
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
