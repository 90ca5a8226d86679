"""Adds nodes and constants to a graph, under names that nothing else in it has."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.dataflow import tensor_of


class GraphBuilder:
    """Adds nodes and constants to a graph under names that nothing else has."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph = graph
        self.model_name = name
        self._added: list[ir.Node] = []
        values = {*graph.inputs, *graph.initializers.values()}
        for node in graph.all_nodes():
            values.update(node.outputs)
        for inner in graph.subgraphs():
            values.update((*inner.inputs, *inner.initializers.values()))
        self._values = {value.name for value in values}
        self._nodes = {node.name for node in graph.all_nodes()}

    def reserve(self, name: str) -> None:
        """Takes a name that must be free.

        Raises:
            InputError: the model uses it.

        """
        if name in self._values or name in self._nodes:
            raise InputError(
                f"{self.model_name} already has a value or node named '{name}', a name that emu needs: rename it."
            )
        self._values.add(name)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer from an array."""
        return self.initializer(name, ir.tensor(array))

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer."""
        return add_initializer(self.graph, _fresh(name, self._values), tensor)

    def as_initializer(self, value: ir.Value) -> ir.Value:
        """The initializer with the content of a constant: itself, or a new one for what a Constant node holds."""
        tensor = tensor_of(value)
        assert tensor is not None, "only for constants"
        return value if value.is_initializer() else self.constant(f"{value.name}.stored", tensor.numpy())

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int | float | str | list[int]
    ) -> ir.Value:
        """A new plain ONNX node with one output, not yet in the graph: see `insert_first` and `swap`."""
        output = ir.Value(name=_fresh(name, self._values))
        node = ir.node(op_type, inputs, attributes, outputs=[output], name=_fresh(name, self._nodes))
        self._added.append(node)
        return output

    def add(self, node: ir.Node, suffix: str = "product") -> ir.Value:
        """Adds a finished node whose output has no name yet: it is named after the node."""
        output = node.outputs[0]
        output.name = _fresh(f"{node.name}.{suffix}", self._values)
        self._added.append(node)
        return output

    def insert_first(self) -> None:
        """Puts the nodes made so far before all others."""
        first = next(iter(self.graph))
        self.graph.insert_before(first, self._added)
        self._added = []

    def insert_after(self, node: ir.Node) -> None:
        """Puts the nodes made so far behind another one."""
        self.graph.insert_after(node, self._added)
        self._added = []

    def swap(self, old: ir.Node, result: ir.Value) -> None:
        """Puts the nodes made so far in the place of `old`, whose output `result` becomes."""
        output = old.outputs[0]
        result.name, result.shape, result.type = output.name, output.shape, output.type
        result.metadata_props.update(output.metadata_props)
        self.graph.insert_before(old, self._added)
        self._added = []
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        unused = [value for value in old.inputs if value is not None]
        self.graph.remove(old, safe=True)
        for value in unused:
            if value.is_initializer() and value.name and not value.uses() and not value.is_graph_output():
                self.graph.initializers.pop(value.name, None)


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer; the name must be free."""
    tensor.name = name
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _fresh(name: str, taken: set[str | None]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
