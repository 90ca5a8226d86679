"""Reads device profiles from presets, TOML files and plain data, and changes settings of them."""

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from emu.contract.schema import TRANSFORM
from emu.contract.structure import number_of
from emu.device.fields import Number
from emu.device.functions import find_device_function
from emu.device.measured import read_regular, read_table
from emu.device.overrides import Change, Overrides, listing, read_changes, shown, suggestion
from emu.device.profile import Profile
from emu.device.sections import VARIANTS, Section
from emu.device.sections.section import CHOICES, WrongChoice, choose_variant, explain, words
from emu.errors import InputError

# What a CSV file holds, by section, and the model that it is of.
_TABLES = {
    "program": ("table", ("target_us", "mean_us", "std_us", "table_time_s")),
    "drift": ("power_law_table", ("target_us", "mean_nu", "std_nu")),
}
_ALTERNATIVES = ("float", "tuple[float, ...]", "[key]")  # in pydantic's places, beside the names of settings
_WITH_CONDUCTANCES = {"lognormal_g", "clipformer"}  # models of [write]


def preset_names() -> list[str]:
    """The names of the profiles that come with emu, in alphabetical order."""
    return sorted(file.name.removesuffix(".toml") for file in _presets().iterdir() if file.name.endswith(".toml"))


def load_profile(
    device: str | Path | Mapping[str, Any] | Profile,
    overrides: Overrides | None = None,
) -> Profile:
    """Loads a device profile and changes settings of it.

    Args:
        device: the name of a preset, the path of a TOML file, the plain data of a profile, or a profile. Plain data,
            such as the manifest of a model has, name no files: the numbers of a measured table are in them.
        overrides: `{"program.sigma": 0.15}`, or strings `program.sigma=0.15` whose values are TOML. A choice of
            another model drops the old model's settings; of `bits` and `steps` the one set replaces the other; the word
            `off` removes an optional number. Times may be text such as `1h`.

    Returns:
        The validated profile.

    Raises:
        InputError: an unknown preset, an unreadable file, or a setting that is unknown, missing, without effect or
            out of its range.
    """
    data, where, folder = _plain_data(device)
    if isinstance(device, Mapping):
        _refuse_file(data, where)
    _read_csv(data, folder, where)
    changes = read_changes(overrides)
    if changes:
        _apply(data, changes, where)
        _read_csv(data, Path(), where)
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_sentence(error, data)}.") from None
    if profile.program.model == "function":
        find_device_function(profile.program.function)  # where none is found, the run says so
    return profile


def _presets() -> Any:
    return resources.files("emu.device") / "presets"


def _plain_data(device: str | Path | Mapping[str, Any] | Profile) -> tuple[dict[str, Any], str, Path]:
    """The profile as nested data that may change, how to name it in an error, and the folder of its files."""
    if isinstance(device, Profile):
        return device.model_dump(mode="json"), f"Device profile '{device.name}'", Path()
    if isinstance(device, Mapping):
        data = {"name": "custom", **_copied(device)}
        return data, f"Device profile '{data['name']}'", Path()
    if isinstance(device, str) and device in preset_names():
        preset = _presets() / f"{device}.toml"
        return tomllib.loads(preset.read_text("utf-8")), f"Device profile '{device}'", Path()
    path = Path(device)
    if path.suffix != ".toml" and not path.is_file():
        presets = preset_names()
        raise InputError(
            f"There is no device '{device}'{suggestion(str(device), presets)}: presets are {listing(presets)}, "
            "or give the path of a .toml file."
        )
    try:
        data = tomllib.loads(read_regular(path, f"Device profile {path}"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"Device profile {path} is not valid TOML: {error}.") from None
    return {"name": path.stem, **data}, f"Device profile {path}", path.parent


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list | tuple) else value


def _refuse_file(data: Mapping[str, Any], where: str) -> None:
    """Refuses a file that plain data name: they come with a model or a store, from anywhere, and could name any."""
    for section, (model, fields) in _TABLES.items():
        content = data.get(section)
        if isinstance(content, Mapping) and content.get("model") == model and "csv" in content:
            raise InputError(
                f"{where}: {section}.csv names a file, which plain data may not: give the table's own numbers "
                f"({listing(fields)}), or the file as a setting, {section}.csv=FILE."
            )


