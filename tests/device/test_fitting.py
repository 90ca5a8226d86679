"""Readings that were drawn from a device give the device back, and readings of no known law say so."""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from emu.cli import app
from emu.device import Profile, load_profile
from emu.device.fit_plot import plot_fit
from emu.device.fitting import Measurements, fit_device, read_measurements
from emu.errors import InputError
from emu.reference.drift import drifted, exponent
from emu.reference.programming import DeviceArray, programmed

Values = NDArray[np.float64]
RNG = np.random.default_rng(4)


def devices(profile: Profile, shape: tuple[int, ...], read_seed: int = 0) -> DeviceArray:
    """Devices of one chip of the twin."""
    structure: Any = SimpleNamespace(**profile.structure(), array=0)
    controls: Any = SimpleNamespace(numbers=profile.entries(), seed=1, read_seed=read_seed, strength=1.0)
    return DeviceArray(structure, controls, shape[0], shape[1])


def drawn(preset: str, targets_us: Sequence[float], each: int, **settings: str) -> tuple[Profile, Values, Values]:
    """Targets and programmed conductances [targets, devices], microsiemens."""
    profile = load_profile(preset, {name.replace("__", "."): value for name, value in settings.items()})
    g_max = profile.entries()["mapping.g_max_us"]
    target = np.repeat(np.asarray(targets_us)[:, None] / g_max, each, axis=1)
    return profile, target * g_max, programmed(target, devices(profile, target.shape)) * g_max


def at_once(target: Values, measured: Values) -> Measurements:
    return Measurements(target.ravel(), measured.ravel(), np.zeros(target.size))


def followed(preset: str, targets_us: Sequence[float], each: int, times: Sequence[str]) -> tuple[Profile, Measurements]:
    """Devices that are read after programming and at some times."""
    profile, target, measured = drawn(preset, targets_us, each)
    g_max = profile.entries()["mapping.g_max_us"]
    rows = [(target, measured, np.zeros_like(target))]
    for number, time in enumerate(times, start=1):
        later = load_profile(preset, {"drift.time_s": time})
        g = drifted(measured / g_max, target / g_max, devices(later, target.shape, read_seed=number))
        rows.append((target, g * g_max, np.full_like(target, later.entries()["drift.time_s"])))
    columns = [np.concatenate([row[index].ravel() for row in rows]) for index in range(3)]
    return profile, Measurements(*columns, device=np.tile(np.arange(target.size), len(rows)))


def off(found: object, true: object) -> Values:
    """By how much numbers are off, relatively."""
    return np.asarray(np.abs(np.asarray(found, float) / np.asarray(true, float) - 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "targets_us", "each", "degree"),
    [
        ("pcm", np.linspace(0, 25, 26), 40_000, 2),
        ("rram_milo", np.linspace(50, 225, 26), 40_000, 1),
        ("rram_cmo", [9.0] * 4 + [20, 50] + [88.199997] * 2, 300_000, 1),
    ],
)
def test_a_preset_of_one_time_comes_back_within_2_percent(
    preset: str, targets_us: Sequence[float], each: int, degree: int
) -> None:
    profile, target, measured = drawn(preset, targets_us, each)
    found = fit_device(at_once(target, measured))
    program: Any = found.profile.program
    assert found.candidates[0].law == f"polynomial of degree {degree}" and not found.notes
    assert program.clip == profile.program.clip
    for power in range(degree + 1):
        assert off(getattr(program, f"c{power}"), getattr(profile.program, f"c{power}")) < 0.02
    assert all(check.passed for check in found.checks)


@pytest.mark.slow
def test_a_preset_of_several_times_comes_back_within_2_percent() -> None:
    rows = []
    for time in ("1s", "1d", "2d"):
        profile, target, measured = drawn("rram_wan", np.linspace(0, 40, 21), 250_000, program__time_s=time)
        rows.append((target.ravel(), measured.ravel(), np.full(target.size, profile.program.time_s)))
    found = fit_device(Measurements(*map(np.concatenate, zip(*rows, strict=True))), law="polynomial")
    assert found.profile.program.fit_time_s == profile.program.fit_time_s
    for power in range(5):
        assert (off(getattr(found.profile.program, f"c{power}"), getattr(profile.program, f"c{power}")) < 0.02).all()


@pytest.mark.slow
def test_drift_by_the_logarithm_of_time_comes_back_within_2_percent() -> None:
    profile, readings = followed("rram_cmo", np.linspace(9, 88.199997, 9), 60_000, ["1s", "1h", "1d"])
    drift = fit_device(readings, t_read_s=1e-6).profile.drift
    assert drift.model == "log_time"
    for name in ("shift_us", "spread_us", "spread_t0_us", "read_us"):
        assert off(getattr(drift, name), getattr(profile.drift, name)) < 0.02, name


def test_drift_by_a_power_of_time_comes_back() -> None:
    profile, readings = followed("pcm", np.linspace(1, 25, 9), 4000, ["60s", "1h", "1d", "30d"])
    drift: Any = fit_device(readings).profile.drift
    assert drift.model == "power_law_table"
    law: Any = SimpleNamespace(drift="power_law_fit")
    mean, spread = exponent(np.array(drift.target_us) / 25, law, profile.entries())
    assert (off(drift.mean_nu, mean) < 0.02).all()
    assert (off(drift.std_nu, spread) < 0.15).all()  # next to reading noise, which is as large at the first time
    assert off(drift.read["q"], 0.0088) < 0.05 and off(drift.read["power"], 0.65) < 0.05


