"""What DAC, noise, ADC and bound management make of a product, tile by tile."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from emu.contract.structure import parse_structure
from emu.reference import Stream, Trace, run_time_normals
from emu.reference.periphery import sum_of_variances

from .nodes import EVERYTHING_STORED, PLAIN_STORED, dynamic, first_rows, held, normal, stored

# aihwkit, reference run of AnalogMVM with noise off: its W is [out, in] and |W| <= 1 is already in tile units.
W_AIHWKIT = np.array([[0.5, -0.25, 1, 0], [-1, 0.75, 0.1, 0.33], [0.2, 0.2, 0.2, 0.2]]).T
X_AIHWKIT = np.array([[0.3, -1.7, 2, 0.05]])


def aihwkit_io(dac_steps: int, adc_steps: int, out_bound: float, **changes: Any) -> dict[str, Any]:
    """aihwkit's IO parameters: input range by abs-max, iterative bound management up to 1000 and 0.25."""
    numbers = {
        "dac.bits": 0,
        "dac.steps": dac_steps,
        "dac.bound": 1,
        "adc.bits": 0,
        "adc.steps": adc_steps,
        "adc.bound": out_bound,
        "adc.max_bound_factor": 1000,
        "adc.max_bound_resolution": 0.25,
    }
    return {"dac": "absmax", "adc": "fixed", "bound_management": "iterative", "numbers": numbers, **changes}


@pytest.mark.parametrize(
    ("x", "w", "io", "expected"),
    [
        (X_AIHWKIT, W_AIHWKIT, aihwkit_io(126, 510, 12), [2.541176, -1.317647, 0.094118]),
        (X_AIHWKIT, W_AIHWKIT, aihwkit_io(254, 254, 10), [2.519685, -1.417323, 0.15748]),
        (np.ones((1, 64)), np.ones((64, 2)), aihwkit_io(126, 510, 12), [65.12941, 65.12941]),
        (np.ones((1, 64)), np.ones((64, 2)), aihwkit_io(254, 254, 10), [64.25197, 64.25197]),
        (np.ones((1, 512)), np.ones((512, 1)), aihwkit_io(126, 510, 12), [192.0]),
        (np.ones((1, 512)), np.ones((512, 1)), aihwkit_io(254, 254, 10), [320.0]),
        (np.ones((1, 512)), np.ones((512, 1)), aihwkit_io(256, 256, 10), [510.0]),
    ],
    ids=["default", "res254_bound10", "ones64_default", "ones64_254", "ones512_default", "ones512_254", "ones512_256"],
)
def test_products_are_those_of_aihwkit(x, w, io, expected):
    """Source: aihwkit, reference run."""
    np.testing.assert_allclose(stored(x, w, **io), [expected], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("bits", "steps"), [(7, 126), (8, 254), (9, 510), (2, 2)])
def test_steps_follow_from_bits_unless_given(bits, steps):
    x, w = normal(5, 20), normal(20, 6)
    by_steps = aihwkit_io(steps, steps, 12)
    by_bits = aihwkit_io(0, 0, 12)
    by_bits["numbers"] |= {"dac.bits": bits, "adc.bits": bits}
    np.testing.assert_array_equal(stored(x, w, **by_bits), stored(x, w, **by_steps))
    both = aihwkit_io(steps, steps, 12)
    both["numbers"] |= {"dac.bits": 5, "adc.bits": 5}
    np.testing.assert_array_equal(stored(x, w, **both), stored(x, w, **by_steps))


def _dac_only(kind: str = "absmax", **numbers: float) -> dict[str, Any]:
    return {"dac": kind, "numbers": {"dac.bits": 0, "dac.steps": 0, "dac.bound": 1, **numbers}}


def test_dac_without_steps_and_all_else_off_is_the_exact_product():
    x, w = normal(6, 50), normal(50, 7)
    np.testing.assert_allclose(stored(x, w, **_dac_only()), x.astype(np.float64) @ w, rtol=1e-5, atol=1e-5)


def test_dac_rounds_halves_to_even():
    """Four steps over [-1, 1]: codes are x * 2, and 0.25, 0.75, 1.25 lie halfway between two codes."""
    x = np.diag([0.25, 0.75, -0.25, -0.75]).astype(np.float32)
    through = stored(x, np.eye(4), **_dac_only("fixed", **{"dac.max": 1, "dac.steps": 4}))
    np.testing.assert_array_equal(np.diag(through), [0, 1, 0, -1])


