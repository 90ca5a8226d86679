"""Thresholds: the value of a setting at which so much accuracy is lost."""

import numpy as np
import pandas as pd
import pytest

from emu import Bench, Trial
from emu.analysis.thresholds import crossing, crossings, draw_thresholds, threshold_curves
from emu.demo import data_path, model_path
from emu.errors import InputError

RATES, POINTS = [1e-7, 1e-6, 1e-5, 1e-4], [0.1, 0.6, 3.4, 40]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(model_path("digits_vit"), data_path("digits_test"), device="int8_flips", samples=40)


@pytest.mark.parametrize(("limit", "rate"), [(1, 1.389e-6), (5, 1.106e-5), (10, 1.515e-5)])
def test_crossings_are_linear_in_the_logarithm_of_the_value(limit: float, rate: float) -> None:
    assert crossing(RATES, POINTS, limit) == pytest.approx(rate, rel=5e-4)


def test_a_limit_that_the_loss_just_reaches_is_crossed_there() -> None:
    just = 0.98 - 0.90  # a little less than 0.08
    assert just < 0.08
    assert crossing([1e-3, 1e-2], [0.0, just], 0.08) == pytest.approx(1e-2)
    over = 0.98 - 0.96  # a little more than 0.02
    assert over > 0.02
    assert crossing([1e-3, 1e-2], [over, 0.5], 0.02) == 1e-3


def test_crossings_outside_the_values_are_zero_and_infinity() -> None:
    assert crossing(RATES, POINTS, 0.05) == 0
    assert crossing(RATES, POINTS, 41) == np.inf
    assert crossing(RATES, POINTS, 0.1) == 1e-7
    assert crossing(RATES, POINTS, 40) == pytest.approx(1e-4)


def test_the_first_of_several_crossings_counts() -> None:
    assert 1 < crossing([1, 10, 100, 1000], [0, 2, 0, 2], 1) < 10


def made_up(chips: int) -> pd.DataFrame:
    draw = np.random.default_rng(5)
    rows = [
        {"part": "model", "value": rate, "seed": seed, "loss": loss / 100 * draw.uniform(0.5, 1.5)}
        for rate, loss in zip(RATES, POINTS, strict=True)
        for seed in range(chips)
    ]
    return pd.DataFrame(rows)


def test_bootstrap_intervals_hold_the_value_and_shrink_with_chips() -> None:
    few, many = crossings(made_up(5)), crossings(made_up(80))
    for table in (few, many):
        assert (table["low"] < table["value"]).all()
        assert (table["value"] < table["high"]).all()
        assert table["where"].tolist() == ["within"] * 3
    assert (np.log(many["high"] / many["low"]) < np.log(few["high"] / few["low"])).all()
    assert crossings(made_up(5)).equals(few)
    assert not crossings(made_up(5), seed=1).equals(few)


def test_one_chip_has_no_interval_and_far_limits_say_so() -> None:
    table = crossings(made_up(1), losses=[0.0001, 0.05, 0.99])
    assert table["low"].isna().all()
    assert table["where"].tolist() == ["below", "within", "above"]


def test_curves_are_losses_of_single_trials_at_each_value(bench: Bench) -> None:
    curves = threshold_curves(bench, "faults.ber", [0.05, 0.001], by="component", chips=2, first_seed=3)
    assert len(curves) == 8 * 2 * 2  # of ten components the products of attention store no bits that could flip
    found = curves[(curves["part"] == "ffn_up") & (curves["value"] == 0.05) & (curves["seed"] == 4)]
    trial = Trial(4, only="component=ffn_up", set={"faults.ber": 0.05})
    assert found["loss"].item() == pytest.approx(bench.clean.accuracy - bench.run(trial).accuracy)


def test_by_head_disturbs_one_head_of_one_layer(bench: Bench) -> None:
    curves = threshold_curves(bench, "faults.ber", [0.1, 0.3], by="head", chips=1)
    assert len(curves) == 4 * 4 * 2
    found = curves[(curves["part"] == "layer 0 head 2") & (curves["value"] == 0.3)]
    trial = Trial(0, head=2, only="layer=0", set={"faults.ber": 0.3})
    assert found["loss"].item() == pytest.approx(bench.clean.accuracy - bench.run(trial).accuracy)


@pytest.mark.parametrize(
    ("vary", "values", "sentence"),
    [
        ("program.sigma", [0.1, 0.2], "faults.ber"),
        ("faults.ber", [0.1], "at least two different positive ones"),
        ("faults.ber", [0.1, 0.0], "at least two different positive ones"),
    ],
)
def test_wrong_settings_and_values_are_refused(bench: Bench, vary: str, values: list[float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        threshold_curves(bench, vary, values)


def test_the_figure_has_a_curve_for_each_part_and_the_limits() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    curves = pd.concat([made_up(4), made_up(4).assign(part="layer 0")])
    draw_thresholds(axes, curves, "faults.ber")
    assert axes.get_xlabel() == "faults.ber"
    assert [line.get_label() for line in axes.get_lines()][:2] == ["model", "layer 0"]
    assert [text.get_text() for text in axes.texts] == ["1", "5", "10"]


def test_the_line_crosses_a_limit_where_the_table_says() -> None:
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    losses = np.array(POINTS) / 100
    curves = pd.DataFrame({"part": "model", "value": RATES, "seed": 0, "loss": losses})
    draw_thresholds(axes, curves, "faults.ber")
    line = axes.get_lines()[0]
    drawn = 10 ** np.interp(5, line.get_ydata(), np.log10(line.get_xdata()))
    assert drawn == pytest.approx(crossing(RATES, losses, 0.05), rel=1e-6)
    marked = np.asarray(line.get_xdata())[:: line.get_markevery()]
    assert marked == pytest.approx(RATES)
