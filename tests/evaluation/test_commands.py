"""emu evaluate prints what was measured and how, and takes data in every form."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from emu.cli import app
from emu.demo import data_path, model_path

from .tiny import image_model, save_image_processor, token_model

DIGITS = [model_path("digits_vit"), "--data", data_path("digits_vit"), "--samples", 30]


def emu(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_task_is_said_and_that_it_was_guessed() -> None:
    guessed, asked = (emu("evaluate", *DIGITS, *more).stdout for more in ([], ["--task", "classification"]))
    assert "task     classification, measured by accuracy, as its outputs and the data suggest (--task)" in guessed
    assert "task     classification, measured by accuracy\n" in asked
    assert "also     top5_accuracy 100.00%, loss" in asked and "agreement" not in asked


def test_every_metric_is_in_the_table_of_the_chips() -> None:
    lines = emu("evaluate", *DIGITS, "--device", "rram", "--chips", 2).stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("metric"))
    names = [line.split()[0] for line in lines[head + 1 :]]
    assert names == ["accuracy", "top5_accuracy", "loss", "ece", "agreement", "output_snr_db"]
    assert "inf dB" in lines[-1]


def test_without_accuracy_the_primary_metric_takes_its_place() -> None:
    result = emu("evaluate", *DIGITS, "--task", "arrays", "--device", "rram", "--chips", 2)
    assert "measured by output_snr_db" in result.stdout and " dB +- " in result.stdout
    report = json.loads(emu("evaluate", *DIGITS, "--task", "arrays", "--device", "rram", "--json").stdout)
    assert report["accuracy"] is None and report["metrics"]["output_snr_db"]["mean"] > 0


def test_options_of_a_task_are_part_of_its_name() -> None:
    shown = emu("evaluate", *DIGITS, "--task", "classification:output=logits").stdout
    assert "task     classification:output=logits" in shown
    wrong = emu("evaluate", *DIGITS, "--task", "classification:bins=3")
    assert wrong.exit_code == 2 and "no option 'bins'" in wrong.stderr


def test_a_folder_of_images_is_evaluated_from_the_command_line(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("transformers")
    for name, color in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        image.new("RGB", (5, 5), color).save(tmp_path / "set" / name / "1.png")
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    save_image_processor(tmp_path / "processor", 4)
    onnx.save(image_model(3, 4, 3), tmp_path / "model.onnx")
    arguments = [tmp_path / "model.onnx", "--data", tmp_path / "set", "--processor", tmp_path / "processor"]
    right = json.loads(emu("evaluate", *arguments, "--classes", tmp_path / "classes.txt", "--json").stdout)
    assert right["clean"]["accuracy"] == 1 and right["samples"] == 3
    assert json.loads(emu("evaluate", *arguments, "--json").stdout)["clean"]["accuracy"] < 1  # sorted by name
    missing = emu("evaluate", *arguments[:3])
    assert missing.exit_code == 2 and "--processor" in missing.stderr and missing.stderr.count("\n") == 1


def test_data_that_do_not_exist_are_named(tmp_path: Path) -> None:
    onnx.save(token_model(np.eye(4), [np.eye(4)], ["logits"], mean=True), tmp_path / "model.onnx")
    for name in ("none.npz", "none.csv", "folder/of/none"):
        result = emu("evaluate", tmp_path / "model.onnx", "--data", tmp_path / name)
        assert result.exit_code == 2 and str(tmp_path / name) in result.stderr and result.stderr.count("\n") == 1


def test_a_models_fixed_batch_is_filled_up_for_every_task(tmp_path: Path) -> None:
    onnx.save(token_model(np.eye(4), [np.eye(4)], ["hidden"], batch=4), tmp_path / "model.onnx")
    np.savez(tmp_path / "set.npz", input_ids=np.arange(12).reshape(6, 2) % 4)
    result = emu(
        "evaluate", tmp_path / "model.onnx", "--data", tmp_path / "set.npz", "--device", "rram", "--only", "*", "--json"
    )
    report = json.loads(result.stdout)
    assert report["task"] == "arrays" and report["samples"] == 6 and report["batch_size"] == 4
