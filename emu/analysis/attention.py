"""What a device does to attention: how far the probabilities of each head move, and whether they scatter."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.analysis.figures import COLOR_MAP, grid, line_styles
from emu.analysis.ground import MOST_SHOWN, Analysis, Run, RunOptions, Section
from emu.analysis.probes import Batch, Probe, ProbedModel, over_chips, with_interval
from emu.errors import InputError
from emu.evaluation import Bench, Trial
from emu.evaluation.metrics import fixed

FLOOR = 1e-12  # of a probability in a logarithm

Quantity = Literal["kl", "entropy_shift"]
LABELS: dict[Quantity, str] = {
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
    bench: Bench,
    by: Literal["head", "length"] = "head",
    *,
    isolate: bool = False,
    bins: int = 5,
    only: str | None = None,
    exclude: str | None = None,
    **options: Unpack[RunOptions],
) -> Analysis:
    """How a device changes the attention probabilities of every layer and head.

    The divergence and the shift H(noisy) - H(clean) of the entropy (above 0: attention scatters) are averaged over the
    queries of a sample, then over samples; padding (`attention_mask` 0) is left out. Intervals are 95 % t intervals of
    the mean over chips.

    Args:
        bench: a model with a device, and data; labels are not needed.
        by: `head` for each layer and head; `length` for each layer and number of tokens that are no padding.
        isolate: disturb only the layer that is looked at, so that what enters it is clean; else all layers before it
            are disturbed too.
        bins: number of bins of lengths, each with about as many samples.
        only: disturb these sites only.
        exclude: leave these sites undisturbed.
        options: chips and seeds, see `emu.analysis.ground.Run`; nothing of it is stored.

    Returns:
        A table with the columns `layer`, `head` (or `shortest` and `longest`, in tokens), `entropy_clean`, `kl`,
        `kl_std`, `kl_low`, `kl_high`, `entropy_shift` with the same three, `samples`, `chips`.

    Raises:
        InputError: a setting is wrong, or no attention was found.
    """
    run = Run(**options)
    chosen = run.trials(only=only, exclude=exclude)
    if bins < 1:
        raise InputError(f"{bins} bins were asked for: give at least one.")
    probed = ProbedModel(bench, "attention")
    trials, places = _settings(chosen, probed.probes, isolate)
    runs = len(trials) // run.chips  # of one chip
    seen = [_Seen([], [[] for _ in chosen], [[] for _ in chosen]) for _ in probed.probes]
    lengths: list[NDArray[np.int64]] = []
    for each in probed.compare(trials, places=places, progress=run.progress):
        chip = each.trial // runs
        if each.trial == 0:
            lengths.append(_lengths(each.batch, by))
        for place, clean, noisy in each.values:
            if chip == 0:
                seen[place].clean.append(_per_sample(entropy(clean), each.batch))
            seen[place].kl[chip].append(_per_sample(divergence(clean, noisy), each.batch))
            seen[place].shift[chip].append(_per_sample(entropy(noisy) - entropy(clean), each.batch))
    table = _frame(probed.probes, seen, None if by == "head" else np.concatenate(lengths), bins)
    how = "only the layer itself disturbed" if isolate else "layers before it disturbed too"
    of = probed.described()
    worst = table.loc[table["kl"].idxmax()]
    where = f"head {worst['head']:.0f}" if by == "head" else f"{worst['shortest']:.0f} to {worst['longest']:.0f} tokens"
    return Analysis(
        name="attention",
        table=table,
        sentence=f"Attention moves most in layer {worst['layer']:.0f}, {where}: {worst['kl']:.4f} nats.",
        sections=[_section(table, by, f"Attention against clean attention in nats, {how}, mean of {run.chips} chips:")],
        more={"isolate": isolate},
        figures=[partial(_draw, table=table, quantity=each) for each in LABELS],
        size=(max(4.8, 2.6 + 0.45 * table.get("head", table["layer"]).nunique()), 4.2),
        **{**of, "caption": f"{of['caption']}, {how}"},
    )


def _draw(axes: Any, table: pd.DataFrame, quantity: Quantity) -> None:
    draw_attention(table, axes, quantity)


def _section(table: pd.DataFrame, by: str, title: str) -> Section:
    rows = []
    for row in table.head(MOST_SHOWN).to_dict("records"):
        tokens = f"{row.get('shortest', 0):g}-{row.get('longest', 0):g}"
        where = [int(row["head"])] if by == "head" else [tokens, int(row["samples"])]
        moved, shifted = (with_interval(row, name, 4) for name in ("kl", "entropy_shift"))
        rows.append([int(row["layer"]), *where, *moved, *shifted])
    place = ["head"] if by == "head" else ["tokens", "samples"]
    head = ["layer", *place, "KL divergence", "95 % interval", "entropy shift", "95 % interval"]
    more = [f"and {len(table) - MOST_SHOWN} more (--json shows all)"] * (len(table) > MOST_SHOWN)
    return Section(title, head, rows, tuple(more))


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
