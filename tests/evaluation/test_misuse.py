"""What emu says to data that do not mean what the model means, as a user meets it on the command line."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from emu.cli import app

from .tiny import image_model, save_image_processor


def emu(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def colors_model(folder: Path, names: list[str]) -> Path:
    """A model of three classes, red, green and blue, whose config.json names them."""
    folder.mkdir()
    save_image_processor(folder, 4)
    onnx.save(image_model(3, 4, 3), folder / "model.onnx")
    config = {"model_type": "vit", "id2label": {str(number): name for number, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.onnx"


def colors_folder(folder: Path, names: list[str]) -> Path:
    """Folders of these names with a red, a green and a blue image."""
    image = pytest.importorskip("PIL.Image")
    for name, color in zip(names, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True):
        (folder / name).mkdir(parents=True)
        image.new("RGB", (5, 5), color).save(folder / name / "1.png")
    return folder


class TestClasses:
    NAMES = ("Deep Red", "Deep Green", "Deep Blue")

    def test_half_matching_names_are_refused_with_both_lists(self, tmp_path: Path) -> None:
        model = colors_model(tmp_path / "model", [*self.NAMES])
        data = colors_folder(tmp_path / "set", ["Deep Red", "Deep Green", "navy"])
        for command in (["evaluate"], ["analyze", "sensitivity", "--device", "rram", "--only", "*"]):
            said = emu(*command[:2], model, "--data", data, *command[2:])
            assert said.exit_code == 2 and said.stderr.count("\n") == 1, said.output
            assert "1 of 3 classes" in said.stderr and "(navy)" in said.stderr
            assert "the data have Deep Green, Deep Red, navy" in said.stderr
            assert "config.json has Deep Red, Deep Green, Deep Blue" in said.stderr and "--classes" in said.stderr

    def test_names_that_differ_in_case_and_separators_alone_are_the_same(self, tmp_path: Path) -> None:
        model = colors_model(tmp_path / "model", [*self.NAMES])
        data = colors_folder(tmp_path / "set", ["deep_red", "deep-green", "DeepBlue"])
        said = emu("evaluate", model, "--data", data)
        assert said.stdout.splitlines()[0] == f"classes  3, by {tmp_path / 'model' / 'config.json'}"
        assert "clean    100.00%" in said.stdout

    def test_the_alphabet_is_said_where_nothing_names_the_classes(self, tmp_path: Path) -> None:
        model = colors_model(tmp_path / "model", ["LABEL_0", "LABEL_1", "LABEL_2"])
        data = colors_folder(tmp_path / "set", ["red", "green", "blue"])
        first = emu("evaluate", model, "--data", data).stdout.splitlines()[0]
        assert first.startswith("classes  3, by the alphabet of the names in the data, as neither --classes nor")
        (tmp_path / "order.txt").write_text("red\ngreen\nblue\n")
        told = emu("evaluate", model, "--data", data, "--classes", tmp_path / "order.txt").stdout
        assert told.startswith(f"classes  3, by --classes {tmp_path / 'order.txt'}\n") and "100.00%" in told

    def test_numbers_are_the_models_numbers(self, tmp_path: Path) -> None:
        model = colors_model(tmp_path / "model", [*self.NAMES])
        data = colors_folder(tmp_path / "set", ["0", "1", "2"])
        said = emu("evaluate", model, "--data", data).stdout
        assert said.startswith("classes  numbers in the data\n") and "clean    100.00%" in said
        np.savez(tmp_path / "set.npz", pixel_values=np.zeros((2, 3, 4, 4), np.float32), labels=[0, 1])
        assert emu("evaluate", model, "--data", tmp_path / "set.npz").stdout.startswith("classes  numbers in the data")

    def test_a_list_beside_the_images_that_contradicts_the_model_is_refused(self, tmp_path: Path) -> None:
        model = colors_model(tmp_path / "model", ["red", "green", "blue"])
        data = colors_folder(tmp_path / "set", ["red", "green", "blue"])
        (data / "labels.json").write_text('["blue", "green", "red"]')
        said = emu("evaluate", model, "--data", data)
        assert said.exit_code == 2 and "'blue' is class 0 by" in said.stderr and "but class 2 by" in said.stderr
        asked = emu("evaluate", model, "--data", data, "--classes", data / "labels.json")
        assert asked.exit_code == 0 and "Note: 'blue' is class 0 by --classes" in asked.stderr

    def test_two_folders_of_one_class_are_refused(self, tmp_path: Path) -> None:
        model = colors_model(tmp_path / "model", ["red", "green", "blue"])
        said = emu("evaluate", model, "--data", colors_folder(tmp_path / "set", ["red", "Red", "blue"]))
        assert said.exit_code == 2 and "'Red', 'red'" in said.stderr and "one class" in said.stderr
