"""onnxruntime's fused operators, option by option: the expansion computes what onnxruntime's own kernel computes."""

import itertools
import math

import numpy as np
import onnx
import onnxruntime
import pytest

from emu.errors import InputError
from emu.rewriter import find_sites, rewrite

from .exported import run, with_plain_products
from .small import assert_same_results, crossbars, model, values

FUSED = ', "com.microsoft" : 1'


def fused(body: str, opset: int = 17, imports: str = FUSED, **options) -> onnx.ModelProto:
    return model(body, opset=opset, imports=imports, ir_version=8, **options)


def assert_expanded(original: onnx.ModelProto, *feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    rewritten = assert_same_results(original, *feeds)
    assert {node.domain for node in rewritten.graph.node} <= {"", "emu"}
    return rewritten


# --- What holds no product


@pytest.mark.parametrize(
    "node",
    [
        "com.microsoft.Gelu (p)",
        "com.microsoft.BiasGelu (p, b)",
        "com.microsoft.FastGelu (p)",
        "com.microsoft.FastGelu (p, b)",
        "com.microsoft.QuickGelu (p)",
        "com.microsoft.QuickGelu <alpha = 1.1> (p)",
        "com.microsoft.SkipLayerNormalization <epsilon = 0.1> (p, p2, s, b)",
        "com.microsoft.SkipLayerNormalization (p, p2, s)",
        "com.microsoft.SkipLayerNormalization (p, p2, s, b, b2)",
        "com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.1> (p, p2, s)",
        "com.microsoft.SkipSimplifiedLayerNormalization (p, p2, s, b)",
        "SimplifiedLayerNormalization <axis = -1, epsilon = 0.1> (p, s)",
    ],
)
@pytest.mark.parametrize("opset", [13, 17, 20])
def test_norms_and_activations_are_expanded(node, opset):
    original = fused(
        f"p = MatMul(x, w)  p2 = MatMul(x, w2)  y = {node}",
        inputs="float[batch, 3, 4] x",
        outputs="float[batch, 3, 6] y",
        opset=opset,
        w=values(4, 6),
        w2=values(4, 6, seed=1),
        s=values(6, seed=2),
        b=values(6, seed=3),
        b2=values(6, seed=4),
    )
    rewritten = assert_expanded(original, {"x": 3 * values(2, 3, 4, seed=9)})
    assert set(crossbars(rewritten)) == {"p", "p2"}


def test_the_sum_of_a_skip_norm_goes_on_as_the_residual():
    original = fused(
        "p = MatMul(x, w)  y, mean, deviation, z = com.microsoft.SkipLayerNormalization(p, x, s, b, b)",
        inputs="float[batch, 3, 4] x",
        outputs="float[batch, 3, 4] y, float[batch, 3, 4] z",
        w=values(4, 4),
        s=values(4, seed=2),
        b=values(4, seed=3),
    )
    assert_expanded(original, {"x": values(2, 3, 4, seed=9)})


def test_a_layer_norm_older_than_onnx_own_is_expanded():
    original = fused(
        "p = MatMul(x, w)  y = LayerNormalization <axis = -1, epsilon = 0.1> (p, s, b)",
        outputs="float[batch, 6] y",
        opset=14,
        w=values(4, 6),
        s=values(6, seed=2),
        b=values(6, seed=3),
    )
    assert_expanded(original, {"x": values(2, 4, seed=9)})


EMBEDDING = {
    "words": values(9, 4),
    "places": values(7, 4, seed=1),
    "kinds": values(2, 4, seed=2),
    "s": values(4, seed=3),
    "b": values(4, seed=4),
    "w": values(4, 12, seed=5),
    "wb": values(12, seed=6),
}
IDS = np.array([[1, 5, 8, 0, 2], [3, 3, 7, 6, 1]], dtype=np.int32)


@pytest.mark.parametrize("kinds", [True, False])
@pytest.mark.parametrize("given_places", [True, False])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("opset", [12, 17])
def test_embeddings_are_summed_normed_and_measured(kinds, given_places, mask, opset):
    """The lengths that come with the embeddings are the masks of the attention after them."""
    operands = f"ids, {'kind_ids, words, places, kinds' if kinds else ', words, places, '}, s, b"
    operands += f", {'mask' if mask else ''}, {'place_ids' if given_places else ''}"
    mask_index = "lengths" if mask else ""
    original = fused(
        f"""h, lengths, total = com.microsoft.EmbedLayerNormalization <epsilon = 0.01> ({operands})
        y = com.microsoft.Attention <num_heads = 2> (h, w, wb, {mask_index})""",
        inputs="int32[batch, n] ids, int32[batch, n] kind_ids, int32[batch, n] mask, int32[batch, n] place_ids",
        outputs="float[batch, n, 4] y, int32[batch] lengths, float[batch, n, 4] total",
        opset=opset,
        **EMBEDDING,
    )
    feeds = {
        "ids": IDS,
        "kind_ids": IDS % 2,
        "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=np.int32),
        "place_ids": np.array([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]], dtype=np.int32),
    }
    assert_expanded(original, feeds)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("place", [np.array([3]), np.array([[0, 1, 2, 3, 4], [4, 2, 0, 1, 3]])])
