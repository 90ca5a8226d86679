"""Device functions: Python that programs arrays, for the native operators as for their twin."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.contract.functions import registered
from emu.contract.manifest import Manifest
from emu.device import functions, load_profile
from emu.errors import InputError
from emu.runtime import library

_known_to_library: set[str] = set()


def register_device_function(name: str, function: library.DeviceFunction) -> None:
    """Registers a function in this process, for devices with `program.model` `function`.

    Installed packages offer theirs by an entry point of the group `emu.device_functions` instead.

    Args:
        name: the name that a profile's `program.function` gives.
        function: `function(target, normals, parameters)`, as in `docs/operators.md`, Programming: called once for a
            whole array and device, it gets targets float32 `[K, N]` (conductances in units of g_max; weights in units
            of their scale if `mapping.encoding` is `weight`), standard normals float32 `[K, N]` times the strength and
            the profile's parameters by name, and returns what is stored, float32 `[K, N]`.

    Raises:
        InputError: an empty name, or something that cannot be called.
    """
    functions.register_device_function(name, function)
    try:
        library.library_path()
    except InputError:
        return  # without the native library there is its twin, which knows the function now
    _tell_library(name)


def provide_functions(manifest: Manifest, native: bool) -> None:
    """Makes the functions that a rewritten model names known to its operators.

    Args:
        manifest: the model's manifest.
        native: whether the native library will ask for them.

    Raises:
        InputError: neither this process nor an installed package has a function that the model needs, or the manifest
            has no profiles.
    """
    for device, facts in manifest.devices.items():
        program = load_profile(facts.profile).program
        if program.model != "function":
            continue
        name = program.function
        if not functions.find_device_function(name):
            raise InputError(
                f"device '{device}' programs with the function '{name}', which is not registered: "
                f"call emu.register_device_function('{name}', function) first, or install the package that has it"
            )
        if native:
            _tell_library(name)


def _tell_library(name: str) -> None:
    """Has the library call whatever is registered under a name at that time."""

    def call(
        target: NDArray[np.float32], normals: NDArray[np.float32], parameters: Mapping[str, float]
    ) -> NDArray[np.float32]:
        function = registered(name)
        assert function is not None, "functions are never taken out of the registry"
        result: Any = function(target, normals, parameters)
        return np.asarray(result)

    if name not in _known_to_library:
        library.register_function(name, call)
        _known_to_library.add(name)
