"""Reference numbers of device and circuit models, each against the NumPy twin and the native library.

`golden.json` says for every number where it comes from: runs of aihwkit and CrossSim, or published formulas evaluated
apart from this project. A number without a check, or a check without a number, fails the last two tests.
"""

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.agreement.one_crossbar import Crossbar, law_of
from tests.statistics.devices import (
    DEVICES,
    conductances,
    drift_law,
    drift_normals,
    programmed_read,
    read_normals,
    slope,
    spread,
)

DATA: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
PROVENANCE: dict[str, str] = DATA.pop("_provenance")

Check = Callable[[Crossbar, str, Any], None]
CHECKS: dict[str, Check] = {}


def checks(pattern: str) -> Callable[[Check], Check]:
    """Mark the function that checks the entries whose names fit the pattern."""

    def keep(check: Check) -> Check:
        CHECKS[pattern] = check
        return check

    return keep


def checks_of(key: str) -> list[Check]:
    return [check for pattern, check in CHECKS.items() if fnmatchcase(key, pattern)]


@pytest.mark.parametrize("key", DATA)
def test_emu_reproduces(key: str, crossbar: Crossbar) -> None:
    (check,) = checks_of(key)
    check(crossbar, key, DATA[key])


@pytest.mark.parametrize(
    ("steps", "bound", "repeated"),
    # Ten rows of 1 sum up to 10. A last code at the bound takes what lies within half a step of it.
    [(254, 9.99, False), (254, 9.95, True), (255, 9.99, True), (0, 9.99, True), (0, 10.0, False)],
)
def test_an_output_saturates_beyond_what_the_last_code_takes(
    steps: int, bound: float, repeated: bool, crossbar: Crossbar
) -> None:
    numbers = {"dac.bits": 0, "dac.steps": 0, "dac.bound": 1, "adc.bits": 0, "adc.steps": steps, "adc.bound": bound}
    numbers |= {"adc.max_bound_factor": 1000, "adc.max_bound_resolution": 0.25}
    y = crossbar.stored(
        np.ones((1, 10)), np.ones((10, 1)), dac="absmax", adc="fixed", bound_management="iterative", numbers=numbers
    )
    step = 2 * bound / steps if steps else 0
    once = np.clip(np.rint(10 / step) * step, -bound, bound) if steps else bound
    twice = 2 * (np.rint(5 / step) * step if steps else 5)
    assert abs(once - twice) > 1e-3 or bound == 10
    assert y[0, 0] == pytest.approx(twice if repeated else once, rel=1e-6)


def test_every_number_has_one_check_and_a_source() -> None:
    for key in DATA:
        assert len(checks_of(key)) == 1, key
        assert sum(fnmatchcase(key, pattern) for pattern in PROVENANCE) == 1, key


def test_every_check_and_source_has_a_number() -> None:
    for pattern in (*CHECKS, *PROVENANCE):
        assert any(fnmatchcase(key, pattern) for key in DATA), pattern


# IR drop


@checks("irdrop_ones*")
def _(crossbar: Crossbar, key: str, value: list[float]) -> None:
    ideal, with_drop = value
    ones = np.ones((int(key.removeprefix("irdrop_ones")), 1))
    numbers = {"read.ir_drop": 1.0, "read.ir_drop_ratio": 1 / 0.35 / 5e-6}
    assert crossbar.stored(ones.T, ones)[0, 0] == ideal
    assert crossbar.stored(ones.T, ones, ir_drop="formula", numbers=numbers)[0, 0] == pytest.approx(with_drop, rel=2e-6)


# Phase-change memory

_PAIR_25 = {"mapping.g_min_us": 0.0, "mapping.g_max_us": 25.0}
_SECONDS = {"1s": 1.0, "1h": 3600.0, "1d": 86400.0, "1y": 31536000.0}


@checks("gdc_alpha_*")
def _(crossbar: Crossbar, key: str, value: float) -> None:
    numbers = {
        **_PAIR_25,
        **law_of("pcm", time_s=_SECONDS[key.removeprefix("gdc_alpha_")], read_scale=0.0),
    }
    w = np.array([[1.0, -0.5], [0.75, -0.9]])  # above g = 0.21 all devices drift with 0.049 in the mean
    settings: dict[str, Any] = {
        "encoding": "differential",
        "drift": "power_law_fit",
        "numbers": numbers,
        "strength": 1e-7,
    }
    drifted = crossbar.held(w, **settings)
    np.testing.assert_allclose(w / drifted, value, rtol=2e-6)
    compensated = crossbar.held(w, compensation="global_exact", **settings)
    np.testing.assert_allclose(compensated, w, rtol=2e-6)


