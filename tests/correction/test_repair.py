"""A repaired chip is closer to the clean model, by plain nodes that act on that chip alone."""

import json

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import emu
from emu.cli import app
from emu.correction import METHODS, repair
from emu.correction.fit import Correction, Covariance, Moments, gain_of_weights, low_rank
from emu.demo import data_path, model_path
from emu.errors import InputError
from tests.rewriter.small import model, transformer, values

DIGITS = dict(np.load(data_path("digits_vit")))
UNLABELLED = {"pixel_values": DIGITS["pixel_values"]}
X = {"x": values(64, 5, 8)}


def test_gain_and_bias_are_those_of_least_squares():
    random = np.random.default_rng(0)
    y = random.standard_normal((500, 3)).astype(np.float32)
    c = (y * [2, -1, 0.5] + [1, 0, -3]).astype(np.float32)
    moments = Moments(3)
    moments.add(y[:200], c[:200])
    moments.add(y[200:], c[200:])
    moments.add(np.full((1, 3), np.inf, np.float32), np.zeros((1, 3), np.float32))  # of no use
    gain, bias = moments.gain_and_bias()
    np.testing.assert_allclose(gain, [2, -1, 0.5], atol=1e-5)
    np.testing.assert_allclose(bias, [1, 0, -3], atol=1e-5)
    np.testing.assert_allclose(moments.bias(), (c - y).mean(axis=0), atol=1e-5)
    dead = Moments(1)
    dead.add(np.zeros((5, 1), np.float32), np.full((5, 1), 4, np.float32))
    assert dead.gain_and_bias() == (np.float32(1), np.float32(4))


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_a_side_path_takes_away_the_error_that_inputs_see(shape):
    x = (values(400, shape[0], seed=1) * np.geomspace(10, 0.1, shape[0])).astype(np.float32)
    error = values(*shape, seed=2)
    covariance = Covariance(shape[0])
    covariance.add(x[:100])
    covariance.add(x[100:])
    left = [np.linalg.norm(x @ error)]
    for rank in (1, 4, 12):
        a, b = low_rank(error, covariance, rank)
        assert a.shape == (shape[0], rank) and b.shape == (rank, shape[1])
        left.append(np.linalg.norm(x @ (error - a @ b)))
    assert left[0] > left[1] > left[2] > 100 * left[3]
    # No matrix of rank 4 does better on these inputs than the truncated decomposition of x @ error.
    best = np.sqrt((np.linalg.svd(x @ error, compute_uv=False)[4:] ** 2).sum())
    assert left[2] == pytest.approx(best, rel=0.02)


def test_a_correction_cuts_off_scales_and_adds_the_path_in_that_order():
    y, x = np.array([[np.nan, 1e30, 1]], np.float32), np.array([[2.0]], np.float32)
    low, high = np.full(3, -2, np.float32), np.full(3, 2, np.float32)
    path = {"left": np.ones((1, 1), np.float32), "right": np.array([[1, 0, 0]], np.float32)}
    correction = Correction(low, high, **path, gain=np.float32([3, 3, 3]), bias=np.float32([0, 1, 0]))
    np.testing.assert_array_equal(correction.apply(y, x), [[2, 7, 3]])
    assert (correction.rank, correction.numbers, correction.multiplications) == (1, 16, 7)


