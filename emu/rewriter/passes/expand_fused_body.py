"""Writes the plain ONNX nodes that take the place of one fused node."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.dataflow import sizes_of

# An operator whose inputs and attributes moved between opsets: the first opset that takes its axes as an input.
_AXES_ARE_INPUTS = {"Unsqueeze": 13, "Squeeze": 13, "ReduceSum": 13, "ReduceMean": 18}
_LARGEST = {
    ir.DataType.FLOAT: float(np.finfo(np.float32).max),
    ir.DataType.FLOAT16: float(np.finfo(np.float16).max),
    ir.DataType.BFLOAT16: 2.0**128 - 2.0**120,
}


class UnknownShapeError(Exception):
    """An expansion needs the number of dimensions of a value, which is not known."""

    def __init__(self, value: ir.Value) -> None:
        """`value` is the value in question."""
        super().__init__(value.name)
        self.value = value


class Names:
    """The names of a graph that are taken."""

    def __init__(self, graph: ir.Graph) -> None:
        """Collects the names of all values of a graph and its subgraphs."""
        values = {*graph.inputs, *graph.initializers.values()}
        for node in graph.all_nodes():
            values.update(node.outputs)
        for inner in graph.subgraphs():
            values.update((*inner.inputs, *inner.initializers.values()))
        self._taken = {value.name for value in values}

    def fresh(self, name: str) -> str:
        """Takes `name`, with a number behind it if it is not free."""
        number, free = 1, name
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free


class Body:
    """The plain nodes in the place of one fused node, made one by one and put into the graph by `swap`.

    Attributes:
        node: the fused node.
        opset: the version of ONNX's own operator set.
        precision: the type of the node's real numbers.

    """

    def __init__(
        self,
        node: ir.Node,
        opset: int,
        names: Names,
        shape_of: Callable[[ir.Value], Sequence[int | None] | None],
        precision: ir.DataType = ir.DataType.FLOAT,
    ) -> None:
        """`shape_of` gives the shape of a value with None for sizes that are not numbers, or None."""
        self.node = node
        self.opset = opset
        self.precision = precision
        self._names = names
        self._shape_of = shape_of
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []

    def given(self, place: int) -> ir.Value | None:
        """The input at `place`, None where the node has none."""
        return self.node.inputs[place] if place < len(self.node.inputs) else None

    def needed(self, place: int) -> ir.Value:
        """The input at `place`.

        Raises:
            InputError: the node has none.

        """
        value = self.given(place)
        if value is None:
            raise InputError(f"Node '{self.node.name}' ({self.node.op_type}) lacks its input {place}: export it again.")
        return value

    def count(self, attribute: str) -> int:
        """An attribute that must be there and positive, such as a number of heads.

        Raises:
            InputError: it is missing, or not positive.

        """
        number = self.node.attributes.get_int(attribute, 0)
        if number <= 0:
            raise InputError(
                f"Node '{self.node.name}' ({self.node.op_type}) needs the attribute {attribute}, 1 or more: "
                "export it again."
            )
        return number

    def is_used(self, place: int) -> bool:
        """Whether anything reads the output at `place`."""
        return is_used(self.node, place)

    def shape(self, value: ir.Value) -> Sequence[int | None]:
        """The shape of an input, None for sizes that are not numbers.

        Raises:
            UnknownShapeError: not even the number of dimensions is known.

        """
        shape = self._shape_of(value)
        if shape is None:
            raise UnknownShapeError(value)
        return shape

    def rank(self, value: ir.Value) -> int:
        """The number of dimensions of an input.

        Raises:
            UnknownShapeError: it is not known.

        """
        return len(self.shape(value))

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str | None = None,
        **attributes: int | float | str | list[int] | list[float],
    ) -> ir.Value:
        """A new node of ONNX's own operator set; its only output.

        `name` is the node's whole name; without it, the node is named after the fused one and its operator.
        """
        label = name or f"{self.node.name}/{op_type}"
        output = ir.Value(name=self._names.fresh(f"{label}.output"))
        self._nodes.append(
            ir.node(
                op_type,
                inputs,
                attributes,
                outputs=[output],
                name=label,
                metadata_props=dict(self.node.metadata_props),
            )
        )
        return output

    def add(self, node: ir.Node) -> None:
        """A finished node, of another operator set or with several outputs."""
        self._nodes.append(node)

    def constant(self, array: np.ndarray | np.generic, label: str = "constant") -> ir.Value:
        """A constant."""
        name = self._names.fresh(f"{self.node.name}/{label}")
        tensor = ir.tensor(np.asarray(array), name=name)
        shape = ir.Shape(sizes_of(tensor))
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._constants.append(value)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector."""
        return self.constant(np.array(numbers, dtype=np.int64))

    def number(self, number: float) -> ir.Value:
        """A scalar of the node's precision; what is out of its range becomes its largest or lowest number."""
        largest = _LARGEST[self.precision]
        return self.constant(np.array(min(max(number, -largest), largest), dtype=self.precision.numpy()))

    def with_axes(self, op_type: str, value: ir.Value, axes: list[int], keepdims: int | None = None) -> ir.Value:
        """Unsqueeze, Squeeze, ReduceSum or ReduceMean along axes."""
        attributes: dict[str, Any] = {} if keepdims is None else {"keepdims": keepdims}
        if self.opset >= _AXES_ARE_INPUTS[op_type]:
            return self.op(op_type, value, self.ints(*axes), **attributes)
        return self.op(op_type, value, axes=axes, **attributes)

    def reshape(self, value: ir.Value, *sizes: int) -> ir.Value:
        """A Reshape; 0 keeps a size, -1 takes what is left."""
        return self.op("Reshape", value, self.ints(*sizes))

    def transpose(self, value: ir.Value, *order: int) -> ir.Value:
        """A Transpose."""
        return self.op("Transpose", value, perm=list(order))

    def slice(self, value: ir.Value, axis: int, start: ir.Value | int, stop: ir.Value | int, step: int = 1) -> ir.Value:
        """A Slice along one axis; `start` and `stop` are numbers or int64 [1]."""
        first, last = (self.ints(each) if isinstance(each, int) else each for each in (start, stop))
        return self.op("Slice", value, first, last, self.ints(axis), self.ints(step))

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of an axis, as int64 [1]."""
        return self.op("Gather", self.op("Shape", value), self.ints(axis), axis=0)

    def range(self, stop: ir.Value) -> ir.Value:
        """0, 1, ..., `stop` - 1 as int64 [stop], for `stop` int64 [1]."""
        zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
        return self.op("Range", zero, self.with_axes("Squeeze", stop, [0]), one)

    def swap(self, results: Sequence[ir.Value | None]) -> None:
        """Puts the nodes in the place of the fused node, with `results` in the place of its outputs."""
        graph = self.node.graph
        assert isinstance(graph, ir.Graph), "fused nodes of the main graph are expanded"
        used = {value for node in self._nodes for value in node.inputs}
        for constant in self._constants:
            if constant in used:
                graph.register_initializer(constant)
        graph.insert_before(self.node, self._nodes)
        for old, new in zip(self.node.outputs, results, strict=False):
            if new is None:
                continue
            name, old.name = old.name, None
            new.name, new.shape, new.type = name, old.shape, old.type
            new.metadata_props.update(old.metadata_props)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        before = [value for value in self.node.inputs if value is not None]
        graph.remove(self.node, safe=True)
        for value in before:
            if value.is_initializer() and value.name and not value.uses() and not value.is_graph_output():
                graph.initializers.pop(value.name, None)


def is_used(node: ir.Node, place: int) -> bool:
    """Whether anything reads an output of a node."""
    if place >= len(node.outputs):
        return False
    output = node.outputs[place]
    return bool(output.uses()) or output.is_graph_output()
