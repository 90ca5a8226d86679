"""The manifest of a model: made when it is rewritten, read from it, and what follows from the devices in it."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from emu.contract.manifest import MANIFEST_KEY, Manifest, MappedDevice, SampleAxis
from emu.contract.schema import FORMAT, plain
from emu.contract.site import Site, Skipped
from emu.contract.structure import Structure, parse_structure
from emu.device import DeviceNumbers, Profile, load_profile
from emu.errors import InputError
from emu.rewriter.batch import Batch
from emu.rewriter.devices import BY_PROFILE
from emu.rewriter.load import read_proto
from emu.rewriter.replace import (
    SCALARS,
    Calibrated,
    calibrated_ranges,
    device_inputs,
    entries_of,
    is_disturbed,
    node_attributes,
)
from emu.version import __version__


def make_manifest(
    profiles: Mapping[str, Profile],
    sites: Sequence[Site],
    skipped: Sequence[Skipped],
    batch: Batch,
    notes: Sequence[str],
    tied: Mapping[int, Sequence[int]],
    faults: Mapping[str, Any] | None,
) -> Manifest:
    """The manifest of a rewritten model.

    `profiles` are its devices by name, in order of first use; `tied` names for a site, by index, those that hold the
    transpose of its weight; `faults` says which chip its list of faults was drawn for, None where there is no list.
    """
    manifest = Manifest(
        format=FORMAT,
        emu_version=__version__,
        devices={
            name: MappedDevice(
                profiles[name].model_dump(mode="json"), tuple(entries_of(profiles[name], faults is not None)), value
            )
            for name, value in device_inputs(profiles).items()
        },
        controls=SCALARS,
        sites=tuple(
            replace(
                site,
                tiles=_tiles(site, profiles[site.device]),
                shares_with=tuple(each.index for each in sites if each.array == site.array and each is not site),
                tied_to=tuple(tied.get(site.index, ())),
            )
            for site in sites
        ),
        skipped=tuple(skipped),
        digital_share=_digital_share(sites, skipped),
        batch=SampleAxis(batch.input, batch.axis, batch.size, batch.told),
        notes=tuple(notes),
        faults=faults,
    )
    return replace(manifest, calibration=None) if calibrated_sites(manifest) else manifest


def read_manifest(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model, name: str | None = None
) -> Manifest | None:
    """The manifest of a rewritten model, None for a plain one; `name` is how to call the model in an error.

    Raises:
        InputError: the file is no ONNX model, or its manifest cannot be read by this version of emu.

    """
    if isinstance(model, ir.Model):
        name, text = name or "The model", model.metadata_props.get(MANIFEST_KEY)
    else:
        in_memory = isinstance(model, onnx.ModelProto)
        name = name or ("The model" if in_memory else f"Model {os.fspath(model)}")
        proto = model if isinstance(model, onnx.ModelProto) else read_proto(Path(model))
        text = next((prop.value for prop in proto.metadata_props if prop.key == MANIFEST_KEY), None)
    return None if text is None else Manifest.from_json(text, name)


def calibrated_sites(manifest: Manifest) -> dict[int, Calibrated]:
    """The sites with calibrated ranges, by index, and which these are."""
    profiles = {name: load_profile(device.profile) for name, device in manifest.devices.items()}
    found = {site.index: calibrated_ranges(profiles[site.device], site) for site in manifest.sites}
    return {index: ranges for index, ranges in found.items() if any(ranges)}


def arrays_with_faults(manifest: Manifest) -> dict[int, Site]:
    """The arrays whose device can have faults, each with the first site that it serves."""
    faulty = {
        name
        for name, device in manifest.devices.items()
        if device.profile["faults"].get("storage", "none") != "none"
        or device.profile["faults"].get("stuck_low") is not None
    }
    return {site.array: site for site in reversed(manifest.sites) if site.is_stored and site.device in faulty}


def structure_of(site: Site, manifest: Manifest) -> Structure:
    """The structure of a site's node, but for what lies in its weight."""
    profile = load_profile(manifest.devices[site.device].profile)
    attributes = node_attributes(site, profile, len(manifest.sites), manifest.faults is not None)
    codes = {"code_bits": site.code_bits} if site.code_bits else {}
    return parse_structure(site.op, {**plain(site.op), **attributes, **codes})


def undisturbed_sites(manifest: Manifest) -> list[Site]:
    """The sites at which nothing of their devices acts, whatever the devices' numbers are: exact products."""
    profiles = {name: load_profile(device.profile) for name, device in manifest.devices.items()}
    return [site for site in manifest.sites if not is_disturbed(site, profiles[site.device])]


def about_sites(manifest: Manifest) -> list[str]:
    """What of a model's products is not on a device, and what is and is exact there, as sentences."""
    lines = []
    chosen: dict[str, list[str]] = {}
    for each in manifest.skipped:
        if each.component:
            chosen.setdefault(each.reason, []).append(each.component)
    for reason, components in chosen.items():
        by_profile = reason.startswith(BY_PROFILE)
        said = f"{reason.replace('leaves it', 'leaves them')} ([sites]; --only '*' maps all)" if by_profile else reason
        lines.append(f"Stays digital: {_counted(components)}: {said}.")
    exact: dict[str, list[str]] = {}
    for site in undisturbed_sites(manifest):
        exact.setdefault(site.device, []).append(site.component)
    lines += [f"Exact: {_counted(each)}: '{device}' does nothing there." for device, each in exact.items()]
    return lines


def device_numbers(manifest: Manifest) -> DeviceNumbers:
    """The numbers of a rewritten model's devices, in the order of their control inputs.

    Raises:
        InputError: a profile in the manifest is wrong, or lacks an entry.

    """
    devices = {name: (load_profile(each.profile), each.entries) for name, each in manifest.devices.items()}
    for name, (profile, entries) in devices.items():
        values = profile.entries()
        unknown = [entry for entry in entries if entry not in values]
        if unknown:
            raise InputError(
                f"The model's manifest is damaged (device '{name}' has no number '{unknown[0]}'): rewrite the "
                "original model again."
            )
    return DeviceNumbers(devices)


def _counted(components: Sequence[str]) -> str:
    """A number of sites, and of which components they are."""
    parts = ", ".join(f"{each} {count}" for each, count in Counter(components).items())
    return f"{len(components)} site{'s' * (len(components) > 1)} ({parts})"


def _digital_share(sites: Iterable[Site], skipped: Iterable[Skipped]) -> float | None:
    """The share of all multiplications that stays digital; None where a number of them is not known."""
    digital = [each.macs for each in skipped]
    if not any(each != 0 for each in digital):
        return 0.0
    analog = [site.macs for site in sites if site.is_product]
    if None in digital or None in analog:
        return None
    left = sum(each or 0 for each in digital)
    return left / max(1, left + sum(each or 0 for each in analog))


def _tiles(site: Site, profile: Profile) -> int | None:
    """Number of tiles that a weight takes, or one matrix that is written."""
    structure = profile.structure()
    count = site.stack
    for size, limit in zip(site.shape, (int(structure["tile_rows"]), int(structure["tile_columns"])), strict=True):
        if limit:
            if size is None:
                return None
            count *= math.ceil(size / limit)
    return count
