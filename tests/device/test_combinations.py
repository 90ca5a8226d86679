"""Settings of different sections that contradict each other are refused with a sentence that names both."""

from typing import Any

import pytest

from emu.device import load_profile
from emu.errors import InputError

PAIR = ["mapping.encoding=differential", "mapping.g_min_us=1", "mapping.g_max_us=20"]
OFFSET = ["mapping.encoding=offset", "mapping.g_min_us=1", "mapping.g_max_us=20"]
SLICES = [*PAIR, "mapping.weight_bits=8", "mapping.slice_bits=2"]
DRIFT = ["drift.model=power_law", "drift.time_s=1h", "drift.t0_s=1", "drift.nu=0.1"]
LOG_TIME = [f"drift.{name}=1" for name in ("t0_s", "t_read_s", "shift_us", "spread_us", "spread_t0_us", "read_us")]
ONE_EXPONENT = [f"drift.{name}=[1]" for name in ("target_us", "mean_nu", "std_nu")]
FITS = ["program.reference_us=40", "program.fit_time_s=[1, '1d']", "program.c0=[0.3, 0.7]"]
CALIBRATED = ["adc.model=uniform", "adc.range=calibrated", "adc.bits=6"]
GRANULAR = ["adc.model=uniform", "adc.range=granular", "adc.bits=8"]
DAC = ["dac.model=uniform", "dac.range=absmax", "dac.bits=8"]
ITERATIVE = ["adc.model=uniform", "adc.range=fixed", "adc.bits=8", "adc.bound=10", "adc.bound_management=iterative"]
FLIPS = ["faults.storage=int", "faults.bits=8", "faults.ber=1e-3"]

FUNCTION = ["program.model=function", "program.function=f"]


def changed(overrides: list[str], **values: str) -> list[str]:
    """The overrides with other values for some settings, by their last word."""
    names = [text.partition("=")[0] for text in overrides]
    return [
        f"{name}={values.get(name.split('.')[-1], text.partition('=')[2])}"
        for name, text in zip(names, overrides, strict=True)
    ]


