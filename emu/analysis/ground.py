"""What all analyses stand on: which chips run, where trials are kept, groups of sites, and what an analysis gives."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.contract.site import Site
from emu.errors import InputError
from emu.evaluation import Bench, Trial
from emu.evaluation.bench import seeds_of
from emu.evaluation.metrics import fixed, metric_spread, show_metric, within_bounds
from emu.evaluation.statistics import crossed

if TYPE_CHECKING:
    from emu.sweep import Store

ROUNDING = 1e-12
"""Losses that differ by less are equal: they are means of differences of shares, and their last bits are rounding."""
MOST_SHOWN = 20  # rows of a long table that are printed

Echo = Callable[[str], None]
Step = Callable[[int, int], None]
Panel = Callable[[Any], None]
"""Draws on the matplotlib Axes that it is given."""


class RunOptions(TypedDict, total=False):
    """Keyword arguments of every analysis, see `Run`."""

    chips: int
    first_seed: int
    read_seed: int
    store: "Store | None"
    echo: Echo | None
    progress: Step | None


@dataclass(frozen=True)
class Run:
    """How the trials of an analysis run.

    Args:
        chips: number of chips of each measurement, seeds `first_seed`, `first_seed` + 1, ...; the same in all.
        first_seed: seed of the first chip.
        read_seed: seed of the run-time noise.
        store: keeps trials, so that those that it has do not run again.
        echo: takes sentences, such as how many trials run and how long it takes.
        progress: called with the trials done and all of them.
    """

    chips: int = 10
    first_seed: int = 0
    read_seed: int = 0
    store: "Store | None" = None
    echo: Echo | None = None
    progress: Step | None = None

    @property
    def seeds(self) -> range:
        """Seeds of the chips.

        Raises:
            InputError: no chip, or seeds that do not exist.
        """
        return seeds_of(self.chips, self.first_seed)

    def trials(self, seeds: Iterable[int] | None = None, **controls: Any) -> list[Trial]:
        """A trial for each chip at these controls."""
        return [Trial(seed, self.read_seed, **controls) for seed in (self.seeds if seeds is None else seeds)]

    def say(self, sentence: str) -> None:
        """Passes on a sentence."""
        if self.echo is not None:
            self.echo(sentence)

    def measure(self, bench: Bench, trials: Sequence[Trial], what: str, study: str) -> "Measurement":
        """The task's primary metric of each trial; says before how many they are, and how long after the first.

        Args:
            bench: where they run.
            trials: what runs.
            what: how their number comes about, such as `36 parts x 10 chips`.
            study: what they are for.
        """
        from emu.sweep import run_trials

        self.say(f"{len(trials)} trials of {len(bench.dataset.labels)} samples: {what}.")
        bench.warn(self.say)  # runs the clean model first, so that it does not count as part of a trial
        start, timed = time.monotonic(), False

        def step(done: int, total: int) -> None:
            nonlocal timed
            seconds = (time.monotonic() - start) / max(done, 1) * (total - done)
            if not timed and done and seconds > 2:
                self.say(f"About {_duration(seconds)} from here.")
            timed = True
            if self.progress is not None:
                self.progress(done, total)

        samples: list[NDArray[Any] | None] = []
        table = run_trials(bench, trials, store=self.store, study=study, progress=step, values=samples)
        return Measurement(np.asarray(table[bench.task.primary], float), samples)


@dataclass(frozen=True)
class Measurement:
    """A metric of trials, or a difference of two.

    Args:
        means: over samples, of each trial, `[trials]`.
        samples: what these are the means of, `[trials]` arrays of `[samples]`; None where that is not known, as of a
            trial that a store held.
    """

    means: NDArray[np.float64]
    samples: "Sequence[NDArray[Any] | None]"

    @property
    def by_sample(self) -> bool:
        """Whether the samples of all trials are known."""
        return all(each is not None for each in self.samples)

    def __sub__(self, other: "Measurement") -> "Measurement":
        """Trial by trial and sample by sample; one that is of a single trial counts for all."""
        count = max(len(self.means), len(other.means))
        first, second = (list(each.samples) * (count // len(each.samples)) for each in (self, other))
        pairs = zip(first, second, strict=True)
        return Measurement(
            self.means - other.means,
            [None if a is None or b is None else a.astype(float) - b.astype(float) for a, b in pairs],
        )

    def unpaired(self) -> "Measurement":
        """The same by trial alone."""
        return Measurement(self.means, [None] * len(self.means))

    def of_chips(self, chips: int) -> "list[Measurement]":
        """Trials that follow each other, so many at a time."""
        starts = range(0, len(self.means), chips)
        return [Measurement(self.means[at : at + chips], self.samples[at : at + chips]) for at in starts]

    def interval(self) -> dict[str, float]:
        """Of a difference of shares on chips: `mean`, `std` over chips, its 95 % interval `low` to `high`, and `p`.

        Interval and p are over chips and samples (`emu.evaluation.statistics.crossed`); over chips alone where samples
        are not known.
        """
        known = [each for each in self.samples if each is not None]
        found = crossed(np.stack(known), -1.0, 1.0) if self.by_sample else crossed(self.means[:, None])
        return {**mean_and_interval(self.means), "low": found.low, "high": found.high, "p": found.p}


@dataclass(frozen=True)
class Section:
    """A table as it is printed: what it shows, its head, its rows, and lines below it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    below: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """What an analysis gives.

    Attributes:
        name: of the analysis, the key of its table in JSON.
        table: everything that was measured.
        sentence: what a person can do with it, in one sentence.
        heading: what it is of: model, device, data, clean accuracy, as lines.
        facts: the same as plain data.
        sections: the table as it is printed.
        more: further plain data for JSON.
        figures: panels that draw it side by side.
        caption: over all panels.
        size: of a panel, inches.
        drawn: what the figures show, where that is not the table.
    """

    name: str
    table: pd.DataFrame
    sentence: str = ""
    heading: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    sections: Sequence[Section] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[Panel] = ()
    caption: str = ""
    size: tuple[float, float] = (6.4, 4.2)
    drawn: pd.DataFrame | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.facts, **self.more, self.name: records(self.table), "sentence": self.sentence}

    def save(self, path: str | Path) -> list[Path]:
        """Draws into a file, .png, .svg or .pdf, and writes what it shows beside it as CSV; gives both files.

        Raises:
            InputError: as in `emu.analysis.figures.save_figure`.
        """
        from emu.analysis.figures import save_figure

        return save_figure(
            path, self.figures, self.table if self.drawn is None else self.drawn, self.caption, self.size
        )