def test_rotations_turn_pairs_of_columns(interleaved, by_head, place):
    shape = "float[batch, 2, 5, 8]" if by_head else "float[batch, 5, 16]"
    original = fused(
        f"r = com.microsoft.RotaryEmbedding <interleaved = {interleaved}> (x, place, cosines, sines)  y = MatMul(r, w)",
        inputs=f"{shape} x",
        outputs=shape[:-2] + "3] y" if by_head else "float[batch, 5, 3] y",
        place=place,
        cosines=np.cos(values(9, 4)),
        sines=np.sin(values(9, 4)),
        w=values(8 if by_head else 16, 3),
    )
    assert_expanded(original, {"x": values(*((2, 2, 5, 8) if by_head else (2, 5, 16)), seed=1)})


def test_a_rotation_may_leave_the_last_columns_of_a_head():
    original = fused(
        """r = com.microsoft.RotaryEmbedding <num_heads = 2, rotary_embedding_dim = 4> (x, place, cosines, sines)
        y = MatMul(r, w)""",
        inputs="float[batch, 5, 16] x",
        outputs="float[batch, 5, 3] y",
        place=np.array([1]),
        cosines=np.cos(values(9, 2)),
        sines=np.sin(values(9, 2)),
        w=values(16, 3),
    )
    assert_expanded(original, {"x": values(2, 5, 16, seed=1)})


# --- Products


FLAGS = list(itertools.product([0, 1], repeat=2))


@pytest.mark.parametrize(("trans_a", "trans_b"), FLAGS)
@pytest.mark.parametrize(("batch_a", "batch_b"), FLAGS)
def test_operands_of_a_fused_matmul_are_transposed_and_scaled(trans_a, trans_b, batch_a, batch_b):
    def stored(rows, columns, transposed, batch_inside):
        """The shape of an operand of which the product takes [2, 3, rows, columns]."""
        inner = [columns, rows] if transposed else [rows, columns]
        return [inner[0], 2, 3, inner[1]] if batch_inside else [2, 3, *inner]

    a, b = stored(4, 5, trans_a, batch_a), stored(5, 6, trans_b, batch_b)
    flags = f"transA = {trans_a}, transB = {trans_b}, transBatchA = {batch_a}, transBatchB = {batch_b}"
    original = fused(
        f"y = com.microsoft.FusedMatMul <alpha = 0.5, {flags}> (a, b)",
        inputs=f"float{a} a, float{b} b",
        outputs="float[2, 3, 4, 6] y",
    )
    rewritten = assert_expanded(original, {"a": values(*a), "b": values(*b, seed=1)})
    assert [node.op_type for node in crossbars(rewritten).values()] == ["CrossbarMatMulDynamic"]


def test_a_transposed_weight_of_a_fused_matmul_is_stored():
    original = fused(
        "y = com.microsoft.FusedMatMul <alpha = 2.0, transB = 1> (x, w)", outputs="float[batch, 6] y", w=values(6, 4)
    )
    rewritten = assert_expanded(original, {"x": values(2, 4)})
    assert crossbars(rewritten)["y"].op_type == "CrossbarMatMul"


