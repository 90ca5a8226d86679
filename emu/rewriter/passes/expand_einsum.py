"""Writes Einsum of two operands as the MatMul that it is, between changes of layout.

Letters are of four kinds: shared by both operands and the result (batch), shared by both operands alone (summed), and
those of the left or the right operand alone. A weight is always the right operand, so that an array holds it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.batch import Batch
from emu.rewriter.dataflow import DataFlow, is_standard
from emu.rewriter.passes.expand_fused_body import Body, Names
from emu.rewriter.passes.fold_weights import constant_values
from emu.rewriter.shapes import Probes, probe

_SPARE = "0123456789"  # letters for the axes of an ellipsis
_TERM = r"[A-Za-z]*(\.\.\.)?[A-Za-z]*"
_EQUATION = re.compile(rf"{_TERM}(,{_TERM})*(->{_TERM})?")


def check_equations(model: ir.Model, name: str) -> None:
    """Refuses an Einsum whose equation is none: onnx's shape inference never returns from some of these.

    Args:
        model: a valid model.
        name: how to call it in an error.

    Raises:
        InputError: an equation that is more than letters, `...`, commas and one arrow.

    """
    for nodes in (model.graph.all_nodes(), *(each.all_nodes() for each in model.functions.values())):
        for node in nodes:
            text = node.attributes.get_string("equation", "") if node.op_type == "Einsum" else ""
            if not _EQUATION.fullmatch(text.replace(" ", "")):
                raise InputError(
                    f"{name} is not a valid ONNX model: the equation '{text[:60]}' of node '{node.name}' (Einsum) is "
                    "none, expected letters with commas and an arrow, such as 'bsd,de->bse'; export it again."
                )


class ExpandEinsumPass(ir.passes.InPlacePass):
    """Expands Einsum nodes of the main graph; those that `equation_of` says no to stay."""

    def __init__(self, batch: Batch) -> None:
        """`batch` says where the model's samples lie."""
        super().__init__()
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """The MatMul keeps the node's name."""
        nodes = [node for node in model.graph if is_standard(node) and node.op_type == "Einsum"]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        probes = probe(model, self._batch)
        # Before any of them is replaced: what replaces them is unknown to the probes.
        operands = {node: [_Operand.of(value, probes) for value in node.inputs] for node in nodes}
        flow, constants = DataFlow(model.graph), constant_values(model.graph)
        weights = {value for node in nodes for value in node.inputs if value not in flow.depends_on_inputs} | constants
        names, opset = Names(model.graph), model.opset_imports.get("", 1)
        modified = False
        for node in nodes:
            body = Body(node, opset, names, lambda value: None)
            result = _expand(body, operands[node], weights)
            if result is not None:
                body.swap([result])
                modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True)
class _Operand:
    """Sizes of one operand: at one choice of free sizes, and those that no free size decides."""

    shape: Sequence[int] | None
    fixed: Sequence[int | None]

    @staticmethod
    def of(value: ir.Value | None, probes: Probes) -> "_Operand":
        shape = probes.base.get(value)
        return _Operand(shape, probes.certain(value) or [None] * len(shape or ()))


@dataclass(frozen=True)
class Equation:
    """An Einsum of two operands, one letter an axis."""

    left: str
    right: str
    result: str

    @property
    def batch(self) -> str:
        """Letters of both operands and the result, as the result orders them."""
        return "".join(each for each in self.result if each in self.left and each in self.right)

    @property
    def summed(self) -> str:
        """Letters of both operands that the result lacks, as the left operand orders them."""
        return "".join(each for each in self.left if each in self.right and each not in self.result)

    def free(self, operand: str) -> str:
        """Letters of one operand alone, as the operand orders them."""
        other = self.right if operand is self.left else self.left
        return "".join(each for each in operand if each not in other)

    def turned(self) -> "Equation":
        """The same with the operands changed over."""
        return Equation(self.right, self.left, self.result)


def equation_of(node: ir.Node, ranks: Sequence[int | None]) -> Equation | None:
    """The equation of an Einsum node; None where it is no product of two operands.

    Args:
        node: the node.
        ranks: numbers of dimensions of its operands.

    Letters that repeat within an operand (diagonals), and letters of one operand that the result lacks (sums before the
    product), make it more than a product; without a letter to sum over it is an outer product, which no array computes.

    """
    text = node.attributes.get_string("equation", "").replace(" ", "")
    terms, arrow, result = text.partition("->")
    operands = terms.split(",")
    if len(operands) != 2 or any(rank is None for rank in ranks):
        return None
    letters = [operand.replace("...", "") for operand in operands]
    hidden = [(rank or 0) - len(own) for rank, own in zip(ranks, letters, strict=True)]
    if any(count < 0 or (count > 0 and "..." not in own) for count, own in zip(hidden, operands, strict=True)):
        return None
    spread = max(hidden)
    if spread > len(_SPARE):
        return None
    left, right = (
        own.replace("...", _SPARE[spread - count : spread]) for own, count in zip(operands, hidden, strict=True)
    )
    if arrow:
        out = result.replace("...", _SPARE[:spread])
    else:
        both = left + right
        once = sorted(each for each in set(both) - set(_SPARE) if both.count(each) == 1)
        out = _SPARE[:spread] + "".join(once)
    equation = Equation(left, right, out)
    repeated = any(len(set(each)) != len(each) for each in (left, right, out))
    lost = any(each not in out for each in equation.free(left) + equation.free(right))
    unknown = set(out) - set(left + right)
    return None if repeated or lost or unknown or not equation.summed else equation


