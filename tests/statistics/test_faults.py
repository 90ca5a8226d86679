"""Random faults strike every bit and every device with their probability, each on its own."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.agreement.one_crossbar import Crossbar
from emu.reference.random import Stream, stored_words
from tests.reference.secded import decoded, random_words
from tests.statistics.laws import assert_rate

SHAPE = (128, 4096)
BER = 0.01


def flips_of(crossbar: Crossbar, bits: int, mask: int, seed: int = 0, **settings: Any) -> Any:
    """Return for random codes which of their bits flipped, int64 [K, N]."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = np.random.default_rng(2).integers(low, high, SHAPE)
    settings = {"numbers": {"faults.ber": BER}, **settings}
    faults: dict[str, Any] = {
        "fault_source": "random", "fault_storage": "int", "fault_bits": bits, "fault_mask": mask, "seed": seed,
    }  # fmt: skip
    if bits == 16:
        codes = np.maximum(codes, low + 1)
        codes[0, 0] = high - 1  # makes the scale of the codes 1
        held = crossbar.held(codes, **faults, **settings)
    else:
        held = crossbar.quantized(np.eye(SHAPE[0]), codes, 1.0, 0.0, code_bits=bits, **faults, **settings)
    return (held.astype(np.int64) ^ codes) & (2**bits - 1)


@pytest.mark.parametrize(("bits", "mask"), [(4, 0b1111), (8, 0b11111111), (8, 0b10010001), (16, 0xFFFF), (16, 0x8001)])
def test_every_bit_of_the_mask_flips_at_the_rate(crossbar: Crossbar, bits: int, mask: int) -> None:
    changed = flips_of(crossbar, bits, mask, seed=1)
    size = changed.size
    for bit in range(bits):
        count = int(np.count_nonzero(changed & (1 << bit)))
        if mask & (1 << bit):
            assert_rate(count, size, BER)
        else:
            assert count == 0


def test_flips_are_independent(crossbar: Crossbar) -> None:
    changed = flips_of(crossbar, 8, 255, seed=2).ravel()
    struck = np.array([np.bitwise_count(np.uint8(value)) for value in range(256)])[changed]
    for flips in range(4):  # several in one code
        assert_rate(int(np.count_nonzero(struck == flips)), changed.size, stats.binom.pmf(flips, 8, BER))
    both = np.count_nonzero((changed[1:] & 1) & (changed[:-1] & 1))  # in neighbours
    assert_rate(int(both), changed.size - 1, BER**2)
    # Flips per 4096 codes, which are drawn together, scatter like independent events.
    counts = struck.reshape(-1, 4096).sum(axis=1)
    bits = 4096 * 8
    dispersion = np.sum((counts - bits * BER) ** 2) / (bits * BER * (1 - BER))
    assert 1e-4 < stats.chi2.cdf(dispersion, len(counts)) < 1 - 1e-4


def test_gaps_between_flips_are_geometric(crossbar: Crossbar) -> None:
    changed = flips_of(crossbar, 8, 255, seed=3).ravel().astype(np.uint8)
    flipped = np.flatnonzero(np.unpackbits(changed, bitorder="little"))
    gaps = np.diff(flipped)
    assert len(gaps) > 40_000
    edges = np.array([1, 5, 10, 20, 40, 80, 160, 320, 10**9])
    observed = np.histogram(gaps, edges)[0]
    expected = len(gaps) * np.diff(stats.geom.cdf(edges - 1, BER))
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_strength_multiplies_the_rate(crossbar: Crossbar) -> None:
    changed = flips_of(crossbar, 8, 255, seed=4, strength=2.5)
    assert_rate(int(np.unpackbits(changed.astype(np.uint8)).sum()), 8 * changed.size, 2.5 * BER)


def test_chips_flip_different_bits(crossbar: Crossbar) -> None:
    first, second = flips_of(crossbar, 8, 255, seed=5), flips_of(crossbar, 8, 255, seed=6)
    both = int(np.unpackbits((first & second).astype(np.uint8)).sum())
    assert_rate(both, 8 * first.size, BER**2)


def test_unsigned_codes_flip_at_the_rate(crossbar: Crossbar) -> None:
    codes = np.random.default_rng(3).integers(0, 256, SHAPE)
    codes[0, :2] = 0, 255
    held = crossbar.held(
        codes, fault_source="random", fault_storage="int", fault_range="asymmetric", fault_mask=255,
        numbers={"faults.ber": BER}, seed=7,
    )  # fmt: skip
    changed = held.astype(np.int64) ^ codes
    for bit in range(8):
        assert_rate(int(np.count_nonzero(changed & (1 << bit))), changed.size, BER)


@pytest.mark.parametrize("mask", [0x007FFFFF, 0x80000000 - 2**32, 0xFFFF0000 - 2**32])
def test_bits_of_floats_flip_at_the_rate(crossbar: Crossbar, mask: int) -> None:
    w = np.full(SHAPE, 1.5, np.float32)
    held = crossbar.faulty_weight(
        w, fault_source="random", fault_storage="float32", fault_mask=mask & 0xFFFFFFFF,
        numbers={"faults.ber": BER}, seed=8,
    ).astype(np.float32)  # fmt: skip
    changed = held.view(np.uint32) ^ w.view(np.uint32)
    for bit in range(32):
        count = int(np.count_nonzero(changed & np.uint32(1 << bit)))
        if mask & (1 << bit):
            assert_rate(count, w.size, BER)
        else:
            assert count == 0


