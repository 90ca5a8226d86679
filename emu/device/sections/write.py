"""[write]: operands that are written into arrays at run time, the keys and values of attention."""

from typing import Annotated, Literal, TypeAlias

from emu.device.fields import Choice, Number
from emu.device.sections.program import LOGNORMAL
from emu.device.sections.section import Section

CLIPFORMER = "the ClipFormer paper (ViT-X, IEEE TCAD 2024)"

MODEL = Choice(
    "how a value written at run time differs from its target: lognormal_w, lognormal_w_meancorr, gauss_prop and "
    "gauss_range of weights, lognormal_g of both conductances of a pair, clipformer: conductances are shifted and "
    "clipped, and the noise grows with the square root of what is written",
    f"lognormal: {LOGNORMAL}; clipformer: {CLIPFORMER}",
)
Scaling = Annotated[
    Literal["matrix", "sample"],
    Choice(
        "what is scaled by one number: each matrix by itself (within it as mapping.scaling says), or all matrices of a "
        "sample, such as all heads",
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
    scaling: Scaling = "matrix"


class WriteDisturbed(Section):
    """Operands written at run time differ from their targets, by sample."""

    model: Annotated[Literal["lognormal_w", "lognormal_w_meancorr", "gauss_prop", "gauss_range", "lognormal_g"], MODEL]
    sigma: Sigma
    scaling: Scaling = "matrix"
    operands: Operands = "both"


class WriteClipFormer(Section):
    """Conductances are shifted down by alpha g_min, clipped at beta g_max, and written with noise."""

    model: Annotated[Literal["clipformer"], MODEL]
    sigma: Annotated[
        float, Number("standard deviation of the write noise, times gamma", "1", CLIPFORMER, "write.sigma")
    ]
    gamma: Annotated[float, Number("strength of the write noise; studied: 3, 4, 5", "1", CLIPFORMER, "write.gamma")]
    alpha: Annotated[
        float,
        Number(
            "conductances are lowered by so many g_min, not below g_min; 0: no shift",
            "g_min",
            CLIPFORMER,
            "write.alpha",
        ),
    ]
    beta: Annotated[
        float,
        Number("conductances are clipped to this; 1: no clip", "g_max", CLIPFORMER, "write.beta"),
    ]
    bits: Annotated[
        int,
        Number("values are rounded to this resolution before writing; 0: not", "bits", CLIPFORMER, "write.bits"),
    ]
    cells: Annotated[
        Literal["composite", "cells"],
        Choice("noise of one analog value, or summed over four cells of 2 bits", CLIPFORMER),
    ] = "composite"
    scaling: Scaling = "matrix"
    operands: Operands = "both"


Write: TypeAlias = WriteNone | WriteDisturbed | WriteClipFormer
