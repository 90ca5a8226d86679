"""Which products are sites, and what they are, on graphs that exporters rarely show."""

import numpy as np
import pytest

from emu.errors import InputError
from emu.rewriter import find_sites, rewrite

from .small import assert_same_results, crossbars, initializer, model, transformer, values

HEAD = "token = Gather <axis = 1> (last, first) y = MatMul(token, wc)"


def components(original):
    return {site.node: (site.layer, site.component) for site in find_sites(original)}


def skipped(original):
    return {each.node: each.reason for each in rewrite(original, only="*").manifest.skipped}


def test_blocks_are_counted_in_data_flow_order():
    found = components(transformer(3))
    for layer in range(3):
        assert found[f"q{layer}"] == (layer, "query")
        assert found[f"output{layer}"] == (layer, "attention_output")
        assert found[f"up{layer}"] == (layer, "ffn_up")
        assert found[f"down{layer}"] == (layer, "ffn_down")
    assert found["classifier"] == (None, "classifier")


def test_names_are_never_looked_at():
    original = transformer(2)
    misleading = {node.name: f"/layer.9/pooler/query_{i}" for i, node in enumerate(original.graph.node)}
    expected = {misleading[node]: label for node, label in components(original).items()}
    for node in original.graph.node:
        node.name = misleading[node.name]
    assert components(original) == expected


def test_nodes_without_names_get_one_each():
    original = transformer()
    for node in original.graph.node:
        node.name = "" if node.name != "v0" else "Gather:token"
    nodes = [site.node for site in find_sites(original)]
    assert len(set(nodes)) == len(nodes) == 9
    assert "MatMul:q0" in nodes
    assert len(crossbars(rewrite(original, only="*").model)) == 9


@pytest.mark.parametrize(
    "chain",
    [
        "t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t)",
        "a = Identity(w) b = Identity(a) t = Transpose <perm = [1, 0]> (b) y = MatMul(x, t)",
        "h = Cast <to = 10> (w) f = Cast <to = 1> (h) t = Transpose <perm = [1, 0]> (f) y = MatMul(x, t)",
        "r = Reshape(w, wide) u = Unsqueeze(r, zero) s = Squeeze(u, zero) y = Gemm <transB = 1> (x, s)",
        "d = Mul(w, half) t = Transpose <perm = [1, 0]> (d) y = MatMul(x, t)",
        "t = Constant <value = float[4, 1] {1.0, 2.0, 3.0, 4.0}> () y = MatMul(x, t)",
        "t = Identity(w) y = Gemm <transB = 1> (x, t)",
    ],
)
def test_constant_chains_around_a_weight_are_folded(chain):
    original = model(chain, w=values(3, 4), wide=np.array([3, 4]), zero=np.array([0]), half=np.array(0.5, np.float32))
    rewritten = assert_same_results(original, {"x": values(2, 4, seed=3)})
    left = [node.op_type for node in rewritten.graph.node if not node.name.startswith("emu.") and node.domain != "emu"]
    assert set(left) <= {"Constant"}


def test_a_weight_shared_through_identities_is_stored_once():
    original = model("a = Identity(w) h = MatMul(x, w) y = MatMul(h, a)", w=values(4, 4))
    rewritten = assert_same_results(original, {"x": values(2, 4)})
    assert {node.input[1] for node in crossbars(rewritten).values()} == {"w"}


def test_a_table_that_is_also_an_output_weight_stays_for_both():
    original = model(
        "e = Gather(w, x) t = Transpose <perm = [1, 0]> (w) y = MatMul(e, t)",
        inputs="int64[batch, tokens] x",
        outputs="float[batch, tokens, n] y",
        w=values(6, 4),
    )
    rewritten = assert_same_results(original, {"x": np.array([[0, 5, 2]])})
    assert initializer(rewritten, "w").shape == (6, 4)
    assert components(original) == {"y": (None, "other")}


