"""The manifest: what a rewritten model says about itself, as JSON in its metadata."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from emu.contract.schema import FORMAT
from emu.device import Profile, load_profile, override_entries, parse_overrides
from emu.device.loading import Overrides
from emu.errors import InputError
from emu.rewriter.batch import Batch
from emu.rewriter.load import MANIFEST_KEY, read_proto
from emu.rewriter.replace import SCALARS, device_inputs, device_numbers, is_calibrated
from emu.rewriter.site import Site, Skipped
from emu.version import __version__

_WITH_HEADS = (
    "query",
    "key",
    "value",
    "query_key_value",
    "key_value",
    "attention_scores",
    "attention_context",
    "attention_output",
)


def make_manifest(
    profiles: Sequence[Profile],
    sites: Sequence[Site],
    skipped: Iterable[Skipped],
    batch: Batch,
    notes: Sequence[str] = (),
    tied: Mapping[int, list[int]] | None = None,
    faults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a rewritten model, as plain data.

    Keys: `format`, `emu_version`, `devices` (by name: `profile`, `entries`, the names of its numbers, and `input`, the
    control that holds them), `controls` (name of each scalar control input and its default), `sites` (each with the
    name of its `device`), `skipped` (products that stay digital, and why), `digital_share` (the share of all
    multiplications that stays digital), `batch` (which axis of which input counts samples, and how that was told) and
    `notes` (what reading the model changed in it). Counts that depend on a symbolic size are null. A site that shares
    its array lists the others in `shares_with`; `tied` names for a site those that hold the transpose of its weight,
    which are arrays of their own.

    `calibration` is there if a site has converters with calibrated ranges: null, or how they were calibrated. `faults`
    is there if faults come from a list: which chip it was drawn for.
    """
    by_name = {profile.name: profile for profile in profiles}
    skipped = list(skipped)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "emu_version": __version__,
        "devices": {
            name: {
                "profile": by_name[name].model_dump(mode="json"),
                "entries": list(device_numbers(by_name[name], listed=faults is not None)),
                "input": value,
            }
            for name, value in device_inputs(profiles).items()
        },
        "controls": dict(SCALARS),
        "sites": [
            _site(site, profile)
            | _sharing(site, sites)
            | ({"tied_to": list(tied[site.index])} if tied and tied.get(site.index) else {})
            for site, profile in zip(sites, profiles, strict=True)
        ],
        "skipped": [asdict(each) for each in skipped],
        "digital_share": _digital_share(sites, skipped),
        "batch": {"input": batch.input, "axis": batch.axis, "size": batch.size, "told": batch.how},
        "notes": list(notes),
    }
    if any(site.feeds_product and any(is_calibrated(profiles[site.index])) for site in sites):
        manifest["calibration"] = None
    if faults is not None:
        manifest["faults"] = dict(faults)
    return manifest


def read_manifest(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model, name: str | None = None
) -> dict[str, Any] | None:
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
    if text is None:
        return None
    return parse_manifest(text, name)


def parse_manifest(text: str, name: str) -> dict[str, Any]:
    """The manifest in the metadata of a model, checked; `name` is how to call the model in an error.

    A model comes from anywhere: what emu relies on is checked here, and profiles are data that name no file.

    Raises:
        InputError: it is damaged, or of another format.

    """
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists without end
        reason = error if isinstance(error, ValueError) else "it is nested too deeply"
        raise InputError(f"{name} has a damaged manifest ({reason}): rewrite the original model again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise InputError(
            f"{name} has a manifest of format {_short(found)}, this emu reads format {FORMAT}: "
            "rewrite the original model again, or use the emu that wrote it."
        )
    if problem := _problem(manifest):
        raise InputError(f"{name} has a damaged manifest ({problem}): rewrite the original model again.")
    return manifest


def device_settings(manifest: Mapping[str, Any], set: Overrides | None = None) -> dict[str, dict[str, float]]:
    """The numbers of a rewritten model's devices: by the device's name, by entry, in the order of its control input.

    Args:
        manifest: the model's manifest.
        set: numbers that change: `program.sigma` where one device has it, `pcm:program.sigma` where several do; of a
            device that was measured at several times also `program.time_s`, which chooses its coefficients.

    Raises:
        InputError: a device or entry that is not there, an entry that several devices have, or as in
            `emu.device.override_entries`.

    """
    return {name: entries for name, (entries, _) in _settled(manifest, set).items()}


def device_choices(manifest: Mapping[str, Any], set: Overrides | None = None) -> dict[str, dict[str, float]]:
    """What chose the numbers of a rewritten model's devices, such as `program.time_s`, by the device's name.

    Args:
        manifest: the model's manifest.
        set: as for `device_settings`.

    Raises:
        InputError: as in `device_settings`.

    """
    return {name: choices for name, (_, choices) in _settled(manifest, set).items()}


