"""Where rows lie: sample, matrix and position of every layout of the page's "Samples" and "Positions"."""

from typing import Any

import numpy as np
import pytest

from emu.contract.structure import Controls, Structure, check_controls, parse_structure
from emu.errors import InputError
from emu.reference import Stream, run_time_normals
from emu.reference.places import check_places, keys_that_count, places, rows_of_operand

from .nodes import PLAIN_DYNAMIC


def node(key_axis: str = "none", **run: Any) -> tuple[Structure, Controls]:
    """A node that writes an operand, and the controls of a run of it."""
    structure = parse_structure("CrossbarMatMulDynamic", {**PLAIN_DYNAMIC, "key_axis": key_axis})
    seeds = {"seed": np.int64(1), "read_seed": np.int64(2)}
    given = {name: np.asarray(value, np.int64) for name, value in run.items()}
    strength, device = np.ones(1, np.float32), np.zeros(0, np.float32)
    return structure, check_controls(structure, device, strength, None, None, **{**seeds, **given})


def of_run(**run: Any) -> Controls:
    return node(**run)[1]


def i(*shape: int) -> Any:
    return np.indices(shape)


@pytest.mark.parametrize(
    ("leading", "axis", "sample", "expected"),
    [
        # samples, heads, rows
        ((2, 3, 4), 0, 5, lambda s, h, m: (5 + s, h, m)),
        ((2, 3, 2, 4), 0, 5, lambda s, g, h, m: (5 + s, g * 2 + h, m)),
        # samples and rows flattened into one, three rows each
        ((6,), 0, [5, 2], lambda i: (5 + i // 3, 0 * i, i % 3)),
        # three windows of each of two samples
        ((6, 4), 0, [5, 2], lambda i, m: (5 + i // 3, i % 3, m)),
        ((6, 2, 4), 0, [5, 2], lambda i, h, m: (5 + i // 3, i % 3 * 2 + h, m)),
        # one index is one sample where they do not divide, or none is said to be there
        ((5, 4), 0, [5, 2], lambda i, m: (5 + i, 0 * i, m)),
        ((5, 4), 0, [5, 0], lambda i, m: (5 + i, 0 * i, m)),
        # rows first, samples second
        ((4, 2), 1, 5, lambda m, s: (5 + s, 0 * s, m)),
        ((4, 6), 1, [5, 2], lambda m, i: (5 + i // 3, i % 3, m)),
        ((3, 6, 4), 1, [5, 2], lambda w, i, m: (5 + i // 3, w * 3 + i % 3, m)),
        # no axis: all is sample 0
        ((2, 3), -1, [5, 2], lambda w, m: (0 * w, w, m)),
        ((4,), -1, 5, lambda m: (0 * m, 0 * m, m)),
        # an operand of rank 2: one matrix, in the first sample
        ((), 0, 5, lambda: (5, 0, 0)),
    ],
)
def test_sample_matrix_and_position_are_those_of_the_page(leading, axis, sample, expected):
    found = places(leading, axis, of_run(sample=sample))
    for part, value in zip((found.sample, found.matrix, found.position), expected(*i(*leading)), strict=True):
        np.testing.assert_array_equal(part, np.broadcast_to(value, leading))


def test_rows_for_every_matrix_of_a_stack_have_their_positions_where_the_samples_are():
    """Y [3 matrices, 2 samples of 3 rows]; without a stack the first axis would hold the positions."""
    g, row = i(3, 6)
    found = places((3, 6), 1, of_run(sample=[5, 2]), of_stack=True)
    np.testing.assert_array_equal([found.sample, found.matrix, found.position], [5 + row // 3, g, row % 3])


def test_rows_are_also_counted_within_their_sample():
    first, second, row = i(3, 6, 4)
    found = places((3, 6, 4), 1, of_run(sample=[5, 2]))
    np.testing.assert_array_equal(found.within, (first * 3 + second % 3) * 4 + row)
    np.testing.assert_array_equal(found.of_batch, second // 3)


@pytest.mark.parametrize(
    ("position", "starts"), [([], [0, 0]), ([7], [7, 7]), ([7, -2], [7, -2]), ([2**32 - 4, 0], [2**32 - 4, 0])]
)
def test_positions_begin_where_the_control_says(position, starts):
    sample, head, row = i(2, 3, 4)
    found = places((2, 3, 4), 0, of_run(sample=5, position=position))
    np.testing.assert_array_equal(found.position, np.asarray(starts)[sample] + row)
    np.testing.assert_array_equal(found.matrix, head)


def test_places_keep_together_in_any_arrangement():
    found = places((2, 3, 4), 0, of_run(sample=5, position=[1, 9]))
    swapped = found.arranged(lambda each: np.swapaxes(each, 0, 1))[2, 1]
    for name in vars(found):
        np.testing.assert_array_equal(getattr(swapped, name), getattr(found, name)[1, 2])


def test_normals_are_those_of_the_places():
    structure, controls = node(sample=5, position=[3, 8])
    found = places((2, 4), 0, controls).arranged(np.ravel)
    normals = found.normals(structure, controls, Stream.READ, part=slice(2, 9), tile=3, reading=1)
    where = np.array([[5] * 4 + [6] * 4, [0] * 8, [3, 4, 5, 6, 8, 9, 10, 11]])
    expected = run_time_normals(1, 2, 0, Stream.READ, *where, part=slice(2, 9), tile=3, reading=1)
    np.testing.assert_array_equal(normals, expected)


def test_rows_of_a_written_operand_are_counted_from_the_first_row_of_its_array():
    """Wherever the rows of the other operand begin; all leading dimensions count matrices."""
    matrices = places((2, 3, 2), 0, of_run(sample=5, position=[100]))
    found = rows_of_operand(matrices, 10, 4)
    sample, first, second, row = i(2, 3, 2, 4)
    np.testing.assert_array_equal([found.sample, found.of_batch], [5 + sample, sample])
    np.testing.assert_array_equal([found.matrix, found.position], [first * 2 + second, 10 + row])


@pytest.mark.parametrize(
    ("keys", "counted", "first"),
    [
        ([], (0, 7), 0),  # all of them, from position 0
        ([[7, 7]], (0, 7), 0),
        ([[20, 20]], (0, 7), 13),  # a window of a longer sequence
        ([[20, 16]], (0, 3), 13),  # padding behind
        ([[5, 5]], (2, 7), 0),  # padding before
        ([[5, 3]], (2, 5), 0),
        ([[20, 25]], (0, 7), 13),  # more cannot count than there are
        ([[20, 13]], (0, 0), 13),
        ([[20, 2]], (0, 0), 13),
        ([[0, 0]], (7, 7), 0),
    ],
)
def test_keys_count_from_position_0_to_the_last_that_counts(keys, counted, first):
    keys = np.reshape(np.asarray(keys, np.int64), (-1, 2))
    assert keys_that_count((9, 7), 0, *node("columns", keys=keys)) == (slice(0, 9), slice(*counted), first)
    assert keys_that_count((7, 9), 0, *node("rows", keys=keys)) == (slice(*counted), slice(0, 9), first)


def test_every_sample_has_keys_of_its_own_or_all_have_the_same():
    own = node("rows", keys=[[7, 7], [20, 16]])
    assert keys_that_count((7, 9), 1, *own) == (slice(0, 3), slice(0, 9), 13)
    shared = node("rows", keys=[[20, 16]])
    assert keys_that_count((7, 9), 1, *shared) == (slice(0, 3), slice(0, 9), 13)
    assert keys_that_count((7, 9), 1, *node()) == (slice(0, 7), slice(0, 9), 0)


def refusal(leading: tuple[int, ...], key_axis: str = "none", **run: Any) -> str:
    structure, controls = node(key_axis, **run)
    with pytest.raises(InputError) as caught:
        check_places(leading, 0, structure, controls, False)
    return str(caught.value).removeprefix("emu: CrossbarMatMulDynamic at site 0: ")


def test_positions_that_no_word_holds_are_refused():
    limits = "of 4 rows, expected positions that end between 0 and 2^32 - 1."
    assert refusal((2, 4), position=[-4]) == f"input 'position' is -4 for the first {limits}"
    assert refusal((2, 4), position=[0, 2**32 - 3]) == f"input 'position' is 4294967293 for the first {limits}"
    structure, controls = node(position=[-3, 2**32 - 4])
    check_places((2, 4), 0, structure, controls, False)


def test_places_for_another_number_of_samples_are_refused():
    assert refusal((2, 4), position=[0, 1, 2]) == "input 'position' is for 3 samples, expected none, 1 or 2."
    assert (
        refusal((6, 4), sample=[0, 3], position=[0, 1]) == "input 'position' is for 2 samples, expected none, 1 or 3."
    )
    sentence = "input 'keys' is for 2 samples, expected none, 1 or 3."
    assert refusal((3, 4), "rows", keys=[[4, 4], [4, 4]]) == sentence


def test_more_matrices_than_a_word_holds_are_refused():
    sentence = "one sample has 65537 matrices of 2 rows, and noise tells 65536 of 2^32 apart; split the input."
    assert refusal((1, 65537, 2)) == sentence
    structure, controls = node()
    check_places((2, 65536, 2), 0, structure, controls, False)
    check_places((0, 65537, 2), 0, structure, controls, False)  # nothing has no place
