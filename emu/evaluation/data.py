"""Test data: arrays named like a model's inputs, checked against the model before anything runs."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError, listing
from emu.files import whole_file

if TYPE_CHECKING:
    from emu.evaluation.sources import DataSource

Array = NDArray[Any]

_ROWS_AT_ONCE = 4096  # bounds the memory that a digest of arrays on disk takes

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


class ImagesOnDemand:
    """Images that are opened and prepared each time they are read, in the form of an array.

    Args:
        prepare: the images of some indices, `[indices, channels, height, width]`.
        indices: of all images.
        like: one prepared image, `[1, channels, height, width]`.
    """

    ndim = 4

    def __init__(self, prepare: Callable[[Sequence[int]], Array], indices: Sequence[int], like: Array) -> None:
        self.prepare, self.indices, self.like = prepare, indices, like
        self.shape, self.dtype = (len(indices), *like.shape[1:]), like.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, chosen: "slice | Sequence[int]") -> Any:
        """Fewer images, still on demand, for a slice; an array of them for a list of indices."""
        if isinstance(chosen, slice):
            return ImagesOnDemand(self.prepare, self.indices[chosen], self.like)
        return self.prepare([self.indices[index] for index in chosen])


@dataclass(frozen=True)
class DataSet:
    """Samples for one model.

    Args:
        arrays: one array per model input, `[rows, ...]`. A row is what the model sees at once: a sample, or for some
            tasks one of several parts of a sample, such as one choice of a question.
        labels: what is right, one for each sample; for classification its class, int64 `[samples]`.
        dtypes: what the model wants of each array; batches are converted.
        ignored: names of arrays that neither the model nor the task has a use for.
        where: the file, for messages.
        targets: what else the task compares with, by name, `[rows, ...]` or `[samples, ...]`; `sample` is the sample
            that each row belongs to, where that is not the row itself.
        classes: names of the classes in the order of their numbers, where the data name them.
        classes_from: who numbers the classes, such as the model's config.json; empty where there are none.
        notes: what a user should know of how the data were prepared, as sentences.
        warnings: what is probably wrong with the data, as sentences.
        source: what they were prepared from; None for arrays that were in memory.
    """

    arrays: dict[str, Array]
    labels: Array
    dtypes: dict[str, np.dtype[Any]]
    ignored: tuple[str, ...]
    where: str
    targets: dict[str, Array] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    classes_from: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source: "DataSource | None" = None

    @property
    def about_classes(self) -> str:
        """How many classes there are and who numbers them; empty where labels are no classes."""
        return f"{len(self.classes)}, by {self.classes_from}" if self.classes else self.classes_from

    @property
    def rows(self) -> int:
        """Rows of each array."""
        return next((len(array) for array in self.arrays.values()), len(self.labels))

    def batches(self, size: int, pad: bool = False) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yields the index of the first row and the arrays of each batch.

        Args:
            size: rows in a batch; the last batch may be smaller.
            pad: repeat the last row to fill the last batch, for models of a fixed batch size.
        """
        for start in range(0, self.rows, size):
            batch = {name: array[start : start + size] for name, array in self.arrays.items()}
            missing = size - min(size, self.rows - start)
            if pad and missing:
                batch = {name: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for name, a in batch.items()}
            yield start, {name: _convert(array, self.dtypes[name], name, self.where) for name, array in batch.items()}

    def digest(self) -> str:
        """SHA-256 of all numbers and texts, in hexadecimal: equal for equal data, from whatever file they come."""
        digest = hashlib.sha256()
        arrays = {**self.arrays, "labels": self.labels, **{f"target {n}": a for n, a in self.targets.items()}}
        for name in sorted(arrays):
            array = arrays[name]
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            if array.dtype.kind in "OU":
                digest.update(json.dumps(array.tolist()).encode())
                continue
            for start in range(0, len(array), _ROWS_AT_ONCE):
                digest.update(np.ascontiguousarray(array[start : start + _ROWS_AT_ONCE]).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Targets:
    """What a task takes from the data beside the model's inputs.

    Args:
        labels: what is right, one for each sample.
        per_row: other arrays, `[rows, ...]`; `sample` is the sample of each row, ascending from 0 without a gap.
        per_sample: other arrays, `[samples, ...]`.
    """

    labels: Array
    per_row: dict[str, Array] = field(default_factory=dict)
    per_sample: dict[str, Array] = field(default_factory=dict)


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
        kept = {name: isinstance(value, ImagesOnDemand) for name, value in source.items()}
        return {str(name): each if kept[name] else np.asarray(each) for name, each in source.items()}, "The data"
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


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes an .npz file, whole or not at all.

    Raises:
        InputError: there is no such folder.
    """
    # numpy.savez refuses an array named "file"
    with whole_file(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def load_data(
    source: str | Path | Mapping[str, Any],
    inputs: list[ModelInput],
    samples: int | None = None,
    targets: Callable[[Mapping[str, Array], int, str], Targets] | None = None,
    where: str | None = None,
) -> DataSet:
    """Loads samples from arrays and checks that they fit the model and the task.

    Args:
        source: an .npz file or a mapping, with one array per model input (samples along the first axis) and what the
            task compares with: for classification `labels`, integers `[samples]`.
        inputs: the model's inputs.
        samples: use only the first so many samples.
        targets: picks from the arrays what the task needs, given the number of rows and the name of the file; None for
            classification.
        where: names the arrays of a mapping in messages.

    Raises:
        InputError: a missing array, a type that does not convert without loss, a wrong shape, different lengths, no or
            too few samples.
    """
    given, file = read_arrays(source)
    where = where or file
    arrays, added = with_token_types(given, inputs)
    used = match_inputs(arrays, inputs, where)
    rows: int | None = None
    for name, array in used.items():
        if array.ndim == 0:
            raise InputError(f"'{name}' of {where} has no samples axis.")
        if rows not in (None, len(array)):
            raise InputError(
                f"'{name}' of {where} has {len(array)} samples, but '{next(iter(used))}' has {rows}: give one row of "
                "each input for each sample."
            )
        rows = len(array)
    wanted = (targets or class_targets)(arrays, rows or 0, where)
    if not rows or not len(wanted.labels):
        raise InputError(f"{where} has no samples.")
    count = len(wanted.labels)
    if samples is not None and not 1 <= samples <= count:
        raise InputError(f"{samples} samples were asked for: {where} has {count}, so ask for 1 to {count}.")
    if samples is not None:
        rows = int(np.searchsorted(wanted.per_row["sample"], samples)) if "sample" in wanted.per_row else samples
    beside = {"labels", *wanted.per_row, *wanted.per_sample}
    return DataSet(
        arrays={name: array[:rows] for name, array in used.items()},
        labels=wanted.labels[:samples],
        dtypes={each.name: each.dtype for each in inputs},
        ignored=tuple(name for name in arrays if name not in beside and name not in used),
        where=where,
        notes=(*added, *missing_classes(wanted.labels, samples)),
        targets={
            **{name: array[:rows] for name, array in wanted.per_row.items()},
            **{name: array[:samples] for name, array in wanted.per_sample.items()},
        },
    )


def with_token_types(
    arrays: Mapping[str, Array], inputs: Sequence[ModelInput]
) -> tuple[Mapping[str, Array], tuple[str, ...]]:
    """Adds `token_type_ids` of zeros, those of a single text, where a model takes them and the data have only tokens.

    Returns:
        The arrays, and a sentence if any was added.
    """
    name, tokens = "token_type_ids", arrays.get("input_ids")
    if name in arrays or tokens is None or all(each.name != name for each in inputs):
        return arrays, ()
    return {**arrays, name: np.zeros_like(tokens)}, (f"The data have no '{name}': zeros were taken, one text a row.",)


def missing_classes(labels: Any, samples: int | None) -> tuple[str, ...]:
    """A sentence if the first samples lack many classes of all of them, as in data that are sorted by class."""
    if (
        samples is None
        or getattr(labels, "ndim", 0) != 1
        or getattr(labels, "dtype", np.dtype(object)).kind not in "iu"
    ):
        return ()
    held, all_classes = len(np.unique(labels[:samples])), len(np.unique(labels))
    if samples < 2 * all_classes or held > 0.8 * all_classes:
        return ()
    return (
        f"The first {samples} samples hold {held} of {all_classes} classes: shuffle data that are sorted by class.",
    )


def refit(dataset: DataSet, inputs: list[ModelInput]) -> DataSet:
    """The same samples for another model that takes them as they are.

    Raises:
        InputError: as in `match_inputs`.
    """
    arrays = match_inputs(dataset.arrays, inputs, dataset.where)
    return replace(dataset, arrays=arrays, dtypes={each.name: each.dtype for each in inputs})


def class_targets(arrays: Mapping[str, Array], rows: int, where: str) -> Targets:
    """The class of each sample, from `labels`.

    Raises:
        InputError: there are none, or they are no whole numbers from 0, one for each sample.
    """
    if "labels" not in arrays:
        raise InputError(f"{where} has no array 'labels' (it has {listing(arrays)}): add the class of each sample.")
    labels = _whole(one_per_sample(arrays["labels"]))
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"'labels' of {where} is {kind_of(labels)} and must be one whole number per sample, of shape [samples] or "
            "[samples, 1]."
        )
    check_count(labels, rows, "labels", where)
    if len(labels) and labels.min() < 0:
        raise InputError(f"'labels' of {where} has {labels.min()}: classes count from 0.")
    return Targets(labels.astype(np.int64))


def _whole(labels: Array) -> Array:
    """Labels as whole numbers, where they are so but for their type: 0.0 and 1.0, or false and true."""
    is_whole = labels.dtype.kind == "b" or (labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)))
    return labels.astype(np.int64) if is_whole else labels


def one_per_sample(labels: Array) -> Array:
    """Labels `[samples]`, also from a column `[samples, 1]`."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def check_count(array: Array, count: int, name: str, where: str) -> None:
    """Refuses an array of another length than that of the inputs.

    Raises:
        InputError: it is of another.
    """
    if array.ndim == 0 or len(array) != count:
        found = len(array) if array.ndim else "none"
        raise InputError(f"{where} has {count} samples, but '{name}' has {found}: give one for each.")


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
                f"{where} has no array '{wanted.name}', an input of the model (it has {listing(arrays)}; "
                f"the model needs {listing(each.name for each in inputs)})."
            )
        array = used[wanted.name] = arrays[wanted.name]
        if not _converts(array.dtype, wanted.dtype):
            raise InputError(
                f"'{wanted.name}' of {where} is {array.dtype} and the model takes {wanted.dtype}: "
                "convert it before saving."
            )
        shown = ", ".join("?" if size is None else str(size) for size in wanted.shape)
        if array.ndim != len(wanted.shape):
            raise InputError(f"'{wanted.name}' of {where} is {kind_of(array)} and the model takes [{shown}].")
        for axis, (size, expected) in enumerate(zip(array.shape, wanted.shape, strict=True)):
            if isinstance(expected, int) and size != expected and axis > 0:
                raise InputError(f"'{wanted.name}' of {where} is {kind_of(array)} and the model takes [{shown}].")
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
    used = match_inputs(with_token_types(arrays, inputs)[0], inputs, where)
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


def kind_of(array: Array) -> str:
    """Type and shape of an array, for messages."""
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"
