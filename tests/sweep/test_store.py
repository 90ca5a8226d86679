"""Results are kept once, continue, belong to what was measured, and can be had again."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest

import emu
from emu import Bench, InputError, Trial, rewrite
from emu.demo import data_path, model_path
from emu.evaluation import DataSource, Score
from emu.evaluation.data import read_arrays
from emu.runtime.library import instruction_set
from emu.sweep import Plan, Store, keep, rerun, run_plan, run_trials, summarize
from emu.sweep.rows import Result, names_with, plain
from emu.sweep.setup import describe

Make = Callable[..., Plan]
TRIALS = [Trial(seed=seed, set={"program.sigma": sigma}) for sigma in (0.1, 0.5) for seed in (1, 0)]


def test_a_table_has_one_row_per_trial_in_the_order_given(bench: Bench) -> None:
    table = run_trials(bench, [*TRIALS, Trial(seed=1), TRIALS[0]])
    controls = ["seed", "read_seed", "head", "strength", "only", "exclude", "layer", "component"]
    assert list(table)[:10] == [*controls, "program.sigma", "accuracy"]
    roles = table.attrs["roles"]
    assert roles["program.sigma"] == roles["layer"] == "axis" and roles["accuracy"] == "metric"
    assert roles["seed"] == "repetition" and roles["seconds"] == "bookkeeping"
    assert list(table)[-2:] == ["undefined", "seconds"]
    assert table["seed"].tolist() == [1, 0, 1, 0, 1, 1]
    assert table["program.sigma"].tolist() == [0.1, 0.1, 0.5, 0.5, 0.1, 0.1]  # the bench's own where none is set
    assert table["accuracy"].tolist()[:4] == [bench.run(trial).accuracy for trial in TRIALS]
    assert table.iloc[0].equals(table.iloc[5])


def test_trials_that_the_store_holds_do_not_run_again(bench: Bench, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, TRIALS[:1], store=store, study="first")
        before = run_trials(bench, TRIALS, store=store, study="first", progress=lambda *done: calls.append(done))
        after = run_trials(bench, TRIALS, store=store, study="second", progress=lambda *done: calls.append(done))
        frames = [store.frame(study) for study in ("first", "second")]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    pd.testing.assert_frame_equal(before, after)  # times too: they are from the store
    pd.testing.assert_frame_equal(frames[0].drop(columns="study"), frames[1].drop(columns="study"))
    assert len(frames[0]) == 4


def test_equal_trials_are_one_however_they_are_written(bench: Bench, tmp_path: Path) -> None:
    same = [
        Trial(seed=1, strength=1, only="layer=0 component=key", set={"program.sigma": 1}),
        Trial(
            seed=int(np.int64(1)), strength=1.0, only=" layer=0  component=key ", set={"program.sigma": np.float64(1)}
        ),
    ]
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, same, store=store)
        assert len(store.frame()) == 1


def test_another_fingerprint_is_another_result(bench: Bench, tmp_path: Path) -> None:
    fewer = Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", samples=20)
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, TRIALS[:1], store=store, study="x")
        run_trials(fewer, TRIALS[:1], store=store, study="x")
        assert store.frame("x")["samples"].tolist() == [40, 20]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": model_path("digits_deit")}, "the model differs"),
        ({"set": {"program.sigma": 0.2}}, "the device differs .rram.program.sigma 0.1 then, 0.2 now"),
        ({"device": "pcm"}, "the device differs"),
        ({"exclude": "layer=0"}, "the device differs .other sites are mapped"),
        ({"samples": 20}, "the data differs .40 samples of .* then, 20 samples of .* now"),
        ({"task": "arrays"}, "the task differs .classification then, arrays now"),
    ],
)
def test_a_study_refuses_what_is_not_the_same_and_says_which_part(
    plan: Make, tmp_path: Path, change: dict[str, object], part: str
) -> None:
    with Store(tmp_path / "s.db") as store:
        run_plan(plan(seeds=1), store=store)
        with pytest.raises(InputError, match=part) as refusal:
            run_plan(plan(**{"seeds": 1, **change}), store=store)
        assert str(refusal.value).count(" differs ") == 1, "no other part is blamed"
        assert len(store.studies()) == 1


def test_a_new_study_may_stand_beside_the_old_one_and_both_continue(plan: Make, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        for seeds in (1, 2):
            run_plan(plan(seeds=seeds, samples=20), store=store, new=True)
            run_plan(plan(seeds=seeds, samples=10), store=store, new=True)
        run_plan(plan(seeds=3, samples=10), store=store)
        assert [(study.setup.samples, study.trials) for study in store.studies()] == [(20, 2), (10, 3)]


def test_a_stored_trial_gives_the_same_numbers_again(plan: Make, tmp_path: Path) -> None:
    made = plan(
        device="rram_adc",
        map=("component=ffn_*:pcm",),
        exclude="layer=3",
        set={"rram_adc:program.sigma": 0.3},
        vary={"pcm:drift.time_s": "1d", "head": "2"},
        batch_size=7,
        seeds=1,
    )
    with Store(tmp_path / "s.db") as store:
        table = run_plan(made, store=store)
        done = rerun(store, store.frame()["id"][0][:6])
    assert done.equal and done.then.accuracy == table["accuracy"][0]
    assert done.trial == Trial(head=2, set={"pcm:drift.time_s": 86400.0})


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"map": ["layer=0:pcm", ("component=ffn_*", "ideal")], "exclude": "layer=3", "share": "never"},
        {"only": "layer=0-1", "stored": "component=norm", "device": "int8_flips", "set": ["faults.ber=1e-3"]},
        {"task": "arrays", "batch_size": 7, "threads": 1},
    ],
)
def test_a_trial_of_a_bench_of_ones_own_runs_again(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_path("digits_vit").parent)
    data = DataSource(data_path("digits_test").name)
    bench = Bench(model_path("digits_vit").name, data, samples=20, **{"device": "rram", **made})
    monkeypatch.chdir(tmp_path)
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, [Trial(seed=3)], store=store)
        assert rerun(store, store.frame()["id"][0]).equal


def test_a_rewritten_model_runs_again_with_its_settings(tmp_path: Path) -> None:
    rewrite(model_path("digits_vit"), "rram", map=["layer=0:pcm"]).save(tmp_path / "model.onnx")
    changes = {"rram:program.sigma": 0.5, "pcm:drift.time_s": "1d"}
    bench = Bench(tmp_path / "model.onnx", data_path("digits_test"), set=changes, samples=20)
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, [Trial(seed=3)], store=store)
        assert rerun(store, store.frame()["id"][0]).equal


def test_what_was_in_memory_runs_again_from_its_file(tmp_path: Path) -> None:
    emulated = rewrite(model_path("digits_vit"), "rram")
    bench = Bench(emulated, read_arrays(data_path("digits_test"))[0], samples=20)
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, TRIALS[:1], store=store)
        trial = store.frame()["id"][0]
        with pytest.raises(InputError, match="The model of this trial was in memory"):
            rerun(store, trial)
        emulated.save(tmp_path / "model.onnx")
        with pytest.raises(InputError, match="The data of this trial was in memory"):
            rerun(store, trial, model=tmp_path / "model.onnx")
        assert rerun(store, trial, model=tmp_path / "model.onnx", data=data_path("digits_test")).equal


def test_a_rerun_says_what_is_missing_or_changed(plan: Make, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(model_path("digits_vit").read_bytes())
    with Store(tmp_path / "s.db") as store:
        run_plan(plan(model=model, seeds=1), store=store)
        trial = store.frame()["id"][0]
        with pytest.raises(InputError, match="no trial 'zz'"):
            rerun(store, "zz")
        model.write_bytes(model_path("digits_deit").read_bytes())
        with pytest.raises(InputError, match="cannot run again as it was: the model differs"):
            rerun(store, trial)
        model.unlink()
        with pytest.raises(InputError, match="give it with --model"):
            rerun(store, trial)
        assert rerun(store, trial, model=model_path("digits_vit")).equal


def test_a_result_in_the_store_that_is_wrong_is_found(plan: Make, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        run_plan(plan(seeds=1), store=store)
        with sqlite3.connect(tmp_path / "s.db") as connection:
            connection.execute("UPDATE emu_trial SET accuracy = accuracy + 1e-3")
        assert not rerun(store, store.frame()["id"][0]).equal


def test_numbers_that_are_not_finite_are_kept(bench: Bench, tmp_path: Path) -> None:
    metrics = {"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 0.1}
    with Store(tmp_path / "s.db") as store:
        study = store.study("x", describe(bench))
        study.add(Trial(), Result(Score(metrics, 0, 1, 0), 1.0))
        assert repr(store.frame()[list(metrics)].iloc[0].to_dict()) == repr(metrics)


def test_the_second_of_two_equal_insertions_is_ignored(bench: Bench, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as one, Store(tmp_path / "s.db") as other:
        for store, accuracy in ((one, 0.5), (other, 0.7)):
            study = store.study("x", describe(bench))
            study.add(Trial(), Result(Score({"accuracy": accuracy}, 0, 1, 0), 1.0))
        assert other.frame()["accuracy"].tolist() == [0.5]


def test_two_processes_may_write_one_store(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from emu import Bench, Trial
        from emu.demo import data_path, model_path
        from emu.sweep import Store, run_trials
        bench = Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", samples=5)
        seeds = range(30) if sys.argv[2] == "up" else range(29, -1, -1)
        with Store(sys.argv[1]) as store:
            print(run_trials(bench, [Trial(seed=seed) for seed in seeds], store=store)["accuracy"].sum())
    """
    store = tmp_path / "s.db"
    command = [sys.executable, "-c", code, store]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([*command, way], stdout=subprocess.PIPE, text=True, cwd=root) for way in ("up", "down")]
    sums = [float(process.communicate(timeout=100)[0]) for process in running]
    with Store(store) as opened, sqlite3.connect(store) as connection:
        frame = opened.frame()
        assert frame["seed"].tolist() == list(range(30))
        assert sums == pytest.approx([frame["accuracy"].sum()] * 2)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_storing_and_controls_cost_less_than_5_percent_of_a_second(bench: Bench, tmp_path: Path) -> None:
    trials = [Trial(seed=seed, only="layer=0", set={"program.sigma": 0.2}) for seed in range(50)]
    bench.run(trials[0])
    with Store(tmp_path / "s.db") as store:
        start = time.perf_counter()
        table = run_trials(bench, trials, store=store)
        storing = time.perf_counter() - start - table["seconds"].sum()
    start = time.perf_counter()
    for trial in trials:
        bench.controls(trial)
    controls = time.perf_counter() - start
    assert (storing + controls) / len(trials) < 0.05


