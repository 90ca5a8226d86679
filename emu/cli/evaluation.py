"""emu evaluate and emu run."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emu.cli.app import app
from emu.cli.options import ExperimentOptions, FirstSeed, Json, Ops, RunOptions, Set, Threads, grouped
from emu.cli.output import Progress, cell, check_target, print_json, print_table
from emu.files import whole_file

if TYPE_CHECKING:
    from emu.evaluation import Evaluation


@app.command()
@grouped
def evaluate(experiment: ExperimentOptions, *, run: RunOptions, as_json: Json = False) -> None:
    """Measure a model on data, clean and over several chips."""
    from emu.evaluation import evaluate as run_evaluation

    bench = experiment.bench(needs_device=False)
    with Progress("evaluating") as progress:
        result = run_evaluation(bench, **vars(run), progress=progress)
    for name in result.ignored:
        typer.echo(f"Note: array '{name}' of {result.data} is no input of the model and was not used.", err=True)
    for note in result.notes:
        typer.echo(f"Note: {note}", err=True)
    for warning in result.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    if as_json:
        print_json(result.as_dict())
        return
    _print_evaluation(result)
    undefined = result.clean.undefined + sum(chip.undefined for chip in result.chips)
    if undefined:
        typer.echo(f"Note: {undefined} outputs were not a number and count as wrong.", err=True)


def _print_evaluation(result: "Evaluation") -> None:
    """The primary metric in words, the others as a table."""
    from emu.evaluation.metrics import show_interval, show_metric

    def show(value: float) -> str:
        return show_metric(result.primary, value)

    guessed = ", as its outputs and the data suggest (--task)" if result.task_was_guessed else ""
    if result.about_classes:
        typer.echo(f"classes  {result.about_classes}")
    typer.echo(f"model    {result.model}" + (f" ({result.device}, {result.sites} sites)" if result.device else ""))
    for line in result.about_sites:
        typer.echo(f"         {line}")
    typer.echo(f"data     {result.data}, {result.clean.samples} samples")
    typer.echo(f"task     {result.task}, measured by {result.primary}{guessed}")
    text = f"clean    {show(result.clean.metrics[result.primary])}"
    if result.clean_ci95 is not None and result.primary == "accuracy":
        low, high = result.clean_ci95
        text += f"  (95 % interval over test samples {low:.2%} to {high:.2%})"
    typer.echo(text)
    spread = result.spread
    if spread is None:
        comparing = ("agreement", "output_snr_db", "relative_error")  # with itself, for a model without a device
        others = {name: value for name, value in result.clean.metrics.items() if name not in comparing}
        if len(others) > 1:
            typer.echo(
                "also     " + ", ".join(f"{name} {show_metric(name, others[name])}" for name in list(others)[1:])
            )
        return
    values = [chip.metrics[result.primary] for chip in result.chips]
    text = f"chips    {show(spread.mean)}"
    if spread.std is not None and spread.ci95 is not None:
        text += f" +- {show(spread.std)}  (95 % interval of the mean {show_interval(result.primary, *spread.ci95)};"
        text += f" worst {show(min(values))}, best {show(max(values))}, {len(values)} chips)"
    elif len(values) == 1:
        text += f"  (one chip, seed {result.seeds[0]}; more chips give a spread)"
    elif spread.ci95 is None:
        text += f"  (all {len(values)} chips are equal, so that there is no interval)"
    typer.echo(text)
    if result.over_both is not None:
        _print_over_both(result)
    typer.echo()
    rows = []
    for name, clean in result.clean.metrics.items():
        spread = result.spread_of(name)
        interval = spread.ci95 and show_interval(name, *spread.ci95)
        std = None if spread.std is None else show_metric(name, spread.std)
        rows.append([name, show_metric(name, clean), show_metric(name, spread.mean), std, interval])
    print_table(["metric", "clean", "mean", "std", "95 % interval of the mean"], rows)


def _print_over_both(result: "Evaluation") -> None:
    """What is lost, and the interval for other chips and other samples."""
    from emu.evaluation.metrics import fixed, show_interval
    from emu.evaluation.statistics import FEW_CHIPS

    lost, both = result.lost, result.over_both
    assert lost is not None and both is not None
    chips = len(result.chips)
    of = "chips and test samples" if chips > 1 else "test samples, for this chip"
    text = f"lost     {fixed(100 * lost.mean, 2)} points"
    if not math.isnan(lost.low):
        low, high = (fixed(100 * end, 2) for end in (lost.low, lost.high))
        text += f"  (95 % interval over {of} {low} to {high}, p = {lost.p:.2g}; "
        text += f"of {result.primary} {show_interval(result.primary, both.low, both.high)})"
    typer.echo(text)
    if 1 < chips < FEW_CHIPS:
        typer.echo(
            f"         {chips} chips are few: their intervals are wide, those of {FEW_CHIPS} or more are narrower."
        )


@app.command()
@grouped
def inject(
    experiment: ExperimentOptions,
    *,
    count: Annotated[int, typer.Option(min=1, help="Number of injections.")] = 1000,
    pattern: Annotated[
        str,
        typer.Option(help="bit, burst, word, row or column (flips); cell, dead_row or dead_column (stuck cells)."),
    ] = "bit",
    size: Annotated[int, typer.Option(min=1, help="Patterns at once, at different places.")] = 1,
    burst: Annotated[int, typer.Option(min=1, help="Bits of a burst.")] = 2,
    first_seed: FirstSeed = 0,
    chip: Annotated[int, typer.Option(min=0, help="Which chip, for what else is random.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all injections to this CSV file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Inject faults at random places, some at a time, and measure what each costs."""
    from emu.analysis.ground import of_bench
    from emu.evaluation import inject as run_campaign

    if output is not None:  # before what takes time
        check_target(output, experiment.model, overwrite=True)
    # Of a plain model the selection says what is on the device, of a rewritten one what of it is struck.
    bench = experiment.bench(changes=dict.fromkeys(experiment.selection))
    with Progress("injecting") as progress:
        done = run_campaign(
            bench,
            count,
            pattern=pattern,  # type: ignore[arg-type]
            size=size,
            burst=burst,
            first_seed=first_seed,
            chip=chip,
            progress=progress,
            **experiment.selection,
        )
    if output is not None:
        with whole_file(output) as part:
            part.write_text(done.as_csv(), encoding="utf-8")
    rows, of = done.by_component(), of_bench(bench)
    if as_json:
        print_json({**of["facts"], "injections": [{"component": name, **row} for name, row in rows.items()]})
        return
    typer.echo("\n".join(of["heading"]) + "\n")
    table = [
        [
            name,
            row["injections"],
            f"{row['changed']:.2%}",
            *(f"{row[each]:.4g}" for each in ("mean_loss", "worst_loss")),
        ]
        for name, row in rows.items()
    ]
    print_table(["component", "injections", "changed", f"mean loss of {done.primary}", "worst loss"], table)
    typer.echo(f"{count} injections of {bench.dataset.rows} rows of data, {count / done.seconds:.1f} per second.")
    if output is not None:
        typer.echo(f"Wrote {output}.")


