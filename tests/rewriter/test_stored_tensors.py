"""Stored tensors that feed no product: found by what they do, and disturbed when asked for."""

import numpy as np
import pytest

from emu.contract.site import Skipped
from emu.errors import InputError
from emu.rewriter import find_stored_tensors, rewrite
from emu.runtime import session

from .exported import ASSETS, exported_graphs, feeds, is_float, path_of
from .parameters import from_parameter
from .small import attributes, crossbars, initializer, model, transformer, values

IMAGE = "float[batch, 6, 4] x"


def components(original):
    return {each.node: each.component for each in find_stored_tensors(original)}


def test_they_are_no_sites_unless_asked_for():
    original = model("h = MatMul(x, w) y = Add(h, b)", w=values(4, 3), b=values(3))
    assert [site.node for site in rewrite(original, only="*").manifest.sites] == ["h"]
    sites = rewrite(original, stored="component=bias", only="*").manifest.sites
    assert [(site.node, site.op, site.component) for site in sites] == [
        ("h", "CrossbarMatMul", "other"),
        ("b", "FaultyWeight", "bias"),
    ]


def test_products_keep_their_indices_so_that_their_noise_stays_the_same():
    original = transformer(2)
    plain = rewrite(original, only="*").manifest.sites
    original.graph.node[0].input[0] = "moved"
    original.graph.node.insert(0, original.graph.node[0].__class__(op_type="Add", input=["x", "p"], output=["moved"]))
    original.graph.initializer.append(model("", p=values(1, 5, 8)).graph.initializer[0])
    sites = rewrite(original, stored="component=*", only="*").manifest.sites
    assert [(site.index, site.node) for site in sites[: len(plain)]] == [(site.index, site.node) for site in plain]
    assert [site.node for site in sites[len(plain) :]] == ["p"]


def test_tokens_and_positions_of_a_vision_transformer():
    original = model(
        """
        batch = Shape <end = 1> (x)  size = Concat <axis = 0> (batch, rest)  class = Expand(first, size)
        distilled = Expand(second, size)  registers = Expand(third, size)  patches = MatMul(x, w)
        tokens = Concat <axis = 1> (class, distilled, registers, patches)  h = Add(tokens, places)  y = MatMul(h, v)
        """,
        inputs=IMAGE,
        outputs="float[batch, 12, 3] y",
        w=values(4, 8),
        v=values(8, 3),
        first=values(1, 1, 8, seed=1),
        second=values(1, 1, 8, seed=2),
        third=values(1, 1, 8, seed=3),
        places=values(1, 9, 8, seed=4),
        rest=np.array([1, 8]),
    )
    assert components(original) == {
        "first": "class_token",
        "second": "distillation_token",
        "third": "other_stored",
        "places": "position_embedding",
    }


def test_a_class_token_that_already_carries_its_position_is_still_one():
    """As in ViT-MAE: positions are added to patches and class token apart, before they meet."""
    original = model(
        """
        placed = Add(x, patch_places)  token = Add(first, token_place)  tokens = Concat <axis = 1> (token, placed)
        y = MatMul(tokens, w)
        """,
        inputs="float[1, 6, 4] x",
        outputs="float[1, 7, 3] y",
        w=values(4, 3),
        first=values(1, 1, 4),
        token_place=values(1, 1, 4, seed=1),
        patch_places=values(1, 6, 4, seed=2),
    )
    assert components(original)["patch_places"] == "position_embedding"
    assert components(original)["first"] == "class_token"


EMBEDDINGS = """
    word = Gather(words, ids)  kind = Gather(kinds, types)  place = Gather(places, numbers)
    a = Add(word, kind)  b = Add(a, place)  n = LayerNormalization(b, scale, shift)  y = MatMul(n, w)
"""


