"""[mapping]: from a weight matrix to tiles of conductances."""

from typing import Annotated, Literal, TypeAlias

from emu.device.fields import Choice, Number
from emu.device.sections.section import Section

CROSSSIM = "CrossSim 3, cores"
CONDUCTANCE = "microsiemens as in Wan et al. 2022 and Joshi et al. 2020"

ENCODING = Choice(
    "how a weight becomes conductances: weight, not at all, the array holds the number; differential, a pair of which "
    "one device is at g_min; two_sided, a pair around the middle; offset, one device and an offset that is taken off",
    "differential: aihwkit, CrossSim BALANCED; two_sided: CrossSim BALANCED TWO_SIDED; offset: CrossSim OFFSET, ISAAC",
)
TileSize = Annotated[
    int,
    Number(
        "largest number of wires of one array in this direction; 0: unlimited",
        "wires",
        "aihwkit, max_input_size and max_output_size",
        "tile_rows",
    ),
]
WeightBits = Annotated[
    int,
    Number(
        "weights are rounded to signed codes of so many bits before mapping; 0: not", "bits", CROSSSIM, "weight_bits"
    ),
]
SliceBits = Annotated[
    int,
    Number(
        "bits of a code in one cell, each slice in an array of its own; 0: one cell holds all",
        "bits",
        "CrossSim, BITSLICED; ISAAC",
        "slice_bits",
    ),
]
CellBits = Annotated[
    int | None,
    Number("a cell has 2^cell_bits levels; 0: analog", "bits", "CrossSim, cell_bits", "mapping.cell_bits"),
]
Percentile = Annotated[
    float | None,
    Number(
        "share of the weights that the conductance range covers, larger ones are clipped; without it all",
        "1",
        "MemTorch, p_l; CrossSim, percentile",
        "mapping.percentile",
    ),
]
GMin = Number("lowest conductance, which stores 0 (differential)", "microsiemens", CONDUCTANCE, "mapping.g_min_us")
GMax = Number("highest conductance, which stores the largest weight", "microsiemens", CONDUCTANCE, "mapping.g_max_us")


class _Mapping(Section):
    tile_rows: TileSize = 0
    tile_columns: TileSize = 0
    split: Annotated[
        Literal["fill", "balanced"],
        Choice(
            "how a matrix larger than a tile is cut: full tiles and a remainder, or tiles as equal as possible",
            "balanced: aihwkit",
        ),
    ] = "fill"
    scaling: Annotated[
        Literal["tensor", "column", "tile", "tile_column"],
        Choice("what shares one weight scale, the largest magnitude in it", "aihwkit, weight_scaling_columnwise"),
    ] = "tensor"
    percentile: Percentile = None
    weight_bits: WeightBits = 0


class MappingWeight(_Mapping):
    """The array holds the number itself; conductances exist only for operands that are written at run time."""

    encoding: Annotated[Literal["weight"], ENCODING] = "weight"
    g_min_us: Annotated[float | None, GMin] = None
    g_max_us: Annotated[float | None, GMax] = None


class _Conductances(_Mapping):
    cell_bits: CellBits = None
    g_min_us: Annotated[float, GMin]
    g_max_us: Annotated[float, GMax]


class MappingDifferential(_Conductances):
    """Each weight is the difference of two devices, of which one is at g_min."""

    encoding: Annotated[Literal["differential"], ENCODING]
    slice_bits: SliceBits = 0


class MappingTwoSided(_Conductances):
    """Each weight is the difference of two devices that move in opposite directions from the middle of the range."""

    encoding: Annotated[Literal["two_sided"], ENCODING]


class MappingOffset(_Conductances):
    """Each weight is one device; the offset that makes it positive is taken off after reading."""

    encoding: Annotated[Literal["offset"], ENCODING]
    slice_bits: SliceBits = 0
    offset_correction: Annotated[
        Literal["digital", "unit_column"],
        Choice(
            "how the offset is taken off: exactly, from the sum of the inputs, or by one more column that holds zeros",
            "CrossSim, OFFSET; unit column: ISAAC",
        ),
    ] = "digital"


Mapping: TypeAlias = MappingWeight | MappingDifferential | MappingTwoSided | MappingOffset
