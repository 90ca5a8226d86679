"""Computes weights that a graph derives from constants: whatever stands between them and a product.

Products of constants are computed too (the `W + B A` of LoRA): what no activation passes is no product of a chip. After
it, the weight of every product is an initializer.
"""

from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.dataflow import has_subgraph, is_standard, sizes_of, tensor_of
from emu.rewriter.node_evaluator import NodeEvaluator, is_random
from emu.rewriter.passes.expand_quantized import is_quantized
from emu.rewriter.stored_types import keep_type_of

_WEIGHT_INPUTS = {"MatMul": (1,), "Gemm": (1, 2), "Conv": (1, 2)}
_SMALL = 64  # elements: shapes and axes are compared by content, weights by name


class FoldWeightsPass(ir.passes.InPlacePass):
    """Replaces computed constants at the operands of products by initializers; shared ones stay shared."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds the operands of every MatMul, Gemm and Conv of the main graph, and those products themselves."""
        evaluator = NodeEvaluator(model)
        constants = constant_values(model.graph)
        recipes = Recipes(constants)
        folded: dict[Hashable, ir.Value] = {}
        modified = False
        for node in list(model.graph):
            own = node.outputs[:1] if is_product(node) else ()
            for value in (*weight_operands(node), *own):
                nodes = constant_nodes(value, constants)
                if nodes and all(evaluator.can_run(each) for each in nodes):
                    _fold(model.graph, value, nodes, evaluator, recipes, folded)
                    modified = True
        return ir.passes.PassResult(model, modified)


class FoldCodesPass(ir.passes.InPlacePass):
    """Computes the codes, scales and zero points that quantized operators take, where they follow from constants."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at every input of the quantized operators of the main graph."""
        nodes = [node for node in model.graph if is_quantized(node)]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        evaluator = NodeEvaluator(model)
        constants = constant_values(model.graph)
        recipes = Recipes(constants)
        folded: dict[Hashable, ir.Value] = {}
        modified = False
        for value in [value for node in nodes for value in _present(node)]:
            before = constant_nodes(value, constants)
            if before and all(evaluator.can_run(each) for each in before):
                _fold(model.graph, value, before, evaluator, recipes, folded)
                modified = True
        return ir.passes.PassResult(model, modified)


def is_product(node: ir.Node) -> bool:
    """Whether the node is one of the plain products that sites are made of."""
    return is_standard(node) and node.op_type in _WEIGHT_INPUTS


def weight_operands(node: ir.Node) -> list[ir.Value]:
    """The inputs of a product that may hold a weight or a bias."""
    places = _WEIGHT_INPUTS.get(node.op_type, ()) if is_standard(node) else ()
    inputs = [node.inputs[i] for i in places if i < len(node.inputs)]
    return [value for value in inputs if value is not None]


