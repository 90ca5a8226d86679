"""Tells where on its sequence of tokens each row and key of a product lies: run-time noise follows positions.

The positions of a run are computed in the graph, from its inputs: `position_ids` where there are any, else the
attention mask, else the length of the past.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from emu.rewriter.batch import Batch, free_name
from emu.rewriter.builder import GraphBuilder
from emu.rewriter.load import DOMAIN
from emu.rewriter.shapes import LENGTHS, Shapes, infer_shapes

_MASK = re.compile("mask", re.IGNORECASE)
_POSITIONS = re.compile("position", re.IGNORECASE)
_PAST = re.compile("past|cache", re.IGNORECASE)
_ENCODER = re.compile("encoder", re.IGNORECASE)
_PREFIX, _ENDS = "emu.sequence_", ".ends"
_STEP = 3  # by which one length grows from one inference of shapes to another


@dataclass(frozen=True)
class Sequence:
    """A sequence of tokens that a model reads, by its inputs: new tokens after those of the past.

    Attributes:
        tokens: an input of new tokens, and the axis that counts them; None for a sequence that is all past.
        past: an input with the keys of the past, and the axis that counts them.
        mask: the input [batch, past and new tokens] that is 0 for padding.
        position_ids: the input [batch, new tokens] with their positions.
    """

    tokens: tuple[ir.Value, int] | None
    past: tuple[ir.Value, int] | None
    mask: ir.Value | None
    position_ids: ir.Value | None

    @property
    def has_positions(self) -> bool:
        """Whether runs may differ in where the sequence begins, ends or is cut."""
        return self.past is not None or self.mask is not None or self.position_ids is not None

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs that tell positions."""
        told = (self.position_ids, self.mask, self.past[0] if self.past is not None and self.mask is None else None)
        return [value.name or "" for value in told if value is not None]


@dataclass(frozen=True)
class Along:
    """What an axis counts: tokens of a sequence, from the first new one, from the first of all, or the last one."""

    sequence: int
    kind: str
    """`new`, `all` or `last`."""


@dataclass(frozen=True)
class Positions:
    """The sequences of a model, and what axes count of them."""

    sequences: list[Sequence]
    _probes: list[tuple[Shapes, Shapes | None, Shapes | None]]
    """Of each sequence: shapes, those with more new tokens, and those with a longer past."""

    def along(self, value: ir.Value | None, axis: int) -> Along | None:
        """What an axis of a value counts; None where it is no sequence's tokens, or that cannot be told."""
        for index, (base, more_new, more_past) in enumerate(self._probes):
            shape = base.get(value)
            if shape is None or not -len(shape) <= axis < len(shape):
                continue
            sequence = self.sequences[index]
            if more_new is None and more_past is None:
                if _is_length(sequence, shape, axis):
                    return Along(index, "all")
                continue
            grows = [_grows(shape, other.get(value), axis) for other in (more_new, more_past) if other is not None]
            with_new = more_new is not None and grows[0]
            with_past = more_past is not None and grows[-1]
            if with_past or (with_new and sequence.past is None):
                return Along(index, "all")
            if with_new:
                return Along(index, "new")
            if sequence.past is not None and sequence.tokens is not None and shape[axis] == 1 and len(shape) > 2:
                return Along(index, "last")  # of a model that generates: the token before the next one
        return None

    @property
    def notes(self) -> list[str]:
        """What decides positions, in half-sentences for people."""
        return [
            f"noise of tokens follows their positions, told by {' and '.join(each.inputs)}" for each in self.sequences
        ]

    def rank(self, value: ir.Value | None) -> int | None:
        """The rank of a value, None where it is unknown."""
        shapes = (base.get(value) for base, _, _ in self._probes)
        return next((len(shape) for shape in shapes if shape is not None), None)

    def is_cached(self, along: Along | None) -> bool:
        """Whether keys come from a cache to which a run adds some."""
        if along is None or along.kind != "all":
            return False
        sequence = self.sequences[along.sequence]
        return sequence.past is not None and sequence.tokens is not None


def find_positions(model: ir.Model, batch: Batch) -> Positions:
    """Finds the sequences of a normalized model by the names and shapes of its inputs."""
    sides: dict[bool, list[ir.Value]] = {False: [], True: []}
    for value in model.graph.inputs:
        name = value.name or ""
        sides[bool(_ENCODER.search(name.replace("decoder", "")))].append(value)
    sequences = [_sequence(inputs, batch) for inputs in sides.values()]
    found = [each for each in sequences if each is not None and each.has_positions]
    return Positions(found, [_probe(model, batch, found, each) for each in found])


