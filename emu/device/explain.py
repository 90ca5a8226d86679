"""Explains the settings of a profile: value, unit, range, meaning, source."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from emu.device.fields import Number
from emu.device.profile import Profile
from emu.device.sections import VARIANTS, Section
from emu.device.sections.section import CHOICES, explain, words

Value: TypeAlias = str | int | float | list[Any] | None


@dataclass(frozen=True)
class Setting:
    """One setting of a profile, explained.

    `value` is None where an optional setting is off. `entry` tells whether the setting is a number of the `device`
    tensor, which a run can change without rewriting the model.
    """

    name: str
    value: Value
    unit: str
    range: str
    meaning: str
    source: str
    entry: bool

    @property
    def shown(self) -> str:
        """The value as text: `off` where there is none, long lists shortened."""
        return "off" if self.value is None else _shown(self.value)


def describe(profile: Profile) -> list[Setting]:
    """Explains every setting that acts in this profile, section by section."""
    rows = []
    entries = profile.entries()
    sources = profile.cost.sources if profile.cost.model == "circuits" else {}
    for section in VARIANTS:
        chosen: Section = getattr(profile, section)
        for field in sorted(type(chosen).model_fields, key=lambda field: field not in CHOICES):
            about, value = explain(type(chosen), field), getattr(chosen, field)
            if field == "sources":
                continue  # beside the constants of [cost], each its own
            if value is None and field in ("g_min_us", "g_max_us", "clip"):
                continue  # of conductances, which this profile does not have
            if isinstance(about, Number):
                unit, allowed = about.unit, about.range
            else:
                unit, allowed = "", about.options or ", ".join(_options(section, chosen, field))
            named = (
                {f"{section}.parameter.{name}": number for name, number in value.items()}
                if field == "parameters"
                else {}
            )
            for name, each in (named or {f"{section}.{field}": value}).items():
                entry = name in entries or any(key.startswith(f"{name}.") for key in entries)
                entry = entry or name in profile.choices()
                source = sources.get(field, about.source) if section == "cost" else about.source
                rows.append(Setting(name, _plain(each), unit, allowed, about.meaning, source, entry))
    return rows


def _plain(value: Any) -> Value:
    if isinstance(value, dict) and value:
        return ", ".join(f"{name} {number:.10g}" for name, number in value.items())  # of a fit
    return [_plain(each) for each in value] if isinstance(value, tuple) else None if value == {} else value


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    parts = [_shown(each) for each in value]
    return f"[{', '.join(parts if len(parts) <= 6 else [*parts[:3], '...', parts[-1]])}]"


def _options(section: str, chosen: Section, field: str) -> list[str]:
    """The values that a choice may take beside the other choices made."""
    earlier = CHOICES[: CHOICES.index(field)] if field in CHOICES else ()
    wanted = {name: getattr(chosen, name) for name in earlier if name in type(chosen).model_fields}
    options: dict[str, None] = {}
    for variant in VARIANTS[section]:
        fields = variant.model_fields
        same = all(name in fields and value in words(fields[name]) for name, value in wanted.items())
        if same and field in fields:
            options |= dict.fromkeys(words(fields[field]))
    return list(options)
