"""Writes device profiles as TOML, which `load_profile` reads back."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from emu.device.profile import Profile

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_of(profile: Profile) -> str:
    """The settings that were given to a profile, as the text of a TOML file."""
    return "\n".join(_lines(profile.model_dump(mode="json", exclude_unset=True, exclude_none=True))) + "\n"


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    for name, value in data.items():
        if not isinstance(value, dict):
            yield f"{name} = {_value(value)}"
    for section, settings in data.items():
        if isinstance(settings, dict):
            yield f"\n[{section}]"
            yield from (f"{_key(name)} = {_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)  # text, numbers and truth are written alike


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)
