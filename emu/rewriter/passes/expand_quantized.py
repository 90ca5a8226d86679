"""Brings quantized operators to one form: dequantize, compute in float, quantize again.

A product becomes MatMul, Gemm or Conv of dequantized operands; a constant operand's codes, scale and zero point are
those of the model. Activations keep the quantization that the graph gave them, as plain QuantizeLinear,
DynamicQuantizeLinear and DequantizeLinear nodes.

Meaning of the operators: the ONNX standard, and onnxruntime's contrib operator documentation and CPU kernels.
"""

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from emu.rewriter.builder import add_initializer
from emu.rewriter.dataflow import is_standard, sizes_of, tensor_of
from emu.rewriter.passes.expand_fused_body import Body, Names
from emu.rewriter.quantized import QuantizedTensor, unpacked

_CONTRIB = "com.microsoft"
_CODES = (ir.DataType.INT8, ir.DataType.UINT8)
_LAYOUT = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Split", "Slice", "Gather")


class ExpandQuantizedPass(ir.passes.InPlacePass):
    """Expands the quantized operators of the main graph, except for those that `why_not_expanded` has a reason for."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Nodes of a product keep its name; the others are named after it."""
        names = Names(model.graph)
        opset = model.opset_imports.get("", 1)
        modified = False
        for node in list(model.graph):
            expand = _EXPANSIONS.get(_key(node))
            if expand is not None and node.graph is model.graph and why_not_expanded(node) is None:
                expand(node, opset, names)
                modified = True
        return ir.passes.PassResult(model, modified)


def is_quantized(node: ir.Node) -> bool:
    """Whether the node is one of the quantized operators that are expanded."""
    return _key(node) in _EXPANSIONS


def holds_product(node: ir.Node) -> bool:
    """Whether the node is one of the quantized operators that multiply matrices."""
    return node.op_type in _PRODUCT_PLACES or node.op_type == "MatMulNBits"


def why_not_expanded(node: ir.Node) -> str | None:
    """What keeps a quantized node from being expanded, None if nothing does."""
    if _key(node) not in _EXPANSIONS:
        return None
    check = _CHECKS.get(node.op_type)
    return check(node) if check else None


def _key(node: ir.Node) -> tuple[str, str]:
    return "" if is_standard(node) else node.domain, node.op_type


# --- Operands


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _elements(value: ir.Value | None) -> int | None:
    """The number of elements of a constant or of a value with a known shape."""
    if value is None:
        return 1
    if (tensor := tensor_of(value)) is not None:
        return tensor.size
    return int(np.prod(value.shape.numpy())) if value.shape is not None and value.shape.is_static() else None


def _dequantize(
    body: Body, codes: ir.Value | None, scale: ir.Value | None, zero_point: ir.Value | None, axis: int | None = None
) -> ir.Value:
    """Floats from codes; `axis` is where scales differ, None for a single scale."""
    several = axis is not None and max(_elements(scale) or 0, _elements(zero_point) or 0) > 1
    scale = _float32(body, scale)
    if not several:
        scale, zero_point = _single(body, scale), _single(body, zero_point)
    inputs = [codes, scale] if zero_point is None else [codes, scale, zero_point]
    result = body.op("DequantizeLinear", *inputs, name=None, **({"axis": axis} if several and axis is not None else {}))
    if codes is not None:
        result.shape, result.type = codes.shape, ir.TensorType(ir.DataType.FLOAT)
    return result


def _quantize(
    body: Body, result: ir.Value, scale: ir.Value | None, zero_point: ir.Value | None, like: ir.Value | None
) -> ir.Value:
    """Codes again; without a zero point it is 0, of the type that the codes `like` have."""
    if zero_point is None:
        kind = like.dtype if like is not None and like.dtype in _CODES else ir.DataType.UINT8
        zero_point = body.constant(np.zeros((), dtype=kind.numpy()), "zero_point")
    return body.op("QuantizeLinear", result, _single(body, _float32(body, scale)), _single(body, zero_point))


def _float32(body: Body, scale: ir.Value | None) -> ir.Value | None:
    """A scale of half precision as float32, the precision of the products around it."""
    if scale is None or scale.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return scale
    tensor = tensor_of(scale)
    if tensor is not None:
        return body.constant(tensor.numpy().astype(np.float32), "scale")
    return body.op("Cast", scale, to=int(ir.DataType.FLOAT))