@given(x=hnp.arrays(np.float32, (3, 4), elements=st.floats(-4, 4, width=32)), half_steps=st.integers(1, 300))
def test_dac_is_idempotent(x, half_steps):
    """With a fixed range of 1, the output of an identity crossbar is the DAC's output itself.

    Only for even steps, as bits give: an odd number puts the ends of the range halfway between two codes.
    """
    dac = _dac_only("fixed", **{"dac.max": 1, "dac.steps": 2 * half_steps})
    once = stored(x, np.eye(4), **dac)
    np.testing.assert_allclose(stored(once, np.eye(4), **dac), once, rtol=2e-7)


def test_fixed_dac_range_clips_what_exceeds_it():
    through = stored([[0.5, 2.0, -9.0]], np.eye(3), **_dac_only("fixed", **{"dac.max": 3, "dac.bound": 0.5}))
    np.testing.assert_allclose(through, [[0.5, 1.5, -1.5]], rtol=1e-6)


def test_absmax_dac_range_is_that_of_each_row_in_each_tile():
    """Two steps: only values of at least half the range survive, so the range shows."""
    x = np.array([[8, 1, 1, 0.2], [1, 0.2, 1, 0.6]])
    through = stored(x, np.eye(4), tile_rows=2, **_dac_only(**{"dac.steps": 2}))
    np.testing.assert_allclose(through, [[8, 0, 1, 0], [1, 0, 1, 1]], rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 64])
def test_fixed_adc_clips_at_its_bound_in_units_of_weight_and_input_range(steps):
    numbers = {"dac.bits": 0, "dac.steps": 0, "dac.bound": 1, "adc.bits": 0, "adc.steps": steps, "adc.bound": 2}
    y = stored(np.full((1, 10), 3.0), np.full((10, 1), 5.0), dac="absmax", adc="fixed", numbers=numbers)
    np.testing.assert_allclose(y, [[2 * 3 * 5]], rtol=1e-6)


