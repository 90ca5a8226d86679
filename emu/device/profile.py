"""A device profile: its sections, the numbers that it gives to a graph, and the structure of its nodes."""

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from emu.contract.schema import ATTRIBUTES, NUMBERS
from emu.contract.structure import wrong_settings
from emu.device import sections
from emu.device.combinations import wrong_combination
from emu.device.fields import said_of_settings
from emu.device.sections.converters import AdcNone, DacNone
from emu.device.sections.cost import CostNone
from emu.device.sections.drift import DriftNone
from emu.device.sections.faults import FaultsNone
from emu.device.sections.mapping import MappingWeight
from emu.device.sections.program import ProgramNone
from emu.device.sections.read import ReadPlain
from emu.device.sections.section import ChosenVariant
from emu.device.sections.write import WriteNone

_SETTING_OF_ENTRY = {"program.parameter": "program.parameters"}
# The setting that gives each attribute. Where a device has no such setting, or leaves it out, its effect is off.
SETTINGS = {
    "tile_rows": "mapping.tile_rows",
    "tile_columns": "mapping.tile_columns",
    "tile_split": "mapping.split",
    "scaling": "mapping.scaling",
    "fault_storage": "faults.storage",
    "fault_bits": "faults.bits",
    "fault_range": "faults.range",
    "fault_scale": "faults.scale",
    "fault_mask": "faults.mask",
    "fault_protection": "faults.protection",
    "encoding": "mapping.encoding",
    "offset_correction": "mapping.offset_correction",
    "weight_bits": "mapping.weight_bits",
    "slice_bits": "mapping.slice_bits",
    "program": "program.model",
    "program_function": "program.function",
    "program_clip": "program.clip",
    "drift": "drift.model",
    "drift_pairs": "drift.pairs",
    "compensation": "drift.compensation",
    "write": "write.model",
    "write_cells": "write.cells",
    "write_scaling": "write.scaling",
    "dac": "dac.range",
    "dac_code": "dac.code",
    "dac_slice_bits": "dac.slice_bits",
    "dac_slice_sum": "dac.slice_sum",
    "dac_rounding": "dac.rounding",
    "adc": "adc.range",
    "adc_code": "adc.code",
    "adc_columns": "adc.columns",
    "adc_pairs": "adc.pairs",
    "adc_rounding": "adc.rounding",
    "bound_management": "adc.bound_management",
    "read_noise": "read.weight_noise_model",
    "ir_drop": "read.wires",
}
# The section and field that give each attribute, and each number or family of numbers in the order of a graph's
# `device` tensor.
_ATTRIBUTE_FIELDS = {name: setting.split(".") for name, setting in SETTINGS.items()}
_ENTRY_FIELDS = {name: name.split(".") for name in (each.split(".<")[0] for each in NUMBERS)}
_ENTRY_FIELDS["program.parameter"] = ["program", "parameters"]


class Profile(BaseModel):
    """A device: how values are stored, what disturbs them, and how products are read.

    `model_dump(mode="json")` gives plain data that `Profile.model_validate` reads back. Users' files and overrides go
    through `load_profile`, whose errors are one sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    description: str = ""
    source: str = ""
    sites: Annotated[sections.Sites, ChosenVariant()] = sections.Sites()
    mapping: Annotated[sections.Mapping, ChosenVariant()] = MappingWeight()
    program: Annotated[sections.Program, ChosenVariant()] = ProgramNone(model="none")
    drift: Annotated[sections.Drift, ChosenVariant()] = DriftNone(model="none")
    faults: Annotated[sections.Faults, ChosenVariant()] = FaultsNone()
    write: Annotated[sections.Write, ChosenVariant()] = WriteNone(model="none")
    dac: Annotated[sections.Dac, ChosenVariant()] = DacNone(model="none")
    adc: Annotated[sections.Adc, ChosenVariant()] = AdcNone(model="none")
    read: Annotated[sections.Read, ChosenVariant()] = ReadPlain()
    cost: Annotated[sections.Cost, ChosenVariant()] = CostNone(model="none")

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Self:
        entries = self.entries()
        contradictions = said_of_settings(wrong_settings(self.structure(), entries), SETTINGS)
        problem = wrong_combination(self) or next(contradictions, None)
        if problem:
            raise ValueError(problem)
        return self

    def entries(self) -> dict[str, float]:
        """The numbers of the graph's `device` tensor, in its order: entry name to value, only those that are used.

        A list such as `program.target_us` has the entries `program.target_us.0` and so on, a list of lists
        `program.mean_us.<row>.<column>`, and a function's parameters `program.parameter.<name>`.
        """
        numbers: dict[str, float] = {}
        for name, place in _ENTRY_FIELDS.items():
            value = self._setting(*place)
            if value is not None and (not isinstance(value, dict) or name == "program.parameter"):
                numbers |= _entries(name, value)
        return numbers

    def choices(self) -> dict[str, float]:
        """The settings that are no entry, but choose which numbers entries have, as a run may do too, with values."""
        given = getattr(self.program, "time_s", None)
        return {"program.time_s": given} if given is not None and self._setting("program", "fit_time_s") else {}

    def structure(self) -> dict[str, int | str]:
        """What shapes the computation: the attributes of a rewritten graph's nodes that the device gives.

        All of them, those of stored weights (`encoding`, `program`, `drift`, `fault_source`, ...) and those of operands
        written at run time (`write`, ...); a node carries those of its operator. `ir_drop` `network` is of stored
        weights only. Where `write.operands` is not `both`, the sites of the other operand have `write` `none`.
        """
        flips = self.faults.storage != "none"
        stuck = self._setting("faults", "stuck_low") is not None
        given = {attribute: self._setting(*place) for attribute, place in _ATTRIBUTE_FIELDS.items()} | {
            "fault_source": "random" if flips or stuck else "none",
            "table_times": len(self._setting("program", "table_time_s") or ()),
            "table_points": len(self._setting("program", "target_us") or ()),
            "drift_points": len(self._setting("drift", "target_us") or ()),
        }
        absent = {name: row.absent for name, row in ATTRIBUTES.items() if name in given}
        if given["fault_storage"] == "model":
            given["fault_storage"] = "float32"  # until the type of a weight is known
        attributes = {name: value if given[name] is None else given[name] for name, value in absent.items()}
        return {**attributes, "entries": ",".join(self.entries())}

    def _setting(self, section: str, field: str, *part: str) -> Any:
        """The value of a setting, or of a part of a fit, None where it is left out or not of the chosen variant."""
        value = getattr(self, section).acting(field)
        return (value.get(part[0]) if isinstance(value, dict) else None) if part else value


def _entries(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield f"{name}.{key}", float(each)
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _entries(f"{name}.{index}", each)
    else:
        yield name, float(value)
