"""What emu says to data that do not mean what the model means, as a user meets it on the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from emu.cli import app
from emu.demo import data_path, model_path

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


@pytest.fixture
def digits() -> dict[str, np.ndarray]:
    with np.load(data_path("digits_vit")) as arrays:
        return {name: arrays[name][:200] for name in arrays.files}


def digits_model(folder: Path) -> Path:
    """The digits ViT beside the processor that makes its pixels."""
    folder.mkdir()
    shutil.copy(model_path("digits_vit"), folder / "model.onnx")
    processor = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "rescale_factor": 1 / 120}
    processor |= {"image_mean": [1.0], "image_std": [1.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder / "model.onnx"


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


STUDIES = (
    ["analyze", "sensitivity", "MODEL", "--data", "DATA", "--device", "rram", "--chips", "2"],
    ["sweep", "MODEL", "--data", "DATA", "--device", "rram", "--seeds", "2", "--vary", "program.sigma=0.1"],
)


def study(command: list[str], model: Path, data: Path, tmp_path: Path, *more: object) -> Result:
    places = {"MODEL": model, "DATA": data}
    store = ["--store", tmp_path / "store.db"] if command[0] == "sweep" else []
    return emu(*(places.get(each, each) for each in command), *store, *more)


class TestCleanReference:
    def test_labels_shifted_by_one_are_named_and_no_study_runs(
        self, tmp_path: Path, digits: dict[str, np.ndarray]
    ) -> None:
        data = saved(tmp_path, pixel_values=digits["pixel_values"], labels=(digits["labels"] - 1) % 10)
        said = emu("evaluate", model_path("digits_vit"), "--data", data)
        assert said.exit_code == 0
        first, second = said.stderr.splitlines()
        assert first.startswith(
            "Warning: The clean model answers 0.00% right (95 % interval 0.00% to 1.88%), and 9.96%"
        )
        assert "check the order of the classes and the labels, how the inputs were prepared" in first
        assert second.startswith("Warning: Labels shifted by one would repair it: 9") and "one more" in second
        for command in STUDIES:
            refused = study(command, model_path("digits_vit"), data, tmp_path)
            assert refused.exit_code == 2 and "no more than the 9.96%" in refused.stderr, refused.output
            assert "labels shifted by one would repair it" in refused.stderr and "--anyway" in refused.stderr
        assert study(STUDIES[1], model_path("digits_vit"), data, tmp_path, "--anyway").exit_code == 0

    def test_permuted_classes_are_named_with_the_numbers_that_would_be_right(
        self, tmp_path: Path, digits: dict[str, np.ndarray]
    ) -> None:
        order = np.array([0, 1, 2, 3, 4, 5, 7, 9, 6, 8])  # four classes exchanged: far above chance, and yet wrong
        data = saved(tmp_path, pixel_values=digits["pixel_values"], labels=order[digits["labels"]])
        report = emu("evaluate", model_path("digits_vit"), "--data", data, "--json")
        (warning,) = json.loads(report.stdout)["warnings"]
        assert warning.startswith("Classes in another order would repair it: 9")
        assert warning.endswith("with the labels renumbered (6 as 8, 7 as 6, 8 as 9, 9 as 7).")

    def test_raw_pixels_are_held_against_the_processor(self, tmp_path: Path, digits: dict[str, np.ndarray]) -> None:
        model = digits_model(tmp_path / "model")
        data = saved(tmp_path, pixel_values=(digits["pixel_values"] + 1) * 120, labels=digits["labels"])
        said = emu("evaluate", model, "--data", data).stderr
        assert "'pixel_values' of" in said and "holds 0 to 240 (mean" in said and "pixels are -1 to 1.125 by" in said
        assert "(x / 120 - 1) / 1. These look like raw levels of 0 to 255: normalize them so" in said
        between = saved(tmp_path, pixel_values=(digits["pixel_values"] + 1) / 2, labels=digits["labels"])
        said = emu("evaluate", model, "--data", between).stderr
        assert "These look like levels of 0 to 1 from which no mean was subtracted" in said
        right = emu("evaluate", model, "--data", saved(tmp_path, **digits))
        assert right.stderr == "" and "clean    98" in right.stdout

    @pytest.mark.parametrize("seed", range(4))
    def test_a_random_model_is_said_to_be_no_better_than_chance(
        self, tmp_path: Path, digits: dict[str, np.ndarray], seed: int
    ) -> None:
        model = image_model(1, 8, 10)
        weight = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))
        onnx.save(model, tmp_path / "model.onnx")
        said = emu("evaluate", tmp_path / "model.onnx", "--data", saved(tmp_path, **digits)).stderr
        assert said.startswith("Warning: The clean model answers") and "by chance: check the order" in said
        assert said.count("\n") == 1  # no order of the classes repairs it

    def test_a_good_model_is_believed(self) -> None:
        said = emu("evaluate", model_path("digits_vit"), "--data", data_path("digits_vit"), "--samples", 100)
        assert said.stderr == ""


class TestNothingDisturbed:
    """`rram` leaves the products of attention exact: what is not disturbed is not robust."""

    MODEL = (model_path("digits_vit"), "--data", data_path("digits_vit"), "--samples", 40, "--device", "rram")

    def test_a_device_that_touches_nothing_selected_is_said_and_not_studied(self, tmp_path: Path) -> None:
        exact = (*self.MODEL, "--only", "component=attention_scores")
        said = emu("evaluate", *exact, "--chips", 3)
        assert "Warning: Nothing is disturbed: 'rram' leaves all sites exact" in said.stderr
        assert "(all 3 chips are equal, so that there is no interval)" in said.stdout
        assert json.loads(emu("evaluate", *exact, "--chips", 3, "--json").stdout)["accuracy"]["ci95"] is None
        for analysis in ("sensitivity", "heads", "protect"):
            refused = emu("analyze", analysis, *exact, "--chips", 2)
            assert refused.exit_code == 2 and "Nothing is disturbed: 'rram' leaves all 4 sites exact" in refused.stderr
        swept = emu("sweep", *exact, "--vary", "layer=all", "--seeds", 2, "--store", tmp_path / "store.db")
        assert swept.exit_code == 2 and "No point of the sweep disturbs anything" in swept.stderr

    def test_parts_that_the_device_leaves_exact_are_a_state_of_their_own(self, tmp_path: Path) -> None:
        some = (*self.MODEL, "--only", "component=attention_scores,ffn_up")
        said = emu("analyze", "sensitivity", *some, "--chips", 2).stdout
        assert (
            "Not disturbed, so not measured: 4 parts (attention_scores)." in said and "  attention_scores" not in said
        )
        rows = json.loads(emu("analyze", "sensitivity", *some, "--chips", 2, "--json").stdout)["sensitivity"]
        exact = [row for row in rows if row["component"] == "attention_scores"]
        assert len(exact) == 4 and all(row["effect"] is None and row["low"] is None for row in exact)
        swept = emu("sweep", *some, "--vary", "component=all", "--seeds", 2, "--store", tmp_path / "store.db")
        assert "1 of 2 points disturb no site and are left out." in swept.stdout + swept.stderr
