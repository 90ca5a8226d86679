"""Writes a model so that a reader sees either the old file or the whole new one."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from emu.errors import InputError
from emu.files import unfinished_folder
from emu.rewriter.protobuf_file import CutShortError, DamagedError, read_model, write_model

LARGEST_FILE_BYTES = 1_900_000_000  # a protobuf message must stay below 2 GiB


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Writes a model to `path`, whole or not at all.

    One file holds everything, unless the tensors exceed 1.9 GB: then they go to `<path>.data` beside it, and both files
    are replaced or none. A `<path>.data` of the model that was there before goes with it.

    Raises:
        InputError: the folder does not exist, or cannot be written to.

    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file in it.")
    with unfinished_folder(target) as folder:
        written, data = folder / target.name, folder / f"{target.name}.data"
        if tensor_bytes(model) > LARGEST_FILE_BYTES:
            ir.save(model, written, format="protobuf", external_data=data.name)
        else:
            write_model(model, written)
        beside = target.with_name(data.name)
        pairs = [(data, beside)] if data.exists() else []
        gone = [beside] if not pairs and _keeps_tensors_in(target, beside) else []
        _replace([*pairs, (written, target)], gone, folder)


def _replace(pairs: Sequence[tuple[Path, Path]], gone: Sequence[Path], folder: Path) -> None:
    """Puts new files in the place of old ones, and takes others away: all of it, or nothing.

    Signals wait meanwhile: it is a few renames within one folder. A sudden end leaves no model rather than a model with
    the tensors of another one.
    """
    if len(pairs) == 1 and not gone:
        os.replace(*pairs[0])
        return
    kept: list[tuple[Path, Path]] = []
    put: list[Path] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        for place in (*reversed([target for _, target in pairs]), *gone):
            if place.exists():
                os.rename(place, folder / f"old.{place.name}")
                kept.append((folder / f"old.{place.name}", place))
        for new, target in pairs:
            os.rename(new, target)
            put.append(target)
    except OSError:
        for target in put:
            target.unlink()
        for old, place in kept:
            os.rename(old, place)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _keeps_tensors_in(model: Path, data: Path) -> bool:
    """Whether a model file refers to a data file beside it."""
    if not (model.is_file() and data.is_file()):
        return False
    try:
        graph = read_model(model).graph
    except (OSError, DamagedError, CutShortError):
        return False
    return any(entry.value == data.name for tensor in graph.initializer for entry in tensor.external_data)


def tensor_bytes(model: ir.Model) -> int:
    """Size of all initializers."""
    graphs = (model.graph, *model.graph.subgraphs())
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
