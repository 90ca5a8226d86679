"""A PostgreSQL database holds the same as a file, survives a server that goes away, and keeps its password."""

import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sql

from emu import Bench, InputError, Trial
from emu.sweep import Plan, Store, rerun, run_plan, run_trials
from emu.sweep.setup import describe
from tests.sweep import postgres
from tests.sweep.test_interrupted import listen_to_ctrl_c
from tests.sweep.test_store import OLD, UNKNOWN, old_store

pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(postgres.programs() is None, reason="PostgreSQL is not installed")

Make = Callable[..., Plan]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


def test_it_holds_the_same_as_a_file(plan: Make, tmp_path: Path, server: postgres.Server) -> None:
    made = plan(vary={"program.sigma": "0.1,0.5", "seed": "0,4294967295"})
    with Store(server.url) as database, Store(tmp_path / "s.db") as file:
        frames = []
        for store in (database, file):
            run_plan(made, store=store, study=str(tmp_path))
            frames.append(store.frame(str(tmp_path)).drop(columns=["study", "seconds", "finished"]))
        pd.testing.assert_frame_equal(*frames)
        assert rerun(database, frames[0]["id"][0]).equal
        assert postgres.PASSWORD not in database.where


def test_sql_and_samples_are_those_of_a_file(bench: Bench, tmp_path: Path, server: postgres.Server) -> None:
    trials = [
        Trial(seed=seed, only=f"layer={layer}", set={"program.sigma": 0.7}) for layer in (0, 1) for seed in (0, 1)
    ]
    asked, samples = [], []
    for where in (server.url, tmp_path / "s.db"):
        with Store(where) as store:
            run_trials(bench, trials, store=store, study="sql", keep_samples=True)
            frame = store.frame("sql")
            samples.append(store.samples(frame).drop(columns="study"))
            view = f"FROM emu_results WHERE study = {frame['study'][0]} GROUP BY layer ORDER BY layer"
            query = sql.text(f'SELECT layer, avg(accuracy), min("program.sigma") {view}')
            asked.append([tuple(row) for row in store.database.rows(query)])
    assert [row[0] for row in asked[0]] == [0, 1] and asked[0][0][2] == 0.7
    assert asked[0] == [pytest.approx(row) for row in asked[1]]
    pd.testing.assert_frame_equal(*samples)


def test_a_database_of_an_older_emu_is_migrated_and_its_tables_are_kept(bench: Bench, tmp_path: Path) -> None:
    frame = old_store(tmp_path / "old.db", bench)
    with postgres.server() as other:
        postgres_text = OLD.replace("DOUBLE", "DOUBLE PRECISION").replace(
            "emu_study (id INTEGER", "emu_study (id SERIAL"
        )
        engine = sql.create_engine(other.url.replace("postgresql:", "postgresql+psycopg:"))
        with sqlite3.connect(tmp_path / "old.db") as file, engine.begin() as connection:
            for statement in postgres_text.split(";\n"):
                connection.exec_driver_sql(statement) if statement.strip() else None
            for table in ("emu_setup", "emu_study", "emu_trial", "emu_member"):
                rows = file.execute(f"SELECT * FROM {table}")
                names = ", ".join(f'"{column[0]}"' for column in rows.description)
                marks = ", ".join(["%s"] * len(rows.description))
                for row in rows.fetchall():
                    connection.exec_driver_sql(f"INSERT INTO {table} ({names}) VALUES ({marks})", row)
            connection.exec_driver_sql("SELECT setval('emu_study_id_seq', 1)")
        with pytest.raises(InputError, match="is a store of an older emu: 'emu results .* --migrate' brings it"):
            Store(other.url, create=False)
        with Store(other.url) as store:
            assert "whose tables are kept as emu_trial_1 and emu_member_1" in store.migrated
            pd.testing.assert_frame_equal(store.frame().drop(columns=UNKNOWN), frame.drop(columns=UNKNOWN))
            assert store.database.rows(sql.text("SELECT count(*) FROM emu_trial_1"))[0][0] == len(frame)
            run_trials(bench, [Trial(seed=9)], store=store, study="y")
            assert len(store.frame()) == len(frame) + 1
        engine.dispose()