def _sequence(inputs: Iterable[ir.Value], batch: Batch) -> Sequence | None:
    tokens = past = mask = position_ids = None
    for value in inputs:
        name, shape = value.name or "", value.shape
        if shape is None or len(shape) < 2:
            continue
        if len(shape) == 2 and _MASK.search(name):
            mask = mask or value
        elif len(shape) == 2 and _POSITIONS.search(name) and value.dtype is not None and value.dtype.is_integer():
            position_ids = position_ids or value
        elif _PAST.search(name) and len(shape) > 2:
            past = past or _counting(value, batch)
        elif len(shape) < 4:
            tokens = tokens or (value, 1)
    if tokens is None and past is None:  # a mask alone may be of anything, such as the patches of an image
        return None
    return Sequence(tokens, past, mask, position_ids)


def _counting(value: ir.Value, batch: Batch) -> tuple[ir.Value, int] | None:
    """A cache and its axis that counts keys: the free one that does not count samples; the one before the last."""
    shape = value.shape or ()
    free = [
        axis
        for axis, dim in enumerate(shape)
        if free_name(dim) is not None and not batch.counts_samples(free_name(dim) or "", axis)
    ]
    return (value, free[-1] if free else len(shape) - 2) if len(shape) > 2 else None


def _probe(
    model: ir.Model, batch: Batch, all_of: list[Sequence], sequence: Sequence
) -> tuple[Shapes, Shapes | None, Shapes | None]:
    """Shapes with some lengths, with more new tokens of a sequence, and with a longer past of it."""
    lengths: dict[str, int] = {}
    names: dict[int, tuple[str | None, str | None]] = {}
    for index, each in enumerate(all_of):
        names[index] = _symbol(each.tokens), _symbol(each.past)
        for offset, name in enumerate(names[index]):
            if name is not None:
                lengths.setdefault(name, LENGTHS[0] + 5 * index + 11 * offset)

    def shapes(**more: int) -> Shapes:
        own = {**lengths, **more}
        for index, each in enumerate(all_of):
            whole = _symbol((each.mask, 1) if each.mask is not None else None)
            if whole is not None and "+" not in whole and whole not in names[index]:
                own[whole] = sum(own[name] for name in names[index] if name is not None)
        return infer_shapes(model, batch, own)

    new, past = names[next(index for index, each in enumerate(all_of) if each is sequence)]
    base = shapes()
    return (
        base,
        None if new is None else shapes(**{new: lengths[new] + _STEP}),
        None if past is None or past == new else shapes(**{past: lengths[past] + _STEP}),
    )


def _symbol(place: tuple[ir.Value, int] | None) -> str | None:
    if place is None or place[0].shape is None:
        return None
    return free_name(place[0].shape[place[1]]) or None


def _grows(shape: tuple[int, ...], other: tuple[int, ...] | None, axis: int) -> bool:
    return other is not None and len(other) == len(shape) and other[axis] != shape[axis]


def _is_length(sequence: Sequence, shape: tuple[int, ...], axis: int) -> bool:
    """Whether an axis has the fixed length of a sequence, for all samples where rows of a matrix count both."""
    if sequence.tokens is None or sequence.past is not None:
        return False
    tokens, place = sequence.tokens
    if tokens.shape is None:
        return False
    length, batch = tokens.shape[place], tokens.shape[0]
    if not isinstance(length, int) or length < 2:
        return False
    return shape[axis] == length or (len(shape) == 2 and isinstance(batch, int) and shape[axis] == batch * length)


def position_model(model: ir.Model) -> onnx.ModelProto | None:
    """What computes positions in a rewritten model, as a model of its own: from some of its inputs, with an output for
    each value that crossbar nodes read; None where rows of all nodes count from 0.
    """
    nodes = [node for node in model.graph if (node.name or "").startswith(_PREFIX)]
    if not nodes:
        return None
    made = {value for node in nodes for value in node.outputs}
    taken = {value: None for node in nodes for value in node.inputs if value is not None and value not in made}
    read = {each: None for node in model.graph if node.domain == DOMAIN for each in node.inputs if each in made}
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "positions",
        [ir.to_proto(value) for value in taken if not value.is_initializer()],
        [onnx.helper.make_tensor_value_info(value.name or "", onnx.TensorProto.INT64, None) for value in read],
        [ir.to_proto(value.const_value) for value in taken if value.const_value is not None],
    )
    opsets = [onnx.helper.make_opsetid("", model.opset_imports[""])]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)


