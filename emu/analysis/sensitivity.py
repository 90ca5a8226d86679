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
from emu.evaluation.statistics import crossed, holm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emu.sweep import Store

Mode = Literal["only", "all-but", "both"]
ROUNDING = 1e-12
"""Losses that differ by less are equal: they are means of differences of shares, and their last bits are rounding."""

Echo = Callable[[str], None]
Step = Callable[[int, int], None]
Values = list["NDArray[Any] | None"]


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


def disturbed_groups(bench: Bench) -> tuple[list[Group], list[Group]]:
    """The groups of `groups_of` at which something of a device acts, and those that it leaves exact.

    The latter are no trials: a part that is not disturbed is not robust.

    Raises:
        InputError: no sites, or none at which a device acts.
    """
    groups = groups_of(bench)
    acting = [group for group in groups if any(site.index in bench.disturbed for site in group.sites)]
    if not acting:
        raise InputError(
            f"Nothing is disturbed: '{bench.device_names}' leaves all {len(bench.sites)} sites exact. Choose others "
            "(--only), or another device."
        )
    return acting, [group for group in groups if group not in acting]


def run_announced(
    bench: Bench,
    trials: Sequence[Trial],
    what: str,
    *,
    store: "Store | None" = None,
    study: str = "",
    echo: Echo | None = None,
    progress: Step | None = None,
    values: "Values | None" = None,
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
        values: as in `emu.sweep.run_trials`.
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

    return run_trials(bench, trials, store=store, study=study, progress=step, values=values)


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


def paired(differences: Sequence[float], values: Sequence["NDArray[Any] | None"]) -> dict[str, float]:
    """A mean difference of chips: `mean`, `std` over chips, its 95 % interval `low` to `high`, and `p`.

    Args:
        differences: of each chip, `[chips]`.
        values: the same for each sample, `[chips][samples]`: then interval and p are over chips and samples
            (`emu.evaluation.statistics.crossed`). If one is None they are over chips alone.
    """
    known = [each for each in values if each is not None]
    by_sample = len(known) == len(differences)
    found = crossed(np.stack(known), -1.0, 1.0) if by_sample else crossed(np.array(differences)[:, None])
    spread = mean_and_interval(differences)
    return {**spread, "low": found.low, "high": found.high, "p": found.p}


def less(first: "NDArray[Any] | None", second: "NDArray[Any] | None") -> "NDArray[Any] | None":
    """The difference of the values of samples; None where one of them is not known."""
    return None if first is None or second is None else first.astype(float) - second.astype(float)


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
        `effect`, `std`, `low`, `high`, `p`, `p_corrected`, `chips`. With `only`, `effect` is the accuracy of the clean
        model less that of the disturbed one; with `all-but`, the accuracy with this part digital less that with all
        disturbed on the same chip. Both are shares: means over chips, paired by chip and by sample, with 95 % intervals
        for other chips and samples (over chips alone where a store held trials). `p_corrected` is corrected for the
        number of parts of the mode (Holm). All are missing, and `chips` is 0, for parts that the device leaves exact.

    Raises:
        InputError: a model without sites, or wrong seeds.
    """
    groups, exact = disturbed_groups(bench)
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
            others: dict[str, Any] = {"strength": 0.0} if every else {"exclude": group.selection}
            trials += [Trial(seed, **others) for seed in seeds]
        parts.append(f"all of them, and all but each of {len(groups)}")
    what = f"({'; '.join(parts)}) x {chips} chips"
    samples: Values = []
    table = run_announced(
        bench, trials, what, store=store, study="sensitivity", echo=echo, progress=progress, values=samples
    )
    means = np.reshape(primary_values(bench, table), (-1, chips))
    runs = [(means[i], samples[i * chips : (i + 1) * chips]) for i in range(len(means))]
    rows = []
    if "only" in modes:
        clean, of_clean = clean_value(bench), bench.clean.values
        alone, runs = runs[: len(groups)], runs[len(groups) :]
        effects = [paired(clean - mean, [less(of_clean, each) for each in kept]) for mean, kept in alone]
        rows += _rows("only", groups, exact, effects, chips)
    if "all-but" in modes:
        (all_means, all_kept), *rest = runs
        effects = [
            paired(mean - all_means, [less(*pair) for pair in zip(kept, all_kept, strict=True)]) for mean, kept in rest
        ]
        rows += _rows("all-but", groups, exact, effects, chips)
    order = {group.selection: place for place, group in enumerate(groups_of(bench))}
    rows.sort(key=lambda row: (modes.index(row["mode"]), order[row.pop("selection")]))
    return pd.DataFrame(rows).astype({"layer": "Int64", "parameters": "Int64"})


def draw_sensitivity(
    axes: Any, table: pd.DataFrame, mode: Literal["only", "all-but"] = "only", metric: str = "accuracy"
) -> None:
    """Draws a layer x component heat map in points (per cent); parts outside layers are rows of their own.

    Numbers in bold are above zero at 95 %, corrected for the number of parts. Parts that the device leaves exact are
    grey.

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
    exact = np.zeros(values.shape, bool)
    bold = np.zeros(values.shape, bool)
    wide = []
    for line, places in enumerate(rows.values()):
        wide.append(bool(pd.isna(table.loc[places[0], "layer"])))
        for place in places:
            column = 0 if wide[-1] else columns.index(str(table.loc[place, "component"]))
            values[line, column] = 100 * float(table.loc[place, "effect"])
            bold[line, column] = is_marked(table.loc[place])
            exact[line, column] = table.loc[place, "chips"] == 0
    noise = 100 * half_width(table)
    heat_map(axes, values, list(rows), columns, f"points of {metric}", bold, wide, noise, exact)
    said = "lost, only this part disturbed" if mode == "only" else "regained, this part digital and all else disturbed"
    axes.set_title(f"{metric.capitalize()} {said}\nmean of {table['chips'].max()} chips, bold: above 0 at 95 %")


def is_marked(row: Any) -> bool:
    """Whether an effect is above zero with 95 % for all parts together."""
    return bool(row["effect"] > 0 and row["p_corrected"] < 0.05)


def _rows(
    mode: str, groups: Sequence[Group], exact: Sequence[Group], effects: Sequence[dict[str, float]], chips: int
) -> list[dict[str, Any]]:
    """Rows of one mode, of the parts that are disturbed and of those that are not."""
    corrected = holm([effect["p"] for effect in effects])
    nothing = dict.fromkeys(("mean", "std", "low", "high", "p"), np.nan)
    found = [*zip(groups, effects, corrected, strict=True), *((group, nothing, np.nan) for group in exact)]
    return [
        {
            "mode": mode,
            "selection": group.selection,
            "layer": group.layer,
            "component": group.component,
            "sites": len(group.sites),
            "parameters": group.parameters,
            "effect": effect["mean"],
            "std": effect["std"],
            "low": effect["low"],
            "high": effect["high"],
            "p": effect["p"],
            "p_corrected": p,
            "chips": 0 if effect is nothing else chips,
        }
        for group, effect, p in found
    ]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
