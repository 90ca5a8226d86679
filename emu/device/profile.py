"""The schema of a device profile: sections, their models, and the settings that each model reads.

A section is a union of variants. A variant has exactly the settings that act under it, so a setting without effect is
an error and never a silent leftover. `docs/operators.md` defines what every setting does to a product.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

from emu.device.fields import Choice, Number, conductance_problem

AIHWKIT = "aihwkit, IOParameters (Rasch et al. 2021)"
LOGNORMAL = "Charan et al. DAC 2020; Jung et al. DATE 2021"
CONDUCTANCE = "differential pair of devices; microsiemens as in Wan et al. 2022 and Joshi et al. 2020"

STORAGE_MODEL = (
    "how a value differs from its target once stored, N a standard normal: lognormal_w W exp(sigma N); "
    "lognormal_w_meancorr the same with mean W; lognormal_g lognormal on both conductances of a pair; "
    "gauss_prop W (1 + sigma N); gauss_range W + sigma (largest weight) N"
)
STORAGE_SOURCE = (
    f"lognormal: {LOGNORMAL}; gauss_prop: NeuroSim 1.4, CrossSim; gauss_range: aihwkit, weight modifier ADD_NORMAL"
)
BITS = "resolution in bits, 2^bits - 2 steps over the whole range; 0: not quantized, or given by steps"
STEPS = "number of steps over the whole range, for resolutions that are not 2^bits - 2; 0: given by bits"

StorageModel: TypeAlias = Literal["lognormal_w", "lognormal_w_meancorr", "lognormal_g", "gauss_prop", "gauss_range"]
NoStorageModel = Annotated[Literal["none"], Choice(STORAGE_MODEL, STORAGE_SOURCE)]
SomeStorageModel = Annotated[StorageModel, Choice(STORAGE_MODEL, STORAGE_SOURCE)]
ConverterBits = Annotated[int, Number(BITS, "bits", AIHWKIT, low=2, high=16, whole=True, or_zero=True)]
ConverterSteps = Annotated[int, Number(STEPS, "steps", AIHWKIT, low=2, high=65536, whole=True, or_zero=True)]
TileSize = Annotated[
    int,
    Number(
        "largest number of wires of one array in this direction; 0: unlimited",
        "wires",
        "aihwkit, max_input_size and max_output_size",
        low=1,
        high=2**20,
        whole=True,
        or_zero=True,
    ),
]


class Section(BaseModel):
    """One section of a profile: frozen, without unknown settings, numbers as written (no text, no booleans)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# The settings that choose a variant, in the order in which they are asked for.
CHOICES = ("model", "weight_noise_model", "range", "bound_management")


@dataclass(frozen=True)
class WrongChoice:
    """A choice that no variant has: the setting, the value given (None: missing) and the values that exist."""

    setting: str
    given: Any
    options: tuple[str, ...]


def choose_variant(variants: tuple[type[Section], ...], given: Mapping[str, Any]) -> type[Section] | WrongChoice:
    """Finds the variant that the choices in `given` name, or says which choice is missing or wrong."""
    left = list(variants)
    for setting in CHOICES:
        having = [variant for variant in left if setting in variant.model_fields]
        if not having:
            continue
        options = {variant: get_args(variant.model_fields[setting].annotation) for variant in having}
        defaults = [field.default for v in having if not (field := v.model_fields[setting]).is_required()]
        value = given.get(setting, defaults[0] if defaults else None)
        left = [variant for variant in having if value in options[variant]]
        if not left:
            names = tuple(dict.fromkeys(name for variant in having for name in options[variant]))
            return WrongChoice(setting, given.get(setting), names)
    return left[0]


def _tag(variants: tuple[type[Section], ...]) -> Callable[[Any], str | None]:
    def tag(value: Any) -> str | None:
        if isinstance(value, Section):
            return type(value).__name__
        if not isinstance(value, Mapping):
            return None
        variant = choose_variant(variants, value)
        return None if isinstance(variant, WrongChoice) else variant.__name__

    return tag


class MappingSection(Section):
    """From a weight matrix to tiles of conductances."""

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
    g_min_us: Annotated[
        float | None, Number("conductance that stores 0, for lognormal_g", "microsiemens", CONDUCTANCE, low=0)
    ] = None
    g_max_us: Annotated[
        float | None,
        Number(
            "conductance that stores the largest weight, for lognormal_g",
            "microsiemens",
            CONDUCTANCE,
            low=0,
            low_included=False,
        ),
    ] = None


