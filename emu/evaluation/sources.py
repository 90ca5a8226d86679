"""Where data come from: arrays, folders of images, tables, and data sets of Hugging Face."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from emu.errors import InputError, listing
from emu.libraries import library

IMAGE_FILES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TABLE_FILES = (".csv", ".json", ".jsonl", ".parquet", ".tsv")


@dataclass(frozen=True)
class DataSource:
    r"""Data to evaluate on, and how to prepare them for a model.

    Args:
        path: an .npz file of arrays; a folder with one sub-folder of images for each class; a table (.csv, .tsv,
            .json, .jsonl, .parquet); a folder that `datasets.Dataset.save_to_disk` wrote; or the name of a data set of
            Hugging Face, with its configuration behind a colon where it has several.
        processor: folder (or name) of the image processor or tokenizer; None for the folder of the model.
        text_column: column of the text, or columns of a pair of texts; None for the usual names.
        image_column: column of the images, or of their files; None for the usual names.
        label_column: column, or array, of what is right; None for the usual names.
        max_length: tokens that a text is cut or filled up to; None for the longest of the set, as far as the model can.
        classes: a file that lists the classes in the model's order: JSON (a list, or names by index or the reverse) or
            one name a line; None for `labels.json` in a folder of images, else the model's config.json, or for the
            sorted names where none of these names the classes. Names in the data must all be among them.
        split: which part of a data set; None for `test`, else `validation`, else the only one.
        prompt: what a language model reads before a choice, with columns in braces: "Question: {question}\nAnswer:".
        corruption: how images are corrupted before anything else is done with them, as `Corruption.parse` reads it:
            "fog:3", or "fog:3:7" with a seed.
        mean: what was subtracted from pixels of 0 to 1 to make an array, one number or one for each channel; of an
            array of whole levels (uint8) what is to be subtracted. None for that of the processor.
        std: what they were divided by then, likewise.
        inputs: names of arrays for the model's inputs, such as `x=pixel_values`.
        anyway: run analyses and sweeps on these data though the clean model answers them no better than by chance.
    """

    path: str | Path
    processor: str | Path | None = None
    text_column: str | Sequence[str] | None = None
    image_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None
    classes: str | Path | None = None
    split: str | None = None
    prompt: str | None = None
    corruption: str | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    inputs: Sequence[str] | None = None
    anyway: bool | None = None

    @property
    def is_arrays(self) -> bool:
        """Whether the data are arrays that need no preparation."""
        path = Path(self.path)
        suffix = path.suffix.lower()
        return suffix in (".npz", ".npy") or (path.is_file() and suffix not in TABLE_FILES)

    @property
    def options(self) -> list[str]:
        """Names of the options that say how to prepare the data and that were given."""
        return [each.name for each in fields(self) if each.name != "path" and getattr(self, each.name) is not None]


@dataclass(frozen=True)
class Table:
    """Columns of equal length, read but not prepared.

    Args:
        columns: values by column; images as files, as encoded bytes or as pictures of pillow.
        rows: number of rows.
        where: file or name, for messages.
        folder: where relative names of image files start.
        classes: names of the classes by column, where the source numbers them itself.
    """

    columns: Mapping[str, Sequence[Any]]
    rows: int
    where: str
    folder: Path
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def column(self, name: str, option: str) -> Sequence[Any]:
        """A column that a user asked for.

        Raises:
            InputError: there is none.
        """
        if name not in self.columns:
            raise InputError(f"{self.where} has no column '{name}' (it has {listing(self.columns)}): set {option}.")
        return self.columns[name]


def read_table(source: DataSource) -> Table:
    """Reads a folder of images, a table or a data set of Hugging Face.

    Raises:
        InputError: it does not exist, is empty, or cannot be read.
    """
    path = Path(source.path)
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
        table = _saved_data_set(path, source) if saved else _image_folder(path)
    elif path.suffix.lower() in TABLE_FILES:
        if not path.is_file():
            raise InputError(f"There is no data file {path}.")
        table = _table_file(path)
    else:
        table = _named_data_set(source)
    if not table.rows:
        raise InputError(f"{table.where} has no samples.")
    return table


def open_picture(table: Table, images: Sequence[Any], index: int) -> Any:
    """A picture of pillow from a column of images.

    Args:
        table: has the column.
        images: the column.
        index: row of the picture, from 0.

    Raises:
        InputError: it cannot be read.
    """
    pillow = library("PIL.Image")
    content = images[index]
    where = f"Image {index + 1} of {table.where}"
    if isinstance(content, Mapping):
        content = content.get("bytes") or content.get("path")
    try:
        if isinstance(content, bytes):
            content = pillow.open(io.BytesIO(content))
        elif isinstance(content, str | Path):
            where = str(table.folder / content)
            content = pillow.open(where)
        content.load()
    except (OSError, AttributeError, ValueError) as error:
        raise InputError(f"{where} cannot be read as an image: {_first_line(error)}.") from None
    return content


def read_classes(file: str | Path) -> tuple[str, ...]:
    """The names of classes in the order of their numbers.

    Args:
        file: JSON with a list of names, an object of names by index, or one of indices by name; or one name a line.

    Raises:
        InputError: the file is missing, or is none of these.
    """
    path = Path(file)
    text = _read_text(path)
    if path.suffix.lower() != ".json":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    content = _parse_json(text, str(path))
    numbered = False
    if isinstance(content, Mapping):  # a model's config.json; names may repeat, which label2id cannot say
        key = next((each for each in ("id2label", "label2id") if _has_names(content.get(each))), None)
        content, numbered = content[key] if key else content, key == "id2label"
    if isinstance(content, Mapping):
        names_first = not numbered and _counts(content.values())
        by_index = {str(i): name for name, i in content.items()} if names_first else dict(content)
        if not _counts(by_index):
            raise InputError(f"{path} must number its classes 0, 1, 2, ... without a gap.")
        content = [by_index[str(i)] for i in range(len(by_index))]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} must be a list of class names, or an object of names by index.")
    return tuple(content)


def _image_folder(path: Path) -> Table:
    """One class for each sub-folder; images of all classes in turn, so that the first samples are of every class."""
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not folders:
        raise InputError(f"{path} has no sub-folders: give a folder with one sub-folder of images for each class.")
    files = [sorted(each for each in folder.rglob("*") if each.suffix.lower() in IMAGE_FILES) for folder in folders]
    found = [
        (images[i].relative_to(path), folder.name)
        for i in range(max(map(len, files)))
        for folder, images in zip(folders, files, strict=True)
        if i < len(images)
    ]
    if not found:
        raise InputError(f"{path} has no images in its sub-folders ({', '.join(IMAGE_FILES)}).")
    columns: dict[str, list[Any]] = {"image": [image for image, _ in found], "label": [label for _, label in found]}
    return Table(columns, len(found), str(path), path)


def _table_file(path: Path) -> Table:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        parquet = library("pyarrow.parquet")
        try:
            columns = parquet.read_table(path).to_pydict()
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {_first_line(error)}.") from None
        return _table(columns, path)
    if suffix in (".csv", ".tsv"):
        return _table(_read_csv(path, "\t" if suffix == ".tsv" else ","), path)
    text = _read_text(path)
    if suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        records = [_parse_json(line, f"Line {number} of {path}") for number, line in lines]
    else:
        records = _parse_json(text, str(path))
        if isinstance(records, Mapping) and isinstance(records.get("data"), list):
            records = list(_squad(records["data"])) if "paragraphs" in (records["data"] or [{}])[0] else records["data"]
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        raise InputError(f"{path} must hold a list of objects, one for each sample.")
    names = list(dict.fromkeys(name for record in records for name in record))
    return _table({str(name): [record.get(name) for record in records] for name in names}, path)


def _read_csv(path: Path, delimiter: str) -> dict[str, list[Any]]:
    csv.field_size_limit(2**31 - 1)  # a context may be longer than the default of 128 KB
    try:
        rows = list(csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table: {_first_line(error)}.") from None
    rows = [row for row in rows if row]
    if not rows:
        raise InputError(f"{path} is empty: its first line must name the columns.")
    head = rows[0]
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(head):
            raise InputError(f"Row {number} of {path} has {len(row)} cells, but the first line names {len(head)}.")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(head)}


def _squad(articles: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The questions of a file in the format of SQuAD."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = [answer["text"] for answer in question["answers"]]
                yield {"question": question["question"], "context": paragraph["context"], "answers": answers}


def _saved_data_set(path: Path, source: DataSource) -> Table:
    try:
        loaded = library("datasets").load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as a saved data set: {_first_line(error)}.") from None
    return _data_set(loaded, source, str(path), path)


def _named_data_set(source: DataSource) -> Table:
    name, _, configuration = str(source.path).partition(":")
    missing = f"There is no file or folder {source.path}"
    if Path(name).suffix or name.startswith((".", "/")) or name.count("/") > 1:
        raise InputError(f"{missing}: give an .npz file, a folder of images, a table or the name of a data set.")
    try:
        datasets = library("datasets")
    except InputError as error:
        raise InputError(f"{missing}, and to load a data set of that name: {error}") from None
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # whatever network, hub and scripts may raise
        raise InputError(f"{missing}, and no data set of that name could be loaded: {_first_line(error)}.") from None
    return _data_set(loaded, source, name, Path())


def _data_set(loaded: Any, source: DataSource, where: str, folder: Path) -> Table:
    if isinstance(loaded, Mapping):
        splits = list(loaded)
        usual = [split for split in ("test", "validation") if split in splits]
        split = source.split or (usual or splits)[0]
        if split not in splits or not (source.split or usual or len(splits) == 1):
            raise InputError(f"{where} has the splits {listing(splits)}: choose one of them (--split).")
        loaded, where = loaded[split], f"{where} ({split})"
    elif source.split is not None:
        raise InputError(f"{where} is a single data set without splits: leave --split out.")
    features = loaded.features
    pictures = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    columns: dict[str, Sequence[Any]] = {
        name: _Column(loaded, name) if name in pictures else list(loaded[name]) for name in loaded.column_names
    }
    numbered = {name: tuple(each.names) for name, each in features.items() if type(each).__name__ == "ClassLabel"}
    return Table(columns, len(loaded), where, folder, numbered)


class _Column(Sequence[Any]):
    """A column of a data set, decoded as it is read."""

    def __init__(self, loaded: Any, name: str) -> None:
        self.loaded, self.name = loaded.select_columns([name]), name

    def __len__(self) -> int:
        return len(self.loaded)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.loaded[index][self.name]


def _table(columns: Mapping[str, Sequence[Any]], path: Path) -> Table:
    return Table(columns, len(next(iter(columns.values()), [])), str(path), path.parent)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {_first_line(error)}.") from None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {_first_line(error)}.") from None


def _counts(values: Any) -> bool:
    """Whether these are the numbers 0, 1, 2, ..., each once, as numbers or as text."""
    return sorted(map(str, values)) == sorted(map(str, range(len(values))))


def _has_names(labels: Any) -> bool:
    return isinstance(labels, Mapping) and bool(labels)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
