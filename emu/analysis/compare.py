"""Two models or two devices on the same chips: what the one loses against the other."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from emu.analysis.figures import BLUE, GREY, RED, grid
from emu.analysis.sensitivity import (
    Echo,
    Step,
    Values,
    clean_value,
    less,
    mean_and_interval,
    paired,
    primary_values,
    run_announced,
)
from emu.errors import InputError
from emu.evaluation import Bench, Trial
from emu.evaluation.bench import seeds_of

if TYPE_CHECKING:
    from emu.sweep import Store


def compare(
    first: Bench,
    second: Bench,
    chips: int = 10,
    first_seed: int = 0,
    *,
    store: "Store | None" = None,
    echo: Echo | None = None,
    progress: Step | None = None,
) -> pd.DataFrame:
    """The accuracy, or other primary metric, of two benches on chips of the same seeds.

    Equal seeds give equal random numbers wherever both have a site of the same index and shape: one model on two
    devices, or two versions of one architecture. Other models are paired by the seed in name only, and the interval of
    their difference is still right.

    Args:
        first: a model with a device.
        second: another model or another device.
        chips: number of chips, seeds `first_seed`, `first_seed` + 1, ...
        first_seed: seed of the first chip.
        store: keeps the trials.
        echo: takes sentences on the number of trials and on the time.
        progress: called with the trials done and all of them.

    Returns:
        One row per chip: `seed`, `first`, `second` (accuracies, shares), `first_lost`, `second_lost` (the clean
        accuracy of each less these), `difference` (second less first).

    Raises:
        InputError: a model without a device, tasks that measure different things, or wrong seeds.
    """
    if first.task.primary != second.task.primary:
        raise InputError(
            f"The first measures {first.task.primary} and the second {second.task.primary}: compare tasks of one kind."
        )
    trials = [Trial(seed) for seed in seeds_of(chips, first_seed)]
    table: dict[str, Any] = {"seed": [trial.seed for trial in trials]}
    values: dict[str, Values] = {"first": [], "second": []}
    benches = {"first": first, "second": second}
    for name, bench in benches.items():
        what = f"the {name}, {chips} chips"
        rows = run_announced(
            bench, trials, what, store=store, study="compare", echo=echo, progress=progress, values=values[name]
        )
        table[name] = np.array(primary_values(bench, rows))
    for name, bench in benches.items():
        table[f"{name}_lost"] = clean_value(bench) - table[name]
    table["difference"] = table["second"] - table["first"]
    frame = pd.DataFrame(table)
    frame.attrs["metric"] = first.task.primary
    lost = {name: [less(bench.clean.values, each) for each in values[name]] for name, bench in benches.items()}
    frame.attrs["intervals"] = {
        f"{name}_lost": paired(frame[f"{name}_lost"].tolist(), lost[name]) for name in ("first", "second")
    }
    if np.array_equal(first.dataset.labels, second.dataset.labels):  # the same samples
        more_lost = (frame["second_lost"] - frame["first_lost"]).tolist()
        for name, means, of in (
            ("difference", frame["difference"].tolist(), values),
            ("difference_lost", more_lost, lost),
        ):
            pairs = zip(of["second"], of["first"], strict=True)
            frame.attrs["intervals"][name] = paired(means, [less(*pair) for pair in pairs])
    return frame


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Means over chips with 95 % intervals; losses and differences are paired by chip and by sample.

    Their intervals are for other chips and samples; those of `first` and `second`, and of trials that a store held,
    are over chips alone.

    Args:
        table: what `compare` gave.

    Returns:
        One row each for `first`, `second`, `difference` (second less first), `first_lost`, `second_lost` and
        `difference_lost` (second less first): `what`, `mean`, `std`, `low`, `high`, `p`, `chips`.
    """
    columns = {name: table[name] for name in ("first", "second", "difference", "first_lost", "second_lost")}
    columns["difference_lost"] = table["second_lost"] - table["first_lost"]
    metrics = dict.fromkeys(("first", "second"), table.attrs.get("metric", ""))
    intervals = table.attrs.get("intervals", {})
    return pd.DataFrame(
        [
            {
                "what": name,
                **mean_and_interval(list(values), metrics.get(name, "")),
                "p": np.nan,
                **intervals.get(name, {}),
                "chips": len(values),
            }
            for name, values in columns.items()
        ]
    )


def draw_comparison(
    axes: Any, table: pd.DataFrame, first: str = "first", second: str = "second", metric: str = "accuracy"
) -> None:
    """Draws the accuracy of the second against that of the first, one point per chip, and the line of no difference.

    Args:
        axes: matplotlib Axes.
        table: what `compare` gave.
        first: name of the first, for the axis.
        second: name of the second.
        metric: name of what is measured.
    """
    x, y = 100 * table["first"], 100 * table["second"]
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = max(0.05 * (high - low), 0.5)
    ends = [low - margin, high + margin]
    axes.plot(ends, ends, color=GREY, linewidth=0.8, linestyle="--", label="no difference")
    axes.plot(x, y, "o", color=BLUE, markersize=5, alpha=0.8, label="a chip")
    axes.plot([x.mean()], [y.mean()], "+", color=RED, markersize=14, markeredgewidth=2, label="mean")
    axes.set(xlim=ends, ylim=ends, xlabel=f"{metric} of {first} (%)", ylabel=f"{metric} of {second} (%)")
    axes.set_aspect("equal")
    spread = mean_and_interval(list(100 * table["difference"]))
    between = "" if np.isnan(spread["low"]) else f", 95 % interval {spread['low']:+.2f} to {spread['high']:+.2f}"
    axes.set_title(
        f"{len(table)} chip{'s' * (len(table) > 1)}, paired by seed\n"
        f"second less first: {spread['mean']:+.2f} points{between}"
    )
    grid(axes)
    axes.legend(frameon=False, loc="best")
