"""What is written anew for every product, and what every product adds, follows the laws of its models."""

from typing import Any

import numpy as np
import pytest

from benchmarks.agreement.one_crossbar import Crossbar
from tests.statistics.laws import assert_normal, assert_unrelated

ROWS, COLUMNS = 16, 4096


def written(crossbar: Crossbar, value: float, **settings: Any) -> Any:
    """Return what is held for many values of a written operand whose largest is 1."""
    b = np.full((ROWS, COLUMNS), value)
    b[0] = 1
    return crossbar.written(b, **settings)[1:].astype(np.float64)


WRITES = {
    "lognormal_w": (lambda held, w: np.log(held / w), 0.0),
    "lognormal_w_meancorr": (lambda held, w: np.log(held / w), -(0.1**2) / 2),
    "gauss_prop": (lambda held, w: held / w - 1, 0.0),
    "gauss_range": (lambda held, w: held - w, 0.0),
}


@pytest.mark.parametrize("value", [0.6, -0.3])
@pytest.mark.parametrize("model", WRITES)
def test_written_weights(crossbar: Crossbar, model: str, value: float) -> None:
    error, mean = WRITES[model]
    held = written(crossbar, value, write=model, numbers={"write.sigma": 0.2}, strength=0.5, seed=1)
    assert_normal(error(held, np.float32(value)), mean, 0.1)


def test_written_conductances(crossbar: Crossbar) -> None:
    numbers = {"write.sigma": 0.05, "mapping.g_min_us": 0.0, "mapping.g_max_us": 1.0}
    held = written(crossbar, -0.6, write="lognormal_g", numbers=numbers, seed=2)
    assert_normal(np.log(held / np.float32(-0.6)), 0, 0.05)
    numbers["mapping.g_min_us"] = 0.5
    zero = written(crossbar, 0.0, write="lognormal_g", numbers=numbers, seed=3)
    small = np.sqrt((np.exp(0.05**2) - 1) * np.exp(0.05**2))  # of one device, relative
    assert zero.std() == pytest.approx(np.sqrt(2) * small, rel=0.0125)
    assert abs(zero.mean()) < 4 * zero.std() / np.sqrt(zero.size)


CLIPFORMER = {
    "write.sigma": 0.01, "write.gamma": 2.0, "write.alpha": 0.0, "write.beta": 1.0, "write.bits": 0.0,
    "mapping.g_min_us": 0.1, "mapping.g_max_us": 10.0,
}  # fmt: skip


@pytest.mark.parametrize("value", [0.2, -0.6])
def test_clipformer_noise_grows_with_the_root_of_the_value(crossbar: Crossbar, value: float) -> None:
    held = written(crossbar, value, write="clipformer", numbers=CLIPFORMER, seed=4)
    assert_normal(held - np.float32(value), 0, 0.02 * np.sqrt(abs(value)))


def test_clipformer_noise_of_four_cells(crossbar: Crossbar) -> None:
    code = 0b01_10_11_00
    held = written(crossbar, code / 255, write="clipformer", write_cells="cells", numbers=CLIPFORMER, seed=5)
    digits = np.array([0, 3, 2, 1])
    variance = np.sum((3 * 4.0 ** np.arange(4) / 255) ** 2 * digits / 3)
    assert_normal(held - code / 255, 0, 0.02 * np.sqrt(variance))


def test_every_writing_is_new(crossbar: Crossbar) -> None:
    settings: dict[str, Any] = {"write": "gauss_range", "numbers": {"write.sigma": 0.1}}
    b = np.ones((2, 64, 1024))
    both = crossbar.dynamic(np.broadcast_to(np.eye(64), (2, 64, 64)), b, **settings)
    assert_unrelated(both[0], both[1])
    again = crossbar.dynamic(np.eye(64), b[0], read_seed=1, **settings)
    assert_unrelated(both[0], again)


def test_output_noise(crossbar: Crossbar) -> None:
    x = np.zeros((64, 8))
    y = crossbar.stored(x, np.ones((8, 1024)), numbers={"read.output_noise": 0.08}, strength=0.5, seed=6)
    assert_normal(y, 0, 0.04)


def test_output_noise_is_scaled_with_weights_and_inputs(crossbar: Crossbar) -> None:
    numbers = {"read.output_noise": 0.04, "dac.bits": 0.0, "dac.steps": 0.0, "dac.bound": 1.0}
    x = np.full((64, 8), 3.0)
    y = crossbar.stored(x, np.full((8, 1024), 0.5), dac="absmax", numbers=numbers, seed=7)
    assert_normal(y, 12, 0.04 * 3 * 0.5)


