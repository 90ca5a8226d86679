"""Expands ONNX's own Attention operator (opset 23 and later) into the products that it stands for.

Meaning: the ONNX standard's description of Attention, opsets 23 to 25.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.batch import Batch
from emu.rewriter.dataflow import is_standard
from emu.rewriter.passes.expand_fused_body import Body, Names, UnknownShapeError
from emu.rewriter.shapes import Probes, probe

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_QUERY, _KEY, _VALUE, _MASK, _PAST_KEY, _PAST_VALUE, _VALID = range(7)


class ExpandAttentionPass(ir.passes.InPlacePass):
    """Writes every Attention of the main graph as plain nodes.

    Its products are named `<node>/attention_scores` and `<node>/attention_context`. A node stays where the number of
    dimensions of its operands cannot be told.
    """

    def __init__(self, batch: Batch) -> None:
        """`batch` says where the model's samples lie."""
        super().__init__()
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expands in data-flow order: shapes behind one node are known once it is expanded."""
        names, opset = Names(model.graph), model.opset_imports.get("", 1)
        modified = False
        pending = [node for node in model.graph if is_standard(node) and node.op_type == "Attention"]
        while pending:
            probes = probe(model, self._batch)
            waiting = []
            for node in pending:
                kind = next((kind for value in node.inputs if (kind := probes.base.dtype(value)) is not None), None)
                body = Body(node, opset, names, probes.base.get, kind if kind in _HALF else ir.DataType.FLOAT)
                try:
                    results = _expand(body, probes)
                except UnknownShapeError:
                    waiting.append(node)
                else:
                    body.swap(results)
                    modified = True
            if len(waiting) == len(pending):
                break
            pending = waiting
        return ir.passes.PassResult(model, modified)


def _expand(body: Body, probes: Probes) -> list[ir.Value | None]:
    attributes = body.node.attributes
    flat = body.rank(body.needed(_QUERY)) == 3
    counts = "q_num_heads", "kv_num_heads", "kv_num_heads"
    if flat:
        _check_heads(body, counts)
    query, key, value = (
        _by_head(body, body.needed(place), body.count(name)) if flat else body.needed(place)
        for place, name in enumerate(counts)
    )
    past = body.given(_PAST_KEY)
    length = None
    if past is not None:
        length = body.size(past, 2)
        key = body.op("Concat", past, key, axis=2)
        value = body.op("Concat", body.needed(_PAST_VALUE), value, axis=2)
    presents = [body.op("Identity", each) if body.is_used(i) else None for i, each in ((1, key), (2, value))]
    if flat:
        heads, shared = body.count("q_num_heads"), body.count("kv_num_heads")
    else:
        heads, shared = (body.shape(body.needed(place))[1] or 0 for place in (_QUERY, _KEY))
    if shared and heads != shared and heads % shared == 0:
        owner = body.ints(*(head // (heads // shared) for head in range(heads)))
        key, value = (body.op("Gather", each, owner, axis=1) for each in (key, value))
    factor = _root_of_scale(body, query)
    scores = body.op(
        "MatMul",
        body.op("Mul", query, factor),
        body.op("Mul", body.transpose(key, 0, 1, 3, 2), factor),
        name=f"{body.node.name}/attention_scores",
    )
    stages = [scores]  # what the fourth output may show
    if (cap := attributes.get_float("softcap", 0.0)) > 0:
        limit = body.number(cap)
        scores = body.op("Mul", body.op("Tanh", body.op("Div", scores, limit)), limit)
    stages.append(scores)
    biases = _biases(body, probes, query, key, length)
    for bias in biases:
        scores = body.op("Add", scores, bias)
    stages.append(scores)
    weights = _softmax(body, scores, bool(biases))
    stages.append(weights)
    result = body.op("MatMul", weights, value, name=f"{body.node.name}/attention_context")
    if flat:
        result = body.reshape(body.transpose(result, 0, 2, 1, 3), 0, 0, -1)
    shown = stages[attributes.get_int("qk_matmul_output_mode", 0)]
    return [result, *presents, body.op("Identity", shown) if body.is_used(3) else None]


def _check_heads(body: Body, counts: Sequence[str]) -> None:
    """Refuses numbers of heads that do not divide what they are the heads of."""
    for place, name in enumerate(counts):
        heads, width = body.node.attributes.get_int(name, 0), body.shape(body.needed(place))[2]
        if heads < 1 or (width is not None and width % heads):
            raise InputError(
                f"Node '{body.node.name}' (Attention): {name} is {heads}, expected a divisor of the width of its "
                f"operand, {width if width is not None else 'which is free'}: export the model again."
            )


def _by_head(body: Body, value: ir.Value, count: int) -> ir.Value:
    """[batch, tokens, heads * width] as [batch, heads, tokens, width]."""
    return body.transpose(body.reshape(value, 0, 0, count, -1), 0, 2, 1, 3)


def _root_of_scale(body: Body, query: ir.Value) -> ir.Value:
    """The square root of the scale of the scores, 1 / sqrt(width of a head) unless it is given: queries and keys both
    take it.
    """
    scale = body.node.attributes.get_float("scale", 0.0)
    if scale:
        return body.number(float(np.sqrt(scale)))
    width = body.op("Cast", body.size(query, 3), to=int(body.precision))
    return body.op("Sqrt", body.op("Div", body.number(1.0), body.op("Sqrt", width)))


def _biases(body: Body, probes: Probes, query: ir.Value, key: ir.Value, past: ir.Value | None) -> list[ir.Value]:
    """What is added to the scores [batch, heads, queries, keys]: the mask, and minus infinity for keys out of sight."""
    attributes = body.node.attributes
    mask, valid = body.given(_MASK), body.given(_VALID)
    keys = body.size(key, 2)
    biases = []
    if mask is not None:
        biases.append(_mask(body, probes, mask, keys))
    seen: list[ir.Value] = []  # bool, whether a query sees a key
    first = _first_position(body, query, past, valid)
    behind = _keys_behind(body, query, keys, first)  # how far a key lies before a query
    zero = body.ints(0)
    if attributes.get_int("is_causal", 0):
        seen.append(body.op("Not", body.op("Less", behind, zero)))
    left, right = (attributes.get_int(f"{side}_window_size", -1) for side in ("left", "right"))
    if left >= 0:
        seen.append(body.op("Not", body.op("Greater", behind, body.ints(left))))
    if right >= 0:
        seen.append(body.op("Not", body.op("Less", behind, body.ints(-right))))
    if valid is not None:
        there = body.op("Less", body.range(keys), body.reshape(_int64(body, valid), -1, 1, 1, 1))
        seen.append(there)
    for each in seen:
        biases.append(body.op("Where", each, body.number(0.0), _minus_infinity(body)))
    return biases


def _int64(body: Body, value: ir.Value) -> ir.Value:
    return body.op("Cast", value, to=int(ir.DataType.INT64))


def _first_position(body: Body, query: ir.Value, past: ir.Value | None, valid: ir.Value | None) -> ir.Value:
    """How many keys come before the first query: int64 [1], or [batch, 1, 1, 1] for a cache that is filled partly."""
    if past is not None:
        return past
    if valid is None:
        return body.ints(0)
    return body.op("Sub", body.reshape(_int64(body, valid), -1, 1, 1, 1), body.size(query, 2))


def _keys_behind(body: Body, query: ir.Value, keys: ir.Value, first: ir.Value) -> ir.Value:
    """The position of each query less that of each key: int64 that broadcasts with [batch, heads, queries, keys]."""
    rows = body.with_axes("Unsqueeze", body.range(body.size(query, 2)), [1])
    return body.op("Sub", body.op("Add", rows, first), body.range(keys))


def _mask(body: Body, probes: Probes, mask: ir.Value, keys: ir.Value) -> ir.Value:
    """The mask as numbers to add; keys that it says nothing of are out of sight."""
    shape = body.shape(mask)
    if probes.base.dtype(mask) is ir.DataType.BOOL:
        mask = body.op("Where", mask, body.number(0.0), _minus_infinity(body))
    if _is_as_long(body, probes, shape[-1] if shape else None):
        return mask
    place = len(shape) - 1
    sizes = body.op("Shape", mask)
    missing = body.op("Sub", keys, body.slice(sizes, 0, place, place + 1))
    filler = body.op("Concat", body.slice(sizes, 0, 0, place), missing, axis=0) if place else missing
    return body.op("Concat", mask, body.op("Expand", _minus_infinity(body), filler), axis=place)


def _is_as_long(body: Body, probes: Probes, length: int | None) -> bool:
    """Whether a mask is known to reach over all keys, whatever the sizes of the run."""
    for shapes in (probes.base, probes.more_samples, probes.longer):
        own = shapes.get(body.given(_MASK))
        parts = [shapes.get(each) for each in (body.given(_PAST_KEY), body.given(_KEY)) if each is not None]
        if own is None or any(part is None for part in parts):
            return False
        keys = sum(part[-2] for part in parts if part is not None)
        if own[-1] != keys:
            return False
    return length is not None


def _minus_infinity(body: Body) -> ir.Value:
    return body.constant(np.array(-np.inf, dtype=body.precision.numpy()))


def _softmax(body: Body, scores: ir.Value, masked: bool) -> ir.Value:
    """Attention weights; a query that sees no key has weights of 0. NaN among the scores stays NaN."""
    kind = body.node.attributes.get_int("softmax_precision", 0)
    inner = scores if kind in (0, int(body.precision)) else body.op("Cast", scores, to=kind)
    weights = body.op("Softmax", inner, axis=-1)
    if inner is not scores:
        weights = body.op("Cast", weights, to=int(body.precision))
    if not masked:
        return weights
    largest = body.op("ReduceMax", scores, body.ints(-1), keepdims=1)
    return body.op("Where", body.op("Equal", largest, _minus_infinity(body)), body.number(0.0), weights)
