"""Intervals for accuracies: over chips (Student's t) and over the samples of a test set (Wilson)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev


@dataclass(frozen=True)
class Spread:
    """Mean and spread over chips.

    `std` is the sample standard deviation (n - 1). `ci95` is the 95 % t interval of the mean over all chips that could
    be made; it says nothing about the choice of test samples. Both are None for a single chip.
    """

    mean: float
    std: float | None
    ci95: tuple[float, float] | None


def chip_spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and 95 % t interval of one value per chip; at least one value."""
    mean = fmean(values)
    if len(values) < 2:
        return Spread(mean, None, None)
    std = stdev(values)
    margin = student_t_quantile(0.975, len(values) - 1) * std / math.sqrt(len(values))
    return Spread(mean, std, (mean - margin, mean + margin))


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of an accuracy of `correct` out of `total` independent samples (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, n = correct / total, total
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if correct == 0 else max(0.0, center - margin)
    high = 1.0 if correct == total else min(1.0, center + margin)
    return low, high


def student_t_quantile(probability: float, degrees: int) -> float:
    """The value below which Student's t with `degrees` degrees of freedom lies with this probability, 0.5 to 1."""
    inside = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _within(middle, degrees) < inside else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(theta: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(theta)): the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    cos, sin = math.cos(theta), math.sin(theta)
    odd = degrees % 2
    term, total = (cos if odd else 1.0), 0.0
    for j in range(1, degrees // 2 + 1):
        total += term
        term *= cos * cos * (2 * j / (2 * j + 1) if odd else (2 * j - 1) / (2 * j))
    return 2 / math.pi * (theta + sin * total) if odd else sin * total
