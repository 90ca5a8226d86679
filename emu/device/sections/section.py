"""What all sections of a profile have in common, and how one variant of a section is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from emu.device.fields import Choice, Number

# The settings that choose a variant, in the order in which they are asked for.
CHOICES = ("model", "encoding", "storage", "weight_noise_model", "wires", "range", "bound_management")


class Section(BaseModel):
    """One section of a profile: frozen, without unknown settings, numbers as written (no booleans)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def acting(self, setting: str) -> Any:
        """The value of a setting as a device has it, None where it is left out or not of this variant."""
        return getattr(self, setting, None)


@dataclass(frozen=True)
class WrongChoice:
    """A choice that no variant has: the setting, the value given (None: missing) and the values that exist."""

    setting: str
    given: Any
    options: tuple[str, ...]


def choose_variant(variants: tuple[type[Section], ...], given: Mapping[str, Any]) -> type[Section] | WrongChoice:
    """Finds the variant that the choices in `given` name, or says which choice is missing or wrong."""
    left = list(variants)
    for setting in CHOICES:
        having = [variant for variant in left if setting in variant.model_fields]
        if not having:
            continue
        options = {variant: words(variant.model_fields[setting]) for variant in having}
        defaults = [field.default for v in having if not (field := v.model_fields[setting]).is_required()]
        value = given.get(setting, defaults[0] if defaults else None)
        left = [variant for variant in having if value in options[variant]]
        if not left:
            names = tuple(dict.fromkeys(name for variant in having for name in options[variant]))
            return WrongChoice(setting, given.get(setting), names)
    return left[0]


class ChosenVariant:
    """Marks a union of sections of which the choices made name one: `Annotated[A | B, ChosenVariant()]`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validates as the chosen variant alone, so that errors speak of that one."""
        variants = variants_of(source)

        def tag(value: Any) -> str | None:
            if isinstance(value, Section):
                return type(value).__name__
            if not isinstance(value, Mapping):
                return None
            variant = choose_variant(variants, value)
            return None if isinstance(variant, WrongChoice) else variant.__name__

        schemas = {variant.__name__: handler.generate_schema(variant) for variant in variants}
        return core_schema.tagged_union_schema(schemas, tag)


def variants_of(union: Any) -> tuple[type[Section], ...]:
    """The variants of a section, given their union or its only variant."""
    return get_args(union) or (union,)


def explain(variant: type[Section], field: str) -> Number | Choice:
    """The meaning, unit, range and source of one setting."""
    return next(about for about in variant.model_fields[field].metadata if isinstance(about, Number | Choice))


def words(field: FieldInfo) -> tuple[str, ...]:
    """The words that a choice may take; none for a number."""
    return _words(field.annotation)


def _words(annotation: Any) -> tuple[str, ...]:
    found: list[str] = []
    for argument in get_args(annotation):
        found += [argument] if isinstance(argument, str) else _words(argument)
    return tuple(dict.fromkeys(found))
