"""Quantized models: arrays hold the model's own codes, and nothing else of the model changes."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from emu.errors import InputError
from emu.rewriter import rewrite
from emu.rewriter.quantized import QuantizedTensor
from emu.runtime import session

from .exported import (
    ASSETS,
    dequantized,
    feeds,
    path_of,
    quantized_graphs,
    rewritten_ideal,
    run,
    stored_codes,
    with_plain_products,
)
from .small import attributes, crossbars, initializer, model, values

exported = pytest.mark.skipif(not ASSETS, reason="needs the exported graphs: set EMU_ASSETS to their folder")
graphs = pytest.mark.parametrize("graph", quantized_graphs(), ids=lambda graph: graph["file"])
CONTRIB = ', "com.microsoft" : 1'
# An activation that differs in its last bit is rounded to the next code where it lies just between two, and later
# layers follow. In steps of 8 bits over the range of the results.
MOST_STEPS = 4


# --- Exported graphs


@exported
@graphs
def test_results_are_those_of_the_quantized_model(graph):
    original = onnx.load(path_of(graph))
    runner = session(rewritten_ideal(path_of(graph)))
    for batch in (1, 3):
        inputs = feeds(original, batch)
        for expected, result in zip(run_as_written(original, inputs), runner.run(None, inputs), strict=True):
            steps = MOST_STEPS if "qdyn" in graph["file"] else 0
            np.testing.assert_allclose(result, expected, atol=1e-5 + steps * np.ptp(expected) / 255)


@exported
@graphs
def test_arrays_hold_the_codes_scales_and_zero_points_of_the_model(graph):
    original = onnx.load(path_of(graph))
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in original.graph.initializer}
    rewritten = rewritten_ideal(path_of(graph)).model
    nodes = crossbars(rewritten)
    quantized = {each["name"]: each["weight"] for each in graph["nodes"] if is_quantized(each)}
    assert set(quantized) == {name for name, node in nodes.items() if node.op_type == "CrossbarMatMulQuantized"}
    for node in graph["nodes"]:
        if not is_quantized(node):
            continue
        found, scale, zero_point = stored_codes(rewritten, nodes[node["name"]])
        old = next(each for each in original.graph.node if each.name == node["name"])
        codes, wanted_scale, wanted_zero_point = codes_of(original, old, tensors)
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, codes)
        np.testing.assert_array_equal(scale, np.broadcast_to(wanted_scale, scale.shape))
        np.testing.assert_array_equal(zero_point, np.broadcast_to(wanted_zero_point, zero_point.shape))


@exported
@graphs
def test_the_manifest_says_what_an_array_holds(graph):
    bits = 4 if "nbits4" in graph["file"] else 8
    sites = rewritten_ideal(path_of(graph)).manifest.sites
    quantized = [site for site in sites if site.op == "CrossbarMatMulQuantized"]
    assert len(quantized) == sum(is_quantized(node) for node in graph["nodes"]) >= 12
    assert {site.code_bits for site in quantized} == {bits}
    shared = {site.code_scale for site in quantized if site.component != "patch_embedding"}
    expected = "block" if "nbits" in graph["file"] else "column" if "pc" in graph["file"] else "tensor"
    assert shared == {expected}
    assert all(site.code_bits == 0 for site in sites if site not in quantized)


@exported
@graphs
def test_at_strength_0_a_noisy_device_changes_nothing(graph):
    inputs = feeds(onnx.load(path_of(graph)), 2)
    off = {"emu.strength": np.zeros(len(rewritten_ideal(path_of(graph)).manifest.sites), dtype=np.float32)}
    noisy = session(rewrite(path_of(graph), device="ideal", set={"program.model": "lognormal_w", "program.sigma": 0.2}))
    clean = session(rewritten_ideal(path_of(graph))).run(None, {**inputs, **off})
    for expected, result in zip(clean, noisy.run(None, {**inputs, **off}), strict=True):
        np.testing.assert_array_equal(result, expected)
    assert any(not np.array_equal(a, b) for a, b in zip(clean, noisy.run(None, inputs), strict=True)), (
        "with noise, results differ"
    )


def is_quantized(node: dict) -> bool:
    return node["weight"] is not None and any(word in node["weight"] for word in ("_quantized", "_Q4", "_Q8"))


def codes_of(
    original: onnx.ModelProto, node: onnx.NodeProto, tensors: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [K, N] as the array must hold them, with scale and zero point, from the quantized node or its weight."""
    facts = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "MatMulNBits":
        rows, bits = facts["K"], facts["bits"]
        packed = tensors[node.input[1]]
        packed = packed.reshape(len(packed), -1)
        if bits == 4:
            packed = np.stack([packed % 16, packed // 16], axis=-1).reshape(len(packed), -1)
        codes = packed[:, :rows].T.astype(int) - 2 ** (bits - 1)
        return codes, tensors[node.input[2]].reshape(codes.shape[1], -1).T, np.zeros(1)
    places = {
        "MatMulInteger": (1, None, 3),
        "ConvInteger": (1, None, 3),
        "QLinearMatMul": (3, 4, 5),
        "QLinearConv": (3, 4, 5),
        "QGemm": (3, 4, 5),
        "DynamicQuantizeMatMul": (1, 2, 3),
        "MatMulIntegerToFloat": (1, 3, 5),
    }
    if node.op_type in places:
        weight, scale, zero_point = (None if i is None else node.input[i] for i in places[node.op_type])
        scale = scale or weight.replace("_quantized", "_scale")
    else:
        source = next(each for each in original.graph.node if node.input[1] in each.output)
        assert source.op_type == "DequantizeLinear"
        weight, scale, *rest = source.input
        zero_point = rest[0] if rest else None
    codes, zero = tensors[weight], tensors[zero_point] if zero_point else np.zeros(1)
    if codes.dtype == np.uint8:
        codes, zero = codes.astype(int) - 128, zero.astype(int) - 128
    if codes.ndim == 4 or facts.get("transB"):
        codes = codes.reshape(len(codes), -1).T
    return codes, tensors[scale], zero


def run_as_written(original: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Results without a fusion that quantizes activations which the model leaves in float."""
    if {node.input[0] for node in original.graph.node if node.op_type == "QuantizeLinear"} - constants(original):
        return run(original, inputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(original.SerializeToString(), options).run(None, inputs)


def constants(proto: onnx.ModelProto) -> set[str]:
    return {each.name for each in proto.graph.initializer}


# --- One operator at a time

CODES = np.random.default_rng(1).integers(-128, 128, (4, 6)).astype(np.int8)
SCALES = np.linspace(0.01, 0.03, 6, dtype=np.float32)
X = {"x": values(3, 4)}
QUANTIZE = "q = QuantizeLinear(x, xs, xz)  "
STATIC = {"xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(0.05), "yz": np.uint8(100)}


def assert_same_results(original: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Rewrites a model, compares the results without disturbance, and gives the rewritten model."""
    rewritten = rewrite(original, device="ideal").model
    results = run(with_plain_products(rewritten), inputs)
    for expected, result in zip(run_as_written(original, inputs), results, strict=True):
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, atol=1e-5)
    return rewritten


def codes_in(rewritten: onnx.ModelProto, name: str = "y") -> np.ndarray:
    return stored_codes(rewritten, crossbars(rewritten)[name])[0]


def test_one_scale_for_all_becomes_a_scalar():
    original = model("w = DequantizeLinear(c, s, z)  y = MatMul(x, w)", c=CODES, s=np.float32(0.02), z=np.int8(3))
    rewritten = assert_same_results(original, X)
    found, scale, zero_point = stored_codes(rewritten, crossbars(rewritten)["y"])
    np.testing.assert_array_equal(found, CODES)
    assert (scale.shape, zero_point.shape) == ((), ())
    assert (scale, zero_point) == (np.float32(0.02), 3)
    assert attributes(crossbars(rewritten)["y"])["block_rows"] == 0


def test_unsigned_codes_are_shifted_and_their_zero_points_too():
    unsigned = (CODES.astype(int) + 128).astype(np.uint8)
    zeros = np.arange(100, 106).astype(np.uint8)
    original = model("w = DequantizeLinear <axis = 1> (c, s, z)  y = MatMul(x, w)", c=unsigned, s=SCALES, z=zeros)
    rewritten = assert_same_results(original, X)
    found, scale, zero_point = stored_codes(rewritten, crossbars(rewritten)["y"])
    np.testing.assert_array_equal(found, CODES)
    np.testing.assert_array_equal(scale, SCALES)
    np.testing.assert_array_equal(zero_point, zeros.astype(int) - 128)


@pytest.mark.parametrize(
    "body",
    [
        "w = DequantizeLinear <axis = 0> (c, s, z)  y = Gemm <transB = 1, alpha = 0.5> (x, w)",
        "w = DequantizeLinear <axis = 0> (c, s, z)  t = Transpose(w)  y = MatMul(x, t)",
        "t = Transpose(c)  w = DequantizeLinear <axis = 1> (t, s, z)  y = MatMul(x, w)",
        "w = DequantizeLinear <axis = 0> (c, s, z)  u = Reshape(w, r)  t = Transpose(u)  y = MatMul(x, t)",
    ],
)
def test_layout_around_the_weight_goes_into_the_codes(body):
    zeros = np.zeros(6, dtype=np.int8)
    original = model(body, c=np.ascontiguousarray(CODES.T), s=SCALES, z=zeros, r=np.array([6, -1]))
    rewritten = assert_same_results(original, X)
    np.testing.assert_array_equal(codes_in(rewritten), CODES)
    scale = stored_codes(rewritten, crossbars(rewritten)["y"])[1]
    np.testing.assert_allclose(scale, SCALES * (0.5 if "alpha" in body else 1.0))


def test_scales_along_the_rows_are_blocks_of_one_row():
    original = model("w = DequantizeLinear <axis = 0> (c, s)  y = MatMul(x, w)", c=CODES, s=SCALES[:4])
    rewritten = assert_same_results(original, X)
    assert attributes(crossbars(rewritten)["y"])["block_rows"] == 1


def test_a_weight_that_is_quantized_in_the_graph_is_stored_as_its_codes():
    """As quantization-aware training exports it."""
    weight = values(4, 6, seed=3)
    original = model(
        "c = QuantizeLinear <axis = 1> (f, s, z)  w = DequantizeLinear <axis = 1> (c, s, z)  y = MatMul(x, w)",
        f=weight,
        s=SCALES,
        z=np.zeros(6, dtype=np.int8),
    )
    rewritten = assert_same_results(original, X)
    np.testing.assert_array_equal(codes_in(rewritten), np.clip(np.rint(weight / SCALES), -128, 127))


@pytest.mark.parametrize(("kind", "low"), [(onnx.TensorProto.INT4, -8), (onnx.TensorProto.UINT4, 0)])
@pytest.mark.parametrize("block", [0, 2])
def test_codes_of_four_bits(kind, low, block):
    codes = np.random.default_rng(2).integers(low, low + 16, (4, 6))
    scale = values(2, 6, seed=4) if block else SCALES
    zeros = np.full(scale.shape, low + 7)
    blocked = f", block_size = {block}" if block else ""
    original = model(
        f"w = DequantizeLinear <axis = {0 if block else 1}{blocked}> (c, s, z)  y = MatMul(x, w)",
        opset=21,
        ir_version=10,
        s=scale,
    )
    for name, array in (("c", codes), ("z", zeros)):
        original.graph.initializer.append(onnx.helper.make_tensor(name, kind, array.shape, array.ravel()))
    rewritten = assert_same_results(original, X)
    facts = attributes(crossbars(rewritten)["y"])
    assert (facts["code_bits"], facts["block_rows"]) == (4, block)
    np.testing.assert_array_equal(codes_in(rewritten), codes - (8 if low == 0 else 0))


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_codes_of_sixteen_bits_are_stored_as_their_bytes(kind, axis):
    low = np.iinfo(kind).min
    draw = np.random.default_rng(2)
    codes = draw.integers(low, low + 2**16, (4, 6)).astype(kind)
    codes[0, :2] = low, low + 2**16 - 1
    shape = () if axis is None else codes.shape[axis]
    scale = draw.uniform(1e-5, 1e-4, shape).astype(np.float32)
    zeros = draw.integers(low + 32700, low + 32900, shape).astype(kind)
    along = "" if axis is None else f" <axis = {axis}>"
    original = model(
        f"w = DequantizeLinear{along} (c, s, z)  y = MatMul(x, w)", opset=21, ir_version=10, c=codes, s=scale, z=zeros
    )
    rewritten = assert_same_results(original, X)
    shift = 2**15 if low == 0 else 0
    found, _, zero_point = stored_codes(rewritten, crossbars(rewritten)["y"])
    np.testing.assert_array_equal(found, codes.astype(int) - shift)
    wanted = zeros.astype(int) - shift
    np.testing.assert_array_equal(
        zero_point, np.broadcast_to(wanted[:, None] if axis == 0 else wanted, zero_point.shape)
    )
    assert attributes(crossbars(rewritten)["y"])["code_bits"] == 16
    stored = initializer(rewritten, crossbars(rewritten)["y"].input[1])
    assert (stored.dtype, stored.shape) == (np.int8, (4, 6, 2))
    np.testing.assert_allclose(session(rewritten).run(None, X)[0], run(original, X)[0], atol=1e-5)


def test_a_convolution_holds_codes_of_sixteen_bits():
    codes = np.random.default_rng(2).integers(-(2**15), 2**15, (6, 2, 3, 3)).astype(np.int16)
    original = model(
        "w = DequantizeLinear <axis = 0> (c, s)  y = Conv <group = 2, kernel_shape = [3, 3]> (x, w)",
        inputs="float[batch, 4, 6, 6] x",
        outputs="float[batch, 6, a, b] y",
        opset=21,
        ir_version=10,
        c=codes,
        s=SCALES / 200,
    )
    inputs = {"x": values(2, 4, 6, 6)}
    rewritten = assert_same_results(original, inputs)
    np.testing.assert_array_equal(codes_in(rewritten), codes.reshape(2, 3, 18).swapaxes(1, 2))
    np.testing.assert_allclose(session(rewritten).run(None, inputs)[0], run(original, inputs)[0], atol=1e-5)


@pytest.mark.skipif("INT2" not in ir.DataType.__members__, reason="this onnx-ir knows no codes of 2 bits")
@pytest.mark.parametrize(("kind", "low"), [("INT2", -2), ("UINT2", 0)])
def test_codes_of_two_bits(kind, low):
    codes = np.random.default_rng(2).integers(low, low + 4, (4, 6))
    zeros = np.arange(6) % 4 + low
    original = model("w = DequantizeLinear <axis = 1> (c, s, z)  y = MatMul(x, w)", opset=25, ir_version=13, s=SCALES)
    for name, array in (("c", codes), ("z", zeros)):
        number = getattr(onnx.TensorProto, kind)
        original.graph.initializer.append(onnx.helper.make_tensor(name, number, array.shape, array.ravel()))
    rewritten = assert_same_results(original, X)
    shift = 2 if low == 0 else 0
    found, scale, zero_point = stored_codes(rewritten, crossbars(rewritten)["y"])
    np.testing.assert_array_equal(found, codes - shift)
    np.testing.assert_array_equal(zero_point, zeros - shift)
    np.testing.assert_array_equal(scale, SCALES)
    assert attributes(crossbars(rewritten)["y"])["code_bits"] == 2
    expected = X["x"] @ ((codes - zeros) * SCALES)
    np.testing.assert_allclose(session(rewritten).run(None, X)[0], expected, atol=1e-5)


def test_products_that_share_codes_share_them_in_the_array():
    original = model(
        "w = DequantizeLinear(c, s)  v = DequantizeLinear(c, s)  a = MatMul(x, w)  b = MatMul(x, v)  y = Add(a, b)",
        c=CODES,
        s=np.float32(0.02),
    )
    nodes = crossbars(assert_same_results(original, X))
    assert list(nodes["a"].input[1:4]) == list(nodes["b"].input[1:4])


DYNAMIC = "q, xs, xz = DynamicQuantizeLinear(x)  "
SCALED = "f = Cast <to = 1> (i)  m = Mul(xs, ws)  y = Mul(f, m)"


@pytest.mark.parametrize(
    ("body", "product"),
    [
        (DYNAMIC + "i = MatMulInteger(q, c, xz, z)  " + SCALED, "i"),
        (DYNAMIC + "i = MatMulInteger(q, c, xz, z)  y = Cast <to = 1> (i)", "i"),
        (DYNAMIC + "y = com.microsoft.MatMulIntegerToFloat(q, c, xs, ws, xz, z, b)", "y"),
        ("y = com.microsoft.DynamicQuantizeMatMul(x, c, ws, z, b)", "y"),
    ],
)
@pytest.mark.parametrize("columns", [True, False])
def test_integer_products_keep_their_activations_quantized(body, product, columns):
    original = model(
        body,
        imports=CONTRIB,
        c=CODES,
        z=np.arange(6).astype(np.int8) if columns else np.int8(2),
        ws=SCALES if columns else SCALES[0],
        b=values(6, seed=5),
    )
    if "y = Cast" in body:
        del original.graph.initializer[2:]
    rewritten = assert_same_results(original, X)
    np.testing.assert_array_equal(codes_in(rewritten, product), CODES)
    ops = [node.op_type for node in rewritten.graph.node]
    assert "DynamicQuantizeLinear" in ops and "MatMulInteger" not in ops
    if "y = Cast" not in body:
        scale = stored_codes(rewritten, crossbars(rewritten)[product])[1]
        np.testing.assert_array_equal(scale, SCALES if columns else SCALES[0])


@pytest.mark.parametrize("gemm", [False, True])
def test_a_requantized_product_is_quantized_again(gemm):
    body = QUANTIZE + (
        "r = com.microsoft.QGemm <transB = 1, alpha = 0.5> (q, xs, xz, c, ws, wz, b, ys, yz)"
        if gemm
        else "r = QLinearMatMul(q, xs, xz, c, ws, wz, ys, yz)"
    )
    original = model(
        body + "  y = DequantizeLinear(r, ys, yz)",
        imports=CONTRIB,
        c=np.ascontiguousarray(CODES.T) if gemm else CODES,
        ws=SCALES[0],
        wz=np.int8(1),
        b=np.arange(6, dtype=np.int32) * 100,
        **STATIC,
    )
    np.testing.assert_array_equal(codes_in(assert_same_results(original, X), "r"), CODES)


def test_a_quantized_product_may_give_floats():
    original = model(
        QUANTIZE + "y = com.microsoft.QGemm(q, xs, xz, c, ws, wz)",
        imports=CONTRIB,
        c=CODES,
        ws=SCALES[0],
        wz=np.int8(1),
        xs=STATIC["xs"],
        xz=STATIC["xz"],
    )
    assert_same_results(original, X)


@pytest.mark.parametrize("last", [False, True])
def test_a_quantized_patch_embedding(last):
    image = "float[batch, 3, 8, 8] x" if not last else "float[batch, 8, 8, 3] x"
    kernel = np.random.default_rng(3).integers(-128, 128, (6, 3, 4, 4)).astype(np.int8)
    op = "com.microsoft.QLinearConv <channels_last = 1, kernel_shape = [4, 4], strides = [4, 4]>"
    op = op if last else "QLinearConv <kernel_shape = [4, 4], strides = [4, 4]>"
    original = model(
        QUANTIZE + f"r = {op} (q, xs, xz, c, ws, wz, ys, yz, b)  y = DequantizeLinear(r, ys, yz)",
        inputs=image,
        outputs="float[batch, h, w, k] y",
        imports=CONTRIB,
        c=kernel,
        ws=SCALES,
        wz=np.zeros(6, dtype=np.int8),
        b=np.arange(6, dtype=np.int32) * 1000,
        **{**STATIC, "ys": np.float32(0.2)},
    )
    rewritten = rewrite(original, device="ideal").model
    image = {"x": values(2, *((8, 8, 3) if last else (3, 8, 8)))}
    # By the operators: onnxruntime would fuse a plain Conv between DequantizeLinear and QuantizeLinear, bias and all.
    np.testing.assert_allclose(session(rewritten).run(None, image)[0], run(original, image)[0], atol=1e-5)
    np.testing.assert_array_equal(codes_in(rewritten, "r"), kernel.reshape(6, -1).T)


def test_an_integer_patch_embedding_has_a_scale_for_each_channel():
    kernel = np.random.default_rng(3).integers(-128, 128, (6, 3, 4, 4)).astype(np.int8)
    original = model(
        DYNAMIC + "i = ConvInteger <kernel_shape = [4, 4], strides = [4, 4]> (q, c, xz)  " + SCALED,
        inputs="float[batch, 3, 8, 8] x",
        outputs="float[batch, k, h, w] y",
        c=kernel,
        ws=SCALES.reshape(1, 6, 1, 1),
    )
    rewritten = assert_same_results(original, {"x": values(2, 3, 8, 8)})
    np.testing.assert_array_equal(stored_codes(rewritten, crossbars(rewritten)["i"])[1], SCALES)


def test_products_of_two_quantized_activations_are_dynamic():
    original = model(
        QUANTIZE + "t = Transpose(q)  r = QLinearMatMul(q, xs, xz, t, xs, xz, ys, yz)  y = DequantizeLinear(r, ys, yz)",
        **STATIC,
    )
    assert crossbars(assert_same_results(original, X))["r"].op_type == "CrossbarMatMulDynamic"


def test_a_fused_quantized_attention_holds_its_packed_codes():
    codes = np.random.default_rng(8).integers(-128, 128, (8, 24)).astype(np.int8)
    original = model(
        QUANTIZE + "y = com.microsoft.QAttention <num_heads = 2> (q, c, b, xs, ws, , xz, wz)",
        inputs="float[batch, 5, 8] x",
        outputs="float[batch, 5, 8] y",
        imports=CONTRIB,
        c=codes,
        b=values(24, seed=9),
        ws=np.float32(0.01),
        wz=np.int8(0),
        xs=STATIC["xs"],
        xz=STATIC["xz"],
    )
    rewritten = assert_same_results(original, {"x": values(3, 5, 8)})
    np.testing.assert_array_equal(codes_in(rewritten, "y/query_key_value"), codes)


@exported
def test_both_implementations_of_the_operators_run_a_quantized_model():
    path = path_of(next(graph for graph in quantized_graphs() if "nbits4qdq" in graph["file"]))
    inputs = feeds(onnx.load(path), 2)
    native, twin = (session(rewritten_ideal(path), ops=ops).run(None, inputs)[0] for ops in ("native", "python"))
    np.testing.assert_allclose(native, twin, atol=1e-5)


# onnxruntime has no kernel for 8 bits with float zero points.
@pytest.mark.parametrize(
    ("bits", "zeros"),
    [(2, "none"), (2, "packed"), (4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed")],
)
@pytest.mark.parametrize("rows", [32, 40])
def test_packed_blocks_of_codes(bits, zeros, rows):
    block, columns = 16, 6
    blocks = -(-rows // block)
    draw = np.random.default_rng(6)
    codes = draw.integers(0, 2**bits, (columns, blocks * block)).astype(np.uint8)
    packed = bits_packed(codes, bits)
    weights = {"c": packed.reshape(columns, blocks, -1), "s": draw.uniform(0.01, 0.02, (columns, blocks))}
    weights["s"] = weights["s"].astype(np.float32)
    wanted = np.zeros((columns, blocks))
    if zeros == "packed":
        unpacked = draw.integers(0, 2**bits, (columns, -(-blocks * bits // 8) * 8 // bits)).astype(np.uint8)
        weights["z"] = bits_packed(unpacked, bits)
        wanted = unpacked[:, :blocks].astype(int) - 2 ** (bits - 1)
    elif zeros == "float":
        weights["z"] = draw.uniform(0, 2**bits, (columns, blocks)).astype(np.float32)
        wanted = weights["z"] - np.float32(2 ** (bits - 1))
    third = "z" if zeros != "none" else ""
    original = model(
        f"y = com.microsoft.MatMulNBits <K = {rows}, N = {columns}, bits = {bits}, block_size = {block}> "
        f"(x, c, s, {third}, , b)",
        inputs=f"float[batch, {rows}] x",
        imports=CONTRIB,
        b=values(columns, seed=7),
        **weights,
    )
    rewritten = assert_same_results(original, {"x": values(3, rows)})
    found, scale, zero_point = stored_codes(rewritten, crossbars(rewritten)["y"])
    np.testing.assert_array_equal(found, codes[:, :rows].T.astype(int) - 2 ** (bits - 1))
    np.testing.assert_array_equal(scale, weights["s"].T)
    np.testing.assert_array_equal(zero_point, wanted.T)
    facts = attributes(crossbars(rewritten)["y"])
    assert (facts["code_bits"], facts["block_rows"]) == (bits, block)


def bits_packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of so many bits in bytes, along the last axis, the first code in the lowest bits."""
    return sum(codes[:, i :: 8 // bits] << i * bits for i in range(8 // bits)).astype(np.uint8)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
def test_an_order_of_rows_gives_each_row_the_scale_of_its_block(bits, zeros):
    """As GPTQ with activation order writes it.

    Beside such an order, onnxruntime on a CPU takes 8 for every packed zero point and knows no codes but those of 4
    bits, so the rest is compared with what the operator says.
    """
    rows, columns, block = 64, 6, 16
    draw = np.random.default_rng(6)
    codes = draw.integers(0, 2**bits, (columns, rows)).astype(np.uint8)
    scale = draw.uniform(0.01, 0.02, (columns, 4)).astype(np.float32)
    of_row = draw.permutation(np.arange(rows) // block)
    zero = np.full((columns, 4), 2 ** (bits - 1), np.float32)
    weights = {}
    if zeros == "packed":
        zero = draw.integers(0, 2**bits, (columns, 4)).astype(np.uint8)
        weights["z"] = bits_packed(zero, bits).ravel()
    elif zeros == "float":
        zero = weights["z"] = draw.uniform(0, 2**bits, (columns, 4)).astype(np.float32)
    original = model(
        f"y = com.microsoft.MatMulNBits <K = {rows}, N = {columns}, bits = {bits}, block_size = {block}> "
        f"(x, c, s, {'' if zeros == 'none' else 'z'}, g)",
        inputs=f"float[batch, {rows}] x",
        imports=CONTRIB,
        c=bits_packed(codes, bits).reshape(columns, 4, -1),
        s=scale.ravel(),
        g=of_row.astype(np.int32),
        **weights,
    )
    inputs = {"x": values(3, rows)}
    runs = bits == 4 and zeros != "packed"
    rewritten = assert_same_results(original, inputs) if runs else rewrite(original, device="ideal").model
    weight = (codes.astype(np.float32) - zero[:, of_row]) * scale[:, of_row]
    np.testing.assert_allclose(dequantized(rewritten, crossbars(rewritten)["y"]), weight.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(codes_in(rewritten), codes.T.astype(int) - 2 ** (bits - 1))
    np.testing.assert_allclose(session(rewritten).run(None, inputs)[0], inputs["x"] @ weight.T, atol=1e-5)


@pytest.mark.parametrize("around", ["codes", "scales"])
def test_what_is_packed_may_come_through_other_nodes(around):
    """Codes that a head shares with an embedding of another shape; scales that were saved in half precision."""
    draw = np.random.default_rng(6)
    packed = draw.integers(0, 256, (6, 2, 16)).astype(np.uint8)
    scale = draw.uniform(0.01, 0.02, 12).astype(np.float16)
    body, weights = {
        "codes": ("c = Reshape(d, shape)", {"d": packed.reshape(6, 32), "shape": np.array([6, 2, 16])}),
        "scales": ("s = Cast <to = 1> (h)", {"c": packed, "h": scale}),
    }[around]
    if around == "codes":
        weights["s"] = scale.astype(np.float32)
    original = model(
        f"{body}  y = com.microsoft.MatMulNBits <K = 64, N = 6, bits = 4, block_size = 32> (x, c, s)",
        inputs="float[batch, 64] x",
        imports=CONTRIB,
        **weights,
    )
    rewritten = assert_same_results(original, {"x": values(3, 64)})
    found, scales, _ = stored_codes(rewritten, crossbars(rewritten)["y"])
    unpacked = np.stack([packed % 16, packed // 16], axis=-1).reshape(6, 64)
    np.testing.assert_array_equal(found, unpacked.T.astype(int) - 8)
    np.testing.assert_array_equal(scales, scale.astype(np.float32).reshape(6, 2).T)


@pytest.mark.parametrize(
    "op",
    [
        "QLinearAdd(q, xs, xz, q, xs, xz, ys, yz)",
        "QLinearMul(q, xs, xz, q, xs, xz, ys, yz)",
        "QLinearSigmoid(q, xs, xz, ys, yz)",
        "QLinearLeakyRelu <alpha = 0.3> (q, xs, xz, ys, yz)",
        "QLinearSoftmax <axis = -1, opset = 17> (q, xs, xz, ys, yz)",
        "QLinearConcat <axis = 1> (ys, yz, q, xs, xz, q, xs, xz)",
        "QLinearWhere(condition, q, xs, xz, q, ys, yz, ys, yz)",
    ],
)
def test_quantized_operators_beside_products_are_dequantized_and_quantized_again(op):
    """The results of these may be rounded to the next code; onnxruntime computes some of them from tables."""
    original = model(
        QUANTIZE + f"r = com.microsoft.{op}  f = DequantizeLinear(r, ys, yz)  y = MatMul(f, w)",
        imports=CONTRIB,
        w=np.eye(8 if "Concat" in op else 4, dtype=np.float32),
        condition=np.array([True, False, True, True]),
        **{**STATIC, "ys": np.float32(0.01)},
    )
    rewritten = rewrite(original, device="ideal").model
    assert not any(node.domain == "com.microsoft" for node in rewritten.graph.node)
    (expected,), (result,) = run(original, X), run(with_plain_products(rewritten), X)
    np.testing.assert_allclose(result, expected, atol=0.0101)


@pytest.mark.parametrize("op", ["QLinearAveragePool <kernel_shape = [2, 2], ", "QLinearGlobalAveragePool <"])
@pytest.mark.parametrize("last", [0, 1])
def test_quantized_pools(op, last):
    original = model(
        QUANTIZE + f"r = com.microsoft.{op}channels_last = {last}> (q, xs, xz, ys, yz)  "
        "f = DequantizeLinear(r, ys, yz)  y = MatMul(f, w)",
        inputs="float[batch, 4, 4, 4] x",
        outputs="float[batch, a, b, c] y",
        imports=CONTRIB,
        w=values(4 if last else 3 if "kernel" in op else 1, 2),
        **{**STATIC, "ys": np.float32(0.01)},
    )
    rewritten = rewrite(original, device="ideal").model
    inputs = {"x": values(2, 4, 4, 4)}
    (expected,), (result,) = run(original, inputs), run(with_plain_products(rewritten), inputs)
    np.testing.assert_allclose(result, expected, atol=0.05)


def test_what_is_not_selected_keeps_its_codes():
    original = model(
        DYNAMIC + "i = MatMulInteger(q, c, xz, z)  f = Cast <to = 1> (i)  m = Mul(xs, ws)  h = Mul(f, m)  "
        "y = MatMul(h, w)",
        c=CODES,
        z=np.int8(2),
        ws=SCALES[0],
        w=values(6, 3),
    )
    rewritten = rewrite(original, device="ideal", only="y").model
    assert any(
        each.data_type == onnx.TensorProto.INT8 and list(each.dims) == [4, 6] for each in rewritten.graph.initializer
    )
    (expected,), (result,) = run(original, X), run(with_plain_products(rewritten), X)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 21])
def test_codes_of_sixteen_bits_that_are_not_selected(opset):
    """Before opset 21 they are read by onnxruntime's own operator, and become float."""
    codes = np.random.default_rng(2).integers(-(2**15), 2**15, (4, 6)).astype(np.int16)
    domain = "com.microsoft." if opset < 21 else ""
    original = model(
        f"h = {domain}DequantizeLinear <axis = 1> (c, s, z)  m = MatMul(x, h)  y = MatMul(m, w)",
        imports=CONTRIB,
        opset=opset,
        ir_version=10,
        c=codes,
        s=SCALES / 200,
        z=np.full(6, 300, np.int16),
        w=values(6, 3),
    )
    rewritten = rewrite(original, device="ideal", only="y").model
    kinds = {each.data_type for each in rewritten.graph.initializer if list(each.dims) == [4, 6]}
    assert kinds == {onnx.TensorProto.INT16 if opset == 21 else onnx.TensorProto.FLOAT}
    (expected,), (result,) = run(original, X), run(with_plain_products(rewritten), X)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_quantized_embedding_stays_as_it_is_beside_the_head_that_is_tied_to_it():
    original = model(
        "e = DequantizeLinear(c, s)  g = Gather(e, x)  t = Transpose(e)  y = MatMul(g, t)",
        inputs="int64[batch, 2] x",
        outputs="float[batch, a, b] y",
        c=CODES,
        s=np.float32(0.02),
    )
    rewritten = assert_same_results(original, {"x": np.array([[1, 2], [3, 0]])})
    np.testing.assert_array_equal(codes_in(rewritten), CODES.T)
    assert [node.op_type for node in rewritten.graph.node].count("DequantizeLinear") == 1


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        (
            "y = com.microsoft.MatMulNBits <K = 16, N = 6, bits = 3, block_size = 16> (x, c, s)",
            {"c": np.zeros((6, 1, 4), dtype=np.uint8), "s": np.ones((6, 1), dtype=np.float32)},
            "codes of 3 bits",
        ),
        (
            "w = DequantizeLinear(c, s)  y = MatMul(x, w)",
            {"c": np.zeros((16, 6), dtype=ml_dtypes.float8_e4m3fn), "s": np.float32(1)},
            "codes are of type float8e4m3fn",
        ),
        (
            "w = DequantizeLinear(c, s)  v = Mul(w, w)  y = MatMul(x, v)",
            {"c": np.zeros((16, 6), dtype=np.int8), "s": np.float32(1)},
            "more than a change of layout",
        ),
        (
            "y = com.microsoft.MatMulNBits <K = 16, N = 7, bits = 4, block_size = 16> (x, c, s)",
            {"c": np.zeros((6, 1, 8), dtype=np.uint8), "s": np.ones((6, 1), dtype=np.float32)},
            "does not fit the attributes",
        ),
        (
            "y = com.microsoft.MatMulBnb4 <K = 16, N = 6, block_size = 16, quant_type = 1> (x, c, s)",
            {"c": np.zeros(48, dtype=np.uint8), "s": np.ones(6, dtype=np.float32)},
            "MatMulBnb4",
        ),
    ],
)
def test_what_has_no_codes_to_hold_is_refused_with_the_reason(body, weights, reason):
    original = model(body, inputs="float[batch, 16] x", imports=CONTRIB, opset=21, ir_version=10, **weights)
    with pytest.raises(InputError, match=reason) as caught:
        rewrite(original, only="*")
    assert "node 'y' (" in str(caught.value)


def test_scales_that_do_not_fit_their_codes_are_refused():
    original = model("w = DequantizeLinear <axis = 1> (c, s)  y = MatMul(x, w)", c=CODES, s=SCALES[:5])
    with pytest.raises(InputError, match=r"Node 'w' \(DequantizeLinear\): its scale \[5\] or zero point does not fit"):
        rewrite(original, only="*")


# --- The tensor


def test_a_reshape_that_cuts_blocks_gives_each_element_its_scale():
    scale, zeros = values(2, 1), np.zeros((2, 1), dtype=np.float32)
    codes = np.arange(8, dtype=np.int8).reshape(4, 2)
    tensor = QuantizedTensor(lambda: codes, (4, 2), scale, zeros, (2, 2), 8)
    reshaped = tensor.reshaped((2, 4))
    np.testing.assert_array_equal(reshaped.numpy(), tensor.numpy().reshape(2, 4))
    assert reshaped.scale.shape == (2, 4)


def test_parameters_are_those_that_the_operator_takes():
    codes = np.arange(12, dtype=np.int8).reshape(4, 3)
    tensor = QuantizedTensor(lambda: codes, (4, 3), values(2, 1), values(1, 3), (2, 1), 8)
    scale, zero_point, rows = tensor.parameters()
    assert scale.shape == zero_point.shape == (2, 3) and rows == 2
    expected = (codes - np.repeat(zero_point, 2, axis=0)) * np.repeat(scale, 2, axis=0)
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_the_helper_of_these_tests_dequantizes_as_the_operator_does():
    original = model("w = DequantizeLinear <axis = 1> (c, s)  y = MatMul(x, w)", c=CODES, s=SCALES)
    emulated = rewrite(original, device="ideal")
    weight = dequantized(emulated.model, crossbars(emulated.model)["y"])
    np.testing.assert_allclose(session(emulated).run(None, X)[0], X["x"] @ weight, atol=1e-5)


def same_as_in_onnxruntime(original: onnx.ModelProto, feeds: dict[str, np.ndarray], atol: float = 1e-5):
    """What the operators compute without disturbance is what onnxruntime does; gives the manifest."""
    rewritten = rewrite(original, device="ideal")
    for result, wanted in zip(session(rewritten).run(None, feeds), run_as_written(original, feeds), strict=True):
        np.testing.assert_allclose(result, wanted, atol=atol)
    return rewritten.manifest


def codes(*shape: int, kind: type = np.uint8, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(kind)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(kind)


def test_the_embeddings_of_a_quantized_bert_are_expanded():
    parts = {"w": (20, 8), "p": (6, 8), "t": (2, 8), "g": (8,), "b": (8,)}
    tables = {name: codes(*shape, seed=place) for place, (name, shape) in enumerate(parts.items())}
    scales = {f"{name}s": np.float32(0.01 + 0.01 * place) for place, name in enumerate(parts)}
    zeros = {f"{name}z": np.uint8(100 + place) for place, name in enumerate(parts)}
    original = model(
        "e, m = com.microsoft.QEmbedLayerNormalization <epsilon = 0.00001> (ids, types, w, p, t, g, b, mask, "
        "ws, ps, ts, gs, bs, wz, pz, tz, gz, bz)  y = MatMul(e, v)",
        inputs="int32[batch, tokens] ids, int32[batch, tokens] types, int32[batch, tokens] mask",
        outputs="float[batch, tokens, 3] y, int32[batch] m",
        imports=CONTRIB,
        v=values(8, 3),
        **tables,
        **scales,
        **zeros,
    )
    ids = np.array([[3, 5, 19, 0], [7, 7, 1, 2]], np.int32)
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
    same_as_in_onnxruntime(original, {"ids": ids, "types": ids % 2, "mask": mask}, atol=1e-4)


def test_quantized_operators_without_products_stay_as_they_are():
    body = (
        """q = com.microsoft.QuantizeLinear(x, s, z)  d = com.microsoft.DequantizeLinear(q, s, z)  y = MatMul(d, w)"""
    )
    for kind in (np.int16, np.uint16):
        weights = {"s": np.float32(1e-4), "z": kind(7), "w": values(4, 3)}
        original = model(body, imports=CONTRIB, **weights)
        manifest = same_as_in_onnxruntime(original, X)
        assert [site.node for site in manifest.sites] == ["y"]


@pytest.mark.parametrize(
    ("body", "scale", "shares"),
    [
        ("f = Cast <to = 1> (c)  w = Mul(f, s)  y = MatMul(x, w)", (), "tensor"),
        ("f = Cast <to = 1> (c)  w = Mul(s, f)  y = MatMul(x, w)", (6,), "column"),
        ("f = Cast <to = 1> (c)  w = Div(f, s)  y = MatMul(x, w)", (1, 6), "column"),
        ("f = Cast <to = 1> (c)  w = Mul(f, s)  y = MatMul(x, w)", (4, 1), "block"),
        ("f = Cast <to = 1> (c)  g = Sub(f, z)  w = Mul(g, s)  y = MatMul(x, w)", (6,), "column"),
        ("f = Cast <to = 1> (c)  t = Transpose(f)  u = Transpose(t)  w = Mul(u, s)  y = MatMul(x, w)", (6,), "column"),
        ("f = Cast <to = 1> (c)  h = MatMul(x, f)  y = Mul(h, s)", (6,), "tensor"),
    ],
)
def test_codes_that_are_cast_and_scaled_are_codes(body, scale, shares):
    """Weight-only quantization as quanto, torchao or a hand writes it."""
    scales = np.abs(values(*scale, seed=3)) * np.logspace(-1, 1, max(scale, default=1)).reshape(scale or ()) + 0.01
    stored = codes(4, 6, kind=np.int8, seed=1)
    original = model(
        body, inputs="float[batch, 4] x", c=stored, s=scales.astype(np.float32), z=values(6, seed=4).round() * 3
    )
    manifest = same_as_in_onnxruntime(original, X, atol=1e-3)
    assert [(site.code_bits, site.code_scale) for site in manifest.sites] == [(8, shares)]
    flipped = rewrite(original, device="int8_flips", set={"faults.ber": 0.0})
    plain = session(original.SerializeToString()).run(None, X)[0]
    np.testing.assert_allclose(session(flipped).run(None, X)[0], plain, rtol=1e-4, atol=1e-3)


def test_scales_of_half_precision_are_widened():
    original = model(
        "q = QLinearMatMul(a, as, az, b, bs, bz, ys, yz)",
        inputs="uint8[batch, 4] a",
        outputs="uint8[batch, 6] q",
        opset=21,
        ir_version=10,
        b=codes(4, 6),
        **{"as": np.float16(0.01), "bs": np.float16(0.02), "ys": np.float16(0.5)},
        az=np.uint8(3),
        bz=np.uint8(120),
        yz=np.uint8(128),
    )
    rewritten = rewrite(original, device="ideal")
    result = session(rewritten).run(None, {"a": codes(3, 4, seed=2)})[0]
    wanted = run(original, {"a": codes(3, 4, seed=2)})[0]
    assert np.abs(result.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("kind", [np.uint8, ml_dtypes.uint4])
def test_an_embedding_of_four_bits_stays_and_what_follows_keeps_its_heads(kind):
    table = codes(20, 8 if kind is np.uint8 else 16)
    if kind is not np.uint8:
        table = (table % 16).astype(kind)
    original = model(
        """x = com.microsoft.GatherBlockQuantized <block_size = 16, quantize_axis = 1, gather_axis = 0> (c, ids, s)
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) qs = Reshape(q, split) ks = Reshape(k, split)
           vs = Reshape(v, split) qh = Transpose <perm = [0, 2, 1, 3]> (qs) kh = Transpose <perm = [0, 2, 3, 1]> (ks)
           vh = Transpose <perm = [0, 2, 1, 3]> (vs) sc = MatMul(qh, kh) p = Softmax <axis = -1> (sc)
           y = MatMul(p, vh)""",
        inputs="int64[batch, tokens] ids",
        outputs="float[batch, heads, tokens, width] y",
        opset=21,
        ir_version=10,
        imports=CONTRIB,
        c=table,
        s=np.abs(values(20, 1)) + np.float32(0.1),
        split=np.array([0, 0, 2, 8]),
        **{f"w{name}": values(16, 16, seed=place) for place, name in enumerate("qkv")},
    )
    manifest = same_as_in_onnxruntime(original, {"ids": np.array([[3, 5, 19], [7, 7, 1]])}, atol=1e-4)
    found = {site.component: site.heads for site in manifest.sites}
    assert found == dict.fromkeys(("query", "key", "value", "attention_scores", "attention_context"), 2)


@pytest.mark.parametrize(
    ("between", "constants", "shares"),
    [
        ("w, rest = Split <axis = 1> (wide, parts)", {"parts": np.array([2, 4])}, "column"),
        (
            "w = Slice(wide, start, stop, axis)",
            {"start": np.array([1]), "stop": np.array([3]), "axis": np.array([1])},
            "column",
        ),
        ("w = Gather <axis = 0> (wide, rows)", {"rows": np.array([3, 1, 0, 2])}, "column"),
        ("w = Concat <axis = 1> (wide, wide)", {}, "column"),
        ("t = Transpose(wide) u = Gather <axis = 0> (t, rows) w = Transpose(u)", {"rows": np.array([5, 0])}, "column"),
    ],
)
def test_codes_are_kept_where_parts_of_them_are_taken_or_put_side_by_side(between, constants, shares):
    original = model(
        f"wide = DequantizeLinear <axis = 1> (codes, scale, zero) {between} y = MatMul(x, w)",
        codes=np.arange(24, dtype=np.uint8).reshape(4, 6) * 9,
        scale=np.linspace(0.01, 0.06, 6, dtype=np.float32),
        zero=np.arange(100, 106, dtype=np.uint8),
        **constants,
    )
    (site,) = rewrite(original, device="ideal").manifest.sites
    assert (site.op, site.code_bits, site.code_scale) == ("CrossbarMatMulQuantized", 8, shares)
    assert_same_results(original, {"x": values(3, 4)})
