"""The Pareto front holds what no other design beats in accuracy and cost."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from emu.analysis.pareto import draw_pareto, on_front, pareto
from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.sweep import Plan, run_plan

MODEL, DATA = model_path("digits_vit"), data_path("digits_test")


def test_a_point_is_on_the_front_if_no_other_is_as_good_and_as_cheap() -> None:
    accuracy = pd.Series([0.9, 0.8, 0.95, 0.9, 0.7])
    energy = pd.Series([1.0, 1.0, 3.0, 2.0, 0.5])
    assert on_front(accuracy, energy) == [True, False, True, False, True]
    assert on_front(-accuracy, energy, "loss") == [True, False, True, False, True]


def test_equal_points_are_both_on_the_front() -> None:
    assert on_front(pd.Series([0.9, 0.9]), pd.Series([1.0, 1.0])) == [True, True]


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    vary = {"device": "rram_neurosim,isaac,rram", "mapping.tile_rows": "32,128"}
    return run_plan(Plan(model=MODEL, data=DATA, vary=vary, cost=True, seeds=2, samples=20))


def test_points_without_constants_are_listed_and_on_no_front(trials: pd.DataFrame) -> None:
    found = pareto(trials)
    assert list(found.table)[:3] == ["device", "mapping.tile_rows", "chips"] and len(found.table) == 6
    assert found.table["front"].any() and not found.table[found.table["device"] == "rram"]["front"].any()
    assert "2 points have no energy" in found.sections[0].below[0]
    best = found.table.loc[found.table["accuracy"].where(found.table["energy_uj"].notna()).idxmax()]
    cheapest = found.table.loc[found.table["energy_uj"].idxmin()]
    assert found.table[found.table["front"]]["accuracy"].max() == best["accuracy"]
    assert found.table[found.table["front"]]["energy_uj"].min() == cheapest["energy_uj"]
    assert f"{cheapest['energy_uj']:.4g} uj" in found.sentence


def test_axes_that_no_cost_follows_are_named(trials: pd.DataFrame) -> None:
    more_bits = trials.assign(**{"adc.bits": 4})
    both = pd.concat([more_bits, trials.assign(**{"adc.bits": 8})], ignore_index=True)
    both.attrs = {**trials.attrs, "roles": {**trials.attrs["roles"], "adc.bits": "axis"}}
    assert "The energy does not follow adc.bits: " in pareto(both).sections[0].below[-1]
    assert not any("does not follow" in line for line in pareto(trials).sections[0].below)


def test_the_figure_has_a_color_for_each_device_and_the_front(trials: pd.DataFrame) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    axes = figure.Figure().subplots()
    draw_pareto(axes, pareto(trials, "area").table, against="area")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "Pareto front" in labels and {"isaac", "rram_neurosim"} <= set(labels) and "rram" not in labels
    assert axes.get_xscale() == "log" and "area" in axes.get_xlabel()


def test_each_data_set_has_a_front_of_its_own(trials: pd.DataFrame) -> None:
    worse = trials.assign(data="other.npz", accuracy=trials["accuracy"] / 2)
    both = pd.concat([trials.assign(data="one.npz"), worse], ignore_index=True)
    both.attrs = {**trials.attrs, "roles": {**trials.attrs["roles"], "data": "axis"}}
    table = pareto(both).table
    assert set(table[table["front"]]["data"]) == {"one.npz", "other.npz"}


def test_trials_without_costs_are_refused(trials: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="--costs-of"):
        pareto(trials.assign(energy_uj=np.nan))


def test_the_command_sweeps_draws_and_runs_nothing_twice(tmp_path: Path) -> None:
    options = ["--data", DATA, "--device", "rram", "--costs-of", "isaac", "--vary", "mapping.tile_rows=32,64"]
    options += ["--seeds", 1, "--samples", 8, "--store", tmp_path / "s.db"]
    command = ["analyze", "pareto", MODEL, *options, "--plot", tmp_path / "front.svg"]
    first = CliRunner().invoke(app, [str(each) for each in command])
    assert first.exit_code == 0, first.output
    assert "on the front" in first.stdout or "beats all others" in first.stdout
    assert len(pd.read_csv(tmp_path / "front.csv")) == 2 and (tmp_path / "front.svg").stat().st_size > 5000
    again = CliRunner().invoke(app, [str(each) for each in [*command[:-2], "--json"]])
    assert "holds 1 of the trials of mapping.tile_rows 32 already" in again.stderr
    found = json.loads(again.stdout)
    assert found["against"] == "energy" and len(found["points"]) == 2 and found["front"]