@pytest.mark.parametrize("types", ["input", "constant"])
def test_tables_are_told_apart_by_what_picks_their_rows(types):
    given = {"types": np.zeros((1, 5), np.int64)} if types == "constant" else {}
    original = model(
        EMBEDDINGS,
        inputs="int64[batch, 5] ids" + (", int64[batch, 5] types" if types == "input" else ""),
        outputs="float[batch, 5, 3] y",
        words=values(50, 8),
        kinds=values(2, 8, seed=1),
        places=values(9, 8, seed=2),
        numbers=np.arange(5).reshape(1, 5),
        scale=values(8, seed=3),
        shift=values(8, seed=4),
        w=values(8, 3),
        **given,
    )
    assert components(original) == {
        "words": "word_embedding",
        "kinds": "token_type_embedding",
        "places": "position_embedding",
        "scale": "norm",
        "shift": "norm",
    }


def test_positions_counted_from_the_ids_are_positions():
    """As in RoBERTa, where padding does not count."""
    original = model(
        """
        word = Gather(words, ids)  equal = Equal(ids, padding)  real = Not(equal)  ones = Cast <to = 7> (real)
        count = CumSum(ones, axis)  place = Gather(places, count)  h = Add(word, place)  y = MatMul(h, w)
        """,
        inputs="int64[batch, 5] ids",
        outputs="float[batch, 5, 3] y",
        words=values(50, 8),
        places=values(60, 8, seed=2),
        padding=np.array(1),
        axis=np.array(1),
        w=values(8, 3),
    )
    assert components(original) == {"words": "word_embedding", "places": "position_embedding"}


@pytest.mark.parametrize(
    "normalization",
    [
        """m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean <axes = [-1]> (q)
           e = Add(v, epsilon)  r = Sqrt(e)  n = Div(d, r)""",
        """q = Mul(x, x)  v = ReduceMean <axes = [-1]> (q)  e = Add(v, epsilon)  r = Sqrt(e)  i = Reciprocal(r)
           n = Mul(x, i)""",
        """q = Mul(x, x)  v = ReduceMean <axes = [-1]> (q)  e = Add(v, epsilon)  r = Sqrt(e)  i = Div(one, r)
           n = Mul(x, i)""",
    ],
    ids=["layer", "root-mean-square", "root-mean-square-by-division"],
)
def test_normalizations_that_are_spelled_out(normalization):
    original = model(
        f"{normalization} s = Mul(n, scale) t = Add(s, shift) h = MatMul(t, w) y = Mul(h, gain)",
        epsilon=np.float32(1e-5),
        one=np.float32(1),
        scale=values(4),
        shift=values(4, seed=1),
        w=values(4, 3),
        gain=values(3, seed=2),
    )
    assert components(original) == {"scale": "norm", "shift": "norm", "gain": "other_stored"}


@pytest.mark.parametrize(
    "product", ["h = MatMul(x, w) y = Add(b, h)", "y = Gemm(x, w, b)", "y = Gemm <beta = 2.0> (x, w, b)"]
)
def test_biases_in_every_form_are_disturbed(product):
    original = model(product, w=values(4, 3), b=values(3, seed=1))
    rewritten = rewrite(original, device="rram", exclude="node=*", stored="component=bias")
    assert [site.node for site in rewritten.manifest.sites] == ["b"]
    inputs = {"x": values(2, 4, seed=2)}
    (clean,) = session(original).run(None, inputs)
    (noisy,) = session(rewritten).run(None, inputs)
    error = noisy - clean
    assert np.abs(error).min() > 0
    np.testing.assert_allclose(error[0], error[1], atol=1e-6)  # a bias: the same error for every sample


