"""What a node says about itself (attributes) and what a run says to it (control inputs), parsed and checked."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.errors import InputError

STORED = "CrossbarMatMul"
QUANTIZED = "CrossbarMatMulQuantized"
DYNAMIC = "CrossbarMatMulDynamic"
FAULTY_WEIGHT = "FaultyWeight"

FORMAT = 2
_LARGEST_WORD = 2**32 - 1
_MOST_ROW_TILES = 2**16
# Of attributes that count or number something, so that an implementation with integers of 64 bits can multiply two.
_MOST = 2**31 - 1
_MOST_TABLE_VALUES = 2**16

# Which disturbances of a stored value belong to plain numbers (`encoding` `weight`) and which to conductances.
NUMBER_PROGRAMS = ("lognormal_w", "lognormal_w_meancorr", "gauss_prop", "gauss_range")
_SIGMA_PROGRAMS = (
    "lognormal_g",
    "normal_independent",
    "normal_proportional",
    "normal_inverse",
    "uniform_independent",
    "uniform_proportional",
    "uniform_inverse",
)
_CONDUCTANCE_PROGRAMS = (
    *_SIGMA_PROGRAMS,
    "polynomial",
    "wan2022",
    "sonos",
    "level_shared",
    "resistance_range",
    "table",
)

_EVERY = (STORED, QUANTIZED, DYNAMIC, FAULTY_WEIGHT)
_OF_STORED = (STORED, QUANTIZED, FAULTY_WEIGHT)
_OF_DYNAMIC = (DYNAMIC,)
_OF_QUANTIZED = (QUANTIZED,)
_OF_STORED_PRODUCTS = (STORED, QUANTIZED)


@dataclass(frozen=True)
class _Integer:
    """An attribute that is an integer: which operators have it, which values are legal, and that in words."""

    of: tuple[str, ...]
    legal: Callable[[int], bool]
    expected: str


@dataclass(frozen=True)
class _Choice:
    """An attribute that is one of some words, or free text where there are none."""

    of: tuple[str, ...]
    words: tuple[str, ...]


def _count(smallest: int, largest: int = _MOST) -> tuple[Callable[[int], bool], str]:
    return lambda value: smallest <= value <= largest, f"{smallest} to {largest}"


def _one_of(*values: int) -> tuple[Callable[[int], bool], str]:
    words = f"{', '.join(map(str, values[:-1]))} or {values[-1]}" if len(values) > 1 else str(values[0])
    return lambda value: value in values, words


def _zero_or(low: int, high: int) -> tuple[Callable[[float], bool], str]:
    def legal(value: float) -> bool:
        return value == 0 or (low <= value <= high and value == int(value))

    return legal, f"0 or an integer from {low} to {high}"


def _between(low: float, high: float) -> tuple[Callable[[float], bool], str]:
    return lambda value: low <= value <= high, f"{low} to {high}"


# Every attribute of the page, in its order.
_ATTRIBUTES: dict[str, _Integer | _Choice] = {
    "format": _Integer(_EVERY, lambda value: value == FORMAT, f"{FORMAT}; rewrite the model with this version"),
    "site": _Integer(_EVERY, *_count(0)),
    "array": _Integer(_EVERY, *_count(0)),
    "sites": _Integer(_EVERY, *_count(1)),
    "entries": _Choice(_EVERY, ()),
    "sample_axis": _Integer(_EVERY, *_one_of(0, 1, -1)),
    "heads": _Integer(_EVERY, *_count(0)),
    "head_axis": _Choice(_EVERY, ("none", "output", "input", "matrix")),
    "head_groups": _Integer(_EVERY, *_count(1)),
    "head_share": _Integer(_EVERY, *_count(1)),
    "tile_rows": _Integer(_EVERY, *_count(0)),
    "tile_columns": _Integer(_EVERY, *_count(0)),
    "tile_split": _Choice(_EVERY, ("fill", "balanced")),
    "scaling": _Choice(_EVERY, ("tensor", "column", "tile", "tile_column")),
    "fault_source": _Choice(_OF_STORED, ("none", "random", "list")),
    "fault_storage": _Choice(_OF_STORED, ("none", "int", "float32")),
    "fault_bits": _Integer(_OF_STORED, *_one_of(2, 4, 8, 16)),
    "fault_range": _Choice(_OF_STORED, ("symmetric", "asymmetric")),
    "fault_scale": _Choice(_OF_STORED, ("tensor", "column")),
    "fault_mask": _Integer(_OF_STORED, lambda value: 0 <= value <= _LARGEST_WORD, "0 to 2^32 - 1"),
    "fault_protection": _Choice(_OF_STORED, ("none", "secded", "secded_zero")),
    "encoding": _Choice(_OF_STORED, ("weight", "differential", "two_sided", "offset")),
    "offset_correction": _Choice(_OF_STORED, ("digital", "unit_column")),
    "weight_bits": _Integer(_OF_STORED, *_zero_or(2, 16)),
    "slice_bits": _Integer(_OF_STORED, *_between(0, 8)),
    "program": _Choice(_OF_STORED, ("none", *NUMBER_PROGRAMS, *_CONDUCTANCE_PROGRAMS, "function")),
    "program_function": _Choice(_OF_STORED, ()),
    "table_times": _Integer(_OF_STORED, *_count(0, _MOST_TABLE_VALUES)),
    "table_points": _Integer(_OF_STORED, *_count(0, _MOST_TABLE_VALUES)),
    "program_clip": _Choice(_OF_STORED, ("zero", "range")),
    "drift": _Choice(
        _OF_STORED, ("none", "power_law", "pcm", "hermes_pair", "hermes_single", "state_independent", "cmo")
    ),
    "drift_pairs": _Choice(_OF_STORED, ("physical", "net")),
    "compensation": _Choice(_OF_STORED, ("none", "global", "global_exact", "column", "column_exact")),
    "write": _Choice(_OF_DYNAMIC, ("none", *NUMBER_PROGRAMS, "lognormal_g", "clipformer")),
    "write_cells": _Choice(_OF_DYNAMIC, ("composite", "cells")),
    "write_scaling": _Choice(_OF_DYNAMIC, ("matrix", "sample")),
    "dac": _Choice(_EVERY, ("none", "absmax", "fixed", "calibrated")),
    "dac_code": _Choice(_EVERY, ("sign_magnitude", "offset_binary")),
    "dac_slice_bits": _Integer(_EVERY, *_between(0, 8)),
    "adc": _Choice(_EVERY, ("none", "absmax", "fixed", "calibrated", "rows", "granular")),
    "adc_code": _Choice(_EVERY, ("sign_magnitude", "offset_binary", "twos_complement")),
    "adc_columns": _Integer(_EVERY, *_count(1)),
    "bound_management": _Choice(_EVERY, ("none", "iterative")),
    "read_noise": _Choice(_EVERY, ("none", "additive_constant", "pcm_read", "proportional")),
    "ir_drop": _Choice(_EVERY, ("none", "formula", "network")),
    "code_bits": _Integer(_OF_QUANTIZED, *_one_of(2, 4, 8, 16)),
    "block_rows": _Integer(_OF_QUANTIZED, *_count(0)),
    "window": _Choice(_OF_STORED_PRODUCTS, ()),
}
# What files written by earlier versions lack, and what that means.
DEFAULTS: dict[str, str] = {"window": ""}

_Check = tuple[Callable[[float], bool], str]
_ANY: _Check = (lambda value: True, "a finite number")
_NOT_NEGATIVE: _Check = (lambda value: value >= 0, "0 or greater")
_POSITIVE: _Check = (lambda value: value > 0, "greater than 0")
_SIGMA: _Check = _between(0, 10)
_PROBABILITY: _Check = _between(0, 1)
_SHARE: _Check = (lambda value: 0 < value <= 1, "greater than 0, at most 1")

# Every entry of `device`: which values are legal, and that in words. `<name>`, `<i>` and `<j>` stand for many.
_ENTRIES: dict[str, _Check] = {
    "program.sigma": _SIGMA,
    "program.sigma_cycle": _SIGMA,
    "program.sigma_off": _SIGMA,
    "program.scale": _NOT_NEGATIVE,
    **{f"program.c{power}": _ANY for power in range(5)},
    "program.reference_us": _POSITIVE,
    "program.current_max_na": _POSITIVE,
    "program.time_s": _NOT_NEGATIVE,
    "program.target_us.<i>": _ANY,
    "program.mean_us.<j>.<i>": _ANY,
    "program.std_us.<j>.<i>": _NOT_NEGATIVE,
    "program.table_time_s.<j>": _POSITIVE,
    "program.parameter.<name>": _ANY,
    "program.modifier": _NOT_NEGATIVE,
    "mapping.g_min_us": _NOT_NEGATIVE,
    "mapping.g_max_us": _POSITIVE,
    "mapping.cell_bits": _zero_or(1, 12),
    "mapping.percentile": _SHARE,
    "drift.time_s": _NOT_NEGATIVE,
    "drift.scale": _NOT_NEGATIVE,
    "drift.read_scale": _NOT_NEGATIVE,
    "drift.nu": _ANY,
    "drift.nu_sigma": _NOT_NEGATIVE,
    "drift.t0_s": _POSITIVE,
    "faults.ber": _PROBABILITY,
    "faults.stuck_low": _PROBABILITY,
    "faults.stuck_high": _PROBABILITY,
    "write.sigma": _SIGMA,
    "write.gamma": _NOT_NEGATIVE,
    "write.alpha": _NOT_NEGATIVE,
    "write.beta": _SHARE,
    "write.bits": _zero_or(2, 16),
    "dac.bits": _zero_or(2, 16),
    "dac.steps": _zero_or(2, 65536),
    "dac.bound": _POSITIVE,
    "dac.max": _POSITIVE,
    "dac.limit": _POSITIVE,
    "adc.bits": _zero_or(2, 16),
    "adc.steps": _zero_or(2, 65536),
    "adc.bound": _POSITIVE,
    "adc.gain_sigma": _NOT_NEGATIVE,
    "adc.offset_sigma": _NOT_NEGATIVE,
    "adc.max_bound_factor": _between(1, 2**20),
    "adc.max_bound_resolution": _POSITIVE,
    "read.weight_noise": _NOT_NEGATIVE,
    "read.output_noise": _NOT_NEGATIVE,
    "read.input_noise": _NOT_NEGATIVE,
    "read.ir_drop": _NOT_NEGATIVE,
    "read.ir_drop_ratio": _POSITIVE,
    "read.row_ohm": _NOT_NEGATIVE,
    "read.column_ohm": _NOT_NEGATIVE,
}
_FAMILIES = [
    (re.compile(re.escape(name).replace("<i>", r"\d+").replace("<j>", r"\d+").replace("<name>", ".+")), check)
    for name, check in _ENTRIES.items()
    if "<" in name
]
# Entries that mean something only together.
_TOGETHER = (("faults.stuck_low", "faults.stuck_high"), ("adc.gain_sigma", "adc.offset_sigma"))


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

    Those that the operator lacks have the value that switches their effect off.
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
    adc_columns: int
    bound_management: str
    read_noise: str
    ir_drop: str
    fault_source: str = "none"
    fault_storage: str = "none"
    fault_bits: int = 8
    fault_range: str = "symmetric"
    fault_scale: str = "tensor"
    fault_mask: int = 0
    fault_protection: str = "none"
    encoding: str = "weight"
    offset_correction: str = "digital"
    weight_bits: int = 0
    slice_bits: int = 0
    program: str = "none"
    program_function: str = ""
    table_times: int = 0
    table_points: int = 0
    program_clip: str = "zero"
    drift: str = "none"
    drift_pairs: str = "physical"
    compensation: str = "none"
    write: str = "none"
    write_cells: str = "composite"
    write_scaling: str = "matrix"
    code_bits: int = 8
    block_rows: int = 0
    window: tuple[WindowAxis, ...] = ()

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
    def weight_slices(self) -> int:
        """Number of arrays that hold a stored weight together."""
        if self.slice_bits == 0:
            return 1
        # A pair has the sign in its two devices, so only the magnitude is cut.
        bits = self.weight_bits - 1 if self.encoding == "differential" else self.weight_bits
        return -(-bits // self.slice_bits)

    @property
    def has_stuck_cells(self) -> bool:
        """Whether cells are stuck at random."""
        return self.fault_source == "random" and "faults.stuck_low" in self.entries

    @property
    def fault_word_bits(self) -> int:
        """Bits of one stored element that bit flips hit."""
        if self.fault_storage == "float32":
            return 32
        return self.code_bits if self.op == QUANTIZED else self.fault_bits

    @property
    def usable_fault_mask(self) -> int:
        """The bits of an element that may flip; a quantized model's codes may have fewer than the device says."""
        return self.fault_mask & (2**self.code_bits - 1) if self.op == QUANTIZED else self.fault_mask

    def row_tiles(self, rows: int) -> list[slice]:
        """Return the row tiles of a matrix with that many rows."""
        tiles = _tiles(rows, self.tile_rows, self.tile_split)
        if len(tiles) > _MOST_ROW_TILES:
            raise self.error(
                f"attribute 'tile_rows' is {self.tile_rows}, which cuts {rows} rows into {len(tiles)} tiles, "
                f"expected at most {_MOST_ROW_TILES}; use taller tiles."
            )
        return tiles

    def column_tiles(self, columns: int) -> list[slice]:
        """Return the column tiles of a matrix with that many columns."""
        return _tiles(columns, self.tile_columns, self.tile_split)


