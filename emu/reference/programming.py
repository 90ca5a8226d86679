"""What programming makes of a value that is stored: one function per family of models, as the page lists them.

Sources: lognormal and Gaussian variants as practised in the papers that a device profile names; `polynomial` as
aihwkit; CrossSim's generic errors and `saturating`; `level_shared` as MNSIM, `resistance_range` as MemTorch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.contract import functions
from emu.contract.structure import Controls, Structure
from emu.reference.arrays import Array, namespace
from emu.reference.mapping import levels_of_cell, lowest_conductance
from emu.reference.random import Stream, fine_uniform, stored_normals, stored_uniforms, stored_words

# MemTorch keeps the factor of a drawn resistance away from zero.
_LEAST_RESISTANCE_FACTOR = 0.01


@dataclass(frozen=True)
class DeviceArray:
    """One array of devices and its random numbers: those of one sign in one weight slice, or of the unit column.

    `matrix` is its index in a stack of matrices, which number their rows through.
    """

    structure: Structure
    controls: Controls
    rows: int
    columns: int
    weight_slice: int = 0
    negative: bool = False
    of_unit_column: bool = False
    matrix: int = 0

    def normals(self, stream: Stream) -> NDArray[np.float64]:
        """Return the standard normals of a stream (of the positive device), float64 [rows, columns]."""
        return stored_normals(*self._place(stream), weight_slice=self.weight_slice, first_row=self.matrix * self.rows)

    def uniforms(self, stream: Stream) -> NDArray[np.float64]:
        """Return the uniforms of a stream (of the positive device), float64 [rows, columns]."""
        return stored_uniforms(*self._place(stream), weight_slice=self.weight_slice, first_row=self.matrix * self.rows)

    def stuck_uniforms(self) -> NDArray[np.float64]:
        """Return the uniforms that decide which cells are stuck, of 53 bits, float64 [rows, columns]."""
        x, y = (
            stored_words(*self._place(stream), weight_slice=self.weight_slice, first_row=self.matrix * self.rows)
            for stream in (Stream.STUCK, Stream.STUCK_SECOND)
        )
        return fine_uniform(x, y)

    def _place(self, stream: Stream) -> tuple[int, int, int, int, int, int]:
        number = stream + self.negative + (Stream.UNIT_COLUMN if self.of_unit_column else 0)
        anew = stream in (Stream.PROGRAM_CYCLE, Stream.PROGRAMMED_READ)
        cycle_seed = self.controls.read_seed if anew else 0
        return self.controls.seed, cycle_seed, self.structure.array, number, self.rows, self.columns


def programmed_numbers(w: NDArray[np.float32], array: DeviceArray) -> NDArray[np.float64]:
    """Return what an array that holds plain numbers makes of w [K, N], float64."""
    structure, controls = array.structure, array.controls
    value = w.astype(np.float64)
    match structure.program:
        case "none":
            return value
        case "function":
            return _of_function(value, array)
    return disturbed_number(structure.program, value, _theta(array), _variance(controls))


def disturbed_number(model: str, value: Array, theta: Array, variance: float) -> Array:
    """Return a value in units of its scale, disturbed by theta, which has that variance."""
    xp = namespace(theta)
    match model:
        case "lognormal_w":
            return value * xp.exp(theta)
        case "lognormal_w_meancorr":
            return value * xp.exp(theta - variance / 2)
        case "gauss_prop":
            return value * (1 + theta)
        case _:  # gauss_range
            return value + theta


def programmed(g: NDArray[np.float64], array: DeviceArray) -> NDArray[np.float64]:
    """Return the programmed conductances of target conductances g [K, N], float64."""
    structure, controls = array.structure, array.controls
    if structure.program == "none":
        return g
    if structure.program == "function":
        disturbed = _of_function(g, array)
    elif structure.program == "level_shared":
        disturbed = _level_shared(g, array)
    elif structure.program == "resistance_range":
        disturbed = _resistance_range(g, array)
    elif structure.program == "table":
        mean, deviation = _measured(g, structure, controls)
        disturbed = mean + controls.strength * _scale(controls) * deviation * array.normals(Stream.PROGRAM)
    elif structure.program in ("polynomial", "saturating"):
        deviation = (_polynomial if structure.program == "polynomial" else _saturating)(g, controls)
        disturbed = g + controls.strength * _scale(controls) * array.normals(Stream.PROGRAM) * deviation
    else:
        disturbed = _disturbed_conductance(structure.program, g, _theta(array))
    return clipped(disturbed, structure, controls)


def clipped(g: NDArray[np.float64], structure: Structure, controls: Controls) -> NDArray[np.float64]:
    """Return conductances kept where `program_clip` says."""
    if structure.program_clip == "range":
        return np.clip(g, lowest_conductance(controls), 1.0)
    return g if structure.program_clip == "none" else np.maximum(g, 0.0)


def _theta(array: DeviceArray) -> NDArray[np.float64]:
    """Return S (sigma N_program + sigma_cycle N_cycle), of uniforms around 0 for the uniform models."""
    structure, controls = array.structure, array.controls

    def disturbance(stream: Stream) -> NDArray[np.float64]:
        return array.uniforms(stream) - 0.5 if structure.program.startswith("uniform") else array.normals(stream)

    theta = controls.numbers["program.sigma"] * disturbance(Stream.PROGRAM)
    if controls.numbers["program.sigma_cycle"] > 0:
        theta = theta + controls.numbers["program.sigma_cycle"] * disturbance(Stream.PROGRAM_CYCLE)
    return controls.strength * theta


def _variance(controls: Controls) -> float:
    numbers = controls.numbers
    return controls.strength**2 * (numbers["program.sigma"] ** 2 + numbers["program.sigma_cycle"] ** 2)


def _scale(controls: Controls) -> float:
    return controls.numbers["program.scale"]


def _disturbed_conductance(model: str, g: NDArray[np.float64], theta: NDArray[np.float64]) -> NDArray[np.float64]:
    if model == "lognormal_g":
        return g * np.exp(theta)
    if model.endswith("independent"):
        return g + theta
    if model.endswith("proportional"):
        return g * (1 + theta)
    return np.where(g == 0, g, g + theta / np.where(g == 0, 1.0, g))


def _polynomial(g: NDArray[np.float64], controls: Controls) -> NDArray[np.float64]:
    """Return the standard deviation as a polynomial of g, in units of g_max."""
    c = [controls.numbers[f"program.c{power}"] for power in range(5)]
    return (c[0] + c[1] * g + c[2] * g**2 + c[3] * g**3 + c[4] * g**4) / controls.numbers["program.reference_us"]


def _saturating(g: NDArray[np.float64], controls: Controls) -> NDArray[np.float64]:
    """Return the standard deviation of a current of current_max_na g, in units of the largest current."""
    amplitude_na, knee_na, current_max_na = (
        controls.numbers[f"program.{name}_na"] for name in ("amplitude", "knee", "current_max")
    )
    return amplitude_na * (1 - np.exp(-g * current_max_na / knee_na)) / current_max_na


def _level_shared(g: NDArray[np.float64], array: DeviceArray) -> NDArray[np.float64]:
    """Every level has one resistance error, the same wherever that level is stored."""
    structure, controls = array.structure, array.controls
    steps, r = levels_of_cell(structure, controls), lowest_conductance(controls)
    normals = stored_normals(controls.seed, 0, structure.array, Stream.LEVELS, 1, steps + 1)[0]
    level = np.rint((g - r) / (1 - r) * steps).astype(np.int64)
    factor: NDArray[np.float64] = 1 + controls.strength * controls.numbers["program.sigma"] * normals[level]
    return g / factor


def _resistance_range(g: NDArray[np.float64], array: DeviceArray) -> NDArray[np.float64]:
    """Every device has its own lowest and highest conductance."""
    controls = array.controls
    r, strength = lowest_conductance(controls), controls.strength

    def factor(entry: str, stream: Stream) -> NDArray[np.float64]:
        return np.maximum(1 + strength * controls.numbers[entry] * array.normals(stream), _LEAST_RESISTANCE_FACTOR)

    on = 1 / factor("program.sigma", Stream.PROGRAM)
    off = r / factor("program.sigma_off", Stream.PROGRAM_SECOND)
    return off + (on - off) * (g - r) / (1 - r)


def _measured(
    g: NDArray[np.float64], structure: Structure, controls: Controls
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation that a table of measurements gives for targets g, in units of g_max."""
    numbers, g_max_us = controls.numbers, controls.numbers["mapping.g_max_us"]
    points, times = range(structure.table_points), range(structure.table_times)
    target_us = [numbers[f"program.target_us.{i}"] for i in points]
    table_time_s = [numbers[f"program.table_time_s.{j}"] for j in times]
    # Between two times the table is linear in the logarithm of time, outside constant.
    share_of_time = np.zeros(structure.table_times)
    share_of_time[0] = 1
    if structure.table_times > 1:
        time_s = float(np.clip(numbers["program.time_s"], table_time_s[0], table_time_s[-1]))
        share_of_time = np.array(
            [np.interp(np.log(time_s), np.log(table_time_s), np.eye(structure.table_times)[j]) for j in times]
        )

    def read(kind: str) -> NDArray[np.float64]:
        value_us = np.array([[numbers[f"program.{kind}_us.{j}.{i}"] for i in points] for j in times])
        value: NDArray[np.float64] = np.interp(g * g_max_us, target_us, share_of_time @ value_us)
        return value / g_max_us

    return read("mean"), read("std")


def _of_function(target: NDArray[np.float64], array: DeviceArray) -> NDArray[np.float64]:
    """Return what the registered function makes of the targets."""
    structure, controls = array.structure, array.controls
    function = functions.registered(structure.program_function)
    if function is None:
        raise structure.error(
            f"attribute 'program_function' is '{structure.program_function}', expected a function of this process; "
            f"call emu.register_device_function('{structure.program_function}', function) first."
        )
    prefix = "program.parameter."
    parameters = {name[len(prefix) :]: value for name, value in controls.numbers.items() if name.startswith(prefix)}
    normals = (controls.strength * array.normals(Stream.PROGRAM)).astype(np.float32)
    value = np.asarray(function(target.astype(np.float32), normals, parameters))
    if value.dtype != np.float32 or value.shape != target.shape:
        raise structure.error(
            f"program function '{structure.program_function}' gave {value.dtype} {list(value.shape)}, "
            f"expected float32 {list(target.shape)}."
        )
    return value.astype(np.float64)
