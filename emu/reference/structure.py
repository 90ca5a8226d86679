"""What a node says about itself (attributes) and what a run says to it (control inputs), parsed and checked."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.errors import InputError

STORED = "CrossbarMatMul"
QUANTIZED = "CrossbarMatMulQuantized"
DYNAMIC = "CrossbarMatMulDynamic"
FAULTY_WEIGHT = "FaultyWeight"

_DISTURBANCES = ("none", "lognormal_w", "lognormal_w_meancorr", "lognormal_g", "gauss_prop", "gauss_range")
_CONVERTERS = ("none", "absmax", "fixed")
_LARGEST_WORD = 2**32 - 1
_MOST_ROW_TILES = 2**16

_INTEGER_ATTRIBUTES = (
    "format",
    "site",
    "sites",
    "array",
    "sample_axis",
    "heads",
    "head_groups",
    "head_share",
    "tile_rows",
    "tile_columns",
)
_QUANTIZED_ATTRIBUTES = ("code_bits", "block_rows")
_CHOICES = {
    "tile_split": ("fill", "balanced"),
    "scaling": ("tensor", "column", "tile", "tile_column"),
    "dac": _CONVERTERS,
    "adc": _CONVERTERS,
    "bound_management": ("none", "iterative"),
    "read_noise": ("none", "additive_constant", "pcm_read"),
}


def _integer_or_zero(low: int, high: int) -> Callable[[float], bool]:
    return lambda value: value == 0 or (low <= value <= high and value == int(value))


# Every entry of `device` that format 1 knows: which values are legal, and that in words.
_ENTRIES: dict[str, tuple[Callable[[float], bool], str]] = {
    "program.sigma": (lambda value: 0 <= value <= 10, "0 to 10"),
    "program.sigma_cycle": (lambda value: 0 <= value <= 10, "0 to 10"),
    "write.sigma": (lambda value: 0 <= value <= 10, "0 to 10"),
    "mapping.g_min_us": (lambda value: value >= 0, "0 or greater"),
    "mapping.g_max_us": (lambda value: value > 0, "greater than 0"),
    "dac.bits": (_integer_or_zero(2, 16), "0 or an integer from 2 to 16"),
    "dac.steps": (_integer_or_zero(2, 65536), "0 or an integer from 2 to 65536"),
    "dac.bound": (lambda value: value > 0, "greater than 0"),
    "dac.max": (lambda value: value > 0, "greater than 0"),
    "adc.bits": (_integer_or_zero(2, 16), "0 or an integer from 2 to 16"),
    "adc.steps": (_integer_or_zero(2, 65536), "0 or an integer from 2 to 65536"),
    "adc.bound": (lambda value: value > 0, "greater than 0"),
    "adc.max_bound_factor": (lambda value: 1 <= value <= 2**20, "1 to 1048576"),
    "adc.max_bound_resolution": (lambda value: value > 0, "greater than 0"),
    "read.weight_noise": (lambda value: value >= 0, "0 or greater"),
    "read.output_noise": (lambda value: value >= 0, "0 or greater"),
}


@dataclass(frozen=True)
class Structure:
    """The attributes of one node, checked; field by field as in `docs/operators.md`."""

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
    disturbance: str
    """How a value is disturbed when it is stored: `program` of the stored op, `write` of the dynamic one."""
    dac: str
    adc: str
    bound_management: str
    read_noise: str
    code_bits: int
    """Bits of a code; quantized op only."""
    block_rows: int
    """Rows that share one scale, 0 for scales of the tensor or the column; quantized op only."""

    def error(self, sentence: str) -> InputError:
        """Return the exception that says `sentence` about this node."""
        return InputError(f"emu: {self.op} at site {self.site}: {sentence}")

    @property
    def has_output_noise(self) -> bool:
        """Whether noise is added to every product."""
        return "read.output_noise" in self.entries

    @property
    def has_periphery(self) -> bool:
        """Whether a product is more than a plain product with the stored values."""
        return self.has_output_noise or not self.dac == self.adc == self.read_noise == "none"

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
    seed: int
    read_seed: int
    first_sample: int
    samples: int | None
    """Samples in the batch; None when the size of the sample axis says it."""
    head: int | None
    """Index among the site's own heads (already divided by `head_share`), None for all."""

    def steps(self, converter: str) -> int:
        """Return the number of steps of the `dac` or `adc`, 0 when it does not quantize."""
        bits = int(self.numbers[f"{converter}.bits"])
        return int(self.numbers[f"{converter}.steps"]) or (2**bits - 2 if bits else 0)