@dataclass(frozen=True)
class Controls:
    """The control inputs of one run as one node reads them."""

    numbers: Mapping[str, float]
    """The entries of `device` by name."""
    strength: float
    """This site's entry of `strength`."""
    input_range: float
    """The calibrated activation that maps to 1, where the node reads it."""
    output_range: tuple[float, float]
    """The calibrated lowest and highest output, where the node reads them."""
    faults: NDArray[np.int64]
    """The list of faults, int64 [F]; empty unless the node reads it."""
    seed: int
    read_seed: int
    first_sample: int
    samples: int | None
    """Samples in the batch; None when the size of the sample axis says it."""
    head: int | None
    """Index among the site's own heads (already divided by `head_share`), None for all."""

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

    def probability(self, entry: str) -> np.float32:
        """Return a fault probability with the strength in it, at most 1."""
        return min(np.float32(self.strength) * np.float32(self.numbers[entry]), np.float32(1))


def attribute_types(op: str) -> dict[str, type]:
    """Return the names of the attributes of `op` and whether each is an `int` or a `str`."""
    return {
        name: int if isinstance(attribute, _Integer) else str
        for name, attribute in _ATTRIBUTES.items()
        if op in attribute.of
    }


def parse_structure(op: str, attributes: Mapping[str, int | str]) -> Structure:
    """Return the checked attributes of a node of type `op`, such as `CrossbarMatMul`.

    Raises InputError for a missing or unknown attribute, a wrong type or value, attributes that exclude each other, or
    entries that the structure lacks.
    """
    site = attributes.get("site")

    def error(sentence: str) -> InputError:
        return InputError(f"emu: {op} at site {site}: {sentence}")

    known = attribute_types(op)
    attributes = {**{name: value for name, value in DEFAULTS.items() if name in known}, **attributes}
    for name in known:
        if name not in attributes:
            raise error(f"attribute '{name}' is missing; every attribute must be present.")
    for name in attributes:
        if name not in known:
            raise error(f"attribute '{name}' is unknown, expected one of {', '.join(known)}.")

    values: dict[str, Any] = {}
    for name in known:
        value, attribute = attributes[name], _ATTRIBUTES[name]
        if isinstance(attribute, _Integer):
            if not isinstance(value, int) or isinstance(value, bool):
                raise error(f"attribute '{name}' is {value!r}, expected an integer.")
            if not attribute.legal(value):
                raise error(f"attribute '{name}' is {value}, expected {attribute.expected}.")
        else:
            if not isinstance(value, str):
                raise error(f"attribute '{name}' is {value!r}, expected a string.")
            words = _head_axes(op) if name == "head_axis" else attribute.words
            if words and value not in words:
                raise error(f"attribute '{name}' is '{value}', expected one of {', '.join(words)}.")
        values[name] = value
    del values["format"]
    values["entries"] = tuple(values["entries"].split(",")) if values["entries"] else ()
    if "window" in values:
        values["window"] = _window(values["window"], error)
    if values["site"] >= values["sites"]:
        raise error(f"attribute 'site' is {values['site']}, expected 0 to {values['sites'] - 1} (sites - 1).")
    structure = Structure(op=op, **values)
    _check_combinations(structure)
    _check_entries(structure)
    return structure


