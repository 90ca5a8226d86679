"""Every exported graph: all sites found and labelled, same results, and clear words for what is not supported."""

import numpy as np
import onnx
import pytest

from emu.contract.site import Site
from emu.errors import InputError
from emu.rewriter import rewrite
from emu.runtime import session

from .exported import (
    ASSETS,
    INVALID,
    ONE_SAMPLE_ONLY,
    exported_graphs,
    feeds,
    float_graphs,
    half_graphs,
    heads_of,
    opened,
    original_session,
    path_of,
    quantized_graphs,
    rewritten_ideal,
    run,
    sites_of,
    supported_graphs,
    truth,
    with_plain_products,
)

pytestmark = pytest.mark.skipif(not ASSETS, reason="needs the exported graphs: set EMU_ASSETS to their folder")


def by_file(graphs):
    return pytest.mark.parametrize("graph", graphs, ids=lambda graph: graph["file"].removesuffix(".onnx"))


def named(*names):
    return by_file([graph for graph in exported_graphs() if graph["file"].removesuffix(".onnx") in names])


def test_the_corpus_is_complete():
    assert len(supported_graphs()) + 1 == len(exported_graphs()) == 85
    assert len(quantized_graphs()) == 15 and len(half_graphs()) == 2


@by_file(supported_graphs())
def test_every_product_is_found_and_labelled(graph):
    found = {site.node: (site.layer, site.component) for site in sites_of(path_of(graph))}
    expected = truth(graph)
    assert set(found) == set(expected)
    wrong = {
        node: (found[node], expected[node])
        for node in found
        if found[node][0] != expected[node][0] or found[node][1] not in expected[node][1]
    }
    assert not wrong


