"""Intervals and tests over chips and over the samples of a test set, and both at once.

A study has two sources of chance: which chips were made and which samples were tested. `crossed` takes both into
account; `chip_spread` is over chips with the samples fixed, `wilson_interval` over samples of one model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEW_CHIPS = 5
"""Fewer chips than this make wide intervals of Student's t, and are said to be few."""

_ROUNDING = 1e-24  # of a variance of shares


@dataclass(frozen=True)
class Spread:
    """Mean and spread over chips.

    `std` is the sample standard deviation (n - 1). `ci95` is the 95 % t interval of the mean over all chips that could
    be made; it says nothing about the choice of test samples. Both are None for a single chip, and there is no interval
    where all chips are equal: their spread was not seen.
    """

    mean: float
    std: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Estimate:
    """A mean over chips and samples.

    Args:
        mean: over both.
        low: lower end of the 95 % interval for other chips and other samples; NaN where nothing varies.
        high: upper end.
        p: probability of a mean this far from 0, or farther, if it is 0 (two-sided); 1 where nothing varies about 0.
    """

    mean: float
    low: float
    high: float
    p: float


def chip_spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and 95 % t interval of one value per chip; at least one value."""
    mean = fmean(values)
    if len(values) < 2:
        return Spread(mean, None, None)
    std = stdev(values)
    if min(values) == max(values):
        return Spread(mean, 0.0, None)
    margin = student_t_quantile(0.975, len(values) - 1) * std / math.sqrt(len(values))
    return Spread(mean, std, (mean - margin, mean + margin))


def crossed(values: ArrayLike, low: float = -math.inf, high: float = math.inf) -> Estimate:
    """The mean of values that belong to a chip and to a sample, with both drawn at random and crossed.

    The variance of the mean is that of the means of N samples, B / N, and what chips add to it, A / C - E / (C N): A
    the variance of the means of C chips, E the mean square of what neither explains, as for a layout of two random
    factors (Searle, Casella and McCulloch 1992). Each part has its own quantile of Student's t, with N - 1 and C - 1
    degrees of freedom, and the half width is the root of the sum of squares (Graybill and Wang 1980). A bootstrap over
    both (Owen 2007) needs more chips than studies have. Of a single chip, and of chips that are all equal, the interval
    is over samples alone.

    With bounds 0 and 1 the interval is that of a share, Wilson's (1927) with the size of a simple sample of the same
    variance (Dean and Pagano 2015); with a lower bound of 0 it is made of logarithms; otherwise it is cut to the
    bounds. Where values are only -1, 0 and 1, as losses of right answers are, `p` is at least that of the exact sign
    test of samples (McNemar 1947), since few samples are not normal.

    Args:
        values: a loss or a metric, `[chips, samples]`; samples with NaN are left out.
        low: the smallest number that the mean can be.
        high: the largest.
    """
    table = np.asarray(values, np.float64)
    table = table[:, ~np.isnan(table).any(axis=0)]
    samples = table.shape[1]
    if not samples:
        return Estimate(math.nan, math.nan, math.nan, 1.0)
    mean, parts = float(table.mean()), _variances(table)
    half = _half_width(parts, 0.025)
    if half == 0:
        if low == 0 and high == 1:  # all right or all wrong: as many samples as there are tell so
            return Estimate(mean, *wilson_interval(round(mean * samples), samples), 1.0)
        return Estimate(mean, math.nan, math.nan, 1.0 if mean == 0 or samples == 1 else 0.0)
    if low == 0 and high == 1:
        ends = _wilson(mean, mean * (1 - mean) / half**2, 1.0)
    elif low == 0 and mean > 0:
        factor = math.exp(half / mean)
        ends = mean / factor, mean * factor
    else:
        ends = max(low, mean - half), min(high, mean + half)
    p = _p_value(abs(mean), parts)
    if np.isin(table, (-1, 0, 1)).all():
        p = max(p, sign_test(table.sum(axis=0)))
    return Estimate(mean, *ends, p)


def sign_test(differences: ArrayLike) -> float:
    """The two-sided exact p-value of as many positive as negative differences; of right and wrong it is McNemar's."""
    from scipy.special import bdtr

    signs = np.sign(np.asarray(differences))
    below, count = min((signs > 0).sum(), (signs < 0).sum()), (signs != 0).sum()
    return 1.0 if count == 0 else min(1.0, 2 * float(bdtr(below, count, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): those below 0.05 hold together in 95 of 100 studies."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(order))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = largest
    return [float(p) for p in corrected]


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of an accuracy of `correct` out of `total` independent samples (Wilson 1927)."""
    return _wilson(correct / total, total, NormalDist().inv_cdf(0.5 + confidence / 2))


def student_t_quantile(probability: float, degrees: float) -> float:
    """The value below which Student's t with `degrees` degrees of freedom lies with this probability, 0 to 1."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if p == 0 else max(0.0, center - margin)), (1.0 if p == 1 else min(1.0, center + margin))


def _variances(table: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Parts of the variance of the mean of `[chips, samples]`, with the degrees of freedom of each."""
    chips, samples = table.shape
    of_chips, of_samples = table.mean(axis=1), table.mean(axis=0)
    parts = [(float(of_samples.var(ddof=1)) / samples, samples - 1)] if samples > 1 else []
    if chips > 1:
        added = float(of_chips.var(ddof=1)) / chips
        if samples > 1:
            rest = table - of_chips[:, None] - of_samples + table.mean()
            added -= float(np.square(rest).sum()) / ((chips - 1) * (samples - 1)) / (chips * samples)
        parts.append((max(added, 0.0), chips - 1))
    return [(part if part > _ROUNDING else 0.0, degrees) for part, degrees in parts]


def _half_width(parts: Sequence[tuple[float, int]], tail: float) -> float:
    return math.sqrt(sum(part * student_t_quantile(tail, degrees) ** 2 for part, degrees in parts))


def _p_value(distance: float, parts: Sequence[tuple[float, int]]) -> float:
    """The two-sided probability at which the interval just reaches so far."""
    low, high = -300.0, math.log(0.5)  # of the logarithm of one tail
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _half_width(parts, math.exp(middle)) > distance else (low, middle)
    return min(1.0, 2 * math.exp(high))
