"""Puts crossbar products in the place of the products of a model. `docs/operators.md` is the contract.

The new node keeps the old node's name and metadata, and the result keeps its name, type and shape; what is digital
around it (bias, patches of an image) is added as plain ONNX nodes beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from emu.device import Profile
from emu.errors import InputError
from emu.rewriter.dataflow import sizes_of, tensor_of
from emu.rewriter.find import Product
from emu.rewriter.load import DOMAIN
from emu.rewriter.shapes import Probes
from emu.rewriter.site import Site

FORMAT = 1  # version of docs/operators.md that the nodes follow
# The control inputs of a rewritten model and their default values, besides emu.device and emu.strength.
SCALARS = {"emu.seed": 0, "emu.read_seed": 0, "emu.sample": 0, "emu.head": -1}
_SAMPLE_AND_BATCH = "emu.sample_and_batch"
_OLDEST_IR_VERSION = 4  # initializers that are also inputs


def replace_products(
    model: ir.Model, sites: Sequence[Site], products: Sequence[Product], probes: Probes, profile: Profile, name: str
) -> None:
    """Replaces products by crossbar products and adds the control inputs, in place.

    Args:
        model: a normalized model.
        sites: the sites to make, numbered from 0 in this order.
        products: the product behind each site.
        probes: the model's shapes.
        profile: the device of every site.
        name: how to call the model in an error.

    Raises:
        InputError: a weight that is not finite, or a model that already uses a name of the controls.

    """
    builder = _Builder(model.graph, name)
    controls = _add_controls(builder, profile, len(sites))
    weights = _Weights(builder)
    for site, product in zip(sites, products, strict=True):
        attributes = _attributes(site, profile, len(sites))
        crossbar = _Crossbar(builder, controls, attributes, product.node)
        if not product.stored:
            right = _operand(product.node, 1)
            if profile.structure()["write"] != "none" and _is_shared_by_samples(product, probes):
                right = _one_per_sample(builder, controls, right, product, probes)
            result = crossbar.product("CrossbarMatMulDynamic", crossbar.left, right)
        elif product.node.op_type == "Conv":
            result = _replace_conv(builder, crossbar, weights, product, probes)
        elif product.node.op_type == "Gemm":
            result = _replace_gemm(builder, crossbar, weights, site, product)
        else:
            result = _stored(builder, crossbar, weights.of(product, None, 1.0), site)
        builder.swap(product.node, result)
    model.ir_version = max(model.ir_version, _OLDEST_IR_VERSION)
    model.opset_imports[DOMAIN] = 1


@dataclass(frozen=True)
class _Controls:
    """The values that every crossbar product takes, in the order of its inputs, and the batch size int64 [1]."""

    inputs: tuple[ir.Value, ...]
    batch: ir.Value


class _Builder:
    """Adds nodes and constants to a graph under names that nothing else has."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph = graph
        self._name = name
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
                f"{self._name} already has a value or node named '{name}', a name that emu needs: rename it."
            )
        self._values.add(name)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer from an array."""
        return self.initializer(name, ir.tensor(array))

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer."""
        tensor.name = _fresh(name, self._values)
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int | list[int]
    ) -> ir.Value:
        """A new plain ONNX node with one output, not yet in the graph: see `insert_first` and `swap`."""
        output = ir.Value(name=_fresh(name, self._values))
        node = ir.node(op_type, inputs, attributes, outputs=[output], name=_fresh(name, self._nodes))
        self._added.append(node)
        return output

    def add(self, node: ir.Node) -> ir.Value:
        """Adds a finished node whose output has no name yet."""
        output = node.outputs[0]
        output.name = _fresh(f"{node.name}.product", self._values)
        self._added.append(node)
        return output

    def insert_first(self) -> None:
        """Puts the nodes made so far before all others."""
        first = next(iter(self.graph))
        self.graph.insert_before(first, self._added)
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


