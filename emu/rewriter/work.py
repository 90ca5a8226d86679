"""How many multiplications a node of products makes for one sample, where it is no site: what stays digital."""

import math
from collections.abc import Sequence

import onnx_ir as ir

from emu.rewriter.shapes import Probes


def macs_of(node: ir.Node, probes: Probes) -> int | None:
    """Multiply-accumulates of a node for one sample; None where they depend on a free size or cannot be told.

    Args:
        node: a MatMul, Gemm, Conv, ConvTranspose, Einsum, RNN, GRU or LSTM.
        probes: the model's shapes.

    """
    inputs = [None if value is None else probes.fixed(value) for value in node.inputs]
    output = probes.fixed(node.outputs[0])
    if any(shape is None or None in shape for shape in (output, *inputs[:2])):
        return None
    total = _total(node, [_numbers(shape) for shape in inputs], _numbers(output))
    if total is None:
        return None
    grows = probes.batch_axis(node.outputs[0]) is not None or probes.batch_axis(node.inputs[0]) is not None
    samples = probes.batch if grows else 1
    return total // samples if total % samples == 0 else total


def _numbers(shape: Sequence[int | None] | None) -> list[int]:
    return [size for size in shape or () if size is not None]


def _total(node: ir.Node, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> int | None:
    if node.op_type in ("MatMul", "Gemm"):
        first = inputs[0]
        turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0))
        depth = first[0] if turned else first[-1]
        return math.prod(output) * depth
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(inputs[1][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if node.op_type == "Einsum":
        terms = node.attributes.get_string("equation", "").replace(" ", "").split("->")[0].split(",")
        pairs = [pair for term, shape in zip(terms, inputs, strict=False) for pair in zip(term, shape, strict=False)]
        return None if any("." in term for term in terms) else math.prod(dict(pairs).values())
    if node.op_type in ("RNN", "GRU", "LSTM"):  # X [length, batch, width], W [directions, gates * hidden, width]
        steps, rows = math.prod(inputs[0][:2]), math.prod(inputs[1][:2])
        return steps * rows * (inputs[0][2] + node.attributes.get_int("hidden_size", 0))
    return None