def ends_beside(position: str) -> str | None:
    """The value `keys` of the sequence of which a value is the `position`; None where rows count from 0."""
    return position.rpartition(".")[0] + _ENDS if position.startswith(_PREFIX) else None


class PositionInputs:
    """Nodes that compute positions from a model's inputs: operands `position` and `keys` of crossbar nodes.

    They are made on first use, before all other nodes of the graph.
    """

    def __init__(self, builder: GraphBuilder, sequences: list[Sequence]) -> None:
        self._builder = builder
        self._none = {
            "position": builder.constant("emu.no_position", np.zeros(0, dtype=np.int64)),
            "keys": builder.constant("emu.all_keys", np.zeros((0, 2), dtype=np.int64)),
        }
        self._made = [_Starts(builder, each, f"{_PREFIX}{index}") for index, each in enumerate(sequences)]

    def position(self, along: Along | None) -> ir.Value:
        """The position of the first row of each sample: int64 [samples], empty where rows count from 0."""
        return self._none["position"] if along is None else self._made[along.sequence].start(along.kind)

    def keys(self, along: Along | None) -> ir.Value:
        """The position after the last key, and after the last that counts: int64 [samples, 2], empty for all."""
        return self._none["keys"] if along is None else self._made[along.sequence].ends


class _Starts:
    """Positions of one sequence: of its first new token, of the first of all, and where it ends."""

    def __init__(self, builder: GraphBuilder, sequence: Sequence, name: str) -> None:
        self._builder, self._name = builder, name
        one, zero = (builder.constant(f"{name}.{each}", np.array([each])) for each in (1, 0))
        row, column = (builder.constant(f"{name}.shape", np.array(shape)) for shape in ([-1], [-1, 1]))
        self._zero = zero
        new = zero if sequence.tokens is None else self._size(*sequence.tokens)
        mask = sequence.mask
        if mask is not None:
            all_tokens = self._size(mask, 1)
            there = self._node("Cast", [self._node("Cast", [mask], to=ir.DataType.BOOL)], to=ir.DataType.INT32)
            first = self._node("ArgMax", [there], axis=1, keepdims=0)  # tokens of padding before the sequence
            ends = [builder.constant(f"{name}.reversed", np.array([each])) for each in (-1, -(2**63) + 1, 1, -1)]
            from_end = self._node("ArgMax", [self._node("Slice", [there, *ends])], axis=1, keepdims=0)
            last = self._node("Sub", [self._node("Sub", [all_tokens, one]), from_end])
            past = self._node("Sub", [all_tokens, new])
            start = self._node("Sub", [past, first])
        else:
            past = zero if sequence.past is None else self._size(*sequence.past)
            first, last = zero, self._node("Sub", [self._node("Add", [past, new]), one])
            start = past
        if sequence.position_ids is not None and sequence.tokens is not None:
            # Of the first new token that is no padding.
            skipped = self._at_least_zero(self._node("Sub", [first, past]))
            place = self._node("Reshape", [skipped, column])
            told = self._node("GatherElements", [sequence.position_ids, place], axis=1) if mask is not None else None
            told = told if told is not None else self._node("Gather", [sequence.position_ids, zero], axis=1)
            start = self._node("Sub", [self._node("Reshape", [told, row]), skipped])
        before = self._node("Sub", [start, past])  # position of the first of all tokens
        end = self._node("Add", [start, new])
        counted = self._node("Add", [before, self._node("Add", [last, one])])
        pair = [self._node("Reshape", [self._at_least_zero(each), column]) for each in (end, counted)]
        self.ends = builder.node("Concat", pair, f"{name}{_ENDS}", axis=1)
        self._starts = {"new": start, "all": before, "last": self._node("Sub", [end, one])}

    def start(self, kind: str) -> ir.Value:
        return self._starts[kind]

    def _at_least_zero(self, value: ir.Value) -> ir.Value:
        return self._node("Where", [self._node("Less", [value, self._zero]), self._zero, value])

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        axes = self._builder.constant(f"{self._name}.axis", np.array([axis]))
        return self._node("Gather", [self._node("Shape", [value]), axes], axis=0)

    def _node(self, op_type: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        return self._builder.node(op_type, inputs, f"{self._name}.{op_type.lower()}", **attributes)
