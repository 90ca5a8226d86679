"""Keys of attention: each has its own noise, row and tile wherever it begins, and padding is nobody's. Of both
implementations.
"""

import re
from typing import Any

import numpy as np
import pytest

from benchmarks.agreement.one_crossbar import NATIVE, TWIN, Crossbar
from emu.reference import Stream, run_time_normals
from emu.reference.random import normals_of_cells
from tests.reference.nodes import normal

NOISE = {"read.output_noise": 0.1}
WRITES = {"write": "gauss_prop", "numbers": {"write.sigma": 0.1}}
SEEDS = {"seed": 1, "read_seed": 2, "sample": 5}
PADDING = (np.nan, np.inf, 1e30)


@pytest.fixture(params=[TWIN, NATIVE], ids=lambda each: each.name)
def crossbar(request: pytest.FixtureRequest) -> Crossbar:
    chosen: Crossbar = request.param
    return chosen


def noise(stream: Stream, positions: Any, part: slice, matrix: int = 0, tile: int = 0) -> Any:
    where = np.array([[5, matrix, position] for position in positions]).T
    return run_time_normals(1, 2, 0, stream, *where, part=part, tile=tile)


def same(y: Any, expected: Any) -> None:
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# Noise of their own.


def test_noise_of_scores_is_that_of_the_query_and_of_the_key(crossbar: Crossbar) -> None:
    """Queries from position 30 on, keys 13 to 19: the noise is in column 13 and on of row 30 and on."""
    node = {"key_axis": "columns", "keys": [[20, 20]], "position": [30], "numbers": NOISE, **SEEDS}
    y = crossbar.dynamic(np.zeros((1, 2, 3, 4)), np.ones((1, 2, 4, 7)), **node)
    for matrix in range(2):
        same(y[0, matrix], 0.1 * noise(Stream.READ, range(30, 33), slice(13, 20), matrix))


def test_keys_are_written_with_the_noise_of_their_positions(crossbar: Crossbar) -> None:
    identity, ones = np.eye(6)[None, None], np.ones((1, 2, 6, 6))
    rows = crossbar.dynamic(identity, ones, key_axis="rows", keys=[[20, 20]], **WRITES, **SEEDS)
    columns = crossbar.dynamic(identity, ones, key_axis="columns", keys=[[20, 20]], **WRITES, **SEEDS)
    for matrix in range(2):
        same(rows[0, matrix], 1 + 0.1 * noise(Stream.WRITE, range(14, 20), slice(0, 6), matrix))
        same(columns[0, matrix], 1 + 0.1 * noise(Stream.WRITE, range(6), slice(14, 20), matrix))


def test_inputs_of_a_context_have_the_noise_of_their_keys(crossbar: Crossbar) -> None:
    node = {"key_axis": "rows", "keys": [[20, 20]], "numbers": {"read.input_noise": 0.1}, **SEEDS}
    y = crossbar.dynamic(np.zeros((1, 3, 6)), np.eye(6)[None], **node)
    same(y[0], 0.1 * noise(Stream.INPUT_NOISE, range(3), slice(14, 20)))


def test_keys_before_position_0_move_the_array_and_not_the_noise(crossbar: Crossbar) -> None:
    node = {"key_axis": "columns", "numbers": NOISE, **SEEDS}
    y = crossbar.dynamic(np.zeros((1, 3, 4)), np.ones((1, 4, 7)), keys=[[5, 3]], **node)
    same(y[0, :, 2:5], 0.1 * noise(Stream.READ, range(3), slice(0, 3)))
    assert not y[0, :, [0, 1, 5, 6]].any()


# What stays with the cells.

PAIR = {"mapping.g_min_us": 0.1, "mapping.g_max_us": 10.0}


def of_cells(rows: Any, columns: Any, matrix: int = 0) -> Any:
    rows = np.asarray(rows)
    return normals_of_cells(1, Stream.PROGRAM, np.full(len(rows), matrix << 16), rows, columns)


