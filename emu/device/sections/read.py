"""[read]: what disturbs each single product, and the wires of a tile."""

from typing import Annotated, Literal, TypeAlias

from emu.device.fields import Choice, Number
from emu.device.sections.section import Section

AIHWKIT = "aihwkit, IOParameters (Rasch et al. 2021)"
WEIGHT_NOISE = Choice(
    "disturbance at each product. Of the weight as a whole: additive_constant, the same for every weight; pcm_read, "
    "growing with the square root of the weight. Of every device, before a pair is subtracted: proportional, growing "
    "with its conductance; independent, the same for every device",
    "aihwkit, w_noise_type ADDITIVE_CONSTANT and PCM_READ; CrossSim, read noise NormalProportional and "
    "NormalIndependent",
)
WIRES = Choice(
    "voltage lost along the wires of a tile: none; formula, estimated from each product; network, solved once for the "
    "stored conductances",
    "formula: aihwkit, ir_drop; network: CrossSim, parasitics",
)
OHM = "resistance of the wire between two neighbouring cells"


class _Read(Section):
    output_noise: Annotated[
        float | None,
        Number(
            "standard deviation added to each output of a tile; without it there is no output noise to sweep",
            "(largest weight) x (largest input)",
            "aihwkit, out_noise: 0.04 to 0.1",
            "read.output_noise",
        ),
    ] = None
    output_noise_spread: Annotated[
        float | None,
        Number(
            "standard deviation of output_noise between columns, in units of it, drawn once per chip",
            "1",
            "aihwkit, out_noise_std",
            "read.output_noise_spread",
        ),
    ] = None
    input_noise: Annotated[
        float | None,
        Number(
            "standard deviation added to each input of a tile; without it there is no input noise to sweep",
            "largest input",
            "aihwkit, inp_noise",
            "read.input_noise",
        ),
    ] = None


class _Quiet(_Read):
    weight_noise_model: Annotated[Literal["none"], WEIGHT_NOISE] = "none"


class _Noisy(_Read):
    weight_noise_model: Annotated[Literal["additive_constant", "pcm_read", "proportional", "independent"], WEIGHT_NOISE]
    weight_noise: Annotated[
        float,
        Number(
            "standard deviation for the largest weight, or for a device at g_max",
            "largest weight, or g_max",
            "aihwkit, w_noise: 0.0175",
            "read.weight_noise",
        ),
    ]


class _NoWires(Section):
    wires: Annotated[Literal["none"], WIRES] = "none"


class _WireFormula(Section):
    wires: Annotated[Literal["formula"], WIRES]
    ir_drop: Annotated[
        float, Number("factor on the estimated loss; 0: none", "1", "aihwkit, ir_drop", "read.ir_drop")
    ] = 1.0
    ir_drop_ratio: Annotated[
        float,
        Number(
            "conductance of a wire segment in units of g_max",
            "1",
            "aihwkit, ir_drop_g_ratio: 0.35 ohm and 5 microsiemens",
            "read.ir_drop_ratio",
        ),
    ] = 571428.57


class _WireNetwork(Section):
    wires: Annotated[Literal["network"], WIRES]
    row_ohm: Annotated[float, Number(f"{OHM} along a row", "ohm", "CrossSim, Rp_row", "read.row_ohm")]
    column_ohm: Annotated[float, Number(f"{OHM} along a column", "ohm", "CrossSim, Rp_col", "read.column_ohm")]


class ReadPlain(_NoWires, _Quiet):
    """Weights are the same at each product; inputs and outputs may be noisy."""


class ReadNoisy(_NoWires, _Noisy):
    """Weights are disturbed at each product."""


class ReadPlainFormula(_WireFormula, _Quiet):
    """Weights are the same at each product; wires take voltage, by a formula."""


class ReadNoisyFormula(_WireFormula, _Noisy):
    """Weights are disturbed at each product; wires take voltage, by a formula."""


class ReadPlainNetwork(_WireNetwork, _Quiet):
    """Weights are the same at each product; wires take voltage, as in a network of resistors."""


class ReadNoisyNetwork(_WireNetwork, _Noisy):
    """Weights are disturbed at each product; wires take voltage, as in a network of resistors."""


Read: TypeAlias = ReadPlain | ReadNoisy | ReadPlainFormula | ReadNoisyFormula | ReadPlainNetwork | ReadNoisyNetwork
