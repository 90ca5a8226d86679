"""Random numbers are those of Philox4x32-10, laid out as the operators' page says."""

import math

import numpy as np
import pytest
from scipy import stats

from emu.reference import Stream, philox4x32, run_time_normals, stored_normals, stored_uniforms
from emu.reference.random import adc_normals

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    """Vectors of Random123's kat_vectors for philox4x32 with 10 rounds."""
    words = philox4x32(*counter, *key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_streams_have_the_numbers_of_the_page():
    assert {stream.name: int(stream) for stream in Stream} == {
        "PROGRAM": 0,
        "PROGRAM_NEGATIVE": 1,
        "PROGRAM_CYCLE": 2,
        "PROGRAM_CYCLE_NEGATIVE": 3,
        "DRIFT": 4,
        "DRIFT_NEGATIVE": 5,
        "PROGRAMMED_READ": 6,
        "PROGRAMMED_READ_NEGATIVE": 7,
        "STUCK": 8,
        "STUCK_NEGATIVE": 9,
        "PROGRAM_SECOND": 10,
        "PROGRAM_SECOND_NEGATIVE": 11,
        "BIT_FLIPS": 12,
        "LEVELS": 13,
        "MODIFIER": 14,
        "WRITE": 16,
        "WRITE_NEGATIVE": 17,
        "COMPENSATION_BASELINE": 18,
        "COMPENSATION_READING": 19,
        "ADC_GAIN": 20,
        "ADC_OFFSET": 21,
        "STUCK_SECOND": 22,
        "STUCK_SECOND_NEGATIVE": 23,
        "OUTPUT_NOISE_SPREAD": 36,
        "NONLINEARITY_SPREAD": 37,
        "UNIT_COLUMN": 24,
        "READ": 64,
        "INPUT_NOISE": 65,
        "UNIT_COLUMN_READ": 66,
        "READ_NEGATIVE_ARRAY": 67,
        "ROUNDING": 68,
        "OUTPUT_NOISE": 72,
        "SAMPLE_KEY": 127,
    }


def _by_hand(counter, key):
    """The four normals of one block, from the page, one scalar at a time."""
    u = [((int(word) >> 8) + 1) * 2.0**-24 for word in philox4x32(*counter, *key)]
    return [
        math.sqrt(-2 * math.log(u[0])) * math.cos(2 * math.pi * u[1]),
        math.sqrt(-2 * math.log(u[0])) * math.sin(2 * math.pi * u[1]),
        math.sqrt(-2 * math.log(u[2])) * math.cos(2 * math.pi * u[3]),
        math.sqrt(-2 * math.log(u[2])) * math.sin(2 * math.pi * u[3]),
    ]


def test_every_row_of_a_stored_array_starts_a_new_block():
    normals = stored_normals(11, 22, 5, Stream.PROGRAM_CYCLE, 3, 6)
    for row in range(3):
        for column in range(6):
            block = row * 2 + column // 4
            expected = _by_hand((block, 0, 5, 2), (11, 22))[column % 4]
            assert normals[row, column] == pytest.approx(expected, abs=1e-14)


def test_uniforms_are_the_words_of_a_block_and_slices_have_their_own():
    uniforms = stored_uniforms(11, 0, 5, Stream.STUCK_NEGATIVE, 3, 6, weight_slice=2)
    for row in range(3):
        for column in range(6):
            words = philox4x32(row * 2 + column // 4, 0, 5, 9 + 2 * 256, 11, 0)
            assert uniforms[row, column] == ((int(words[column % 4]) >> 8) + 1) * 2.0**-24


def test_run_time_noise_is_indexed_by_sample_matrix_position_tile_and_reading():
    """The key of a sample from its index, the rest in the counter; a position before the first wraps around."""
    sample, matrix, position = np.array([4, 9, 2**32 - 1]), np.array([0, 65535, 3]), np.array([7, -1, 2**32 - 1])
    normals = run_time_normals(11, 22, 5, Stream.READ, sample, matrix, position, part=slice(0, 6), tile=3, reading=2)
    for index in range(3):
        key = philox4x32(int(sample[index]), 0, 0, 127, 11, 22)[:2]
        for column in range(6):
            word = int(position[index]) % 2**32
            counter = (column // 4, word, 5 + int(matrix[index]) * 2**16, 64 + 3 * 2**8 + 2 * 2**24)
            expected = _by_hand(counter, key)[column % 4]
            assert normals[index, column] == pytest.approx(expected, abs=1e-14)


def test_places_that_differ_in_one_index_have_noise_of_their_own():
    base = {"seed": 1, "read_seed": 2, "site": 3, "stream": Stream.READ, "sample": 4, "matrix": 5, "position": 6}
    base |= {"tile": 7, "reading": 8}

    def noise(**change):
        place = {**base, **change}
        where = {name: np.array([place.pop(name)]) for name in ("sample", "matrix", "position")}
        return run_time_normals(**place, **where, part=slice(0, 10_000)).ravel()

    changes = [{name: value + 1} for name, value in base.items() if name != "stream"]
    changes += [{"stream": Stream.WRITE}, {"sample": 5, "position": 5}, {"site": 4, "matrix": 4}]
    correlation = np.corrcoef([noise(), *(noise(**change) for change in changes)]) - np.eye(1 + len(changes))
    assert np.abs(correlation).max() < 5 / 100


@pytest.mark.parametrize("part", [slice(0, 3), slice(3, 7), slice(5, 6), slice(8, 11), slice(0, 11), slice(4, 4)])
def test_part_of_a_row_is_cut_from_the_whole_row(part):
    where = np.arange(5), np.arange(5) % 2, np.arange(5) * 3
    whole = run_time_normals(1, 2, 3, Stream.READ, *where, part=slice(0, 11))
    np.testing.assert_array_equal(run_time_normals(1, 2, 3, Stream.READ, *where, part=part), whole[:, part])


def test_converters_of_a_written_operand_are_counted_by_tile_and_adc():
    normals = adc_normals(11, 5, Stream.ADC_GAIN, slice(2, 4), slice(3, 9), 1)
    for tile in range(2, 4):
        for adc in range(3, 9):
            expected = _by_hand((adc // 4, tile, 5, 20 + 2**8), (11, 0))[adc % 4]
            assert normals[tile - 2, adc - 3] == pytest.approx(expected, abs=1e-14)


def test_long_arrays_do_not_depend_on_how_they_are_cut_for_memory(monkeypatch):
    def both():
        where = np.arange(50) // 9, np.arange(50) % 4, np.arange(50)
        run_time = run_time_normals(1, 0, 2, Stream.READ, *where, part=slice(1, 11))
        return stored_normals(1, 0, 2, Stream.PROGRAM, 50, 10), run_time

    monkeypatch.setattr("emu.reference.random._BLOCKS_AT_ONCE", 7)
    in_pieces = both()
    monkeypatch.undo()
    np.testing.assert_array_equal(in_pieces, both())


def test_normals_follow_the_standard_normal_distribution():
    normals = stored_normals(2024, 0, 0, Stream.PROGRAM, 1000, 1000).ravel()
    count = normals.size
    assert abs(normals.mean()) < 4 / math.sqrt(count)
    assert abs(normals.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs(stats.skew(normals)) < 4 * math.sqrt(6 / count)
    assert abs(stats.kurtosis(normals)) < 4 * math.sqrt(24 / count)
    assert stats.kstest(normals, "norm").pvalue > 1e-4


def test_no_seed_is_less_normal_than_chance_allows():
    """Over many seeds the p-values of the Kolmogorov-Smirnov test are themselves uniform."""
    p_values = [
        stats.kstest(stored_normals(seed, 0, 0, Stream.PROGRAM, 100, 100).ravel(), "norm").pvalue for seed in range(200)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_tails_end_where_24_bits_end():
    normals = stored_normals(5, 0, 0, Stream.PROGRAM, 1000, 2000)
    assert 4.5 < np.abs(normals).max() <= math.sqrt(-2 * math.log(2**-24))


def test_arrays_that_differ_in_one_word_are_independent():
    base = {"seed": 1, "cycle_seed": 2, "array": 3, "stream": Stream.PROGRAM}
    arrays = [stored_normals(**base, rows=100, columns=100).ravel()]
    for change in ({"seed": 2}, {"cycle_seed": 3}, {"array": 4}, {"stream": Stream.PROGRAM_NEGATIVE}):
        arrays.append(stored_normals(**{**base, **change}, rows=100, columns=100).ravel())
    correlation = np.corrcoef(arrays) - np.eye(len(arrays))
    assert np.abs(correlation).max() < 4 / 100


def test_values_of_one_block_are_uncorrelated():
    normals = stored_normals(1, 0, 0, Stream.PROGRAM, 100_000, 4)
    assert np.abs(np.corrcoef(normals.T) - np.eye(4)).max() < 4 / math.sqrt(100_000)
    assert np.abs(np.corrcoef((normals**2).T) - np.eye(4)).max() < 4 / math.sqrt(100_000)
