"""Device models of your own: Python functions that disturb what is stored, found by name."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from emu.contract.functions import register, registered
from emu.errors import InputError

GROUP = "emu.device_functions"


def register_device_function(name: str, function: Callable[..., Any]) -> None:
    """Registers a function in this process for profiles with `program.model` `function`.

    Installed packages register theirs by an entry point of the group `emu.device_functions` instead.

    Args:
        name: the name that a profile's `program.function` gives.
        function: `function(target, normals, parameters)` as in `docs/operators.md`, Programming: called once for a
            whole array and device, it gets targets float32 [K, N] (conductances in units of g_max; weights in
            units of the largest if `mapping.encoding` is `weight`), standard normals float32 [K, N] and the profile's
            parameters by name, and returns what is stored, float32 [K, N].

    Raises:
        InputError: an empty name, or something that cannot be called.
    """
    register(name, function)


def find_device_function(name: str) -> bool:
    """Makes sure that a function is registered, from an entry point if need be.

    Args:
        name: the name that a profile's `program.function` gives.

    Returns:
        False if neither the process nor an installed package has it.

    Raises:
        InputError: an entry point that cannot be loaded, or two of one name.
    """
    if registered(name) is not None:
        return True
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        return False
    if len({point.value for point in found}) > 1:
        places = " and ".join(sorted(point.value for point in found))
        raise InputError(f"Device function '{name}' is offered twice, as {places}: uninstall one of the packages.")
    register_device_function(name, _load(found[0]))
    return True


def _load(point: EntryPoint) -> Callable[..., Any]:
    try:
        function: Callable[..., Any] = point.load()
    except Exception as error:
        raise InputError(f"Device function '{point.name}' ({point.value}) cannot be loaded: {error}.") from error
    return function