def test_a_part_of_the_error_stays_with_the_cell(crossbar: Crossbar) -> None:
    """The same for every sample and every repetition on a chip; each matrix has cells of its own."""
    node = {"write": "gauss_prop", "numbers": {"write.sigma": 0.0, "write.sigma_device": 0.1}, "key_axis": "rows"}
    identity, ones = np.eye(6)[None, None], np.ones((2, 2, 6, 5))
    for seeds in (SEEDS, {**SEEDS, "read_seed": 9}):
        held = crossbar.dynamic(identity, ones, keys=[[20, 20]], **node, **seeds)
        for sample, matrix in np.ndindex(2, 2):
            same(held[sample, matrix], 1 + 0.1 * of_cells(range(14, 20), range(5), matrix))
    node["numbers"] = {"write.sigma": 0.3, "write.sigma_device": 0.1}
    both = crossbar.dynamic(identity[:1], ones[:1], keys=[[20, 20]], **node, **SEEDS)
    written = 0.3 * noise(Stream.WRITE, range(14, 20), slice(0, 5))
    same(both[0, 0], 1 + written + 0.1 * of_cells(range(14, 20), range(5)))


def test_keys_beyond_the_capacity_take_the_first_cells_again(crossbar: Crossbar) -> None:
    node = {"write": "gauss_prop", **SEEDS, "keys": [[20, 20]]}
    node["numbers"] = {"write.sigma": 0.0, "write.sigma_device": 0.1, "write.capacity": 8}
    identity, ones, places = np.eye(9)[None, None], np.ones((1, 1, 9, 9)), [3, 4, 5, 6, 7, 0, 1, 2, 3]
    rows = crossbar.dynamic(identity, ones, key_axis="rows", **node)
    same(rows[0, 0], 1 + 0.1 * of_cells(places, range(9)))
    columns = crossbar.dynamic(identity, ones, key_axis="columns", **node)
    same(columns[0, 0], 1 + 0.1 * of_cells(range(9), places))


@pytest.mark.parametrize("write", ["lognormal_g", "clipformer"])
def test_cells_are_stuck_for_good(crossbar: Crossbar, write: str) -> None:
    numbers = {**PAIR, "write.sigma": 0.0, "write.stuck_low": 0.2, "write.stuck_high": 0.1}
    numbers |= {"write.gamma": 1} if write == "clipformer" else {}
    node = {"write": write, "key_axis": "rows", **SEEDS}
    halves = np.full((2, 1, 64, 64), 0.5)
    halves[..., 0, 0] = 1  # the scale
    first, other = crossbar.dynamic(np.eye(64)[None, None], halves, numbers=numbers, **node)
    np.testing.assert_array_equal(first, other)
    found, counts = np.unique(np.round(first[0], 4), return_counts=True)
    held = dict(zip(found.tolist(), counts / counts.sum(), strict=True))
    # 0.5 - 0 as it should be, and with either device stuck low or high.
    expected = {0.5: 0.7 * 0.9, 0.0: 0.2 * 0.9 + 0.1 * 0.1, 1.0: 0.1 * 0.9, -0.5: 0.7 * 0.1, -1.0: 0.2 * 0.1}
    assert {value: share for value, share in held.items() if share > 0.002}.keys() == expected.keys()
    for value, share in expected.items():
        assert held[value] == pytest.approx(share, abs=4 * np.sqrt(share / 4096))


def test_each_cell_of_two_bits_is_stuck_by_itself(crossbar: Crossbar) -> None:
    """Zeros, whose positive devices have cells at 3: sums of 3, 12, 48, 192 of 255, a tenth of each."""
    numbers = {**PAIR, "write.sigma": 0.0, "write.gamma": 1, "write.stuck_low": 0.0, "write.stuck_high": 0.1}
    node = {"write": "clipformer", "write_cells": "cells", "numbers": numbers, **SEEDS}
    held = crossbar.dynamic(np.eye(64)[None, None], np.zeros((1, 1, 64, 64)), **node)[0, 0] * 255
    np.testing.assert_allclose(held, np.rint(held), atol=1e-3)
    sums = np.rint(held).astype(int)
    assert not (sums % 3).any()
    assert sums.std() == pytest.approx(np.sqrt(2 * 0.1 * 0.9) * np.sqrt(3**2 + 12**2 + 48**2 + 192**2), rel=0.05)
    everything = {**numbers, "write.stuck_low": 1.0, "write.stuck_high": 0.0, "write.sigma": 0.5}
    ones = crossbar.dynamic(np.eye(8)[None], np.ones((1, 8, 8)), **{**node, "numbers": everything})
    np.testing.assert_allclose(ones, 0, atol=1e-6)


# Tiles.


