"""Operators, their inputs and attributes, random streams, the numbers of a device, and what goes together: as data.

The NumPy twin, the native library, the profiles and `docs/operators.md` follow these rows: `structure.py` walks them,
`generate.py` prints them as C++ and as tables. Conditions are in the language of `language.py`.
"""

import ctypes
import math
from dataclasses import dataclass
from enum import IntEnum

# The version of what a rewritten graph says: attribute `format`.
FORMAT = 3

STORED = "CrossbarMatMul"
QUANTIZED = "CrossbarMatMulQuantized"
DYNAMIC = "CrossbarMatMulDynamic"
FAULTY_WEIGHT = "FaultyWeight"

# Seeds and samples are words of 32 bits.
LARGEST_WORD = 2**32 - 1
# Of attributes that count or number something, so that an implementation with integers of 64 bits can multiply two.
LARGEST_COUNT = 2**31 - 1
MOST_ROW_TILES = 2**16
# Sites of a model, and matrices of one sample: halves of a word of the counter.
MOST_SITES = MOST_MATRICES = 2**16
# Numbers of one range in the input `ranges`: input, lowest and highest output, written operand.
NUMBERS_OF_RANGE = 4
MOST_TABLE_VALUES = 2**16


@dataclass(frozen=True)
class Input:
    """One input of an operator.

    Attributes:
        name: as in the signature.
        type: its element type.
        shape: as the page has it.
        constant: whether it is a constant of the graph.
        meaning: of a control, what it says and its range.
    """

    name: str
    type: str
    shape: str = ""
    constant: bool = False
    meaning: str = ""


@dataclass(frozen=True)
class Operator:
    """One operator: its name, its operands and after them the controls, in order, and the output with its shape."""

    name: str
    operands: tuple[Input, ...]
    controls: tuple[Input, ...]
    result: str

    @property
    def inputs(self) -> tuple[Input, ...]:
        """All inputs, in order."""
        return (*self.operands, *self.controls)

    def place(self, name: str) -> int:
        """The index of an input among all."""
        return next(index for index, each in enumerate(self.inputs) if each.name == name)


def _control(name: str, type: str, shape: str, meaning: str) -> Input:
    return Input(name, type, shape, meaning=meaning)


_WORD = "0 to 2^32 - 1"
# In the order of every operator that has them.
# fmt: off
CONTROLS = (
    _control("device", "float32", "`[P]`", "the numbers named by the attribute `entries`, each in its own range"),
    _control("strength", "float32", "`[sites]`", "0 or greater, finite; the node reads entry `site`"),
    _control("ranges", "float32", f"`[sites, {NUMBERS_OF_RANGE} R]`",
        "calibrated ranges, the node reads row `site`: see *Ranges*. Finite where it reads them, whatever the "
        "strength"),
    _control("faults", "int64", "`[F, 2]`",
        "a list of faults, each with the `array` that it strikes; the node reads those of its own array: see *Faults*. "
        "None of an array whose `fault_source` is `none`"),
    _control("seed", "int64", "`[]`", _WORD),
    _control("read_seed", "int64", "`[]`", _WORD),
    _control("sample", "int64", "`[]` or `[2]`",
        f"index of the first sample, or that and the number of samples in the batch; {_WORD}"),
    _control("position", "int64", "`[b]`",
        "position of the first row of each of b samples, of one for all, or empty: 0; see *Positions*"),
    _control("keys", "int64", "`[b, 2]`",
        "where keys end, by sample, one row for all, or empty: all keys, from position 0; see *Positions*"),
    _control("head", "int64", "`[]`", "-1 (all heads) or greater"),
)
# fmt: on


def _controls_without(*names: str) -> tuple[Input, ...]:
    return tuple(each for each in CONTROLS if each.name not in names)


_STORED_SHAPE = "[K, N] or [G, K, N]"
OPERATORS = {
    each.name: each
    for each in (
        Operator(
            STORED,
            (Input("X", "float32", "[..., K]"), Input("W", "float32", _STORED_SHAPE, constant=True)),
            _controls_without("keys"),
            "Y [..., N]",
        ),
        Operator(
            QUANTIZED,
            (
                Input("X", "float32", "[..., K]"),
                Input("codes", "int8", _STORED_SHAPE, constant=True),
                Input("scale", "float32", constant=True),
                Input("zero_point", "float32", constant=True),
            ),
            _controls_without("keys"),
            "Y [..., N]",
        ),
        Operator(
            DYNAMIC,
            (Input("A", "float32", "[..., M, K]"), Input("B", "float32", "[..., K, N]")),
            _controls_without("faults"),
            "Y [..., M, N]",
        ),
        Operator(
            FAULTY_WEIGHT,
            (Input("W", "float32", "[..., N]", constant=True),),
            _controls_without("ranges", "sample", "position", "keys"),
            "W' [..., N]",
        ),
    )
}