def of_bench(bench: Bench) -> dict[str, Any]:
    """What an analysis is of: the arguments `heading`, `facts` and `caption` of `Analysis`."""
    metric = bench.task.primary
    shown, samples = show_metric(metric, bench.clean.metrics[metric]), bench.clean.samples
    device = f" ({bench.device_names}, {len(bench.sites)} sites)" if bench.manifest else ""
    on = f" on {bench.device_names}" if bench.manifest else ""
    return {
        "heading": [
            *([f"classes  {bench.dataset.about_classes}"] if bench.dataset.about_classes else []),
            f"model    {bench.name}{device}",
            *(f"         {line}" for line in bench.about_sites),
            f"data     {bench.dataset.where}, {samples} samples",
            f"clean    {metric} {shown}",
        ],
        "facts": {
            "model": bench.name,
            "device": bench.device_names or None,
            "about_sites": list(bench.about_sites),
            "settings": dict(bench.settings),
            "data": bench.dataset.where,
            "samples": samples,
            "metric": metric,
            "clean": bench.clean.metrics[metric],
        },
        "caption": f"{Path(bench.name).name}{on}, {samples} samples, clean {shown}",
    }


@dataclass(frozen=True)
class Group:
    """Sites that are looked at together.

    Attributes:
        selection: what selects exactly these sites, as `emu.contract.selection.Selection` reads it.
        layer: their transformer block, None outside blocks.
        component: what they do.
        sites: their entries of the manifest.
    """

    selection: str
    layer: int | None
    component: str
    sites: tuple[Site, ...]

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self.component if self.layer is None else f"layer {self.layer} {self.component}"

    @property
    def parameters(self) -> int:
        """Number of weights of the sites."""
        return sum(site.parameters for site in self.sites)