def test_ranks_are_found_through_other_fused_operators():
    """The rank of a rotated value follows only once the rotation is plain."""
    original = fused(
        """h = com.microsoft.RotaryEmbedding (x, place, cosines, sines)
        t = com.microsoft.FusedMatMul <transB = 1> (h, h)
        u = com.microsoft.FusedMatMul <transA = 1> (t, t)  y = MatMul(u, w)""",
        inputs="float[batch, 2, 5, 8] x",
        outputs="float[batch, 2, 5, 3] y",
        place=np.array([3]),
        cosines=np.cos(values(9, 4)),
        sines=np.sin(values(9, 4)),
        w=values(5, 3),
    )
    assert_expanded(original, {"x": 0.3 * values(2, 2, 5, 8)})


@pytest.mark.parametrize(
    "activation",
    [
        'activation = "Relu"',
        'activation = "Tanh"',
        'activation = "Sigmoid"',
        'activation = "LeakyRelu", activation_alpha = 0.3',
    ],
)
def test_the_activation_of_a_fused_gemm_is_applied(activation):
    original = fused(
        f"y = com.microsoft.FusedGemm <{activation}, alpha = 0.5, beta = 2.0, transB = 1> (x, w, b)",
        outputs="float[batch, 6] y",
        w=values(6, 4),
        b=values(6, seed=1),
    )
    rewritten = assert_expanded(original, {"x": values(2, 4, seed=2)})
    assert set(crossbars(rewritten)) == {"y"}


def test_a_fused_gelu_gemm_is_expanded():
    """onnxruntime has no CPU kernel for it."""
    w, b, x = values(4, 6), values(6, seed=1), values(2, 4, seed=2)
    original = fused("y = com.microsoft.GemmFastGelu (x, w, b)", outputs="float[batch, 6] y", w=w, b=b)
    (result,) = run(with_plain_products(rewrite(original, device="ideal").model), {"x": x})
    p = x @ w + b
    expected = p * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (p + 0.044715 * p**3)))
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("summand", [True, False])
def test_a_fused_convolution_is_a_patch_embedding_and_its_activation(summand):
    original = fused(
        f"""y = com.microsoft.FusedConv <activation = "LeakyRelu", activation_params = [0.2], strides = [2, 2]>
        (x, w, b{", z" if summand else ""})""",
        inputs="float[batch, 3, 6, 6] x, float[batch, 5, 3, 3] z",
        outputs="float[batch, 5, 3, 3] y",
        w=values(5, 3, 2, 2),
        b=values(5, seed=1),
    )
    rewritten = assert_expanded(original, {"x": values(2, 3, 6, 6), "z": values(2, 5, 3, 3)})
    assert set(crossbars(rewritten)) == {"y"}


def test_a_fused_convolution_may_be_clipped():
    original = fused(
        """y = com.microsoft.FusedConv <activation = "Clip", activation_params = [-0.5, 0.5]> (x, w)""",
        inputs="float[batch, 3, 6, 6] x",
        outputs="float[batch, 5, 5, 5] y",
        w=values(5, 3, 2, 2),
    )
    assert set(crossbars(assert_expanded(original, {"x": values(2, 3, 6, 6)}))) == {"y"}


