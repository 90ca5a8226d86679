"""Which settings of different sections do not go together, each with the sentence that says so."""

from collections.abc import Iterator
from typing import Any, Protocol

from emu.device import sections
from emu.device.sections.program import WEIGHT_MODELS


class _Sections(Protocol):
    """The sections of a profile, each right by itself."""

    @property
    def mapping(self) -> sections.Mapping: ...
    @property
    def program(self) -> sections.Program: ...
    @property
    def drift(self) -> sections.Drift: ...
    @property
    def faults(self) -> sections.Faults: ...
    @property
    def write(self) -> sections.Write: ...
    @property
    def dac(self) -> sections.Dac: ...
    @property
    def adc(self) -> sections.Adc: ...
    @property
    def read(self) -> sections.Read: ...


def wrong_combination(profile: _Sections) -> str | None:
    """Says what does not go together in a profile whose sections are right by themselves, None if all does."""
    for problems in (_mapping, _program, _drift, _faults, _write, _converters, _read):
        for sentence in problems(profile):
            return sentence
    return None


def _mapping(profile: _Sections) -> Iterator[str]:
    mapping = profile.mapping
    cell_bits, slice_bits = _get(mapping, "cell_bits"), _get(mapping, "slice_bits", 0)
    if slice_bits and not mapping.weight_bits:
        yield "mapping.slice_bits needs mapping.weight_bits: the bits of a weight's code are what is cut"
    if slice_bits and cell_bits is not None:
        yield "mapping.cell_bits has no effect beside mapping.slice_bits, which says how many bits a cell holds"
    if mapping.encoding == "offset" and cell_bits == 1:
        yield "mapping.cell_bits is 1 and must be 0 or at least 2 with mapping.encoding offset"
    if _get(mapping, "offset_correction") == "unit_column" and not _has_periphery(profile):
        yield (
            "mapping.offset_correction unit_column has no effect where products are exact: it is read by a DAC, an ADC "
            "or with noise (read.output_noise = 0 is enough)"
        )
    if mapping.encoding == "weight" and mapping.scaling != "tensor" and not _uses_scales(profile):
        yield (
            f"mapping.scaling {mapping.scaling} has no effect: nothing here depends on the scale of a weight (bit "
            "flips have faults.scale)"
        )
    if mapping.encoding == "weight":
        users = "lognormal_g", "clipformer"
        for name in ("g_min_us", "g_max_us"):
            given = _get(mapping, name) is not None
            if profile.write.model in users and not given:
                yield f"mapping.{name} is missing: write.model {profile.write.model} needs it"
            if profile.write.model not in users and given:
                yield (
                    f"mapping.{name} has no effect: there are conductances only with mapping.encoding differential, "
                    "two_sided or offset, or write.model lognormal_g or clipformer"
                )


def _program(profile: _Sections) -> Iterator[str]:
    mapping, program = profile.mapping, profile.program
    slice_bits = _get(mapping, "slice_bits", 0)
    if program.model in WEIGHT_MODELS and mapping.encoding != "weight":
        yield (
            f"program.model {program.model} disturbs weights and needs mapping.encoding weight, not "
            f"{mapping.encoding}: for conductances there are lognormal_g and normal_proportional"
        )
    if program.model not in (*WEIGHT_MODELS, "none", "function") and mapping.encoding == "weight":
        yield (
            f"program.model {program.model} disturbs conductances and needs mapping.encoding differential, two_sided "
            "or offset, with mapping.g_min_us and mapping.g_max_us"
        )
    if program.model == "level_shared" and not slice_bits and not _get(mapping, "cell_bits"):
        yield "program.model level_shared needs levels: mapping.cell_bits from 1, or mapping.slice_bits"
    if program.model == "function" and slice_bits:
        yield "program.model function is not for sliced weights: set mapping.slice_bits to 0"
    if program.model == "function" and _get(mapping, "offset_correction") == "unit_column":
        yield (
            "mapping.offset_correction unit_column is not for program.model function, which is given the array only: "
            "choose digital"
        )
    if program.model == "function" and mapping.encoding == "weight" and _get(program, "clip") is not None:
        yield "program.clip has no effect with mapping.encoding weight: only conductances are clipped"
    if program.modifier is not None and (slice_bits or mapping.encoding == "offset"):
        yield "program.modifier is not for sliced weights nor for mapping.encoding offset: remove it"


