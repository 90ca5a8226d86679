"""emu analyze: where a model is vulnerable, what it stands, what to protect; more commands in analyze_signals.py."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from emu.cli.app import app
from emu.cli.options import (
    AS_USUAL,
    BatchSize,
    Chips,
    Data,
    DataOptions,
    Device,
    Exclude,
    FirstSeed,
    Json,
    Map,
    Only,
    Samples,
    Set,
    Share,
    Stored,
    TaskName,
    Threads,
    grouped,
)
from emu.cli.output import Progress, print_json, print_table
from emu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from emu.evaluation import Bench, DataSource, Task
    from emu.evaluation.data import DataSet
    from emu.sweep import Store

analyze_app = typer.Typer(
    help="Find out where a model is vulnerable, what it stands, and what to protect.", no_args_is_help=True
)
app.add_typer(analyze_app, name="analyze")

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A plain model, or one that was rewritten for a device.")]
StoreFile = Annotated[
    str | None,
    typer.Option("--store", metavar="FILE", help="Keep finished trials here, and take from here what is finished."),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw the result into a .png, .svg or .pdf file; its data go beside it as .csv."),
]

_SHOWN = 20  # rows of a long table that are printed


@analyze_app.command()
@grouped
def sensitivity(
    model: Model,
    data: Data,
    task: TaskName = None,
    device: Device = None,
    mode: Annotated[
        Literal["only", "all-but", "both"],
        typer.Option(help="Disturb only one part at a time, all but one, or measure both."),
    ] = "only",
    chips: Chips = 10,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    stored: Stored = None,
    share: Share = None,
    options: DataOptions = AS_USUAL,
    first_seed: FirstSeed = 0,
    samples: Samples = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    store: StoreFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure which layers and components lose accuracy when they are on the device."""
    from emu.analysis.figures import check_figure, save_figure
    from emu.analysis.sensitivity import draw_sensitivity, is_marked
    from emu.analysis.sensitivity import sensitivity as measure

    if plot:
        check_figure(plot)
    bench = open_bench(
        model, options.source(data), device, set, map, only, exclude, stored, share, samples, batch_size, threads, task
    )
    with open_store(store) as kept, Progress("trials") as progress:
        table = measure(bench, mode, chips, first_seed, store=kept, echo=say, progress=progress)
    if plot:
        modes: list[Literal["only", "all-but"]] = ["only", "all-but"] if mode == "both" else [mode]
        columns, rows = table["component"].nunique(), table["layer"].nunique() + 2
        size = (3.2 + 0.55 * columns, 2.2 + 0.32 * rows)
        panels = [_panel(draw_sensitivity, table, each, bench.task.primary) for each in modes]
        files = save_figure(plot, panels, table, heading(bench), size)
    if as_json:
        print_json({**facts(bench), "sensitivity": records(table)})
    else:
        print_heading(bench)
        for each in dict.fromkeys(table["mode"]):
            everything = table[table["mode"] == each]
            exact = everything[everything["chips"] == 0]
            of_mode = everything[everything["chips"] > 0].sort_values("effect", ascending=False, kind="stable")
            said = "lost, only this disturbed" if each == "only" else "regained, all but this disturbed"
            typer.echo(f"\n{bench.task.primary.capitalize()} {said}, in points, mean of {chips} chips:")
            rows_shown = [
                [
                    *(_name(row["layer"]), row["component"], row["sites"], row["parameters"], *points(row, "effect")),
                    f"{row['p_corrected']:.2g}" + (" *" if is_marked(row) else ""),
                ]
                for _, row in of_mode.head(_SHOWN).iterrows()
            ]
            columns = ["layer", "component", "sites", "parameters", "points", "95 % interval", "p, corrected"]
            print_table(columns, rows_shown)
            if len(of_mode) > _SHOWN:
                most = 100 * of_mode["effect"].iloc[_SHOWN]
                typer.echo(f"and {len(of_mode) - _SHOWN} more, of {most:.2f} points at most (--json shows all)")
            if len(exact):
                names = ", ".join(dict.fromkeys(exact["component"]))
                typer.echo(f"Not disturbed, so not measured: {len(exact)} parts ({names}).")
        of = "other chips and samples" if chips > 1 else "other samples on this chip"
        typer.echo(f"\nIntervals are for {of}; * is above 0 at 95 % for all parts together (Holm).")
    if plot:
        _wrote(files, as_json)


