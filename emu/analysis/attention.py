"""What a device does to attention: how far the probabilities of each head move, and whether they scatter."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.analysis.figures import COLOR_MAP, grid, line_styles
from emu.analysis.probes import Batch, Probe, ProbedModel, over_chips
from emu.errors import InputError
from emu.evaluation.bench import Trial, seeds_of
from emu.evaluation.metrics import fixed
from emu.evaluation.sources import DataSource

if TYPE_CHECKING:
    import onnx

    from emu.device import Overrides
    from emu.rewriter import Device, EmulatedModel, Rule

FLOOR = 1e-12  # of a probability in a logarithm

Quantity = Literal["kl", "entropy_shift"]
LABELS: dict[str, str] = {
    "kl": "KL divergence from clean attention (nats)",
    "entropy_shift": "shift of attention entropy (nats)",
}


def divergence(clean: NDArray[Any], noisy: NDArray[Any]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of disturbed from clean probabilities, for each query.

    Args:
        clean: probabilities `[..., keys]`.
        noisy: probabilities of the same shape.

    Returns:
        `[...]`, sum over keys of A_clean ln(A_clean / A_noisy), in nats; probabilities below 1e-12 count as 1e-12. The
        measure of the study of language models on analog tiles.
    """
    digital, analog = (np.asarray(each, np.float64) for each in (clean, noisy))
    ratio = np.log(np.maximum(digital, FLOOR)) - np.log(np.maximum(analog, FLOOR))
    return np.asarray((digital * ratio).sum(-1))


