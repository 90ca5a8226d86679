"""Finds stored weights behind Expand, Tile and CastLike: an activation decides on their shape, not on their numbers.

`torch.bmm(x, w.expand(batch, -1, -1))` multiplies with one weight; every sample's own copy of it is no operand that a
chip would write at run time.
"""

import math

import numpy as np
import onnx_ir as ir

from emu.rewriter.batch import Batch
from emu.rewriter.builder import add_initializer
from emu.rewriter.dataflow import DataFlow, is_standard, sizes_of, tensor_of
from emu.rewriter.node_evaluator import NodeEvaluator
from emu.rewriter.passes.expand_fused_body import Body, Names
from emu.rewriter.passes.fold_weights import constant_nodes, constant_values, remove_unused
from emu.rewriter.shapes import Probes, Shapes, probe

_OPERANDS = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,), "Einsum": (0, 1)}
_REPEATS = ("Expand", "Tile")


class StoreRepeatedPass(ir.passes.InPlacePass):
    """Gives products the weight itself in the place of copies of it that are made for every sample."""

    def __init__(self, batch: Batch) -> None:
        """`batch` says where the model's samples lie."""
        super().__init__()
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at the operands of every product of the main graph that do not depend on the data."""
        flow = DataFlow(model.graph)
        constants = constant_values(model.graph)
        candidates = [
            (node, place)
            for node in model.graph
            if is_standard(node)
            for place in _OPERANDS.get(node.op_type, ())
            if _is_candidate(node, place, flow, constants)
        ]
        if not candidates:
            return ir.passes.PassResult(model, modified=False)
        found = _Weights(model, probe(model, self._batch), constants)
        modified = False
        for node, place in candidates:
            old = node.inputs[place]
            weight = found.of(node, place)
            if weight is None or old is None or node.graph is None:
                continue
            modified = True
            if found.inner_copies(node, old, weight):
                _by_sample(model, node, weight, found)
            else:
                node.replace_input_with(place, weight)
            _remove(model.graph, old)
        return ir.passes.PassResult(model, modified)


def _is_candidate(node: ir.Node, place: int, flow: DataFlow, constants: set[ir.Value]) -> bool:
    """Whether the content of an operand is the same for all data, and is no plain [K, N] constant."""
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None or value.is_graph_input() or value in flow.depends_on_inputs:
        return False
    if not any(each in flow.depends_on_inputs for each in node.inputs):
        return False  # what no activation passes is no product of a chip
    if place == 0 and value not in constants:  # such as learned queries that are repeated for every sample
        return False
    if value not in constants:
        return True
    tensor = tensor_of(value)
    repeats = any(each.op_type in _REPEATS for each in constant_nodes(value, constants))
    return node.op_type == "MatMul" and place == 1 and (repeats or (tensor is not None and len(sizes_of(tensor)) > 2))


class _Weights:
    """Computes what lies behind operands, at all the sizes that were tried."""

    def __init__(self, model: ir.Model, probes: Probes, constants: set[ir.Value]) -> None:
        self._graph = model.graph
        self._evaluator = NodeEvaluator(model)
        self._probes = probes
        self._constants = constants
        self._names = Names(model.graph)
        self._made: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}

    @property
    def names(self) -> Names:
        return self._names

    @property
    def probes(self) -> Probes:
        return self._probes

    def of(self, node: ir.Node, place: int) -> ir.Value | None:
        """The constant that an operand repeats, None where it is more than that."""
        value = node.inputs[place]
        assert value is not None, "looked at before"
        source = self._repeated_source(node, place, value)
        if source is not None:
            return source
        arrays = []
        for each in (self._probes.base, self._probes.more_samples, self._probes.longer):
            array = _array(value, each, self._evaluator, {})
            if array is None:
                return None
            arrays.append(array)
        if len({array.ndim for array in arrays}) > 1:
            return None
        core = arrays[0]
        for axis in range(max(0, core.ndim - 2) if node.op_type == "MatMul" else 0):
            sizes = [array.shape[axis] for array in arrays]
            period = math.gcd(*sizes)
            if len(set(sizes)) == 1 and (not self._all_alike(core, axis) or not self._fits(node, value, axis)):
                continue
            if len(set(sizes)) == 1:
                period = 1
            core = core.take(range(period), axis=axis)
        for array in arrays:
            copies = [a // b if b and a % b == 0 else 0 for a, b in zip(array.shape, core.shape, strict=True)]
            if not all(copies) or not np.array_equal(np.tile(core, copies), array):
                return None
        if value in self._constants and core.shape == arrays[0].shape:
            return None  # nothing is repeated: it is folded like any other constant
        key = value, core.shape
        if key not in self._made:
            name = self._names.fresh(f"{value.name}.weight")
            self._made[key] = add_initializer(self._graph, name, ir.tensor(np.ascontiguousarray(core)))
        return self._made[key]

    def _repeated_source(self, node: ir.Node, place: int, value: ir.Value) -> ir.Value | None:
        """The constant before an Expand or Tile of leading axes alone: it keeps its integer codes."""
        repeat = value.producer()
        if node.op_type != "MatMul" or repeat is None or repeat.op_type not in _REPEATS or not is_standard(repeat):
            return None
        source = repeat.inputs[0]
        if source is None or source not in self._constants:
            return None
        before, after = self._probes.base.get(source), self._probes.base.get(value)
        if before is None or after is None or len(before) < 2 or before[-2:] != after[-2:]:
            return None
        leading = (1,) * (len(after) - len(before)) + before[:-2]
        grown = [axis for axis, (old, new) in enumerate(zip(leading, after[:-2], strict=True)) if old != new]
        alone = all(leading[axis] == 1 and self._fits(node, value, axis) for axis in grown)
        return source if alone and grown else None

    def _all_alike(self, array: np.ndarray, axis: int) -> bool:
        return array.shape[axis] > 1 and bool((array == array.take([0], axis=axis)).all())

    def _fits(self, node: ir.Node, value: ir.Value, axis: int) -> bool:
        """Whether the other operand is as long as `value` along a leading axis: then copies change no shape.

        An axis of free size must be as long, or the original would not run.
        """
        other = next((each for each in node.inputs if each is not value), None)
        pairs = []
        for shapes in (self._probes.base, self._probes.more_samples, self._probes.longer):
            own, others = shapes.get(value), shapes.get(other)
            if own is None or others is None or len(others) < len(own) - axis:
                return False
            pairs.append((own[axis], others[axis - len(own)]))
        free = len({size for _, size in pairs}) > 1
        return free or all(own == size for own, size in pairs)

    def inner_copies(self, node: ir.Node, old: ir.Value, weight: ir.Value) -> bool:
        """Whether weights are repeated along an axis that holds several of them: [batch * heads, K, N]."""
        before, tensor = self._probes.base.get(old), tensor_of(weight)
        if before is None or tensor is None or node.op_type != "MatMul":
            return False
        sizes = sizes_of(tensor)
        return len(sizes) == len(before) == 3 and 1 < sizes[0] < before[0]


def _by_sample(model: ir.Model, node: ir.Node, weight: ir.Value, found: _Weights) -> None:
    """X [batch * stack, M, K] times a weight [stack, K, N]: x is seen as [batch, stack, M, K] for it."""
    tensor = tensor_of(weight)
    assert tensor is not None, "it was made just now"
    stack, _, columns = sizes_of(tensor)
    body = Body(node, model.opset_imports.get("", 1), found.names, found.probes.base.get)
    x = body.needed(0)
    split = body.op("Concat", body.ints(-1, stack), body.size(x, 1), body.size(x, 2), axis=0)
    product = body.op("MatMul", body.op("Reshape", x, split), weight, name=node.name)
    back = body.op("Concat", body.ints(-1), body.size(x, 1), body.ints(columns), axis=0)
    body.swap([body.op("Reshape", product, back)])


def _array(
    value: ir.Value, shapes: Shapes, evaluator: NodeEvaluator, known: dict[ir.Value, np.ndarray | None]
) -> np.ndarray | None:
    """The content of a value that depends on the data by their shapes and types alone; None where it cannot be told."""
    if value in known:
        return known[value]
    known[value] = None
    tensor, node = tensor_of(value), value.producer()
    if tensor is not None:
        known[value] = tensor.numpy()
    elif value in shapes.known:
        known[value] = shapes.known[value]
    elif node is not None and is_standard(node):
        known[value] = _result(value, node, shapes, evaluator, known)
    return known[value]


def _result(
    value: ir.Value, node: ir.Node, shapes: Shapes, evaluator: NodeEvaluator, known: dict[ir.Value, np.ndarray | None]
) -> np.ndarray | None:
    if node.op_type in ("Shape", "Size"):
        return None  # of a value whose shape is unknown, or it would be known
    if node.op_type == "CastLike":
        array = None if node.inputs[0] is None else _array(node.inputs[0], shapes, evaluator, known)
        kind = shapes.dtype(node.inputs[1])
        return None if array is None or kind is None else array.astype(kind.numpy())
    if not evaluator.can_run(node):
        return None
    inputs = [None if each is None else _array(each, shapes, evaluator, known) for each in node.inputs]
    if any(array is None for each, array in zip(node.inputs, inputs, strict=True) if each is not None):
        return None
    try:
        return evaluator.run(node, inputs)[value.index() or 0]
    except Exception:  # the reference implementation lacks it, or cannot take these operands: nothing is told
        return None


def _remove(graph: ir.Graph, value: ir.Value) -> None:
    """Removes what computed a value that nothing reads any more."""
    pending = [value]
    while pending:
        node = pending.pop().producer()
        if node is None or any(each.uses() or each.is_graph_output() for each in node.outputs) or node.graph is None:
            continue
        before = [each for each in node.inputs if each is not None]
        remove_unused(graph, [node])
        pending.extend(before)
