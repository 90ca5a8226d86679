"""Finds the matrix products of a normalized graph, and says of every one that is no site why."""

from dataclasses import dataclass

import onnx_ir as ir

from emu.contract.site import Skipped
from emu.errors import InputError
from emu.rewriter.convolution import Convolution, convolution_of
from emu.rewriter.dataflow import DataFlow, is_standard, sizes_of, tensor_of
from emu.rewriter.passes.expand_conv_transpose import why_not_expanded
from emu.rewriter.passes.expand_quantized import holds_product
from emu.rewriter.shapes import Probes
from emu.rewriter.work import macs_of

PRODUCTS = ("MatMul", "Gemm", "Conv")
_OTHER_PRODUCTS = ("Einsum", "ConvTranspose", "RNN", "GRU", "LSTM", "DeformConv", "Attention", "MatMulInteger")
_MERGED = (
    "products inside {} are not mapped to crossbars: of a merged decoder rewrite the files that it was merged from, "
    "decoder_model.onnx and decoder_with_past_model.onnx"
)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, eq=False)
class Product:
    """A product that can be mapped to crossbars.

    `activation` is what is fed to the array (X or A), `matrix` what is in it (the source of W, or B). `rows` and
    `columns` are K and N, for a stored one always known. `stack` is the number of such matrices that a weight holds,
    each an array of its own; `convolution` says which windows of the activation are the rows that are fed. `digital` is
    why it stays digital, for one that only helps to tell what the others do. `samples_inside` says whether the leading
    axis of the activation counts tokens first and samples second ([tokens * batch, K]).
    """

    node: ir.Node
    stored: bool
    activation: ir.Value
    matrix: ir.Value
    rows: int | None
    columns: int | None
    stack: int = 1
    convolution: Convolution | None = None
    digital: str = ""
    samples_inside: bool = False


def find_products(model: ir.Model, flow: DataFlow, probes: Probes, name: str) -> tuple[list[Product], list[Skipped]]:
    """Lists the products that can be sites (and those with a reason to stay `digital`), and what stays digital.

    Raises:
        InputError: a product of numbers other than float32.

    """
    products: list[Product] = []
    skipped: list[Skipped] = []
    inner = {node for graph in model.graph.subgraphs() for node in graph}
    around = {node: outer.op_type for outer in model.graph for node in _inside(outer)}
    for node in model.graph.all_nodes():
        known = is_standard(node) or holds_product(node)
        if node in inner:
            if not known or node.op_type in (*PRODUCTS, *_OTHER_PRODUCTS) or holds_product(node):
                skipped.append(_skip(node, _MERGED.format(around.get(node, "If, Loop and Scan")), None))
        elif not known:
            reason = f"operator of the domain '{node.domain}' that emu does not know: it may hold products"
            skipped.append(_skip(node, reason, None))
        elif node.op_type in _OTHER_PRODUCTS:
            if not _is_rearrangement(node):
                skipped.append(_skip(node, _why_other(node, probes), macs_of(node, probes)))
        elif node.op_type in PRODUCTS:
            _check_float(node, probes, name)
            found = _FINDERS[node.op_type](node, flow, probes)
            if isinstance(found, Product):
                products.append(found)
            reason = found if isinstance(found, str) else found.digital
            if reason:
                skipped.append(_skip(node, reason, macs_of(node, probes)))
    return products, skipped


def _inside(node: ir.Node) -> list[ir.Node]:
    """The nodes of a control-flow node's subgraphs, at any depth."""
    graphs = [each.as_graph() for each in node.attributes.values() if each.type is ir.AttributeType.GRAPH]
    return [inner for graph in graphs for inner in graph.all_nodes()]


def _is_rearrangement(node: ir.Node) -> bool:
    """Whether an Einsum has one operand: it moves and adds up numbers, and multiplies none."""
    return node.op_type == "Einsum" and len(node.inputs) == 1


def _why_other(node: ir.Node, probes: Probes) -> str:
    if node.op_type == "Einsum":
        return "it is more than the product of two operands (repeated or lost letters, or no letter to sum over)"
    if node.op_type == "ConvTranspose":
        return why_not_expanded(node, probes.base.get(node.inputs[1])) or "its kernel is no constant"
    return f"products inside {node.op_type} are not mapped to crossbars yet"


