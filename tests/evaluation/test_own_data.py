"""Data as people have them: arrays of other names, whole levels of pixels, labels of other types."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from emu import Bench
from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation import DataSource, evaluate


def emu(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def digits() -> dict[str, np.ndarray]:
    with np.load(data_path("digits_vit")) as arrays:
        return {name: arrays[name][:60] for name in arrays.files}


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def accuracy(data: Any, **options: Any) -> float:
    return evaluate(model_path("digits_vit"), data, **options).clean.accuracy


def test_arrays_of_any_name_are_told_by_input_and_labels(tmp_path: Path, digits: dict[str, np.ndarray]) -> None:
    data = saved(tmp_path, x=digits["pixel_values"], y=digits["labels"][:, None], labels=np.zeros(60, int))
    expected = accuracy(digits)
    for given in ("x=pixel_values", "pixel_values = x"):
        command = ["evaluate", model_path("digits_vit"), "--data", data, "--input", given, "--labels", "y", "--json"]
        report = json.loads(emu(*command).stdout)
        assert report["clean"]["accuracy"] == expected and report["ignored_arrays"] == []
    bench = Bench(model_path("digits_vit"), DataSource(data, inputs=["x=pixel_values"], label_column="y"))
    assert bench.arguments["data_options"] == {"inputs": ["x=pixel_values"], "label_column": "y"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "z=pixel_values"], "write ARRAY=INPUT"),
        (["--input", "x=images"], "the model the inputs 'pixel_values'"),
        (["--input", "x"], "has the arrays 'x', 'y'"),
        (["--input", "x=pixel_values", "--labels", "classes"], "has no array 'classes' for labels (it has 'x', 'y')"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(
    tmp_path: Path, digits: dict[str, np.ndarray], arguments: list[str], says: str
) -> None:
    data = saved(tmp_path, x=digits["pixel_values"], y=digits["labels"])
    result = emu("evaluate", model_path("digits_vit"), "--data", data, *arguments)
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1


def test_input_names_are_for_arrays(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("text,label\na,0\n")
    with pytest.raises(InputError, match="'inputs' is for arrays, and .* holds none"):
        Bench(model_path("digits_vit"), DataSource(tmp_path / "set.csv", inputs=["x=pixel_values"]))


@pytest.mark.parametrize("kind", [np.float32, np.uint8, np.int32, bool])
def test_labels_may_be_whole_numbers_of_any_type(kind: type, digits: dict[str, np.ndarray]) -> None:
    two = digits["labels"] < 2
    some = {"pixel_values": digits["pixel_values"][two], "labels": digits["labels"][two].astype(kind)}
    assert accuracy(some) == 1
    with pytest.raises(InputError, match="must be one whole number per sample"):
        accuracy({**some, "labels": some["labels"] + 0.5})


class TestWholeLevels:
    """Pixels of the digits are x / 120 - 1, for levels of 0 to 240."""

    def levels(self, digits: dict[str, np.ndarray], layout: str = "first") -> dict[str, np.ndarray]:
        levels = np.uint8(np.rint((digits["pixel_values"] + 1) * 120))
        levels = {"first": levels, "last": np.moveaxis(levels, 1, 3), "none": levels[:, 0]}[layout]
        return {"pixel_values": levels, "labels": digits["labels"]}

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        shutil.copy(model_path("digits_vit"), tmp_path / "model.onnx")
        processor = {"do_resize": False, "rescale_factor": 1 / 120, "image_mean": [1.0], "image_std": [1.0]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        return tmp_path / "model.onnx"

    @pytest.mark.parametrize("layout", ["first", "last", "none"])
    def test_the_processor_beside_the_model_normalizes_them(
        self, model: Path, digits: dict[str, np.ndarray], layout: str
    ) -> None:
        bench = Bench(model, self.levels(digits, layout))
        np.testing.assert_allclose(bench.dataset.arrays["pixel_values"], digits["pixel_values"], atol=1e-6)
        assert bench.clean.accuracy == accuracy(digits) and bench.warnings == ()
        (note,) = bench.dataset.notes
        assert note.startswith(
            "'pixel_values' of The data holds whole levels: they were normalized as (x / 120 - 1) / 1"
        )

    def test_mean_and_std_normalize_them_too(self, tmp_path: Path, digits: dict[str, np.ndarray]) -> None:
        data = saved(tmp_path, **self.levels(digits))
        said = emu("evaluate", model_path("digits_vit"), "--data", data, "--mean", "0.470588", "--std", "0.470588")
        assert "Note: 'pixel_values' of" in said.stderr and "by --mean and --std" in said.stderr
        assert f"clean    {accuracy(digits):.2%}" in said.stdout

    def test_without_either_they_are_refused(self, digits: dict[str, np.ndarray]) -> None:
        with pytest.raises(InputError, match=r"holds whole levels \(uint8\).*--mean and --std, or by --processor"):
            accuracy(self.levels(digits))

    def test_they_are_corrupted_before(self, model: Path, digits: dict[str, np.ndarray], tmp_path: Path) -> None:
        data = saved(tmp_path, **self.levels(digits))
        noisy = Bench(model, DataSource(data, corruption="contrast:3")).dataset
        clean = Bench(model, data).dataset
        assert noisy.where.endswith("(contrast:3)")
        assert noisy.arrays["pixel_values"].std() < 0.7 * clean.arrays["pixel_values"].std()

    def test_another_number_of_channels_is_refused(self, model: Path, digits: dict[str, np.ndarray]) -> None:
        processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
        (model.parent / "preprocessor_config.json").write_text(json.dumps(processor))
        with pytest.raises(InputError, match=r"preprocessor_config.json has 3 numbers, but .* has 1 channels"):
            Bench(model, self.levels(digits))
