"""What a setting of a device profile means: its unit, where it comes from, and which values it may take."""

import ctypes
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

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
        low: smallest value.
        high: largest value.
        low_included: False when the value must be greater than `low`.
        or_zero: True when 0 is allowed too, as "off".
        whole: True for whole numbers.
    """

    meaning: str
    unit: str
    source: str
    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    or_zero: bool = False
    whole: bool = False

    @property
    def range(self) -> str:
        """The allowed values in words, such as `0 to 10` or `0, or a whole number from 2 to 16`."""
        kind = "a whole number " if self.whole else ""
        if self.low == -math.inf:
            return "any finite number"
        if self.high == math.inf:
            span = f"{kind}{'at least' if self.low_included else 'greater than'} {self.low:g}"
        elif self.whole:
            span = f"{kind}from {self.low:g} to {self.high:.10g}"
        elif self.low_included:
            span = f"{self.low:g} to {self.high:.10g}"
        else:
            span = f"greater than {self.low:g} and at most {self.high:.10g}"
        return f"0, or {span}" if self.or_zero else span

    def allows(self, value: float) -> bool:
        """Whether the value lies in the range, also after rounding to the float32 that a graph holds."""
        if isinstance(value, bool) or not math.isfinite(value):
            return False
        rounded = ctypes.c_float(value).value
        if not math.isfinite(rounded) or (self.whole and (value != int(value) or rounded != value)):
            return False
        if self.or_zero and value == 0:
            return True
        return all((self.low <= v if self.low_included else self.low < v) and v <= self.high for v in (value, rounded))

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
    low, high = values.get("mapping.g_min_us"), values.get("mapping.g_max_us")
    if low is not None and high is not None and not _float32(low) < _float32(high):
        return f"mapping.g_min_us is {low:g} and must be less than mapping.g_max_us, {high:g}"
    stuck = _float32(values.get("faults.stuck_low", 0)) + _float32(values.get("faults.stuck_high", 0))
    if stuck > 1:
        return f"faults.stuck_low and faults.stuck_high add up to {stuck:g} and must not exceed 1"
    for prefix in ("program.target_us", "program.table_time_s"):
        if not rises([value for name, value in values.items() if name.startswith(f"{prefix}.")]):
            return f"the numbers {prefix} must rise"
    return None


def rises(values: Sequence[float]) -> bool:
    """Whether each number is greater than the one before, also in float32."""
    rounded = [_float32(value) for value in values]
    return all(one < other for one, other in itertools.pairwise(rounded))


def _float32(value: float) -> float:
    return ctypes.c_float(value).value