def test_every_row_tile_adds_its_own_output_noise(crossbar: Crossbar) -> None:
    y = crossbar.stored(
        np.zeros((64, 12)), np.ones((12, 1024)), tile_rows=3, numbers={"read.output_noise": 0.04}, seed=8
    )  # fmt: skip
    assert_normal(y, 0, 2 * 0.04)


READS = {
    "additive_constant": lambda x, w: np.sqrt(np.sum(x**2)),
    "pcm_read": lambda x, w: np.sqrt(np.sum(np.abs(w) * x**2)),
    "proportional": lambda x, w: np.sqrt(np.sum(w**2 * x**2)),
}


@pytest.mark.parametrize("model", READS)
def test_read_noise(crossbar: Crossbar, model: str) -> None:
    x, w = np.array([0.3, -0.8, 1.0, 0.1]), np.array([1.0, -0.5, 0.2, 0.0])
    weights = np.tile(w[:, None], (1, 1024))
    y = crossbar.stored(
        np.tile(x, (64, 1)), weights, read_noise=model, numbers={"read.weight_noise": 0.02}, strength=2.0, seed=9
    )  # fmt: skip
    assert_normal(y, x @ w, 0.04 * READS[model](x, w))


def test_read_and_output_noise_add_as_variances(crossbar: Crossbar) -> None:
    x, w = np.ones((64, 4)), np.ones((4, 1024))
    numbers = {"read.weight_noise": 0.03, "read.output_noise": 0.04}
    y = crossbar.stored(x, w, read_noise="additive_constant", numbers=numbers, seed=10)
    assert_normal(y, 4, np.hypot(0.06, 0.04))


def test_input_noise_is_shared_by_all_columns(crossbar: Crossbar) -> None:
    x = np.full((4096, 16), 0.5)
    w = np.zeros((16, 17))
    w[:, :16], w[:, 16] = np.eye(16), 1
    y = crossbar.stored(x, w, numbers={"read.input_noise": 0.03}, seed=11).astype(np.float64)
    assert_normal(y[:, :16], 0.5, 0.03)
    np.testing.assert_allclose(y[:, 16], y[:, :16].sum(axis=1), atol=1e-5)


def test_every_product_reads_anew(crossbar: Crossbar) -> None:
    x, w = np.zeros((2, 64, 4)), np.ones((4, 1024))
    settings: dict[str, Any] = {"numbers": {"read.output_noise": 0.04}}
    both = crossbar.stored(x, w, **settings)
    assert_unrelated(both[0], both[1])  # two samples
    assert_unrelated(both[0, 0], both[0, 1])  # two rows of one sample
    assert_unrelated(both, crossbar.stored(x, w, read_seed=1, **settings))
    np.testing.assert_array_equal(both[1], crossbar.stored(x[1:], w, sample=1, **settings)[0])


@pytest.mark.parametrize("shared", [1, 8])
def test_converters_have_gain_and_offset_errors(crossbar: Crossbar, shared: int) -> None:
    columns = 49152 * shared
    numbers = {"adc.bits": 0.0, "adc.steps": 0.0, "adc.bound": 100.0, "adc.gain_sigma": 0.02, "adc.offset_sigma": 0.05}
    x = np.array([[0.0], [1.0]])
    y = crossbar.stored(x, np.ones((1, columns)), adc="fixed", adc_columns=shared, numbers=numbers, seed=12)
    offset, gain = y[0].astype(np.float64), (y[1] - y[0]).astype(np.float64)
    if shared > 1:
        groups = offset.reshape(-1, shared)
        np.testing.assert_array_equal(groups, groups[:, :1].repeat(shared, axis=1))
    assert_normal(offset[::shared], 0, 0.05)
    assert_normal(gain[::shared], 1, 0.02)
    assert_unrelated(offset[::shared], gain[::shared])


def test_converters_keep_their_errors_from_product_to_product(crossbar: Crossbar) -> None:
    numbers = {"adc.bits": 0.0, "adc.steps": 0.0, "adc.bound": 100.0, "adc.gain_sigma": 0.02, "adc.offset_sigma": 0.05}
    x, w = np.ones((4, 3, 8)), np.ones((8, 64))
    y = crossbar.stored(x, w, adc="fixed", tile_rows=4, numbers=numbers)
    np.testing.assert_array_equal(y, y[:1, :1].repeat(4, axis=0).repeat(3, axis=1))
    np.testing.assert_array_equal(y, crossbar.stored(x, w, adc="fixed", tile_rows=4, numbers=numbers, read_seed=5))
