"""Metrics as plain functions of arrays; NumPy alone, except where a function says otherwise."""

import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.evaluation.statistics import Spread, chip_spread
from emu.libraries import library

Array = NDArray[Any]

SHARES = frozenset({"accuracy", "top5_accuracy", "ece", "agreement", "f1", "exact_match"})
"""Metrics that are shares from 0 to 1, which are printed in per cent."""

_ROWS_AT_ONCE = 4096  # bounds the temporary arrays of large sets

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "ece", "relative_error"})


def show_metric(name: str, value: float) -> str:
    """A metric as it is printed: shares in per cent, ratios in dB, anything else as a number."""
    if name in SHARES:
        return f"{fixed(100 * value, 2)}%"
    return f"{fixed(value, 2)} dB" if name.endswith("_db") else f"{value:.4g}"


def show_interval(name: str, low: float, high: float) -> str:
    """An interval of a metric as it is printed, within its bounds."""
    return f"{show_metric(name, within_bounds(name, low))} to {show_metric(name, within_bounds(name, high))}"


def within_bounds(name: str, end: float) -> float:
    """The end of an interval, cut to 0 to 1 for a share: a t interval knows no bounds."""
    return min(max(end, 0.0), 1.0) if name in SHARES else end


def metric_spread(name: str, values: Sequence[float]) -> Spread:
    """Mean, standard deviation and 95 % t interval of a metric, from its value on each chip; at least one value.

    The interval of a share is cut to 0 to 1. Where a value is not finite, the mean stands alone.
    """
    if not all(map(math.isfinite, values)):
        return Spread(sum(values) / len(values), None, None)
    spread = chip_spread(values)
    if spread.ci95 is None:
        return spread
    low, high = (within_bounds(name, end) for end in spread.ci95)
    return Spread(spread.mean, spread.std, (low, high))


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals, and no minus before a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def expected_calibration_error(confidences: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """How far confidence is from accuracy: the mean of |accuracy - confidence| over bins, weighted by samples.

    Bins are (low, high], equally wide from 0 to 1 (Naeini et al. 2015, Guo et al. 2017); a confidence of 0 is in the
    first.

    Args:
        confidences: probability of each prediction, 0 to 1, `[samples]`.
        correct: whether it is right, `[samples]`.
        bins: number of bins.
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    if not len(confidences):
        return math.nan
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    gaps = np.bincount(index, correct - confidences, bins)
    return float(np.abs(gaps).sum() / len(confidences))


def mean_corruption_error(errors: ArrayLike, baseline: ArrayLike) -> float:
    """Mean over corruptions of the error relative to that of a baseline: mCE (Hendrycks and Dietterich 2019).

    Args:
        errors: error rates of the model, `[corruptions, severities]`.
        baseline: error rates of the baseline model, of the same shape.
    """
    ours, theirs = np.asarray(errors, np.float64), np.asarray(baseline, np.float64)
    return float((ours.sum(axis=1) / theirs.sum(axis=1)).mean())


def output_snr_db(clean: Array, outputs: Array) -> float:
    """10 log10 of the power of the clean outputs over the power of the difference to them, in dB.

    Infinite for equal outputs; NaN for none.

    Args:
        clean: outputs of the undisturbed model, `[rows, ...]`.
        outputs: outputs of the disturbed one, of the same shape.
    """
    signal = noise = 0.0
    for rows in _chunks(len(clean)):
        reference = clean[rows].astype(np.float64)
        signal += float(np.square(reference).sum())
        noise += float(np.square(outputs[rows] - reference).sum())
    if not clean.size:
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def relative_errors(clean: Array, outputs: Array) -> NDArray[np.float64]:
    """Euclidean norm of each row's difference to the clean one, over the norm of the clean one, `[rows]`.

    0 where both are equal, infinite where only the clean row is zero.
    """
    errors = np.zeros(len(clean))
    for rows in _chunks(len(clean)):
        reference = clean[rows].reshape(len(clean[rows]), -1).astype(np.float64)
        difference = np.linalg.norm(outputs[rows].reshape(reference.shape) - reference, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors[rows] = np.where(difference == 0, 0.0, difference / np.linalg.norm(reference, axis=1))
    return errors


def log_probabilities(logits: Array, labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Natural logarithms of the softmax at the labels and at the largest logit.

    Args:
        logits: `[rows, classes]`.
        labels: `[rows]`.

    Returns:
        At the labels and at the largest, each `[rows]`; NaN where a row holds NaN or positive infinity.
    """
    at_label, largest = np.empty(len(logits)), np.empty(len(logits))
    for rows in _chunks(len(logits)):
        scores = logits[rows].astype(np.float64)
        with np.errstate(invalid="ignore"):
            scores -= scores.max(axis=1, keepdims=True)
            total = np.log(np.exp(scores).sum(axis=1))
        at_label[rows] = np.take_along_axis(scores, labels[rows, None], axis=1)[:, 0] - total
        largest[rows] = -total
    return at_label, largest


def label_ranks(logits: Array, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the label when classes are sorted by score, `[rows]`; 0: it is the argmax.

    Of equal scores the one of the lower class comes first, as for `numpy.argmax`.
    """
    ranks = np.empty(len(logits), np.int64)
    for rows in _chunks(len(logits)):
        scores, of = logits[rows], labels[rows, None]
        score = np.take_along_axis(scores, of, axis=1)
        before = (scores > score) | ((scores == score) & (np.arange(scores.shape[1]) < of))
        ranks[rows] = np.count_nonzero(before, axis=1)
    return ranks


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation, -1 to 1; NaN if either is constant. Needs SciPy."""
    first, second = np.asarray(first), np.asarray(second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(library("scipy.stats").spearmanr(first, second).statistic)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space (SQuAD, Rajpurkar et al. 2016)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """F1 of words and exact match of a predicted answer, each the best over the right answers, 0 to 1.

    Without a right answer, the empty prediction is right (SQuAD 2.0, Rajpurkar et al. 2018).
    """
    words = normalize_answer(prediction).split()
    f1s, exact = [], []
    for answer in answers or [""]:
        right = normalize_answer(answer).split()
        common = sum((Counter(words) & Counter(right)).values())
        exact.append(float(words == right))
        f1s.append(float(words == right) if not words or not right else 2 * common / (len(words) + len(right)))
    return max(f1s), max(exact)


def _chunks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)
