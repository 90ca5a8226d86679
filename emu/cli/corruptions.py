"""emu corrupt and emu analyze corruptions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emu.cli.analyze import analyze, analyze_app
from emu.cli.app import app
from emu.cli.options import (
    ExperimentOptions,
    ImageColumn,
    LabelColumn,
    Mean,
    Output,
    Samples,
    Split,
    Std,
    StoredRun,
    grouped,
)
from emu.cli.output import Progress
from emu.errors import InputError

if TYPE_CHECKING:
    from emu.analysis.ground import Analysis


@dataclass(frozen=True)
class Pictures:
    """Where images and labels are in the data."""

    image_column: ImageColumn = None
    label_column: LabelColumn = None
    split: Split = None
    mean: Mean = None
    std: Std = None


@app.command()
@grouped
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
    *,
    pictures: Pictures,
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
    source = DataSource(data, **vars(pictures))
    with Progress("corrupting") as progress:
        written = write_corrupted(source, output, wanted, samples=samples, overwrite=overwrite, progress=progress)
    if len(written) == 1:
        typer.echo(f"Wrote {written[0]} ({wanted[0]}).")
    else:
        typer.echo(f"Wrote {len(written)} corrupted sets into {output}, {written[0]} the first.")


@analyze_app.command()
@grouped
def corruptions(
    experiment: ExperimentOptions,
    *,
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
    run: StoredRun,
    output: Output,
) -> None:
    """Measure accuracy and calibration on corrupted images, and the mean corruption error."""
    if experiment.measuring.prepared.corruption is not None:
        raise InputError("--corrupt is for one corruption: here --corruption and --severity say which are measured.")
    asked, numbers = _asked(names, severities)

    def work(**options: Any) -> "Analysis":
        from emu.analysis.corruptions import corruptions as measure

        task: dict[str, Any] = {"task": experiment.measuring.task or "classification"}
        plain = {**dict.fromkeys(vars(experiment.emulation)), "model": baseline, **task}
        other = experiment.bench(needs_device=False, changes=plain) if baseline else None
        bench = experiment.bench(needs_device=False, changes=task)
        return measure(bench, asked, numbers, baseline=other, seed=corruption_seed, **options)

    analyze(run, output, work)


def _asked(names: str | None, severities: str | None) -> tuple[list[str], list[int]]:
    """The corruptions and severities of two options; all where one is not given."""
    from emu.evaluation.corruptions import CORRUPTIONS, SEVERITIES

    try:
        numbers = list(SEVERITIES) if severities is None else [int(part) for part in severities.split(",")]
    except ValueError:
        raise InputError(f"--severity '{severities}' cannot be read: write numbers 1 to 5, such as 1,3,5.") from None
    chosen = list(CORRUPTIONS) if names is None else [part.strip() for part in names.split(",")]
    return list(dict.fromkeys(chosen)), sorted(dict.fromkeys(numbers))