def test_norms_belong_to_the_layer_that_they_begin_or_end():
    weights = {f"{n}{i}": values(8, seed=i) for n in ("sa", "sb", "sc", "sd") for i in range(2)}
    weights |= {f"w{n}{i}": values(8, 8, seed=i + 3) for n in "qkvoud" for i in range(2)}
    weights |= {"first": values(8), "last": values(8), "wc": values(8, 3)}
    block = """
        q# = MatMul(@, wq#) k# = MatMul(@, wk#) v# = MatMul(@, wv#) t# = Transpose <perm = [0, 2, 1]> (k#)
        e# = MatMul(q#, t#) p# = Softmax (e#) c# = MatMul(p#, v#) o# = MatMul(c#, wo#)
    """
    ends = "n0 = LN(x, first)" + "".join(
        (
            block.replace("@", f"n{i}")
            + f"r{i} = Add(n{i}, o{i}) m{i} = LN(r{i}, sa{i}) u{i} = MatMul(m{i}, wu{i})"
            + f"g{i} = Relu(u{i}) d{i} = MatMul(g{i}, wd{i}) f{i} = Add(m{i}, d{i}) n{i + 1} = LN(f{i}, sb{i})"
        ).replace("#", str(i))
        for i in range(2)
    )
    begins = "h0 = Add(x, x)" + "".join(
        (
            f"n{i} = LN(h{i}, sa{i})"
            + block.replace("@", f"n{i}")
            + f"r{i} = Add(h{i}, o{i}) m{i} = LN(r{i}, sb{i}) u{i} = MatMul(m{i}, wu{i})"
            + f"g{i} = Relu(u{i}) d{i} = MatMul(g{i}, wd{i}) h{i + 1} = Add(r{i}, d{i})"
        ).replace("#", str(i))
        for i in range(2)
    )
    shape = {"inputs": "float[batch, 5, 8] x", "outputs": "float[batch, 5, 3] y"}
    after = model(ends.replace("LN(", "LayerNormalization(") + "y = MatMul(n2, wc)", **shape, **weights)
    begins += "n2 = LN(h2, last) y = MatMul(n2, wc)"
    before = model(begins.replace("LN(", "LayerNormalization("), **shape, **weights)
    layers = {"sa0": 0, "sb0": 0, "sa1": 1, "sb1": 1}
    assert {each.node: each.layer for each in find_stored_tensors(after)} == {"first": None, **layers}
    assert {each.node: each.layer for each in find_stored_tensors(before)} == {**layers, "last": None}


def test_masks_and_shapes_and_numbers_are_no_stored_tensors():
    original = transformer()
    scores = next(node for node in original.graph.node if node.name == "scores0")
    softmax = next(node for node in original.graph.node if node.op_type == "Softmax")
    place = list(original.graph.node).index(softmax)
    mask = np.triu(np.full((5, 5), -1e9, np.float32), 1)
    extra = model("masked = Add(s, mask) scaled = Mul(masked, half)", mask=mask, half=np.float32(0.5))
    for offset, node in enumerate(extra.graph.node):
        original.graph.node.insert(place + offset, node)
    original.graph.node[place].input[0] = scores.output[0]
    next(node for node in original.graph.node if node.op_type == "Softmax").input[0] = "scaled"
    original.graph.initializer.extend(extra.graph.initializer)
    assert components(original) == {}
    bias = next(tensor for tensor in original.graph.initializer if tensor.name == "mask")
    bias.CopyFrom(model("", mask=values(5, 5)).graph.initializer[0])
    (found,) = find_stored_tensors(original)
    assert (found.node, found.component, found.layer) == ("mask", "position_embedding", 0)


def test_every_node_carries_the_attributes_of_the_contract():
    original = model("h = MatMul(x, w) y = Add(h, b)", w=values(4, 3), b=values(3))
    nodes = crossbars(rewrite(original, device="rram_adc", stored="b").model)
    of_products = {"window", "range_tiles", "range_slices", "range_polarities"}
    assert set(attributes(nodes["b"])) == set(attributes(nodes["h"])) - of_products
    found = attributes(nodes["b"])
    assert (found["site"], found["array"], found["sites"]) == (1, 1, 2)
    assert (found["heads"], found["head_axis"], found["sample_axis"]) == (0, "none", -1)
    controls = ["emu.device", "emu.strength", "emu.faults", "emu.seed", "emu.read_seed", "emu.head"]
    assert list(nodes["b"].input) == ["b", *controls]


