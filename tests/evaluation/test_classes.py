"""Names of classes are matched whole, by any of their synonyms, or refused."""

import json
from pathlib import Path

import pytest

from emu.errors import InputError
from emu.evaluation.classes import ClassNames, match_names
from emu.evaluation.sources import read_classes

IMAGENET = ClassNames(("tench, Tinca tinca", "crane", "T-shirt/top", "crane"), "config.json")


def test_a_class_answers_to_each_of_its_names() -> None:
    assert match_names(["tinca_tinca", "t shirt top"], IMAGENET, "The data") == {"tinca_tinca": 0, "t shirt top": 2}
    assert match_names(["Tench, Tinca Tinca"], IMAGENET, "The data") == {"Tench, Tinca Tinca": 0}


def test_a_name_of_two_classes_is_refused() -> None:
    with pytest.raises(InputError, match="Class 'crane' of The data may be '1', '3' of config.json"):
        match_names(["crane"], IMAGENET, "The data")


def test_two_names_of_one_class_are_refused() -> None:
    with pytest.raises(InputError, match="'tench', 'Tinca tinca' of The data are one class"):
        match_names(["tench", "Tinca tinca"], IMAGENET, "The data")


def test_an_exact_name_goes_before_a_similar_one() -> None:
    classes = ClassNames(("it's", "IT'S", "other"), "a list")
    assert match_names(["IT'S", "it's"], classes, "The data") == {"IT'S": 1, "it's": 0}


def test_placeholders_name_nothing() -> None:
    assert ClassNames(("LABEL_0", "LABEL_1"), "").are_placeholders
    assert not ClassNames(("LABEL_0", "cat"), "").are_placeholders


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"0": "crane", "1": "dog", "2": "crane"}, "label2id": {"crane": 2, "dog": 1}}, "crane dog crane"),
        ({"id2label": {"0": "2", "1": "0", "2": "1"}}, "2 0 1"),
        ({"label2id": {"2": 0, "0": 1, "1": 2}}, "2 0 1"),
        ({"id2label": {}, "label2id": {"a": 0}}, "a"),
    ],
)
def test_a_config_numbers_its_classes_also_where_names_repeat(tmp_path: Path, config: object, names: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_classes(tmp_path / "config.json") == tuple(names.split())
