"""What time makes of conductances, and what compensation undoes of it."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.agreement.one_crossbar import law_of
from emu.contract.structure import Structure, parse_structure
from emu.reference import Stream, stored_normals
from emu.reference.drift import _growth_of_noise, exponent, read_noise

from .nodes import PLAIN_STORED, held, normal, stored

PCM = {
    "mapping.g_min_us": 0.0,
    "mapping.g_max_us": 25.0,
    **law_of("pcm", "program"),
}
DAY_S = 86400.0


def after(time_s: float, scale: float = 1.0, read_scale: float = 1.0, preset: str = "pcm") -> dict[str, float]:
    """The entries of a preset's drift."""
    return law_of(preset, time_s=float(time_s), scale=scale, read_scale=read_scale)


def node_of(drift: str, **changes: Any) -> Structure:
    """The attributes of a pair that drifts."""
    return parse_structure("CrossbarMatMul", {**PLAIN_STORED, "encoding": "offset", "drift": drift, **changes})


def constants(preset: str, x: float) -> tuple[float, ...]:
    """Mean and spread of a preset's exponent, and its read noise, at x."""
    numbers, g = law_of(preset), np.array([x])
    mapping = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 25.0}
    structure = node_of("power_law_fit", entries=",".join({**mapping, **numbers}))
    return tuple(each.item() for each in (*exponent(g, structure, numbers), read_noise(g, numbers)))


# aihwkit's constants at x: mean and spread of the exponent by the target, read noise by the programmed conductance.
@pytest.mark.parametrize(
    ("x", "mean", "spread", "read"),
    [
        (1e-7, 0.1, 0.045, 0.2),
        (0.1, 0.060090, 0.022882, 0.039308),
        (0.25, 0.049, 0.011429, 0.021668),
        (0.5, 0.049, 0.008, 0.013809),
        (0.75, 0.049, 0.008, 0.010609),
        (1, 0.049, 0.008, 0.0088),
    ],
)
def test_constants_of_pcm_are_those_of_aihwkit(x, mean, spread, read):
    """Source: aihwkit PCMLikeNoiseModel."""
    assert constants("pcm", x) == pytest.approx((mean, spread, read), abs=1e-6)


@pytest.mark.parametrize(
    ("time_s", "expected"),
    [
        (1, 4.18965),
        (60, 4.34634),
        (3600, 4.76475),
        (DAY_S, 5.08681),
        (30 * DAY_S, 5.41079),
        (31536000, 5.63696),
    ],
)
def test_read_noise_of_pcm_grows_with_time_as_in_aihwkit(time_s, expected):
    assert _growth_of_noise(time_s + 20, 250e-9) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("time_s", "expected"),
    [(1, 0.99761), (60, 0.93433), (3600, 0.77513), (DAY_S, 0.66352), (30 * DAY_S, 0.56167), (31536000, 0.49695)],
)
def test_pcm_drifts_with_its_mean_exponent_when_nothing_is_random(time_s, expected):
    """Strength next to 0 leaves the mean: (t / 20 s)^-0.049 at full conductance."""
    node = {"encoding": "differential", "drift": "power_law_fit", "strength": 1e-20}
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 25.0, **after(time_s)}
    assert held([[1.0, -1.0]], numbers=numbers, **node)[0, 1] == pytest.approx(-expected, abs=1e-5)


@pytest.mark.parametrize(
    ("time_s", "factor"),
    [(1, 1.0023935780894189), (3600, 1.2901085402104078), (DAY_S, 1.5071054108260118), (31536000, 2.012292309590907)],
)
def test_exact_compensation_undoes_the_mean_drift(time_s, factor):
    """Equal conductances drift alike, so all of it is undone: 1.0024 after 1 s to 2.0123 after a year."""
    node = {"encoding": "differential", "drift": "power_law_fit", "strength": 1e-20}
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 25.0, **after(time_s)}
    w = np.where(normal(8, 6) > 0, 2.0, -2.0)
    drifted = held(w, numbers=numbers, **node)
    np.testing.assert_allclose(w / drifted, factor, rtol=1e-6)
    for compensation in ("global_exact", "column_exact"):
        values = held(w, numbers=numbers, compensation=compensation, **node)
        np.testing.assert_allclose(values, w, rtol=1e-6)


