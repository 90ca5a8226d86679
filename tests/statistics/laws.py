"""Does a sample follow a law? Limits are set so wide that a right sample fails once in about 10 000 cases."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

ENOUGH = 40_000
"""With so many values a standard deviation that is wrong by 2 % lies five standard errors off."""


def assert_normal(sample: ArrayLike, mean: float, deviation: float) -> None:
    """Check that a sample is normal with that mean and standard deviation."""
    assert_follows(sample, stats.norm(mean, deviation))


def assert_follows(sample: ArrayLike, law: stats.rv_continuous) -> None:
    """Check mean, standard deviation and shape of a sample against a continuous law."""
    values = np.asarray(sample, np.float64).ravel()
    n = len(values)
    assert n >= ENOUGH, "too few values to see a standard deviation that is wrong by 2 %"
    mean, variance, _, kurtosis = (float(moment) for moment in law.stats("mvsk"))
    deviation = np.sqrt(variance)
    assert abs(values.mean() - mean) < 4 * deviation / np.sqrt(n)
    # The variance of a sample variance is variance^2 (kurtosis + 2) / n.
    assert abs(values.std() / deviation - 1) < 2 * np.sqrt((kurtosis + 2) / n)
    assert stats.kstest(values, law.cdf).pvalue > 1e-4


def assert_rate(count: int, trials: int, p: float) -> None:
    """Check a number of independent events against their probability."""
    assert abs(count - trials * p) < 4 * np.sqrt(trials * p * (1 - p)) + 1


def assert_unrelated(a: ArrayLike, b: ArrayLike) -> None:
    """Check that two samples show no correlation."""
    first, second = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(first))