class ProgramNone(Section):
    """Stored weights are exact."""

    model: NoStorageModel


class ProgramDisturbed(Section):
    """Stored weights differ from their targets, by chip and by programming event."""

    model: SomeStorageModel
    sigma: Annotated[
        float,
        Number(
            "device-to-device standard deviation, drawn once per chip (emu.seed); usual values 0.05 to 0.15",
            "1",
            LOGNORMAL,
            low=0,
            high=10,
        ),
    ]
    sigma_cycle: Annotated[
        float,
        Number(
            "cycle-to-cycle standard deviation, drawn for each programming event (emu.seed and emu.read_seed)",
            "1",
            LOGNORMAL,
            low=0,
            high=10,
        ),
    ] = 0.0


class WriteNone(Section):
    """Operands written at run time (K and V of attention) are exact."""

    model: NoStorageModel


class WriteDisturbed(Section):
    """Operands written at run time (K and V of attention) differ from their targets, by sample."""

    model: SomeStorageModel
    sigma: Annotated[
        float,
        Number(
            "standard deviation of one write, drawn for each sample (emu.sample and emu.read_seed)",
            "1",
            LOGNORMAL,
            low=0,
            high=10,
        ),
    ]


CONVERTER = Choice("none: exact values; uniform: equal steps", AIHWKIT)


class _Converter(Section):
    bits: ConverterBits = 0
    steps: ConverterSteps = 0

    @model_validator(mode="after")
    def _resolution_is_given_once(self) -> Self:
        if self.bits and self.steps:
            raise ValueError("bits has no effect beside steps: give one of them")
        if not {"bits", "steps"} & self.model_fields_set:
            raise ValueError("bits or steps must give the resolution (bits = 0: not quantized)")
        return self


class DacNone(Section):
    """Inputs reach the array exactly."""

    model: Annotated[Literal["none"], CONVERTER]


DAC_RANGE = Choice(
    "activation that maps to 1: the largest of the input row (absmax), or one number for all (fixed)",
    "aihwkit, noise management ABS_MAX or CONSTANT",
)
DacBound = Annotated[
    float,
    Number("inputs are clipped to plus and minus this", "normalized input", AIHWKIT, low=0, low_included=False),
]


class DacAbsmax(_Converter):
    """Inputs are divided by the largest magnitude of their row, then quantized."""

    model: Annotated[Literal["uniform"], CONVERTER]
    range: Annotated[Literal["absmax"], DAC_RANGE]
    bound: DacBound = 1.0


class DacFixed(_Converter):
    """Inputs are divided by one number, quantized and clipped."""

    model: Annotated[Literal["uniform"], CONVERTER]
    range: Annotated[Literal["fixed"], DAC_RANGE]
    bound: DacBound = 1.0
    max: Annotated[
        float,
        Number("activation that maps to 1", "unit of the activation", AIHWKIT, low=0, low_included=False),
    ]


class AdcNone(Section):
    """Outputs leave the array exactly."""

    model: Annotated[Literal["none"], CONVERTER]


ADC_RANGE = Choice(
    "largest output that is converted: the largest of the tile's columns (absmax), or `bound` (fixed)",
    "fixed: aihwkit, out_bound",
)
BOUND_MANAGEMENT = Choice(
    "iterative: a product that saturates the ADC is repeated with halved inputs", "aihwkit, bound management ITERATIVE"
)
AdcBound = Annotated[
    float,
    Number(
        "outputs are clipped to plus and minus this; aihwkit uses 10 to 20",
        "(largest weight) x (largest input)",
        AIHWKIT,
        low=0,
        low_included=False,
    ),
]


class AdcAbsmax(_Converter):
    """Outputs are quantized over the range of their tile."""

    model: Annotated[Literal["uniform"], CONVERTER]
    range: Annotated[Literal["absmax"], ADC_RANGE]


class AdcFixed(_Converter):
    """Outputs are quantized and clipped at one bound."""

    model: Annotated[Literal["uniform"], CONVERTER]
    range: Annotated[Literal["fixed"], ADC_RANGE]
    bound: AdcBound
    bound_management: Annotated[Literal["none"], BOUND_MANAGEMENT] = "none"


