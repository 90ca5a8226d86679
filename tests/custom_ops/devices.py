"""Random devices: attributes and numbers that fit together, over everything that the contract offers."""

from typing import Any

from hypothesis import strategies as st

from benchmarks.agreement.one_crossbar import law_of
from emu.contract.schema import TRANSFORM
from tests.reference.nodes import PLAIN_DYNAMIC, PLAIN_STORED

NUMBER_MODELS = ("lognormal_w", "lognormal_w_meancorr", "gauss_prop", "gauss_range")
SIGMA_MODELS = (
    "lognormal_g",
    "normal_independent",
    "normal_proportional",
    "normal_inverse",
    "uniform_independent",
    "uniform_proportional",
    "uniform_inverse",
)
CONDUCTANCE_MODELS = (
    *SIGMA_MODELS,
    "polynomial",
    "saturating",
    "level_shared",
    "resistance_range",
    "table",
)
# Models of drift, with presets that have one.
DRIFTS = (
    ("power_law", ""),
    *(("power_law_fit", preset) for preset in ("pcm", "pcm_hermes", "pcm_hermes_single", "pcm_state_independent")),
    ("power_law_table", ""),
    ("log_time", "rram_cmo"),
    ("relaxation", ""),
)
SIGMAS = (0.0, 0.05, 0.3)


@st.composite
def converters(draw: st.DrawFn, sliced: bool = False) -> tuple[dict[str, Any], dict[str, float]]:
    """DAC, ADC and read noise."""
    numbers: dict[str, float] = {}
    dac = draw(st.sampled_from(("none", "absmax", "fixed", "calibrated", "max", "absmax_sum")))
    adc = draw(st.sampled_from(("none", "absmax", "fixed", "calibrated", "rows", "granular")))
    dac_code = draw(st.sampled_from(("sign_magnitude", "sign_magnitude", "offset_binary")))
    input_bits = draw(st.sampled_from((0, 0, 1, 2, 3))) if dac != "none" and dac_code == "sign_magnitude" else 0
    if adc == "granular" and (dac == "none" or not sliced):
        adc = "fixed"
    if dac == "absmax_sum":
        adc = "fixed"
        numbers |= {"dac.assumed_weight": draw(st.sampled_from((0.1, 0.6))), "dac.sum_resolution": 0.25}
    iterative = adc == "fixed" and not sliced and input_bits == 0 and draw(st.booleans())
    if dac != "none":
        bits = draw(st.sampled_from((4, 8) if input_bits or adc == "granular" else (0, 4, 8)))
        numbers |= {"dac.bits": bits, "dac.steps": 0 if input_bits else draw(st.sampled_from((0, 126, 256)))}
        numbers["dac.bound"] = 1.0 if input_bits else draw(st.sampled_from((1.0, 0.7)))
    if dac == "fixed":
        numbers["dac.max"] = draw(st.sampled_from((1.0, 2.5)))
    if dac in ("absmax", "max", "absmax_sum") and draw(st.booleans()):
        numbers["dac.limit"] = 1.5
    if adc != "none":
        numbers |= {"adc.bits": draw(st.sampled_from((6, 8) if adc == "granular" else (0, 6, 8)))}
        numbers["adc.steps"] = draw(st.sampled_from((0, 0, 510)))
        if draw(st.sampled_from((False, False, True))):
            numbers |= {"adc.gain_sigma": 0.02, "adc.offset_sigma": 0.05}
    if adc == "fixed":
        numbers["adc.bound"] = draw(st.sampled_from((0.8, 4.0, 12.0)))
    if iterative:
        numbers |= {"adc.max_bound_factor": draw(st.sampled_from((1.0, 8.0, 1000.0))), "adc.max_bound_resolution": 0.25}
    worst = iterative and dac in ("absmax", "fixed", "max") and draw(st.booleans())
    if worst:
        numbers["adc.assumed_weight"] = draw(st.sampled_from((0.1, 0.6)))
    if dac != "none" and not input_bits and draw(st.sampled_from((False, False, True))):
        numbers["dac.asymmetry"] = draw(st.sampled_from((0.1, -0.2)))
    if adc != "none" and draw(st.sampled_from((False, False, True))):
        numbers |= {"adc.scale": draw(st.sampled_from((0.5, 1.5))), "adc.asymmetry": draw(st.sampled_from((0.1, -0.2)))}
    if adc == "fixed" and draw(st.sampled_from((False, True))):
        numbers |= {"adc.nonlinearity": draw(st.sampled_from((0.0, 0.3, 1.0)))}
        if draw(st.booleans()):
            numbers |= {"adc.nonlinearity_sigma": 0.2, "adc.slope_calibration": 0.5}
    read_noise = draw(st.sampled_from(("none", "additive_constant", "pcm_read", "proportional", "independent")))
    if read_noise != "none":
        numbers["read.weight_noise"] = draw(st.sampled_from((0.0, 0.0175, 0.2)))
    if draw(st.booleans()):
        numbers["read.output_noise"] = draw(st.sampled_from((0.0, 0.04, 0.3)))
        if draw(st.sampled_from((False, False, True))):
            numbers["read.output_noise_spread"] = 0.3
    if not input_bits and draw(st.sampled_from((False, False, True))):
        numbers["read.input_noise"] = 0.05
    ir_drop = draw(st.sampled_from(("none", "none", "formula")))
    if ir_drop == "formula":
        numbers |= {"read.ir_drop": 1.0, "read.ir_drop_ratio": draw(st.sampled_from((500.0, 571428.57)))}
    sums = input_bits and adc != "none" and ir_drop == "none"
    slice_sum = draw(st.sampled_from(("digital", "analog"))) if sums else "digital"
    roundings = ("nearest", "nearest", "stochastic")
    attributes = {
        "dac": dac,
        "dac_code": dac_code,
        "dac_slice_bits": input_bits,
        "dac_slice_sum": slice_sum,
        "dac_rounding": draw(st.sampled_from(roundings)) if dac != "none" else "nearest",
        "adc_rounding": draw(st.sampled_from(roundings)) if adc != "none" else "nearest",
        "adc": adc,
        "adc_code": draw(st.sampled_from(("sign_magnitude", "offset_binary", "twos_complement"))),
        "adc_columns": draw(st.sampled_from((1, 1, 8))),
        "bound_management": "worst_case" if worst else "iterative" if iterative else "none",
        "read_noise": read_noise,
        "ir_drop": ir_drop,
    }
    return attributes, numbers


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, Any]:
    """Tiles and scales."""
    return {
        "tile_rows": draw(st.sampled_from((0, 1, 7, 16))),
        "tile_columns": draw(st.sampled_from((0, 5, 16))),
        "tile_split": draw(st.sampled_from(("fill", "balanced"))),
        "scaling": draw(st.sampled_from(("tensor", "column", "tile", "tile_column"))),
    }


