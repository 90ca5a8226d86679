"""The shape of every value of a model when its symbolic dimensions have given sizes.

Exporters leave most inner shapes unknown. With numbers for the symbolic dimensions of the inputs, onnx's shape
inference for single nodes, and the small integer tensors computed along the way (Shape, Gather, Concat, ...), nearly
all of them follow. Two runs that differ in one size show which axes carry it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.batch import Batch, free_name
from emu.rewriter.dataflow import DataFlow, is_standard, sizes_of, tensor_of
from emu.rewriter.node_evaluator import NodeEvaluator

Shape = tuple[int, ...]
_LARGEST_KNOWN = 4096  # elements; tensors that steer shapes are smaller
_BYTES = onnx.TensorProto.UINT8
BATCHES = (2, 3)
LENGTHS = (8, 10)  # sizes for every symbolic dimension that is neither a batch nor part of an image


@dataclass(frozen=True)
class Shapes:
    """Shapes, element types and small known tensors of the values of a graph, for one choice of sizes."""

    shapes: Mapping[ir.Value, Shape]
    dtypes: Mapping[ir.Value, ir.DataType]
    known: Mapping[ir.Value, np.ndarray]
    conflicts: int

    def get(self, value: ir.Value | None) -> Shape | None:
        """The shape of a value, None where it could not be inferred."""
        return None if value is None else self.shapes.get(value)

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a value, None where it could not be inferred."""
        return None if value is None else self.dtypes.get(value)


@dataclass(frozen=True)
class Probes:
    """A model's shapes at two batch sizes, and at another length of its sequences.

    `base` and `more_samples` differ in the batch size alone, `base` and `longer` in all other symbolic sizes. Where a
    model fixes its sizes, they are the same. Free sides of an image have one likely size in all of them (`free_image`).
    """

    base: Shapes
    more_samples: Shapes
    longer: Shapes
    batch: int
    free_image: bool = False

    def batch_axis(self, value: ir.Value | None) -> int | None:
        """The first axis of `value` that grows with the batch, None where none does or shapes are unknown."""
        few, many = self.base.get(value), self.more_samples.get(value)
        if few is None or many is None or len(few) != len(many) or self.base is self.more_samples:
            return None
        pairs = zip(few, many, strict=True)
        grows = (axis for axis, (a, b) in enumerate(pairs) if a and a * BATCHES[1] == b * BATCHES[0])
        return next(grows, None)

    def certain(self, value: ir.Value | None) -> tuple[int | None, ...] | None:
        """The shape of `value` as the graph may rely on it: None for every axis whose size a run may change."""
        shape, more, fixed = self.base.get(value), self.more_samples.get(value), self.fixed(value)
        if shape is None or more is None or fixed is None or len(shape) != len(more):
            return None
        if self.free_image and tensor_of(value) is None:
            return (None,) * len(shape)
        return tuple(size if few == many else None for size, few, many in zip(fixed, shape, more, strict=True))

    def fixed(self, value: ir.Value | None) -> tuple[int | None, ...] | None:
        """The shape of `value`, None for axes whose size depends on symbolic dimensions other than the batch."""
        base, longer = self.base.get(value), self.longer.get(value)
        if base is None or longer is None or len(base) != len(longer):
            return None
        return tuple(a if a == b else None for a, b in zip(base, longer, strict=True))


def probe(model: ir.Model, batch: Batch) -> Probes:
    """Infers a model's shapes at two batch sizes and at two lengths."""
    inference = _Inference(model)
    images = list(_image_sizes(model))
    base, image = min(
        ((inference.run(_Sizes(batch, BATCHES[0], LENGTHS[0], size)), size) for size in images),
        key=lambda pair: pair[0].conflicts,
    )
    more = inference.run(_Sizes(batch, BATCHES[1], LENGTHS[0], image)) if batch.size is None else base
    longer = inference.run(_Sizes(batch, BATCHES[0], LENGTHS[1], image))
    longer = longer if longer.conflicts <= base.conflicts else base
    return Probes(base, more, longer, batch.size or BATCHES[0], images != [None])