def _settled(
    manifest: Mapping[str, Any], set: Overrides | None
) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Entries and choices of each device."""
    devices = manifest["devices"]
    profiles = {name: load_profile(device["profile"]) for name, device in devices.items()}
    settings: dict[str, dict[str, float]] = {}
    for name, device in devices.items():
        values = profiles[name].entries()
        unknown = [entry for entry in device["entries"] if not isinstance(entry, str) or entry not in values]
        if unknown:
            raise InputError(
                f"The model's manifest is damaged (device '{name}' has no number '{_short(unknown[0])}'): rewrite the "
                "original model again."
            )
        settings[name] = {entry: values[entry] for entry in device["entries"]}
    changes: dict[str, dict[str, Any]] = {name: {} for name in settings}
    for key, value in parse_overrides(set).items():
        name, colon, entry = key.rpartition(":")
        if not colon:
            having = [each for each in settings if entry in settings[each] or entry in profiles[each].choices()]
            if len(having) > 1:
                raise InputError(
                    f"Several devices have '{entry}' ({', '.join(having)}): say which, as in "
                    f"{having[0]}:{entry}={value}."
                )
            # A setting that no device has is refused below, with what can change.
            name = having[0] if having else next(iter(settings))
        elif name not in settings:
            raise InputError(f"'{key}' sets a device that the model does not have: it has {', '.join(settings)}.")
        if entry in changes[name]:
            raise InputError(f"'{entry}' of device '{name}' is set twice: keep one of them.")
        changes[name][entry] = value
    settled = {}
    for name, entries in settings.items():
        profile, given = profiles[name], changes[name]
        chosen = {entry: given.pop(entry) for entry in profile.choices() if entry in given}
        if chosen:
            profile = load_profile(profile, chosen)
            values = profile.entries()
            entries = {entry: values[entry] for entry in entries}
        settled[name] = override_entries(entries, given), profile.choices()
    return settled


_PARTS = {"devices": dict, "controls": dict, "sites": list, "skipped": list}
_OF_A_DEVICE = {"profile": dict, "entries": list, "input": str}
_OF_A_SITE: dict[str, Any] = {
    "index": int,
    "array": int,
    "device": str,
    "node": str,
    "op": str,
    "source_op": str,
    "layer": int | None,
    "component": str,
    "shape": list,
    "heads": int,
    "head_axis": str,
    "head_groups": int,
    "head_share": int,
    "sample_axis": int,
    "tiles": int | None,
    "parameters": int,
    "macs": int | None,
    "macs_per_row": int | None,
}


def _problem(manifest: Mapping[str, Any]) -> str:
    """What a manifest lacks of what `make_manifest` writes, or has of another kind; empty for a whole one."""
    if problem := _missing(manifest, _PARTS, ""):
        return problem
    for name, device in manifest["devices"].items():
        if problem := _missing(device, _OF_A_DEVICE, f"device '{_short(name)}'"):
            return problem
    if not manifest["devices"]:
        return "it has no device"
    for index, site in enumerate(manifest["sites"]):
        where = f"site {index}"
        if problem := _missing(site, _OF_A_SITE, where):
            return problem
        if site["index"] != index:
            return f"{where} has index {site['index']}"
        if site["device"] not in manifest["devices"]:
            return f"{where} is on device '{_short(site['device'])}', which it has not"
        if len(site["shape"]) != 2 or not all(isinstance(size, int | None) for size in site["shape"]):
            return f"{where} has no shape of two sizes"
    for index, each in enumerate(manifest["skipped"]):
        if problem := _missing(each, {"node": str, "op": str, "reason": str}, f"skipped product {index}"):
            return problem
    return ""


def _missing(found: Any, wanted: Mapping[str, Any], where: str) -> str:
    """The first of the wanted entries that is not there, or of another kind."""
    of = f" of {where}" if where else ""
    if not isinstance(found, dict):
        return f"{where} is {_short(found)}"
    for key, kind in wanted.items():
        if key not in found:
            return f"it has no '{key}'{of}"
        if not isinstance(found[key], kind) or isinstance(found[key], bool):
            return f"'{key}'{of} is {_short(found[key])}"
    return ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _digital_share(sites: Iterable[Site], skipped: Iterable[Skipped]) -> float | None:
    """The share of all multiplications that stays digital; None where a number of them is not known."""
    digital = [each.macs for each in skipped]
    if not any(each != 0 for each in digital):
        return 0.0
    analog = [site.macs for site in sites if site.feeds_product]
    if None in digital or None in analog:
        return None
    left = sum(each or 0 for each in digital)
    return left / max(1, left + sum(each or 0 for each in analog))


def _sharing(site: Site, sites: Iterable[Site]) -> dict[str, Any]:
    others = [each.index for each in sites if each.array == site.array and each.index != site.index]
    return {"shares_with": others} if others else {}


def _operator(site: Site) -> str:
    if not site.feeds_product:
        return "FaultyWeight"
    if site.code_bits:
        return "CrossbarMatMulQuantized"
    return "CrossbarMatMul" if site.stored else "CrossbarMatMulDynamic"


def _site(site: Site, profile: Profile) -> dict[str, Any]:
    structure = profile.structure()
    tile = int(structure["tile_rows"]), int(structure["tile_columns"])
    facts: dict[str, Any] = {
        "index": site.index,
        "array": site.array,
        "device": profile.name,
        "node": site.node,
        "op": _operator(site),
        "source_op": site.op,
        "layer": site.layer,
        "component": site.component,
        "shape": list(site.shape),
        "heads": site.heads,
        "head_axis": site.head_axis,
        "head_groups": site.head_groups,
        "head_share": site.head_share,
        "sample_axis": site.sample_axis,
        "stack": site.matrices if site.stored and site.feeds_product else 1,
        "window": site.window,
        "tiles": _tiles(site, tile),
        "parameters": site.parameters,
        "macs": site.macs,
        "macs_per_row": site.macs_per_row,
    }
    if site.code_bits:
        facts |= {"code_bits": site.code_bits, "code_scale": site.code_scale}
    if site.component in _WITH_HEADS and not site.heads:
        facts["note"] = "the heads of this site could not be told from the graph: choosing a head leaves it exact"
    return facts


def _tiles(site: Site, tile: tuple[int, int]) -> int | None:
    """Number of tiles that a weight takes, or one matrix that is written."""
    count = max(1, site.matrices or 1) if site.stored else 1
    for size, limit in zip(site.shape, tile, strict=True):
        if limit:
            if size is None:
                return None
            count *= math.ceil(size / limit)
    return count