def _programming(draw: st.DrawFn, program: str, attributes: dict[str, Any], numbers: dict[str, float]) -> None:
    if program in (*NUMBER_MODELS, *SIGMA_MODELS):
        numbers |= {
            "program.sigma": draw(st.sampled_from(SIGMAS)),
            "program.sigma_cycle": draw(st.sampled_from(SIGMAS)),
        }
    if program in ("level_shared", "resistance_range"):
        numbers["program.sigma"] = draw(st.sampled_from((0.05, 0.2)))
    if program == "resistance_range":
        numbers["program.sigma_off"] = 0.1
    if program in ("polynomial", "saturating", "table"):
        numbers["program.scale"] = draw(st.sampled_from((0.0, 1.0, 2.0)))
    if program == "polynomial":
        numbers |= {"program.c0": 0.26348, "program.c1": 1.965, "program.c2": -1.1731, "program.c3": 0.1}
        numbers |= {"program.c4": -0.05, "program.reference_us": 25.0}
    if program == "saturating":
        numbers |= {"program.amplitude_na": draw(st.sampled_from((0.0, 25.6))), "program.knee_na": 186.9}
        numbers["program.current_max_na"] = 1800.0
    if program == "table":
        times = draw(st.sampled_from((1, 3)))
        attributes |= {"table_times": times, "table_points": 4}
        if times > 1:
            numbers["program.time_s"] = draw(st.sampled_from((0.5, 30.0, 5000.0)))
        for i in range(4):
            numbers[f"program.target_us.{i}"] = 2.0 + 7.0 * i
            for j in range(times):
                numbers[f"program.mean_us.{j}.{i}"] = 2.2 + (6.5 - 0.3 * j) * i
                numbers[f"program.std_us.{j}.{i}"] = 0.3 + 0.1 * i + 0.2 * j
        for j in range(times):
            numbers[f"program.table_time_s.{j}"] = float(10 ** (j + 1))