def infer_shapes(model: ir.Model, batch: Batch, lengths: Mapping[str, int]) -> Shapes:
    """A model's shapes where symbolic dimensions have these sizes; others as `probe` has them."""
    image = next(_image_sizes(model))
    return _Inference(model).run(_Sizes(batch, BATCHES[0], LENGTHS[0], image, lengths))


def tokens_first(value: ir.Value, flow: DataFlow, probes: Probes) -> bool:
    """Whether [tokens * batch, K] was made from [tokens, batch, ...], or from [tokens, batch * heads, ...].

    Then samples change fastest along the rows.
    """
    shape = probes.base.get(value)
    for node, _ in flow.upstream(value, set()):
        source = node.inputs[0] if node.inputs else None
        if is_standard(node) and node.op_type == "Reshape" and source is not None:
            before = probes.base.get(source)
            if before is None or shape is None or len(before) < 3 or not before[0] or shape[0] % before[0]:
                return False
            samples = shape[0] // before[0]
            return probes.batch_axis(source) == 1 and samples % probes.batch == 0 and before[1] % samples == 0
        if probes.base.get(node.outputs[0]) != shape:
            return False
    return False


def whole_batch(model: ir.Model, batch: Batch, name: str) -> Batch:
    """The batch with all free dimensions that count samples: those that the model can only run with as one size.

    Raises:
        InputError: free dimensions of equal right need not be equal (images and texts of a model of both), so which
            of them is the batch cannot be told.

    """
    inference = _Inference(model)

    def conflicts(symbols: frozenset[str]) -> int:
        return inference.run(_Sizes(replace(batch, symbols=symbols), BATCHES[0], LENGTHS[0], None)).conflicts

    if len(batch.symbols) > 1:
        together = conflicts(batch.symbols)
        for symbol in sorted(batch.symbols):
            if conflicts(batch.symbols - {symbol}) <= together:
                _refuse_two_batches(model, batch, name)
    leading = {free_name(value.shape[0]) for value in model.graph.inputs if value.shape is not None and value.shape}
    others = frozenset(symbol for symbol in leading if symbol) - batch.symbols
    if batch.size is not None or not batch.symbols or not others:
        return batch
    symbols, before = batch.symbols, conflicts(batch.symbols)
    if before and conflicts(symbols | others) < before:
        for symbol in sorted(others):
            after = conflicts(symbols | {symbol})
            if after < before:
                symbols, before = symbols | {symbol}, after
    return replace(batch, symbols=symbols)


def _refuse_two_batches(model: ir.Model, batch: Batch, name: str) -> None:
    found = [
        f"{value.name}:{axis}"
        for each in sorted(batch.symbols)
        for value in model.graph.inputs
        for axis, dim in enumerate(value.shape or ())
        if free_name(dim) == each and batch.counts_samples(each, axis)
    ]
    raise InputError(
        f"{name} counts samples by {' and '.join(map(repr, sorted(batch.symbols)))}, and which of them is the "
        f"batch cannot be told: say it with --batch-axis {' or '.join(found)} (batch_axis in Python)."
    )


@dataclass(frozen=True)
class _Sizes:
    """Numbers for symbolic dimensions."""

    where: Batch
    batch: int
    length: int
    image: tuple[int, int] | None  # channels and side of a four-dimensional input whose sizes are symbolic
    lengths: Mapping[str, int] = field(default_factory=dict)  # of some symbols

    def input_shape(self, value: ir.Value) -> Shape | None:
        if value.shape is None:
            return None
        rank = len(value.shape)
        return tuple(self._size(dim, axis, rank) for axis, dim in enumerate(value.shape))

    def _size(self, dim: int | ir.SymbolicDim, axis: int, rank: int) -> int:
        symbol = free_name(dim)
        if symbol is None:  # exporters that write a number as a symbol mean that number
            return dim if isinstance(dim, int) else int(dim.value or 0)
        if self.where.counts_samples(symbol, axis):
            return self.batch
        if rank == 4 and self.image is not None and axis > 0:
            return self.image[min(axis - 1, 1)]
        parts = [part.strip() for part in symbol.split("+")]  # 'past + new' is the sum of two lengths
        return sum(int(part) if part.isdigit() and part else self.lengths.get(part, self.length) for part in parts)