def groups_of(bench: Bench) -> list[Group]:
    """The sites of a bench by layer and component, in data-flow order.

    Raises:
        InputError: the model has no sites.
    """
    if not bench.sites:
        raise InputError(f"{bench.name} is not rewritten and has no sites: give a device.")
    members: dict[tuple[int | None, str], list[Site]] = {}
    for site in bench.sites:
        members.setdefault((site.layer, site.component), []).append(site)
    in_layers = {component for layer, component in members if layer is not None}
    groups = []
    for (layer, component), sites in members.items():
        if layer is not None:
            groups.append(Group(f"layer={layer} component={component}", layer, component, tuple(sites)))
        elif component not in in_layers:
            groups.append(Group(f"component={component}", None, component, tuple(sites)))
        else:  # no selection says "outside layers"
            groups += [Group(f"node={site.node}", None, component, (site,)) for site in sites]
    return groups


def disturbed_groups(bench: Bench) -> list[Group]:
    """The groups of `groups_of` at which something of a device acts: what is not disturbed is not robust.

    Raises:
        InputError: no sites, or none at which a device acts.
    """
    acting = [group for group in groups_of(bench) if any(site.index in bench.disturbed for site in group.sites)]
    if not acting:
        raise InputError(
            f"Nothing is disturbed: '{bench.device_names}' leaves all {len(bench.sites)} sites exact. Choose others "
            "(--only), or another device."
        )
    return acting


def undisturbed(bench: Bench) -> Measurement:
    """The task's primary metric of the undisturbed model, as of one trial.

    Raises:
        InputError: as in `clean_value`.
    """
    return Measurement(np.array([clean_value(bench)]), [bench.clean.values])


def clean_value(bench: Bench) -> float:
    """The task's primary metric of the undisturbed model.

    Raises:
        InputError: it is not finite, so that no loss can be told.
    """
    value = float(bench.clean.metrics[bench.task.primary])
    if not np.isfinite(value):
        raise InputError(
            f"The task measures {bench.task.primary}, which is {value:g} for the clean model, so that no loss can be "
            "told: choose another task, such as classification."
        )
    return value


def mean_and_interval(values: Sequence[float] | NDArray[np.float64], metric: str = "") -> dict[str, float]:
    """`mean`, `std`, and the 95 % t interval of the mean over chips, `low` to `high`; NaN for a single chip.

    With the name of a metric that is a share the interval is cut to 0 to 1; losses and differences have no name.
    """
    spread = metric_spread(metric, list(values))
    low, high = spread.ci95 or (np.nan, np.nan)
    return {"mean": spread.mean, "std": np.nan if spread.std is None else spread.std, "low": low, "high": high}


def marked(rows: Any, effect: str) -> Any:
    """Whether the effect of a row, or of each row of a table, is above zero with 95 % for all rows together."""
    return (rows[effect] > 0) & (rows["p_corrected"] < 0.05)


def p_shown(row: Mapping[str, Any], effect: str) -> str:
    """The corrected p of an effect, for a table; * where it is marked."""
    return f"{row['p_corrected']:.2g}" + " *" * bool(marked(row, effect))


def about_intervals(found: Sequence[Measurement], of: str) -> tuple[str, str]:
    """What intervals and marks below a table of parts mean, from what was measured on the chips of each."""
    others = "other chips and samples" if len(found[0].means) > 1 else "other samples on this chip"
    if not all(each.by_sample for each in found):
        others = "other chips alone where the store held trials, without their samples"
    return "", f"Intervals are for {others}; * is above 0 at 95 % for all {of} together (Holm)."


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as plain data for JSON; what is missing or not finite is null."""
    return [{str(name): plain(value) for name, value in row.items()} for row in table.astype(object).to_dict("records")]


def plain(value: Any) -> Any:
    """A cell as JSON has it: null where it is missing or not finite."""
    value = value.item() if hasattr(value, "item") else value
    missing = value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value))
    return None if missing else value


def points(row: Mapping[str, Any], name: str, metric: str = "") -> list[str]:
    """A share and its interval `low` to `high` as points, for a table; within the bounds of a metric, if it is one."""
    low, high = (100 * within_bounds(metric, float(row[end])) for end in ("low", "high"))
    interval = "-" if math.isnan(low) else f"{fixed(low, 2)} to {fixed(high, 2)}"
    return [fixed(100 * float(row[name]), 2), interval]


def number(value: Any, digits: int) -> str:
    """A number with so many digits, - where it is missing."""
    return "-" if pd.isna(value) else fixed(float(value), digits)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
