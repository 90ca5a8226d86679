"""Changes of settings as users write them: `program.sigma=0.15`, or a mapping of names to values."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from emu.errors import InputError

Overrides: TypeAlias = Mapping[str, Any] | Iterable[str]


def parse_overrides(overrides: Overrides | None) -> dict[str, Any]:
    """Reads overrides into `{"section.setting": value}`.

    Args:
        overrides: a mapping, or strings `section.setting=value` with TOML values; bare words are text.

    Raises:
        InputError: a string that is not of that form, or a setting that is given twice.
    """
    if overrides is None:
        return {}
    if isinstance(overrides, Mapping):
        items = [(str(name), value) for name, value in overrides.items()]
    else:
        items = []
        for text in [overrides] if isinstance(overrides, str) else overrides:
            name, equals, value = str(text).partition("=")
            if not equals or not name.strip():
                raise InputError(
                    f"'{text}' is not a setting: write it as section.setting=value, as in program.sigma=0.15."
                )
            items.append((name, _toml_value(value.strip())))
    changes: dict[str, Any] = {}
    for name, value in items:
        name = name.strip()
        if name in changes:
            raise InputError(f"'{name}' is set twice: keep one of them.")
        changes[name] = value.item() if hasattr(value, "item") else value  # numbers of NumPy become Python's
    return changes


def _toml_value(text: str) -> Any:
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
