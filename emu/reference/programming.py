"""What is stored: weight scales, and what programming a crossbar or writing an operand makes of the values."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from emu.reference.random import Stream, run_time_normals, stored_normals
from emu.reference.structure import Controls, Structure


def scales(w: NDArray[np.float32], structure: Structure) -> NDArray[np.float32]:
    """Return the scale of each column in each row tile, float32 [row tiles, N], from the undisturbed W [K, N].

    A scale is the largest |W| of what shares it, 1 where that is 0.
    """
    magnitude = np.abs(w)
    row_tiles, column_tiles = structure.row_tiles(w.shape[0]), structure.column_tiles(w.shape[1])
    s = np.zeros((len(row_tiles), w.shape[1]), dtype=np.float32)
    if structure.scaling == "tensor":
        s[:] = np.max(magnitude, initial=0)
    elif structure.scaling == "column":
        s[:] = np.max(magnitude, axis=0, initial=0)
    else:
        for tile, rows in enumerate(row_tiles):
            for columns in column_tiles:
                axis = 0 if structure.scaling == "tile_column" else None
                s[tile, columns] = np.max(magnitude[rows, columns], axis=axis)
    s[s == 0] = 1
    return s


def programmed(w: NDArray[np.float32], structure: Structure, controls: Controls) -> NDArray[np.float32]:
    """Return the stored values W' of a constant W, float32 [K, N].

    Device-to-device disturbance is fixed by `seed`, cycle-to-cycle by `seed` and `read_seed`.
    """
    if structure.disturbance == "none":
        return w
    sigma, sigma_cycle = controls.numbers["program.sigma"], controls.numbers["program.sigma_cycle"]

    def theta(negative: bool) -> NDArray[np.float64]:
        device, cycle = (
            (Stream.PROGRAM_NEGATIVE, Stream.PROGRAM_CYCLE_NEGATIVE)
            if negative
            else (Stream.PROGRAM, Stream.PROGRAM_CYCLE)
        )
        disturbance = sigma * stored_normals(controls.seed, 0, structure.array, device, *w.shape)
        if sigma_cycle > 0:
            disturbance += sigma_cycle * stored_normals(
                controls.seed, controls.read_seed, structure.array, cycle, *w.shape
            )
        return controls.strength * disturbance

    variance = controls.strength**2 * (sigma**2 + sigma_cycle**2)
    return _stored_value(w, structure, controls, theta, variance)


def written(
    b: NDArray[np.float32], matrix: int, sample: int, structure: Structure, controls: Controls
) -> NDArray[np.float32]:
    """Return the stored values of one matrix of a dynamic operand, float32 [K, N].

    `matrix` is its index within its sample, `sample` the index of that sample in the data set.
    """
    if structure.disturbance == "none":
        return b
    k, n = b.shape
    sigma = controls.numbers["write.sigma"]

    def theta(negative: bool) -> NDArray[np.float64]:
        normals = run_time_normals(
            controls.seed,
            controls.read_seed,
            structure.site,
            Stream.WRITE_NEGATIVE if negative else Stream.WRITE,
            np.full(k, sample, dtype=np.int64),
            matrix * k + np.arange(k, dtype=np.int64),
            n,
        )
        return controls.strength * sigma * normals

    return _stored_value(b, structure, controls, theta, controls.strength**2 * sigma**2)


def _stored_value(
    w: NDArray[np.float32],
    structure: Structure,
    controls: Controls,
    theta: Callable[[bool], NDArray[np.float64]],
    variance: float,
) -> NDArray[np.float32]:
    """Return the disturbed W; `theta(negative)` disturbs the negative device of a pair, or the positive or only one."""
    rows_of_tile = [rows.stop - rows.start for rows in structure.row_tiles(w.shape[0])]
    s = np.repeat(scales(w, structure).astype(np.float64), rows_of_tile, axis=0)
    value = w.astype(np.float64)
    match structure.disturbance:
        case "lognormal_w":
            value = value * np.exp(theta(False))
        case "lognormal_w_meancorr":
            value = value * np.exp(theta(False) - variance / 2)
        case "lognormal_g":
            g_min_us, g_max_us = controls.numbers["mapping.g_min_us"], controls.numbers["mapping.g_max_us"]
            r = g_min_us / (g_max_us - g_min_us)
            p = np.maximum(value / s, 0) + r
            m = np.maximum(-value / s, 0) + r
            value = s * (p * np.exp(theta(False)) - m * np.exp(theta(True)))
        case "gauss_prop":
            value = value * (1 + theta(False))
        case "gauss_range":
            value = value + s * theta(False)
    return value.astype(np.float32)
