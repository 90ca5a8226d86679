"""Reads measured programming errors from a CSV file: what conductance devices had, for each target."""

import csv
import io
import math
import stat
from pathlib import Path
from typing import Any

from emu.device.fields import DURATION, to_seconds
from emu.errors import InputError

_NEEDED = ("target", "mean", "std")
_LARGEST_BYTES = 16_000_000  # a table of a million cells; more is no table of a device


def read_regular(path: Path, what: str, largest_bytes: int = _LARGEST_BYTES) -> str:
    """The text of a file that a user names, UTF-8.

    Args:
        path: the file.
        what: how to call it in a message, such as `Table mine.csv`.
        largest_bytes: a larger file is refused.

    Raises:
        InputError: it cannot be read, is no regular file (a device such as /dev/zero never ends, a pipe may never
            begin), is too large (16 MB by default), or no text.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
            raise InputError(f"{what} is {kind}: give a file of text.")
        if facts.st_size > largest_bytes:
            raise InputError(
                f"{what} has {facts.st_size / 1e6:.0f} MB: give a file of at most {largest_bytes // 10**6} MB."
            )
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is no text in UTF-8: {error}.") from None


def read_table(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Reads a table of measurements.

    Args:
        path: a CSV file with the columns target (in microsiemens), mean and std and, if measured at several times, time
            in seconds or as text such as `1h`. Every target is measured at every time. The order of rows is free.
        names: how the lists of targets, means and standard deviations are called, and that of times, if there may be
            several.

    Returns:
        The lists by name; means and standard deviations have a row for each time, if there may be several.

    Raises:
        InputError: a file as in `read_regular`, a missing column, a cell that is no number, a place of the grid that is
            missing or measured twice, several times where there is one.
    """
    try:
        text = read_regular(path, f"Table {path}")
        lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(text, newline=""))]
    except csv.Error as error:
        raise InputError(f"Table {path} is no CSV text: {error}.") from None
    header = [name.lower() for name in lines[0]] if lines else []
    for name in _NEEDED:
        if name not in header:
            raise InputError(f"Table {path} has no column '{name}': it needs target, mean and std, and may have time.")
    if len(set(header)) != len(header):
        raise InputError(f"Table {path} has a column twice: it needs target, mean and std, and may have time.")

    measured: dict[tuple[float, float], tuple[float, float]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        cells = dict(zip(header, line, strict=False))
        where = f"Table {path}, line {number}"
        time = _time(cells.get("time", ""), where) if "time" in header else 1.0
        target, mean, std = (_number(cells.get(name, ""), name, where) for name in _NEEDED)
        if (time, target) in measured:
            raise InputError(f"{where}: target {target:g}{_at(time, header)} is measured twice.")
        measured[time, target] = mean, std
    times, targets = (sorted({place[axis] for place in measured}) for axis in (0, 1))
    for time in times:
        for target in targets:
            if (time, target) not in measured:
                raise InputError(
                    f"Table {path} lacks target {target:g}{_at(time, header)}: every target needs every time."
                )
    means, stds = ([[measured[time, target][kind] for target in targets] for time in times] for kind in (0, 1))
    if len(names) == 4:
        return dict(zip(names, (targets, means, stds, times), strict=True))
    if len(times) != 1:
        raise InputError(f"Table {path} has {len(times)} times and must have one: drift says what time does.")
    return dict(zip(names, (targets, means[0], stds[0]), strict=True))


def _at(time: float, header: list[str]) -> str:
    return f" at {time:g} s" if "time" in header else ""


def _number(text: str, column: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {column} is '{text}' and must be a finite number.")
    return number


def _time(text: str, where: str) -> float:
    try:
        time = to_seconds(text)
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        raise InputError(f"{where}: time is '{text}' and must be {DURATION}.")
    return float(time)
