"""Einsum of two operands is the product that it says, with its layers and components."""

import numpy as np
import pytest

from emu.rewriter import rewrite

from .small import assert_same_results, crossbars, initializer, model, values

X = {"x": values(2, 5, 16)}


@pytest.mark.parametrize(
    ("equation", "weight", "stored"),
    [
        ("abc,cd->abd", (16, 6), (16, 6)),
        ("bsd, de -> bse", (16, 6), (16, 6)),
        ("bsd,ed->bse", (6, 16), (16, 6)),
        ("...d,ed->...e", (6, 16), (16, 6)),
        ("bsd,de", (16, 6), (16, 6)),  # the result is b, e, s: letters that occur once, in order
        ("abc,cde->abde", (16, 4, 3), (16, 12)),
        ("bsd,dhf->bhsf", (16, 4, 3), (16, 12)),
        ("bsd,hdf->bhsf", (4, 16, 3), (16, 12)),
        ("bsd,d->bs", (16,), (16, 1)),
        ("bsd,sd->bs", (5, 16), (5, 16, 1)),
        ("bid,ijd->bij", (5, 7, 16), (5, 16, 7)),
        ("bsd,sdf->bfs", (5, 16, 3), (5, 16, 3)),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_is_stored_as_matrix_or_stack(equation, weight, stored, turned):
    operands = ["x", "w"]
    if turned and "->" in equation:
        terms, result = equation.replace(" ", "").split("->")
        equation, operands = ",".join(reversed(terms.split(","))) + "->" + result, ["w", "x"]
    rank = np.einsum(equation.replace(" ", ""), *_zeros(operands, weight)).ndim
    original = model(
        f'y = Einsum <equation = "{equation}"> ({", ".join(operands)})',
        inputs="float[batch, 5, 16] x",
        outputs=f"float[{', '.join('abcdefg'[:rank])}] y",
        w=values(*weight, seed=1),
    )
    rewritten = assert_same_results(original, X)
    node = crossbars(rewritten)["y"]
    assert node.op_type == "CrossbarMatMul"
    assert initializer(rewritten, node.input[1]).shape == stored


def _zeros(operands, weight):
    shapes = {"x": (2, 5, 16), "w": weight}
    return [np.zeros(shapes[name], np.float32) for name in operands]


ATTENTION = """
    q = Einsum <equation = "abc,cde->abde"> (x, wq)  k = Einsum <equation = "abc,cde->abde"> (x, wk)
    v = Einsum <equation = "abc,cde->abde"> (x, wv)
    s = Einsum <equation = "aecd,abcd->acbe"> (k, q)  p = Softmax <axis = -1> (s)
    c = Einsum <equation = "acbe,aecd->abcd"> (p, v)  o = Einsum <equation = "abcd,cde->abe"> (c, wo)
    u = MatMul(o, wu)  r = Relu(u)  y = MatMul(r, wd)
"""


def test_attention_of_einsums_has_its_layer_components_and_heads():
    original = model(
        ATTENTION,
        inputs="float[batch, tokens, 16] x",
        outputs="float[batch, tokens, 16] y",
        wo=values(4, 4, 16),
        wu=values(16, 24),
        wd=values(24, 16),
        **{f"w{name}": values(16, 4, 4, seed=place) for place, name in enumerate("qkv")},
    )
    assert_same_results(original, X)
    found = {site.node: site for site in rewrite(original, only="*").manifest.sites}
    assert {node: (site.layer, site.component, site.heads) for node, site in found.items()} == {
        "q": (0, "query", 4),
        "k": (0, "key", 4),
        "v": (0, "value", 4),
        "s": (0, "attention_scores", 4),
        "c": (0, "attention_context", 4),
        "o": (0, "attention_output", 4),
        "u": (0, "ffn_up", 0),
        "y": (0, "ffn_down", 0),
    }
    assert found["s"].shape[0] == 4  # the keys are what is written, although they are the left operand


@pytest.mark.parametrize(
    "equation", ["bid,bjd->bij", "bid,bjd->bji", "bid,bjd->ibj", "bid,bkd->bik", "bid,bid->bi", "bid,bjd->ij"]
)
def test_two_activations_are_a_written_product(equation):
    rank = len(equation.split("->")[1])
    original = model(
        f'h = Einsum <equation = "{equation}"> (x, z) y = Identity(h)',
        inputs="float[batch, 5, 16] x, float[batch, 5, 16] z",
        outputs=f"float[{', '.join('abc'[:rank])}] y",
    )
    rewritten = assert_same_results(original, {**X, "z": values(2, 5, 16, seed=1)})
    assert crossbars(rewritten)["h"].op_type == "CrossbarMatMulDynamic"


def test_sizes_that_only_a_run_tells_are_merged_and_split_again():
    original = model(
        'h = Einsum <equation = "bhwc,hkc->bhwk"> (x, r) g = Einsum <equation = "bijc,bkc->bkij"> (x, z) '
        "y = Identity(h)",
        inputs="float[batch, 3, width, 8] x, float[batch, keys, 8] z",
        outputs="float[a, b, c, d] y, float[e, f, g_, h_] g",
        r=values(3, 1, 8),
    )
    feeds = [{"x": values(b, 3, w, 8), "z": values(b, 4, 8, seed=2)} for b, w in ((2, 5), (1, 7))]
    assert_same_results(original, *feeds)