@app.command()
def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A plain or rewritten model.")],
    input: Annotated[Path, typer.Option(help="An .npz file with one array per model input.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which chip.", show_default="0")] = None,
    read_seed: Annotated[int | None, typer.Option(help="Which repetition on that chip.", show_default="0")] = None,
    sample: Annotated[int | None, typer.Option(help="Index of the first sample.", show_default="0")] = None,
    head: Annotated[int | None, typer.Option(help="Disturb this head only; -1: all.", show_default="-1")] = None,
    set: Set = None,
    threads: Threads = None,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """Run a model once and summarize its outputs."""
    from emu.evaluation import run as run_once
    from emu.evaluation.data import save_arrays

    outputs = run_once(
        model,
        input,
        seed=seed,
        read_seed=read_seed,
        sample=sample,
        head=head,
        set=set,
        threads=threads,
        ops=ops or "native",
    )
    if output is not None:
        save_arrays(output, outputs)
    rows = [
        {"output": name, "shape": list(array.shape), "dtype": str(array.dtype), **_summary(array)}
        for name, array in outputs.items()
    ]
    if as_json:
        print_json(rows)
        return
    print_table(list(rows[0]), [[cell(value) for value in row.values()] for row in rows])
    if output is not None:
        typer.echo(f"Wrote {output}.")


def _summary(array: Any) -> dict[str, float | None]:
    """Smallest, largest and mean number of an array, None where it is not a finite number."""
    summary: dict[str, float | None] = {}
    for name in ("min", "max", "mean"):
        value = float(getattr(array, name)()) if array.size and array.dtype.kind in "fiu" else math.nan
        summary[name] = value if math.isfinite(value) else None
    return summary
