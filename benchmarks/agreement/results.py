"""What a comparison found, in two kinds: values that should be equal, and samples that should follow one law."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Result:
    """One comparison."""

    peer: str
    what: str
    kind: str
    """`values` or `samples`."""
    compared: int
    """Values, or draws for each target."""
    largest_difference: float
    """`values`: largest |emu - peer| over the largest |peer|, ties aside; `samples`: of deviations, relative."""
    expected_error: float
    """`samples`: standard error of that difference, relative, from the number of draws alone."""
    ties: int
    """`values`: how many differ by steps of a converter because they stand between two codes."""
    mean_errors: float
    """`samples`: largest difference of the means, in standard errors of that difference."""
    deviation_errors: float
    """`samples`: largest difference of the standard deviations, in standard errors of that difference."""
    agrees: bool


def values(peer: str, what: str, ours: ArrayLike, theirs: ArrayLike, step: float = 0.0, limit: float = 1e-5) -> Result:
    """Compare values. Those that differ by about one `step` or more are counted as ties: at most 1 % may be."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    difference = np.abs(a - b)
    tied = difference > 0.5 * step if step > 0 else np.zeros(a.shape, np.bool_)
    largest = float(np.max(difference[~tied], initial=0) / np.abs(b).max())
    ties = int(np.count_nonzero(tied))
    return Result(peer, what, "values", a.size, largest, 0.0, ties, 0.0, 0.0, largest < limit and ties <= 0.01 * a.size)


def samples(peer: str, what: str, ours: ArrayLike, theirs: ArrayLike, limit: float = 4.5) -> Result:
    """Compare two sets of draws `[targets, draws]` by mean and standard deviation of each target."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    mean_errors, deviation_errors, relative, expected = 0.0, 0.0, 0.0, 0.0
    for x, y in zip(a, b, strict=True):
        mean_errors = max(mean_errors, float(abs(x.mean() - y.mean()) / np.hypot(_mean_error(x), _mean_error(y))))
        error = float(np.hypot(_deviation_error(x), _deviation_error(y)))
        deviation_errors = max(deviation_errors, float(abs(x.std() - y.std())) / error)
        relative, expected = max((relative, expected), (float(abs(x.std() / y.std() - 1)), error / float(y.std())))
    agrees = max(mean_errors, deviation_errors) < limit
    return Result(peer, what, "samples", a.shape[1], relative, expected, 0, mean_errors, deviation_errors, agrees)


def _mean_error(x: np.ndarray) -> float:
    return float(x.std() / np.sqrt(x.size))


def _deviation_error(x: np.ndarray) -> float:
    """Standard error of a standard deviation, from the sample's own fourth moment."""
    centered = x - x.mean()
    variance = np.mean(centered**2)
    return float(np.sqrt((np.mean(centered**4) - variance**2) / x.size) / (2 * np.sqrt(variance)))
