"""The evaluation asks the right questions of a session: one clean pass, one pass per chip, each sample once."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emu.contract.manifest import Manifest
from emu.errors import InputError
from emu.evaluation import evaluate, run
from tests.contract.made import made_manifest

SAMPLES = 11


MANIFEST = made_manifest()
TWO_DEVICES = made_manifest(["rram", "rram_adc"])


class FakeSession:
    """Answers class 0 wrongly for as many leading samples as the chip's seed says; strength 0 answers all rightly."""

    def __init__(self, batch: int | str = "batch", outputs: tuple[str, ...] = ("logits",)) -> None:
        self.calls: list[dict[str, NDArray[Any]]] = []
        self.batch, self.outputs = batch, outputs
        self.classes, self.nan = 3, False

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", type="tensor(float)", shape=[self.batch, 2])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.outputs]

    def run(self, names: list[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.calls.append(feeds)
        x = feeds["x"]
        scores = np.zeros((len(x), self.classes), np.float32)
        scores[np.arange(len(x)), x[:, 0].astype(int) % 3] = 1
        clean = "emu.strength" in feeds and not feeds["emu.strength"].any()
        if "emu.sample" in feeds and not clean:
            wrong = feeds["emu.sample"] + np.arange(len(x)) < feeds.get("emu.seed", 0)
            scores[wrong] = np.roll(scores[wrong], 1, axis=1)
            if self.nan:
                scores[wrong] = np.nan
        other = np.zeros_like(scores)
        return [scores if name == "logits" or len(self.outputs) == 1 else other for name in names]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setattr("emu.rewriter.read_manifest", lambda model: getattr(model, "manifest", None), raising=False)
    monkeypatch.setattr("emu.rewriter.rewrite", None, raising=False)
    monkeypatch.setattr("emu.runtime.session", lambda model, ops="native", threads=None: fake, raising=False)
    return fake


def model(manifest: Manifest | None = MANIFEST) -> Any:
    return SimpleNamespace(graph=SimpleNamespace(name="tiny"), manifest=manifest)


def data(**changes: Any) -> dict[str, Any]:
    x = np.stack([np.arange(SAMPLES), np.zeros(SAMPLES)], axis=1).astype(np.float32)
    return {"x": x, "labels": np.arange(SAMPLES) % 3, **changes}


def test_accuracy_is_per_chip_and_clean_is_separate(session: FakeSession) -> None:
    result = evaluate(model(), data(), chips=3, first_seed=2, batch_size=4)
    assert result.seeds == (2, 3, 4)
    assert [chip.correct for chip in result.chips] == [9, 8, 7]
    assert result.clean.accuracy == 1
    assert result.spread is not None and result.spread.mean == pytest.approx(8 / 11)


def test_the_batch_split_changes_nothing(session: FakeSession) -> None:
    results = [evaluate(model(), data(), chips=4, batch_size=size).chips for size in (1, 3, 11, 100)]
    assert results == [results[0]] * 4


def test_each_batch_carries_the_index_of_its_first_sample_and_the_chips_seed(session: FakeSession) -> None:
    evaluate(model(), data(), chips=2, batch_size=5, read_seed=9)
    clean, chips = session.calls[:3], session.calls[3:]
    assert [int(feeds["emu.sample"]) for feeds in clean] == [0, 5, 10]
    assert all(feeds["emu.strength"].tolist() == [0, 0, 0] for feeds in clean)
    assert [(int(f["emu.seed"]), int(f["emu.sample"])) for f in chips] == [(s, i) for s in (0, 1) for i in (0, 5, 10)]
    assert all(feeds["emu.read_seed"] == 9 and "emu.strength" not in feeds for feeds in chips)
    assert {feeds["emu.seed"].dtype for feeds in chips} == {np.dtype("int64")}
    assert {feeds["emu.seed"].shape for feeds in chips} == {()}


def test_settings_change_the_device_tensor_of_every_chip(session: FakeSession) -> None:
    result = evaluate(model(), data(), chips=1, set=["program.sigma=0.2"])
    np.testing.assert_array_equal(session.calls[-1]["emu.device"], np.float32([0.2, 0]))
    assert "emu.device" not in session.calls[0]
    assert result.settings == {"program.sigma": 0.2, "program.sigma_cycle": 0.0}


def test_settings_go_to_the_device_that_they_name_or_that_alone_has_them(session: FakeSession) -> None:
    changes = {"rram:program.sigma": 0.2, "adc.bound": 12}
    result = evaluate(model(TWO_DEVICES), data(), chips=1, set=changes)
    np.testing.assert_array_equal(session.calls[-1]["emu.device.rram"], np.float32([0.2, 0]))
    entries = TWO_DEVICES.devices["rram_adc"].entries
    assert session.calls[-1]["emu.device.rram_adc"][entries.index("adc.bound")] == 12
    assert result.device == "rram, rram_adc"
    assert result.settings["rram:program.sigma"] == 0.2 and result.settings["rram_adc:program.sigma"] == 0.1
    evaluate(model(TWO_DEVICES), data(), chips=1, set={"rram:program.sigma": 0.2})
    assert "emu.device.rram_adc" not in session.calls[-1]


def test_a_plain_model_without_a_device_has_a_clean_accuracy_only(session: FakeSession) -> None:
    result = evaluate(model(None), data(), batch_size=4)
    assert result.as_dict()["accuracy"] is None
    assert result.as_dict()["clean"]["accuracy"] == 1
    assert len(session.calls) == 3 and set(session.calls[0]) == {"x"}


def test_a_plain_model_with_a_device_is_rewritten_with_its_settings(
    session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def rewrite(plain: Any, device: Any, **options: Any) -> Any:
        asked.update(options, on=device.name, sigma=device.program.sigma)
        asked["map"] = [(selection, each.name) for selection, each in options["map"]]
        return SimpleNamespace(model=model(), manifest=MANIFEST)

    monkeypatch.setattr("emu.rewriter.rewrite", rewrite, raising=False)
    others = {"map": ["layer=1:ideal"], "share": "never", "stored": "component=norm"}
    result = evaluate(
        model(None), data(), 2, device="rram", set=["program.sigma=0.3"], only="component=value", exclude="layer=0",
        **others,
    )  # fmt: skip
    assert asked == {
        "on": "rram",
        "sigma": 0.3,
        "only": "component=value",
        "exclude": "layer=0",
        **others,
        "map": [("layer=1", "ideal")],
    }
    assert result.device == "rram" and len(result.chips) == 2
    assert all("emu.device" not in feeds for feeds in session.calls)


def test_json_has_the_documented_shape(session: FakeSession) -> None:
    result = json.loads(json.dumps(evaluate(model(), data(), chips=2).as_dict()))
    assert set(result["accuracy"]) == {"mean", "std", "ci95", "per_chip"}
    assert len(result["accuracy"]["ci95"]) == 2 and len(result["accuracy"]["per_chip"]) == 2
    assert result["clean"]["ci95"] == pytest.approx([0.741, 1.0], abs=1e-3)
    assert (result["samples"], result["chips"], result["seeds"], result["device"]) == (11, 2, [0, 1], "rram")
    single = evaluate(model(), data(), chips=1).as_dict()["accuracy"]
    assert single["std"] is None and single["ci95"] is None


def test_the_output_named_logits_counts_wherever_it_is(session: FakeSession) -> None:
    session.outputs = ("hidden", "logits", "cls_logits")
    assert evaluate(model(), data(), chips=1).clean.accuracy == 1


def test_a_fixed_batch_is_filled_up_and_the_filling_not_counted(session: FakeSession) -> None:
    session.batch = 4
    result = evaluate(model(), data(), chips=2)
    assert result.batch_size == 4 and result.clean.samples == SAMPLES
    assert [chip.correct for chip in result.chips] == [11, 10]
    assert {len(feeds["x"]) for feeds in session.calls} == {4}
    with pytest.raises(InputError, match="exactly 4 samples at once"):
        evaluate(model(), data(), batch_size=8)


def test_answers_that_are_not_a_number_count_as_wrong_and_are_reported(session: FakeSession) -> None:
    session.nan = True
    result = evaluate(model(), data(), chips=1, first_seed=3)
    assert (result.chips[0].correct, result.chips[0].undefined) == (8, 3)


def test_progress_reaches_the_total(session: FakeSession) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(model(), data(), chips=2, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(1, 10)]


@pytest.mark.parametrize(
    ("manifest", "options", "says"),
    [
        (MANIFEST, {"device": "rram"}, "already rewritten"),
        (MANIFEST, {"only": "layer=0"}, "'only' is for rewriting a plain model: give it with a device"),
        (None, {"map": ["layer=0:rram"]}, "'map' is for rewriting a plain model: give it with a device"),
        (made_manifest(calibration=None), {}, "is not calibrated yet: run 'emu calibrate'"),
        (TWO_DEVICES, {"set": ["program.sigma=1"]}, "as in rram:program.sigma=1"),
        (TWO_DEVICES, {"set": ["pcm:program.sigma=1"]}, "it has rram, rram_adc"),
        (
            TWO_DEVICES,
            {"set": {"adc.bound": 12, "rram_adc:adc.bound": 12}},
            "'adc.bound' of device 'rram_adc' is set twice",
        ),
        (TWO_DEVICES, {"set": ["program.model=none"]}, "shapes the graph"),
        (None, {"set": ["program.sigma=1"]}, "has no device"),
        (MANIFEST, {"set": ["program.model=none"]}, "shapes the graph"),
        (MANIFEST, {"chips": 0}, "at least one chip"),
        (MANIFEST, {"first_seed": 2**32 - 1, "chips": 2}, "seeds 0 to"),
        (MANIFEST, {"first_seed": -1}, "seeds 0 to"),
        (MANIFEST, {"read_seed": -1}, "read_seed is -1"),
        (MANIFEST, {"batch_size": 0}, "batch size is 0"),
    ],
)
def test_wrong_options_are_refused(
    session: FakeSession, manifest: Manifest | None, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        evaluate(model(manifest), data(), **options)


def test_labels_beyond_the_models_classes_are_refused(session: FakeSession) -> None:
    with pytest.raises(InputError, match="class 7, but the model has 3 classes"):
        evaluate(model(), data(labels=np.full(SAMPLES, 7)))


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model file"):
        evaluate(tmp_path / "none.onnx", data())


class TestOneRun:
    def test_controls_left_out_keep_the_models_defaults(self, session: FakeSession) -> None:
        outputs = run(model(), {"x": np.zeros((2, 2))})
        assert set(session.calls[0]) == {"x"} and outputs["logits"].shape == (2, 3)

    def test_controls_reach_the_session(self, session: FakeSession) -> None:
        run(model(), {"x": np.zeros((2, 2))}, seed=1, read_seed=2, sample=3, head=-1, set={"program.sigma": 0.5})
        feeds = session.calls[0]
        assert [int(feeds[f"emu.{name}"]) for name in ("seed", "read_seed", "sample", "head")] == [1, 2, 3, -1]
        np.testing.assert_array_equal(feeds["emu.device"], np.float32([0.5, 0]))

    def test_a_plain_model_has_no_controls(self, session: FakeSession) -> None:
        with pytest.raises(InputError, match="no control 'seed'"):
            run(model(None), {"x": np.zeros((2, 2))}, seed=1)

    def test_a_control_out_of_range_is_named(self, session: FakeSession) -> None:
        with pytest.raises(InputError, match="seed is 4294967296 and must be 0 to 4294967295"):
            run(model(), {"x": np.zeros((2, 2))}, seed=2**32)
