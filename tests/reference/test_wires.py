"""The resistance of wires: the network against its known solutions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.reference.wires import effective_conductances

from .nodes import held, normal, stored

W = np.array([[0.5, -0.25, 1, 0], [-1, 0.75, 0.1, 0.33], [0.2, 0.2, 0.2, 0.2]]).T
X = np.array([[0.3, -1, 1, 0.05]])
MAPPING = {"mapping.g_min_us": 100.0, "mapping.g_max_us": 1000.0}


def wires(ohm: float) -> dict[str, float]:
    """The same resistance along rows and columns."""
    return {**MAPPING, "read.row_ohm": ohm, "read.column_ohm": ohm}


def _one_step(g: np.ndarray, x: np.ndarray, resistance: float) -> np.ndarray:
    """Output currents when every wire carries what it would without resistance: the first step of an iteration."""
    current = x[:, None] * g
    along_rows = resistance * np.cumsum(np.cumsum(current[:, ::-1], axis=1)[:, ::-1], axis=1)
    along_columns = resistance * np.cumsum(np.cumsum(current, axis=0)[::-1], axis=0)[::-1]
    return ((x[:, None] - along_rows - along_columns) * g).sum(axis=0)


def test_the_network_is_that_of_crosssim():
    """CrossSim 3.2.0 with 1 ohm: 1.393643 -0.927672 0.069876.

    Its iteration stops after one step (drops below 1e-3), so the topology is compared there, and the solution with
    what that iteration tends to.
    """
    first_step = (
        _one_step(0.1 + 0.9 * np.maximum(W, 0), X[0], 1e-3) - _one_step(0.1 + 0.9 * np.maximum(-W, 0), X[0], 1e-3)
    ) / 0.9
    np.testing.assert_allclose(first_step, [1.393643, -0.927672, 0.069876], atol=1e-6)
    y = stored(X, W, numbers=wires(1), encoding="differential", ir_drop="network")
    np.testing.assert_allclose(y, [first_step], atol=5e-5)
    np.testing.assert_allclose(y, [[1.393671, -0.927703, 0.069875]], atol=1e-6)


def test_one_cell_is_in_series_with_one_segment_of_each_wire():
    g = effective_conductances(np.array([[0.5]]), 0.1, 0.3)
    np.testing.assert_allclose(g, [[1 / (1 / 0.5 + 0.1 + 0.3)]])


def test_a_row_of_cells_is_a_ladder():
    """Two cells of 1 on a row wire, columns without resistance: a ladder that is solved by hand."""
    r = 0.5
    at_first = (1 / (1 + 1 / (r + 1))) / (r + 1 / (1 + 1 / (r + 1)))
    g = effective_conductances(np.ones((1, 2)), r, 0.0)
    np.testing.assert_allclose(g, [[at_first, at_first / (1 + r)]])


def _by_nodal_analysis(g: np.ndarray, row_resistance: float, column_resistance: float) -> np.ndarray:
    """All 2 K N voltages at once: Kirchhoff's current law as one dense matrix."""
    rows, columns = g.shape
    laws = np.zeros((2 * g.size, 2 * g.size))
    driven = np.zeros((2 * g.size, rows))

    def join(one: int, other: int | None, conductance: float) -> None:
        laws[one, one] += conductance
        if other is not None:
            laws[other, other] += conductance
            laws[one, other] -= conductance
            laws[other, one] -= conductance

    node = np.arange(g.size).reshape(g.shape)
    for k in range(rows):
        for n in range(columns):
            on_row, on_column = int(node[k, n]), g.size + int(node[k, n])
            join(on_row, on_column, g[k, n])
            join(on_row, int(node[k, n - 1]) if n else None, 1 / row_resistance)
            join(on_column, g.size + int(node[k + 1, n]) if k + 1 < rows else None, 1 / column_resistance)
        driven[node[k, 0], k] = 1 / row_resistance
    voltages = np.linalg.solve(laws, driven)
    return voltages[g.size + node[-1]].T / column_resistance


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    row=st.floats(1e-6, 10),
    column=st.floats(1e-6, 10),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_any_network_is_solved_as_nodal_analysis_solves_it(shape, row, column, seed):
    g = np.random.default_rng(seed).uniform(0, 1, shape)
    np.testing.assert_allclose(
        effective_conductances(g, row, column), _by_nodal_analysis(g, row, column), rtol=1e-6, atol=1e-9
    )


def test_wires_without_resistance_change_nothing():
    g = np.random.default_rng(0).uniform(0, 1, (7, 5))
    np.testing.assert_allclose(effective_conductances(g, 0, 0), g, rtol=1e-12)
    w = normal(20, 10)
    np.testing.assert_allclose(held(w, encoding="differential", ir_drop="network", numbers=wires(0)), w, atol=1e-6)


@pytest.mark.parametrize("which", ["read.row_ohm", "read.column_ohm"])
def test_cells_far_from_the_driver_and_the_readout_lose_most(which):
    w = np.ones((6, 6))
    numbers = {**wires(0), which: 5.0}
    values = held(w, encoding="differential", ir_drop="network", numbers=numbers)
    if which == "read.row_ohm":
        assert (np.diff(values, axis=1) < 0).all() and np.allclose(values, values[0])
    else:
        assert (np.diff(values, axis=0) > 0).all() and np.allclose(values, values[:, :1])


def test_every_tile_has_wires_of_its_own():
    w = np.tile(normal(4, 3), (2, 2))
    node = {"encoding": "two_sided", "ir_drop": "network", "numbers": wires(3)}
    tiled = held(w, tile_rows=4, tile_columns=3, **node)
    np.testing.assert_allclose(tiled, np.tile(held(w[:4, :3], **node), (2, 2)), rtol=1e-6)
    assert not np.allclose(tiled, held(w, **node), rtol=1e-4)
