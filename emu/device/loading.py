"""Reads device profiles from presets, TOML files and plain data, and changes settings of them."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from emu.device.fields import conductance_problem, resolution_problem
from emu.device.profile import (
    CHOICES,
    ENTRY_NAMES,
    VARIANTS,
    Profile,
    Section,
    WrongChoice,
    choose_variant,
    entry_number,
)
from emu.errors import InputError

Overrides: TypeAlias = Mapping[str, Any] | Iterable[str]


def preset_names() -> list[str]:
    """The names of the profiles that come with emu, in alphabetical order."""
    return sorted(file.name.removesuffix(".toml") for file in _presets().iterdir() if file.name.endswith(".toml"))


def load_profile(
    device: str | Path | Mapping[str, Any] | Profile,
    overrides: Overrides | None = None,
) -> Profile:
    """Loads a device profile and changes settings of it.

    Args:
        device: the name of a preset, the path of a TOML file, the plain data of a profile, or a profile.
        overrides: `{"program.sigma": 0.15}`, or strings `program.sigma=0.15` whose values are TOML. A choice of
            another model drops the old model's settings; of `bits` and `steps` the one set replaces the other.

    Returns:
        The validated profile.

    Raises:
        InputError: an unknown preset, an unreadable file, or a setting that is unknown, missing, without effect or
            out of its range.
    """
    data, where = _plain_data(device)
    changes = parse_overrides(overrides)
    if changes:
        _apply(data, changes, where)
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_sentence(error, data)}.") from None


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


def check_entries(entries: Mapping[str, float]) -> dict[str, float]:
    """Checks numbers for the `device` tensor of a rewritten model.

    Args:
        entries: entry name to value, complete for one device.

    Returns:
        The same entries as floats.

    Raises:
        InputError: an unknown entry, a value out of its range, or values that contradict each other.
    """
    for name, value in entries.items():
        if name not in ENTRY_NAMES:
            raise InputError(f"'{name}' is no number of a device{_suggestion(name, ENTRY_NAMES)}.")
        number = entry_number(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not number.allows(value):
            raise InputError(f"{name} is {_show(value)} and must be {number.range}.")
    problem = resolution_problem("dac", entries) or resolution_problem("adc", entries) or conductance_problem(entries)
    if problem:
        raise InputError(f"{problem}.")
    return {name: float(value) for name, value in entries.items()}


def override_entries(manifest_entries: Mapping[str, float], overrides: Overrides | None) -> dict[str, float]:
    """Changes numbers of a rewritten model's `device` tensor.

    Args:
        manifest_entries: entry name to the model's own value, in the order of the tensor.
        overrides: as for `load_profile`, but only of these entries.

    Returns:
        All entries in the same order, with the overrides.

    Raises:
        InputError: an override of something that is not in the tensor, or values as in `check_entries`.
    """
    changes = parse_overrides(overrides)
    for name in changes:
        if name in manifest_entries:
            continue
        if name in _all_settings():
            raise InputError(
                f"'{name}' shapes the graph and cannot change in a rewritten model: rewrite the original model with "
                f"--set {name}={changes[name]} (here {_listing(manifest_entries) or 'nothing'} can change)."
            )
        raise InputError(f"'{name}' is no setting of a device{_suggestion(name, list(manifest_entries))}.")
    for converter in ("dac", "adc"):
        pair = {f"{converter}.bits", f"{converter}.steps"}
        if pair & set(changes):
            changes |= {name: 0 for name in pair - set(changes) if name in manifest_entries}
    return check_entries({**manifest_entries, **changes})


def _presets() -> Any:
    return resources.files("emu.device") / "presets"


def _plain_data(device: str | Path | Mapping[str, Any] | Profile) -> tuple[dict[str, Any], str]:
    """The profile as nested dictionaries that the caller may change, and how to name it in an error."""
    if isinstance(device, Profile):
        return device.model_dump(), f"Device profile '{device.name}'"
    if isinstance(device, Mapping):
        data = {"name": "custom", **{key: dict(v) if isinstance(v, Mapping) else v for key, v in device.items()}}
        return data, f"Device profile '{data['name']}'"
    if isinstance(device, str) and device in preset_names():
        return tomllib.loads((_presets() / f"{device}.toml").read_text("utf-8")), f"Device profile '{device}'"
    path = Path(device)
    if path.suffix != ".toml" and not path.is_file():
        presets = preset_names()
        raise InputError(
            f"There is no device '{device}'{_suggestion(str(device), presets)}: presets are {_listing(presets)}, "
            "or give the path of a .toml file."
        )
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"Device profile {path} cannot be read: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"Device profile {path} is not valid TOML: {error}.") from None
    return {"name": path.stem, **data}, f"Device profile {path}"


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


def _apply(data: dict[str, Any], changes: Mapping[str, Any], where: str) -> None:
    """Puts the changes into `data`, and drops what the changed choices leave without effect."""
    for name, value in changes.items():
        section, _, field = name.partition(".")
        known = _all_settings()
        if name not in known:
            if section in VARIANTS and field:
                raise InputError(f"{where}: {_unknown_setting(section, field)}.")
            raise InputError(
                f"{where}: there is no setting '{name}'{_suggestion(name, known)}; "
                f"write section.setting, with section one of {_listing(VARIANTS)}."
            )
        content = data.setdefault(section, {})
        if not isinstance(content, dict):
            raise InputError(f"{where}: {section} must be a section ([{section}]).")
        content[field] = value
    for section, variants in VARIANTS.items():
        content = data.get(section)
        if not isinstance(content, dict):
            continue
        changed = {name.partition(".")[2] for name in changes if name.startswith(f"{section}.")}
        if {"bits", "steps"} & changed:
            for field in {"bits", "steps"} - changed:
                content.pop(field, None)
        if set(CHOICES) & changed:
            variant = choose_variant(variants, content)
            if not isinstance(variant, WrongChoice):
                for field in set(content) - set(variant.model_fields) - changed:
                    del content[field]
    storage = [data.get(section, {}) for section in ("program", "write")]
    needed = any(isinstance(content, dict) and content.get("model") == "lognormal_g" for content in storage)
    if {"program.model", "write.model"} & set(changes) and not needed and isinstance(data.get("mapping"), dict):
        for field in ("g_min_us", "g_max_us"):
            if f"mapping.{field}" not in changes:
                data["mapping"].pop(field, None)


def _sentence(error: ValidationError, data: Mapping[str, Any]) -> str:
    """What is wrong first, without a full stop at the end."""
    errors = error.errors()
    # A misspelt setting is reported before the one that it leaves missing.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    kind, value = first["type"], first.get("input")
    section, setting = str(first["loc"][0]) if first["loc"] else "", str(first["loc"][-1]) if first["loc"] else ""
    if kind == "value_error":
        said = str(first["ctx"]["error"])
        if isinstance(value, int | float | str):
            return f"{section}.{setting} is {_show(value)} and {said}"
        return f"[{section}] {said}" if section else said
    if section not in VARIANTS:
        if kind == "extra_forbidden":
            names = [*VARIANTS, "name", "description", "source"]
            return f"there is no section '{section}'{_suggestion(section, names)}; sections are {_listing(VARIANTS)}"
        return f"{section} is {_show(value)} and must be {_wanted(first, section)}"
    content = data.get(section)
    if not isinstance(content, Mapping):
        return f"{section} is {_show(content)} and must be a section ([{section}])"
    variant = choose_variant(VARIANTS[section], content)
    if isinstance(variant, WrongChoice):
        name, options = f"{section}.{variant.setting}", _listing(variant.options)
        if variant.given is None:
            return f"{name} is missing: choose one of {options}"
        meant = _suggestion(str(variant.given), variant.options)
        return f"{name} is {_show(variant.given)} and must be one of {options}{meant}"
    if kind == "extra_forbidden":
        elsewhere = [other for other in VARIANTS[section] if setting in other.model_fields]
        if elsewhere:
            fields = elsewhere[0].model_fields
            other = next(name for name in CHOICES if name in fields and content.get(name) not in _values(fields[name]))
            here, there = _choices(section, content, variant), _listing(_values(fields[other]))
            return f"{section}.{setting} has no effect with {here}: remove it, or choose {section}.{other} {there}"
        return _unknown_setting(section, setting)
    if kind == "missing":
        return f"{section}.{setting} is missing: {_choices(section, content, variant) or section} needs it"
    return f"{section}.{setting} is {_show(value)} and must be {_wanted(first, setting)}"


def _wanted(error: Any, setting: str) -> str:
    """What a value of the wrong type should have been."""
    kind = str(error["type"])
    if kind == "literal_error":
        return f"one of {error['ctx']['expected']}"
    if kind.startswith("int"):
        return "a whole number"
    if kind.startswith(("float", "finite")):
        return "a finite number"
    if kind == "string_pattern_mismatch":
        return "letters, digits, '.', '_' and '-'"
    return "text" if kind.startswith("string") else str(error["msg"])


def _choices(section: str, content: Mapping[str, Any], variant: type[Section]) -> str:
    """The choices made in a section, such as `adc.model uniform and adc.range fixed`."""
    fields = variant.model_fields
    made = [(name, content.get(name, fields[name].default)) for name in CHOICES if name in fields]
    return " and ".join(f"{section}.{name} {value}" for name, value in made)


def _values(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation)


def _unknown_setting(section: str, field: str) -> str:
    """Says that a section has no such setting, and which it has."""
    known = _settings(section)
    return f"there is no setting '{section}.{field}'{_suggestion(field, known)}; [{section}] has {_listing(known)}"


def _settings(section: str) -> list[str]:
    return list(dict.fromkeys(field for variant in VARIANTS[section] for field in variant.model_fields))


def _all_settings() -> list[str]:
    return [f"{section}.{field}" for section in VARIANTS for field in _settings(section)]


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _listing(words: Iterable[str]) -> str:
    return ", ".join(words)


def _show(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