def _read_csv(data: dict[str, Any], folder: Path, where: str) -> None:
    """Replaces the name of a CSV file by the numbers in it."""
    for section, (model, fields) in _TABLES.items():
        content = data.get(section)
        if not isinstance(content, dict) or "csv" not in content:
            continue
        if content.get("model") != model:
            raise InputError(f"{where}: {section}.csv has no effect: remove it, or choose {section}.model {model}.")
        for field in fields:
            if field in content:
                raise InputError(f"{where}: {section}.{field} is in the table that {section}.csv names: give one.")
        name = content.pop("csv")
        if not isinstance(name, str):
            raise InputError(f"{where}: {section}.csv is {shown(name)}, expected the path of a CSV file.")
        content |= read_table(folder / name, fields)


def _apply(data: dict[str, Any], changes: Iterable[Change], where: str) -> None:
    """Puts the changes into `data`, and drops what the changed choices leave without effect."""
    known = all_settings()
    given: dict[str, set[str]] = {}
    for change in changes:
        section, field, name = change.section, change.field, change.name
        if name not in known and number_of(name) is None:
            if section in VARIANTS and field:
                raise InputError(f"{where}: {_unknown_setting(section, field)}.")
            raise InputError(
                f"{where}: there is no setting '{name}'{suggestion(name, known)}; "
                f"write section.setting, with section one of {listing(VARIANTS)}."
            )
        content = data.setdefault(section, {})
        if not isinstance(content, dict):
            raise InputError(f"{where}: {section} must be a section ([{section}]).")
        if name not in known:
            _give_default(section, content, field.split(".")[0])
            field = _put_number(content, field, change.value, f"{where}: {name}")
        elif change.value == "off" and _is_optional(section, field):
            content.pop(field, None)
        else:
            content[field] = change.value
        given.setdefault(section, set()).add(field)
    for section, changed in given.items():
        content = data[section]
        if {"bits", "steps"} & changed and section in ("dac", "adc"):
            for field in {"bits", "steps"} - changed:
                content.pop(field, None)
        if section == "cost" and changed:
            if content.get("model") == "none" and "model" not in changed:
                del content["model"]  # a constant is given, so there are some
            if isinstance(content.get("sources"), dict):
                content["sources"] = {name: text for name, text in content["sources"].items() if name not in changed}
        if "csv" in changed:
            for field in set(_TABLES[section][1]) - changed:
                content.pop(field, None)
        if set(CHOICES) & changed:
            variant = choose_variant(VARIANTS[section], content)
            if not isinstance(variant, WrongChoice):
                for field in set(content) - changed:
                    if field not in variant.model_fields or _is_of_another_kind(content[field], variant, field):
                        del content[field]
    if "encoding" in given.get("mapping", ()) or "model" in given.get("write", ()):
        mapping, write = data.get("mapping"), data.get("write", {})
        moved = {name.removeprefix("write.") for name in TRANSFORM}
        used = isinstance(write, dict) and (write.get("model") in _WITH_CONDUCTANCES or moved & write.keys())
        if isinstance(mapping, dict) and mapping.get("encoding", "weight") == "weight" and not used:
            for field in ("g_min_us", "g_max_us"):
                if field not in given.get("mapping", ()):
                    mapping.pop(field, None)


def _is_of_another_kind(value: Any, variant: type[Section], field: str) -> bool:
    """Whether a setting is a fit, numbers by name, in one variant and a number in the other."""
    return isinstance(value, dict) != (get_origin(variant.model_fields[field].annotation) is dict)


def _give_default(section: str, content: dict[str, Any], setting: str) -> None:
    """Puts the numbers that a list has where it is left out, of which one is about to change."""
    variant = choose_variant(VARIANTS[section], content)
    if setting not in content and not isinstance(variant, WrongChoice) and setting in variant.model_fields:
        default = variant.model_fields[setting].default
        if isinstance(default, tuple):
            content[setting] = list(default)


def _put_number(content: dict[str, Any], field: str, value: Any, where: str) -> str:
    """Puts one number of a table, `mean_us.0.3`, of a fit, `nu.low`, or a parameter, `parameter.gain`, in its place.

    Returns the setting that it belongs to.
    """
    setting, *places = field.split(".")
    if len(places) == 1 and not places[0].isdecimal():
        setting = "parameters" if setting == "parameter" else setting
        content.setdefault(setting, {})[places[0]] = value
        return setting
    try:
        row = content[setting]
        for place in places[:-1]:
            row = row[int(place)] if isinstance(row[0], list) else row
        row[int(places[-1])] = value
        return setting
    except (KeyError, IndexError, TypeError):
        raise InputError(f"{where} is not in the table of this profile.") from None


