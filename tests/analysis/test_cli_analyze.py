"""emu analyze: tables, JSON, figures with their data, and sentences for what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from emu.analysis.ground import points
from emu.cli import app
from emu.demo import data_path, model_path
from emu.sweep import Store, rerun

MODEL, DATA = model_path("digits_vit"), data_path("digits_test")
SMALL = ("--data", DATA, "--samples", 30, "--chips", 2)


def analyze(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["analyze", command, str(MODEL), *map(str, arguments)])


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Options for digits as image files, whose processor is not beside the model and whose classes have names."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("digits")
    with np.load(DATA) as arrays:
        for i, (pixels, label) in enumerate(zip(arrays["pixel_values"][:30, 0], arrays["labels"], strict=False)):
            (folder / "set" / f"digit{9 - label}").mkdir(parents=True, exist_ok=True)
            picture = image.fromarray(np.uint8((pixels + 1) * 120))
            picture.save(folder / "set" / f"digit{9 - label}" / f"{i:03}.png")
    config = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "rescale_factor": 1 / 120}
    config |= {"image_mean": [1.0], "image_std": [1.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    (folder / "classes.txt").write_text("".join(f"digit{9 - label}\n" for label in range(10)))
    processor = ("--processor", folder, "--classes", folder / "classes.txt")
    return ("--data", folder / "set", *processor, "--samples", 20, "--chips", 2)


def refusal(command: str, *arguments: object) -> str:
    result = analyze(command, *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def test_help_loads_nothing_heavy() -> None:
    heavy = ("numpy", "pandas", "matplotlib", "sqlalchemy", "onnx")
    check = f"import emu.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sensitivity_prints_draws_and_keeps(tmp_path: Path) -> None:
    plot, store = tmp_path / "map.png", tmp_path / "trials.db"
    options = (*SMALL, "--device", "rram", "--only", "layer=0 component=value,ffn_up", "--mode", "both")
    result = analyze("sensitivity", *options, "--plot", plot, "--store", store)
    assert result.exit_code == 0, result.output
    assert "10 trials of 30 samples" in result.stderr
    assert "regained, all but this disturbed" in result.stdout
    assert plot.stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "map.csv")) == 4
    assert store.exists()
    again = analyze("sensitivity", *options, "--store", store, "--json")
    rows = json.loads(again.stdout)["sensitivity"]
    assert [row["effect"] for row in rows] == pytest.approx(list(pd.read_csv(tmp_path / "map.csv")["effect"]))


def test_heads_print_their_reach_whatever_is_on_the_device() -> None:
    result = analyze("heads", *SMALL, "--device", "rram", "--only", "layer=1 component=query")
    assert result.exit_code == 0, result.output
    assert "distance (patches)" in result.stdout
    assert "8 trials" in result.stderr


def test_thresholds_take_ranges_of_values(tmp_path: Path) -> None:
    options = ("--device", "int8_flips", "--vary", "faults.ber=1e-3:1e-1:3log", "--loss", "2%,0.99")
    result = analyze("thresholds", *SMALL, *options, "--json", "--plot", tmp_path / "curve.svg")
    found = json.loads(result.stdout)
    assert [row["value"] for row in found["mean_losses"]] == pytest.approx([1e-3, 1e-2, 1e-1])
    assert [row["limit"] for row in found["thresholds"]] == [0.02, 0.99]
    assert found["thresholds"][1]["where"] == "above"
    assert found["thresholds"][1]["value"] is None
    assert list(pd.read_csv(tmp_path / "curve.csv")) == ["part", "value", "seed", "loss"]


def test_compare_takes_settings_for_the_second(tmp_path: Path) -> None:
    options = ("--device", "rram", "--second-set", "program.sigma=0.9", "--plot", tmp_path / "chips.pdf")
    result = analyze("compare", *SMALL, *options, "--json")
    found = json.loads(result.stdout)
    assert found["first"]["settings"]["program.sigma"] == 0.1
    assert found["second"]["settings"]["program.sigma"] == 0.9
    assert len(found["per_chip"]) == 2
    assert (tmp_path / "chips.pdf").exists()


def test_compare_takes_a_second_model() -> None:
    result = analyze("compare", model_path("digits_deit"), *SMALL, "--device", "rram")
    assert result.exit_code == 0, result.output
    assert "digits_deit.onnx on rram" in result.stdout


def test_protect_prints_arguments_that_evaluate_takes() -> None:
    device = ("--device", "rram", "--set", "program.sigma=0.9", "--only", "layer=0-1 component=value,ffn_up")
    result = analyze("protect", *SMALL, *device, "--target", "loss=2%", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rules = [part for rule in found["map"] for part in ("--map", rule)]
    seeds = ("--first-seed", found["first_seed"])
    arguments = ["evaluate", MODEL, *SMALL, *device, *rules, *seeds, "--json"]
    evaluated = json.loads(CliRunner().invoke(app, [str(each) for each in arguments]).stdout)
    lost = evaluated["clean"]["accuracy"] - evaluated["accuracy"]["mean"]
    assert lost == pytest.approx(found["loss"]["mean"], abs=1e-12)
    assert found["map"]
    assert found["verified"]


NARROW = ("--device", "rram", "--set", "program.sigma=0.9", "--only", "layer=0-1 component=value,ffn_up")
STORING = [
    ("sensitivity", ("--mode", "both", "--map", "component=ffn_up:pcm")),
    ("heads", ("--share", "never")),
    ("thresholds", ("--vary", "program.sigma=0.1,1", "--exclude", "layer=1")),
    (
        "compare",
        ("--second-device", "pcm", "--second-set", "drift.time_s=1d", "--task", "classification:output=logits"),
    ),
    ("protect", ("--target", "loss=2%", "--guard", "pcm", "--cost", "parameters", "--batch-size", 7)),
]


@pytest.mark.parametrize(("command", "more"), STORING)
def test_images_are_prepared_and_every_stored_trial_runs_again(
    command: str, more: tuple[object, ...], digit_files: tuple[object, ...], tmp_path: Path
) -> None:
    result = analyze(command, *digit_files, *NARROW, *more, "--store", tmp_path / "s.db", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    side = found.get("first", found)
    assert side["samples"] == 20
    assert side["metric"] != "accuracy" or side["clean"] > 0.9  # pixels and classes are right
    with Store(tmp_path / "s.db") as store:
        trials = store.frame().drop_duplicates("setup")  # one of each bench
        assert len(trials) >= {"compare": 2, "protect": 2}.get(command, 1)
        assert all(rerun(store, each).equal for each in trials["id"])


@pytest.mark.parametrize(("command", "name"), [("attention", "kl"), ("snr", "snr_db")])
def test_images_give_what_their_arrays_give(
    command: str, name: str, digit_files: tuple[object, ...], tmp_path: Path
) -> None:
    with np.load(DATA) as arrays:
        files = [int(path.stem) for path in sorted(Path(str(digit_files[1])).glob("*/*.png"))]
        np.savez(tmp_path / "all.npz", pixel_values=arrays["pixel_values"][files])
    whole = (*digit_files[2:6], "--samples", len(files), "--chips", 2, "--device", "rram", "--json")
    runs = [
        analyze(command, "--data", digit_files[1], *whole),
        analyze(command, "--data", tmp_path / "all.npz", *whole[4:]),
    ]
    one, other = ([row[name] for row in json.loads(run.stdout)[command]] for run in runs)
    assert one == pytest.approx(other, rel=0.02)  # the order of samples differs, and with it the rounding of sums


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        ("sensitivity", (*SMALL,), "give --device"),
        ("sensitivity", (*SMALL, "--device", "rram", "--plot", "x.bmp"), ".png"),
        ("thresholds", (*SMALL, "--device", "rram", "--vary", "program.sigma=a"), "program.sigma=a"),
        ("thresholds", (*SMALL, "--device", "rram", "--vary", "ber=1,2"), "program.sigma"),
        (
            "thresholds",
            (*SMALL, "--device", "rram", "--vary", "program.sigma=1,2", "--loss", "1%,x"),
            "--loss 'x'",
        ),
        ("compare", (*SMALL, "--device", "rram"), "nothing to compare"),
        ("protect", (*SMALL, "--device", "rram", "--target", "1%"), "loss=1%"),
        ("protect", (*SMALL, "--device", "rram", "--target", "loss=200%"), "--target"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(command: str, arguments: tuple[object, ...], sentence: str) -> None:
    assert sentence in refusal(command, *arguments)


def test_points_have_no_negative_zero_and_shares_end_at_100_percent() -> None:
    row = {"mean": 0.9999, "loss": -1e-6, "low": -1e-6, "high": 1.01}
    assert points(row, "loss") == ["0.00", "0.00 to 101.00"]
    assert points(row, "mean", "accuracy") == ["99.99", "0.00 to 100.00"]
