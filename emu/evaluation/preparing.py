"""Turns images and texts into the arrays that a model takes, by the model's own processor or tokenizer."""

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError, listing
from emu.evaluation.classes import NUMBERS, ClassNames, match_names
from emu.evaluation.corruptions import Corruption
from emu.evaluation.data import (
    Array,
    DataSet,
    ImagesOnDemand,
    ModelInput,
    load_data,
    missing_classes,
    read_arrays,
    refit,
)
from emu.evaluation.pixels import OF_ARRAYS, corrupt_samples, prepare_pixels
from emu.evaluation.sources import DataSource, Table, open_picture, read_classes, read_table
from emu.evaluation.tasks import (
    IGNORED_LABEL,
    Arrays,
    Classification,
    MaskedTokens,
    MultipleChoice,
    QuestionAnswering,
    Similarity,
    Task,
    gives_embeddings,
    gives_token_scores,
    guess_task,
)
from emu.libraries import library

TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("text",),
    ("sentence",),
    ("review",),
)
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "category", "class", "score", "similarity_score", "answer", "answerKey")
PROMPT = "Question: {question}\nAnswer:"
WINDOW = 384  # tokens of one window of a long context, and how many two windows share: the usual choice for SQuAD
OVERLAP = 128
MASKED_SHARE = 0.15  # of the tokens, as BERT was trained (Devlin et al. 2019)
_IN_MEMORY = 2**31  # bytes; larger arrays of images lie in a temporary file
_IMAGES_AT_ONCE = 64
_TOKENIZING: dict[str, Any] = {"return_attention_mask": True, "return_token_type_ids": True, "verbose": False}


def load(
    data: str | Path | Mapping[str, Any] | DataSource | DataSet,
    session: Any,
    inputs: list[ModelInput],
    task: Task | None = None,
    samples: int | None = None,
    folder: Path | None = None,
    on_demand: bool = False,
) -> tuple[DataSet, Task]:
    """Loads data for a model, whatever form they have.

    Args:
        data: arrays by name, what `DataSource` takes, or samples that were loaded before, for the task that is given.
        session: the model's session.
        inputs: the model's inputs.
        task: what is measured; None to guess it from the model's outputs and the data.
        samples: use only the first so many samples.
        folder: folder of the model, which may hold its processor.
        on_demand: leave images that do not fit into memory where they are (`ImagesOnDemand`), for training; otherwise
            they are prepared once and kept in a temporary file.

    Returns:
        The data and the task.

    Raises:
        InputError: the data cannot be read, or fit neither the model nor the task.
    """
    if isinstance(data, DataSet):
        if task is None or samples is not None:
            raise InputError(
                f"The samples of {data.where} are loaded already, for one task: give that task, and no number of "
                "samples."
            )
        return refit(data, inputs), task
    source = None if isinstance(data, Mapping) else data if isinstance(data, DataSource) else DataSource(data)
    dataset, task = _load(source, data, session, inputs, task, samples, folder, on_demand)
    return replace(dataset, source=source), task


def _load(
    source: DataSource | None,
    data: Any,
    session: Any,
    inputs: list[ModelInput],
    task: Task | None,
    samples: int | None,
    folder: Path | None,
    on_demand: bool,
) -> tuple[DataSet, Task]:
    if source is None or source.is_arrays:
        options = [] if source is None else [each for each in source.options if each not in OF_ARRAYS]
        if source is not None and options:
            raise InputError(f"'{options[0]}' is for images and texts, but {source.path} holds arrays: leave it out.")
        arrays, where = read_arrays(source.path if source else data)
        arrays = renamed(arrays, source, [each.name for each in inputs], where) if source else arrays
        folders = [Path(source.processor)] if source and source.processor else model_folders(folder)
        arrays, notes, warnings = prepare_pixels(arrays, inputs, source, folders, where)
        if notes and source is not None and source.corruption is not None:
            where = f"{where} ({Corruption.parse(source.corruption)})"
        task = task or guess_task(session, [each.name for each in inputs], arrays)
        dataset = load_data(arrays, inputs, samples, task.targets, where)
        if isinstance(task, Classification):
            dataset = replace(dataset, classes_from=NUMBERS)
        dataset = replace(dataset, notes=(*notes, *dataset.notes), warnings=warnings)
        return (dataset if source is None or notes else corrupt_samples(dataset, source)), task
    for name, of in (("mean", "arrays of pixels"), ("std", "arrays of pixels"), ("inputs", "arrays")):
        if getattr(source, name) is not None:
            raise InputError(f"'{name}' is for {of}, and {source.path} holds none: leave it out.")
    table = read_table(source)
    if samples is not None and not 1 <= samples <= table.rows:
        raise InputError(
            f"{samples} samples were asked for: {table.where} has {table.rows}, so ask for 1 to {table.rows}."
        )
    return _Preparation(source, table, inputs, samples or table.rows, folder, on_demand).run(task, session)