def test_a_few_hundred_readings_find_the_law_within_their_error() -> None:
    target = np.repeat(np.linspace(1, 25, 25), 40)
    found = fit_device(at_once(target, target * np.exp(0.1 * RNG.standard_normal(target.size))))
    assert found.profile.program.model == "lognormal_g"
    assert off(found.profile.program.sigma, 0.1) < 0.1
    proportional = fit_device(at_once(target, target * (1 + 0.3 * RNG.standard_normal(target.size)).clip(0)))
    assert proportional.profile.program.model == "normal_proportional"
    assert off(proportional.profile.program.sigma, 0.3) < 0.1


def test_targets_may_all_be_different() -> None:
    target = RNG.uniform(1, 40, 4000)
    found = fit_device(at_once(target, target + (0.5 + 0.05 * target) * RNG.standard_normal(4000)), clip="none")
    assert found.profile.program.model == "polynomial"
    std = found.std_us[0.0][2]
    assert (off(std, 0.5 + 0.05 * found.std_us[0.0][0]) < 0.1).all()


def test_readings_at_zero_do_not_bias_the_spread() -> None:
    target = np.repeat(np.linspace(0, 4, 9), 4000)
    found = fit_device(at_once(target, (target + RNG.standard_normal(target.size)).clip(0)))
    assert found.profile.program.clip == "zero"
    assert (off(found.std_us[0.0][2], 1) < 0.03).all()


def test_what_follows_no_law_becomes_a_table_and_says_so() -> None:
    target = np.repeat(np.linspace(2, 20, 10), 400)
    found = fit_device(at_once(target, 0.9 * target + 0.2 * RNG.standard_normal(target.size)))
    assert found.profile.program.model == "table"
    assert "does not fit" in found.notes[0]
    assert (off(found.profile.program.mean_us[0], 0.9 * np.unique(target)) < 0.02).all()
    assert found.checks[0].passed


def test_a_law_that_does_not_hold_fails_the_check_on_held_out_readings() -> None:
    target = np.repeat(np.linspace(2, 20, 10), 400)
    found = fit_device(at_once(target, 0.5 * target + 0.1 * RNG.standard_normal(target.size)), law="polynomial")
    assert not found.checks[0].passed


def written(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("target", "measured")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        (("target", "value"), [(1, 1)], "has no column 'measured'"),
        (("target", "measured"), [(1, "x")], "line 2: measured is 'x' and must be a finite number"),
        (("target", "measured", "time"), [(1, 1, "later")], "line 2: time is 'later'"),
        (("target", "measured"), [(1, 1, 1)], "line 2: 3 cells, expected 2"),
        (("target", "measured"), [(1, 1)] * 5, "There are 5 readings"),
        (("target", "measured"), [(1, 1), (1, 2)] * 50, "there is one target"),
        (("target", "measured"), [(1, 1), (2, 2)] * 50, "Every reading equals its target"),
        (("target", "measured"), [(-1, 1), (1, 1)] * 50, "none may be negative"),
    ],
)
def test_wrong_tables_are_refused_in_a_sentence(
    header: Sequence[str], rows: Sequence[Sequence[object]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        fit_device(read_measurements(written(tmp_path / "raw.csv", rows, header)))


def test_a_device_that_lacks_the_first_time_is_refused() -> None:
    target = np.tile(np.linspace(1, 10, 40), 2)
    readings = Measurements(target, target + RNG.standard_normal(80), np.repeat([0.0, 60.0], 40), np.arange(80))
    with pytest.raises(InputError, match="not read at 0 s, the first time"):
        fit_device(readings)


def test_the_command_writes_a_device_and_a_figure(tmp_path: Path) -> None:
    _, readings = followed("pcm", np.linspace(1, 25, 9), 60, ["1h", "1d"])
    columns = (readings.device, readings.target_us, readings.measured_us, readings.time_s)
    raw = written(tmp_path / "raw.csv", list(zip(*columns, strict=True)), ("device", "target", "measured", "time"))
    command = [sys.executable, "-m", "emu", "fit", str(raw), "-o", "mine.toml", "--plot", "fit.svg"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "polynomial of degree" in said and "held out" in said
    device = load_profile(tmp_path / "mine.toml")
    assert (device.program.model, device.drift.model) == ("polynomial", "power_law_table")
    figure = (tmp_path / "fit.svg").read_text()
    assert "Programming" in figure and "power_law_table" in figure
    found = json.loads(CliRunner().invoke(app, ["fit", str(raw), "-o", str(tmp_path / "other.toml"), "--json"]).stdout)
    assert found["checks"][0]["rows"] > 0 and found["candidates"][0]["law"].startswith("polynomial")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "mine.txt"], "end its name in .toml"),
        (["-o", "mine.toml", "--law", "linear"], "There is no law 'linear'"),
        (["-o", "mine.toml", "--clip", "top"], "choose zero, range or none"),
        (["-o", "mine.toml", "--t0", "soon"], "--t0 is 'soon'"),
        (["-o", "mine.toml", "--g-max", "1"], "targets reach 2 microsiemens"),
        (["-o", "mine.toml", "--plot", "fit.bmp"], "cannot be a plot"),
    ],
)
def test_wrong_options_leave_no_file(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = written(tmp_path / "raw.csv", [(1 + i % 2, 1 + i % 2 + 0.1 * (-1) ** (i // 2)) for i in range(60)])
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["fit", str(raw), *arguments])
    assert ended.exit_code == 2 and sentence in " ".join(ended.stderr.split())
    assert not [path for path in tmp_path.iterdir() if path != raw]


def test_the_figure_is_of_the_kind_that_its_name_says(tmp_path: Path) -> None:
    target = np.repeat(np.linspace(1, 25, 9), 30)
    found = fit_device(at_once(target, target + RNG.standard_normal(target.size)))
    plot_fit(found, tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