@checks("pcm")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    polynomial = law_of("pcm", "program")
    sigma = [25 * spread(crossbar, x, polynomial, g_max_us=25, program="polynomial") for x in value["x"]]
    np.testing.assert_allclose(sigma, value["sigma_prog_uS"], rtol=3e-5)

    _check_drift(crossbar, "pcm", 20.0, 25.0, value, [0.049] * len(value["t_inf_s"]), value["drift_nu.049"])

    # The whole chain, as aihwkit does it: program, map what was programmed to a pair anew, drift that pair.
    chain = value["mc_chain"]
    weights = np.repeat(np.array(chain["w"], np.float32), 4)[None, :].repeat(10000, axis=0)
    settings: dict[str, Any] = {"encoding": "differential", "program": "polynomial", "seed": 3}
    numbers = {**_PAIR_25, **polynomial}
    programmed = _columns(crossbar.faulty_weight(weights, numbers=numbers, **settings), 5)
    numbers |= law_of("pcm", time_s=86400.0)
    settings |= {"drift": "power_law_fit", "drift_pairs": "net"}
    drifted = _columns(crossbar.faulty_weight(weights, numbers=numbers, **settings), 5)
    for held, mean, deviation in (
        (programmed, chain["prog_mean"], chain["prog_std"]),
        (drifted, chain["day_mean_noGDC"], chain["day_std"]),
    ):
        # Four digits are given, drawn from as many chips as here or fewer.
        np.testing.assert_allclose(held.mean(axis=1), mean, atol=1e-3)
        np.testing.assert_allclose(held.std(axis=1), deviation, rtol=0.02, atol=1e-4)


@checks("hermes_*")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    g_max_us = value["g_max_uS"]
    preset = {"hermes_pair": "pcm_hermes", "hermes_single": "pcm_hermes_single"}[key]
    polynomial = law_of(preset, "program")
    sigma = [g_max_us * spread(crossbar, x, polynomial, g_max_us=g_max_us, program="polynomial") for x in value["x"]]
    np.testing.assert_allclose(sigma, value["sigma_prog_uS"], rtol=3e-5)
    t0 = {"hermes_pair": 300.0, "hermes_single": 200.0}[key]
    _check_drift(crossbar, preset, t0, g_max_us, value, value["mu_nu"][-1:] * len(value["t_inf_s"]), value["drift_top"])


def _check_drift(
    crossbar: Crossbar, preset: str, t0: float, g_max_us: float, value: dict[str, Any], nu: list[float],
    factors: list[float],
) -> None:  # fmt: skip
    settings: dict[str, Any] = {"drift": "power_law_fit", "g_max_us": g_max_us}
    law = law_of(preset)
    day = {**law, "drift.time_s": 86400.0, "drift.scale": 1.0, "drift.read_scale": 0.0}
    laws = [drift_law(crossbar, x, (86400 + t0) / t0, day, **settings) for x in value["x"]]
    np.testing.assert_allclose([mean for mean, _ in laws], value["mu_nu"], atol=3e-6)
    np.testing.assert_allclose([deviation for _, deviation in laws], value["sigma_nu"], atol=3e-6)

    normals = read_normals(crossbar, DATA["cmo"]["from_50_uS"]["1"]["read"])
    read = [
        slope(programmed_read(crossbar, max(x, 1e-3), {**law, "drift.time_s": 1.0}, **settings), normals)
        for x in value["x"]
    ]
    # A device that conducts nothing shows no read noise, hence 0.001: Q is constant below 0.008.
    np.testing.assert_allclose(np.array(read) / value["sqrtln"][0], value["Qs"], rtol=2e-4)
    for time_s, root, factor in zip(value["t_inf_s"], value["sqrtln"], factors, strict=True):
        numbers = {**law, "drift.time_s": time_s}
        error = programmed_read(crossbar, 1.0, numbers, **settings)
        assert slope(error, normals) / value["Qs"][-1] == pytest.approx(root, rel=5e-5)
        numbers |= {"drift.scale": 1.0, "drift.read_scale": 0.0}
        held = conductances(crossbar, 1.0, numbers, strength=1e-7, **settings)
        np.testing.assert_allclose(held, factor, atol=6e-6)


