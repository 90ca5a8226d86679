"""Changes of settings as users write them: `program.sigma=0.15`, or a mapping of names to values."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from emu.errors import InputError


@dataclass(frozen=True)
class Change:
    """One setting of a device and its new value.

    Attributes:
        device: the device's name, empty where none is said.
        section: as in a profile.
        field: the setting in it; of a number in a table its place follows, as in `mean_us.0.3`.
        value: as TOML has it.
    """

    device: str
    section: str
    field: str
    value: Any

    @property
    def name(self) -> str:
        """The setting, as in `program.sigma`."""
        return f"{self.section}.{self.field}" if self.field else self.section


Overrides: TypeAlias = Mapping[str, Any] | Iterable[str] | Iterable[Change]


def read_changes(overrides: Overrides | None) -> tuple[Change, ...]:
    """Reads overrides, each once.

    Args:
        overrides: a mapping of `[device:]section.setting` to values; or strings `[device:]section.setting=value` with
            TOML values, of which bare words are text; or what was read from them.

    Raises:
        InputError: a string that is not of that form, or a setting that is given twice.
    """
    changes: dict[tuple[str, str], Change] = {}
    single = isinstance(overrides, str)
    items = overrides.items() if isinstance(overrides, Mapping) else [overrides] if single else overrides or ()
    for item in items:
        change = item if isinstance(item, Change) else _read(*(item if isinstance(item, tuple) else _named(str(item))))
        if (change.device, change.name) in changes:
            of_device = f" of device '{change.device}'" if change.device else ""
            raise InputError(f"'{change.name}'{of_device} is set twice: keep one of them.")
        changes[change.device, change.name] = change
    return tuple(changes.values())


def parse_overrides(overrides: Overrides | None) -> dict[str, Any]:
    """Overrides as plain data, `{"section.setting": value}`; see `read_changes`."""
    return {f"{each.device}:" * bool(each.device) + each.name: each.value for each in read_changes(overrides)}


def _named(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"'{text}' is not a setting: write it as section.setting=value, as in program.sigma=0.15.")
    return name, toml_value(value.strip())


def _read(name: object, value: Any) -> Change:
    device, _, setting = str(name).rpartition(":")
    section, _, field = setting.strip().partition(".")
    return Change(device.strip(), section, field, value.item() if hasattr(value, "item") else value)


def toml_value(text: str) -> Any:
    """A value as TOML has it; a bare word is text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
        if list(parsed) == ["value"]:
            return parsed["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return float(text)  # numbers that TOML does not know: .5, 1e-3 with a bare point
    except ValueError:
        return text


def suggestion(word: str, known: Iterable[str]) -> str:
    """A question behind a wrong word, where a known one is like it."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def listing(words: Iterable[str]) -> str:
    """Words with commas between them."""
    return ", ".join(words)


def shown(value: Any) -> str:
    """A value as messages have it."""
    return f"'{value}'" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