@pytest.mark.parametrize("split", ["fill", "balanced"])
def test_tiles_of_keys_are_full_ones_from_position_0(crossbar: Crossbar, split: str) -> None:
    """Keys 6 to 12 in tiles of 4 rows: 6 and 7 in tile 1, 8 to 11 in tile 2, 12 in tile 3; each reads its own noise."""
    node = {"key_axis": "rows", "keys": [[13, 13]], "tile_rows": 4, "tile_split": split, "numbers": NOISE, **SEEDS}
    y = crossbar.dynamic(np.zeros((1, 3, 7)), np.ones((1, 7, 5)), **node)
    same(y[0], 0.1 * sum(noise(Stream.READ, range(3), slice(0, 5), tile=tile) for tile in (1, 2, 3)))


@pytest.mark.parametrize("split", ["fill", "balanced"])
def test_column_tiles_of_keys_share_the_range_of_their_adc(crossbar: Crossbar, split: str) -> None:
    """Keys 6 to 12: of each tile only what is at least half of its largest output survives two steps."""
    adc = {"adc": "absmax", "numbers": {"adc.bits": 2, "adc.steps": 0}, "tile_columns": 4, "tile_split": split}
    scores = np.array([[[1, 3, 10, 4, 6, 2, 1]]])
    y = crossbar.dynamic(np.ones((1, 1, 1)), scores, key_axis="columns", keys=[[13, 13]], **adc)
    same(y, [[[0, 3, 10, 0, 10, 0, 1]]])


def test_a_window_of_any_length_has_one_tile_where_tiles_have_no_limit(crossbar: Crossbar) -> None:
    node = {"key_axis": "rows", "keys": [[20, 20]], "tile_rows": 0, "numbers": NOISE, **SEEDS}
    y = crossbar.dynamic(np.zeros((1, 3, 7)), np.ones((1, 7, 5)), **node)
    same(y[0], 0.1 * noise(Stream.READ, range(3), slice(0, 5)))


@pytest.mark.parametrize(("key_axis", "tile_rows", "expected"), [("rows", 8, 4), ("rows", 0, 3), ("none", 8, 3)])
def test_the_last_tile_of_keys_has_the_range_of_a_full_one(
    crossbar: Crossbar, key_axis: str, tile_rows: int, expected: float
) -> None:
    """A sum of 3 with 4 steps over -8 to 8 is 4, over -3 to 3 it is 3."""
    adc = {"adc": "rows", "numbers": {"adc.bits": 0, "adc.steps": 4}, "tile_rows": tile_rows}
    y = crossbar.dynamic(np.ones((1, 1, 3)), np.ones((1, 3, 1)), key_axis=key_axis, **adc)
    same(y, [[[expected]]])


def test_part_of_a_tile_is_read_as_the_tile_with_nothing_in_its_other_rows(crossbar: Crossbar) -> None:
    """Keys 10 to 12 alone, and rows 8 to 15 of which the others hold 0: same wires, ranges and noise."""
    a, b = normal(2, 3, 8), normal(2, 8, 5, seed=1)
    others = [0, 1, 5, 6, 7]
    a[:, :, others], b[:, others] = 0, 0
    numbers = {"dac.bits": 8, "dac.steps": 0, "dac.bound": 1, "adc.bits": 8, "adc.steps": 0, "read.weight_noise": 0.1}
    numbers |= {"read.output_noise": 0.02, "read.ir_drop": 1.0, "read.ir_drop_ratio": 500.0, "adc.gain_sigma": 0.1}
    numbers |= {"adc.offset_sigma": 0.1}
    node = {"key_axis": "rows", "tile_rows": 8, "dac": "absmax", "adc": "rows", "read_noise": "pcm_read", **SEEDS}
    node |= {"ir_drop": "formula", "numbers": numbers}
    whole = crossbar.dynamic(a, b, keys=[[16, 16]], **node)
    same(crossbar.dynamic(a[..., 2:5], b[:, 2:5], keys=[[13, 13]], **node), whole)
    assert np.abs(whole - a @ b).max() > 0.01


# Padding.

