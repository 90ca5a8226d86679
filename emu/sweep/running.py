"""Runs trials: here or on workers, each stored at once, those that the store holds not again."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from emu.errors import InputError
from emu.evaluation import Bench, Score, Task, Trial
from emu.evaluation.statistics import chip_spread
from emu.sweep.environment import UNKNOWN, Environment, here, mixture
from emu.sweep.plan import FEWEST, Plan, Structure, half_width
from emu.sweep.rows import Result, Row, table_of, trial_id
from emu.sweep.setup import Setup, describe, differences, rebuild, unexplained

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from emu.sweep.store import Store, Study
    from emu.sweep.workers import Pool

Progress = Callable[[int, int], None]
Workers = int | str | None

Price = Callable[[Trial], Mapping[str, float]]

_MIXED = "Note: this study mixes {}: the last bits of the model's own sums may differ between them."


def run_trials(
    bench: Bench,
    trials: Sequence[Trial],
    *,
    store: "Store | None" = None,
    study: str = "",
    progress: Progress | None = None,
    workers: Workers = None,
    keep_samples: bool = False,
    values: "list[NDArray[Any] | None] | None" = None,
) -> "pd.DataFrame":
    """Runs trials on a bench.

    Args:
        bench: a rewritten model and its data.
        trials: what to run; equal trials run once.
        store: where every finished trial is stored at once; trials that it holds under the same fingerprint are not run
            again.
        study: what the trials are for, a name in the store.
        progress: called with the trials run and the trials to run; those that the store held do not count.
        workers: number of local processes, or the address of a Dask scheduler, `tcp://host:8786`; None for none.
        keep_samples: store what each trial gives for each sample too, for `Store.samples`; trials that the store holds
            without it run again.
        values: gets `Score.values` of each trial, for statistics that are paired by sample; None of those that the
            store held.

    Returns:
        One row per trial in the order given. Columns: `seed`, `read_seed`, `head`, `strength`, `only`, `exclude`;
        `layer` and `component`, where `only` names just one of each; one for each number of the device that a trial
        sets (in the other rows the bench's own); one for each metric (shares are 0 to 1); `undefined`, the samples
        without a defined answer; `seconds`. `attrs["roles"]` says which are axes and which metrics.

    Raises:
        InputError: a trial as in `Bench.run` or with a list of faults for a store, or a library is not installed.
    """
    if store is not None and any(trial.faults is not None for trial in trials):
        raise InputError("A store holds no lists of faults: run these trials without one, or use emu.inject.")
    setup = describe(bench)
    runner = Runner(
        bench,
        setup,
        store.study(study, setup) if store else None,
        keep_samples=keep_samples,
        keep_values=values is not None,
    )
    runner.look_up(trials)
    runner.ask(trials)
    with workers_of(workers) as pool:
        for _ in runner.run(pool):
            if progress is not None:
                progress(runner.ran, runner.ran + runner.left)
    if values is not None:
        found = [runner.result(trial) for trial in trials]
        values += [None if each is None else each.score.values for each in found]
    return table_of(runner.rows(trials))


def run_plan(
    plan: Plan,
    *,
    store: "Store | None" = None,
    study: str = "sweep",
    new: bool = False,
    task: Task | None = None,
    progress: Progress | None = None,
    workers: Workers = None,
    echo: Callable[[str], object] | None = None,
    keep_samples: bool = False,
) -> "pd.DataFrame":
    """Runs a plan, and continues what the store holds of it.

    Args:
        plan: what to run.
        store: where every finished trial is stored at once.
        study: name of the study in the store.
        new: start another study of that name where the store has one of another model, device, data or task.
        task: what is measured, where a name in the plan does not tell.
        progress: as in `run_trials`; with `plan.until` the trials to run are at most so many.
        workers: as in `run_trials`. The results do not depend on it.
        echo: prints a line, such as how many trials the store held.
        keep_samples: as in `run_trials`.

    Returns:
        The table of `run_trials`, by point, chip and repetition.

    Raises:
        InputError: as in `Plan.structures`, `Structure.bench` and `Structure.points`; or the store has the study of
            something else, with what differs.
    """
    say = echo or (lambda _: None)
    structures = plan.structures()
    if len(structures) > 1:
        shaping = ", ".join(structures[0].chosen)
        say(f"{len(structures)} models are rewritten, one after the other: one for each value of {shaping}.")
    sweep = _Sweep(plan, structures, store, study, new, task, progress, say, keep_samples)
    with workers_of(workers) as pool:
        for structure in structures:
            sweep.run(structure, pool)
    return sweep.table()


class _Sweep:
    """A plan that is under way: structure after structure, each on its bench while it runs."""

    def __init__(
        self,
        plan: Plan,
        structures: Sequence[Structure],
        store: "Store | None",
        study: str,
        new: bool,
        task: Task | None,
        progress: Progress | None,
        say: Callable[[str], object],
        keep_samples: bool,
    ) -> None:
        self._plan, self._left, self._store, self._study, self._new = plan, len(structures), store, study, new
        self._task, self._progress, self._say_any = task, progress, say
        self._keep_samples = keep_samples
        self._width = half_width(plan.until)
        self._axes = [name for each in structures for name in each.chosen]
        self._number: int | None = None  # of the study in the store
        self._loaded: tuple[tuple[str, str], Bench] | None = None
        self._said: set[str] = set()
        self._ran = 0
        self._rows: list[Row] = []

    def run(self, structure: Structure, pool: "Pool | None") -> None:
        """Runs the trials of one structure that the store does not hold."""
        bench = self._bench(structure)
        setup = describe(bench)
        points = structure.points(bench)
        for line in _notes(bench):
            self._say(line)
        where = f" of {structure.name}" if structure.chosen else ""
        if points.left_out:
            every = len(points) + points.left_out
            self._say(f"{points.left_out} of {every} points{where} disturb no site and are left out.")
        if not len(points):
            self._left -= 1
            return
        runner = Runner(bench, setup, self._of_store(setup), self._price(bench), self._keep_samples)
        chains = [_Point(chips, bench.task.primary, self._width) for chips in points]
        runner.look_up(trial for chain in chains for chip in chain.chips for trial in chip)
        of_trial: dict[str, _Point] = {}
        for chain in chains:
            chain.advance(runner)
            if self._width is not None:
                of_trial |= {trial_id(setup, trial): chain for chip in chain.chips for trial in chip}
        if runner.held:
            self._say(f"The store holds {runner.held} of the trials{where} already.")
        mixed = runner.mixture(with_here=pool is None and runner.left > 0)
        if mixed:
            self._say(_MIXED.format(mixed))
        if runner.left:
            bench.warn(self._say)
        waiting = sum(chain.possible for chain in chains)
        self._left -= 1
        later = self._left * sum(len(chip) for chain in chains for chip in chain.chips)  # as if they were alike
        for trial in runner.run(pool):
            if self._width is not None:
                chain = of_trial[trial_id(setup, trial)]
                waiting -= chain.possible
                chain.advance(runner)
                waiting += chain.possible
            if self._progress is not None:
                done = self._ran + runner.ran
                self._progress(done, done + runner.left + waiting + later)
        if not mixed and (mixed := runner.mixture()):  # of workers of several kinds
            self._say(_MIXED.format(mixed))
        self._ran += runner.ran
        self._rows += runner.rows([trial for chain in chains for chip in chain.asked for trial in chip])

    def table(self) -> "pd.DataFrame":
        """What `run_plan` returns.

        Raises:
            InputError: every point of every structure was left out.
        """
        if not self._rows:
            raise InputError("No point of the sweep disturbs anything: no device acts where it looks.")
        return table_of(self._rows, dict.fromkeys(self._axes))

    def _bench(self, structure: Structure) -> Bench:
        """The bench; samples that the one before has loaded are not prepared again."""
        of = structure.experiment.model, structure.experiment.data
        loaded: dict[str, Any] = {} if self._task is None else {"task": self._task}
        if self._loaded is not None and self._loaded[0] == of:
            before = self._loaded[1]
            loaded = {"task": before.task, "data": before.dataset}
        bench = structure.bench(**loaded)
        self._loaded = of, bench
        return bench

    def _of_store(self, setup: Setup) -> "Study | None":
        """The study in the store, the one of all structures."""
        if self._store is None:
            return None
        if self._number is None and not self._new:
            self._number = _continued(self._store, self._study, setup, self._axes)
        found = self._store.study(self._study, setup, self._number)
        self._number = found.number
        return found

    def _price(self, bench: Bench) -> Price | None:
        if not (self._plan.cost or self._plan.costs_of):
            return None
        found: dict[str, dict[str, float]] = {}

        def price(trial: Trial) -> dict[str, float]:
            key = repr(sorted(trial.set.items()))
            if key not in found:
                found[key] = bench.cost(trial.set, self._plan.costs_of)
            return found[key]

        return price

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say_any(line)


def _notes(bench: Bench) -> list[str]:
    ignored = [
        f"Note: array '{name}' of {bench.dataset.where} is no input of the model and was not used."
        for name in bench.dataset.ignored
    ]
    return [*bench.about_sites, *(f"Note: {note}" for note in bench.dataset.notes), *ignored]


class _Point:
    """The chips of one point, asked for until there are enough."""

    def __init__(self, chips: list[list[Trial]], metric: str, width: float | None) -> None:
        self.chips, self._metric, self._width = chips, metric, width
        self._count, self._done = 0, False

    @property
    def asked(self) -> list[list[Trial]]:
        """The chips that were asked for."""
        return self.chips[: self._count]

    @property
    def possible(self) -> int:
        """Trials that may still be asked for."""
        return 0 if self._done else sum(len(chip) for chip in self.chips[self._count :])

    def advance(self, runner: "Runner") -> None:
        """Asks for the chips that are needed now; for none while results are missing."""
        while not self._done:
            values = [self._value(chip, runner) for chip in self.asked]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                return
            if self._count == len(self.chips) or (self._count >= FEWEST and self._is_narrow(known)):
                self._done = True
                return
            wanted = len(self.chips) if self._width is None else max(FEWEST, self._count + 1)
            runner.ask(trial for chip in self.chips[self._count : wanted] for trial in chip)
            self._count = wanted

    def _value(self, chip: list[Trial], runner: "Runner") -> float | None:
        """The metric of a chip, the mean of its repetitions; None while one is missing."""
        results = [runner.result(trial) for trial in chip]
        values = [result.score.metrics[self._metric] for result in results if result is not None]
        return fmean(values) if len(values) == len(results) else None

    def _is_narrow(self, values: list[float]) -> bool:
        if self._width is None or not all(map(math.isfinite, values)):
            return False
        spread = chip_spread(values)
        if spread.std == 0:  # equal chips have no interval, and more of them would be equal, too
            return True
        interval = spread.ci95
        return interval is not None and (interval[1] - interval[0]) / 2 <= self._width


@dataclass(frozen=True)
class Rerun:
    """A stored trial and the same trial run again.

    Attributes:
        id: its whole id.
        trial: the controls.
        then: what it gave then.
        now: what it gives now.
        ran_on: the software and processor of then.
        runs_on: those of now.
        tolerance: how far numbers may be apart to count as the same.
    """

    id: str
    trial: Trial
    then: Score
    now: Score
    ran_on: Environment = UNKNOWN
    runs_on: Environment = UNKNOWN
    tolerance: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether both gave the same numbers: to the last bit, or within the tolerance where there is one."""
        if not self.tolerance:
            return repr(_numbers(self.then)) == repr(_numbers(self.now))
        one, other = _shares(self.then), _shares(self.now)
        return (
            self.then.samples == self.now.samples
            and one.keys() == other.keys()
            and all(
                one[name] == other[name]
                or (math.isnan(one[name]) and math.isnan(other[name]))
                or abs(one[name] - other[name]) <= self.tolerance
                for name in one
            )
        )

    @property
    def differences(self) -> list[str]:
        """What differs between the software and processors of then and now."""
        return self.ran_on.differences(self.runs_on)


def rerun(
    store: "Store",
    id: str,
    *,
    task: Task | None = None,
    model: Path | None = None,
    data: Path | None = None,
    tolerance: float = 0.0,
) -> Rerun:
    """Runs a stored trial again.

    Args:
        store: where it is stored.
        id: its id, or the beginning of its id.
        task: what is measured, where its name does not tell.
        model: the model file, where it is another than then.
        data: the data file, where it is another than then.
        tolerance: how far each metric may be from then to count as the same, in its unit (shares are 0 to 1), and the
            counts of right and undefined answers as shares of the samples; 0 for the same to the last bit.

    Raises:
        InputError: no such trial, a negative tolerance, or as in `emu.sweep.setup.rebuild`.
    """
    if not 0 <= tolerance < math.inf:
        raise InputError(f"The tolerance is {tolerance:g} and must be at least 0, such as 1e-6.")
    whole_id, setup, trial, result = store.trial(id)
    now = rebuild(setup, task, model, data).run(trial)
    return Rerun(whole_id, trial, result.score, now, result.environment, here(setup.ops), tolerance)


def _numbers(score: Score) -> tuple[object, ...]:
    return sorted(score.metrics.items()), score.correct, score.samples, score.undefined


def _shares(score: Score) -> dict[str, float]:
    """All numbers of a score, counts of answers as shares of the samples."""
    counts = {"right answers": score.correct, "undefined answers": score.undefined}
    return {**score.metrics, **{name: count / score.samples for name, count in counts.items()}}


def _continued(store: "Store", study: str, setup: Setup, axes: Sequence[str]) -> int | None:
    """The number of the study that a sweep goes on with; None for one to begin.

    Raises:
        InputError: the store has studies of this name, and all of something else than this sweep, whatever varies.
    """
    same = [each for each in store.studies() if each.name == study]
    for each in reversed(same):
        if each.setup.identity == setup.identity or (axes and not unexplained(each.setup, setup, axes)):
            return each.number
    if same:
        what = "; ".join(differences(same[-1].setup, setup)) or "other sites are mapped"
        raise InputError(
            f"{store.where} holds a study '{study}' of something else: {what}. Give --new to start another study in "
            "this file."
        )
    return None


class Runner:
    """Runs what it is asked for, each trial once: those that the store holds not at all, the others in order."""

    def __init__(
        self,
        bench: Bench,
        setup: Setup,
        study: "Study | None",
        price: Price | None = None,
        keep_samples: bool = False,
        keep_values: bool = False,
    ) -> None:
        self._bench, self._setup, self._study = bench, setup, study
        bench.keep_samples, self._keep_values = keep_samples, keep_values
        if study is not None and keep_samples:
            study.describe_samples(bench.dataset.facts())
        self._price: Price = price or (lambda trial: {})
        self._held: dict[str, Result] = {}
        self._results: dict[str, Result] = {}
        self._asked: set[str] = set()
        self._todo: deque[Trial] = deque()
        self.ran = 0

    @property
    def left(self) -> int:
        """Trials that were asked for and are neither held nor run."""
        return len(self._asked) - len(self._results)

    @property
    def held(self) -> int:
        """Trials that were asked for and that the store held."""
        return len(self._results) - self.ran

    def look_up(self, trials: Iterable[Trial]) -> None:
        """Learns which of the trials that may be asked for the store holds."""
        if self._study is not None:
            self._held |= self._study.held(trials, self._bench.keep_samples)

    def ask(self, trials: Iterable[Trial]) -> None:
        """Adds trials to those to run; also while `run` is under way."""
        linked = []
        for trial in trials:
            key = trial_id(self._setup, trial)
            if key in self._asked:
                continue
            self._asked.add(key)
            if key in self._held:
                self._results[key] = self._held[key]
                linked.append(key)
            else:
                self._todo.append(trial)
        if self._study is not None:
            self._study.link(linked)

    def result(self, trial: Trial) -> Result | None:
        """The result of a trial, None while there is none."""
        return self._results.get(trial_id(self._setup, trial))

    def run(self, pool: "Pool | None" = None) -> Iterator[Trial]:
        """Runs what is asked for, and yields each trial when it is stored."""
        if not self._todo:
            return
        self._bench.require_plausible()
        for trial, result in self._here() if pool is None else pool.run(self._bench, self._setup, self._todo):
            result = replace(result, score=self._priced(trial, result.score))
            if self._study is not None:
                self._study.add(trial, result)
            # Of single samples memory has no room for all trials of a long sweep.
            values = result.score.values if self._keep_values else None
            result = replace(result, score=replace(result.score, outcomes=None, values=values))
            self._results[trial_id(self._setup, trial)] = result
            self.ran += 1
            yield trial

    def mixture(self, with_here: bool = False) -> str:
        """What differs among the software and processors of the results, and of this process; empty if nothing."""
        known = [result.environment for result in self._results.values()]
        return mixture([*known, here(self._setup.ops)] if with_here else known)

    def rows(self, trials: Iterable[Trial]) -> list[Row]:
        """Setup, trial and result of each trial, for `emu.sweep.rows.table_of`."""
        found = ((trial, self._results[trial_id(self._setup, trial)]) for trial in trials)
        return [
            (self._setup, trial, replace(result, score=self._priced(trial, result.score))) for trial, result in found
        ]

    def _priced(self, trial: Trial, score: Score) -> Score:
        """The score with what the trial costs on its device."""
        return replace(score, metrics={**score.metrics, **self._price(trial)})

    def _here(self) -> Iterator[tuple[Trial, Result]]:
        _ = self._bench.clean  # what trials are compared with, in the time of none
        while self._todo:
            trial = self._todo.popleft()
            start = time.perf_counter()
            score = self._bench.run(trial)
            yield trial, Result(score, time.perf_counter() - start, here(self._setup.ops))


@contextmanager
def workers_of(workers: Workers) -> "Iterator[Pool | None]":
    """The processes that trials run on; None for this one."""
    if workers is None:
        yield None
        return
    from emu.sweep.workers import Pool

    with Pool(workers) as pool:
        yield pool