def _drift(profile: _Sections) -> Iterator[str]:
    mapping, drift = profile.mapping, profile.drift
    if drift.model == "none":
        return
    sliced = _get(mapping, "slice_bits", 0) > 0
    if mapping.encoding == "weight":
        yield (
            f"drift.model {drift.model} is of conductances and needs mapping.encoding differential, two_sided or "
            "offset, with mapping.g_min_us and mapping.g_max_us"
        )
    if _get(drift, "pairs") == "net" and (mapping.encoding != "differential" or sliced):
        yield "drift.pairs net needs mapping.encoding differential without mapping.slice_bits"
    if _get(drift, "compensation") in ("global", "column") and (mapping.encoding == "offset" or sliced):
        kind = _get(drift, "compensation")
        yield (
            f"drift.compensation {kind} is not for sliced weights nor for mapping.encoding offset: choose {kind}_exact"
        )
    if drift.model == "cmo" and 0 < _get(drift, "time_s") < 1:
        yield f"drift.time_s is {_get(drift, 'time_s'):g} and must be 0 or at least 1 with drift.model cmo"


def _faults(profile: _Sections) -> Iterator[str]:
    weights = profile.mapping.encoding == "weight"
    if profile.faults.storage == "float32" and not weights:
        yield "faults.storage float32 needs mapping.encoding weight: conductances do not hold the bits of a float32"
    if _get(profile.faults, "stuck_low") is not None and weights:
        yield (
            "faults.stuck_low and faults.stuck_high are of conductances and need mapping.encoding differential, "
            "two_sided or offset, with mapping.g_min_us and mapping.g_max_us"
        )


def _write(profile: _Sections) -> Iterator[str]:
    if profile.write.scaling == "sample" and profile.mapping.scaling != "tensor":
        yield f"write.scaling sample needs mapping.scaling tensor, not {profile.mapping.scaling}"


def _converters(profile: _Sections) -> Iterator[str]:
    mapping, dac, adc = profile.mapping, profile.dac, profile.adc
    weight_slices, input_slices = _get(mapping, "slice_bits", 0), _get(dac, "slice_bits", 0)
    if _get(adc, "bound_management") == "iterative":
        if weight_slices or input_slices:
            name = "mapping.slice_bits" if weight_slices else "dac.slice_bits"
            yield f"adc.bound_management iterative is not for sliced weights or inputs: set {name} to 0"
        if mapping.encoding == "offset":
            yield "adc.bound_management iterative is not for mapping.encoding offset: choose none"
    if _get(adc, "range") == "granular":
        if not (weight_slices or _get(mapping, "cell_bits") or mapping.weight_bits):
            yield (
                "adc.range granular needs levels of weights: mapping.slice_bits, mapping.cell_bits or "
                "mapping.weight_bits"
            )
        if not (input_slices or _get(dac, "bits") or _get(dac, "steps")):
            yield "adc.range granular needs levels of inputs: a DAC with dac.bits or dac.steps"


def _read(profile: _Sections) -> Iterator[str]:
    if profile.read.wires == "network" and profile.mapping.encoding == "weight":
        yield (
            "read.wires network is of conductances and needs mapping.encoding differential, two_sided or offset, with "
            "mapping.g_min_us and mapping.g_max_us"
        )
    if profile.read.input_noise is not None and _get(profile.dac, "slice_bits", 0):
        yield "read.input_noise is not for sliced inputs: remove it, or set dac.slice_bits to 0"


def _uses_scales(profile: _Sections) -> bool:
    """Whether plain numbers in arrays are disturbed, rounded or read in units of their scale."""
    in_units = profile.program.model in ("gauss_range", "function") or profile.program.modifier is not None
    rounded = bool(profile.mapping.weight_bits) or _get(profile.mapping, "percentile") is not None
    written = profile.write.model != "none" or profile.write.scaling == "sample"
    return in_units or rounded or written or _has_periphery(profile)


def _has_periphery(profile: _Sections) -> bool:
    """Whether a product is more than the plain product with the stored values."""
    read = profile.read
    quiet = read.weight_noise_model == "none" and read.output_noise is None and read.input_noise is None
    return profile.dac.model != "none" or profile.adc.model != "none" or read.wires == "formula" or not quiet


def _get(section: Any, setting: str, otherwise: Any = None) -> Any:
    """A setting that only some variants of its section have."""
    return getattr(section, setting, otherwise)
