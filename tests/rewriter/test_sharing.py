"""Sites that hold the same weight share one physical array, and so the same chip's disturbances."""

import numpy as np
import onnx
import pytest

from emu.errors import InputError
from emu.rewriter import rewrite
from emu.runtime import session

from .exported import ASSETS, exported_graphs, path_of
from .small import attributes, crossbars, initializer, model, values

SAME_LAYER_TWICE = "h = MatMul(x, w) a = Relu(h) y = MatMul(a, w)"


def arrays(rewritten):
    return [site.array for site in rewritten.manifest.sites]


def weight_names(rewritten):
    return {node.input[0 if node.op_type == "FaultyWeight" else 1] for node in crossbars(rewritten.model).values()}


@pytest.mark.parametrize(
    ("share", "expected"), [("by-content", [0, 0]), ("by-name", [0, 0]), ("never", [0, 1])], ids=str
)
def test_the_same_initializer_is_one_array_unless_asked_otherwise(share, expected):
    rewritten = rewrite(model(SAME_LAYER_TWICE, w=values(4, 4)), share=share, only="*")
    assert arrays(rewritten) == expected
    nodes = crossbars(rewritten.model)
    assert [attributes(nodes[name])["array"] for name in ("h", "y")] == expected
    assert len(weight_names(rewritten)) == 1


@pytest.mark.parametrize(
    ("share", "expected"), [("by-content", [0, 0]), ("by-name", [0, 1]), ("never", [0, 1])], ids=str
)
def test_equal_copies_are_one_array_only_by_content(share, expected):
    copies = model("h = MatMul(x, w) y = MatMul(h, v)", w=values(4, 4), v=values(4, 4))
    rewritten = rewrite(copies, share=share, only="*")
    assert arrays(rewritten) == expected
    kept = {"w", "v"} & {tensor.name for tensor in rewritten.model.graph.initializer}
    assert kept == ({"w"} if share == "by-content" else {"w", "v"})


def test_an_identity_does_not_hide_a_shared_initializer():
    through = model("h = MatMul(x, w) v = Identity(w) y = MatMul(h, v)", w=values(4, 4))
    assert arrays(rewrite(through, share="by-name", only="*")) == [0, 0]


def test_a_transpose_for_every_use_does_not_hide_a_shared_initializer():
    """As dynamo writes large weights, with a Transpose node at each product."""
    body = """
        a = Transpose <perm = [1, 0]> (w) b = Transpose <perm = [1, 0]> (w)  c = Identity(b)
        h = MatMul(x, a) i = MatMul(h, c) y = MatMul(i, w)
    """
    rewritten = rewrite(model(body, w=values(4, 4)), share="by-name", only="*")
    assert arrays(rewritten) == [0, 0, 2]
    assert len(weight_names(rewritten)) == 2


def test_transposes_of_different_axes_are_different_weights():
    body = """
        a = Transpose <perm = [0, 2, 1]> (w) b = Transpose <perm = [2, 1, 0]> (w)
        c = Reshape(a, square) d = Reshape(b, square) h = MatMul(x, c) y = MatMul(h, d)
    """
    rewritten = rewrite(model(body, w=values(4, 2, 2), square=np.array([4, 4])), share="by-name", only="*")
    assert arrays(rewritten) == [0, 1]


def test_shared_sites_hold_the_same_disturbed_weights_and_others_do_not():
    copies = model(
        "a = MatMul(x, w) b = MatMul(x, v) c = MatMul(x, u) y = Concat <axis = 1> (a, b, c)",
        w=values(4, 4),
        v=values(4, 4),
        u=values(4, 4, seed=1),
    )
    inputs = {"x": np.eye(4, dtype=np.float32)}
    for share, same in (("by-content", True), ("never", False)):
        rewritten = rewrite(copies, device="rram", share=share, only="*")
        (result,) = session(rewritten, ops="python").run(None, inputs)
        assert np.array_equal(result[:, :4], result[:, 4:8]) == same
        assert not np.array_equal(result[:, :4], values(4, 4))
        # The third weight is another array with its own draws: the ratios to the plain weights differ.
        assert not np.allclose(result[:, :4] / values(4, 4), result[:, 8:] / values(4, 4, seed=1))


