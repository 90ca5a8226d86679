"""An interrupted sweep loses at most the running trial: a rerun ends with the table of an unbroken one."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from emu.sweep import Plan, Store, run_plan

ROOT = Path(__file__).parents[2]
TIMES = ["seconds", "finished"]


def start(plan: Path, store: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "emu", "sweep", "--plan", str(plan), "--store", str(store)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )


def listen_to_ctrl_c() -> None:
    """A shell's background jobs, and what they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_trials(store: Path, count: int) -> None:
    for _ in range(3000):
        if store.exists():
            try:
                with sqlite3.connect(store) as connection:
                    if connection.execute("SELECT count(*) FROM emu_trial").fetchone()[0] >= count:
                        return
            except sqlite3.OperationalError:  # no tables yet
                pass
        time.sleep(0.02)
    raise AssertionError("no trials were stored")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_resumed_table_equals_an_unbroken_one(plan: Callable[..., Plan], tmp_path: Path, how: signal.Signals) -> None:
    made = plan(vary={"program.sigma": "0.1,0.5", "layer": "all"}, seeds=8)
    made.write(tmp_path / "plan.toml")
    broken = tmp_path / "broken.db"
    process = start(tmp_path / "plan.toml", broken)
    wait_for_trials(broken, 5)
    process.send_signal(how)
    output, errors = process.communicate(timeout=60)
    assert output == ""
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in errors and "Traceback" not in errors

    with Store(broken) as resumed, Store(tmp_path / "unbroken.db") as unbroken:
        before = resumed.frame()
        assert 5 <= len(before) < 64
        tables = [run_plan(made, store=store).drop(columns="seconds") for store in (resumed, unbroken)]
        after, whole = (store.frame() for store in (resumed, unbroken))
    pd.testing.assert_frame_equal(*tables)
    pd.testing.assert_frame_equal(after.drop(columns=TIMES), whole.drop(columns=TIMES))
    assert len(after) == 64
    held = after[after["id"].isin(before["id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(held, before)  # times too: these did not run again
