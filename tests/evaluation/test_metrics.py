"""Metrics are what their definitions say, on numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from emu.evaluation import expected_calibration_error, mean_corruption_error
from emu.evaluation.metrics import (
    answer_scores,
    fixed,
    label_ranks,
    log_probabilities,
    metric_spread,
    normalize_answer,
    output_snr_db,
    relative_errors,
    show_interval,
    show_metric,
    spearman,
)
from emu.evaluation.statistics import Spread, chip_spread

LOGITS = arrays(np.float32, (7, 5), elements=st.floats(-20, 20, width=32))
LABELS = arrays(np.int64, 7, elements=st.integers(0, 4))


def test_calibration_error_of_six_known_predictions() -> None:
    confidences, correct = [0.95, 0.94, 0.85, 0.62, 0.55, 0.3], [1, 1, 0, 1, 0, 0]
    assert expected_calibration_error(confidences, correct) == pytest.approx(0.365)


def test_a_confidence_on_an_edge_is_in_the_bin_below() -> None:
    # Both in (0.25, 0.5], where the gaps -0.4 and +0.5 nearly cancel.
    assert expected_calibration_error([0.4, 0.5], [0, 1], bins=4) == pytest.approx(0.05)
    assert expected_calibration_error([0.4, 0.5001], [0, 1], bins=4) == pytest.approx((0.4 + 0.4999) / 2)


def test_perfect_confidence_is_calibrated_and_false_confidence_is_not() -> None:
    assert expected_calibration_error([1.0, 1.0], [1, 1]) == 0
    assert expected_calibration_error([1.0, 1.0], [0, 0]) == 1
    assert math.isnan(expected_calibration_error([], []))


@given(LOGITS, LABELS)
def test_calibration_error_is_a_share_and_at_least_the_overall_gap(logits: np.ndarray, labels: np.ndarray) -> None:
    confidences, right = np.exp(log_probabilities(logits, labels)[1]), logits.argmax(axis=1) == labels
    error = expected_calibration_error(confidences, right)
    assert abs(right.mean() - confidences.mean()) - 1e-9 <= error <= 1


def test_mean_corruption_error_of_two_corruptions() -> None:
    errors = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.05, 0.1, 0.1, 0.2, 0.25]]
    baseline = [[0.2, 0.4, 0.5, 0.7, 0.9], [0.1, 0.2, 0.3, 0.3, 0.4]]
    assert mean_corruption_error(errors, baseline) == pytest.approx(0.5470085, abs=1e-7)
    assert mean_corruption_error(baseline, baseline) == 1


@given(LOGITS, LABELS)
def test_ranks_count_the_classes_in_front_and_agree_with_argmax(logits: np.ndarray, labels: np.ndarray) -> None:
    ranks = label_ranks(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert [list(row).index(label) for row, label in zip(order, labels, strict=True)] == ranks.tolist()
    assert ((ranks == 0) == (logits.argmax(axis=1) == labels)).all()


@given(LOGITS, LABELS)
def test_log_probabilities_are_those_of_the_softmax(logits: np.ndarray, labels: np.ndarray) -> None:
    at_label, largest = log_probabilities(logits, labels)
    softmax = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(at_label), softmax[np.arange(7), labels], rtol=1e-9)
    np.testing.assert_allclose(np.exp(largest), softmax.max(axis=1), rtol=1e-9)


def test_log_probabilities_survive_large_logits_and_mark_what_is_no_number() -> None:
    logits = np.float32([[1e30, 0, -np.inf], [np.nan, 0, 0], [np.inf, 0, 0]])
    at_label, largest = log_probabilities(logits, np.array([0, 1, 1]))
    assert (at_label[0], largest[0]) == (0, 0)
    assert np.isnan(at_label[1:]).all() and np.isnan(largest[1:]).all()


def test_many_rows_are_as_few() -> None:
    logits = np.random.default_rng(0).normal(size=(10_000, 6)).astype(np.float32)
    noisy, labels = logits + np.float32(0.1), np.zeros(10_000, int)
    halves = [log_probabilities(part, labels[:5000])[0] for part in (logits[:5000], logits[5000:])]
    np.testing.assert_array_equal(log_probabilities(logits, labels)[0], np.concatenate(halves))
    power = np.square(logits.astype(float)).sum() / np.square(noisy - logits.astype(float)).sum()
    assert output_snr_db(logits, noisy) == pytest.approx(10 * np.log10(power))


def test_signal_to_noise_is_a_ratio_of_powers() -> None:
    clean = np.array([[3.0, 4.0], [0.0, 5.0]])
    assert output_snr_db(clean, clean * 1.1) == pytest.approx(20)
    assert output_snr_db(clean, clean) == math.inf
    assert output_snr_db(0 * clean, clean) == -math.inf
    assert math.isnan(output_snr_db(clean[:0], clean[:0]))
    assert relative_errors(clean, clean * [[1.1], [2.0]]) == pytest.approx([0.1, 1.0])
    assert relative_errors(0 * clean, np.array([[0.0, 0.0], [1.0, 0.0]])).tolist() == [0, math.inf]


@given(arrays(np.float64, (4, 3), elements=st.floats(0.1, 10)), st.floats(0.01, 100))
def test_signal_to_noise_does_not_depend_on_the_scale(clean: np.ndarray, scale: float) -> None:
    noisy = clean * 1.25
    assert output_snr_db(clean * scale, noisy * scale) == pytest.approx(output_snr_db(clean, noisy))


def test_spearman_compares_ranks_with_ties() -> None:
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(3 / math.sqrt(10))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_answers_are_compared_without_case_punctuation_and_articles() -> None:
    assert normalize_answer("The  Cat, (a)\tmat!") == "cat mat"
    assert answer_scores("the Cat.", ["cat"]) == (1, 1)
    assert answer_scores("red cat sat", ["a red dog", "cat"]) == (pytest.approx(0.5), 0)
    assert answer_scores("dog", ["cat"]) == (0, 0)


def test_words_that_repeat_count_as_often_as_they_are_in_both() -> None:
    assert answer_scores("ran ran", ["ran"])[0] == pytest.approx(2 / 3)


def test_no_answer_is_right_only_where_there_is_none() -> None:
    assert answer_scores("", []) == (1, 1)
    assert answer_scores("cat", []) == (0, 0)
    assert answer_scores("", ["cat"]) == (0, 0)


def test_metrics_are_printed_in_their_units() -> None:
    assert show_metric("accuracy", 0.98765) == "98.77%"
    assert show_metric("output_snr_db", 12.3) == "12.30 dB"
    assert show_metric("loss", 0.123456) == "0.1235"


@given(
    st.lists(st.sampled_from(["the", "a", "An", "cat", "cat,", "Cat", "ran", "don't", "dont", "é", " ", "\t", "."])),
    st.data(),
)
def test_answers_score_as_in_the_published_evaluation(words: list[str], data: st.DataObject) -> None:
    published = pytest.importorskip("transformers.data.metrics.squad_metrics")
    prediction, answer = " ".join(words), " ".join([*data.draw(st.permutations(words)), "cat"])
    f1, exact = answer_scores(prediction, [answer])
    assert f1 == pytest.approx(published.compute_f1(answer, prediction))
    assert exact == published.compute_exact(answer, prediction)
    assert normalize_answer(answer) == published.normalize_answer(answer)


def test_intervals_of_shares_are_shown_within_0_and_100_percent_and_no_others() -> None:
    assert show_interval("accuracy", 0.985, 1.004) == "98.50% to 100.00%"
    assert show_interval("ece", -0.01, 0.02) == "0.00% to 2.00%"
    assert show_interval("loss", -0.5, 2.5) == "-0.5 to 2.5"
    assert show_interval("output_snr_db", -3.0, 3.0) == "-3.00 dB to 3.00 dB"


def test_the_interval_of_a_share_lies_within_0_and_1_and_no_other_is_cut() -> None:
    values = [0.99, 1.0, 1.0]
    whole = chip_spread(values)
    assert whole.ci95 is not None and whole.ci95[1] > 1
    assert metric_spread("accuracy", values) == Spread(whole.mean, whole.std, (whole.ci95[0], 1.0))
    assert metric_spread("accuracy", [0.0, 0.01]).ci95 == (0.0, pytest.approx(0.0685, abs=1e-4))
    assert metric_spread("loss", values) == whole
    assert metric_spread("accuracy", [0.5]).ci95 is None
    assert metric_spread("loss", [1.0, math.inf]) == Spread(math.inf, None, None)


def test_no_zero_has_a_minus() -> None:
    assert [fixed(value, 2) for value in (-0.001, -0.0, 0.0, -0.006)] == ["0.00", "0.00", "0.00", "-0.01"]
    assert show_metric("accuracy", -1e-9) == "0.00%"
    assert (fixed(float("nan"), 1), fixed(float("inf"), 1)) == ("nan", "inf")
