"""Comparisons of two models or devices, paired by chip."""

import numpy as np
import pandas as pd
import pytest

from emu import Bench, Trial
from emu.analysis.compare import compare, draw_comparison, summarize
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation.statistics import chip_spread, crossed


@pytest.fixture(scope="module")
def mild() -> Bench:
    return Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", samples=60)


@pytest.fixture(scope="module")
def strong() -> Bench:
    return Bench(
        model_path("digits_vit"), data_path("digits_test"), device="rram", set={"program.sigma": 0.6}, samples=60
    )


@pytest.fixture(scope="module")
def table(mild: Bench, strong: Bench) -> pd.DataFrame:
    return compare(mild, strong, chips=4, first_seed=2).table


def test_a_model_does_not_differ_from_itself(mild: Bench) -> None:
    table = compare(mild, mild, chips=2).table
    assert (table["difference"] == 0).all()


def test_differences_are_of_the_same_chip(mild: Bench, strong: Bench, table: pd.DataFrame) -> None:
    assert table["seed"].tolist() == [2, 3, 4, 5]
    row = table[table["seed"] == 4].iloc[0]
    assert row["first"] == mild.run(Trial(4)).accuracy
    assert row["second"] == strong.run(Trial(4)).accuracy
    assert row["difference"] == pytest.approx(row["second"] - row["first"])
    assert row["second_lost"] == pytest.approx(strong.clean.accuracy - row["second"])


def test_intervals_are_of_differences_paired_by_chip_and_by_sample(
    mild: Bench, strong: Bench, table: pd.DataFrame
) -> None:
    summary = summarize(table).set_index("what")
    first, second = (
        np.array([bench.run(Trial(seed)).values for seed in range(2, 6)], float) for bench in (mild, strong)
    )
    found = crossed(second - first, -1, 1)
    row = summary.loc["difference"]
    assert (row["mean"], row["low"], row["high"], row["p"]) == pytest.approx(
        (found.mean, found.low, found.high, found.p)
    )
    assert found.mean < 0 and found.p < 0.01
    # One clean accuracy, so what is lost differs by as much, the other way round.
    lost = summary.loc["difference_lost"]
    assert (lost["mean"], lost["low"], lost["high"]) == pytest.approx((-found.mean, -found.high, -found.low))


def test_other_samples_are_paired_by_chip_alone(mild: Bench, strong: Bench) -> None:
    fewer = strong.with_data(data_path("digits_test"), samples=50)
    table = compare(mild, fewer, chips=3).table
    row, spread = summarize(table).set_index("what").loc["difference"], chip_spread(table["difference"].tolist())
    assert (row["low"], row["high"]) == pytest.approx(spread.ci95)


def test_more_variation_loses_more(table: pd.DataFrame) -> None:
    assert summarize(table).set_index("what").loc["second_lost", "mean"] > 0.05


def test_wrong_seeds_are_refused(mild: Bench) -> None:
    with pytest.raises(InputError, match="at least one chip"):
        compare(mild, mild, chips=0)


def test_the_figure_has_a_point_for_each_chip(table: pd.DataFrame) -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    draw_comparison(axes, table, "mild", "strong")
    _, chips, mean = axes.get_lines()
    assert list(chips.get_xdata()) == pytest.approx(list(100 * table["first"]))
    assert mean.get_ydata()[0] == pytest.approx(100 * table["second"].mean())
    assert axes.get_ylabel() == "accuracy of strong (%)"