class Stream(IntEnum):
    """What random numbers are for; the low eight bits of counter word c3.

    A member is (number, what it is for, the array and its rows, the key); a name alone is that of the negative device
    of a pair, which has the stream after that of the positive one. The cells of the unit column have the streams of
    other cells plus UNIT_COLUMN.
    """

    meaning: str
    array: str
    key: str

    def __new__(cls, number: int, meaning: str = "", array: str = "W", key: str = "stored") -> "Stream":
        """The number, with what the page says of it."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.meaning, member.array, member.key = meaning, array, key
        return member

    # fmt: off
    PROGRAM = 0, "program", "W: the only device, or the positive one of a pair"
    PROGRAM_NEGATIVE = 1
    PROGRAM_CYCLE = 2, "program, cycle-to-cycle", "W", "`seed`, `read_seed`"
    PROGRAM_CYCLE_NEGATIVE = 3
    DRIFT = 4, "drift"
    DRIFT_NEGATIVE = 5
    PROGRAMMED_READ = 6, "programmed read", "W", "`seed`, `read_seed`"
    PROGRAMMED_READ_NEGATIVE = 7
    STUCK = 8, "stuck", "W; uniforms"
    STUCK_NEGATIVE = 9
    PROGRAM_SECOND = 10, "program, second number of a device"
    PROGRAM_SECOND_NEGATIVE = 11
    BIT_FLIPS = 12, "bit flips", "see *Faults*"
    LEVELS = 13, "levels", "one row, column = level"
    MODIFIER = 14, "modifier"
    WRITE = 16, "write", "B: rows and columns of its matrix", "run-time"
    WRITE_NEGATIVE = 17
    COMPENSATION_BASELINE = 18, "compensation, baseline"
    COMPENSATION_READING = 19, "compensation, reading"
    ADC_GAIN = 20, "ADC gain", "row = row tile, column = ADC (column / `adc_columns`)"
    ADC_OFFSET = 21, "ADC offset", "as ADC gain"
    STUCK_SECOND = 22, "stuck, second word", "W; words"
    STUCK_SECOND_NEGATIVE = 23
    OUTPUT_NOISE_SPREAD = 36, "spread of output noise", "row = row tile, column of W"
    NONLINEARITY_SPREAD = 37, "spread of the nonlinearity", "as the spread of output noise"
    UNIT_COLUMN = (
        24, "unit column", "K rows, 1 column; 24 plus the number of the stream above (0 to 7, 8, 10, 22)",
        "as the stream above",
    )
    READ = 64, "read", "Y", "run-time, per tile and pass"
    INPUT_NOISE = 65, "input noise", "X (A), rows of Y", "run-time; tile 0, pass 0"
    UNIT_COLUMN_READ = 66, "unit column, read", "rows of Y, 1 column", "run-time, per tile and pass"
    READ_NEGATIVE_ARRAY = 67, "read, negative array converted apart", "Y", "run-time, per tile and pass"
    ROUNDING = (
        68, "rounding", "as the stream above, uniforms; 68 plus the number of that stream less 64 (64 to 67)",
        "as the stream above",
    )
    OUTPUT_NOISE = (
        72, "output noise of its own", "as the stream above; 72 plus the number of that stream less 64 (64 and 67)",
        "as the stream above",
    )
    SAMPLE_KEY = 127, "key of a sample", "words: see above", "`seed`, `read_seed`"
    # fmt: on


def in_float32(value: float) -> float:
    """The nearest number of 32 bits, which is what a graph holds."""
    return ctypes.c_float(value).value


@dataclass(frozen=True)
class Range:
    """Which numbers are legal; see `in_words`.

    Attributes:
        low: smallest value.
        high: largest value.
        low_included: False when the value must be greater than `low`.
        or_zero: True when 0 is allowed too, as "off".
        whole: True for integers.
        values: the only legal values, where they are few; the rest is not used then.
        advice: what to do about another value.
    """

    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    or_zero: bool = False
    whole: bool = False
    values: tuple[int, ...] = ()
    advice: str = ""

    def allows(self, value: float) -> bool:
        """Whether a value is legal."""
        if self.values:
            return value in self.values
        if not math.isfinite(value) or (self.whole and value != int(value)):
            return False
        above = self.low <= value if self.low_included else self.low < value
        return (above and value <= self.high) or (self.or_zero and value == 0)

    def allows_stored(self, value: float) -> bool:
        """Whether a value is legal, also after rounding to the float32 that a graph holds."""
        if isinstance(value, bool) or not math.isfinite(value):
            return False
        rounded = in_float32(value)
        return self.allows(value) and self.allows(rounded) and (rounded == value or not self.whole)

    @property
    def in_words(self) -> str:
        """The legal values, such as `0 to 10` or `0, or a whole number from 2 to 16`."""
        if self.values:
            *others, last = map(str, self.values)
            words = f"{', '.join(others)} or {last}" if others else last
            return f"{words}; {self.advice}" if self.advice else words
        if self.low == -math.inf:
            return "any finite number"
        kind = "a whole number " if self.whole else ""
        if self.high == math.inf:
            span = f"{kind}{'at least' if self.low_included else 'greater than'} {self.low:.10g}"
        elif self.whole:
            span = f"{kind}from {self.low:.10g} to {self.high:.10g}"
        elif self.low_included:
            span = f"{self.low:.10g} to {self.high:.10g}"
        else:
            span = f"greater than {self.low:.10g} and at most {self.high:.10g}"
        return f"0, or {span}" if self.or_zero else span


def _whole(low: int, high: int = LARGEST_COUNT, or_zero: bool = False) -> Range:
    return Range(low, high, or_zero=or_zero, whole=True)


def _one_of(*values: int, advice: str = "") -> Range:
    return Range(whole=True, values=values, advice=advice)


# Which models of programming disturb plain numbers (`encoding` `weight`), and which conductances.
WORD_SETS: dict[str, tuple[str, ...]] = {
    "NUMBER_PROGRAMS": ("lognormal_w", "lognormal_w_meancorr", "gauss_prop", "gauss_range"),
    "SIGMA_PROGRAMS": (
        "lognormal_g",
        "normal_independent",
        "normal_proportional",
        "normal_inverse",
        "uniform_independent",
        "uniform_proportional",
        "uniform_inverse",
    ),
}
NUMBER_PROGRAMS, _SIGMA_PROGRAMS = WORD_SETS["NUMBER_PROGRAMS"], WORD_SETS["SIGMA_PROGRAMS"]
WORD_SETS["CONDUCTANCE_PROGRAMS"] = (
    *_SIGMA_PROGRAMS,
    "polynomial",
    "saturating",
    "level_shared",
    "resistance_range",
    "table",
)


@dataclass(frozen=True)
class FloatType:
    """Bits of a floating-point number: the sign, then its exponent, then its mantissa, lowest."""

    exponent: int
    mantissa: int
    has_infinity: bool = True

    @property
    def bits(self) -> int:
        """Bits of the number."""
        return 1 + self.exponent + self.mantissa

    def places(self, part: str) -> range:
        """The bits of `sign`, `exponent` or `mantissa`, from the lowest on."""
        low = {"mantissa": 0, "exponent": self.mantissa, "sign": self.bits - 1}[part]
        return range(low, {"mantissa": self.mantissa, "exponent": self.bits - 1, "sign": self.bits}[part])


# What weights may be stored as. IEEE 754; bfloat16 is the upper half of a float32; OCP 8-bit floating point.
FLOATS = {
    "float32": FloatType(8, 23),
    "float16": FloatType(5, 10),
    "bfloat16": FloatType(8, 7),
    "float8_e4m3": FloatType(4, 3, has_infinity=False),
    "float8_e5m2": FloatType(5, 2),
}
WORD_SETS["FLOATS"] = tuple(FLOATS)
WORD_SETS["FLOATS_OF_16"] = tuple(name for name, each in FLOATS.items() if each.bits == 16)
WORD_SETS["FLOATS_OF_8"] = tuple(name for name, each in FLOATS.items() if each.bits == 8)

_EVERY = tuple(OPERATORS)
_OF_STORED = (STORED, QUANTIZED, FAULTY_WEIGHT)
_OF_DYNAMIC = (DYNAMIC,)
_OF_QUANTIZED = (QUANTIZED,)
_OF_STORED_PRODUCTS = (STORED, QUANTIZED)
_OF_PRODUCTS = (STORED, QUANTIZED, DYNAMIC)
_ADDED = "Absent in files written before it existed, which is the same as 1"


@dataclass(frozen=True)
class Attribute:
    """One attribute of the operators `of`.

    Attributes:
        name: as nodes have it.
        of: the operators that have it.
        legal: the range of an integer, the words of a choice; no words: free text.
        absent: what holds for an operator that lacks it: its effect is off.
        meaning: what it says, for the page.
        optional: whether files of earlier versions lack it, which means `absent`.
    """

    name: str
    of: tuple[str, ...]
    legal: Range | tuple[str, ...]
    absent: int | str
    meaning: str
    optional: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether its values are integers and not words."""
        return isinstance(self.legal, Range)


