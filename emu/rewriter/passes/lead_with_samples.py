"""Lays activations out so that samples lie along the first axis, or the second, of every product.

Run-time noise is keyed by sample, and a crossbar node can only be told of these two axes. Samples elsewhere (along a
third axis, or between other things of one axis, as in `[heads * batch, tokens, width]` and `[two * batch, ...]`) are
brought to the front for the product, and back behind it.
"""

import math
from dataclasses import dataclass

import onnx_ir as ir

from emu.rewriter.batch import Batch
from emu.rewriter.dataflow import DataFlow, is_standard
from emu.rewriter.passes.expand_fused_body import Body, Names
from emu.rewriter.passes.fold_weights import constant_values
from emu.rewriter.shapes import Probes, probe, tokens_first

_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class LeadWithSamplesPass(ir.passes.InPlacePass):
    """Wraps the products of the main graph whose samples lie where no crossbar node looks for them."""

    def __init__(self, batch: Batch) -> None:
        """`batch` says where the model's samples lie."""
        super().__init__()
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Products keep their names."""
        source = next((value for value in model.graph.inputs if value.name == self._batch.input), None)
        if source is None or self._batch.size is not None:
            return ir.passes.PassResult(model, modified=False)
        probes, flow = probe(model, self._batch), DataFlow(model.graph)
        places, constants = places_of(flow, probes), constant_values(model.graph)
        # Before any of them is replaced: what replaces them is unknown to the probes.
        wanted = [
            (node, len(probes.base.get(node.inputs[0]) or ()), *found)
            for node in model.graph
            if is_standard(node) and (found := _wrapped(node, places, probes, flow, constants)) is not None
        ]
        names, opset = Names(model.graph), model.opset_imports.get("", 1)
        for node, rank, place, is_stored in wanted:
            body = Body(node, opset, names, probes.base.get)
            samples = body.size(source, self._batch.axis)
            body.swap([_Wrapper(body, place, rank, samples).wrap(is_stored)])
        return ir.passes.PassResult(model, bool(wanted))


@dataclass(frozen=True)
class Place:
    """Where the samples of a value lie: index i of `axis` is of sample (i / `inner`) % batch.

    `outer` is how often all samples follow each other along the axis. Both are of one choice of free sizes.
    """

    axis: int
    inner: int
    outer: int

    @property
    def is_alone(self) -> bool:
        """Whether nothing but samples lies along the axis."""
        return self.inner == 1 and self.outer == 1


def places_of(flow: DataFlow, probes: Probes) -> dict[ir.Value, Place]:
    """Where the samples of every value of the main graph lie, followed through changes of layout."""
    places: dict[ir.Value, Place] = {}
    for value in flow.graph.inputs:
        axis, shape = probes.batch_axis(value), probes.base.get(value)
        if axis is not None and shape is not None:
            places[value] = Place(axis, 1, shape[axis] // probes.batch)
    for node in flow.nodes:
        known = [(value, places[value]) for value in flow.data_inputs(node) if value in places]
        before = max(known, key=lambda each: len(probes.base.get(each[0]) or ()), default=None)
        for value in node.outputs:
            axis, shape = probes.batch_axis(value), probes.base.get(value)
            if axis is not None and shape is not None:
                axis, inner = _moved(node, before, axis, shape, probes)
                places[value] = Place(axis, inner, max(1, shape[axis] // (probes.batch * inner)))
    return places


def _moved(
    node: ir.Node, before: tuple[ir.Value, Place] | None, axis: int, shape: tuple[int, ...], probes: Probes
) -> tuple[int, int]:
    """The axis of samples behind a node, and what lies within each of them along it."""
    if before is None:
        return axis, 1
    value, place = before
    sizes = probes.base.get(value) or ()
    inner = place.inner
    if is_standard(node) and node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm", list(reversed(range(len(sizes))))))
        axis = order.index(place.axis)
    elif is_standard(node) and node.op_type in _MOVES:
        step, behind = inner * math.prod(sizes[place.axis + 1 :]), math.prod(shape[axis + 1 :])
        inner = step // behind if behind and step % behind == 0 else 1
    return axis, inner if inner and shape[axis] % (probes.batch * inner) == 0 else 1


def _wrapped(
    node: ir.Node,
    places: dict[ir.Value, Place],
    probes: Probes,
    flow: DataFlow,
    constants: set[ir.Value],
) -> tuple[Place, bool] | None:
    """Where the samples of a product lie, and whether it has a weight; None where it may stay as it is."""
    if node.op_type not in ("MatMul", "Gemm", "Conv") or node.inputs[0] is None or node.inputs[1] is None:
        return None
    x, matrix = node.inputs[0], node.inputs[1]
    place, shape = places.get(x), probes.base.get(x)
    if place is None or shape is None or len(shape) < 2:
        return None
    fixed = probes.fixed(x)
    if place.inner > 1 and (fixed is None or fixed[place.axis] is None):
        return None  # a Reshape must be told what lies within a sample, and that may change with the lengths
    if matrix in constants:
        rows = 1 if node.op_type == "Conv" else len(shape) - 1  # axes before this one count rows
        plain = place.outer == 1 and (place.axis == 0 or (place.axis == 1 and rows > 1))
        if plain or place.axis >= rows or (len(shape) == 2 and tokens_first(x, flow, probes)):
            return None
        stacked = probes.base.get(matrix)
        if stacked is not None and node.op_type == "MatMul" and len(stacked) > 2 and place.axis >= len(shape) - 3:
            return None
        return place, True
    other = probes.base.get(matrix)
    if node.op_type != "MatMul" or other is None or len(other) != len(shape) or place.axis >= len(shape) - 2:
        return None
    # What is written is keyed by the first axis alone.
    if places.get(matrix) != place or (place.axis == 0 and place.outer == 1):
        return None
    return place, False


class _Wrapper:
    """Writes one product with the samples of its operands in front."""

    def __init__(self, body: Body, place: Place, rank: int, samples: ir.Value) -> None:
        self._body = body
        self._place = place
        self._rank = rank
        self._samples = samples

    def wrap(self, is_stored: bool) -> ir.Value:
        """The result, laid out as that of the plain product."""
        body, node = self._body, self._body.node
        x, matrix = body.needed(0), body.needed(1)
        if node.op_type == "Conv":
            flat = body.op("Reshape", self._led(x), self._sizes(x))
            attributes = {name: each.value for name, each in node.attributes.items()}
            result = body.op("Conv", flat, matrix, *node.inputs[2:], name=node.name, **attributes)
            image = body.slice(body.op("Shape", result), 0, 1, self._rank)
            split = body.op("Concat", self._samples, body.ints(-1, self._place.inner), image, axis=0)
            return self._back(body.op("Reshape", result, split), self._sizes(result))
        led = self._led(x)
        if node.op_type == "Gemm":
            return self._gemm(led, x)
        right = matrix if is_stored else self._led(matrix)
        product = body.op("MatMul", led, right, name=node.name)
        return self._back(product, self._result_sizes(x, product))

    def _gemm(self, led: ir.Value, x: ir.Value) -> ir.Value:
        body, attributes = self._body, self._body.node.attributes
        weight = body.needed(1)
        if attributes.get_int("transB", 0):
            weight = body.transpose(weight, 1, 0)
        product = body.op("MatMul", led, weight, name=body.node.name)
        result = self._back(product, self._result_sizes(x, product))
        alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
        if alpha != 1.0:
            result = body.op("Mul", result, body.number(alpha))
        bias = body.given(2)
        if bias is None or beta == 0.0:
            return result
        return body.op("Add", result, bias if beta == 1.0 else body.op("Mul", bias, body.number(beta)))

    def _led(self, value: ir.Value) -> ir.Value:
        """[.., outer * samples * inner, ..] as [samples, .., outer, inner, ..]."""
        body, axis, rank = self._body, self._place.axis, self._rank
        if self._place.is_alone:
            return body.transpose(value, axis, *(each for each in range(rank) if each != axis))
        ends = body.op("Shape", value)
        parts = [body.slice(ends, 0, 0, axis)] if axis else []
        parts += [body.ints(-1), self._samples, body.ints(self._place.inner), body.slice(ends, 0, axis + 1, rank)]
        split = body.op("Reshape", value, body.op("Concat", *parts, axis=0))
        return body.transpose(split, axis + 1, *(each for each in range(rank + 2) if each != axis + 1))

    def _back(self, value: ir.Value, sizes: ir.Value) -> ir.Value:
        """The reverse of `_led`, for a result with these sizes."""
        body, axis, rank = self._body, self._place.axis, self._rank
        if self._place.is_alone:
            order = [*range(1, axis + 1), 0, *range(axis + 1, rank)]
            return body.transpose(value, *order)
        order = [*range(1, axis + 2), 0, *range(axis + 2, rank + 2)]
        return body.op("Reshape", body.transpose(value, *order), sizes)

    def _sizes(self, image: ir.Value) -> ir.Value:
        """The sizes of an image, with any number of images."""
        body = self._body
        return body.op("Concat", body.ints(-1), body.slice(body.op("Shape", image), 0, 1, self._rank), axis=0)

    def _result_sizes(self, x: ir.Value, product: ir.Value) -> ir.Value:
        """Those of X, with the columns of the product as the last."""
        body, axis, rank = self._body, self._place.axis, self._rank
        ends, made = body.op("Shape", x), body.op("Shape", product)
        place = rank - 1 if self._place.is_alone else rank + 1
        parts = [body.slice(ends, 0, 0, axis)] if axis else []
        parts.append(body.ints(-1))
        if axis + 1 < rank - 1:
            parts.append(body.slice(ends, 0, axis + 1, rank - 1))
        return body.op("Concat", *parts, body.slice(made, 0, place, place + 1), axis=0)
