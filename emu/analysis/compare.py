"""Two models or two devices on the same chips: what the one loses against the other."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from emu.analysis.figures import BLUE, GREY, RED, grid
from emu.analysis.ground import (
    Analysis,
    Measurement,
    Run,
    RunOptions,
    Section,
    mean_and_interval,
    of_bench,
    points,
    records,
    undisturbed,
)
from emu.errors import InputError
from emu.evaluation import Bench


def compare(first: Bench, second: Bench, changes: Sequence[str] = (), **options: Unpack[RunOptions]) -> Analysis:
    """The accuracy, or other primary metric, of two benches on chips of the same seeds.

    Equal seeds give equal random numbers wherever both have a site of the same index and shape: one model on two
    devices, or two versions of one architecture. Other models are paired by the seed in name only, and the interval of
    their difference is still right.

    Args:
        first: a model with a device.
        second: another model or another device.
        changes: what differs at the second, for its name where model and device are the same.
        options: chips, seeds, and where trials are kept, see `emu.analysis.ground.Run`.

    Returns:
        A table with one row per chip: `seed`, `first`, `second` (accuracies, shares), `first_lost`, `second_lost` (the
        clean accuracy of each less these), `difference` (second less first). `more` has its summary.

    Raises:
        InputError: a model without a device, tasks that measure different things, or wrong seeds.
    """
    run, metric = Run(**options), first.task.primary
    if metric != second.task.primary:
        raise InputError(
            f"The first measures {metric} and the second {second.task.primary}: compare tasks of one kind."
        )
    found: dict[str, Measurement] = {}
    sides = {"first": first, "second": second}
    for name, bench in sides.items():
        found[name] = run.measure(bench, run.trials(), f"the {name}, {run.chips} chips", "compare")
    for name, bench in sides.items():
        found[f"{name}_lost"] = undisturbed(bench) - found[name]
    same_samples = np.array_equal(first.dataset.labels, second.dataset.labels)
    for what, lost in (("difference", ""), ("difference_lost", "_lost")):
        pair = found[f"second{lost}"], found[f"first{lost}"]
        found[what] = pair[0] - pair[1] if same_samples else pair[0].unpaired() - pair[1].unpaired()
    columns = {name: each.means for name, each in found.items() if name != "difference_lost"}
    table = pd.DataFrame({"seed": list(run.seeds), **columns})
    table.attrs["metric"] = metric
    table.attrs["intervals"] = {name: each.interval() for name, each in found.items() if name not in sides}
    summary = summarize(table)
    said = {
        "first": f"{metric} of the first (%)",
        "second": f"{metric} of the second (%)",
        "difference": "second less first (points)",
        "difference_lost": "lost by the second less lost by the first (points)",
    }
    rows = [
        [said[row["what"]], *points(row, "mean", metric if row["what"] in sides else "")]
        for row in summary.to_dict("records")
        if row["what"] in said
    ]
    names, of = _names(first, second, changes), [of_bench(each) for each in sides.values()]
    lines = []
    for side, name, each in zip(("first ", "second"), names, of, strict=True):
        clean = each["heading"][-1].rpartition(" ")[2]
        lines += [f"{side}   {name}, clean {clean}", *(line for line in each["heading"] if line.startswith(" "))]
    samples = f"{first.dataset.where}, {first.clean.samples} samples"
    row = summary.set_index("what").loc["difference"]
    shown = f"{100 * row['mean']:+.2f} points, 95 % interval {points(row, 'mean')[1]}"
    is_clear = bool(row["p"] < 0.05)
    return Analysis(
        name="per_chip",
        table=table,
        sentence=f"{'The second is better' if row['mean'] > 0 else 'The first is better'}: {shown}."
        if is_clear
        else f"No difference is shown: second less first {shown}.",
        heading=[*lines, f"data     {samples}, {run.chips} chips, paired by seed"],
        facts={name: each["facts"] for name, each in zip(sides, of, strict=True)},
        sections=[Section("", ["", "mean", "95 % interval"], rows)],
        more={"summary": records(summary)},
        figures=[partial(draw_comparison, table=table, first=names[0], second=names[1], metric=metric)],
        caption=samples,
        size=(5.4, 5.2),
    )


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
    spread = 100 * summarize(table).set_index("what").loc["difference", ["mean", "low", "high"]]
    between = "" if np.isnan(spread["low"]) else f", 95 % interval {spread['low']:+.2f} to {spread['high']:+.2f}"
    axes.set_title(
        f"{len(table)} chip{'s' * (len(table) > 1)}, paired by seed\n"
        f"second less first: {spread['mean']:+.2f} points{between}"
    )
    grid(axes)
    axes.legend(frameon=False, loc="best")


def _names(one: Bench, other: Bench, changes: Sequence[str]) -> tuple[str, str]:
    """Names of two benches that tell them apart."""
    first, second = (f"{Path(each.name).name} on {each.device_names or 'digital'}" for each in (one, other))
    return first, f"{second} ({' '.join(changes)})" if first == second and changes else second
