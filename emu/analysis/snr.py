"""How much of a signal survives a device: the signal-to-noise ratio of every block's output."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.analysis.figures import below_axes, colors, grid, line_styles
from emu.analysis.probes import Batch, Kind, ProbedModel, over_chips
from emu.errors import InputError
from emu.evaluation.bench import Trial, seeds_of
from emu.evaluation.sources import DataSource

if TYPE_CHECKING:
    import onnx

    from emu.device import Overrides
    from emu.rewriter import Device, EmulatedModel, Rule


_LINES = ("-", "--", ":", "-.")


def ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers; infinite without noise, NaN without both."""
    if math.isnan(signal) or math.isnan(noise) or signal == noise == 0:
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def signal_to_noise(
    model: "str | Path | onnx.ModelProto | EmulatedModel",
    data: str | Path | Mapping[str, Any] | DataSource,
    *,
    device: "Device | None" = None,
    set: "Overrides | None" = None,
    map: "Sequence[Rule]" = (),
    only: str | None = None,
    exclude: str | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    of: Literal["block", "context"] = "block",
    reference: Mapping[str, Any] | None = None,
    chips: int = 5,
    first_seed: int = 0,
    read_seed: int = 0,
    samples: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    ops: Literal["native", "python"] = "native",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The signal-to-noise ratio of every layer, 10 log10(sum y^2 / sum (y' - y)^2) in dB.

    Sums are over the elements of y for all samples, padding (`attention_mask` 0) left out. The mean over chips is of
    the ratios in dB, with its 95 % t interval.

    Args:
        model: a rewritten model, or a plain one with `device`.
        data: as `Bench` takes them; labels are not needed.
        device: a profile for a plain model.
        set: settings of the device.
        map: other devices for some sites, when rewriting.
        only: disturb these sites only.
        exclude: leave these sites undisturbed.
        vary: numbers of the device and their values, such as `{"write.gamma": [3, 4, 5]}`; of several every
            combination.
        of: `block`: y is the residual sum at the end of a layer; `context`: the attention of the layer, softmax(QK^T)V.
        reference: y is not that of the clean model but of the same chip with these numbers of the device, such as
            `{"write.gamma": 0}` for the noise alone, without what a transform does: the ClipFormer paper, as read here.
        chips: number of chips.
        first_seed: seed of the first chip.
        read_seed: seed of the run-time noise.
        samples: use only the first so many samples.
        batch_size: samples at once; None for 8.
        threads: threads of the session; None for onnxruntime's default.
        ops: `native` for the C++ operators, `python` for their NumPy twin.
        progress: called with the steps done and the steps in total.

    Returns:
        A column for each number in `vary`, then `layer`, `snr_db`, `snr_db_std`, `snr_db_low`, `snr_db_high`,
        `samples`, `chips`. `attrs` says what it is of, and under `notes` what could not be looked
        at.

    Raises:
        InputError: the model, the data or a setting is wrong, or no such tensors were found.
    """
    seeds = seeds_of(chips, first_seed)
    vary = dict(vary or {})
    for name, values in vary.items():
        if not values:
            raise InputError(f"'{name}' is varied over no value: give at least one.")
    kind: Kind = of
    probed = ProbedModel(
        model,
        data,
        kind,
        device=device,
        set=set,
        map=map,
        batch_size=batch_size,
        threads=threads,
        samples=samples,
        ops=ops,
    )
    points = [dict(zip(vary, combination, strict=True)) for combination in itertools.product(*vary.values())]
    trials = [
        Trial(seed=seed, read_seed=read_seed, only=only, exclude=exclude, set=point)
        for point in points
        for seed in seeds
    ]
    against = None if reference is None else [replace(each, set={**each.set, **reference}) for each in trials]
    powers = np.zeros((len(trials), len(probed.probes), 2))
    for run in probed.compare(trials, references=against, progress=progress):
        for place, y, noisy in run.values:
            powers[run.trial, place] += _power(y, run.batch), _power(noisy.astype(np.float64) - y, run.batch)
    rows = []
    for (place, point), (layer, probe) in itertools.product(enumerate(points), enumerate(probed.probes)):
        ratios = [ratio_db(*each) for each in powers[place * chips : (place + 1) * chips, layer]]
        measured = over_chips("snr_db", ratios)
        rows.append({**point, "layer": probe.layer, **measured, "samples": probed.samples, "chips": chips})
    frame = pd.DataFrame(rows)
    frame.attrs |= probed.facts()
    frame.attrs["of"] = of
    return frame


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