def test_a_locked_store_is_a_sentence(bench: Bench, tmp_path: Path) -> None:
    run_trials(bench, TRIALS[:1], store=Store(tmp_path / "s.db"))
    blocker = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with (
        pytest.raises(InputError, match="is locked by another process"),
        Store(tmp_path / "s.db", patience_s=0.1) as store,
    ):
        run_trials(bench, TRIALS, store=store)
    blocker.close()


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    other.write_bytes(b"not a database, but long enough to be one" * 100)
    before = other.read_bytes()
    with pytest.raises(InputError, match="is no database"):
        Store(other)
    assert other.read_bytes() == before
    with pytest.raises(InputError, match="There is no folder"):
        Store(tmp_path / "none" / "s.db")
    with pytest.raises(InputError, match="is a folder"):
        Store(tmp_path)
    with pytest.raises(InputError, match="There is no store"):
        Store(tmp_path / "none.db", create=False)
    with pytest.raises(InputError, match="a database that emu cannot use") as refusal:
        Store("mysql://user:secret@host/base")
    assert "secret" not in str(refusal.value)
    with pytest.raises(InputError, match="is no URL"):
        Store("no such://thing")


def test_an_empty_store_says_so_and_makes_no_file(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        with pytest.raises(InputError, match="has no results"):
            store.frame()
        assert not (tmp_path / "s.db").exists()


def test_an_unknown_study_is_refused_with_those_there_are(bench: Bench, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, TRIALS[:1], store=store, study="one")
        assert len(store.frame("one")) == len(store.frame(1)) == len(store.frame("1")) == 1
        with pytest.raises(InputError, match="no study 'two': it has 1 'one'"):
            store.frame("two")


OLD = """
CREATE TABLE emu_setup (id VARCHAR(64) NOT NULL, setup TEXT NOT NULL, PRIMARY KEY (id));
CREATE TABLE emu_study (id INTEGER NOT NULL, name VARCHAR(200) NOT NULL, fingerprint VARCHAR(64) NOT NULL,
    setup_id VARCHAR(64) NOT NULL, started VARCHAR(32) NOT NULL, PRIMARY KEY (id), UNIQUE (name, fingerprint),
    FOREIGN KEY(setup_id) REFERENCES emu_setup (id));
CREATE TABLE emu_trial (id VARCHAR(16) NOT NULL, setup_id VARCHAR(64) NOT NULL, seed BIGINT NOT NULL,
    read_seed BIGINT NOT NULL, head INTEGER NOT NULL, strength DOUBLE NOT NULL, "only" TEXT, exclude TEXT,
    settings TEXT NOT NULL, metrics TEXT NOT NULL, correct BIGINT NOT NULL, samples BIGINT NOT NULL,
    undefined BIGINT NOT NULL, seconds DOUBLE NOT NULL, finished VARCHAR(32) NOT NULL, PRIMARY KEY (id),
    FOREIGN KEY(setup_id) REFERENCES emu_setup (id));
CREATE TABLE emu_member (study_id INTEGER NOT NULL, trial_id VARCHAR(16) NOT NULL, PRIMARY KEY (study_id, trial_id),
    FOREIGN KEY(study_id) REFERENCES emu_study (id), FOREIGN KEY(trial_id) REFERENCES emu_trial (id));
"""
"""The tables of the first emu; `onnxruntime` and `instruction_set` came to `emu_trial` later."""

OLD_TRIALS = [
    *TRIALS,
    Trial(seed=7, read_seed=1, strength=0.5, only="layer=1 component=query"),
    Trial(head=1, exclude="layer=2-3"),
]


def old_store(path: Path, bench: Bench, trials: list[Trial] = OLD_TRIALS) -> pd.DataFrame:
    """A store as the first emu wrote it, and its table as this one has it."""
    new = path.parent / "new" / "s.db"
    new.parent.mkdir()
    with Store(new) as store:
        table = run_trials(bench, trials, store=store, study="x")
        study = store.study("x", describe(bench))
        frame = store.frame()
        rows = [
            {
                **{name: value for name, value in plain(trial).items() if name != "set"},
                "id": study.id(trial),
                "settings": json.dumps(plain(trial)["set"]),
                "metrics": json.dumps({name: row[name] for name in names_with(table, "metric")}),
                "seconds": row["seconds"],
                "undefined": int(row["undefined"]),
            }
            for trial, row in zip(trials, table.to_dict("records"), strict=True)
        ]
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD)
        connection.execute("ATTACH ? AS new", [str(new)])
        connection.execute("INSERT INTO emu_setup SELECT id, setup FROM new.emu_setup")
        connection.execute("INSERT INTO emu_study SELECT * FROM new.emu_study")
        for row in rows:
            names = ", ".join(f'"{name}"' for name in row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(
                f"INSERT INTO emu_trial (setup_id, correct, samples, finished, {names})"
                f"SELECT setup_id, correct, samples, finished, {values} FROM new.emu_trial WHERE id = :id",
                row,
            )
        connection.execute("INSERT INTO emu_member SELECT * FROM new.emu_member")
    connection.close()
    shutil.rmtree(new.parent)
    return frame


def test_every_trial_says_what_computed_it(bench: Bench, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, TRIALS[:1], store=store)
        row = store.frame().iloc[0]
        assert (row["emu"], row["onnxruntime"]) == (emu.__version__, onnxruntime.__version__)
        assert row["instruction_set"] == instruction_set()
        done = rerun(store, row["id"])
    assert done.ran_on == done.runs_on and not done.differences


UNKNOWN = ["onnxruntime", "instruction_set", "platform"]


def test_a_store_of_an_older_emu_is_read_as_it_is(bench: Bench, tmp_path: Path) -> None:
    frame = old_store(tmp_path / "s.db", bench)
    before = (tmp_path / "s.db").read_bytes()
    with Store(tmp_path / "s.db", create=False) as store:
        pd.testing.assert_frame_equal(store.frame().drop(columns=UNKNOWN), frame.drop(columns=UNKNOWN))
        assert store.frame()["onnxruntime"].tolist() == [None] * 6
        done = rerun(store, frame["id"][0])
        assert done.equal and not done.differences, "what is not known does not differ"
    assert (tmp_path / "s.db").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_store_of_an_older_emu_is_migrated_when_written_and_a_copy_is_kept(bench: Bench, tmp_path: Path) -> None:
    frame = old_store(tmp_path / "s.db", bench)
    with Store(tmp_path / "s.db") as store:
        assert store.migrated == f"{tmp_path / 's.db'} was a store of an older emu, of which {tmp_path / 's.db'}" + (
            ".schema-1 is a copy."
        )
        pd.testing.assert_frame_equal(store.frame().drop(columns=UNKNOWN), frame.drop(columns=UNKNOWN))
        calls: list[tuple[int, int]] = []
        run_trials(bench, [*OLD_TRIALS, Trial(seed=9)], store=store, study="x", progress=lambda *it: calls.append(it))
        assert calls == [(1, 1)], "trials of the old store do not run again"
        assert store.frame()["onnxruntime"].dropna().tolist() == [onnxruntime.__version__]
    with Store(tmp_path / "s.db") as store, Store(tmp_path / "s.db.schema-1", create=False) as copy:
        assert not store.migrated and len(store.frame()) == 7
        pd.testing.assert_frame_equal(copy.frame().drop(columns=UNKNOWN), frame.drop(columns=UNKNOWN))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("metrics = '{'", "cannot be read"),
        ("metrics = '3'", "cannot be read"),
        ("metrics = json_set(metrics, '$.loss', 'low')", "'low'"),
        ("settings = '[1]'", "cannot be read"),
        ("settings = json_set(settings, '$.x', json('[]'))", "cannot be read"),
    ],
)
def test_a_damaged_store_of_an_older_emu_stays_as_it_is(bench: Bench, tmp_path: Path, change: str, said: str) -> None:
    old_store(tmp_path / "s.db", bench)
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute(f"UPDATE emu_trial SET {change}")
        before = list(connection.iterdump())
    for writes in (False, True):
        with pytest.raises(InputError, match=f"trial [0-9a-f]{{16}} cannot be read .*{said}|{said}") as refusal:
            Store(tmp_path / "s.db", create=writes)
        assert "\n" not in str(refusal.value)
        with sqlite3.connect(tmp_path / "s.db") as connection:
            assert list(connection.iterdump()) == before


