"""Products that onnxruntime fuses with a scale, a transpose, a bias or an activation, and its blocked convolution.

The product keeps the fused node's name. Meaning of the operators: onnxruntime's contrib operator documentation, its CPU
kernels, and the layout of its NCHWc weights (`MlasReorderFilterOIHWBiBo` and `MlasReorderFilterOIHWBo`).
"""

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.dataflow import sizes_of, tensor_of
from emu.rewriter.passes.expand_fused_body import Body
from emu.rewriter.passes.expand_fused_elementwise import fast_gelu

BLOCKED = "com.microsoft.nchwc"
# The attributes of an activation, in the order of `activation_params`.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
_BOUNDS = "Clip"  # an activation whose two parameters are inputs of the plain operator; Conv has it
_CONVOLUTION = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def refuse_activation(node: ir.Node) -> str | None:
    """Activations that the expansion does not know."""
    activation = node.attributes.get_string("activation", "")
    if activation == _BOUNDS and len(node.attributes.get_floats("activation_params", [])) == 2:
        return None
    return f"the activation {activation}" if activation and activation not in _ACTIVATIONS else None


def expand_fused_matmul(body: Body) -> list[ir.Value | None]:
    """FusedMatMul: alpha times the product of two operands, of which each may be transposed."""
    attributes = body.node.attributes
    left = _transposed(body, body.needed(0), "transA", "transBatchA")
    right = _transposed(body, body.needed(1), "transB", "transBatchB")
    result = body.op("MatMul", left, right, name=body.node.name)
    alpha = attributes.get_float("alpha", 1.0)
    return [result if alpha == 1.0 else body.op("Mul", result, body.number(alpha))]


def _transposed(body: Body, value: ir.Value, inner: str, batch: str) -> ir.Value:
    """`inner` swaps the last two axes; `batch` moves the first axis to the place before the last one beforehand."""
    swaps, moves = (body.node.attributes.get_int(name, 0) for name in (inner, batch))
    if not swaps and not moves:
        return value
    axes = list(range(body.rank(value)))
    if len(axes) < 2:
        return value
    if moves:
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if swaps:
        axes[-2:] = axes[:-3:-1]
    return body.transpose(value, *axes)


def expand_fused_gemm(body: Body) -> list[ir.Value | None]:
    """FusedGemm: a Gemm and the activation after it."""
    attributes = body.node.attributes
    operands = [body.needed(0), body.needed(1)]
    if (bias := body.given(2)) is not None:
        operands.append(bias)
    result = body.op(
        "Gemm",
        *operands,
        name=body.node.name,
        alpha=attributes.get_float("alpha", 1.0),
        beta=attributes.get_float("beta", 1.0),
        transA=attributes.get_int("transA", 0),
        transB=attributes.get_int("transB", 0),
    )
    parameters = [attributes.get_float(f"activation_{name}", None) for name in ("alpha", "beta")]
    return [_activated(body, result, [each for each in parameters if each is not None])]


def expand_gemm_fast_gelu(body: Body) -> list[ir.Value | None]:
    """GemmFastGelu: a MatMul, a bias and GELU by tanh."""
    result = body.op("MatMul", body.needed(0), body.needed(1), name=body.node.name)
    if (bias := body.given(2)) is not None:
        result = body.op("Add", result, bias)
    return [fast_gelu(body, result)]


def expand_fused_conv(body: Body) -> list[ir.Value | None]:
    """FusedConv: a Conv, something added to it, and an activation."""
    return [_convolution(body, body.needed(1), body.given(2))]


def _convolution(body: Body, kernel: ir.Value, bias: ir.Value | None) -> ir.Value:
    own = body.node.attributes
    attributes = {name: own[name].value for name in _CONVOLUTION if name in own}
    operands = [body.needed(0), kernel] if bias is None else [body.needed(0), kernel, bias]
    result = body.op("Conv", *operands, name=body.node.name, **attributes)
    if (summand := body.given(3)) is not None:
        result = body.op("Add", result, summand)
    return _activated(body, result, list(own.get_floats("activation_params", [])))


def _activated(body: Body, value: ir.Value, parameters: list[float]) -> ir.Value:
    activation = body.node.attributes.get_string("activation", "")
    if not activation:
        return value
    if activation == _BOUNDS:
        low, high = parameters
        return body.op("Clip", value, body.number(low), body.number(high))
    attributes: dict[str, Any] = dict(zip(_ACTIVATIONS[activation], parameters, strict=False))
    return body.op(activation, value, **attributes)


