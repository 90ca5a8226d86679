"""Writes a model so that a reader sees either the old file or the whole new one."""

import os
import shutil
import tempfile
from pathlib import Path

import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.protobuf_file import write_model

_LARGEST_FILE_BYTES = 1_900_000_000  # a protobuf message must stay below 2 GiB


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Writes a model to `path`, atomically.

    One file holds everything, unless the tensors exceed 1.9 GB: then they go to `<path>.data` beside it.

    Raises:
        InputError: the folder does not exist, or cannot be written to.

    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file in it.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent} to write {target.name} to: create it first.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from None
    try:
        written = folder / target.name
        data = f"{target.name}.data" if tensor_bytes(model) > _LARGEST_FILE_BYTES else None
        if data is None:
            write_model(model, written)
        else:
            ir.save(model, written, format="protobuf", external_data=data)
            os.replace(folder / data, target.parent / data)
        os.replace(written, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tensor_bytes(model: ir.Model) -> int:
    """Size of all initializers."""
    graphs = (model.graph, *model.graph.subgraphs())
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