def test_absmax_adc_has_the_range_of_each_tile():
    """Two steps over the largest output of a tile: what is below half of it becomes 0."""
    x, w = np.ones((1, 1)), np.array([[8, 3, 1, 0.6]])
    adc = {"adc": "absmax", "numbers": {"adc.bits": 0, "adc.steps": 2}}
    np.testing.assert_allclose(stored(x, w, **adc), [[8, 0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(stored(x, w, tile_columns=2, **adc), [[8, 0, 1, 1]], rtol=1e-6)


def test_absmax_adc_of_zeros_is_zero():
    y = stored(np.zeros((2, 3)), np.ones((3, 4)), adc="absmax", numbers={"adc.bits": 8, "adc.steps": 0})
    np.testing.assert_array_equal(y, np.zeros((2, 4)))


def test_column_scales_let_small_columns_use_the_whole_range():
    x, w = normal(20, 30), normal(30, 2, seed=1) * np.array([1.0, 1e-3], dtype=np.float32)
    io = aihwkit_io(0, 254, 12)
    exact = x.astype(np.float64) @ w

    def error(scaling: str) -> float:
        y = stored(x, w, scaling=scaling, **io)
        return float(np.abs(y - exact)[:, 1].max() / np.abs(exact[:, 1]).max())

    assert error("column") < 0.05
    assert error("tensor") > 0.5


def test_bound_management_recovers_what_saturates_and_leaves_the_rest():
    """One saturated row of two: it alone is read again with smaller inputs."""
    x, w = np.array([[1.0] * 40, [1.0] + [0.0] * 39]), np.ones((40, 3))
    io = aihwkit_io(126, 0, 12)
    np.testing.assert_allclose(stored(x, w, **io), [[40.0] * 3, [1.0] * 3], rtol=0.02)
    np.testing.assert_allclose(stored(x, w, **{**io, "bound_management": "none"}), [[12.0] * 3, [1.0] * 3], rtol=1e-6)


def test_bound_management_repeats_one_tile_not_its_neighbours():
    """Column 1 saturates. In its own tile it leaves column 0, read at full resolution, alone."""
    x, w = np.ones((1, 64)), np.stack([np.full(64, 0.0), np.full(64, 1.0)], axis=1)
    w[0, 0] = 1 / 64
    io = aihwkit_io(0, 254, 10)
    step = 20 / 254
    np.testing.assert_allclose(stored(x, w, tile_columns=1, scaling="tensor", **io)[0, 0], 0, atol=1e-6)
    w[:2, 0] = 1
    assert stored(x, w, tile_columns=1, **io)[0, 0] == pytest.approx(round(2 / step) * step, rel=1e-6)
    assert stored(x, w, **io)[0, 0] == pytest.approx(round(2 / 8 / step) * step * 8, rel=1e-6)


def test_bound_management_stops_at_its_largest_factor():
    """512 ones need b = 64; a largest factor of 4 is passed at b = 8, which stands."""
    io = aihwkit_io(0, 0, 10)
    io["numbers"]["adc.max_bound_factor"] = 4
    assert stored(np.ones((1, 512)), np.ones((512, 1)), **io)[0, 0] == pytest.approx(10 * 8)


def test_repeated_products_see_fresh_noise():
    """At b = 4 the product fits; its noise is that of repeats 2."""
    io = aihwkit_io(0, 0, 12)
    io["numbers"]["read.output_noise"] = 0.01
    y = stored(np.ones((1, 40)), np.ones((40, 5)), seed=3, read_seed=4, **io)
    noise = run_time_normals(3, 4, 0, Stream.READ, *first_rows(1), part=slice(0, 5), reading=2)
    np.testing.assert_allclose(y, (10 + 0.01 * noise) * 4, rtol=1e-6)


def test_zero_rows_give_zero_whatever_the_noise():
    numbers = {"dac.bits": 8, "dac.steps": 0, "dac.bound": 1, "read.output_noise": 0.5}
    x = np.zeros((3, 4))
    x[1] = 1
    y = stored(x, np.ones((4, 5)), dac="absmax", numbers=numbers)
    assert not y[[0, 2]].any() and y[1].all()


def _noise(x: Any, w: Any, read_noise: str = "none", **changes: Any) -> Any:
    """The noise on the product of a stored site without converters."""
    x, w = np.asarray(x, np.float32), np.asarray(w, np.float32)
    return stored(x, w, read_noise=read_noise, **changes) - x.astype(np.float64) @ w


def test_output_noise_is_the_read_stream_times_its_amplitude():
    noise = _noise(np.zeros((6, 3)), np.zeros((3, 10)), numbers={"read.output_noise": 0.5}, seed=1, read_seed=2, site=3)
    normals = run_time_normals(1, 2, 3, Stream.READ, *first_rows(6), part=slice(0, 10))
    np.testing.assert_allclose(noise, 0.5 * normals, rtol=1e-6)


@pytest.mark.parametrize("read_noise", ["additive_constant", "pcm_read", "proportional"])
def test_weight_noise_has_the_amplitude_of_its_model(read_noise):
    x, w = normal(1, 20), normal(20, 3, seed=2)
    x_rows = np.repeat(x, 20_000, axis=0)
    noise = _noise(x_rows, w, read_noise, numbers={"read.weight_noise": 0.05})
    largest = np.abs(w).max()
    unit, squares = np.abs(w) / largest, x.astype(np.float64) ** 2
    sums = {"additive_constant": squares.sum(axis=1), "pcm_read": squares @ unit, "proportional": squares @ unit**2}
    expected = 0.05 * np.sqrt(np.broadcast_to(sums[read_noise], (1, 3)))[0] * largest
    np.testing.assert_allclose(noise.std(axis=0), expected, rtol=0.02)
    assert stats.kstest((noise / expected).ravel(), "norm").pvalue > 1e-4


def test_input_noise_is_drawn_once_for_every_input():
    """An identity shows the inputs: noise in units of the largest input, by the row of X."""
    x = normal(4, 6)
    y = stored(x, np.eye(6), dac="absmax", numbers=_dac_only()["numbers"] | {"read.input_noise": 0.1}, read_seed=2)
    noise = run_time_normals(0, 2, 0, Stream.INPUT_NOISE, *first_rows(4), part=slice(0, 6))
    np.testing.assert_allclose(y, x + 0.1 * noise * np.abs(x).max(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_tiles_see_their_part_of_the_input_noise():
    x, w, numbers = normal(4, 6), normal(6, 5), {"read.input_noise": 0.1}
    noise = run_time_normals(0, 0, 0, Stream.INPUT_NOISE, *first_rows(4), part=slice(0, 6))
    tiled = stored(x, w, tile_rows=2, tile_columns=2, numbers=numbers, strength=0.5)
    np.testing.assert_allclose(tiled, (x + 0.05 * noise) @ w, rtol=1e-4, atol=1e-5)


def test_a_repeated_product_keeps_its_input_noise():
    """40 ones need b = 4; what is fed is 1/4 plus the noise of the first attempt."""
    io = aihwkit_io(0, 0, 12)
    io["numbers"]["read.input_noise"] = 0.01
    y = stored(np.ones((1, 40)), np.ones((40, 1)), **io)
    noise = run_time_normals(0, 0, 0, Stream.INPUT_NOISE, *first_rows(1), part=slice(0, 40))
    assert y[0, 0] == pytest.approx(4 * (10 + 0.01 * noise.sum()), rel=1e-5)


@pytest.mark.parametrize(("rows", "expected"), [(256, 246.67681517501973), (512, 446.52167913077295)])
def test_ir_drop_is_the_formula_of_aihwkit(rows, expected):
    """aihwkit's polynomial with a ratio of 1 / 0.35 / 5e-6 for ones times ones."""
    numbers = {"read.ir_drop": 1.0, "read.ir_drop_ratio": 1 / 0.35 / 5e-6}
    y = stored(np.ones((1, rows)), np.ones((rows, 1)), ir_drop="formula", numbers=numbers, strength=0.01)
    assert y[0, 0] == pytest.approx(expected, rel=1e-6)


def test_ir_drop_takes_most_from_inputs_far_from_the_readout():
    """Rows count within their tile: 1 - (1 - k / n)^2 is 0, 7/16, 3/4, 15/16 for four rows."""
    numbers = {"read.ir_drop": 0.5, "read.ir_drop_ratio": 100.0}
    x = np.eye(8) + 1e-3
    y = stored(x, np.ones((8, 1)), ir_drop="formula", tile_rows=4, numbers=numbers)
    assert y.shape == (8, 1)
    own, both = 1 + 4e-3, 1 + 8e-3
    for k in range(4):
        a, b = 4 / 100 * own, 4 / 100 * 4e-3
        away = np.array([0, 7 / 16, 3 / 4, 15 / 16])
        lost = 0.5 * a * (a * (0.05 * a - 0.2) + 0.5) * (away[k] + 1e-3 * away.sum())
        lost += 0.5 * b * (b * (0.05 * b - 0.2) + 0.5) * 1e-3 * away.sum()
        assert y[k, 0] == pytest.approx(both - lost, rel=1e-6)
        assert y[k + 4, 0] == pytest.approx(both - lost, rel=1e-6)


def test_ir_drop_of_a_dynamic_site_is_that_of_a_stored_one():
    x, w = normal(1, 6, 23), normal(23, 10)
    node = {"ir_drop": "formula", "numbers": {"read.ir_drop": 1.0, "read.ir_drop_ratio": 50.0}, "tile_rows": 5}
    np.testing.assert_allclose(dynamic(x, w[None], **node), stored(x, w, **node), rtol=1e-5)


def test_weight_and_output_noise_add_in_variance():
    x, w = np.full((20_000, 9), 1.0), np.ones((9, 4))
    noise = _noise(x, w, "additive_constant", numbers={"read.weight_noise": 0.1, "read.output_noise": 0.4})
    assert noise.std() == pytest.approx(0.5, rel=0.02)


def test_noise_of_tiles_is_independent_and_adds_in_variance():
    x, w = np.ones((20_000, 8)), np.ones((8, 4))
    noise = _noise(x, w, tile_rows=2, numbers={"read.output_noise": 0.1})
    assert noise.std() == pytest.approx(0.1 * math.sqrt(4), rel=0.02)


def test_strength_multiplies_read_noise():
    x, w = normal(5, 8), normal(8, 4)
    numbers = {"read.weight_noise": 0.05, "read.output_noise": 0.1}
    doubled = {name: 2 * value for name, value in numbers.items()}
    np.testing.assert_allclose(
        stored(x, w, read_noise="pcm_read", numbers=numbers, strength=2.0),
        stored(x, w, read_noise="pcm_read", numbers=doubled),
        rtol=1e-5,
        atol=1e-6,
    )


def test_converters_act_fully_at_any_strength():
    x, w = normal(5, 20), normal(20, 4)
    io = aihwkit_io(14, 30, 5)
    np.testing.assert_array_equal(stored(x, w, strength=0.01, **io), stored(x, w, strength=1.0, **io))


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 12)),
    tile_rows=st.integers(0, 12),
    tile_columns=st.integers(0, 5),
    split=st.sampled_from(["fill", "balanced"]),
    scaling=st.sampled_from(["tensor", "column", "tile", "tile_column"]),
    seed=st.integers(0, 100),
)
@settings(deadline=None)
def test_tiles_change_nothing_without_quantization_and_noise(shape, tile_rows, tile_columns, split, scaling, seed):
    rows, k, n = shape
    x, w = normal(rows, k, seed=seed), normal(k, n, seed=seed + 1)
    y = stored(x, w, tile_rows=tile_rows, tile_columns=tile_columns, tile_split=split, scaling=scaling, **_dac_only())
    np.testing.assert_allclose(y, x.astype(np.float64) @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "largest", "split", "ends"),
    [
        (768, 512, "balanced", [384, 768]),
        (768, 512, "fill", [512, 768]),
        (10, 4, "balanced", [4, 7, 10]),
        (10, 4, "fill", [4, 8, 10]),
        (9, 2, "balanced", [2, 4, 6, 8, 9]),
        (5, 0, "fill", [5]),
        (5, 9, "balanced", [5]),
    ],
)
def test_tiles_are_cut_as_the_split_says(size, largest, split, ends):
    attributes = {**PLAIN_STORED, "tile_split": split, "tile_rows": largest, "tile_columns": largest}
    structure = parse_structure("CrossbarMatMul", attributes)
    tiles = structure.row_tiles(size)
    assert tiles == structure.column_tiles(size)
    assert [tile.stop for tile in tiles] == ends
    assert [tile.start for tile in tiles] == [0, *ends[:-1]]


def test_a_single_input_and_a_single_output_work():
    assert stored([[2.0]], [[-3.0]], **aihwkit_io(126, 510, 12))[0, 0] == pytest.approx(-6, rel=0.02)


@pytest.mark.parametrize(("inputs", "error"), [("gaussian", 0.002), ("outlier", 0.001), ("half", 0.003)])
def test_variances_of_read_noise_are_accurate_to_8_bits(inputs: str, error: float) -> None:
    x, w = normal(100, 256, seed=1).astype(np.float64), normal(256, 50, seed=2).astype(np.float64)
    if inputs == "outlier":
        x[:, 7] = 30
    if inputs == "half":
        x = np.maximum(x, 0)
    exact, rounded = (np.sqrt(sum_of_variances(x**2, w**2, rounded=each)) for each in (False, True))
    np.testing.assert_allclose(exact, np.sqrt(x**2 @ w**2))
    assert 0 < np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2)) < error