def check_controls(
    structure: Structure,
    device: ArrayLike,
    strength: ArrayLike,
    ranges: ArrayLike | None,
    faults: ArrayLike | None,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike = 0,
    head: ArrayLike = -1,
) -> Controls:
    """Return the control inputs as this node reads them.

    device: float32 [P]; strength: float32 [sites]; ranges: float32 [sites, 3], None where the operator has none;
    faults: int64 [F], None where the operator has none; seed, read_seed, head: int64 []; sample: int64 [] or [2].
    Raises InputError for a wrong type, shape or range.
    """
    device_values = _float32(structure, "device", device)
    if device_values.shape != (len(structure.entries),):
        raise structure.error(
            f"input 'device' has shape {list(device_values.shape)}, "
            f"expected [{len(structure.entries)}], one number for each name in 'entries'."
        )
    numbers = {name: float(value) for name, value in zip(structure.entries, device_values, strict=True)}
    for name, value in numbers.items():
        legal, expected = _entry_check(name) or _ANY
        if not math.isfinite(value) or not legal(value):
            raise structure.error(f"entry '{name}' of input 'device' is {value:g}, expected {expected}.")
    _check_numbers(structure, numbers)

    strengths = _float32(structure, "strength", strength)
    if strengths.shape != (structure.sites,):
        raise structure.error(
            f"input 'strength' has shape {list(strengths.shape)}, "
            f"expected [{structure.sites}], one number for each site."
        )
    own_strength = float(strengths[structure.site])
    if not math.isfinite(own_strength) or own_strength < 0:
        raise structure.error(f"input 'strength' is {own_strength:g} for this site, expected finite and 0 or greater.")

    sample_values = _int64(structure, "sample", sample)
    if sample_values.shape not in ((), (2,)):
        raise structure.error(f"input 'sample' has shape {list(sample_values.shape)}, expected [] or [2].")
    for number in sample_values.flat:
        if not 0 <= number <= _LARGEST_WORD:
            raise structure.error(f"input 'sample' is {sample_values.tolist()}, expected 0 to 2^32 - 1.")
    first = int(sample_values.flat[0])
    samples = int(sample_values[1]) if sample_values.ndim == 1 else None
    if first + (samples or 1) - 1 > _LARGEST_WORD:
        raise structure.error(
            f"input 'sample' is {sample_values.tolist()}, expected 0 to 2^32 - 1 for every sample of the batch."
        )

    any_head = int(_scalar(structure, "head", head))
    if any_head < -1:
        raise structure.error(f"input 'head' is {any_head}, expected -1 (all heads) or greater.")
    own_head = None if any_head < 0 else any_head // structure.head_share
    if own_head is not None and structure.head_axis != "none" and own_head >= structure.heads:
        raise structure.error(
            f"input 'head' is {any_head}, expected below {structure.heads * structure.head_share} "
            f"({structure.heads} heads, each shared by {structure.head_share})."
        )
    input_range, output_range = _calibrated(structure, ranges)
    return Controls(
        numbers=numbers,
        strength=own_strength,
        input_range=input_range,
        output_range=output_range,
        faults=_listed(structure, faults),
        seed=_seed(structure, "seed", seed),
        read_seed=_seed(structure, "read_seed", read_seed),
        first_sample=first,
        samples=samples,
        head=own_head,
    )


