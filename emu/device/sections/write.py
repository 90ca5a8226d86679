"""[write]: operands that are written into arrays at run time, the keys and values of attention."""

from typing import Annotated, Literal, TypeAlias

from emu.device.fields import Choice, Number
from emu.device.sections.program import LOGNORMAL
from emu.device.sections.section import Section

CLIPFORMER = "the ClipFormer paper (ViT-X, IEEE TCAD 2024)"

MODEL = Choice(
    "how a value written at run time differs from its target: lognormal_w, lognormal_w_meancorr, gauss_prop and "
    "gauss_range of weights, lognormal_g of both conductances of a pair, clipformer of both too, with noise that grows "
    "with a power of what is written",
    f"lognormal: {LOGNORMAL}; clipformer: {CLIPFORMER}",
)
Scaling = Annotated[
    Literal["matrix", "sample", "token", "calibrated"] | None,
    Choice(
        "what is scaled by one number: each matrix by itself (within it as mapping.scaling says), all matrices of a "
        "sample, such as all heads, each key or value vector, or everything that a site writes, by a range that is "
        "calibrated; left out: token where keys and values go to a cache, else matrix",
        CLIPFORMER,
    ),
]
Operands = Annotated[
    Literal["both", "key", "value"],
    Choice(
        "which operand of attention is disturbed: the keys (second operand of the scores), the values (second operand "
        "of the context), or both",
        CLIPFORMER,
    ),
]
Alpha = Annotated[
    float | None,
    Number(
        "before writing, conductances are lowered by so many g_min, not below g_min; negative: raised; 0: no shift",
        "g_min",
        CLIPFORMER,
        "write.alpha",
    ),
]
Beta = Annotated[
    float | None,
    Number("before writing, conductances are clipped to this; 1: no clip", "g_max", CLIPFORMER, "write.beta"),
]
AlphaOfValues = Annotated[
    float | None, Number("alpha of values alone; left out: as for keys", "g_min", CLIPFORMER, "write.alpha_value")
]
BetaOfValues = Annotated[
    float | None, Number("beta of values alone; left out: as for keys", "g_max", CLIPFORMER, "write.beta_value")
]
Bits = Annotated[
    int | None,
    Number("magnitudes are rounded to this resolution before writing; 0: not", "bits", CLIPFORMER, "write.bits"),
]
Sigma = Annotated[
    float,
    Number(
        "standard deviation of one write, drawn for each sample (emu.sample and emu.read_seed)",
        "1",
        LOGNORMAL,
        "write.sigma",
    ),
]


class WriteNone(Section):
    """Operands written at run time are exact."""

    model: Annotated[Literal["none"], MODEL]
    scaling: Scaling = None


class WriteDisturbed(Section):
    """Operands written at run time differ from their targets, by sample."""

    model: Annotated[Literal["lognormal_w", "lognormal_w_meancorr", "gauss_prop", "gauss_range", "lognormal_g"], MODEL]
    sigma: Sigma
    alpha: Alpha = None
    beta: Beta = None
    alpha_value: AlphaOfValues = None
    beta_value: BetaOfValues = None
    bits: Bits = None
    scaling: Scaling = None
    operands: Operands = "both"


class WriteClipFormer(WriteDisturbed):
    """Conductances are written with noise that grows with them."""

    model: Annotated[Literal["clipformer"], MODEL]  # type: ignore[assignment]
    sigma: Annotated[
        float, Number("standard deviation of the write noise, times gamma", "1", CLIPFORMER, "write.sigma")
    ]
    gamma: Annotated[float, Number("strength of the write noise; studied: 3, 4, 5", "1", CLIPFORMER, "write.gamma")]
    exponent: Annotated[
        float | None,
        Number(
            "noise grows with this power of what is written, g - g_min; left out: 0.5, the square root",
            "1",
            f"0.5: {CLIPFORMER}",
            "write.exponent",
        ),
    ] = None
    cells: Annotated[
        Literal["cells", "composite"],
        Choice("noise summed over four cells of 2 bits, or of one analog value", CLIPFORMER),
    ] = "cells"


Write: TypeAlias = WriteNone | WriteDisturbed | WriteClipFormer