def _attributes(*rows: Attribute) -> dict[str, Attribute]:
    return {row.name: row for row in rows}


# In the order of the page.
# fmt: off
ATTRIBUTES = _attributes(
    Attribute("format", _EVERY, _one_of(FORMAT, advice="rewrite the model with this version"), FORMAT,
        "version of this page; a model of another version must be rewritten"),
    Attribute("site", _EVERY, _whole(0, MOST_SITES - 1), 0,
        "index of the site: its entry of `strength`, and the low half of counter word c2 of run-time noise"),
    Attribute("array", _EVERY, _whole(0), 0,
        "index of the physical array, counter word c2 of what is stored: sites with the same `array` hold the same "
        "disturbed values. The lowest `site` that uses it"),
    Attribute("sites", _EVERY, _whole(1, MOST_SITES), 1, "number of sites in the model, the length of `strength`"),
    Attribute("entries", _EVERY, (), "", "names of the entries of `device`, separated by commas"),
    Attribute("sample_axis", _EVERY, _one_of(0, 1, -1), 0,
        "axis of X (A) that carries the samples; -1: no axis does, the product is the same for every sample"),
    Attribute("heads", _EVERY, _whole(0), 0, "number of heads at this site, 0 when it has none"),
    Attribute("head_axis", _EVERY, ("none", "output", "input", "matrix"), "none",
        "where heads lie: columns of W, rows of W (both for a stored `[K, N]` only), or matrices (of the batch of a"
        " dynamic product, of a stack)"),
    Attribute("head_groups", _EVERY, _whole(1), 1,
        "for `output`: number of equal blocks of columns that each hold all heads (3 for q, k, v side by side), "
        "else 1"),
    Attribute("head_share", _EVERY, _whole(1), 1,
        "number of query heads that share one head here (grouped-query attention), else 1"),
    Attribute("tile_rows", _EVERY, _whole(0), 0, "largest number of rows of one tile, 0 for unlimited"),
    Attribute("tile_columns", _EVERY, _whole(0), 0, "largest number of columns of one tile, 0 for unlimited"),
    Attribute("tile_split", _EVERY, ("fill", "balanced"), "fill",
        "full tiles and a remainder, or tiles as equal as possible (the first ones one larger)"),
    Attribute("scaling", _EVERY, ("tensor", "column", "tile", "tile_column"), "tensor", "what shares one weight scale"),
    Attribute("fault_source", _OF_STORED, ("none", "random", "list"), "none",
        "where bit flips and stuck cells come from: the list alone, or random ones and the list"),
    Attribute("fault_storage", _OF_STORED, ("none", "int", *FLOATS), "none",
        "what bit flips hit; `int` on `CrossbarMatMulQuantized` is always the model's own codes; floats need "
        "`encoding` `weight` and are not for `CrossbarMatMulQuantized`"),
    Attribute("fault_bits", _OF_STORED, _one_of(2, 4, 8, 16), 8, "bits of a code made for the faults"),
    Attribute("fault_range", _OF_STORED, ("symmetric", "asymmetric"), "symmetric", "of codes made for the faults"),
    Attribute("fault_scale", _OF_STORED, ("tensor", "column"), "tensor", "what shares the scale of those codes"),
    Attribute("fault_mask", _OF_STORED, _whole(0, LARGEST_WORD), 255,
        "bit i set: bit i of a code (of a float) may flip; bits that the codes of `CrossbarMatMulQuantized` lack "
        "do not count"),
    Attribute("fault_protection", _OF_STORED, ("none", "secded", "secded_zero"), "none",
        "SECDED(72, 64): single errors corrected, those detected beyond left as they are or set to zero; needs all "
        "bits in `fault_mask`"),
    Attribute("encoding", _OF_STORED, ("weight", "differential", "two_sided", "offset"), "weight",
        "how a weight becomes conductances; `weight`: no conductances, the array holds the number"),
    Attribute("offset_correction", _OF_STORED, ("digital", "unit_column"), "digital",
        "how the offset of `offset` is taken off; `unit_column` is not for `program` `function`, and without "
        "converters or read noise it is the same as `digital`"),
    Attribute("weight_bits", _OF_STORED, _whole(2, 16, or_zero=True), 0,
        "weights are rounded to codes of that many bits before mapping; 0: not"),
    Attribute("slice_bits", _OF_STORED, _whole(1, 8, or_zero=True), 0,
        "bits of a code in one cell: the code is cut into slices, each in an array of its own; 0: one cell holds "
        "all. Needs `weight_bits`; not for `weight` and `two_sided`"),
    Attribute("program", _OF_STORED, ("none", *NUMBER_PROGRAMS, *WORD_SETS["CONDUCTANCE_PROGRAMS"], "function"), "none",
        "disturbance of a value when it is stored: see *Programming*"),
    Attribute("program_function", _OF_STORED, (), "",
        "name of the registered function if `program` is `function`, else empty"),
    Attribute("table_times", _OF_STORED, _whole(0, MOST_TABLE_VALUES), 0,
        "times in the table if `program` is `table`, else 0; times and points multiplied are at most "
        f"{MOST_TABLE_VALUES}"),
    Attribute("table_points", _OF_STORED, _whole(0, MOST_TABLE_VALUES), 0,
        "targets in the table if `program` is `table`, else 0"),
    Attribute("program_clip", _OF_STORED, ("zero", "range", "none"), "zero",
        "programmed conductances are kept at 0 or above, between g_min and g_max, or as they are; `none` is not for "
        "`ir_drop` `network`"),
    Attribute("drift", _OF_STORED,
        ("none", "power_law", "power_law_fit", "power_law_table", "log_time", "relaxation"), "none",
        "change with time: see *Drift*"),
    Attribute("drift_points", _OF_STORED, _whole(0, MOST_TABLE_VALUES), 0,
        "targets in the table if `drift` is `power_law_table`, else 0"),
    Attribute("drift_pairs", _OF_STORED, ("physical", "net"), "physical",
        "each device of a pair drifts by itself, or the programmed difference is mapped to a pair again and that "
        "drifts (aihwkit); `net` needs `differential` without slices"),
    Attribute("compensation", _OF_STORED, ("none", "global", "global_exact", "column", "column_exact"), "none",
        "digital factor that undoes the mean drift of a tile, or of a column of a tile; needs `drift`"),
    Attribute("write", _OF_DYNAMIC, ("none", *NUMBER_PROGRAMS, "lognormal_g", "clipformer"), "none",
        "disturbance of a value when it is written"),
    Attribute("write_cells", _OF_DYNAMIC, ("composite", "cells"), "composite",
        "`clipformer`: noise of one analog value, or summed over cells of 2 bits"),
    Attribute("write_scaling", _OF_DYNAMIC, ("matrix", "sample", "token", "calibrated"), "matrix",
        "each matrix of the batch is scaled by itself (`scaling` within it), all matrices of a sample by one number, "
        "every key by itself along `key_axis` (every column where that is `none`), or all by the number of `ranges`; "
        "`scaling` must be `tensor` for `sample`, and says nothing for the last two"),
    Attribute("key_axis", _OF_DYNAMIC, ("none", "columns", "rows"), "none",
        "what of B are keys of attention, written one after another: its columns (of scores), its rows (of their "
        "context), or nothing"),
    Attribute("dac", _EVERY, ("none", "absmax", "fixed", "calibrated", "max", "absmax_sum"), "none",
        "input range; `absmax_sum` needs `adc` `fixed`"),
    Attribute("dac_code", _EVERY, ("sign_magnitude", "offset_binary"), "sign_magnitude", "levels of the DAC"),
    Attribute("dac_slice_bits", _EVERY, _whole(1, 8, or_zero=True), 0,
        "magnitude bits fed at once: the input is cut into slices, each read and converted by itself; 0: all at "
        "once. Needs `dac`, `dac_code` `sign_magnitude`, `dac.bits` > 0"),
    Attribute("adc", _EVERY, ("none", "absmax", "fixed", "calibrated", "rows", "granular"), "none", "output range"),
    Attribute("adc_code", _EVERY, ("sign_magnitude", "offset_binary", "twos_complement"), "sign_magnitude",
        "levels of the ADC"),
    Attribute("range_tiles", _OF_PRODUCTS, _whole(1), 1,
        "row tiles that have calibrated ranges of their own, all of the array's, or 1: one for all; see *Ranges*. "
        f"{_ADDED}", optional=True),
    Attribute("range_slices", _OF_PRODUCTS, _whole(1, 16), 1,
        f"weight slices that have calibrated output ranges of their own, all, or 1: one for all. {_ADDED}",
        optional=True),
    Attribute("range_polarities", _OF_PRODUCTS, _one_of(1, 2), 1,
        "1: one calibrated output range for both devices of a pair; 2: one for the positive and one for the negative "
        f"device. {_ADDED}", optional=True),
    Attribute("adc_columns", _EVERY, _whole(1), 1, "neighbouring columns that share one ADC, for its errors"),
    Attribute("bound_management", _EVERY, ("none", "iterative", "worst_case"), "none",
        "repeat a saturated product with smaller inputs (`worst_case` first with inputs whose sum cannot saturate, "
        "which needs `dac` `absmax`, `fixed` or `max`); needs `adc` `fixed`, one slice of weights and of inputs, "
        "and `encoding` other than `offset`"),
    Attribute("read_noise", _EVERY, ("none", "additive_constant", "pcm_read", "proportional", "independent"), "none",
        "disturbance at each product: of weights (aihwkit's `additive_constant`, `pcm_read`) or of every device by "
        "itself (CrossSim's `proportional`, `independent`)"),
    Attribute("ir_drop", _EVERY, ("none", "formula", "network"), "none",
        "voltage lost along the wires; `network` is for stored conductances only (D: not `network`; `encoding` not "
        "`weight`)"),
    Attribute("code_bits", _OF_QUANTIZED, _one_of(2, 4, 8, 16), 8, "bits of a code"),
    Attribute("block_rows", _OF_QUANTIZED, _whole(0), 0,
        "rows that share one scale, 0 when the scale is `[]`, `[N]` or `[G, N]`"),
    Attribute("window", _OF_STORED_PRODUCTS, (), "",
        "empty, or how rows are cut out of images: see *Windows*. Absent in files written before it existed, which "
        "is the same as empty", optional=True),
    Attribute("adc_pairs", _OF_STORED, ("subtracted", "separate"), "subtracted",
        "the currents of the devices of a pair are subtracted, then converted, or each converted by itself and the "
        "codes subtracted; `separate` needs `adc` and `encoding` `differential` or `two_sided`", optional=True),
    Attribute("dac_rounding", _EVERY, ("nearest", "stochastic"), "nearest",
        "an input goes to the nearest step, or to one of its two neighbours at random, so that the mean is the input",
        optional=True),
    Attribute("adc_rounding", _EVERY, ("nearest", "stochastic"), "nearest", "likewise of an output", optional=True),
    Attribute("dac_slice_sum", _EVERY, ("digital", "analog"), "digital",
        "each slice of an input is converted and the codes are added up, or what the slices give is added up before "
        "one conversion; `analog` needs `dac_slice_bits` and `adc`, and is not for `ir_drop` `formula`",
        optional=True),
)
# fmt: on

