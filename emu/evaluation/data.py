"""Test data: arrays named like a model's inputs, checked against the model before anything runs."""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError

Array = NDArray[Any]

_DTYPES = {
    "float": "float32",
    "float16": "float16",
    "double": "float64",
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


@dataclass(frozen=True)
class ModelInput:
    """One input of a model: name, NumPy dtype, and shape, whose free dimensions are names or None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class DataSet:
    """Samples for one model.

    Args:
        arrays: one array per model input, samples along the first axis, `[samples, ...]`.
        labels: class of each sample, int64 `[samples]`.
        dtypes: what the model wants of each array; batches are converted.
        ignored: names of arrays that the model has no input for.
        where: the file, for messages.
    """

    arrays: dict[str, Array]
    labels: NDArray[np.int64]
    dtypes: dict[str, np.dtype[Any]]
    ignored: tuple[str, ...]
    where: str

    def batches(self, size: int, pad: bool = False) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yields the index of the first sample and the arrays of each batch.

        Args:
            size: samples in a batch; the last batch may be smaller.
            pad: repeat the last sample to fill the last batch, for models of a fixed batch size.
        """
        for start in range(0, len(self.labels), size):
            batch = {name: array[start : start + size] for name, array in self.arrays.items()}
            missing = size - min(size, len(self.labels) - start)
            if pad and missing:
                batch = {name: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for name, a in batch.items()}
            yield start, {name: _convert(array, self.dtypes[name], name, self.where) for name, array in batch.items()}


def model_inputs(session: Any) -> list[ModelInput]:
    """The inputs that a caller of this onnxruntime session must give: not the controls, which have defaults."""
    inputs = []
    for node in session.get_inputs():
        element = str(node.type).removeprefix("tensor(").removesuffix(")")
        if element not in _DTYPES:
            raise InputError(f"Model input '{node.name}' is of type {node.type}, which arrays in a file cannot give.")
        shape = tuple(d if isinstance(d, str) or (isinstance(d, int) and d >= 0) else None for d in node.shape)
        inputs.append(ModelInput(node.name, np.dtype(_DTYPES[element]), shape))
    return inputs


def read_arrays(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Array], str]:
    """Reads named arrays from an .npz file (`numpy.savez`) or takes them from a mapping.

    Returns:
        The arrays, and how to name their source in a message.

    Raises:
        InputError: the file is missing, is no .npz, or holds objects instead of numbers.
    """
    if isinstance(source, Mapping):
        return {str(name): np.asarray(value) for name, value in source.items()}, "The data"
    path = Path(source)
    if not path.is_file():
        raise InputError(f"There is no data file {path}: give an .npz file with one array per model input.")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        loaded = None
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise InputError(f"{path} is no .npz file: write it with numpy.savez, one array per model input.")
    arrays: dict[str, Array] = {}
    with loaded:
        for name in loaded.files:
            try:
                arrays[name] = loaded[name]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
                raise InputError(f"Array '{name}' of {path} cannot be read: {str(error).splitlines()[0]}.") from None
    return arrays, str(path)


def load_data(source: str | Path | Mapping[str, Any], inputs: list[ModelInput], samples: int | None = None) -> DataSet:
    """Loads labelled samples and checks that they fit the model.

    Args:
        source: an .npz file or a mapping, with one array per model input (samples along the first axis) and `labels`,
            integers `[samples]`.
        inputs: the model's inputs.
        samples: use only the first so many samples.

    Raises:
        InputError: a missing array, a type that does not convert without loss, a wrong shape, different lengths, no or
            too few samples.
    """
    arrays, where = read_arrays(source)
    if "labels" not in arrays:
        raise InputError(f"{where} has no array 'labels' (it has {_listing(arrays)}): add the class of each sample.")
    used = match_inputs(arrays, inputs, where)
    labels = arrays["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"'labels' of {where} is {_kind(labels)} and must be one whole number per sample, of shape [samples]."
        )
    for name, array in used.items():
        if array.ndim == 0 or len(array) != len(labels):
            count = "no samples axis" if array.ndim == 0 else f"{len(array)} samples"
            raise InputError(f"'{name}' of {where} has {count}, but 'labels' has {len(labels)}.")
    if len(labels) == 0:
        raise InputError(f"{where} has no samples.")
    if labels.min() < 0:
        raise InputError(f"'labels' of {where} has {labels.min()}: classes count from 0.")
    if samples is not None and not 1 <= samples <= len(labels):
        raise InputError(f"{samples} samples were asked for: {where} has {len(labels)}, so ask for 1 to {len(labels)}.")
    return DataSet(
        arrays={name: array[:samples] for name, array in used.items()},
        labels=labels[:samples].astype(np.int64),
        dtypes={each.name: each.dtype for each in inputs},
        ignored=tuple(name for name in arrays if name != "labels" and name not in used),
        where=where,
    )