def test_study_names_have_the_limit_of_a_file(bench: Bench, server: postgres.Server) -> None:
    with Store(server.url) as store:
        store.study("ü" * 200, describe(bench))
        with pytest.raises(InputError, match="has 201 characters: give one of at most 200"):
            store.study("ü" * 201, describe(bench))


def test_a_sweep_goes_on_when_the_server_was_away(bench: Bench, server: postgres.Server) -> None:
    trials = [Trial(seed=seed) for seed in range(6)]
    back: list[threading.Thread] = []

    def progress(done: int, total: int) -> None:
        if done == 2:
            server.stop()
            back.append(threading.Thread(target=lambda: (time.sleep(1), server.start())))
            back[0].start()

    with Store(server.url) as store:
        table = run_trials(bench, trials, store=store, study="away", progress=progress)
        back[0].join()
        assert store.frame("away")["accuracy"].tolist() == table["accuracy"].tolist()


def test_a_server_that_does_not_come_back_is_one_sentence(bench: Bench, server: postgres.Server) -> None:
    with Store(server.url, patience_s=0.5) as store:
        study = store.study("gone", describe(bench))
        server.stop()
        try:
            with pytest.raises(InputError, match="does not answer any more .*goes on from there") as refusal:
                study.held([Trial(seed=77)])
        finally:
            server.start()
        assert "\n" not in str(refusal.value) and postgres.PASSWORD not in str(refusal.value)
        assert study.held([Trial(seed=77)]) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((postgres.PASSWORD, "wr0ng"), "cannot be reached .*password authentication failed"),
        (("/postgres", "/nothing"), 'cannot be reached .*"nothing" does not exist'),
    ],
)
def test_what_does_not_open_is_one_sentence(server: postgres.Server, change: tuple[str, str], said: str) -> None:
    head, tail = server.url.split("//")
    with pytest.raises(InputError, match=said) as refusal:
        Store(f"{head}//{tail.replace(*change)}")
    assert "\n" not in str(refusal.value)
    assert postgres.PASSWORD not in str(refusal.value) and "wr0ng" not in str(refusal.value)


def test_ctrl_c_and_results_print_no_password(plan: Make, tmp_path: Path, server: postgres.Server) -> None:
    plan(vary={"program.sigma": "0.1,0.5", "layer": "all"}, seeds=50).write(tmp_path / "plan.toml")
    emu = [sys.executable, "-m", "emu"]
    command = [*emu, "sweep", "--plan", str(tmp_path / "plan.toml"), "--store", server.url, "--study", "stopped"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=listen_to_ctrl_c, **pipes)
    with Store(server.url) as store:
        for _ in range(600):
            if any(each.name == "stopped" and each.trials > 2 for each in store.studies()):
                break
            time.sleep(0.05)
        trial = store.frame("stopped")["id"][0]
    os.kill(process.pid, 2)
    printed = "".join(process.communicate(timeout=60))
    assert process.returncode == 130 and "the same command goes on from there" in printed
    for arguments in (
        ["results", server.url, "--study", "stopped"],
        ["results", server.url, "--study", "other"],
        ["results", server.url, "--study", "stopped", "--trials", "--json"],
        ["rerun", server.url, trial],
        ["rerun", server.url, "zz"],
        ["report", server.url, "--study", "stopped", "-o", str(tmp_path / "page.html")],
    ):
        done = subprocess.run([*emu, *arguments], cwd=ROOT, capture_output=True, text=True)
        printed += done.stdout + done.stderr
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
    assert postgres.PASSWORD not in printed + (tmp_path / "page.html").read_text("utf-8")
    assert re.search(r"postgresql(\+psycopg)?://me:\*\*\*@127.0.0.1", printed)