def attribute_types(op: str) -> dict[str, type]:
    """Return the names of the attributes of `op` and whether each is an `int` or a `str`."""
    texts = ("entries", "head_axis", *_CHOICES, "write" if op == DYNAMIC else "program")
    integers = (*_INTEGER_ATTRIBUTES, *(_QUANTIZED_ATTRIBUTES if op == QUANTIZED else ()))
    return {**dict.fromkeys(integers, int), **dict.fromkeys(texts, str)}


def parse_structure(op: str, attributes: Mapping[str, int | str]) -> Structure:
    """Return the checked attributes of a node of type `op`, such as `CrossbarMatMul`.

    Raises InputError for a missing or unknown attribute, a wrong type or value, or entries that the structure lacks.
    """
    site = attributes.get("site")

    def error(sentence: str) -> InputError:
        return InputError(f"emu: {op} at site {site}: {sentence}")

    disturbance = "write" if op == DYNAMIC else "program"
    head_axes = ("none", "matrix") if op == DYNAMIC else ("none", "output", "input")
    choices = {"head_axis": head_axes, **_CHOICES, disturbance: _DISTURBANCES}
    known = attribute_types(op)
    for name in known:
        if name not in attributes:
            raise error(f"attribute '{name}' is missing; every attribute must be present.")
    for name in attributes:
        if name not in known:
            raise error(f"attribute '{name}' is unknown, expected one of {', '.join(known)}.")

    integers: dict[str, int] = {}
    texts: dict[str, str] = {}
    for name, kind in known.items():
        value = attributes[name]
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            integers[name] = value
        elif kind is str and isinstance(value, str):
            texts[name] = value
        else:
            raise error(f"attribute '{name}' is {value!r}, expected {'an integer' if kind is int else 'a string'}.")

    if integers["format"] != 1:
        raise error(f"attribute 'format' is {integers['format']}, expected 1; rewrite the model with this version.")
    for name, allowed in choices.items():
        if texts[name] not in allowed:
            raise error(f"attribute '{name}' is '{texts[name]}', expected one of {', '.join(allowed)}.")
    if not 1 <= integers["sites"] <= _LARGEST_WORD + 1:
        raise error(f"attribute 'sites' is {integers['sites']}, expected 1 to 2^32.")
    if not 0 <= integers["site"] < integers["sites"]:
        raise error(f"attribute 'site' is {integers['site']}, expected 0 to {integers['sites'] - 1} (sites - 1).")
    if integers["sample_axis"] not in (0, 1, -1):
        raise error(f"attribute 'sample_axis' is {integers['sample_axis']}, expected 0, 1 or -1.")
    smallest_values = {"array": 0, "heads": 0, "head_groups": 1, "head_share": 1, "tile_rows": 0, "tile_columns": 0}
    smallest_values |= {"block_rows": 0} if op == QUANTIZED else {}
    for name, smallest in smallest_values.items():
        if integers[name] < smallest:
            raise error(f"attribute '{name}' is {integers[name]}, expected {smallest} or greater.")
    if op == QUANTIZED and integers["code_bits"] not in (4, 8):
        raise error(f"attribute 'code_bits' is {integers['code_bits']}, expected 4 or 8.")
    if texts["head_axis"] != "none" and integers["heads"] == 0:
        raise error(f"attribute 'heads' is 0, expected 1 or greater because 'head_axis' is '{texts['head_axis']}'.")
    if texts["head_axis"] != "output" and integers["head_groups"] != 1:
        raise error(f"attribute 'head_groups' is {integers['head_groups']}, expected 1 unless 'head_axis' is 'output'.")
    if texts["bound_management"] == "iterative" and texts["adc"] != "fixed":
        raise error(
            f"attribute 'bound_management' is 'iterative', expected 'none' because 'adc' is '{texts['adc']}', "
            "not 'fixed'."
        )

    entries = tuple(texts["entries"].split(",")) if texts["entries"] else ()
    for name in entries:
        if name not in _ENTRIES:
            raise error(f"attribute 'entries' names '{name}', expected names among {', '.join(_ENTRIES)}.")
    if len(set(entries)) != len(entries):
        twice = next(name for name in entries if entries.count(name) > 1)
        raise error(f"attribute 'entries' names '{twice}' twice, expected every name once.")
    for attribute, name in _needed_entries(texts, disturbance):
        if name not in entries:
            raise error(
                f"attribute 'entries' lacks '{name}', expected it because '{attribute}' is '{texts[attribute]}'."
            )

    return Structure(
        op=op,
        site=integers["site"],
        sites=integers["sites"],
        array=integers["array"],
        entries=entries,
        sample_axis=integers["sample_axis"],
        heads=integers["heads"],
        head_axis=texts["head_axis"],
        head_groups=integers["head_groups"],
        head_share=integers["head_share"],
        tile_rows=integers["tile_rows"],
        tile_columns=integers["tile_columns"],
        tile_split=texts["tile_split"],
        scaling=texts["scaling"],
        disturbance=texts[disturbance],
        dac=texts["dac"],
        adc=texts["adc"],
        bound_management=texts["bound_management"],
        read_noise=texts["read_noise"],
        code_bits=integers.get("code_bits", 8),
        block_rows=integers.get("block_rows", 0),
    )


