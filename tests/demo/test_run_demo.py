"""The first study: it writes what it says, and its numbers behave like resistive memory."""

import builtins
import csv
from pathlib import Path
from typing import Any

import pytest

from emu.demo import run_demo
from emu.errors import InputError

SIGMAS = (0.0, 0.1, 0.6)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    lines: list[str] = []
    folder = run_demo(tmp_path_factory.mktemp("demo") / "new" / "folder", echo=lines.append, chips=3, sigmas=SIGMAS)
    return folder, lines


def rows_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "accuracy.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_model_table_and_figure_are_written(study: tuple[Path, list[str]]) -> None:
    pytest.importorskip("matplotlib")
    names = sorted(path.name for path in study[0].iterdir())
    assert names == ["accuracy.csv", "accuracy_vs_sigma.png", "digits_vit.rram.onnx"]
    assert (study[0] / "accuracy_vs_sigma.png").read_bytes().startswith(b"\x89PNG")


def test_without_variation_every_chip_is_as_good_as_the_clean_model(study: tuple[Path, list[str]]) -> None:
    row = rows_of(study[0])[0]
    assert row["sigma"] == 0 and row["worst"] == row["best"] == row["mean"] == row["clean"] >= 0.97
    assert "low" not in row and "high" not in row  # equal chips have no interval


def test_more_variation_costs_accuracy_and_chips_differ(study: tuple[Path, list[str]]) -> None:
    none, some, much = rows_of(study[0])
    # A little variation may help by chance, by less than its chips differ from the clean model on 450 digits.
    assert none["mean"] >= some["mean"] - 0.005 and some["mean"] > much["mean"] + 0.02
    assert much["best"] > much["worst"] and much["low"] < much["mean"] < much["high"]


def test_printed_table_shows_every_sigma_beside_the_clean_accuracy(study: tuple[Path, list[str]]) -> None:
    printed = "\n".join(study[1])
    assert "450 held-out digits" in printed and "3 chips" in printed
    for row in rows_of(study[0]):
        line = next(line for line in study[1] if line.strip().startswith(f"{row['sigma']:g} "))
        assert f"{100 * row['mean']:.2f}" in line and line.endswith(f"{100 * row['clean']:.2f}")


def test_without_matplotlib_one_line_says_so_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def no_matplotlib(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    lines: list[str] = []
    run_demo(tmp_path, echo=lines.append, chips=1, sigmas=(0.1,))
    assert [line for line in lines if line.startswith("No figure, because matplotlib")] == lines[-1:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.csv", "digits_vit.rram.onnx"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken"):
        run_demo(tmp_path / "taken")


@pytest.mark.slow
def test_without_the_native_library_numpy_serves_with_the_same_numbers(
    study: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise InputError("the library is not installed")

    monkeypatch.setattr("emu.runtime.library_path", missing)
    monkeypatch.setattr("emu.runtime.library.library_path", missing)
    lines: list[str] = []
    run_demo(tmp_path, echo=lines.append, chips=3, sigmas=SIGMAS[-1:])
    assert "NumPy" in lines[0]
    assert rows_of(tmp_path) == rows_of(study[0])[-1:]