def test_the_gain_of_weights_undoes_a_factor_of_each_column():
    covariance = Covariance(6)
    covariance.add(values(100, 6, seed=1))
    clean, factors = values(6, 3, seed=2), np.array([0.5, 2, 0], np.float32)
    np.testing.assert_allclose(gain_of_weights(clean, clean * factors, covariance), [2, 0.5, 1], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_brings_a_chip_closer_on_data_that_it_has_not_seen(method):
    done = repair(model_path("digits_vit"), UNLABELLED, "stuck_at", seed=7, method=method, budget=0.15, samples=200)
    (agreement,) = done.comparisons
    assert agreement.name == "agreement" and agreement.samples == 100 and agreement.clean == 1
    assert agreement.gain[1] > 0, agreement.in_words
    assert done.cost <= 0.15 and set(done.tried) == {"none", method}


def test_auto_takes_the_best_within_its_budget_and_measures_accuracy_where_there_are_labels():
    done = repair(model_path("digits_vit"), DIGITS, "stuck_at", seed=7, samples=200)
    assert done.method == max((each for each in done.tried if each != "none"), key=done.tried.get)
    assert [each.name for each in done.comparisons] == ["agreement", "accuracy"]
    assert 0 < done.cost <= 0.02 and done.comparisons[1].gain[1] > 0.2
    assert done.comparisons[1].clean > 0.97


def test_a_repaired_model_is_a_rewritten_model_as_any_other(tmp_path):
    emulated = emu.rewrite(model_path("digits_vit"), "stuck_at")
    done = repair(emulated, UNLABELLED, seed=7, method="low_rank+gain", budget=0.15, samples=120)
    path = tmp_path / "repaired.onnx"
    done.save(path)
    onnx.checker.check_model(path)
    before, after = emu.session(emulated), emu.session(path)
    feeds = {"pixel_values": UNLABELLED["pixel_values"][:40]}
    off = {**feeds, "emu.strength": np.zeros(len(emulated.manifest.sites), np.float32)}
    clean = before.run(None, off)[0]
    np.testing.assert_array_equal(after.run(None, off)[0], clean)  # nothing is corrected where nothing is disturbed
    one_head = {**feeds, "emu.head": np.int64(1)}
    np.testing.assert_array_equal(after.run(None, one_head)[0], before.run(None, one_head)[0])
    chip = {**feeds, "emu.seed": np.int64(7)}
    distances = [np.linalg.norm(session.run(None, chip)[0] - clean) for session in (before, after)]
    assert distances[1] < 0.5 * distances[0]

    manifest = emu.read_manifest(path)
    assert manifest.repair["seed"] == 7 and manifest.repair["method"] == "low_rank+gain"
    assert manifest.sites == emulated.manifest.sites
    proof = emu.bake(path, seed=7).save(tmp_path / "chip7.onnx", UNLABELLED)
    assert proof.equal_unoptimized
    assert not any("emu" in node.domain for node in onnx.load(tmp_path / "chip7.onnx").graph.node)
    evaluation = emu.evaluate(path, DIGITS, chips=1, first_seed=7, samples=100)
    assert evaluation.clean.accuracy == 0.96 and evaluation.chips[0].accuracy > 0.8


def test_read_noise_and_converters_are_in_the_loop():
    done = repair(model_path("digits_vit"), UNLABELLED, "pcm_aihwkit", seed=1, method="gain", samples=100)
    assert done.comparisons[0].gain[0] > -0.05 and done.cost < 0.02
    assert done.tried["gain"] >= done.tried["none"]


def test_outputs_that_are_not_finite_are_cut_off_first():
    done = repair(
        model_path("digits_vit"), UNLABELLED, "float32_flips", set={"faults.ber": 3e-5}, seed=3, method="gain",
        samples=200, budget=0.05,
    )  # fmt: skip
    assert any("cut off" in note for note in done.notes)
    assert done.comparisons[0].gain[1] > 0


def test_padding_does_not_count():
    proto = transformer(tokens=6)
    del proto.graph.input[:]
    table = values(30, 8)
    nodes = [
        onnx.helper.make_node("Gather", ["table", "input_ids"], ["looked"], name="look"),
        onnx.helper.make_node("Cast", ["attention_mask"], ["kept"], to=1, name="cast"),
        onnx.helper.make_node("Unsqueeze", ["kept", "last"], ["kept3"], name="wide"),
        onnx.helper.make_node("Mul", ["looked", "kept3"], ["x"], name="masked"),
    ]
    for place, node in enumerate(nodes):
        proto.graph.node.insert(place, node)
    proto.graph.initializer.extend(
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(np.array([-1]), "last")]
    )
    for name in ("input_ids", "attention_mask"):
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "sequence"])
        )
    random = np.random.default_rng(0)
    ids, mask = random.integers(0, 30, (64, 6)), np.ones((64, 6), np.int64)
    mask[:, 4:] = 0
    set_ = {"program.sigma": 0.5}

    def gains(input_ids, attention_mask):
        data = {"input_ids": input_ids, "attention_mask": attention_mask}
        found = repair(proto, data, "rram", set=set_, method="gain", budget=1.0, seed=1).model
        return {
            t.name: onnx.numpy_helper.to_array(t)
            for t in found.model.graph.initializer
            if t.name.endswith("q0.repair.gain")
        }

    short = gains(ids[:, :4], mask[:, :4])
    padded = gains(ids, mask)
    assert short and all(np.allclose(short[name], padded[name], rtol=1e-3) for name in short)


