"""onnxruntime's fused attention: projections (where they are inside), scores, mask, Softmax and context as plain nodes.

Products are named `<node>/query_key_value`, `<node>/attention_scores` and `<node>/attention_context`. Meaning of the
operators: onnxruntime's contrib operator documentation and its CPU kernels.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from emu.rewriter.passes.expand_fused_body import Body, UnknownShapeError, is_used
from emu.rewriter.passes.expand_fused_elementwise import rotate

_LOWEST = float(np.finfo(np.float32).min)
_END = 2**31 - 1


@dataclass(frozen=True)
class _Heads:
    """Queries [batch, heads, tokens, width]; keys and values [batch, heads, all tokens, width], cached ones first."""

    query: ir.Value
    key: ir.Value
    value: ir.Value


def refuse_attention(node: ir.Node) -> str | None:
    """Options of Attention without an expansion."""
    for name in ("do_rotary", "past_present_share_buffer"):
        if node.attributes.get_int(name, 0):
            return name
    return None


def expand_attention(body: Body) -> list[ir.Value | None]:
    """Attention: one packed projection [width, queries + keys + values] and all that follows."""
    count = body.count("num_heads")
    query, key, value = (_by_head(body, each, count) for each in _projections(body))
    past = body.given(4)
    present = None
    length = None
    if past is not None:
        cached = [body.op("Gather", past, body.constant(np.int64(place)), axis=0) for place in (0, 1)]
        length = body.size(cached[0], 2)
        key, value = (body.op("Concat", old, new, axis=2) for old, new in zip(cached, (key, value), strict=True))
    if body.is_used(1):
        present = body.op("Concat", *(body.with_axes("Unsqueeze", each, [0]) for each in (key, value)), axis=0)
    heads = _Heads(query, key, value)
    return [_attended(body, heads, _masks(body, heads, body.given(3), length, body.given(5))), present]


def _projections(body: Body) -> list[ir.Value]:
    """Queries, keys and values [batch, tokens, width], from one product if they are equally wide."""
    x, weight, bias = body.needed(0), body.needed(1), body.given(2)
    widths = list(body.node.attributes.get_ints("qkv_hidden_sizes", []))
    if not widths:
        total = body.shape(weight)[1]
        if total is None:
            raise UnknownShapeError(weight)
        widths = [total // 3] * 3
    ends = [0, *np.cumsum(widths).tolist()]
    parts = list(pairwise(ends))
    if len(set(widths)) == 1:
        result = body.op("MatMul", x, weight, name=f"{body.node.name}/query_key_value")
        if bias is not None:
            result = body.op("Add", result, bias)
        return [body.slice(result, 2, first, last) for first, last in parts]
    results = []
    for name, (first, last) in zip(("query", "key", "value"), parts, strict=True):
        own = body.slice(weight, 1, first, last)
        result = body.op("MatMul", x, own, name=f"{body.node.name}/{name}")
        results.append(result if bias is None else body.op("Add", result, body.slice(bias, 0, first, last)))
    return results


def refuse_multi_head_attention(node: ir.Node) -> str | None:
    """Options of MultiHeadAttention without an expansion."""
    for place, name in ((8, "past_sequence_length"), (9, "cache_indirection")):
        if place < len(node.inputs) and node.inputs[place] is not None:
            return name
    return "its scores as an output" if is_used(node, 3) else None


def expand_multi_head_attention(body: Body) -> list[ir.Value | None]:
    """MultiHeadAttention: everything after the projections, whose biases it may add."""
    count = body.count("num_heads")
    query, key, value = _unpacked(body)
    bias = body.given(3)
    separate = key is None or body.rank(key) != 4
    if key is None or value is None:
        query, key, value = _split_packed(body)
    if bias is not None:
        width = body.size(query, 2)
        twice = body.op("Add", width, width)
        query = body.op("Add", query, body.slice(bias, 0, 0, width))
        if separate:  # keys that come by head are cached: they have had their bias
            key = body.op("Add", key, body.slice(bias, 0, width, twice))
            value = body.op("Add", value, body.slice(bias, 0, twice, _END))
    query = _by_head(body, query, count)
    if separate:
        key, value = _by_head(body, key, count), _by_head(body, value, count)
    length = None
    past_key, past_value = body.given(6), body.given(7)
    if past_key is not None and past_value is not None:
        length = body.size(past_key, 2)
        key, value = body.op("Concat", past_key, key, axis=2), body.op("Concat", past_value, value, axis=2)
    heads = _Heads(query, key, value)
    result = _attended(body, heads, _masks(body, heads, body.given(4), length, body.given(5)))
    presents = [body.op("Identity", each) if body.is_used(i) else None for i, each in ((1, key), (2, value))]
    return [result, *presents]


def _unpacked(body: Body) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
    return body.needed(0), body.given(1), body.given(2)


def _split_packed(body: Body) -> list[ir.Value]:
    """Queries, keys and values [batch, tokens, heads * width] from [batch, tokens, heads, 2 or 3, width]."""
    query, key = body.needed(0), body.given(1)
    packed, parts = (query, 3) if key is None else (key, 2)
    split = [
        body.reshape(body.op("Gather", packed, body.constant(np.int64(place)), axis=3), 0, 0, -1)
        for place in range(parts)
    ]
    return split if key is None else [query, *split]


def refuse_group_query_attention(node: ir.Node) -> str | None:
    """Options of GroupQueryAttention without an expansion."""
    attributes = node.attributes
    for name, neutral in (
        ("local_window_size", -1),
        ("smooth_softmax", 0),
        ("sliding_window_cache", 0),
        ("qk_output", 0),
        ("causal", 1),
    ):
        if attributes.get_int(name, neutral) not in (neutral, max(neutral, 0)):
            return name
    if attributes.get_float("softcap", 0.0) != 0.0:
        return "softcap"
    for name in ("k_quant_type", "v_quant_type"):
        if attributes.get_string(name, "NONE") != "NONE":
            return name
    names = ("head_sink", "k_scale", "v_scale", "q_norm_weight", "k_norm_weight")
    for place, name in enumerate(names, start=11):
        if place < len(node.inputs) and node.inputs[place] is not None:
            return name
    if _has(node, 10) and _has(node, 3):
        return "attention_bias and a cache together"
    return "its scores as an output" if is_used(node, 3) else None


def _has(node: ir.Node, place: int) -> bool:
    return place < len(node.inputs) and node.inputs[place] is not None


def expand_group_query_attention(body: Body) -> list[ir.Value | None]:
    """GroupQueryAttention: causal attention in which several query heads share a key head, rotation included.

    Where there is a cache, sample b has used its first `seqlens_k[b] + 1 - tokens` places. The keys here are the whole
    cache and the new keys behind it; what lies between them is masked.
    """
    count, shared = body.count("num_heads"), body.count("kv_num_heads")
    query, key, value = _grouped(body, count, shared)
    tokens = body.range(body.size(query, 2))
    past_key, past_value = body.given(3), body.given(4)
    used = None
    if past_key is not None and past_value is not None:
        used = _used_places(body, body.size(query, 2))
    if body.node.attributes.get_int("do_rotary", 0):
        place = _positions(body, tokens, used)
        interleaved = bool(body.node.attributes.get_int("rotary_interleaved", 0))
        query, key = (rotate(body, each, place, body.needed(7), body.needed(8), interleaved) for each in (query, key))
    if past_key is None or past_value is None or used is None:
        presents = [body.op("Identity", each) if body.is_used(i) else None for i, each in ((1, key), (2, value))]
        allowed = _not_later(body, tokens, tokens)
    else:
        pairs = ((1, past_key, key), (2, past_value, value))
        presents = [_present(body, old, new, used) if body.is_used(i) else None for i, old, new in pairs]
        allowed = _in_use(body, tokens, body.size(past_key, 2), used)
        key, value = body.op("Concat", past_key, key, axis=2), body.op("Concat", past_value, value, axis=2)
    masks = [body.op("Where", allowed, body.number(0.0), body.number(_LOWEST))]
    if (bias := body.given(10)) is not None:
        masks.append(bias)
    if count != shared:
        owner = body.ints(*(head // (count // shared) for head in range(count)))
        key, value = (body.op("Gather", each, owner, axis=1) for each in (key, value))
    return [_attended(body, _Heads(query, key, value), masks), *presents]


def _grouped(body: Body, count: int, shared: int) -> list[ir.Value]:
    """Queries, keys and values by head, from three inputs or from one that holds the heads of all."""
    query, key, value = body.needed(0), body.given(1), body.given(2)
    if key is not None and value is not None:
        return [_by_head(body, each, heads) for each, heads in ((query, count), (key, shared), (value, shared))]
    packed = _by_head(body, query, count + 2 * shared)
    ends = (0, count, count + shared, count + 2 * shared)
    return [body.slice(packed, 1, first, last) for first, last in pairwise(ends)]


def _int64(body: Body, value: ir.Value) -> ir.Value:
    return body.op("Cast", value, to=int(ir.DataType.INT64))


def _is_first(body: Body, length: ir.Value) -> ir.Value:
    """Whether there is nothing in the cache yet: bool [1]."""
    return body.op("Equal", body.reshape(_int64(body, body.needed(6)), -1), length)


def _used_places(body: Body, length: ir.Value) -> ir.Value:
    """How many places of the cache each sample has used: int64 [batch, 1]."""
    last = body.reshape(_int64(body, body.needed(5)), -1, 1)
    used = body.op("Sub", body.op("Add", last, body.ints(1)), length)
    return body.op("Where", _is_first(body, length), body.ints(0), used)


def _positions(body: Body, tokens: ir.Value, used: ir.Value | None) -> ir.Value:
    """The position of every token: int64 [1 or batch, tokens]."""
    counted = body.op("Add", tokens, body.ints(0) if used is None else used)
    given = body.given(9)
    if given is None:
        return counted if used is not None else body.with_axes("Unsqueeze", counted, [0])
    given = _int64(body, given)
    # The first time, onnxruntime takes the first position alone and counts on from it.
    first = body.op("Add", body.slice(body.reshape(given, -1), 0, 0, 1), tokens)
    return body.op("Where", _is_first(body, body.size(tokens, 0)), first, given)


def _not_later(body: Body, rows: ir.Value, columns: ir.Value) -> ir.Value:
    """Whether the key of each column stands at or before the query of each row: bool [rows, columns]."""
    return body.op("Not", body.op("Less", body.with_axes("Unsqueeze", rows, [1]), columns))


def _in_use(body: Body, tokens: ir.Value, places: ir.Value, used: ir.Value) -> ir.Value:
    """Which keys (the places of the cache, then the new ones) a query may see: bool [batch, 1, tokens, keys]."""
    cached = body.op("Less", body.range(places), used)  # [batch, places]
    cached = body.with_axes("Unsqueeze", cached, [1, 2])
    new = body.with_axes("Unsqueeze", _not_later(body, tokens, tokens), [0, 1])
    rows = body.op("Concat", body.size(used, 0), body.ints(1), body.size(tokens, 0), axis=0)
    parts = [
        body.op("Expand", part, body.op("Concat", rows, columns, axis=0))
        for part, columns in ((cached, places), (new, body.size(tokens, 0)))
    ]
    return body.op("Concat", *parts, axis=3)


def _present(body: Body, past: ir.Value, new: ir.Value, used: ir.Value) -> ir.Value:
    """The cache with the new keys right after the used places of each sample, zeros behind them."""
    places, length = body.size(past, 2), body.size(new, 2)
    total = body.reshape(_int64(body, body.needed(6)), -1)
    larger = body.op("Where", body.op("Less", places, total), total, places)
    column = body.range(larger)
    behind = body.op("Sub", column, used)  # which new key it is: [batch, columns]
    is_cached = body.op("Less", behind, body.ints(0))
    is_new = body.op("Less", behind, length)
    both = body.op("Concat", past, new, axis=2)
    filled = body.op("Concat", both, body.op("Mul", body.slice(new, 2, 0, 1), body.number(0.0)), axis=2)
    behind = body.op("Where", is_new, body.op("Add", behind, places), body.op("Add", places, length))
    index = body.op("Where", is_cached, column, behind)
    index = body.with_axes("Unsqueeze", index, [1, 3])
    heads, width = body.size(new, 1), body.size(new, 3)
    shape = body.op("Concat", body.size(used, 0), heads, larger, width, axis=0)
    return body.op("GatherElements", filled, body.op("Expand", index, shape), axis=2)


def _by_head(body: Body, value: ir.Value, count: int) -> ir.Value:
    """[batch, tokens, heads * width] as [batch, heads, tokens, width]."""
    return body.transpose(body.reshape(value, 0, 0, count, -1), 0, 2, 1, 3)


def _masks(
    body: Body, heads: _Heads, mask: ir.Value | None, past: ir.Value | None, bias: ir.Value | None
) -> list[ir.Value]:
    """What is added to the scores [batch, heads, tokens, keys] of Attention and MultiHeadAttention.

    As in onnxruntime's kernels: later keys have the lowest number of float32 whatever the mask says of them, and the
    bias is added to both.
    """
    hidden = None
    if mask is not None:
        filter_value = body.number(body.node.attributes.get_float("mask_filter_value", -10000.0))
        hidden = body.op("Where", _kept_keys(body, heads, mask), body.number(0.0), filter_value)
    if body.node.attributes.get_int("unidirectional", 0):
        rows, columns = body.range(body.size(heads.query, 2)), body.range(body.size(heads.key, 2))
        rows = rows if past is None else body.op("Add", rows, past)
        earlier = _not_later(body, rows, columns)
        hidden = body.op("Where", earlier, body.number(0.0) if hidden is None else hidden, body.number(_LOWEST))
    return [each for each in (hidden, bias) if each is not None]


def _kept_keys(body: Body, heads: _Heads, mask: ir.Value) -> ir.Value:
    """The keys that a mask leaves: bool that broadcasts with [batch, heads, tokens, keys].

    A mask has 1 for keys to keep in [batch, keys] or [batch, tokens, keys]; or it is a vector of the number of keys of
    every sample, and maybe of the first key of every sample behind that.
    """
    rank = body.rank(mask)
    if rank > 1:
        kept = body.op("Greater", _int64(body, mask), body.ints(0))
        return body.with_axes("Unsqueeze", kept, [1, 2] if rank == 2 else [1])
    batch = body.size(heads.query, 0)
    columns = body.range(body.size(heads.key, 2))
    mask = _int64(body, mask)
    ends = body.with_axes("Unsqueeze", body.slice(mask, 0, 0, batch), [1])
    before_end = body.op("Less", columns, ends)
    twice = body.op("Add", batch, batch)
    behind = body.op("Concat", mask, body.op("Expand", body.ints(0), batch), axis=0)
    starts = body.slice(behind, 0, batch, twice)
    starts = body.op("Where", body.op("Equal", body.size(mask, 0), twice), starts, body.ints(0))
    after_start = body.op("Not", body.op("Less", columns, body.with_axes("Unsqueeze", starts, [1])))
    return body.with_axes("Unsqueeze", body.op("And", before_end, after_start), [1, 2])


def _attended(body: Body, heads: _Heads, masks: list[ir.Value]) -> ir.Value:
    """Softmax(scale * queries keys^T + masks) values, as [batch, tokens, heads * width]."""
    keys = body.transpose(heads.key, 0, 1, 3, 2)
    scores = body.op("MatMul", heads.query, keys, name=f"{body.node.name}/attention_scores")
    scores = body.op("Mul", scores, _scale(body, heads.query))
    for mask in masks:
        scores = body.op("Add", scores, mask)
    weights = body.op("Softmax", scores, axis=-1)
    context = body.op("MatMul", weights, heads.value, name=f"{body.node.name}/attention_context")
    return body.reshape(body.transpose(context, 0, 2, 1, 3), 0, 0, -1)


def _scale(body: Body, query: ir.Value) -> ir.Value:
    """The scale of the scores: 1 / sqrt(width of a head) unless it is given."""
    scale = body.node.attributes.get_float("scale", 0.0)
    if scale:
        return body.number(scale)
    width = body.op("Cast", body.size(query, 3), to=int(body.precision))
    return body.op("Div", body.number(1.0), body.op("Sqrt", width))
