"""[faults]: flipped bits of stored numbers and cells that are stuck."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BeforeValidator, model_validator

from emu.device.fields import Choice, Number, as_tuples
from emu.device.sections.section import Section

SOFT_ERRORS = "Reagen et al. DAC 2018 (Ares), on integers"
STUCK = "MNSIM 2: 9 % low, 1 % high; Chen et al. 2015"
FLOAT32_BITS = {"mantissa": range(23), "exponent": range(23, 31), "sign": range(31, 32)}

STORAGE = Choice(
    "what bit flips hit: nothing, integer codes of the weights, or the bits of float32 weights", SOFT_ERRORS
)


def _flip(value: object) -> object:
    given, value = value, as_tuples(value)
    groups = ("all", *FLOAT32_BITS)
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
        "bits that may flip, bit 0 the lowest: all, sign, (float32) exponent or mantissa, or a list of bits",
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
        Literal[4, 8, 16],
        Choice("bits of a code; a quantized model keeps its own", SOFT_ERRORS, options="4, 8, 16"),
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
        _check_flips(self.flip, self.protection, self.bits)
        return self

    @property
    def mask(self) -> int:
        """The bits that may flip."""
        return _mask(self.flip, self.bits)


class FaultsFloat32(Section):
    """Bits flip in float32 weights."""

    storage: Annotated[Literal["float32"], STORAGE]
    flip: Flip = "all"
    ber: BitErrorRate
    protection: Protection = "none"

    @model_validator(mode="after")
    def _bits_exist(self) -> Self:
        _check_flips(self.flip, self.protection, 32)
        return self

    @property
    def mask(self) -> int:
        """The bits that may flip."""
        return _mask(self.flip, 32)


Faults: TypeAlias = FaultsNone | FaultsInt | FaultsFloat32


def _mask(flip: str | tuple[int, ...], bits: int) -> int:
    if isinstance(flip, str):
        groups = FLOAT32_BITS if bits == 32 else {"sign": range(bits - 1, bits)}
        flip = tuple(range(bits) if flip == "all" else groups[flip])
    return sum(1 << bit for bit in flip)


def _check_flips(flip: str | tuple[int, ...], protection: str, bits: int) -> None:
    if isinstance(flip, tuple) and max(flip) >= bits:
        raise ValueError(f"flip names bit {max(flip)}, and there are bits 0 to {bits - 1}")
    if protection != "none" and _mask(flip, bits) != 2**bits - 1:
        raise ValueError(f"protection {protection} needs flip all: check bits protect whole words")
