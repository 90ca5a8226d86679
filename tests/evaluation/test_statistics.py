"""Intervals agree with published tables and with SciPy."""

import math

import pytest

from emu.evaluation.statistics import chip_spread, student_t_quantile, wilson_interval


@pytest.mark.parametrize(("chips", "t"), [(3, 4.303), (10, 2.262), (20, 2.093)])
def test_t_has_the_tables_values(chips: int, t: float) -> None:
    assert student_t_quantile(0.975, chips - 1) == pytest.approx(t, abs=5e-4)


def test_t_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in [*range(1, 60), 99, 100, 999, 1000, 5000]:
        assert student_t_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_wilson_has_the_known_values() -> None:
    assert wilson_interval(800, 1000) == pytest.approx((0.77408, 0.82362), abs=5e-6)
    assert wilson_interval(40000, 50000) == pytest.approx((0.79647, 0.80348), abs=5e-6)


def test_wilson_stays_within_0_and_1_and_is_never_empty() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == 1


def test_wilson_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for correct, total in [(1, 2), (3, 7), (99, 100), (450, 450)]:
        expected = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
        assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_spread_over_chips_is_the_t_interval_with_n_minus_1() -> None:
    spread = chip_spread([0.8, 0.9, 0.85])
    assert spread.mean == pytest.approx(0.85)
    assert spread.std == pytest.approx(0.05)
    margin = 4.302653 * 0.05 / math.sqrt(3)
    assert spread.ci95 == pytest.approx((0.85 - margin, 0.85 + margin), abs=1e-6)


def test_one_chip_has_no_spread() -> None:
    spread = chip_spread([0.8])
    assert (spread.mean, spread.std, spread.ci95) == (0.8, None, None)


def test_equal_chips_have_no_spread() -> None:
    assert chip_spread([0.5] * 4).ci95 == (0.5, 0.5)
