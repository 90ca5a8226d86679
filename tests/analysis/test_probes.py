"""Inner tensors are found by following the data, and their clean values come from the session that disturbs them."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from emu import Bench, EmulatedModel, Trial, rewrite
from emu.analysis.probes import ProbedModel, find_probes
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation.data import read_arrays
from tests.rewriter import exported
from tests.rewriter.small import model, values

VIT, BERT = model_path("digits_vit"), model_path("listops_bert")


@cache
def on(model: Path, device: str) -> EmulatedModel:
    return rewrite(model, device=device)


@pytest.fixture
def vit() -> EmulatedModel:
    return on(VIT, "rram")


def test_every_layer_has_attention_a_context_and_a_block_output(vit: EmulatedModel) -> None:
    for kind in ("attention", "context", "block"):
        probes, missing = find_probes(vit, kind)
        assert [probe.layer for probe in probes] == [0, 1, 2, 3]
        assert missing == []


def test_a_block_ends_in_its_residual_sum(vit: EmulatedModel) -> None:
    before_norm = [probe.value for probe in find_probes(vit, "block")[0]]
    assert before_norm == [f"/vit/encoder/layer.{layer}/output/Add_output_0" for layer in range(4)]
    after_norm = [probe.value for probe in find_probes(on(BERT, "rram"), "block")[0]]
    assert after_norm == [f"/bert/encoder/layer.{layer}/output/Add_output_0" for layer in range(3)]


def test_disturbed_biases_and_norms_do_not_count_as_residual_sums() -> None:
    model = onnx.load(BERT)
    for node in [each for each in model.graph.node if each.op_type == "LayerNormalization"]:
        place = list(model.graph.node).index(node)
        bias, output = node.input.pop(), node.output[0]
        node.output[0] += ".scaled"
        model.graph.node.insert(place + 1, onnx.helper.make_node("Add", [node.output[0], bias], [output]))
    stored = rewrite(model, device="int8_flips", stored="component=*")
    assert find_probes(stored, "block")[0] == find_probes(on(BERT, "rram"), "block")[0]


def test_clean_attention_sums_to_one_and_differs_from_a_chip() -> None:
    probed = ProbedModel(Bench(on(VIT, "rram"), data_path("digits_test"), samples=5, batch_size=3), "attention")
    batches = list(probed.batches())
    assert [batch.samples for batch in batches] == [3, 2]
    clean, noisy = probed.run(batches[0], None), probed.run(batches[0], Trial(seed=1))
    assert [each.shape for each in clean] == [(3, 1, 4, 17, 17)] * 4
    np.testing.assert_allclose(np.stack(clean).sum(-1), 1, atol=1e-5)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(clean, noisy, strict=True))


def test_strength_zero_gives_the_clean_values() -> None:
    probed = ProbedModel(Bench(on(VIT, "rram"), data_path("digits_test"), samples=4), "block")
    (batch,) = probed.batches()
    for clean, still in zip(probed.run(batch, None), probed.run(batch, Trial(seed=1, strength=0.0)), strict=True):
        np.testing.assert_array_equal(clean, still)


def test_inner_tensors_do_not_depend_on_the_batch() -> None:
    whole, single = (
        ProbedModel(Bench(on(BERT, "rram_adc"), data_path("listops_test"), samples=4, batch_size=size), "context")
        for size in (4, 1)
    )
    (batch,) = whole.batches()
    together = whole.run(batch, Trial(seed=2, read_seed=1))
    apart = [single.run(each, Trial(seed=2, read_seed=1)) for each in single.batches()]
    for layer, array in enumerate(together):
        np.testing.assert_allclose(array, np.concatenate([each[layer] for each in apart]), atol=1e-5)


def test_the_attention_mask_says_which_tokens_are_padding() -> None:
    probed = ProbedModel(Bench(on(BERT, "rram"), data_path("listops_test"), samples=6), "block")
    (batch,) = probed.batches()
    np.testing.assert_array_equal(batch.mask, read_arrays(data_path("listops_test"))[0]["attention_mask"][:6] != 0)
    (batch,) = ProbedModel(Bench(on(VIT, "rram"), data_path("digits_test"), samples=2), "block").batches()
    assert batch.mask is None


def test_labels_are_not_needed(vit: EmulatedModel) -> None:
    arrays = read_arrays(data_path("digits_test"))[0]
    probed = ProbedModel(Bench(vit, {"pixel_values": arrays["pixel_values"][:3]}), "block")
    assert [batch.samples for batch in probed.batches()] == [3]


def test_attention_that_stays_digital_is_looked_at_too(vit: EmulatedModel) -> None:
    kinds = ("attention", "context", "block")
    everything = rewrite(VIT, "rram", "*")
    assert {site.component for site in everything.manifest.sites} > {site.component for site in vit.manifest.sites}
    assert [find_probes(vit, kind) for kind in kinds] == [find_probes(everything, kind) for kind in kinds]
    only_ffn = rewrite(VIT, "rram", "component=ffn_* layer=1-3")
    assert [probe.layer for probe in find_probes(only_ffn, "attention")[0]] == [1, 2, 3]


def test_what_cannot_be_found_is_said(vit: EmulatedModel) -> None:
    with pytest.raises(InputError, match="has nothing to look at. It has no transformer blocks"):
        find_probes(rewrite(model("y = MatMul(x, w)", w=values(4, 3)), "ideal"), "attention")
    with pytest.raises(InputError, match="already rewritten: evaluate it without a device"):
        ProbedModel(Bench(vit, data_path("digits_test"), device="rram"), "block")
    with pytest.raises(InputError, match="is not rewritten: give a device"):
        ProbedModel(Bench(VIT, data_path("digits_test")), "block")


# One for each way in which exporters lay out attention and residual sums.
GRAPHS = (
    "vit__sdpa__tf4-dyndef.onnx",
    "gpt2__sdpa__tf4-dyndef.onnx",
    "llama__sdpa__tf4-dyndef.onnx",
    "swin__eager__tf4-ts17.onnx",
    "torch_mha__sdpa__tf4-ts17.onnx",
)


@pytest.mark.skipif(not exported.ASSETS, reason="needs EMU_ASSETS")
@pytest.mark.parametrize("file", GRAPHS)
def test_inner_tensors_of_exported_graphs_are_found_and_are_those_of_their_samples(file: str) -> None:
    graph = next(each for each in exported.exported_graphs() if each["file"] == file)
    emulated = exported.rewritten_ideal(exported.path_of(graph))
    layers = sorted({site.layer for site in emulated.manifest.sites if site.layer is not None})
    inputs = exported.feeds(emulated.model, 2)
    for kind in ("attention", "block", "context"):
        both, single = (ProbedModel(Bench(emulated, inputs, batch_size=size), kind) for size in (2, 1))
        assert [probe.layer for probe in both.probes] == layers
        (batch,) = both.batches()
        apart = [single.run(each, None) for each in single.batches()]
        for place, array in enumerate(both.run(batch, None)):
            np.testing.assert_allclose(array, np.concatenate([each[place] for each in apart]), atol=1e-4)
            if kind == "attention":
                np.testing.assert_allclose(array.sum(-1), 1, atol=1e-4)