@analyze_app.command()
@grouped
def heads(
    model: Model,
    data: Data,
    task: TaskName = None,
    device: Device = None,
    chips: Chips = 10,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    share: Share = None,
    options: DataOptions = AS_USUAL,
    first_seed: FirstSeed = 0,
    samples: Samples = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    store: StoreFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure how vulnerable each attention head is, and how far it looks."""
    from emu.analysis.figures import check_figure, save_figure
    from emu.analysis.heads import draw_distances, draw_heads
    from emu.analysis.heads import heads as measure

    if plot:
        check_figure(plot)
    bench = open_bench(
        model, options.source(data), device, set, map, only, exclude, None, share, samples, batch_size, threads, task
    )
    with open_store(store) as kept, Progress("trials") as progress:
        table = measure(bench, chips, first_seed, attention=model, store=kept, echo=say, progress=progress)
    if plot:
        panels = [_panel(draw_heads, table, bench.task.primary)]
        panels += [_panel(draw_distances, table, bench.task.primary)] if table["distance"].notna().any() else []
        size = (3.2 + 0.3 * table["head"].nunique(), 2.6 + 0.28 * table["layer"].nunique())
        files = save_figure(plot, panels, table, heading(bench), (max(5.2, size[0]), max(4.0, size[1])))
    if as_json:
        print_json({**facts(bench), "heads": records(table)})
    else:
        print_heading(bench)
        typer.echo(
            f"\n{bench.task.primary.capitalize()} lost, only this head disturbed, in points, mean of {chips} chips:"
        )
        units = ", ".join(dict.fromkeys(table["unit"].dropna()))
        with_bits, with_pixels = bool(table["bits"].notna().any()), bool(table["distance_px"].notna().any())
        columns = ["layer", "head", "points", "95 % interval"]
        columns += ["points per Mbit"] * with_bits + [f"distance ({units})"] * bool(units)
        columns += ["distance (pixels)"] * with_pixels
        rows = []
        for _, row in table.sort_values("loss", ascending=False, kind="stable").head(_SHOWN).iterrows():
            line = [int(row["layer"]), int(row["head"]), *points(row, "loss")]
            line += [_number(100 * row["loss_per_megabit"], 1)] * with_bits
            line += [_number(row["distance"], 2)] * bool(units) + [_number(row["distance_px"], 1)] * with_pixels
            rows.append(line)
        print_table(columns, rows)
        if len(table) > _SHOWN:
            typer.echo(f"and {len(table) - _SHOWN} more heads (--json shows all)")
        if not units:
            typer.echo("Distances are not known: no attention product over all tokens could be told from the graph.")
    if plot:
        _wrote(files, as_json)


@analyze_app.command()
@grouped
def thresholds(
    model: Model,
    data: Data,
    vary: Annotated[
        str,
        typer.Option(
            metavar="SETTING=VALUES",
            help="A number of the device and its values: faults.ber=1e-6,1e-5 or faults.ber=1e-7:1e-3:9log.",
        ),
    ],
    task: TaskName = None,
    device: Device = None,
    by: Annotated[
        Literal["model", "layer", "component", "head"], typer.Option(help="What is disturbed at a time.")
    ] = "model",
    loss: Annotated[str, typer.Option(metavar="LIST", help="Losses of accuracy that are looked for.")] = "1%,5%,10%",
    chips: Chips = 10,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    stored: Stored = None,
    share: Share = None,
    options: DataOptions = AS_USUAL,
    first_seed: FirstSeed = 0,
    samples: Samples = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    store: StoreFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Find the value of a setting at which 1, 5 and 10 % of accuracy are lost."""
    from emu.analysis.figures import check_figure, in_points, save_figure
    from emu.analysis.thresholds import draw_thresholds, threshold_curves
    from emu.analysis.thresholds import thresholds as find
    from emu.sweep.axes import numbers_of_axis

    if plot:
        check_figure(plot)
    limits = [parse_share(each, "--loss") for each in loss.split(",")]
    setting, points_tried = numbers_of_axis(vary)
    bench = open_bench(
        model, options.source(data), device, set, map, only, exclude, stored, share, samples, batch_size, threads, task
    )
    with open_store(store) as kept, Progress("trials") as progress:
        curves = threshold_curves(
            bench, setting, points_tried, by, chips, first_seed, store=kept, echo=say, progress=progress
        )
    found = find(curves, limits)
    if plot:
        files = save_figure(
            plot,
            [_panel(draw_thresholds, curves, setting, limits, bench.task.primary)],
            curves,
            heading(bench),
            (6.8, 4.6),
        )
    if as_json:
        mean = curves.groupby(["part", "value"], sort=False)["loss"].mean().reset_index()
        print_json(
            {**facts(bench), "vary": setting, "by": by, "thresholds": records(found), "mean_losses": records(mean)}
        )
    else:
        print_heading(bench)
        typer.echo(
            f"\n{setting} at which so much {bench.task.primary} is lost, mean of {chips} chips, "
            "95 % bootstrap interval:"
        )
        low, high = min(points_tried), max(points_tried)

        def shown(value: float) -> str:
            inside = "-" if math.isnan(value) else f"{value:.3g}"
            return f"< {low:g}" if value == 0 else f"> {high:g}" if math.isinf(value) else inside

        rows = [
            [
                row["part"],
                in_points(row["limit"]),
                shown(row["value"]),
                "-" if math.isnan(row["low"]) else f"{shown(row['low'])} to {shown(row['high'])}",
            ]
            for _, row in found.iterrows()
        ]
        print_table(["part", "lost", setting, "95 % interval"], rows)
    if plot:
        _wrote(files, as_json)


@analyze_app.command()
@grouped
def compare(
    model: Model,
    data: Data,
    second: Annotated[
        Path | None, typer.Argument(metavar="[SECOND]", help="The second model.", show_default="MODEL")
    ] = None,
    task: TaskName = None,
    device: Device = None,
    second_device: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Device of the second.", show_default="--device")
    ] = None,
    chips: Chips = 10,
    set: Set = None,
    second_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.SETTING=VALUE", help="Settings of the second's device, beside --set if it is the same."
        ),
    ] = None,
    map: Map = None,
    second_map: Annotated[
        list[str] | None, typer.Option(metavar="SITES:NAME|FILE", help="Devices for some sites of the second.")
    ] = None,
    only: Only = None,
    exclude: Exclude = None,
    stored: Stored = None,
    share: Share = None,
    second_data: Annotated[
        str | None, typer.Option(metavar="FILE|FOLDER|NAME", help="Data of the second.", show_default="--data")
    ] = None,
    options: DataOptions = AS_USUAL,
    first_seed: FirstSeed = 0,
    samples: Samples = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    store: StoreFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Compare two models, or two devices, on the same chips."""
    from emu.analysis.compare import compare as measure
    from emu.analysis.compare import draw_comparison, summarize
    from emu.analysis.figures import check_figure, save_figure

    if plot:
        check_figure(plot)
    if second is None and not (second_device or second_set or second_map or second_data):
        raise InputError("There is nothing to compare with: give a second model, --second-device, or --second-set.")
    rest = (only, exclude, stored, share, samples, batch_size, threads)
    one = open_bench(model, options.source(data), device, set, map, *rest, task)
    # Settings of the first device need not exist on another one.
    sets = [*((set or []) if second_device is None else []), *(second_set or [])]
    maps = [*(map or []), *(second_map or [])]
    other = open_bench(
        second or model, options.source(second_data or data), second_device or device, sets, maps, *rest, task
    )
    with open_store(store) as kept, Progress("trials") as progress:
        table = measure(one, other, chips, first_seed, store=kept, echo=say, progress=progress)
    summary = summarize(table)
    names = _names(one, other, sets, maps)
    if plot:
        files = save_figure(
            plot,
            [_panel(draw_comparison, table, *names, one.task.primary)],
            table,
            f"{one.dataset.where}, {one.clean.samples} samples",
            (5.4, 5.2),
        )
    if as_json:
        sides = {"first": facts(one), "second": facts(other)}
        print_json({**sides, "summary": records(summary), "per_chip": records(table)})
    else:
        for side, name, bench in (("first ", names[0], one), ("second", names[1], other)):
            typer.echo(f"{side}   {name}, clean {shown_clean(bench)}")
            print_about_sites(bench)
        typer.echo(f"data     {one.dataset.where}, {one.clean.samples} samples, {chips} chips, paired by seed\n")
        said = {
            "first": f"{one.task.primary} of the first (%)",
            "second": f"{one.task.primary} of the second (%)",
            "difference": "second less first (points)",
            "difference_lost": "lost by the second less lost by the first (points)",
        }
        of = {"first": one.task.primary, "second": one.task.primary}  # the rest are differences
        rows = [
            [text, *points(row, "mean", of.get(row["what"], ""))]
            for _, row in summary.iterrows()
            if (text := said.get(row["what"]))
        ]
        print_table(["", "mean", "95 % interval"], rows)
    if plot:
        _wrote(files, as_json)


@analyze_app.command()
@grouped
def protect(
    model: Model,
    data: Data,
    task: TaskName = None,
    device: Device = None,
    target: Annotated[str, typer.Option(metavar="loss=SHARE", help="Largest mean loss of accuracy.")] = "loss=1%",
    cost: Annotated[
        Literal["macs", "parameters", "bits"], typer.Option(help="What protection costs, counted over protected sites.")
    ] = "macs",
    guard: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Device of protected sites: ideal keeps them digital, int8_secded adds check bits.",
        ),
    ] = "ideal",
    chips: Chips = 10,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    stored: Stored = None,
    share: Share = None,
    options: DataOptions = AS_USUAL,
    first_seed: FirstSeed = 0,
    samples: Samples = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    store: StoreFile = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Find the sites to keep off the device so that the loss stays under a target at the least cost."""
    from emu.analysis.figures import check_figure, in_points, save_figure
    from emu.analysis.protect import draw_protection
    from emu.analysis.protect import protect as search
    from emu.device import load_profile
    from emu.rewriter import read_manifest

    if plot:
        check_figure(plot)
    name, equals, value = target.partition("=")
    if name != "loss" or not equals:
        raise InputError(f"--target '{target}' cannot be read: write loss=1%.")
    limit = parse_share(value, "--target")
    guard_name = load_profile(guard).name
    sites = (only, exclude, stored, share)
    # Settings of the guard are for where it is used: in the bench that has it.
    plain_set = [each for each in set or () if not each.startswith(f"{guard_name}:")]
    bench = open_bench(model, options.source(data), device, plain_set, map, *sites, samples, batch_size, threads, task)

    def guarded(rules: Sequence[str]) -> "Bench":
        rules = [*(map or ()), *rules]
        return open_bench(model, bench.dataset, device, set, rules, *sites, None, batch_size, threads, bench.task)

    if guard_name == "ideal":
        make = None
    elif read_manifest(model) is not None:
        raise InputError(f"{model} is rewritten, and its sites cannot move to '{guard_name}': give the original model.")
    else:
        make = guarded
    with open_store(store) as kept, Progress("trials") as progress:
        found = search(
            bench,
            limit,
            cost,
            chips,
            first_seed,
            guard=guard,
            guarded=make,
            store=kept,
            echo=say,
            progress=progress,
        )
    if plot:
        files = save_figure(
            plot,
            [_panel(draw_protection, found, limit, cost, bench.task.primary)],
            found.steps,
            heading(bench),
            (6.8, 4.6),
        )
    if as_json:
        plain = {
            "target": limit,
            "cost_in": cost,
            "map": list(found.rules),
            "verified": found.verified,
            "shown": found.shown,
            "loss": {
                "mean": found.loss,
                "ci95": None if math.isnan(found.low) else [found.low, found.high],
            },
            "first_seed": found.first_seed,
            "cost": found.cost,
            "share": found.share,
        }
        print_json({**facts(bench), **plain, "parts": records(found.parts), "steps": records(found.steps)})
    else:
        print_heading(bench)
        typer.echo("\nMean loss in points with 95 % interval:")
        said = {(True, True): "holds, shown at 95 %", (True, False): "holds on average"}
        rows = [
            [
                *(row["action"], row["part"], row["parts"], f"{row['share']:.1%}", row["chips"], *points(row, "loss")),
                said.get((row["holds"], row["shown"]), "fails"),
            ]
            for _, row in found.steps.iterrows()
        ]
        columns = ["action", "part", "protected", f"share of {cost}", "chips", "points", "95 % interval", "target"]
        print_table(columns, rows)
        met = "met and shown at 95 %" if found.shown else "met on average"
        outcome = f"{met} on fresh chips" if found.verified else "NOT reached on fresh chips"
        typer.echo(f"\nA loss of at most {in_points(limit)} is {outcome}:")
        loss, interval = points(vars(found), "loss")
        last = found.first_seed + chips - 1
        typer.echo(f"  {loss} points, 95 % interval {interval}, chips of seeds {found.first_seed} to {last}")
        if found.verified and not found.shown:
            typer.echo("  The interval reaches above the target: more --chips would tell more.")
        typer.echo(f"Protect {len(found.chosen)} selections, {found.share:.1%} of {cost} ({found.cost}):")
        for rule in found.rules:
            typer.echo(f"  --map {shlex.quote(rule)}")
        if not found.rules:
            typer.echo("  nothing")
    if plot:
        _wrote(files, as_json)