ANY = Range()
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, low_included=False)
_SIGMA = Range(0, 10)
_PROBABILITY = Range(0, 1)
_SHARE = Range(0, 1, low_included=False)
_BITS = _whole(2, 16, or_zero=True)
_STEPS = _whole(2, 65536, or_zero=True)
_ASYMMETRY = Range(-1, 1)

# What moves and limits the conductances of operands before they are written.
TRANSFORM = frozenset(("write.alpha", "write.beta", "write.alpha_value", "write.beta_value"))
# What the indices in the name of an entry count: each stays below an attribute.
INDICES = {"i": "table_points", "j": "table_times", "k": "drift_points"}
# The numbers of a fit over the conductance x: clip(slope ln x + offset, low, high) below the joint, above it
# c0 + c1 x + c2 x^2 + c3 x^3.
FIT = ("joint", "slope", "offset", "low", "high", "c0", "c1", "c2", "c3")
_FIT_ABSENT = {"high": 1}


@dataclass(frozen=True)
class Number:
    """One entry of `device`, or a family of them: `<i>`, `<j>`, `<k>` stand for indices, `<name>` for any text.

    Attributes:
        name: as in the attribute `entries`.
        legal: its range.
        unit: its unit, `1` for a ratio.
        needed: (attribute that asks for it, condition), for each reason why it must be there; none: optional, an
            effect that is switched on by its entry.
        absent: what holds where it is not used.
        meaning: what the page says of it beyond that.
        beside: the entry without which it means nothing.
        without: condition under which a stored site may not have it.
        rises: of a family with an index: each must be greater than the one before it.
    """

    name: str
    legal: Range
    unit: str
    needed: tuple[tuple[str, str], ...] = ()
    absent: float = 0
    meaning: str = ""
    beside: str = ""
    without: str = ""
    rises: bool = False

    @property
    def is_family(self) -> bool:
        """Whether it stands for many entries."""
        return "<" in self.name


