"""What programming makes of weights: the law of every model, and what a chip depends on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from emu.reference import Stream, stored_normals

from .nodes import dynamic, normal, programmed, stored

MODELS = ["lognormal_w", "lognormal_w_meancorr", "lognormal_g", "gauss_prop", "gauss_range"]
MAPPING = {"mapping.g_min_us": 1.0, "mapping.g_max_us": 11.0}


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
    factor = programmed(np.ones((1000, 1000)), program="lognormal_w", numbers=sigmas(sigma), seed=3).astype(np.float64)
    standard_error = factor.std() / 1000
    assert factor.mean() == pytest.approx(mean, abs=4 * standard_error + 1e-5)
    assert factor.std() / factor.mean() == pytest.approx(variation, rel=0.01)
    squares = (factor - 1) ** 2
    assert math.sqrt(squares.mean()) == pytest.approx(rms, rel=2 * squares.std() / squares.mean() / 1000 + 1e-4)


def test_mean_corrected_lognormal_keeps_the_mean():
    factor = programmed(np.ones((1000, 1000)), program="lognormal_w_meancorr", numbers=sigmas(0.3, 0.4), seed=4)
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
    normals = _disturbance(model, w, programmed(w, program=model, numbers=numbers, seed=5), 0.2)
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
    values = programmed(w, program="lognormal_g", numbers=sigmas(0.3), seed=7)[1:].astype(np.float64)
    r = 1.0 / 10.0
    of_one_device = math.sqrt(math.exp(2 * 0.3**2) - math.exp(0.3**2))
    assert values.std() == pytest.approx(2.0 * r * math.sqrt(2) * of_one_device, rel=0.01)
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(values.size)


def test_both_devices_of_a_pair_have_their_own_streams():
    """The formula of `lognormal_g`, written out for one weight array with device and cycle disturbances."""
    w = normal(5, 6)
    values = programmed(w, program="lognormal_g", numbers=sigmas(0.3, 0.2), strength=0.5, seed=7, read_seed=9, array=2)
    s, r = np.abs(w).max(), 1.0 / 10.0

    def theta(device: Stream, cycle: Stream) -> np.ndarray:
        normals = 0.3 * stored_normals(7, 0, 2, device, 5, 6) + 0.2 * stored_normals(7, 9, 2, cycle, 5, 6)
        return 0.5 * normals

    positive = (np.maximum(w / s, 0) + r) * np.exp(theta(Stream.PROGRAM, Stream.PROGRAM_CYCLE))
    negative = (np.maximum(-w / s, 0) + r) * np.exp(theta(Stream.PROGRAM_NEGATIVE, Stream.PROGRAM_CYCLE_NEGATIVE))
    np.testing.assert_allclose(values, s * (positive - negative), rtol=1e-5, atol=1e-6)


def test_zero_weights_stay_zero_when_disturbance_is_proportional():
    for model in ("lognormal_w", "lognormal_w_meancorr", "gauss_prop"):
        assert not programmed(np.zeros((4, 4)), program=model, numbers=sigmas(0.5)).any()


def test_lognormal_weights_never_change_sign_but_proportional_ones_do():
    w = normal(200, 200)
    numbers = sigmas(0.5)
    assert (np.sign(programmed(w, program="lognormal_w", numbers=numbers)) == np.sign(w)).all()
    assert (np.sign(programmed(w, program="gauss_prop", numbers=numbers)) != np.sign(w)).any()


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_is_the_same_chip(model):
    w, numbers = normal(30, 20), sigmas(0.1)
    chip = programmed(w, program=model, numbers=numbers, seed=8)
    np.testing.assert_array_equal(chip, programmed(w, program=model, numbers=numbers, seed=8, read_seed=99))
    assert (chip != programmed(w, program=model, numbers=numbers, seed=9)).mean() > 0.99


@pytest.mark.parametrize("model", MODELS)
def test_cycle_to_cycle_disturbance_is_redrawn_with_the_read_seed(model):
    w = normal(30, 20)
    cycles = [programmed(w, program=model, numbers=sigmas(0, 0.1), seed=8, read_seed=cycle) for cycle in (0, 1)]
    assert (cycles[0] != cycles[1]).mean() > 0.99


def test_device_and_cycle_disturbances_add_in_variance():
    values = programmed(np.ones((500, 500)), program="lognormal_w", numbers=sigmas(0.3, 0.4), seed=1, read_seed=2)
    assert np.log(values).std() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_strength_multiplies_sigma(model):
    w = normal(30, 20)
    weak = programmed(w, program=model, numbers=sigmas(0.05, 0.025), strength=2.0, seed=1)
    np.testing.assert_allclose(weak, programmed(w, program=model, numbers=sigmas(0.1, 0.05), seed=1), rtol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_strength_zero_stores_the_weight_itself(model):
    w = normal(30, 20)
    np.testing.assert_allclose(programmed(w, program=model, numbers=sigmas(0.5), strength=0.0), w, rtol=1e-6, atol=1e-6)


def test_range_disturbance_is_scaled_by_what_shares_a_scale():
    w = np.ones((400, 300), dtype=np.float32)
    w[:, 0] = 10.0
    w[:200] *= 5
    numbers = sigmas(0.1)

    def spread(scaling: str, rows: slice, column: int | slice) -> float:
        values = programmed(w, program="gauss_range", numbers=numbers, scaling=scaling, tile_rows=200, tile_columns=100)
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
    whole = programmed(w, program="gauss_range", numbers=sigmas())
    tiled = programmed(w, program="gauss_range", numbers=sigmas(), tile_rows=8, tile_columns=5)
    np.testing.assert_array_equal(whole, tiled)


def test_each_matrix_of_a_dynamic_operand_has_its_own_scale():
    b = np.stack([np.ones((50, 80)), 10 * np.ones((50, 80))])
    values = dynamic(np.broadcast_to(np.eye(50), (2, 50, 50)), b, write="gauss_range", numbers={"write.sigma": 0.1})
    assert (values - b)[0].std() == pytest.approx(0.1, rel=0.05)
    assert (values - b)[1].std() == pytest.approx(1.0, rel=0.05)


def test_the_crossbar_multiplies_with_the_programmed_weight():
    x, w, numbers = normal(4, 30), normal(30, 20, seed=1), sigmas()
    expected = x.astype(np.float64) @ programmed(w, program="lognormal_g", numbers=numbers, seed=2)
    np.testing.assert_allclose(
        stored(x, w, program="lognormal_g", numbers=numbers, seed=2), expected, rtol=1e-6, atol=1e-6
    )


@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0, 1, width=32), model=st.sampled_from(MODELS))
def test_a_pair_without_leakage_is_the_lognormal_weight(seed, sigma, model):
    w = np.abs(normal(5, 6))
    pair = programmed(w, program="lognormal_g", numbers={**sigmas(sigma), "mapping.g_min_us": 0.0}, seed=seed)
    np.testing.assert_allclose(pair, programmed(w, program="lognormal_w", numbers=sigmas(sigma), seed=seed), rtol=1e-5)
