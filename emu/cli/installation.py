"""emu demo and emu doctor."""

from pathlib import Path
from typing import Annotated

import typer

from emu.cli.app import app
from emu.cli.options import Json
from emu.cli.output import print_json, print_table


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to write.")] = Path("emu-demo"),
    chips: Annotated[int, typer.Option(min=1, help="Number of chips per sigma.")] = 5,
) -> None:
    """Measure a small trained model on RRAM chips: a first study, in under a minute."""
    from emu.demo import run_demo

    run_demo(folder, echo=typer.echo, chips=chips)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the installation."""
    from emu.runtime import doctor as check

    checks = check()
    if as_json:
        print_json([{"name": name, "ok": ok, "detail": detail} for name, ok, detail in checks])
    else:
        print_table(["check", "", "detail"], [[name, "ok" if ok else "FAILED", detail] for name, ok, detail in checks])
    if not all(ok for _, ok, _ in checks):
        raise typer.Exit(1)