def _is_optional(section: str, field: str) -> bool:
    fields = [variant.model_fields[field] for variant in VARIANTS[section] if field in variant.model_fields]
    return any(not each.is_required() and each.default is None for each in fields)


def _sentence(error: ValidationError, data: Mapping[str, Any]) -> str:
    """What is wrong first, without a full stop at the end."""
    errors = error.errors()
    # A misspelt setting is reported before the one that it leaves missing.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    kind, value = first["type"], first.get("input")
    section, *place = [str(part) for part in first["loc"] if part not in _ALTERNATIVES] or [""]
    setting = ".".join(place[1:])  # behind the name of the variant
    if kind == "value_error":
        said = str(first["ctx"]["error"])  # of one setting: what follows its name
        if not setting:
            return f"[{section}] {said}" if section else said
        return f"{section}.{setting}{said}"
    if section not in VARIANTS:
        if kind == "extra_forbidden":
            names = [*VARIANTS, "name", "description", "source"]
            return f"there is no section '{section}'{suggestion(section, names)}; sections are {listing(VARIANTS)}"
        return f"{section} is {shown(value)}, expected {_wanted(first)}"
    content = data.get(section)
    if not isinstance(content, Mapping):
        return f"{section} is {shown(content)}, expected a section ([{section}])"
    variant = choose_variant(VARIANTS[section], content)
    if isinstance(variant, WrongChoice):
        name, options = f"{section}.{variant.setting}", listing(variant.options)
        if variant.given is None:
            return f"{name} is missing: choose one of {options}"
        meant = suggestion(str(variant.given), variant.options)
        return f"{name} is {shown(variant.given)}, expected one of {options}{meant}"
    if kind == "extra_forbidden":
        elsewhere = [other for other in VARIANTS[section] if setting in other.model_fields]
        if elsewhere:
            fields = elsewhere[0].model_fields
            other = next(name for name in CHOICES if name in fields and content.get(name) not in words(fields[name]))
            here, there = _choices(section, content, variant), listing(words(fields[other]))
            return f"{section}.{setting} has no effect with {here}: remove it, or choose {section}.{other} {there}"
        return _unknown_setting(section, setting)
    if kind == "missing":
        return f"{section}.{setting} is missing: {_choices(section, content, variant) or section} needs it"
    wanted = _wanted(first)
    if place[1:]:
        about, choices = explain(variant, place[1]), words(variant.model_fields[place[1]])
        if isinstance(about, Number) and kind.startswith(("int", "float", "finite")):
            row = number_of(f"{section}.{setting}")  # of a fit, each number by itself
            wanted = row.legal.in_words if row else about.range
        elif kind == "literal_error" and choices:
            wanted = f"one of {listing(choices)}"
    return f"{section}.{setting} is {shown(value)}, expected {wanted}"


def _wanted(error: Any) -> str:
    """What a value of the wrong type should have been."""
    kind = str(error["type"])
    if kind == "literal_error":
        return f"one of {error['ctx']['expected']}"
    if kind.startswith("dict"):
        return "numbers by name, as in {c0 = 0.1}"
    if kind == "string_pattern_mismatch":
        return "letters, digits, '.', '_' and '-'"
    return "text" if kind.startswith("string") else str(error["msg"])


def _choices(section: str, content: Mapping[str, Any], variant: type[Section]) -> str:
    """The choices made in a section, such as `adc.model uniform and adc.range fixed`."""
    fields = variant.model_fields
    made = [(name, content.get(name, fields[name].default)) for name in CHOICES if name in fields]
    return " and ".join(f"{section}.{name} {value}" for name, value in made)


def _unknown_setting(section: str, field: str) -> str:
    """Says that a section has no such setting, and which it has."""
    known = _settings(section)
    return f"there is no setting '{section}.{field}'{suggestion(field, known)}; [{section}] has {listing(known)}"


def _settings(section: str) -> list[str]:
    settings = dict.fromkeys(field for variant in VARIANTS[section] for field in variant.model_fields)
    return [*settings, *(["csv"] if section in _TABLES else [])]


def all_settings() -> list[str]:
    """Every setting of every variant, as `section.setting`."""
    return [f"{section}.{field}" for section in VARIANTS for field in _settings(section)]
