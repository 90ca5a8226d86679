"""The registry of program functions: device models of one's own, written in Python, by the name that a node carries.

The twin and the native runtime both look here, so this file imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from emu.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    ProgramFunction = Callable[
        [NDArray[np.float32], NDArray[np.float32], Mapping[str, float]],
        NDArray[np.float32],
    ]
    """`function(target, normals, parameters)` gives what an array holds after programming, float32 [K, N].

    target: float32 [K, N], conductances in units of g_max (of the positive, then of the negative device of a pair), or
    weights in units of their scale where `encoding` is `weight`. normals: float32 [K, N], standard normals of the chip
    times the strength. parameters: the numbers `program.parameter.<name>` of the device, by name.
    """

_functions: dict[str, ProgramFunction] = {}


def register(name: str, function: ProgramFunction) -> None:
    """Make `function` the program function called `name` in this process; a second one of that name replaces it.

    Raises InputError for an empty name or something that cannot be called.
    """
    if not name:
        raise InputError("emu: a program function has an empty name, expected the name that the device profile gives.")
    if not callable(function):
        raise InputError(f"emu: program function '{name}' is {function!r}, expected something that can be called.")
    _functions[name] = function


def registered(name: str) -> ProgramFunction | None:
    """Return the program function of that name, None when this process has none."""
    return _functions.get(name)
