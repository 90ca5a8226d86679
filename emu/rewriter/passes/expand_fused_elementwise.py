"""What onnxruntime fuses around products: norms with their residual sums, GELUs with their biases, rotations.

Meaning of the operators: onnxruntime's contrib operator documentation and its CPU kernels.
"""

import math

import numpy as np
import onnx_ir as ir

from emu.rewriter.dataflow import tensor_of
from emu.rewriter.passes.expand_fused_body import Body, is_used

_LAYER_NORMALIZATION = 17  # the opset from which ONNX has the operator itself


def expand_gelu(body: Body) -> list[ir.Value | None]:
    """Gelu and BiasGelu: x (1 + erf(x / sqrt 2)) / 2."""
    return [gelu(body, _with_bias(body, 1))]


def expand_fast_gelu(body: Body) -> list[ir.Value | None]:
    """FastGelu: the approximation of GELU by tanh."""
    return [fast_gelu(body, _with_bias(body, 1))]


def expand_quick_gelu(body: Body) -> list[ir.Value | None]:
    """QuickGelu: x sigmoid(alpha x)."""
    x = body.needed(0)
    gate = body.op("Mul", x, body.number(body.node.attributes.get_float("alpha", 1.702)))
    return [body.op("Mul", x, body.op("Sigmoid", gate))]


def gelu(body: Body, x: ir.Value) -> ir.Value:
    """The exact GELU."""
    spread = body.op("Erf", body.op("Mul", x, body.number(math.sqrt(0.5))))
    return body.op("Mul", body.op("Mul", x, body.number(0.5)), body.op("Add", spread, body.number(1.0)))


def fast_gelu(body: Body, x: ir.Value) -> ir.Value:
    """GELU by tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    slope = math.sqrt(2.0 / math.pi)
    square = body.op("Mul", body.op("Mul", x, x), body.number(0.044715 * slope))
    inner = body.op("Mul", x, body.op("Add", square, body.number(slope)))
    bent = body.op("Add", body.op("Tanh", inner), body.number(1.0))
    return body.op("Mul", body.op("Mul", x, body.number(0.5)), bent)


def _with_bias(body: Body, place: int) -> ir.Value:
    bias = body.given(place)
    return body.needed(0) if bias is None else body.op("Add", body.needed(0), bias)


def refuse_norm(node: ir.Node) -> str | None:
    """The statistics that training reads."""
    return "its mean and deviation as outputs" if is_used(node, 1) or is_used(node, 2) else None


def expand_layer_normalization(body: Body) -> list[ir.Value | None]:
    """LayerNormalization as onnxruntime writes it into graphs that are older than ONNX's own."""
    axis = body.node.attributes.get_int("axis", -1)
    epsilon = body.node.attributes.get_float("epsilon", 1e-5)
    return [_layer_normalization(body, body.needed(0), body.needed(1), body.given(2), epsilon, axis)]


def expand_simplified_layer_normalization(body: Body) -> list[ir.Value | None]:
    """SimplifiedLayerNormalization, the RMS norm."""
    epsilon = body.node.attributes.get_float("epsilon", 1e-5)
    return [_rms_normalization(body, body.needed(0), body.needed(1), epsilon)]


def refuse_axis(node: ir.Node) -> str | None:
    """Norms over more than the last axis."""
    return "an axis other than the last" if node.attributes.get_int("axis", -1) != -1 else refuse_norm(node)


def expand_skip_layer_normalization(body: Body) -> list[ir.Value | None]:
    """SkipLayerNormalization: the norm of input + skip + bias; the sum is the fourth output."""
    total = _skip(body, body.given(4))
    epsilon = body.node.attributes.get_float("epsilon", 1e-12)
    return [_layer_normalization(body, total, body.needed(2), body.given(3), epsilon), None, None, total]


def expand_skip_simplified_layer_normalization(body: Body) -> list[ir.Value | None]:
    """SkipSimplifiedLayerNormalization: the same with the RMS norm."""
    total = _skip(body, body.given(3))
    epsilon = body.node.attributes.get_float("epsilon", 1e-12)
    return [_rms_normalization(body, total, body.needed(2), epsilon), None, None, total]


def _skip(body: Body, bias: ir.Value | None) -> ir.Value:
    total = body.needed(0) if bias is None else body.op("Add", body.needed(0), bias)
    return body.op("Add", total, body.needed(1))


def _layer_normalization(
    body: Body, x: ir.Value, scale: ir.Value, shift: ir.Value | None, epsilon: float, axis: int = -1
) -> ir.Value:
    if body.opset >= _LAYER_NORMALIZATION:
        operands = [x, scale] if shift is None else [x, scale, shift]
        return body.op("LayerNormalization", *operands, axis=axis, epsilon=epsilon)
    assert axis == -1, "refused before"
    centred = body.op("Sub", x, body.with_axes("ReduceMean", x, [-1], keepdims=1))
    result = _rms_normalization(body, centred, scale, epsilon)
    return result if shift is None else body.op("Add", result, shift)