def test_the_whole_chain_of_pcm_has_the_moments_of_aihwkit():
    """Source: aihwkit, Monte Carlo of weights 1, .75, .5, .25, 0 as pairs, after programming and after a day."""
    w = np.tile(np.float32([1, 0.75, 0.5, 0.25, 0]), (40_000, 1))
    node = {"encoding": "differential", "program": "polynomial"}
    programmed = held(w, numbers=PCM, **node).astype(np.float64)
    np.testing.assert_allclose(programmed.mean(axis=0), [0.9957, 0.7457, 0.4958, 0.2458, 0], atol=8e-4)
    np.testing.assert_allclose(programmed.std(axis=0), [0.0426, 0.0436, 0.0386, 0.0279, 0.0087], atol=5e-4)
    day = held(w, numbers={**PCM, **after(DAY_S)}, drift="power_law_fit", drift_pairs="net", **node).astype(np.float64)
    np.testing.assert_allclose(day.mean(axis=0), [0.662, 0.496, 0.330, 0.164, 0], atol=2e-3)
    np.testing.assert_allclose(day.std(axis=0)[:4], [0.0625, 0.0537, 0.0431, 0.0321], atol=1.5e-3)


def test_drift_is_the_page_formula_for_both_devices():
    w = normal(5, 6)
    node = {"encoding": "differential", "drift": "power_law_fit"}
    numbers = {"mapping.g_min_us": 2.5, "mapping.g_max_us": 25.0, **after(1000, 1.5, 2.0)}
    values = held(w, numbers=numbers, strength=0.5, seed=3, array=1, **node)
    s, r = np.abs(w).max(), 0.1
    growth = math.sqrt(math.log((1020 + 250e-9) / 500e-9))

    def device(unit: Any, drift: Stream, read: Stream) -> Any:
        g = r + (1 - r) * np.maximum(unit, 0)
        mean = np.clip(-0.0155 * np.log(g) + 0.0244, 0.049, 0.1)
        spread = np.clip(-0.0125 * np.log(g) - 0.0059, 0.008, 0.045)
        nu = np.abs(mean + 0.5 * spread * stored_normals(3, 0, 1, drift, 5, 6)) * 1.5
        h = g * 51**-nu
        q = np.minimum(0.0088 / g**0.65, 0.2)
        return np.maximum(h * (1 + 0.5 * 2.0 * q * growth * stored_normals(3, 0, 1, read, 5, 6)), 0)

    pair = device(w / s, Stream.DRIFT, Stream.PROGRAMMED_READ)
    pair = pair - device(-w / s, Stream.DRIFT_NEGATIVE, Stream.PROGRAMMED_READ_NEGATIVE)
    np.testing.assert_allclose(values, s * pair / (1 - r), atol=1e-5)


HERMES = [
    # By hand at x = 0.05, 0.2 and 0.8: mean exponent, spread (pair, single), read noise (pair, single).
    (0.05, 0.097735, 0.029350, 0.033649, 0.028150, 0.027167),
    (0.2, 0.069336, 0.013130, 0.017013, 0.015455, 0.019283),
    (0.8, 0.035616, 0.007188, 0.009120, 0.014793, 0.017709),
]


@pytest.mark.parametrize(("x", "mean", "pair", "single", "pair_read", "single_read"), HERMES)
def test_constants_of_hermes_are_those_of_aihwkit(x, mean, pair, single, pair_read, single_read):
    assert constants("pcm_hermes", x) == pytest.approx((mean, pair, pair_read), abs=2e-6)
    assert constants("pcm_hermes_single", x) == pytest.approx((mean, single, single_read), abs=2e-6)


def single_device(drift: str, numbers: dict[str, float], g_max_us: float, g: float, **changes: Any) -> Any:
    """Conductances in microsiemens of 40 000 single devices that were programmed to g microsiemens."""
    w = np.full((400, 100), 2 * g / g_max_us - 1)
    w[0, 0] = 1
    mapping = {"mapping.g_min_us": 0.0, "mapping.g_max_us": g_max_us}
    values = held(w, encoding="offset", drift=drift, numbers={**mapping, **numbers}, **changes)[1:]
    return (values.astype(np.float64) + 1) / 2 * g_max_us