def test_a_transpose_that_lies_alike_in_the_array_is_shared():
    both = model("h = MatMul(x, w) y = Gemm <transB = 1> (h, v)", w=values(4, 4), v=values(4, 4).T.copy())
    rewritten = rewrite(both, only="*")
    assert arrays(rewritten) == [0, 0]
    np.testing.assert_array_equal(initializer(rewritten.model, *weight_names(rewritten)), values(4, 4))


def test_the_same_initializer_in_two_layouts_is_two_arrays():
    both = model("h = MatMul(x, w) y = Gemm <transB = 1> (h, w)", w=values(4, 4))
    assert arrays(rewrite(both, only="*")) == arrays(rewrite(both, share="by-name", only="*")) == [0, 1]


def test_a_scaled_copy_is_another_array():
    both = model("h = MatMul(x, w) y = Gemm <alpha = 0.5> (h, w)", w=values(4, 4))
    assert arrays(rewrite(both, only="*")) == [0, 1]


def test_a_difference_in_one_value_is_another_array():
    large = values(500, 500)
    other = large.copy()
    other[123, 456] += 1
    both = model("h = MatMul(x, w) y = MatMul(h, v)", inputs="float[batch, 500] x", w=large, v=other)
    assert arrays(rewrite(both, only="*")) == [0, 1]


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_untrained_zeros_and_ones_say_nothing_about_sharing(fill):
    same = np.full((4, 4), fill, np.float32)
    assert arrays(rewrite(model("h = MatMul(x, w) y = MatMul(h, v)", w=same, v=same.copy()), only="*")) == [0, 1]


def test_products_of_activations_never_share():
    original = model(
        "t = Transpose(x) h = MatMul(t, x) y = MatMul(x, h)", inputs="float[4, 4] x", outputs="float[4,4] y"
    )
    assert arrays(rewrite(original, only="*")) == [0, 1]


def test_the_manifest_names_those_that_share_and_only_those():
    body = "h = MatMul(x, w) i = MatMul(h, u) y = MatMul(i, w)"
    rewritten = rewrite(model(body, w=values(4, 4), u=values(4, 4, seed=1)), only="*")
    assert arrays(rewritten) == [0, 1, 0]
    assert [site.shares_with for site in rewritten.manifest.sites] == [(2,), (), (0,)]


def test_the_array_is_the_lowest_selected_site():
    body = "h = MatMul(x, w) i = MatMul(h, u) j = MatMul(i, w) y = MatMul(j, w)"
    rewritten = rewrite(model(body, w=values(4, 4), u=values(4, 4, seed=1)), exclude="h")
    assert arrays(rewritten) == [0, 1, 1]


def test_an_unknown_way_to_share_is_refused():
    with pytest.raises(InputError, match="share is 'always': expected by-content, by-name, never"):
        rewrite(model("y = MatMul(x, w)", w=values(4, 3)), share="always", only="*")


@pytest.mark.skipif(not ASSETS, reason="needs the exported graphs: set EMU_ASSETS to their folder")
@pytest.mark.parametrize("file", ["albert_cls__sdpa__tf4-ts17.onnx", "albert_cls__sdpa__tf4-dyndef.onnx"])
def test_repeated_layers_of_albert_are_one_set_of_arrays(file):
    """TorchScript keeps one initializer behind Identity nodes, dynamo writes three equal copies."""
    path = path_of(next(graph for graph in exported_graphs() if graph["file"] == file))
    rewritten = rewrite(path, only="*")
    for component in ("query", "key", "value", "attention_output", "ffn_up", "ffn_down"):
        sites = [site for site in rewritten.manifest.sites if site.component == component]
        assert [site.layer for site in sites] == [0, 1, 2]
        assert {site.array for site in sites} == {sites[0].index}
    stored = [node.input[1] for node in crossbars(rewritten.model).values() if node.op_type == "CrossbarMatMul"]
    assert len(stored) == 21 and len(set(stored)) == 9
    plain_bytes = sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)
    if "dyndef" in file:
        assert sum(len(tensor.raw_data) for tensor in rewritten.model.graph.initializer) < 0.6 * plain_bytes