def test_a_store_of_a_newer_emu_is_refused(bench: Bench, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, TRIALS[:1], store=store)
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE emu_store SET schema_version = 99")
    for writes in (False, True):
        with pytest.raises(InputError, match="written by a newer emu, whose tables are of version 99: emu .* reads"):
            Store(tmp_path / "s.db", create=writes)


def test_sql_can_ask_axes_and_metrics(bench: Bench, tmp_path: Path) -> None:
    trials = [Trial(seed=seed, only=f"layer={layer}") for layer in (0, 1) for seed in (0, 1)]
    with Store(tmp_path / "s.db") as store:
        table = run_trials(bench, [*trials, Trial(only="layer=2-3")], store=store)
        run_trials(bench, TRIALS, store=store)
    with sqlite3.connect(tmp_path / "s.db") as connection:
        found = dict(connection.execute("SELECT layer, avg(accuracy) FROM emu_results GROUP BY layer").fetchall())
        sigma = """SELECT "program.sigma", count(*) FROM emu_results GROUP BY 1 ORDER BY 1"""
        assert connection.execute(sigma).fetchall() == [(0.1, 7), (0.5, 2)], "of others the bench's own"
        roles = dict(connection.execute("SELECT name, role FROM emu_column").fetchall())
        columns = [row[1] for row in connection.execute("PRAGMA table_info(emu_results)")]
    by_layer = table.groupby("layer")["accuracy"].mean()
    assert {layer: found[layer] for layer in (0, 1)} == pytest.approx(by_layer.to_dict())
    assert set(roles) == set(columns) and roles["accuracy"] == "metric" and roles["program.sigma"] == "axis"


