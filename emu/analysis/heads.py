"""Which attention heads are vulnerable, and how far they look: as in the soft-error study of quantized ViTs."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.analysis.figures import COLORS, GREY, grid, half_width, heat_map, line_styles
from emu.analysis.ground import (
    MOST_SHOWN,
    Analysis,
    Run,
    RunOptions,
    Section,
    about_intervals,
    disturbed_groups,
    marked,
    number,
    of_bench,
    p_shown,
    points,
    undisturbed,
)
from emu.contract.site import Site
from emu.errors import InputError
from emu.evaluation import Bench, Trial
from emu.evaluation.controls import control_feeds
from emu.evaluation.data import DataSet, fixed_batch, model_inputs
from emu.evaluation.statistics import holm
from emu.rewriter import structure_of

if TYPE_CHECKING:
    import onnx

    from emu.rewriter import EmulatedModel

_BATCH = 8  # attention of all layers is in memory for one batch
_MOST_SPECIAL_TOKENS = 8  # class, distillation and register tokens before the patches


def heads_of(bench: Bench) -> dict[int, int]:
    """The number of (query) heads of each layer that has heads."""
    counts: dict[int, int] = {}
    for site in bench.sites:
        if site.layer is not None and site.heads:
            counts[site.layer] = max(counts.get(site.layer, 0), site.query_heads)
    return counts


def stored_bits(bench: Bench, site: Site) -> int | None:
    """Bits of one weight of a site as its device stores it; None if the device stores no bits, or the site no weights.

    A quantized model keeps its own codes.
    """
    if not site.parameters or bench.manifest is None:
        return None
    structure = structure_of(site, bench.manifest)
    return None if structure.fault_storage == "none" else structure.fault_word_bits


def heads(
    bench: Bench,
    *,
    attention: "str | Path | onnx.ModelProto | EmulatedModel | None" = None,
    **options: Unpack[RunOptions],
) -> Analysis:
    """The accuracy lost when one head of one layer is disturbed, and how far that head looks in the clean model.

    Args:
        bench: a model with a device. What may be disturbed is what its sites are: rewrite with `only` to restrict it.
        attention: model to take the attention from; None for that of the bench, whose attention products may be digital
            and then show nothing. A plain model does.
        options: chips, seeds, and where trials are kept, see `emu.analysis.ground.Run`.

    Returns:
        A table with one row per layer and head that is disturbed: `layer`, `head`, `loss` (clean accuracy less mean
        accuracy, a share), `std`, `low`, `high` (95 % interval over chips and samples, as in `sensitivity`), `p`,
        `p_corrected` (for the number of heads, Holm), `chips`, `bits` (stored bits of the head; missing if the device
        stores no bits), `loss_per_megabit`, `low_per_megabit`, `high_per_megabit`, `distance` (mean attention
        distance), `unit` (`patches` or `tokens`) and `distance_px` (in pixels of the model's input, for images). Where
        distances are not known they are NaN.

    Raises:
        InputError: a model without heads that could be told from the graph, or wrong seeds.
    """
    run = Run(**options)
    disturbed_groups(bench)
    counts = {
        layer: count for layer, count in heads_of(bench).items() if bench.disturbs(Trial(head=0, only=f"layer={layer}"))
    }
    if not counts:
        raise InputError(f"{bench.name} has no site that is disturbed and whose heads could be told from the graph.")
    places = [(layer, head) for layer, count in counts.items() for head in range(count)]
    trials = [trial for layer, head in places for trial in run.trials(head=head, only=f"layer={layer}")]
    found = run.measure(bench, trials, f"{len(places)} heads x {run.chips} chips", "heads").of_chips(run.chips)
    losses = [(undisturbed(bench) - each).interval() for each in found]
    corrected = holm([lost["p"] for lost in losses])
    distances = attention_distances(bench.model if attention is None else attention, bench.dataset)
    rows = []
    for (layer, head), spread, p in zip(places, losses, corrected, strict=True):
        bits = _bits_of_head(bench, layer)
        per_megabit = 1e6 / bits if bits else np.nan
        rows.append(
            {
                "layer": layer,
                "head": head,
                "loss": spread["mean"],
                **{name: spread[name] for name in ("std", "low", "high", "p")},
                "p_corrected": p,
                "chips": run.chips,
                "bits": bits,
                "loss_per_megabit": spread["mean"] * per_megabit,
                "low_per_megabit": spread["low"] * per_megabit,
                "high_per_megabit": spread["high"] * per_megabit,
            }
        )
    table = pd.DataFrame(rows).astype({"bits": "Int64"}).merge(distances, on=["layer", "head"], how="left")
    metric = bench.task.primary
    figures = [partial(draw_heads, table=table, metric=metric)]
    figures += [partial(draw_distances, table=table, metric=metric)] if table["distance"].notna().any() else []
    shown = table[marked(table, "loss")]
    worst = None if shown.empty else shown.loc[shown["loss"].idxmax()]
    return Analysis(
        name="heads",
        table=table,
        sentence=f"Head {worst['head']} of layer {worst['layer']} costs most: {100 * worst['loss']:.2f} points."
        if worst is not None
        else "No head stands out: none costs accuracy at 95 %, corrected for the number of heads; more --chips would "
        "tell more.",
        sections=[_section(table, metric, run.chips, about_intervals(found, "heads"))],
        figures=figures,
        size=(max(5.2, 3.2 + 0.3 * table["head"].nunique()), max(4.0, 2.6 + 0.28 * table["layer"].nunique())),
        **of_bench(bench),
    )


def attention_distances(
    model: "str | Path | onnx.ModelProto | EmulatedModel", dataset: DataSet, samples: int | None = None
) -> pd.DataFrame:
    """The mean attention distance of every head: how far its queries look, weighted by attention.

    Mean over samples and queries of the sum over keys of A(query, key) times the distance from query to key, in the
    undisturbed model. For images the distance is that on the grid of patches; class tokens and what falls on them are
    left out, and nothing is normalized again (Raghu et al., NeurIPS 2021). For text it is the difference of positions;
    queries that an input `attention_mask` masks are left out.

    Args:
        model: a plain or rewritten model.
        dataset: its data, such as `Bench.dataset`.
        samples: use only the first so many samples.

    Returns:
        One row per layer and head: `layer`, `head`, `distance`, `unit` and `distance_px`, as in `heads`. Layers are
        missing whose attention is not one matrix per head over all tokens.
    """
    from emu.rewriter import EmulatedModel, read_manifest, rewrite
    from emu.runtime import session as open_session

    if isinstance(model, EmulatedModel) or read_manifest(model) is not None:
        emulated = EmulatedModel.open(model)
    else:
        emulated = rewrite(model, device="ideal")
    context = [
        (site, node)
        for site, node in emulated.products()
        if site.component == "attention_context" and site.heads and site.layer is not None
    ]
    context.sort(key=lambda each: each[0].layer or 0)
    columns = ["layer", "head", "distance", "unit", "distance_px"]
    if not context:
        return pd.DataFrame(columns=columns).astype({"layer": int, "head": int})
    names = [_first_input(node) for _, node in context]
    session = open_session(emulated.observed(names))
    image = next((array.shape[-2:] for array in dataset.arrays.values() if array.ndim == 4), None)
    controls = control_feeds(emulated.manifest, strength=0.0)
    fixed = fixed_batch(model_inputs(session))
    size = fixed or _BATCH
    end = min(samples or dataset.rows, dataset.rows)
    sums: dict[str, NDArray[np.float64]] = {}
    queries: dict[str, float] = {}
    pitch: dict[str, float] = {}
    for start, feeds in dataset.batches(size, pad=fixed is not None):
        if start >= end:
            break
        count = min(size, end - start)
        found = session.run(names, {**feeds, **controls})
        for (site, _), attention in zip(context, found, strict=True):
            rows_fed = len(next(iter(feeds.values())))
            of_sample = np.asarray(attention, np.float64).reshape(rows_fed, -1, *attention.shape[-2:])
            heads_here = site.query_heads
            if of_sample.shape[1] != heads_here or of_sample.shape[2] != of_sample.shape[3]:
                continue
            grid_ = None if image is None else patch_grid(of_sample.shape[2], image)
            if image is not None and grid_ is None:
                continue
            mask = feeds.get("attention_mask")
            asked = mask[:count] if mask is not None and mask.shape == (len(of_sample), of_sample.shape[2]) else None
            total, number = distance_sums(of_sample[:count], grid_, asked)
            index = site.node
            sums[index] = sums.get(index, 0) + total
            queries[index] = queries.get(index, 0) + number
            if grid_ is not None and image is not None:
                pitch[index] = image[0] / grid_[0]
    rows: list[tuple[Any, ...]] = []
    for site, _ in context:
        index = site.node
        for head, total in enumerate(sums.get(index, ())):
            distance = total / queries[index] if queries[index] else math.nan
            pixels = distance * pitch[index] if index in pitch else math.nan
            rows.append((site.layer, head, distance, "patches" if index in pitch else "tokens", pixels))
    return pd.DataFrame(rows, columns=columns).astype({"layer": int, "head": int})


def patch_grid(tokens: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of the grid of square patches that an image of this height and width is cut into.

    The tokens are those patches and as few others (class tokens) as possible; None if there is no such grid.
    """
    height, width = image
    for patches in range(tokens, max(tokens - _MOST_SPECIAL_TOKENS, 1) - 1, -1):
        side = math.sqrt(height * width / patches)
        rows, columns = round(height / side), round(width / side)
        if rows * columns == patches and rows * width == columns * height:
            return rows, columns
    return None


def distance_sums(
    attention: NDArray[np.float64], grid_: tuple[int, int] | None, asked: NDArray[Any] | None = None
) -> tuple[NDArray[np.float64], float]:
    """Attention times distance, summed over samples, queries and keys, and the number of queries.

    Args:
        attention: `[samples, heads, tokens, tokens]`.
        grid_: rows and columns of patches, the last tokens; None for text, whose distances are those of positions.
        asked: which queries count, `[samples, tokens]`; None for all.

    Returns:
        One sum per head, in patches or tokens, and the number of queries that were added up.
    """
    tokens = attention.shape[-1]
    if grid_ is None:
        place = np.arange(tokens, dtype=float)[:, None]
    else:
        patches = grid_[0] * grid_[1]
        attention = attention[..., tokens - patches :, tokens - patches :]
        place = np.stack(np.divmod(np.arange(patches), grid_[1]), axis=1).astype(float)
    distance = np.sqrt(((place[:, None] - place) ** 2).sum(axis=-1))
    weights = np.ones((len(attention), attention.shape[-1])) if asked is None else np.where(asked, 1.0, 0.0)
    looked = np.einsum("shqk,qk,sq->h", attention, distance, weights, optimize=True)
    return looked, float(weights.sum())


def draw_heads(axes: Any, table: pd.DataFrame, metric: str = "accuracy") -> None:
    """Draws the vulnerability of heads as a layer x head heat map, in points (per cent).

    Args:
        axes: matplotlib Axes.
        table: what `heads` gave.
        metric: name of what is measured.
    """
    marks = table.assign(marked=marked(table, "loss"))
    loss, bold = (marks.pivot(index="layer", columns="head", values=name).sort_index() for name in ("loss", "marked"))
    rows = [f"layer {layer}" for layer in loss.index]
    heat_map(
        axes,
        100 * loss.to_numpy(float),
        rows,
        [str(head) for head in loss.columns],
        f"points of {metric}",
        bold.to_numpy(float) > 0,
        noise=100 * half_width(table),
    )
    axes.tick_params(axis="x", rotation=0)
    axes.set_xlabel("head")
    axes.set_title(
        f"{metric.capitalize()} lost, only this head disturbed\n"
        f"mean of {table['chips'].iloc[0]} chips, bold: above 0 at 95 %"
    )


def draw_distances(axes: Any, table: pd.DataFrame, metric: str = "accuracy") -> None:
    """Draws the vulnerability of heads against their mean attention distance, one point per head.

    Args:
        axes: matplotlib Axes.
        table: what `heads` gave.
        metric: name of what is measured.
    """
    pixels = bool(table["distance_px"].notna().any())
    column, unit = ("distance_px", "pixels") if pixels else ("distance", "tokens")
    layers = sorted(set(table["layer"]))
    for layer, (color, _) in zip(layers, line_styles(len(layers)), strict=True):
        rows = table[table["layer"] == layer]
        margins = [100 * (rows["loss"] - rows["low"]), 100 * (rows["high"] - rows["loss"])]
        # Dashed where the colours of the first layers come again.
        marker = "o" if layers.index(layer) < len(COLORS) else "s"
        style = {"fmt": marker, "markersize": 5, "color": color, "elinewidth": 0.8}
        axes.errorbar(rows[column], 100 * rows["loss"], yerr=margins, **style)
        axes.plot([], [], marker, color=color, label=f"layer {layer}")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel(f"mean attention distance ({unit})")
    axes.set_ylabel(f"{metric} lost (points)")
    axes.set_title(f"Vulnerability and reach of heads\nmean of {table['chips'].iloc[0]} chips, 95 % interval")
    grid(axes)
    axes.legend(frameon=False, fontsize=8, ncols=1 + (len(layers) > 8))


def _section(table: pd.DataFrame, metric: str, chips: int, about: tuple[str, ...]) -> Section:
    units = ", ".join(dict.fromkeys(table["unit"].dropna()))
    with_bits, with_pixels = bool(table["bits"].notna().any()), bool(table["distance_px"].notna().any())
    head = ["layer", "head", "points", "95 % interval", "p, corrected"]
    head += ["points per Mbit"] * with_bits + [f"distance ({units})"] * bool(units)
    head += ["distance (pixels)"] * with_pixels
    rows = []
    for _, row in table.sort_values("loss", ascending=False, kind="stable").head(MOST_SHOWN).iterrows():
        line = [int(row["layer"]), int(row["head"]), *points(row, "loss"), p_shown(row, "loss")]
        line += [number(100 * row["loss_per_megabit"], 1)] * with_bits
        line += [number(row["distance"], 2)] * bool(units) + [number(row["distance_px"], 1)] * with_pixels
        rows.append(line)
    below = [f"and {len(table) - MOST_SHOWN} more heads (--json shows all)"] * (len(table) > MOST_SHOWN)
    if not units:
        below.append("Distances are not known: no attention product over all tokens could be told from the graph.")
    title = f"{metric.capitalize()} lost, only this head disturbed, in points, mean of {chips} chips:"
    return Section(title, head, rows, (*below, *about))


def _first_input(node: Any) -> str:
    return str(node.inputs[0].name)


def _bits_of_head(bench: Bench, layer: int) -> int | None:
    """Stored bits of one head of a layer."""
    total = 0
    for site in bench.sites:
        bits = stored_bits(bench, site)
        if site.layer == layer and site.heads and bits:
            total += site.parameters // site.heads * bits
    return total or None
