"""emu corrupt and emu analyze corruptions."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from emu.cli.analyze import (
    Model,
    Plot,
    StoreFile,
    analyze_app,
    facts,
    heading,
    open_store,
    print_heading,
    records,
    say,
)
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
    ImageColumn,
    Json,
    LabelColumn,
    Map,
    Mean,
    Only,
    Samples,
    Set,
    Share,
    Split,
    Std,
    Stored,
    Threads,
    grouped,
)
from emu.cli.output import Progress, print_json, print_table
from emu.errors import InputError


@app.command()
def corrupt(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Arrays (.npz), a folder of images, a table, or a data set of Hugging Face."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER|FILE", help="What to write.")],
    corruption: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Corruptions, with commas between them: fog,contrast.")
    ] = None,
    severity: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Severities 1 to 5, with commas between them: 1,3,5.")
    ] = None,
    all: Annotated[
        bool, typer.Option("--all", help="Write every corruption and severity, or all of those that are not given.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the corruptions.")] = 0,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    split: Split = None,
    mean: Mean = None,
    std: Std = None,
    samples: Samples = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file, or a folder that this command wrote.")
    ] = False,
) -> None:
    """Write corrupted copies of images: noise, blur, weather and digital losses in five severities."""
    from emu.evaluation import DataSource
    from emu.evaluation.corrupted import write_corrupted
    from emu.evaluation.corruptions import CORRUPTIONS, Corruption

    names, severities = _asked(corruption, severity)
    if not all and (corruption is None or severity is None):
        raise InputError(
            f"Give --corruption and --severity, or --all: corruptions are {', '.join(CORRUPTIONS)}; severities 1 to 5."
        )
    wanted = [Corruption(name, number, seed) for name in names for number in severities]
    source = DataSource(data, image_column=image_column, label_column=label_column, split=split, mean=mean, std=std)
    with Progress("corrupting") as progress:
        written = write_corrupted(source, output, wanted, samples=samples, overwrite=overwrite, progress=progress)
    if len(written) == 1:
        typer.echo(f"Wrote {written[0]} ({wanted[0]}).")
    else:
        typer.echo(f"Wrote {len(written)} corrupted sets into {output}, {written[0]} the first.")


@analyze_app.command()
@grouped
def corruptions(
    model: Model,
    data: Data,
    names: Annotated[
        str | None,
        typer.Option(
            "--corruption", metavar="NAMES", help="Corruptions, with commas between them.", show_default="all"
        ),
    ] = None,
    severities: Annotated[
        str | None,
        typer.Option("--severity", metavar="NUMBERS", help="Severities, with commas between them.", show_default="all"),
    ] = None,
    corruption_seed: Annotated[int, typer.Option(min=0, help="Seed of the corruptions.")] = 0,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Divide errors by those of this model.", show_default="MODEL without its device"
        ),
    ] = None,
    device: Device = None,
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
    """Measure accuracy and calibration on corrupted images, and the mean corruption error."""
    from emu.analysis.corruptions import corruption_errors, draw_corruptions, draw_severities, summarize
    from emu.analysis.corruptions import corruptions as measure
    from emu.analysis.figures import check_figure, save_figure
    from emu.calibration import fit_ranges
    from emu.evaluation import Bench

    if plot:
        check_figure(plot)
    if options.corruption is not None:
        raise InputError("--corrupt is for one corruption: here --corruption and --severity say which are measured.")
    asked, numbers = _asked(names, severities)
    source = options.source(data)
    sizes: dict[str, Any] = {"samples": samples, "batch_size": batch_size, "threads": threads, "task": "classification"}
    bench = Bench(
        model,
        source,
        device=device,
        set=list(set) if set else None,
        map=list(map or ()),
        only=only,
        exclude=exclude,
        stored=stored,
        share=share,
        calibrate=fit_ranges,
        **sizes,
    )
    other = Bench(baseline, source, **sizes) if baseline else None
    with open_store(store) as kept, Progress("corruptions") as progress:
        table = measure(
            bench,
            asked,
            numbers,
            chips,
            first_seed,
            baseline=other,
            seed=corruption_seed,
            store=kept,
            echo=say,
            progress=progress,
        )
    summary, errors = summarize(table), corruption_errors(table)
    if plot:
        panels = [lambda axes: draw_severities(axes, summary), lambda axes: draw_corruptions(axes, summary)]
        files = save_figure(plot, panels, summary, heading(bench), (6.6, 1.8 + 0.25 * max(len(asked), 8)))
    mce = errors.iloc[-1]
    against = baseline or (f"{model} without its device" if bench.manifest else None)
    if as_json:
        print_json(
            {
                **facts(bench),
                "baseline": against and str(against),
                "corruption_seed": corruption_seed,
                "mce": None if math.isnan(mce["ce"]) else mce["ce"],
                "corruptions": records(summary),
                "corruption_errors": records(errors),
            }
        )
    else:
        print_heading(bench)
        _print(summary, errors, chips if bench.manifest else 0)
        if against:
            low, high = mce["low"], mce["high"]
            interval = "" if math.isnan(low) else f"  (95 % interval over chips {low:.4f} to {high:.4f})"
            typer.echo(f"\nmCE {mce['ce']:.4f} over {len(asked)} corruptions, against {against}{interval}")
    if plot:
        typer.echo(f"Wrote {' and '.join(str(file) for file in files)}.", err=as_json)


def _asked(names: str | None, severities: str | None) -> tuple[list[str], list[int]]:
    """The corruptions and severities of two options; all where one is not given."""
    from emu.evaluation.corruptions import CORRUPTIONS, SEVERITIES

    try:
        numbers = list(SEVERITIES) if severities is None else [int(part) for part in severities.split(",")]
    except ValueError:
        raise InputError(f"--severity '{severities}' cannot be read: write numbers 1 to 5, such as 1,3,5.") from None
    chosen = list(CORRUPTIONS) if names is None else [part.strip() for part in names.split(",")]
    return list(dict.fromkeys(chosen)), sorted(dict.fromkeys(numbers))


def _print(summary: Any, errors: Any, chips: int) -> None:
    """Accuracy by corruption and severity, with means over severities of the rest."""
    severities = sorted(each for each in dict.fromkeys(summary["severity"]) if each)
    typer.echo(
        f"\nAccuracy in per cent by severity{f', mean of {chips} chips' if chips else ''}; the rest over severities:"
    )
    head = ["corruption", *map(str, severities), "mean", *(["digital"] if chips else []), "ece (%)", "loss", "ce"]
    relative = errors.set_index("corruption")["ce"]
    rows = []
    for name, part in summary.groupby("corruption", sort=False):
        by_severity = dict(zip(part["severity"], part["accuracy"], strict=True))
        ce = relative.get(name, math.nan)
        rows.append(
            [
                name,
                *(f"{100 * by_severity[each]:.2f}" if each in by_severity else "" for each in severities),
                f"{100 * part['accuracy'].mean():.2f}",
                *([f"{100 * part['digital'].mean():.2f}"] if chips else []),
                f"{100 * part['ece'].mean():.2f}",
                f"{part['loss'].mean():.4f}",
                "" if math.isnan(ce) else f"{ce:.4f}",
            ]
        )
    print_table(head, rows)
