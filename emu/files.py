"""Files that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emu.errors import InputError

_unfinished: set[Path] = set()


def unfinished() -> bool:
    """Whether something is half-written now, which an exception would take away again and a sudden end would not."""
    return bool(_unfinished)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, or goes again if anything goes wrong.

    Raises:
        InputError: there is no such folder, or the file cannot be written.
    """
    with unfinished_folder(path) as folder:
        part = folder / path.name
        yield part
        os.replace(part, path)


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for what is not whole yet; it goes again with all that is left in it.

    Raises:
        InputError: there is no such folder, or what is done in the block cannot be written.
    """
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} to: create it first.")
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:64]}.", dir=path.parent))
        _unfinished.add(folder)
        yield folder
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _unfinished.discard(folder)