@pytest.mark.parametrize(("preset", "t0_s", "g_max_us"), [("pcm_hermes", 300, 20.7), ("pcm_hermes_single", 200, 10.35)])
def test_hermes_drifts_from_its_own_first_time(preset, t0_s, g_max_us):
    numbers = after(1e6, preset=preset)
    quiet = single_device("power_law_fit", numbers, g_max_us, 0.2 * g_max_us, strength=1e-20)
    np.testing.assert_allclose(quiet, 0.2 * g_max_us * ((1e6 + t0_s) / t0_s) ** -0.069336, rtol=1e-5)


def test_state_independent_drift_has_one_exponent_for_all():
    numbers = after(DAY_S, preset="pcm_state_independent")
    for g in (5.0, 20.0):
        quiet = single_device("power_law_fit", numbers, 25.0, g, strength=1e-20)
        np.testing.assert_allclose(quiet, g * ((DAY_S + 20) / 20) ** -0.1, rtol=1e-5)
        read = single_device("power_law_fit", {**numbers, "drift.time_s": 0.0, "drift.scale": 0.0}, 25.0, g)
        assert read.std() == pytest.approx(g * math.sqrt(math.log(20.00000025 / 5e-7)) / 25, rel=0.02)


def test_cmo_relaxes_as_measured():
    """One day at 50 uS: mean 48.989, deviation 0.919 of which programming 0.055, so 0.917 without it."""
    numbers = after(DAY_S, preset="rram_cmo")
    values = single_device("log_time", numbers, 88.199997, 50.0)
    assert values.mean() == pytest.approx(48.989, abs=0.02)
    assert values.std() == pytest.approx(math.sqrt(0.919**2 - 0.055**2), rel=0.015)
    # Four standard errors of each.
    read = single_device("log_time", {**numbers, "drift.scale": 0.0}, 88.199997, 50.0)
    assert read.std() == pytest.approx(0.232, rel=0.02)
    fresh = single_device("log_time", {**numbers, "drift.time_s": 0.0}, 88.199997, 50.0)
    np.testing.assert_allclose(fresh, 50.0, rtol=1e-6)


def test_a_table_of_exponents_is_read_between_its_targets():
    """At 5 of 10 uS halfway between 0.1 at 0 and 0.02 at 10 uS, outside the ends; spread 0 at the first, 0.01 last."""
    table = {"target_us": (0.0, 10.0, 20.0), "mean_nu": (0.1, 0.02, 0.04), "std_nu": (0.0, 0.01, 0.02)}
    numbers = {f"drift.{name}.{k}": value for name, values in table.items() for k, value in enumerate(values)}
    numbers |= {**after(1e4), "drift.t0_s": 1.0}
    node = {"drift_points": 3, "strength": 1e-20}
    numbers = {name: value for name, value in numbers.items() if not name.startswith("drift.nu")}
    for g, nu in ((5.0, 0.06), (15.0, 0.03), (24.0, 0.04)):
        quiet = single_device("power_law_table", numbers, 25.0, g, **node)
        np.testing.assert_allclose(quiet, g * 10001**-nu, rtol=1e-5)
    mean, spread = exponent(np.array([0.2, 0.7]), node_of(
        "power_law_table", drift_points=3, entries=",".join({"mapping.g_min_us": 0, "mapping.g_max_us": 0, **numbers})
    ), {**numbers, "mapping.g_max_us": 25.0})  # fmt: skip
    np.testing.assert_allclose([mean, spread], [[0.06, 0.035], [0.005, 0.0175]], rtol=1e-6)


def test_relaxation_ends_at_one_conductance():
    """After one time constant e^-1 of the way is left; time constants scatter by a factor exp(0.5 N)."""
    numbers = {"drift.time_s": 100.0, "drift.scale": 1.0, "drift.final_us": 4.0, "drift.tau_s": 100.0}
    for scale, g in ((1.0, 9.0), (2.0, 1.0)):
        same = single_device("relaxation", {**numbers, "drift.tau_sigma": 0.0, "drift.scale": scale}, 10.0, g)
        np.testing.assert_allclose(same, 4 + (g - 4) * math.exp(-scale), rtol=1e-5)
    own = single_device("relaxation", {**numbers, "drift.tau_sigma": 0.5}, 10.0, 9.0)
    rate = np.log(-np.log((own - 4) / 5))
    assert (rate.mean(), rate.std()) == pytest.approx((0, 0.5), abs=0.01)


