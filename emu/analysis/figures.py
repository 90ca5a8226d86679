"""Figures: colours that everyone can tell apart, drawings that several analyses share, and saving with the data."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.errors import InputError
from emu.evaluation.metrics import fixed
from emu.files import whole_file

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito 2008, without the yellow that is too light for lines.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#000000",
)
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
GREY = "#8a8a8a"
EXACT = "#d9d9d9"
COLOR_MAP = "cividis"

_CHARACTERS_PER_INCH = 12  # of a heading

_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "svg.hashsalt": "emu",
}


def check_figure(path: str | Path) -> Path:
    """The path of a figure, if one can be written there: to be asked before hours of trials.

    Raises:
        InputError: a suffix that is no format of figures, a folder that does not exist, or no matplotlib.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path} cannot be a plot: end its name in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} to.")
    try:
        import matplotlib as matplotlib
    except ImportError:
        raise InputError('This needs matplotlib: pip install "emu-onnx[analysis]".') from None
    return path


def save_figure(
    path: str | Path,
    panels: Sequence[Callable[[Any], None]],
    data: "pd.DataFrame",
    heading: str = "",
    size: tuple[float, float] = (6.4, 4.2),
) -> list[Path]:
    """Draws panels side by side into a file, and writes what they show beside it as CSV.

    Args:
        path: its suffix .png, .svg or .pdf.
        panels: each draws on the matplotlib Axes that it is given.
        data: what the figure shows.
        heading: over all panels.
        size: width and height of one panel in inches.

    Returns:
        The files written: the figure, and the table of the same name with the suffix .csv.

    Raises:
        InputError: as in `check_figure`, or a file that cannot be written.
    """
    path = check_figure(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(size[0] * len(panels), size[1]), layout="constrained")
        for panel, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
            panel(axes)
        if heading:
            width = int(_CHARACTERS_PER_INCH * size[0] * len(panels))
            figure.suptitle(textwrap.fill(heading, width), fontsize=10)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        kind = path.suffix[1:].lower()
        _write(path, lambda part: figure.savefig(part, format=kind, dpi=150, metadata=metadata))
    table = path.with_suffix(".csv")
    _write(table, lambda part: data.to_csv(part, index=False))
    return [path, table]


def heat_map(
    axes: Any,
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    bold: NDArray[np.bool_] | None = None,
    wide: Sequence[bool] = (),
    noise: float = 0.0,
    exact: NDArray[np.bool_] | None = None,
) -> None:
    """An annotated heat map with its colour bar.

    Args:
        axes: matplotlib Axes.
        values: numbers `[rows, columns]`; NaN for a cell that does not exist.
        rows: names of the rows.
        columns: names of the columns.
        label: of the colour bar, with the unit.
        bold: cells `[rows, columns]` whose number is set in bold.
        wide: rows that hold one value, in their first column, for all columns.
        noise: how uncertain the numbers are; the colours reach so far at least, lest chance looks like an effect.
        exact: cells `[rows, columns]` at which the device does nothing: grey, with these words.
    """
    values = np.array(values, float)
    whole_row = np.array(wide or [False] * len(rows))
    shown = np.where(whole_row[:, None], values[:, :1], values)
    top = max(float(np.nanmax(shown, initial=0.0)), noise, 1e-9)
    image = axes.imshow(np.ma.masked_invalid(shown), cmap=COLOR_MAP, vmin=0, vmax=top, aspect="auto")
    axes.figure.colorbar(image, ax=axes, label=label)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color="white", linewidth=1.5)
    digits = 1 if top >= 10 else 2
    for row, one in enumerate(whole_row):
        for column in [0] if one else range(len(columns)):
            value = values[row, column]
            if exact is not None and exact[row, column]:
                place = (len(columns) - 1) / 2 if one else column
                width = len(columns) if one else 1
                axes.barh(row, width, height=1, left=place - width / 2, color=EXACT, zorder=1)
                axes.text(place, row, "not\ndisturbed", ha="center", va="center", fontsize=6, color=BLACK)
            if np.isnan(value):
                continue
            axes.text(
                (len(columns) - 1) / 2 if one else column,
                row,
                fixed(value, digits),
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > 0.55 * top else "white",
                fontweight="bold" if bold is not None and bold[row, column] else "normal",
            )
        if not one:
            for edge in range(1, len(columns)):
                axes.plot([edge - 0.5] * 2, [row - 0.5, row + 0.5], color="white", linewidth=1.5)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def curve(
    axes: Any,
    x: ArrayLike,
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    label: str,
    color: Any,
    line: str = "-",
    band: float = 0.18,
    mark_every: int = 1,
) -> None:
    """A line through means with the band of their intervals.

    Args:
        axes: matplotlib Axes.
        x: where, `[points]`.
        mean: the line, `[points]`.
        low: lower end of the band, `[points]`; NaN where it is not known.
        high: upper end of the band, likewise.
        label: for the legend.
        color: of line and band.
        line: its style.
        band: opacity of the band.
        mark_every: one point of so many was measured and has a mark, the first among them.
    """
    style = {"marker": "o", "markersize": 3.5, "markevery": mark_every, "linewidth": 1.4}
    axes.fill_between(x, low, high, color=color, alpha=band, linewidth=0)
    axes.plot(x, mean, line, color=color, label=label, **style)


def half_width(table: "pd.DataFrame") -> float:
    """The largest half of an interval `low` to `high`; 0 where there is none."""
    widths = (table["high"] - table["low"]) / 2
    return float(widths.max()) if widths.notna().any() else 0.0


def line_styles(count: int) -> list[tuple[Any, str]]:
    """Colour and line style for so many curves.

    Distinct colours, then the same ones dashed; where both do not suffice a scale from dark to light.
    """
    if len(COLORS) < count <= 2 * len(COLORS):
        return [(COLORS[i % len(COLORS)], "-" if i < len(COLORS) else "--") for i in range(count)]
    return [(color, "-") for color in colors(count)]


def colors(count: int) -> list[Any]:
    """Colours for so many curves: distinct ones, or where they do not suffice a scale from dark to light."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    import matplotlib

    return list(matplotlib.colormaps[COLOR_MAP](np.linspace(0, 0.92, count)))


def in_points(value: float) -> str:
    """A share as points, in words: 1 point, 5 points."""
    return f"{100 * value:g} point{'s' * (round(100 * value, 9) != 1)}"


def grid(axes: Any) -> None:
    """A light grid behind the data."""
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def below_axes(axes: Any, ncols: int = 2) -> None:
    """A legend below the axes, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8, ncols=ncols, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _write(path: Path, write: Callable[[str], Any]) -> None:
    """Writes beside the target first, so that nothing half-written has its name."""
    with whole_file(path) as part:
        write(str(part))