class AdcFixedIterative(_Converter):
    """Outputs are quantized at one bound, and products that exceed it are repeated with smaller inputs."""

    model: Annotated[Literal["uniform"], CONVERTER]
    range: Annotated[Literal["fixed"], ADC_RANGE]
    bound: AdcBound
    bound_management: Annotated[Literal["iterative"], BOUND_MANAGEMENT]
    max_bound_factor: Annotated[
        float,
        Number("inputs are not halved again once divided by more than this", "1", AIHWKIT, low=1, high=2**20),
    ] = 1000.0
    max_bound_resolution: Annotated[
        float,
        Number(
            "inputs are not halved again once one DAC step exceeds this share of them",
            "1",
            AIHWKIT,
            low=0,
            low_included=False,
        ),
    ] = 0.25


WEIGHT_NOISE = Choice(
    "disturbance of the weights at each product: additive_constant, the same for every weight; pcm_read, growing with "
    "the square root of the weight",
    "aihwkit, w_noise_type",
)
OutputNoise = Annotated[
    float | None,
    Number(
        "standard deviation added to each output of a tile; without it there is no output noise to sweep",
        "(largest weight) x (largest input)",
        "aihwkit, out_noise: 0.04 to 0.1",
        low=0,
    ),
]


class ReadPlain(Section):
    """Weights are the same at each product; outputs may be noisy."""

    weight_noise_model: Annotated[Literal["none"], WEIGHT_NOISE] = "none"
    output_noise: OutputNoise = None


class ReadNoisy(Section):
    """Weights are disturbed at each product; outputs may be noisy too."""

    weight_noise_model: Annotated[Literal["additive_constant", "pcm_read"], WEIGHT_NOISE]
    weight_noise: Annotated[
        float,
        Number("standard deviation for the largest weight", "largest weight", "aihwkit, w_noise: 0.0175", low=0),
    ]
    output_noise: OutputNoise = None


VARIANTS: dict[str, tuple[type[Section], ...]] = {
    "mapping": (MappingSection,),
    "program": (ProgramNone, ProgramDisturbed),
    "write": (WriteNone, WriteDisturbed),
    "dac": (DacNone, DacAbsmax, DacFixed),
    "adc": (AdcNone, AdcAbsmax, AdcFixed, AdcFixedIterative),
    "read": (ReadPlain, ReadNoisy),
}

# The order of a graph's `device` tensor.
ENTRY_NAMES = (
    "program.sigma",
    "program.sigma_cycle",
    "write.sigma",
    "mapping.g_min_us",
    "mapping.g_max_us",
    "dac.bits",
    "dac.steps",
    "dac.bound",
    "dac.max",
    "adc.bits",
    "adc.steps",
    "adc.bound",
    "adc.max_bound_factor",
    "adc.max_bound_resolution",
    "read.weight_noise",
    "read.output_noise",
)


