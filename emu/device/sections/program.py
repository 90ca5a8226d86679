"""[program]: how stored values differ from their targets."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from emu.device.fields import BY_NAME, Choice, ManySeconds, Number, NumberOrNumbers, Numbers, Seconds, as_tuples
from emu.device.sections.section import Section

LOGNORMAL = "Charan et al. DAC 2020; Jung et al. DATE 2021"

MODEL = Choice(
    "how a stored value differs from its target; of weights: lognormal_w, lognormal_w_meancorr (the same with the mean "
    "kept), gauss_prop (in proportion), gauss_range (in proportion to the largest weight); of conductances g: "
    "lognormal_g, normal_ and uniform_ (independent of g, in proportion to g, to 1 / g), polynomial (in g), saturating "
    "(with the current), level_shared (one draw per level), resistance_range (each device has its own range), table "
    "(measured), function (of your own)",
    f"lognormal: {LOGNORMAL}; gauss_prop: NeuroSim; gauss_range: aihwkit, ADD_NORMAL; normal_, uniform_, saturating: "
    "CrossSim; polynomial: aihwkit, CrossSim; level_shared: MNSIM 2; resistance_range: MemTorch",
)
CLIP = Choice(
    "what programmed conductances are clipped to: 0 and above, or g_min to g_max",
    "aihwkit (zero); CrossSim, clip_conductance",
)
Sigma = Annotated[
    float,
    Number(
        "device-to-device standard deviation (uniform_: width), drawn once per chip (emu.seed); usually 0.05 to 0.15",
        "1",
        LOGNORMAL,
        "program.sigma",
    ),
]
SigmaCycle = Annotated[
    float,
    Number(
        "cycle-to-cycle standard deviation (uniform_: width), drawn per programming event (emu.seed, emu.read_seed)",
        "1",
        LOGNORMAL,
        "program.sigma_cycle",
    ),
]
Scale = Annotated[
    float,
    Number("factor on the spread of the model; 0: as targeted", "1", "aihwkit, prog_noise_scale", "program.scale"),
]
Clip = Annotated[Literal["zero", "range"], CLIP]


class _Program(Section):
    modifier: Annotated[
        float | None,
        Number(
            "standard deviation added to every weight besides what the devices do, as training sometimes does; without "
            "it there is none to sweep",
            "largest weight of the tile",
            "aihwkit, weight modifier ADD_NORMAL",
            "program.modifier",
        ),
    ] = None


class ProgramNone(_Program):
    """Stored values are exact."""

    model: Annotated[Literal["none"], MODEL]


class ProgramWeight(_Program):
    """Stored weights differ from their targets, by chip and by programming event."""

    model: Annotated[Literal["lognormal_w", "lognormal_w_meancorr", "gauss_prop", "gauss_range"], MODEL]
    sigma: Sigma
    sigma_cycle: SigmaCycle = 0.0


class ProgramConductance(_Program):
    """Stored conductances differ from their targets by one law, by chip and by programming event."""

    model: Annotated[
        Literal[
            "lognormal_g",
            "normal_independent",
            "normal_proportional",
            "normal_inverse",
            "uniform_independent",
            "uniform_proportional",
            "uniform_inverse",
        ],
        MODEL,
    ]
    sigma: Sigma
    sigma_cycle: SigmaCycle = 0.0
    clip: Clip = "zero"


class ProgramLevelShared(_Program):
    """All devices at one level of resistance differ alike: one draw per level."""

    model: Annotated[Literal["level_shared"], MODEL]
    sigma: Annotated[
        float,
        Number("standard deviation of a level's resistance", "1", "MNSIM 2, Device_Variation: 5 %", "program.sigma"),
    ]
    clip: Clip = "zero"


class ProgramResistanceRange(_Program):
    """Each device has its own lowest and highest resistance."""

    model: Annotated[Literal["resistance_range"], MODEL]
    sigma: Annotated[
        float, Number("standard deviation of the on resistance", "1", "MemTorch, stochastic r_on", "program.sigma")
    ]
    sigma_off: Annotated[
        float,
        Number("standard deviation of the off resistance", "1", "MemTorch, stochastic r_off", "program.sigma_off"),
    ]
    clip: Clip = "zero"


def _coefficient(power: int) -> Number:
    meaning = f"coefficient of g^{power} in the standard deviation, g in units of g_max; a list: one per fit_time_s"
    return Number(meaning, "microsiemens", "Nandakumar et al. 2019; CrossSim, device models", f"program.c{power}")


class _Fitted(_Program):
    """Coefficients that were fitted to measurements, at one time or at several times after programming."""

    scale: Scale = 1.0
    time_s: Annotated[
        Seconds | None, Number("time after programming, one of fit_time_s", "s", "measured", "program.time_s")
    ] = None
    fit_time_s: Annotated[
        ManySeconds | None,
        Number(
            "times that coefficients were fitted for; of one that is a list, time_s chooses", "s", "measured",
            "program.time_s",
        ),
    ] = None  # fmt: skip
    clip: Clip = "zero"

    @model_validator(mode="after")
    def _time_is_of_a_fit(self) -> Self:
        times = self.fit_time_s
        several = {name: value for name, value in self if isinstance(value, tuple) and name != "fit_time_s"}
        for name, value in several.items():
            if len(value) != len(times or ()):
                raise ValueError(f"{name} has {_count(len(value), 'number')}, expected one per time of fit_time_s")
        if times is None and self.time_s is not None:
            raise ValueError("time_s has no effect: there are no coefficients by time (fit_time_s)")
        if times is not None and not several:
            raise ValueError("fit_time_s has no effect: no coefficient is a list")
        if times is not None and self.time_s not in times:
            listed = ", ".join(f"{time:.10g}" for time in times)
            given = "missing" if self.time_s is None else f"{self.time_s:.10g}"
            raise ValueError(f"time_s is {given}, expected one of {listed}, for which the device was measured")
        return self

    def acting(self, setting: str) -> Any:
        """The value of a setting as a device has it: of coefficients, those of the time."""
        value = super().acting(setting)
        times = self.fit_time_s
        if setting != "fit_time_s" and isinstance(value, tuple) and times is not None and self.time_s is not None:
            return value[times.index(self.time_s)]
        return None if setting == "time_s" else value


class ProgramPolynomial(_Fitted):
    """The standard deviation of a conductance is a polynomial of it, fitted to measurements."""

    model: Annotated[Literal["polynomial"], MODEL]
    c0: Annotated[NumberOrNumbers, _coefficient(0)] = 0.0
    c1: Annotated[NumberOrNumbers, _coefficient(1)] = 0.0
    c2: Annotated[NumberOrNumbers, _coefficient(2)] = 0.0
    c3: Annotated[NumberOrNumbers, _coefficient(3)] = 0.0
    c4: Annotated[NumberOrNumbers, _coefficient(4)] = 0.0
    reference_us: Annotated[
        float,
        Number(
            "conductance that the coefficients were fitted for; they scale with g_max / reference_us",
            "microsiemens",
            "aihwkit, prog_coeff_g_max_reference",
            "program.reference_us",
        ),
    ]


class ProgramSaturating(_Fitted):
    """The standard deviation of a current grows with it and saturates: amplitude_na (1 - exp(-I / knee_na))."""

    model: Annotated[Literal["saturating"], MODEL]
    amplitude_na: Annotated[
        NumberOrNumbers,
        Number(
            "standard deviation of large currents; a list: one per fit_time_s", "nanoampere",
            "CrossSim, device model SONOS", "program.amplitude_na",
        ),
    ]  # fmt: skip
    knee_na: Annotated[
        NumberOrNumbers,
        Number(
            "current from which on the standard deviation saturates; a list: one per fit_time_s", "nanoampere",
            "CrossSim, device model SONOS", "program.knee_na",
        ),
    ]  # fmt: skip
    current_max_na: Annotated[
        float,
        Number(
            "current that g_max stands for", "nanoampere", "CrossSim, device model SONOS", "program.current_max_na"
        ),
    ]  # fmt: skip


class ProgramTable(_Program):
    """Mean and standard deviation of the programmed conductance were measured for some targets and times."""

    model: Annotated[Literal["table"], MODEL]
    scale: Scale = 1.0
    time_s: Annotated[
        Seconds | None, Number("time after programming, if the table has several", "s", "measured", "program.time_s")
    ] = None
    target_us: Annotated[Numbers, Number("targets, rising", "microsiemens", "measured", "program.target_us.<i>")]
    mean_us: Annotated[
        Annotated[tuple[tuple[float, ...], ...], BeforeValidator(lambda value: _rows(value))],
        Number("mean at each target, one row per time", "microsiemens", "measured", "program.mean_us.<j>.<i>"),
    ]
    std_us: Annotated[
        Annotated[tuple[tuple[float, ...], ...], BeforeValidator(lambda value: _rows(value))],
        Number(
            "standard deviation at each target, one row per time", "microsiemens", "measured", "program.std_us.<j>.<i>"
        ),
    ]
    table_time_s: Annotated[
        ManySeconds, Number("time of each row, rising", "s", "measured", "program.table_time_s.<j>")
    ] = (1.0,)
    clip: Clip = "zero"

    @model_validator(mode="after")
    def _grid_is_full(self) -> Self:
        times, points = len(self.table_time_s), len(self.target_us)
        if points < 2:
            raise ValueError(f"target_us has {points} and needs at least 2 targets")
        for name in ("mean_us", "std_us"):
            rows = getattr(self, name)
            if len(rows) != times or any(len(row) != points for row in rows):
                raise ValueError(
                    f"{name} must have {_count(times, 'row')} (one per time of table_time_s) of {points} numbers "
                    "(one per target of target_us)"
                )
        if times == 1 and self.time_s is not None:
            raise ValueError("time_s has no effect: the table has one time only")
        if times > 1 and self.time_s is None:
            raise ValueError("time_s is missing: the table has several times")
        return self


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


class ProgramFunction(_Program):
    """A Python function of your own disturbs what is stored."""

    model: Annotated[Literal["function"], MODEL]
    function: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=64)],
        Choice(
            "name under which the function is registered: emu.register_device_function, or an entry point of the group "
            "emu.device_functions",
            "your own",
            options="a name",
        ),
    ]
    parameters: Annotated[
        Annotated[dict[Name, float], BY_NAME],
        Number("what the function takes, by name", "1", "your own", "program.parameter.<name>"),
    ] = Field(default={})
    clip: Annotated[Clip | None, CLIP] = None


Program: TypeAlias = (
    ProgramNone
    | ProgramWeight
    | ProgramConductance
    | ProgramPolynomial
    | ProgramSaturating
    | ProgramLevelShared
    | ProgramResistanceRange
    | ProgramTable
    | ProgramFunction
)


def _rows(value: object) -> object:
    """One list is the row of the only time."""
    value = as_tuples(value)
    flat = isinstance(value, tuple) and not any(isinstance(row, tuple) for row in value)
    return (value,) if flat else value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