NODES: dict[str, dict[str, Any]] = {
    "own scale": {"write_scaling": "matrix"},
    "scale of the sample": {"write_scaling": "sample"},
    "scale of the key": {"write_scaling": "token"},
    "percentile": {"write_scaling": "matrix", "more": {"mapping.percentile": 0.8}},
    "dac": {"dac": "absmax", "more": {"dac.bits": 6, "dac.steps": 0, "dac.bound": 1}},
    "adc": {"adc": "absmax", "more": {"adc.bits": 6, "adc.steps": 0}},
}


@pytest.mark.parametrize("bad", PADDING, ids=str)
@pytest.mark.parametrize("kind", NODES)
@pytest.mark.parametrize("key_axis", ["rows", "columns"])
def test_padding_adds_nothing_and_enters_no_scale_and_no_range(
    crossbar: Crossbar, key_axis: str, kind: str, bad: float
) -> None:
    """Of 9 keys of one sample 2 are before position 0, of another's 3 are behind: as if they were not there."""
    node = {**NODES[kind], "write": "gauss_prop", "key_axis": key_axis, "tile_rows": 4, "tile_columns": 4, **SEEDS}
    node["numbers"] = {"write.sigma": 0.1, "read.output_noise": 0.05, **node.pop("more", {})}
    ends, parts = np.array([[7, 7], [30, 27]]), (slice(2, 9), slice(0, 6))
    rows = key_axis == "rows"
    a, b = normal(2, 2, 3, 9 if rows else 4), normal(2, 2, *((9, 4) if rows else (4, 9)), seed=1)
    for sample, part in enumerate(parts):
        padding = np.setdiff1d(np.arange(9), np.arange(9)[part])
        if rows:
            a[sample, ..., padding], b[sample, :, padding] = 1e3, bad
        else:
            b[sample, ..., padding] = bad
    y = crossbar.dynamic(a, b, keys=ends, **node)
    for sample, part in enumerate(parts):
        own = slice(sample, sample + 1)
        alone = (a[own, ..., part], b[own, :, part]) if rows else (a[own], b[own, ..., part])
        last = ends[sample, 1]
        expected = crossbar.dynamic(*alone, keys=[[last, last]], **{**node, "sample": 5 + sample})
        assert np.isfinite(expected).all()
        found = y[own] if rows else y[own, ..., part]
        same(found, expected)
        if not rows:
            assert not np.delete(y[own], np.arange(9)[part], axis=-1).any()


def test_without_periphery_padding_is_not_written(crossbar: Crossbar) -> None:
    b = np.ones((1, 6, 4))
    y = crossbar.dynamic(np.eye(6)[None], b, key_axis="rows", keys=[[4, 3]], **WRITES, **SEEDS)
    same(y[0, 2:5], 1 + 0.1 * noise(Stream.WRITE, range(3), slice(0, 4)))
    np.testing.assert_array_equal(y[0, [0, 1, 5]], 1)


def test_keys_that_are_all_padding_give_zeros(crossbar: Crossbar) -> None:
    for key_axis, shape in (("rows", (1, 6, 4)), ("columns", (1, 4, 6))):
        for numbers in (NOISE, {**NOISE, "write.sigma": 0.1, "write.sigma_device": 0.1}):
            node = {"write": "gauss_prop", "key_axis": key_axis, "keys": [[9, 3]], "numbers": numbers}
            node |= {"write": "none"} if numbers is NOISE else {}
            assert not crossbar.dynamic(np.ones((1, 3, shape[1])), np.ones(shape), **node).any()


# Steps.


def test_scores_of_a_growing_cache_are_those_of_the_whole(crossbar: Crossbar) -> None:
    """Queries in two steps, keys in two pieces."""
    node = {"write": "lognormal_w", "write_scaling": "token", "key_axis": "columns", "tile_columns": 4, **SEEDS}
    node["numbers"] = {"write.sigma": 0.1, "read.output_noise": 0.05}
    a, b = normal(1, 2, 5, 6), normal(1, 2, 6, 9, seed=1)
    whole = crossbar.dynamic(a, b, keys=[[9, 9]], **node)
    for begin, end in ((0, 3), (3, 9), (7, 8)):
        part = crossbar.dynamic(a[..., 2:, :], b[..., begin:end], keys=[[end, end]], position=[2], **node)
        same(part, whole[..., 2:, begin:end])


