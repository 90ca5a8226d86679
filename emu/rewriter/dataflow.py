"""How data moves through a graph: which inputs of a node carry data, and what lies upstream and downstream."""

from collections import deque
from collections.abc import Iterator
from functools import cached_property

import onnx_ir as ir

# Operators whose other inputs steer (shapes, indices, axes, conditions) and carry no data; all others: every input.
_DATA_INPUTS: dict[str, tuple[int, ...]] = {
    "Shape": (),
    "Size": (),
    "Range": (),
    "ConstantOfShape": (),
    "EyeLike": (),
    "RandomNormalLike": (),
    "RandomUniformLike": (),
    "Where": (1, 2),
    "Scatter": (0, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "TensorScatter": (0, 1),
    **dict.fromkeys(
        [
            "Reshape",
            "CastLike",
            "CenterCropPad",
            "Col2Im",
            "ReverseSequence",
            "RotaryEmbedding",
            "SequenceAt",
            "SplitToSequence",
            "Expand",
            "Slice",
            "Gather",
            "GatherElements",
            "GatherND",
            "Squeeze",
            "Unsqueeze",
            "Split",
            "Tile",
            "Pad",
            "Clip",
            "Dropout",
            "Trilu",
            "CumSum",
            "TopK",
            "Resize",
            "OneHot",
            "Compress",
            "ReduceSum",
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceL2",
            "QuantizeLinear",
            "DequantizeLinear",
        ],
        (0,),
    ),
}
# Operators that pick data by an index: an index that comes from a model input makes the result depend on that input.
_INDEX_INPUTS = {"Gather": (1,), "GatherElements": (1,), "GatherND": (1,), "Where": (0,), "OneHot": (0,)}


def is_standard(node: ir.Node) -> bool:
    """Whether the node is of ONNX's own operator set."""
    return node.domain in ("", "ai.onnx")


def has_subgraph(node: ir.Node) -> bool:
    """Whether the node is control flow: If, Loop, Scan."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None for what is computed or given at run time."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def sizes_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor, as plain numbers."""
    return tuple(size for size in tensor.shape if isinstance(size, int))  # a tensor has no symbolic sizes


def _is_quantization_parameter(value: ir.Value) -> bool:
    """Whether it is the scale or the zero point that DynamicQuantizeLinear found."""
    node = value.producer()
    return node is not None and node.op_type == "DynamicQuantizeLinear" and value is not node.outputs[0]


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Values of the enclosing graphs that the node's subgraphs (If, Loop, Scan) use: inputs that it does not list."""
    captured: dict[ir.Value, None] = {}
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type is ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            inner = list(graph.all_nodes())
            made = {value for each in inner for value in each.outputs} | set(graph.inputs)
            made |= set(graph.initializers.values())
            made |= {v for g in graph.subgraphs() for v in (*g.inputs, *g.initializers.values())}
            used = [value for each in inner for value in each.inputs] + list(graph.outputs)
            captured |= {value: None for value in used if value is not None and value not in made}
    return list(captured)


class DataFlow:
    """The data edges of a model's main graph. Masks steer nothing here: shapes, indices and conditions are no data."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: list[ir.Node] = list(graph)
        self.position = {node: place for place, node in enumerate(self.nodes)}
        self._captured = {node: captured_values(node) for node in self.nodes if has_subgraph(node)}

    def data_inputs(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that carry data, in order; values that subgraphs capture included."""
        places = _DATA_INPUTS.get(node.op_type) if is_standard(node) else None
        inputs = node.inputs if places is None else [node.inputs[i] for i in places if i < len(node.inputs)]
        # The scale of a dynamic quantization says nothing about where the data go.
        data = [value for value in inputs if value is not None and not _is_quantization_parameter(value)]
        return data + self._captured.get(node, [])

    @cached_property
    def users(self) -> dict[ir.Value, list[ir.Node]]:
        """The nodes that read a value as data, in graph order."""
        users: dict[ir.Value, list[ir.Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(self.data_inputs(node)):
                users.setdefault(value, []).append(node)
        return users

    @cached_property
    def depends_on_inputs(self) -> set[ir.Value]:
        """Values that change with the data given to the model, not merely with its shapes."""
        reached = set(self.graph.inputs)
        for node in self.nodes:
            places = _INDEX_INPUTS.get(node.op_type, ()) if is_standard(node) else ()
            steering = [node.inputs[i] for i in places if i < len(node.inputs)]
            if any(value in reached for value in (*self.data_inputs(node), *steering)):
                reached.update(node.outputs)
        return reached

    def upstream(self, value: ir.Value, stop: set[ir.Node]) -> Iterator[tuple[ir.Node, bool]]:
        """Nodes that `value` is computed from, nearest first, and whether every way there picks by index.

        Nodes in `stop` are given but not passed. A node is given a second time if a way without picking (Gather...)
        turns up after one with it.
        """
        seen: set[tuple[ir.Node, bool]] = set()
        queue: deque[tuple[ir.Value, bool]] = deque([(value, False)])
        while queue:
            current, picked = queue.popleft()
            node = current.producer()
            if node is None or (node, picked) in seen or (node, False) in seen or node not in self.position:
                continue
            seen.add((node, picked))
            yield node, picked
            if node not in stop:
                picks = picked or node.op_type in ("GatherElements", "GatherND")
                queue.extend((each, picks) for each in self.data_inputs(node))

    def downstream(self, value: ir.Value, stop: set[ir.Node]) -> Iterator[tuple[ir.Node, ir.Value]]:
        """Nodes that use `value`, nearest first, each with the input it is reached by; `stop` is given, not passed."""
        seen: set[ir.Node] = set()
        queue = deque([value])
        while queue:
            current = queue.popleft()
            for node in self.users.get(current, []):
                if node in seen:
                    continue
                seen.add(node)
                yield node, current
                if node not in stop:
                    queue.extend(node.outputs)

    def masks(self, marked: list[ir.Node]) -> dict[ir.Node, int]:
        """For every node, which of the marked nodes are upstream of it: bit i for `marked[i]`, itself not included."""
        own = {node: 1 << place for place, node in enumerate(marked)}
        after: dict[ir.Value, int] = {}
        masks: dict[ir.Node, int] = {}
        for node in self.nodes:
            mask = 0
            for value in self.data_inputs(node):
                mask |= after.get(value, 0)
            masks[node] = mask
            for value in node.outputs:
                after[value] = mask | own.get(node, 0)
        return masks
