"""emu report."""

from pathlib import Path
from typing import Annotated

import typer

from emu.cli.app import app
from emu.cli.sweep import StoreArgument


@app.command()
def report(
    store: StoreArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page to write, .html.")],
    study: Annotated[str | None, typer.Option(help="Number or name of a study; all without.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Show this metric, or 'all'; may be repeated.", show_default="the task's primary one"
        ),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean/--no-clean", help="Run the clean model of each study once, to compare with.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
) -> None:
    """Write what a store holds as one HTML page: tables, figures, and the commands that repeat it."""
    from emu.report import write_report
    from emu.sweep import Store

    with Store(store, create=False) as kept:
        written = write_report(
            kept,
            output,
            study=study,
            metrics=metric or [],
            clean=clean,
            overwrite=overwrite,
            echo=lambda line: typer.echo(line, err=True),
        )
    typer.echo(f"Wrote {written}.")
