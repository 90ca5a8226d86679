"""What a setting of a device profile means: its unit, where it comes from, and which values it may take."""

import ctypes
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from emu.contract.schema import Range, range_of
from emu.contract.structure import wrong_numbers

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
DURATION = "seconds, or text such as '90s', '30min', '1h', '30d' or '1y'"


@dataclass(frozen=True)
class Choice:
    """A setting that names a model or a way of mapping: it shapes the rewritten graph.

    Args:
        meaning: what the choice decides, and what its values stand for.
        source: paper or program that it comes from.
        options: the values in words, where the type of the setting does not list them.
    """

    meaning: str
    source: str
    options: str = ""


@dataclass(frozen=True)
class Number:
    """A numeric setting and its range; used as `Annotated[float, Number(...)]`, where pydantic then enforces the range.

    On a setting that holds several numbers (a tuple, tuples of tuples, a dictionary) the range is that of each.

    Args:
        meaning: what the number does, in one sentence.
        unit: its unit, `1` for a ratio.
        source: paper or program that the meaning and the usual values come from.
        of: the entry or attribute of the contract whose range it has, or a range of its own.
    """

    meaning: str
    unit: str
    source: str
    of: str | Range

    @property
    def legal(self) -> Range:
        """The allowed values."""
        return self.of if isinstance(self.of, Range) else range_of(self.of)

    @property
    def range(self) -> str:
        """The allowed values in words, such as `0 to 10` or `0, or a whole number from 2 to 16`."""
        return self.legal.in_words

    def allows(self, value: float) -> bool:
        """Whether the value lies in the range, also after rounding to the float32 that a graph holds."""
        if isinstance(value, bool) or not math.isfinite(value):
            return False
        rounded = ctypes.c_float(value).value
        exact = not self.legal.whole or rounded == value
        return exact and self.legal.allows(value) and self.legal.allows(rounded)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Adds the range check behind pydantic's own check of the type."""
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def _validate(self, value: Any) -> Any:
        several = isinstance(value, tuple | Mapping)
        for number in _leaves(value):
            if number is not None and not self.allows(number):
                raise ValueError(f"must be {self.range}" + (f", and {number:.10g} is not" if several else ""))
        return value


def to_seconds(value: Any) -> Any:
    """Turns text such as `"1h"` or `"90s"` into seconds; leaves everything else for later checks.

    A year has 365 days.

    Raises:
        ValueError: text that is no duration.
    """
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*([a-z]*)\s*", value)
    if parts is None or parts[2] not in {"", *SECONDS}:
        raise ValueError(f"must be {DURATION}")
    return float(parts[1]) * SECONDS.get(parts[2], 1)


def as_tuples(value: Any) -> Any:
    """Turns lists, also within lists, into tuples: what TOML and JSON read becomes what a frozen profile holds."""
    return tuple(as_tuples(each) for each in value) if isinstance(value, list | tuple) else value


def _seconds_of_each(value: Any) -> Any:
    return tuple(to_seconds(each) for each in value) if isinstance(value, list | tuple) else value


Seconds: TypeAlias = Annotated[float, BeforeValidator(to_seconds)]
ManySeconds: TypeAlias = Annotated[tuple[float, ...], BeforeValidator(_seconds_of_each)]
Numbers: TypeAlias = Annotated[tuple[float, ...], BeforeValidator(as_tuples)]
# In one order, so that a profile read back from plain data is the same to the byte.
BY_NAME = AfterValidator(lambda named: dict(sorted(named.items())))
NumberOrNumbers: TypeAlias = Annotated[float | tuple[float, ...], BeforeValidator(as_tuples)]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, tuple) else [value]


def contradiction(values: Mapping[str, float]) -> str | None:
    """Says which numbers of the `device` tensor contradict each other, None if they do not.

    Args:
        values: entry name to value; entries may be missing.
    """
    for section in ("dac", "adc"):
        if values.get(f"{section}.bits", 0) and values.get(f"{section}.steps", 0):
            return f"{section}.bits has no effect beside {section}.steps: give one of them and 0 for the other"
    return next(said_of_settings(wrong_numbers({}, values), {}), None)


def said_of_settings(sentences: Iterable[str], settings: Mapping[str, str]) -> Iterator[str]:
    """The sentences of the contract as a profile says them, without the full stop.

    Args:
        sentences: of attributes of a node and entries of its device.
        settings: the setting that gives each attribute.
    """
    changes = (
        (r"attribute 'entries' lacks '(\S+)'", r"\1 is missing"),
        (r"attribute 'entries' names '(\S+)', expected not to", r"\1 is given, expected to be left out"),
        (r"entry '(\S+)' of input 'device'", r"\1"),
        (r"'(\w+\.[\w.]+)'", r"\1"),
    )
    for sentence in sentences:
        for pattern, text in changes:
            sentence = re.sub(pattern, text, sentence)
        named = re.sub(r"(attribute )?'(\w+)'", lambda found: settings.get(found[2], found[0]), sentence)
        yield named.removesuffix(".")