def _when(attribute: str, condition: str) -> tuple[tuple[str, str], ...]:
    return ((attribute, f"{attribute} {condition}"),)


_IS_POLYNOMIAL = _when("program", "== 'polynomial'")
_IS_TABLE = _when("program", "== 'table'")
_HAS_CONDUCTANCES = (*_when("encoding", "!= 'weight'"), *_when("write", "in ('lognormal_g', 'clipformer')"))
_IS_CLIPFORMER = _when("write", "== 'clipformer'")
_HAS_DAC, _HAS_ADC = _when("dac", "!= 'none'"), _when("adc", "!= 'none'")
_DRIFTS, _POWER_LAW = _when("drift", "!= 'none'"), _when("drift", "== 'power_law'")
_DRIFT_TABLE, _LOG_TIME = _when("drift", "== 'power_law_table'"), _when("drift", "== 'log_time'")
_RELAXES, _IS_SATURATING = _when("drift", "== 'relaxation'"), _when("program", "== 'saturating'")
_IS_READ = _when("drift", "in ('power_law_fit', 'power_law_table', 'log_time')")
_ITERATES = _when("bound_management", "!= 'none'")
_WORST_CASE, _ABSMAX_SUM = _when("bound_management", "== 'worst_case'"), _when("dac", "== 'absmax_sum'")
_HAS_FORMULA, _HAS_NETWORK = _when("ir_drop", "== 'formula'"), _when("ir_drop", "== 'network'")
_NORMALIZED = "g_max x (largest input)"
_G_MIN = "mapping.g_min_us"


def _numbers(*rows: Number) -> dict[str, Number]:
    return {row.name: row for row in rows}