def optimized(original: onnx.ModelProto, path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(original.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("channels", [16, 24, 32, 40])
def test_blocked_convolutions_are_plain_again(channels, tmp_path):
    """Channels that fill blocks of 8 or 16, an image's three channels and many, Relu and sum inside."""
    original = model(
        """a = Conv <strides = [2, 2], kernel_shape = [2, 2]> (x, w1, b1)  c = Relu(a)
        d = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (c, w2, b2)  e = Add(d, c)  y = Relu(e)""",
        inputs="float[batch, 3, 8, 8] x",
        outputs=f"float[batch, {channels}, 4, 4] y",
        w1=values(channels, 3, 2, 2),
        b1=values(channels, seed=1),
        w2=values(channels, channels, 3, 3, seed=2),
        b2=values(channels, seed=3),
    )
    blocked = optimized(original, tmp_path / "optimized.onnx")
    domains = [node.domain for node in blocked.graph.node if node.op_type == "Conv"]
    if "com.microsoft.nchwc" not in domains:
        pytest.skip("onnxruntime has no blocked convolutions on this processor")
    x = values(2, 3, 8, 8, seed=4)
    (result,) = run(with_plain_products(rewrite(blocked, device="ideal").model), {"x": x})
    np.testing.assert_allclose(result, run(original, {"x": x})[0], atol=1e-4)


@pytest.mark.parametrize("channels", [12, 24, 48])
def test_a_blocked_patch_embedding_loses_the_channels_that_fill_its_blocks(channels, tmp_path):
    original = model(
        "y = Conv <strides = [2, 2], kernel_shape = [2, 2]> (x, w, b)",
        inputs="float[batch, 3, 8, 8] x",
        outputs=f"float[batch, {channels}, 4, 4] y",
        w=values(channels, 3, 2, 2),
        b=values(channels, seed=1),
    )
    blocked = optimized(original, tmp_path / "optimized.onnx")
    if blocked.graph.node[0].domain != "com.microsoft.nchwc":
        pytest.skip("onnxruntime has no blocked convolutions on this processor")
    assert_expanded(blocked, {"x": values(2, 3, 8, 8, seed=4)})
    assert [site.shape for site in find_sites(blocked)] == [(12, channels)]


# --- Attention


BATCH, TOKENS, WIDTH, HEADS = 3, 4, 8, 2
QKV = {"w": values(6, 3 * WIDTH), "b": values(3 * WIDTH, seed=1)}
PADDED = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], dtype=np.int32)
PER_TOKEN = np.random.default_rng(0).integers(0, 2, (BATCH, TOKENS, TOKENS)).astype(np.int32)
MASKS = {
    "none": None,
    "lengths": np.array([4, 2, 3], dtype=np.int32),
    "ends_and_starts": np.array([4, 3, 4, 0, 1, 2], dtype=np.int32),
    "padding": PADDED,
    "per_token": PER_TOKEN,
}


def typed(name: str, array: np.ndarray, batch_axis: bool = True) -> str:
    kind = {"f": "float", "i": "int32" if array.dtype == np.int32 else "int64"}[array.dtype.kind]
    sizes = ["batch" if axis == 0 and batch_axis else str(size) for axis, size in enumerate(array.shape)]
    return f", {kind}[{', '.join(sizes)}] {name}"


def attention(options: str = "", width: int = WIDTH, outputs: str = "", x_width: int = 6, **given) -> tuple:
    """A model of one Attention node with the given inputs, and what to feed to it."""
    places = ["x", "w", "b", "mask", "past", "bias", ""]
    weights = {name: given.pop(name) for name in ("w", "b") if name in given}
    used = [name if name == "x" or name in given or name in weights else "" for name in places]
    while not used[-1]:
        used.pop()
    feeds = {"x": values(BATCH, TOKENS, x_width, seed=7), **given}
    declared = f"float[batch, {TOKENS}, {x_width}] x" + "".join(
        typed(name, array, batch_axis=name != "past" and array.shape[0] == BATCH) for name, array in given.items()
    )
    made = ", ".join(["y", *(["present"] if outputs else [])])
    original = fused(
        f"{made} = com.microsoft.Attention <num_heads = {HEADS}{options}> ({', '.join(used)})",
        inputs=declared,
        outputs=f"float[batch, {TOKENS}, {width}] y{outputs}",
        **weights,
    )
    return original, feeds


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_attention_hide_the_same_keys(kind, unidirectional):
    mask = {} if MASKS[kind] is None else {"mask": MASKS[kind]}
    original, feeds = attention(f", unidirectional = {unidirectional}", **QKV, **mask)
    rewritten = assert_expanded(original, feeds)
    expected = {f"y/{name}" for name in ("query_key_value", "attention_scores", "attention_context")}
    assert set(crossbars(rewritten)) == expected


