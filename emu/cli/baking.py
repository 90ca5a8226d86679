"""emu bake."""

from pathlib import Path
from typing import Annotated, Any

import typer

from emu.cli.app import app
from emu.cli.options import (
    AS_USUAL,
    DataOptions,
    Emulation,
    Json,
    grouped,
)
from emu.cli.output import check_target, print_json
from emu.errors import InputError


@app.command()
@grouped
def bake(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A rewritten model, or a plain one with --device.")],
    on: Emulation,
    *,
    seed: Annotated[int | None, typer.Option(help="Which chip.", show_default="0")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="Several chips, into a folder: 0:9 for 0 to 9, or 1,4,7.")
    ] = None,
    read_seed: Annotated[int, typer.Option(help="Which repetition, for slow noise that is drawn with each.")] = 0,
    drop: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT", help="Leave out what acts at run time: read, write, converters, wires; with commas."
        ),
    ] = None,
    converters: Annotated[
        bool, typer.Option("--converters", help="Write DAC, ADC and tiles in standard operators.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE|FOLDER|NAME", help="Prove equal outputs on these data too, beside random ones."),
    ] = None,
    options: DataOptions = AS_USUAL,
    proof: Annotated[bool, typer.Option(help="Compare the outputs with those of the emulated chip.")] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file (of several chips the folder).", show_default="MODEL.chipSEED.onnx"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write a plain ONNX file with one chip's stored values, for any runtime, and prove that it computes the same."""
    from emu.baking import bake as bake_model
    from emu.baking import bake_chips

    source = None if data is None else options.source(data)
    dropped = [each.strip() for each in drop.split(",")] if drop else []
    whole: dict[str, Any] = {**vars(on), "map": on.map or (), "converters": converters, "drop": dropped}
    if seeds is not None:
        if seed is not None:
            raise InputError("Give --seed for one chip, or --seeds for several.")
        folder = output or model.with_name(f"{model.stem}.chips")
        proofs = bake_chips(
            model, folder, _seeds(seeds), data=source, proof=proof, read_seed=read_seed, **whole
        )  # fmt: skip
        if as_json:
            print_json({str(each): None if proved is None else vars(proved) for each, proved in proofs.items()})
            return
        for each, proved in proofs.items():
            typer.echo(f"chip{each}.onnx  {'not proved' if proved is None else proved.in_words}")
        typer.echo(f"Wrote {folder}, {len(proofs)} chips.")
        return
    seed = seed or 0
    target = output or model.with_name(f"{model.stem}.chip{seed}.onnx")
    check_target(target, model, overwrite)
    baked = bake_model(model, seed=seed, read_seed=read_seed, **whole)
    proved = baked.save(target, source, proof)
    if as_json:
        print_json({"output": str(target), **vars(baked.chip), "proof": None if proved is None else vars(proved)})
        return
    for note in baked.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"chip     {baked.chip.in_words}, {baked.chip.sites} sites, fingerprint {baked.chip.fingerprint[:16]}")
    typer.echo(f"proof    {'not asked for' if proved is None else proved.in_words}")
    typer.echo(f"Wrote {target}.")


def _seeds(text: str) -> list[int]:
    """Seeds from `0:9` (or `0-9`), `0:90:10` and `1,4,7`."""
    found: list[int] = []
    for part in text.split(","):
        numbers = part.replace("-", ":").split(":")
        if not 1 <= len(numbers) <= 3 or not all(each.strip().isdigit() for each in numbers):
            raise InputError(f"'{text}' cannot be read: give seeds as 0:9, 0:90:10 or 1,4,7.")
        first, last, step = (*map(int, numbers), *([int(numbers[0])] if len(numbers) == 1 else []), 1)[:3]
        if step < 1 or not first <= last < first + 100_000 * step:
            raise InputError(f"'{part}' names no seed, or too many: give seeds as 0:9, 0:90:10 or 1,4,7.")
        found += range(first, last + 1, step)
    return list(dict.fromkeys(found))
