"""What a node says about itself (attributes) and what a run says to it (control inputs), parsed and checked.

Walks the rows of `schema.py`: each mistake has the sentence that stands there, or that of its kind of row here.
"""

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.contract.language import compiled, entries_in
from emu.contract.schema import (
    ATTRIBUTE_RULES,
    ATTRIBUTES,
    DEFAULTS,
    DYNAMIC,
    FLOATS,
    INDICES,
    LARGEST_COUNT,
    LARGEST_WORD,
    MOST_ROW_TILES,
    NUMBER_RULES,
    NUMBERS,
    NUMBERS_OF_RANGE,
    QUANTIZED,
    Number,
    Range,
    Rule,
    attribute_types,
    in_float32,
)
from emu.errors import InputError


@dataclass(frozen=True)
class WindowAxis:
    """How a window moves along one axis of an image."""

    size: int
    stride: int
    dilation: int
    before: int
    """Zeros before the image."""
    after: int

    def positions(self, size: int) -> int:
        """Return at how many places the window fits into an axis of that size, 0 or less where it does not."""
        return (size + self.before + self.after - self.dilation * (self.size - 1) - 1) // self.stride + 1


@dataclass(frozen=True)
class Structure:
    """The attributes of one node, checked, named as in `docs/operators.md`.

    Those that the operator lacks have the value that switches their effect off, as the schema says.
    """

    op: str
    site: int
    sites: int
    array: int
    entries: tuple[str, ...]
    sample_axis: int
    heads: int
    head_axis: str
    head_groups: int
    head_share: int
    tile_rows: int
    tile_columns: int
    tile_split: str
    scaling: str
    dac: str
    dac_code: str
    dac_slice_bits: int
    adc: str
    adc_code: str
    range_tiles: int
    range_slices: int
    range_polarities: int
    adc_columns: int
    bound_management: str
    read_noise: str
    ir_drop: str
    fault_source: str
    fault_storage: str
    fault_bits: int
    fault_range: str
    fault_scale: str
    fault_mask: int
    fault_protection: str
    encoding: str
    offset_correction: str
    weight_bits: int
    slice_bits: int
    program: str
    program_function: str
    table_times: int
    table_points: int
    program_clip: str
    drift: str
    drift_points: int
    drift_pairs: str
    compensation: str
    write: str
    write_cells: str
    write_scaling: str
    key_axis: str
    code_bits: int
    block_rows: int
    window: tuple[WindowAxis, ...]
    adc_pairs: str
    dac_rounding: str
    adc_rounding: str
    dac_slice_sum: str
    first_key: int = 0
    """No attribute: the position of the first key in hand, along `key_axis`."""

    def error(self, sentence: str) -> InputError:
        """Return the exception that says `sentence` about this node."""
        return InputError(f"emu: {self.op} at site {self.site}: {sentence}")

    @property
    def has_periphery(self) -> bool:
        """Whether a product is more than a plain product with the stored values."""
        return (
            not self.dac == self.adc == self.read_noise == "none"
            or self.ir_drop == "formula"
            or "read.output_noise" in self.entries
            or "read.input_noise" in self.entries
        )

    @property
    def has_pairs(self) -> bool:
        """Whether a stored weight is the difference of two conductances."""
        return self.encoding in ("differential", "two_sided")

    @property
    def devices(self) -> int:
        """Conductances behind one reading of a value (of one slice): 2 for a pair, 0 where arrays hold numbers."""
        if self.op == DYNAMIC:
            return 2 if self.write in ("lognormal_g", "clipformer") else 0
        return 0 if self.encoding == "weight" else 2 if self.has_pairs and not self.converts_apart else 1

    @property
    def converts_apart(self) -> bool:
        """Whether the devices of a pair are read and converted each by itself."""
        return self.adc_pairs == "separate"

    @property
    def arrays(self) -> int:
        """Arrays that are read one after another: those of slices, of pairs converted apart the positive one first."""
        return self.weight_slices * (2 if self.converts_apart else 1)

    @property
    def weight_slices(self) -> int:
        """Number of arrays that hold a stored weight together."""
        return weight_slices(self.encoding, self.weight_bits, self.slice_bits)

    @property
    def ranges(self) -> tuple[int, int, int, int]:
        """How many calibrated ranges it has, by row tile, weight slice and device of a pair, and numbers of each."""
        return self.range_tiles, self.range_slices, self.range_polarities, NUMBERS_OF_RANGE

    def check_range_tiles(self, tiles: int, name: str) -> None:
        """Refuse another number of calibrated ranges than 1 or that of the row tiles of an operand."""
        if self.range_tiles not in (1, tiles):
            raise self.error(
                f"attribute 'range_tiles' is {self.range_tiles}, expected 1 or {tiles}, the row tiles of '{name}'."
            )

    @property
    def has_stuck_cells(self) -> bool:
        """Whether cells are stuck at random."""
        return self.fault_source == "random" and "faults.stuck_low" in self.entries

    @property
    def fault_word_bits(self) -> int:
        """Bits of one stored element that bit flips hit."""
        if self.fault_storage in FLOATS:
            return FLOATS[self.fault_storage].bits
        return self.code_bits if self.op == QUANTIZED else self.fault_bits

    @property
    def usable_fault_mask(self) -> int:
        """The bits of an element that may flip; a quantized model's codes may have fewer than the device says."""
        return self.fault_mask & (2**self.code_bits - 1) if self.op == QUANTIZED else self.fault_mask

    @cached_property
    def names(self) -> dict[str, Any]:
        """What the conditions of the schema know of this node."""
        return {**vars(self), **_of_operator(self.op), "entries": frozenset(self.entries)}

    @property
    def first_row(self) -> int:
        """Where the rows in hand begin in the array."""
        return self.first_key if self.key_axis == "rows" else 0

    @property
    def first_column(self) -> int:
        """Where the columns in hand begin in the array."""
        return self.first_key if self.key_axis == "columns" else 0

    @property
    def first_tile(self) -> int:
        """The number of the first row tile in hand."""
        return self.first_row // self.tile_rows if self.tile_rows else 0

    def tile_depth(self, rows: int) -> int:
        """Return how many rows a row tile has of which so many are in hand: all, where more keys may follow."""
        return self.tile_rows if self.key_axis == "rows" and self.tile_rows else rows

    def row_tiles(self, rows: int) -> list[slice]:
        """Return the row tiles of a matrix with that many rows."""
        last = self.first_row + rows
        count = -(-last // self.tile_rows) if self.tile_rows else 1
        if count > MOST_ROW_TILES:
            raise self.error(
                f"attribute 'tile_rows' is {self.tile_rows}, which cuts {last} rows into {count} tiles, "
                f"expected at most {MOST_ROW_TILES}; use taller tiles."
            )
        if self.key_axis == "rows":
            return _key_tiles(rows, self.tile_rows, self.first_key)
        return _tiles(rows, self.tile_rows, self.tile_split)

    def column_tiles(self, columns: int) -> list[slice]:
        """Return the column tiles of a matrix with that many columns."""
        if self.key_axis == "columns":
            return _key_tiles(columns, self.tile_columns, self.first_key)
        return _tiles(columns, self.tile_columns, self.tile_split)


@dataclass(frozen=True)
class Controls:
    """The control inputs of one run as one node reads them."""

    numbers: Mapping[str, float]
    """The entries of `device` by name."""
    strength: float
    """This site's entry of `strength`."""
    ranges: NDArray[np.float32]
    """The calibrated ranges of the node, float32 `Structure.ranges`; numbers that it does not read have no meaning."""
    faults: NDArray[np.int64]
    """The list of faults of its array, int64 [F]."""
    seed: int
    read_seed: int
    first_sample: int
    samples: int | None
    """Samples in the batch; None when the size of the sample axis says it."""
    positions: NDArray[np.int64]
    """Position of the first row: int64 [samples], one for all, or none: 0."""
    keys: NDArray[np.int64]
    """Positions after the last key and after the last that counts: int64 [samples, 2], one row for all, or none."""
    head: int | None
    """Index among the site's own heads (already divided by `head_share`), None for all."""

    def input_range(self, tile: int) -> float:
        """Return the calibrated activation that maps to 1 in a row tile, counted over all matrices of a stack."""
        return float(self.ranges[tile if len(self.ranges) > 1 else 0, 0, 0, 0])

    def output_range(self, tile: int, weight_slice: int, polarity: int) -> tuple[float, float]:
        """Return the calibrated lowest and highest output of a row tile, a slice and a device of a pair."""
        place = (tile, weight_slice, polarity)
        own = (each if size > 1 else 0 for each, size in zip(place, self.ranges.shape[:3], strict=True))
        low, high = self.ranges[tuple(own)][1:3].tolist()
        return low, high

    @property
    def operand_range(self) -> float:
        """The calibrated magnitude of a written operand that maps to 1."""
        return float(self.ranges[0, 0, 0, 3])

    def dac_steps(self, structure: Structure) -> int:
        """Return the number of steps of the DAC, 0 when it does not quantize."""
        if structure.dac == "none":
            return 0
        bits = int(self.numbers["dac.bits"])
        least = 1 if structure.dac_code == "offset_binary" else 2
        return int(self.numbers["dac.steps"]) or (2**bits - least if bits else 0)

    def adc_steps(self, structure: Structure) -> int:
        """Return the number of steps of the ADC, 0 when it does not quantize."""
        if structure.adc == "none":
            return 0
        bits = int(self.numbers["adc.bits"])
        less = {"sign_magnitude": 2, "offset_binary": 1, "twos_complement": 0}[structure.adc_code]
        return int(self.numbers["adc.steps"]) or (2**bits - less if bits else 0)

    def input_slices(self, structure: Structure) -> int:
        """Return in how many slices an input is fed, one after another."""
        if structure.dac_slice_bits == 0:
            return 1
        return -(-(int(self.numbers["dac.bits"]) - 1) // structure.dac_slice_bits)

    def input_readings(self, structure: Structure) -> int:
        """Return how many conversions an input takes: one for each slice, or one for what they sum up to."""
        return 1 if structure.dac_slice_sum == "analog" else self.input_slices(structure)

    def probability(self, entry: str) -> np.float32:
        """Return a fault probability with the strength in it, at most 1."""
        return min(np.float32(self.strength) * np.float32(self.numbers[entry]), np.float32(1))


def weight_slices(encoding: str, weight_bits: int, slice_bits: int) -> int:
    """Return in how many slices a weight is stored: 1 if it is not cut."""
    # A pair has the sign in its two devices, so only the magnitude is cut.
    bits = weight_bits - 1 if encoding == "differential" else weight_bits
    return -(-bits // slice_bits) if slice_bits else 1


def parse_structure(op: str, attributes: Mapping[str, int | str]) -> Structure:
    """Return the checked attributes of a node of type `op`, such as `CrossbarMatMul`.

    Raises InputError for a missing or unknown attribute, a wrong type or value, attributes that exclude each other, or
    entries that the structure lacks.
    """
    site = attributes.get("site")

    def error(sentence: str) -> InputError:
        return InputError(f"emu: {op} at site {site}: {sentence}")

    values = {**_absent(), **_legal_values(op, attributes, error)}
    entries = tuple(values["entries"].split(",")) if values["entries"] else ()
    window = _window(values["window"], error)
    names = {**values, **_of_operator(op), "entries": frozenset(entries)}
    for sentence in (*broken(ATTRIBUTE_RULES, names), *_wrong_entries(entries, names)):
        raise error(sentence)
    values |= {"entries": entries, "window": window}
    del values["format"]
    return Structure(op=op, **values)


def broken(rules: Iterable[Rule], names: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sentence of each rule that does not hold of `names`: attributes, entries, the device's numbers."""
    for rule in rules:
        if compiled(rule.wrong)(names):
            yield _said(rule.sentence, names)


def needed_entries(op: str, attributes: Mapping[str, int | str]) -> dict[str, None]:
    """Return the entries that attributes ask for, each once, in the order of the schema."""
    names: dict[str, Any] = {**_absent(), **attributes, **_of_operator(op), "entries": frozenset()}
    return dict.fromkeys(name for row in NUMBERS.values() for _, name in _needed(row, names))


def number_of(name: str) -> Number | None:
    """Return the row of an entry of `device`, None for an unknown name."""
    found = _placed(name)
    return None if found is None else NUMBERS[found[0]]


def check_controls(
    structure: Structure,
    device: ArrayLike,
    strength: ArrayLike,
    ranges: ArrayLike | None,
    faults: ArrayLike | None,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike = 0,
    position: ArrayLike | None = None,
    keys: ArrayLike | None = None,
    head: ArrayLike = -1,
) -> Controls:
    """Return the control inputs as this node reads them.

    device: float32 [P]; strength: float32 [sites]; ranges: float32 [sites, 4 R], None where the operator has none;
    faults: int64 [F, 2], None where the operator has none; seed, read_seed, head: int64 []; sample: int64 [] or [2];
    position: int64 [b] and keys: int64 [b, 2], None where the operator has none.
    Raises InputError for a wrong type, shape or range.
    """
    device_values = _float32(structure, "device", device)
    if device_values.shape != (len(structure.entries),):
        raise structure.error(
            f"input 'device' has shape {list(device_values.shape)}, "
            f"expected [{len(structure.entries)}], one number for each name in 'entries'."
        )
    numbers = {name: float(value) for name, value in zip(structure.entries, device_values, strict=True)}
    for sentence in wrong_numbers(structure.names, numbers):
        raise structure.error(sentence)

    strengths = _float32(structure, "strength", strength)
    if strengths.shape != (structure.sites,):
        raise structure.error(
            f"input 'strength' has shape {list(strengths.shape)}, "
            f"expected [{structure.sites}], one number for each site."
        )
    own_strength = float(strengths[structure.site])
    if not math.isfinite(own_strength) or own_strength < 0:
        raise structure.error(f"input 'strength' is {own_strength:g} for this site, expected finite and 0 or greater.")

    first, samples = _samples(structure, sample)
    return Controls(
        numbers=numbers,
        strength=own_strength,
        ranges=_calibrated(structure, ranges),
        faults=_listed(structure, faults),
        seed=_seed(structure, "seed", seed),
        read_seed=_seed(structure, "read_seed", read_seed),
        first_sample=first,
        samples=samples,
        positions=_positions(structure, position),
        keys=_keys(structure, keys),
        head=_own_head(structure, head),
    )


@cache
def _absent() -> dict[str, int | str]:
    return {name: row.absent for name, row in ATTRIBUTES.items()}


def _of_operator(op: str) -> dict[str, bool]:
    return {"dynamic": op == DYNAMIC, "quantized": op == QUANTIZED}


def _legal_values(op: str, attributes: Mapping[str, int | str], error: Callable[[str], InputError]) -> dict[str, Any]:
    """Check each attribute by itself; return them in the order of the schema, with those that may be absent."""
    known = attribute_types(op)
    attributes = {**{name: value for name, value in DEFAULTS.items() if name in known}, **attributes}
    for name in known:
        if name not in attributes:
            raise error(f"attribute '{name}' is missing; every attribute must be present.")
    for name in attributes:
        if name not in known:
            raise error(f"attribute '{name}' is unknown, expected one of {', '.join(known)}.")
    for name in known:
        value, legal = attributes[name], ATTRIBUTES[name].legal
        if isinstance(legal, Range):
            if not isinstance(value, int) or isinstance(value, bool):
                raise error(f"attribute '{name}' is {value!r}, expected an integer.")
            if not legal.allows(value):
                raise error(f"attribute '{name}' is {value}, expected {legal.in_words}.")
        elif not isinstance(value, str):
            raise error(f"attribute '{name}' is {value!r}, expected a string.")
        elif legal and value not in legal:
            raise error(f"attribute '{name}' is '{value}', expected one of {', '.join(legal)}.")
    return {name: attributes[name] for name in known}


def _said(sentence: str, names: Mapping[str, Any]) -> str:
    """Put values in the place of the names in a sentence."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        return f"{names['device'][name]:g}" if "." in name else str(compiled(name)(names))

    return re.sub(r"\{([\w.]+)\}", value, sentence)


def _wrong_entries(entries: tuple[str, ...], names: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each entry that is unknown, twice there, missing, or that may not be there."""
    counts = {} if names["dynamic"] else names  # a written operand has no table, but reads a device that may have one
    seen: set[str] = set()
    for name in entries:
        if not _is_known(name, counts):
            yield f"attribute 'entries' names '{name}', expected names among {', '.join(NUMBERS)}."
        if name in seen:
            yield f"attribute 'entries' names '{name}' twice, expected every name once."
        seen.add(name)
    for row in NUMBERS.values():
        for attribute, name in _needed(row, names):
            if name not in seen:
                yield _lacks(name, f"'{attribute}' is '{names[attribute]}'")
        if row.beside and row.name in seen and row.beside not in seen:
            yield _lacks(row.beside, f"'{row.name}' is there")
        if row.without and row.name in seen and not names["dynamic"] and compiled(row.without)(names):
            yield _said(
                f"attribute 'entries' names '{row.name}', expected not to because 'encoding' is '{{encoding}}' and "
                "'slice_bits' is {slice_bits}.",
                names,
            )


def _needed(row: Number, names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (attribute that asks for it, entry) for the entries of a row that must be there."""
    for attribute, condition in row.needed:
        if compiled(condition)(names):
            yield from ((attribute, name) for name in _members(row, names))


def _lacks(name: str, reason: str) -> str:
    return f"attribute 'entries' lacks '{name}', expected it because {reason}."


def _members(row: Number, names: Mapping[str, Any]) -> Iterator[str]:
    """Yield the entries that a row stands for: itself, or all that a table has."""
    members = [row.name]
    for letter in re.findall("<([ijk])>", row.name):
        members = [each.replace(f"<{letter}>", str(k)) for each in members for k in range(names[INDICES[letter]])]
    yield from members


@cache
def _families() -> list[tuple[re.Pattern[str], str]]:
    index = "(0|[1-9][0-9]{0,5})"
    return [
        (re.compile(re.sub("<[ijk]>", index, re.escape(row.name)).replace("<name>", ".+")), row.name)
        for row in NUMBERS.values()
        if row.is_family
    ]


@lru_cache(maxsize=1 << 18)  # a table has thousands
def _placed(name: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the name of an entry's row and the indices in its own, None for an unknown name."""
    if name in NUMBERS and not NUMBERS[name].is_family:
        return name, ()
    for pattern, family in _families():
        if found := pattern.fullmatch(name):
            return family, tuple(map(int, found.groups()))
    return None


def _is_known(name: str, counts: Mapping[str, Any]) -> bool:
    """Whether an entry exists, and lies within the table where `counts` says how large it is."""
    found = _placed(name)
    if found is None:
        return False
    row, indices = found
    sizes = [counts.get(INDICES[letter], math.inf) for letter in re.findall("<([ijk])>", row)]
    return all(index < size for index, size in zip(indices, sizes, strict=True))


class _Numbers(Mapping[str, float]):
    """The numbers of a device as a graph holds them, in float32; one that it lacks has its effect switched off."""

    def __init__(self, given: Mapping[str, float]) -> None:
        self._given = given

    def __getitem__(self, name: str) -> float:
        given = self._given.get(name)
        return NUMBERS[name].absent if given is None else in_float32(given)

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def wrong_numbers(
    names: Mapping[str, Any], numbers: Mapping[str, float], changed: Collection[str] | None = None
) -> Iterator[str]:
    """Yield a sentence for each number of a device that is out of its range, or contradicts another or an attribute.

    names: what the conditions know of the node (`Structure.names`), what is missing there is off; numbers: by entry;
    changed: the entries that may be wrong, since all was right before they changed; None: any may be.
    """
    device = _Numbers(numbers)
    for name in numbers if changed is None else changed:
        row = number_of(name)
        if row and not row.legal.allows(device[name]):
            yield f"entry '{name}' of input 'device' is {device[name]:g}, expected {row.legal.in_words}."
    known = {**_absent(), **_of_operator(""), "entries": numbers.keys(), **names, "device": device}
    yield from broken(
        [each for each in NUMBER_RULES if changed is None or not entries_in(each.wrong).isdisjoint(changed)], known
    )
    for row in (each for each in NUMBERS.values() if each.rises):
        start = row.name.partition("<")[0]
        asked = changed is None or any(each.startswith(start) for each in changed)
        if asked and (not names or any(compiled(condition)(known) for _, condition in row.needed)):
            yield from _falling(start, numbers, device)


def _falling(start: str, numbers: Mapping[str, float], device: Mapping[str, float]) -> Iterator[str]:
    """Yield a sentence for each number of a rising family that is not greater than the one before it."""
    for index in itertools.count(1):
        before, name = f"{start}{index - 1}", f"{start}{index}"
        if before not in numbers or name not in numbers:
            return
        if device[name] <= device[before]:
            yield (
                f"entry '{name}' of input 'device' is {device[name]:g}, expected greater than the one before it, "
                f"which is {device[before]:g}."
            )


def wrong_settings(attributes: Mapping[str, int | str], numbers: Mapping[str, float]) -> Iterator[str]:
    """Yield a sentence for each contradiction among the attributes that a device gives and its numbers."""
    names = {**_absent(), **attributes, **_of_operator(""), "entries": frozenset(numbers)}
    yield from broken(ATTRIBUTE_RULES, names)
    yield from _wrong_entries(tuple(numbers), names)
    yield from wrong_numbers(names, numbers)


def _window(text: str, error: Callable[[str], InputError]) -> tuple[WindowAxis, ...]:
    axes = []
    for axis in text.split(";") if text else ():
        numbers = [int(each) if re.fullmatch("[0-9]{1,10}", each) else -1 for each in axis.split(",")]
        fits = len(numbers) == 5 and all(
            low <= number <= LARGEST_COUNT for low, number in zip((1, 1, 1, 0, 0), numbers, strict=True)
        )
        if fits:
            axes.append(WindowAxis(*numbers))
        if not fits or len(axes) > 3 or math.prod(each.size for each in axes) > LARGEST_COUNT:
            raise error(
                f"attribute 'window' is '{text}', expected size,stride,dilation,padding before,padding after for each "
                f"of 1 to 3 axes, separated by ';', the first three from 1, none above {LARGEST_COUNT}."
            )
    return tuple(axes)


def _samples(structure: Structure, sample: ArrayLike) -> tuple[int, int | None]:
    """Return the first sample and the number of samples, None where the sample axis says it."""
    sample_values = _int64(structure, "sample", sample)
    if sample_values.shape not in ((), (2,)):
        raise structure.error(f"input 'sample' has shape {list(sample_values.shape)}, expected [] or [2].")
    for number in sample_values.flat:
        if not 0 <= number <= LARGEST_WORD:
            raise structure.error(f"input 'sample' is {sample_values.tolist()}, expected 0 to 2^32 - 1.")
    first = int(sample_values.flat[0])
    samples = int(sample_values[1]) if sample_values.ndim == 1 else None
    if first + (samples or 1) - 1 > LARGEST_WORD:
        raise structure.error(
            f"input 'sample' is {sample_values.tolist()}, expected 0 to 2^32 - 1 for every sample of the batch."
        )
    return first, samples


def _positions(structure: Structure, position: ArrayLike | None) -> NDArray[np.int64]:
    values = _int64(structure, "position", np.zeros(0, np.int64) if position is None else position)
    if values.ndim != 1:
        raise structure.error(f"input 'position' has shape {list(values.shape)}, expected [b], one for each sample.")
    return values


def _keys(structure: Structure, keys: ArrayLike | None) -> NDArray[np.int64]:
    values = _int64(structure, "keys", np.zeros((0, 2), np.int64) if keys is None else keys)
    if values.ndim != 2 or values.shape[1] != 2:
        raise structure.error(f"input 'keys' has shape {list(values.shape)}, expected [b, 2], two for each sample.")
    if values.size and structure.key_axis == "none":
        raise structure.error("input 'keys' is given, expected none because 'key_axis' is 'none'.")
    for row in values.tolist():
        if not all(0 <= each <= LARGEST_WORD for each in row):
            raise structure.error(f"input 'keys' is {row} for a sample, expected 0 to 2^32 - 1.")
    return values


def _own_head(structure: Structure, head: ArrayLike) -> int | None:
    """Return the head among those of the site, None for all."""
    any_head = int(_scalar(structure, "head", head))
    if any_head < -1:
        raise structure.error(f"input 'head' is {any_head}, expected -1 (all heads) or greater.")
    own_head = None if any_head < 0 else any_head // structure.head_share
    if own_head is not None and structure.head_axis != "none" and own_head >= structure.heads:
        raise structure.error(
            f"input 'head' is {any_head}, expected below {structure.heads * structure.head_share} "
            f"({structure.heads} heads, each shared by {structure.head_share})."
        )
    return own_head


def _calibrated(structure: Structure, ranges: ArrayLike | None) -> NDArray[np.float32]:
    """Return the calibrated ranges of the node, [tiles, slices, polarities, 4]; 1, -1, 1, 1 where none are given."""
    shape, count = structure.ranges, math.prod(structure.ranges[:3])
    if ranges is None:
        return np.broadcast_to(np.array([1, -1, 1, 1], np.float32), shape)
    values = _float32(structure, "ranges", ranges)
    width = values.shape[1] if values.ndim == 2 else 0
    if values.shape[:1] != (structure.sites,) or width % NUMBERS_OF_RANGE or width < count * NUMBERS_OF_RANGE:
        raise structure.error(
            f"input 'ranges' has shape {list(values.shape)}, expected [{structure.sites}, {NUMBERS_OF_RANGE} R], one "
            f"row for each site and R at least {count}."
        )
    own = values[structure.site, : count * NUMBERS_OF_RANGE].reshape(shape)
    finds = "for this site, expected finite and {}: 'emu calibrate' finds {}."
    if structure.dac == "calibrated":
        for largest in own[:, 0, 0, 0].tolist():
            if not (math.isfinite(largest) and largest > 0):
                raise structure.error(f"input 'ranges' has the activation {largest:g} {finds.format('> 0', 'it')}")
    if structure.adc == "calibrated":
        for low, high in own[..., 1:3].reshape(-1, 2).tolist():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise structure.error(
                    f"input 'ranges' has the outputs {low:g} to {high:g} {finds.format('rising', 'them')}"
                )
    if structure.write_scaling == "calibrated":
        operand = float(own[0, 0, 0, 3])
        if not (math.isfinite(operand) and operand > 0):
            raise structure.error(f"input 'ranges' has the operand {operand:g} {finds.format('> 0', 'it')}")
    return own


def _listed(structure: Structure, faults: ArrayLike | None) -> NDArray[np.int64]:
    """Return the faults of the node's array, int64 [F]; whether they fit it is checked where they strike."""
    if faults is None:
        return np.zeros(0, dtype=np.int64)
    values = _int64(structure, "faults", faults)
    if values.ndim != 2 or values.shape[1] != 2:
        raise structure.error(
            f"input 'faults' has shape {list(values.shape)}, expected [F, 2], an array and a fault in each row."
        )
    own: NDArray[np.int64] = values[values[:, 0] == structure.array, 1]
    if own.size and structure.fault_source == "none":
        raise structure.error(
            f"input 'faults' has {own.size} faults of array {structure.array}, expected none because 'fault_source' "
            "is 'none'."
        )
    return own


def _tiles(size: int, largest: int, split: str) -> list[slice]:
    """Cut `size` into tiles of at most `largest`: full ones and a remainder, or as equal as possible."""
    if size == 0:
        return []
    if largest == 0 or largest >= size:
        return [slice(0, size)]
    count = -(-size // largest)
    if split == "fill":
        return [slice(start, min(size, start + largest)) for start in range(0, size, largest)]
    smaller, one_larger = divmod(size, count)
    ends = np.cumsum([smaller + (index < one_larger) for index in range(count)]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _key_tiles(keys: int, largest: int, first: int) -> list[slice]:
    """Cut keys from position `first` on into full tiles, wherever the first key lies."""
    if largest == 0 or keys == 0:
        return [slice(0, keys)] if keys else []
    begins = [0, *range(largest - first % largest, keys, largest)]
    return [slice(begin, end) for begin, end in zip(begins, [*begins[1:], keys], strict=True)]


def _float32(structure: Structure, name: str, value: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(value)
    if array.dtype != np.float32:
        raise structure.error(f"input '{name}' is {array.dtype}, expected float32.")
    return array


def _int64(structure: Structure, name: str, value: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype != np.int64:
        raise structure.error(f"input '{name}' is {array.dtype}, expected int64.")
    return array


def _scalar(structure: Structure, name: str, value: ArrayLike) -> NDArray[np.int64]:
    array = _int64(structure, name, value)
    if array.shape != ():
        raise structure.error(f"input '{name}' has shape {list(array.shape)}, expected [], one integer.")
    return array


def _seed(structure: Structure, name: str, value: ArrayLike) -> int:
    seed = int(_scalar(structure, name, value))
    if not 0 <= seed <= LARGEST_WORD:
        raise structure.error(f"input '{name}' is {seed}, expected 0 to 2^32 - 1.")
    return seed