def _window(text: str, error: Callable[[str], InputError]) -> tuple[WindowAxis, ...]:
    axes = []
    for axis in text.split(";") if text else ():
        numbers = [int(each) if re.fullmatch("[0-9]{1,10}", each) else -1 for each in axis.split(",")]
        fits = len(numbers) == 5 and all(
            low <= number <= _MOST for low, number in zip((1, 1, 1, 0, 0), numbers, strict=True)
        )
        if fits:
            axes.append(WindowAxis(*numbers))
        if not fits or len(axes) > 3 or math.prod(each.size for each in axes) > _MOST:
            raise error(
                f"attribute 'window' is '{text}', expected size,stride,dilation,padding before,padding after for each "
                f"of 1 to 3 axes, separated by ';', the first three from 1, none above {_MOST}."
            )
    return tuple(axes)


def _head_axes(op: str) -> tuple[str, ...]:
    return ("none", "matrix") if op == DYNAMIC else ("none", "output", "input", "matrix")


def _check_combinations(structure: Structure) -> None:
    """Check that the attributes do not exclude each other."""

    def refuse(wrong: bool, name: str, expected: str) -> None:
        if wrong:
            value = getattr(structure, name)
            raise structure.error(f"attribute '{name}' is {value!r}, expected {expected}.")

    it = structure
    weights, sliced = it.encoding == "weight", it.slice_bits > 0
    refuse(it.head_axis != "none" and it.heads == 0, "heads", f"1 or greater because 'head_axis' is '{it.head_axis}'")
    refuse(it.window != () and it.sample_axis == 1, "sample_axis", "0 or -1 because 'window' is given")
    refuse(it.window != () and it.head_axis != "none", "head_axis", "'none' because 'window' is given")
    refuse(it.head_axis != "output" and it.head_groups != 1, "head_groups", "1 unless 'head_axis' is 'output'")
    refuse(
        it.program in NUMBER_PROGRAMS and not weights,
        "program",
        f"a model of conductances because 'encoding' is '{it.encoding}'",
    )
    refuse(
        it.program in _CONDUCTANCE_PROGRAMS and weights, "program", "a model of numbers because 'encoding' is 'weight'"
    )
    refuse(
        sliced and (it.encoding in ("weight", "two_sided") or it.weight_bits == 0),
        "slice_bits",
        "0 unless 'encoding' is 'differential' or 'offset' and 'weight_bits' is given",
    )
    refuse(it.program == "function" and sliced, "slice_bits", "0 because 'program' is 'function'")
    refuse(
        it.program == "function" and not it.program_function,
        "program_function",
        "a name because 'program' is 'function'",
    )
    refuse(
        it.program == "function" and it.encoding == "offset" and it.offset_correction == "unit_column",
        "offset_correction",
        "'digital' because 'program' is 'function'",
    )
    for name in ("table_times", "table_points"):
        refuse(it.program == "table" and getattr(it, name) == 0, name, "1 or greater because 'program' is 'table'")
    refuse(
        it.table_times * it.table_points > _MOST_TABLE_VALUES,
        "table_points",
        f"at most {_MOST_TABLE_VALUES} together with 'table_times', which is {it.table_times}",
    )
    refuse(
        it.program == "level_shared" and not sliced and "mapping.cell_bits" not in it.entries,
        "program",
        "slices or entry 'mapping.cell_bits' beside 'level_shared', which needs levels",
    )
    refuse(it.drift != "none" and weights, "drift", "'none' because 'encoding' is 'weight': only conductances drift")
    refuse(
        it.drift_pairs == "net" and (it.encoding != "differential" or sliced),
        "drift_pairs",
        "'physical' unless 'encoding' is 'differential' without slices",
    )
    refuse(it.compensation != "none" and it.drift == "none", "compensation", "'none' because 'drift' is 'none'")
    refuse(
        it.compensation in ("global", "column") and (sliced or it.encoding == "offset"),
        "compensation",
        "an exact one because of slices or an offset",
    )
    refuse(
        it.fault_storage == "float32" and (it.op == QUANTIZED or not weights),
        "fault_storage",
        "'float32' only for float weights with 'encoding' 'weight'",
    )
    if it.fault_storage != "none":
        every_bit = 2**it.fault_word_bits - 1
        refuse(it.usable_fault_mask > every_bit, "fault_mask", f"at most {every_bit}, the bits that are stored")
        refuse(
            it.fault_protection != "none" and it.usable_fault_mask != every_bit,
            "fault_mask",
            f"{every_bit}, every bit, because 'fault_protection' is '{it.fault_protection}'",
        )
    refuse(
        it.ir_drop == "network" and (weights or it.op == DYNAMIC),
        "ir_drop",
        "'network' only for stored conductances",
    )
    refuse(
        it.write_scaling == "sample" and it.scaling != "tensor",
        "scaling",
        "'tensor' because 'write_scaling' is 'sample'",
    )
    refuse(
        it.dac_slice_bits > 0 and (it.dac == "none" or it.dac_code != "sign_magnitude"),
        "dac_slice_bits",
        "0 unless 'dac' is on and 'dac_code' is 'sign_magnitude'",
    )
    refuse(
        it.dac_slice_bits > 0 and "read.input_noise" in it.entries,
        "dac_slice_bits",
        "0 because of entry 'read.input_noise'",
    )
    if it.bound_management == "iterative":
        refuse(it.adc != "fixed", "bound_management", f"'none' because 'adc' is '{it.adc}', not 'fixed'")
        refuse(
            sliced or it.dac_slice_bits > 0 or it.encoding == "offset",
            "bound_management",
            "'none' because of slices or an offset",
        )