def probability(event: Any) -> float:
    """Return how often `event(wrong, detected)`, bool [words], happens to a decoded word at BER."""
    return float(sum(stats.binom.pmf(k, 72, BER) * event(*decoded(random_words(k))).mean() for k in range(1, 9)))


def test_protection_leaves_what_a_decoder_leaves(crossbar: Crossbar) -> None:
    changed = flips_of(crossbar, 8, 255, seed=9, fault_protection="secded").reshape(-1, 8).astype(np.uint8)
    per_word = np.unpackbits(changed, axis=1).sum(axis=1)
    for seen in range(1, 5):
        p = probability(lambda wrong, _, seen=seen: wrong.sum(axis=1) == seen)
        assert_rate(int(np.count_nonzero(per_word == seen)), len(per_word), p)


def test_protection_may_clear_words_with_detected_errors(crossbar: Crossbar) -> None:
    codes = np.full(SHAPE, 77)
    held = crossbar.quantized(
        np.eye(SHAPE[0]), codes, 1.0, 0.0, code_bits=8, fault_source="random", fault_storage="int", fault_bits=8,
        fault_mask=255, fault_protection="secded_zero", numbers={"faults.ber": BER}, seed=10,
    )  # fmt: skip
    words = held.reshape(-1, 8)
    assert_rate(int((words == 0).all(axis=1).sum()), len(words), probability(lambda _, detected: detected))
    miscorrected = (words != 77).any(axis=1) & (words != 0).any(axis=1)
    expected = probability(lambda wrong, detected: wrong.any(axis=1) & ~detected)
    assert_rate(int(miscorrected.sum()), len(words), expected)


def test_stuck_devices(crossbar: Crossbar) -> None:
    low, high, strength = 0.03, 0.02, 1.5
    numbers = {"mapping.g_min_us": 0.2, "mapping.g_max_us": 1.0, "faults.stuck_low": low, "faults.stuck_high": high}
    w = np.full((65, 4096), 0.0)
    w[0] = 1
    held = crossbar.held(
        w, encoding="two_sided", fault_source="random", numbers=numbers, strength=strength, seed=11
    )[1:]  # fmt: skip
    # Both devices hold the middle; a stuck one moves the weight by 1 / 2 of the range, up or down.
    low, high = strength * low, strength * high
    fine = 1 - low - high
    outcomes = np.rint(2 * held).astype(int)
    np.testing.assert_allclose(2 * held, outcomes, atol=1e-5)
    expected = {
        -2: low * high,
        -1: low * fine + fine * high,
        0: fine**2 + low**2 + high**2,
        1: high * fine + fine * low,
        2: high * low,
    }
    for outcome, p in expected.items():
        assert_rate(int(np.count_nonzero(outcomes == outcome)), outcomes.size, p)


def test_a_single_device_is_stuck_at_both_ends(crossbar: Crossbar) -> None:
    numbers = {"mapping.g_min_us": 0.2, "mapping.g_max_us": 1.0, "faults.stuck_low": 0.04, "faults.stuck_high": 0.01}
    w = np.full((65, 4096), 0.25)
    w[0] = 1
    held = crossbar.held(w, encoding="offset", fault_source="random", numbers=numbers, seed=12)[1:]
    assert_rate(int(np.count_nonzero(np.isclose(held, -1, atol=1e-5))), held.size, 0.04)
    assert_rate(int(np.count_nonzero(np.isclose(held, 1, atol=1e-5))), held.size, 0.01)


def test_a_second_word_decides_on_probabilities_between_those_of_24_bits(crossbar: Crossbar) -> None:
    """At (k + 1/2) 2^-24 a cell whose first word is k is stuck if its second one is in the lower half."""
    w = np.full((8, 16), 0.5)
    w[0, 0] = 1.0
    words, second = (stored_words(3, 0, 0, stream, 8, 16) for stream in (Stream.STUCK, Stream.STUCK_SECOND))
    k, coarse = words >> 8, (words >> 8).astype(np.float64) * 2.0**-24
    u = coarse + ((second >> 3) + 1.0) * 2.0**-53
    decided = []
    for row, column in zip(*np.nonzero((k < 2**22) | (k > 2**24 - 2**22)), strict=True):
        p = (float(k[row, column]) + 0.5) * 2.0**-24
        low, high = (p, 0.0) if p < 0.5 else (0.0, 1 - p)
        numbers = {"faults.stuck_low": low, "faults.stuck_high": high}
        numbers |= {"mapping.g_min_us": 1.0, "mapping.g_max_us": 11.0}
        held = crossbar.held(w, encoding="offset", fault_source="random", numbers=numbers, seed=3)
        expected = (u <= low) | ((u > 1 - high) & (w != 1))
        np.testing.assert_array_equal(np.abs(held - w) > 0.1, expected)
        decided.append(((p < 0.5), bool(u[row, column] <= p)))
    assert set(decided) == {(True, True), (True, False), (False, True), (False, False)}
