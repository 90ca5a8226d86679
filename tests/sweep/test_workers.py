"""Workers give the local table, row for row, whatever becomes of them."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from emu import Bench, InputError, Trial
from emu.sweep import Plan, Store, run_plan, run_trials

distributed = pytest.importorskip("distributed")

Make = Callable[..., Plan]
TIMES = ["seconds", "finished"]


@pytest.fixture(scope="module")
def cluster() -> "distributed.LocalCluster":
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster


def test_workers_give_the_local_table(plan: Make, tmp_path: Path, cluster: "distributed.LocalCluster") -> None:
    made = plan(vary={"program.sigma": "0.1,0.6", "layer": "0-1"}, until="ci=1%", most=6)
    with Store(tmp_path / "one.db") as one, Store(tmp_path / "other.db") as other:
        here = run_plan(made, store=one)
        there = run_plan(made, store=other, workers=cluster.scheduler_address)
        frames = [store.frame().drop(columns=TIMES) for store in (one, other)]
    pd.testing.assert_frame_equal(here.drop(columns="seconds"), there.drop(columns="seconds"))
    pd.testing.assert_frame_equal(*frames)


def test_model_and_data_are_gone_from_the_workers_afterwards(bench: Bench, cluster: "distributed.LocalCluster") -> None:
    run_trials(bench, [Trial()], workers=cluster.scheduler_address)
    with distributed.Client(cluster) as client:
        assert set(client.run(_held).values()) == {(0, 0)}


def test_a_trial_that_is_refused_on_a_worker_says_why(bench: Bench, cluster: "distributed.LocalCluster") -> None:
    with pytest.raises(InputError, match="layer=9"):
        run_trials(bench, [Trial(only="layer=9")], workers=cluster.scheduler_address)


def test_a_worker_that_dies_is_replaced_and_its_trial_runs_again(plan: Make, tmp_path: Path) -> None:
    made = plan(vary={"program.sigma": "0.5"}, seeds=40)
    store = Store(tmp_path / "s.db")
    killed: list[int] = []

    def kill_a_worker(done: int, total: int) -> None:
        if done == 5:
            killed.append(_a_worker(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    there = run_plan(made, store=store, workers=2, progress=kill_a_worker)
    assert killed and not Path(f"/proc/{killed[0]}/cmdline").exists()
    pd.testing.assert_frame_equal(there.drop(columns="seconds"), run_plan(made).drop(columns="seconds"))


def test_no_scheduler_and_no_workers_are_sentences(bench: Bench) -> None:
    with pytest.raises(InputError, match="no Dask scheduler at nonsense"):
        run_trials(bench, [Trial()], workers="nonsense")
    with pytest.raises(InputError, match="at least 1"):
        run_trials(bench, [Trial()], workers=0)


def _held() -> tuple[int, int]:
    from emu.sweep import workers

    return len(workers._parcels), len(workers._benches)


def _a_worker(parent: int) -> int:
    """A child process that runs trials."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            ours = f"PPid:\t{parent}\n" in status.read_text()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if ours and b"spawn_main" in command:
            return int(status.parent.name)
    raise AssertionError("no worker process")
