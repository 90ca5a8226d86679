"""The distillation study on corrupted images runs from start to end at toy size, and its data are what it says."""

import importlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

for needed in ("torch", "transformers", "accelerate", "PIL", "pandas", "scipy"):
    pytest.importorskip(needed)

MODELS = 10  # teacher, ViT, two DeiT, six CDeiT


@pytest.fixture
def study(examples: Path) -> ModuleType:
    return importlib.import_module("distill_corrupted_cifar10")


def jpeg_files(count: int, seed: int) -> tuple[list[bytes], np.ndarray]:
    """Encoded pictures of one color each, red by their class, and the classes."""
    from PIL import Image

    labels = np.random.default_rng(seed).integers(0, 10, count)
    encoded = []
    for label in labels:
        file = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), (25 * label, 100, 50), np.uint8)).save(file, "JPEG", quality=95)
        encoded.append(file.getvalue())
    return encoded, labels


def write_npz(path: Path, count: int, seed: int) -> str:
    encoded, labels = jpeg_files(count, seed)
    offsets = np.cumsum([0, *map(len, encoded)])
    np.savez(path, jpeg=np.frombuffer(b"".join(encoded), np.uint8), offsets=offsets, labels=labels.astype(np.uint8))
    return str(path)


def test_pictures_come_with_their_classes_and_are_drawn_by_the_seed(study: ModuleType, tmp_path: Path) -> None:
    sources = [write_npz(tmp_path / "train.npz", 40, seed=0), write_npz(tmp_path / "test.npz", 9, seed=1)]
    first, again, other = (study.load_pictures(sources, "train", 30, seed) for seed in (5, 5, 6))
    assert first.pictures.shape == (30, 32, 32, 3) and first.pictures.dtype == np.uint8
    np.testing.assert_allclose(first.pictures[:, 0, 0, 0], 25 * first.labels, atol=3)
    np.testing.assert_array_equal(first.pictures, again.pictures)
    assert (first.labels != other.labels).any()
    assert len(study.load_pictures(sources, "test", 9, 0).labels) == 9
    with pytest.raises(study.InputError, match=r"test\.npz has 9 pictures, but 10 are asked for"):
        study.load_pictures(sources, "test", 10, 0)


def test_parquet_as_the_hub_has_it_gives_the_same_pictures(study: ModuleType, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    encoded, labels = jpeg_files(12, seed=3)
    images = [{"bytes": each, "path": None} for each in encoded]
    parquet.write_table(pyarrow.table({"img": images, "label": labels}), tmp_path / "train.parquet")
    npz = write_npz(tmp_path / "train.npz", 12, seed=3)
    for left, right in zip(
        study.load_pictures([str(tmp_path / "train.parquet")] * 2, "train", 12, 0),
        study.load_pictures([npz] * 2, "train", 12, 0),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


def test_all_versions_of_an_image_are_the_image_and_one_of_each_corruption(study: ModuleType) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    clean = study.Pictures(pictures, np.array([7, 8, 9]))
    arrays = study.versions_of(clean, 11, seed=1)
    kinds = arrays["corruption"].reshape(3, 11)
    np.testing.assert_array_equal(np.sort(kinds), np.tile(np.arange(11), (3, 1)))
    np.testing.assert_array_equal(arrays["labels"], np.repeat([7, 8, 9], 11))
    versions = arrays["pixel_values"].reshape(3, 11, 3, 32, 32)
    for image in range(3):
        same = np.array([np.array_equal(each, study.pixels_of(pictures)[image]) for each in versions[image]])
        np.testing.assert_array_equal(same, kinds[image] == 0)


def test_pixels_in_half_precision_still_tell_all_levels_apart(study: ModuleType) -> None:
    levels = np.arange(256, dtype=np.uint8)
    pixels = study.pixels_of(np.tile(levels[:, None, None, None], (1, 32, 32, 3)))
    np.testing.assert_array_equal(np.rint((pixels[:, 0, 0, 0].astype(float) + 1) * 127.5), levels)


def test_all_students_of_a_seed_begin_with_the_same_encoder(study: ModuleType, tmp_path: Path) -> None:
    load = pytest.importorskip("safetensors.numpy").load_file
    size = study.Size(width=32, layers=1)
    for name, inference in (("deit", None), ("average", "average"), ("gelu", "gelu")):
        study.write_student(tmp_path / name, size, inference, seed=4)
    deit, *others = (load(tmp_path / name / "model.safetensors") for name in ("deit", "average", "gelu"))
    for name in ("deit.embeddings.cls_token", "deit.embeddings.position_embeddings"):
        assert deit[name].std() > 0.01, "transformers' own start, zeros, would be unfair to the DeiT"
    for other in others:
        for name, tensor in deit.items():
            np.testing.assert_array_equal(other[name], tensor, err_msg=name)


@pytest.mark.slow
def test_the_whole_study_runs_and_a_second_call_only_reads(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [write_npz(tmp_path / "train.npz", 64, seed=0), write_npz(tmp_path / "test.npz", 12, seed=1)]
    output = tmp_path / "study"
    options: dict[str, Any] = {"train": 64, "test": 12, "epochs": 1, "width": 32, "layers": 1}
    command = ["study", "--cifar", *sources, "--output", str(output)]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", command)
    study.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + MODELS

    results = study.pd.read_csv(output / "results.csv")
    assert (results.groupby("model").size() == 1 + 10 * 5).all() and results["model"].nunique() == MODELS
    models = {each["model"]: each for each in json.loads((output / "results.json").read_text())["models"]}
    assert models["vit"]["mce"] == 1
    for name, each in models.items():
        own = results[results["model"] == name]
        assert each["mixed"] == pytest.approx(100 * (own["accuracy"].iloc[0] + 0.2 * own["accuracy"][1:].sum()) / 11)

    monkeypatch.setattr(study, "finetune", lambda *_, **__: pytest.fail("it trains again"))
    study.main()
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")] == table

    monkeypatch.setattr(sys, "argv", [*command, "--layers", "2"])
    with pytest.raises(SystemExit):
        study.main()
    assert "another size" in capsys.readouterr().err