def test_contexts_of_a_growing_cache_are_those_of_the_whole(crossbar: Crossbar) -> None:
    """Values that are not looked at yet add nothing; tile by tile, so that later tiles read no noise either."""
    node = {"write": "lognormal_w", "write_scaling": "token", "key_axis": "rows", "tile_rows": 4, "dac": "absmax"}
    node |= {"numbers": {"write.sigma": 0.1, "read.output_noise": 0.05, "dac.bits": 0, "dac.steps": 0, "dac.bound": 1}}
    a, b = normal(1, 2, 1, 9), normal(1, 2, 9, 6, seed=1)
    a[..., 6:] = 0
    whole = crossbar.dynamic(a, b, keys=[[9, 9]], position=[5], **node, **SEEDS)
    same(crossbar.dynamic(a[..., :6], b[..., :6, :], keys=[[6, 6]], position=[5], **node, **SEEDS), whole)


# Errors: the same sentence.


def sentences(a: Any, b: Any, **node: Any) -> str:
    """The sentence of both implementations."""
    said = []
    for each in (TWIN, NATIVE):
        with pytest.raises(Exception) as caught:
            each.dynamic(a, b, **{"numbers": NOISE, **node})
        text = " ".join(str(caught.value).split())
        said.append(re.sub(r".*emu: (node 'the/node'[,:]|CrossbarMatMulDynamic at site 0:) ", "", text))
    assert said[0] == said[1]
    return said[0]


A, B = np.ones((2, 3, 4)), np.ones((2, 4, 5))
BOTH_ENDS = "of 3 rows, expected positions that end between 0 and 2^32 - 1."


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ({"position": [-3]}, f"input 'position' is -3 for the first {BOTH_ENDS}"),
        ({"position": [0, 2**32 - 2]}, f"input 'position' is 4294967294 for the first {BOTH_ENDS}"),
        ({"position": [0, 1, 2]}, "input 'position' is for 3 samples, expected none, 1 or 2."),
        ({"position": 3}, "input 'position' has shape [], expected [b], one for each sample."),
        ({"keys": [[5, 5]]}, "input 'keys' is given, expected none because 'key_axis' is 'none'."),
        (
            {"keys": [[5, 5]] * 3, "key_axis": "columns"},
            "input 'keys' is for 3 samples, expected none, 1 or 2.",
        ),
        (
            {"write": "gauss_prop", "numbers": {"write.sigma": 1, "write.stuck_low": 0.1, "write.stuck_high": 0}},
            "attribute 'write' is 'gauss_prop', expected 'lognormal_g' or 'clipformer' because of entry "
            "'write.stuck_low': only conductances are stuck.",
        ),
        (
            {"numbers": {"write.stuck_low": 0.6, "write.stuck_high": 0.5}},
            "entry 'write.stuck_high' of input 'device' is 0.5, expected at most 1 together with 'write.stuck_low'.",
        ),
        ({"keys": [[5, -1]], "key_axis": "rows"}, "input 'keys' is [5, -1] for a sample, expected 0 to 2^32 - 1."),
        (
            {"keys": [[2**32, 5]], "key_axis": "rows"},
            "input 'keys' is [4294967296, 5] for a sample, expected 0 to 2^32 - 1.",
        ),
        (
            {"keys": [[2**17, 2**17]], "key_axis": "rows", "tile_rows": 1},
            "attribute 'tile_rows' is 1, which cuts 131072 rows into 131072 tiles, expected at most 65536; use taller "
            "tiles.",
        ),
        (
            {"write_scaling": "calibrated", "ranges": (1, -1, 1, 0)},
            "input 'ranges' has the operand 0 for this site, expected finite and > 0: 'emu calibrate' finds it.",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_meets_the_same_sentence(node: dict[str, Any], sentence: str) -> None:
    assert sentences(A, B, **node) == sentence


def test_the_furthest_positions_and_tiles_work(crossbar: Crossbar) -> None:
    node = {"numbers": NOISE, "key_axis": "rows"}
    for changes in ({"position": [-2, 2**32 - 3]}, {"keys": [[2**16, 2**16]], "tile_rows": 1}):
        assert np.isfinite(crossbar.dynamic(A, B, **node, **changes)).all()


def test_more_matrices_than_noise_tells_apart_meet_the_same_sentence() -> None:
    sentence = "one sample has 65537 matrices of 1 rows, and noise tells 65536 of 2^32 apart; split the input."
    assert sentences(np.ones((1, 65537, 1, 1)), np.ones((1, 1))) == sentence