# In the order of a graph's `device` tensor.
# fmt: off
NUMBERS = _numbers(
    Number("program.sigma", _SIGMA, "1",
        _when("program", "in (*NUMBER_PROGRAMS, *SIGMA_PROGRAMS, 'level_shared', 'resistance_range')"),
        meaning="device to device"),
    Number("program.sigma_cycle", _SIGMA, "1", _when("program", "in (*NUMBER_PROGRAMS, *SIGMA_PROGRAMS)"),
        meaning="cycle to cycle"),
    Number("program.sigma_off", _SIGMA, "1", _when("program", "== 'resistance_range'")),
    Number("program.scale", NOT_NEGATIVE, "1", _when("program", "in ('polynomial', 'saturating', 'table')"), 1,
        "factor on the spread"),
    *(Number(f"program.c{power}", ANY, "microsiemens", _IS_POLYNOMIAL) for power in range(5)),
    Number("program.reference_us", POSITIVE, "microsiemens", _IS_POLYNOMIAL, 1),
    Number("program.amplitude_na", NOT_NEGATIVE, "nanoampere", _IS_SATURATING, meaning="largest standard deviation"),
    Number("program.knee_na", POSITIVE, "nanoampere", _IS_SATURATING, 1, "current towards which it saturates"),
    Number("program.current_max_na", POSITIVE, "nanoampere", _IS_SATURATING, 1, "what g_max stands for"),
    Number("program.time_s", NOT_NEGATIVE, "seconds", (("program", "program == 'table' and table_times > 1"),)),
    Number("program.target_us.<i>", NOT_NEGATIVE, "microsiemens", _IS_TABLE, meaning="rising", rises=True),
    Number("program.mean_us.<j>.<i>", ANY, "microsiemens", _IS_TABLE),
    Number("program.std_us.<j>.<i>", NOT_NEGATIVE, "microsiemens", _IS_TABLE),
    Number("program.table_time_s.<j>", POSITIVE, "seconds", _IS_TABLE, meaning="rising", rises=True),
    Number("program.parameter.<name>", ANY, "as the function has it", meaning="for `program` `function`"),
    Number("program.modifier", NOT_NEGATIVE, "largest weight of the tile", meaning="standard deviation",
        without="encoding == 'offset' or slice_bits > 0"),
    Number(_G_MIN, NOT_NEGATIVE, "microsiemens", _HAS_CONDUCTANCES, meaning="less than g_max",
        beside="mapping.g_max_us"),
    Number("mapping.g_max_us", POSITIVE, "microsiemens", _HAS_CONDUCTANCES, 1),
    Number("mapping.cell_bits", _whole(1, 12, or_zero=True), "bits", meaning="levels of a cell; 0: analog",
        without="encoding == 'weight' or slice_bits > 0"),
    Number("mapping.percentile", _SHARE, "1", meaning="of the magnitudes, that becomes the scale"),
    Number("drift.time_s", NOT_NEGATIVE, "seconds", _DRIFTS, meaning="since programming"),
    Number("drift.scale", NOT_NEGATIVE, "1", _DRIFTS, 1),
    Number("drift.read_scale", NOT_NEGATIVE, "1", _IS_READ, 1),
    Number("drift.nu", ANY, "1", _POWER_LAW, meaning="exponent"),
    Number("drift.nu_sigma", NOT_NEGATIVE, "1", _POWER_LAW),
    Number("drift.t0_s", POSITIVE, "seconds", (*_POWER_LAW, *_IS_READ), 1, "when drift begins"),
    Number("drift.t_read_s", POSITIVE, "seconds", _IS_READ, 1, "how long the one reading takes"),
    *(
        Number(f"drift.{fit}.{part}", ANY, "1", absent=_FIT_ABSENT.get(part, 0), meaning=f"of the fit {meaning}")
        for fit, meaning in (
            ("nu", "of the mean exponent"), ("nu_sigma", "of its spread"), ("read", "of a reading's relative noise")
        )
        for part in FIT
    ),
    Number("drift.read.q", NOT_NEGATIVE, "1", meaning="instead of that fit: noise at g_max that falls as a power"),
    Number("drift.read.power", ANY, "1", meaning="of that power"),
    Number("drift.read.cap", NOT_NEGATIVE, "1", absent=1, meaning="of that power: largest value"),
    Number("drift.target_us.<k>", NOT_NEGATIVE, "microsiemens", _DRIFT_TABLE, meaning="rising", rises=True),
    Number("drift.mean_nu.<k>", ANY, "1", _DRIFT_TABLE, meaning="mean exponent"),
    Number("drift.std_nu.<k>", NOT_NEGATIVE, "1", _DRIFT_TABLE, meaning="its spread"),
    Number("drift.shift_us", ANY, "microsiemens", _LOG_TIME, meaning="of the mean, by ln(t / t0)"),
    Number("drift.spread_us", ANY, "microsiemens", _LOG_TIME, meaning="between devices, by ln(t / t0)"),
    Number("drift.spread_t0_us", NOT_NEGATIVE, "microsiemens", _LOG_TIME, meaning="between devices at t0"),
    Number("drift.read_us", NOT_NEGATIVE, "microsiemens", _LOG_TIME, meaning="noise of a reading, by log10 of G"),
    Number("drift.final_us", NOT_NEGATIVE, "microsiemens", _RELAXES, meaning="where conductances end"),
    Number("drift.tau_s", POSITIVE, "seconds", _RELAXES, 1, "time constant"),
    Number("drift.tau_sigma", _SIGMA, "1", _RELAXES, meaning="spread of its logarithm between devices"),
    Number("faults.ber", _PROBABILITY, "1",
        (("fault_storage", "fault_source == 'random' and fault_storage != 'none'"),),
        meaning="probability of each bit"),
    Number("faults.stuck_low", _PROBABILITY, "1", meaning="for `fault_source` `random`; the sum of both is at most 1",
        beside="faults.stuck_high", without="encoding == 'weight'"),
    Number("faults.stuck_high", _PROBABILITY, "1", beside="faults.stuck_low"),
    Number("write.sigma", _SIGMA, "1", _when("write", "!= 'none'")),
    Number("write.sigma_device", _SIGMA, "1", meaning="device to device: stays with the cell"),
    Number("write.capacity", _whole(1, 2**24, or_zero=True), "keys",
        meaning="for which the arrays have cells; the next ones take the first cells again. 0: no limit"),
    Number("write.stuck_low", _PROBABILITY, "1", meaning="of cells; the sum of both is at most 1",
        beside="write.stuck_high"),
    Number("write.stuck_high", _PROBABILITY, "1", beside="write.stuck_low"),
    Number("write.gamma", NOT_NEGATIVE, "1", _IS_CLIPFORMER),
    Number("write.exponent", Range(0, 10), "1", absent=0.5,
        meaning="for `write` `clipformer`: noise grows with this power; 0.5 where it is not there"),
    Number("write.alpha", ANY, "g_min", meaning="conductances are lowered by so much; negative: raised", beside=_G_MIN),
    Number("write.beta", _SHARE, "g_max", absent=1, meaning="conductances are limited to it", beside=_G_MIN),
    Number("write.alpha_value", ANY, "g_min", meaning="`write.alpha` of values (`key_axis` `rows`), if another",
        beside=_G_MIN),
    Number("write.beta_value", _SHARE, "g_max", absent=1, meaning="`write.beta` of values, if another", beside=_G_MIN),
    Number("write.bits", _BITS, "bits", meaning="magnitudes are rounded to codes of so many; 0: not"),
    Number("dac.bits", _BITS, "bits", _HAS_DAC, meaning="0: not quantized, unless by steps"),
    Number("dac.steps", _STEPS, "steps", _HAS_DAC, meaning="0: derived from bits"),
    Number("dac.bound", POSITIVE, "largest input", _HAS_DAC, 1),
    Number("dac.max", POSITIVE, "activation", _when("dac", "== 'fixed'"), 1, "that maps to 1"),
    Number("dac.limit", POSITIVE, "activation",
        meaning="for `dac` `absmax`, `max` and `absmax_sum`: the largest that maps to 1"),
    Number("dac.assumed_weight", POSITIVE, _NORMALIZED, _ABSMAX_SUM, 1, "largest weight, as the sum is weighted"),
    Number("dac.sum_resolution", POSITIVE, "1", _ABSMAX_SUM, 1, "of inputs, that the sum may leave"),
    Number("dac.asymmetry", _ASYMMETRY, "1", meaning="for a `dac` that is not `none`: loss of negative inputs"),
    Number("adc.bits", _BITS, "bits", _HAS_ADC, meaning="as for the DAC; `granular` needs bits > 0"),
    Number("adc.steps", _STEPS, "steps", _HAS_ADC, meaning="as for the DAC"),
    Number("adc.bound", POSITIVE, _NORMALIZED, _when("adc", "== 'fixed'"), 1),
    Number("adc.gain_sigma", NOT_NEGATIVE, "1", meaning="for an `adc` that is not `none`", beside="adc.offset_sigma"),
    Number("adc.offset_sigma", NOT_NEGATIVE, _NORMALIZED, beside="adc.gain_sigma"),
    Number("adc.max_bound_factor", Range(1, 2**20), "1", _ITERATES, 1),
    Number("adc.max_bound_resolution", POSITIVE, "1", _ITERATES, 1),
    Number("adc.assumed_weight", POSITIVE, _NORMALIZED, _WORST_CASE, 1, "largest weight, for the worst case"),
    Number("adc.scale", POSITIVE, "1", absent=1, meaning="for an `adc` that is not `none`: factor on its codes"),
    Number("adc.asymmetry", _ASYMMETRY, "1", meaning="for an `adc` that is not `none`: loss of negative outputs"),
    Number("adc.nonlinearity", NOT_NEGATIVE, "1 / `adc.bound`", meaning="for `adc` `fixed`: n of y / (1 + n abs(y))"),
    Number("adc.nonlinearity_sigma", NOT_NEGATIVE, "1", meaning="spread between columns", beside="adc.nonlinearity"),
    Number("adc.slope_calibration", NOT_NEGATIVE, "`adc.bound`", meaning="where the slope is 1 again",
        beside="adc.nonlinearity"),
    Number("read.weight_noise", NOT_NEGATIVE, "1", _when("read_noise", "!= 'none'")),
    Number("read.output_noise", NOT_NEGATIVE, _NORMALIZED),
    Number("read.output_noise_spread", NOT_NEGATIVE, "1", meaning="between columns", beside="read.output_noise"),
    Number("read.input_noise", NOT_NEGATIVE, "largest input"),
    Number("read.ir_drop", NOT_NEGATIVE, "1", _HAS_FORMULA),
    Number("read.ir_drop_ratio", POSITIVE, "1", _HAS_FORMULA, 1),
    Number("read.row_ohm", NOT_NEGATIVE, "ohm", _HAS_NETWORK, meaning="of a wire between two cells"),
    Number("read.column_ohm", NOT_NEGATIVE, "ohm", _HAS_NETWORK, meaning="of a wire between two cells"),
)
# fmt: on