def _single(body: Body, value: ir.Value | None) -> ir.Value | None:
    """A scale or zero point as a scalar: onnxruntime also takes a vector of one."""
    tensor = tensor_of(value)
    if tensor is None or len(sizes_of(tensor)) == 0 or tensor.size != 1:
        return value
    return body.constant(tensor.numpy().reshape(()).copy(), "scalar")


def _with_bias(body: Body, product: ir.Value, bias: ir.Value | None) -> ir.Value:
    return product if bias is None else body.op("Add", product, bias)


def _integer_bias(body: Body, bias: ir.Value | None, *scales: ir.Value | None, factor: float = 1.0) -> ir.Value | None:
    """A bias of 32-bit integers in units of the product of `scales`, in float."""
    if bias is None:
        return None
    result = body.op("Cast", bias, to=int(ir.DataType.FLOAT))
    unit: ir.Value = body.number(factor)
    for scale in scales:
        unit = body.op("Mul", unit, scale)
    return body.op("Mul", result, unit)


# --- Products with float results


def _expand_dynamic_quantize_matmul(node: ir.Node, opset: int, names: Names) -> None:
    """Float activations, quantized as they come; weight codes; float result."""
    body = _body(node, opset, names)
    x, codes, scale, zero_point, bias = (_input(node, place) for place in range(5))
    quantized = names.fresh(f"{node.name}/quantized")
    outputs = [ir.Value(name=names.fresh(f"{quantized}.{part}")) for part in ("codes", "scale", "zero_point")]
    quantize = ir.node(
        "DynamicQuantizeLinear",
        [x],
        outputs=outputs,
        name=f"{node.name}/DynamicQuantizeLinear",
        metadata_props=dict(node.metadata_props),
    )
    assert isinstance(node.graph, ir.Graph), "only the main graph is expanded"
    node.graph.insert_before(node, quantize)
    left = _dequantize(body, outputs[0], outputs[1], outputs[2])
    right = _dequantize(body, codes, scale, zero_point, axis=1)
    body.swap([_with_bias(body, body.op("MatMul", left, right, name=node.name), bias)])


def _expand_matmul_integer_to_float(node: ir.Node, opset: int, names: Names) -> None:
    body = _body(node, opset, names)
    a, b, a_scale, b_scale, a_zero_point, b_zero_point, bias = (_input(node, place) for place in range(7))
    left = _dequantize(body, a, a_scale, a_zero_point)
    right = _dequantize(body, b, b_scale, b_zero_point, axis=1)
    body.swap([_with_bias(body, body.op("MatMul", left, right, name=node.name), bias)])


def _expand_integer_product(node: ir.Node, opset: int, names: Names) -> None:
    """MatMulInteger and ConvInteger, with the scaling that follows them if it can be told.

    Without it the codes less their zero points are multiplied in float, and the result is rounded: exact, because
    floats hold integers up to 2^24.
    """
    a, b, a_zero_point, b_zero_point = (_input(node, place) for place in range(4))
    op, axis = ("MatMul", 1) if node.op_type == "MatMulInteger" else ("Conv", 0)
    scaled = _scaling(node, a, b)
    if scaled is None:
        body = _body(node, opset, names)
        one = body.number(1.0)
        left = _dequantize(body, a, one, a_zero_point)
        right = _dequantize(body, b, one, b_zero_point, axis=axis)
        product = body.op(op, left, right, name=node.name, **_attributes(node))
        body.swap([body.op("Cast", body.op("Round", product), to=int(ir.DataType.INT32))])
        return
    a_scale, b_scale, replaced = scaled
    body = _body(replaced[0], opset, names)
    if op == "Conv" and (tensor := tensor_of(b_scale)) is not None:
        b_scale = body.constant(tensor.numpy().reshape(-1), "scale")
    left = _dequantize(body, a, a_scale, a_zero_point)
    right = _dequantize(body, b, b_scale, b_zero_point, axis=axis)
    product = body.op(op, left, right, name=node.name, **_attributes(node))
    made = product.producer()
    assert made is not None, "it was made just now"
    made.metadata_props.update(node.metadata_props)
    body.swap([product])
    _remove(replaced[1:])


