"""What a sweep varies: the values of each axis, from texts such as `0.05,0.1`, `0.1:0.5:0.1` and `1e-7:1e-3:5log`."""

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from emu.device.fields import to_seconds
from emu.device.loading import all_settings
from emu.device.overrides import toml_value
from emu.errors import InputError
from emu.evaluation import Bench, Trial
from emu.evaluation.controls import control_feeds
from emu.sweep.setup import STRUCTURE_AXES

ALL = "all"
CONTROL_AXES = ("layer", "component", "head", "seed", "read_seed", "strength", "only")

_MOST_VALUES = 100_000
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER}):({_NUMBER})(log)?")


def axis_name(bench: Bench, name: str, given: Any = "") -> str:
    """The name of an axis as results have it: of several devices the one with that number stands in front.

    Raises:
        InputError: there is no such axis, with the closest that there are.
    """
    known = list(bench.settings)
    having = [each for each in known if name in (each, each.rpartition(":")[2])]
    if name in CONTROL_AXES or len(having) == 1:
        return name if name in CONTROL_AXES else having[0]
    numbers_of_any = [each.rpartition(":")[2] for each in known]
    if bench.manifest is not None and name.rpartition(":")[2] in (*all_settings(), *numbers_of_any):
        control_feeds(bench.manifest, set={name: given})  # says what it is instead: of the graph, of several devices
    others = (*CONTROL_AXES, *STRUCTURE_AXES)
    numbers = f", among them its numbers {', '.join(known)}" if known else ""
    raise InputError(
        f"There is no axis '{name}'{close_match(name, [*others, *known, *all_settings()])}: axes are "
        f"{', '.join(others)}, and the settings of the device{numbers}."
    )


def axis_values(bench: Bench, name: str, given: Any) -> list[Any]:
    """The values of one axis, each once, in order; see `values_in_order`."""
    return list(dict.fromkeys(values_in_order(bench, name, given)))


def values_in_order(bench: Bench, name: str, given: Any) -> list[Any]:
    """The values of one axis as they are given, for axes that go together.

    Args:
        bench: the bench whose device, layers and heads are meant.
        name: as `axis_name` gives it.
        given: text, a value, or a list of these; `all` for every layer, component or head.

    Raises:
        InputError: a text that cannot be read, no value, or one that the model or device refuses.
    """
    texts = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not texts:
        raise InputError(f"The axis '{name}' has no values.")
    values: list[Any]
    if name == "layer":
        values = _numbered(name, texts, sorted({site.layer for site in bench.sites if site.layer is not None}))
    elif name == "head":
        values = _numbered(name, texts, _heads(bench))
    elif name == "component":
        values = _components(bench, texts)
    elif name == "only":
        values = [" ".join(part.split()) for text in texts for part in str(text).split(";")]
        for value in values:
            bench.strengths(Trial(only=value))
    elif name in ("seed", "read_seed"):
        values = [value for text in texts for value in _whole(name, text)]
        for value in (min(values), max(values)):
            bench.controls(Trial(seed=value) if name == "seed" else Trial(read_seed=value))
    else:
        values = [value for text in texts for value in numbers(name, text)]
        if name == "strength" and min(values) < 0:
            raise InputError(f"strength is {min(values):g} and must be at least 0.")
        for value in values if name != "strength" else ():
            bench.controls(Trial(set={name: value}))
    return values


def structure_values(name: str, given: Any) -> list[Any]:
    """The values of an axis that chooses what is rewritten: files and names, or a setting's numbers and words.

    Raises:
        InputError: no value, or a range that cannot be read.
    """
    values: list[Any] = []
    for text in list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]:
        if not isinstance(text, str):
            values.append(text)
            continue
        for part in _parts(name, text):
            if name not in STRUCTURE_AXES and _RANGE.fullmatch(part):
                values += [int(value) if value == int(value) else value for value in numbers(name, part)]
            else:
                values.append(part if name in STRUCTURE_AXES else toml_value(part))
    if not values:
        raise InputError(f"The axis '{name}' has no values.")
    return values