def _expand(body: Body, facts: Sequence[_Operand], weights: set[ir.Value | None]) -> ir.Value | None:
    equation = equation_of(body.node, [None if each.shape is None else len(each.shape) for each in facts])
    operands = [each for each in body.node.inputs if each is not None]
    if equation is None or len(operands) != 2 or all(each in weights for each in operands):
        return None
    seen: dict[str, int] = {}
    fixed: dict[str, int] = {}
    for letters, fact in zip((equation.left, equation.right), facts, strict=True):
        for letter, size, known in zip(letters, fact.shape or (), fact.fixed, strict=True):
            if 1 in {seen.setdefault(letter, size), size} and seen[letter] != size:
                return None  # an axis of 1 that is repeated
            if known is not None:
                fixed[letter] = known
    x, matrix = operands
    stored = matrix in weights
    ends = [each for each in equation.result if each not in equation.batch]
    if x in weights or (not stored and ends and ends[-1] in equation.free(equation.left)):
        equation, x, matrix, stored = equation.turned(), matrix, x, x in weights
    writer = _Writer(body, equation, fixed, (x, matrix))
    return writer.stored() if stored else writer.written()


class _Writer:
    """Writes one product; axes are called by their letters, and `fixed` has the sizes that no run decides."""

    def __init__(
        self, body: Body, equation: Equation, fixed: Mapping[str, int], operands: tuple[ir.Value, ir.Value]
    ) -> None:
        self._body = body
        self._equation = equation
        self._fixed = fixed
        self._x, self._matrix = operands

    def stored(self) -> ir.Value:
        """X [.., stack, rows, K] times a weight [stack, K, N]; free axes of X, but for the last, precede the stack."""
        equation, body = self._equation, self._body
        free, batch = equation.free(equation.left), equation.batch
        before, last = (free[:-1], free[-1:]) if batch else (free, "")
        groups = [*before, *([batch] if batch else []), *([last] if batch else []), equation.summed]
        x = self._laid_out(self._x, equation.left, groups)
        own = equation.free(equation.right)
        weight = self._laid_out(self._matrix, equation.right, [*([batch] if batch else []), equation.summed, own])
        vector = not free and not batch
        if vector:
            x = body.with_axes("Unsqueeze", x, [0])
        result = body.op("MatMul", x, weight, name=body.node.name)
        if vector:
            result = body.with_axes("Squeeze", result, [0])
        return self._finished(result, [*groups[:-1], own])

    def written(self) -> ir.Value:
        """A [batch, M, K] times B [batch, K, N], with each letter of the batch an axis of its own."""
        equation, body = self._equation, self._body
        rows, columns = equation.free(equation.left), equation.free(equation.right)
        a = self._laid_out(self._x, equation.left, [*equation.batch, rows, equation.summed])
        b = self._laid_out(self._matrix, equation.right, [*equation.batch, equation.summed, columns])
        return self._finished(body.op("MatMul", a, b, name=body.node.name), [*equation.batch, rows, columns])

    def _laid_out(self, value: ir.Value, letters: str, groups: Sequence[str]) -> ir.Value:
        """Axes in the order of the groups, those of a group as one (an empty group as an axis of 1)."""
        order = [letters.index(each) for group in groups for each in group]
        if order != list(range(len(letters))):
            value = self._body.transpose(value, *order)
        if all(len(group) == 1 for group in groups):
            return value
        return self._reshaped(value, [self._size(group) for group in groups])

    def _finished(self, value: ir.Value, groups: Sequence[str]) -> ir.Value:
        letters = "".join(groups)
        if any(len(group) != 1 for group in groups):
            value = self._reshaped(value, [self._size(each) for each in letters])
        order = [letters.index(each) for each in self._equation.result]
        return value if order == list(range(len(letters))) else self._body.transpose(value, *order)

    def _reshaped(self, value: ir.Value, sizes: Sequence[int | str]) -> ir.Value:
        """A Reshape to sizes that are numbers, or the letters of axes whose size only a run tells."""
        free = [size for size in sizes if isinstance(size, str)]
        body = self._body
        if len(free) <= 1:
            return body.reshape(value, *(-1 if isinstance(size, str) else size for size in sizes))
        parts = [self._run_size(size) if isinstance(size, str) else body.ints(size) for size in sizes]
        return body.op("Reshape", value, body.op("Concat", *parts, axis=0))

    def _size(self, group: str) -> int | str:
        """The number of elements along axes, or their letters if a run tells it."""
        if any(letter not in self._fixed for letter in group):
            return group
        return math.prod(self._fixed[letter] for letter in group)

    def _run_size(self, group: str) -> ir.Value:
        """The product of the sizes of axes as a run finds them, as int64 [1]."""
        total: ir.Value | None = None
        for letter in group:
            value, letters = next(each for each in self._operands() if letter in each[1])
            size = self._body.size(value, letters.index(letter))
            total = size if total is None else self._body.op("Mul", total, size)
        return total if total is not None else self._body.ints(1)

    def _operands(self) -> tuple[tuple[ir.Value, str], tuple[ir.Value, str]]:
        return (self._x, self._equation.left), (self._matrix, self._equation.right)