def power_law(nu: float, spread: float = 0.0, time_s: float = 1000.0, t0_s: float = 10.0) -> dict[str, float]:
    """The entries of a plain power law from 10 s to 1000 s."""
    return {
        "mapping.g_min_us": 0.0,
        "mapping.g_max_us": 10.0,
        "drift.time_s": time_s,
        "drift.scale": 1.0,
        "drift.nu": nu,
        "drift.nu_sigma": spread,
        "drift.t0_s": t0_s,
    }


@pytest.mark.parametrize(("time_s", "share"), [(1000, 0.1), (10, 1.0), (0, 1.0)])
def test_a_power_law_begins_at_its_first_time(time_s, share):
    w = normal(4, 5)
    values = held(w, encoding="differential", drift="power_law", numbers=power_law(0.5, time_s=time_s))
    np.testing.assert_allclose(values, w * share, rtol=1e-5)


def test_exponents_of_a_power_law_scatter_by_device():
    values = held(np.ones((300, 300)), encoding="differential", drift="power_law", numbers=power_law(0.1, 0.02))
    exponent = -np.log(values) / math.log(100)
    assert exponent.mean() == pytest.approx(0.1, abs=4 * 0.02 / 300)
    assert exponent.std() == pytest.approx(0.02, rel=0.02)


def test_compensation_of_columns_undoes_what_differs_between_them():
    """Column 1 holds small weights, which drift faster in PCM."""
    w = np.ones((50, 2))
    w[:, 1] = 0.05
    node = {"encoding": "differential", "drift": "power_law_fit", "strength": 1e-20}
    numbers = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 25.0, **after(DAY_S)}
    by_column = held(w, numbers=numbers, compensation="column_exact", **node)
    np.testing.assert_allclose(by_column, w, rtol=1e-5)
    by_tile = held(w, numbers=numbers, compensation="global_exact", **node)
    assert by_tile[0, 0] > 1.001 and by_tile[0, 1] < 0.045
    two_tiles = held(w, numbers=numbers, compensation="global_exact", tile_columns=1, **node)
    np.testing.assert_allclose(two_tiles, w, rtol=1e-5)


def test_drift_without_compensation_shrinks_outputs():
    x, w = normal(20, 100), normal(100, 30, seed=1)
    node = {
        "encoding": "differential",
        "program": "polynomial",
        "drift": "power_law_fit",
        "numbers": {**PCM, **after(DAY_S)},
    }
    clean = x @ w
    slope = {
        compensation: float((stored(x, w, compensation=compensation, **node) * clean).sum() / (clean**2).sum())
        for compensation in ("none", "global", "global_exact", "column", "column_exact")
    }
    assert slope.pop("none") < 0.72
    assert all(value == pytest.approx(1, abs=0.05) for value in slope.values())


def test_compensation_reads_with_the_noise_of_the_array():
    """A power law of one exponent, so that the true factor is 10; noise on both means is folded by the magnitude."""
    w = normal(6, 8)
    numbers = {**power_law(0.5), "read.output_noise": 0.2, "read.weight_noise": 0.3}
    node = {"encoding": "differential", "drift": "power_law", "read_noise": "pcm_read", "tile_columns": 4}
    unit = w / np.abs(w).max()

    def reading(held_w: Any, stream: Stream) -> Any:
        amplitude = 0.5 * np.sqrt(0.04 + 0.09 * np.abs(held_w))
        return np.abs(held_w + amplitude * stored_normals(2, 0, 0, stream, 6, 8))

    b, c = reading(unit, Stream.COMPENSATION_BASELINE), reading(unit / 10, Stream.COMPENSATION_READING)
    for compensation, axis in (("global", None), ("column", 0)):
        values = held(w, numbers=numbers, strength=0.5, seed=2, compensation=compensation, **node)
        for n in (slice(0, 4), slice(4, 8)):
            factor = b[:, n].mean(axis=axis) / c[:, n].mean(axis=axis)
            np.testing.assert_allclose(values[:, n], w[:, n] / 10 * factor, rtol=1e-5)


