"""Computes single nodes of a graph whose inputs are known, with onnx's reference implementation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from emu.rewriter.dataflow import has_subgraph, is_standard

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")

# Operators that the reference implementation has from some opset on only; older models mean the same by them.
_OLDEST_IMPLEMENTED = {"QuantizeLinear": 19, "DequantizeLinear": 19}

_LARGEST_GROWN = 1 << 28  # elements that an operator may make of a few numbers: 1 GiB of float32

# How many elements these operators make by what their inputs say, not by how many they are given.
_GROWN: dict[str, Callable[..., float]] = {
    "ConstantOfShape": lambda shape: math.prod(map(int, shape)),
    "Expand": lambda x, shape: x.size * math.prod(max(1, int(size)) for size in shape),
    "Tile": lambda x, repeats: x.size * math.prod(map(int, repeats)),
    "Range": lambda start, limit, step: abs(int(limit) - int(start)) / max(abs(float(step)), 1e-30),
    "OneHot": lambda indices, depth, _: indices.size * int(np.asarray(depth).reshape(-1)[0]),
    "Pad": lambda x, pads, *_: math.prod(size + 2 * max(map(abs, map(int, pads)), default=0) for size in x.shape),
    "Resize": lambda x, *others: _resized(x, others),
    "Upsample": lambda x, scales: x.size * math.prod(map(float, scales)),
}


def _resized(x: np.ndarray, others: Sequence[np.ndarray | None]) -> float:
    _, scales, sizes = (*others, None, None, None)[:3]
    if sizes is not None and len(sizes):
        return math.prod(map(int, sizes))
    return x.size * math.prod(map(float, scales if scales is not None else ()))


def is_random(node: ir.Node) -> bool:
    """Whether the node draws random numbers."""
    return node.op_type in _RANDOM


class NodeEvaluator:
    """Computes nodes of one model. Nodes that differ only in their names share one compiled evaluator."""

    def __init__(self, model: ir.Model) -> None:
        self._opset = model.opset_imports.get("", 1)
        self._compiled: dict[bytes, ReferenceEvaluator] = {}

    def can_run(self, node: ir.Node) -> bool:
        """Whether the node is a plain function of its inputs in ONNX's own operator set."""
        return is_standard(node) and not is_random(node) and not has_subgraph(node)

    def run(self, node: ir.Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """The outputs of `node` for these inputs (None where it has no input).

        Raises:
            Exception: whatever the reference implementation raises for inputs that the node cannot take, and
                `ValueError` for a result that no memory holds: numpy ends the process over some of these.

        """
        grown = _GROWN.get(node.op_type)
        if grown is not None and grown(*inputs) > _LARGEST_GROWN:
            raise ValueError("its result is too large to be held in memory")
        # Built anew rather than copied: an output that was folded before has no name any more.
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
        proto.input.extend(f"input_{i}" if value is not None else "" for i, value in enumerate(inputs))
        proto.output.extend(f"output_{i}" for i in range(len(node.outputs)))
        key = proto.SerializeToString()
        if key not in self._compiled:
            self._compiled[key] = self._compile(proto)
        feeds: dict[str, Any] = {f"input_{i}": value for i, value in enumerate(inputs) if value is not None}
        return [np.asarray(output) for output in self._compiled[key].run(None, feeds)]

    def _compile(self, proto: onnx.NodeProto) -> ReferenceEvaluator:
        untyped = onnx.TypeProto()
        graph = onnx.helper.make_graph(
            [proto],
            "node",
            [onnx.helper.make_value_info(name, untyped) for name in proto.input if name],
            [onnx.helper.make_value_info(name, untyped) for name in proto.output],
        )
        opset = max(self._opset, _OLDEST_IMPLEMENTED.get(proto.op_type, 1))
        return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]))