def test_a_condition_on_a_layer_holds_beside_studies_of_several(bench: Bench, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, [Trial(only="layer=2-3")], store=store, study="wide")
        with pytest.raises(InputError, match="No trial has layer=0: they select only=layer=2-3"):
            keep(store.frame(), ["layer=0"])
        run_trials(bench, [Trial(only="layer=0"), Trial(only="layer=1")], store=store, study="single")
        assert keep(store.frame(), ["layer=0"])["only"].tolist() == ["layer=0"]


def test_names_that_a_database_does_not_take_are_kept(bench: Bench, tmp_path: Path) -> None:
    names = ["F1", "f1", "a" * 70, "100 %", 'of "words"', "b:c", "Seed"]
    metrics = {name: float(place) for place, name in enumerate(names)}
    with Store(tmp_path / "s.db") as store:
        study = store.study("x", describe(bench))
        study.add(Trial(), Result(Score(metrics, 0, 1, 0), 1.0))
        assert store.frame()[names].iloc[0].to_dict() == metrics
        assert study.held([Trial()])[study.id(Trial())].score.metrics == metrics
        with pytest.raises(InputError, match="Every result has a column 'seed': give the metric of this name another"):
            study.add(Trial(seed=1), Result(Score({"seed": 1.0}, 0, 1, 0), 1.0))


