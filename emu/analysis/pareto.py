"""Which designs are worth it: accuracy against energy, latency or area, and the points that no other beats in both."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from emu.analysis.figures import GREY, below_axes, grid, line_styles
from emu.analysis.ground import Analysis, Section, records
from emu.errors import InputError
from emu.evaluation.metrics import LOWER_IS_BETTER, show_interval, show_metric
from emu.sweep.results import summarize

Against = Literal["energy", "latency", "area"]
COSTS = {"energy": "energy_uj", "latency": "latency_us", "area": "area_mm2"}
LABELS = {
    "energy": "energy of one sample (uJ)",
    "latency": "latency of one sample (us)",
    "area": "area of the arrays and converters (mm2)",
}


def pareto(trials: pd.DataFrame, against: Against = "energy") -> Analysis:
    """The points of a sweep by metric and cost, and which of them no other point beats in both.

    Points of different data are no alternatives of each other: each data set has a front of its own.

    Args:
        trials: a table of `emu.sweep.run_plan` or `Store.frame` whose trials have costs (`Plan.cost`).
        against: which cost.

    Returns:
        A table with one row per point: the axes that vary, `chips`, the metric with `low` and `high` (95 % t interval
        over chips), `energy_uj`, `latency_us`, `area_mm2` as far as they are modelled, and `front`, whether no other
        point is as good and as cheap and better in one.

    Raises:
        InputError: no trial has that cost.
    """
    metric, cost = trials.attrs["primary"][0], COSTS[against]
    if cost not in trials or trials[cost].isna().all():
        raise InputError(
            f"No device of these trials has constants for {against}: choose devices with a section [cost] (see 'emu "
            "devices NAME'), or lend them one's with --costs-of, such as isaac."
        )
    summary = summarize(trials)
    axes = [str(name) for name in summary.columns[: list(summary.columns).index("chips")]]
    table = summary[[*axes, "chips"]].copy()
    for name, column in ((metric, "mean"), ("low", "low"), ("high", "high")):
        table[name] = summary.get(f"{metric}.{column}", np.nan)
    for name in COSTS.values():
        if f"{name}.mean" in summary:
            table[name] = summary[f"{name}.mean"]
    known = table[cost].notna() & table[metric].notna()
    sides = table["data"] if "data" in axes else pd.Series("", index=table.index)
    table["front"] = False
    for side in dict.fromkeys(sides[known]):
        inside = table.index[known & (sides == side)]
        table.loc[inside, "front"] = on_front(table.loc[inside, metric], table.loc[inside, cost], metric)
    front = table[table["front"]].sort_values(cost, kind="stable")
    left_out = int((~known).sum())
    below = [f"{left_out} points have no {against}: their devices lack constants."] if left_out else []
    same = [name for name in axes if _has_no_part(table[known], name, axes, cost)]
    if same:
        below.append(f"The {against} does not follow {', '.join(same)}: no constant does (docs/cost.md).")
    shown = [name for name in COSTS.values() if name in table]
    rows = [
        [
            "*" if row["front"] else "",
            *(row[name] if isinstance(row[name], int | str) else f"{row[name]:.6g}" for name in axes),
            show_metric(metric, row[metric]),
            "-" if pd.isna(row["low"]) else show_interval(metric, row["low"], row["high"]),
            *("-" if pd.isna(row[name]) else f"{row[name]:.4g}" for name in shown),
        ]
        for row in table.sort_values(cost, kind="stable").astype(object).to_dict("records")
    ]
    title = f"{metric.capitalize()} against {against}; * no other point is as good and as cheap:"
    cheap, good = front.iloc[0], front.iloc[-1]
    units = cost.rpartition("_")[2]
    ends = [
        f"{show_metric(metric, row[metric])} at {row[cost]:.4g} {units}{_where(row, axes)}" for row in (cheap, good)
    ]
    return Analysis(
        name="points",
        table=table,
        sentence=f"{len(front)} of {len(table)} points are on the front: from {ends[0]} to {ends[1]}."
        if len(front) > 1
        else f"One point beats all others: {ends[0]}.",
        sections=[Section(title, ["", *axes, metric, "95 % interval", *shown], rows, tuple(below))],
        more={"metric": metric, "against": against, "front": records(front)},
        figures=[partial(draw_pareto, table=table, metric=metric, against=against)],
        size=(7.2, 5.0),
    )


def _has_no_part(table: pd.DataFrame, axis: str, axes: Sequence[str], cost: str) -> bool:
    """Whether points that differ in this axis alone all cost the same."""
    if table[axis].nunique() < 2:
        return False
    others = [name for name in axes if name != axis]
    costs = table.groupby(others, dropna=False)[cost] if others else table.groupby(lambda _: 0)[cost]
    return bool((costs.nunique() == 1).all() and (costs.size() > 1).any())


def on_front(values: pd.Series, costs: pd.Series, metric: str = "accuracy") -> list[bool]:
    """Which points no other one beats: as good and as cheap as they are, and better in one of the two."""
    good = values.to_numpy(float) * (-1 if metric in LOWER_IS_BETTER else 1)
    cheap = costs.to_numpy(float)
    return [
        not bool(((good >= one) & (cheap <= price) & ((good > one) | (cheap < price))).any())
        for one, price in zip(good, cheap, strict=True)
    ]


def draw_pareto(axes: Any, table: pd.DataFrame, metric: str = "accuracy", against: Against = "energy") -> None:
    """Draws every point with its interval, a colour for each value of the first axis, and the fronts as steps.

    Args:
        axes: matplotlib Axes.
        table: that of `pareto`.
        metric: name of what is measured.
        against: which cost.
    """
    cost = COSTS[against]
    table = table[table[cost].notna() & table[metric].notna()]
    share = metric == "accuracy" or metric.endswith("_accuracy")
    factor, unit = (100, " (%)") if share else (1, "")
    names = list(table.columns[: list(table.columns).index("chips")])
    kinds = [name for name in ("model", "device") if name in names] or names[:1]
    groups = list(table.groupby(kinds, sort=False, dropna=False)) if kinds else [((), table)]
    for (color, _), (value, rows) in zip(line_styles(len(groups)), groups, strict=True):
        label = ", ".join(map(str, value)) or "points"
        ends = [rows[metric] - rows["low"], rows["high"] - rows[metric]]
        margins = np.nan_to_num(np.array(ends, float))
        axes.errorbar(
            rows[cost],
            factor * rows[metric],
            yerr=factor * np.maximum(margins, 0),
            fmt="o",
            markersize=5,
            color=color,
            elinewidth=0.8,
            label=label,
        )
    sides = table.groupby("data", sort=False) if "data" in names else [("", table)]
    for place, (_, rows) in enumerate(sides):
        front = rows[rows["front"]].sort_values(cost, kind="stable")
        axes.step(
            front[cost],
            factor * front[metric],
            where="post",
            color=GREY,
            linewidth=1.2,
            zorder=0,
            label="" if place else "Pareto front",
        )
        axes.plot(front[cost], factor * front[metric], "o", markersize=10, markerfacecolor="none", color=GREY)
    axes.set_xscale("log")
    axes.set_xlabel(LABELS[against])
    axes.set_ylabel(f"{metric}{unit}")
    chips = int(table["chips"].max())
    axes.set_title(f"{metric.capitalize()} against {against}, {'1 chip' if chips == 1 else f'mean of {chips} chips'}")
    grid(axes)
    below_axes(axes)


def _where(row: pd.Series, axes: list[str]) -> str:
    told = ", ".join(f"{name} {row[name]}" for name in axes if not pd.isna(row[name]))
    return f" ({told})" if told else ""
