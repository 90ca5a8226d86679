"""Which parts of a model lose accuracy: trials with only one part disturbed, and with all but one.

Also the ground that the other analyses stand on: groups of sites, trials that are announced, paired differences.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from emu.analysis.figures import half_width, heat_map
from emu.contract.site import Site
from emu.errors import InputError
from emu.evaluation import Bench, Trial
from emu.evaluation.bench import seeds_of
from emu.evaluation.metrics import metric_spread

if TYPE_CHECKING:
    from emu.sweep import Store

Mode = Literal["only", "all-but", "both"]
ROUNDING = 1e-12
"""Losses that differ by less are equal: they are means of differences of shares, and their last bits are rounding."""

Echo = Callable[[str], None]
Step = Callable[[int, int], None]


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


def run_announced(
    bench: Bench,
    trials: Sequence[Trial],
    what: str,
    *,
    store: "Store | None" = None,
    study: str = "",
    echo: Echo | None = None,
    progress: Step | None = None,
) -> pd.DataFrame:
    """Runs trials, as `emu.sweep.run_trials` does; says before how many they are, and how long after the first.

    Args:
        bench: where they run.
        trials: what runs.
        what: how their number comes about, such as `36 parts x 10 chips`.
        store: keeps results, so that trials that it has do not run again.
        study: what they are for.
        echo: takes the sentences.
        progress: called with the trials done and all of them.
    """
    from emu.sweep import run_trials

    say = echo or (lambda sentence: None)
    say(f"{len(trials)} trials of {len(bench.dataset.labels)} samples: {what}.")
    bench.warn(say)  # runs the clean model first, so that it does not count as part of a trial
    start, timed = time.monotonic(), False

    def step(done: int, total: int) -> None:
        nonlocal timed
        seconds = (time.monotonic() - start) / max(done, 1) * (total - done)
        if not timed and done and seconds > 2:
            say(f"About {_duration(seconds)} from here.")
        timed = True
        if progress is not None:
            progress(done, total)

    return run_trials(bench, trials, store=store, study=study, progress=step)


def primary_values(bench: Bench, table: pd.DataFrame) -> list[float]:
    """The task's primary metric of each trial of a table of `emu.sweep.run_trials`."""
    return [float(value) for value in table[bench.task.primary]]


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


def mean_and_interval(values: Sequence[float], metric: str = "") -> dict[str, float]:
    """`mean`, `std`, and the 95 % t interval of the mean over chips, `low` to `high`; NaN for a single chip.

    With the name of a metric that is a share the interval is cut to 0 to 1; losses and differences have no name.
    """
    spread = metric_spread(metric, values)
    low, high = spread.ci95 or (np.nan, np.nan)
    return {"mean": spread.mean, "std": np.nan if spread.std is None else spread.std, "low": low, "high": high}