def constant_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that follow from constants alone."""
    constants = {value for value in graph.initializers.values() if tensor_of(value) is not None}
    for node in graph:
        if has_subgraph(node) or is_random(node):
            continue
        if all(value is None or value in constants for value in node.inputs):
            constants.update(node.outputs)
    return constants


def constant_nodes(value: ir.Value, constants: set[ir.Value]) -> list[ir.Node]:
    """The nodes that compute `value` from constants alone, in order; none if it is no such value or is one itself."""
    nodes: dict[ir.Node, None] = {}
    first = value.producer() if value in constants else None
    pending = [] if first is None else [(first, False)]
    while pending:
        node, is_ready = pending.pop()
        if node in nodes:
            continue
        if is_ready:
            nodes[node] = None
            continue
        pending.append((node, True))
        before = (each.producer() for each in _present(node))
        pending.extend((each, False) for each in before if each is not None and each not in nodes)
    return list(nodes)


class Recipes:
    """Tells constants that are computed alike from the same initializers."""

    def __init__(self, constants: set[ir.Value]) -> None:
        """`constants` are the values that follow from constants alone."""
        self._constants = constants
        self._known: dict[ir.Value, Hashable] = {}
        self._numbers: dict[Hashable, int] = {}

    def of(self, value: ir.Value) -> Hashable:
        """How a constant is computed: equal for values that are computed alike."""
        for node in constant_nodes(value, self._constants):
            for each in node.outputs:
                self._own(each)
        return self._own(value)

    def _own(self, value: ir.Value | None) -> Hashable:
        """A number for each way to compute something, as constants may be used many times over."""
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = self._numbers.setdefault(self._way(value), len(self._numbers))
        return self._known[value]

    def _way(self, value: ir.Value) -> Hashable:
        tensor = tensor_of(value)
        if tensor is not None:
            small = tensor.size <= _SMALL
            return (tensor.dtype, sizes_of(tensor), tensor.tobytes()) if small else value
        node = value.producer()
        assert node is not None, "constant_values() follows from initializers"
        attributes = tuple(sorted((name, str(each.value)) for name, each in node.attributes.items()))
        return node.domain, node.op_type, value.index(), attributes, tuple(self._own(each) for each in node.inputs)


def _fold(
    graph: ir.Graph,
    value: ir.Value,
    nodes: list[ir.Node],
    evaluator: NodeEvaluator,
    recipes: Recipes,
    folded: dict[Hashable, ir.Value],
) -> None:
    source = value
    while (node := source.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        source = node.inputs[0]
    if source.producer() is not None:
        key = recipes.of(source)
        if key not in folded:
            folded[key] = _evaluated(graph, source, nodes, evaluator)
        source = folded[key]
    if source is not value:
        value.replace_all_uses_with(source, replace_graph_outputs=False)
        remove_unused(graph, nodes)


def _evaluated(graph: ir.Graph, value: ir.Value, nodes: list[ir.Node], evaluator: NodeEvaluator) -> ir.Value:
    """A new initializer with the content of `value`, which takes over its name unless a graph output needs it."""
    result = np.ascontiguousarray(_computed(value, nodes, evaluator))
    name = value.name or "weight"
    value.name = None if not value.is_graph_output() else value.name
    name = f"{name}.folded" if value.is_graph_output() else name
    initializer = ir.Value(
        name=name,
        shape=ir.Shape(result.shape),
        type=ir.TensorType(ir.DataType.from_numpy(result.dtype)),
        const_value=ir.tensor(result, name=name),
    )
    keep_type_of(initializer, nodes)
    graph.register_initializer(initializer)
    return initializer


def constant_array(value: ir.Value, constants: set[ir.Value], evaluator: NodeEvaluator) -> np.ndarray:
    """The content of a value that follows from constants alone."""
    return _computed(value, constant_nodes(value, constants), evaluator)


def _computed(value: ir.Value, nodes: list[ir.Node], evaluator: NodeEvaluator) -> np.ndarray:
    arrays: dict[ir.Value, np.ndarray] = {}
    for node in nodes:
        if tensor_of(node.outputs[0]) is None:
            inputs = [None if each is None else _array(each, arrays) for each in node.inputs]
            try:
                results = evaluator.run(node, inputs)
            except Exception as error:  # the reference implementation raises many kinds for operands that do not fit
                reason = " ".join(str(error).split())
                raise InputError(
                    f"Node '{node.name}' ({node.op_type}) cannot be computed from its constants: {reason}; "
                    "export the model again."
                ) from None
            arrays |= dict(zip(node.outputs, results, strict=False))
    return _array(value, arrays)


def _array(value: ir.Value, arrays: dict[ir.Value, np.ndarray]) -> np.ndarray:
    if value in arrays:
        return arrays[value]
    tensor = tensor_of(value)
    assert tensor is not None, "constant_nodes() gives nodes in order, from constants on"
    return tensor.numpy()


def remove_unused(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Removes those of `nodes` that nothing uses any more, and the initializers that only they used."""
    for node in reversed(nodes):
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        inputs = list(_present(node))
        graph.remove(node, safe=True)
        for value in inputs:
            if value.is_initializer() and not value.uses() and not value.is_graph_output() and value.name:
                graph.initializers.pop(value.name, None)


def _present(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None)
