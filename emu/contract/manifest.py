"""The manifest: what a rewritten model says about itself, as JSON in its metadata."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from emu.contract.schema import FORMAT
from emu.contract.site import Site, Skipped
from emu.errors import InputError

MANIFEST_KEY = "emu.manifest"  # in a model's metadata


@dataclass(frozen=True)
class MappedDevice:
    """A device of a rewritten model.

    Attributes:
        profile: all of its settings, as plain data.
        entries: names of its numbers, in the order of `input`.
        input: the control input that holds them.

    """

    profile: Mapping[str, Any]
    entries: tuple[str, ...]
    input: str


@dataclass(frozen=True)
class SampleAxis:
    """Where the samples lie.

    Attributes:
        input: the input that tells how many samples there are; None where none does: then there is one sample.
        axis: its axis that counts them.
        size: their number if the model fixes it, else None.
        told: how this was told, as a half-sentence.

    """

    input: str | None
    axis: int
    size: int | None
    told: str


@dataclass(frozen=True)
class Manifest:
    """What a rewritten model says about itself. What has a default is written only where it says something else.

    Attributes:
        format: version of what nodes say.
        emu_version: the version that wrote it.
        devices: by name.
        controls: each scalar control input and its default.
        sites: by index.
        skipped: products that stay digital.
        digital_share: share of all multiplications that stays digital, None where it depends on a symbolic size.
        batch: where samples lie; None in files of earlier versions, which did not say.
        notes: what reading the model changed in it, as half-sentences.
        calibration: how calibrated ranges were found: `method`, `samples`, `data`; None for not yet, empty where no
            site has any.
        faults: which chip its list of faults was drawn for: `seed`, `settings`; None where there is no list.
        repair: which chip its corrections are for and how they were found: `method`, `seed`, `settings`, `samples`,
            `cost` and so on; None where there are none.

    """

    format: int
    emu_version: str
    devices: Mapping[str, MappedDevice]
    controls: Mapping[str, int]
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    digital_share: float | None
    batch: SampleAxis | None
    notes: tuple[str, ...]
    calibration: Mapping[str, Any] | None = field(default_factory=dict)
    faults: Mapping[str, Any] | None = None
    repair: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """The text in the metadata of a model."""
        return json.dumps(plain(self))

    @classmethod
    def from_json(cls, text: str, name: str) -> "Manifest":
        """The manifest in the metadata of a model, checked; `name` is how to call the model in an error.

        A model comes from anywhere: what emu relies on is checked here, and profiles are data that name no file.

        Raises:
            InputError: it is damaged, or of another format.

        """
        try:
            found = json.loads(text)
            version = found.get("format") if isinstance(found, dict) else None
            if version == FORMAT:
                manifest: Manifest = _record(cls, found, "")
                _check_places(manifest)
                return manifest
        except (ValueError, RecursionError) as error:  # RecursionError: lists in lists without end
            reason = error if isinstance(error, ValueError) else "it is nested too deeply"
            raise InputError(f"{name} has a damaged manifest ({reason}): rewrite the original model again.") from None
        raise InputError(
            f"{name} has a manifest of format {_short(version)}, this emu reads format {FORMAT}: "
            "rewrite the original model again, or use the emu that wrote it."
        )


def plain(value: Any) -> Any:
    """A manifest or a part of it as plain data for JSON."""
    if is_dataclass(value):
        parts = ((each, getattr(value, each.name)) for each in fields(value))
        return {each.name: plain(part) for each, part in parts if part != _default(each)}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return value


# What files of earlier versions lack, and what that means.
_EARLIER: dict[type, dict[str, Any]] = {
    Manifest: {"emu_version": "", "digital_share": 0.0, "batch": None, "notes": ()},
    Site: {"stack": 1, "window": ""},
    Skipped: {"macs": None},
}
_types = cache(get_type_hints)
# How to call a part that is one of several, and a list of them.
_PARTS: dict[type, str] = {MappedDevice: "device", Site: "site", Skipped: "skipped product"}


def _default(of: Any) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default


def _record(kind: Any, found: Any, what: str) -> Any:
    """A dataclass from plain data; `what` names it in an error, empty for the whole."""
    if not isinstance(found, dict):
        raise ValueError(f"{what} is {_short(found)}")
    values = {}
    for each in fields(kind):
        place = f"'{each.name}' of {what}" if what else f"'{each.name}'"
        if each.name in found:
            values[each.name] = _typed(_types(kind)[each.name], found[each.name], place)
        elif each.name in _EARLIER.get(kind, ()):
            values[each.name] = _EARLIER[kind][each.name]
        elif _default(each) is MISSING:
            raise ValueError(f"it has no {place}")
    return kind(**values)


def _typed(kind: Any, found: Any, what: str) -> Any:
    """Plain data as the type of a field; `what` names it in an error."""
    outer, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return found
    if is_dataclass(kind):
        return _record(kind, found, what)
    if outer is UnionType:  # or None
        return None if found is None else _typed(inner[0], found, what)
    if outer is tuple and isinstance(found, list):
        kinds = (inner[0],) * len(found) if inner[-1] is ... else inner
        if len(kinds) == len(found):
            pairs = zip(kinds, found, strict=True)
            return tuple(_typed(each, value, _part(each, i, what)) for i, (each, value) in enumerate(pairs))
    if outer is Mapping and isinstance(found, dict):
        return {key: _typed(inner[1], value, _part(inner[1], f"'{_short(key)}'", what)) for key, value in found.items()}
    if outer is None and isinstance(found, int | float if kind is float else kind) and not isinstance(found, bool):
        return found
    raise ValueError(f"{what} is {_short(found)}")


def _part(kind: Any, key: Any, what: str) -> str:
    return f"{_PARTS[kind]} {key}" if kind in _PARTS else what


def _check_places(manifest: Manifest) -> None:
    if not manifest.devices:
        raise ValueError("it has no device")
    for index, site in enumerate(manifest.sites):
        if site.index != index:
            raise ValueError(f"site {index} has index {site.index}")
        if site.device not in manifest.devices:
            raise ValueError(f"site {index} is on device '{_short(site.device)}', which it has not")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