def match_inputs(arrays: Mapping[str, Array], inputs: list[ModelInput], where: str) -> dict[str, Array]:
    """Picks the model's inputs from `arrays` and checks types and shapes; the arrays are not converted yet.

    Raises:
        InputError: as in `load_data`.
    """
    used: dict[str, Array] = {}
    free: dict[str, tuple[int, str]] = {}
    for wanted in inputs:
        if wanted.name not in arrays:
            raise InputError(
                f"{where} has no array '{wanted.name}', an input of the model (it has {_listing(arrays)}; "
                f"the model needs {_listing(each.name for each in inputs)})."
            )
        array = used[wanted.name] = arrays[wanted.name]
        if not _converts(array.dtype, wanted.dtype):
            raise InputError(
                f"'{wanted.name}' of {where} is {array.dtype} and the model takes {wanted.dtype}: "
                "convert it before saving."
            )
        shown = ", ".join("?" if size is None else str(size) for size in wanted.shape)
        if array.ndim != len(wanted.shape):
            raise InputError(f"'{wanted.name}' of {where} is {_kind(array)} and the model takes [{shown}].")
        for axis, (size, expected) in enumerate(zip(array.shape, wanted.shape, strict=True)):
            if isinstance(expected, int) and size != expected and axis > 0:
                raise InputError(f"'{wanted.name}' of {where} is {_kind(array)} and the model takes [{shown}].")
            if isinstance(expected, str):
                first, name = free.setdefault(expected, (size, wanted.name))
                if first != size:
                    raise InputError(
                        f"'{wanted.name}' of {where} has {expected} = {size}, but '{name}' has {expected} = {first}."
                    )
    return used


def convert_inputs(arrays: Mapping[str, Array], inputs: list[ModelInput], where: str) -> dict[str, Array]:
    """The model's inputs in the model's types, for one run with all samples at once.

    Raises:
        InputError: as in `load_data`, and a number of samples other than the model's fixed batch size.
    """
    used = match_inputs(arrays, inputs, where)
    batch = fixed_batch(inputs)
    for name, array in used.items():
        if batch is not None and array.ndim and len(array) != batch:
            raise InputError(
                f"'{name}' of {where} has {len(array)} samples, but the model takes exactly {batch} at once."
            )
    return {each.name: _convert(used[each.name], each.dtype, each.name, where) for each in inputs}


def fixed_batch(inputs: list[ModelInput]) -> int | None:
    """The batch size that the model is fixed to, None if it is free."""
    return next((each.shape[0] for each in inputs if each.shape and isinstance(each.shape[0], int)), None)


def _converts(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether the conversion keeps the numbers: whole to wider whole, real to real, and no change of kind.

    Real numbers may lose digits (float64 to float32), because that is what a float32 model works with.
    """
    if given.kind == wanted.kind == "f":
        return wanted.itemsize >= 4 or given == wanted
    return given == wanted or (given.kind in "iub" and wanted.kind in "iu" and np.can_cast(given, wanted, "safe"))


def _convert(array: Array, dtype: np.dtype[Any], name: str, where: str) -> Array:
    try:
        with np.errstate(over="raise"):
            return np.asarray(array, dtype, order="C")
    except FloatingPointError:
        raise InputError(f"'{name}' of {where} has numbers too large for {dtype}.") from None


def _kind(array: Array) -> str:
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"


def _listing(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