def _image_sizes(model: ir.Model) -> Iterator[tuple[int, int] | None]:
    """Likely (channels, side) of an image input with symbolic sizes: the patch grids that position tables fit."""
    for value in model.graph.inputs:
        dims: tuple[int | ir.SymbolicDim, ...] = tuple(value.shape or ())
        if len(dims) != 4 or all(isinstance(dim, int) for dim in dims[1:]):
            continue
        for node, place in value.uses():
            kernel = tensor_of(node.inputs[1]) if node.op_type == "Conv" and place == 0 else None
            if kernel is None or len(sizes_of(kernel)) != 4:
                continue
            _, channels, _, patch = sizes_of(kernel)
            grids = [*dict.fromkeys(_grids(model)), 14, 8, 16]
            yield from ((channels, grid * patch) for grid in grids[:8])
            return
    yield None


def _grids(model: ir.Model) -> Iterator[int]:
    """Sides of square grids that the model's tables [1, tokens, width] could stand for, 0 to 2 tokens besides."""
    for value in model.graph.initializers.values():
        shape = sizes_of(value.const_value) if value.const_value is not None else ()
        if len(shape) == 3 and shape[0] == 1 and shape[1] > 3:
            for extra in range(3):
                side = math.isqrt(shape[1] - extra)
                if side * side == shape[1] - extra:
                    yield side


