"""The manifest: what a rewritten model says about itself, as JSON in its metadata."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from emu import __version__
from emu.device import Profile
from emu.errors import InputError
from emu.rewriter.load import MANIFEST_KEY, read_proto
from emu.rewriter.replace import SCALARS
from emu.rewriter.site import Site, Skipped

FORMAT = 1
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
    profile: Profile,
    sites: Sequence[Site],
    skipped: Iterable[Skipped],
    tied: Mapping[int, list[int]] | None = None,
) -> dict[str, Any]:
    """The manifest of a rewritten model, as plain data.

    Keys: `format`, `emu_version`, `device` (`name`, `profile`), `entries` (names of the entries of `emu.device`),
    `controls` (name of each other control input and its default), `sites` and `skipped` (products that stay digital,
    and why). Counts that depend on a symbolic size are null. A site that shares its array lists the others in
    `shares_with`; `tied` names for a site those that hold the transpose of its weight, which are arrays of their own.
    """
    structure = profile.structure()
    tile = int(structure["tile_rows"]), int(structure["tile_columns"])
    return {
        "format": FORMAT,
        "emu_version": __version__,
        "device": {"name": profile.name, "profile": profile.model_dump(mode="json")},
        "entries": list(profile.entries()),
        "controls": dict(SCALARS),
        "sites": [
            _site(site, tile)
            | _sharing(site, sites)
            | ({"tied_to": list(tied[site.index])} if tied and tied.get(site.index) else {})
            for site in sites
        ],
        "skipped": [{"node": each.node, "op": each.op, "reason": each.reason} for each in skipped],
    }


def read_manifest(model: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> dict[str, Any] | None:
    """The manifest of a rewritten model, None for a plain one.

    Raises:
        InputError: the file is no ONNX model, or its manifest cannot be read by this version of emu.

    """
    if isinstance(model, ir.Model):
        name, text = "The model", model.metadata_props.get(MANIFEST_KEY)
    else:
        in_memory = isinstance(model, onnx.ModelProto)
        name = "The model" if in_memory else f"Model {os.fspath(model)}"
        proto = model if isinstance(model, onnx.ModelProto) else read_proto(Path(model))
        text = next((prop.value for prop in proto.metadata_props if prop.key == MANIFEST_KEY), None)
    if text is None:
        return None
    try:
        manifest = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} has a damaged manifest ({error}): rewrite the original model again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise InputError(
            f"{name} has a manifest of format {found}, this emu reads format {FORMAT}: "
            "rewrite the original model again, or use the emu that wrote it."
        )
    return manifest


def _sharing(site: Site, sites: Iterable[Site]) -> dict[str, Any]:
    others = [each.index for each in sites if each.array == site.array and each.index != site.index]
    return {"shares_with": others} if others else {}


def _operator(site: Site) -> str:
    if not site.feeds_product:
        return "FaultyWeight"
    if site.code_bits:
        return "CrossbarMatMulQuantized"
    return "CrossbarMatMul" if site.stored else "CrossbarMatMulDynamic"


def _site(site: Site, tile: tuple[int, int]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "index": site.index,
        "array": site.array,
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
        "tiles": _tiles(site.shape, tile),
        "parameters": site.parameters,
        "macs": site.macs,
        "macs_per_row": site.macs_per_row,
    }
    if site.code_bits:
        facts |= {"code_bits": site.code_bits, "code_scale": site.code_scale}
    if site.component in _WITH_HEADS and not site.heads:
        facts["note"] = "the heads of this site could not be told from the graph: choosing a head leaves it exact"
    return facts


def _tiles(shape: tuple[int | None, int | None], tile: tuple[int, int]) -> int | None:
    """Number of tiles that one matrix takes."""
    count = 1
    for size, limit in zip(shape, tile, strict=True):
        if limit:
            if size is None:
                return None
            count *= math.ceil(size / limit)
    return count