@checks("state_independent")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    t0 = value["t_0"]
    settings: dict[str, Any] = {"drift": "power_law_fit", "g_max_us": 25.0}
    day = law_of("pcm_state_independent", time_s=86400.0, read_scale=0.0)
    for g in (0.2, 1.0):
        mean, deviation = drift_law(crossbar, g, (86400 + t0) / t0, day, **settings)
        assert (mean, deviation) == pytest.approx((value["nu_mean"], value["nu_std"]), rel=1e-4)
    for time_s, factor in zip(value["t_inf_s"], value["drift"], strict=True):
        held = conductances(crossbar, 1.0, {**day, "drift.time_s": time_s}, strength=1e-7, **settings)
        np.testing.assert_allclose(held, factor, atol=2e-6)
    normals = read_normals(crossbar, DATA["cmo"]["from_50_uS"]["1"]["read"])
    error = slope(programmed_read(crossbar, 0.5, {**day, "drift.time_s": 1.0}, **settings), normals)
    assert error == pytest.approx(DATA["pcm"]["sqrtln"][0] / 25, rel=5e-5)


# Resistive memory and charge-trap memory


@checks("cmo")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    scale = {"g_min_us": value["g_min_uS"], "g_max_us": value["g_max_uS"]}
    g_max_us = value["g_max_uS"]
    for window, (c0, c1) in {"0.2%": (0.00081107, 0.00106879), "2%": (0.0112185391, 0.01129027418)}.items():
        polynomial = {"program.scale": 1.0, "program.reference_us": g_max_us}
        polynomial |= {"program.c0": c0, "program.c1": c1 * g_max_us, "program.c2": 0, "program.c3": 0, "program.c4": 0}
        sigma = [
            g_max_us * spread(crossbar, min(g / g_max_us, 1.0), polynomial, program="polynomial", **scale)
            for g in value["G"]
        ]
        np.testing.assert_allclose(sigma, value["sigma_prog_uS"][window], rtol=1e-3)

    normals, shown = drift_normals(crossbar)
    for time_s, law in value["from_50_uS"].items():
        numbers = law_of("rram_cmo", time_s=float(time_s), read_scale=0.0)
        drifted = 100 * conductances(crossbar, 0.5, numbers, g_max_us=100, drift="log_time")
        deviation, mean = np.polyfit(normals[shown], drifted[shown], 1)
        assert (mean, deviation) == pytest.approx((law["mean"], law["drift_spread"]), rel=2e-5)
        numbers |= {"drift.read_scale": 1.0}
        total = 100 * conductances(crossbar, 0.5, numbers, g_max_us=100, drift="log_time")
        assert np.std(total - drifted) == pytest.approx(law["read"], rel=4 / np.sqrt(2 * DEVICES))


@checks("rram_wan2022_sigma_uS")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    for name, time_s in {"1s": 1.0, "1d": 86400.0, "2d": 172800.0}.items():
        numbers = law_of("rram_wan", "program", time_s=time_s)
        sigma = [40 * spread(crossbar, x, numbers, g_max_us=40, program="polynomial") for x in value["x"]]
        np.testing.assert_allclose(sigma, value[name], atol=2e-4)


@checks("pcm_joshi_uS")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    _check_polynomial(crossbar, value, 25, 0.25, (0.28638599, 0.07585724, -0.00178767))


@checks("rram_milo_uS")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    _check_polynomial(crossbar, value, 225, 50, (4.782321, -0.009107))


@checks("rram_wan_crosssim_uS")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    _check_polynomial(crossbar, value, 39.26, 0, (1.053, 0.2374, -1.167e-2, 1.536e-4))