def _scaling(node: ir.Node, a: ir.Value | None, b: ir.Value | None) -> tuple[ir.Value, ir.Value, list[ir.Node]] | None:
    """The scales of both operands, where Cast and Mul(scale of a * scale of b) follow the integer product.

    Also gives the nodes that are then replaced, the last one first.
    """
    cast = _only_user(node)
    if cast is None or cast.op_type != "Cast" or cast.attributes.get_int("to", 0) != ir.DataType.FLOAT:
        return None
    multiply = _only_user(cast)
    if multiply is None or multiply.op_type != "Mul":
        return None
    factor = next((each for each in multiply.inputs if each is not cast.outputs[0]), None)
    scales = factor.producer() if factor is not None else None
    if scales is None or scales.op_type != "Mul":
        return None
    for first, second in (tuple(scales.inputs), tuple(reversed(scales.inputs))):
        if first is None or second is None or first is not _scale_of(a):
            continue
        if second is _scale_of(b) or _is_weight_scale(second, node.op_type, b):
            return first, second, [multiply, cast, node, scales]
    return None


def _is_weight_scale(value: ir.Value, op_type: str, codes: ir.Value | None) -> bool:
    """Whether a constant that the result is multiplied with is one scale, or one for each column (channel)."""
    tensor = tensor_of(value)
    if tensor is None:
        return False
    sizes = sizes_of(tensor)
    if tensor.size == 1 or (op_type == "MatMulInteger" and len(sizes) == 1):
        return True
    kernel = tensor_of(codes)
    places = len(sizes_of(kernel)) - 2 if kernel is not None else 0  # height, width
    return op_type == "ConvInteger" and places > 0 and len(sizes) > places and sizes[-places - 1] == tensor.size


