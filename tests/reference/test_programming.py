"""What programming makes of weights: the law of every model, and what a chip depends on."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.agreement.one_crossbar import law_of
from emu.contract import functions
from emu.errors import InputError
from emu.reference import Stream, stored_normals, stored_uniforms

from .nodes import dynamic, held, normal, stored

MODELS = ["lognormal_w", "lognormal_w_meancorr", "lognormal_g", "gauss_prop", "gauss_range"]
MAPPING = {"mapping.g_min_us": 1.0, "mapping.g_max_us": 11.0}


def program(model: str) -> dict[str, str]:
    """The attributes of a model: conductances for the one that needs them."""
    return {"program": model, "encoding": "differential" if model == "lognormal_g" else "weight"}


def sigmas(sigma: float = 0.1, cycle: float = 0.0) -> dict[str, float]:
    """The entries of `device` that every programming model may need."""
    return {"program.sigma": sigma, "program.sigma_cycle": cycle, **MAPPING}


@pytest.mark.parametrize(
    ("sigma", "mean", "variation", "rms"),
    [
        (0.05, 1.00125, 0.05003, 0.05011),
        (0.10, 1.00501, 0.10025, 0.10088),
        (0.15, 1.01131, 0.15085, 0.15297),
        (0.30, 1.04603, 0.30688, 0.32429),
        (0.50, 1.13315, 0.53294, 0.61840),
    ],
)
def test_lognormal_weights_have_the_moments_of_the_lognormal(sigma, mean, variation, rms):
    """mean e^(s^2/2), coefficient of variation sqrt(e^(s^2) - 1), rms of e^theta - 1, to four standard errors."""
    factor = held(np.ones((1000, 1000)), program="lognormal_w", numbers=sigmas(sigma), seed=3).astype(np.float64)
    standard_error = factor.std() / 1000
    assert factor.mean() == pytest.approx(mean, abs=4 * standard_error + 1e-5)
    assert factor.std() / factor.mean() == pytest.approx(variation, rel=0.01)
    squares = (factor - 1) ** 2
    assert math.sqrt(squares.mean()) == pytest.approx(rms, rel=2 * squares.std() / squares.mean() / 1000 + 1e-4)


def test_mean_corrected_lognormal_keeps_the_mean():
    factor = held(np.ones((1000, 1000)), program="lognormal_w_meancorr", numbers=sigmas(0.3, 0.4), seed=4)
    assert factor.mean(dtype=np.float64) == pytest.approx(1, abs=4 * float(factor.std()) / 1000)


def _disturbance(model: str, w: np.ndarray, stored_values: np.ndarray, sigma: float) -> np.ndarray:
    """Invert a model: the standard normals that made `stored_values` of w, with g_min = 0 for the pair."""
    w, stored_values = w.astype(np.float64), stored_values.astype(np.float64)
    match model:
        case "lognormal_w" | "lognormal_g":
            return np.log(stored_values / w) / sigma
        case "lognormal_w_meancorr":
            return np.log(stored_values / w) / sigma + sigma / 2
        case "gauss_prop":
            return (stored_values / w - 1) / sigma
        case _:
            return (stored_values - w) / np.abs(w).max() / sigma


def assert_standard_normal(values: np.ndarray) -> None:
    """One fixed draw: a false alarm once in ten thousand, while a wrong law or a sigma 2 % off fails."""
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-4
    assert values.std() == pytest.approx(1, abs=4 / math.sqrt(2 * values.size))


@pytest.mark.parametrize("model", MODELS)
def test_stored_values_follow_their_model(model):
    w = normal(400, 300) + np.float32(3) * np.sign(normal(400, 300))
    numbers = {**sigmas(0.2), "mapping.g_min_us": 0.0}
    normals = _disturbance(model, w, held(w, **program(model), numbers=numbers, seed=5), 0.2)
    assert_standard_normal(normals)


@pytest.mark.parametrize("model", MODELS)
def test_written_operands_follow_their_model(model):
    b = normal(3, 100, 200) + np.float32(3) * np.sign(normal(3, 100, 200))
    numbers = {"write.sigma": 0.2, "mapping.g_min_us": 0.0, "mapping.g_max_us": 10.0}
    identity = np.broadcast_to(np.eye(100), (3, 100, 100))
    values = dynamic(identity, b, write=model, numbers=numbers, seed=6)
    normals = np.stack([_disturbance(model, b[i], values[i], 0.2) for i in range(3)])
    assert_standard_normal(normals)


def test_zero_weights_of_a_pair_are_disturbed_by_its_lowest_conductance():
    w = np.zeros((1000, 400), dtype=np.float32)
    w[0, 0] = 2.0
    values = held(w, **program("lognormal_g"), numbers=sigmas(0.3), seed=7)[1:].astype(np.float64)
    r = 1.0 / 10.0
    of_one_device = math.sqrt(math.exp(2 * 0.3**2) - math.exp(0.3**2))
    assert values.std() == pytest.approx(2.0 * r * math.sqrt(2) * of_one_device, rel=0.01)
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(values.size)


def test_both_devices_of_a_pair_have_their_own_streams():
    """The formula of `lognormal_g`, written out for one weight array with device and cycle disturbances."""
    w = normal(5, 6)
    values = held(w, **program("lognormal_g"), numbers=sigmas(0.3, 0.2), strength=0.5, seed=7, read_seed=9, array=2)
    s, r = np.abs(w).max(), 1.0 / 10.0

    def theta(device: Stream, cycle: Stream) -> np.ndarray:
        normals = 0.3 * stored_normals(7, 0, 2, device, 5, 6) + 0.2 * stored_normals(7, 9, 2, cycle, 5, 6)
        return 0.5 * normals

    # In units of g_max - g_min.
    positive = (np.maximum(w / s, 0) + r) * np.exp(theta(Stream.PROGRAM, Stream.PROGRAM_CYCLE))
    negative = (np.maximum(-w / s, 0) + r) * np.exp(theta(Stream.PROGRAM_NEGATIVE, Stream.PROGRAM_CYCLE_NEGATIVE))
    np.testing.assert_allclose(values, s * (positive - negative), rtol=1e-5, atol=1e-6)


def test_zero_weights_stay_zero_when_disturbance_is_proportional():
    for model in ("lognormal_w", "lognormal_w_meancorr", "gauss_prop"):
        assert not held(np.zeros((4, 4)), **program(model), numbers=sigmas(0.5)).any()


def test_lognormal_weights_never_change_sign_but_proportional_ones_do():
    w = normal(200, 200)
    numbers = sigmas(0.5)
    assert (np.sign(held(w, program="lognormal_w", numbers=numbers)) == np.sign(w)).all()
    assert (np.sign(held(w, program="gauss_prop", numbers=numbers)) != np.sign(w)).any()


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_is_the_same_chip(model):
    w, numbers = normal(30, 20), sigmas(0.1)
    chip = held(w, **program(model), numbers=numbers, seed=8)
    np.testing.assert_array_equal(chip, held(w, **program(model), numbers=numbers, seed=8, read_seed=99))
    assert (chip != held(w, **program(model), numbers=numbers, seed=9)).mean() > 0.99


@pytest.mark.parametrize("model", MODELS)
def test_cycle_to_cycle_disturbance_is_redrawn_with_the_read_seed(model):
    w = normal(30, 20)
    cycles = [held(w, **program(model), numbers=sigmas(0, 0.1), seed=8, read_seed=cycle) for cycle in (0, 1)]
    assert (cycles[0] != cycles[1]).mean() > 0.99


def test_device_and_cycle_disturbances_add_in_variance():
    values = held(np.ones((500, 500)), program="lognormal_w", numbers=sigmas(0.3, 0.4), seed=1, read_seed=2)
    assert np.log(values).std() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_strength_multiplies_sigma(model):
    w = normal(30, 20)
    weak = held(w, **program(model), numbers=sigmas(0.05, 0.025), strength=2.0, seed=1)
    np.testing.assert_allclose(weak, held(w, **program(model), numbers=sigmas(0.1, 0.05), seed=1), rtol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_strength_zero_stores_the_weight_itself(model):
    w = normal(30, 20)
    np.testing.assert_allclose(held(w, **program(model), numbers=sigmas(0.5), strength=0.0), w, rtol=1e-6, atol=1e-6)


def test_range_disturbance_is_scaled_by_what_shares_a_scale():
    w = np.ones((400, 300), dtype=np.float32)
    w[:, 0] = 10.0
    w[:200] *= 5
    numbers = sigmas(0.1)

    def spread(scaling: str, rows: slice, column: int | slice) -> float:
        values = held(w, program="gauss_range", numbers=numbers, scaling=scaling, tile_rows=200, tile_columns=100)
        return float((values - w)[rows, column].std())

    top, bottom = slice(0, 200), slice(200, 400)
    assert spread("tensor", bottom, slice(1, None)) == pytest.approx(5.0, rel=0.05)
    assert spread("column", bottom, slice(1, None)) == pytest.approx(0.5, rel=0.05)
    assert spread("tile", bottom, slice(1, 100)) == pytest.approx(1.0, rel=0.05)
    assert spread("tile", bottom, slice(100, None)) == pytest.approx(0.1, rel=0.05)
    assert spread("tile_column", bottom, 0) == pytest.approx(1.0, rel=0.2)
    assert spread("tile_column", top, slice(1, None)) == pytest.approx(0.5, rel=0.05)


def test_programming_does_not_depend_on_tiles_when_one_scale_serves_all():
    w = normal(37, 23)
    whole = held(w, program="gauss_range", numbers=sigmas())
    tiled = held(w, program="gauss_range", numbers=sigmas(), tile_rows=8, tile_columns=5)
    np.testing.assert_array_equal(whole, tiled)


def test_each_matrix_of_a_dynamic_operand_has_its_own_scale():
    b = np.stack([np.ones((50, 80)), 10 * np.ones((50, 80))])
    values = dynamic(np.broadcast_to(np.eye(50), (2, 50, 50)), b, write="gauss_range", numbers={"write.sigma": 0.1})
    assert (values - b)[0].std() == pytest.approx(0.1, rel=0.05)
    assert (values - b)[1].std() == pytest.approx(1.0, rel=0.05)


def test_the_crossbar_multiplies_with_the_programmed_weight():
    x, w, numbers = normal(4, 30), normal(30, 20, seed=1), sigmas()
    expected = x.astype(np.float64) @ held(w, **program("lognormal_g"), numbers=numbers, seed=2)
    np.testing.assert_allclose(
        stored(x, w, **program("lognormal_g"), numbers=numbers, seed=2), expected, rtol=1e-6, atol=1e-6
    )


@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0, 1, width=32), model=st.sampled_from(MODELS))
def test_a_pair_without_leakage_is_the_lognormal_weight(seed, sigma, model):
    w = np.abs(normal(5, 6))
    pair = held(w, **program("lognormal_g"), numbers={**sigmas(sigma), "mapping.g_min_us": 0.0}, seed=seed)
    np.testing.assert_allclose(pair, held(w, program="lognormal_w", numbers=sigmas(sigma), seed=seed), rtol=1e-5)


# Conductances.

# Deviations of a pair with g_min = 0 on its positive device: the negative one is far below and read as it is.


def of_pair(targets: Any, model: str, numbers: dict[str, float], g_max_us: float, **changes: Any) -> Any:
    """Program many positive weights, one column for each target g; the values of the weights, [draws, targets]."""
    w = np.tile(np.asarray(targets, np.float32), (20_000, 1))
    w[0, 0] = 1.0
    mapping = {"mapping.g_min_us": 0.0, "mapping.g_max_us": g_max_us}
    node = {"encoding": "offset", "program": model, "program_clip": "zero", **changes}
    # An offset maps -1 to g = 0 and 1 to g = 1 with a single device.
    return (held(2 * w - 1, numbers={**mapping, **numbers}, **node)[1:].astype(np.float64) + 1) / 2


POLYNOMIALS = {
    # aihwkit's PCM-like model: sigma in microsiemens at g = 0.1, .25, .5, .75, 1.
    "pcm": (
        (0.26348, 1.9650, -1.1731, 0, 0, 25),
        25,
        {0.25: 0.681411, 0.5: 0.952705, 0.75: 1.077361, 1.0: 1.055380},
    ),
    # CrossSim's PCMJoshi: -0.00178767 G^2 + 0.07585724 G + 0.28638599 at 5, 12.5, 20, 25 uS.
    "joshi": (
        (0.28638599, 0.07585724 * 25, -0.00178767 * 625, 0, 0, 25),
        25,
        {0.2: 0.6210, 0.5: 0.9553, 0.8: 1.0885, 1.0: 1.0655},
    ),
    # CrossSim's RRAMMilo: -0.009107 G + 4.782321 at 50, 100, 150, 225 uS.
    "milo": (
        (4.782321, -0.009107 * 225, 0, 0, 0, 225),
        225,
        {50 / 225: 4.327, 100 / 225: 3.8716, 150 / 225: 3.4163, 1.0: 2.7332},
    ),
    # CrossSim's RRAMWan: 1.536e-4 G^3 - 1.167e-2 G^2 + 0.2374 G + 1.053 at 10, 20, 30, 39.26 uS.
    "wan": (
        (1.053, 0.2374 * 39.26, -1.167e-2 * 39.26**2, 1.536e-4 * 39.26**3, 0, 39.26),
        39.26,
        {10 / 39.26: 2.4136, 20 / 39.26: 2.3618, 30 / 39.26: 1.8192, 1.0: 1.6806},
    ),
    # aihwkit's Hermes with two devices and with one.
    "hermes_pair": (
        (0.16603222, 4.71806468, -8.48101252, 4.68961419, 0, 20.7),
        20.7,
        {0.25: 0.8888, 0.5: 0.991, 0.75: 0.9124, 1.0: 1.0927},
    ),
    "hermes_single": (
        (0.15781817, 2.32443916, -2.16310839, 0.68841818, 0, 10.35),
        10.35,
        {0.25: 0.6145, 0.5: 0.8653, 0.75: 0.9748, 1.0: 1.0076},
    ),
    # aihwkit's CMO ReRAM, window of 0.2 %: 8.1107e-4 + 1.06879e-3 G at 30, 60, 88.2 uS.
    "cmo": (
        (8.1107e-4, 1.06879e-3 * 88.199997, 0, 0, 0, 88.199997),
        88.199997,
        {30 / 88.2: 0.0329, 60 / 88.2: 0.0649, 1.0: 0.0950},
    ),
}


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_deviations_are_the_published_polynomials(name):
    coefficients, g_max_us, sigma_us = POLYNOMIALS[name]
    numbers = {f"program.c{power}": c for power, c in enumerate(coefficients[:5])}
    numbers |= {"program.reference_us": coefficients[5], "program.scale": 1.0}
    values = of_pair(list(sigma_us), "polynomial", numbers, g_max_us)
    # Four standard errors of a standard deviation of 20 000 draws.
    np.testing.assert_allclose(values.std(axis=0) * g_max_us, list(sigma_us.values()), rtol=0.02)
    np.testing.assert_allclose(values.mean(axis=0), list(sigma_us), atol=4 * max(sigma_us.values()) / g_max_us / 140)


@pytest.mark.parametrize(
    ("time_s", "sigma_us"),
    [
        (1, [2.2583, 2.0229, 1.533, 1.103]),
        (86400, [3.7208, 3.909, 3.3665, 2.651]),
        (172800, [3.6638, 3.9291, 3.3744, 2.677]),
    ],
)
def test_wan_deviations_are_those_of_aihwkit(time_s, sigma_us):
    """Source: aihwkit ReRamWan2022NoiseModel, reference run, at g = .25 .5 .75 1 of 40 uS."""
    numbers = law_of("rram_wan", "program", scale=0.5, time_s=time_s)
    values = of_pair([0.25, 0.5, 0.75, 1], "polynomial", numbers, 40.0, strength=2.0)
    np.testing.assert_allclose(values.std(axis=0)[1:] * 40, sigma_us[1:], rtol=0.02)


def test_sonos_deviations_saturate_with_the_current():
    """At 100, 400, 800, 1600 nA after 0 s: 8.608, 17.829, 19.674, 19.884 nA."""
    numbers = law_of("sonos", "program", current_max_na=1600)
    values = of_pair([400 / 1600, 800 / 1600, 1], "saturating", numbers, 10.0)
    np.testing.assert_allclose(values.std(axis=0) * 1600, [17.829, 19.674, 19.884], rtol=0.02)
    later = law_of("sonos", "program", current_max_na=1600, time_s="5d")
    assert of_pair([1.0], "saturating", later, 10.0).std() * 1600 == pytest.approx(34.57909, rel=0.02)


def test_a_conductance_below_zero_or_outside_its_range_is_cut():
    """Of a deviation of 1 around 0.5 with a lowest conductance of 0.2."""
    numbers = {
        "mapping.g_min_us": 2.0,
        "mapping.g_max_us": 10.0,
        "program.sigma": 1.0,
        "program.sigma_cycle": 0.0,
    }
    node = {"encoding": "offset", "program": "normal_independent", "numbers": numbers}
    w = np.full((50, 50), -0.25)
    w[0, 0] = 1

    def g(clip: str) -> Any:
        """The conductance of w: w = 2 (g - r) / (1 - r) - 1."""
        return 0.2 + 0.8 * (held(w, program_clip=clip, **node) + 1) / 2

    expected = 0.2 + 0.8 * (w + 1) / 2 + stored_normals(0, 0, 0, Stream.PROGRAM, 50, 50)
    np.testing.assert_allclose(g("zero"), np.maximum(expected, 0), atol=1e-6)
    np.testing.assert_allclose(g("range"), np.clip(expected, 0.2, 1), atol=1e-6)
    np.testing.assert_allclose(g("none"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("normal_independent", lambda g, n, u: g + 0.02 * n),
        ("normal_proportional", lambda g, n, u: g * (1 + 0.02 * n)),
        ("normal_inverse", lambda g, n, u: g + 0.02 * n / g),
        ("uniform_independent", lambda g, n, u: g + 0.02 * (u - 0.5)),
        ("uniform_proportional", lambda g, n, u: g * (1 + 0.02 * (u - 0.5))),
        ("uniform_inverse", lambda g, n, u: g + 0.02 * (u - 0.5) / g),
        ("lognormal_g", lambda g, n, u: g * np.exp(0.02 * n)),
    ],
)
def test_generic_models_are_the_page_formula(model, expected):
    """g of an offset with r = 1/11; strength 0.5 of sigma 0.04."""
    w = normal(6, 7)
    values = held(w, encoding="offset", program=model, numbers=sigmas(0.04), strength=0.5, seed=3, array=2)
    r, s = 1 / 11, np.abs(w).max()
    g = r + (1 - r) * (w / s + 1) / 2
    n, u = (make(3, 0, 2, Stream.PROGRAM, 6, 7) for make in (stored_normals, stored_uniforms))
    back = (np.maximum(expected(g, n, u), 0) - r) / (1 - r) * 2 - 1
    np.testing.assert_allclose(values, s * back, atol=1e-5)


def test_a_conductance_of_zero_has_no_inverse_error():
    numbers = {**sigmas(0.5), "mapping.g_min_us": 0.0}
    assert not held(np.zeros((3, 3)), encoding="differential", program="normal_inverse", numbers=numbers).any()


def test_a_level_has_one_error_wherever_it_is_stored():
    """Two bits of cell: the levels r + R j / 3, each divided by 1 + sigma N_j."""
    w = np.repeat(np.arange(4) / 3, 25).reshape(10, 10)
    numbers = {**MAPPING, "mapping.cell_bits": 2, "program.sigma": 0.1}
    values = held(w, encoding="differential", program="level_shared", numbers=numbers, seed=4, array=1)
    r = 1 / 11
    n = stored_normals(4, 0, 1, Stream.LEVELS, 1, 4)[0]
    level = (r + (1 - r) * np.arange(4) / 3) / (1 + 0.1 * n)
    np.testing.assert_allclose(values, np.repeat(level - level[0], 25).reshape(10, 10) / (1 - r), atol=1e-6)
    sliced = {"weight_bits": 5, "slice_bits": 2, "encoding": "offset"}
    # Code 7 of 15 is stored as 7 + 16 = 23 = 3, 1, 1 in base 4.
    (value,) = held(
        [[7 / 15, 1.0]],
        program="level_shared",
        numbers=_without(numbers, "mapping.cell_bits"),
        seed=4,
        array=1,
        **sliced,
    )[0, :1]
    v, o = level[[3, 1, 1]], (r + (1 - r) * np.array([0, 0, 1]) / 3)
    assert value == pytest.approx((np.array([1, 4, 16]) * 3 / 15 / (1 - r)) @ (v - o), rel=1e-5)


def _without(numbers: dict[str, float], name: str) -> dict[str, float]:
    return {key: value for key, value in numbers.items() if key != name}


def test_every_device_may_have_its_own_range_of_resistance():
    w = normal(5, 6)
    numbers = {**MAPPING, "program.sigma": 0.1, "program.sigma_off": 0.3}
    values = held(w, encoding="differential", program="resistance_range", numbers=numbers, seed=5)
    r, s = 1 / 11, np.abs(w).max()

    def device(unit: Any, first: Stream, second: Stream) -> Any:
        on = 1 / (1 + 0.1 * stored_normals(5, 0, 0, first, 5, 6))
        off = r / (1 + 0.3 * stored_normals(5, 0, 0, second, 5, 6))
        return off + (on - off) * np.maximum(unit, 0)

    positive = device(w / s, Stream.PROGRAM, Stream.PROGRAM_SECOND)
    negative = device(-w / s, Stream.PROGRAM_NEGATIVE, Stream.PROGRAM_SECOND_NEGATIVE)
    np.testing.assert_allclose(values, s * (positive - negative) / (1 - r), atol=1e-5)


def test_a_resistance_cannot_vanish():
    numbers = {**MAPPING, "program.sigma": 10.0, "program.sigma_off": 0.0}
    values = held(np.ones((50, 50)), encoding="offset", program="resistance_range", numbers=numbers)
    assert values.max() == pytest.approx(2 * (100 - 1 / 11) / (10 / 11) - 1, rel=1e-5)


def table(time_s: float | None = None, scale: float = 1.0) -> dict[str, Any]:
    """Measured at 0, 5 and 10 uS after 1 and 100 seconds (only after 1 without a time)."""
    mean, std = [[1.0, 5, 9], [2, 4, 8]], [[0.5, 0.1, 0.3], [0.7, 0.2, 0.4]]
    times = 1 if time_s is None else 2
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 12.0, "program.scale": scale}
    for i, target in enumerate((0.0, 5.0, 10.0)):
        numbers[f"program.target_us.{i}"] = target
        for j in range(times):
            numbers |= {f"program.mean_us.{j}.{i}": mean[j][i], f"program.std_us.{j}.{i}": std[j][i]}
    for j in range(times):
        numbers[f"program.table_time_s.{j}"] = (1.0, 100.0)[j]
    if time_s is not None:
        numbers["program.time_s"] = time_s
    return {"program": "table", "encoding": "offset", "table_times": times, "table_points": 3, "numbers": numbers}


@pytest.mark.parametrize(
    ("time_s", "means_us"),
    [
        (None, [1, 3, 7, 9]),
        (1, [1, 3, 7, 9]),
        (0, [1, 3, 7, 9]),
        (10, [1.5, 3, 6.5, 8.5]),
        (100, [2, 3, 6, 8]),
        (1000, [2, 3, 6, 8]),
    ],
)
def test_a_table_is_read_between_its_points_and_times(time_s, means_us):
    """Targets 0, 2.5, 7.5 and 12 uS; 10 s lies halfway between 1 and 100 s in its logarithm."""
    target = np.array([[0, 2.5, 7.5, 12]])
    values = held(target / 6 - 1, **table(time_s, scale=0.0))
    np.testing.assert_allclose((values + 1) * 6, [means_us], atol=1e-5)


def test_a_table_says_how_far_devices_scatter():
    """At 2.5 uS after 1 s: 0.3 uS."""
    w = np.full((300, 300), 2.5 / 6 - 1)
    w[0, 0] = 1
    assert (held(w, **table(scale=1.0))[1:] * 6).std() == pytest.approx(0.3, rel=0.02)


def test_the_largest_weight_of_a_tile_sets_its_modifier():
    """Source: aihwkit's ADD_NORMAL modifier, relative to the largest weight."""
    w = normal(6, 8)
    values = held(w, numbers={"program.modifier": 0.1}, strength=2.0, tile_rows=4, tile_columns=4, seed=3)
    largest = np.empty_like(w)
    for k in (slice(0, 4), slice(4, 6)):
        for n in (slice(0, 4), slice(4, 8)):
            largest[k, n] = np.abs(w[k, n]).max()
    expected = w + 0.2 * largest * stored_normals(3, 0, 0, Stream.MODIFIER, 6, 8)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    pair = {"encoding": "differential", "numbers": {**MAPPING, "program.modifier": 0.1}}
    np.testing.assert_allclose(held(w, strength=2.0, tile_rows=4, tile_columns=4, seed=3, **pair), expected, atol=1e-5)