@pytest.mark.parametrize("kind", ["padding", "per_token"])
def test_the_value_of_masked_scores_is_kept(kind):
    """With a weak filter, masked keys keep some of their weight."""
    original, feeds = attention(", mask_filter_value = -1.5, scale = 0.7, unidirectional = 1", **QKV, mask=MASKS[kind])
    assert_expanded(original, feeds)


def test_attention_without_biases_adds_none():
    """onnxruntime's CPU kernel crashes without them: compared with biases of zero."""
    without, feeds = attention(w=QKV["w"])
    zeros, _ = attention(w=QKV["w"], b=np.zeros(3 * WIDTH, np.float32))
    (result,) = run(with_plain_products(rewrite(without, device="ideal").model), feeds)
    np.testing.assert_allclose(result, run(zeros, feeds)[0], atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(BATCH, HEADS, TOKENS, TOKENS), (1, HEADS, TOKENS, TOKENS), (BATCH, 1, TOKENS, TOKENS)]
)
def test_an_attention_bias_is_added_to_the_scores(shape):
    original, feeds = attention(**QKV, mask=PADDED, bias=values(*shape, seed=5))
    assert_expanded(original, feeds)


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_past_keys_and_values_stand_before_the_new_ones(unidirectional, masked):
    past = values(2, BATCH, HEADS, 3, WIDTH // HEADS, seed=8)
    mask = np.concatenate([np.ones((BATCH, 3), np.int32), PADDED], axis=1)
    original, feeds = attention(
        f", unidirectional = {unidirectional}",
        outputs=f", float[2, batch, {HEADS}, 7, {WIDTH // HEADS}] present",
        **QKV,
        **({"mask": mask} if masked else {}),
        past=past,
    )
    assert_expanded(original, feeds)


def test_values_of_another_width_are_three_projections_with_heads():
    original, feeds = attention(
        ", qkv_hidden_sizes = [8, 8, 12]", width=12, w=values(6, 28), b=values(28, seed=1), mask=PADDED
    )
    assert_expanded(original, feeds)
    sites = {site.node: site for site in find_sites(original)}
    assert {name: sites[f"y/{name}"].component for name in ("query", "key", "value")} == {
        "query": "query",
        "key": "key",
        "value": "value",
    }
    assert [(sites[f"y/{name}"].heads, sites[f"y/{name}"].shape) for name in ("key", "value")] == [
        (HEADS, (6, 8)),
        (HEADS, (6, 12)),
    ]


def test_heads_of_a_packed_projection_are_known():
    original, _ = attention(**QKV)
    site = find_sites(original)[0]
    assert (site.component, site.heads, site.head_axis, site.head_groups) == ("query_key_value", HEADS, "output", 3)


@pytest.mark.parametrize("option", ["do_rotary", "past_present_share_buffer"])
def test_options_of_attention_without_an_expansion_are_refused_by_name(option):
    original, _ = attention(f", {option} = 1", **QKV)
    with pytest.raises(InputError, match=rf"node 'y' \(com.microsoft.Attention\).*{option}.*export the model without"):
        rewrite(original, only="*")


MULTI_HEAD = ("query", "key", "value", "bias", "mask", "scores_bias", "past_key", "past_value")
DEPTH = WIDTH // HEADS


def multi_head(
    options: str = "", keys: int = TOKENS, value_width: int = WIDTH, presents: int = 0, **given
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of MultiHeadAttention and an output projection, and what to feed to it."""
    feeds = {
        "query": values(BATCH, TOKENS, WIDTH),
        "key": values(BATCH, keys, WIDTH, seed=1),
        "value": values(BATCH, keys, value_width, seed=2),
        **given,
    }
    feeds = {name: array for name, array in feeds.items() if array is not None}
    weights = {name: feeds.pop(name) for name in ("bias",) if name in feeds}
    used = [name if name in feeds or name in weights else "" for name in MULTI_HEAD]
    while not used[-1]:
        used.pop()
    declared = "".join(typed(n, array, batch_axis=array.shape[0] == BATCH) for n, array in feeds.items()).lstrip(", ")
    present = f", float[batch, {HEADS}, {presents}, {DEPTH}] k2, float[batch, {HEADS}, {presents}, {DEPTH}] v2"
    original = fused(
        f"""h{", k2, v2" if presents else ""} = com.microsoft.MultiHeadAttention <num_heads = {HEADS}{options}>
        ({", ".join(used)})  y = MatMul(h, wo)""",
        inputs=declared,
        outputs=f"float[batch, {TOKENS}, 5] y{present if presents else ''}",
        wo=values(value_width, 5, seed=3),
        **weights,
    )
    return original, feeds


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("kind", ["none", "lengths", "padding", "per_token"])
def test_masks_of_multi_head_attention_hide_the_same_keys(kind, unidirectional):
    original, feeds = multi_head(f", unidirectional = {unidirectional}", mask=MASKS[kind])
    rewritten = assert_expanded(original, feeds)
    assert set(crossbars(rewritten)) == {"h/attention_scores", "h/attention_context", "y"}


def test_packed_biases_are_added_before_the_heads_are_split():
    original, feeds = multi_head(", scale = 0.3", bias=values(3 * WIDTH, seed=4), value_width=WIDTH)
    assert_expanded(original, feeds)


def test_values_of_another_width_take_the_rest_of_the_bias():
    original, feeds = multi_head(value_width=12, bias=values(2 * WIDTH + 12, seed=4))
    assert_expanded(original, feeds)


def test_keys_of_another_sequence_are_attended_to():
    bias = values(1, HEADS, TOKENS, 6, seed=5)
    original, feeds = multi_head(keys=6, scores_bias=bias, bias=values(3 * WIDTH, seed=4))
    assert_expanded(original, feeds)


@pytest.mark.parametrize("bias", [True, False])
def test_keys_that_come_by_head_are_taken_as_they_are(bias):
    """Cross-attention with a cache: no bias for keys and values."""
    original, feeds = multi_head(
        key=values(BATCH, HEADS, 6, DEPTH),
        value=values(BATCH, HEADS, 6, DEPTH, seed=1),
        bias=np.concatenate([values(WIDTH, seed=2), np.zeros(2 * WIDTH, np.float32)]) if bias else None,
    )
    assert_expanded(original, feeds)


@pytest.mark.parametrize("unidirectional", [0, 1])
def test_past_and_present_of_multi_head_attention_are_kept(unidirectional):
    past = {"past_key": values(BATCH, HEADS, 3, DEPTH), "past_value": values(BATCH, HEADS, 3, DEPTH, seed=1)}
    original, feeds = multi_head(
        f", unidirectional = {unidirectional}", presents=7, bias=values(3 * WIDTH, seed=4), **past
    )
    assert_expanded(original, feeds)


def test_packed_inputs_of_multi_head_attention_give_what_separate_ones_give():
    """onnxruntime's CPU kernel does not take them."""
    query, key, value = (values(BATCH, TOKENS, HEADS, DEPTH, seed=seed) for seed in range(3))
    flat = [each.reshape(BATCH, TOKENS, WIDTH) for each in (query, key, value)]
    bias = values(3 * WIDTH, seed=4)
    separate, feeds = multi_head(bias=bias, query=flat[0], key=flat[1], value=flat[2])
    (expected,) = run(separate, feeds)
    packings = [
        {"query": np.stack([query, key, value], axis=3), "key": None, "value": None},
        {"query": flat[0], "key": np.stack([key, value], axis=3), "value": None},
    ]
    for packing in packings:
        original, feeds = multi_head(bias=bias, **packing)
        (result,) = run(with_plain_products(rewrite(original, device="ideal").model), feeds)
        np.testing.assert_allclose(result, expected, atol=1e-5)


# --- Grouped queries


GROUPED = ("query", "key", "value", "past_key", "past_value", "lengths", "total", "cosines", "sines", "places", "bias")
QUERY_HEADS, KEY_HEADS, HEAD = 4, 2, 16


def grouped(
    tokens: int, lengths: list[int], total: int, past: int = 0, options: str = "", packed: bool = False, **given
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of GroupQueryAttention and an output projection; sample b has `lengths[b]` tokens with its past."""
    batch = len(lengths)
    own = {
        "query": values(batch, tokens, QUERY_HEADS * HEAD),
        "key": values(batch, tokens, KEY_HEADS * HEAD, seed=1),
        "value": values(batch, tokens, KEY_HEADS * HEAD, seed=2),
    }
    if packed:
        own = {"query": np.concatenate(list(own.values()), axis=2)}
    if past:
        own |= {f"past_{n}": values(batch, KEY_HEADS, past, HEAD, seed=i) for i, n in ((3, "key"), (4, "value"))}
    feeds = {**own, "lengths": np.array(lengths, np.int32) - 1, **given}
    tables = {name: feeds.pop(name) for name in ("cosines", "sines") if name in feeds}
    used = [name if name in feeds or name in tables or name == "total" else "" for name in GROUPED]
    while not used[-1]:
        used.pop()
    declared = "".join(typed(n, array, batch_axis=array.shape[0] == batch) for n, array in feeds.items()).lstrip(", ")
    present = "".join(f", float[batch, {KEY_HEADS}, all, {HEAD}] {name}" for name in ("k2", "v2"))
    original = fused(
        f"""h, k2, v2 = com.microsoft.GroupQueryAttention <num_heads = {QUERY_HEADS}, kv_num_heads = {KEY_HEADS}
        {options}> ({", ".join(used)})  y = MatMul(h, wo)""",
        inputs=declared,
        outputs=f"float[batch, {tokens}, 5] y{present if past else ''}",
        total=np.array(total, np.int32),
        wo=values(QUERY_HEADS * HEAD, 5, seed=3),
        **tables,
    )
    return original, feeds


TABLES = {"cosines": np.cos(values(16, HEAD // 2)), "sines": np.sin(values(16, HEAD // 2))}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("interleaved", [None, 0, 1])
def test_a_first_prompt_is_causal_and_rotated(packed, interleaved):
    options = "" if interleaved is None else f", do_rotary = 1, rotary_interleaved = {interleaved}"
    tables = {} if interleaved is None else TABLES
    original, feeds = grouped(5, [5, 5], 5, options=options, packed=packed, **tables)
    rewritten = assert_expanded(original, feeds)
    assert set(crossbars(rewritten)) == {"h/attention_scores", "h/attention_context", "y"}


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize(
    ("tokens", "lengths", "total", "past"),
    [
        (1, [6, 6], 6, 5),  # one more token, the cache full
        (1, [6, 4], 6, 5),  # a shorter sample: its new key goes into its own next place
        (1, [6, 3], 6, 10),  # a cache with room
        (3, [8], 8, 5),  # several tokens at once
        (5, [5, 5], 5, 10),  # the first prompt, into an empty cache
    ],
)
def test_cached_keys_of_every_sample_end_where_its_length_says(tokens, lengths, total, past, rotary):
    options = {"options": ", do_rotary = 1", **TABLES} if rotary else {}
    original, feeds = grouped(tokens, lengths, total, past, **options)
    results = run(original, feeds)
    expanded = run(with_plain_products(rewrite(original, device="ideal").model), feeds)
    np.testing.assert_allclose(expanded[0], results[0], atol=1e-5)
    for cache, expected in zip(expanded[1:], results[1:], strict=True):
        assert cache.shape == expected.shape
        for sample, length in enumerate(lengths):  # what lies behind a sample's own tokens is never read
            np.testing.assert_allclose(cache[sample, :, :length], expected[sample, :, :length], atol=1e-5)


def test_given_positions_turn_queries_and_keys():
    places = np.array([[7], [2]])
    original, feeds = grouped(1, [6, 4], 6, 5, options=", do_rotary = 1", places=places, **TABLES)
    assert_expanded(original, feeds)


def test_a_first_prompt_counts_on_from_the_first_given_position():
    places = np.array([[0, 1, 2], [3, 4, 5]])
    original, feeds = grouped(3, [3, 3], 3, options=", do_rotary = 1", places=places, **TABLES)
    assert_expanded(original, feeds)


def test_an_attention_bias_is_added_to_the_scores_of_grouped_queries():
    original, feeds = grouped(3, [3, 3], 3, options=", scale = 0.4", bias=values(2, 1, 3, 3, seed=6))
    assert_expanded(original, feeds)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (", local_window_size = 2", "local_window_size"),
        (", softcap = 3.0", "softcap"),
        (", smooth_softmax = 1", "smooth_softmax"),
        (", causal = 0", "causal"),
    ],
)
def test_options_of_grouped_queries_without_an_expansion_are_refused_by_name(options, reason):
    original, _ = grouped(3, [3, 3], 3, options=options)
    with pytest.raises(InputError, match=rf"node 'h' \(com.microsoft.GroupQueryAttention\).*{reason}"):
        rewrite(original, only="*")


# --- The rest


def test_fused_operators_of_half_precision_are_expanded_in_half_precision():
    def in_precision(kind) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        name = "float16" if kind is np.float16 else "float"
        original = fused(
            """h = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, b, mask)
            g = com.microsoft.Gelu (h)  y = com.microsoft.SkipLayerNormalization (g, h, s)""",
            inputs=f"{name}[batch, {TOKENS}, 6] x, int32[batch, {TOKENS}] mask",
            outputs=f"{name}[batch, {TOKENS}, {WIDTH}] y",
            s=np.ones(WIDTH, kind),
            **{name: array.astype(kind) for name, array in QKV.items()},
        )
        return original, {"x": values(BATCH, TOKENS, 6, seed=7).astype(kind), "mask": PADDED}

    single, half = in_precision(np.float32), in_precision(np.float16)
    rewritten = rewrite(half[0], device="ideal")
    assert set(crossbars(rewritten.model)) >= {"h/query_key_value", "h/attention_scores", "h/attention_context"}
    (result,) = run(with_plain_products(rewritten.model), half[1])
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, run(*single)[0], atol=0.03)


def test_an_unknown_fused_operator_that_holds_products_is_refused_by_node_and_operator():
    original = fused("p = MatMul(x, w)  y = com.microsoft.QMoE (p, b, x)", w=values(4, 4), b=values(4))
    with pytest.raises(InputError, match=r"node 'y' \(com.microsoft.QMoE\) is not supported yet; export the model"):
        rewrite(original, only="*")


def test_an_unknown_operator_that_holds_no_product_stays_as_it_is():
    original = fused("p = MatMul(x, w)  y = com.microsoft.BiasSplitGelu (p, b)", w=values(4, 4), b=values(4))
    rewritten = rewrite(original, only="*")
    assert [site.node for site in rewritten.manifest.sites] == ["p"]
    assert [each.op for each in rewritten.manifest.skipped] == ["com.microsoft.BiasSplitGelu"]
    assert "emu does not know" in rewritten.manifest.skipped[0].reason


def test_an_operand_whose_rank_cannot_be_told_is_refused_by_name():
    original = fused(
        "r = Reshape(x, target)  p = com.microsoft.FusedMatMul <transB = 1> (r, r)  y = Reshape(p, flat)",
        inputs="float[batch, 4] x, int64[n] target",
        outputs="float[m] y",
        flat=np.array([-1]),
    )
    with pytest.raises(InputError, match=r"Node 'p' \(com.microsoft.FusedMatMul\) needs the shape of 'r'"):
        rewrite(original, only="*")


def test_an_attention_without_its_number_of_heads_is_refused():
    original, _ = attention(**QKV)
    del original.graph.node[0].attribute[:]
    with pytest.raises(InputError, match=r"'y' \(Attention\) needs the attribute num_heads"):
        rewrite(original, only="*")


def test_older_names_of_operators_are_taken():
    original = fused(
        "t = com.microsoft.TransposeMatMul <transB = 1, alpha = 0.5> (x, w)  y = com.microsoft.ExpandDims (t, axis)",
        outputs="float[batch, one, n] y",
        w=values(3, 4),
        axis=np.array(1, np.int32),
    )
    expanded = run(with_plain_products(rewrite(original, device="ideal").model), {"x": values(2, 4)})[0]
    np.testing.assert_allclose(expanded, 0.5 * (values(2, 4) @ values(3, 4).T)[:, None], atol=1e-6)
