"""[dac] and [adc]: what converters do to the inputs and outputs of a tile."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import model_validator

from emu.device.fields import Choice, Number
from emu.device.sections.section import Section

AIHWKIT = "aihwkit, IOParameters (Rasch et al. 2021)"
CROSSSIM = "CrossSim 3, dac and adc"
ASSUMED, LARGEST = "aihwkit, nm_assumed_wmax", "largest weight"

MODEL = Choice("none: exact values; uniform: equal steps", AIHWKIT)
CODES = (
    "how steps lie over the range: sign_magnitude, 2^bits - 2 steps with one at zero; offset_binary, 2^bits - 1 from "
    "end to end"
)
BITS = "resolution in bits, which with `code` gives the steps over the whole range; 0: not quantized, or given by steps"
STEPS = "number of steps over the whole range, for resolutions that bits cannot give; 0: given by bits"
ConverterBits = Annotated[int, Number(BITS, "bits", AIHWKIT, "dac.bits")]
ConverterSteps = Annotated[int, Number(STEPS, "steps", AIHWKIT, "dac.steps")]


class _Converter(Section):
    bits: ConverterBits = 0
    steps: ConverterSteps = 0
    rounding: Annotated[
        Literal["nearest", "stochastic"],
        Choice(
            "a value between two steps: nearest, to the nearer one; stochastic, to one of them at random, so that the "
            "mean is the value",
            "aihwkit, inp_sto_round and out_sto_round; CrossSim, stochastic_rounding",
        ),
    ] = "nearest"

    @model_validator(mode="after")
    def _resolution_is_given_once(self) -> Self:
        if self.bits and self.steps:
            raise ValueError("bits has no effect beside steps: give one of them")
        if not {"bits", "steps"} & self.model_fields_set:
            raise ValueError("bits or steps must give the resolution (bits = 0: not quantized)")
        return self


class DacNone(Section):
    """Inputs reach the array exactly."""

    model: Annotated[Literal["none"], MODEL]


DAC_RANGE = Choice(
    "activation that maps to 1: the largest magnitude of the input row (absmax), its largest value (max), so much that "
    "the sum of its inputs stays within the ADC (absmax_sum), one number for all (fixed), or a number from "
    "calibration (calibrated)",
    "aihwkit, noise management ABS_MAX, MAX, ABS_MAX_NP_SUM or CONSTANT, learned input ranges",
)


DAC_RANGE_PER = Choice(
    "what has a calibrated input range of its own: the site, or each of its row tiles (tile)",
    "tile: aihwkit, one input range for each tile",
)


class _Dac(_Converter):
    model: Annotated[Literal["uniform"], MODEL]
    code: Annotated[Literal["sign_magnitude", "offset_binary"], Choice(CODES, CROSSSIM)] = "sign_magnitude"
    slice_bits: Annotated[
        int,
        Number(
            "magnitude bits of an input fed at once, each slice read and converted by itself; 0: all at once",
            "bits",
            "ISAAC (1); PRIME (3); CrossSim, input bit slicing",
            "dac_slice_bits",
        ),
    ] = 0
    slice_sum: Annotated[
        Literal["digital", "analog"],
        Choice(
            "where slices of an input are added up: digital, after the conversion of each; analog, before one "
            "conversion",
            "CrossSim, adc_per_ibit on or off (its default)",
        ),
    ] = "digital"
    bound: Annotated[
        float,
        Number("inputs are clipped to plus and minus this", "normalized input", AIHWKIT, "dac.bound"),
    ] = 1.0
    asymmetry: Annotated[
        float | None,
        Number("negative inputs are fed times 1 less this", "1", "aihwkit, inp_asymmetry", "dac.asymmetry"),
    ] = None


class _LimitedDac(_Dac):
    limit: Annotated[
        float | None,
        Number(
            "largest activation that maps to 1, larger ones are clipped; without it there is none",
            "unit of the activation",
            "aihwkit, nm_thres",
            "dac.limit",
        ),
    ] = None


class DacAbsmax(_LimitedDac):
    """Inputs are divided by the largest magnitude of their row, then quantized."""

    range: Annotated[Literal["absmax"], DAC_RANGE]


class DacMax(_LimitedDac):
    """Inputs are divided by the largest value of their row and clipped; rows without a positive one give 0."""

    range: Annotated[Literal["max"], DAC_RANGE]


class DacAbsmaxSum(_LimitedDac):
    """Inputs are divided by the largest magnitude of their row, or by more, so that their sum fits the ADC."""

    range: Annotated[Literal["absmax_sum"], DAC_RANGE]
    assumed_weight: Annotated[
        float,
        Number("what the sum of all inputs of one sign is weighted with", LARGEST, ASSUMED, "dac.assumed_weight"),
    ] = 0.6
    sum_resolution: Annotated[
        float,
        Number(
            "the largest input keeps more than so many DAC steps: their inverse, whatever the sum is",
            "1",
            "aihwkit, max_bm_res",
            "dac.sum_resolution",
        ),
    ] = 0.25


class DacFixed(_Dac):
    """Inputs are divided by one number, quantized and clipped."""

    range: Annotated[Literal["fixed"], DAC_RANGE]
    max: Annotated[
        float,
        Number("activation that maps to 1", "unit of the activation", AIHWKIT, "dac.max"),
    ]


class DacCalibrated(_Dac):
    """Inputs are divided by the calibrated range of their site or row tile, quantized and clipped."""

    range: Annotated[Literal["calibrated"], DAC_RANGE]
    range_per: Annotated[Literal["site", "tile"], DAC_RANGE_PER] = "site"


Dac: TypeAlias = DacNone | DacAbsmax | DacMax | DacAbsmaxSum | DacFixed | DacCalibrated


class AdcNone(Section):
    """Outputs leave the array exactly."""

    model: Annotated[Literal["none"], MODEL]


ADC_RANGE = Choice(
    "outputs that are converted: up to the largest of the tile's columns (absmax), `bound` (fixed), a "
    "calibrated range (calibrated), the number of rows (rows), or in steps of the smallest difference that the array "
    "can give (granular)",
    "fixed: aihwkit, out_bound; calibrated, rows (MAX) and granular: CrossSim",
)
ADC_RANGE_PER = Choice(
    "what has a calibrated output range of its own: the site, each of its row tiles (tile), each slice of its weights "
    "(slice), or each slice in each tile (tile_slice). But for site, the two devices of a pair have one each where "
    "they are converted apart",
    "slice: CrossSim, calibrated_range",
)
BOUND_MANAGEMENT = Choice(
    "a product that saturates the ADC is repeated: iterative, with halved inputs; worst_case, first with inputs whose "
    "sum cannot saturate it, then with halved ones",
    "aihwkit, bound management ITERATIVE and ITERATIVE_WORST_CASE",
)


class _Adc(_Converter):
    model: Annotated[Literal["uniform"], MODEL]
    code: Annotated[
        Literal["sign_magnitude", "offset_binary", "twos_complement"],
        Choice(f"{CODES}; twos_complement, 2^bits steps with one at zero, one more below it than above", CROSSSIM),
    ] = "sign_magnitude"
    gain_sigma: Annotated[
        float | None,
        Number("standard deviation of an ADC's gain around 1, drawn once per chip", "1", CROSSSIM, "adc.gain_sigma"),
    ] = None
    offset_sigma: Annotated[
        float | None,
        Number(
            "standard deviation of an ADC's offset, drawn once per chip",
            "(largest weight) x (largest input)",
            CROSSSIM,
            "adc.offset_sigma",
        ),
    ] = None
    columns: Annotated[
        int | None,
        Number(
            "neighbouring columns that share one ADC and its gain and offset; without it each column has its own",
            "columns",
            "CrossSim, group size 8; NeuroSim, 8 columns per ADC",
            "adc_columns",
        ),
    ] = None

    scale: Annotated[float | None, Number("digital factor on every code", "1", "aihwkit, out_scale", "adc.scale")] = (
        None
    )
    asymmetry: Annotated[
        float | None,
        Number(
            "negative outputs reach the ADC times 1 less this, before output noise",
            "1",
            "aihwkit, out_asymmetry",
            "adc.asymmetry",
        ),
    ] = None
    pairs: Annotated[
        Literal["subtracted", "separate"],
        Choice(
            "the two devices of a weight: subtracted, their currents before conversion; separate, each converted by "
            "itself, with an ADC and a noise of its own, and the codes subtracted",
            "CrossSim, subtract_current_in_xbar on or off",
        ),
    ] = "subtracted"

    @model_validator(mode="after")
    def _columns_share_something(self) -> Self:
        if self.columns is not None and self.gain_sigma is None:
            raise ValueError("columns has no effect: it says which outputs share gain_sigma and offset_sigma")
        return self


class AdcAbsmax(_Adc):
    """Outputs are quantized over the range of their tile."""

    range: Annotated[Literal["absmax"], ADC_RANGE]


class _AdcFixed(_Adc):
    range: Annotated[Literal["fixed"], ADC_RANGE]
    bound: Annotated[
        float,
        Number(
            "outputs are clipped to plus and minus this; aihwkit uses 10 to 20",
            "(largest weight) x (largest input)",
            AIHWKIT,
            "adc.bound",
        ),
    ]
    nonlinearity: Annotated[
        float | None,
        Number(
            "n of outputs that bend: y / (1 + n |y| / bound), before output noise",
            "1",
            "aihwkit, out_nonlinearity",
            "adc.nonlinearity",
        ),
    ] = None
    nonlinearity_sigma: Annotated[
        float | None,
        Number(
            "standard deviation of n between columns, in units of n, drawn once per chip",
            "1",
            "aihwkit, out_nonlinearity_std",
            "adc.nonlinearity_sigma",
        ),
    ] = None
    slope_calibration: Annotated[
        float | None,
        Number(
            "output at which a factor on bent outputs makes their slope 1",
            "bound",
            "aihwkit, slope_calibration",
            "adc.slope_calibration",
        ),
    ] = None


class AdcFixed(_AdcFixed):
    """Outputs are quantized and clipped at one bound."""

    bound_management: Annotated[Literal["none"], BOUND_MANAGEMENT] = "none"


class _AdcManaged(_AdcFixed):
    max_bound_factor: Annotated[
        float,
        Number("inputs are not halved again once divided by more than this", "1", AIHWKIT, "adc.max_bound_factor"),
    ] = 1000.0
    max_bound_resolution: Annotated[
        float,
        Number(
            "inputs are not halved again once one DAC step exceeds this share of them",
            "1",
            AIHWKIT,
            "adc.max_bound_resolution",
        ),
    ] = 0.25


class AdcFixedIterative(_AdcManaged):
    """Outputs are quantized at one bound, and products that exceed it are repeated with smaller inputs."""

    bound_management: Annotated[Literal["iterative"], BOUND_MANAGEMENT]


class AdcFixedWorstCase(_AdcManaged):
    """Outputs are quantized at one bound, and products that exceed it are repeated with inputs whose sum fits it."""

    bound_management: Annotated[Literal["worst_case"], BOUND_MANAGEMENT]
    assumed_weight: Annotated[
        float,
        Number("what the sum of all inputs of one sign is weighted with", LARGEST, ASSUMED, "adc.assumed_weight"),
    ] = 0.6


class AdcCalibrated(_Adc):
    """Outputs are quantized over the calibrated range of their site, tile or slice, and clipped to it."""

    range: Annotated[Literal["calibrated"], ADC_RANGE]
    range_per: Annotated[Literal["site", "tile", "slice", "tile_slice"], ADC_RANGE_PER] = "site"


class AdcRows(_Adc):
    """Outputs are quantized over all that the rows of a tile could give."""

    range: Annotated[Literal["rows"], ADC_RANGE]


class AdcGranular(_Adc):
    """One step of the ADC is the smallest difference between two outputs that the array can give."""

    range: Annotated[Literal["granular"], ADC_RANGE]


Adc: TypeAlias = (
    AdcNone | AdcAbsmax | AdcFixed | AdcFixedIterative | AdcFixedWorstCase | AdcCalibrated | AdcRows | AdcGranular
)
