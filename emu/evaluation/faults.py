"""The faults of one chip of a rewritten model, array by array."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emu.contract.schema import FAULTY_WEIGHT
from emu.device import Overrides
from emu.errors import InputError
from emu.evaluation.controls import control_feeds
from emu.rewriter import ArrayFaults, EmulatedModel, Faults, device_numbers, fault_storage

if TYPE_CHECKING:
    import onnx


def draw_faults(
    model: "str | Path | onnx.ModelProto | EmulatedModel",
    seed: int | None = None,
    set: Overrides | None = None,
) -> Faults:
    """The bit flips and stuck cells of one chip, for `emu.rewrite(..., faults=...)`.

    Args:
        model: a rewritten model for devices with faults.
        seed: which chip; None for the model's default.
        set: numbers of the device, such as `{"faults.ber": 1e-4}`.

    Returns:
        One list for every array that can have faults.

    Raises:
        InputError: the model is not rewritten, its devices have no random faults, or a setting is wrong.
    """
    emulated = EmulatedModel.open(model)
    manifest = emulated.manifest
    settings = device_numbers(manifest)
    controls = control_feeds(manifest, seed=seed, set=set, numbers=settings)

    def control(name: str) -> NDArray[Any]:
        return controls[name] if name in controls else emulated.value(name)

    nodes = emulated.nodes()
    arrays: dict[tuple[int, int], ArrayFaults] = {}
    for site in manifest.sites:
        node = nodes[site.node]
        attributes = {name: each.value for name, each in node.attributes.items()}
        key = site.array, site.code_bits
        if attributes.get("fault_source") != "random" or key in arrays:
            continue
        device = control(manifest.devices[site.device].input)
        numbers = _numbers(emulated, node, attributes, device, control)
        storage = fault_storage(attributes, site.code_bits)
        arrays[key] = ArrayFaults(site.node, site.component, (site.shape[0] or 0, site.shape[1] or 0), storage, numbers)
    if not arrays:
        raise InputError(
            f"{emulated.name} has no random faults: rewrite the original model for a device with bit flips or "
            "stuck cells."
        )
    origin = {"seed": int(control("emu.seed")), "settings": settings.flat(set)}
    return Faults(origin, tuple(arrays.values()))


def _numbers(
    emulated: EmulatedModel, node: Any, attributes: Mapping[str, Any], device: NDArray[Any], control: Any
) -> NDArray[np.int64]:
    """The list of one array."""
    from emu.contract.codes import of_each_code
    from emu.reference import flipped_bits, stuck_cells

    held, *codes_of = emulated.stored(node)
    is_product = node.op_type != FAULTY_WEIGHT  # whose W is a matrix or a stack of them
    matrix = np.ascontiguousarray(held if is_product else held.reshape(-1, held.shape[-1]))
    zero_point = codes_of[1] if codes_of else np.zeros((), np.float32)
    zero_point = of_each_code(zero_point, matrix.shape[-2], attributes.get("block_rows", 0))
    listed = control("emu.faults")
    inputs = device, control("emu.strength"), listed, control("emu.seed"), control("emu.read_seed")
    flips = flipped_bits(matrix, *inputs, zero_point=zero_point, **attributes)
    return np.concatenate([flips, stuck_cells(matrix, *inputs, **attributes)])