def _check_polynomial(
    crossbar: Crossbar, value: dict[str, Any], g_max_us: float, g_min_us: float, in_us: tuple[float, ...]
) -> None:
    """Check a spread given as a polynomial of the conductance in microsiemens."""
    coefficients = [*(c * g_max_us**i for i, c in enumerate(in_us)), 0, 0, 0, 0][:5]
    numbers = {"program.scale": 1.0, "program.reference_us": g_max_us}
    numbers |= {f"program.c{i}": c for i, c in enumerate(coefficients)}
    scale = {"g_min_us": g_min_us, "g_max_us": g_max_us}
    sigma = [g_max_us * spread(crossbar, g / g_max_us, numbers, program="polynomial", **scale) for g in value["G"]]
    np.testing.assert_allclose(sigma, value["sigma"], rtol=3e-4)


@checks("sonos_nA")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    largest = value["I_max"]
    for days, expected in value["days"].items():
        numbers = law_of("sonos", "program", time_s=86400.0 * int(days), current_max_na=largest)
        sigma = [largest * spread(crossbar, current / largest, numbers, program="saturating") for current in value["I"]]
        np.testing.assert_allclose(sigma, expected, rtol=5e-5)


# Written operands: ClipFormer

_CLIP_V = "clip_v"


def _clipped(crossbar: Crossbar, v: Any, alpha: float, beta: float, **settings: Any) -> Any:
    """Return the values that an array holds for the fractions v of its range, the largest of which must be 1."""
    numbers = {
        "mapping.g_min_us": 0.1, "mapping.g_max_us": 10.0, "write.sigma": 0.01, "write.gamma": 5.0,
        "write.alpha": alpha, "write.beta": beta, "write.bits": 0.0,
    } | settings.pop("numbers", {})  # fmt: skip
    return crossbar.written(np.atleast_2d(v), write="clipformer", numbers=numbers, **settings).astype(np.float64)


@checks("clip_v")
def _(crossbar: Crossbar, key: str, value: list[float]) -> None:
    held = _clipped(crossbar, value, 0, 1, numbers={"write.gamma": 0.0})
    np.testing.assert_allclose(held[0], value, atol=1e-7)


@checks("clip_veff_*")
def _(crossbar: Crossbar, key: str, value: list[float]) -> None:
    alpha, beta = map(float, key.split("_")[-2:])
    held = _clipped(crossbar, DATA[_CLIP_V], alpha, beta, numbers={"write.gamma": 0.0})
    np.testing.assert_allclose(held[0], value, atol=1e-6)


@checks("clip_G_*")
def _(crossbar: Crossbar, key: str, value: list[float]) -> None:
    alpha, beta = map(float, key.split("_")[-2:])
    held = _clipped(crossbar, DATA[_CLIP_V], alpha, beta, numbers={"write.gamma": 0.0})
    np.testing.assert_allclose(0.1 + 9.9 * held[0], value, atol=6e-6)


def _below(error: Any) -> Any:
    """Return the rms per column of an error from its negative half: noise at the top of the range is clipped."""
    return np.sqrt(2 * np.mean(np.minimum(error, 0) ** 2, axis=0))


@checks("clip_sigma_uS_gs0.05")
def _(crossbar: Crossbar, key: str, value: list[float]) -> None:
    v = np.tile(DATA[_CLIP_V], (32768, 1))
    held = _held_rows(crossbar, v, strength=0.01)
    np.testing.assert_allclose(100 * 9.9 * _below(held - v), value, rtol=0.025, atol=1e-5)


def _held_rows(crossbar: Crossbar, v: Any, **settings: Any) -> Any:
    """Return what is written for the rows of v, in matrices of 64 rows: a product with all unit vectors is long."""
    b = np.asarray(v, np.float32).reshape(-1, 64, v.shape[1])
    held = _clipped(crossbar, b, 0, 1, write_scaling="matrix", **settings)
    return held.reshape(v.shape)


@checks("elem_snr_*")
def _(crossbar: Crossbar, key: str, value: float) -> None:
    amplitude = float(key.split("gs")[-1])
    random = np.random.default_rng(5)
    if "uniform" in key:
        v = random.uniform(size=(4096, 16))
    else:
        v = np.minimum(np.abs(random.standard_normal((4096, 16))) / 4, 1)
    v[::64, 0] = 1  # the largest value of every matrix
    # A hundredth of the noise, for the formula knows no clipping; 40 dB.
    held = _held_rows(crossbar, v, numbers={"write.gamma": 100 * amplitude}, strength=0.01)
    measured = 10 * np.log10(np.sum(v**2) / np.sum((held - v) ** 2)) - 40
    assert measured == pytest.approx(value, abs=0.25)


