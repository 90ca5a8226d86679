"""Intervals agree with published tables and with SciPy."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from emu.evaluation.statistics import chip_spread, crossed, holm, sign_test, student_t_quantile, wilson_interval


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


def test_equal_chips_have_no_interval() -> None:
    assert (chip_spread([0.5] * 4).std, chip_spread([0.5] * 4).ci95) == (0.0, None)


Table = np.ndarray
RANDOM = np.random.default_rng(5)


class TestCrossed:
    def test_without_differences_between_chips_it_is_the_t_interval_over_samples(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        values = RANDOM.normal(size=40)
        found = crossed(np.tile(values, (5, 1)))
        expected = stats.ttest_1samp(values, 0)
        assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert found.p == pytest.approx(expected.pvalue)

    def test_without_differences_between_samples_it_is_the_t_interval_over_chips(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        values = RANDOM.normal(size=4)
        for samples in (1, 30):
            found = crossed(np.tile(values[:, None], (1, samples)))
            expected = stats.ttest_1samp(values, 0)
            assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
            assert found.p == pytest.approx(expected.pvalue)

    def test_one_sample_of_many_is_never_significant_however_many_chips_lose_it(self) -> None:
        lost = np.zeros((20, 150))
        lost[:, 3] = 1
        assert crossed(lost, -1, 1).p == 1 and crossed(lost, -1, 1).low < 0

    def test_of_one_chip_it_is_at_least_mcnemars_test(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        lost = np.zeros((1, 100))
        lost[0, :9], lost[0, 9] = 1, -1
        assert crossed(lost, -1, 1).p == pytest.approx(stats.binomtest(1, 10).pvalue) == sign_test(lost[0])

    def test_intervals_stay_within_their_range(self) -> None:
        nearly = np.ones((3, 20))
        nearly[0, 0] = 0
        share = crossed(nearly, 0, 1)
        assert 0 < share.low < share.mean < share.high < 1
        assert crossed(np.ones((3, 20)), 0, 1).low == pytest.approx(wilson_interval(20, 20)[0])
        assert crossed(RANDOM.exponential(size=(3, 4)), 0).low > 0
        assert crossed(2 * nearly - 1, -1, 1).high <= 1

    def test_nothing_that_varies_has_no_interval(self) -> None:
        for values in (np.zeros((4, 9)), np.full((4, 1), 0.2), np.zeros((1, 1))):
            found = crossed(values)
            assert math.isnan(found.low) and math.isnan(found.high) and found.p == 1

    def test_samples_without_a_value_are_left_out(self) -> None:
        values = RANDOM.normal(size=(3, 10))
        values[1, 4] = math.nan
        assert crossed(values) == crossed(np.delete(values, 4, axis=1))


def test_holm_has_the_values_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def study(chips: int, samples: int = 300) -> tuple[Table, Table]:
    """A measure of clean samples `[samples]` and of chips `[chips, samples]`: what samples, chips and both add."""
    of_samples = RANDOM.normal(0, 1, samples)
    of_chips = RANDOM.normal(0, 0.15, (chips, 1))
    return of_samples, of_samples + of_chips + RANDOM.normal(0, 0.5, (chips, samples))


def accuracy(chips: int) -> Table:
    return np.asarray(study(chips)[1] > -1.2)


def loss(chips: int) -> Table:
    clean, disturbed = study(chips)
    return (clean > -1.2).astype(float) - (disturbed > -0.8)


def divergence(chips: int) -> Table:
    return np.asarray(np.exp(study(chips)[1] - 3))


def below(value: float, std: float) -> float:
    return 0.5 * (1 + math.erf(value / std / math.sqrt(2)))


ALL = math.sqrt(1 + 0.15**2 + 0.5**2)
TRUTH: dict[Callable[[int], Table], tuple[float, tuple[float, float]]] = {
    accuracy: (below(1.2, ALL), (0, 1)),
    loss: (below(1.2, 1) - below(0.8, ALL), (-1, 1)),
    divergence: (math.exp(-3 + ALL**2 / 2), (0, math.inf)),
}


@pytest.mark.slow
@pytest.mark.parametrize("chips", [3, 5, 10])
@pytest.mark.parametrize("draw", TRUTH)
def test_intervals_hold_the_truth_in_95_of_100_studies(draw: Callable[[int], Table], chips: int) -> None:
    truth, bounds = TRUTH[draw]
    found = [crossed(draw(chips), *bounds) for _ in range(4000)]
    coverage = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.93 <= coverage <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("chips", [3, 5, 10])
def test_a_study_of_parts_that_cost_nothing_marks_none_in_95_of_100(chips: int) -> None:
    """36 parts that change answers to and fro, some on every chip alike and some on each for itself."""
    marked, studies = 0, 200
    for _ in range(studies):
        p_values = []
        for _ in range(36):
            alike, own = RANDOM.random((1, 150)) < 0.03, RANDOM.random((chips, 150)) < 0.03
            changed = np.where(own, RANDOM.choice([-1, 1], (chips, 150)), alike * RANDOM.choice([-1, 1], (1, 150)))
            p_values.append(crossed(changed, -1, 1).p)
        marked += min(holm(p_values)) < 0.05
    assert marked <= 0.05 * studies