def _only_user(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def _scale_of(codes: ir.Value | None) -> ir.Value | None:
    """The scale with which an activation was quantized."""
    while codes is not None and (node := codes.producer()) is not None:
        if node.op_type == "DynamicQuantizeLinear":
            return node.outputs[1]
        if node.op_type == "QuantizeLinear":
            return node.inputs[1]
        if not is_standard(node) or node.op_type not in _LAYOUT:
            return None
        codes = node.inputs[0]
    return None


def _remove(nodes: Iterable[ir.Node]) -> None:
    """Removes nodes whose results nothing uses, each after those that used it."""
    for node in nodes:
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph, inputs = node.graph, [each for each in node.inputs if each is not None]
            assert isinstance(graph, ir.Graph), "only the main graph is expanded"
            graph.remove(node, safe=True)
            for value in inputs:
                if value.is_initializer() and value.name and not value.uses() and not value.is_graph_output():
                    graph.initializers.pop(value.name, None)


def _expand_matmul_nbits(node: ir.Node, opset: int, names: Names) -> None:
    """Float activations; codes of 2, 4 or 8 bits, packed along K, whose blocks share a scale."""
    body = _body(node, opset, names)
    assert isinstance(node.graph, ir.Graph), "only the main graph is expanded"
    weight = add_initializer(node.graph, names.fresh(f"{node.name}/weight"), _unpacked_weight(node))
    product = body.op("MatMul", body.needed(0), weight, name=node.name)
    body.swap([_with_bias(body, product, body.given(5))])


def _unpacked_weight(node: ir.Node) -> QuantizedTensor:
    rows, columns = node.attributes["K"].as_int(), node.attributes["N"].as_int()
    bits, block = node.attributes.get_int("bits", 4), node.attributes["block_size"].as_int()
    packed, scales, zeros = (tensor_of(_input(node, place)) for place in (1, 2, 3))
    assert packed is not None and scales is not None, "why_not_expanded() has seen to it"
    blocks = -(-rows // block)
    shift = 1 << (bits - 1)
    scale = scales.numpy().reshape(columns, blocks).T.astype(np.float32)
    if zeros is None:
        zero_point = np.zeros((1, 1), dtype=np.float32)
    elif zeros.dtype is ir.DataType.UINT8:
        zero_point = unpacked(zeros.numpy().reshape(columns, -1), bits)[:, :blocks].T.astype(np.float32) - shift
    else:
        zero_point = zeros.numpy().reshape(columns, blocks).T.astype(np.float32) - np.float32(shift)

    order = tensor_of(_input(node, 4))
    if order is not None:  # the block of every row
        of_row = order.numpy().reshape(-1)[:rows]
        scale, zero_point, block = scale[of_row], np.broadcast_to(zero_point, scale.shape)[of_row], 1

    def codes() -> np.ndarray:
        unsigned = unpacked(packed.numpy().reshape(columns, -1), bits)[:, :rows].T
        return (unsigned.astype(np.int16) - shift).astype(np.int8)

    return QuantizedTensor(codes, (rows, columns), scale, zero_point, (block, 1), bits, ir.DataType(scales.dtype))


# --- Operators that quantize their result


def _expand_qlinear_matmul(node: ir.Node, opset: int, names: Names) -> None:
    body = _body(node, opset, names)
    a, a_scale, a_zero_point, b, b_scale, b_zero_point, scale, zero_point = (_input(node, each) for each in range(8))
    left = _dequantize(body, a, a_scale, a_zero_point)
    right = _dequantize(body, b, b_scale, b_zero_point, axis=1)
    body.swap([_quantize(body, body.op("MatMul", left, right, name=node.name), scale, zero_point, a)])


def _expand_qgemm(node: ir.Node, opset: int, names: Names) -> None:
    body = _body(node, opset, names)
    a, a_scale, a_zero_point, b, b_scale, b_zero_point, c, scale, zero_point = (_input(node, i) for i in range(9))
    alpha, transposed = node.attributes.get_float("alpha", 1.0), node.attributes.get_int("transB", 0)
    left = _dequantize(body, a, a_scale, a_zero_point)
    right = _dequantize(body, b, b_scale, b_zero_point, axis=0 if transposed else 1)
    bias = _integer_bias(body, c, a_scale, b_scale, factor=alpha)
    operands = [left, right] if bias is None else [left, right, bias]
    transposes = {"transA": node.attributes.get_int("transA", 0), "transB": transposed}
    result = body.op("Gemm", *operands, name=node.name, alpha=alpha, **transposes)
    body.swap([result if scale is None else _quantize(body, result, scale, zero_point, a)])


def _expand_qlinear_conv(node: ir.Node, opset: int, names: Names) -> None:
    body = _body(node, opset, names)
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, scale, zero_point, c = (_input(node, i) for i in range(9))
    image = _dequantize(body, x, x_scale, x_zero_point)
    kernel = _dequantize(body, w, w_scale, w_zero_point, axis=0)
    bias = _integer_bias(body, c, x_scale, w_scale)
    operands = [kernel] if bias is None else [kernel, bias]

    def convolve(value: ir.Value) -> ir.Value:
        return body.op("Conv", value, *operands, name=node.name, **_attributes(node))

    tensor = tensor_of(w)
    result = _channels_first(body, image, len(sizes_of(tensor)) if tensor is not None else 4, convolve)
    body.swap([_quantize(body, result, scale, zero_point, x)])


def _channels_first(body: Body, value: ir.Value, rank: int, compute: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """Computes on [batch, channels, ...] what onnxruntime may have laid out as [batch, ..., channels]."""
    if not body.node.attributes.get_int("channels_last", 0):
        return compute(value)
    first = body.transpose(value, 0, rank - 1, *range(1, rank - 1))
    return body.transpose(compute(first), 0, *range(2, rank), 1)


def _elementwise(op_type: str, operands: int, condition: bool = False) -> "_Expand":
    """An operator of (codes, scale, zero point) triples whose last two inputs say how the result is quantized."""

    def expand(node: ir.Node, opset: int, names: Names) -> None:
        body = _body(node, opset, names)
        start = 1 if condition else 0
        triples = [[_input(node, start + 3 * i + part) for part in range(3)] for i in range(operands)]
        floats = [_dequantize(body, codes, scale, zero_point) for codes, scale, zero_point in triples]
        result = body.op(op_type, *([body.given(0)] if condition else []), *floats, name=None, **_attributes(node))
        scale, zero_point = (_input(node, start + 3 * operands + part) for part in range(2))
        body.swap([_quantize(body, result, scale, zero_point, triples[0][0])])

    return expand


def _pool(op_type: str) -> "_Expand":
    """A pool of images [batch, channels, height, width]."""

    def expand(node: ir.Node, opset: int, names: Names) -> None:
        body = _body(node, opset, names)
        x, x_scale, x_zero_point, scale, zero_point = (_input(node, place) for place in range(5))
        image = _dequantize(body, x, x_scale, x_zero_point)
        result = _channels_first(body, image, 4, lambda value: body.op(op_type, value, name=None, **_attributes(node)))
        body.swap([_quantize(body, result, scale, zero_point, x)])

    return expand


def _expand_concat(node: ir.Node, opset: int, names: Names) -> None:
    body = _body(node, opset, names)
    triples = [[_input(node, i + part) for part in range(3)] for i in range(2, len(node.inputs), 3)]
    floats = [_dequantize(body, codes, scale, zero_point) for codes, scale, zero_point in triples]
    result = body.op("Concat", *floats, axis=node.attributes["axis"].as_int())
    body.swap([_quantize(body, result, _input(node, 0), _input(node, 1), triples[0][0])])


def _expand_softmax(node: ir.Node, opset: int, names: Names) -> None:
    body = _body(node, opset, names)
    x, x_scale, x_zero_point, scale, zero_point = (_input(node, place) for place in range(5))
    floats = _dequantize(body, x, x_scale, x_zero_point)
    result = body.op("Softmax", floats, axis=node.attributes.get_int("axis", -1))
    body.swap([_quantize(body, result, scale, zero_point, x)])


def _expand_to_standard(node: ir.Node, opset: int, names: Names) -> None:
    """QuantizeLinear and DequantizeLinear of onnxruntime's domain, which are those of ONNX for 8-bit codes."""
    body = _body(node, opset, names)
    several = (_elements(body.given(1)) or 1) > 1
    attributes = {"axis": node.attributes.get_int("axis", 1)} if several else {}
    inputs = [each for each in node.inputs if each is not None]
    body.swap([body.op(node.op_type, *inputs, name=node.name, **attributes)])


def _expand_qattention(node: ir.Node, opset: int, names: Names) -> None:
    """The fused attention of quantized activations and weights: onnxruntime's float one of dequantized operands."""
    body = _body(node, opset, names)
    x, weight, bias, x_scale, scale, mask, x_zero_point, zero_point, past = (_input(node, i) for i in range(9))
    floats = _dequantize(body, x, x_scale, x_zero_point)
    stored = _dequantize(body, weight, scale, zero_point, axis=1)
    result = body.op("Attention", floats, stored, bias, mask, past, name=node.name, **_attributes(node))
    fused = result.producer()
    assert fused is not None, "it was made just now"
    fused.domain = _CONTRIB
    body.swap([result])


def _expand_embed_layer_normalization(node: ir.Node, opset: int, names: Names) -> None:
    """The embeddings of a quantized BERT: onnxruntime's float operator on dequantized tables."""
    body = _body(node, opset, names)
    words, segments, mask = (_input(node, place) for place in (0, 1, 7))
    # Tables of words, positions and segments, gamma and beta; their scales and zero points follow in the same order.
    floats = [
        _dequantize(body, _input(node, 2 + i), _input(node, 8 + i), _input(node, 13 + i))
        if _input(node, 2 + i) is not None
        else None
        for i in range(5)
    ]
    outputs = [ir.Value(name=names.fresh(f"{node.name}.{part}")) for part in ("embedded", "mask_index")]
    fused = ir.node(
        "EmbedLayerNormalization",
        [words, segments, *floats, mask],
        _attributes(node),
        domain=_CONTRIB,
        outputs=outputs,
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    body.add(fused)
    body.swap(outputs[: len(node.outputs)])


def _body(node: ir.Node, opset: int, names: Names) -> Body:
    return Body(node, opset, names, lambda value: None)


def _attributes(node: ir.Node) -> dict[str, int | float | str | list[int] | list[float]]:
    """The node's attributes, but for those of onnxruntime alone."""
    return {name: each.value for name, each in node.attributes.items() if name not in ("channels_last", "opset")}


# --- What is not expanded

# Where products take scales and zero points: of activations, of weights.
_PRODUCT_PLACES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "MatMulInteger": ((2,), (3,)),
    "ConvInteger": ((2,), (3,)),
    "MatMulIntegerToFloat": ((2, 4), (3, 5)),
    "DynamicQuantizeMatMul": ((), (2, 3)),
    "QLinearMatMul": ((1, 2, 6, 7), (4, 5)),
    "QLinearConv": ((1, 2, 6, 7), (4, 5)),
    "QGemm": ((1, 2, 7, 8), (4, 5)),
    "QAttention": ((3, 6), (4, 7)),
}


def _check_product(node: ir.Node) -> str | None:
    """Activations have one scale; weights one, or one for each column."""
    activations, weights = _PRODUCT_PLACES[node.op_type]
    if any((_elements(_input(node, place)) or 1) > 1 for place in activations):
        return "activations with several scales or zero points"
    for place in weights:
        value = _input(node, place)
        if (_elements(value) or 1) > 1 and tensor_of(value) is None:
            return "several scales or zero points that are no constants"
        if (tensor := tensor_of(value)) is not None and tensor.size > 1 and len(sizes_of(tensor)) > 1:
            return "scales or zero points of more than one dimension"
    return None


def _check_nbits(node: ir.Node) -> str | None:
    if node.attributes.get_int("bits", 4) not in (2, 4, 8):
        return f"codes of {node.attributes.get_int('bits', 4)} bits"
    if node.attributes.get_int("weight_prepacked", 0):
        return "weights that are packed for one kind of processor"
    if any(tensor_of(_input(node, place)) is None for place in (1, 2)):
        return "a weight that is no constant"
    for place, what in ((3, "zero points that are no constants"), (4, "an order of rows (g_idx) that is no constant")):
        if _input(node, place) is not None and tensor_of(_input(node, place)) is None:
            return what
    return None if _fits(node) else "a weight that does not fit the attributes K, N, bits and block_size"


def _fits(node: ir.Node) -> bool:
    """Whether the packed weight of a MatMulNBits has the sizes that its attributes give."""
    rows, columns, block = (node.attributes.get_int(name, 0) for name in ("K", "N", "block_size"))
    if min(rows, columns, block) <= 0:
        return False
    bits, blocks = node.attributes.get_int("bits", 4), -(-rows // block)
    packed, scales, zeros = (tensor_of(_input(node, place)) for place in (1, 2, 3))
    assert packed is not None and scales is not None, "seen to before"
    if packed.size * 8 != columns * blocks * block * bits or scales.size != columns * blocks:
        return False
    order = tensor_of(_input(node, 4))
    if order is not None and (order.size < rows or not 0 <= order.numpy().min() <= order.numpy().max() < blocks):
        return False
    if zeros is None:
        return True
    in_a_row = -(-blocks * bits // 8) if zeros.dtype is ir.DataType.UINT8 else blocks
    return zeros.size == columns * in_a_row


def _check_concat(node: ir.Node) -> str | None:
    return None if "axis" in node.attributes and len(node.inputs) % 3 == 2 else "no axis, or too few inputs"


def _check_softmax(node: ir.Node) -> str | None:
    last = node.attributes.get_int("axis", -1) == -1
    return None if last or node.attributes.get_int("opset", 13) >= 13 else "the meaning of axis before opset 13"


def _check_type(node: ir.Node) -> str | None:
    place = 2 if node.op_type == "QuantizeLinear" else 0
    value = _input(node, place)
    kind = value.dtype if value is not None else ir.DataType.UINT8
    return None if kind in (*_CODES, ir.DataType.INT32, None) else f"codes of type {kind.name.lower()}"


_Expand = Callable[[ir.Node, int, Names], None]
_EXPANSIONS: dict[tuple[str, str], _Expand] = {
    ("", "MatMulInteger"): _expand_integer_product,
    ("", "ConvInteger"): _expand_integer_product,
    ("", "QLinearMatMul"): _expand_qlinear_matmul,
    ("", "QLinearConv"): _expand_qlinear_conv,
    (_CONTRIB, "QLinearConv"): _expand_qlinear_conv,
    (_CONTRIB, "QGemm"): _expand_qgemm,
    (_CONTRIB, "DynamicQuantizeMatMul"): _expand_dynamic_quantize_matmul,
    (_CONTRIB, "MatMulIntegerToFloat"): _expand_matmul_integer_to_float,
    (_CONTRIB, "MatMulNBits"): _expand_matmul_nbits,
    (_CONTRIB, "QAttention"): _expand_qattention,
    (_CONTRIB, "QEmbedLayerNormalization"): _expand_embed_layer_normalization,
    (_CONTRIB, "QLinearAdd"): _elementwise("Add", 2),
    (_CONTRIB, "QLinearMul"): _elementwise("Mul", 2),
    (_CONTRIB, "QLinearWhere"): _elementwise("Where", 2, condition=True),
    (_CONTRIB, "QLinearSigmoid"): _elementwise("Sigmoid", 1),
    (_CONTRIB, "QLinearLeakyRelu"): _elementwise("LeakyRelu", 1),
    (_CONTRIB, "QLinearAveragePool"): _pool("AveragePool"),
    (_CONTRIB, "QLinearGlobalAveragePool"): _pool("GlobalAveragePool"),
    (_CONTRIB, "QLinearConcat"): _expand_concat,
    (_CONTRIB, "QLinearSoftmax"): _expand_softmax,
    (_CONTRIB, "QuantizeLinear"): _expand_to_standard,
    (_CONTRIB, "DequantizeLinear"): _expand_to_standard,
}
_CHECKS: dict[str, Callable[[ir.Node], str | None]] = {
    **dict.fromkeys(_PRODUCT_PLACES, _check_product),
    "MatMulNBits": _check_nbits,
    "QLinearConcat": _check_concat,
    "QLinearSoftmax": _check_softmax,
    "QuantizeLinear": _check_type,
    "DequantizeLinear": _check_type,
}