def model_folders(folder: Path | None) -> list[Path]:
    """The model's folder, and the one above it if it is called `onnx`; none for a model in memory."""
    if folder is None:
        return []
    return [folder, *([folder.parent] if folder.resolve().name == "onnx" else [])]


def renamed(arrays: Mapping[str, Array], source: DataSource, inputs: Sequence[str], where: str) -> dict[str, Array]:
    """The arrays under the names that the model and the tasks have for them, as `inputs` and `label_column` say.

    Raises:
        InputError: a name that is neither an array of the data nor an input of the model.
    """
    names = {}
    for text in source.inputs or ():
        given, equals, wanted = (part.strip() for part in text.partition("="))
        if given not in arrays and wanted in arrays:
            given, wanted = wanted, given
        if not equals or given not in arrays or wanted not in inputs:
            raise InputError(
                f"--input '{text}' cannot be used: write ARRAY=INPUT. {where} has the arrays {listing(arrays)}, the "
                f"model the inputs {listing(inputs)}."
            )
        names[given] = wanted
    if source.label_column is not None:
        if source.label_column not in arrays:
            raise InputError(f"{where} has no array '{source.label_column}' for labels (it has {listing(arrays)}).")
        names[source.label_column] = "labels"
    taken = set(names.values())
    return {names.get(name, name): array for name, array in arrays.items() if name in names or name not in taken}


