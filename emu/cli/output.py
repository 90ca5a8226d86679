"""How commands print: tables, JSON, progress."""

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from emu.contract.selection import shape_text
from emu.errors import InputError

if TYPE_CHECKING:
    from emu.analysis.ground import Analysis
    from emu.sweep import Store


class Progress:
    """A line on a terminal's stderr that counts, for work over one second; nothing elsewhere."""

    def __init__(self, doing: str) -> None:
        self.doing, self.shown, self.start = doing, False, 0.0

    def __enter__(self) -> "Progress":
        self.start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` steps are done."""
        passed = time.monotonic() - self.start
        if passed > 1 and sys.stderr.isatty():
            self.shown = True
            bar = "#" * (30 * done // total)
            left = passed / done * (total - done)
            sys.stderr.write(f"\r\033[K{self.doing} [{bar:.<30}] {done}/{total}, {left:.0f} s left")
            sys.stderr.flush()


def print_json(value: Any) -> None:
    """Prints plain data as JSON."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns; numbers to the right, an empty cell for None."""
    rows = [list(row) for row in rows]
    cells = [list(head), *([("" if value is None else str(value)) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(head))]
    lines = (
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    )
    typer.echo("\n".join(lines))


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


def show(analysis: "Analysis", plot: Path | None, as_json: bool) -> None:
    """Prints an analysis, as tables or as JSON, and draws it."""
    files = analysis.save(plot) if plot else []
    if as_json:
        print_json(analysis.as_dict())
    else:
        for line in analysis.heading:
            typer.echo(line)
        for section in analysis.sections:
            typer.echo(f"\n{section.title}" if section.title else "")
            print_table(section.head, section.rows)
            for line in section.below:
                typer.echo(line)
        if analysis.sentence:
            typer.echo(f"\n{analysis.sentence}")
    if files:
        typer.echo(f"Wrote {' and '.join(map(str, files))}.", err=as_json)


def print_wrapped(text: str, indent: int) -> None:
    """Prints a paragraph, indented, no wider than the terminal."""
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    typer.echo(textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=" " * indent))


def cell(value: Any) -> Any:
    """A value as a table shows it: shapes as 3x4 with ? for a free size, nothing as -."""
    if isinstance(value, tuple):
        return shape_text(value)
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def check_target(target: Path, model: Path, overwrite: bool) -> None:
    """Refuses an output file that would replace the model, or another file unasked.

    Raises:
        InputError: it would, or its folder does not exist.
    """
    if target.exists() and model.exists() and target.samefile(model):
        raise InputError(f"{target} is the model itself: give another output with -o.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already: give another output with -o, or --overwrite.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent} to write {target.name} to.")