@by_file(supported_graphs())
def test_heads_are_those_of_the_configuration(graph):
    for site in sites_of(path_of(graph)):
        queries, keys = heads_of(graph, site.layer)
        interleaved = graph["model"] == "deberta_v1_cls"
        # transformers 5 projects the positions of two layers, queries and keys, in one product.
        positions = 4 if graph["file"] == "deberta_v2_cls__sdpa__tf5-hfexpcpu.onnx" else 1
        packed = (queries, "output", 1 if interleaved else 3, 1)
        expected = {
            "query": (queries, "output", 1, 1),
            "key": (keys, "output", 1, queries // keys),
            "value": (keys, "output", 1, queries // keys),
            # Queries and fewer key heads side by side make no equal blocks.
            "query_key_value": packed if queries == keys else (0, "none", 1, 1),
            "position_projection": (queries, "output", positions, 1),
            "attention_scores": (queries, "matrix", 1, 1),
            "attention_context": (queries, "matrix", 1, 1),
            "position_scores": (queries, "matrix", 1, 1),
            "attention_output": (queries, "input", 1, 1),
        }.get(site.component, (0, "none", 1, 1))
        assert (site.heads, site.head_axis, site.head_groups, site.head_share) == expected, site


@by_file(float_graphs())
def test_without_disturbance_results_are_those_of_the_original(graph):
    original = onnx.load(path_of(graph))
    rewritten = rewritten_ideal(path_of(graph))
    plain = opened(with_plain_products(rewritten.model))
    for batch in (1, 3):
        inputs = feeds(original, batch)
        if batch > 1 and graph["file"] in ONE_SAMPLE_ONLY:
            continue
        results = original_session(path_of(graph)).run(None, inputs), plain.run(None, inputs)
        for expected, result in zip(*results, strict=True):
            np.testing.assert_allclose(result, expected, atol=1e-5)


@by_file(supported_graphs())
def test_nothing_stays_digital_without_a_reason(graph):
    rewritten = rewritten_ideal(path_of(graph))
    skipped = {each.node for each in rewritten.manifest.skipped}
    products = [node for node in rewritten.model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert {node.name for node in products} == skipped
    assert all(each.reason for each in rewritten.manifest.skipped)


SAMPLE_LAYOUTS = named(
    "torch_mha__sdpa__tf4-ts17",
    "swin__eager__tf4-dyndef",
    "gpt2__sdpa__tf4-dyndef",
    "llama__sdpa__tf4-dyndef",
    "bert_cls__sdpa__tf4-dyn23",
    "deberta_v1_cls__eager__tf4-ts17",
    "deberta_v2_cls__eager__tf4-ts17",
    "timm_vit__sdpa__tf4-ts17",
    "vit__def__tf4-optimum-model",
)


@SAMPLE_LAYOUTS
def test_rows_belong_to_the_sample_that_sample_axis_says(graph):
    """What a batch feeds to a site for sample i is what a batch of sample i alone feeds to it."""
    rewritten = rewritten_ideal(path_of(graph))
    model = with_plain_products(rewritten.model)
    sites = {node.name: (node.input[0], node) for node in rewritten.model.graph.node if node.domain == "emu"}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(v for v, _ in sites.values()))
    names = [output.name for output in model.graph.output]

    together = feeds(model, 3)
    batch = dict(zip(names, run(model, together), strict=True))
    alone = []
    for sample in range(3):
        inputs = {k: v[sample : sample + 1] if v.ndim and len(v) == 3 else v for k, v in together.items()}
        alone.append(dict(zip(names, run(model, inputs), strict=True)))
    for name, (value, node) in sites.items():
        axis = next(a.i for a in node.attribute if a.name == "sample_axis")
        for sample in range(3):
            expected = alone[sample][value]
            if axis == -1:
                rows = batch[value]
            else:
                assert batch[value].shape[axis] % 3 == 0, name
                rows = np.split(batch[value], 3, axis=axis)[sample]
            np.testing.assert_allclose(rows, expected, atol=1e-5, err_msg=name)


@SAMPLE_LAYOUTS
def test_a_batch_split_changes_nothing(graph):
    """Every kind of run-time noise is a function of the sample, not of its place in a batch."""
    changes = {"read.output_noise": 0.05, "write.model": "lognormal_w", "write.sigma": 0.1}
    runner = session(rewrite(path_of(graph), device="ideal", set=changes), ops="python")
    inputs = feeds(onnx.load(path_of(graph)), 3)
    whole = runner.run(None, {**inputs, "emu.sample": np.array(4)})
    for sample in range(3):
        own = {name: v[sample : sample + 1] if v.ndim and len(v) == 3 else v for name, v in inputs.items()}
        alone = runner.run(None, {**own, "emu.sample": np.array(4 + sample)})
        for expected, result in zip(whole, alone, strict=True):
            np.testing.assert_allclose(result, expected[sample : sample + 1], atol=1e-5)


@named(
    "torch_mha__sdpa__tf4-ts17",
    "deberta_v1_cls__eager__tf4-dyndef",
    "gpt2__sdpa__tf4-dyndef",
    "llama__sdpa__tf4-dyndef",
    "timm_vit__sdpa__tf4-ts17",
    "swin__sdpa__tf5-dyndef",
    "bert_cls__sdpa__tf4-dyn23",
)
@pytest.mark.parametrize("head", [0, 1])
def test_columns_of_a_head_reach_only_the_matrices_of_that_head(graph, head):
    sites = [site for site in sites_of(path_of(graph)) if site.layer == 0]
    rewritten = rewrite(path_of(graph), device="ideal", only="layer=0")
    model = with_plain_products(rewritten.model)
    nodes = {node.name: node for node in model.graph.node}
    scores = next(nodes[site.node] for site in sites if site.component == "attention_scores")
    context = next(nodes[site.node] for site in sites if site.component == "attention_context")
    ends = {"query": [scores.input[0]], "key": [scores.input[1]], "value": [context.input[1]]}
    ends["query_key_value"] = [value for values in ends.values() for value in values]
    inputs = feeds(model, 2)
    projections = [site for site in sites if site.component in ends]
    assert projections
    for site in projections:
        watched = ends[site.component]
        before = run_watching(model, watched, inputs)
        after = run_watching(with_changed_head(model, nodes[site.node].input[1], site, head), watched, inputs)
        for old, new in zip(before, after, strict=True):
            changed = [not np.array_equal(a, b) for a, b in zip(matrices(old), matrices(new), strict=True)]
            total = site.heads * site.head_share
            expected = [index % total // site.head_share == head for index in range(len(changed))]
            assert changed == expected, site.node


def matrices(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[-2:])


def run_watching(model: onnx.ModelProto, values: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    del watching.graph.output[:]
    watching.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    return run(watching, inputs)


def with_changed_head(model: onnx.ModelProto, weight: str, site: Site, head: int) -> onnx.ModelProto:
    """The model with other weights in the columns that docs/operators.md gives to a head."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(each for each in changed.graph.initializer if each.name == weight)
    array = onnx.numpy_helper.to_array(tensor).copy()
    group = array.shape[1] // site.head_groups
    columns = np.arange(array.shape[1])
    array[:, columns % group // (group // site.heads) == head] += 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, weight))
    return changed


def test_half_of_a_gated_ffn_is_the_gate():
    graph = next(each for each in exported_graphs() if each["file"] == "llama__sdpa__tf4-dyndef.onnx")
    parameters = {node["name"]: (node["parameter"] or [""])[0] for node in graph["nodes"]}
    components = {site.component: parameters[site.node] for site in sites_of(path_of(graph)) if site.layer == 0}
    assert "gate_proj" in components["ffn_gate"]
    assert "up_proj" in components["ffn_up"]


def test_a_graph_with_operators_newer_than_its_opset_is_refused():
    graph = next(each for each in exported_graphs() if each["file"] == INVALID)
    with pytest.raises(InputError, match="not a valid ONNX model: No Op registered for Attention with domain_version"):
        rewrite(path_of(graph), only="*")


def test_macs_of_a_vision_transformer_are_counted_per_image():
    graph = next(each for each in exported_graphs() if each["file"] == "vit__sdpa__tf4-ts17.onnx")
    macs = {site.component: site.macs for site in sites_of(path_of(graph))}
    tokens = 17  # 4 x 4 patches of 8 x 8 and the class token, width 48, FFN 96, 3 heads of 16
    assert macs["patch_embedding"] == 16 * 3 * 8 * 8 * 48
    assert macs["query"] == tokens * 48 * 48
    assert macs["attention_scores"] == macs["attention_context"] == 3 * tokens * tokens * 16
    assert macs["ffn_up"] == tokens * 48 * 96
    assert macs["classifier"] == 48 * 5


def test_macs_of_a_language_model_depend_on_the_length_of_the_text():
    graph = next(each for each in exported_graphs() if each["file"] == "bert_cls__sdpa__tf4-ts17.onnx")
    sites = {site.component: site for site in sites_of(path_of(graph))}
    assert sites["query"].macs is None
    assert sites["query"].macs_per_row == 48 * 48
    assert sites["attention_scores"].shape == (16, None)
    assert sites["pooler"].macs == 48 * 48