@pytest.mark.parametrize("ops", ["native", "python"])
def test_strength_seed_and_head_act_on_them_as_on_products(ops):
    original = model(
        "word = Gather(words, ids) y = MatMul(word, w)",
        inputs="int64[batch, 5] ids",
        outputs="float[batch, 5, 8] y",
        words=values(50, 8),
        w=np.eye(8, dtype=np.float32),
    )
    rewritten = rewrite(original, device="rram", exclude="y", stored="component=word_embedding")
    runner = session(rewritten, ops=ops)
    ids = {"ids": np.array([[3, 1, 4, 1, 5]])}

    def run(**controls):
        given = {f"emu.{name}": np.array(value) for name, value in controls.items()}
        return runner.run(None, {**ids, **given})[0]

    clean = values(50, 8)[ids["ids"]]
    assert not np.allclose(run(), clean)
    np.testing.assert_array_equal(run()[0, 1], run()[0, 3])  # the same row of the same table
    np.testing.assert_array_equal(run(), run(seed=0))
    assert not np.allclose(run(seed=1), run())
    np.testing.assert_array_equal(run(head=0), clean)
    np.testing.assert_array_equal(run(strength=np.zeros(1, np.float32)), clean)


def test_a_constant_of_a_product_stays_clean_where_it_is_the_weight():
    """A word table that is also the weight of the language model's head: only the lookup is disturbed here."""
    original = model(
        "word = Gather(words, ids) y = Gemm <transB = 1> (word, words)",
        inputs="int64[batch] ids",
        outputs="float[batch, 50] y",
        words=values(50, 8),
    )
    rewritten = rewrite(original, exclude="y", stored="component=word_embedding")
    gemm = next(node for node in rewritten.model.graph.node if node.op_type == "Gemm")
    assert gemm.input[1] == "words"
    assert next(node for node in rewritten.model.graph.node if node.name == "word").input[0] == "words.disturbed"


def test_tied_weights_in_two_layouts_are_said_to_be_two_arrays():
    original = model(
        "word = Gather(words, ids) y = Gemm <transB = 1> (word, words)",
        inputs="int64[batch] ids",
        outputs="float[batch, 50] y",
        words=values(50, 8),
    )
    head, table = rewrite(original, stored="component=word_embedding", only="*").manifest.sites
    assert (head.array, table.array) == (0, 1)
    assert table.tied_to == (0,)
    assert head.tied_to == ()


def test_a_table_that_lies_as_the_weight_does_shares_its_array():
    original = model(
        "word = Gather(words, ids) y = MatMul(word, words)",
        inputs="int64[batch] ids",
        outputs="float[batch, 8] y",
        words=values(8, 8),
    )
    rewritten = rewrite(original, stored="component=word_embedding", only="*")
    assert [site.array for site in rewritten.manifest.sites] == [0, 0]
    names = [node.input[0 if name == "words" else 1] for name, node in crossbars(rewritten.model).items()]
    assert names == ["words", "words"]


def test_equal_tables_are_stored_once():
    original = model(
        "a = Gather(words, ids) b = Gather(copy, ids) s = Add(a, b) y = MatMul(s, w)",
        inputs="int64[batch] ids",
        outputs="float[batch, 3] y",
        words=values(50, 8),
        copy=values(50, 8),
        w=values(8, 3),
    )
    rewritten = rewrite(original, stored="component=word_embedding", only="*")
    assert [site.array for site in rewritten.manifest.sites] == [0, 1, 1]
    assert {node.input[0] for node in crossbars(rewritten.model).values() if node.op_type == "FaultyWeight"} == {
        "words"
    }
    assert "copy" not in [tensor.name for tensor in rewritten.model.graph.initializer]


