"""The NumPy twin of the operators: `docs/operators.md` stated in plain code, the oracle of the native library.

Its laws of writing and reading also compute on PyTorch tensors, for training (`arrays`).
"""

from emu.reference.crossbar import (
    crossbar_matmul,
    crossbar_matmul_dynamic,
    crossbar_matmul_quantized,
    faulty_weight,
    flipped_bits,
    stored_weight,
    stuck_cells,
)
from emu.reference.periphery import Trace
from emu.reference.random import Stream, philox4x32, run_time_normals, stored_normals, stored_uniforms

__all__ = [
    "Stream",
    "Trace",
    "crossbar_matmul",
    "crossbar_matmul_dynamic",
    "crossbar_matmul_quantized",
    "faulty_weight",
    "flipped_bits",
    "philox4x32",
    "run_time_normals",
    "stored_normals",
    "stored_uniforms",
    "stored_weight",
    "stuck_cells",
]
