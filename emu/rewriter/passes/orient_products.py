"""Writes products so that the weight is their second operand, and a matrix or a stack of matrices.

Weights on the left, vectors, transposed inputs of a Gemm and weights with leading axes of size 1 become a plain product
between changes of layout.
"""

import math
from collections.abc import Sequence

import onnx_ir as ir

from emu.rewriter.batch import Batch
from emu.rewriter.dataflow import is_standard
from emu.rewriter.passes.expand_fused_body import Body, Names
from emu.rewriter.passes.fold_weights import constant_values
from emu.rewriter.shapes import Probes, probe


class OrientProductsPass(ir.passes.InPlacePass):
    """Turns MatMul and Gemm of the main graph so that an array can hold their weights; other products stay."""

    def __init__(self, batch: Batch) -> None:
        """`batch` says where the model's samples lie."""
        super().__init__()
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Products keep their names."""
        constants = constant_values(model.graph)
        candidates = [node for node in model.graph if _may_need_it(node, constants)]
        if not candidates:
            return ir.passes.PassResult(model, modified=False)
        probes = probe(model, self._batch)
        shapes = probes.base
        sizes = {node: [_sizes(each, probes) for each in node.inputs[:2]] for node in candidates}
        names, opset = Names(model.graph), model.opset_imports.get("", 1)
        modified = False
        for node in candidates:
            body = Body(node, opset, names, shapes.get)
            result = _gemm(body, constants) if node.op_type == "Gemm" else _matmul(body, constants, *sizes[node])
            if result is not None:
                body.swap([result])
                modified = True
        return ir.passes.PassResult(model, modified)


def _sizes(value: ir.Value | None, probes: Probes) -> Sequence[int | None] | None:
    """The sizes of an operand, None for those that a run decides; None where not even their number is known."""
    shape = probes.base.get(value)
    return None if shape is None else probes.certain(value) or [None] * len(shape)


def _may_need_it(node: ir.Node, constants: set[ir.Value]) -> bool:
    if not is_standard(node) or node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is None:
        return False
    left, right = node.inputs[0], node.inputs[1]
    if left in constants and right in constants:
        return False  # computed when the model is written
    if node.op_type == "Gemm":
        return right not in constants or bool(node.attributes.get_int("transA", 0))
    plain = right is not None and right.shape is not None and len(right.shape) == 2
    known = all(value is not None and value.shape is not None and len(value.shape) > 1 for value in (left, right))
    return left in constants or (right in constants and not (plain and known)) or not known


def _gemm(body: Body, constants: set[ir.Value]) -> ir.Value | None:
    """Alpha A B + beta C with the weight on the right, or as a product of two activations and what is added to it."""
    attributes = body.node.attributes
    a, b, c = body.needed(0), body.needed(1), body.given(2)
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    if attributes.get_int("transA", 0):
        a = body.transpose(a, 1, 0)
    if b in constants:
        operands = [a, b] if c is None else [a, b, c]
        transposed = attributes.get_int("transB", 0)
        return body.op("Gemm", *operands, name=body.node.name, alpha=alpha, beta=beta, transB=transposed)
    if attributes.get_int("transB", 0):
        b = body.transpose(b, 1, 0)
    if a in constants or body.needed(0) in constants:
        result = body.transpose(
            body.op("MatMul", body.transpose(b, 1, 0), body.transpose(a, 1, 0), name=body.node.name), 1, 0
        )
    else:
        result = body.op("MatMul", a, b, name=body.node.name)
    if alpha != 1.0:
        result = body.op("Mul", result, body.number(alpha))
    if c is not None and beta != 0.0:
        result = body.op("Add", result, c if beta == 1.0 else body.op("Mul", c, body.number(beta)))
    return result


def _matmul(
    body: Body, constants: set[ir.Value], of_left: Sequence[int | None] | None, of_right: Sequence[int | None] | None
) -> ir.Value | None:
    left, right = body.needed(0), body.needed(1)
    if of_left is None or of_right is None:
        return None
    if left in constants:
        return _turned(body, left, right, of_left, of_right)
    if right in constants or len(of_left) == 1 or len(of_right) == 1:
        return _straight(body, left, right, of_left, of_right)
    return None


def _turned(
    body: Body, weight: ir.Value, x: ir.Value, of_weight: Sequence[int | None], of_x: Sequence[int | None]
) -> ir.Value | None:
    """W x as (x^T W^T)^T."""
    if len(of_x) < 2:
        column = body.with_axes("Unsqueeze", x, [1])
        result = _turned(body, weight, column, of_weight, [*of_x, 1])
        return None if result is None else body.with_axes("Squeeze", result, [-1])
    turned = _swapped(body, x, len(of_x))
    if len(of_weight) == 1:
        result = body.op("MatMul", turned, body.with_axes("Unsqueeze", weight, [1]), name=body.node.name)
        return body.with_axes("Squeeze", result, [-1])
    across = _swapped(body, weight, len(of_weight))
    sizes = [*of_x[:-2], of_x[-1], of_x[-2]], [*of_weight[:-2], of_weight[-1], of_weight[-2]]
    result = _straight(body, turned, across, *sizes)
    if result is None:
        result = body.op("MatMul", turned, across, name=body.node.name)
    return _swapped(body, result, max(len(of_x), len(of_weight)))


def _straight(
    body: Body, x: ir.Value, weight: ir.Value, of_x: Sequence[int | None], of_weight: Sequence[int | None]
) -> ir.Value | None:
    """X W with x of two dimensions or more and W a matrix, or a stack where several leading sizes ask for it."""
    leading = [size or 0 for size in of_weight[:-2]]  # a weight has no free sizes
    several = [size for size in leading if size != 1]
    if len(several) > 1:
        return _flat_stack(body, x, weight, of_x, of_weight)
    if len(of_x) > 1 and len(of_weight) > 1 and (not leading or leading[0] > 1):
        return None  # it is so already, or holds several matrices
    squeezed = []
    if len(of_x) == 1:
        x, of_x = body.with_axes("Unsqueeze", x, [0]), [1, *of_x]
        squeezed.append(-2)
    if len(of_weight) == 1:
        weight, of_weight = body.with_axes("Unsqueeze", weight, [1]), [*of_weight, 1]
        squeezed.append(-1)
    while leading and leading[0] == 1:
        leading.pop(0)
    ones = len(of_weight) - 2 - len(leading)
    if ones:
        if len(of_x) < len(of_weight):
            x = body.with_axes("Unsqueeze", x, list(range(len(of_weight) - len(of_x))))
        weight = body.with_axes("Squeeze", weight, list(range(ones)))
    result = body.op("MatMul", x, weight, name=body.node.name)
    return body.with_axes("Squeeze", result, squeezed) if squeezed else result


def _flat_stack(
    body: Body, x: ir.Value, weight: ir.Value, of_x: Sequence[int | None], of_weight: Sequence[int | None]
) -> ir.Value | None:
    """X W for a weight [.., G, H, K, N] as a product with the stack [G * H, K, N]; None where X fits no such stack."""
    if len(of_x) < 2:
        return None
    leading = [size or 0 for size in of_weight[:-2]]
    while leading[0] == 1:
        leading.pop(0)
    depth, missing = len(leading), max(0, len(of_weight) - len(of_x))
    own = ([1] * missing + list(of_x[:-2]))[-depth:]
    if any(size not in (1, wanted) for size, wanted in zip(own, leading, strict=True)):
        return None
    if missing:
        x = body.with_axes("Unsqueeze", x, list(range(missing)))
    if own != leading and any(size != 1 for size in own):
        x = body.op("Expand", x, body.ints(*leading, 1, 1))
        own = [*leading]
    rank = max(len(of_x), len(of_weight))
    sizes = body.op("Shape", x)
    before = [body.slice(sizes, 0, 0, rank - 2 - depth)] if rank - 2 > depth else []
    rows = body.slice(sizes, 0, rank - 2, rank - 1)
    flat = body.op("Concat", *before, body.ints(math.prod(size or 0 for size in own)), rows, body.ints(-1), axis=0)
    stack = body.reshape(weight, math.prod(leading), of_weight[-2] or 0, of_weight[-1] or 0)
    product = body.op("MatMul", body.op("Reshape", x, flat), stack, name=body.node.name)
    whole = body.op("Concat", *before, body.ints(*leading), rows, body.ints(of_weight[-1] or 0), axis=0)
    return body.op("Reshape", product, whole)


def _swapped(body: Body, value: ir.Value, rank: int) -> ir.Value:
    """The last two axes in the other order."""
    return body.transpose(value, *range(rank - 2), rank - 1, rank - 2)
