"""Which parts of a model lose accuracy: trials with only one part disturbed, and with all but one."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd

from emu.analysis.figures import half_width, heat_map
from emu.analysis.ground import (
    MOST_SHOWN,
    Analysis,
    Group,
    Run,
    RunOptions,
    Section,
    about_intervals,
    disturbed_groups,
    groups_of,
    marked,
    of_bench,
    p_shown,
    points,
    undisturbed,
)
from emu.evaluation import Bench
from emu.evaluation.statistics import holm

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
        `parameters`, `effect`, `std`, `low`, `high`, `p`, `p_corrected`, `chips`. With `only`, `effect` is the accuracy
        of the clean model less that of the disturbed one; with `all-but`, the accuracy with this part digital less that
        with all disturbed on the same chip. Both are shares: means over chips, paired by chip and by sample, with 95 %
        intervals for other chips and other samples (over chips alone where a store held trials). `p_corrected` is
        corrected for the number of parts of the mode (Holm). All are missing, and `chips` is 0, for parts that the
        device leaves exact.

    Raises:
        InputError: a model without sites, or wrong seeds.
    """
    run, groups = Run(**options), disturbed_groups(bench)
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
    found = run.measure(bench, trials, f"({'; '.join(parts)}) x {run.chips} chips", "sensitivity").of_chips(run.chips)
    about, effects = about_intervals(found, "parts"), {}
    if "only" in modes:
        alone, found = found[: len(groups)], found[len(groups) :]
        effects["only"] = [(undisturbed(bench) - each).interval() for each in alone]
    if "all-but" in modes:
        effects["all-but"] = [(each - found[0]).interval() for each in found[1:]]
    rows = []
    for each in modes:
        corrected = holm([effect["p"] for effect in effects[each]])
        measured = {
            group: {**effect, "p_corrected": p, "chips": run.chips}
            for group, effect, p in zip(groups, effects[each], corrected, strict=True)
        }
        rows += [_row(each, group, measured.get(group, _NOT_DISTURBED)) for group in groups_of(bench)]
    table = pd.DataFrame(rows).astype({"layer": "Int64", "parameters": "Int64"})
    metric, columns = bench.task.primary, table["component"].nunique()
    return Analysis(
        name="sensitivity",
        table=table,
        sentence=_sentence(table, groups_of(bench)),
        sections=[_section(table, each, metric, run.chips, about if each == modes[-1] else ()) for each in modes],
        figures=[partial(draw_sensitivity, table=table, mode=each, metric=metric) for each in modes],
        size=(3.2 + 0.55 * columns, 2.2 + 0.32 * (table["layer"].nunique() + 2)),
        **of_bench(bench),
    )


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
    marks = marked(table, "effect")
    bold, exact = np.zeros(values.shape, bool), np.zeros(values.shape, bool)
    wide = []
    for line, places in enumerate(rows.values()):
        wide.append(bool(pd.isna(table.loc[places[0], "layer"])))
        for place in places:
            column = 0 if wide[-1] else columns.index(str(table.loc[place, "component"]))
            values[line, column] = 100 * float(table.loc[place, "effect"])
            bold[line, column] = marks[place]
            exact[line, column] = table.loc[place, "chips"] == 0
    noise = 100 * half_width(table)
    heat_map(axes, values, list(rows), columns, f"points of {metric}", bold, wide, noise, exact)
    said = "lost, only this part disturbed" if mode == "only" else "regained, this part digital and all else disturbed"
    axes.set_title(f"{metric.capitalize()} {said}\nmean of {table['chips'].max()} chips, bold: above 0 at 95 %")


_NOT_DISTURBED = {**dict.fromkeys(("mean", "std", "low", "high", "p", "p_corrected"), np.nan), "chips": 0}


def _row(mode: str, group: Group, effect: Mapping[str, float]) -> dict[str, Any]:
    return {
        "mode": mode,
        "layer": group.layer,
        "component": group.component,
        "sites": len(group.sites),
        "parameters": group.parameters,
        "effect": effect["mean"],
        **{name: effect[name] for name in _NOT_DISTURBED if name != "mean"},
    }


def _section(table: pd.DataFrame, mode: str, metric: str, chips: int, about: tuple[str, ...]) -> Section:
    of_mode = table[table["mode"] == mode].sort_values("effect", ascending=False, kind="stable")
    of_mode, exact = of_mode[of_mode["chips"] > 0], of_mode[of_mode["chips"] == 0].sort_index()
    said = "lost, only this disturbed" if mode == "only" else "regained, all but this disturbed"
    rows = [
        [
            "-" if pd.isna(row["layer"]) else str(row["layer"]),
            *(row[name] for name in ("component", "sites", "parameters")),
            *points(row, "effect"),
            p_shown(row, "effect"),
        ]
        for row in of_mode.head(MOST_SHOWN).astype(object).to_dict("records")
    ]
    below = []
    if len(of_mode) > MOST_SHOWN:
        most = 100 * of_mode["effect"].iloc[MOST_SHOWN]
        below.append(f"and {len(of_mode) - MOST_SHOWN} more, of {most:.2f} points at most (--json shows all)")
    if len(exact):
        names = ", ".join(dict.fromkeys(exact["component"]))
        below.append(f"Not disturbed, so not measured: {len(exact)} parts ({names}).")
    return Section(
        f"{metric.capitalize()} {said}, in points, mean of {chips} chips:",
        ["layer", "component", "sites", "parameters", "points", "95 % interval", "p, corrected"],
        rows,
        (*below, *about),
    )


def _sentence(table: pd.DataFrame, groups: list[Group]) -> str:
    """The part that costs most among those that are shown to cost, and how to keep it digital."""
    shown = table.loc[marked(table, "effect"), "effect"]
    if shown.empty:
        return (
            "No part stands out: none costs accuracy at 95 %, corrected for the number of parts; more --chips would "
            "tell more."
        )
    place = int(shown.idxmax())
    row, group = table.loc[place], groups[place % len(groups)]
    share = group.parameters / max(1, sum(each.parameters for each in groups))
    return (
        f"{group.name} is the weakest part: {share:.1%} of the weights, {100 * row['effect']:.2f} points; keep it "
        f"digital with --map '{group.selection}:ideal'."
    )