def test_bad_input_is_one_sentence(tmp_path):
    def said(data=UNLABELLED, device="rram", source=None, **options):
        with pytest.raises(InputError) as error:
            repair(source or model_path("digits_vit"), data, device, **options)
        assert str(error.value).count(". ") == 0
        return str(error.value)

    assert "method is 'gains': expected auto, bias, gain" in said(method="gains")
    assert "budget is 0:" in said(budget=0)
    assert "a budget of 0.001 is too small: gain needs 0.0" in said(method="gain", budget=0.001)
    assert "there is nothing to repair, because ideal disturbs no" in said(device="ideal")
    assert "give at least 16" in said({"pixel_values": UNLABELLED["pixel_values"][:5]})
    assert "has no array 'pixel_values'" in said({"images": UNLABELLED["pixel_values"]})
    assert "There is no data file" in said("nothing.npz")
    assert "is not rewritten and has no chips" in said(device=None)
    done = repair(model_path("digits_vit"), UNLABELLED, "rram", method="bias", samples=20)
    assert "is repaired already" in said(source=done.model, device=None)
    baked = tmp_path / "chip.onnx"
    emu.bake(model_path("digits_vit"), "rram").save(baked, proof=False)
    assert "is baked already" in said(source=baked)


def test_the_command_prints_before_after_and_cost(tmp_path):
    target = tmp_path / "repaired.onnx"
    words = ["repair", str(model_path("digits_vit")), "--data", str(data_path("digits_vit")), "--device", "stuck_at"]
    words += ["--seed", "7", "--method", "gain", "--samples", "100", "-o", str(target)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "agreement" in done.stdout and "95 % interval" in done.stdout and "more multiplications" in done.stdout
    assert "Repaired for chip 7 by gain, from 50 samples" in CliRunner().invoke(app, ["inspect", str(target)]).stdout
    shown = CliRunner().invoke(app, [*words, "--overwrite", "--json"])
    assert json.loads(shown.stdout)["method"] == "gain"


def test_stacks_and_convolutions_are_corrected_column_by_column():
    proto = model(
        "h = Conv <group = 2, strides = [2, 2]> (x, k)  r = Reshape(h, shape)  y = MatMul(r, w)",
        inputs="float[batch, 4, 8, 8] x", outputs="float[batch, 3, a, b] y",
        k=values(6, 2, 2, 2), shape=np.array([0, 3, -1, 4]), w=values(3, 4, 5),
    )  # fmt: skip
    images = values(64, 4, 8, 8, seed=3)
    done = repair(proto, {"x": images}, "rram", set={"program.sigma": 0.4}, only="*", method="gain", budget=1.0, seed=2)
    session = emu.session(done.model)
    off = {"emu.strength": np.zeros(2, np.float32)}
    clean = session.run(None, {"x": images, **off})[0]
    chip = {"x": images, "emu.seed": np.int64(2)}
    plain = emu.session(emu.rewrite(proto, "rram", set={"program.sigma": 0.4}, only="*")).run(None, chip)[0]
    assert np.linalg.norm(session.run(None, chip)[0] - clean) < 0.8 * np.linalg.norm(plain - clean)
