"""Models in half precision: products compute in float32 inside, everything else as before."""

import ml_dtypes
import numpy as np
import onnx
import pytest

from emu.errors import InputError
from emu.rewriter import rewrite
from emu.runtime import session

from .exported import ASSETS, feeds, half_graphs, path_of, rewritten_ideal, run, with_plain_products
from .small import attributes, crossbars, initializer, model, transformer, values

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


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_flips_hit_what_the_model_stores(kind):
    """Sixteen bits of each weight, and a device that flips others is refused."""
    original = small_half(kind)
    for storage in ("model", kind):
        rewritten = rewrite(original, {"faults": {"storage": storage, "flip": "sign", "ber": 1.0}})
        assert {site.stored_type for site in rewritten.manifest.sites if site.is_stored} == {kind}
        nodes = [attributes(each) for each in crossbars(rewritten.model).values()]
        facts = {(each["fault_storage"], each["fault_mask"]) for each in nodes if "fault_mask" in each}
        assert facts == {(kind, 1 << 15)}
    with pytest.raises(InputError, match=f"'a' holds {kind}, and .* hit float32: set faults.storage to {kind}"):
        rewrite(original, "float32_flips")
    converted = rewrite(original, "float32_flips", set={"faults.convert": "round"}).model
    assert attributes(crossbars(converted)["a"])["fault_storage"] == "float32"
    with pytest.raises(InputError, match=f"'a' holds {kind}, and .* hit bit 16: choose bits 0 to 15"):
        rewrite(original, {"faults": {"storage": "model", "flip": [3, 16], "ber": 0.1}})


def test_a_listed_flip_of_a_half_is_the_half_with_that_bit_flipped():
    w = values(4, 6, seed=1).astype(np.float16)
    original = model("y = MatMul(x, w)", inputs="float16[batch, 4] x", outputs="float16[batch, n] y", w=w)
    emulated = rewrite(original, {"faults": {"storage": "model", "ber": 0.0}})
    faults = np.array([[0, (2 * 6 + 1) * 256 + 14], [0, 256 + 9]])
    flipped = w.copy()
    flipped.view(np.uint16)[2, 1] ^= 1 << 14
    flipped.view(np.uint16)[0, 1] ^= 1 << 9
    y = session(emulated).run(None, {"x": np.eye(4, dtype=np.float16), "emu.faults": faults})[0]
    np.testing.assert_array_equal(y, flipped)


def test_a_weight_that_is_widened_in_the_graph_is_still_a_half():
    w = values(6, 4, seed=1).astype(np.float16)
    original = model("c = Cast <to = 1> (w)  t = Transpose <perm = [1, 0]> (c)  y = MatMul(x, t)", w=w)
    (site,) = rewrite(original, {"faults": {"storage": "float16", "ber": 0.1}}).manifest.sites
    assert site.stored_type == "float16"
    scaled = model("c = Cast <to = 1> (w)  h = Mul(c, k)  y = MatMul(x, h)", w=w.T.copy(), k=np.float32(3))
    (site,) = rewrite(scaled, "float32_flips").manifest.sites
    assert site.stored_type == "float32"


def test_codes_keep_their_own_bits_where_a_model_is_taken_as_it_is():
    original = model(
        "w = DequantizeLinear(c, s, z)  y = MatMul(x, w)", opset=21, ir_version=10,
        c=np.arange(24, dtype=np.int8).reshape(4, 6), s=np.float32(0.1), z=np.int8(0),
    )  # fmt: skip
    for flip, mask in (("all", 255), ("sign", 128), ([0, 7], 129)):
        device = {"faults": {"storage": "model", "flip": flip, "ber": 0.1}}
        found = attributes(crossbars(rewrite(original, device).model)["y"])
        assert (found["fault_storage"], found["fault_bits"], found["fault_mask"]) == ("int", 8, mask)
    with pytest.raises(InputError, match="device bit flips hit the exponent of floats"):
        rewrite(original, {"faults": {"storage": "model", "flip": "exponent", "ber": 0.1}})


def test_a_model_in_single_precision_gets_no_casts():
    rewritten = rewrite(transformer(), device="ideal").model
    assert not any(node.op_type == "Cast" for node in rewritten.graph.node)