def test_slices_have_devices_of_their_own():
    """Lognormal errors of two slices of one code, 5 = 1 + 4 * 1: each with its slice's normals."""
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 10.0, "program.sigma": 0.2, "program.sigma_cycle": 0.0}
    node = {"weight_bits": 5, "slice_bits": 2, "encoding": "differential", "program": "lognormal_g"}
    w = np.array([[5 / 15, 1.0]])
    value = held(w, numbers=numbers, seed=6, **node)[0, 0]
    first, second = (stored_normals(6, 0, 0, Stream.PROGRAM, 1, 2, weight_slice=i)[0, 0] for i in (0, 1))
    assert value == pytest.approx((np.exp(0.2 * first) + 4 * np.exp(0.2 * second)) / 15, rel=1e-5)


# Functions of one's own.


@pytest.fixture
def function():
    """Register a function for one test; what it was called with."""
    calls = []

    def half_and_noise(target: Any, normals: Any, parameters: Any) -> Any:
        calls.append((target, normals, dict(parameters)))
        return (target * parameters["share"] + normals).astype(np.float32)

    functions.register("half and noise", half_and_noise)
    yield calls
    functions._functions.pop("half and noise")


def test_a_function_programs_each_device_of_a_pair(function):
    w = normal(4, 5)
    node = {"program": "function", "program_function": "half and noise", "program_clip": "zero"}
    numbers = {**MAPPING, "program.parameter.share": 0.5}
    values = held(w, encoding="differential", numbers=numbers, strength=0.1, seed=7, **node)
    r, s = 1 / 11, np.abs(w).max()

    def device(unit: Any, stream: Stream) -> Any:
        target = r + (1 - r) * np.maximum(unit, 0)
        return np.maximum(0.5 * target + 0.1 * stored_normals(7, 0, 0, stream, 4, 5), 0)

    expected = device(w / s, Stream.PROGRAM) - device(-w / s, Stream.PROGRAM_NEGATIVE)
    np.testing.assert_allclose(values, s * expected / (1 - r), atol=1e-6)
    assert len(function) == 2
    assert all(target.dtype == normals.dtype == np.float32 for target, normals, _ in function)
    assert function[0][2] == {"share": 0.5}


def test_a_function_programs_plain_numbers(function):
    node = {"program": "function", "program_function": "half and noise"}
    values = held([[2.0, -4.0]], numbers={"program.parameter.share": 0.5}, seed=7, **node)
    normals = stored_normals(7, 0, 0, Stream.PROGRAM, 1, 2)
    np.testing.assert_allclose(values, 4 * (0.5 * np.array([[0.5, -1]]) + normals), rtol=1e-5)


def test_a_function_that_is_not_there_or_gives_the_wrong_thing_is_named():
    node = {"program": "function", "program_function": "nobody knows"}
    with pytest.raises(InputError, match="'program_function' is 'nobody knows', expected a function of this process"):
        held(np.ones((2, 3)), **node)
    functions.register("double", lambda target, normals, parameters: target.astype(np.float64))
    with pytest.raises(InputError, match=r"'double' gave float64 \[2, 3\], expected float32 \[2, 3\]"):
        held(np.ones((2, 3)), **{**node, "program_function": "double"})
    functions._functions.pop("double")
    with pytest.raises(InputError, match="has an empty name"):
        functions.register("", lambda target, normals, parameters: target)
    with pytest.raises(InputError, match="expected something that can be called"):
        functions.register("five", 5)
    assert functions.registered("five") is None