def test_values_captured_by_a_branch_are_data():
    """The second operand of a position product reaches the Softmax only through an If that captures it."""
    original = transformer()
    body = """
        condition = Equal(one, one)
        p0 = MatMul(table, wp)
        ph = Reshape(p0, headed)
        pt = Transpose <perm = [1, 2, 0]> (ph)
        side = MatMul(qh0, pt)
        moved = If (condition) <
            then_branch = a () => (float[batch, 2, 5, 5] t) { t = GatherElements <axis = 3> (side, places) },
            else_branch = b () => (float[batch, 2, 5, 5] e) { e = Identity(side) }
        >
        all = Add(scores0, moved)
    """
    extra = model(
        body,
        inputs="float[batch, 2, 5, 4] qh0, float[batch, 2, 5, 5] scores0, int64[batch, 2, 5, 5] places",
        outputs="float[batch, 2, 5, 5] all",
        one=np.array(1),
        table=values(5, 8),
        wp=values(8, 8, seed=4),
        headed=np.array([5, 2, 4]),
    )
    softmax = next(i for i, node in enumerate(original.graph.node) if node.op_type == "Softmax")
    after = list(original.graph.node)[softmax:]
    del original.graph.node[softmax:]
    original.graph.node.extend(extra.graph.node)
    original.graph.node.extend(after)
    next(node for node in original.graph.node if node.op_type == "Softmax").input[0] = "all"
    original.graph.initializer.extend(extra.graph.initializer)
    original.graph.input.extend(value for value in extra.graph.input if value.name == "places")
    sites = {site.node: site for site in find_sites(original)}
    side = sites[
        "side"
    ]  # the projection of a constant table is a constant: the table of what each head multiplies with
    assert "p0" not in sites
    assert (side.component, side.layer, side.is_stored, side.stack) == ("position_scores", 0, True, 2)
    assert (side.heads, side.head_axis, side.sample_axis) == (2, "matrix", 0)
    assert sites["scores0"].component == "attention_scores"
    assert sites["up0"].component == "ffn_up"


def test_products_inside_branches_are_left_and_reported():
    original = model(
        """h = MatMul(x, w) flag = Equal(one, one)
        y = If (flag) <
            then_branch = a () => (float[batch, 4] t) { t = MatMul(h, w) },
            else_branch = b () => (float[batch, 4] e) { e = Identity(h) }
        >""",
        w=values(4, 4),
        one=np.array(1),
    )
    reasons = skipped(original)
    assert len(reasons) == 1
    assert "inside If" in next(iter(reasons.values()))
    assert "decoder_model.onnx and decoder_with_past_model.onnx" in next(iter(reasons.values()))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c = MatMul(x, w) h = Cos(c) y = MatMul(x, w)", "rotary"),
        ("i = Cast <to = 7> (x) k = Cast <to = 7> (w) h = MatMul(i, k) y = MatMul(x, w)", "integers"),
        (
            "s = Shape(x) f = Cast <to = 1> (s) u = Unsqueeze(f, zero) v = Unsqueeze(f, one) h = MatMul(v, u) "
            "y = MatMul(x, w)",
            "shapes alone",
        ),
        ("h = Einsum <equation = 'ii,ij->j'> (x, x) y = MatMul(x, w)", "more than the product of two operands"),
        ("h = Einsum <equation = 'ij,kl->ijkl'> (x, w) y = MatMul(x, w)", "no letter to sum over"),
    ],
)
def test_products_that_are_no_sites_are_reported_with_the_reason(body, reason):
    original = model(
        body.replace("'", '"'), inputs="float[4, 4] x", w=values(4, 4), zero=np.array([0]), one=np.array([1])
    )
    assert [site.node for site in find_sites(original)] == ["y"]
    reasons = skipped(original)
    assert len(reasons) == 1
    assert reason in next(iter(reasons.values()))


def test_a_weight_of_its_own_for_every_sample_is_left_and_reported():
    original = model(
        "h = MatMul(x, w) y = MatMul(h, v)",
        inputs="float[batch, 5, 4] x",
        outputs="float[batch, 5, 3] y",
        w=values(6, 4, 4),
        v=values(4, 3),
    )
    assert skipped(original) == {
        "h": "its weight is a stack of matrices along the batch: every sample has a weight of its own"
    }


def test_operators_of_unknown_domains_are_reported():
    original = model("h = my.Thing(x) y = MatMul(x, w)", imports=', "my": 1', w=values(4, 3))
    assert "it may hold products" in skipped(original)["h"]


def test_functions_of_the_model_are_looked_into():
    original = model(
        "h = my.Linear(x, w) y = MatMul(h, w)",
        imports=', "my": 1',
        functions='<domain: "my", opset_import: ["" : 17]> Linear (a, b) => (c) { c = MatMul(a, b) }',
        w=values(4, 4),
    )
    assert len(find_sites(original)) == 2
    assert_same_results(original, {"x": values(2, 4)})


