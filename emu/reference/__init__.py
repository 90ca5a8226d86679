"""The NumPy twin of the operators: `docs/operators.md` stated in plain code, the oracle of the native library."""

from emu.reference.crossbar import (
    crossbar_matmul,
    crossbar_matmul_dynamic,
    crossbar_matmul_quantized,
    faulty_weight,
    programmed_weight,
)
from emu.reference.periphery import Trace
from emu.reference.random import Stream, philox4x32, run_time_normals, stored_normals

__all__ = [
    "Stream",
    "Trace",
    "crossbar_matmul",
    "crossbar_matmul_dynamic",
    "crossbar_matmul_quantized",
    "faulty_weight",
    "philox4x32",
    "programmed_weight",
    "run_time_normals",
    "stored_normals",
]
