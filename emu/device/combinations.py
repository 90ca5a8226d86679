"""Settings of different sections that do nothing, or lack something, beside each other, each with its sentence.

What no node may say is a rule of `emu/contract/schema.py`; here is what only a profile can know.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from emu.contract.schema import TRANSFORM
from emu.device import sections


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
    """Says what has no effect in a profile whose sections are right by themselves, None if all has one."""
    for problems in (_mapping, _granular, _calibrated):
        for sentence in problems(profile):
            return sentence
    return None


def _mapping(profile: _Sections) -> Iterator[str]:
    mapping, program, write = profile.mapping, profile.program, profile.write
    if _get(mapping, "offset_correction") == "unit_column" and not _has_periphery(profile):
        yield (
            "mapping.offset_correction unit_column has no effect where products are exact: it is read by a DAC, an ADC "
            "or with noise (read.output_noise = 0 is enough)"
        )
    fixed = any(_get(write, name) is not None for name in ("sigma_device", "stuck_low", "stuck_high"))
    if _get(write, "capacity") is not None and not fixed:
        yield (
            "write.capacity has no effect: what stays with cells is write.sigma_device, write.stuck_low and "
            "write.stuck_high"
        )
    if mapping.encoding != "weight":
        return
    if mapping.scaling != "tensor" and not _uses_scales(profile):
        yield (
            f"mapping.scaling {mapping.scaling} has no effect: nothing here depends on the scale of a weight (bit "
            "flips have faults.scale)"
        )
    if program.model == "function" and _get(program, "clip") is not None:
        yield "program.clip has no effect with mapping.encoding weight: only conductances are clipped"
    for name in ("g_min_us", "g_max_us"):
        if not writes_conductances(write) and _get(mapping, name) is not None:
            yield (
                f"mapping.{name} has no effect: there are conductances only with mapping.encoding differential, "
                "two_sided or offset, or write.model lognormal_g or clipformer, or where write.alpha or write.beta "
                "moves what is written"
            )


def _granular(profile: _Sections) -> Iterator[str]:
    mapping, dac = profile.mapping, profile.dac
    if _get(profile.adc, "range") != "granular":
        return
    if not (_get(mapping, "slice_bits") or _get(mapping, "cell_bits") or mapping.weight_bits):
        yield "adc.range granular needs levels of weights: mapping.slice_bits, mapping.cell_bits or mapping.weight_bits"
    if not (_get(dac, "slice_bits") or _get(dac, "bits") or _get(dac, "steps")):
        yield "adc.range granular needs levels of inputs: a DAC with dac.bits or dac.steps"


def _calibrated(profile: _Sections) -> Iterator[str]:
    per = _get(profile.adc, "range_per") or "site"
    if "slice" in per and not _get(profile.mapping, "slice_bits"):
        yield f"adc.range_per {per} needs slices: mapping.slice_bits"


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


def writes_conductances(write: sections.Write) -> bool:
    """Whether what is written at run time depends on g_min and g_max."""
    moved = any(_get(write, name.removeprefix("write.")) is not None for name in TRANSFORM)
    return write.model in ("lognormal_g", "clipformer") or moved


def _get(section: Any, setting: str) -> Any:
    """A setting that only some variants of its section have."""
    return getattr(section, setting, None)
