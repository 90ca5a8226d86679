"""Tables, folders of images and data sets are read as they stand, and refused in one sentence."""

import json
import sys
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu.errors import InputError
from emu.evaluation import DataSource
from emu.evaluation.sources import read_classes, read_table
from emu.libraries import library


def refusal(source: str | Path | DataSource) -> str:
    with pytest.raises(InputError) as caught:
        read_table(source if isinstance(source, DataSource) else DataSource(source))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def columns(path: Path) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in read_table(DataSource(path)).columns.items()}


TEXT = ['a, "quoted" cat', "two\nlines", "\u2028 and an accent: \u00e9"]


class TestTables:
    def test_every_form_gives_the_same_columns(self, tmp_path: Path) -> None:
        import csv

        expected = {"text": TEXT, "label": ["1", "0", "1"]}
        for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
            with (tmp_path / f"set{suffix}").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, delimiter=delimiter).writerows([["text", "label"], *zip(TEXT, "101", strict=True)])
            assert columns(tmp_path / f"set{suffix}") == expected
        records = [{"text": text, "label": label} for text, label in zip(TEXT, "101", strict=True)]
        lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        (tmp_path / "set.jsonl").write_text(lines + "\n\n", encoding="utf-8")
        (tmp_path / "set.json").write_text(json.dumps(records))
        (tmp_path / "data.json").write_text(json.dumps({"data": records}))
        for name in ("set.jsonl", "set.json", "data.json"):
            assert columns(tmp_path / name) == expected

    def test_parquet_keeps_types(self, tmp_path: Path) -> None:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": TEXT, "label": [1, 0, 1]}), tmp_path / "set.parquet")
        assert columns(tmp_path / "set.parquet") == {"text": TEXT, "label": [1, 0, 1]}
        (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
        assert "bad.parquet cannot be read as Parquet" in refusal(tmp_path / "bad.parquet")

    def test_a_file_of_squad_gives_its_questions(self, tmp_path: Path) -> None:
        answers = [{"text": "cat", "answer_start": 4}, {"text": "the cat", "answer_start": 0}]
        questions = [
            {"id": "1", "question": "who?", "answers": answers},
            {"id": "2", "question": "why?", "answers": []},
        ]
        article = {"title": "t", "paragraphs": [{"context": "the cat sat", "qas": questions}]}
        (tmp_path / "dev.json").write_text(json.dumps({"version": "2", "data": [article]}))
        table = columns(tmp_path / "dev.json")
        assert table["question"] == ["who?", "why?"] and table["answers"] == [["cat", "the cat"], []]

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), min_size=1))
    def test_any_text_survives_json_lines(self, tmp_path: Path, texts: list[str]) -> None:
        lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        (tmp_path / "set.jsonl").write_bytes(lines.encode())
        assert columns(tmp_path / "set.jsonl") == {"text": texts}

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("set.csv", "", "is empty"),
            ("set.csv", "text,label\n", "has no samples"),
            ("set.csv", "text,label\na,1\nb\n", "Row 2 of"),
            ("set.csv", 'text,label\n"a,1\n', "cannot be read as a table"),
            ("set.jsonl", '{"text": 1}\n{"text"\n', "Line 2 of"),
            ("set.jsonl", "[1, 2]", "list of objects"),
            ("set.json", '{"text": 1}', "list of objects"),
        ],
    )
    def test_broken_files_are_named(self, tmp_path: Path, name: str, content: str, says: str) -> None:
        (tmp_path / name).write_text(content)
        message = refusal(tmp_path / name)
        assert says in message and name in message

    def test_files_that_do_not_exist_or_hold_no_text_are_named(self, tmp_path: Path) -> None:
        assert "no data file" in refusal(tmp_path / "none.csv")
        assert "There is no file or folder" in refusal(tmp_path / "none")
        assert "There is no file or folder none.xlsx" in refusal("none.xlsx")
        (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
        assert "cannot be read as text" in refusal(tmp_path / "bytes.csv")


class TestImageFolders:
    def folder(self, path: Path, **classes: int) -> Path:
        image = pytest.importorskip("PIL.Image")
        for name, count in classes.items():
            (path / name).mkdir(parents=True)
            for i in range(count):
                image.new("RGB", (4, 4)).save(path / name / f"{i}.png")
        return path

    def test_images_of_all_classes_come_in_turn(self, tmp_path: Path) -> None:
        table = columns(self.folder(tmp_path / "set", dog=1, cat=3))
        assert table["label"] == ["cat", "dog", "cat", "cat"]
        assert [path.name for path in table["image"]] == ["0.png", "0.png", "1.png", "2.png"]

    def test_other_files_are_passed_over(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path / "set", cat=1)
        (folder / "cat" / "notes.txt").write_text("no image")
        (folder / ".cache").mkdir()
        assert columns(folder)["label"] == ["cat"]

    def test_folders_without_classes_or_images_are_named(self, tmp_path: Path) -> None:
        assert "no sub-folders" in refusal(tmp_path)
        assert "no images" in refusal(self.folder(tmp_path / "set", cat=0))


class TestClasses:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("labels.json", '["cat", "dog"]'),
            ("labels.json", '{"cat": 0, "dog": 1}'),
            ("labels.json", '{"1": "dog", "0": "cat"}'),
            ("config.json", '{"hidden_size": 8, "label2id": {"dog": 1, "cat": 0}}'),
            ("labels.txt", "cat\ndog\n"),
        ],
    )
    def test_an_order_is_read_from_any_usual_form(self, tmp_path: Path, name: str, content: str) -> None:
        (tmp_path / name).write_text(content)
        assert read_classes(tmp_path / name) == ("cat", "dog")

    @pytest.mark.parametrize("content", ['{"cat": 0, "dog": 2}', "[0, 1]", "cat", '"cat"'])
    def test_other_contents_are_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "labels.json").write_text(content)
        with pytest.raises(InputError, match=r"labels\.json"):
            read_classes(tmp_path / "labels.json")


