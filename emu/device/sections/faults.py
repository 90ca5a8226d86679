"""[faults]: flipped bits of stored numbers and cells that are stuck."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BeforeValidator, model_validator

from emu.contract.schema import FLOATS, FloatType
from emu.device.fields import Choice, Number, as_tuples
from emu.device.sections.section import Section

SOFT_ERRORS = "Reagen et al. DAC 2018 (Ares), on integers"
STUCK = "MNSIM 2: 9 % low, 1 % high; Chen et al. 2015"
PARTS = ("sign", "exponent", "mantissa")

STORAGE = Choice(
    "what bit flips hit: nothing, integer codes of the weights, floats of one type, or what the model stores (model)",
    SOFT_ERRORS,
)


def _flip(value: object) -> object:
    given, value = value, as_tuples(value)
    groups = ("all", *PARTS)
    if isinstance(value, tuple):
        right = all(type(bit) is int and 0 <= bit < 32 for bit in value) and len(set(value)) == len(value) > 0
    else:
        right = value in groups
    if right:
        return value
    raise ValueError(
        f" is {given!r}, expected one of {', '.join(groups)}, or a list of different bits from 0, such as [6, 7]"
    )


Flip = Annotated[
    Annotated[str | tuple[int, ...], BeforeValidator(_flip)],
    Choice(
        "bits that may flip, bit 0 the lowest: all, sign, (floats) exponent or mantissa, or a list of bits",
        SOFT_ERRORS,
        options="all, sign, exponent, mantissa, a list of bits",
    ),
]
BitErrorRate = Annotated[float, Number("probability that a stored bit is flipped", "1", SOFT_ERRORS, "faults.ber")]
Protection = Annotated[
    Literal["none", "secded", "secded_zero"],
    Choice(
        "code words of 64 data and 8 check bits: single flips are corrected; a word with more stays as it is (secded) "
        "or becomes zeros (secded_zero)",
        "SECDED(72, 64), Hsiao 1970",
    ),
]


class _Faults(Section):
    stuck_low: Annotated[
        float | None, Number("probability that a cell is stuck at g_min", "1", STUCK, "faults.stuck_low")
    ] = None
    stuck_high: Annotated[
        float | None, Number("probability that a cell is stuck at g_max", "1", STUCK, "faults.stuck_high")
    ] = None


class FaultsNone(_Faults):
    """No bit flips; cells may be stuck."""

    storage: Annotated[Literal["none"], STORAGE] = "none"


class FaultsInt(_Faults):
    """Bits flip in integer codes: those of the model if it is quantized, else codes made of the weights."""

    storage: Annotated[Literal["int"], STORAGE]
    bits: Annotated[
        Literal[2, 4, 8, 16],
        Choice("bits of a code; a quantized model keeps its own", SOFT_ERRORS, options="2, 4, 8, 16"),
    ]
    range: Annotated[
        Literal["symmetric", "asymmetric"],
        Choice("codes around zero, or from the smallest to the largest weight", "usual integer quantizers"),
    ] = "symmetric"
    scale: Annotated[
        Literal["tensor", "column"], Choice("what shares the scale of the codes", "usual integer quantizers")
    ] = "tensor"
    flip: Flip = "all"
    ber: BitErrorRate
    protection: Protection = "none"

    @model_validator(mode="after")
    def _bits_exist(self) -> Self:
        if self.flip in ("exponent", "mantissa"):
            raise ValueError(f"flip is '{self.flip}', which codes do not have: choose all, sign or a list of bits")
        _check_flips(self.protection, self.mask, self.bits)
        return self

    @property
    def mask(self) -> int:
        """The bits that may flip."""
        return _mask(self.flip, {"sign": range(self.bits - 1, self.bits)}, self.bits)


class FaultsFloat(Section):
    """Bits flip in weights that are floats of one type, or whatever the model stores."""

    storage: Annotated[Literal["float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2", "model"], STORAGE]
    convert: Annotated[
        Literal["never", "round"],
        Choice(
            "weights that the model stores as another type are refused (never), or rounded to this one", SOFT_ERRORS
        ),
    ] = "never"
    flip: Flip = "all"
    ber: BitErrorRate
    protection: Protection = "none"

    @model_validator(mode="after")
    def _bits_exist(self) -> Self:
        if self.storage == "model" and self.convert != "never":
            raise ValueError("convert has no effect with storage model, which takes every weight as it is")
        _check_flips(self.protection, self.mask, self._type.bits)
        return self

    @property
    def _type(self) -> FloatType:
        return FLOATS["float32" if self.storage == "model" else self.storage]

    @property
    def mask(self) -> int:
        """The bits that may flip; with storage `model`, those of a float32."""
        return self.mask_of(self._type)

    def mask_of(self, kind: FloatType) -> int:
        """The bits that may flip of a float of that type."""
        return _mask(self.flip, {part: kind.places(part) for part in PARTS}, kind.bits)


Faults: TypeAlias = FaultsNone | FaultsInt | FaultsFloat


def _mask(flip: str | tuple[int, ...], parts: Mapping[str, range], bits: int) -> int:
    chosen = flip if isinstance(flip, tuple) else range(bits) if flip == "all" else parts[flip]
    return sum(1 << bit for bit in chosen)


def _check_flips(protection: str, mask: int, bits: int) -> None:
    if mask >= 2**bits:
        raise ValueError(f"flip names bit {mask.bit_length() - 1}, and there are bits 0 to {bits - 1}")
    if protection != "none" and mask != 2**bits - 1:
        raise ValueError(f"protection {protection} needs flip all: check bits protect whole words")