def refuse_blocked_conv(node: ir.Node) -> str | None:
    """Weights that are not there to be laid out anew."""
    if any(place < len(node.inputs) and _is_computed(node.inputs[place]) for place in (1, 2)):
        return "a computed weight"
    return refuse_activation(node)


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and tensor_of(value) is None


def expand_blocked_conv(body: Body) -> list[ir.Value | None]:
    """nchwc.Conv: a Conv whose weight and channels lie in blocks; all of it becomes plain again.

    The graph does not say how large a block is: 16 or 8, a matter of the processor that it was optimized on. Where the
    number of channels leaves that open, it is what onnxruntime uses on this processor, as it does for the fused graph.
    """
    tensor = tensor_of(body.needed(1))
    assert tensor is not None, "refused before"
    reader = _only_reorder(body.node)
    channels = reader.attributes.get_int("channels", 0) if reader is not None else 0
    block = _block_size(body, sizes_of(tensor)[0], channels)
    array = _in_plain_order(tensor.numpy(), block)
    inputs = body.shape(body.needed(0))[1]
    if body.node.attributes.get_int("group", 1) == 1 and inputs is not None:
        array = array[:, :inputs]  # whole blocks of input channels, filled up with zeros
    kept = channels or len(array)
    source = body.needed(1).name
    kernel = body.constant(np.ascontiguousarray(array[:kept]), f"{source}.plain")
    bias = body.given(2)
    if bias is not None:
        bias_tensor = tensor_of(bias)
        assert bias_tensor is not None, "refused before"
        bias = bias if bias_tensor.size == kept else body.constant(bias_tensor.numpy()[:kept], f"{bias.name}.plain")
    return [_convolution(body, kernel, bias)]


def _only_reorder(node: ir.Node) -> ir.Node | None:
    """The node that turns the result back to plain order, if it alone reads it and nothing is added to it."""
    readers = [use.node for use in node.outputs[0].uses()]
    added = len(node.inputs) > 3 and node.inputs[3] is not None
    is_reorder = len(readers) == 1 and readers[0].domain == BLOCKED and readers[0].op_type == "ReorderOutput"
    return readers[0] if is_reorder and not added else None


def _block_size(body: Body, stored: int, channels: int) -> int:
    """The block size that fills `channels` up to `stored` channels."""
    fitting = [block for block in (16, 8) if stored % block == 0 and (not channels or stored - channels < block)]
    if not fitting:
        raise InputError(
            f"Node '{body.node.name}' ({BLOCKED}.Conv) has {stored} output channels, which fit no block of 8 or 16: "
            "export the model without onnxruntime's optimizations."
        )
    here = _block_size_here() if len(fitting) > 1 else fitting[0]
    return here if here in fitting else fitting[0]


@cache
def _block_size_here() -> int:
    """Onnxruntime's block size on this processor, told from where it puts the second pixel of the first channel."""
    import onnxruntime

    channels = 64
    shape = [1, channels, 1, 2]
    kinds = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    node = onnx.helper.make_node("ReorderInput", ["x"], ["y"], domain=BLOCKED)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(BLOCKED, 1)]
    graph = onnx.helper.make_graph([node], "block", kinds[:1], kinds[1:])
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.arange(2 * channels, dtype=np.float32).reshape(shape)
    return int(np.flatnonzero(session.run(None, {"x": pixels})[0].ravel() == 1.0)[0])


def _in_plain_order(array: np.ndarray, block: int) -> np.ndarray:
    """A weight of [outputs, inputs, height, width] whose values lie in blocks of outputs, and of inputs if it can."""
    outputs, inputs, height, width = array.shape
    if inputs < block:  # an image's few channels stay as they are
        blocks = array.reshape(outputs // block, inputs, height, width, block)
        return blocks.transpose(0, 4, 1, 2, 3).reshape(array.shape)
    blocks = array.reshape(outputs // block, inputs // block, height, width, block, block)
    return blocks.transpose(0, 5, 1, 4, 2, 3).reshape(array.shape)


def expand_reorder_input(body: Body) -> list[ir.Value | None]:
    """nchwc.ReorderInput: channels into blocks; they stay in plain order here."""
    if body.node.attributes.get_int("channels_last", 0):
        return [body.transpose(body.needed(0), 0, 3, 1, 2)]
    return [body.op("Identity", body.needed(0))]


def expand_reorder_output(body: Body) -> list[ir.Value | None]:
    """nchwc.ReorderOutput: back to plain order, without the channels that filled up the last block."""
    kept = body.slice(body.needed(0), 1, 0, body.count("channels"))
    if body.node.attributes.get_int("channels_last", 0):
        kept = body.transpose(kept, 0, 2, 3, 1)
    return [kept]