def test_a_branch_that_no_input_reaches_is_no_ffn():
    """A table computed from constants (position bias by a small MLP) beside the first FFN."""
    original = transformer()
    extra = model(
        "t1 = MatMul(grid, wa) t2 = Relu(t1) t3 = MatMul(t2, wb) bias = Transpose <perm = [1, 0]> (t3)",
        outputs="float[12, 5] bias",
        grid=values(5, 12),
        wa=values(12, 6),
        wb=values(6, 12),
    )
    down = next(i for i, node in enumerate(original.graph.node) if node.name == "down0")
    after = list(original.graph.node)[down:]
    del original.graph.node[down:]
    original.graph.node.extend(extra.graph.node)
    original.graph.node.extend(after)
    original.graph.initializer.extend(extra.graph.initializer)
    found = components(original)
    assert found["up0"] == (0, "ffn_up")
    assert found["down0"] == (0, "ffn_down")
    assert not {"t1", "t3"} & set(found)  # what no activation passes is computed when the model is written


def test_the_gate_is_the_product_that_the_activation_follows():
    for gate in ("one", "two"):
        up = "two" if gate == "one" else "one"
        original = transformer()
        nodes = list(original.graph.node)
        place = next(i for i, node in enumerate(nodes) if node.name == "up0")
        extra = model(
            f"""one = MatMul(middle0, wg) two = MatMul(middle0, wu)
            gated = Sigmoid({gate}) active0 = Mul(gated, {up})""",
            outputs="float[batch, 5, 12] active0",
            wg=values(8, 12),
            wu=values(8, 12, seed=1),
        )
        del original.graph.node[place:]
        original.graph.node.extend([*extra.graph.node, *nodes[place + 2 :]])
        original.graph.initializer.extend(extra.graph.initializer)
        found = {site.component: site.node for site in find_sites(original)}
        assert found["ffn_gate"] == gate
        assert found["ffn_up"] == up
        assert "ffn_down" in found


def test_packed_projections_that_mix_head_widths_have_no_heads_and_the_manifest_says_so():
    """Heads whose columns are shuffled cannot be told apart: they are left without heads, not guessed."""
    original = transformer()
    shuffled = np.random.default_rng(0).permutation(8)
    extra = model("qp = Gather <axis = 2> (q0, order)", outputs="float[batch, 5, 8] qp", order=shuffled)
    place = next(i for i, node in enumerate(original.graph.node) if node.name == "qs0")
    nodes = list(original.graph.node)
    nodes[place].input[0] = "qp"
    del original.graph.node[:]
    original.graph.node.extend([*nodes[:place], *extra.graph.node, *nodes[place:]])
    original.graph.initializer.extend(extra.graph.initializer)
    sites = {site.node: site for site in rewrite(original, only="*").manifest.sites}
    assert (sites["q0"].heads, sites["q0"].head_axis) == (0, "none")
    assert "could not be told" in sites["q0"].note
    assert (sites["k0"].heads, sites["k0"].head_axis) == (2, "output")
    assert sites["k0"].note == ""


def test_a_fixed_batch_has_its_samples_first():
    assert {site.sample_axis for site in find_sites(transformer(batch="4"))} == {0}
    macs = {site.node: site.macs for site in find_sites(transformer(batch="4"))}
    assert macs["q0"] == 5 * 8 * 8


def test_products_in_double_precision_are_refused():
    original = model(
        "w = Cast <to = 11> (v) y = MatMul(x, w)",
        inputs="double[batch, 4] x",
        outputs="double[batch, 3] y",
        v=values(4, 3),
    )
    with pytest.raises(InputError, match=r"node 'y' \(MatMul\) works in float64, which is not supported yet"):
        rewrite(original, only="*")


def test_weights_that_are_stored_in_half_precision_are_fine():
    original = model("w = Cast <to = 1> (v) y = MatMul(x, w)", v=values(4, 3).astype(np.float16))
    rewritten = assert_same_results(original, {"x": values(2, 4)})
    assert initializer(rewritten, crossbars(rewritten)["y"].input[1]).dtype == np.float32


def test_a_dequantized_table_beside_float_products_is_fine():
    original = model(
        "d = DequantizeLinear(w, scale) e = Gather(d, x) y = MatMul(e, v)",
        inputs="int64[batch, tokens] x",
        outputs="float[batch, tokens, n] y",
        w=np.ones((6, 4), np.int8),
        scale=np.array(0.1, np.float32),
        v=values(4, 3),
    )
    assert_same_results(original, {"x": np.array([[0, 5, 2]])})


def test_a_model_without_products_is_refused():
    with pytest.raises(InputError, match="has no matrix product to map to crossbars"):
        rewrite(model("y = Relu(x)"), only="*")


def test_unsorted_graphs_are_sorted():
    original = transformer(2)
    nodes = list(original.graph.node)
    expected = components(original)
    del original.graph.node[:]
    original.graph.node.extend(reversed(nodes))
    assert components(original) == expected
