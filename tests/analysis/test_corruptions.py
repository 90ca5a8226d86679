"""Accuracy under corruptions: every model sees the same pictures, and errors are relative to the baseline's."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from emu import Bench, Trial
from emu.analysis.corruptions import CLEAN, corruption_errors, corruptions, draw_corruptions, draw_severities, summarize
from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation import DataSource, mean_corruption_error
from emu.evaluation.statistics import chip_spread
from emu.sweep import Store

pytest.importorskip("scipy", reason="needs the extra 'data'")

SCALE = {"mean": 0.4705882, "std": 0.4705882}  # how the pixels of the demo were normalized
CLEAN_DATA = DataSource(data_path("digits_vit"), **SCALE)
NAMES, SEVERITIES = ("contrast", "fog"), (1, 5)
ERRORS = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.05, 0.1, 0.1, 0.2, 0.25]]  # [corruptions, severities]
BASE = [[0.2, 0.4, 0.5, 0.7, 0.9], [0.1, 0.2, 0.3, 0.3, 0.4]]


@pytest.fixture(scope="module")
def noisy() -> Bench:
    return Bench(model_path("digits_vit"), CLEAN_DATA, device="rram", set={"program.sigma": 0.4}, samples=60)


@pytest.fixture(scope="module")
def baseline() -> Bench:
    return Bench(model_path("digits_deit"), CLEAN_DATA, samples=60)


@pytest.fixture(scope="module")
def table(noisy: Bench, baseline: Bench) -> pd.DataFrame:
    return corruptions(noisy, NAMES, SEVERITIES, chips=3, first_seed=2, baseline=baseline).table


def made(errors: dict[str, list[list[float]]], baseline: list[list[float]] | None = None) -> pd.DataFrame:
    """A table of two corruptions from error rates `[corruptions, severities]`, by seed; "" is the digital run."""
    rows = []
    for seed, of_seed in errors.items():
        rows += [
            ("model", seed, name, s + 1, e)
            for name, line in zip("ab", of_seed, strict=True)
            for s, e in enumerate(line)
        ]
        rows.append(("model", seed, CLEAN, 0, 0.01))
    for name, line in zip("ab", baseline or [[], []], strict=True):
        rows += [("baseline", "", name, s + 1, e) for s, e in enumerate(line)]
    return pd.DataFrame(
        [
            {
                "model": m,
                "corruption": c,
                "severity": s,
                "seed": int(k) if k else None,
                "accuracy": 1 - e,
                "ece": 0.1,
                "loss": 1.0,
            }
            for m, k, c, s, e in rows
        ]
    ).astype({"seed": "Int64"})


class TestRuns:
    def test_every_model_runs_on_every_set_digitally_and_on_each_chip(self, table: pd.DataFrame) -> None:
        sets = [(CLEAN, 0), ("contrast", 1), ("contrast", 5), ("fog", 1), ("fog", 5)]
        assert list(dict.fromkeys(zip(table["corruption"], table["severity"], strict=True))) == sets
        for place in sets:
            rows = table[(table["corruption"] == place[0]) & (table["severity"] == place[1])]
            assert rows["model"].tolist() == ["model"] * 4 + ["baseline"]
            assert rows["seed"].fillna(-1).tolist() == [-1, 2, 3, 4, -1]

    def test_values_are_those_of_an_evaluation_of_the_corrupted_data(
        self, noisy: Bench, baseline: Bench, table: pd.DataFrame
    ) -> None:
        source = DataSource(data_path("digits_vit"), corruption="fog:5", **SCALE)
        rows = table[(table["corruption"] == "fog") & (table["severity"] == 5)].set_index(["model", "seed"])
        emulated = Bench(model_path("digits_vit"), source, device="rram", set={"program.sigma": 0.4}, samples=60)
        for metric in ("accuracy", "ece", "loss"):
            assert rows.loc[("model", 3), metric] == emulated.run(Trial(3)).metrics[metric]
            other = Bench(model_path("digits_deit"), source, samples=60)
            assert rows[metric].iloc[-1] == other.clean.metrics[metric]
        assert table["accuracy"].iloc[0] == noisy.clean.accuracy

    def test_strong_corruptions_cost_accuracy(self, table: pd.DataFrame) -> None:
        digital = summarize(table).set_index(["corruption", "severity"])["digital"]
        assert digital[(CLEAN, 0)] > 0.9 > digital[("contrast", 5)] + 0.3
        assert digital[("contrast", 1)] > digital[("contrast", 5)] and digital[("fog", 1)] > digital[("fog", 5)]

    def test_trials_are_taken_from_the_store(self, noisy: Bench, tmp_path: Path) -> None:
        with Store(tmp_path / "c.db") as store:
            first = corruptions(noisy, ["fog"], [5], chips=2, store=store).table
            assert {study.name for study in store.studies()} == {"corruptions none", "corruptions fog:5"}
            held = store.frame("corruptions fog:5")
            assert sorted(held["accuracy"]) == sorted(first[first["severity"] == 5]["accuracy"][1:])
            assert json.loads(held["setup"].iloc[0])["data_options"]["corruption"] == "fog:5"
            before = len(store.frame())
            again = corruptions(noisy, ["fog"], [5], chips=2, store=store).table
            assert len(store.frame()) == before
        pd.testing.assert_frame_equal(first, again)

    def test_other_seeds_of_the_corruptions_are_other_pictures(self, baseline: Bench) -> None:
        one, other = (corruptions(baseline, ["fog"], [4], seed=seed).table["loss"].tolist() for seed in (0, 1))
        assert one[0] == other[0] and one[1] != other[1]

    def test_steps_are_sets_of_images(self, baseline: Bench) -> None:
        steps: list[tuple[int, int]] = []
        said: list[str] = []
        corruptions(baseline, ["fog"], [1, 2], echo=said.append, progress=lambda done, of: steps.append((done, of)))
        assert steps == [(1, 3), (2, 3), (3, 3)]
        assert said == ["3 runs of 60 samples: 3 sets of images x 1."]


class TestErrors:
    def test_errors_are_summed_over_severities_before_they_are_divided(self) -> None:
        errors = corruption_errors(made({"": ERRORS}, BASE)).set_index("corruption")
        assert errors["ce"].tolist() == pytest.approx([1.5 / 2.7, 0.7 / 1.3, (1.5 / 2.7 + 0.7 / 1.3) / 2])
        assert errors.loc["mean", "ce"] == pytest.approx(mean_corruption_error(ERRORS, BASE))
        assert errors.loc["a", ["error", "baseline"]].tolist() == pytest.approx([0.3, 0.54])
        assert errors[["low", "high"]].isna().all(axis=None)

    def test_the_interval_is_over_chips(self) -> None:
        chips = {str(seed): (np.array(ERRORS) * (1 + 0.1 * seed)).tolist() for seed in range(1, 4)}
        errors = corruption_errors(made({"": ERRORS, **chips}, BASE)).set_index("corruption")
        each = [mean_corruption_error(chip, BASE) for chip in chips.values()]
        spread = chip_spread(each)
        assert errors.loc["mean", "ce"] == pytest.approx(spread.mean)
        assert errors.loc["mean", ["low", "high"]].tolist() == pytest.approx(list(spread.ci95 or ()))

    def test_without_a_baseline_a_chip_is_compared_with_its_own_model(self) -> None:
        chip = (2 * np.array(ERRORS)).tolist()
        assert corruption_errors(made({"": ERRORS, "5": chip}))["ce"].tolist() == pytest.approx([2, 2, 2])
        assert corruption_errors(made({"": ERRORS}))["ce"].isna().all()

    def test_means_are_over_chips_and_not_over_the_digital_run(self) -> None:
        chips = {"": ERRORS, "1": [[0.29] * 5] * 2, "2": [[0.31] * 5] * 2}
        row = summarize(made(chips, BASE)).set_index(["corruption", "severity"]).loc[("a", 1)]
        assert row["accuracy"] == pytest.approx(0.7) and row["chips"] == 2
        assert row["digital"] == pytest.approx(0.9) and row["baseline"] == pytest.approx(0.8)
        assert [row["low"], row["high"]] == pytest.approx(list(chip_spread([0.71, 0.69]).ci95 or ()))


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "options", "sentence"),
        [
            (CLEAN_DATA, {"names": ["frost"]}, "'frost' is no corruption"),
            (CLEAN_DATA, {"severities": [7]}, "severity is 7"),
            (CLEAN_DATA, {"severities": []}, "nothing to measure"),
            (data_path("digits_vit"), {}, "with which its pixels were normalized"),
            (DataSource(data_path("digits_vit"), corruption="fog:1", **SCALE), {}, "corrupted already"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_sentence(self, data: object, options: dict, sentence: str) -> None:
        bench = Bench(model_path("digits_vit"), data, samples=5)
        with pytest.raises(InputError, match=sentence):
            corruptions(bench, **{"names": ["fog"], "severities": [1], **options})

    def test_data_in_memory_are_refused(self) -> None:
        with np.load(data_path("digits_vit")) as arrays:
            bench = Bench(model_path("digits_vit"), dict(arrays), samples=5)
        with pytest.raises(InputError, match="in memory"):
            corruptions(bench, ["fog"], [1])

    def test_another_task_is_refused(self) -> None:
        bench = Bench(model_path("digits_vit"), CLEAN_DATA, samples=5, task="arrays")
        with pytest.raises(InputError, match="output_snr_db: corruptions need the classification"):
            corruptions(bench, ["fog"], [1])

    def test_a_baseline_on_other_samples_is_refused(self, noisy: Bench) -> None:
        with pytest.raises(InputError, match="other samples"):
            corruptions(noisy, ["fog"], [1], baseline=Bench(model_path("digits_deit"), CLEAN_DATA, samples=59))


class TestFigures:
    def test_lines_begin_at_the_clean_accuracy(self, table: pd.DataFrame) -> None:
        from matplotlib.figure import Figure

        axes, summary = Figure().add_subplot(), summarize(table)
        draw_severities(axes, summary)
        contrast, fog, clean = axes.get_lines()
        assert contrast.get_label() == "contrast" and fog.get_label() == "fog"
        assert list(fog.get_xdata()) == [0, 1, 5]
        expected = summary.set_index(["corruption", "severity"])["accuracy"]
        assert list(fog.get_ydata()) == pytest.approx(
            [100 * expected[place] for place in ((CLEAN, 0), ("fog", 1), ("fog", 5))]
        )
        assert clean.get_ydata()[0] == pytest.approx(100 * expected[(CLEAN, 0)])

    @pytest.mark.parametrize("metric", ["accuracy", "ece", "loss"])
    def test_the_heat_map_has_a_row_for_each_corruption(self, table: pd.DataFrame, metric: str) -> None:
        from matplotlib.figure import Figure

        axes, summary = Figure().add_subplot(), summarize(table)
        draw_corruptions(axes, summary, metric)
        assert [label.get_text() for label in axes.get_yticklabels()] == ["contrast", "fog"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5"]
        factor = 1 if metric == "loss" else 100
        expected = summary.set_index(["corruption", "severity"])[metric][("fog", 1)]
        assert axes.get_images()[0].get_array()[1, 0] == pytest.approx(factor * expected)


class TestCommand:
    def analyze(self, *arguments: object) -> Result:
        options = ("--data", data_path("digits_vit"), "--mean", SCALE["mean"], "--std", SCALE["std"], "--samples", 20)
        parts = ["analyze", "corruptions", model_path("digits_vit"), *options, *arguments]
        return CliRunner().invoke(app, [str(part) for part in parts])

    def test_a_model_on_a_device_is_compared_with_itself(self, tmp_path: Path) -> None:
        result = self.analyze(
            "--device",
            "rram",
            "--chips",
            2,
            "--corruption",
            "fog,contrast",
            "--severity",
            "5,1",
            "--plot",
            tmp_path / "c.svg",
        )
        assert result.exit_code == 0, result.output
        head = next(line.split() for line in result.stdout.splitlines() if line.startswith("corruption "))
        assert head == ["corruption", "1", "5", "mean", "digital", "ece", "(%)", "loss", "ce"]
        assert "mCE" in result.stdout and "without its device  (95 % interval over chips" in result.stdout
        assert "15 runs of 20 samples: 5 sets of images x 3." in result.stderr
        data = pd.read_csv(tmp_path / "c.csv")
        assert data["corruption"].tolist() == ["none", "fog", "fog", "contrast", "contrast"]
        assert (tmp_path / "c.svg").stat().st_size > 5000

    def test_json_has_every_number(self) -> None:
        baseline = ("--baseline", model_path("digits_deit"))
        result = self.analyze("--corruption", "fog", "--severity", "4,5", "--corruption-seed", 3, *baseline, "--json")
        found = json.loads(result.stdout)
        assert len(found["corruptions"]) == 3 and found["corruption_seed"] == 3 and found["device"] is None
        own = sum(1 - row["accuracy"] for row in found["corruptions"] if row["severity"])
        other = sum(1 - row["baseline"] for row in found["corruptions"] if row["severity"])
        assert found["mce"] == pytest.approx(own / other)

    def test_without_a_baseline_there_is_no_relative_error(self) -> None:
        result = self.analyze("--corruption", "fog", "--severity", "5")
        assert result.exit_code == 0 and "mCE" not in result.stdout
        assert json.loads(self.analyze("--corruption", "fog", "--severity", "5", "--json").stdout)["mce"] is None

    def test_one_corrupted_set_is_not_corrupted_again(self) -> None:
        result = self.analyze("--corrupt", "fog:1")
        assert result.exit_code == 2 and "--corruption and --severity" in result.stderr