def _check_entries(structure: Structure) -> None:
    """Check the names of the entries: known, each once, and all that the structure uses."""
    entries = dict.fromkeys(structure.entries)  # a table has thousands
    for name in entries:
        if _entry_check(name) is None:
            raise structure.error(f"attribute 'entries' names '{name}', expected names among {', '.join(_ENTRIES)}.")
    if len(entries) != len(structure.entries):
        twice = next(name for name in entries if structure.entries.count(name) > 1)
        raise structure.error(f"attribute 'entries' names '{twice}' twice, expected every name once.")
    for attribute, name in _needed_entries(structure):
        if name not in entries:
            value = getattr(structure, attribute)
            raise structure.error(
                f"attribute 'entries' lacks '{name}', expected it because '{attribute}' is '{value}'."
            )
    for one, other in (*_TOGETHER, *(pair[::-1] for pair in _TOGETHER)):
        if one in entries and other not in entries:
            raise structure.error(f"attribute 'entries' lacks '{other}', expected it because '{one}' is there.")
    if structure.op == DYNAMIC:
        return
    for name, without in (
        ("faults.stuck_low", structure.encoding == "weight"),
        ("mapping.cell_bits", structure.encoding == "weight" or structure.slice_bits > 0),
        ("program.modifier", structure.encoding == "offset" or structure.slice_bits > 0),
    ):
        if without and name in entries:
            raise structure.error(
                f"attribute 'entries' names '{name}', expected not to because 'encoding' is '{structure.encoding}' "
                f"and 'slice_bits' is {structure.slice_bits}."
            )


