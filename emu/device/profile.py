"""A device profile: its sections, the numbers that it gives to a graph, and the structure of its nodes."""

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from emu.device import sections
from emu.device.combinations import wrong_combination
from emu.device.fields import contradiction
from emu.device.sections.converters import AdcNone, DacNone
from emu.device.sections.drift import DriftNone
from emu.device.sections.faults import FaultsFloat32, FaultsInt, FaultsNone
from emu.device.sections.mapping import MappingWeight
from emu.device.sections.program import ProgramNone
from emu.device.sections.read import ReadPlain
from emu.device.sections.section import ChosenVariant
from emu.device.sections.write import WriteNone

# The order of a graph's `device` tensor. A setting that holds several numbers has an entry for each: see `entries`.
ENTRY_NAMES = (
    "program.sigma",
    "program.sigma_cycle",
    "program.sigma_off",
    "program.scale",
    "program.c0",
    "program.c1",
    "program.c2",
    "program.c3",
    "program.c4",
    "program.reference_us",
    "program.current_max_na",
    "program.time_s",
    "program.target_us",
    "program.mean_us",
    "program.std_us",
    "program.table_time_s",
    "program.parameter",
    "program.modifier",
    "mapping.g_min_us",
    "mapping.g_max_us",
    "mapping.cell_bits",
    "mapping.percentile",
    "drift.time_s",
    "drift.scale",
    "drift.read_scale",
    "drift.nu",
    "drift.nu_sigma",
    "drift.t0_s",
    "faults.ber",
    "faults.stuck_low",
    "faults.stuck_high",
    "write.sigma",
    "write.gamma",
    "write.alpha",
    "write.beta",
    "write.bits",
    "dac.bits",
    "dac.steps",
    "dac.bound",
    "dac.max",
    "dac.limit",
    "adc.bits",
    "adc.steps",
    "adc.bound",
    "adc.gain_sigma",
    "adc.offset_sigma",
    "adc.max_bound_factor",
    "adc.max_bound_resolution",
    "read.weight_noise",
    "read.output_noise",
    "read.input_noise",
    "read.ir_drop",
    "read.ir_drop_ratio",
    "read.row_ohm",
    "read.column_ohm",
)
_SETTING_OF_ENTRY = {"program.parameter": "program.parameters"}


class Profile(BaseModel):
    """A device: how values are stored, what disturbs them, and how products are read.

    `model_dump(mode="json")` gives plain data that `Profile.model_validate` reads back. Users' files and overrides go
    through `load_profile`, whose errors are one sentence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    description: str = ""
    source: str = ""
    mapping: Annotated[sections.Mapping, ChosenVariant()] = MappingWeight()
    program: Annotated[sections.Program, ChosenVariant()] = ProgramNone(model="none")
    drift: Annotated[sections.Drift, ChosenVariant()] = DriftNone(model="none")
    faults: Annotated[sections.Faults, ChosenVariant()] = FaultsNone()
    write: Annotated[sections.Write, ChosenVariant()] = WriteNone(model="none")
    dac: Annotated[sections.Dac, ChosenVariant()] = DacNone(model="none")
    adc: Annotated[sections.Adc, ChosenVariant()] = AdcNone(model="none")
    read: Annotated[sections.Read, ChosenVariant()] = ReadPlain()

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Self:
        problem = contradiction(self.entries()) or wrong_combination(self)
        if problem:
            raise ValueError(problem)
        return self

    def entries(self) -> dict[str, float]:
        """The numbers of the graph's `device` tensor, in its order: entry name to value, only those that are used.

        A list such as `program.target_us` has the entries `program.target_us.0` and so on, a list of lists
        `program.mean_us.<row>.<column>`, and a function's parameters `program.parameter.<name>`.
        """
        numbers: dict[str, float] = {}
        for name in ENTRY_NAMES:
            section, field = _SETTING_OF_ENTRY.get(name, name).split(".", 1)
            value = getattr(getattr(self, section), field, None)
            numbers |= {} if value is None else dict(_entries(name, value))
        return numbers

    def structure(self) -> dict[str, int | str]:
        """What shapes the computation: the attributes of a rewritten graph's nodes that the device gives.

        All of them, those of stored weights (`encoding`, `program`, `drift`, `fault_source`, ...) and those of operands
        written at run time (`write`, ...); a node carries those of its operator. `ir_drop` `network` is of stored
        weights only. Where `write.operands` is not `both`, the sites of the other operand have `write` `none`.
        """
        mapping, program, drift, faults, dac, adc = (
            self.mapping,
            self.program,
            self.drift,
            self.faults,
            self.dac,
            self.adc,
        )
        flips = faults if isinstance(faults, FaultsInt | FaultsFloat32) else None
        codes = faults if isinstance(faults, FaultsInt) else None
        stuck = getattr(faults, "stuck_low", None) is not None
        times, points = getattr(program, "table_time_s", ()), getattr(program, "target_us", ())
        return {
            "tile_rows": mapping.tile_rows,
            "tile_columns": mapping.tile_columns,
            "tile_split": mapping.split,
            "scaling": mapping.scaling,
            "fault_source": "random" if flips or stuck else "none",
            "fault_storage": faults.storage,
            "fault_bits": codes.bits if codes else 8,
            "fault_range": codes.range if codes else "symmetric",
            "fault_scale": codes.scale if codes else "tensor",
            "fault_mask": flips.mask if flips else 255,
            "fault_protection": flips.protection if flips else "none",
            "encoding": mapping.encoding,
            "offset_correction": getattr(mapping, "offset_correction", "digital"),
            "weight_bits": mapping.weight_bits,
            "slice_bits": getattr(mapping, "slice_bits", 0),
            "program": program.model,
            "program_function": getattr(program, "function", ""),
            "table_times": len(times),
            "table_points": len(points),
            "program_clip": getattr(program, "clip", None) or "zero",
            "drift": drift.model,
            "drift_pairs": getattr(drift, "pairs", "physical"),
            "compensation": getattr(drift, "compensation", "none"),
            "write": self.write.model,
            "write_cells": getattr(self.write, "cells", "composite"),
            "write_scaling": self.write.scaling,
            "dac": "none" if isinstance(dac, DacNone) else dac.range,
            "dac_code": getattr(dac, "code", "sign_magnitude"),
            "dac_slice_bits": getattr(dac, "slice_bits", 0),
            "adc": "none" if isinstance(adc, AdcNone) else adc.range,
            "adc_code": getattr(adc, "code", "sign_magnitude"),
            "adc_columns": getattr(adc, "columns", None) or 1,
            "bound_management": getattr(adc, "bound_management", "none"),
            "read_noise": self.read.weight_noise_model,
            "ir_drop": self.read.wires,
            "entries": ",".join(self.entries()),
        }


def _entries(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield f"{name}.{key}", float(each)
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _entries(f"{name}.{index}", each)
    else:
        yield name, float(value)