class Profile(BaseModel):
    """A device: how values are stored, what disturbs them, and how products are read.

    `model_dump(mode="json")` gives plain data that `Profile.model_validate` reads back. Users' files and overrides go
    through `load_profile`, whose errors are one sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    description: str = ""
    source: str = ""
    mapping: MappingSection = MappingSection()
    program: Annotated[
        Annotated[ProgramNone, Tag("ProgramNone")] | Annotated[ProgramDisturbed, Tag("ProgramDisturbed")],
        Discriminator(_tag(VARIANTS["program"])),
    ] = ProgramNone(model="none")
    write: Annotated[
        Annotated[WriteNone, Tag("WriteNone")] | Annotated[WriteDisturbed, Tag("WriteDisturbed")],
        Discriminator(_tag(VARIANTS["write"])),
    ] = WriteNone(model="none")
    dac: Annotated[
        Annotated[DacNone, Tag("DacNone")]
        | Annotated[DacAbsmax, Tag("DacAbsmax")]
        | Annotated[DacFixed, Tag("DacFixed")],
        Discriminator(_tag(VARIANTS["dac"])),
    ] = DacNone(model="none")
    adc: Annotated[
        Annotated[AdcNone, Tag("AdcNone")]
        | Annotated[AdcAbsmax, Tag("AdcAbsmax")]
        | Annotated[AdcFixed, Tag("AdcFixed")]
        | Annotated[AdcFixedIterative, Tag("AdcFixedIterative")],
        Discriminator(_tag(VARIANTS["adc"])),
    ] = AdcNone(model="none")
    read: Annotated[
        Annotated[ReadPlain, Tag("ReadPlain")] | Annotated[ReadNoisy, Tag("ReadNoisy")],
        Discriminator(_tag(VARIANTS["read"])),
    ] = Field(default=ReadPlain())

    @model_validator(mode="after")
    def _conductances_belong_to_lognormal_g(self) -> Self:
        given = {f"mapping.{name}": getattr(self.mapping, name) for name in ("g_min_us", "g_max_us")}
        used = "lognormal_g" in (self.program.model, self.write.model)
        for name, value in given.items():
            if used and value is None:
                raise ValueError(f"{name} is missing: the model lognormal_g needs it")
            if not used and value is not None:
                raise ValueError(f"{name} has no effect: only the model lognormal_g of program or write reads it")
        if problem := conductance_problem({name: value for name, value in given.items() if value is not None}):
            raise ValueError(problem)
        return self

    def entries(self) -> dict[str, float]:
        """The numbers of the graph's `device` tensor, in its order: entry name to value, only those that are used."""
        values = {name: getattr(getattr(self, section), field, None) for name, section, field in _split(ENTRY_NAMES)}
        return {name: float(value) for name, value in values.items() if value is not None}

    def structure(self) -> dict[str, int | str]:
        """What shapes the computation: the attributes that every node of a rewritten graph carries for this device."""
        return {
            "tile_rows": self.mapping.tile_rows,
            "tile_columns": self.mapping.tile_columns,
            "tile_split": self.mapping.split,
            "scaling": self.mapping.scaling,
            "program": self.program.model,
            "write": self.write.model,
            "dac": "none" if isinstance(self.dac, DacNone) else self.dac.range,
            "adc": "none" if isinstance(self.adc, AdcNone) else self.adc.range,
            "bound_management": "iterative" if isinstance(self.adc, AdcFixedIterative) else "none",
            "read_noise": self.read.weight_noise_model,
            "entries": ",".join(self.entries()),
        }


def _split(names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    return [(name, *name.split(".", 1)) for name in names]  # type: ignore[misc]


@dataclass(frozen=True)
class Setting:
    """One setting of a profile, explained.

    `value` is None where an optional setting is off. `entry` tells whether the setting is a number of the `device`
    tensor, which a run can change without rewriting the model.
    """

    name: str
    value: str | int | float | None
    unit: str
    range: str
    meaning: str
    source: str
    entry: bool


def describe(profile: Profile) -> list[Setting]:
    """Explains every setting that acts in this profile, section by section."""
    rows = []
    entries = profile.entries()
    for section in VARIANTS:
        chosen: Section = getattr(profile, section)
        for field in sorted(type(chosen).model_fields, key=lambda field: field not in CHOICES):
            name, value = f"{section}.{field}", getattr(chosen, field)
            if section == "mapping" and value is None:
                continue  # conductances that nothing reads
            about = explain(type(chosen), field)
            if isinstance(about, Number):
                unit, allowed = about.unit, about.range
            else:
                unit, allowed = "", ", ".join(_options(section, chosen, field))
            rows.append(Setting(name, value, unit, allowed, about.meaning, about.source, name in entries))
    return rows


def explain(variant: type[Section], field: str) -> Number | Choice:
    """The meaning, unit, range and source of one setting."""
    return next(about for about in variant.model_fields[field].metadata if isinstance(about, Number | Choice))


def entry_number(name: str) -> Number:
    """The meaning, unit and range of one entry of the `device` tensor."""
    section, field = name.split(".", 1)
    variant = next(variant for variant in VARIANTS[section] if field in variant.model_fields)
    about = explain(variant, field)
    assert isinstance(about, Number), name
    return about


def _options(section: str, chosen: Section, field: str) -> list[str]:
    """The values that a choice may take beside the other choices made."""
    earlier = CHOICES[: CHOICES.index(field)] if field in CHOICES else ()
    wanted = {name: getattr(chosen, name) for name in earlier if name in type(chosen).model_fields}
    options: dict[str, None] = {}
    for variant in VARIANTS[section]:
        fields = variant.model_fields
        same = all(name in fields and value in get_args(fields[name].annotation) for name, value in wanted.items())
        if same and field in fields:
            options |= dict.fromkeys(get_args(fields[field].annotation))
    return list(options)
