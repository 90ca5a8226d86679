"""What a setting of a device profile means: its unit, where it comes from, and which values it may take."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from emu.contract.schema import NUMBERS, Range, range_of

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
        of: the entry or attribute of the contract that it gives, whose range it has; or a range of its own.
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

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Adds the range check behind pydantic's own check of the type."""
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def _validate(self, value: Any) -> Any:
        is_stored = self.of in NUMBERS
        allows = self.legal.allows_stored if is_stored else self.legal.allows
        for place, number in _leaves(value):
            if number is not None and not allows(number):
                shown = f"{number:g}" if is_stored else number
                raise ValueError(f"{place} is {shown}, expected {self.range}")
        # In one order, however they were given: profiles are compared by their text.
        return dict(sorted(value.items())) if isinstance(value, Mapping) else value


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
        raise ValueError(f" is '{value}', expected {DURATION}")
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


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Each number of a setting, with its place in lists or dictionaries such as `.0.3`."""
    if isinstance(value, tuple | Mapping):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(each, f"{place}.{key}")
    else:
        yield place, value


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
