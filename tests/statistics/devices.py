"""Single devices seen through a crossbar: what a device with a given target holds after programming, drift and reading.

With `encoding` `offset` a weight is one device, so what is held for a weight says what that device holds. Two models
that draw from the same stream of the same chip see the same normals; so the normals can be read off a model that adds
them plainly, and the amplitude of another model follows exactly, not just within its sampling error.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.agreement.one_crossbar import Crossbar, law_of

Array = NDArray[np.float64]

ROWS, COLUMNS = 16, 4096
DEVICES = (ROWS - 1) * COLUMNS
"""Devices per measurement: a standard deviation is known to 1 / sqrt(2 * 61440) = 0.3 %."""

PLAIN_SPREAD = {"program.sigma": 1.0, "program.sigma_cycle": 0.0}


def conductances(
    crossbar: Crossbar, g: float, numbers: dict[str, float] | None = None, g_min_us: float = 0, g_max_us: float = 1,
    **settings: Any,
) -> Array:  # fmt: skip
    """Return what devices of target g hold, both in units of g_max, float64 [DEVICES]."""
    r = g_min_us / g_max_us
    weights = np.ones((ROWS, COLUMNS))  # the first row fixes the scale
    weights[1:] = 2 * (g - r) / (1 - r) - 1
    numbers = {"mapping.g_min_us": g_min_us, "mapping.g_max_us": g_max_us, **(numbers or {})}
    held = crossbar.held(weights, encoding="offset", numbers=numbers, **settings).astype(np.float64)
    return np.asarray(1 + (held[1:].ravel() - 1) * (1 - r) / 2)


def program_normals(crossbar: Crossbar, **controls: Any) -> Array:
    """Return the normals of the program stream, one for each device."""
    held = conductances(crossbar, 0.5, PLAIN_SPREAD, program="normal_independent", strength=0.01, **controls)
    return np.asarray((held - 0.5) / 0.01)


def spread(crossbar: Crossbar, g: float, numbers: dict[str, float], **settings: Any) -> float:
    """Return sigma of a program model that adds sigma N to a device of target g, in units of g_max.

    Only devices pushed up are looked at: a conductance is clipped at 0.
    """
    normals = program_normals(crossbar)
    change = conductances(crossbar, g, numbers, **settings) - g
    up = normals > 0.1
    return float(np.sum((change * normals)[up]) / np.sum(normals[up] ** 2))


def exponents(
    crossbar: Crossbar, g: float, elapsed: float, numbers: dict[str, float], **settings: Any
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the drift exponent of every device of target g, and which of them conduct enough to show one.

    `elapsed` is the ratio of times that the exponent applies to. Devices are programmed with noise, because one that
    conducts nothing shows no drift.
    """
    noise: dict[str, Any] = {"program": "normal_independent"}
    sigma = {"program.sigma": 0.2, "program.sigma_cycle": 0.0}
    same = {name: value for name, value in settings.items() if name != "drift"}
    before = conductances(crossbar, g, sigma, **same, **noise)
    after = conductances(crossbar, g, {**sigma, **numbers}, **settings, **noise)
    shown = (before > 0.1) & (after > 0)
    exponent = np.full(before.shape, np.nan)
    exponent[shown] = -np.log(after[shown] / before[shown]) / np.log(elapsed)
    return exponent, shown


def drift_normals(crossbar: Crossbar) -> tuple[Array, NDArray[np.bool_]]:
    """Return the normals of the drift stream, and which devices conduct enough to show theirs."""
    numbers = {"drift.nu": 0.0, "drift.nu_sigma": 1.0, "drift.t0_s": 1.0, "drift.time_s": 1.25, "drift.scale": 1.0}
    return exponents(crossbar, 0.5, 1.25, numbers, drift="power_law")


def drift_law(
    crossbar: Crossbar, g: float, elapsed: float, numbers: dict[str, float], **settings: Any
) -> tuple[float, float]:
    """Return mean and standard deviation of the exponents of devices of target g, exactly (see above)."""
    exponent, shown = exponents(crossbar, g, elapsed, numbers, **settings)
    normals, normals_shown = drift_normals(crossbar)
    chosen = shown & normals_shown & (normals > 0)  # an exponent is the magnitude of a normal number
    slope, intercept = np.polyfit(normals[chosen], exponent[chosen], 1)
    return float(intercept), float(slope)


def programmed_read(crossbar: Crossbar, g: float, numbers: dict[str, float], **settings: Any) -> Array:
    """Return the relative error of one reading of devices of target g that have not drifted, float64 [DEVICES].

    Read with a hundredth of the noise: a conductance is clipped at 0.
    """
    numbers = {**numbers, "drift.scale": 0.0, "drift.read_scale": 0.01}
    return np.asarray((conductances(crossbar, g, numbers, **settings) / g - 1) / 0.01)


def read_normals(crossbar: Crossbar, read_us: float) -> Array:
    """Return the normals of the programmed read; `read_us` is the amplitude of `rram_cmo` at 50 uS after 1 s."""
    numbers = law_of("rram_cmo", time_s=1.0)
    return programmed_read(crossbar, 0.5, numbers, g_max_us=100, drift="log_time") * 50 / read_us


def slope(values: Array, normals: Array) -> float:
    """Return the factor on `normals` that explains `values` best."""
    return float(np.sum(values * normals) / np.sum(normals**2))