def open_bench(
    model: Path,
    data: "DataSource | DataSet",
    device: str | None,
    set: Sequence[str] | None,
    map: Sequence[str] | None,
    only: str | None = None,
    exclude: str | None = None,
    stored: str | None = None,
    share: Any = None,
    samples: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    task: "Task | str | None" = None,
) -> "Bench":
    """The bench of an analysis.

    Raises:
        InputError: as `Bench`, or there is no device.
    """
    from emu.evaluation import Bench

    bench = Bench(
        model,
        data,
        device=device,
        set=list(set) if set else None,
        map=list(map or ()),
        only=only,
        exclude=exclude,
        stored=stored,
        share=share,
        samples=samples,
        batch_size=batch_size,
        threads=threads,
        task=task,
    )
    if bench.manifest is None:
        raise InputError(f"{model} is not rewritten: give --device, a preset (see 'emu devices') or a .toml file.")
    return bench


@contextmanager
def open_store(where: str | None) -> "Iterator[Store | None]":
    """The store of finished trials, None without one."""
    if where is None:
        yield None
        return
    from emu.sweep import Store

    with Store(where) as store:
        yield store


def say(sentence: str) -> None:
    """Prints what is about to happen, apart from the results."""
    typer.echo(sentence, err=True)


def parse_share(text: str, option: str) -> float:
    """A share of accuracy from `1%` or `0.01`.

    Raises:
        InputError: it is none, or not between 0 and 1.
    """
    text = text.strip()
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise InputError(f"{option} '{text}' cannot be read: write a loss such as 1% or 0.01, between 0 and 1.")
    return value


