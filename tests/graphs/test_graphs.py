"""Real architectures at their real widths: every product is found, labelled and replaced."""

import gzip
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest

from emu.contract.site import Site
from emu.rewriter import find_sites, find_stored_tensors, rewrite
from emu.runtime import session
from graphs.load import FOLDER, load, manifest, names, path_of

from ..rewriter.parameters import from_parameter

GRAPHS = manifest()["graphs"]


@cache
def sites(name: str) -> dict[str, Site]:
    return {site.node: site for site in find_sites(load(name))}


def truth(name):
    """What the manifest says of every node; a fused Attention is the two products of its expansion."""
    expected = {}
    for site in GRAPHS[name]["sites"]:
        if site["component"] == "attention":
            for component in ("attention_scores", "attention_context"):
                expected[f"{site['node']}/{component}"] = {**site, "component": component}
        else:
            expected[site["node"]] = site
    return expected


def graphs(listed):
    return pytest.mark.parametrize("name", listed)


@pytest.mark.parametrize("name", names())
def test_every_product_is_found(name):
    assert set(sites(name)) == set(truth(name))


@graphs(names())
def test_every_site_has_its_layer_and_component(name):
    found = {node: (site.layer, site.component) for node, site in sites(name).items()}
    assert found == {node: (site["layer"], site["component"]) for node, site in truth(name).items()}


@pytest.mark.parametrize("name", names())
def test_heads_are_those_of_the_configuration(name):
    found = {node: site.heads for node, site in sites(name).items()}
    assert found == {node: site.get("heads", 0) for node, site in truth(name).items()}


@pytest.mark.parametrize("name", names())
def test_every_graph_is_rewritten(name):
    """The rewritten model is valid: `rewrite` runs onnx's checker on it."""
    emulated = rewrite(load(name), device="rram_adc")
    assert len(emulated.manifest.sites) == len(truth(name))
    digital = {each.node for each in emulated.manifest.skipped}
    assert set(GRAPHS[name]["digital"]) <= digital


@pytest.mark.parametrize("name", [name for name in names() if name.split("-")[0] not in ("swin_tiny", "dpt_base")])
def test_stored_tensors_are_what_the_names_of_their_parameters_say(name):
    """Swin numbers its blocks within stages, and DPT has layers that are no blocks: names say less there."""
    found = {each.node: (each.layer, each.component) for each in find_stored_tensors(load(name))}
    named = {parameter: truth for parameter in found if (truth := from_parameter(parameter)) is not None}
    assert {parameter: found[parameter] for parameter in named} == named
    assert len(named) >= 0.75 * len(found)


def test_the_corpus_is_small_and_says_nothing_of_where_it_was_made():
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert {path.name for path in files if path.suffix == ".gz"} == {path_of(name).name for name in names()}
    for name in names():
        content = gzip.decompress(path_of(name).read_bytes())
        for trace in (b"/home/", b"/tmp/", b"site-packages", b"stack_trace", b'File "'):
            assert trace not in content, (name, trace)


@pytest.mark.parametrize("name", ["albert_base-torchscript", "albert_base-dynamo"])
@pytest.mark.parametrize("share", ["by-content", "by-name"])
def test_the_repeated_layer_of_albert_is_one_set_of_arrays(name, share):
    """TorchScript writes Identity nodes behind one weight, dynamo a Transpose at every use."""
    for weights in ("constant", "random") if share == "by-name" else ("random",):
        emulated = rewrite(load(name, weights), share=share, only="*")
        for component in ("query", "key", "value", "attention_output", "ffn_up", "ffn_down"):
            found = [site for site in emulated.manifest.sites if site.component == component]
            assert [site.layer for site in found] == [0, 1, 2, 3]
            assert {site.array for site in found} == {found[0].index}


def test_tied_weights_stay_tied_when_they_are_rebuilt():
    tensors = {name: value.const_value for name, value in load("gpt2-optimum", "random").graph.initializers.items()}
    table = next(each.numpy() for name, each in tensors.items() if name.endswith("wte.weight"))
    (head,) = (each.numpy() for each in tensors.values() if tuple(each.shape) == table.shape[::-1])
    np.testing.assert_array_equal(head, table.T)


def test_constant_weights_take_no_memory():
    model = load("bert_base-torchscript")
    table = model.graph.initializers["bert.embeddings.word_embeddings.weight"].const_value
    assert tuple(table.shape) == (30522, 768)
    assert table.numpy().strides == (0, 0)


@pytest.mark.parametrize("name", ["vit_small-torchscript", "deit_small_distilled-dynamo", "dinov2_small-dynamo"])
def test_a_rewritten_vision_transformer_runs_like_the_original(name):
    model = load(name, "random")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    inputs = {"pixel_values": pixels}
    clean = session(ir.to_proto(model)).run(None, inputs)[0]
    emulated = session(rewrite(model, device="ideal")).run(None, inputs)[0]
    np.testing.assert_allclose(emulated, clean, atol=1e-3 * np.abs(clean).max())