def test_a_selection_that_matches_nothing_says_what_exists():
    original = model("h = MatMul(x, w) y = Add(h, b)", w=values(4, 3), b=values(3))
    with pytest.raises(
        InputError,
        match="stored 'component=norm' matches no site: .* components bias, the shapes 1x3, and nodes such as b",
    ):
        rewrite(original, stored="component=norm", only="*")
    with pytest.raises(InputError, match="has no stored tensor besides the weights of its products"):
        rewrite(model("y = MatMul(x, w)", w=values(4, 3)), stored="component=norm", only="*")


def test_tensors_that_hold_infinity_stay_digital_and_are_reported():
    places = values(1, 5, 4)
    places[0, 0, 0] = np.inf
    original = model(
        "p = Add(x, places) q = Add(p, more) y = MatMul(q, w)",
        inputs="float[batch, 5, 4] x",
        outputs="float[batch, 5, 3] y",
        places=places,
        more=values(1, 5, 4),
        w=values(4, 3),
    )
    rewritten = rewrite(original, stored="component=position_embedding", only="*")
    assert [site.node for site in rewritten.manifest.sites] == ["y", "more"]
    assert rewritten.manifest.skipped == (Skipped("places", "Add", "it holds infinite values or NaN", 0),)


def test_a_node_with_the_name_of_the_tensor_keeps_it():
    original = model("b = MatMul(x, w) y = Add(b, bias)", w=values(4, 3), bias=values(3))
    original.graph.node[0].name = "bias"
    sites = rewrite(original, stored="component=bias", only="*").manifest.sites
    assert [site.node for site in sites] == ["bias", "bias.stored"]


def test_their_parameters_count_and_their_macs_do_not():
    original = model("h = MatMul(x, w) y = Add(h, b)", w=values(4, 3), b=values(3))
    site = rewrite(original, stored="b", only="*").manifest.sites[1]
    assert (site.parameters, site.macs, site.macs_per_row, site.shape) == (3, 0, 0, (1, 3))


@pytest.mark.skipif(not ASSETS, reason="needs the exported graphs: set EMU_ASSETS to their folder")
@pytest.mark.parametrize(
    "graph",
    [graph for graph in exported_graphs() if is_float(graph) and graph["model"] != "swin"],
    ids=lambda graph: graph["file"].removesuffix(".onnx"),
)
def test_parameters_are_what_their_names_say(graph):
    found = {each.node: (each.layer, each.component) for each in find_stored_tensors(path_of(graph))}
    named = {name: truth for name in found if (truth := from_parameter(name)) is not None}
    assert {name: found[name] for name in named} == named
    assert len(named) > len(found) / 2


@pytest.mark.skipif(not ASSETS, reason="needs the exported graphs: set EMU_ASSETS to their folder")
@pytest.mark.parametrize(
    "file",
    [
        "deit_dist__sdpa__tf4-dyndef",
        "deberta_v2_cls__eager__tf4-ts17",
        "swin__sdpa__tf5-dyndef",
        "gpt2__sdpa__tf5-ts17",
    ],
)
def test_at_strength_zero_the_results_are_those_of_the_original(file):
    graph = next(graph for graph in exported_graphs() if graph["file"] == f"{file}.onnx")
    rewritten = rewrite(path_of(graph), device="rram", exclude="node=*", stored="node=*")
    inputs = feeds(rewritten.model, 2)
    runner = session(rewritten)
    sites = len(rewritten.manifest.sites)
    assert initializer(rewritten.model, "emu.strength").shape == (sites,)
    clean = session(path_of(graph)).run(None, inputs)
    undisturbed = runner.run(None, {**inputs, "emu.strength": np.zeros(sites, np.float32)})
    disturbed = runner.run(None, inputs)
    for expected, same, other in zip(clean, undisturbed, disturbed, strict=True):
        np.testing.assert_allclose(same, expected, atol=1e-5)
        assert np.abs(other - expected).max() > 1e-3