def refusal(device: Any, overrides: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_profile(device, overrides)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        # mapping
        (
            [*PAIR, "mapping.slice_bits=2"],
            "mapping.slice_bits is 2, expected 0 unless mapping.encoding is 'differential' or 'offset' and",
        ),
        (["mapping.scaling=column"], "mapping.scaling column has no effect: nothing here depends on the scale"),
        (
            [*SLICES, "mapping.cell_bits=4"],
            "mapping.cell_bits is given, expected to be left out because mapping.encoding is 'differential'",
        ),
        ([*OFFSET, "mapping.cell_bits=1"], "mapping.cell_bits is 1, expected 0 or 2 to 12 with an offset"),
        (
            ["mapping.weight_bits=8", "mapping.slice_bits=2"],
            "mapping.slice_bits has no effect with mapping.encoding weight",
        ),
        (["mapping.cell_bits=4"], "mapping.cell_bits has no effect with mapping.encoding weight"),
        (
            ["mapping.encoding=two_sided", "mapping.g_min_us=1", "mapping.g_max_us=20", "mapping.slice_bits=2"],
            "mapping.slice_bits has no effect with mapping.encoding two_sided",
        ),
        ([*PAIR, "mapping.offset_correction=unit_column"], "choose mapping.encoding offset"),
        # program
        (
            [*PAIR, "program.model=gauss_prop", "program.sigma=0.1"],
            "'gauss_prop', expected a model of conductances unless mapping.encoding is 'weight'",
        ),
        (
            ["program.model=uniform_inverse", "program.sigma=0.1"],
            "expected a model of numbers unless mapping.encoding is 'differential', 'two_sided' or 'offset'",
        ),
        (
            [*PAIR, "program.model=level_shared", "program.sigma=0.1"],
            "expected slices or entry mapping.cell_bits beside 'level_shared', which needs levels",
        ),
        (
            [*SLICES, "program.model=function", "program.function=f"],
            "mapping.slice_bits is 2, expected 0 because program.model is 'function'",
        ),
        (["program.model=function", "program.function=f", "program.clip=zero"], "program.clip has no effect"),
        (["program.clip=zero"], "program.clip has no effect with program.model none"),
        ([*SLICES, "program.modifier=0.1"], "program.modifier is given, expected to be left out because"),
        ([*OFFSET, "program.modifier=0.1"], "because mapping.encoding is 'offset' and mapping.slice_bits is 0"),
        (
            [*PAIR, "program.model=polynomial", *FITS, "program.time_s=1h"],
            "[program] time_s is 3600, expected one of 1, 86400, for which the device was measured",
        ),
        ([*PAIR, "program.model=polynomial", *FITS], "[program] time_s is missing, expected one of 1, 86400"),
        (
            [*PAIR, "program.model=polynomial", *FITS, "program.time_s=1", "program.c1=[1]"],
            "[program] c1 has 1 number, expected one per time of fit_time_s",
        ),
        (
            [*PAIR, "program.model=polynomial", *FITS[:2], "program.time_s=1"],
            "[program] fit_time_s has no effect: no coefficient is a list",
        ),
        ([*PAIR, "program.model=polynomial", FITS[0], "program.time_s=1"], "[program] time_s has no effect: there are"),
        ([*PAIR, "program.model=polynomial", FITS[0], "program.c0=[1, 2]"], "[program] c0 has 2 numbers, expected one"),
        ([*PAIR, "program.model=polynomial", FITS[0], "program.c0=a"], "program.c0 is 'a', expected any finite number"),
        # drift
        (
            DRIFT,
            "drift.model is 'power_law', expected 'none' unless mapping.encoding is 'differential', 'two_sided' or",
        ),
        (["drift.compensation=global"], "drift.compensation has no effect with drift.model none"),
        (
            [*OFFSET, *DRIFT, "drift.pairs=net"],
            "drift.pairs is 'net', expected 'physical' unless mapping.encoding is 'differential'",
        ),
        ([*SLICES, *DRIFT, "drift.pairs=net"], "unless mapping.encoding is 'differential' without slices"),
        (
            [*SLICES, *DRIFT, "drift.compensation=global"],
            "drift.compensation is 'global', expected 'global_exact' because of slices or an offset",
        ),
        (
            [*OFFSET, *DRIFT, "drift.compensation=column"],
            "drift.compensation is 'column', expected 'column_exact' because of slices or an offset",
        ),
        (
            [*PAIR, "drift.model=log_time", *LOG_TIME, "drift.time_s=0.5"],
            "drift.time_s is 0.5, expected 0 or at least drift.t0_s, which is 1",
        ),
        (
            [*PAIR, "drift.model=log_time", LOG_TIME[0], "drift.t_read_s=2", *LOG_TIME[2:], "drift.time_s=5"],
            "drift.t_read_s is 2, expected at most drift.t0_s, which is 1",
        ),
        (
            [*PAIR, "drift.model=power_law_table", *DRIFT[1:3], "drift.t_read_s=1", *ONE_EXPONENT],
            "[drift] mean_nu must have one number per target of target_us, of which 2 are needed at least",
        ),
        # faults
        (
            ["faults.stuck_low=0.1", "faults.stuck_high=0.1"],
            "faults.stuck_low is given, expected to be left out because mapping.encoding is 'weight'",
        ),
        ([*PAIR, "faults.stuck_low=0.1"], "stuck_high is missing"),
        (
            [*PAIR, "faults.stuck_low=0.6", "faults.stuck_high=0.5"],
            "faults.stuck_high is 0.5, expected at most 1 together with faults.stuck_low",
        ),
        (
            [*PAIR, "faults.storage=float32", "faults.ber=1e-3"],
            "faults.storage is 'float32', expected 'none' or 'int' unless weights are floats",
        ),
        ([*FLIPS, "faults.flip=sign", "faults.protection=secded"], "needs flip all"),
        ([*FLIPS, "faults.flip=[8]"], "flip names bit 8, and there are bits 0 to 7"),
        ([*FLIPS, "faults.flip=exponent"], "codes do not have"),
        ([*FLIPS, "faults.flip=[1, 1]"], "a list of different bits"),
        ([*FLIPS, "faults.flip=[]"], "a list of different bits"),
        (changed(FLIPS, bits="7"), "faults.bits is 7, expected one of 2, 4, 8 or 16"),
        (["faults.ber=0.1"], "faults.ber has no effect with faults.storage none"),
        # write
        (
            ["write.scaling=sample", "mapping.scaling=tile"],
            "mapping.scaling is 'tile', expected 'tensor' because write.scaling is 'sample'",
        ),
        (["write.operands=key"], "write.operands has no effect with write.model none"),
        # converters
        ([*SLICES, *ITERATIVE], "adc.bound_management is 'iterative', expected 'none' because of slices or an offset"),
        (
            [*DAC, "dac.slice_bits=1", *ITERATIVE],
            "adc.bound_management is 'iterative', expected 'none' because of slices or an offset",
        ),
        (
            [*OFFSET, "mapping.offset_correction=unit_column", "read.output_noise=0", *FUNCTION],
            "is 'unit_column', expected 'digital' because program.model is 'function'",
        ),
        ([*OFFSET, *ITERATIVE], "expected 'none' because of slices or an offset"),
        ([*DAC, *GRANULAR], "granular needs levels of weights"),
        ([*PAIR, "mapping.cell_bits=4", *GRANULAR], "granular needs levels of inputs"),
        (
            [*PAIR, "mapping.cell_bits=4", *DAC, *changed(GRANULAR, bits="0")],
            "adc.bits is 0, expected 2 to 16 because adc.range is 'granular'",
        ),
        (
            [*changed(DAC, bits="0"), "dac.slice_bits=1"],
            "dac.bits is 0, expected 2 to 16 because dac.slice_bits is given",
        ),
        (
            [*DAC, "dac.slice_bits=1", "dac.code=offset_binary"],
            "expected 0 unless dac.range is on and dac.code is 'sign_magnitude'",
        ),
        ([*DAC, "dac.slice_bits=1", "dac.bound=2"], "dac.bound is 2, expected 1 because dac.slice_bits is given"),
        (
            [*DAC, "dac.slice_bits=1", "read.input_noise=0.1"],
            "dac.slice_bits is 1, expected 0 because of entry read.input_noise",
        ),
        (["adc.model=uniform", "adc.range=rows", "adc.bits=8", "adc.gain_sigma=0.1"], "offset_sigma is missing"),
        (["adc.model=uniform", "adc.range=rows", "adc.bits=8", "adc.columns=8"], "columns has no effect"),
        # read
        (
            ["read.wires=network", "read.row_ohm=1", "read.column_ohm=1"],
            "read.wires is 'network', expected 'none' or 'formula' except for stored conductances",
        ),
        ([*PAIR, *CALIBRATED, "adc.range_per=tile_slice"], "adc.range_per tile_slice needs slices: mapping.slice_bits"),
        ([*CALIBRATED, "adc.range_per=column"], "adc.range_per is 'column', expected one of site, tile, slice"),
        ([*GRANULAR, "adc.range_per=tile"], "adc.range_per has no effect"),
        (["read.ir_drop=1"], "read.ir_drop has no effect"),
        (["read.wires=network"], "read.row_ohm is missing"),
    ],
)
def test_a_contradiction_is_refused(overrides: list[str], says: str) -> None:
    assert says in refusal("ideal", overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [*SLICES, "program.model=level_shared", "program.sigma=0.1"],
        [*SLICES, *DRIFT, "drift.compensation=column_exact"],
        [*OFFSET, *DRIFT, "drift.compensation=global_exact"],
        [*PAIR, *DRIFT, "drift.pairs=net", "drift.compensation=column"],
        [*PAIR, "mapping.cell_bits=4", *DAC, *GRANULAR],
        [*OFFSET, "mapping.offset_correction=unit_column", "read.output_noise=0"],
        [*DAC, "dac.slice_bits=3", *CALIBRATED],
        [*SLICES, *CALIBRATED, "adc.range_per=slice"],
        [*FLIPS, "faults.protection=secded_zero"],
        ["write.scaling=sample", "mapping.scaling=tensor"],
        ["mapping.weight_bits=4", "program.model=function", "program.function=f"],
        [*PAIR, "program.model=function", "program.function=f", "program.clip=range"],
        [*PAIR, "drift.model=log_time", *LOG_TIME, "drift.time_s=0"],
    ],
)
def test_what_goes_together_is_accepted(overrides: list[str]) -> None:
    load_profile("ideal", overrides)