def _drifting(draw: st.DrawFn, attributes: dict[str, Any], numbers: dict[str, float]) -> None:
    drift, preset = draw(st.sampled_from(DRIFTS))
    attributes["drift"] = drift
    numbers |= law_of(preset) if preset else {"drift.scale": draw(st.sampled_from((1.0, 0.5)))}
    numbers["drift.time_s"] = draw(st.sampled_from((0.0, 1.0, 86400.0)))
    if drift == "power_law":
        numbers |= {"drift.nu": 0.05, "drift.nu_sigma": 0.01, "drift.t0_s": 1.0}
    elif drift == "relaxation":
        numbers |= {"drift.final_us": draw(st.sampled_from((0.0, 4.0))), "drift.tau_s": 3e5}
        numbers["drift.tau_sigma"] = draw(st.sampled_from((0.0, 0.5)))
    else:
        numbers["drift.read_scale"] = draw(st.sampled_from((0.0, 1.0)))
    if drift == "power_law_table":
        attributes["drift_points"] = 3
        numbers |= {"drift.t0_s": 20.0, "drift.t_read_s": 250e-9, "drift.read.c0": 0.01, "drift.read.c1": 0.02}
        for k, (target_us, mean, std) in enumerate(((1.0, 0.1, 0.02), (8.0, 0.06, 0.01), (20.0, 0.03, 0.005))):
            numbers |= {f"drift.target_us.{k}": target_us, f"drift.mean_nu.{k}": mean, f"drift.std_nu.{k}": std}


def _faults(draw: st.DrawFn, attributes: dict[str, Any], numbers: dict[str, float]) -> None:
    weights = attributes["encoding"] == "weight"
    attributes["fault_source"] = draw(st.sampled_from(("none", "random", "list")))
    if attributes["fault_source"] == "none":
        return
    storage = draw(st.sampled_from(("none", "int")))
    bits = draw(st.sampled_from((2, 4, 8, 16)))
    protection = draw(st.sampled_from(("none", "secded", "secded_zero")))
    every = (1 << bits) - 1
    mask = every if protection != "none" or draw(st.booleans()) else 0b1011 & every
    attributes |= {
        "fault_storage": storage,
        "fault_bits": bits,
        "fault_range": draw(st.sampled_from(("symmetric", "asymmetric"))),
        "fault_scale": draw(st.sampled_from(("tensor", "column"))),
        "fault_mask": mask,
        "fault_protection": protection,
    }
    if attributes["fault_source"] == "list":
        return
    if storage != "none":
        numbers["faults.ber"] = draw(st.sampled_from((0.0, 1e-3, 0.05, 1.0)))
    if not weights and draw(st.booleans()):
        numbers |= {"faults.stuck_low": 0.1, "faults.stuck_high": 0.05}


