"""A weight is a stored one however the graph brings it to its product."""

import numpy as np
import pytest

from emu.rewriter import rewrite
from emu.runtime import session

from .small import assert_same_results, crossbars, initializer, model, values


def stored(body: str, x: np.ndarray, inputs: str, rank: int = 3, **weights: np.ndarray) -> dict[str, tuple]:
    """Checks that results are those of the original, and gives what each site holds."""
    original = model(body, inputs=inputs, outputs=f"float[{', '.join('abcde'[:rank])}] y", **weights)
    rewritten = assert_same_results(original, {"x": x}, {"x": x[:1]})
    assert {node.op_type for node in crossbars(rewritten).values()} == {"CrossbarMatMul"}
    return {node.name: initializer(rewritten, node.input[1]).shape for node in crossbars(rewritten).values()}


SAMPLES = "s = Shape(x) b = Slice(s, zero, one) "
SIZES = {"zero": np.array([0]), "one": np.array([1]), "whole": np.array([4, 6]), "rest": np.array([1, 1])}


@pytest.mark.parametrize(
    "body",
    [
        "e = Concat <axis = 0> (b, whole) v = Expand(w, e) y = MatMul(x, v)",
        "e = Concat <axis = 0> (b, rest) u = Unsqueeze(w, zero) v = Tile(u, e) y = MatMul(x, v)",
        "e = Concat <axis = 0> (b, whole) v = Expand(w, e) t = Transpose <perm = [0, 2, 1]> (v) "
        "r = Transpose <perm = [0, 2, 1]> (t) y = MatMul(x, r)",
        "v = CastLike(w, x) y = MatMul(x, v)",
    ],
)
def test_copies_for_every_sample_are_one_weight(body):
    assert stored(SAMPLES + body, values(3, 5, 4), "float[batch, 5, 4] x", w=values(4, 6), **SIZES) == {"y": (4, 6)}


def test_copies_of_a_fixed_batch_are_one_weight():
    w = np.broadcast_to(values(4, 6), (2, 4, 6)).copy()
    original = model("y = MatMul(x, w)", inputs="float[2, 5, 4] x", outputs="float[2, 5, 6] y", w=w)
    rewritten = assert_same_results(original, {"x": values(2, 5, 4)})
    assert initializer(rewritten, crossbars(rewritten)["y"].input[1]).shape == (4, 6)


def test_copies_of_several_heads_for_every_sample_are_a_stack():
    body = SAMPLES + "e = Concat <axis = 0> (b, rest) v = Tile(w, e) f = Reshape(x, flat) y = MatMul(f, v)"
    found = stored(
        body, values(3, 2, 5, 4), "float[batch, 2, 5, 4] x", w=values(2, 4, 6), flat=np.array([-1, 5, 4]), **SIZES
    )
    assert found == {"y": (2, 4, 6)}


def test_a_repeated_weight_has_noise_faults_and_parameters():
    body = SAMPLES + "e = Concat <axis = 0> (b, whole) v = Expand(w, e) y = MatMul(x, v)"
    original = model(body, inputs="float[batch, 5, 4] x", outputs="float[a, b, c] y", w=values(4, 6), **SIZES)
    for device in ("rram", "int8_flips"):
        noisy = rewrite(original, device, "*", set={"faults.ber": 0.1} if "flips" in device else {})
        assert noisy.manifest.sites[0].parameters == 24
        chips = [session(noisy).run(None, {"x": values(2, 5, 4), "emu.seed": np.int64(i)})[0] for i in (0, 1)]
        assert not np.allclose(*chips)


def test_products_of_constants_are_part_of_the_weight():
    """LoRA and DoRA that were not merged before export."""
    body = """d = MatMul(b, a) s = Mul(d, half) v = Add(w, s) n = ReduceL2 <axes = [0], keepdims = 1> (v)
              u = Div(v, n) y = MatMul(x, u)"""
    weights = {"w": values(4, 6), "b": values(4, 2, seed=1), "a": values(2, 6, seed=2), "half": np.float32(0.5)}
    assert stored(body, values(3, 4), "float[batch, 4] x", rank=2, **weights) == {"y": (4, 6)}


def test_products_of_constants_that_feed_no_product_are_computed_too():
    found = stored(
        "c = MatMul(r, w) m = MatMul(x, w) y = Add(m, c)",
        values(3, 4),
        "float[batch, 4] x",
        rank=2,
        w=values(4, 4),
        r=values(1, 4, seed=1),
    )
    assert found == {"m": (4, 4)}


def test_parts_of_a_packed_weight_are_weights():
    body = "a, b = Split <axis = 1> (w, parts) p = MatMul(x, a) q = MatMul(x, b) y = Concat <axis = 1> (p, q)"
    found = stored(body, values(3, 4), "float[batch, 4] x", rank=2, w=values(4, 6), parts=np.array([2, 4]))
    assert found == {"p": (4, 2), "q": (4, 4)}


