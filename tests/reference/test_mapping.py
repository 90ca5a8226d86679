"""From weights to conductances and back: encodings, levels, bit slices, scales."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.contract.structure import check_controls, parse_structure
from emu.reference.mapping import mapping_of, normalized, targets

from .nodes import PLAIN_STORED, controls, held, normal, stored

# CrossSim 3.2.0, reference run: W is [out, in], Rmin 1 kOhm, Rmax 10 kOhm.
W = np.array([[0.5, -0.25, 1, 0], [-1, 0.75, 0.1, 0.33], [0.2, 0.2, 0.2, 0.2]]).T
X = np.array([[0.3, -1, 1, 0.05]])
MAPPING = {"mapping.g_min_us": 100.0, "mapping.g_max_us": 1000.0}
SLICED = {"weight_bits": 8, "slice_bits": 2}
# Without any noise, but through the periphery.
READ = {"read.output_noise": 0.0}


def cell_bits(bits: int) -> dict[str, float]:
    """The mapping with levels."""
    return {**MAPPING, "mapping.cell_bits": bits}


@pytest.mark.parametrize("read", [{}, READ], ids=["product", "read"])
@pytest.mark.parametrize(
    ("node", "numbers", "expected"),
    [
        ({"encoding": "differential"}, MAPPING, [1.4, -0.9335, 0.07]),
        ({"encoding": "two_sided"}, MAPPING, [1.4, -0.9335, 0.07]),
        ({"encoding": "offset"}, MAPPING, [1.4, -0.9335, 0.07]),
        ({"encoding": "offset", "offset_correction": "unit_column"}, MAPPING, [1.4, -0.9335, 0.07]),
        ({"encoding": "differential", "weight_bits": 8}, cell_bits(7), [1.40315, -0.929134, 0.068898]),
        ({"encoding": "offset", "weight_bits": 8}, cell_bits(8), [1.397647, -0.92549, 0.068627]),
        (
            {"encoding": "offset", "weight_bits": 8, "offset_correction": "unit_column"},
            cell_bits(8),
            [1.397647, -0.92549, 0.068627],
        ),
        ({"encoding": "differential", **SLICED}, MAPPING, [1.40315, -0.929134, 0.068898]),
        ({"encoding": "offset", **SLICED}, MAPPING, [1.40315, -0.929134, 0.068898]),
        (
            {"encoding": "offset", "offset_correction": "unit_column", **SLICED},
            MAPPING,
            [1.40315, -0.929134, 0.068898],
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_products_are_those_of_crosssim(node, numbers, expected, read):
    np.testing.assert_allclose(stored(X, W, numbers={**numbers, **read}, **node), [expected], atol=1e-6)


def test_cells_of_four_bits_are_those_of_crosssim():
    """0.1 lies on a tie of 15 levels, which CrossSim's sums in double push down; here a hair does."""
    w = np.where(W == 0.1, 0.0999, W)
    y = stored(X, w, numbers=cell_bits(4), encoding="differential")
    np.testing.assert_allclose(y, [[1.426667, -0.95, 0.07]], atol=1e-6)


def conductances(w: Any, negative: bool, weight_slice: int = 0, **changes: Any) -> Any:
    """The target conductances of w, which is already in units of its scale."""
    numbers = changes.pop("numbers", MAPPING)
    call = {**PLAIN_STORED, **controls(numbers), **changes}
    values = {name: call.pop(name) for name in ("device", "strength", "ranges", "faults", "seed", "read_seed")}
    del call["sample"], call["position"], call["head"]
    structure = parse_structure("CrossbarMatMul", call)
    of_run = check_controls(structure, **values)
    unit = normalized(np.asarray(w, np.float32), np.float32(1), structure, of_run)
    return targets(unit, weight_slice, negative, structure, of_run), mapping_of(structure, of_run)


def test_conductances_are_those_of_crosssim():
    """Row 0 of W: g+ .55 .1 1 .1, g- .1 .325 .1 .1, with an offset .775 .4375 1 .55."""
    row = W[:, 0]
    np.testing.assert_allclose(conductances(row, False, encoding="differential")[0], [0.55, 0.1, 1, 0.1])
    np.testing.assert_allclose(conductances(row, True, encoding="differential")[0], [0.1, 0.325, 0.1, 0.1])
    np.testing.assert_allclose(conductances(row, False, encoding="offset")[0], [0.775, 0.4375, 1, 0.55])
    np.testing.assert_allclose(conductances(row, False, encoding="two_sided")[0], [0.775, 0.4375, 1, 0.55])
    np.testing.assert_allclose(conductances(row, True, encoding="two_sided")[0], [0.325, 0.6625, 0.1, 0.55])