def facts(bench: "Bench") -> dict[str, Any]:
    """What an analysis was of, as plain data."""
    return {
        "model": bench.name,
        "device": bench.device_names or None,
        "about_sites": list(bench.about_sites),
        "settings": dict(bench.settings),
        "data": bench.dataset.where,
        "samples": bench.clean.samples,
        "metric": bench.task.primary,
        "clean": bench.clean.metrics[bench.task.primary],
    }


def heading(bench: "Bench") -> str:
    """One line on model, device and data for a figure."""
    on = f" on {bench.device_names}" if bench.manifest else ""
    return f"{Path(bench.name).name}{on}, {bench.clean.samples} samples, clean {shown_clean(bench)}"


def shown_clean(bench: "Bench") -> str:
    """What the clean model scores, as it is printed."""
    from emu.evaluation.metrics import show_metric

    return show_metric(bench.task.primary, bench.clean.metrics[bench.task.primary])


def print_heading(bench: "Bench") -> None:
    """Prints model, device, which products are not on it, data and clean accuracy."""
    device = f" ({bench.device_names}, {len(bench.sites)} sites)" if bench.manifest else ""
    if bench.dataset.about_classes:
        typer.echo(f"classes  {bench.dataset.about_classes}")
    typer.echo(f"model    {bench.name}{device}")
    print_about_sites(bench)
    typer.echo(f"data     {bench.dataset.where}, {bench.clean.samples} samples")
    typer.echo(f"clean    {bench.task.primary} {shown_clean(bench)}")


