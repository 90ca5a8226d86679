"""Finds the matrix products of a normalized graph, and says of every one that is no site why."""

import math
from dataclasses import dataclass

import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.dataflow import DataFlow, is_standard, sizes_of, tensor_of
from emu.rewriter.passes.fold_weights import constant_values
from emu.rewriter.shapes import Probes
from emu.rewriter.site import Skipped

PRODUCTS = ("MatMul", "Gemm", "Conv")
_OTHER_PRODUCTS = ("Einsum", "ConvTranspose", "RNN", "GRU", "LSTM", "DeformConv", "Attention")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, eq=False)
class Product:
    """A product that can be mapped to crossbars.

    `activation` is what is fed to the array (X or A), `matrix` what is in it (the source of W, or B). `rows` and
    `columns` are K and N, for a stored one always known.
    """

    node: ir.Node
    stored: bool
    activation: ir.Value
    matrix: ir.Value
    rows: int | None
    columns: int | None


def find_products(model: ir.Model, flow: DataFlow, probes: Probes, name: str) -> tuple[list[Product], list[Skipped]]:
    """Lists the products that can be sites, in data-flow order, and those that cannot.

    Raises:
        InputError: a product of numbers other than float32.

    """
    products: list[Product] = []
    skipped: list[Skipped] = []
    constants = constant_values(model.graph)
    inner = {node for graph in model.graph.subgraphs() for node in graph}
    for node in model.graph.all_nodes():
        if not is_standard(node):
            skipped.append(_skip(node, f"operator of the unknown domain '{node.domain}': it may hold products"))
        elif node.op_type in _OTHER_PRODUCTS:
            skipped.append(_skip(node, f"products inside {node.op_type} are not mapped to crossbars yet"))
        elif node.op_type in PRODUCTS:
            if node in inner:
                skipped.append(_skip(node, "products inside If, Loop and Scan are not mapped to crossbars yet"))
                continue
            _check_float(node, probes, name)
            found = _FINDERS[node.op_type](node, constants, flow, probes)
            if isinstance(found, Product):
                products.append(found)
            else:
                skipped.append(_skip(node, found))
    return products, skipped


def _skip(node: ir.Node, reason: str) -> Skipped:
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return Skipped(node.name or (node.outputs[0].name if node.outputs else "") or "", op, reason)


def _check_float(node: ir.Node, probes: Probes, name: str) -> None:
    for value in node.inputs[:2]:
        dtype = probes.base.dtype(value) if value is not None else None
        if dtype in _FLOATS and dtype is not ir.DataType.FLOAT:
            kind = {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())
            raise InputError(
                f"{name}: node '{node.name}' ({node.op_type}) works in {kind}, which is not supported yet; "
                "export the model in float32."
            )


def _matmul(node: ir.Node, constants: set[ir.Value], flow: DataFlow, probes: Probes) -> Product | str:
    left, right = node.inputs
    assert left is not None and right is not None, "the checker has seen to it"
    if not _is_float32(left, probes):
        return "it multiplies integers"
    if _feeds_rotation(node, flow):
        return "it computes the angles of rotary position embeddings: no activation passes it"
    weight = tensor_of(right)
    if weight is not None:
        sizes = sizes_of(weight)
        if len(sizes) != 2:
            return f"its weight has {len(sizes)} dimensions, not 2"
        if len(probes.base.get(left) or (1, 1)) < 2:
            return "its input is a single vector without a batch"
        return Product(node, True, left, right, *sizes)
    if left in constants:
        return "its weight is the left operand"
    if left not in flow.depends_on_inputs and right not in flow.depends_on_inputs:
        return "neither operand depends on the model's inputs"
    shapes = probes.base.get(left), probes.base.get(right)
    if any(shape is not None and len(shape) < 2 for shape in shapes):
        return "an operand is a vector"
    fixed = probes.fixed(right)
    return Product(node, False, left, right, fixed[-2] if fixed else None, fixed[-1] if fixed else None)


def _gemm(node: ir.Node, constants: set[ir.Value], flow: DataFlow, probes: Probes) -> Product | str:
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None, "the checker has seen to it"
    if not _is_float32(left, probes):
        return "it multiplies integers"
    weight = tensor_of(right)
    if weight is None:
        return "both operands of this Gemm are activations"
    if node.attributes.get_int("transA", 0):
        return "its input is transposed (transA)"
    sizes = sizes_of(weight)
    if len(sizes) != 2:
        return f"its weight has {len(sizes)} dimensions, not 2"
    rows, columns = sizes
    if node.attributes.get_int("transB", 0):
        rows, columns = columns, rows
    return Product(node, True, left, right, rows, columns)


def _conv(node: ir.Node, constants: set[ir.Value], flow: DataFlow, probes: Probes) -> Product | str:
    image, kernel = node.inputs[0], node.inputs[1]
    assert image is not None and kernel is not None, "the checker has seen to it"
    weight = tensor_of(kernel)
    if weight is None:
        return "its kernel is no constant"
    outputs, *inner = sizes_of(weight)
    if len(inner) < 2:
        return f"its kernel has {len(inner) + 1} dimensions, fewer than 3"
    sides = inner[1:]
    if (
        node.attributes.get_int("group", 1) != 1
        or list(node.attributes.get_ints("strides", [1] * len(sides))) != sides
        or any(node.attributes.get_ints("pads", []))
        or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        or any(dilation != 1 for dilation in node.attributes.get_ints("dilations", []))
    ):
        return "it is no patch embedding (kernel = stride, one group, no padding, no dilation)"
    return Product(node, True, image, kernel, math.prod(inner), outputs)


_FINDERS = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}


def _is_float32(value: ir.Value, probes: Probes) -> bool:
    return probes.base.dtype(value) in (ir.DataType.FLOAT, None)


def _feeds_rotation(node: ir.Node, flow: DataFlow) -> bool:
    """Whether the result goes into sines and cosines before it meets another product."""
    stop = {each for each in flow.nodes if each.op_type in (*PRODUCTS, "Softmax")} - {node}
    ahead = {each.op_type for each, _ in flow.downstream(node.outputs[0], stop)}
    return bool(ahead & {"Sin", "Cos"})
