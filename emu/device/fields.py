"""What a setting of a device profile means: its unit, where it comes from, and which values it may take."""

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Choice:
    """A setting that names a model or a way of mapping: it shapes the rewritten graph."""

    meaning: str
    source: str


@dataclass(frozen=True)
class Number:
    """A numeric setting and its range; used as `Annotated[float, Number(...)]`, where pydantic then enforces the range.

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
    low: float
    high: float = math.inf
    low_included: bool = True
    or_zero: bool = False
    whole: bool = False

    @property
    def range(self) -> str:
        """The allowed values in words, such as `0 to 10` or `0, or a whole number from 2 to 16`."""
        kind = "a whole number " if self.whole else ""
        if self.high < math.inf:
            span = f"{kind}from {self.low:g} to {self.high:.10g}" if self.whole else f"{self.low:g} to {self.high:.10g}"
        else:
            span = f"{kind}{'at least' if self.low_included else 'greater than'} {self.low:g}"
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

    def _validate(self, value: float | None) -> float | None:
        if value is not None and not self.allows(value):
            raise ValueError(f"must be {self.range}")
        return value


def resolution_problem(section: str, values: Mapping[str, float]) -> str | None:
    """Says what is wrong with the resolution of a converter, which `bits` or `steps` gives, not both."""
    if values.get(f"{section}.bits", 0) and values.get(f"{section}.steps", 0):
        return f"{section}.bits has no effect beside {section}.steps: give one of them and 0 for the other"
    return None


def conductance_problem(values: Mapping[str, float]) -> str | None:
    """Says what is wrong with the conductance range, which must not be empty in float32."""
    low, high = values.get("mapping.g_min_us"), values.get("mapping.g_max_us")
    if low is not None and high is not None and not ctypes.c_float(low).value < ctypes.c_float(high).value:
        return f"mapping.g_min_us is {low:g} and must be less than mapping.g_max_us, {high:g}"
    return None