@dataclass(frozen=True)
class Rule:
    """What may not be: a condition, and the sentence where it holds. `{x}` in it is an attribute, number or definition.

    Rules are asked in order, and the first that holds speaks.
    """

    wrong: str
    sentence: str


# Names for what several rules speak of.
DEFINITIONS = {
    "weights": "encoding == 'weight'",
    "sliced": "slice_bits > 0",
    "cut_bits": "weight_bits - 1 if encoding == 'differential' else weight_bits",
    "last_site": "sites - 1",
    "stored_bits": "32 if fault_storage == 'float32' else 16 if fault_storage in FLOATS_OF_16 else "
    "8 if fault_storage in FLOATS_OF_8 else code_bits if quantized else fault_bits",
    "every_bit": "2 ** stored_bits - 1",
    "usable_mask": "fault_mask & 2 ** code_bits - 1 if quantized else fault_mask",
}


def _attribute(name: str, wrong: str, expected: str) -> Rule:
    value = f"{{{name}}}" if ATTRIBUTES[name].is_integer else f"'{{{name}}}'"
    return Rule(wrong, f"attribute '{name}' is {value}, expected {expected}.")


def _number(name: str, wrong: str, expected: str) -> Rule:
    return Rule(wrong, f"entry '{name}' of input 'device' is {{{name}}}, expected {expected}.")


_UNLESS_CONDUCTANCES = "unless 'encoding' is 'differential', 'two_sided' or 'offset'"

# Of attributes, asked when a model is loaded.
# fmt: off
ATTRIBUTE_RULES = (
    _attribute("site", "site >= sites", "0 to {last_site} (sites - 1)"),
    _attribute("head_axis", "dynamic and head_axis in ('output', 'input')", "one of none, matrix"),
    _attribute("heads", "head_axis != 'none' and heads == 0", "1 or greater because 'head_axis' is '{head_axis}'"),
    _attribute("sample_axis", "window != '' and sample_axis == 1", "0 or -1 because 'window' is given"),
    _attribute("head_axis", "window != '' and head_axis != 'none'", "'none' because 'window' is given"),
    _attribute("head_groups", "head_axis != 'output' and head_groups != 1", "1 unless 'head_axis' is 'output'"),
    _attribute("program", "program in NUMBER_PROGRAMS and not weights",
        "a model of conductances unless 'encoding' is 'weight'"),
    _attribute("program", "program in CONDUCTANCE_PROGRAMS and weights", f"a model of numbers {_UNLESS_CONDUCTANCES}"),
    _attribute("slice_bits", "sliced and (encoding in ('weight', 'two_sided') or weight_bits == 0)",
        "0 unless 'encoding' is 'differential' or 'offset' and 'weight_bits' is given"),
    _attribute("slice_bits", "program == 'function' and sliced", "0 because 'program' is 'function'"),
    _attribute("program_function", "program == 'function' and program_function == ''",
        "a name because 'program' is 'function'"),
    _attribute("offset_correction",
        "program == 'function' and encoding == 'offset' and offset_correction == 'unit_column'",
        "'digital' because 'program' is 'function'"),
    *(
        _attribute(name, f"program == 'table' and {name} == 0", "1 or greater because 'program' is 'table'")
        for name in ("table_times", "table_points")
    ),
    _attribute("drift_points", "drift == 'power_law_table' and drift_points == 0",
        "1 or greater because 'drift' is 'power_law_table'"),
    _attribute("table_points", f"table_times * table_points > {MOST_TABLE_VALUES}",
        f"at most {MOST_TABLE_VALUES} together with 'table_times', which is {{table_times}}"),
    _attribute("program", "program == 'level_shared' and not sliced and 'mapping.cell_bits' not in entries",
        "slices or entry 'mapping.cell_bits' beside 'level_shared', which needs levels"),
    _attribute("drift", "drift != 'none' and weights", f"'none' {_UNLESS_CONDUCTANCES}: only conductances drift"),
    _attribute("drift_pairs", "drift_pairs == 'net' and (encoding != 'differential' or sliced)",
        "'physical' unless 'encoding' is 'differential' without slices"),
    _attribute("read_noise", "read_noise == 'independent' and drift_pairs == 'net'",
        "another one because 'drift_pairs' is 'net': a remapped pair has a unit of its own"),
    _attribute("compensation", "compensation != 'none' and drift == 'none'", "'none' because 'drift' is 'none'"),
    _attribute("compensation", "compensation in ('global', 'column') and (sliced or encoding == 'offset')",
        "'{compensation}_exact' because of slices or an offset"),
    _attribute("adc_pairs",
        "adc_pairs == 'separate' and (adc == 'none' or encoding not in ('differential', 'two_sided'))",
        "'subtracted' unless 'adc' is on and 'encoding' is 'differential' or 'two_sided'"),
    _attribute("adc_pairs", "adc_pairs == 'separate' and 'program.modifier' in entries",
        "'subtracted' because of entry 'program.modifier', which disturbs a weight as a whole"),
    _attribute("compensation", "compensation in ('global', 'column') and adc_pairs == 'separate'",
        "'{compensation}_exact' because 'adc_pairs' is 'separate'"),
    _attribute("fault_storage", "fault_storage in FLOATS and (quantized or not weights)",
        "'none' or 'int' unless weights are floats and 'encoding' is 'weight'"),
    _attribute("fault_mask", "fault_storage != 'none' and usable_mask > every_bit",
        "at most {every_bit}, the bits that are stored"),
    _attribute("fault_mask", "fault_storage != 'none' and fault_protection != 'none' and usable_mask != every_bit",
        "{every_bit}, every bit, because 'fault_protection' is '{fault_protection}'"),
    _attribute("program_clip", "program_clip == 'none' and ir_drop == 'network'",
        "'zero' or 'range' because 'ir_drop' is 'network'"),
    _attribute("ir_drop", "ir_drop == 'network' and weights", "'none' or 'formula' except for stored conductances"),
    _attribute("write", "write in NUMBER_PROGRAMS and 'write.stuck_low' in entries",
        "'lognormal_g' or 'clipformer' because of entry 'write.stuck_low': only conductances are stuck"),
    _attribute("scaling", "write_scaling == 'sample' and scaling != 'tensor'",
        "'tensor' because 'write_scaling' is 'sample'"),
    _attribute("dac_slice_bits", "dac_slice_bits > 0 and (dac == 'none' or dac_code != 'sign_magnitude')",
        "0 unless 'dac' is on and 'dac_code' is 'sign_magnitude'"),
    _attribute("dac_slice_bits", "dac_slice_bits > 0 and 'read.input_noise' in entries",
        "0 because of entry 'read.input_noise'"),
    _attribute("dac_rounding", "dac_rounding == 'stochastic' and dac == 'none'", "'nearest' because 'dac' is 'none'"),
    _attribute("adc_rounding", "adc_rounding == 'stochastic' and adc == 'none'", "'nearest' because 'adc' is 'none'"),
    _attribute("dac_slice_sum", "dac_slice_sum == 'analog' and (dac_slice_bits == 0 or adc == 'none')",
        "'digital' unless 'dac_slice_bits' is given and 'adc' is on"),
    _attribute("dac_slice_sum", "dac_slice_sum == 'analog' and ir_drop == 'formula'",
        "'digital' because 'ir_drop' is 'formula', which is not linear in the inputs"),
    _attribute("dac", "dac == 'absmax_sum' and adc != 'fixed'",
        "another one because 'adc' is '{adc}', not 'fixed': it asks what the sum of inputs may reach"),
    _attribute("dac", "dac == 'none' and 'dac.asymmetry' in entries", "another one because of entry 'dac.asymmetry'"),
    _attribute("dac_slice_bits", "dac_slice_bits > 0 and 'dac.asymmetry' in entries",
        "0 because of entry 'dac.asymmetry'"),
    _attribute("adc", "adc == 'none' and 'adc.scale' in entries", "another one because of entry 'adc.scale'"),
    _attribute("adc", "adc == 'none' and 'adc.asymmetry' in entries", "another one because of entry 'adc.asymmetry'"),
    _attribute("adc", "adc != 'fixed' and 'adc.nonlinearity' in entries",
        "'fixed' because of entry 'adc.nonlinearity', which is relative to 'adc.bound'"),
    _attribute("bound_management", "bound_management == 'worst_case' and dac not in ('absmax', 'fixed', 'max')",
        "another one because 'dac' is '{dac}', not 'absmax', 'fixed' or 'max'"),
    _attribute("range_tiles", "range_tiles > 1 and key_axis == 'rows'",
        "1 because 'key_axis' is 'rows', along which tiles are added"),
    _attribute("range_slices",
        "range_slices > 1 and ((range_slices - 1) * slice_bits >= cut_bits or range_slices * slice_bits < cut_bits)",
        "1, or the number of slices of a weight"),
    _attribute("range_polarities",
        "range_polarities == 2 and encoding not in ('differential', 'two_sided') and write not in ('lognormal_g', "
        "'clipformer')", "1 unless values are held by pairs of devices"),
    _attribute("bound_management", "bound_management != 'none' and adc != 'fixed'",
        "'none' because 'adc' is '{adc}', not 'fixed'"),
    _attribute("bound_management",
        "bound_management != 'none' and (sliced or dac_slice_bits > 0 or encoding == 'offset')",
        "'none' because of slices or an offset"),
    _attribute("bound_management", "bound_management != 'none' and adc_pairs == 'separate'",
        "'none' because 'adc_pairs' is 'separate'"),
)
# fmt: on