@pytest.mark.parametrize(
    ("body", "w", "x", "rank", "held"),
    [
        ("y = MatMul(w, x)", (6, 4), (3, 4, 5), 3, (4, 6)),
        ("y = MatMul(w, x)", (4,), (3, 4, 5), 2, (4, 1)),
        ("y = MatMul(w, x)", (2, 6, 4), (3, 1, 4, 5), 4, (2, 4, 6)),
        ("y = MatMul(x, w)", (4,), (3, 5, 4), 2, (4, 1)),
        ("y = MatMul(x, w)", (1, 4, 6), (3, 5, 4), 3, (4, 6)),
        ("y = MatMul(x, w)", (1, 4, 6), (5, 4), 3, (4, 6)),
        ("y = MatMul(x, w)", (1, 1, 4, 6), (3, 5, 4), 4, (4, 6)),
        ("y = MatMul(x, w)", (2, 4, 6), (3, 1, 5, 4), 4, (2, 4, 6)),
        ("y = MatMul(x, w)", (2, 4, 6), (3, 2, 5, 4), 4, (2, 4, 6)),
        ("y = MatMul(x, w)", (2, 4, 6), (5, 4), 3, (2, 4, 6)),
    ],
)
def test_weights_on_the_left_vectors_and_stacks(body, w, x, rank, held):
    free = ["batch", *map(str, x[1:])]
    found = stored(body, values(*x), f"float[{', '.join(free)}] x", rank=rank, w=values(*w, seed=1))
    assert found == {"y": held}


def test_a_stack_counts_all_of_its_matrices():
    original = model(
        "y = MatMul(x, w)", inputs="float[batch, 2, 5, 4] x", outputs="float[a, b, c, d] y", w=values(2, 4, 6)
    )
    (site,) = rewrite(original, only="*").manifest.sites
    assert (site.stack, site.parameters, site.macs, site.shape) == (2, 48, 5 * 48, (4, 6))


def test_an_operand_of_shapes_alone_is_no_written_operand():
    original = model(
        """s = Shape(x) n = Gather(s, one) r = Range(zero, n, one) f = Cast <to = 1> (r) u = Unsqueeze(f, axis)
           t = MatMul(u, row) p = Transpose <perm = [1, 0]> (t) h = MatMul(x, w) q = MatMul(h, p) y = MatMul(q, p2)""",
        inputs="float[batch, tokens, 4] x",
        outputs="float[batch, tokens, k] y",
        one=np.array(1),
        zero=np.array(0),
        axis=np.array([1]),
        row=values(1, 4, seed=1),
        w=values(4, 4),
        p2=values(5, 3),
    )
    found = rewrite(original, device="ideal").manifest
    assert [(site.node, site.op) for site in found.sites] == [
        ("t", "CrossbarMatMul"),
        ("h", "CrossbarMatMul"),
        ("y", "CrossbarMatMul"),
    ]
    assert [each.node for each in found.skipped] == ["q"]
    assert "shapes alone" in found.skipped[0].reason


@pytest.mark.parametrize(
    ("body", "shape", "of_x"),
    [
        ("y = MatMul(x, w)", "batch, 2, 3, 5, 4", (2, 2, 3, 5, 4)),
        ("y = MatMul(x, w)", "batch, 2, 3, tokens, 4", (2, 2, 3, 7, 4)),
        ("y = MatMul(x, w)", "batch, 1, 1, 5, 4", (2, 1, 1, 5, 4)),
        ("y = MatMul(x, w)", "batch, 1, 3, 5, 4", (2, 1, 3, 5, 4)),
        ("y = MatMul(x, w)", "rows, 4", (5, 4)),
        ("y = MatMul(w, x)", "batch, 2, 3, 6, 5", (2, 2, 3, 6, 5)),
    ],
)
def test_a_weight_with_several_leading_axes_is_one_stack(body, shape, of_x):
    original = model(body, inputs=f"float[{shape}] x", outputs="float y", w=values(2, 3, 4, 6))
    original.graph.output[0].type.tensor_type.ClearField("shape")
    rewritten = assert_same_results(original, {"x": values(*of_x)})
    (node,) = crossbars(rewritten).values()
    assert initializer(rewritten, node.input[1]).shape[0] == 6


def test_a_stack_along_the_batch_is_no_stack_of_weights():
    original = model(
        "h = MatMul(x, w) m = ReduceMean <axes = [0, 1, 2], keepdims = 0> (h) y = MatMul(x, v)",
        inputs="float[batch, 3, 5, 4] x",
        outputs="float[a, b, c, d] y, float[e] m",
        w=values(2, 3, 4, 6),
        v=values(4, 4),
    )
    manifest = rewrite(original, device="ideal").manifest
    assert [site.node for site in manifest.sites] == ["y"]
    assert [each.node for each in manifest.skipped] == ["h"]


def test_a_vector_may_be_the_second_of_two_activations():
    original = model("y = MatMul(x, v)", inputs="float[batch, 5, 4] x, float[4] v", outputs="float[batch, 5] y")
    assert set(crossbars(assert_same_results(original, {"x": values(3, 5, 4), "v": values(4)}))) == {"y"}