def close_match(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for a word that is close to a known one, or that is its last part; else nothing."""
    names = list(known)
    close = [name for name in names if re.split(r"[.:]", name)[-1] == word] or difflib.get_close_matches(word, names, 3)
    return f" (did you mean {' or '.join(repr(name) for name in close)}?)" if close else ""


def _numbered(name: str, texts: Sequence[Any], existing: Sequence[int]) -> list[int]:
    """Layers or heads: `all`, or numbers that the model has."""
    if not existing:
        raise InputError(f"The axis '{name}' has no values: the model has no {name}s among its sites.")
    values = [value for text in texts for value in (existing if text == ALL else _whole(name, text))]
    for value in values:
        if value not in existing and not (name == "head" and value == -1):
            raise InputError(f"There is no {name} {value}: the model has the {name}s {_span(existing)}.")
    return values


def _heads(bench: Bench) -> list[int]:
    """The heads that every site with heads has: the operators refuse a head that one of them lacks."""
    counts = [site.query_heads for site in bench.sites if site.heads]
    return list(range(min(counts))) if counts else []


def _components(bench: Bench, texts: Sequence[Any]) -> list[str]:
    """The components of the sites that match; each pattern must match one."""
    existing = list(dict.fromkeys(site.component for site in bench.sites))
    values = []
    for pattern in [part.strip() for text in texts for part in str(text).split(",")]:
        found = [each for each in existing if pattern in (ALL, each) or fnmatchcase(each, pattern)]
        if not found:
            raise InputError(
                f"There is no component '{pattern}'{close_match(pattern, existing)}: the model has "
                f"{', '.join(existing)}."
            )
        values += found
    return values


def _whole(name: str, text: Any) -> list[int]:
    """Whole numbers from `3`, `0,2`, `0-9` or `0:100:10`."""
    values: list[int] = []
    for part in _parts(name, text):
        if span := re.fullmatch(r"(\d+)-(\d+)", part):
            first, last = int(span[1]), int(span[2])
            if last < first:
                raise InputError(f"The range {name}={part} is empty: write {last}-{first}.")
            _check_count(name, part, last - first + 1)
            values += range(first, last + 1)
            continue
        for value in numbers(name, part):
            if value != int(value):
                raise InputError(f"{name}={part} cannot be read: {name} takes whole numbers, such as 0-9 or 0,2.")
            values.append(int(value))
    return values


def numbers_of_axis(text: str) -> tuple[str, list[float]]:
    """A number of the device and its values, from `program.sigma=0.05,0.1` or a range as in `axis_values`.

    Raises:
        InputError: it is not of that form.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not name or not values:
        raise InputError(f"--vary '{text}' cannot be read: write a setting and its values, as in write.gamma=3,4,5.")
    return name, numbers(name, values)


def numbers(name: str, text: Any) -> list[float]:
    """Numbers from `0.1`, `1h`, `0.05,0.1`, `0.1:0.5:0.1` (last value included) or `1e-7:1e-3:5log`.

    Raises:
        InputError: it is none of these.
    """
    values: list[float] = []
    for part in _parts(name, text):
        span = _RANGE.fullmatch(part)
        if span:
            start, stop, step = (float(number) for number in span.groups()[:3])
            values += _spaced(name, part, start, stop, step, logarithmic=span[4] is not None)
            continue
        try:
            value = to_seconds(part) if name.endswith("_s") else float(part)
        except ValueError:
            raise InputError(
                f"{name}={part} cannot be read: write values as 0.05,0.1, as start:stop:step (0.1:0.5:0.1) or as "
                "start:stop:countlog (1e-7:1e-3:5log)."
            ) from None
        values.append(float(value))
    return values


def _spaced(name: str, text: str, start: float, stop: float, step: float, logarithmic: bool) -> list[float]:
    """Values from `start` to `stop`: `step` apart, or `step` many at equal ratios."""
    if logarithmic:
        if start <= 0 or stop <= 0 or step != int(step) or step < 2:
            raise InputError(
                f"The range {name}={text} cannot be read: start and stop must be greater than 0, and at least 2 values."
            )
        _check_count(name, text, step)
        count = int(step)
        return [float(f"{start * (stop / start) ** (i / (count - 1)):.12g}") for i in range(count)]
    if step == 0 or (stop - start) / step < 0:
        raise InputError(
            f"The range {name}={text} is empty: step by step of {step:g}, {start:g} never reaches {stop:g}."
        )
    count = int((stop - start) / step + 1e-9) + 1
    _check_count(name, text, count)
    return [float(f"{start + i * step:.12g}") for i in range(count)]  # 0.3, not 0.30000000000000004


def _parts(name: str, text: Any) -> list[str]:
    parts = [part.strip() for part in str(text).split(",")]
    if not all(parts):
        raise InputError(f"The axis '{name}' has an empty value: write for example {name}=1,2.")
    return parts


def _check_count(name: str, text: str, count: float) -> None:
    if count > _MOST_VALUES:
        raise InputError(f"The range {name}={text} has {count:.0f} values: at most {_MOST_VALUES} are possible.")


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
