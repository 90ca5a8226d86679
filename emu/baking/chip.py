"""One chip of a rewritten model: its controls, and what each of its arrays holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from emu.baking.reading import why_not_written
from emu.contract.codes import numbers_of
from emu.contract.schema import DYNAMIC, FAULTY_WEIGHT, QUANTIZED
from emu.contract.site import Site
from emu.contract.structure import Controls, Structure, check_controls, parse_structure
from emu.device import Overrides
from emu.errors import InputError
from emu.evaluation.controls import control_feeds
from emu.rewriter import EmulatedModel, device_numbers
from emu.runtime.library import programmed_array, programmed_weight

# Numbers that are 0 where what acts at run time is dropped.
_NOISE = {
    "read": ("read.weight_noise", "read.output_noise", "read.input_noise"),
    "write": ("write.sigma",),
    "converters": ("dac.bits", "dac.steps", "adc.bits", "adc.steps"),
    "wires": ("read.ir_drop",),
}


@dataclass(frozen=True)
class Held:
    """What a node's array holds.

    Attributes:
        clean: float32 `[K, N]` or `[G, K, N]`, undisturbed; any shape of a tensor that feeds no product.
        values: the same on the chip.
        codes: of a quantized weight: its codes, scale and zero point, undisturbed.

    """

    clean: NDArray[np.float32]
    values: NDArray[np.float32]
    codes: tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        controls: the control inputs of its runs that are not the model's defaults.
        settings: the numbers of its devices, as `--set` names them.
        sites: the sites by the names of their nodes.
        seed: which chip.
        read_seed: which repetition.

    """

    controls: Mapping[str, NDArray[Any]]
    settings: Mapping[str, float]
    sites: Mapping[str, Site]
    seed: int
    read_seed: int
    _emulated: EmulatedModel

    def structure(self, node: ir.Node) -> Structure:
        """The attributes of a node."""
        return parse_structure(node.op_type, self._attributes(node))

    def numbers(self, node: ir.Node) -> dict[str, float]:
        """The numbers of a node's device."""
        entries = str(node.attributes.get_string("entries", ""))
        return dict(zip(entries.split(",") if entries else (), self._device(node).tolist(), strict=True))

    def strength(self, node: ir.Node) -> float:
        """The factor on all that is random at a node."""
        return float(self.control("emu.strength")[self.sites[node.name or ""].index])

    @property
    def disturbed(self) -> frozenset[int]:
        """Indices of the sites whose strength is not 0."""
        return frozenset(np.flatnonzero(self.control("emu.strength")).tolist())

    def control(self, name: str) -> NDArray[Any]:
        """A control input: as given, or the model's default."""
        return self.controls[name] if name in self.controls else self._emulated.value(name)

    def held(self, node: ir.Node) -> Held:
        """What the array of a node holds.

        Raises:
            InputError: what the native library refuses.

        """
        first, *scale_and_zero = self._emulated.stored(node)
        attributes = self._attributes(node)
        codes = None
        if node.op_type == QUANTIZED:
            codes = first, scale_and_zero[0], scale_and_zero[1]
            clean = numbers_of(*codes, int(attributes["block_rows"]))
        else:
            clean = np.asarray(first, np.float32)
        strength = self.strength(node)
        if strength == 0 or not clean.size:
            return Held(clean, clean, codes)
        matrix = clean.reshape(-1, clean.shape[-1]) if node.op_type == FAULTY_WEIGHT else clean
        if node.op_type == FAULTY_WEIGHT:
            attributes["window"] = ""
        values = programmed_weight(
            matrix, attributes, self._device(node), strength, self.seed, self.read_seed, self._faults(node), codes
        )
        return Held(clean, values.reshape(clean.shape), codes)

    def read(self, node: ir.Node) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a reading finds in the array of a node of one slice: v `[K, N]`, and scales `[row tiles, N]`.

        Raises:
            InputError: what the native library refuses.

        """
        weight = np.asarray(self._emulated.stored(node)[0], np.float32)
        tiles = len(self.structure(node).row_tiles(weight.shape[-2]))
        v, scales, _, _ = programmed_array(
            weight, self._attributes(node), self._device(node), 1, tiles, False,
            self.strength(node), self.seed, self.read_seed, self._faults(node),
        )  # fmt: skip
        return v[0], scales

    def controls_of(self, node: ir.Node) -> Controls:
        """The control inputs as a node reads them."""
        structure = self.structure(node)
        strength, ranges = self.control("emu.strength"), self.control("emu.ranges")
        numbers = np.int64(self.seed), np.int64(self.read_seed)
        return check_controls(structure, self._device(node), strength, ranges, self._faults(node), *numbers)

    def _attributes(self, node: ir.Node) -> dict[str, int | str]:
        return {name: each.value for name, each in node.attributes.items()}

    def _device(self, node: ir.Node) -> NDArray[np.float32]:
        device = self.sites[node.name or ""].device
        return np.asarray(self.control(self._emulated.manifest.devices[device].input), np.float32)

    def _faults(self, node: ir.Node) -> NDArray[np.int64]:
        return np.asarray(self.control("emu.faults"), np.int64)


def chip_of(
    emulated: EmulatedModel, seed: int, read_seed: int, set: Overrides | None, dropped: Sequence[str] = ()
) -> Chip:
    """A chip of a rewritten model.

    Args:
        emulated: the model.
        seed: which chip.
        read_seed: which repetition.
        set: numbers of its devices.
        dropped: what of run time is left out, by the names of `emu.baking.DROPS`.

    Raises:
        InputError: a seed or number out of its range.

    """
    manifest = emulated.manifest
    numbers = device_numbers(manifest)
    controls = control_feeds(manifest, seed=seed, read_seed=read_seed, set=set, numbers=numbers)
    settings = numbers.flat(set)
    gone = {entry for each in dropped for entry in _NOISE[each]}
    for name, device in manifest.devices.items():
        values = controls.get(device.input, np.array(list(numbers.own[name].values()), np.float32))
        left = np.array([0 if entry in gone else value for entry, value in zip(device.entries, values, strict=True)])
        if not np.array_equal(left, values):
            controls[device.input] = left.astype(np.float32)
    sites = {site.node: site for site in manifest.sites}
    return Chip(controls, settings, sites, seed, read_seed, emulated)


def lost_at_run_time(structure: Structure, numbers: Mapping[str, float], strength: float) -> dict[str, str]:
    """What a node does at every product that stored values cannot hold, by the names of `emu.baking.DROPS`."""
    if strength == 0 or structure.op == FAULTY_WEIGHT:
        return {}
    lost = {}
    noise = {
        "read noise of weights": numbers.get("read.weight_noise", 0) if structure.read_noise != "none" else 0,
        "output noise": numbers.get("read.output_noise", 0),
        "input noise": numbers.get("read.input_noise", 0),
    }
    acting = [f"{what} {value:.4g}" for what, value in noise.items() if value > 0]
    if acting:
        lost["read"] = ", ".join(acting)
    if structure.ir_drop == "formula" and numbers.get("read.ir_drop", 0) > 0:
        lost["wires"] = "the voltage lost along wires, which depends on the input"
    converters = [name.upper() for name in ("dac", "adc") if getattr(structure, name) != "none"]
    if converters:
        lost["converters"] = f"the conversion of inputs or outputs ({' and '.join(converters)})"
    writes = structure.write != "none" and (structure.write == "clipformer" or numbers.get("write.sigma", 0) > 0)
    if structure.op == DYNAMIC and (
        writes or "mapping.percentile" in structure.entries or structure.write_scaling == "calibrated"
    ):
        lost["write"] = "what is written at run time (keys, values)"
    return lost


def check_bakeable(
    chip: Chip, nodes: Sequence[ir.Node], dropped: Sequence[str], name: str, converters: bool = False
) -> None:
    """Refuses nodes that do something at run time which is not dropped, or written with `converters`.

    Raises:
        InputError: with what would be lost, and how to drop it.

    """
    found: dict[str, tuple[str, int]] = {}
    for node in nodes:
        for what, said in lost_at_run_time(chip.structure(node), chip.numbers(node), chip.strength(node)).items():
            if what == "converters" and converters:
                reason = why_not_written(chip.structure(node), chip.numbers(node))
                if reason is None:
                    continue
                raise InputError(
                    f"{name}: the converters of node '{node.name}' cannot be written in standard operators, because "
                    f"of {reason}: leave it digital (exclude), or leave the converters out (drop)."
                )
            first, count = found.get(what, (said, 0))
            found[what] = first, count + 1
    open_ones = [what for what in found if what not in dropped]
    if open_ones:
        parts = "; ".join(f"{found[what][0]}, at {found[what][1]} sites" for what in open_ones)
        raise InputError(
            f"{name}: a plain file cannot hold {parts}: leave that out with --drop {','.join(open_ones)}, or run the "
            f"rewritten model{'; --converters writes converters' if 'converters' in open_ones else ''}."
        )
