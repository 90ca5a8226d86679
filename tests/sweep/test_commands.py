"""The commands sweep, results and rerun."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from typer.testing import CliRunner, Result

from emu import Bench, __version__
from emu.cli import app
from emu.demo import data_path, model_path
from tests.sweep.test_store import old_store

ROOT = Path(__file__).parents[2]
MODEL = [model_path("digits_vit"), "--data", data_path("digits_test"), "--device", "rram", "--samples", 20]


def emu(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    result = emu(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "study.db"
    done = emu("sweep", *MODEL, "--vary", "program.sigma=0.1,0.5", "--vary", "layer=0-1", "--seeds", 3, "--store", path)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:5] == ["program.sigma", "layer", "chips", "trials", "accuracy"] and len(lines) == 5
    return path


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = ("numpy", "pandas", "sqlalchemy", "dask", "distributed", "pyarrow")
    check = f"import emu, emu.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_results_show_each_point(store: Path) -> None:
    shown = emu("results", store).stdout
    assert "study 1 'sweep'" in shown and "on rram, 20 samples" in shown and "12 trials" in shown
    rows = json.loads(emu("results", store, "--where", "program.sigma=0.5", "--json").stdout)
    assert [row["layer"] for row in rows] == [0, 1] and all(row["chips"] == 3 for row in rows)
    assert len(json.loads(emu("results", store, "--group", "program.sigma", "--json").stdout)) == 2
    assert "loss" in emu("results", store, "--metric", "loss").stdout
    assert "no metric 'los'" in refusal("results", store, "--metric", "los")


def test_results_show_the_statistics_that_are_asked_for(store: Path) -> None:
    head, *_ = emu("results", store).stdout.partition("\n\n")[2].splitlines()
    assert head.endswith("  95 % interval")
    shown = emu("results", store, "--statistics", "median, min,interval", "--confidence", "0.9").stdout
    lines = shown.partition("\n\n")[2].splitlines()
    assert [name.strip() for name in lines[0].split("  ") if name][-3:] == ["median", "min", "90 % interval"]
    rows = json.loads(emu("results", store, "--json").stdout)
    names = ["mean", "std", "low", "high", "min", "q05", "q25", "median", "q75", "q95", "max"]
    assert [name for name in rows[0] if name.startswith("loss.")] == [f"loss.{name}" for name in names]
    assert (
        all(row["loss.min"] <= row["loss.median"] <= row["loss.max"] for row in rows) and rows[0]["confidence"] == 0.95
    )
    assert "no statistic 'mode': choose among mean, std" in refusal("results", store, "--statistics", "mode")


def test_a_store_of_an_older_emu_is_migrated_on_demand(store: Path, tmp_path: Path) -> None:
    bench = Bench(MODEL[0], MODEL[2], device="rram", samples=5)
    frame = old_store(tmp_path / "old.db", bench)
    done = emu("results", tmp_path / "old.db", "--migrate", "--trials", "--json")
    assert "was a store of an older emu, of which" in done.stderr
    assert [row["id"] for row in json.loads(done.stdout)] == frame["id"].tolist()
    assert "older emu" not in emu("results", tmp_path / "old.db", "--migrate").output


def test_results_are_exported(store: Path, tmp_path: Path) -> None:
    assert emu("results", store, "--where", "layer=1", "--export", tmp_path / "t.csv").exit_code == 0
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 7
    for name in ("id", "seed", "program.sigma", "accuracy", "model", "data", "device", "batch_size", "emu", "setup"):
        assert name in lines[0].split(",")


def test_samples_are_kept_listed_and_exported(tmp_path: Path) -> None:
    store, flags = tmp_path / "s.db", ["--vary", "program.sigma=0.1,0.9", "--seeds", 1]
    assert emu("sweep", *MODEL, *flags, "--keep-samples", "--store", store).exit_code == 0
    lines = emu("results", store, "--samples").stdout.splitlines()
    assert lines[0].split()[2:6] == ["program.sigma", "seed", "read_seed", "sample"] and len(lines) == 41
    rows = json.loads(emu("results", store, "--samples", "--where", "program.sigma=0.9", "--json").stdout)
    assert [row["sample"] for row in rows] == list(range(20)) and {row["correct"] for row in rows} <= {True, False}
    assert emu("results", store, "--samples", "--export", tmp_path / "t.csv").exit_code == 0
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 41


def test_a_trial_runs_again(store: Path, tmp_path: Path) -> None:
    first = json.loads(emu("results", store, "--trials", "--json").stdout)[0]
    done = emu("rerun", store, first["id"])
    assert done.exit_code == 0 and "The same." in done.stdout
    assert json.loads(emu("rerun", store, first["id"], "--json").stdout)["equal"] is True
    wrong = tmp_path / "wrong.db"
    with sqlite3.connect(store) as connection, sqlite3.connect(wrong) as copy:
        connection.backup(copy)
        copy.execute("UPDATE emu_trial SET correct = correct + 1")
    done = emu("rerun", wrong, first["id"])
    assert done.exit_code == 1 and "NOT the same." in done.stdout


def test_results_and_reruns_name_the_software_and_the_processor(store: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.db"
    with sqlite3.connect(store) as connection, sqlite3.connect(mixed) as copy:
        connection.backup(copy)
        copy.execute("UPDATE emu_trial SET onnxruntime = '1.0' WHERE seed = 0")
        copy.execute("UPDATE emu_trial SET loss = loss + 1e-7")
    versions = f"emu {__version__}, onnxruntime {onnxruntime.__version__}"
    assert f"run with {versions}" in emu("results", store).stdout and "mixes" not in emu("results", store).output
    for json_too in ([], ["--json"], ["--trials", "--json"]):
        assert f"study 1 mixes onnxruntime 1.0 and {onnxruntime.__version__}" in emu("results", mixed, *json_too).stderr
    first = json.loads(emu("results", mixed, "--trials", "--json").stdout)[0]
    assert first["seed"] == 0 and first["onnxruntime"] == "1.0" and first["instruction_set"]
    done = emu("rerun", mixed, first["id"])
    assert done.exit_code == 1 and f"onnxruntime 1.0 then, {onnxruntime.__version__} now" in done.stdout
    done = emu("rerun", mixed, first["id"], "--tolerance", "1e-6")
    assert done.exit_code == 0 and "The same within 1e-06." in done.stdout
    told = json.loads(emu("rerun", mixed, first["id"], "--tolerance", "1e-6", "--json").stdout)
    assert told["ran_on"]["onnxruntime"] == "1.0" and told["runs_on"]["emu"] == __version__ and told["equal"]


def test_flags_write_the_plan_that_runs_the_same(store: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    flags = ["--vary", "program.sigma=0.1", "--vary", "program.sigma=0.5", "--vary", "layer=0-1"]
    written = emu("sweep", *MODEL, *flags, "--seeds", 3, "--write-plan", plan)
    assert written.exit_code == 0 and "Wrote" in written.stdout
    done = emu("sweep", "--plan", plan, "--store", store)
    assert done.exit_code == 0 and "holds 12 of the trials already" in done.stderr
    more = emu("sweep", "--plan", plan, "--seeds", 4, "--vary", "layer=0", "--store", store, "--json")
    assert [row["chips"] for row in json.loads(more.stdout)] == [4, 4]


def test_wrong_use_is_one_sentence(tmp_path: Path) -> None:
    store = ["--store", tmp_path / "s.db"]
    assert "needs a model and --data" in refusal("sweep", *store)
    assert "keeps its results" in refusal("sweep", *MODEL)
    assert "did you mean 'program.sigma'" in refusal("sweep", *MODEL, *store, "--vary", "sigma=1")
    assert "has no values" in refusal("sweep", *MODEL, *store, "--vary", "program.sigma")
    assert "is no axis" in refusal("sweep", *MODEL, *store, "--vary", "=1")
    assert "give one of them" in refusal("sweep", *MODEL, *store, "--workers", 1, "--scheduler", "tcp://x:1")
    assert "There is no store" in refusal("results", tmp_path / "s.db")
    assert not list(tmp_path.iterdir())
