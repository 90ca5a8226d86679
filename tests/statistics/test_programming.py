"""What programming makes of many equal targets follows the law of its model."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.agreement.one_crossbar import Crossbar, law_of
from emu import register_device_function
from tests.statistics.devices import COLUMNS, DEVICES, ROWS, conductances
from tests.statistics.laws import assert_follows, assert_normal, assert_unrelated

SPREADS = {"device": (0.05, 0.0), "cycle": (0.0, 0.05), "both": (0.03, 0.04)}  # all 0.05 together


def numbers_of(spread: str, factor: float = 1.0) -> dict[str, float]:
    device, cycle = SPREADS[spread]
    return {"program.sigma": device * factor, "program.sigma_cycle": cycle * factor}


def weights(crossbar: Crossbar, value: float, **settings: Any) -> Any:
    """Return what is held for many weights of that value in an array whose largest is 1."""
    w = np.full((ROWS, COLUMNS), value)
    w[0] = 1
    return crossbar.held(w, **settings)[1:].astype(np.float64)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("value", [0.8, -0.2])
def test_lognormal_weights(crossbar: Crossbar, spread: str, value: float) -> None:
    held = weights(crossbar, value, program="lognormal_w", numbers=numbers_of(spread))
    assert_normal(np.log(held / np.float32(value)), 0, 0.05)


def test_mean_corrected_lognormal_weights_keep_their_mean(crossbar: Crossbar) -> None:
    held = weights(crossbar, 0.8, program="lognormal_w_meancorr", numbers=numbers_of("both", 6), seed=1)
    assert_normal(np.log(held / np.float32(0.8)), -(0.3**2) / 2, 0.3)
    assert_follows(held / 0.8, stats.lognorm(0.3, scale=np.exp(-0.045)))


@pytest.mark.parametrize("spread", SPREADS)
def test_gaussian_weights_in_proportion(crossbar: Crossbar, spread: str) -> None:
    held = weights(crossbar, -0.4, program="gauss_prop", numbers=numbers_of(spread), seed=2)
    assert_normal(held / np.float32(-0.4) - 1, 0, 0.05)


@pytest.mark.parametrize("spread", SPREADS)
def test_gaussian_weights_relative_to_the_range(crossbar: Crossbar, spread: str) -> None:
    held = weights(crossbar, -0.4, program="gauss_range", numbers=numbers_of(spread), seed=3)
    assert_normal(held - np.float32(-0.4), 0, 0.05)


def test_strength_multiplies_the_spread(crossbar: Crossbar) -> None:
    held = weights(crossbar, 0.5, program="gauss_range", numbers=numbers_of("both"), strength=0.4)
    assert_normal(held - 0.5, 0, 0.02)


def test_only_the_cycle_part_is_redrawn(crossbar: Crossbar) -> None:
    def drawn(seed: int, read_seed: int) -> Any:
        settings: dict[str, Any] = {"program": "gauss_range", "seed": seed, "read_seed": read_seed}
        device = weights(crossbar, 0.5, numbers=numbers_of("device"), **settings)
        cycle = weights(crossbar, 0.5, numbers=numbers_of("cycle"), **settings)
        return device - 0.5, cycle - 0.5

    first, again, other_chip = drawn(7, 0), drawn(7, 1), drawn(8, 0)
    np.testing.assert_array_equal(first[0], again[0])
    assert_unrelated(first[1], again[1])
    assert_unrelated(first[0], first[1])
    assert_unrelated(first[0], other_chip[0])


# Conductances: name, error of a device of target g that makes it comparable with the spread
ERRORS = {
    "lognormal_g": lambda held, g: np.log(held / g),
    "normal_independent": lambda held, g: held - g,
    "normal_proportional": lambda held, g: held / g - 1,
    "normal_inverse": lambda held, g: (held - g) * g,
    "uniform_independent": lambda held, g: held - g,
    "uniform_proportional": lambda held, g: held / g - 1,
    "uniform_inverse": lambda held, g: (held - g) * g,
}


@pytest.mark.parametrize("g", [0.4, 0.9])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("model", ERRORS)
def test_conductances(crossbar: Crossbar, model: str, spread: str, g: float) -> None:
    held = conductances(crossbar, g, numbers_of(spread), program=model, seed=4)
    error = ERRORS[model](held, g)
    if not model.startswith("uniform"):
        assert_normal(error, 0, 0.05)
    elif spread == "both":  # the sum of two uniform numbers
        widths = np.array([0.03, 0.04])
        edges = (widths @ [1, 1]) / 2
        flat = abs(widths @ [1, -1]) / 2
        law = stats.trapezoid(0.5 - flat / edges / 2, 0.5 + flat / edges / 2, loc=-edges, scale=2 * edges)
        assert_follows(error, law)
    else:
        assert_follows(error, stats.uniform(-0.025, 0.05))


def test_a_device_that_conducts_nothing_has_no_inverse_error(crossbar: Crossbar) -> None:
    held = conductances(crossbar, 0.0, numbers_of("both"), program="normal_inverse")
    np.testing.assert_array_equal(held, 0)


def test_conductances_are_kept_above_zero_or_in_their_range_or_not(crossbar: Crossbar) -> None:
    settings: dict[str, Any] = {"program": "normal_independent", "g_min_us": 0.2, "seed": 5}
    numbers = {"program.sigma": 0.2, "program.sigma_cycle": 0.0}
    free = conductances(crossbar, 0.2, numbers, **settings)
    assert np.mean(free <= 1e-6) == pytest.approx(stats.norm.cdf(-1), abs=4 * 0.37 / np.sqrt(DEVICES))
    assert free.min() > -1e-6
    kept = conductances(crossbar, 0.2, numbers, program_clip="range", **settings)
    assert np.mean(kept <= 0.2 + 1e-6) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(DEVICES))
    np.testing.assert_allclose(kept, np.clip(free, 0.2, 1), atol=1e-6)
    high = conductances(crossbar, 1.0, numbers, program_clip="range", **settings)
    assert high.max() <= 1 + 1e-6
    as_drawn = conductances(crossbar, 0.2, numbers, program_clip="none", **settings)
    assert_follows(as_drawn - 0.2, stats.norm(0, 0.2))
    np.testing.assert_allclose(np.maximum(as_drawn, 0), free, atol=1e-6)


POLYNOMIAL = {"program.c0": 1.0, "program.c1": -0.5, "program.c2": 2.0, "program.c3": -3.0, "program.c4": 1.5}
AMPLITUDES: dict[str, tuple[dict[str, float], float, dict[str, Any]]] = {
    # numbers, amplitude at g = 0.5 in units of g_max, settings
    "polynomial": (
        {"program.scale": 1.5, **POLYNOMIAL, "program.reference_us": 20.0},
        1.5 * (1 - 0.25 + 0.5 - 0.375 + 0.09375) / 20,
        {},
    ),
    "polynomial of rram_wan": (
        law_of("rram_wan", "program", time_s=1.0),
        (0.348 + 16.030 / 2 - 43.853 / 4 + 45.393 / 8 - 16.815 / 16) / 40,
        {"g_max_us": 40},
    ),
    "saturating of sonos": (
        law_of("sonos", "program", scale=2.0, current_max_na=800.0),
        2 * 19.88665 * (1 - np.exp(-400 / 176.3115)) / 800,
        {},
    ),
}


@pytest.mark.parametrize("model", AMPLITUDES)
def test_fitted_amplitudes(crossbar: Crossbar, model: str) -> None:
    numbers, amplitude, settings = AMPLITUDES[model]
    held = conductances(crossbar, 0.5, numbers, program=model.split()[0], seed=6, **settings)
    assert_normal(held - 0.5, 0, amplitude)


TABLE = {
    "program.scale": 1.0,
    **{f"program.target_us.{i}": target for i, target in enumerate((2.0, 6.0, 18.0))},
    **{f"program.mean_us.{j}.{i}": (1 + j) * mean for j in range(2) for i, mean in enumerate((3.0, 5.0, 8.0))},
    **{f"program.std_us.{j}.{i}": (1 + j) * std for j in range(2) for i, std in enumerate((0.2, 0.4, 0.6))},
    "program.table_time_s.0": 1.0,
    "program.table_time_s.1": 100.0,
}


@pytest.mark.parametrize(
    ("target_us", "time_s", "mean", "deviation"),
    [
        (4.0, 1.0, 4.0, 0.3),
        (12.0, 10.0, 6.5 * 1.5, 0.5 * 1.5),
        (19.0, 1000.0, 16.0, 1.2),
        (1.0, 0.5, 3.0, 0.2),
    ],
)
def test_tables(crossbar: Crossbar, target_us: float, time_s: float, mean: float, deviation: float) -> None:
    held = conductances(
        crossbar, target_us / 20, {**TABLE, "program.time_s": time_s}, g_max_us=20, program="table",
        table_times=2, table_points=3, seed=7,
    )  # fmt: skip
    assert_normal(20 * held, mean, deviation)


def test_all_devices_of_a_level_share_one_error(crossbar: Crossbar) -> None:
    levels = 4096
    errors = []
    for seed in range(10):
        w = np.tile(np.linspace(-1, 1, levels), (2, 1))
        numbers = {
            "mapping.g_min_us": 0.5, "mapping.g_max_us": 1.0, "mapping.cell_bits": 12.0, "program.sigma": 0.02,
            "program.sigma_cycle": 0.0,
        }  # fmt: skip
        settings: dict[str, Any] = {"encoding": "two_sided", "seed": seed}
        exact = crossbar.held(w, numbers=numbers, **settings).astype(np.float64)
        numbers_shared = {name: value for name, value in numbers.items() if name != "program.sigma_cycle"}
        shared = crossbar.held(w, program="level_shared", numbers=numbers_shared, **settings).astype(np.float64)
        np.testing.assert_array_equal(shared[0], shared[1])
        errors.append(_level_error(exact[0], shared[0]))
    assert_normal(np.concatenate(errors), 0, np.sqrt(2) * 0.02)


def _level_error(exact: Any, shared: Any) -> Any:
    """Return the error of each pair over the conductance of its devices, which differ little near w = 0."""
    # g+ / (1 + e) - g- / (1 + e') with both near 0.75: in first order g- e' - g+ e.
    high, low = 0.5 + 0.25 * (1 + exact), 0.5 + 0.25 * (1 - exact)
    return (shared - exact) * 0.5 / np.sqrt((high**2 + low**2) / 2)


def test_resistances_at_both_ends_of_the_range(crossbar: Crossbar) -> None:
    numbers = {"program.sigma": 0.05, "program.sigma_off": 0.08}
    settings: dict[str, Any] = {"program": "resistance_range", "g_min_us": 0.2, "seed": 8}
    on = conductances(crossbar, 1.0, numbers, **settings)
    assert_normal(1 / on - 1, 0, 0.05)
    off = conductances(crossbar, 0.2, numbers, **settings)
    assert_normal(0.2 / off - 1, 0, 0.08)
    middle = conductances(crossbar, 0.6, numbers, **settings)
    np.testing.assert_allclose(middle, (on + off) / 2, atol=2e-6)
    assert_unrelated(on, off)


def test_a_program_function_gets_the_normals_of_the_chip(crossbar: Crossbar) -> None:
    register_device_function(
        "statistics.additive", lambda target, normals, parameters: target + parameters["spread"] * normals
    )
    held = conductances(
        crossbar, 0.5, {"program.parameter.spread": 0.04}, program="function", program_function="statistics.additive",
        strength=0.5, seed=9,
    )  # fmt: skip
    assert_normal(held - 0.5, 0, 0.02)


def test_the_devices_of_a_pair_err_independently(crossbar: Crossbar) -> None:
    numbers = {"mapping.g_min_us": 0.5, "mapping.g_max_us": 1.0, **numbers_of("both")}
    for encoding in ("differential", "two_sided"):
        held = weights(crossbar, 0.25, encoding=encoding, program="normal_independent", numbers=numbers, seed=10)
        assert_normal(held - 0.25, 0, np.sqrt(2) * 0.05 / 0.5)


def test_every_slice_errs_on_its_own(crossbar: Crossbar) -> None:
    numbers = {"mapping.g_min_us": 0.5, "mapping.g_max_us": 1.0, **numbers_of("device")}
    settings: dict[str, Any] = {"weight_bits": 8, "slice_bits": 2, "program": "normal_independent", "seed": 11}
    for encoding, devices, slices in (("differential", 2, 4), ("offset", 1, 4)):
        held = weights(crossbar, 64 / 127, encoding=encoding, numbers=numbers, **settings)
        factors = 4.0 ** np.arange(slices) * 3 / (127 * 0.5)
        assert_normal(held - 64 / 127, 0, 0.05 * np.sqrt(devices * np.sum(factors**2)))


def test_the_modifier_is_relative_to_the_largest_weight_of_a_tile(crossbar: Crossbar) -> None:
    w = np.full((ROWS, COLUMNS), 0.2)
    w[0], w[ROWS // 2 + 1] = 1, 0.4
    settings: dict[str, Any] = {"tile_rows": ROWS // 2, "numbers": {"program.modifier": 0.05}, "seed": 12}
    held = np.concatenate([crossbar.held(w, **settings | {"seed": seed}) - w for seed in (12, 13)], axis=1)
    assert_normal(held[: ROWS // 2], 0, 0.05)
    assert_normal(held[ROWS // 2 :], 0, 0.02)


def test_the_cells_of_a_unit_column_err_like_all_others(crossbar: Crossbar) -> None:
    numbers = {"mapping.g_min_us": 0.5, "mapping.g_max_us": 1.0, **numbers_of("both")}
    numbers |= {"dac.bits": 0.0, "dac.steps": 0.0, "dac.bound": 1.0, "dac.max": 1.0}
    rows = 1024
    settings: dict[str, Any] = {"encoding": "offset", "program": "normal_independent", "dac": "fixed"}
    settings |= {"numbers": numbers}
    errors = {}
    for correction in ("digital", "unit_column"):
        runs = [
            crossbar.stored(np.eye(rows), np.zeros((rows, 1)), offset_correction=correction, seed=seed, **settings)
            for seed in range(40)
        ]
        errors[correction] = np.concatenate(runs) * 0.5 / 2  # in units of g_max
    assert_normal(errors["digital"], 0, 0.05)
    assert_normal(errors["unit_column"], 0, np.sqrt(2) * 0.05)
    assert_unrelated(errors["digital"], errors["unit_column"] - errors["digital"])