def test_what_differs_between_the_benches_of_a_study_is_an_axis(tmp_path: Path) -> None:
    benches = {
        bits: Bench(
            model_path("digits_vit"), data_path("digits_test"), device="rram_adc", samples=5, set=f"adc.bits={bits}"
        )
        for bits in (6, 8)
    }
    with Store(tmp_path / "s.db") as store:
        number = None
        for bench in benches.values():
            study = store.study("bits", describe(bench), number)
            number = study.number
            for seed in (0, 1):
                study.add(Trial(seed=seed), Result(bench.run(Trial(seed=seed)), 1.0))
        frame = store.frame("bits")
        assert frame["adc.bits"].tolist() == [6, 6, 8, 8] and set(frame["study"]) == {1}
        assert list(summarize(frame))[:3] == ["adc.bits", "chips", "trials"]


def test_a_study_that_mixes_versions_or_processors_says_so(plan: Make, tmp_path: Path) -> None:
    said: list[str] = []
    with Store(tmp_path / "s.db") as store:
        run_plan(plan(seeds=1), store=store, echo=said.append)
        with sqlite3.connect(tmp_path / "s.db") as connection:
            connection.execute("UPDATE emu_trial SET onnxruntime = '1.0', instruction_set = 'abacus'")
        assert not [line for line in said if "mixes" in line]
        run_plan(plan(seeds=2), store=store, echo=said.append)
        notes = [line for line in said if "mixes" in line]
        assert len(notes) == 1
        assert f"onnxruntime 1.0 and {onnxruntime.__version__}; instruction set abacus and " in notes[0]
        trial = store.frame()["id"][0]
        assert rerun(store, trial).differences == [
            f"onnxruntime 1.0 then, {onnxruntime.__version__} now",
            f"instruction set abacus then, {instruction_set()} now",
        ]


