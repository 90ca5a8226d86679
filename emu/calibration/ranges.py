"""From the numbers that a converter meets to its range: smallest and largest, percentiles, or least lost entropy."""

import contextlib
import io
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError

Method = Literal["minmax", "percentile", "entropy"]
# Fine enough for a 99.99th percentile, coarse enough for the search of the entropy method.
_BINS = {"percentile": 4096, "entropy": 1024}
_QUANTIZED_BINS = 128  # as in TensorRT and onnxruntime


def check_method(method: str, percentile: float) -> None:
    """Raises `InputError` for an unknown method or a percentile that is none."""
    if method not in get_args(Method):
        raise InputError(f"method is '{method}': expected {', '.join(get_args(Method))}.")
    if not 50 < percentile <= 100:
        raise InputError(f"percentile is {percentile:g}: expected more than 50 and at most 100.")


def find_range(
    numbers: Iterable[NDArray[np.float32]], symmetric: bool, method: Method, percentile: float
) -> tuple[float, float]:
    """The range of a converter that meets these numbers.

    Args:
        numbers: arrays of any shape.
        symmetric: whether the range must lie around 0.
        method: `minmax`, or `percentile` and `entropy` by onnxruntime's calibrator (its histograms and thresholds).
        percentile: share of the numbers in range for `percentile`, in percent.

    Returns:
        Lowest and highest, lowest < highest; -1 and 1 if all numbers are 0.

    """
    if method == "minmax":
        low, high = 0.0, 0.0  # an output of 0 is always possible
        for each in numbers:
            low, high = min(low, float(each.min(initial=0))), max(high, float(each.max(initial=0)))
    else:
        low, high = _threshold(np.concatenate([each.ravel() for each in numbers]), symmetric, method, percentile)
    if symmetric:
        high = max(abs(low), abs(high))
        low = -high
    if not low < high:
        low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (-1.0, 1.0)


def _threshold(numbers: NDArray[np.float32], symmetric: bool, method: str, percentile: float) -> tuple[float, float]:
    from onnxruntime.quantization.calibrate import HistogramCollector

    if not numbers.any():
        return 0.0, 0.0
    collector = HistogramCollector(method, symmetric, _BINS[method], _QUANTIZED_BINS, percentile, None)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        collector.collect({"x": numbers})
        low, high = collector.compute_collection_result()["x"][:2]
    return float(low), float(high)