def sensitivity(
    bench: Bench,
    mode: Mode = "only",
    chips: int = 10,
    first_seed: int = 0,
    *,
    store: "Store | None" = None,
    echo: Echo | None = None,
    progress: Step | None = None,
) -> pd.DataFrame:
    """Accuracy lost when only one part is disturbed, and regained when all but that part are.

    A part is the sites of one component in one layer; outside layers, those of one component. The layer x component
    maps of studies of RRAM, and of soft errors in ViT and DeiT, are of this kind.

    Args:
        bench: a model with a device.
        mode: `only`, `all-but` or `both`.
        chips: number of chips, seeds `first_seed`, `first_seed` + 1, ...
        first_seed: seed of the first chip.
        store: keeps the trials.
        echo: takes a sentence on the number of trials and one on the time.
        progress: called with the trials done and all of them.

    Returns:
        One row per mode and part: `mode`, `layer` (missing outside layers), `component`, `sites`, `parameters`,
        `effect`, `std`, `low`, `high`, `chips`. With `only`, `effect` is the accuracy of the clean model less that of
        the disturbed one; with `all-but`, the accuracy with this part digital less that with all disturbed on the same
        chip. Both are shares, means over chips with 95 % t intervals of differences paired by chip.

    Raises:
        InputError: a model without sites, or wrong seeds.
    """
    groups = groups_of(bench)
    seeds = seeds_of(chips, first_seed)
    modes = ["only", "all-but"] if mode == "both" else [mode]
    trials, parts = [], []
    if "only" in modes:
        trials += [Trial(seed, only=group.selection) for group in groups for seed in seeds]
        parts.append(f"{len(groups)} parts alone")
    if "all-but" in modes:
        trials += [Trial(seed) for seed in seeds]
        for group in groups:
            every = len(group.sites) == len(bench.sites)
            rest: dict[str, Any] = {"strength": 0.0} if every else {"exclude": group.selection}
            trials += [Trial(seed, **rest) for seed in seeds]
        parts.append(f"all of them, and all but each of {len(groups)}")
    what = f"({'; '.join(parts)}) x {chips} chips"
    table = run_announced(bench, trials, what, store=store, study="sensitivity", echo=echo, progress=progress)
    values = np.reshape(primary_values(bench, table), (-1, chips))
    rows = []
    if "only" in modes:
        lost, values = clean_value(bench) - values[: len(groups)], values[len(groups) :]
        rows += [_row("only", group, effect) for group, effect in zip(groups, lost, strict=True)]
    if "all-but" in modes:
        rows += [_row("all-but", group, effect) for group, effect in zip(groups, values[1:] - values[0], strict=True)]
    return pd.DataFrame(rows).astype({"layer": "Int64", "parameters": "Int64"})


def draw_sensitivity(
    axes: Any, table: pd.DataFrame, mode: Literal["only", "all-but"] = "only", metric: str = "accuracy"
) -> None:
    """Draws a layer x component heat map in points (per cent); parts outside layers are rows of their own.

    Numbers in bold are those whose 95 % interval lies above zero.

    Args:
        axes: matplotlib Axes.
        table: what `sensitivity` gave.
        mode: which of its modes.
        metric: name of what is measured.
    """
    table = table[table["mode"] == mode].reset_index(drop=True)
    inside = table[table["layer"].notna()]
    columns = list(dict.fromkeys(inside["component"])) or [""]
    rows: dict[str, list[int]] = {}
    for place, row in table.iterrows():
        outside = pd.isna(row["layer"])
        name = row["component"] if outside else f"layer {row['layer']}"
        while outside and name in rows:
            name += "'"
        rows.setdefault(name, []).append(int(str(place)))
    values = np.full((len(rows), len(columns)), np.nan)
    bold = np.zeros(values.shape, bool)
    wide = []
    for line, places in enumerate(rows.values()):
        wide.append(bool(pd.isna(table.loc[places[0], "layer"])))
        for place in places:
            column = 0 if wide[-1] else columns.index(str(table.loc[place, "component"]))
            values[line, column] = 100 * float(table.loc[place, "effect"])
            bold[line, column] = float(table.loc[place, "low"]) > 0
    noise = 100 * half_width(table)
    heat_map(axes, values, list(rows), columns, f"points of {metric}", bold, wide, noise)
    said = "lost, only this part disturbed" if mode == "only" else "regained, this part digital and all else disturbed"
    axes.set_title(f"{metric.capitalize()} {said}\nmean of {table['chips'].iloc[0]} chips, bold: 95 % interval above 0")


def _row(mode: str, group: Group, effect: Sequence[float]) -> dict[str, Any]:
    spread = mean_and_interval(list(effect))
    return {
        "mode": mode,
        "layer": group.layer,
        "component": group.component,
        "sites": len(group.sites),
        "parameters": group.parameters,
        "effect": spread["mean"],
        "std": spread["std"],
        "low": spread["low"],
        "high": spread["high"],
        "chips": len(effect),
    }


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
