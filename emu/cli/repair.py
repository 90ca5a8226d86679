"""emu repair."""

from pathlib import Path
from typing import Annotated

import typer

from emu.cli.app import app
from emu.cli.options import (
    AS_USUAL,
    Data,
    DataOptions,
    Emulation,
    Json,
    Samples,
    Threads,
    grouped,
    parse_share,
)
from emu.cli.output import Progress, check_target, print_json, print_table


@app.command()
@grouped
def repair(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A rewritten model, or a plain one with --device.")],
    data: Data,
    on: Emulation,
    *,
    seed: Annotated[int, typer.Option(min=0, help="Which chip.")] = 0,
    read_seed: Annotated[int, typer.Option(min=0, help="Which repetition on that chip.")] = 0,
    method: Annotated[
        str, typer.Option(help="auto, bias, gain, low_rank or low_rank+gain: see docs/repair.md.")
    ] = "auto",
    budget: Annotated[str, typer.Option(help="Digital multiplications that it may add, as a share of all.")] = "2%",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of side paths.", show_default="what the budget allows")
    ] = None,
    options: DataOptions = AS_USUAL,
    samples: Samples = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.", show_default="16")] = None,
    threads: Threads = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it.", show_default="MODEL.repaired.onnx")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Correct one chip without training, by digital logic around its arrays, from unlabelled data."""
    from emu.correction import repair as run_repair

    target = output or model.with_name(f"{model.stem}.repaired.onnx")
    check_target(target, model, overwrite)
    with Progress("repairing") as progress:
        done = run_repair(
            model, options.source(data), **{**vars(on), "map": on.map or ()}, seed=seed, read_seed=read_seed,
            method=method, budget=parse_share(budget, "--budget"), rank=rank, samples=samples, batch_size=batch_size,
            threads=threads, progress=progress,
        )  # fmt: skip
    done.save(target)
    if as_json:
        facts = {"method": done.method, "tried": done.tried, "cost": done.cost, "numbers": done.numbers}
        print_json({"output": str(target), **facts, "comparisons": [vars(each) for each in done.comparisons]})
        return
    print_table(
        ["method", "agreement where it was fitted"], [[name, f"{each:.2%}"] for name, each in done.tried.items()]
    )
    typer.echo("")
    for note in done.notes:
        typer.echo(f"Note: {note}")
    for comparison in done.comparisons:
        typer.echo(comparison.in_words)
    typer.echo(f"method {done.method}: {done.cost:.2%} more multiplications, {done.numbers} stored numbers")
    typer.echo(f"Wrote {target}.")