@st.composite
def stored_devices(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, float]]:
    """Attributes of a stored node and the numbers of its device."""
    encoding = draw(st.sampled_from(("weight", "differential", "differential", "two_sided", "offset")))
    weights = encoding == "weight"
    sliceable = encoding in ("differential", "offset")
    attributes: dict[str, Any] = {**PLAIN_STORED, **draw(mappings()), "encoding": encoding}
    attributes["weight_bits"] = draw(st.sampled_from((0, 4, 8)))
    sliced = sliceable and attributes["weight_bits"] > 0 and draw(st.booleans())
    attributes["slice_bits"] = draw(st.sampled_from((1, 2, 3))) if sliced else 0
    special = sliced or encoding == "offset"
    reading, numbers = draw(converters(special))
    if special and not sliced and reading["adc"] == "granular" and attributes["weight_bits"] == 0:
        reading["adc"] = "rows"
    attributes |= reading
    attributes["offset_correction"] = draw(st.sampled_from(("digital", "unit_column")))
    program = draw(st.sampled_from(("none", *(NUMBER_MODELS if weights else CONDUCTANCE_MODELS))))
    attributes |= {"program": program, "program_clip": draw(st.sampled_from(("zero", "range", "none")))}
    if not weights:
        numbers |= {"mapping.g_min_us": draw(st.sampled_from((0.0, 1.0, 3.0))), "mapping.g_max_us": 25.0}
        if not sliced and (program == "level_shared" or draw(st.booleans())):
            numbers["mapping.cell_bits"] = draw(st.sampled_from((2, 5)))
    if draw(st.sampled_from((False, False, True))):
        numbers["mapping.percentile"] = draw(st.sampled_from((0.9, 1.0)))
    _programming(draw, program, attributes, numbers)
    if not weights and draw(st.booleans()):
        _drifting(draw, attributes, numbers)
        if encoding == "differential" and not sliced:
            remapped = ("net",) if attributes["read_noise"] != "independent" else ()
            attributes["drift_pairs"] = draw(st.sampled_from(("physical", *remapped)))
        kinds = ("none", "global_exact", "column_exact") if special else ("none", "global", "column", "global_exact")
        attributes["compensation"] = draw(st.sampled_from(kinds))
    pairs = encoding in ("differential", "two_sided") and reading["adc"] != "none"
    apart = pairs and reading["bound_management"] == "none" and draw(st.booleans())
    if apart:
        attributes["adc_pairs"] = "separate"
        if attributes["compensation"] in ("global", "column"):
            attributes["compensation"] = "column_exact"
    if not special and not apart and draw(st.sampled_from((False, False, True))):
        numbers["program.modifier"] = 0.05
    if not weights and attributes["ir_drop"] == "none" and draw(st.sampled_from((False, False, True))):
        attributes["ir_drop"] = "network"
        attributes["program_clip"] = draw(st.sampled_from(("zero", "range")))
        numbers |= {"read.row_ohm": draw(st.sampled_from((0.0, 5.0))), "read.column_ohm": 20.0}
    _faults(draw, attributes, numbers)
    attributes["entries"] = ",".join(numbers)
    return attributes, numbers


@st.composite
def dynamic_devices(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, float]]:
    """Attributes of a dynamic node and the numbers of its device."""
    attributes: dict[str, Any] = {**PLAIN_DYNAMIC, **draw(mappings())}
    reading, numbers = draw(converters())
    attributes |= reading
    write = draw(st.sampled_from(("none", *NUMBER_MODELS, "lognormal_g", "clipformer", "clipformer")))
    attributes |= {"write": write, "write_cells": draw(st.sampled_from(("composite", "cells")))}
    if write != "none":
        numbers["write.sigma"] = draw(st.sampled_from(SIGMAS))
    if draw(st.booleans()):
        numbers |= {
            "write.sigma_device": draw(st.sampled_from(SIGMAS)),
            "write.capacity": draw(st.sampled_from((0, 3))),
        }
    if write in ("lognormal_g", "clipformer") and draw(st.booleans()):
        numbers |= {"write.stuck_low": 0.1, "write.stuck_high": draw(st.sampled_from((0.0, 0.05)))}
    moved = draw(st.sets(st.sampled_from(sorted(TRANSFORM))))
    if write in ("lognormal_g", "clipformer") or moved:
        numbers |= {"mapping.g_min_us": draw(st.sampled_from((0.0, 0.1))), "mapping.g_max_us": 10.0}
    for name in sorted(moved):
        numbers[name] = draw(st.sampled_from((-3.0, 0.0, 1.0, 2.0) if "alpha" in name else (0.25, 1.0)))
    if write == "clipformer":
        numbers["write.gamma"] = 3.0
        if draw(st.booleans()):
            numbers["write.exponent"] = draw(st.sampled_from((0.0, 0.5, 1.0, 1.7)))
    if draw(st.booleans()):
        numbers["write.bits"] = draw(st.sampled_from((0, 8)))
    attributes["key_axis"] = draw(st.sampled_from(("none", "rows", "columns")))
    if draw(st.sampled_from((False, False, True))):
        numbers["mapping.percentile"] = draw(st.sampled_from((0.9, 1.0)))
    if attributes["scaling"] == "tensor":
        attributes["write_scaling"] = draw(st.sampled_from(("matrix", "sample", "token", "calibrated")))
    attributes["entries"] = ",".join(numbers)
    return attributes, numbers