def _needed_entries(structure: Structure) -> list[tuple[str, str]]:
    """Return (attribute, entry) for every entry that the structure uses."""
    it = structure
    needed: list[tuple[str, str]] = []

    def need(used: bool, attribute: str, *names: str) -> None:
        if used:
            needed.extend((attribute, name) for name in names)

    need(
        it.program in (*NUMBER_PROGRAMS, *_SIGMA_PROGRAMS, "level_shared", "resistance_range"),
        "program",
        "program.sigma",
    )
    need(it.program in (*NUMBER_PROGRAMS, *_SIGMA_PROGRAMS), "program", "program.sigma_cycle")
    need(it.program == "resistance_range", "program", "program.sigma_off")
    need(it.program in ("polynomial", "wan2022", "sonos", "table"), "program", "program.scale")
    coefficients = (f"program.c{power}" for power in range(5))
    need(it.program == "polynomial", "program", *coefficients, "program.reference_us")
    need(it.program == "sonos", "program", "program.current_max_na")
    need(it.program in ("wan2022", "sonos") or it.table_times > 1, "program", "program.time_s")
    if it.program == "table":
        points, times = range(it.table_points), range(it.table_times)
        needed.extend(("program", f"program.target_us.{i}") for i in points)
        needed.extend(
            ("program", f"program.{kind}_us.{j}.{i}") for kind in ("mean", "std") for j in times for i in points
        )
        needed.extend(("program", f"program.table_time_s.{j}") for j in times)
    need(it.encoding != "weight", "encoding", "mapping.g_min_us", "mapping.g_max_us")
    need(it.drift != "none", "drift", "drift.time_s", "drift.scale")
    need(it.drift == "power_law", "drift", "drift.nu", "drift.nu_sigma", "drift.t0_s")
    need(it.drift not in ("none", "power_law"), "drift", "drift.read_scale")
    need(it.fault_source == "random" and it.fault_storage != "none", "fault_storage", "faults.ber")
    need(it.write != "none", "write", "write.sigma")
    need(it.write in ("lognormal_g", "clipformer"), "write", "mapping.g_min_us", "mapping.g_max_us")
    need(it.write == "clipformer", "write", "write.gamma", "write.alpha", "write.beta", "write.bits")
    need(it.dac != "none", "dac", "dac.bits", "dac.steps", "dac.bound")
    need(it.dac == "fixed", "dac", "dac.max")
    need(it.adc != "none", "adc", "adc.bits", "adc.steps")
    need(it.adc == "fixed", "adc", "adc.bound")
    need(
        it.bound_management == "iterative",
        "bound_management",
        "adc.max_bound_factor",
        "adc.max_bound_resolution",
    )
    need(it.read_noise != "none", "read_noise", "read.weight_noise")
    need(it.ir_drop == "formula", "ir_drop", "read.ir_drop", "read.ir_drop_ratio")
    need(it.ir_drop == "network", "ir_drop", "read.row_ohm", "read.column_ohm")
    return needed


