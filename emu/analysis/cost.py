"""Drawings of what a model costs on a device, as `emu.cost` counts it."""

from typing import TYPE_CHECKING, Any

from emu.analysis.figures import COLORS, GREY, below_axes, grid, line_styles
from emu.cost import PART_LABELS, PARTS, total_cost
from emu.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def draw_cost(frame: "pd.DataFrame", axes: Any) -> None:
    """Energy of one sample by component and part, or against what was varied, with the digital baseline.

    Args:
        frame: of `cost`.
        axes: matplotlib Axes.

    Raises:
        InputError: the energy is not modelled.
    """
    total = total_cost(frame)
    if total["energy_uj"].isna().all():
        raise InputError("There is no energy to draw, because it is not modelled: the notes say what to set.")
    varied = [key for key in ("tokens", "tile_rows") if key in frame and frame[key].nunique() > 1]
    if not varied:
        _draw_components(frame, axes)
        return
    x, *others = varied
    groups = list(total.groupby(others[0])) if others else [(None, total)]
    for (color, line), (value, rows) in zip(line_styles(len(groups)), groups, strict=True):
        label = "on crossbars" if value is None else f"on crossbars, {value} rows"
        axes.plot(rows[x], rows["energy_uj"], line, marker="o", markersize=3.5, color=color, label=label)
    first = total.drop_duplicates(x)
    axes.plot(first[x], first["digital_uj"], "--", color=GREY, label="digital, weights from DRAM")
    axes.plot(first[x], first["digital_arithmetic_uj"], ":", color=GREY, label="digital, arithmetic alone")
    axes.set_xlabel({"tokens": "tokens", "tile_rows": "rows of an array"}[x])
    axes.set_ylabel("energy of one sample (uJ)")
    if first[x].min() > 0:
        axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(first[x], [str(value) for value in first[x]])
    axes.minorticks_off()
    axes.set_title("Energy on crossbars and digital, counted")
    grid(axes)
    axes.legend(frameon=False)


def _draw_components(frame: "pd.DataFrame", axes: Any) -> None:
    total = total_cost(frame, ("component",))
    left = 0.0 * total["energy_uj"]
    for part, color in zip(PARTS, COLORS, strict=True):
        energy = total[f"energy_{part}_uj"]
        if energy.sum() > 0.001 * total["energy_uj"].sum():
            axes.barh(total["component"], energy, left=left, color=color, label=PART_LABELS[part])
        left = left + energy.fillna(0)
    marks = {"color": "black", "markersize": 14, "markeredgewidth": 1.5}
    axes.plot(total["digital_arithmetic_uj"], total["component"], "|", label="digital, arithmetic alone", **marks)
    # With its weights from memory it is beyond the axis: as numbers.
    beside = {"xycoords": ("axes fraction", "data"), "annotation_clip": False, "va": "center", "fontsize": 8}
    for place, energy in enumerate(total["digital_uj"]):
        axes.annotate(f"{energy:.3g}", (1.03, place), **beside)
    axes.annotate("digital, with\nDRAM (uJ)", (1.03, -1), **beside)
    axes.set_ylim(len(total) - 0.4, -0.6)
    axes.set_xlabel("energy of one sample (uJ)")
    axes.set_title("Energy on crossbars by component, counted")
    grid(axes)
    below_axes(axes, ncols=4)
