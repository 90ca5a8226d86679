"""Corrupted copies of data, written so that any other program can read them: folders of PNG files, or arrays."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emu.errors import InputError
from emu.evaluation.corruptions import Corruption
from emu.evaluation.data import Array, read_arrays, save_arrays
from emu.evaluation.pixels import array_of_pictures, corrupt_pixels
from emu.evaluation.preparing import IMAGE_COLUMNS, LABEL_COLUMNS
from emu.evaluation.sources import DataSource, Table, open_picture, read_classes, read_table
from emu.libraries import library
from emu.version import __version__

RECORD = "corruption.json"
"""The file in a folder that says how its pictures were corrupted; no other folder is ever replaced."""

Step = Callable[[int, int], None]


def write_corrupted(
    source: DataSource,
    output: str | Path,
    corruptions: Sequence[Corruption],
    *,
    samples: int | None = None,
    overwrite: bool = False,
    progress: Step | None = None,
) -> list[Path]:
    """Writes corrupted copies of data, all of them or none.

    Arrays (.npz) stay what they are but for the one array of pictures. Folders of images, tables and data sets become
    folders with one sub-folder of PNG files for each class; each folder has a file `corruption.json`, and `labels.json`
    where the source numbers its classes. Picture i is what `DataSource(..., corruption=...)` gives for picture i.

    Args:
        source: the data; of its options those that name columns and a part, and for arrays `mean` and `std`, have a
            meaning here, `image_column` also as the name of an array.
        output: what to write for one corruption: a folder, or for arrays an .npz file. For several it is a folder in
            which each has its own, NAME/SEVERITY or NAME/SEVERITY.npz.
        corruptions: what to write.
        samples: use only this many samples, the first ones.
        overwrite: replace `output` if it exists. A folder is replaced only if it was written here.
        progress: called with the pictures done and all of them.

    Returns:
        The folders or files written, one for each corruption.

    Raises:
        InputError: the data cannot be read, have no pictures or no classes, or `output` exists already.
    """
    output = Path(output)
    one = len(corruptions) == 1
    write: Callable[[Path, Corruption, Step], None]
    if source.is_arrays:
        arrays, name, where = _arrays(source, samples)
        total, ending = len(arrays[name]), ".npz"

        def write(path: Path, corruption: Corruption, step: Step) -> None:
            pixels = corrupt_pixels(arrays[name], corruption, source.mean, source.std, f"'{name}' of {where}")
            save_arrays(path, {**arrays, name: pixels})
            step(total, total)

    else:
        table = read_table(source)
        files, labels = _files(source, table, _count(samples, table.rows, table.where))
        total, ending = len(files), ""

        def write(path: Path, corruption: Corruption, step: Step) -> None:
            _write_pictures(path, source, table, files, corruption, step)
            if labels is not None:
                _write_json(path / "labels.json", labels)
            _write_json(path / RECORD, _record(source, [corruption]))

    _check(output, source, one and source.is_arrays, overwrite)
    written = []
    with _whole(output) as part:
        for number, corruption in enumerate(corruptions):
            place = Path() if one else Path(corruption.name) / f"{corruption.severity}{ending}"
            if not one:
                (part / place).parent.mkdir(parents=True, exist_ok=True)

            def step(done: int, of: int, before: int = number * total) -> None:
                if progress is not None:
                    progress(before + done, len(corruptions) * total)

            write(part / place, corruption, step)
            written.append(output / place)
        if not one:
            _write_json(part / RECORD, _record(source, corruptions))
    return written


def _arrays(source: DataSource, samples: int | None) -> tuple[dict[str, Array], str, str]:
    """The arrays, cut to so many samples, the name of that which holds pictures, and where they are from."""
    arrays, where = read_arrays(source.path)
    named = source.image_column
    if named is not None and named not in arrays:
        raise InputError(f"{where} has no array '{named}': it has {', '.join(arrays)}.")
    name = array_of_pictures(arrays if named is None else {named: arrays[named]}, where)
    rows = len(arrays[name])
    count = _count(samples, rows, where)
    return {each: array[:count] if array.shape[:1] == (rows,) else array for each, array in arrays.items()}, name, where


def _count(samples: int | None, rows: int, where: str) -> int:
    if samples is not None and not 1 <= samples <= rows:
        raise InputError(f"{samples} samples were asked for: {where} has {rows}, so ask for 1 to {rows}.")
    return rows if samples is None else samples


def _files(source: DataSource, table: Table, count: int) -> tuple[list[Path], list[str] | None]:
    """Where each picture goes, and the classes in the order of their numbers, where the source has one."""
    for name in ("mean", "std"):
        if getattr(source, name) is not None:
            raise InputError(f"'{name}' is for arrays of pixels, and {source.path} holds none: leave it out.")
    labels = _column(source.label_column, LABEL_COLUMNS, table, "label_column (--label-column)")
    values, numbered = table.columns[labels], table.classes.get(labels)
    listed = Path(source.path) / "labels.json"
    if numbered is not None:
        classes: list[str] | None = [_folder_name(name) for name in numbered]
    else:
        classes = list(read_classes(listed)) if listed.is_file() else None
    images = table.columns[_column(source.image_column, IMAGE_COLUMNS, table, "image_column (--image-column)")]
    files = []
    for index in range(count):
        value = values[index]
        folder = _folder_name(str(numbered[value] if numbered is not None else value))
        if isinstance(images[index], Path):  # a folder of images keeps its names
            files.append(images[index].with_suffix(".png"))
        else:
            files.append(Path(folder) / f"{index:0{len(str(table.rows))}d}.png")
    taken: set[Path] = set()
    for index, file in enumerate(files):
        if file in taken:  # cat.jpg beside cat.png
            files[index] = images[index].with_name(f"{images[index].name}.png")
        taken.add(files[index])
    return files, classes


def _column(asked: str | None, usual: Sequence[str], table: Table, option: str) -> str:
    name = asked or next((name for name in usual if name in table.columns), usual[0])
    table.column(name, option)
    return name


def _folder_name(name: str) -> str:
    """The name of a class as the name of a folder that is not hidden."""
    name = re.sub(r"[/\\\0]", "_", name)
    return f"_{name}" if name.startswith(".") or not name else name


def _write_pictures(
    path: Path, source: DataSource, table: Table, files: Sequence[Path], corruption: Corruption, step: Step
) -> None:
    pillow = library("PIL.Image")
    images = table.columns[_column(source.image_column, IMAGE_COLUMNS, table, "image_column (--image-column)")]
    for index, file in enumerate(files):
        picture = open_picture(table, images, index)
        pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(corruption.apply(pixels[None], index)[0]).save(path / file)
        step(index + 1, len(files))


def _record(source: DataSource, corruptions: Sequence[Corruption]) -> dict[str, Any]:
    return {"corruptions": [str(each) for each in corruptions], "data": str(source.path), "emu": __version__}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(output: Path, source: DataSource, is_file: bool, overwrite: bool) -> None:
    """Refuses an output that would mix with the data, or replace what is not to be replaced."""
    data = Path(source.path)
    if not output.absolute().parent.is_dir():
        raise InputError(f"There is no folder {output.parent} to write {output.name} to.")
    if is_file and output.suffix != ".npz":
        raise InputError(f"{output} would hold arrays: end its name in .npz.")
    if data.exists() and (output.resolve() == data.resolve() or data.resolve() in output.resolve().parents):
        raise InputError(f"{output} is the data itself or lies in it: give another output with -o.")
    if data.exists() and output.resolve() in data.resolve().parents:
        raise InputError(f"{output} holds the data: give another output with -o.")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already: give another output with -o, or --overwrite.")
    if output.exists() and output.is_dir() == is_file:
        raise InputError(f"{output} is {'a folder' if is_file else 'no folder'}: give another output with -o.")
    if output.is_dir() and not (output / RECORD).is_file():
        raise InputError(f"{output} has no {RECORD}, so it is not replaced: give another output with -o.")


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A path beside the output for what becomes the output when all of it is written."""
    part, old = (output.absolute().with_name(f".{output.name}.{os.getpid()}{end}") for end in ("", ".old"))
    _remove(part)
    try:
        yield part
        if output.exists():
            os.rename(output, old)
        os.rename(part, output)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}.") from None
    finally:
        if old.exists() and not output.exists():
            os.rename(old, output)
        _remove(part)
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