@lru_cache(maxsize=1 << 18)
def _entry_check(name: str) -> _Check | None:
    """Return what is legal for an entry, None for an unknown name."""
    if "<" not in name and name in _ENTRIES:
        return _ENTRIES[name]
    return next((check for pattern, check in _FAMILIES if pattern.fullmatch(name)), None)


def _check_numbers(structure: Structure, numbers: Mapping[str, float]) -> None:
    """Check entries of `device` against each other and against the structure."""

    def refuse(wrong: bool, name: str, expected: str) -> None:
        if wrong:
            raise structure.error(f"entry '{name}' of input 'device' is {numbers[name]:g}, expected {expected}.")

    g_min_us, g_max_us = numbers.get("mapping.g_min_us", 0.0), numbers.get("mapping.g_max_us", math.inf)
    refuse(g_min_us >= g_max_us, "mapping.g_min_us", f"less than 'mapping.g_max_us', which is {g_max_us:g}")
    cell_bits = numbers.get("mapping.cell_bits", 0)
    if structure.op != DYNAMIC:
        refuse(cell_bits == 1 and structure.encoding == "offset", "mapping.cell_bits", "0 or 2 to 12 with an offset")
        refuse(
            structure.program == "level_shared" and structure.slice_bits == 0 and cell_bits == 0,
            "mapping.cell_bits",
            "1 to 12 because 'program' is 'level_shared'",
        )
    refuse(
        numbers.get("faults.stuck_low", 0) + numbers.get("faults.stuck_high", 0) > 1,
        "faults.stuck_high",
        "at most 1 together with 'faults.stuck_low'",
    )
    if structure.program == "table":
        for name, count in (("target_us", structure.table_points), ("table_time_s", structure.table_times)):
            for index in range(1, count):
                before = numbers[f"program.{name}.{index - 1}"]
                refuse(
                    numbers[f"program.{name}.{index}"] <= before,
                    f"program.{name}.{index}",
                    f"greater than the one before it, which is {before:g}",
                )
    refuse(
        structure.drift == "cmo" and 0 < numbers["drift.time_s"] < 1,
        "drift.time_s",
        "0 or at least 1 because 'drift' is 'cmo'",
    )
    if structure.dac_slice_bits > 0:
        refuse(numbers["dac.bits"] == 0, "dac.bits", "2 to 16 because 'dac_slice_bits' is given")
        refuse(numbers["dac.steps"] != 0, "dac.steps", "0 because 'dac_slice_bits' is given")
        refuse(numbers["dac.bound"] != 1, "dac.bound", "1 because 'dac_slice_bits' is given")
    refuse(structure.adc == "granular" and numbers["adc.bits"] == 0, "adc.bits", "2 to 16 because 'adc' is 'granular'")


