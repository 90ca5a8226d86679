"""Models in half precision: products compute in float32 inside, everything else as before."""

import ml_dtypes
import numpy as np
import onnx
import pytest

from emu.rewriter import rewrite
from emu.runtime import session

from .exported import ASSETS, feeds, half_graphs, path_of, rewritten_ideal, run, with_plain_products
from .small import crossbars, initializer, model, transformer, values

exported = pytest.mark.skipif(not ASSETS, reason="needs the exported graphs: set EMU_ASSETS to their folder")
graphs = pytest.mark.parametrize("graph", half_graphs(), ids=lambda graph: graph["file"])
HALF = onnx.TensorProto.FLOAT16


def small_half(kind: str = "float16") -> onnx.ModelProto:
    """Linear layers of all kinds, and a product of two activations, in half precision."""
    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    return model(
        """a = MatMul(x, w)  t = Transpose(a)  m = MatMul(a, t)
           h = MatMul(m, u)  y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (h, v, b)""",
        inputs=f"{kind}[batch, 4] x",
        outputs=f"{kind}[batch, n] y",
        w=values(4, 6, seed=1).astype(dtype),
        u=values(3, 5, seed=2).astype(dtype),
        v=values(7, 5, seed=3).astype(dtype),
        b=values(7, seed=4).astype(dtype),
    )


@exported
@graphs
def test_results_are_those_of_the_model_within_its_precision(graph):
    original = onnx.load(path_of(graph))
    runner = session(rewritten_ideal(path_of(graph)))
    for batch in (1, 3):
        inputs = feeds(original, batch)
        for expected, result in zip(run(original, inputs), runner.run(None, inputs), strict=True):
            assert result.dtype == expected.dtype
            np.testing.assert_allclose(result, expected, atol=2e-3)  # of results around 0.3


@exported
@graphs
def test_only_products_are_widened(graph):
    """Norms, activations and sums stay in float16: around every product there are Casts, and no others are added."""
    original, rewritten = onnx.load(path_of(graph)), rewritten_ideal(path_of(graph)).model
    kinds = {node.op_type for node in original.graph.node} - {"MatMul", "Gemm", "Conv", "Cast"}
    before = [node.op_type for node in original.graph.node if node.op_type in ("LayerNormalization", "Softmax", "Erf")]
    after = [node.op_type for node in rewritten.graph.node if node.op_type in ("LayerNormalization", "Softmax", "Erf")]
    assert before == after and {"LayerNormalization", "Softmax"} <= kinds
    halves = {each.name for each in rewritten.graph.initializer if each.data_type == HALF}
    norms = [node for node in rewritten.graph.node if node.op_type == "LayerNormalization"]
    assert all(node.input[1] in halves for node in norms)


def test_operands_of_a_product_are_cast_once_and_its_result_is_cast_back():
    rewritten = rewrite(small_half(), device="ideal").model
    casts = [node for node in rewritten.graph.node if node.op_type == "Cast"]
    to_single = [node for node in casts if node.attribute[0].i == onnx.TensorProto.FLOAT]
    assert len(to_single) == len({node.input[0] for node in to_single})  # x, a, t, m, h
    assert len(casts) - len(to_single) == 4
    made = {node.output[0]: node for node in rewritten.graph.node}
    for node in crossbars(rewritten).values():
        assert made[node.input[0]] in to_single


def test_weights_are_widened_when_the_model_is_written():
    rewritten = rewrite(small_half(), device="ideal").model
    weight = initializer(rewritten, crossbars(rewritten)["a"].input[1])
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, values(4, 6, seed=1).astype(np.float16))
    assert not any(each.data_type == HALF for each in rewritten.graph.initializer)


def test_a_float16_model_computes_what_it_did():
    x = {"x": values(3, 4).astype(np.float16)}
    (expected,), (result,) = run(small_half(), x), session(rewrite(small_half(), device="ideal")).run(None, x)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, expected, rtol=1e-2, atol=1e-2)


def test_a_bfloat16_model_computes_what_it_says():
    """onnxruntime's CPU kernels have no bfloat16 products, so these models run there only after the rewriting."""
    half = small_half("bfloat16")
    half.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    half.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    half.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["x16"], name="in", to=onnx.TensorProto.BFLOAT16))
    half.graph.node[1].input[0] = "x16"
    half.graph.node[-1].output[0] = "y16"
    half.graph.node.append(onnx.helper.make_node("Cast", ["y16"], ["y"], name="out", to=onnx.TensorProto.FLOAT))
    x = values(3, 4)
    result = run(with_plain_products(rewrite(half, device="ideal").model), {"x": x})[0]
    w, u, v, b = (initializer(half, name).astype(np.float32) for name in "wuvb")
    a = x @ w
    np.testing.assert_allclose(result, 0.5 * (a @ a.T @ u) @ v.T + 2 * b, rtol=0.05, atol=0.3)


def test_products_that_are_not_selected_compute_what_they_did():
    x = {"x": values(3, 4).astype(np.float16)}
    rewritten = rewrite(small_half(), device="ideal", only="a").model
    assert list(crossbars(rewritten)) == ["a"]
    np.testing.assert_allclose(run(with_plain_products(rewritten), x)[0], run(small_half(), x)[0], rtol=1e-2, atol=1e-2)


def test_codes_with_half_precision_scales_are_kept():
    codes = np.random.default_rng(0).integers(-128, 128, (4, 6)).astype(np.int8)
    scale = np.linspace(0.01, 0.02, 6).astype(np.float16)
    original = model(
        "w = DequantizeLinear <axis = 1> (c, s)  y = MatMul(x, w)",
        inputs="float16[batch, 4] x",
        outputs="float16[batch, n] y",
        opset=19,
        ir_version=9,
        c=codes,
        s=scale,
    )
    rewritten = rewrite(original, device="ideal").model
    node = crossbars(rewritten)["y"]
    assert node.op_type == "CrossbarMatMulQuantized"
    np.testing.assert_array_equal(initializer(rewritten, node.input[1]), codes)
    np.testing.assert_array_equal(initializer(rewritten, node.input[2]), scale.astype(np.float32))
    x = {"x": values(3, 4).astype(np.float16)}
    result = run(with_plain_products(rewritten), x)[0]
    np.testing.assert_allclose(result, x["x"] @ (codes * scale), rtol=1e-2, atol=1e-2)


def test_a_model_in_single_precision_gets_no_casts():
    rewritten = rewrite(transformer(), device="ideal").model
    assert not any(node.op_type == "Cast" for node in rewritten.graph.node)
