"""Drift, the reading of what drifted, and its compensation follow the laws of their models."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.agreement.one_crossbar import Crossbar, law_of
from tests.statistics.devices import conductances, exponents, programmed_read
from tests.statistics.laws import ENOUGH, assert_follows, assert_normal

DAY = 86400.0
CMO_NO_READ = law_of("rram_cmo", time_s=DAY, read_scale=0.0)


def folded(mean: float, deviation: float) -> Any:
    return stats.foldnorm(mean / deviation, scale=deviation)


def test_power_law_exponents(crossbar: Crossbar) -> None:
    numbers = {
        "drift.nu": 0.03, "drift.nu_sigma": 0.02, "drift.t0_s": 10.0, "drift.time_s": 1e4, "drift.scale": 1.5,
    }  # fmt: skip
    exponent, shown = exponents(crossbar, 0.6, 1e3, numbers, drift="power_law")
    assert_normal(exponent[shown], 0.045, 0.03)


def test_power_law_waits_until_its_first_time(crossbar: Crossbar) -> None:
    numbers = {"drift.nu": 0.03, "drift.nu_sigma": 0.02, "drift.t0_s": 10.0, "drift.time_s": 9.0, "drift.scale": 1.0}
    np.testing.assert_allclose(conductances(crossbar, 0.6, numbers, drift="power_law"), 0.6, atol=1e-6)


# preset and target: first time in seconds, mean and standard deviation of the exponent
EXPONENTS = {
    ("pcm", 0.5): (20.0, 0.049, 0.008),
    ("pcm", 0.1): (20.0, 0.060090, 0.022882),
    ("pcm", 0.0): (20.0, 0.1, 0.045),
    ("pcm_hermes", 0.5): (300.0, 0.0564, 0.009),
    ("pcm_hermes", 0.05): (300.0, 0.097735, 0.029350),
    ("pcm_hermes_single", 0.5): (200.0, 0.0564, 0.012075),
    ("pcm_hermes_single", 0.05): (200.0, 0.097735, 0.033649),
    ("pcm_state_independent", 0.5): (20.0, 0.1, 0.05),
}


@pytest.mark.parametrize(("preset", "g"), EXPONENTS)
def test_exponents(crossbar: Crossbar, preset: str, g: float) -> None:
    t0, mean, deviation = EXPONENTS[preset, g]
    drawn: list[Any] = []
    law = law_of(preset, time_s=DAY, read_scale=0.0)
    while sum(map(len, drawn)) < ENOUGH:
        seed = len(drawn)
        exponent, shown = exponents(crossbar, g, (DAY + t0) / t0, law, drift="power_law_fit", seed=seed, g_max_us=20)
        drawn.append(exponent[shown])
    assert_follows(np.concatenate(drawn), folded(mean, deviation))


# preset and target: relative amplitude of a reading after a day, in units of sqrt(ln(...))
READS = {
    ("pcm", 0.5): (20.0, 250e-9, 0.013809),
    ("pcm", 0.1): (20.0, 250e-9, 0.039308),
    ("pcm_hermes", 0.5): (300.0, 512e-9, 0.016713),
    ("pcm_hermes", 0.1): (300.0, 512e-9, 0.02004),
    ("pcm_hermes_single", 0.5): (200.0, 512e-9, 0.0217),
    ("pcm_hermes_single", 0.1): (200.0, 512e-9, 0.02176),
    ("pcm_state_independent", 0.5): (20.0, 250e-9, 1 / 25),
}


@pytest.mark.parametrize(("preset", "g"), READS)
def test_programmed_read(crossbar: Crossbar, preset: str, g: float) -> None:
    t0, t_read, amplitude = READS[preset, g]
    error = programmed_read(crossbar, g, law_of(preset, time_s=DAY), drift="power_law_fit", seed=3, g_max_us=20)
    root = np.sqrt(np.log((DAY + t0 + t_read) / (2 * t_read)))
    assert_normal(error, 0, amplitude * root)


@pytest.mark.parametrize(("preset", "drift"), [("pcm", "power_law_fit"), ("rram_cmo", "log_time")])
def test_a_reading_is_drawn_anew_for_each_read_seed_alone(crossbar: Crossbar, preset: str, drift: str) -> None:
    """Noise of a reading after an hour and a day: one draw that grows, or two draws of the same drifted devices."""

    def noise(time_s: float, read_seed: int) -> Any:
        numbers = law_of(preset, time_s=time_s)
        settings: dict[str, Any] = {"drift": drift, "read_seed": read_seed, "g_max_us": 20}
        quiet = conductances(crossbar, 0.5, {**numbers, "drift.read_scale": 0.0}, **settings)
        if read_seed:
            other = conductances(crossbar, 0.5, {**numbers, "drift.read_scale": 0.0}, **{**settings, "read_seed": 0})
            np.testing.assert_array_equal(quiet, other)
        return conductances(crossbar, 0.5, numbers, **settings) - quiet

    hour = noise(3600.0, 0)
    assert np.corrcoef(hour, noise(DAY, 0))[0, 1] > 0.99
    assert abs(np.corrcoef(hour, noise(DAY, 1))[0, 1]) < 0.02
    assert noise(DAY, 1).std() == pytest.approx(noise(DAY, 0).std(), rel=0.02)


def test_filamentary_devices_shift_spread_and_read(crossbar: Crossbar) -> None:
    settings: dict[str, Any] = {"drift": "log_time", "g_max_us": 100, "seed": 4}
    spread = 0.04201137 * np.log(DAY) + 0.41183342
    shift = -0.08900206 * np.log(DAY)
    drifted = 100 * conductances(crossbar, 0.5, CMO_NO_READ, **settings)
    assert_normal(drifted - 50, shift, spread)
    read = 100 * conductances(crossbar, 0.5, {**CMO_NO_READ, "drift.read_scale": 1.0}, **settings)
    root = np.sqrt(np.log((DAY + 1e-6) / 2e-6))
    assert_normal((read - drifted) / (0.0277316483 * np.log10(drifted) * root), 0, 1)
    twice = 100 * conductances(crossbar, 0.5, {**CMO_NO_READ, "drift.scale": 2.0}, **settings)
    assert_normal(twice - 50, 2 * shift, 2 * spread)


def test_a_filamentary_device_that_conducts_nothing_reads_like_a_nanosiemens(crossbar: Crossbar) -> None:
    numbers = law_of("rram_cmo", time_s=1.0, scale=0.0)
    settings: dict[str, Any] = {"drift": "log_time", "g_max_us": 100, "seed": 8}
    usual = 100 * conductances(crossbar, 0.5, numbers, **settings) - 50
    nothing = 100 * conductances(crossbar, 0.0, numbers, **settings)
    up = nothing > 0.01  # the amplitude follows the logarithm of the conductance, which is negative here
    np.testing.assert_allclose(nothing[up] / usual[up], -3 / np.log10(50), rtol=3e-3)


def test_the_devices_of_a_pair_drift_independently(crossbar: Crossbar) -> None:
    numbers = {
        "mapping.g_min_us": 0.5, "mapping.g_max_us": 1.0, "drift.nu": 0.0, "drift.nu_sigma": 0.01, "drift.t0_s": 1.0,
        "drift.time_s": 10.0, "drift.scale": 1.0,
    }  # fmt: skip
    held = crossbar.held(np.zeros((16, 4096)), encoding="differential", drift="power_law", numbers=numbers, seed=5)
    # Both devices hold 0.5 of g_max: the weight is the difference of their changes over 0.5.
    assert_normal(held, 0, np.sqrt(2) * 0.01 * np.log(10))


READINGS = {
    "additive_constant": lambda w: 1.0,
    "pcm_read": lambda w: np.sqrt(abs(w)),
    "proportional": lambda w: abs(w),
}


@pytest.mark.parametrize("model", ["none", *READINGS])
def test_column_compensation_errs_by_its_two_readings(crossbar: Crossbar, model: str) -> None:
    rows, columns, w = 64, 40960, 0.5
    numbers = {
        "mapping.g_min_us": 0.0, "mapping.g_max_us": 1.0, "drift.nu": 0.05, "drift.nu_sigma": 0.0, "drift.t0_s": 1.0,
        "drift.time_s": 100.0, "drift.scale": 1.0, "read.output_noise": 0.03,
    }  # fmt: skip
    numbers |= {"read.weight_noise": 0.04} if model != "none" else {}
    weights = np.full((rows, columns), -w)
    weights[0] = 1.0
    held = crossbar.faulty_weight(
        weights, encoding="differential", drift="power_law", compensation="column", read_noise=model, numbers=numbers,
        seed=6,
    )  # fmt: skip
    drift = 100**-0.05

    def error(factor: float) -> float:
        """Standard error of the mean magnitude of a column whose weights are `factor` times the target."""

        def variance(value: float) -> float:
            read = 0.04 * READINGS[model](value) if model != "none" else 0.0
            return float(0.03**2 + read**2)

        return float(np.sqrt((rows - 1) * variance(factor * w) + variance(factor)) / rows)

    mean = ((rows - 1) * w + 1) / rows
    relative = np.hypot(error(1.0) / mean, error(drift) / (mean * drift))
    assert_normal(held[1] / -w, 1 + (error(drift) / (mean * drift)) ** 2, relative)


@pytest.mark.parametrize("compensation", ["global_exact", "column_exact"])
def test_exact_compensation_undoes_the_mean_drift(crossbar: Crossbar, compensation: str) -> None:
    numbers = {
        "mapping.g_min_us": 0.0, "mapping.g_max_us": 1.0, "drift.nu": 0.05, "drift.nu_sigma": 0.02, "drift.t0_s": 1.0,
        "drift.time_s": 100.0, "drift.scale": 1.0, "read.output_noise": 0.03,
    }  # fmt: skip
    w = np.random.default_rng(0).uniform(-1, 1, (512, 128))
    settings: dict[str, Any] = {"encoding": "differential", "drift": "power_law", "numbers": numbers, "seed": 7}
    held = crossbar.faulty_weight(w, compensation=compensation, **settings).astype(np.float64)
    drifted = crossbar.faulty_weight(w, **settings).astype(np.float64)
    axis = None if compensation == "global_exact" else 0
    np.testing.assert_allclose(np.abs(held).mean(axis), np.abs(w).mean(axis), rtol=1e-5)
    factor = held / drifted
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:1], factor.shape), rtol=1e-4)


def test_compensation_does_not_trust_an_almost_empty_tile(crossbar: Crossbar) -> None:
    numbers = {
        "mapping.g_min_us": 0.0, "mapping.g_max_us": 1.0, "drift.nu": 0.1, "drift.nu_sigma": 0.0, "drift.t0_s": 1.0,
        "drift.time_s": 100.0, "drift.scale": 1.0,
    }  # fmt: skip
    w = np.zeros((90, 100))
    w[3, 4] = 1  # the mean magnitude is 1 / 9000 before drift, 0.7e-4 after it, which counts as 1e-4
    held = crossbar.faulty_weight(
        w, encoding="differential", drift="power_law", compensation="global_exact", numbers=numbers
    )  # fmt: skip
    assert held[3, 4] == pytest.approx(100**-0.1 * (1 / 9000) / 1e-4, rel=1e-5)


def test_global_compensation_averages_its_reading_over_a_tile(crossbar: Crossbar) -> None:
    size, tiles = 16, 40
    numbers = {
        "mapping.g_min_us": 0.0, "mapping.g_max_us": 1.0, "drift.nu": 0.0, "drift.nu_sigma": 0.0, "drift.t0_s": 1.0,
        "drift.time_s": 1.0, "drift.scale": 1.0, "read.output_noise": 0.05,
    }  # fmt: skip
    factors = []
    for seed in range(26):
        held = crossbar.faulty_weight(
            np.ones((size * tiles, size * tiles)), encoding="differential", drift="power_law", compensation="global",
            tile_rows=size, tile_columns=size, numbers=numbers, seed=seed,
        )  # fmt: skip
        factors.append(held[::size, ::size].ravel())
    error = 0.05 / size
    assert_normal(np.concatenate(factors), 1 + error**2, np.sqrt(2) * error)