def test_a_rerun_may_tolerate_a_small_difference(plan: Make, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        run_plan(plan(seeds=1), store=store)
        trial = store.frame()["id"][0]
        with sqlite3.connect(tmp_path / "s.db") as connection:
            connection.execute("UPDATE emu_trial SET loss = loss + 1e-7")
        assert [rerun(store, trial, tolerance=each).equal for each in (0, 1e-8, 1e-6)] == [False, False, True]
        with sqlite3.connect(tmp_path / "s.db") as connection:
            connection.execute("UPDATE emu_trial SET correct = correct + 1")
        assert not rerun(store, trial, tolerance=1e-6).equal
        with pytest.raises(InputError, match="must be at least 0"):
            rerun(store, trial, tolerance=-1)


def test_study_names_have_one_limit(bench: Bench, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        store.study("x" * 200, describe(bench))
        with pytest.raises(InputError, match="has 201 characters: give one of at most 200"):
            store.study("x" * 201, describe(bench))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE emu_setup SET setup = 'half of {'", "how its bench was made is damaged"),
        ("UPDATE emu_setup SET setup = '[]'", "it is no object of JSON"),
        ("UPDATE emu_setup SET setup = json_remove(setup, '$.task')", "'task' is missing"),
        ("UPDATE emu_setup SET setup = json_set(setup, '$.samples', 'many')", "'samples' is \"many\""),
        ("UPDATE emu_setup SET setup = json_set(setup, '$.settings', 3)", "'settings' is 3"),
        (f"UPDATE emu_setup SET setup = '{'[' * 100_000}'", "how its bench was made is damaged"),
        ("UPDATE emu_setup SET setup = json_set(setup, '$.emu', '9.0', '$.later', 1)", "written by emu 9.0, which"),
        ("UPDATE emu_trial SET seconds = 'soon'", "trial [0-9a-f]+ cannot be read .*'soon' is no number"),
        ("UPDATE emu_trial SET seed = 'one'", "'one' is no whole number"),
        ("UPDATE emu_trial SET correct = 'all'", "'all' is no whole number"),
        ("UPDATE emu_trial SET loss = 'low'", "'low'"),
        ("""UPDATE emu_trial SET "program.sigma" = x'00'""", "is no number"),
    ],
)
def test_a_damaged_store_is_one_sentence(bench: Bench, tmp_path: Path, change: str, said: str) -> None:
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, TRIALS[:1], store=store, study="x")
        trial = store.frame()["id"][0]
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute(change)
    with Store(tmp_path / "s.db", create=False) as store:
        for read in (store.frame, lambda: store.trial(trial)):
            with pytest.raises(InputError, match=said) as refusal:
                read()
            assert "\n" not in str(refusal.value) and str(tmp_path / "s.db") in str(refusal.value)


