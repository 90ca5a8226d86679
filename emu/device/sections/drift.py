"""[drift]: how conductances change after programming, and what undoes the mean of it."""

from typing import Annotated, Literal, TypeAlias

from emu.device.fields import Choice, Number, Seconds
from emu.device.sections.section import Section

AIHWKIT = "aihwkit, PCMLikeNoiseModel (Nandakumar et al. 2019; Joshi et al. 2020)"

MODEL = Choice(
    "law of change: power_law, g (t / t0)^-nu; pcm, phase-change memory; hermes_pair and hermes_single, the HERMES "
    "chip with two devices or one per conductance; state_independent, phase-change memory whose drift is the same at "
    "every conductance; cmo, RRAM with a conductive metal oxide",
    "aihwkit, inference noise models; power_law: MemTorch, NeuroSim; cmo: Falcone et al. 2025",
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


class DriftPowerLaw(_Drift):
    """Conductances fall as a power of time, with an exponent of each device's own."""

    model: Annotated[Literal["power_law"], MODEL]
    nu: Annotated[float, Number("mean exponent", "1", "MemTorch: 0.1", "drift.nu")]
    nu_sigma: Annotated[
        float, Number("standard deviation of the exponent between devices", "1", AIHWKIT, "drift.nu_sigma")
    ] = 0.0
    t0_s: Annotated[
        Seconds,
        Number("time at which the conductance is that of programming", "s", AIHWKIT, "drift.t0_s"),
    ]


class DriftMeasured(_Drift):
    """Conductances drift as fitted to measurements, and are read once with the noise of that time."""

    model: Annotated[Literal["pcm", "hermes_pair", "hermes_single", "state_independent", "cmo"], MODEL]
    read_scale: Annotated[
        float,
        Number(
            "factor on the noise of the one reading after drift; 0: none",
            "1",
            "aihwkit, read_noise_scale",
            "drift.read_scale",
        ),
    ] = 1.0


Drift: TypeAlias = DriftNone | DriftPowerLaw | DriftMeasured