def _skip(node: ir.Node, reason: str, macs: int | None) -> Skipped:
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return Skipped(node.name or (node.outputs[0].name if node.outputs else "") or "", op, reason, macs)


def _check_float(node: ir.Node, probes: Probes, name: str) -> None:
    for value in node.inputs[:2]:
        dtype = probes.base.dtype(value) if value is not None else None
        if dtype in _FLOATS and dtype is not ir.DataType.FLOAT:
            kind = {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())
            raise InputError(
                f"{name}: node '{node.name}' ({node.op_type}) works in {kind}, which is not supported yet; "
                "export the model in float32."
            )


def _matmul(node: ir.Node, flow: DataFlow, probes: Probes) -> Product | str:
    left, right = node.inputs
    assert left is not None and right is not None, "the checker has seen to it"
    if not _is_float32(left, probes):
        return "it multiplies integers"
    if _feeds_rotation(node, flow):
        return "it computes the angles of rotary position embeddings: no activation passes it"
    weight = tensor_of(right)
    if weight is not None:
        return _stored_matmul(node, left, right, sizes_of(weight), probes)
    if tensor_of(left) is not None:
        return "its weight is the left operand, and the shape of the other one is unknown"
    shapes = probes.base.get(left), probes.base.get(right)
    if any(shape is not None and len(shape) < 2 for shape in shapes):
        return "an operand is a vector"
    fixed = probes.fixed(right)
    alone = "its second operand follows from shapes alone: it is neither a stored weight nor an activation"
    return Product(
        node,
        False,
        left,
        right,
        fixed[-2] if fixed else None,
        fixed[-1] if fixed else None,
        digital="" if right in flow.depends_on_inputs else alone,
    )


def _stored_matmul(
    node: ir.Node, left: ir.Value, right: ir.Value, sizes: tuple[int, ...], probes: Probes
) -> Product | str:
    """The product with a weight [K, N], or with a stack of them whose activations say which matrix takes which row."""
    shape, fixed = probes.base.get(left), probes.fixed(left)
    if len(sizes) == 2:
        if shape is not None and len(shape) < 2:
            return "its input is a single vector without a batch"
        return Product(node, True, left, right, *sizes)
    if len(sizes) != 3:
        return f"its weight has {len(sizes)} dimensions, not 2 or 3"
    if shape is None:
        return "its weight is a stack of matrices, and the shape of its input is unknown"
    if len(shape) > 2 and probes.batch_axis(left) == len(shape) - 3:
        return "its weight is a stack of matrices along the batch: every sample has a weight of its own"
    if len(shape) > 2 and fixed is not None and fixed[-3] not in (None, 1, sizes[0]):
        return "its weight is a stack of matrices that does not fit its input"
    return Product(node, True, left, right, sizes[1], sizes[2], stack=sizes[0])


def _gemm(node: ir.Node, flow: DataFlow, probes: Probes) -> Product | str:
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None, "the checker has seen to it"
    if not _is_float32(left, probes):
        return "it multiplies integers"
    weight = tensor_of(right)
    if weight is None:
        return "both operands of this Gemm are activations, and their shapes are unknown"
    sizes = sizes_of(weight)
    if len(sizes) != 2:
        return f"its weight has {len(sizes)} dimensions, not 2"
    rows, columns = sizes
    if node.attributes.get_int("transB", 0):
        rows, columns = columns, rows
    return Product(node, True, left, right, rows, columns)


def _conv(node: ir.Node, flow: DataFlow, probes: Probes) -> Product | str:
    image, kernel = node.inputs[0], node.inputs[1]
    assert image is not None and kernel is not None, "the checker has seen to it"
    found = convolution_of(node, probes.certain(image))
    if isinstance(found, str):
        return found
    return Product(node, True, image, kernel, found.rows, found.outputs, stack=found.groups, convolution=found)


_FINDERS = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}


def _is_float32(value: ir.Value, probes: Probes) -> bool:
    return probes.base.dtype(value) in (ir.DataType.FLOAT, None)


def _feeds_rotation(node: ir.Node, flow: DataFlow) -> bool:
    """Whether the result goes into sines and cosines before it meets another product."""
    stop = {each for each in flow.nodes if each.op_type in (*PRODUCTS, "Softmax")} - {node}
    ahead = {each.op_type for each, _ in flow.downstream(node.outputs[0], stop)}
    return bool(ahead & {"Sin", "Cos"})