def test_a_store_in_a_read_only_folder_can_be_read(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "medium"
    folder.mkdir()
    with Store(folder / "s.db") as store:
        run_trials(bench, TRIALS[:2], store=store, study="x")
        before = store.frame()
    with as_nobody(tmp_path, folder):
        with Store(folder / "s.db", create=False) as store:
            pd.testing.assert_frame_equal(store.frame(), before)
            assert [study.trials for study in store.studies()] == [2]
            assert store.trial(before["id"][0])[0] == before["id"][0]
        with pytest.raises(InputError, match="cannot be written"), Store(folder / "s.db") as store:
            run_trials(bench, TRIALS, store=store, study="x")
    assert [path.name for path in folder.iterdir()] == ["s.db"]


@contextmanager
def as_nobody(tmp_path: Path, folder: Path) -> Iterator[None]:
    """A folder that cannot be written to, and the rights of a user who is no administrator."""
    folder.chmod(0o555)
    for path in (folder / "s.db", *folder.glob("s.db-*")):
        path.chmod(0o444)
    changed = []
    for parent in tmp_path.parents:  # pytest makes its folders for their owner alone
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            changed.append((parent, parent.stat().st_mode))
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
        for parent, mode in changed:
            parent.chmod(mode)


SECRET = "pa55word"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://me:{SECRET}@127.0.0.1:1/base", "cannot be reached .*check host, port"),
        (f"postgresql://me@127.0.0.1:1/base?password={SECRET}", "cannot be reached"),
        (f"postgres://me:{SECRET}@127.0.0.1:1/base", "cannot be reached"),
        (f"postgresql://me:{SECRET}@127.0.0.1:port/base", "is no URL of a database: write postgresql://"),
        (f"postgresql://me:{SECRET}@127.0.0.1:99999/base", "cannot be reached"),
        (f"postgresql://me:p@{SECRET}@127.0.0.1/base", "more than one @: write one in the password as %40"),
        (f"postgresql+nonsense://me:{SECRET}@127.0.0.1/base", "is no URL of a database"),
        (f"mysql://me:{SECRET}@127.0.0.1/base", "a database that emu cannot use"),
        (f"no such://me:{SECRET}@127.0.0.1/base", "is no URL"),
    ],
)
def test_a_wrong_url_is_one_sentence_without_the_password(url: str, said: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError, match=said) as refusal:
        Store(url)
    assert SECRET not in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("missing", [ModuleNotFoundError("No module named 'psycopg'"), ImportError("no pq wrapper")])