def _whole_steps(values: Any, most: float, digit: int = 1) -> Any:
    """Values as multiples of a step that keeps their sum; of digits, the high one."""
    codes = np.rint(values * (np.float32(most) / values.max()))
    codes = np.floor((codes + digit // 2) / digit)
    return codes * (values.sum() / codes.sum())


def _another_float32_implementation(x: Any, w: Any, **node: Any) -> Any:
    """The page's seven steps for EVERYTHING_STORED, one row and one tile at a time, all sums in float32."""
    numbers = {name: np.float32(value) for name, value in node["numbers"].items()}
    dac, adc = np.float32(2**7 - 2), np.float32(2**8 - 2)
    bound = numbers["adc.bound"]
    y_all = np.zeros((x.shape[0], w.shape[1]), dtype=np.float32)
    stored_w = held(w, **node)
    row_ends = [0, *np.cumsum([len(part) for part in np.array_split(np.arange(w.shape[0]), -(-w.shape[0] // 5))])]
    column_ends = [0, *np.cumsum([len(part) for part in np.array_split(np.arange(w.shape[1]), -(-w.shape[1] // 3))])]
    for i in range(x.shape[0]):
        for t in range(len(row_ends) - 1):
            for c in range(len(column_ends) - 1):
                k, n = slice(row_ends[t], row_ends[t + 1]), slice(column_ends[c], column_ends[c + 1])
                s = np.abs(w[k, n]).max(axis=0)
                tile_w, alpha = stored_w[k, n] / s, np.abs(x[i, k]).max()
                b, repeats = np.float32(1), 0
                while True:
                    x1 = np.rint(x[i, k] * (np.float32(1) / (alpha * b)) * (dac / 2)) * (2 / dac)
                    x1 = np.clip(x1, -1, 1).astype(np.float32)
                    y = np.zeros(tile_w.shape[1], dtype=np.float32)
                    for j in reversed(range(len(x1))):
                        y += x1[j] * tile_w[j]
                    variance = numbers["read.output_noise"] ** 2
                    squares = _whole_steps(x1**2, 255)  # of fewer than 64 rows: none can stand out
                    grows = [squares @ _whole_steps(column, 32639, 256) for column in np.abs(tile_w).T]
                    variance = variance + numbers["read.weight_noise"] ** 2 * np.array(grows)
                    where = np.array([[i], [0], [0]])
                    whole = slice(0, w.shape[1])
                    normals = run_time_normals(0, 0, 0, Stream.READ, *where, part=whole, tile=t, reading=repeats)
                    y = (y + np.sqrt(variance) * normals[0, n].astype(np.float32)).astype(np.float32)
                    stop = b > 1000 or b > np.float32(0.25) / (2 / dac)
                    if not (np.abs(y) > bound * (1 + 1 / adc)).any() or stop:
                        break
                    b, repeats = b * 2, repeats + 1
                y = np.clip(np.rint(y * (adc / (2 * bound))) * (2 * bound / adc), -bound, bound)
                y_all[i, n] += y * (alpha * b) * s
    return y_all


def test_a_scalar_implementation_agrees_wherever_the_trace_says_decided():
    x, w = normal(60, 23, seed=1), normal(23, 10, seed=2)
    trace = Trace()
    y = stored(x, w, trace=trace, **EVERYTHING_STORED)
    other = _another_float32_implementation(x, w, **EVERYTHING_STORED)
    assert trace.undecided.shape == y.shape
    assert trace.undecided.mean() < 0.02
    np.testing.assert_allclose(y[~trace.undecided], other[~trace.undecided], rtol=1e-5, atol=1e-5)


def test_summing_in_float32_changes_codes_only_where_the_trace_says_undecided():
    """A fine ADC and sums taken one float32 after another: some codes differ, every one of them announced."""
    x, w = normal(100, 768), normal(768, 200, seed=1)
    bound, steps = np.float32(200), np.float32(2**16 - 2)
    trace = Trace()
    numbers = {"adc.bits": 16, "adc.steps": 0, "adc.bound": bound}
    y = stored(x, w, trace=trace, scaling="column", adc="fixed", numbers=numbers)
    s = np.abs(w).max(axis=0)
    sums = np.stack([np.cumsum(x * column, axis=1, dtype=np.float32)[:, -1] for column in (w / s).T], axis=1)
    codes = np.clip(np.rint(sums * (steps / (2 * bound))) * (2 * bound / steps), -bound, bound)
    differs = ~np.isclose(y, codes * s, rtol=1e-5, atol=1e-4)
    assert differs.any()
    assert not (differs & ~trace.undecided).any()
    assert trace.undecided.mean() < 0.2


def test_trace_marks_a_value_on_a_tie_and_leaves_its_neighbour():
    adc = {"adc": "fixed", "numbers": {"adc.bits": 0, "adc.steps": 4, "adc.bound": 2}}
    trace = Trace()
    stored([[1.0]], [[1.0, 0.5, 0.25]], trace=trace, **adc)
    assert trace.undecided.tolist() == [[False, True, False]]


def test_trace_marks_every_column_of_a_row_that_may_or_may_not_saturate():
    trace = Trace()
    stored([[1.0] * 12, [1.0] * 11 + [0.0]], np.ones((12, 3)), trace=trace, **aihwkit_io(0, 0, 12))
    assert trace.undecided.tolist() == [[True] * 3, [False] * 3]


def test_trace_leaves_columns_of_other_tiles_and_heads():
    trace = Trace()
    w = np.ones((12, 4))
    w[0, 2:] = 0
    stored([[1.0] * 12], w, trace=trace, tile_columns=2, **aihwkit_io(0, 0, 12))
    assert trace.undecided.tolist() == [[True, True, False, False]]
    stored([[1.0] * 12], np.ones((12, 4)), trace=trace, head=1, heads=2, head_axis="output", **aihwkit_io(0, 0, 12))
    assert trace.undecided.tolist() == [[False, False, True, True]]


def test_memory_chunks_do_not_change_results(monkeypatch):
    x, w = normal(20, 23), normal(23, 10)
    whole = stored(x, w, **EVERYTHING_STORED)
    monkeypatch.setattr("emu.reference.periphery._ROWS_AT_ONCE", 3)
    np.testing.assert_allclose(stored(x, w, **EVERYTHING_STORED), whole, rtol=1e-6, atol=1e-6)