def _calibrated(structure: Structure, ranges: ArrayLike | None) -> tuple[float, tuple[float, float]]:
    """Return the calibrated input range and output range, 1 and -1 to 1 where the node does not read them."""
    input_range, output_range = 1.0, (-1.0, 1.0)
    if ranges is None:
        return input_range, output_range
    values = _float32(structure, "ranges", ranges)
    if values.shape != (structure.sites, 3):
        raise structure.error(
            f"input 'ranges' has shape {list(values.shape)}, expected [{structure.sites}, 3], one row for each site."
        )
    largest, low, high = values[structure.site].tolist()
    if structure.dac == "calibrated":
        input_range = largest
        if not (math.isfinite(largest) and largest > 0):
            raise structure.error(
                f"input 'ranges' has the activation {largest:g} for this site, expected finite and > 0: "
                "'emu calibrate' finds it."
            )
    if structure.adc == "calibrated":
        output_range = (low, high)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise structure.error(
                f"input 'ranges' has the outputs {low:g} to {high:g} for this site, expected finite and "
                "rising: 'emu calibrate' finds them."
            )
    return input_range, output_range


def _listed(structure: Structure, faults: ArrayLike | None) -> NDArray[np.int64]:
    """Return the list of faults, int64 [F]; whether they fit the array is checked where they strike."""
    if faults is None:
        return np.zeros(0, dtype=np.int64)
    values = _int64(structure, "faults", faults)
    if values.ndim != 1:
        raise structure.error(f"input 'faults' has shape {list(values.shape)}, expected [F], a list.")
    if values.size and structure.fault_source != "list":
        raise structure.error(
            f"input 'faults' has {values.size} numbers, expected none because 'fault_source' is "
            f"'{structure.fault_source}'."
        )
    return values


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
    if not 0 <= seed <= _LARGEST_WORD:
        raise structure.error(f"input '{name}' is {seed}, expected 0 to 2^32 - 1.")
    return seed