def test_an_offset_with_levels_leaves_the_lowest_level_out():
    """Two bits: levels 0, 1/3, 2/3, 1; -1 is stored at 1/3, 0 at 2/3, 1 at 1."""
    g, mapping = conductances([-1, 0, 1], False, encoding="offset", numbers=cell_bits(2))
    np.testing.assert_allclose(g, [0.1 + 0.9 / 3, 0.1 + 0.9 * 2 / 3, 1.0])
    assert mapping.factors == pytest.approx((2 / 0.9,))
    assert mapping.offset == pytest.approx((1 - 0.3) * 2 / 0.9)


def test_slices_are_the_digits_of_a_code():
    """Code 90 of 127 = 1 01 10 10 in base 4, lowest digit first 2, 2, 1, 1; -90 + 128 = 38 = 2, 1, 2, 0."""
    node = {"encoding": "differential", **SLICED}
    digits = [conductances([-90 / 127], True, i, **node)[0][0] for i in range(4)]
    np.testing.assert_allclose(digits, [0.1 + 0.9 * d / 3 for d in (2, 2, 1, 1)], rtol=1e-7)
    np.testing.assert_allclose([conductances([-90 / 127], False, i, **node)[0][0] for i in range(4)], 0.1)
    digits = [conductances([-90 / 127], False, i, **{**node, "encoding": "offset"})[0][0] for i in range(4)]
    np.testing.assert_allclose(digits, [0.1 + 0.9 * d / 3 for d in (2, 1, 2, 0)], rtol=1e-7)
    factors = conductances([0], False, **node)[1].factors
    np.testing.assert_allclose(factors, [4.0**i * 3 / (127 * 0.9) for i in range(4)])


@given(
    bits=st.integers(2, 16),
    slice_bits=st.integers(0, 8),
    encoding=st.sampled_from(["differential", "offset"]),
    g_min=st.sampled_from([0.0, 1.0, 300.0]),
    seed=st.integers(0, 100),
)
@settings(deadline=None)
def test_any_slices_hold_the_rounded_weight(bits, slice_bits, encoding, g_min, seed):
    w = normal(5, 4, seed=seed)
    most = 2 ** (bits - 1) - 1
    unit = w / np.abs(w).max()
    expected = np.rint(unit * np.float32(most)) / most * np.abs(w).max()
    numbers = {"mapping.g_min_us": g_min, "mapping.g_max_us": 1000.0}
    for changes in ({}, {"slice_bits": slice_bits}):
        values = held(w, encoding=encoding, weight_bits=bits, numbers=numbers, **changes)
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_weights_are_rounded_to_codes_in_plain_numbers_too():
    values = held([[1.0, 0.3, -0.45]], weight_bits=3)
    np.testing.assert_allclose(values, [[1, 1 / 3, -1 / 3]], rtol=1e-6)


def test_a_percentile_scales_and_clips():
    """Nine of ten: the ninth smallest magnitude, 9; 10 is clipped to it. 0.85 * 10 rounds up to rank 9 as well."""
    w = np.arange(1.0, 11)[None] * np.array([-1, 1] * 5)
    for percentile in (0.9, 0.85):
        np.testing.assert_allclose(held(w, numbers={"mapping.percentile": percentile}), np.clip(w, -9, 9), rtol=1e-6)
    pair = {"encoding": "differential", "numbers": {**MAPPING, "mapping.percentile": 0.5}}
    np.testing.assert_allclose(held(w, **pair), np.clip(w, -5, 5), rtol=1e-6)
    np.testing.assert_array_equal(held(w, numbers={"mapping.percentile": 1.0}), w)
    by_column = held(np.array([[1.0, 30], [2, 20], [3, 10]]), numbers={"mapping.percentile": 0.5}, scaling="column")
    np.testing.assert_allclose(by_column, [[1, 20], [2, 20], [2, 10]])


def test_scales_are_those_of_what_shares_them():
    """Two bits of weight keep -1, 0 and 1 times the scale, so the scale shows."""
    w = np.array([[8.0, 2, 6, 1], [4, 2, 3, 1], [2, 1, 1, 0.25]])

    def rounded(scaling: str) -> Any:
        return held(w, weight_bits=2, scaling=scaling, tile_rows=2, tile_columns=2)

    np.testing.assert_array_equal(rounded("tensor"), [[8, 0, 8, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(rounded("column"), [[8, 2, 6, 1], [0, 2, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(rounded("tile"), [[8, 0, 6, 0], [0, 0, 0, 0], [2, 0, 1, 0]])
    np.testing.assert_array_equal(rounded("tile_column"), [[8, 2, 6, 1], [0, 2, 0, 1], [2, 1, 1, 0.25]])


def test_a_weight_that_nothing_touches_is_held_to_the_bit():
    w = normal(30, 20)
    np.testing.assert_array_equal(held(w, scaling="column"), w)