def entropy(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Entropy `[...]` of probabilities `[..., keys]` for each query, in nats, with the floor of `divergence`."""
    p = np.asarray(probabilities, np.float64)
    return np.asarray(-(p * np.log(np.maximum(p, FLOOR))).sum(-1))


def attention(
    model: "str | Path | onnx.ModelProto | EmulatedModel",
    data: str | Path | Mapping[str, Any] | DataSource,
    *,
    device: "Device | None" = None,
    set: "Overrides | None" = None,
    map: "Sequence[Rule]" = (),
    only: str | None = None,
    exclude: str | None = None,
    chips: int = 5,
    first_seed: int = 0,
    read_seed: int = 0,
    isolate: bool = False,
    by: Literal["head", "length"] = "head",
    bins: int = 5,
    samples: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    ops: Literal["native", "python"] = "native",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """How a device changes the attention probabilities of every layer and head.

    The divergence and the shift H(noisy) - H(clean) of the entropy (above 0: attention scatters) are averaged over the
    queries of a sample, then over samples; padding (`attention_mask` 0) is left out. Intervals are 95 % t intervals of
    the mean over chips.

    Args:
        model: a rewritten model, or a plain one with `device`.
        data: as `Bench` takes them; labels are not needed.
        device: a profile for a plain model.
        set: settings of the device.
        map: other devices for some sites, when rewriting.
        only: disturb these sites only.
        exclude: leave these sites undisturbed.
        chips: number of chips.
        first_seed: seed of the first chip.
        read_seed: seed of the run-time noise.
        isolate: disturb only the layer that is looked at, so that what enters it is clean; else all layers before it
            are disturbed too.
        by: `head` for each layer and head; `length` for each layer and number of tokens that are no padding.
        bins: number of bins of lengths, each with about as many samples.
        samples: use only the first so many samples.
        batch_size: samples at once; None for 8.
        threads: threads of the session; None for onnxruntime's default.
        ops: `native` for the C++ operators, `python` for their NumPy twin.
        progress: called with the steps done and the steps in total.

    Returns:
        Columns `layer`, `head` (or `shortest` and `longest`, in tokens), `entropy_clean`, `kl`, `kl_std`, `kl_low`,
        `kl_high`, `entropy_shift` with the same three, `samples`, `chips`. `attrs` says what it is of, and
        under `notes` what could not be looked at.

    Raises:
        InputError: the model, the data or a setting is wrong, or no attention was found.
    """
    chosen = [Trial(seed=seed, read_seed=read_seed, only=only, exclude=exclude) for seed in seeds_of(chips, first_seed)]
    if bins < 1:
        raise InputError(f"{bins} bins were asked for: give at least one.")
    probed = ProbedModel(
        model,
        data,
        "attention",
        device=device,
        set=set,
        map=map,
        batch_size=batch_size,
        threads=threads,
        samples=samples,
        ops=ops,
    )
    trials, places = _settings(chosen, probed.probes, isolate)
    runs = len(trials) // chips  # of one chip
    seen = [_Seen([], [[] for _ in chosen], [[] for _ in chosen]) for _ in probed.probes]
    lengths: list[NDArray[np.int64]] = []
    for run in probed.compare(trials, places=places, progress=progress):
        chip = run.trial // runs
        if run.trial == 0:
            lengths.append(_lengths(run.batch, by))
        for place, clean, noisy in run.values:
            if chip == 0:
                seen[place].clean.append(_per_sample(entropy(clean), run.batch))
            seen[place].kl[chip].append(_per_sample(divergence(clean, noisy), run.batch))
            seen[place].shift[chip].append(_per_sample(entropy(noisy) - entropy(clean), run.batch))
    frame = _frame(probed.probes, seen, None if by == "head" else np.concatenate(lengths), bins)
    frame.attrs |= probed.facts()
    return frame


def draw_attention(frame: pd.DataFrame, axes: Any, quantity: Quantity = "kl") -> None:
    """A heat map over layers and heads, or lines over the number of tokens, of what `attention` found.

    Args:
        frame: of `attention`.
        axes: matplotlib Axes.
        quantity: `kl` or `entropy_shift`.
    """
    chips = int(frame["chips"].iloc[0])
    title = f"{'Attention moved' if quantity == 'kl' else 'Attention scattered (above 0)'}, {_chips(chips)}"
    if "shortest" in frame:
        groups = list(frame.groupby("layer"))
        for (color, line), (layer, rows) in zip(line_styles(len(groups)), groups, strict=True):
            middle = (rows["shortest"] + rows["longest"]) / 2
            axes.fill_between(middle, rows[f"{quantity}_low"], rows[f"{quantity}_high"], color=color, alpha=0.15, lw=0)
            axes.plot(middle, rows[quantity], line, marker="o", markersize=3.5, color=color, label=f"layer {layer}")
        axes.set_xlabel("tokens that are no padding")
        axes.set_ylabel(LABELS[quantity])
        axes.set_title(title)
        grid(axes)
        axes.legend(frameon=False)
        return
    table = frame.pivot(index="layer", columns="head", values=quantity)
    values = np.ma.masked_invalid(table.to_numpy(float))
    top = max(float(np.abs(values).max()), FLOOR) if values.count() else 1.0
    style = {"cmap": COLOR_MAP, "vmin": 0} if quantity == "kl" else {"cmap": "PuOr", "vmin": -top}
    image = axes.imshow(values, aspect="auto", vmax=top, **style)
    axes.figure.colorbar(image, ax=axes, label=LABELS[quantity])
    axes.set_xticks(range(table.shape[1]), table.columns)
    axes.set_yticks(range(table.shape[0]), table.index)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_title(title)
    digits = 1 - math.floor(math.log10(top / 3))  # two of the largest, or three if it begins with 1 or 2
    if values.size <= 64:
        for (row, column), value in np.ndenumerate(table.to_numpy(float)):
            if np.isnan(value):
                continue
            dark = value < 0.55 * top if quantity == "kl" else abs(value) > 0.6 * top
            color = "white" if dark else "black"
            axes.text(column, row, fixed(value, max(0, digits)), ha="center", va="center", fontsize=8, color=color)


class _Seen:
    """What was seen of one layer: for each batch `[samples, heads]`, clean, and by chip."""

    def __init__(self, clean: list[Any], kl: list[list[Any]], shift: list[list[Any]]) -> None:
        self.clean, self.kl, self.shift = clean, kl, shift


def _settings(
    chips: Sequence[Trial], probes: Sequence[Probe], isolate: bool
) -> tuple[list[Trial], list[Sequence[int]] | None]:
    """The runs of all chips, as many for each, and the probes that each run serves; None for all of them."""
    if not isolate:
        return list(chips), None
    pairs = list(itertools.product(chips, enumerate(probes)))
    trials = [replace(chip, only=f"layer={probe.layer} {chip.only or ''}".strip()) for chip, (_, probe) in pairs]
    return trials, [[place] for _, (place, _) in pairs]


def _per_sample(values: NDArray[np.float64], batch: Batch) -> NDArray[np.float64]:
    """The mean over the queries of each sample `[samples, heads]` of `[samples, windows, heads, queries]`."""
    mask = batch.mask
    if mask is None or mask.shape[1] != values.shape[-1]:
        return np.asarray(values.mean(axis=(1, 3)))
    counts = mask.sum(1)
    sums = np.where(mask[:, None, None, :], values, 0.0).sum(3).mean(1)
    return np.asarray(np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan))


def _lengths(batch: Batch, by: str) -> NDArray[np.int64]:
    if by == "head":
        return np.zeros(batch.samples, np.int64)
    if batch.mask is None:
        raise InputError(
            "The dependence on the number of tokens needs an input 'attention_mask' [samples, tokens], "
            "which the model does not have: leave out the length."
        )
    return np.asarray(batch.mask.sum(1), np.int64)


def _frame(
    probes: Sequence[Probe], seen: Sequence[_Seen], lengths: NDArray[np.int64] | None, bins: int
) -> pd.DataFrame:
    groups = [None] if lengths is None else _bins(lengths, bins)
    rows = []
    for probe, each in zip(probes, seen, strict=True):
        clean = np.concatenate(each.clean)
        kl, shift = (np.stack([np.concatenate(chip) for chip in chips]) for chips in (each.kl, each.shift))
        for group in groups:
            chosen: Any = slice(None) if group is None or lengths is None else np.isin(lengths, group)
            heads = range(clean.shape[1]) if group is None else [slice(None)]
            for head in heads:
                where = {"head": head} if group is None else {"shortest": int(group[0]), "longest": int(group[-1])}
                rows.append(
                    {
                        "layer": probe.layer,
                        **where,
                        "entropy_clean": float(np.nanmean(clean[chosen, head])),
                        **over_chips("kl", [float(np.nanmean(values[chosen, head])) for values in kl]),
                        **over_chips("entropy_shift", [float(np.nanmean(values[chosen, head])) for values in shift]),
                        "samples": len(clean[chosen]),
                        "chips": len(kl),
                    }
                )
    return pd.DataFrame(rows)


def _bins(lengths: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The lengths that occur, rising, in groups with about as many samples each."""
    found, samples = np.unique(lengths, return_counts=True)
    place = (np.cumsum(samples) - samples / 2) * count / len(lengths)
    return [group for index in range(count) if len(group := found[place.astype(int) == index])]


def _chips(count: int) -> str:
    return "1 chip" if count == 1 else f"mean over {count} chips"
