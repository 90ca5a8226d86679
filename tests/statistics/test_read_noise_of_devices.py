"""Read noise of conductances against brute force: every device drawn by itself, then pairs and slices added up.

The law is CrossSim's NormalProportional and NormalIndependent read error.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.agreement.one_crossbar import Crossbar

Array = NDArray[np.float64]

DRAWS, SIGMA = 4000, 0.05
SLICED = {"weight_bits": 8, "slice_bits": 3}
ENCODINGS: dict[str, dict[str, Any]] = {
    "differential": {},
    "two_sided": {},
    "offset": {"offset_correction": "digital"},
    "offset, unit column": {"offset_correction": "unit_column"},
    "differential, slices": SLICED,
    "offset, slices": {**SLICED, "offset_correction": "digital"},
    "offset, slices, unit column": {**SLICED, "offset_correction": "unit_column"},
}
W = np.random.default_rng(1).normal(size=(24, 6))
X = np.random.default_rng(2).normal(size=24)


def arrays(unit: Array, encoding: str, bits: int, slice_bits: int, r: float) -> list[tuple[float, Array]]:
    """Conductances in units of g_max of each array that holds weights in [-1, 1], with its factor on the weight."""
    span = 1 - r
    if not slice_bits:
        positive, negative = np.maximum(unit, 0), np.maximum(-unit, 0)
        if encoding == "two_sided":
            positive, negative = (1 + unit) / 2, (1 - unit) / 2
        if encoding == "offset":
            return [(2 / span, r + span * (1 + unit) / 2)]
        return [(1 / span, r + span * positive), (-1 / span, r + span * negative)]
    most = 2 ** (bits - 1) - 1
    codes = np.rint(unit * most).astype(int)
    sides = (
        [(1, codes + 2 ** (bits - 1))]
        if encoding == "offset"
        else [(1, np.maximum(codes, 0)), (-1, -np.minimum(codes, 0))]
    )
    steps, held = 2**slice_bits - 1, []
    for sign, magnitudes in sides:
        for shift in range(0, bits if encoding == "offset" else bits - 1, slice_bits):
            digits = magnitudes >> shift & steps
            held.append((sign * 2.0**shift * steps / (most * span), r + span * digits / steps))
    return held


def drawn(model: str, held: list[tuple[float, Array]], draw: np.random.Generator) -> Array:
    """Error of x @ w in units of the scale, [DRAWS, N], with every device of every array disturbed by itself."""
    total = np.zeros((DRAWS, held[0][1].shape[1]))
    for factor, g in held:
        amplitude = SIGMA * (g if model == "proportional" else np.ones_like(g))
        noise = draw.normal(size=(DRAWS, *g.shape)) * amplitude
        total += factor * np.einsum("k,dkn->dn", X, noise)
    return total


@pytest.mark.parametrize("on_off", [10, 100, 1e6])
@pytest.mark.parametrize("model", ["proportional", "independent"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_device_has_its_own_read_noise(crossbar: Crossbar, name: str, model: str, on_off: float) -> None:
    settings, encoding = ENCODINGS[name], name.split(",")[0]
    scale, bits = np.abs(W).max(), settings.get("slice_bits", 0)
    held = arrays(W / scale, encoding, 8, bits, 1 / on_off)
    draw = np.random.default_rng(3)
    expected = scale * drawn(model, held, draw)
    if "unit column" in name:
        expected -= scale * drawn(model, arrays(np.zeros((24, 1)), encoding, 8, bits, 1 / on_off), draw)
    numbers = {"read.weight_noise": SIGMA, "mapping.g_min_us": 25 / on_off, "mapping.g_max_us": 25.0}
    common: dict[str, Any] = {"encoding": encoding, "numbers": numbers, "read_noise": model, **settings}
    rows = np.tile(X, (DRAWS, 1))
    noise = crossbar.stored(rows, W, **common).astype(np.float64)
    noise -= crossbar.stored(X[None], W, **common, strength=1e-7).astype(np.float64)
    ratio = np.sqrt((noise**2).mean(axis=0) / (expected**2).mean(axis=0))
    np.testing.assert_allclose(ratio.mean(), 1, atol=0.02)
    np.testing.assert_allclose(ratio, 1, atol=0.05)


@pytest.mark.parametrize("model", ["proportional", "independent"])
def test_written_pairs_have_it_too(crossbar: Crossbar, model: str) -> None:
    r, scale = 0.1, np.abs(W).max()
    expected = scale * drawn(model, arrays(W / scale, "differential", 0, 0, r), np.random.default_rng(3))
    numbers = {"read.weight_noise": SIGMA, "write.sigma": 0.0, "mapping.g_min_us": 1.0, "mapping.g_max_us": 10.0}
    common: dict[str, Any] = {"write": "lognormal_g", "numbers": numbers, "read_noise": model}
    noise = crossbar.dynamic(np.tile(X, (DRAWS, 1)), W, **common).astype(np.float64)
    noise -= crossbar.dynamic(X[None], W, **common, strength=1e-7).astype(np.float64)
    ratio = np.sqrt((noise**2).mean(axis=0) / (expected**2).mean(axis=0))
    np.testing.assert_allclose(ratio.mean(), 1, atol=0.02)


def test_remapped_pairs_have_the_noise_of_their_unit(crossbar: Crossbar) -> None:
    """Weights of a hundredth, remapped to the whole range, are read with a hundredth of its noise."""
    numbers = {"read.weight_noise": SIGMA, "mapping.g_min_us": 0.0, "mapping.g_max_us": 25.0}
    numbers |= {"drift.nu": 0.0, "drift.nu_sigma": 0.0, "drift.t0_s": 1.0, "drift.time_s": 1.0, "drift.scale": 1.0}
    common: dict[str, Any] = {"encoding": "differential", "numbers": numbers, "read_noise": "proportional"}
    w = np.where(W > 0, 0.01, -0.01)
    w = np.concatenate([w, np.ones((24, 1))], axis=1)
    noise = crossbar.stored(np.tile(X, (DRAWS, 1)), w, **common, drift="power_law", drift_pairs="net", tile_columns=6)
    std = (noise.astype(np.float64) - X @ w).std(axis=0)
    np.testing.assert_allclose(std[:6], 0.01 * SIGMA * np.linalg.norm(X), rtol=0.05)