@checks("cellvar_over_gs2")
def _(crossbar: Crossbar, key: str, value: dict[str, float]) -> None:
    codes = np.array([*map(int, value)])
    v = np.tile(codes / 255, (32768, 1))
    held = _held_rows(crossbar, v, write_cells="cells", numbers={"write.gamma": 10.0}, strength=0.01)
    variance = (_below(held - v) / (10 * 0.01 * 0.01)) ** 2
    np.testing.assert_allclose(variance, list(value.values()), rtol=0.05, atol=1e-8)


@checks("mean_c*_var_uniform")
def _(crossbar: Crossbar, key: str, value: float) -> None:
    v = np.tile(np.arange(256) / 255, (1024, 1))
    cells = {"mean_cell_var_uniform": "cells", "mean_comp_var_uniform": "composite"}[key]
    held = _held_rows(crossbar, v, write_cells=cells, numbers={"write.gamma": 10.0}, strength=0.01)
    variance = (_below(held - v) / (10 * 0.01 * 0.01)) ** 2
    assert np.mean(variance) == pytest.approx(value, rel=0.02)


# Bit flips


def _flip(crossbar: Crossbar, code: int, bit: int, bits: int) -> float:
    faults: dict[str, Any] = {"fault_source": "list", "fault_storage": "int", "faults": [bit]}
    if bits == 16:  # codes of floats: the other weight makes the scale 1
        held = crossbar.faulty_weight([[float(code), 32767.0]], fault_bits=16, fault_mask=0xFFFF, **faults)
        return float(held[0, 0])
    y = crossbar.quantized(
        [[1.0]], [[code]], 1.0, 0.0, code_bits=bits, fault_bits=bits, fault_mask=2**bits - 1, **faults
    )
    return float(y[0, 0])


@checks("flip")
def _(crossbar: Crossbar, key: str, value: list[list[int]]) -> None:
    for code, bit, bits, flipped in value:
        assert _flip(crossbar, code, bit, bits) == flipped, (code, bit, bits)


@checks("mse_per_weight_over_p_b*")
def _(crossbar: Crossbar, key: str, value: float) -> None:
    bits = int(key.removeprefix("mse_per_weight_over_p_b"))
    for code in (-3, 0, 5):
        errors = [_flip(crossbar, code, bit, bits) - code for bit in range(bits)]
        assert sum(error**2 for error in errors) == value


def _flipped_bits(crossbar: Crossbar, p: float, shape: tuple[int, int], **settings: Any) -> Any:
    """Return for codes of 8 bits what random flips did to them: the exclusive or, int64."""
    codes = np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
    held = crossbar.quantized(
        np.eye(shape[0]), codes, 1.0, 0.0, code_bits=8, fault_bits=8, fault_mask=255, fault_source="random",
        fault_storage="int", numbers={"faults.ber": p}, **settings,
    )  # fmt: skip
    return (held.astype(np.int64) ^ codes) & 255


@checks("exp_flips_86M_int8_*")
def _(crossbar: Crossbar, key: str, value: float) -> None:
    ber = float(key.rsplit("_", 1)[-1])
    shape = (64, 8192)
    # Strength multiplies the rate, so that even the smallest rate shows flips in a small tensor.
    strength = 1e-3 / ber
    changed = _flipped_bits(crossbar, ber, shape, strength=strength, seed=int(-np.log10(ber)))
    count = sum(int(np.count_nonzero(changed & (1 << bit))) for bit in range(8))
    expected = value * strength * np.prod(shape) / 86e6
    assert count == pytest.approx(expected, abs=4 * np.sqrt(expected))