def check_controls(
    structure: Structure,
    device: ArrayLike,
    strength: ArrayLike,
    seed: ArrayLike,
    read_seed: ArrayLike,
    sample: ArrayLike = 0,
    head: ArrayLike = -1,
) -> Controls:
    """Return the control inputs as this node reads them.

    device: float32 [P]; strength: float32 [sites]; seed, read_seed, head: int64 []; sample: int64 [] or [2].
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
        legal, expected = _ENTRIES[name]
        if not math.isfinite(value) or not legal(value):
            raise structure.error(f"entry '{name}' of input 'device' is {value:g}, expected {expected}.")
    g_min_us, g_max_us = numbers.get("mapping.g_min_us", 0.0), numbers.get("mapping.g_max_us", math.inf)
    if g_min_us >= g_max_us:
        raise structure.error(
            f"entry 'mapping.g_min_us' of input 'device' is {g_min_us:g}, "
            f"expected less than 'mapping.g_max_us', which is {g_max_us:g}."
        )

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
    return Controls(
        numbers=numbers,
        strength=own_strength,
        seed=_seed(structure, "seed", seed),
        read_seed=_seed(structure, "read_seed", read_seed),
        first_sample=first,
        samples=samples,
        head=own_head,
    )


def _needed_entries(texts: Mapping[str, str], disturbance: str) -> list[tuple[str, str]]:
    """Return (attribute, entry) for every entry that the structure uses."""
    needed: list[tuple[str, str]] = []
    if texts[disturbance] != "none":
        needed += [(disturbance, f"{disturbance}.sigma")]
        needed += [(disturbance, "program.sigma_cycle")] if disturbance == "program" else []
    if texts[disturbance] == "lognormal_g":
        needed += [(disturbance, "mapping.g_min_us"), (disturbance, "mapping.g_max_us")]
    if texts["dac"] != "none":
        needed += [("dac", "dac.bits"), ("dac", "dac.steps"), ("dac", "dac.bound")]
    if texts["dac"] == "fixed":
        needed += [("dac", "dac.max")]
    if texts["adc"] != "none":
        needed += [("adc", "adc.bits"), ("adc", "adc.steps")]
    if texts["adc"] == "fixed":
        needed += [("adc", "adc.bound")]
    if texts["bound_management"] == "iterative":
        needed += [("bound_management", "adc.max_bound_factor"), ("bound_management", "adc.max_bound_resolution")]
    if texts["read_noise"] != "none":
        needed += [("read_noise", "read.weight_noise")]
    return needed


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