def print_about_sites(bench: "Bench") -> None:
    """Prints which products are on no device, and which are exact there."""
    for line in bench.about_sites:
        typer.echo(f"         {line}")


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows of a table as plain data for JSON; what is missing or not finite is null."""
    import pandas as pd

    def plain(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value
        if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
            return None
        return value

    return [{name: plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def points(row: Mapping[str, Any], name: str, metric: str = "") -> list[str]:
    """A share and its interval `low` to `high` as points, for a table; within the bounds of a metric, if it is one."""
    from emu.evaluation.metrics import fixed, within_bounds

    low, high = (100 * within_bounds(metric, float(row[end])) for end in ("low", "high"))
    interval = "-" if math.isnan(low) else f"{fixed(low, 2)} to {fixed(high, 2)}"
    return [fixed(100 * float(row[name]), 2), interval]


def _number(value: Any, digits: int) -> str:
    import pandas as pd

    from emu.evaluation.metrics import fixed

    return "-" if pd.isna(value) else fixed(float(value), digits)


def _name(layer: Any) -> str:
    import pandas as pd

    return "-" if pd.isna(layer) else str(int(layer))


def _names(one: "Bench", other: "Bench", sets: Sequence[str], maps: Sequence[str]) -> tuple[str, str]:
    """Names of two benches that tell them apart."""

    def name(bench: "Bench") -> str:
        return f"{Path(bench.name).name} on {bench.device_names or 'digital'}"

    first, second = name(one), name(other)
    return first, f"{second} ({' '.join([*sets, *maps])})" if first == second and (sets or maps) else second


def _panel(draw: Callable[..., None], *arguments: Any) -> Callable[[Any], None]:
    return lambda axes: draw(axes, *arguments)


def _wrote(files: Sequence[Path], as_json: bool) -> None:
    typer.echo(f"Wrote {' and '.join(map(str, files))}.", err=as_json)