# Of the numbers of a device, asked at every run.
# fmt: off
NUMBER_RULES = (
    _number("mapping.g_min_us",
        "'mapping.g_min_us' in entries and 'mapping.g_max_us' in entries and device['mapping.g_min_us'] >= "
        "device['mapping.g_max_us']", "less than 'mapping.g_max_us', which is {mapping.g_max_us}"),
    _number("mapping.cell_bits", "encoding == 'offset' and device['mapping.cell_bits'] == 1",
        "0 or 2 to 12 with an offset"),
    _number("mapping.cell_bits", "program == 'level_shared' and not sliced and device['mapping.cell_bits'] == 0",
        "1 to 12 because 'program' is 'level_shared'"),
    _number("faults.stuck_high", "device['faults.stuck_low'] + device['faults.stuck_high'] > 1",
        "at most 1 together with 'faults.stuck_low'"),
    _number("write.stuck_high", "device['write.stuck_low'] + device['write.stuck_high'] > 1",
        "at most 1 together with 'write.stuck_low'"),
    _number("drift.time_s", "drift == 'log_time' and 0 < device['drift.time_s'] < device['drift.t0_s']",
        "0 or at least 'drift.t0_s', which is {drift.t0_s}"),
    _number("drift.t_read_s",
        "drift in ('power_law_fit', 'power_law_table', 'log_time') and device['drift.t_read_s'] > device['drift.t0_s']",
        "at most 'drift.t0_s', which is {drift.t0_s}"),
    _number("dac.bits", "dac_slice_bits > 0 and device['dac.bits'] == 0", "2 to 16 because 'dac_slice_bits' is given"),
    _number("dac.steps", "dac_slice_bits > 0 and device['dac.steps'] != 0", "0 because 'dac_slice_bits' is given"),
    _number("dac.bound", "dac_slice_bits > 0 and device['dac.bound'] != 1", "1 because 'dac_slice_bits' is given"),
    _number("adc.bits", "adc == 'granular' and device['adc.bits'] == 0", "2 to 16 because 'adc' is 'granular'"),
)
# fmt: on


def range_of(name: str) -> Range:
    """The range of an entry or family of entries, or of an attribute that is an integer."""
    legal = NUMBERS[name].legal if name in NUMBERS else ATTRIBUTES[name].legal
    assert isinstance(legal, Range), name
    return legal


def plain(op: str) -> dict[str, int | str]:
    """The attributes of a node of type `op` whose device does nothing."""
    return {name: row.absent for name, row in ATTRIBUTES.items() if op in row.of}


def attribute_types(op: str) -> dict[str, type]:
    """The names of the attributes of `op`, in order, and whether each is an `int` or a `str`."""
    return {name: int if row.is_integer else str for name, row in ATTRIBUTES.items() if op in row.of}


# What files written by earlier versions lack, and what that means.
DEFAULTS: dict[str, int | str] = {name: row.absent for name, row in ATTRIBUTES.items() if row.optional}