@checks("secded_p2_*")
def _(crossbar: Crossbar, key: str, value: float) -> None:
    ber = float(key.rsplit("_", 1)[-1])
    assert stats.binom.sf(1, 72, ber) == pytest.approx(value, rel=1e-6)
    # At its own rate a double error is rare: what is measured is the same law at 0.004.
    changed = _flipped_bits(crossbar, ber, (64, 8192), strength=4e-3 / ber, fault_protection="secded", seed=2)
    words = changed.reshape(-1, 8)
    double = stats.binom.sf(1, 72, 4e-3)
    # A word with two or more flips shows none of them if all lie in its 8 check bits.
    hidden = sum(stats.binom.pmf(k, 72, 4e-3) * stats.hypergeom.pmf(k, 72, 8, k) for k in range(2, 9))
    expected = len(words) * (double - hidden)
    assert np.count_nonzero(words.any(axis=1)) == pytest.approx(expected, abs=4 * np.sqrt(expected))


# Analog products: aihwkit

_AIHWKIT = {
    # bits or steps of DAC and ADC, bound of the ADC
    "default": ({"dac.bits": 7, "dac.steps": 0, "adc.bits": 9, "adc.steps": 0}, 12.0),
    "254": ({"dac.bits": 8, "dac.steps": 0, "adc.bits": 8, "adc.steps": 0}, 10.0),
    "256": ({"dac.bits": 0, "dac.steps": 256, "adc.bits": 0, "adc.steps": 256}, 10.0),
}


def _aihwkit_product(crossbar: Crossbar, x: Any, w: Any, case: str) -> Any:
    steps, bound = _AIHWKIT[case]
    numbers = {
        **steps, "dac.bound": 1.0, "adc.bound": bound, "adc.max_bound_factor": 1000.0,
        "adc.max_bound_resolution": 0.25,
    }  # fmt: skip
    return crossbar.stored(x, w, dac="absmax", adc="fixed", bound_management="iterative", numbers=numbers)


@checks("aihwkit_mvm")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    w, x = np.array(value["W"]).T, [value["x"]]
    np.testing.assert_allclose(_aihwkit_product(crossbar, x, w, "default")[0], value["default"], atol=2e-6)
    np.testing.assert_allclose(_aihwkit_product(crossbar, x, w, "254")[0], value["res254_bound10"], atol=2e-6)
    for rows in (64, 512):
        ones = np.ones((rows, 2))
        for case in ("default", "254", "256"):
            if f"ones{rows}_{case}" in value:
                y = _aihwkit_product(crossbar, ones[:, :1].T, ones, case)
                np.testing.assert_allclose(y, value[f"ones{rows}_{case}"], rtol=1e-6)


@checks("noise_budget")
def _(crossbar: Crossbar, key: str, value: dict[str, float]) -> None:
    random = np.random.default_rng(4)
    rows, columns, vectors = 256, 256, 256
    # Mean magnitude 0.2, rms 0.25; one column more sets the largest weight to 1.
    w = np.ones((rows, columns + 1))
    w[:, :-1] = random.choice([-0.35, -0.05, 0.05, 0.35], (rows, columns))
    x = random.choice([-0.3, 0.3], (vectors, rows))
    exact = (x @ w)[:, :-1]

    def error(**settings: Any) -> float:
        y = crossbar.stored(x, w, **settings)[:, :-1]
        return float(np.sqrt(np.mean((y - exact) ** 2)))

    pair: dict[str, Any] = {"encoding": "differential"}
    dac = {"dac.bits": 0, "dac.steps": 256, "dac.bound": 1.0, "dac.max": 1.0}
    adc = {"adc.bits": 0, "adc.steps": 256, "adc.bound": 10.0}
    spread_inputs = random.uniform(-0.3 * np.sqrt(3), 0.3 * np.sqrt(3), x.shape)
    quantized = crossbar.stored(spread_inputs, w, dac="fixed", numbers=dac)[:, :-1] - (spread_inputs @ w)[:, :-1]
    polynomial = {"program.scale": 1.0, "program.reference_us": 25.0}
    polynomial |= {"program.c0": 0.26348, "program.c1": 1.965, "program.c2": -1.1731, "program.c3": 0, "program.c4": 0}
    numbers = {**_PAIR_25, **polynomial}
    programmed = crossbar.held(w, program="polynomial", numbers=numbers, **pair)[:, :-1] - w[:, :-1]
    measured = {
        "signal_rms": float(np.sqrt(np.mean(exact**2))),
        "modifier0.05": error(numbers={"program.modifier": 0.05}),
        "out_noise": error(numbers={"read.output_noise": 0.04}),
        "w_noise_pcm_read": error(read_noise="pcm_read", numbers={"read.weight_noise": 0.0175}),
        "adc_q": error(adc="fixed", numbers=adc),
        "dac_q": float(np.sqrt(np.mean(quantized**2))),
        "pcm_prog_rms_weight": float(np.std(programmed)),
        "pcm_prog_mvm_rms": float(np.std(programmed)) * 0.3 * np.sqrt(rows),
    }
    assert measured == pytest.approx(value, rel=0.02)


