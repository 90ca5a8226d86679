"""What the resistance of its wires makes of a crossbar: an exact solution of the resistive network.

Cell (k, n) joins row wire k with column wire n. A row wire is driven at column 0, a column wire is read, at virtual
ground, at its last row; one more segment lies between driver and first cell and between last cell and readout.
"""

import numpy as np
from numpy.typing import NDArray

from emu.contract.structure import Controls, Structure


def through_wires(g: NDArray[np.float64], structure: Structure, controls: Controls) -> NDArray[np.float64]:
    """Return the conductances that the tiles of an array [K, N] answer with, in units of g_max."""
    numbers = controls.numbers
    effective = np.empty_like(g)
    for k in structure.row_tiles(g.shape[0]):
        for n in structure.column_tiles(g.shape[1]):
            g_max = numbers["mapping.g_max_us"] * 1e-6
            row, column = numbers["read.row_ohm"] * g_max, numbers["read.column_ohm"] * g_max
            effective[k, n] = effective_conductances(g[k, n], row, column)
    return effective


def effective_conductances(
    g: NDArray[np.float64], row_resistance: float, column_resistance: float
) -> NDArray[np.float64]:
    """Return the current out of column n for a unit voltage on row k alone, float64 [K, N], in the unit of g.

    g: conductances of the cells, [K, N]; the resistances of one segment of wire are in the inverse unit.

    All voltages of row wires at column n follow from those at column n - 1, because a column wire meets no other but
    through the rows. So from the far end backwards, `admittance` [K, K] is the current into the row wires at column n
    for their voltages there; forwards, `voltage` [K, K] is theirs for a unit voltage at each driver.
    """
    rows, columns = g.shape
    passed_on, read_out = [], []
    admittance = np.zeros((rows, rows))
    for n in reversed(range(columns)):
        drawn, read = _column(g[:, n], column_resistance)
        admittance = admittance + drawn
        # Voltages at column n for those one segment before.
        passed = np.linalg.inv(np.eye(rows) + row_resistance * admittance)
        admittance = admittance @ passed
        passed_on.append(passed)
        read_out.append(read)
    effective = np.empty_like(g)
    voltage = np.eye(rows)
    for n, (passed, read) in enumerate(zip(reversed(passed_on), reversed(read_out), strict=True)):
        voltage = passed @ voltage
        effective[:, n] = read @ voltage
    return effective


def _column(g: NDArray[np.float64], resistance: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what one column wire draws from each row and what is read at its end, for the voltages of its rows.

    g: conductances of its cells [K]. The results are [K, K] and [K].
    """
    rows = len(g)
    if resistance == 0 or rows == 0:
        return np.diag(g), g
    # Kirchhoff's current law of the wire, times the resistance; row 0 ends open, the last row goes on to the readout.
    wire = 2 * np.eye(rows) - np.eye(rows, k=1) - np.eye(rows, k=-1)
    wire[0, 0] = 1
    to_wire = np.linalg.solve(wire + np.diag(resistance * g), np.diag(resistance * g))
    return g[:, None] * (np.eye(rows) - to_wire), to_wire[-1] / resistance
