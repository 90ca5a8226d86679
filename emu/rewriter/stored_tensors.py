"""Finds stored tensors that feed no product: embeddings, class tokens, norms and biases.

What a tensor is follows from where it goes: it is gathered by token ids, put in front of the patches, added to
embeddings, multiplied with a normalized activation, and so on. Names are never looked at.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from emu.contract.schema import FAULTY_WEIGHT
from emu.contract.site import Site, Skipped
from emu.rewriter.dataflow import DataFlow, is_standard, sizes_of, tensor_of
from emu.rewriter.find import PRODUCTS
from emu.rewriter.shapes import Probes

# Operators that move numbers, or copy them, and leave them as they are.
_MOVES = frozenset(
    [
        "Reshape",
        "Transpose",
        "Slice",
        "Expand",
        "Tile",
        "Identity",
        "Cast",
        "CastLike",
        "Unsqueeze",
        "Squeeze",
        "Flatten",
        "Split",
        "Resize",
        "Dropout",
    ]
)
_NORMALIZATIONS = frozenset(
    [
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
    ]
)
# What a tensor can be, the most telling first.
_COMPONENTS = (
    "word_embedding",
    "token_type_embedding",
    "position_embedding",
    "class_token",
    "distillation_token",
    "norm",
    "bias",
    "other_stored",
)
_MASK_VALUES = 2  # a tensor of so few values that is added to attention scores hides some of them
_MOST_TOKEN_TYPES = 16


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A constant that is data, not the weight of a product.

    `node` is the name of its site: that of the constant, unless a node is called so. `uses` are the inputs it is read
    at, weights of products left out.
    """

    node: str
    value: ir.Value
    tensor: ir.TensorProtocol
    uses: tuple[tuple[ir.Node, int], ...]
    layer: int | None
    component: str

    def site(self, index: int) -> Site:
        """The site that it becomes. The last axis lies along the columns of the array."""
        columns = sizes_of(self.tensor)[-1]
        return Site(
            index=index,
            array=index,
            device="",
            node=self.node,
            op=FAULTY_WEIGHT,
            source_op=self.uses[0][0].op_type,
            layer=self.layer,
            component=self.component,
            shape=(self.tensor.size // columns, columns),
            heads=0,
            head_axis="none",
            head_groups=1,
            head_share=1,
            sample_axis=-1,
            stack=1,
            window="",
            tiles=None,
            parameters=self.tensor.size,
            macs=0,
            macs_per_row=0,
        )


def stored_tensors(model: ir.Model, probes: Probes, sites: Sequence[Site]) -> tuple[list[StoredTensor], list[Skipped]]:
    """The stored tensors of a normalized model in data-flow order, and those that no array can hold.

    Args:
        model: a normalized model.
        probes: its shapes.
        sites: all of its products.

    """
    return _Finder(model, probes, sites).all()


@dataclass(frozen=True)
class _Role:
    """What a tensor does at one place, the node where that shows, and the value that it meets there."""

    component: str
    node: ir.Node
    meets: ir.Value | None = None

    @property
    def relative(self) -> bool:
        """Whether it is a position embedding that is added to attention scores."""
        return self.component == "position_embedding" and self.meets is not None


class _Finder:
    def __init__(self, model: ir.Model, probes: Probes, sites: Sequence[Site]) -> None:
        self._model = model
        self._probes = probes
        self._flow = DataFlow(model.graph)
        self._sites = {site.node: site for site in sites}
        self._products = [node for node in self._flow.nodes if node.name in self._sites]
        self._stop = set(self._products)
        self._names = {node.name for node in model.graph.all_nodes()}

    def all(self) -> tuple[list[StoredTensor], list[Skipped]]:
        found: list[tuple[StoredTensor, _Role]] = []
        skipped = []
        for value in self._constants():
            tensor = tensor_of(value)
            if tensor is None or tensor.dtype is not ir.DataType.FLOAT or tensor.size < 2:
                continue
            uses = tuple((node, place) for node, place in value.uses() if self._is_data(node, place, value))
            if not uses:
                continue
            role = self._role(value)
            if role is None or (role.relative and len(np.unique(tensor.numpy())) <= _MASK_VALUES):
                continue
            if not np.isfinite(tensor.numpy()).all():
                skipped.append(Skipped(value.name or "", role.node.op_type, "it holds infinite values or NaN", 0))
                continue
            uses = tuple(sorted(uses, key=lambda use: self._position(use[0])))
            found.append((StoredTensor(self._name(value), value, tensor, uses, None, role.component), role))
        layers = _Layers(self._flow, self._products, self._sites)
        norms = {role: layers.is_after_residual(role.node) for _, role in found if role.component == "norm"}
        known = [after for after in norms.values() if after is not None]
        mostly_after = sum(known) * 2 > len(known)
        tensors = []
        for stored, role in found:
            layer = None
            if role.component == "norm":
                after = norms[role]
                layer = layers.of_norm(role.node, mostly_after if after is None else after)
            elif role.component in ("bias", "other_stored"):
                layer = layers.upstream(role.meets)
            elif role.relative:
                layer = layers.downstream(role.node)
            tensors.append(replace(stored, layer=layer))
        tensors.sort(key=lambda each: self._position(each.uses[0][0]))
        return tensors, skipped

    def _name(self, value: ir.Value) -> str:
        name = value.name or "tensor"
        while name in self._names:
            name += ".stored"
        self._names.add(name)
        return name

    def _constants(self) -> Iterator[ir.Value]:
        yield from self._model.graph.initializers.values()
        for node in self._flow.nodes:
            if node.op_type == "Constant":
                yield from node.outputs

    def _position(self, node: ir.Node) -> int:
        return self._flow.position.get(node, len(self._flow.position))

    def _is_data(self, node: ir.Node, place: int, value: ir.Value) -> bool:
        if is_standard(node) and node.op_type in PRODUCTS and place == 1:
            return False  # the weight of a product: a site of its own, or digital on purpose
        return node not in self._flow.position or value in self._flow.data_inputs(node)

    def _role(self, value: ir.Value) -> _Role | None:
        """The most telling of the roles at all places, None for what is no data of the main graph."""
        roles = [role for node, place in value.uses() if (role := self._role_at(node, place, value)) is not None]
        return min(roles, key=lambda role: _COMPONENTS.index(role.component), default=None)

    def _role_at(self, node: ir.Node, place: int, value: ir.Value) -> _Role | None:
        if not self._is_data(node, place, value):
            return None
        op = node.op_type if is_standard(node) else ""
        if op in _MOVES:
            return self._role(node.outputs[0])
        if op == "Gather":
            return self._gathered(node)
        if op in _NORMALIZATIONS:
            return _Role("norm", node) if place > 0 else self._role(node.outputs[0])
        if op in PRODUCTS and place == 0:
            site = self._sites.get(node.name or "")
            of_positions = site is not None and site.component == "position_projection"
            return _Role("position_embedding" if of_positions else "other_stored", node)
        if op in ("Gemm", "Conv", "ConvTranspose") and place == 2:
            return _Role("bias", node, node.outputs[0])
        if op == "Concat":
            return self._concatenated(node, value)
        if op in ("Add", "Sum", "Mul"):
            others = [each for each in node.inputs if each is not None and each is not value]
            if len(others) == 1 and op != "Mul" and self._is_bias(value, others[0]):
                return _Role("bias", node, others[0])
            if len(others) == 1 and others[0] in self._flow.depends_on_inputs:
                return self._combined(node, value, others[0])
            if len(others) == 1:  # both are constants: what matters is where the result goes
                return self._role(node.outputs[0])
        others = [each for each in self._flow.data_inputs(node) if each is not value]
        return _Role("other_stored", node, next(iter(others), None))

    def _gathered(self, node: ir.Node) -> _Role:
        """A table whose rows are picked: by token ids, by token types, or by positions."""
        table, index = node.inputs[0], node.inputs[1]
        assert table is not None and index is not None, "the checker has seen to it"
        rows = self._rows_picked_by_inputs
        if _moved_from(index).is_graph_input():
            own = rows.get(node, 0)
            if own == max(rows.values()):
                return _Role("word_embedding", node)
            return _Role("token_type_embedding" if own <= _MOST_TOKEN_TYPES else "position_embedding", node)
        known = self._probes.base.known.get(index)
        if known is not None and known.size > 1 and (known == known.flat[0]).all():
            return _Role("token_type_embedding", node)
        if self._reaches_softmax(node.outputs[0]):
            return _Role("position_embedding", node, node.outputs[0])
        role = self._role(node.outputs[0])
        added = role is None or role.node.op_type in ("Add", "Sum")
        return _Role("position_embedding" if added else "other_stored", node)

    @cached_property
    def _rows_picked_by_inputs(self) -> dict[ir.Node, int]:
        """The Gathers that pick from a constant table by a model input, and the rows of the table."""
        rows = {}
        for node in self._flow.nodes:
            if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[1] is not None:
                tensor = tensor_of(_moved_from(node.inputs[0]))
                if tensor is not None and _moved_from(node.inputs[1]).is_graph_input():
                    rows[node] = sizes_of(tensor)[0]
        return rows

    def _concatenated(self, node: ir.Node, value: ir.Value) -> _Role | None:
        """A token in front of the patches: the class token, and behind it the distillation token."""
        inputs = [each for each in node.inputs if each is not None]
        constants = [each for each in inputs if each not in self._flow.depends_on_inputs]
        if len(constants) == len(inputs):
            return self._role(node.outputs[0])
        shape = self._probes.base.get(value)
        axis = node.attributes.get_int("axis", 0)
        if shape is None or len(shape) < 2 or axis % len(shape) != len(shape) - 2 or shape[-2] != 1:
            return _Role("other_stored", node)
        place = [each for each in constants if each is value or self._is_one_row(each)].index(value)
        return _Role(("class_token", "distillation_token", "other_stored")[min(place, 2)], node)

    def _is_one_row(self, value: ir.Value) -> bool:
        shape = self._probes.base.get(value)
        return shape is not None and len(shape) > 1 and shape[-2] == 1

    def _combined(self, node: ir.Node, value: ir.Value, other: ir.Value) -> _Role | None:
        """A constant added to an activation, or multiplied with one."""
        if node.op_type == "Mul":
            return _Role("norm" if _is_normalized(other) else "other_stored", node, other)
        if self._reaches_softmax(node.outputs[0]):
            return _Role("position_embedding", node, other)
        scaled = _skipping(other, ("Cast", "Identity")).producer()
        if scaled is not None and scaled.op_type == "Mul" and any(_is_normalized(each) for each in scaled.inputs):
            return _Role("norm", node, other)
        if self._is_vector(value):
            return _Role("other_stored", node, other)
        before = {each for each, _ in self._flow.upstream(other, set()) if each in self._stop}
        inside = any(self._sites[each.name or ""].layer is not None for each in before)
        return _Role("other_stored", node, other) if inside else _Role("position_embedding", node)

    def _is_bias(self, value: ir.Value, other: ir.Value) -> bool:
        """Whether a constant is added to what a product just gave. Between layers, a matrix is no bias: positions."""
        product = _moved_from(other).producer()
        if product is None or not is_standard(product) or product.op_type not in PRODUCTS:
            return False
        site = self._sites.get(product.name or "")
        if site is not None and not site.is_stored:
            return False
        return self._is_vector(value) or (site is not None and site.layer is not None)

    def _is_vector(self, value: ir.Value) -> bool:
        return sum(size > 1 for size in self._probes.base.get(value) or ()) < 2

    def _reaches_softmax(self, value: ir.Value) -> bool:
        """Whether the value is part of attention scores: a Softmax comes before the next product."""
        return any(node.op_type == "Softmax" for node, _ in self._flow.downstream(value, self._stop))


class _Layers:
    """Tells the layer of a tensor from the products around it."""

    def __init__(self, flow: DataFlow, products: list[ir.Node], sites: dict[str, Site]) -> None:
        self._flow = flow
        self._stop = set(products)
        self._before = flow.masks(products)
        self._bits = {node: 1 << place for place, node in enumerate(products)}
        self._layers = {node: sites[node.name or ""].layer for node in products}

    def upstream(self, value: ir.Value | None) -> int | None:
        """The last layer among the nearest products that `value` comes from."""
        if value is None:
            return None
        found = [self._layers[node] for node, _ in self._flow.upstream(value, self._stop) if node in self._stop]
        return max((layer for layer in found if layer is not None), default=None)

    def downstream(self, node: ir.Node) -> int | None:
        """The layer of the next products, None if they are of several layers or of none."""
        found = {self._layers[each] for each in self._next(node)}
        return found.pop() if len(found) == 1 else None

    def is_after_residual(self, node: ir.Node) -> bool | None:
        """Whether the result of a normalization is itself carried on past the next product; None if it cannot be told.

        So in BERT (a layer ends with a normalization), not in ViT (a layer begins with one).
        """
        following = self._next(node)
        if len(following) < 2:
            return None
        mask = sum(self._bits[each] for each in following)
        return any(self._before[each] & mask for each in following)

    def of_norm(self, node: ir.Node, after_residual: bool) -> int | None:
        """The layer that a normalization belongs to."""
        if after_residual:
            return self.upstream(node.outputs[0])
        return self.downstream(node)

    def _next(self, node: ir.Node) -> list[ir.Node]:
        return [each for each, _ in self._flow.downstream(node.outputs[0], self._stop) if each in self._stop]


def _skipping(value: ir.Value, ops: Collection[str]) -> ir.Value:
    """Where `value` comes from, seen through operators of these kinds."""
    while (node := value.producer()) is not None and is_standard(node) and node.op_type in ops:
        if node.inputs[0] is None:
            break
        value = node.inputs[0]
    return value


def _moved_from(value: ir.Value) -> ir.Value:
    return _skipping(value, _MOVES)


def _is_normalized(value: ir.Value | None) -> bool:
    """Whether a value was divided by a root, as normalizations that are spelled out do."""
    if value is None:
        return False
    node = _skipping(value, ("Cast", "Identity")).producer()
    if node is None:
        return False
    if node.op_type == "Div":
        return _is_root(node.inputs[1])
    return node.op_type == "Mul" and any(_is_inverse_root(each) for each in node.inputs)


def _is_root(value: ir.Value | None) -> bool:
    node = _skipping(value, ("Cast", "Identity")).producer() if value is not None else None
    if node is not None and node.op_type == "Add":  # standard deviation + epsilon
        return any(_is_root(each) for each in node.inputs)
    return node is not None and node.op_type == "Sqrt"


def _is_inverse_root(value: ir.Value | None) -> bool:
    node = _skipping(value, ("Cast", "Identity")).producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "Reciprocal":
        return _is_root(node.inputs[0])
    return node.op_type == "Div" and tensor_of(node.inputs[0]) is not None and _is_root(node.inputs[1])
