"""Runs trials on a Dask cluster: model and data go to each worker once, trials go out, scores come back."""

import logging
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from emu.errors import InputError
from emu.evaluation import Bench, Task, Trial
from emu.evaluation.data import DataSet
from emu.libraries import library
from emu.sweep.environment import here
from emu.sweep.rows import Result, trial_id
from emu.sweep.setup import Setup
from emu.version import __version__

distributed = library("distributed", "cluster")
_Plugin: Any = distributed.WorkerPlugin

_CONNECT_S = 10
_WORKERS_S = 60


class WorkersDiedError(RuntimeError):
    """A trial ended every worker that tried it."""


@dataclass
class _Parcel:
    """What a worker needs to make the bench."""

    model: bytes | str  # a path where the model is too large for one message
    dataset: DataSet
    set: dict[str, float]
    task: Task
    batch_size: int
    ops: str
    emu: str

    def bench(self) -> Bench:
        """The bench, of one thread: a worker is one of many."""
        if self.emu != __version__:
            raise InputError(f"A worker has emu {__version__} and the sweep emu {self.emu}: install the same.")
        model = onnx.load_from_string(self.model) if isinstance(self.model, bytes) else self.model
        return Bench(
            model,
            self.dataset,
            set=self.set or None,
            task=self.task,
            batch_size=self.batch_size,
            threads=1,
            ops="python" if self.ops == "python" else "native",
        )


# On a worker, by run.
_parcels: dict[str, _Parcel] = {}
_benches: dict[str, Bench] = {}
_building = threading.Lock()


class _Deliver(_Plugin):  # type: ignore[misc]  # of incomplete type hints
    """Brings the parcel to every worker, also to one that joins later or takes the place of one that died."""

    def __init__(self, run: str, parcel: _Parcel, is_own: bool) -> None:
        self.name, self._run, self._parcel, self._is_own = run, run, parcel, is_own

    def setup(self, worker: Any) -> None:
        if self._is_own and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the driver ends its workers
        _parcels[self._run] = self._parcel

    def teardown(self, worker: Any) -> None:
        _parcels.pop(self._run, None)
        _benches.pop(self._run, None)


class Pool:
    """Processes that run trials, for one bench after another; started when they are first needed.

    Args:
        workers: number of local processes, or the address of a scheduler.
    """

    def __init__(self, workers: int | str) -> None:
        self._workers, self._stack = workers, ExitStack()
        self._client: Any = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def run(self, bench: Bench, setup: Setup, todo: deque[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Runs the trials of a queue, which may grow meanwhile, and yields each as it comes back.

        Args:
            bench: the bench to make again on every worker.
            setup: how it was made.
            todo: the queue; it is emptied.

        Raises:
            InputError: no scheduler there, workers without this emu, or a trial as in `Bench.run`.
            WorkersDiedError: a trial ended four workers, one after the other.
        """
        if self._client is None:
            self._client = self._stack.enter_context(_client(self._workers))
        workers, client = self._workers, self._client
        run = f"emu-{uuid.uuid4().hex}"
        parcel = _parcel(bench, setup)
        completed = distributed.as_completed()
        sent: dict[str, tuple[Any, Trial]] = {}
        try:
            client.register_plugin(_Deliver(run, parcel, is_own=isinstance(workers, int)))
            while todo or sent:
                while todo:
                    trial = todo.popleft()
                    future = client.submit(_run, run, trial, key=f"{run}-{trial_id(setup, trial)}")
                    sent[future.key] = future, trial
                    completed.add(future)
                future = next(completed)
                trial = sent[future.key][1]
                try:
                    result = future.result()
                except distributed.KilledWorker:
                    raise WorkersDiedError(
                        f"The trial {trial} ended every worker that tried it: is there enough memory?"
                    ) from None
                del sent[future.key]
                yield trial, result
        except Exception as error:
            # Dask raises exceptions without a type of their own here, with these words.
            if "No module named 'emu" in str(error) or "deserialization of the task graph" in str(error):
                raise InputError(
                    f"The scheduler or a worker at {workers} cannot import emu: install it there too, in this version."
                ) from None
            raise
        finally:
            with suppress(Exception):  # workers that ended meanwhile have nothing to forget
                client.cancel([future for future, _ in sent.values()])
                client.unregister_worker_plugin(run)


def _run(run: str, trial: Trial) -> Result:
    """Runs one trial on a worker."""
    with _building:
        if run not in _benches:
            bench = _parcels[run].bench()
            _ = bench.clean  # what trials are compared with, in the time of none
            _benches[run] = bench
    start = time.perf_counter()
    score = _benches[run].run(trial)
    return Result(score, time.perf_counter() - start, here(_parcels[run].ops))


def _parcel(bench: Bench, setup: Setup) -> _Parcel:
    model: bytes | str
    if isinstance(bench.model, str | Path):
        try:
            model = onnx.load(bench.model).SerializeToString()
        except Exception:  # beyond what one protobuf holds: the workers must see the file
            model = str(Path(bench.model).resolve())
    else:
        model = bench.model.SerializeToString()
    return _Parcel(model, bench.dataset, dict(setup.set), bench.task, bench.batch_size, setup.ops, __version__)


@contextmanager
def _client(workers: int | str) -> Iterator[Any]:
    if isinstance(workers, str):
        try:
            client = distributed.Client(workers, timeout=_CONNECT_S)
        except (OSError, ValueError):
            raise InputError(
                f"There is no Dask scheduler at {workers}: start one with 'dask scheduler', and workers with "
                "'dask worker' and its address."
            ) from None
        with client:
            try:
                client.wait_for_workers(1, timeout=_WORKERS_S)
            except TimeoutError:
                raise InputError(
                    f"The Dask scheduler at {workers} has no workers: start some with 'dask worker {workers}'."
                ) from None
            yield client
        return
    if workers < 1:
        raise InputError(f"workers is {workers} and must be at least 1.")
    # No limit on memory: Dask would pause or end workers by its own guess of what is free.
    with (
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            silence_logs=logging.CRITICAL + 1,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client
