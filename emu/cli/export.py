"""emu export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from emu.cli.app import app
from emu.cli.options import Json
from emu.cli.output import print_json
from emu.libraries import library


@app.command()
def export(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A model of Hugging Face: config.json and model.safetensors.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The .onnx file to write.")],
    exporter: Annotated[
        Literal["auto", "optimum", "torch"], typer.Option(help="Who makes the graph; auto: whichever can.")
    ] = "auto",
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help="What the model does, such as image-classification.", show_default="of config.json"
        ),
    ] = None,
    opset: Annotated[int, typer.Option(min=14, max=23, help="Version of ONNX's operators.")] = 17,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: Json = False,
) -> None:
    """Export a PyTorch model to ONNX, and prove that it computes the same."""
    for needed in ("torch", "transformers"):
        library(needed, extra="train")
    from emu.train.exporting import export as run_export

    result = run_export(folder, output, exporter=exporter, task=task, opset=opset, overwrite=overwrite)
    if as_json:
        print_json(result.as_dict())
        return
    for what, shapes in (("inputs", result.inputs), ("outputs", result.outputs)):
        typer.echo(f"{what:<9}{', '.join(f'{name} {_shape(shape)}' for name, shape in shapes.items())}")
    typer.echo(f"parity   onnxruntime and PyTorch differ by {result.largest_difference:.1e} of the largest output")
    typer.echo(f"graph    by {result.exporter}, opset {result.opset}")
    if result.copied:
        typer.echo(f"copied   {', '.join(result.copied)}")
    typer.echo(f"Wrote {result.path}, {result.size_bytes / 1e6:.2f} MB.")


def _shape(sizes: Sequence[int | str]) -> str:
    return "x".join(map(str, sizes))
