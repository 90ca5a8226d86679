"""[cost]: what the circuits of a device take, for `emu analyze cost`. No product depends on it, no graph holds it.

A constant that is left out is not modelled, and whoever counts with it says so: nothing here has a default that would
pass for a measurement.
"""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from emu.contract.schema import Range
from emu.device.fields import BY_NAME, Choice, Number
from emu.device.sections.section import Section

CHIP = "the device's own, in [cost.sources]"
NOT_NEGATIVE, POSITIVE, SHARE = Range(0), Range(0, low_included=False), Range(0, 1)
COUNT = Range(1, 2**20, whole=True)

Sources: TypeAlias = Annotated[dict[str, str], BY_NAME]
MODEL = Choice("whether the constants of the circuits are given", CHIP)


class CostNone(Section):
    """Energy, area and time of the circuits are not known."""

    model: Annotated[Literal["none"], MODEL]


class CostCircuits(Section):
    """Constants of cells, converters and what stands around them; one that is left out is not modelled."""

    model: Annotated[Literal["circuits"], MODEL] = "circuits"
    sources: Annotated[Sources, Choice("where each constant comes from", CHIP, options="setting = text")] = Field(
        default_factory=dict
    )
    node_nm: Annotated[float | None, Number("technology node of the circuits", "nm", CHIP, POSITIVE)] = None
    chip_cells: Annotated[float | None, Number("cells of one chip", "cells", CHIP, Range(1))] = None

    cell_area_um2: Annotated[float | None, Number("area of one cell in its array", "um2", CHIP, NOT_NEGATIVE)] = None
    cell_devices: Annotated[
        int, Number("devices in one cell: 2 where a pair stands in one cell", "devices", CHIP, Range(1, 2, whole=True))
    ] = 1
    weight_cells: Annotated[
        int | None,
        Number("cells of a stored weight, for a device that does not say how weights are stored", "cells", CHIP, COUNT),
    ] = None
    read_voltage_v: Annotated[float | None, Number("over a cell that is read", "V", CHIP, NOT_NEGATIVE)] = None
    read_ns: Annotated[float | None, Number("one reading of an array, the longest pulse", "ns", CHIP, POSITIVE)] = None
    phases: Annotated[
        int, Number("readings of one input, beside its slices; 4: HERMES at high precision", "readings", CHIP, COUNT)
    ] = 1
    conductance_us: Annotated[
        float | None,
        Number("mean of the devices; without it mean_conductance of their range", "microsiemens", CHIP, NOT_NEGATIVE),
    ] = None
    mean_conductance: Annotated[
        float, Number("mean of the devices, from g_min (0) to g_max (1)", "1", "assumed unless given", SHARE)
    ] = 0.5
    mean_input: Annotated[
        float, Number("mean share of a reading for which a row is driven", "1", "assumed unless given", SHARE)
    ] = 0.5

    write_pj: Annotated[
        float | None, Number("one pulse on one device; without it V^2 G t of the two below", "pJ", CHIP, NOT_NEGATIVE)
    ] = None
    write_voltage_v: Annotated[float | None, Number("of a write pulse", "V", CHIP, NOT_NEGATIVE)] = None
    write_ns: Annotated[float | None, Number("length of a write pulse", "ns", CHIP, NOT_NEGATIVE)] = None
    write_pulses: Annotated[
        float, Number("pulses until a cell is written, with those of verification", "pulses", CHIP, Range(1))
    ] = 1.0

    dac: Annotated[
        Literal["bit_serial", "pwm"],
        Choice(
            "how inputs reach the rows: bit_serial, one reading for each bit; pwm, pulses of its length in one reading",
            "bit_serial: ISAAC; pwm: HERMES",
        ),
    ] = "bit_serial"
    dac_bits: Annotated[
        int | None,
        Number("resolution of the chip's DACs; without it the device's", "bits", CHIP, Range(1, 16, whole=True)),
    ] = None
    dac_pj: Annotated[float | None, Number("driving one row for one reading", "pJ", CHIP, NOT_NEGATIVE)] = None
    dac_area_um2: Annotated[float | None, Number("driver of one row of one array", "um2", CHIP, NOT_NEGATIVE)] = None

    adc: Annotated[
        Literal["sar", "ramp", "cco"],
        Choice(
            "sar: converts columns one after another, while the array is read again; ramp: all columns of an array at "
            "once, after the reading; cco: counts the oscillations of a current during the reading",
            "sar: ISAAC; ramp: Ambrogio et al. 2023; cco: HERMES",
        ),
    ] = "sar"
    adc_bits: Annotated[
        int | None,
        Number("resolution of the chip's ADCs; without it the device's", "bits", CHIP, Range(1, 16, whole=True)),
    ] = None
    adc_pj: Annotated[float | None, Number("one conversion", "pJ", CHIP, NOT_NEGATIVE)] = None
    adc_area_um2: Annotated[float | None, Number("one ADC", "um2", CHIP, NOT_NEGATIVE)] = None
    adc_ns: Annotated[
        float | None, Number("one conversion (sar), or the ramp of all columns (ramp)", "ns", CHIP, NOT_NEGATIVE)
    ] = None
    adc_columns: Annotated[
        int | None, Number("columns that share one ADC; without it adc.columns", "columns", CHIP, COUNT)
    ] = None
    pair_conversions: Annotated[
        int,
        Number(
            "1: the currents of a pair are subtracted, then converted; 2: each by itself",
            "conversions",
            "CrossSim",
            Range(1, 2, whole=True),
        ),
    ] = 1

    shift_add_pj: Annotated[
        float | None, Number("holding one output and adding its code to a sum", "pJ", CHIP, NOT_NEGATIVE)
    ] = None
    buffer_pj_per_bit: Annotated[
        float | None, Number("one bit of an input or output from or to its buffer", "pJ", CHIP, NOT_NEGATIVE)
    ] = None
    core_pj: Annotated[
        float | None,
        Number("all else, for one reading of one array: registers, control, links", "pJ", CHIP, NOT_NEGATIVE),
    ] = None
    core_area_um2: Annotated[
        float | None,
        Number("all else, for one array: adders, registers, buffers, control, links", "um2", CHIP, NOT_NEGATIVE),
    ] = None

    published_tops_per_w: Annotated[
        float | None, Number("efficiency that the chip's makers publish, to compare with", "TOPS/W", CHIP, POSITIVE)
    ] = None
    published_tops_per_mm2: Annotated[
        float | None, Number("density that the chip's makers publish, to compare with", "TOPS/mm2", CHIP, POSITIVE)
    ] = None

    @model_validator(mode="after")
    def _sources_are_of_constants(self) -> Self:
        constants = set(type(self).model_fields) - {"model", "sources"}
        if unknown := sorted(set(self.sources) - constants):
            raise ValueError(f"sources names {', '.join(unknown)}, which is no constant of [cost]")
        return self


Cost: TypeAlias = CostNone | CostCircuits