class TestDataSets:
    @pytest.fixture
    def datasets(self) -> Any:
        try:
            return library("datasets")
        except InputError as error:
            pytest.skip(str(error))

    def test_a_saved_data_set_is_read_with_its_class_names(self, tmp_path: Path, datasets: Any) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        saved = datasets.Dataset.from_dict({"text": TEXT, "label": [1, 0, 1]}, features=features)
        saved.save_to_disk(str(tmp_path / "one"))
        table = read_table(DataSource(tmp_path / "one"))
        assert list(table.columns["text"]) == TEXT and list(table.columns["label"]) == [1, 0, 1]
        assert table.classes == {"label": ("no", "yes")}
        assert "without splits" in refusal(DataSource(tmp_path / "one", split="test"))

    def test_the_test_part_is_taken_unless_another_is_asked_for(self, tmp_path: Path, datasets: Any) -> None:
        parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "validation", "test")}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "all"))
        assert columns(tmp_path / "all") == {"text": ["test"]}
        table = read_table(DataSource(tmp_path / "all", split="train"))
        assert list(table.columns["text"]) == ["train"] and table.where.endswith("(train)")
        assert "has the splits 'train', 'validation', 'test'" in refusal(DataSource(tmp_path / "all", split="dev"))

    def test_pictures_are_decoded_when_they_are_read(self, tmp_path: Path, datasets: Any) -> None:
        image = pytest.importorskip("PIL.Image")
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        pictures = [image.fromarray(np.full((2, 2, 3), value, np.uint8)) for value in (10, 200)]
        saved = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=features)
        saved.save_to_disk(str(tmp_path / "images"))
        column = read_table(DataSource(tmp_path / "images")).columns["image"]
        assert [np.asarray(picture)[0, 0, 0] for picture in column] == [10, 200]

    def test_a_name_is_looked_up_with_its_configuration(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        class Rows:
            features = MappingProxyType({"text": None})
            column_names = ("text",)

            def __len__(self) -> int:
                return 1

            def __getitem__(self, name: str) -> list[str]:
                return ["a cat"]

        def load_dataset(*arguments: Any) -> Any:
            asked.append(arguments)
            if arguments[0] == "no/such":
                raise FileNotFoundError("no hub\nhere")
            return {"train": None, "validation": Rows()}

        fake = ModuleType("datasets")
        fake.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", fake)
        table = read_table(DataSource("some/set:small"))
        assert asked == [("some/set", "small")] and table.where == "some/set (validation)"
        assert "no data set of that name could be loaded: no hub." in refusal("no/such")


def test_a_missing_library_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'This needs datasets: pip install "emu-onnx[data]".' in refusal("some/set")
    with pytest.raises(InputError, match=r'This needs pillow: pip install "emu-onnx\[data\]"\.'):
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        library("PIL.Image")
