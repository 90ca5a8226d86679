"""How the ratio of emulated to clean time grows with the size of the work: `python -m benchmarks --curves`.

One quantity at a time is varied around one encoder block, attention included, of a middling size.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.ratios import EVERYTHING, Case, measure
from benchmarks.transformers import Shape


@dataclass(frozen=True)
class Point:
    """What is timed: encoder blocks on texts, the tiles of their arrays, and how they run."""

    tokens: int = 128
    width: int = 256
    batch: int = 1
    tile_rows: int = 256
    threads: int = 1
    blocks: int = 1

    def shape(self) -> Shape:
        name = f"{self.blocks} block(s), width {self.width}, {self.tokens} tokens"
        heads = max(1, self.width // 64)
        return Shape(name, self.width, heads, self.blocks, words=self.tokens, vocabulary=64, classes=2)

    def cases(self) -> tuple[Case, Case]:
        changes = {**EVERYTHING, "mapping.tile_rows": self.tile_rows}
        return Case("programmed", "rram"), Case("everything", "rram_adc", changes)


# What is varied, how it is called, and its values.
AXES: dict[str, tuple[str, Sequence[int]]] = {
    "tokens": ("tokens", (8, 32, 128, 512, 2048)),
    "width": ("width of the model", (64, 128, 256, 512, 1024)),
    "batch": ("batch", (1, 2, 4, 8, 16)),
    "tile_rows": ("rows of a tile", (16, 32, 64, 128, 256, 512)),
    "threads": ("threads", tuple(n for n in (1, 2, 4, 8, 16) if n <= (os.cpu_count() or 1))),
    "blocks": ("sites", (1, 2, 4, 8)),
}


def curves(pairs: int, start: Point | None = None) -> Iterator[dict[str, Any]]:
    """Measure every axis; one row for each value of it, the point that they share measured once."""
    start = start or Point()
    known: dict[Point, dict[str, Any]] = {}
    for axis, (_, values) in AXES.items():
        for value in values:
            point = replace(start, **{axis: value})
            if point not in known:
                programmed, everything = measure(point.shape(), point.batch, point.threads, pairs, point.cases())
                known[point] = {
                    "clean_ms": everything["clean_ms"], "sites": everything["sites"],
                    "programmed": programmed["ratio"], "everything": everything["ratio"],
                    "everything_low": everything["low"], "everything_high": everything["high"],
                    "instruction_set": everything["instruction_set"],
                }  # fmt: skip
            row = known[point]
            yield {"axis": axis, "value": row["sites"] if axis == "blocks" else value, **row}


def print_curves(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print rows as they come, and return them."""
    printed: list[dict[str, Any]] = []
    for row in rows:
        if not printed or printed[-1]["axis"] != row["axis"]:
            title = AXES[row["axis"]][0]
            print(f"\n{title:>20}{'clean, ms':>12}{'programmed':>12}{'everything':>12}  (middle half of the pairs)")
        spread = f"({row['everything_low']:.2f} to {row['everything_high']:.2f})"
        numbers = f"{row['clean_ms']:12.2f}{row['programmed']:12.2f}{row['everything']:12.2f}"
        print(f"{row['value']:20}{numbers}  {spread}", flush=True)
        printed.append(row)
    return printed


def plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one small plot for each axis; widths that double are equally far apart."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from emu.analysis.figures import BLUE, GREY, RED

    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for axes, (axis, (title, _)) in zip(panels.flat, AXES.items(), strict=True):
        of_axis = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in of_axis]
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [str(value) for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axhline(1, color=GREY, linewidth=0.8)
        low, high = ([row[f"everything_{end}"] for row in of_axis] for end in ("low", "high"))
        axes.fill_between(values, low, high, color=RED, alpha=0.15, linewidth=0)
        axes.plot(values, [row["everything"] for row in of_axis], "o-", color=RED, label="everything")
        axes.plot(values, [row["programmed"] for row in of_axis], "s-", color=BLUE, label="programmed weights only")
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    panels.flat[0].set_ylim(0, 1.1 * max(row["everything"] for row in rows))
    panels.flat[0].legend(frameon=False)
    figure.supylabel("emulated / clean time")
    figure.savefig(path, dpi=150)
