"""emu evaluate and emu run."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from emu.cli.app import app
from emu.cli.options import Device, Exclude, Json, Map, Only, Ops, Set, Share, Stored, Threads
from emu.cli.output import Progress, cell, print_json, print_table
from emu.errors import InputError


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A plain or rewritten model.")],
    data: Annotated[Path, typer.Option(help="An .npz file: one array per model input, and 'labels'.")],
    chips: Annotated[int, typer.Option(min=1, help="Number of chips.")] = 10,
    device: Device = None,
    set: Set = None,
    map: Map = None,
    only: Only = None,
    exclude: Exclude = None,
    stored: Stored = None,
    share: Share = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.", show_default="32")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Use the first so many samples.")] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip.")] = 0,
    read_seed: Annotated[int, typer.Option(min=0, help="Seed of the run-time noise.")] = 0,
    threads: Threads = None,
    ops: Ops = "native",
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a model, clean and over several chips."""
    from emu.evaluation import evaluate as run_evaluation

    with Progress("evaluating") as progress:
        result = run_evaluation(
            model,
            data,
            chips=chips,
            device=device,
            set=set,
            map=map or (),
            only=only,
            exclude=exclude,
            stored=stored,
            share=share,
            batch_size=batch_size,
            threads=threads,
            first_seed=first_seed,
            read_seed=read_seed,
            samples=samples,
            ops=ops,
            progress=progress,
        )
    for name in result.ignored:
        typer.echo(f"Note: array '{name}' of {result.data} is no input of the model and was not used.", err=True)
    if as_json:
        print_json(result.as_dict())
        return
    low, high = result.clean_ci95
    typer.echo(f"model    {result.model}" + (f" ({result.device}, {result.sites} sites)" if result.device else ""))
    typer.echo(f"data     {result.data}, {result.clean.samples} samples")
    typer.echo(f"clean    {result.clean.accuracy:.2%}  (95 % interval over test samples {low:.2%} to {high:.2%})")
    spread = result.spread
    if spread is None:
        return
    accuracies = [chip.accuracy for chip in result.chips]
    text = f"chips    {spread.mean:.2%}"
    if spread.std is not None and spread.ci95 is not None:
        text += f" +- {spread.std:.2%}  (95 % interval of the mean {spread.ci95[0]:.2%} to {spread.ci95[1]:.2%};"
        text += f" worst {min(accuracies):.2%}, best {max(accuracies):.2%}, {len(accuracies)} chips)"
    else:
        text += f"  (one chip, seed {result.seeds[0]}; more chips give a spread)"
    typer.echo(text)
    undefined = result.clean.undefined + sum(chip.undefined for chip in result.chips)
    if undefined:
        typer.echo(f"Note: {undefined} outputs were not a number and count as wrong.", err=True)


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
    ops: Ops = "native",
    as_json: Json = False,
) -> None:
    """Run a model once and summarize its outputs."""
    from emu.evaluation import run as run_once

    outputs = run_once(
        model,
        input,
        seed=seed,
        read_seed=read_seed,
        sample=sample,
        head=head,
        set=set,
        threads=threads,
        ops=ops,
    )
    if output is not None:
        _save_arrays(output, outputs)
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


def _save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz file, whole or not at all."""
    import zipfile

    import numpy as np

    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} to.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:  # numpy.savez refuses an array named "file"
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