@dataclass
class _Preparation:
    """One table on its way to arrays."""

    source: DataSource
    table: Table
    inputs: list[ModelInput]
    samples: int
    folder: Path | None
    on_demand: bool = False

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.classes: tuple[str, ...] | None = None
        self.classes_from = ""
        self.corruption = Corruption.parse(self.source.corruption) if self.source.corruption else None

    def run(self, task: Task | None, session: Any) -> tuple[DataSet, Task]:
        if self._has_images():
            task = task or (Classification() if self._label_column() else Arrays())
            if not isinstance(task, Classification | Arrays):
                raise InputError(f"{self.table.where} has images: ask for classification or arrays, not {task.name}.")
            arrays = self._images()
        else:
            if self.corruption is not None:
                raise InputError(f"{self.table.where} has texts, and '{self.corruption}' is for images: leave it out.")
            task = task or self._guess(session)
            arrays = self._texts(task)
        if isinstance(task, Classification):
            arrays["labels"] = self._class_labels()
        arrays = self._renamed(arrays)
        where = f"{self.table.where} ({self.corruption})" if self.corruption else self.table.where
        dataset = load_data(arrays, self.inputs, None, task.targets, where)
        dataset = replace(dataset, classes=self.classes, classes_from=self.classes_from)
        return replace(dataset, ignored=(), notes=tuple(self.notes)), task

    def _guess(self, session: Any) -> Task:
        columns = self.table.columns
        if {"question", "context"} <= set(columns):
            return QuestionAnswering()
        if "choices" in columns:
            return MultipleChoice()
        if gives_embeddings(session) and len(self._text_columns()) == 2:
            return Similarity()
        if not self._label_column():
            return MaskedTokens() if gives_token_scores(session) else Arrays()
        return Classification()

    # Columns

    def _has_images(self) -> bool:
        if self.source.text_column is not None:
            return False
        if self.source.image_column is not None:
            return True
        return any(name in self.table.columns for name in IMAGE_COLUMNS)

    def _text_columns(self) -> tuple[str, ...]:
        asked = self.source.text_column
        if asked is not None:
            names = (asked,) if isinstance(asked, str) else tuple(asked)
            if len(names) not in (1, 2):
                raise InputError(f"{len(names)} text columns were given: give one, or two for pairs of texts.")
        else:
            columns = set(self.table.columns)
            fitting = (names for names in TEXT_COLUMNS if columns.issuperset(names))
            names = next(fitting, TEXT_COLUMNS[6])
        for name in names:
            self.table.column(name, "text_column (--text-column)")
        return names

    def _label_column(self) -> str | None:
        if self.source.label_column is not None:
            self.table.column(self.source.label_column, "label_column (--label-column)")
            return self.source.label_column
        return next((name for name in LABEL_COLUMNS if name in self.table.columns), None)

    def _labels(self) -> Sequence[Any]:
        name = self._label_column()
        if name is None:
            return self.table.column(LABEL_COLUMNS[0], "label_column (--label-column)")
        return self.table.columns[name]

    def _column_of_texts(self, name: str) -> list[str]:
        values = self.table.column(name, "text_column (--text-column)")[: self.samples]
        for number, value in enumerate(values, 1):
            if not isinstance(value, str):
                raise InputError(f"Row {number} of {self.table.where} has {_shown(value)} in column '{name}', no text.")
        return list(values)

    # Labels

    def _class_labels(self) -> NDArray[np.int64]:
        values, column = list(self._labels()), self._label_column()
        numbered = self.table.classes.get(column or "")
        for number, value in enumerate(values, 1):
            if not (_is_whole(value) or (isinstance(value, str) and value)):
                raise InputError(f"Row {number} of {self.table.where} has {_shown(value)} as its label, no class.")
            if numbered is not None and not 0 <= value < len(numbered):
                raise InputError(f"Row {number} of {self.table.where} has {value} as its label: it has no right class.")
        if numbered is not None:
            values = [numbered[value] for value in values]
        names = [str(value) for value in values]
        are_numbers = (numbered is None or numbered == _counted(numbered)) and all(map(_is_whole, names))
        given, models = self._given_classes(), self._models_classes()
        known = given or models
        if are_numbers and not (known and set(names) & set(known.names)):
            self.classes_from = NUMBERS
            return self._first(np.array([int(name) for name in names], np.int64))
        if known is None:
            known = self._unnamed_classes(numbered, names)
        index = match_names(names, known, self.table.where)
        if given and models:
            self._compare_numbers(index, given, models)
        self.classes, self.classes_from = known.names, known.source
        return self._first(np.array([index[name] for name in names], np.int64))

    def _unnamed_classes(self, numbered: tuple[str, ...] | None, names: Sequence[str]) -> ClassNames:
        """The order of the data's own numbers, else of the alphabet, where nothing else names the classes."""
        unnamed = "as neither --classes nor a config.json of the model names its classes"
        if numbered:
            return ClassNames(numbered, f"the numbers of the data set, {unnamed}")
        return ClassNames(tuple(sorted(set(names))), f"the alphabet of the names in the data, {unnamed}")

    def _compare_numbers(self, index: Mapping[str, int], given: ClassNames, models: ClassNames) -> None:
        """Says where the model's config.json numbers the same names otherwise; refuses it where nobody asked for it.

        Raises:
            InputError: `labels.json` and the model do not agree.
        """
        try:
            others = match_names(index, models, self.table.where)
        except InputError:
            return
        name = next((name for name in index if index[name] != others[name]), None)
        if name is None:
            return
        said = f"'{name}' is class {index[name]} by {given.source}, but class {others[name]} by {models.source}"
        if self.source.classes is None:
            raise InputError(f"{said}: say which is right (--classes FILE).")
        self.notes.append(f"{said}.")

    def _first(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the samples that are used."""
        self.notes += missing_classes(labels, self.samples if self.samples < len(labels) else None)
        return labels[: self.samples]

    def _given_classes(self) -> ClassNames | None:
        """The classes from the file asked for, or from `labels.json` in a folder of images."""
        if self.source.classes is not None:
            return ClassNames(read_classes(self.source.classes), f"--classes {self.source.classes}")
        beside = Path(self.source.path) / "labels.json"
        return ClassNames(read_classes(beside), str(beside)) if beside.is_file() else None

    def _models_classes(self) -> ClassNames | None:
        """The classes of the model's config.json, or else the processor's, if it names them."""
        folders = [*model_folders(self.folder), *([Path(self.source.processor)] if self.source.processor else [])]
        file = next((each / "config.json" for each in folders if (each / "config.json").is_file()), None)
        if file is None or not re.search('"(label2id|id2label)"', file.read_text(encoding="utf-8")):
            return None
        classes = ClassNames(read_classes(file), str(file))
        return None if classes.are_placeholders else classes

    # Processors

    def _processor_folder(self, *files: str) -> Path | None:
        """The folder that holds one of these files: the processor's, the model's, or the one above a folder `onnx`."""
        folders = model_folders(self.folder) if self.source.processor is None else [Path(self.source.processor)]
        return next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)

    def _processor(self, what: str, files: Sequence[str], open_from: Callable[[Any, str], Any]) -> Any:
        folder: Any = self._processor_folder(*files)
        if folder is None and self.source.processor is not None and not Path(self.source.processor).exists():
            folder = self.source.processor  # a name that transformers may know
        if folder is None:
            searched = self.source.processor or self.folder or "the model's folder"
            raise InputError(
                f"{self.table.where} needs the model's {what}, and {searched} has no {' or '.join(files[:2])}: name "
                "its folder (--processor)."
            )
        transformers = library("transformers")
        try:
            return open_from(transformers, str(folder))
        except Exception as error:  # libraries fail here in every way that a file can be wrong
            raise InputError(f"The {what} of {folder} cannot be loaded: {_first_line(error)}.") from None

    # Images

    def _images(self) -> dict[str, Array]:
        name = self.source.image_column or next(each for each in IMAGE_COLUMNS if each in self.table.columns)
        images = self.table.column(name, "image_column (--image-column)")

        def open_from(transformers: Any, folder: str) -> Any:
            return transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)

        processor = self._processor("image processor", ["preprocessor_config.json"], open_from)
        four = [each.shape for each in self.inputs if len(each.shape) == 4]
        gray = bool(four) and four[0][1] == 1

        def prepare(indices: Sequence[int]) -> Array:
            batch = [self._open(images, index, gray) for index in indices]
            try:
                options = {"input_data_format": "channels_first"} if gray else {}
                return np.asarray(processor(images=batch, return_tensors="np", **options)["pixel_values"])
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"The image processor cannot prepare the images of {self.table.where}: {_first_line(error)}."
                ) from None

        first = prepare([0])  # a table has rows
        if self.on_demand and not _fits((self.samples, *first.shape[1:]), first.dtype):
            kept: Any = ImagesOnDemand(prepare, range(self.samples), first)
            return {"pixel_values": kept}
        pixels = _space_for((self.samples, *first.shape[1:]), first.dtype)
        for start in range(0, self.samples, _IMAGES_AT_ONCE):
            indices = range(start, min(start + _IMAGES_AT_ONCE, self.samples))
            pixels[start : indices.stop] = prepare(indices)
        return {"pixel_values": pixels}

    def _open(self, images: Sequence[Any], index: int, gray: bool) -> Any:
        """A picture; gray ones as an array `[1, height, width]`."""
        picture = open_picture(self.table, images, index).convert("L" if gray else "RGB")
        if self.corruption is not None:
            pixels = self.corruption.apply(np.asarray(picture)[None], index)[0]
            picture = library("PIL.Image").fromarray(pixels)
        return np.asarray(picture)[None] if gray else picture

    # Texts

    def _texts(self, task: Task) -> dict[str, Array]:
        def open_from(transformers: Any, folder: str) -> Any:
            described = any((Path(folder) / each).is_file() for each in ("tokenizer_config.json", "config.json"))
            if described or not (Path(folder) / "tokenizer.json").is_file():
                return transformers.AutoTokenizer.from_pretrained(folder)
            return transformers.PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"))

        files = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model"]
        self.tokenizer = self._processor("tokenizer", files, open_from)
        limit = self.tokenizer.model_max_length
        self.fixed = next((n for n in self._token_shapes() if isinstance(n, int)), None)
        self.limit: int | None = self.fixed or self.source.max_length or (int(limit) if limit < 10**6 else None)
        if self.fixed is not None and self.source.max_length not in (None, self.fixed):
            raise InputError(f"The model takes exactly {self.fixed} tokens: leave the maximal length out.")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"The maximal length is {self.limit} and must be at least 1.")
        if isinstance(task, QuestionAnswering):
            return self._questions()
        if isinstance(task, MultipleChoice):
            return self._choices()
        if isinstance(task, Similarity):
            return self._pairs_to_compare()
        if isinstance(task, MaskedTokens):
            return self._masked()
        texts = [self._column_of_texts(name) for name in self._text_columns()]
        return self._padded(self._encode(*texts))

    def _token_shapes(self) -> list[int | str | None]:
        wanted = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
        found = [each.shape[1] for each in self.inputs if each.name in wanted and len(each.shape) == 2]
        return found or [each.shape[1] for each in self.inputs if len(self.inputs) == 1 and len(each.shape) == 2]

    def _encode(self, *texts: list[str], **options: Any) -> dict[str, list[list[Any]]]:
        try:
            encoded = self.tokenizer(*texts, **_TOKENIZING, **options)
        except Exception as error:
            raise InputError(
                f"The tokenizer cannot read the texts of {self.table.where}: {_first_line(error)}."
            ) from None
        longest = max(map(len, encoded["input_ids"]))
        if self.limit is not None and longest > self.limit and not options:
            cut = sum(len(ids) > self.limit for ids in encoded["input_ids"])
            self.notes.append(f"{cut} of {len(texts[0])} texts were cut to {self.limit} tokens.")
            return self._encode(*texts, truncation=True, max_length=self.limit)
        return dict(encoded)

    def _padded(self, encoded: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, Array]:
        """Rows of unequal length as arrays, filled up on the right."""
        rows = len(encoded["input_ids"])
        length = self.fixed or self.source.max_length or max(len(ids) for ids in encoded["input_ids"])
        fill = {"input_ids": _first_number(self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)}
        fill |= {"labels": IGNORED_LABEL, "offsets": -1}
        arrays = {}
        for name in ("input_ids", "attention_mask", "token_type_ids", "scored", "labels", "offsets"):
            if name not in encoded:
                continue
            array = np.full((rows, length, 2) if name == "offsets" else (rows, length), fill.get(name, 0), np.int64)
            for row, values in enumerate(encoded[name]):
                array[row, : len(values)] = values
            arrays[name] = array
        # A decoder counts the tokens that are there; filling on the right leaves them at their places.
        arrays["position_ids"] = np.maximum(arrays["attention_mask"].cumsum(axis=1) - 1, 0)
        return arrays | self._empty_past(rows)

    def _empty_past(self, rows: int) -> dict[str, Array]:
        """Keys and values of no tokens, for decoders that take those of tokens before."""
        return {
            each.name: np.zeros((rows, *(n if isinstance(n, int) else 0 for n in each.shape[1:])), each.dtype)
            for each in self.inputs
            if each.name.startswith("past_key_values")
        }

    def _needs_offsets(self, task: str) -> None:
        if not self.tokenizer.is_fast:
            raise InputError(
                f"{task} needs a tokenizer that knows the characters of its tokens: give a tokenizer.json."
            )

    def _questions(self) -> dict[str, Array]:
        """Windows over each context, and where the context lies in them."""
        self._needs_offsets("question_answering")
        questions, contexts = self._column_of_texts("question"), self._column_of_texts("context")
        name = next((each for each in ("answers", "answer") if each in self.table.columns), "answers")
        answers = self.table.column(self.source.label_column or name, "label_column (--label-column)")[: self.samples]
        length = min(self.limit or WINDOW, self.source.max_length or WINDOW)
        longest = max(len(ids) for ids in self.tokenizer(questions, add_special_tokens=False)["input_ids"])
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        if longest + special >= length:
            raise InputError(
                f"A question of {self.table.where} has {longest} tokens and leaves no room for a context in {length}: "
                "raise the maximal length (--max-length)."
            )
        options = {
            "truncation": "only_second",
            "max_length": length,
            "stride": min(OVERLAP, (length - longest - special) // 2),
            "return_overflowing_tokens": True,
            "return_offsets_mapping": True,
        }
        encoded = self.tokenizer(questions, contexts, **_TOKENIZING, **options)
        offsets = []
        for row, spans in enumerate(encoded["offset_mapping"]):
            parts = encoded.sequence_ids(row)
            offsets.append([span if part == 1 else (-1, -1) for span, part in zip(spans, parts, strict=True)])
        arrays = self._padded({**encoded, "offsets": offsets})
        texts = np.empty(len(contexts), object)
        texts[:] = contexts
        right = np.empty(len(contexts), object)
        right[:] = [_answer_texts(each) for each in answers]
        arrays["sample"] = np.asarray(encoded["overflow_to_sample_mapping"], np.int64)
        return {**arrays, "context": texts, "answers": right}

    def _choices(self) -> dict[str, Array]:
        """One row for each choice: the prompt, and the choice whose tokens are scored."""
        self._needs_offsets("multiple_choice")
        rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "token_type_ids": [], "scored": []}
        sample, characters, right = [], [], []
        choices, labels = self.table.column("choices", "a column of lists"), self._labels()
        cut = 0
        for i in range(self.samples):
            texts, names = _choice_texts(choices[i])
            if not texts:
                raise InputError(f"Row {i + 1} of {self.table.where} has {_shown(choices[i])} as choices, no list.")
            right.append(self._right_choice(labels[i], texts, names, i))
            prompt = self._prompt(i)
            for text in texts:
                encoded = self._encode([f"{prompt} {text}"], return_offsets_mapping=True)
                spans = encoded.pop("offset_mapping")[0]
                scored = [int(end > len(prompt) and end > start) for start, end in spans]
                if self.limit is not None and len(scored) > self.limit:
                    cut += 1
                kept = slice(-self.limit if self.limit else None, None)  # the choice is at the end
                for name, values in {**encoded, "scored": [scored]}.items():
                    rows.setdefault(name, []).append(values[0][kept])
                sample.append(i)
                characters.append(len(text))
        if cut:
            self.notes.append(f"{cut} of {len(sample)} choices were cut to their last {self.limit} tokens.")
        return {
            **self._padded(rows),
            "sample": np.array(sample, np.int64),
            "characters": np.array(characters, np.int64),
            "labels": np.array(right, np.int64),
        }

    def _prompt(self, row: int) -> str:
        template = self.source.prompt
        if template is None:
            asked = self.source.text_column
            column = asked if isinstance(asked, str) else "question"
            self.table.column(column, "text_column (--text-column) or a prompt (--prompt)")
            template = PROMPT.replace("{question}", "{" + column + "}") if column == "question" else "{" + column + "}"

        def value(match: re.Match[str]) -> str:
            return str(self.table.column(match[1], "the columns in the prompt (--prompt)")[row])

        return re.sub(r"\{([^{}]+)\}", value, template.replace("\\n", "\n"))

    def _right_choice(self, label: Any, texts: Sequence[str], names: Sequence[str], row: int) -> int:
        """The index of the right choice, which a row gives as a name such as B, as a text, or as a number."""
        if isinstance(label, str):
            letters = [chr(ord("A") + i) for i in range(len(texts))]
            for known in (names, texts, letters):
                if label in known:
                    return list(known).index(label)
        if _is_whole(label) and 0 <= int(label) < len(texts):
            return int(label)
        raise InputError(
            f"Row {row + 1} of {self.table.where} has {_shown(label)} as the right choice of {len(texts)}: give its "
            "number from 0, its letter or its text."
        )

    def _pairs_to_compare(self) -> dict[str, Array]:
        """Two rows for each pair."""
        names = self._text_columns()
        if len(names) != 2:
            raise InputError(f"similarity compares two texts: name two columns of {self.table.where} (--text-column).")
        first, second = (self._column_of_texts(name) for name in names)
        scores = []
        for number, value in enumerate(self._labels()[: self.samples], 1):
            try:
                scores.append(float(value))
            except (TypeError, ValueError):
                scores.append(math.nan)
            if not math.isfinite(scores[-1]):
                raise InputError(f"Row {number} of {self.table.where} has {_shown(value)} as its score, no number.")
        arrays = self._padded(self._encode([text for pair in zip(first, second, strict=True) for text in pair]))
        return {**arrays, "labels": np.array(scores)}

    def _masked(self) -> dict[str, Array]:
        """Some tokens of each text replaced by the mask, always the same ones."""
        if self.tokenizer.mask_token_id is None:
            raise InputError("masked_tokens needs a tokenizer with a mask token.")
        (name, *more) = self._text_columns()
        if more:
            raise InputError(f"masked_tokens reads one column of texts: name it (--text-column), not {len(more) + 1}.")
        encoded = self._encode(self._column_of_texts(name))
        special = set(self.tokenizer.all_special_ids)
        labels: list[list[int]] = []
        for row, ids in enumerate(encoded["input_ids"]):
            choice = np.random.Generator(np.random.PCG64(row)).random(len(ids))
            choice[[i for i, token in enumerate(ids) if token in special]] = 1
            masked = np.flatnonzero(choice < MASKED_SHARE)
            if not len(masked) and (choice < 1).any():
                masked = np.array([choice.argmin()])
            tokens = np.array(ids)
            asked = np.full(len(ids), IGNORED_LABEL)
            asked[masked] = tokens[masked]
            tokens[masked] = self.tokenizer.mask_token_id
            labels.append(asked.tolist())
            encoded["input_ids"][row] = tokens.tolist()
        return self._padded({**encoded, "labels": labels})

    def _renamed(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """A model of one input takes the processor's array under whatever name it has for it."""
        names = [each.name for each in self.inputs]
        main = "pixel_values" if "pixel_values" in arrays else "input_ids"
        if len(names) == 1 and names[0] not in arrays:
            arrays[names[0]] = arrays[main]
        return arrays


def _fits(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return math.prod(shape) * dtype.itemsize <= _IN_MEMORY


def _space_for(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array in memory, or in a temporary file if it is large."""
    if _fits(shape, dtype):
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def _answer_texts(answers: Any) -> list[str]:
    """Right answers as texts: from a text, a list, or the form of SQuAD; none where there is none."""
    if isinstance(answers, str) and answers[:1] in ("[", "{"):  # a cell of a CSV file
        try:
            answers = json.loads(answers)
        except ValueError:
            return [answers]
    if isinstance(answers, Mapping):
        answers = answers.get("text", [])
    if isinstance(answers, str):
        return [answers] if answers else []
    return [str(each["text"] if isinstance(each, Mapping) else each) for each in answers or []]


def _choice_texts(choices: Any) -> tuple[list[str], list[str]]:
    """Texts and names of choices: from a list, or the form of ARC."""
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            return [], []
    if isinstance(choices, Mapping):
        return list(map(str, choices.get("text", []))), list(map(str, choices.get("label", [])))
    return list(map(str, choices)) if isinstance(choices, Iterable) else [], []


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d+", value.strip()) is not None
    return isinstance(value, int | np.integer)


def _counted(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(str, range(len(names))))


def _first_number(*values: int | None) -> int:
    return next((value for value in values if value is not None), 0)


def _shown(value: Any) -> str:
    text = "nothing" if value is None or value == "" else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
