"""How much of a disturbance a model stands: the value of a setting at which so much accuracy is lost."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from emu.analysis.figures import GREY, curve, grid, in_points, line_styles
from emu.analysis.ground import (
    ROUNDING,
    Analysis,
    Run,
    RunOptions,
    Section,
    clean_value,
    disturbed_groups,
    mean_and_interval,
    of_bench,
    records,
)
from emu.errors import InputError
from emu.evaluation import Bench

By = Literal["model", "layer", "component", "head"]

LOSSES = (0.01, 0.05, 0.10)
_RESAMPLES = 2000
_DRAWN_BETWEEN = 16  # parts of a line between two points


def crossing(values: ArrayLike, losses: ArrayLike, limit: float) -> float:
    """The value at which a loss reaches a limit, linear in log10(value) between the points that bracket it.

    Args:
        values: positive and rising, `[points]`.
        losses: at these values, `[points]`, in the unit of `limit`.
        limit: the loss that is looked for; of several crossings the first counts.

    Returns:
        The value; 0 if the first point is beyond the limit already, infinity if none reaches it.
    """
    x, y = np.log10(np.asarray(values, float)), np.asarray(losses, float)
    beyond = np.flatnonzero(y >= limit - ROUNDING)
    if not len(beyond):
        return float("inf")
    after = int(beyond[0])
    if after == 0:
        return float(np.asarray(values, float)[0]) if y[0] <= limit + ROUNDING else 0.0
    share = min((limit - y[after - 1]) / (y[after] - y[after - 1]), 1.0)
    return float(10 ** (x[after - 1] + share * (x[after] - x[after - 1])))


def thresholds(
    bench: Bench,
    vary: str,
    values: Sequence[float],
    by: By = "model",
    losses: Sequence[float] = LOSSES,
    **options: Unpack[RunOptions],
) -> Analysis:
    """The value of a setting at which so much accuracy is lost.

    Args:
        bench: a model with a device.
        vary: the setting, one of `Bench.settings`, such as `faults.ber` or `program.sigma`.
        values: its values, positive; they are sorted.
        by: what is disturbed at a time: the whole `model`, one `layer`, one `component`, or one `head` of one layer.
        losses: the limits, shares of accuracy.
        options: chips, seeds, and where trials are kept, see `emu.analysis.ground.Run`.

    Returns:
        The table of `crossings`; `drawn` is that of `threshold_curves`.

    Raises:
        InputError: as in `threshold_curves`.
    """
    curves = threshold_curves(bench, vary, values, by, **options)
    table, run, metric = crossings(curves, losses), Run(**options), bench.task.primary
    rows = []
    for row in table.to_dict("records"):
        low, high = (_shown(row[end], values) for end in ("low", "high"))
        interval = "-" if np.isnan(row["low"]) else f"{low} to {high}"
        rows.append([row["part"], in_points(row["limit"]), _shown(row["value"], values), interval])
    title = f"{vary} at which so much {metric} is lost, mean of {run.chips} chips, 95 % bootstrap interval:"
    first = table[table["limit"] == min(losses)].sort_values("value", kind="stable").iloc[0]
    subject = "The model" if first["part"] == "model" else f"{first['part']} is the weakest: it"
    mean = curves.groupby(["part", "value"], sort=False)["loss"].mean().reset_index()
    return Analysis(
        name="thresholds",
        table=table,
        sentence=f"{subject} loses {in_points(float(first['limit']))} at {vary} {_shown(first['value'], values)}.",
        sections=[Section(title, ["part", "lost", vary, "95 % interval"], rows)],
        more={"vary": vary, "by": by, "mean_losses": records(mean)},
        figures=[partial(draw_thresholds, curves=curves, vary=vary, losses=losses, metric=metric)],
        size=(6.8, 4.6),
        drawn=curves,
        **of_bench(bench),
    )


def threshold_curves(
    bench: Bench, vary: str, values: Sequence[float], by: By = "model", **options: Unpack[RunOptions]
) -> pd.DataFrame:
    """The accuracy lost at each value of a setting, on each chip; arguments as in `thresholds`.

    Returns:
        One row per part, value and chip: `part`, `value`, `seed`, `loss`, the accuracy of the clean model less that of
        the chip, a share.

    Raises:
        InputError: a setting that the device does not have, values that are not positive, or no such parts.
    """
    run = Run(**options)
    tried = sorted(set(map(float, values)))
    if len(tried) < 2 or tried[0] <= 0 or not np.isfinite(tried).all():
        raise InputError(f"A threshold lies between values: give at least two different positive ones for {vary}.")
    parts = _parts(bench, by)
    if vary not in bench.settings:
        raise InputError(f"'{vary}' is no number of this device: vary one of {', '.join(bench.settings) or 'nothing'}.")
    keys = [(part, value, seed) for part in parts for value in tried for seed in run.seeds]
    trials = [trial for part in parts.values() for value in tried for trial in run.trials(set={vary: value}, **part)]
    what = f"{len(parts)} part{'s' * (len(parts) > 1)} ({by}) x {len(tried)} values of {vary} x {run.chips} chips"
    measured = run.measure(bench, trials, what, "thresholds")
    curves = pd.DataFrame(keys, columns=["part", "value", "seed"])
    curves["loss"] = clean_value(bench) - measured.means
    return curves


def crossings(curves: pd.DataFrame, losses: Sequence[float] = LOSSES, seed: int = 0) -> pd.DataFrame:
    """Where the mean loss over chips reaches each limit, with a 95 % bootstrap interval over chips.

    Args:
        curves: what `threshold_curves` gave.
        losses: the limits, shares of accuracy.
        seed: of the 2000 resamples of chips; one resample serves all values, as the chips are the same.

    Returns:
        One row per part and limit: `part`, `limit`, `value`, `low`, `high`, `where`, `chips`. A value of 0 means below
        all values that were tried (`where` is `below`), infinity above all of them (`above`; else `within`); `low` and
        `high` are NaN for a single chip.
    """
    rows = []
    for part in dict.fromkeys(curves["part"]):
        points, grid_of_losses = _grid(curves, part)
        chips = grid_of_losses.shape[1]
        draws = np.random.default_rng(seed).integers(chips, size=(_RESAMPLES, chips))
        means = grid_of_losses[:, draws].mean(axis=2)  # [values, resamples]
        for limit in losses:
            low = high = np.nan
            if chips > 1:
                found = np.sort([crossing(points, column, limit) for column in means.T])
                low, high = found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES) - 1]
            value = crossing(points, grid_of_losses.mean(axis=1), limit)
            where = "below" if value == 0 else "above" if np.isinf(value) else "within"
            rows.append(
                {
                    "part": part,
                    "limit": limit,
                    "value": value,
                    "low": low,
                    "high": high,
                    "where": where,
                    "chips": chips,
                }
            )
    return pd.DataFrame(rows)


def draw_thresholds(
    axes: Any,
    curves: pd.DataFrame,
    vary: str = "value",
    losses: Sequence[float] = LOSSES,
    metric: str = "accuracy",
) -> None:
    """Draws the mean loss against the setting, with 95 % t bands over chips, and the limits.

    Args:
        axes: matplotlib Axes.
        curves: what `threshold_curves` gave.
        vary: name of the setting, for the axis.
        losses: the limits, shares of accuracy.
        metric: name of what is measured.
    """
    parts = list(dict.fromkeys(curves["part"]))
    chips = 0
    lowest = 0.0
    for part, (color, line) in zip(parts, line_styles(len(parts)), strict=True):
        points, found = _grid(curves, part)
        chips = found.shape[1]
        spreads = pd.DataFrame([mean_and_interval(list(row)) for row in 100 * found])
        lowest = min(lowest, float(spreads["mean"].min()))
        # Between the points as `crossing` reads them, which is no straight line on this scale.
        place = np.linspace(0, len(points) - 1, (len(points) - 1) * _DRAWN_BETWEEN + 1)
        x = np.interp(place, range(len(points)), np.log10(points))
        mean, low, high = (np.interp(x, np.log10(points), spreads[name]) for name in ("mean", "low", "high"))
        band = 0.15 if len(parts) <= 4 else 0.07
        curve(axes, 10**x, mean, low, high, part, color, line, band, mark_every=_DRAWN_BETWEEN)
    for limit in losses:
        axes.axhline(100 * limit, color=GREY, linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{100 * limit:g}",
            (1.01, 100 * limit),
            xycoords=("axes fraction", "data"),
            color=GREY,
            va="center",
            annotation_clip=False,
        )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    ticks = [0, 0.5, 1, 2, 5, 10, 20, 50, 100]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(lowest - 0.15, min(axes.get_ylim()[1], 105))
    axes.set_xlabel(vary)
    axes.set_ylabel(f"{metric} lost (points)")
    axes.set_title(f"{metric.capitalize()} lost against {vary}\nmean of {chips} chips, 95 % interval; dashed: limits")
    grid(axes)
    if len(parts) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=1 + (len(parts) > 8))


def _shown(value: float, tried: Sequence[float]) -> str:
    """A threshold in words: less or more than all values that were tried, or between them."""
    if np.isnan(value):
        return "-"
    return f"< {min(tried):g}" if value == 0 else f"> {max(tried):g}" if np.isinf(value) else f"{value:.3g}"


def _grid(curves: pd.DataFrame, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values `[values]` and the losses `[values, chips]` of one part."""
    found = curves[curves["part"] == part].pivot(index="value", columns="seed", values="loss").sort_index()
    return found.index.to_numpy(float), found.to_numpy(float)


def _parts(bench: Bench, by: By) -> dict[str, Mapping[str, Any]]:
    """What is disturbed at a time, by name: arguments of a trial."""
    groups = disturbed_groups(bench)
    if by == "model":
        return {"model": {}}
    if by == "component":
        return {each: {"only": f"component={each}"} for each in dict.fromkeys(group.component for group in groups)}
    layers = sorted({group.layer for group in groups if group.layer is not None})
    if by == "layer":
        parts: dict[str, Mapping[str, Any]] = {f"layer {layer}": {"only": f"layer={layer}"} for layer in layers}
    else:
        from emu.analysis.heads import heads_of

        parts = {
            f"layer {layer} head {head}": {"only": f"layer={layer}", "head": head}
            for layer, count in heads_of(bench).items()
            for head in range(count)
        }
    if not parts:
        raise InputError(f"{bench.name} has no {by}s that could be told apart: choose another part.")
    return parts