def _rms_normalization(body: Body, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
    square = body.with_axes("ReduceMean", body.op("Mul", x, x), [-1], keepdims=1)
    deviation = body.op("Sqrt", body.op("Add", square, body.number(epsilon)))
    return body.op("Mul", body.op("Div", x, deviation), scale)


def expand_embed_layer_normalization(body: Body) -> list[ir.Value | None]:
    """EmbedLayerNormalization: words + positions + segments, their norm, and the length of every text."""
    words, segments, mask = body.needed(0), body.given(1), body.given(7)
    total = body.op("Gather", body.needed(2), words, axis=0)
    place = body.given(8)
    if place is None:
        positions = body.slice(body.needed(3), 0, 0, body.size(words, 1))
    else:
        positions = body.op("Gather", body.needed(3), place, axis=0)
    total = body.op("Add", total, positions)
    if segments is not None:
        total = body.op("Add", total, body.op("Gather", body.needed(4), segments, axis=0))
    epsilon = body.node.attributes.get_float("epsilon", 1e-12)
    normed = _layer_normalization(body, total, body.needed(5), body.given(6), epsilon)
    lengths = None
    if body.is_used(1):
        if mask is None:
            none = body.constant(np.zeros(1, dtype=np.int32))
            lengths = body.op("Expand", none, body.size(words, 0))
        else:
            kept = body.op("Cast", body.op("Equal", mask, body.constant(np.int32(1))), to=int(ir.DataType.INT32))
            lengths = body.with_axes("ReduceSum", kept, [1], keepdims=0)
    return [normed, lengths, total]


def refuse_rotary(node: ir.Node) -> str | None:
    """Texts of different lengths in one batch without padding, and a scale."""
    if node.attributes.get_int("is_packed_batching", 0):
        return "is_packed_batching"
    return "scale" if node.attributes.get_float("scale", 1.0) != 1.0 else None


def expand_rotary_embedding(body: Body) -> list[ir.Value | None]:
    """RotaryEmbedding of [batch, tokens, heads * width] or [batch, heads, tokens, width]."""
    x, place, cosines, sines = (body.needed(i) for i in range(4))
    by_head = body.rank(x) == 4
    heads = x
    if not by_head:
        heads = body.transpose(_split_heads(body, x, cosines), 0, 2, 1, 3)
    if body.rank(place) == 1:  # where the first token stands; the others follow
        tokens = body.range(body.size(heads, 2))
        place = body.with_axes("Unsqueeze", body.op("Add", tokens, place), [0])
    turned = rotate(body, heads, place, cosines, sines, bool(body.node.attributes.get_int("interleaved", 0)))
    if by_head:
        return [turned]
    return [body.reshape(body.transpose(turned, 0, 2, 1, 3), 0, 0, -1)]


def _split_heads(body: Body, x: ir.Value, cosines: ir.Value) -> ir.Value:
    count = body.node.attributes.get_int("num_heads", 0)
    if count:
        return body.reshape(x, 0, 0, count, -1)
    width = body.op("Mul", body.size(cosines, 1), body.ints(2))
    return body.op("Reshape", x, body.op("Concat", body.ints(0, 0, -1), width, axis=0))


def rotate(body: Body, x: ir.Value, place: ir.Value, cosines: ir.Value, sines: ir.Value, interleaved: bool) -> ir.Value:
    """Turns pairs of columns of x [batch, heads, tokens, width] by the angles at `place` [batch, tokens].

    The tables have [positions, angles]. Column i is turned with column i + angles, if `interleaved` 2 i with 2 i + 1.
    Columns after the first 2 * angles stay as they are.
    """
    angles = body.size(cosines, 1)
    turned = body.op("Mul", angles, body.ints(2))
    cosine, sine = (
        body.with_axes("Unsqueeze", body.op("Gather", table, place, axis=0), [1]) for table in (cosines, sines)
    )
    rest = body.slice(x, 3, turned, _END)
    if interleaved:
        first, second = (body.slice(x, 3, start, turned, step=2) for start in (0, 1))
    else:
        first, second = body.slice(x, 3, 0, angles), body.slice(x, 3, angles, turned)
    new_first = body.op("Sub", body.op("Mul", first, cosine), body.op("Mul", second, sine))
    new_second = body.op("Add", body.op("Mul", second, cosine), body.op("Mul", first, sine))
    if not interleaved:
        return body.op("Concat", new_first, new_second, rest, axis=-1)
    pairs = body.op("Concat", *(body.with_axes("Unsqueeze", each, [4]) for each in (new_first, new_second)), axis=4)
    return body.op("Concat", body.reshape(pairs, 0, 0, 0, -1), rest, axis=-1)


_END = 2**31 - 1


def refuse_expand_dims(node: ir.Node) -> str | None:
    """An axis that is no constant."""
    return None if tensor_of(node.inputs[1]) is not None else "an axis that is no constant"


def expand_expand_dims(body: Body) -> list[ir.Value | None]:
    """ExpandDims: Unsqueeze along one axis."""
    tensor = tensor_of(body.needed(1))
    assert tensor is not None, "refused before"
    return [body.with_axes("Unsqueeze", body.needed(0), [int(tensor.numpy().reshape(()))])]
