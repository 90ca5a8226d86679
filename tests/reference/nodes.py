"""Nodes with every attribute at its plainest value, of which a test changes the one thing that it is about."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from emu.reference import Trace, crossbar_matmul, crossbar_matmul_dynamic, programmed_weight

PLAIN: dict[str, int | str] = {
    "format": 1,
    "site": 0,
    "sites": 1,
    "array": 0,
    "entries": "",
    "sample_axis": 0,
    "heads": 0,
    "head_axis": "none",
    "head_groups": 1,
    "head_share": 1,
    "tile_rows": 0,
    "tile_columns": 0,
    "tile_split": "fill",
    "scaling": "tensor",
    "dac": "none",
    "adc": "none",
    "bound_management": "none",
    "read_noise": "none",
}

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
) -> dict[str, Any]:
    """Return the control inputs and the attributes that belong to them."""
    numbers = numbers or {}
    sites = site + 1 if sites is None else sites
    return {
        "device": np.array(list(numbers.values()), dtype=np.float32),
        "entries": ",".join(numbers),
        "strength": np.full(sites, strength, dtype=np.float32),
        "site": site,
        "sites": sites,
        "seed": np.int64(seed),
        "read_seed": np.int64(read_seed),
        "sample": np.asarray(sample, dtype=np.int64),
        "head": np.int64(head),
    }


_CONTROL_NAMES = ("numbers", "strength", "seed", "read_seed", "sample", "head", "site", "sites")


def _arguments(plain: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    of_controls = {name: changes.pop(name) for name in _CONTROL_NAMES if name in changes}
    return {**plain, **controls(**of_controls), **changes}


def stored(x: Any, w: Any, *, trace: Trace | None = None, **changes: Any) -> Any:
    """Run CrossbarMatMul on a plain node with changes to attributes, controls and device numbers."""
    arguments = _arguments({**PLAIN, "program": "none"}, changes)
    return crossbar_matmul(np.asarray(x, np.float32), np.asarray(w, np.float32), trace=trace, **arguments)


def dynamic(a: Any, b: Any, *, trace: Trace | None = None, **changes: Any) -> Any:
    """Run CrossbarMatMulDynamic on a plain node with changes to attributes, controls and device numbers."""
    arguments = _arguments({**PLAIN, "write": "none"}, changes)
    return crossbar_matmul_dynamic(np.asarray(a, np.float32), np.asarray(b, np.float32), trace=trace, **arguments)


def programmed(w: Any, **changes: Any) -> Any:
    """Program W of a plain node with changes."""
    arguments = _arguments({**PLAIN, "program": "none"}, changes)
    del arguments["sample"], arguments["head"]
    return programmed_weight(np.asarray(w, np.float32), **arguments)


def normal(*shape: int, seed: int = 0) -> Any:
    """Return test data, float32 of that shape."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
