"""ONNX's own Attention is two products and what stands between them, with any of its inputs left out."""

import numpy as np
import onnx
import onnxruntime
import pytest

from emu.rewriter import rewrite
from emu.runtime import session

from .small import values

BATCH, HEADS, TOKENS, WIDTH = 2, 4, 5, 8


def attention(opset: int, flat: bool = False, shared: int = HEADS, **given: np.ndarray | float | int):
    """An Attention node with these optional inputs and attributes, and what to feed it."""
    inputs = ["q", "k", "v", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
    feeds = {
        name: values(BATCH, heads, TOKENS, WIDTH, seed=place)
        for place, (name, heads) in enumerate((("q", HEADS), ("k", shared), ("v", shared)))
    }
    if flat:
        feeds = {
            name: np.ascontiguousarray(each.transpose(0, 2, 1, 3)).reshape(BATCH, TOKENS, -1)
            for name, each in feeds.items()
        }
    feeds |= {name: each for name, each in given.items() if name in inputs}
    options = {name: each for name, each in given.items() if name not in inputs}
    if flat:
        options |= {"q_num_heads": HEADS, "kv_num_heads": shared}
    names = [name if name in feeds else "" for name in inputs]
    while not names[-1]:
        names.pop()
    outputs = ["y", "present_key", "present_value"] if "past_key" in feeds else ["y"]
    node = onnx.helper.make_node("Attention", names, outputs, name="att", **options)
    typed = [
        onnx.helper.make_tensor_value_info(
            name,
            onnx.helper.np_dtype_to_tensor_dtype(each.dtype),
            [
                "batch",
                *(each.shape[1:2] if each.ndim == 4 else ()),
                *(f"{name}{i}" for i in range(each.ndim - 3)),
                WIDTH,
            ]
            if name in "qkv" and each.ndim == 4
            else list(each.shape),
        )
        for name, each in feeds.items()
    ]
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = onnx.helper.make_graph([node], "attention", typed, results)
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=11), feeds


CACHE = {"past_key": values(BATCH, HEADS, 3, WIDTH, seed=5), "past_value": values(BATCH, HEADS, 3, WIDTH, seed=6)}
MASK = np.tril(np.ones((TOKENS, TOKENS), bool))


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"flat": True},
        {"shared": 2},
        {"flat": True, "shared": 2},
        {"is_causal": 1},
        {"scale": 0.3},
        {"softcap": 2.0},
        {"attn_mask": MASK},
        {"attn_mask": np.where(MASK, np.float32(0), np.float32(-3))},
        {"attn_mask": np.zeros((TOKENS, TOKENS), bool)},
        {**CACHE},
        {**CACHE, "is_causal": 1},
        {"nonpad_kv_seqlen": np.array([3, 5])},
        {"nonpad_kv_seqlen": np.array([3, 5]), "attn_mask": MASK},
    ],
    ids=lambda given: "-".join(given) or "plain",
)
def test_every_way_to_use_it_equals_the_original(opset, given):
    if opset < 24 and "nonpad_kv_seqlen" in given:
        pytest.skip("an input of opset 24")
    original, feeds = attention(opset, **given)
    expected = onnxruntime.InferenceSession(original.SerializeToString()).run(None, feeds)
    rewritten = rewrite(original, device="ideal")
    for result, wanted in zip(session(rewritten).run(None, feeds), expected, strict=True):
        np.testing.assert_allclose(result, wanted, atol=1e-5)
    sites = [(site.node, site.component, site.heads) for site in rewritten.manifest.sites]
    assert sites == [
        ("att/attention_scores", "attention_scores", HEADS),
        ("att/attention_context", "attention_context", HEADS),
    ]


def test_nan_among_the_scores_of_a_masked_attention_stays():
    original, feeds = attention(23, attn_mask=MASK)
    feeds["q"][0, 1, 2, 3] = np.nan
    result = session(rewrite(original, device="ideal")).run(["y"], feeds)[0]
    assert np.isnan(result[0, 1, 2]).all()
    assert np.isfinite(np.delete(result[0, 1], 2, axis=0)).all()
