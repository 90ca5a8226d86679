"""A bench runs trials: controls by selection, results that depend on nothing else, and fingerprints."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from emu import Bench, Trial, rewrite
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation.bench import _digest_of_files
from emu.evaluation.data import read_arrays


@pytest.fixture(scope="module")
def bench() -> Bench:
    changes = {"program.sigma": 0.4}
    return Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", set=changes, samples=60)


def test_a_trial_that_selects_no_site_away_is_the_plain_one(bench: Bench) -> None:
    assert bench.run(Trial(seed=3)) == bench.run(Trial(seed=3, only="*"))
    assert bench.run(Trial(seed=3)).accuracy < bench.clean.accuracy


def test_strengths_follow_the_selection(bench: Bench) -> None:
    strengths = bench.strengths(Trial(only="layer=1 component=ffn_*", strength=0.5))
    sites = [site.index for site in bench.sites if site.layer == 1 and site.component.startswith("ffn")]
    assert np.flatnonzero(strengths).tolist() == sites
    assert set(strengths[sites]) == {np.float32(0.5)}
    rest = bench.strengths(Trial(exclude="layer=1 component=ffn_*"))
    np.testing.assert_array_equal(rest + 2 * strengths, np.ones(len(bench.sites)))


def test_strength_zero_is_clean(bench: Bench) -> None:
    assert bench.run(Trial(seed=1, strength=0.0)) == bench.clean


def test_trials_do_not_depend_on_what_ran_before(bench: Bench) -> None:
    trials = [Trial(seed=1), Trial(seed=2, set={"program.sigma": 0.1}), Trial(seed=1, only="component=query")]
    forward = [bench.run(trial) for trial in trials]
    assert [bench.run(trial) for trial in reversed(trials)] == forward[::-1]


def test_a_trial_is_plain_data() -> None:
    trial = Trial(seed=4, head=1, only="layer=0", set={"program.sigma": 0.2})
    assert Trial(**trial.as_dict()) == trial


def test_unknown_names_in_a_trial_are_refused(bench: Bench) -> None:
    with pytest.raises(InputError, match="component=nothing"):
        bench.run(Trial(only="component=nothing"))
    with pytest.raises(InputError, match=r"program\.nothing"):
        bench.run(Trial(set={"program.nothing": 1.0}))


def test_a_plain_model_has_a_clean_score_only() -> None:
    plain = Bench(model_path("digits_vit"), data_path("digits_test"), samples=30)
    assert plain.clean.accuracy > 0.9
    with pytest.raises(InputError, match="is not rewritten and has no controls"):
        plain.run(Trial())


def test_a_fingerprint_changes_with_model_device_data_and_only_then(bench: Bench) -> None:
    arguments = {"device": "rram", "only": "*", "set": {"program.sigma": 0.4}, "samples": 60}
    same = Bench(model_path("digits_vit"), read_arrays(data_path("digits_test"))[0], batch_size=7, **arguments)
    assert same.fingerprint() == bench.fingerprint()
    emulated = rewrite(model_path("digits_vit"), device="rram", only="*", set=arguments["set"])
    assert Bench(emulated, data_path("digits_test"), samples=60).fingerprint() == bench.fingerprint()
    changed = {
        "data": {**arguments, "samples": 59},
        "device": {**arguments, "set": {"program.sigma": 0.3}},
    }
    for part, others in changed.items():
        other = Bench(model_path("digits_vit"), data_path("digits_test"), **others).fingerprint()
        assert other[part] != bench.fingerprint()[part]
    other = Bench(model_path("digits_deit"), data_path("digits_test"), **arguments).fingerprint()
    assert other["model"] != bench.fingerprint()["model"]
    assert replace(Trial(), seed=1) != Trial()


def test_how_a_bench_was_made_is_plain_data_that_does_not_depend_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_path("digits_vit").parent)
    bench = Bench("digits_vit.onnx", "digits_test.npz", device="rram", map=["layer=0:pcm"], only="layer=0-1", samples=9)
    made = bench.arguments
    assert json.loads(json.dumps(made)) == made
    assert (made["model"], made["data"]) == (str(model_path("digits_vit")), str(data_path("digits_test")))
    assert made["rewriting"]["device"]["name"] == "rram" and made["rewriting"]["only"] == "layer=0-1"
    assert [(selection, profile["name"]) for selection, profile in made["rewriting"]["map"]] == [("layer=0", "pcm")]
    assert (made["task"], made["samples"], made["batch_size"]) == ("classification", 9, 32)
    monkeypatch.chdir(tmp_path)
    rest = {name: made[name] for name in ("task", "samples", "batch_size", "threads", "ops")}
    again = Bench(made["model"], made["data"], **made["rewriting"], **rest)
    assert again.arguments == made and again.fingerprint() == bench.fingerprint()


def test_what_follows_from_a_chosen_time_is_not_said_beside_it(tmp_path: Path) -> None:
    rewrite(model_path("digits_vit"), device="rram_wan").save(tmp_path / "wan.onnx")
    own = {"program.time_s": 1.0, "program.c1": 3.0}
    bench = Bench(tmp_path / "wan.onnx", data_path("digits_test"), set=own, samples=9)
    assert bench.arguments["set"] == own
    assert (bench.settings["program.c0"], bench.settings["program.c1"]) == (0.348, 3.0)


def test_a_bench_takes_the_samples_of_another_one(bench: Bench) -> None:
    other = Bench(model_path("digits_deit"), bench.dataset, device="rram", only="*", task=bench.task)
    loaded = Bench(model_path("digits_deit"), data_path("digits_test"), device="rram", only="*", samples=60)
    assert other.run(Trial(seed=1)) == loaded.run(Trial(seed=1))
    assert other.arguments == loaded.arguments and other.fingerprint() == loaded.fingerprint()


def test_samples_of_another_bench_come_with_their_task_and_fit_the_model(bench: Bench) -> None:
    with pytest.raises(InputError, match="are loaded already, for one task: give that task"):
        Bench(model_path("digits_vit"), bench.dataset)
    with pytest.raises(InputError, match="no number of samples"):
        Bench(model_path("digits_vit"), bench.dataset, task=bench.task, samples=5)
    with pytest.raises(InputError, match="has no array 'input_ids'"):
        Bench(model_path("listops_bert"), bench.dataset, task=bench.task)


@pytest.mark.parametrize("place", ["/dev/zero", "../weights.bin", "none.bin"])
def test_a_fingerprint_reads_no_file_outside_the_models_folder(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(10_000_000))
    onnx.save(
        onnx.load(model_path("digits_vit")), folder / "model.onnx", save_as_external_data=True, location="weights.bin"
    )
    assert len(_digest_of_files(folder / "model.onnx")) == 64
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = place if entry.key == "location" else entry.value
    onnx.save(proto, folder / "model.onnx")
    with pytest.raises(InputError, match=f"keeps tensors in '{place}': that must be a file in the model's folder"):
        _digest_of_files(folder / "model.onnx")
