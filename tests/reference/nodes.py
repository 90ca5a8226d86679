"""Nodes with every attribute at its plainest value, of which a test changes the one thing that it is about."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from emu.contract.codes import stored_codes
from emu.contract.schema import DYNAMIC, FAULTY_WEIGHT, QUANTIZED, STORED, plain
from emu.reference import Trace, crossbar_matmul, crossbar_matmul_dynamic, crossbar_matmul_quantized, stored_weight

PLAIN_STORED, PLAIN_QUANTIZED = plain(STORED), plain(QUANTIZED)
PLAIN_DYNAMIC, PLAIN_FAULTY_WEIGHT = plain(DYNAMIC), plain(FAULTY_WEIGHT)

# One device that uses every effect at once.
EVERYTHING: dict[str, Any] = {
    "dac": "absmax",
    "adc": "fixed",
    "bound_management": "iterative",
    "read_noise": "pcm_read",
    "tile_rows": 5,
    "tile_columns": 3,
    "tile_split": "balanced",
    "scaling": "tile_column",
    "numbers": {
        "program.sigma": 0.1,
        "program.sigma_cycle": 0.05,
        "write.sigma": 0.1,
        "dac.bits": 7,
        "dac.steps": 0,
        "dac.bound": 1,
        "adc.bits": 8,
        "adc.steps": 0,
        "adc.bound": 1.5,
        "adc.max_bound_factor": 1000,
        "adc.max_bound_resolution": 0.25,
        "read.weight_noise": 0.02,
        "read.output_noise": 0.04,
    },
}
EVERYTHING_STORED = {**EVERYTHING, "program": "lognormal_w"}
EVERYTHING_DYNAMIC = {**EVERYTHING, "write": "lognormal_w"}


def controls(
    numbers: Mapping[str, float] | None = None,
    strength: float = 1.0,
    seed: int = 0,
    read_seed: int = 0,
    sample: Any = 0,
    head: int = -1,
    site: int = 0,
    sites: int | None = None,
    ranges: Any = (1.0, -1.0, 1.0, 1.0),
    faults: Any = (),
    position: Any = (),
    keys: Any = None,
) -> dict[str, Any]:
    """Return the control inputs and the attributes that belong to them; `ranges` is the row of every site,
    `faults` are those of array 0.

    `keys` is there only if given.
    """
    numbers = numbers or {}
    sites = site + 1 if sites is None else sites
    return {
        "device": np.array(list(numbers.values()), dtype=np.float32),
        "entries": ",".join(numbers),
        "strength": np.full(sites, strength, dtype=np.float32),
        "ranges": np.tile(np.asarray(ranges, dtype=np.float32), (sites, 1)),
        "faults": np.array([(0, fault) for fault in faults], np.int64).reshape(-1, 2),
        "site": site,
        "sites": sites,
        "seed": np.int64(seed),
        "read_seed": np.int64(read_seed),
        "sample": np.asarray(sample, dtype=np.int64),
        "position": np.asarray(position, dtype=np.int64),
        "head": np.int64(head),
        **({} if keys is None else {"keys": np.reshape(np.asarray(keys, np.int64), (-1, 2))}),
    }


_CONTROL_NAMES = (
    "numbers",
    "strength",
    "seed",
    "read_seed",
    "sample",
    "position",
    "keys",
    "head",
    "site",
    "sites",
    "ranges",
    "faults",
)
_NOT_OF_ARRAYS = ("ranges", "sample", "position", "head")


def arguments(plain: dict[str, Any], changes: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return controls and attributes of a plain node with changes, without some of the inputs."""
    of_controls = {name: changes.pop(name) for name in _CONTROL_NAMES if name in changes}
    call = {**plain, **controls(**of_controls), **changes}
    return {name: value for name, value in call.items() if name not in without}


def stored(x: Any, w: Any, *, trace: Trace | None = None, **changes: Any) -> Any:
    """Run CrossbarMatMul on a plain node with changes to attributes, controls and device numbers."""
    call = arguments(PLAIN_STORED, changes)
    return crossbar_matmul(np.asarray(x, np.float32), np.asarray(w, np.float32), trace=trace, **call)


def quantized(x: Any, codes: Any, scale: Any, zero_point: Any, **changes: Any) -> Any:
    """Run CrossbarMatMulQuantized on a plain node with changes to attributes, controls and device numbers."""
    call = arguments(PLAIN_QUANTIZED, changes)
    scale, zero_point = np.asarray(scale, np.float32), np.asarray(zero_point, np.float32)
    codes = stored_codes(np.asarray(codes), call["code_bits"])
    return crossbar_matmul_quantized(np.asarray(x, np.float32), codes, scale, zero_point, **call)


def dynamic(a: Any, b: Any, *, trace: Trace | None = None, **changes: Any) -> Any:
    """Run CrossbarMatMulDynamic on a plain node with changes to attributes, controls and device numbers."""
    call = arguments(PLAIN_DYNAMIC, changes, without=("faults",))
    return crossbar_matmul_dynamic(np.asarray(a, np.float32), np.asarray(b, np.float32), trace=trace, **call)


def held(w: Any, **changes: Any) -> Any:
    """Return what the array of a plain node with changes holds of W."""
    call = arguments(PLAIN_STORED, changes, without=_NOT_OF_ARRAYS)
    return stored_weight(np.asarray(w, np.float32), **call)


def of_array(function: Any, w: Any, **changes: Any) -> Any:
    """Call `flipped_bits` or `stuck_cells` for float weights, or the codes (int8, int16) of a quantized node."""
    is_codes = np.asarray(w).dtype in (np.int8, np.int16)
    call = arguments(PLAIN_QUANTIZED if is_codes else PLAIN_STORED, changes, without=_NOT_OF_ARRAYS)
    return function(np.asarray(w) if is_codes else np.asarray(w, np.float32), **call)


def first_rows(samples: int) -> Any:
    """Return where the rows lie of samples of one row each: sample, matrix and position, int64 [3, samples]."""
    return np.array([np.arange(samples), np.zeros(samples, int), np.zeros(samples, int)])


def normal(*shape: int, seed: int = 0) -> Any:
    """Return test data, float32 of that shape."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
