"""Bit flips, protection, lists and stuck cells."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from emu.errors import InputError
from emu.reference import Stream, faulty_weight, flipped_bits, philox4x32, stored_uniforms, stuck_cells
from tests.reference.secded import COLUMNS, decoded, random_words

from .nodes import (
    PLAIN_FAULTY_WEIGHT,
    PLAIN_QUANTIZED,
    arguments,
    held,
    normal,
    of_array,
    quantized,
    stored,
)

INT8 = {"fault_source": "random", "fault_storage": "int"}
FLOAT32 = {"fault_source": "random", "fault_storage": "float32", "fault_mask": 2**32 - 1}
PAIR = {"encoding": "differential"}
MAPPING = {"mapping.g_min_us": 1.0, "mapping.g_max_us": 11.0}


def ber(rate: float) -> dict[str, float]:
    """The entry of a bit error rate."""
    return {"faults.ber": rate}


def codes_after(codes: Any, faults: Any, bits: int = 8) -> Any:
    """The codes of a quantized node after a list of faults, read with the identity."""
    codes = np.atleast_2d(codes)
    node = {"fault_source": "list", "fault_storage": "int", "faults": faults, "code_bits": bits}
    return quantized(np.eye(len(codes)), codes, 1.0, 0.0, **node).astype(int)


@pytest.mark.parametrize(
    ("code", "bit", "bits", "flipped"),
    [
        (5, 7, 8, -123),
        (5, 1, 8, 7),
        (-1, 0, 8, -2),
        (-1, 7, 8, 127),
        (0, 7, 8, -128),
        (-128, 7, 8, 0),
        (127, 7, 8, -1),
        (7, 3, 4, -1),
        (-8, 3, 4, 0),
        (3, 2, 4, 7),
        (0, 1, 2, -2),
        (-1, 0, 2, -2),
        (1, 1, 2, -1),
        (1000, 15, 16, -31768),
        (-1, 14, 16, -16385),
        (255, 8, 16, 511),
    ],
)
def test_a_flip_is_one_bit_of_twos_complement(code, bit, bits, flipped):
    assert codes_after([[0, code]], [256 + bit], bits).tolist() == [[0, flipped]]


@pytest.mark.parametrize(("code", "bit", "flipped"), [(1000, 15, -31768), (-1, 14, -16385)])
def test_a_flip_of_a_sixteen_bit_code(code, bit, flipped):
    w = np.array([[code, 32767.0]])
    node = {"fault_source": "list", "fault_storage": "int", "fault_bits": 16, "fault_mask": 65535}
    np.testing.assert_array_equal(held(w, faults=[bit], **node), [[flipped, 32767]])


def test_float_weights_are_rounded_to_symmetric_codes_before_they_flip():
    """w .5 -1.27 .003 1: scale .01, codes 50 -127 0 100; a flip of bit 6 of 50 gives 114."""
    w = np.array([[0.5, -1.27, 0.003, 1]])
    node = {"fault_source": "list", "fault_storage": "int"}
    np.testing.assert_allclose(held(w, **node), [[0.5, -1.27, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(held(w, faults=[6], **node), [[1.14, -1.27, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(held(w, faults=[256 + 7], **node), [[0.5, 0.01, 0, 1]], rtol=1e-5)


def test_float_weights_are_rounded_to_asymmetric_codes_before_they_flip():
    """w .5 -1.27 .003 1: scale 2.27 / 255 = .00890196, zero 143, codes 199 0 143 255."""
    w = np.array([[0.5, -1.27, 0.003, 1]])
    scale = 2.27 / 255
    node = {"fault_source": "list", "fault_storage": "int", "fault_range": "asymmetric"}
    codes = np.array([[199, 0, 143, 255]])
    np.testing.assert_allclose(held(w, **node), (codes - 143) * scale, rtol=1e-5)
    flipped = np.array([[199 - 128, 1, 143, 255]])
    np.testing.assert_allclose(held(w, faults=[7, 256], **node), (flipped - 143) * scale, rtol=1e-5)


def test_codes_may_have_a_scale_for_each_column():
    w = np.array([[127.0, 12.7], [0.4, 0.04]])
    node = {"fault_source": "list", "fault_storage": "int"}
    np.testing.assert_allclose(held(w, fault_scale="column", **node), [[127, 12.7], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(held(w, **node), [[127, 13], [0, 0]], rtol=1e-6)
    assert held(np.zeros((2, 3)), fault_scale="column", faults=[3], **node)[0, 0] == 8


def test_a_flip_of_a_float_hits_its_own_bits():
    """1 = sign 0, exponent 127: bit 31 gives -1, bit 23 clears the lowest exponent bit, bit 22 adds a half."""
    node = {"fault_source": "list", "fault_storage": "float32"}
    values = held(np.ones((2, 3)), faults=[31, 256 + 23, 512 + 22, 3 * 256 + 30, 5 * 256], **node)
    np.testing.assert_array_equal(values, [[-1, 0.5, 1.5], [np.inf, 1, 1 + 2**-23]])


def _flipped_by_hand(chunk: int, bits: int, p: float, seed: int, array: int) -> list[int]:
    """The page's draws, one scalar at a time."""
    flipped, bit, draw = [], -1, 0
    while True:
        words = [int(word) for word in philox4x32(draw // 2, chunk, array, 12, seed, 0)]
        x, y = words[2 * (draw % 2) : 2 * (draw % 2) + 2]
        u = ((x >> 5) * 2**26 + (y >> 6) + 1) * 2.0**-53
        bit += 1 + math.floor(math.log(u) / math.log1p(-p))
        if bit >= bits:
            return flipped
        flipped.append(bit)
        draw += 1


def test_random_flips_are_the_draws_of_their_chunk():
    """Three bits of each code may flip, over two chunks of 4096 elements and a remainder."""
    w = normal(90, 100, seed=1)
    p = float(np.float32(2) * np.float32(0.01))
    list_ = of_array(flipped_bits, w, **INT8, fault_mask=0b10010001, numbers=ber(0.01), strength=2.0, seed=5, array=3)
    expected = []
    for chunk, elements in enumerate((4096, 4096, 808)):
        for bit in _flipped_by_hand(chunk, 3 * elements, p, seed=5, array=3):
            expected.append((chunk * 4096 + bit // 3) * 256 + (0, 4, 7)[bit % 3])
    assert 400 < len(expected) < 700
    assert list_.tolist() == expected


@pytest.mark.parametrize("rate", [0.5, 1e-3, 1e-5])
@pytest.mark.parametrize("storage", [INT8, FLOAT32], ids=["int8", "float32"])
def test_flips_are_independent_with_their_probability(rate, storage):
    """Count, spread over bits and over elements: each to a false alarm once in ten thousand."""
    w = normal(1000, 1000)
    bits = 8 if storage is INT8 else 32
    list_ = of_array(flipped_bits, w, **storage, numbers=ber(rate), seed=4)
    assert stats.binomtest(len(list_), w.size * bits, rate).pvalue > 1e-4
    of_bits = np.bincount(list_ % 256, minlength=bits)
    assert stats.chisquare(of_bits).pvalue > 1e-4
    of_places = np.bincount(list_ // 256 * 50 // w.size, minlength=50)
    assert stats.chisquare(of_places).pvalue > 1e-4
    if rate == 0.5:
        pairs = np.bincount(np.bincount(list_ // 256, minlength=w.size), minlength=bits + 1)
        expected = stats.binom(bits, 0.5).pmf(range(bits + 1)) * w.size
        many = expected > 5
        assert stats.chisquare(pairs[many], expected[many] * pairs[many].sum() / expected[many].sum()).pvalue > 1e-4


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_flips_of_codes_have_their_mean_square_error(bits):
    """Per weight rate (4^b - 1) / 3 squared steps: 85, 21845 and 1.43e9 for 4, 8 and 16 bits."""
    per_rate = {4: 85.0, 8: 21845.0, 16: 1431655765.0}[bits]
    w = normal(1000, 1000)
    scale = np.abs(w).max() / (2 ** (bits - 1) - 1)
    node = {**INT8, "fault_bits": bits, "fault_mask": 2**bits - 1}
    error = (held(w, numbers=ber(0.002), **node) - held(w, numbers=ber(0), **node)).astype(np.float64) / scale
    squares = error**2
    assert squares.mean() == pytest.approx(0.002 * per_rate, abs=4 * squares.std() / 1000)


def test_every_bit_flips_at_rate_one_and_none_at_rate_zero():
    codes = np.array([[5, -128, 127]], dtype=np.int8)
    one = {**INT8, "numbers": ber(1.0)}
    assert quantized(np.eye(1), codes, 1.0, 0.0, **one).tolist() == [[-6, 127, -128]]
    assert quantized(np.eye(1), codes, 1.0, 0.0, **INT8, numbers=ber(0.0)).tolist() == [[5, -128, 127]]
    assert quantized(np.eye(1), codes, 1.0, 0.0, **INT8, fault_mask=0, numbers=ber(1.0)).tolist() == [[5, -128, 127]]
    assert quantized(np.eye(1), codes, 1.0, 0.0, **one, strength=0.5).tolist() != [[5, -128, 127]]
    doubled = {**one, "numbers": ber(0.5), "strength": 3.0}
    assert quantized(np.eye(1), codes, 1.0, 0.0, **doubled).tolist() == [[-6, 127, -128]]


def test_flips_are_of_the_chip_not_of_the_reading():
    w = normal(30, 40)
    base = held(w, **INT8, numbers=ber(0.01), seed=1)
    np.testing.assert_array_equal(held(w, **INT8, numbers=ber(0.01), seed=1, read_seed=9), base)
    assert (held(w, **INT8, numbers=ber(0.01), seed=2) != base).any()


def test_the_parity_check_matrix_is_one_of_hsiao():
    """Columns differ and are odd, so that two flips are never taken for one; rows are equally heavy."""
    assert len(set(COLUMNS.tolist())) == 72
    assert all(int(column).bit_count() in (1, 3, 5) for column in COLUMNS)
    assert [(COLUMNS >> row & 1).sum() for row in range(8)] == [27] * 8


@pytest.mark.parametrize(("flips", "detected"), [(1, 0), (2, 1)])
def test_one_flip_is_corrected_and_two_are_detected(flips, detected):
    wrong, found = decoded(random_words(flips))
    assert (found == detected).all() and wrong.any() == (flips == 2)


@pytest.mark.parametrize("rate", [3e-3, 1e-4])
def test_protected_words_break_as_often_as_a_decoder_detects_errors(rate):
    """Two of 72 flips always, three less than half the time. A broken word is zeroed, so it is eight zeros."""
    words = 250_000
    w = np.ones((words // 50, 400), dtype=np.float32)
    node = {**INT8, "fault_protection": "secded_zero", "numbers": ber(rate)}
    values = held(w, **node, seed=6).reshape(words, 8)
    broken = (values == 0).all(axis=1)
    expected = sum(stats.binom.pmf(k, 72, rate) * decoded(random_words(k))[1].mean() for k in range(2, 6))
    assert stats.binomtest(int(broken.sum()), words, expected).pvalue > 1e-4


def test_protection_leaves_a_residual_rate_of_71_squares():
    rate = 1e-3
    codes = np.zeros((2000, 1000), dtype=np.int8)
    list_ = of_array(flipped_bits, codes, **INT8, fault_protection="secded", numbers=ber(rate), seed=7)
    assert len(list_) / (codes.size * 8) == pytest.approx(71 * rate**2, rel=0.06)


@pytest.mark.parametrize(
    ("storage", "bits", "kind"),
    [
        (INT8, 8, np.float32),
        (FLOAT32, 32, np.float32),
        (INT8 | {"code_bits": 2}, 2, np.int8),
        (INT8 | {"code_bits": 16, "fault_mask": 65535}, 16, np.int16),
    ],
)
def test_protected_words_are_the_draws_of_72_bits(storage, bits, kind):
    """Data first, then check bits; words are decoded, the last one is short."""
    w = normal(1, 4096 + 203).astype(kind)
    p = float(np.float32(0.02))
    in_word = 64 // bits
    list_ = of_array(flipped_bits, w, **storage, fault_protection="secded", numbers=ber(0.02), seed=8, array=2)
    expected = []
    for chunk, elements in enumerate((4096, 203)):
        words = -(-elements // in_word)
        flipped = np.zeros((words, 72), dtype=np.bool_)
        flipped.flat[list(_flipped_by_hand(chunk, words * 72, p, seed=8, array=2))] = True
        for word, place in zip(*np.nonzero(decoded(flipped)[0]), strict=True):
            element = word * in_word + place // bits
            if element < elements:
                expected.append((chunk * 4096 + element) * 256 + place % bits)
    assert len(expected) > 100
    assert list_.tolist() == expected


def test_a_zeroed_word_of_asymmetric_codes_holds_zeros():
    w = normal(100, 100) + 3
    node = {**INT8, "fault_range": "asymmetric", "fault_protection": "secded_zero", "numbers": ber(2e-3)}
    values = held(w, **node)
    zeros = (values.reshape(-1, 8) == 0).all(axis=1)
    assert zeros.any()
    clean = held(w, **{**node, "numbers": ber(0)}).reshape(-1, 8)
    np.testing.assert_array_equal(values.reshape(-1, 8)[~zeros], clean[~zeros])


def test_a_zeroed_word_of_model_codes_holds_zeros():
    codes = np.full((80, 100), 17, dtype=np.int8)
    node = {**INT8, "fault_protection": "secded_zero", "numbers": ber(2e-3)}
    values = quantized(np.eye(80), codes, 0.5, 5.0, **node).reshape(-1, 8)
    assert set(np.unique(values)) == {0.0, 6.0}
    assert ((values == 0).all(axis=1) | (values == 6).all(axis=1)).all()


def test_scales_of_mapping_come_from_the_unchanged_weights():
    """A flip to -128 lies outside the pair's range, which ends where the unchanged weights do."""
    codes = np.array([[0, 127]], dtype=np.int8)
    node = {"fault_source": "list", "fault_storage": "int", "faults": [7]}
    assert quantized(np.eye(1), codes, 1.0, 0.0, **node).tolist() == [[-128, 127]]
    pair = quantized(np.eye(1), codes, 1.0, 0.0, **node, **PAIR, numbers=MAPPING)
    np.testing.assert_allclose(pair, [[-127, 127]], rtol=1e-6)


def test_blocks_of_codes_keep_their_own_scale_and_zero_when_they_flip():
    codes = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.int8)
    scale, zero = np.array([[1.0, 10], [100, 1000]]), np.array([[1.0, 0], [0, 2]])
    node = {"fault_source": "list", "fault_storage": "int", "block_rows": 2, "code_bits": 4}
    clean = quantized(np.eye(3), codes, scale, zero, **node)
    np.testing.assert_array_equal(clean, [[0, 20], [2, 40], [500, 4000]])
    flipped = quantized(np.eye(3), codes, scale, zero, **node, faults=[2 * 256 + 2, 5 * 256 + 3])
    np.testing.assert_array_equal(flipped, [[0, 20], [6, 40], [500, (6 - 8 - 2) * 1000]])


# Stuck cells.


def test_stuck_cells_are_at_the_ends_of_the_range():
    """r = 1/11: weights of half the scale become 0 - half the other device, or 1 - r away from it."""
    r, w = 1 / 11, np.full((2, 200), 0.5)
    w[0, 0] = 1.0
    stuck = {**MAPPING, "faults.stuck_low": 0.1, "faults.stuck_high": 0.2}
    values = held(w, **PAIR, fault_source="random", numbers=stuck, seed=3)
    positive, negative = np.full(w.shape, 0.0), np.full(w.shape, 0.0)
    for device, stream, target in (
        (positive, Stream.STUCK, r + (1 - r) * w),
        (negative, Stream.STUCK_NEGATIVE, np.full(w.shape, r)),
    ):
        u = stored_uniforms(3, 0, 0, stream, 2, 200)
        device[:] = np.where(u <= np.float32(0.1), r, np.where(u > np.float32(1) - np.float32(0.2), 1.0, target))
    np.testing.assert_allclose(values, (positive - negative) / (1 - r), atol=1e-6)
    assert (np.abs(values - w) > 0.1).mean() > 0.3


def test_strength_multiplies_the_probability_of_stuck_cells():
    w, stuck = normal(300, 300), {**MAPPING, "faults.stuck_low": 0.02, "faults.stuck_high": 0.01}
    count = len(of_array(stuck_cells, w, **PAIR, fault_source="random", numbers=stuck))
    assert stats.binomtest(count, 2 * w.size, 0.03).pvalue > 1e-4
    tripled = of_array(stuck_cells, w, **PAIR, fault_source="random", numbers=stuck, strength=3.0)
    assert stats.binomtest(len(tripled), 2 * w.size, 0.09).pvalue > 1e-4
    assert stats.binomtest(int((tripled % 2 == 0).sum()), len(tripled), 2 / 3).pvalue > 1e-4


def test_listed_cells_are_stuck_and_nothing_else():
    """what = 64 + 4 slice + 2 negative + high; r = 1/11, so that a cell at the top is worth a whole weight."""
    w = np.array([[1.0, 0.5], [-0.5, 0.0]])
    node = {**PAIR, "fault_source": "list", "numbers": MAPPING}
    faults = [0 * 256 + 64, 1 * 256 + 65, 2 * 256 + 66, 3 * 256 + 67]
    np.testing.assert_allclose(held(w, **node, faults=faults), [[0, 1], [0, -1]], atol=1e-6)
    sliced = {**node, "weight_bits": 5, "slice_bits": 2}
    # Slice 1 of the code 15 = 3 + 4 * 3 is worth 12 of 15.
    np.testing.assert_allclose(held(w, **sliced, faults=[64 + 4]), [[3 / 15, 8 / 15], [-8 / 15, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("node", "fault", "sentence"),
    [
        ({"fault_storage": "int"}, 6 * 256, "expected elements 0 to 5."),
        ({"fault_storage": "int"}, -1, "expected elements 0 to 5."),
        ({"fault_storage": "int"}, 8, "expected bits below 8."),
        ({"fault_storage": "int", "fault_bits": 4, "fault_mask": 15}, 4, "expected bits below 4."),
        ({}, 0, "expected bits below 0."),
        ({}, 64, "expected 0 devices of a weight."),
        ({"encoding": "offset", "numbers": MAPPING}, 66, "expected 1 devices of a weight."),
        ({"encoding": "offset", "numbers": MAPPING}, 68, "expected slices below 1."),
    ],
)
def test_a_fault_outside_the_array_is_named(node, fault, sentence):
    with pytest.raises(InputError, match=f"input 'faults' has {fault}, which is out of the array, {sentence}"):
        held(np.ones((2, 3)), fault_source="list", faults=[fault], **node)


REPLAYED = [
    (normal(40, 50), INT8),
    (normal(40, 50), {**INT8, "fault_range": "asymmetric", "fault_scale": "column"}),
    (normal(40, 50), {**INT8, "fault_bits": 16, "fault_mask": 65535, "fault_protection": "secded"}),
    (normal(40, 50), {**INT8, "fault_range": "asymmetric", "fault_protection": "secded_zero"}),
    (normal(40, 50), FLOAT32),
    (normal(40, 50), {**FLOAT32, "fault_protection": "secded_zero"}),
    (normal(40, 50), {**INT8, **PAIR}),
    (normal(40, 50), {**INT8, "encoding": "offset", "weight_bits": 8, "slice_bits": 3}),
]


@pytest.mark.parametrize(("w", "node"), REPLAYED, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_the_faults_of_a_chip_replay_as_a_list(w, node):
    numbers = {**MAPPING, **ber(0.02)}
    if "encoding" in node:
        numbers |= {"faults.stuck_low": 0.03, "faults.stuck_high": 0.02}
    drawn = held(w, numbers=numbers, seed=3, **node)
    list_ = np.concatenate([of_array(each, w, numbers=numbers, seed=3, **node) for each in (flipped_bits, stuck_cells)])
    assert len(list_) > 20
    replayed = {**node, "fault_source": "list", "faults": list_}
    np.testing.assert_array_equal(held(w, numbers=numbers, seed=99, **replayed), drawn)
    again = [of_array(each, w, numbers=numbers, **replayed) for each in (flipped_bits, stuck_cells)]
    assert sorted(np.concatenate(again)) == sorted(list_)


@pytest.mark.parametrize(("w", "node"), REPLAYED, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_list_comes_on_top_of_random_faults(w, node):
    """A bit that flips twice is as it was; a cell that is on the list is stuck as it says there."""
    stuck = {"faults.stuck_low": 0.03, "faults.stuck_high": 0.02} if "encoding" in node else {}
    random = {**node, "numbers": {**MAPPING, **ber(0.02), **stuck}, "seed": 3}
    listed = [np.sort(of_array(each, w, **random)) for each in (flipped_bits, stuck_cells)]
    if "encoding" in node:  # one cell on the other side, and one that was not stuck
        listed[1] = np.array([listed[1][0] ^ 1, 256 * 39 + 64])
    both = {**random, "faults": np.concatenate(listed)}
    flips, cells = (of_array(each, w, **both) for each in (flipped_bits, stuck_cells))
    if node.get("fault_protection", "none") != "secded_zero":
        assert len(flips) == 0
    if "encoding" in node:
        before = of_array(stuck_cells, w, **random)
        assert set(cells) == (set(before) - {before[0]}) | set(listed[1])
    replayed = {**both, "fault_source": "list", "faults": np.concatenate([flips, cells])}
    np.testing.assert_array_equal(held(w, **both), held(w, **replayed))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_faults_of_model_codes_replay_as_a_list(bits):
    codes = np.random.default_rng(1).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (40, 50))
    codes = codes.astype(np.int16 if bits > 8 else np.int8)
    zero_point = 1.0 if bits == 2 else 3.0  # a code, so that words of zeros can be listed
    node = {**INT8, "code_bits": bits, "fault_mask": 2**bits - 1, "fault_protection": "secded_zero"}
    drawn = quantized(np.eye(40), codes, 0.1, zero_point, numbers=ber(0.02), seed=3, **node)
    call = arguments(
        PLAIN_QUANTIZED, {**node, "numbers": ber(0.02), "seed": 3}, without=("ranges", "sample", "position", "head")
    )
    list_ = flipped_bits(codes, zero_point=np.float32(zero_point), **call)
    assert len(list_) > 20 and list_.max() % 256 < bits
    listed = {**node, "fault_source": "list", "faults": list_}
    replayed = quantized(np.eye(40), codes, 0.1, zero_point, numbers=ber(0), **listed)
    np.testing.assert_array_equal(replayed, drawn)


def test_a_tensor_without_product_holds_what_an_array_of_its_rows_holds():
    w = normal(3, 4, 5)
    call = arguments(
        PLAIN_FAULTY_WEIGHT, {**INT8, "numbers": ber(0.05), "seed": 2}, without=("ranges", "sample", "position")
    )
    expected = held(w.reshape(12, 5), **INT8, numbers=ber(0.05), seed=2).reshape(3, 4, 5)
    np.testing.assert_array_equal(faulty_weight(w, **call), expected)
    np.testing.assert_array_equal(faulty_weight(w, **{**call, "head": np.int64(0)}), w)
    np.testing.assert_array_equal(faulty_weight(w, **{**call, "strength": np.zeros(1, np.float32)}), w)
    vector = held(w[0, :1], **INT8, numbers=ber(0.05), seed=2)[0]
    np.testing.assert_array_equal(faulty_weight(w[0, 0], **call), vector)


@given(rate=st.floats(0, 1, width=32), seed=st.integers(0, 2**32 - 1), size=st.integers(1, 5000))
@settings(deadline=None, max_examples=30)
def test_any_rate_gives_a_list_without_repeats_inside_the_array(rate, seed, size):
    list_ = of_array(flipped_bits, np.ones((1, size)), **INT8, numbers=ber(rate), seed=seed)
    assert (np.diff(list_) > 0).all()
    assert len(list_) == 0 or (list_[0] >= 0 and list_[-1] // 256 < size)


def test_memory_chunks_do_not_change_flips(monkeypatch):
    w = normal(100, 300)
    whole = of_array(flipped_bits, w, **INT8, numbers=ber(0.01))
    monkeypatch.setattr("emu.reference.faults._DRAWS_AT_ONCE", 1)
    np.testing.assert_array_equal(of_array(flipped_bits, w, **INT8, numbers=ber(0.01)), whole)


def test_a_site_multiplies_with_its_faulty_weights():
    x, w = normal(4, 30), normal(30, 20, seed=1)
    expected = x.astype(np.float64) @ held(w, **INT8, numbers=ber(0.01))
    np.testing.assert_allclose(stored(x, w, **INT8, numbers=ber(0.01)), expected, rtol=1e-5, atol=1e-5)
