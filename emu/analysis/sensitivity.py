"""Which parts of a model lose accuracy: trials with only one part disturbed, and with all but one."""

from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.analysis.figures import half_width, heat_map
from emu.analysis.ground import (
    MOST_SHOWN,
    Analysis,
    Group,
    Run,
    RunOptions,
    Section,
    clean_value,
    groups_of,
    mean_and_interval,
    of_bench,
    points,
)
from emu.evaluation import Bench

Mode = Literal["only", "all-but", "both"]


def sensitivity(bench: Bench, mode: Mode = "only", **options: Unpack[RunOptions]) -> Analysis:
    """Accuracy lost when only one part is disturbed, and regained when all but that part are.

    A part is the sites of one component in one layer; outside layers, those of one component. The layer x component
    maps of studies of RRAM, and of soft errors in ViT and DeiT, are of this kind.

    Args:
        bench: a model with a device.
        mode: `only`, `all-but` or `both`.
        options: chips, seeds, and where trials are kept, see `emu.analysis.ground.Run`.

    Returns:
        A table with one row per mode and part: `mode`, `layer` (missing outside layers), `component`, `sites`,
        `parameters`, `effect`, `std`, `low`, `high`, `chips`. With `only`, `effect` is the accuracy of the clean model
        less that of the disturbed one; with `all-but`, the accuracy with this part digital less that with all disturbed
        on the same chip. Both are shares, means over chips with 95 % t intervals of differences paired by chip.

    Raises:
        InputError: a model without sites, or wrong seeds.
    """
    run, groups = Run(**options), groups_of(bench)
    modes: list[Literal["only", "all-but"]] = ["only", "all-but"] if mode == "both" else [mode]
    trials, parts = [], []
    if "only" in modes:
        trials += [trial for group in groups for trial in run.trials(only=group.selection)]
        parts.append(f"{len(groups)} parts alone")
    if "all-but" in modes:
        trials += run.trials()
        for group in groups:
            every = len(group.sites) == len(bench.sites)
            trials += run.trials(strength=0.0) if every else run.trials(exclude=group.selection)
        parts.append(f"all of them, and all but each of {len(groups)}")
    values = run.measure(bench, trials, f"({'; '.join(parts)}) x {run.chips} chips", "sensitivity")
    values = values.reshape(-1, run.chips)
    rows = []
    if "only" in modes:
        lost, values = clean_value(bench) - values[: len(groups)], values[len(groups) :]
        rows += [_row("only", group, effect) for group, effect in zip(groups, lost, strict=True)]
    if "all-but" in modes:
        rows += [_row("all-but", group, effect) for group, effect in zip(groups, values[1:] - values[0], strict=True)]
    table = pd.DataFrame(rows).astype({"layer": "Int64", "parameters": "Int64"})
    metric, columns = bench.task.primary, table["component"].nunique()
    return Analysis(
        name="sensitivity",
        table=table,
        sentence=_sentence(table, groups),
        sections=[_section(table, each, metric, run.chips) for each in modes],
        figures=[partial(draw_sensitivity, table=table, mode=each, metric=metric) for each in modes],
        size=(3.2 + 0.55 * columns, 2.2 + 0.32 * (table["layer"].nunique() + 2)),
        **of_bench(bench),
    )


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


def _row(mode: str, group: Group, effect: NDArray[np.float64]) -> dict[str, Any]:
    spread = mean_and_interval(effect)
    return {
        "mode": mode,
        "layer": group.layer,
        "component": group.component,
        "sites": len(group.sites),
        "parameters": group.parameters,
        "effect": spread.pop("mean"),
        **spread,
        "chips": len(effect),
    }


def _section(table: pd.DataFrame, mode: str, metric: str, chips: int) -> Section:
    of_mode = table[table["mode"] == mode].sort_values("effect", ascending=False, kind="stable")
    said = "lost, only this disturbed" if mode == "only" else "regained, all but this disturbed"
    rows = [
        [
            "-" if pd.isna(row["layer"]) else str(row["layer"]),
            *(row[name] for name in ("component", "sites", "parameters")),
            *points(row, "effect"),
        ]
        for row in of_mode.head(MOST_SHOWN).astype(object).to_dict("records")
    ]
    below = []
    if len(of_mode) > MOST_SHOWN:
        most = 100 * of_mode["effect"].iloc[MOST_SHOWN]
        below.append(f"and {len(of_mode) - MOST_SHOWN} more, of {most:.2f} points at most (--json shows all)")
    return Section(
        f"{metric.capitalize()} {said}, in points, mean of {chips} chips:",
        ["layer", "component", "sites", "parameters", "points", "95 % interval"],
        rows,
        tuple(below),
    )


def _sentence(table: pd.DataFrame, groups: list[Group]) -> str:
    """The part that costs most, and how to keep it digital."""
    place = int(table["effect"].to_numpy(float).argmax())
    row, group = table.iloc[place], groups[place % len(groups)]
    if not row["low"] > 0:
        return "No part stands out: no 95 % interval lies above zero; more --chips would tell more."
    share = group.parameters / max(1, sum(each.parameters for each in groups))
    return (
        f"{group.name} is the weakest part: {share:.1%} of the weights, {100 * row['effect']:.2f} points; keep it "
        f"digital with --map '{group.selection}:ideal'."
    )
