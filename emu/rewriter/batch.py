"""Tells along which axis of which input the samples of a model lie: run-time noise is keyed by sample."""

import re
from dataclasses import dataclass, field

import onnx_ir as ir

from emu.contract.manifest import SampleAxis
from emu.errors import InputError

UNNAMED = ""  # stands for free leading dimensions without a name
_BATCH_NAME = re.compile(r"batch|^(b|n|bs|bsz)$", re.IGNORECASE)
_OTHER_NAME = re.compile(
    r"seq|len|token|time|frame|past|cache|height|width|chan|pixel|patch|step|^(s|t|l|h|w|c|p|m)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Batch(SampleAxis):
    """Where the samples lie, and which free dimensions count them.

    Attributes:
        symbols: names of the free dimensions that count samples; `UNNAMED` for leading ones without a name.

    """

    symbols: frozenset[str] = frozenset()

    def counts_samples(self, symbol: str, axis: int) -> bool:
        """Whether a free dimension of an input, with this name at this axis, is the batch."""
        return symbol in self.symbols and (symbol != UNNAMED or axis == 0)


def free_name(dim: int | ir.SymbolicDim) -> str | None:
    """The name of a free dimension, `UNNAMED` where it has none; None for a number (also one written as a name)."""
    if isinstance(dim, int):
        return UNNAMED if dim < 0 else None
    name = dim.value or UNNAMED
    return None if name.isdigit() else name


def find_batch(graph: ir.Graph, name: str, given: str | None = None) -> Batch:
    """Finds the batch of a model by the free dimensions of its inputs and outputs.

    Of several, one that is called so counts first; then those that lead an input of two or more dimensions, are not
    called after something else (a sequence, an image's side) and stand nowhere else. Where sizes are fixed, it is the
    leading axis that inputs and outputs share.

    Args:
        graph: the model's graph.
        name: how to call the model in an error.
        given: `INPUT:AXIS`, where the user says it.

    Raises:
        InputError: `given` names no axis of an input.

    """
    if given is not None:
        return _given(graph, name, given)
    places: dict[str, _Symbol] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            symbol = free_name(dim)
            if symbol is not None and (symbol != UNNAMED or axis == 0):
                places.setdefault(symbol, _Symbol(symbol)).at.append((value, axis))
    for value in graph.outputs:
        symbol = free_name(value.shape[0]) if value.shape else None
        if symbol in places:
            places[symbol].leads_an_output = True
    best = max((each.rank for each in places.values()), default=None)
    chosen = [each for each in places.values() if each.rank == best]
    if not chosen or not chosen[0].may_be_batch:
        return _fixed(graph)
    value, axis = min((place for each in chosen for place in each.at), key=lambda place: place[1] > 0)
    names = " and ".join(f"'{each.name}'" if each.name else "its free leading dimension" for each in chosen)
    return Batch(value.name, axis, None, f"by {names}", frozenset(each.name for each in chosen))


@dataclass
class _Symbol:
    """A free dimension, and the inputs and axes where it stands."""

    name: str
    at: list[tuple[ir.Value, int]] = field(default_factory=list)
    leads_an_output: bool = False

    @property
    def rank(self) -> tuple[bool, ...]:
        """How much speaks for the batch; the larger, the more."""
        called = bool(_BATCH_NAME.search(self.name))
        return (
            called,
            not (called or _OTHER_NAME.search(self.name)),
            self._leads,
            not self._stands_inside,
            called or self.leads_an_output,
        )

    @property
    def may_be_batch(self) -> bool:
        leads_vectors = not self._stands_inside
        return bool(_BATCH_NAME.search(self.name)) or self._leads or leads_vectors

    @property
    def _leads(self) -> bool:
        return any(axis == 0 and len(value.shape or ()) > 1 for value, axis in self.at)

    @property
    def _stands_inside(self) -> bool:
        return any(axis > 0 for _, axis in self.at)


def _given(graph: ir.Graph, name: str, given: str) -> Batch:
    source, _, number = given.rpartition(":")
    value = next((each for each in graph.inputs if each.name == source), None)
    axis = int(number) if number.isdigit() else -1
    if value is None or axis < 0 or (value.shape is not None and axis >= len(value.shape)):
        inputs = ", ".join(f"{each.name} {_shape(each)}" for each in graph.inputs)
        raise InputError(
            f"{name}: the batch axis '{given}' is none of its inputs': expected INPUT:AXIS with an axis from 0, "
            f"of {inputs}."
        )
    dim = value.shape[axis] if value.shape is not None else UNNAMED
    symbol = free_name(dim) if not isinstance(dim, str) else dim
    size = int(dim) if isinstance(dim, int) and dim >= 0 else None
    return Batch(source, axis, size, "given", frozenset() if symbol is None else frozenset([symbol]))


def _shape(value: ir.Value) -> str:
    return "of unknown shape" if value.shape is None else f"[{', '.join(str(dim) for dim in value.shape)}]"


def _fixed(graph: ir.Graph) -> Batch:
    """Of a model whose batch is not free: the leading axis that an input shares with the outputs."""
    ranked = [(value, len(value.shape) if value.shape is not None else 2) for value in graph.inputs]
    fits = [value for value, rank in ranked if rank > 1] or [value for value, rank in ranked if rank == 1]
    if not fits:
        return Batch(None, 0, 1, "no input has an axis for it")
    leading = {_leading(value) for value in graph.outputs} - {None}
    first = next((value for value in fits if _leading(value) in leading), fits[0])
    size = _leading(first)
    return Batch(first.name, 0, size, "as its leading axis" if size is None else f"fixed to {size}")


def _leading(value: ir.Value) -> int | None:
    dim = value.shape[0] if value.shape is not None and len(value.shape) else None
    return dim if isinstance(dim, int) and dim >= 0 else None