def test_a_missing_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch, missing: ImportError) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise missing

    monkeypatch.setattr("sqlalchemy.create_engine", refuse)
    with pytest.raises(InputError, match=r"needs psycopg with its library: pip install 'psycopg\[binary\]'") as refusal:
        Store(f"postgresql://me:{SECRET}@127.0.0.1/base")
    assert SECRET not in str(refusal.value)


def test_outcomes_of_samples_are_kept_and_make_the_metrics(bench: Bench, tmp_path: Path) -> None:
    trials = [Trial(seed=seed, set={"program.sigma": sigma}) for sigma in (0.1, 0.9) for seed in (0, 1)]
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, trials[:1], store=store, study="x")
        with pytest.raises(InputError, match="holds no outcomes of samples of these trials: sweep with --keep-samples"):
            store.samples(store.frame())
        calls: list[tuple[int, int]] = []
        run = {"store": store, "study": "x", "keep_samples": True, "progress": lambda *done: calls.append(done)}
        table = run_trials(bench, trials, **run)
        run_trials(bench, trials, **run)
        assert len(calls) == 4, "also the one without samples runs again, and none twice"
        samples = store.samples(store.frame())
        size = sqlite3.connect(tmp_path / "s.db").execute("SELECT max(length(arrays)) FROM emu_outcome").fetchone()[0]
    columns = ["id", "study", "program.sigma", "seed", "read_seed", "sample", "label", "predicted", "correct", "margin"]
    assert list(samples) == columns and len(samples) == 4 * 40 and size < 1500
    by_trial = samples.groupby(["program.sigma", "seed"])["correct"].mean()
    assert by_trial.tolist() == table["accuracy"].tolist()
    right = samples["predicted"] == samples["label"]
    assert (right == samples["correct"]).all() and ((samples["margin"] > 0) == right).all()
    assert samples["label"].tolist() == bench.dataset.labels.tolist() * 4


def test_damaged_samples_are_one_sentence(bench: Bench, tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, TRIALS[:1], store=store, keep_samples=True)
        with sqlite3.connect(tmp_path / "s.db") as connection:
            connection.execute("UPDATE emu_outcome SET arrays = x'00'")
        with pytest.raises(InputError, match="is damaged: trial [0-9a-f]{16} cannot be read .its samples: ") as refusal:
            store.samples(store.frame())
    assert "\n" not in str(refusal.value)