# Analog products: CrossSim


def _crosssim(crossbar: Crossbar, **settings: Any) -> Any:
    value = DATA["crosssim"]
    numbers = {"mapping.g_min_us": 100.0, "mapping.g_max_us": 1000.0, **settings.pop("numbers", {})}
    w = np.array(value["W"]).T
    if numbers.get("mapping.cell_bits") == 4:
        w[w == 0.1] -= 1e-6  # 0.1 is 1.5 of 15 levels: a tie, which CrossSim's rounding errors send down
    return crossbar.stored([value["x"]], w, numbers=numbers, **settings)[0]


@checks("crosssim")
def _(crossbar: Crossbar, key: str, value: dict[str, Any]) -> None:
    pair: dict[str, Any] = {"encoding": "differential"}
    dac = {"dac.bits": 8, "dac.steps": 0, "dac.bound": 1.0, "dac.max": 1.0}
    adc = {"adc.bits": 8, "adc.steps": 0}
    wires = {"read.row_ohm": 1.0, "read.column_ohm": 1.0}
    binary: dict[str, Any] = {"adc_code": "offset_binary"}
    # name of the number: settings of every crossbar that must give it
    cases: dict[str, list[dict[str, Any]]] = {
        "exact": [pair, {"encoding": "two_sided"}, {"encoding": "offset"}],
        "cell4": [{**pair, "numbers": {"mapping.cell_bits": 4}}],
        "wb8_cell7": [{**pair, "weight_bits": 8, "numbers": {"mapping.cell_bits": 7}}],
        "offset8": [
            {"encoding": "offset", "weight_bits": 8, "numbers": {"mapping.cell_bits": 8}, "offset_correction": how}
            for how in ("digital", "unit_column")
        ],
        "bitsliced_4x2": [
            {"encoding": encoding, "weight_bits": 8, "slice_bits": 2} for encoding in ("offset", "differential")
        ],
        "dac8_sm": [{**pair, "dac": "fixed", "dac_slice_bits": bits, "numbers": dac} for bits in (0, 1)],
        "adc8_max": [{**pair, "adc": "rows", **binary, "numbers": adc}],
        "adc8_sm_max": [{**pair, "adc": "rows", "numbers": adc}],
        "adc8_cal_pm2": [{**pair, "adc": "calibrated", **binary, "ranges": (1, -2, 2, 1), "numbers": adc}],
        "parasitic_1ohm": [{**pair, "ir_drop": "network", "numbers": wires}],
    }
    assert set(cases) == set(value) - {"W", "x", "note"}
    for name, several in cases.items():
        # CrossSim iterates towards the solution of its wires until it changes by less than 0.1 %.
        tolerance = {"parasitic_1ohm": 5e-5}.get(name, 1e-6)
        for settings in several:
            np.testing.assert_allclose(_crosssim(crossbar, **settings), value[name], atol=tolerance, err_msg=name)


@checks("crosssim_bitserial")
def _(crossbar: Crossbar, key: str, value: list[Any]) -> None:
    numbers = {"dac.bits": 8, "dac.steps": 0, "dac.bound": 1.0, "dac.max": 1.0}
    for x, slice_bits, (summed, whole) in value:
        y = crossbar.stored([[x]], [[1.0]], dac="fixed", dac_slice_bits=slice_bits, numbers=numbers)
        assert abs(y[0, 0]) == pytest.approx(whole, rel=1e-6)
        assert y[0, 0] == pytest.approx(summed, rel=1e-6)


def _columns(held: Any, groups: int) -> Any:
    """Return the values of each group of columns, [groups, ...]."""
    return np.asarray(held, np.float64).reshape(len(held), groups, -1).transpose(1, 0, 2).reshape(groups, -1)