class _Inference:
    """Runs shape inference node by node, for several choices of sizes."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._evaluator = NodeEvaluator(model)
        self._opsets = [onnx.helper.make_opsetid(domain, v) for domain, v in model.opset_imports.items()]
        self._protos: dict[ir.Node, onnx.NodeProto] = {}

    def run(self, sizes: _Sizes) -> Shapes:
        run = _Run(self, sizes)
        for value in self._model.graph.inputs:
            run.set_type(value, value.dtype, sizes.input_shape(value))
        run.graph(self._model.graph)
        return Shapes(run.shapes(), run.dtypes(), run.known, run.conflicts)

    def proto(self, node: ir.Node) -> onnx.NodeProto:
        if node not in self._protos:
            self._protos[node] = ir.to_proto(node)
        return self._protos[node]

    def infer(
        self, node: ir.Node, types: dict[str, onnx.TypeProto], data: dict[str, onnx.TensorProto]
    ) -> dict[str, onnx.TypeProto]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = onnx.defs.get_schema(node.op_type, self._model.opset_imports.get(node.domain, 1), domain)
        return onnx.shape_inference.infer_node_outputs(
            schema, self.proto(node), types, data, opset_imports=self._opsets, ir_version=10
        )


class _Run:
    def __init__(self, inference: _Inference, sizes: _Sizes) -> None:
        self._inference = inference
        self._sizes = sizes
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        self.known: dict[ir.Value, np.ndarray] = {}
        self.conflicts = 0

    def shapes(self) -> dict[ir.Value, Shape]:
        shapes = {}
        for value, kind in self._types.items():
            shape = _shape_of(kind)
            if shape is not None:
                shapes[value] = shape
        return shapes

    def dtypes(self) -> dict[ir.Value, ir.DataType]:
        return {value: ir.DataType(kind.tensor_type.elem_type) for value, kind in self._types.items()}

    def set_type(self, value: ir.Value, dtype: ir.DataType | None, shape: Shape | None) -> None:
        if dtype is not None:
            self._types[value] = onnx.helper.make_tensor_type_proto(int(dtype), shape)

    def set_known(self, value: ir.Value, array: np.ndarray) -> None:
        self.set_type(value, ir.DataType.from_numpy(array.dtype), array.shape)
        if array.size <= _LARGEST_KNOWN:
            self.known[value] = array

    def graph(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            self._constant(value)
        for node in graph:
            self._node(node)

    def _constant(self, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is None or value in self._types:
            return
        self.set_type(value, tensor.dtype, sizes_of(tensor))
        if tensor.size <= _LARGEST_KNOWN:
            self.known[value] = tensor.numpy()

    def _node(self, node: ir.Node) -> None:
        if node.op_type == "If":
            self._branch(node)
            return
        if node.op_type == "Shape" and self._shape_node(node):
            return
        if node.op_type == "Constant" and (tensor := tensor_of(node.outputs[0])) is not None:
            self.set_known(node.outputs[0], tensor.numpy())
            return
        inputs = [value for value in node.inputs if value is not None]
        if all(value in self.known for value in inputs) and self._inference._evaluator.can_run(node):
            arrays = [None if value is None else self.known[value] for value in node.inputs]
            try:
                results = self._inference._evaluator.run(node, arrays)
            except Exception:  # an operator that the reference implementation lacks: infer its shape instead
                results = []
            if results:
                for value, array in zip(node.outputs, results, strict=False):
                    self.set_known(value, array)
                return
        self._infer(node, inputs)

    def _shape_node(self, node: ir.Node) -> bool:
        kind = self._types.get(node.inputs[0]) if node.inputs[0] is not None else None
        shape = _shape_of(kind) if kind is not None else None
        if shape is None:
            return False
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
        self.set_known(node.outputs[0], np.array(shape[start:end], dtype=np.int64))
        return True

    def _infer(self, node: ir.Node, inputs: list[ir.Value]) -> None:
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in inputs:
            if value not in self._types:
                self._declared(value)
            if value not in self._types:
                break
            types[value.name or ""] = self._types[value]
            if value in self.known:
                data[value.name or ""] = onnx.numpy_helper.from_array(self.known[value])
        else:
            try:
                results = self._inference.infer(node, types, data)
            except onnx.shape_inference.InferenceError:
                self.conflicts += 1
                results = {}
            except Exception:  # no schema (an operator of another domain), or a type it cannot take
                results = self._other(node)
            for value in node.outputs:
                if value.name in results:
                    self._types[value] = results[value.name]
        for value in node.outputs:
            kind = self._types.get(value)
            if kind is None or _shape_of(kind) is None:
                self._declared(value)

    def _other(self, node: ir.Node) -> dict[str, onnx.TypeProto]:
        """The result of an operator of onnxruntime that stays as it is, and that embeddings or activations pass."""
        inputs = [None if value is None else self._types.get(value) for value in node.inputs]
        shapes = [None if kind is None else _shape_of(kind) for kind in inputs]
        shape: Shape | None = None
        types = [0 if kind is None else kind.tensor_type.elem_type for kind in (*inputs, None, None, None)]
        kind = types[1]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            shape = shapes[0]
            if node.op_type == "QuantizeLinear":
                kind = types[2]
        elif node.op_type == "GatherBlockQuantized":
            kind = types[2]
            table, places = shapes[0], shapes[1]
            if table is not None and places is not None:
                packed = 8 // node.attributes.get_int("bits", 4) if types[0] == _BYTES else 1
                axis = node.attributes.get_int("gather_axis", 0) % len(table)
                whole = (*table[:-1], table[-1] * packed)
                shape = (*whole[:axis], *places, *whole[axis + 1 :])
        if shape is None or not kind or node.outputs[0].name is None:
            return {}
        return {node.outputs[0].name: onnx.helper.make_tensor_type_proto(kind, shape)}

    def _declared(self, value: ir.Value) -> None:
        """Falls back on what the exporter wrote about a value, where that is all numbers."""
        if value.dtype is not None and value.shape is not None and value.shape.is_static():
            self.set_type(value, value.dtype, value.shape.numpy())
        elif value.dtype is not None and value not in self._types:
            self.set_type(value, value.dtype, None)

    def _branch(self, node: ir.Node) -> None:
        condition = self.known.get(node.inputs[0]) if node.inputs[0] is not None else None
        taken = "else_branch" if condition is not None and not condition.item() else "then_branch"
        branch = node.attributes[taken].as_graph()
        self.graph(branch)
        for inner, outer in zip(branch.outputs, node.outputs, strict=True):
            if inner in self._types:
                self._types[outer] = self._types[inner]
            if inner in self.known:
                self.known[outer] = self.known[inner]


def _shape_of(kind: onnx.TypeProto) -> Shape | None:
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None
