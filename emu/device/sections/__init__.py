"""The sections of a device profile, one file each.

A section is a union of variants. A variant has exactly the settings that act under it, so a setting without effect is
an error and never a silent leftover. `docs/operators.md` defines what every setting does to a product; [sites]
says which products are on the device, and [cost] changes none.
"""

from emu.device.sections.converters import Adc, Dac
from emu.device.sections.cost import Cost
from emu.device.sections.drift import Drift
from emu.device.sections.faults import Faults
from emu.device.sections.mapping import Mapping
from emu.device.sections.program import Program
from emu.device.sections.read import Read
from emu.device.sections.section import Section, variants_of
from emu.device.sections.sites import Sites
from emu.device.sections.write import Write

VARIANTS: dict[str, tuple[type[Section], ...]] = {
    "sites": variants_of(Sites),
    "mapping": variants_of(Mapping),
    "program": variants_of(Program),
    "drift": variants_of(Drift),
    "faults": variants_of(Faults),
    "write": variants_of(Write),
    "dac": variants_of(Dac),
    "adc": variants_of(Adc),
    "read": variants_of(Read),
    "cost": variants_of(Cost),
}

__all__ = [
    "VARIANTS",
    "Adc",
    "Cost",
    "Dac",
    "Drift",
    "Faults",
    "Mapping",
    "Program",
    "Read",
    "Section",
    "Sites",
    "Write",
]
