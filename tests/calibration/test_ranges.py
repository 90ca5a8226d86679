"""From numbers to ranges: all of them, most of them, or what loses the least."""

import numpy as np
import pytest

from emu.calibration.ranges import check_method, find_range
from emu.errors import InputError

NORMAL = np.random.default_rng(0).standard_normal(200_000, dtype=np.float32)


def test_minmax_holds_every_number():
    arrays = [np.float32([[-1, 2]]), np.float32([0.5, -3])]
    assert find_range(arrays, False, "minmax", 99) == (-3, 2)
    assert find_range(arrays, True, "minmax", 99) == (-3, 3)
    assert find_range([np.float32([1, 2])], False, "minmax", 99) == (0, 2)


def test_a_percentile_leaves_that_share_outside():
    low, high = find_range([NORMAL], True, "percentile", 99)
    assert low == -high and np.mean(np.abs(NORMAL) <= high) == pytest.approx(0.99, abs=2e-3)
    low, high = find_range([NORMAL], False, "percentile", 99)
    assert np.mean((low <= NORMAL) & (high >= NORMAL)) == pytest.approx(0.99, abs=2e-3)


def test_one_outlier_does_not_decide_a_percentile_or_an_entropy():
    numbers = [np.clip(NORMAL, -4, 4), np.float32([40])]
    for method in ("percentile", "entropy"):
        low, high = find_range(numbers, True, method, 99.9)
        assert 2 < high < 8 and low == -high


def test_a_range_is_never_empty():
    for method in ("minmax", "percentile", "entropy"):
        for symmetric in (True, False):
            assert find_range([np.zeros(9, np.float32)], symmetric, method, 99) == (-1, 1)
            low, high = find_range([np.full(9, 2, np.float32)], symmetric, method, 99)
            assert low < high and low <= 2 <= high * 1.001


def test_nothing_is_printed(capsys):
    find_range([NORMAL], True, "percentile", 99)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("method", "percentile", "says"),
    [("max", 99, "method is 'max': expected minmax, percentile, entropy"), ("percentile", 50, "more than 50")],
)
def test_wrong_options_are_refused(method, percentile, says):
    with pytest.raises(InputError, match=says):
        check_method(method, percentile)