def test_compensation_reads_through_a_fixed_adc():
    """Steps of 0.5: 1 and 0.3 are read as 1 and 0.5; drifted to a half they are read as 0.5 and 0 (0.15)."""
    w = np.array([[1.0], [0.3]])
    numbers = {**power_law(math.log(2) / math.log(100)), "adc.bits": 0, "adc.steps": 8, "adc.bound": 2}
    node = {"encoding": "differential", "drift": "power_law", "adc": "fixed", "compensation": "global"}
    values = held(w, numbers=numbers, **node)
    np.testing.assert_allclose(values, w / 2 * 0.75 / 0.25, rtol=1e-5)
    in_units_of_v = held(w, numbers={**numbers, "mapping.g_min_us": 5.0}, **node)
    # v is w / 2 and the lowest conductance cancels: 0.5 and 0.15 become 0.5 and 0, drifted 0.25 and 0.075 become 0.
    np.testing.assert_allclose(in_units_of_v, w / 2 * 0.5 / 1e-4, rtol=1e-4)


def test_a_tile_of_zeros_has_a_factor_of_one():
    node = {"encoding": "differential", "drift": "power_law", "compensation": "global_exact"}
    assert not held(np.zeros((3, 3)), numbers=power_law(0.5), **node).any()


def test_a_net_pair_drifts_over_the_whole_range_of_its_tile():
    """Programmed 0.5 as the difference of two devices is mapped again to 1 and 0, drifts there, and is scaled back."""
    w = np.array([[0.5, -0.25], [1.0, 0.5]])
    numbers = {"mapping.g_min_us": 1.0, "mapping.g_max_us": 10.0, **after(1e4), "program.sigma": 0.3}
    numbers["program.sigma_cycle"] = 0.0
    node = {
        "encoding": "differential",
        "program": "normal_proportional",
        "drift": "power_law_fit",
        "drift_pairs": "net",
    }
    values = held(w, numbers=numbers, strength=0.5, seed=3, tile_rows=1, **node)
    r, growth = 0.1, math.sqrt(math.log((10020 + 250e-9) / 500e-9))
    targets = [r + (1 - r) * np.maximum(sign * w, 0) for sign in (1, -1)]
    programmed = [
        np.maximum(g * (1 + 0.15 * stored_normals(3, 0, 0, stream, 2, 2)), 0)
        for g, stream in zip(targets, (Stream.PROGRAM, Stream.PROGRAM_NEGATIVE), strict=True)
    ]
    u = (programmed[0] - programmed[1]) / (1 - r)
    m = np.abs(u).max(axis=1, keepdims=True)
    total = 0
    for sign, x, drift in ((1, targets[0], Stream.DRIFT), (-1, targets[1], Stream.DRIFT_NEGATIVE)):
        g = r + (1 - r) * np.maximum(sign * u, 0) / m
        mean = np.clip(-0.0155 * np.log(x) + 0.0244, 0.049, 0.1)
        spread = np.clip(-0.0125 * np.log(x) - 0.0059, 0.008, 0.045)
        nu = np.abs(mean + 0.5 * spread * stored_normals(3, 0, 0, drift, 2, 2))
        h = g * 501**-nu
        read = 0.5 * np.minimum(0.0088 / g**0.65, 0.2) * growth
        h = np.maximum(h * (1 + read * stored_normals(3, 0, 0, drift + 2, 2, 2)), 0)
        total = total + sign * m * h
    np.testing.assert_allclose(values, total / (1 - r), atol=1e-5)


def test_drift_is_of_the_chip_and_not_redrawn_by_reading():
    w = normal(5, 6)
    node: dict[str, Any] = {"encoding": "differential", "drift": "power_law_fit"}
    quiet, read = ({**node, "numbers": {**PCM, **after(100, read_scale=scale)}} for scale in (0.0, 1.0))
    np.testing.assert_array_equal(held(w, seed=1, **quiet), held(w, seed=1, read_seed=5, **quiet))
    assert (held(w, seed=1, **read) != held(w, seed=1, read_seed=5, **read)).all()
    assert (held(w, seed=1, **quiet) != held(w, seed=2, **quiet)).all()


def test_stuck_cells_do_not_drift():
    numbers = {**power_law(0.5), "mapping.g_min_us": 1.0, "faults.stuck_low": 0.0, "faults.stuck_high": 1.0}
    values = held(np.ones((3, 3)), encoding="offset", drift="power_law", fault_source="random", numbers=numbers)
    np.testing.assert_allclose(values, 1, rtol=1e-6)