def _fresh(name: str, taken: set[str | None]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _add_controls(builder: _Builder, profile: Profile, sites: int) -> _Controls:
    arrays: dict[str, np.ndarray] = {
        "emu.device": np.array(list(profile.entries().values()), dtype=np.float32),
        "emu.strength": np.ones(sites, dtype=np.float32),
        **{name: np.array(value, dtype=np.int64) for name, value in SCALARS.items()},
    }
    first = next((value for value in builder.graph.inputs if value.shape is None or len(value.shape) > 0), None)
    values = {}
    for name, array in arrays.items():
        builder.reserve(name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        builder.graph.register_initializer(value)
        builder.graph.inputs.append(value)
        values[name] = value
    sample = builder.node(
        "Reshape", [values["emu.sample"], builder.constant("emu.one", np.array([1]))], f"{_SAMPLE_AND_BATCH}.sample"
    )
    if first is None:  # no input has a leading dimension: one sample
        batch = builder.constant(f"{_SAMPLE_AND_BATCH}.batch", np.array([1]))
    else:
        shape = builder.node("Shape", [first], f"{_SAMPLE_AND_BATCH}.shape")
        leading = builder.constant("emu.leading", np.array([0]))
        batch = builder.node("Gather", [shape, leading], f"{_SAMPLE_AND_BATCH}.batch", axis=0)
    both = builder.node("Concat", [sample, batch], _SAMPLE_AND_BATCH, axis=0)
    builder.insert_first()
    order = ("emu.device", "emu.strength", "emu.seed", "emu.read_seed")
    return _Controls((*(values[name] for name in order), both, values["emu.head"]), batch)


def _attributes(site: Site, profile: Profile, sites: int) -> dict[str, int | str]:
    """The attributes of a node, all of those that `docs/operators.md` lists for its operator."""
    structure = profile.structure()
    del structure["write" if site.stored else "program"]
    return {
        "format": FORMAT,
        "site": site.index,
        "sites": sites,
        "sample_axis": site.sample_axis,
        "heads": site.heads,
        "head_axis": site.head_axis,
        "head_groups": site.head_groups,
        "head_share": site.head_share,
        **structure,
    }


@dataclass(frozen=True)
class _Crossbar:
    """Makes the crossbar node of one site."""

    builder: _Builder
    controls: _Controls
    attributes: dict[str, int | str]
    old: ir.Node

    @property
    def left(self) -> ir.Value:
        """What is fed to the product. An earlier replacement may have put a new value in the place of the found one."""
        return _operand(self.old, 0)

    def product(self, op_type: str, left: ir.Value, right: ir.Value) -> ir.Value:
        node = ir.node(
            op_type,
            [left, right, *self.controls.inputs],
            self.attributes,
            domain=DOMAIN,
            name=self.old.name,
            doc_string=self.old.doc_string,
            metadata_props=dict(self.old.metadata_props),
        )
        return self.builder.add(node)


def _operand(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None, "the checker has seen to it"
    return value


@dataclass
class _Weights:
    """Weights as [K, N] matrices; a weight that several sites share is transposed and checked once."""

    builder: _Builder
    _done: dict[tuple[ir.Value, str, float], ir.Value] = field(default_factory=dict)

    def of(self, product: Product, form: str | None, factor: float) -> ir.Value:
        """The weight of a product, scaled; `form` says how it lies: None [K, N], `transposed` [N, K] or `kernel`.

        Raises:
            InputError: it holds a NaN or an infinite value.

        """
        key = (product.matrix, form or "", factor)
        if key not in self._done:
            tensor = tensor_of(product.matrix)
            assert tensor is not None, "stored products have constant weights"
            if not np.isfinite(tensor.numpy()).all():
                raise InputError(
                    f"{self.builder._name}: the weight '{product.matrix.name}' of node '{product.node.name}' holds "
                    "NaN or infinite values: check the training or the export."
                )
            self._done[key] = self._matrix(product.matrix, tensor, form, factor)
        return self._done[key]

    def _matrix(self, value: ir.Value, tensor: ir.TensorProtocol, form: str | None, factor: float) -> ir.Value:
        if form is None and factor == 1.0:
            return value if value.is_initializer() else self.builder.constant(f"{value.name}.weight", tensor.numpy())
        sizes = sizes_of(tensor)
        rows, columns = (math.prod(sizes[1:]), sizes[0]) if form is not None else sizes

        def laid_out() -> ir.TensorProtocol:
            array = tensor.numpy()
            matrix = array.reshape(len(array), -1).T if form is not None else array
            return ir.tensor(np.ascontiguousarray(matrix * np.float32(factor) if factor != 1.0 else matrix))

        name = f"{value.name}.{form or 'scaled'}"
        # Made when the model is written, one at a time: the copies of all weights are never in memory together.
        return self.builder.initializer(name, ir.LazyTensor(laid_out, ir.DataType.FLOAT, ir.Shape((rows, columns))))


def _is_shared_by_samples(product: Product, probes: Probes) -> bool:
    """Whether one second operand serves the whole batch: [batch, ..., M, K] times [1, ..., K, N] or [K, N]."""
    left, right = probes.base.get(product.activation), probes.base.get(product.matrix)
    if left is None or right is None or probes.batch_axis(product.activation) != 0 or left[0] != probes.batch:
        return False
    return len(left) > 2 and (len(right) < len(left) or right[0] == 1)


def _one_per_sample(
    builder: _Builder, controls: _Controls, value: ir.Value, product: Product, probes: Probes
) -> ir.Value:
    """Repeats an operand for every sample: what is written for a sample must not depend on the others in its batch."""
    inner = len(probes.base.get(product.activation) or ()) - 1
    name = product.node.name
    ones = builder.constant(f"{name}.ones", np.ones(inner, dtype=np.int64))
    shape = builder.node("Concat", [controls.batch, ones], f"{name}.per_sample.shape", axis=0)
    return builder.node("Expand", [value, shape], f"{name}.per_sample")


def _stored(builder: _Builder, crossbar: _Crossbar, weight: ir.Value, site: Site) -> ir.Value:
    """The product itself. Rows that count [tokens * batch] are laid out as [tokens, batch] for it."""
    if not site.samples_inside:
        return crossbar.product("CrossbarMatMul", crossbar.left, weight)
    name = site.node
    rows, columns = site.shape
    ends = [builder.constant(f"{name}.{part}", np.array([size])) for part, size in (("all", -1), ("rows", rows))]
    shape = builder.node("Concat", [ends[0], crossbar.controls.batch, ends[1]], f"{name}.by_sample.shape", axis=0)
    by_sample = builder.node("Reshape", [crossbar.left, shape], f"{name}.by_sample")
    result = crossbar.product("CrossbarMatMul", by_sample, weight)
    flat = builder.constant(f"{name}.flat.shape", np.array([-1, columns]))
    return builder.node("Reshape", [result, flat], f"{name}.flat")


def _replace_gemm(builder: _Builder, crossbar: _Crossbar, weights: _Weights, site: Site, product: Product) -> ir.Value:
    """Alpha * A op(B) + beta * C: alpha and the transpose go into the weight, beta * C stays a digital Add."""
    node = product.node
    transposed = "transposed" if node.attributes.get_int("transB", 0) else None
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    result = _stored(builder, crossbar, weights.of(product, transposed, alpha), site)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or beta == 0.0:
        return result
    if beta != 1.0:
        constant = tensor_of(bias)
        if constant is not None:
            bias = builder.constant(f"{bias.name}.scaled", constant.numpy() * np.float32(beta))
        else:
            factor = builder.constant(f"{node.name}.beta", np.array(beta, dtype=np.float32))
            bias = builder.node("Mul", [bias, factor], f"{node.name}.scaled_bias")
    return builder.node("Add", [result, bias], f"{node.name}.bias")


def _replace_conv(
    builder: _Builder, crossbar: _Crossbar, weights: _Weights, product: Product, probes: Probes
) -> ir.Value:
    """A convolution whose kernel is its stride: a product with every patch [channels * kernel sides] as a row."""
    node = product.node
    name = node.name or "patches"
    kernel = tensor_of(product.matrix)
    assert kernel is not None, "stored products have constant weights"
    outputs, channels, *sides = sizes_of(kernel)
    places = len(sides)
    image = probes.fixed(product.activation) if _is_static(product.activation, places) else None
    grid = [size // side for size, side in zip(image[2:], sides, strict=True) if size is not None] if image else []
    patches = crossbar.left
    split: ir.Value
    rows: ir.Value
    back: ir.Value
    if len(grid) == places:
        covered = [count * side for count, side in zip(grid, sides, strict=True)]
        if covered != list((image or ())[2:]):  # pixels beyond the last whole patch are unused
            patches = _crop(builder, patches, builder.constant(f"{name}.covered", np.array(covered)), places, name)
        cut = [size for pair in zip(grid, sides, strict=True) for size in pair]
        split = builder.constant(f"{name}.patches.split", np.array([0, channels, *cut]))
        rows = builder.constant(f"{name}.patches.rows", np.array([0, math.prod(grid), product.rows]))
        back = builder.constant(f"{name}.image.shape", np.array([0, outputs, *grid]))
    else:
        counts, covered_value = _grid(builder, patches, sides, name)
        patches = _crop(builder, patches, covered_value, places, name)
        parts = [builder.constant(f"{name}.patches.channels", np.array([0, channels]))]
        for axis, side in enumerate(sides):
            place = builder.constant(f"{name}.axis", np.array([axis]))
            parts.append(builder.node("Gather", [counts, place], f"{name}.grid.{axis}", axis=0))
            parts.append(builder.constant(f"{name}.side", np.array([side])))
        split = builder.node("Concat", parts, f"{name}.patches.split", axis=0)
        rows = builder.constant(f"{name}.patches.rows", np.array([0, -1, product.rows]))
        head = builder.constant(f"{name}.image.channels", np.array([0, outputs]))
        back = builder.node("Concat", [head, counts], f"{name}.image.shape", axis=0)
    patches = builder.node("Reshape", [patches, split], f"{name}.patches.cut")
    order = [0, *range(2, 2 + 2 * places, 2), 1, *range(3, 3 + 2 * places, 2)]
    patches = builder.node("Transpose", [patches], f"{name}.patches.ordered", perm=order)
    patches = builder.node("Reshape", [patches, rows], f"{name}.patches")
    result = crossbar.product("CrossbarMatMul", patches, weights.of(product, "kernel", 1.0))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = builder.node("Add", [result, node.inputs[2]], f"{name}.bias")
    result = builder.node("Transpose", [result], f"{name}.image.ordered", perm=[0, 2, 1])
    return builder.node("Reshape", [result, back], f"{name}.image")


def _is_static(value: ir.Value, places: int) -> bool:
    """Whether the model itself fixes the sizes of an image."""
    shape = value.shape
    return shape is not None and len(shape) == places + 2 and all(isinstance(size, int) for size in list(shape)[2:])


def _grid(builder: _Builder, image: ir.Value, sides: list[int], name: str) -> tuple[ir.Value, ir.Value]:
    """How many whole patches fit along each side of an image, and how many pixels they cover."""
    places = len(sides)
    shape = builder.node("Shape", [image], f"{name}.image.sizes")
    inner = builder.constant(f"{name}.inner", np.arange(2, 2 + places))
    pixels = builder.node("Gather", [shape, inner], f"{name}.pixels", axis=0)
    kernel = builder.constant(f"{name}.sides", np.array(sides))
    counts = builder.node("Div", [pixels, kernel], f"{name}.grid")
    return counts, builder.node("Mul", [counts, kernel], f"{name}.covered")


def _crop(builder: _Builder, image: ir.Value, covered: ir.Value, places: int, name: str) -> ir.Value:
    starts = builder.constant(f"{name}.crop.starts", np.zeros(places, dtype=np.int64))
    axes = builder.constant(f"{name}.crop.axes", np.arange(2, 2 + places))
    return builder.node("Slice", [image, starts, covered, axes], f"{name}.crop")
