"""How much of a signal survives a device: the signal-to-noise ratio of every block's output."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.analysis.figures import below_axes, colors, grid, line_styles
from emu.analysis.ground import MOST_SHOWN, Analysis, Run, RunOptions, Section
from emu.analysis.probes import Batch, ProbedModel, over_chips, with_interval
from emu.errors import InputError
from emu.evaluation import Bench

_LINES = ("-", "--", ":", "-.")


def ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers; infinite without noise, NaN without both."""
    if math.isnan(signal) or math.isnan(noise) or signal == noise == 0:
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def signal_to_noise(
    bench: Bench,
    vary: Mapping[str, Sequence[Any]] | None = None,
    *,
    of: Literal["block", "context"] = "block",
    reference: Mapping[str, Any] | None = None,
    only: str | None = None,
    exclude: str | None = None,
    **options: Unpack[RunOptions],
) -> Analysis:
    """The signal-to-noise ratio of every layer, 10 log10(sum y^2 / sum (y' - y)^2) in dB.

    Sums are over the elements of y for all samples, padding (`attention_mask` 0) left out. The mean over chips is of
    the ratios in dB, with its 95 % t interval.

    Args:
        bench: a model with a device, and data; labels are not needed.
        vary: numbers of the device and their values, such as `{"write.gamma": [3, 4, 5]}`; of several every
            combination.
        of: `block`: y is the residual sum at the end of a layer; `context`: the attention of the layer, softmax(QK^T)V.
        reference: y is not that of the clean model but of the same chip with these numbers of the device, such as
            `{"write.gamma": 0}` for the noise alone, without what a transform does: the ClipFormer paper, as read here.
        only: disturb these sites only.
        exclude: leave these sites undisturbed.
        options: chips and seeds, see `emu.analysis.ground.Run`; nothing of it is stored.

    Returns:
        A table with a column for each number in `vary`, then `layer`, `snr_db`, `snr_db_std`, `snr_db_low`,
        `snr_db_high`, `samples`, `chips`.

    Raises:
        InputError: a setting is wrong, or no such tensors were found.
    """
    run, vary, kind = Run(**options), dict(vary or {}), of
    for name, values in vary.items():
        if not values:
            raise InputError(f"'{name}' is varied over no value: give at least one.")
    probed = ProbedModel(bench, kind)
    settings = [dict(zip(vary, combination, strict=True)) for combination in itertools.product(*vary.values())]
    trials = [trial for point in settings for trial in run.trials(only=only, exclude=exclude, set=point)]
    against = None if reference is None else [replace(each, set={**each.set, **reference}) for each in trials]
    powers = np.zeros((len(trials), len(probed.probes), 2))
    for each in probed.compare(trials, references=against, progress=run.progress):
        for place, y, noisy in each.values:
            powers[each.trial, place] += _power(y, each.batch), _power(noisy.astype(np.float64) - y, each.batch)
    rows = []
    for (place, point), (layer, probe) in itertools.product(enumerate(settings), enumerate(probed.probes)):
        ratios = [ratio_db(*pair) for pair in powers[place * run.chips : (place + 1) * run.chips, layer]]
        measured = over_chips("snr_db", ratios)
        rows.append({**point, "layer": probe.layer, **measured, "samples": probed.samples, "chips": run.chips})
    table = pd.DataFrame(rows)
    table.attrs["of"] = of
    changes = " ".join(f"{name}={_value(value)}" for name, value in (reference or {}).items())
    compared = f"the same chip with {changes}" if reference else "the clean model"
    described = probed.described()
    worst = table.loc[table["snr_db"].idxmin()]
    return Analysis(
        name="snr",
        table=table,
        sentence=f"Layer {worst['layer']:.0f} keeps least of its signal: {worst['snr_db']:.2f} dB.",
        sections=[_section(table, list(vary), of, compared, run.chips)],
        more={"of": of, "reference": dict(reference) if reference else "clean"},
        figures=[lambda axes: draw_signal_to_noise(table, axes)],
        size=(6.4, 4.4),
        **{**described, "caption": f"{described['caption']}, against {compared}"},
    )


def _section(table: pd.DataFrame, varied: list[str], of: str, compared: str, chips: int) -> Section:
    rows = [
        [*(_value(row[name]) for name in varied), int(row["layer"]), *with_interval(row, "snr_db", 2)]
        for row in table.head(MOST_SHOWN).to_dict("records")
    ]
    below = [f"and {len(table) - MOST_SHOWN} more (--json shows all)"] * (len(table) > MOST_SHOWN)
    if table["layer"].nunique() > 1 and math.isfinite(table["snr_db"].mean()):
        groups = table.groupby(varied, sort=False)["snr_db"].mean() if varied else {(): table["snr_db"].mean()}
        for value, mean in groups.items():
            values = value if isinstance(value, tuple) else (value,)
            text = " ".join(f"{name}={_value(each)}" for name, each in zip(varied, values, strict=True))
            below.append(f"mean over layers {mean:.2f} dB" + (f"  {text}" if text else ""))
    what = "the attention of a layer" if of == "context" else "the output of a layer"
    title = f"Signal-to-noise ratio of {what} against {compared}, mean of {chips} chips:"
    return Section(title, [*varied, "layer", "dB", "95 % interval"], rows, tuple(below))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def draw_signal_to_noise(frame: pd.DataFrame, axes: Any) -> None:
    """Lines over layers, one for each setting of what was varied.

    Args:
        frame: of `signal_to_noise`.
        axes: matplotlib Axes.
    """
    varied = list(frame.columns[: list(frame.columns).index("layer")])
    groups = list(frame.groupby(varied, sort=False)) if varied else [((), frame)]
    for (color, line), (values, rows) in zip(_styles([values for values, _ in groups]), groups, strict=True):
        pairs = zip(varied, values, strict=True)
        text = ", ".join(f"{name} {value if isinstance(value, str) else format(value, 'g')}" for name, value in pairs)
        axes.fill_between(rows["layer"], rows["snr_db_low"], rows["snr_db_high"], color=color, alpha=0.15, lw=0)
        axes.plot(rows["layer"], rows["snr_db"], line, marker="o", markersize=3.5, color=color, label=text)
    axes.set_xticks(sorted(frame["layer"].unique()))
    axes.set_xlabel("layer")
    axes.set_ylabel("signal-to-noise ratio (dB)")
    chips = int(frame["chips"].iloc[0])
    what = "attention output" if frame.attrs.get("of") == "context" else "block output"
    axes.set_title(f"Signal-to-noise ratio of each {what}, {'1 chip' if chips == 1 else f'mean over {chips} chips'}")
    grid(axes)
    if varied:
        below_axes(axes)


def _styles(points: Sequence[tuple[Any, ...]]) -> list[tuple[Any, str]]:
    """Colour and line style of each point; where two numbers vary, a colour for the first, a style for the second."""
    columns = [list(dict.fromkeys(values)) for values in zip(*points, strict=True)]
    if len(columns) != 2 or len(columns[1]) > len(_LINES):
        return line_styles(len(points))
    shades = colors(len(columns[0]))
    return [(shades[columns[0].index(one)], _LINES[columns[1].index(other)]) for one, other in points]


def _power(values: NDArray[Any], batch: Batch) -> float:
    """Sum of squares over all elements that belong to no padding."""
    squares = np.square(values, dtype=np.float64).sum(-1)
    mask = batch.mask
    if mask is not None and mask.shape[1] == squares.shape[-1]:
        squares = np.where(mask.reshape(len(mask), *[1] * (squares.ndim - 2), -1), squares, 0.0)
    return float(squares.sum())
