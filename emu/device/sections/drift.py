"""[drift]: how conductances change after programming, and what undoes the mean of it."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from emu.device.fields import BY_NAME, Choice, Number, Numbers, Seconds
from emu.device.sections.section import Section

AIHWKIT = "aihwkit, PCMLikeNoiseModel (Nandakumar et al. 2019; Joshi et al. 2020)"
CMO = "aihwkit, ReRamCMONoiseModel (Falcone et al. 2025)"

MODEL = Choice(
    "law of change: power_law, g (t / t0)^-nu, of one mean exponent; power_law_fit and power_law_table, its mean and "
    "spread by the target conductance, as a fit or a table; log_time, shift and spread in proportion to ln t; "
    "relaxation, exponential towards one conductance",
    "power_law: MemTorch, NeuroSim; power_law_fit, power_law_table: aihwkit, PCM-like and custom drift; log_time: "
    "aihwkit, ReRamCMONoiseModel",
)
_Part: TypeAlias = Literal["joint", "slope", "offset", "low", "high", "c0", "c1", "c2", "c3"]
Fit: TypeAlias = Annotated[dict[_Part, float], BY_NAME]
NoiseFit: TypeAlias = Annotated[dict[_Part | Literal["q", "power", "cap"], float], BY_NAME]
_BY_CONDUCTANCE = (
    "by conductance x in units of g_max: clip(slope ln x + offset, low, high) below joint, above it c0 + c1 x + c2 x^2 "
    "+ c3 x^3; what is left out is 0, high is 1"
)


class DriftNone(Section):
    """Conductances stay as programmed."""

    model: Annotated[Literal["none"], MODEL]


class _Drift(Section):
    time_s: Annotated[Seconds, Number("time since programming, such as 3600 or '1h'", "s", AIHWKIT, "drift.time_s")]
    scale: Annotated[float, Number("factor on the drift; 0: none", "1", "aihwkit, drift_scale", "drift.scale")] = 1.0
    pairs: Annotated[
        Literal["physical", "net"],
        Choice(
            "physical: each device of a pair drifts by itself; net: the programmed difference is mapped to a pair "
            "again, and that drifts",
            "net: aihwkit, drift_analog_weights",
        ),
    ] = "physical"
    compensation: Annotated[
        Literal["none", "global", "global_exact", "column", "column_exact"],
        Choice(
            "digital factor that undoes the mean drift of a tile (global) or of each column of a tile, read with the "
            "noise of the array or exactly",
            "aihwkit, GlobalDriftCompensation (Joshi et al. 2020)",
        ),
    ] = "none"


T0 = Number("time at which the conductance is that of programming", "s", AIHWKIT, "drift.t0_s")


class DriftPowerLaw(_Drift):
    """Conductances fall as a power of time, with an exponent of each device's own."""

    model: Annotated[Literal["power_law"], MODEL]
    nu: Annotated[float, Number("mean exponent", "1", "MemTorch: 0.1", "drift.nu")]
    nu_sigma: Annotated[
        float, Number("standard deviation of the exponent between devices", "1", AIHWKIT, "drift.nu_sigma")
    ] = 0.0
    t0_s: Annotated[Seconds, T0]


class _Read(_Drift):
    """Conductances are read once after drift, with noise that grows with the logarithm of time."""

    read_scale: Annotated[
        float,
        Number("factor on the noise of the one reading; 0: none", "1", "aihwkit, read_noise_scale", "drift.read_scale"),
    ] = 1.0
    t0_s: Annotated[Seconds, T0]
    t_read_s: Annotated[Seconds, Number("duration of the one reading", "s", AIHWKIT, "drift.t_read_s")]


class _ByConductance(_Read):
    read: Annotated[
        NoiseFit,
        Number(
            f"relative amplitude of the noise of the one reading {_BY_CONDUCTANCE}; with q instead: q / x^power, at "
            "most cap",
            "1",
            AIHWKIT,
            "drift.read.c0",
        ),
    ] = Field(default={})


class DriftPowerLawFit(_ByConductance):
    """Conductances fall as a power of time, with exponents that depend on the target by a fit to measurements."""

    model: Annotated[Literal["power_law_fit"], MODEL]
    nu: Annotated[Fit, Number(f"mean exponent {_BY_CONDUCTANCE}", "1", AIHWKIT, "drift.nu.c0")]
    nu_sigma: Annotated[
        Fit,
        Number(f"standard deviation of the exponent {_BY_CONDUCTANCE}", "1", AIHWKIT, "drift.nu_sigma.c0"),
    ] = Field(default={})


class DriftPowerLawTable(_ByConductance):
    """Conductances fall as a power of time, with exponents that were measured for some targets."""

    model: Annotated[Literal["power_law_table"], MODEL]
    target_us: Annotated[Numbers, Number("targets, rising", "microsiemens", "measured", "drift.target_us.<k>")]
    mean_nu: Annotated[Numbers, Number("mean exponent at each target", "1", "measured", "drift.mean_nu.<k>")]
    std_nu: Annotated[
        Numbers, Number("standard deviation of the exponent at each target", "1", "measured", "drift.std_nu.<k>")
    ]

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for name in ("mean_nu", "std_nu"):
            if len(getattr(self, name)) != len(self.target_us) or len(self.target_us) < 2:
                raise ValueError(f"{name} must have one number per target of target_us, of which 2 are needed at least")
        return self


class DriftLogTime(_Read):
    """Conductances shift and spread in proportion to the logarithm of time, the same at every conductance."""

    model: Annotated[Literal["log_time"], MODEL]
    shift_us: Annotated[float, Number("shift of the mean by ln(t / t0)", "microsiemens", CMO, "drift.shift_us")]
    spread_us: Annotated[float, Number("spread by ln(t / t0)", "microsiemens", CMO, "drift.spread_us")]
    spread_t0_us: Annotated[float, Number("spread at t0", "microsiemens", CMO, "drift.spread_t0_us")]
    read_us: Annotated[
        float,
        Number("noise of the one reading, by the log10 of G in microsiemens", "microsiemens", CMO, "drift.read_us"),
    ]


class DriftRelaxation(_Drift):
    """Conductances relax exponentially towards one conductance, with a time constant of each device's own."""

    model: Annotated[Literal["relaxation"], MODEL]
    final_us: Annotated[float, Number("where conductances end", "microsiemens", "your own", "drift.final_us")]
    tau_s: Annotated[Seconds, Number("time constant, median over devices", "s", "your own", "drift.tau_s")]
    tau_sigma: Annotated[
        float, Number("spread of the logarithm of the time constant", "1", "your own", "drift.tau_sigma")
    ] = 0.0


Drift: TypeAlias = DriftNone | DriftPowerLaw | DriftPowerLawFit | DriftPowerLawTable | DriftLogTime | DriftRelaxation
