"""Bad attributes, controls and operands: one sentence that names what is wrong and what was expected."""

from typing import Any

import numpy as np
import pytest

from benchmarks.agreement.one_crossbar import law_of
from emu.errors import InputError
from emu.reference import crossbar_matmul, crossbar_matmul_dynamic

from .nodes import (
    EVERYTHING_DYNAMIC,
    EVERYTHING_STORED,
    PLAIN_DYNAMIC,
    PLAIN_STORED,
    controls,
    dynamic,
    held,
    quantized,
    stored,
)

MAPPING = {"mapping.g_min_us": 1.0, "mapping.g_max_us": 10.0}
NUMBERS = {**EVERYTHING_STORED["numbers"], "dac.max": 1.0, **MAPPING}
X, W = np.zeros((2, 6), np.float32), np.zeros((6, 12), np.float32)
A, B = np.zeros((2, 4, 6), np.float32), np.zeros((2, 6, 12), np.float32)


def arguments(dynamic: bool = False, **changes: Any) -> dict[str, Any]:
    """A valid call that uses every effect, with changes; a change to None leaves the attribute out."""
    node = {**PLAIN_DYNAMIC, **EVERYTHING_DYNAMIC} if dynamic else {**PLAIN_STORED, **EVERYTHING_STORED}
    numbers = {**NUMBERS, **changes.pop("numbers", {})}
    node.pop("numbers")
    call = {**node, **controls(numbers, site=1, sites=3), **changes}
    if dynamic:
        del call["faults"]
    return {name: value for name, value in call.items() if value is not None}


def stored_sentence(x: Any = X, w: Any = W, **changes: Any) -> str:
    """The sentence of the error that a stored site raises."""
    with pytest.raises(InputError) as error:
        crossbar_matmul(x, w, **arguments(**changes))
    return str(error.value)


def dynamic_sentence(a: Any = A, b: Any = B, **changes: Any) -> str:
    """The sentence of the error that a dynamic site raises."""
    with pytest.raises(InputError) as error:
        crossbar_matmul_dynamic(a, b, **arguments(dynamic=True, **changes))
    return str(error.value)


def test_the_valid_calls_that_the_tests_change_are_valid():
    crossbar_matmul(X, W, **arguments())
    crossbar_matmul_dynamic(A, B, **arguments(dynamic=True))


ATTRIBUTES = [
    ({"dac": None}, "attribute 'dac' is missing; every attribute must be present."),
    ({"format": 2}, "attribute 'format' is 2, expected 3; rewrite the model with this version."),
    ({"heads": 1.0}, "attribute 'heads' is 1.0, expected an integer."),
    ({"heads": True}, "attribute 'heads' is True, expected an integer."),
    ({"dac": 3}, "attribute 'dac' is 3, expected a string."),
    ({"sites": 0, "site": 0}, "attribute 'sites' is 0, expected a whole number from 1 to 65536."),
    ({"sites": 65537}, "attribute 'sites' is 65537, expected a whole number from 1 to 65536."),
    ({"site": 3}, "attribute 'site' is 3, expected 0 to 2 (sites - 1)."),
    ({"site": -1}, "attribute 'site' is -1, expected a whole number from 0 to 65535."),
    ({"sample_axis": 2}, "attribute 'sample_axis' is 2, expected 0, 1 or -1."),
    ({"heads": -1}, "attribute 'heads' is -1, expected a whole number from 0 to 2147483647."),
    ({"head_groups": 0}, "attribute 'head_groups' is 0, expected a whole number from 1 to 2147483647."),
    ({"head_share": 0}, "attribute 'head_share' is 0, expected a whole number from 1 to 2147483647."),
    ({"tile_rows": -1}, "attribute 'tile_rows' is -1, expected a whole number from 0 to 2147483647."),
    ({"tile_columns": -1}, "attribute 'tile_columns' is -1, expected a whole number from 0 to 2147483647."),
    ({"head_axis": "rows"}, "attribute 'head_axis' is 'rows', expected one of none, output, input, matrix."),
    (
        {"head_axis": "matrix", "heads": 2},
        "attribute 'head_axis' is 'matrix', expected another one for 'W' [6, 12]: "
        "'output' and 'input' are of one matrix, 'matrix' is of a stack.",
    ),
    ({"tile_split": "even"}, "attribute 'tile_split' is 'even', expected one of fill, balanced."),
    ({"scaling": "row"}, "attribute 'scaling' is 'row', expected one of tensor, column, tile, tile_column."),
    ({"dac": "auto"}, "attribute 'dac' is 'auto', expected one of none, absmax, fixed, calibrated, max, absmax_sum."),
    (
        {"adc": "auto"},
        "attribute 'adc' is 'auto', expected one of none, absmax, fixed, calibrated, rows, granular.",
    ),
    (
        {"bound_management": "shift"},
        "attribute 'bound_management' is 'shift', expected one of none, iterative, worst_case.",
    ),
    (
        {"read_noise": "flicker"},
        "attribute 'read_noise' is 'flicker', expected one of none, additive_constant, pcm_read, "
        "proportional, independent.",
    ),
    (
        {"program": "gauss"},
        "attribute 'program' is 'gauss', expected one of none, lognormal_w, lognormal_w_meancorr, gauss_prop, "
        "gauss_range, lognormal_g, normal_independent, normal_proportional, normal_inverse, uniform_independent, "
        "uniform_proportional, uniform_inverse, polynomial, saturating, level_shared, resistance_range, table, "
        "function.",
    ),
    (
        {"head_axis": "input"},
        "attribute 'heads' is 0, expected 1 or greater because 'head_axis' is 'input'.",
    ),
    (
        {"head_axis": "input", "heads": 2, "head_groups": 3},
        "attribute 'head_groups' is 3, expected 1 unless 'head_axis' is 'output'.",
    ),
    (
        {"adc": "absmax"},
        "attribute 'bound_management' is 'iterative', expected 'none' because 'adc' is 'absmax', not 'fixed'.",
    ),
    (
        {"adc_pairs": "separate"},
        "attribute 'adc_pairs' is 'separate', expected 'subtracted' unless 'adc' is on and 'encoding' is "
        "'differential' or 'two_sided'.",
    ),
    (
        {"dac_slice_sum": "analog"},
        "attribute 'dac_slice_sum' is 'analog', expected 'digital' unless 'dac_slice_bits' is given and 'adc' is on.",
    ),
    ({"entries": "dac.bits,dac.bits"}, "attribute 'entries' names 'dac.bits' twice, expected every name once."),
    ({"entries": ""}, "attribute 'entries' lacks 'program.sigma', expected it because 'program' is 'lognormal_w'."),
    (
        {"head_axis": "output", "heads": 5},
        "attribute 'heads' is 5 in 1 groups, expected a divisor of the 12 columns of 'W'.",
    ),
    (
        {"head_axis": "output", "heads": 4, "head_groups": 2},
        "attribute 'heads' is 4 in 2 groups, expected a divisor of the 12 columns of 'W'.",
    ),
    ({"head_axis": "input", "heads": 4}, "attribute 'heads' is 4, expected a divisor of the 6 rows of 'W'."),
]


@pytest.mark.parametrize(("changes", "sentence"), ATTRIBUTES, ids=str)
def test_a_wrong_attribute_is_named(changes, sentence):
    assert stored_sentence(**changes) == f"emu: CrossbarMatMul at site {changes.get('site', 1)}: {sentence}"


def test_an_unknown_attribute_is_named():
    assert "attribute 'retention' is unknown, expected one of format, site," in stored_sentence(retention="pcm")
    assert "attribute 'drift' is unknown" in dynamic_sentence(drift="none")
    assert "attribute 'write' is unknown" in stored_sentence(write="none")
    assert "attribute 'program' is unknown" in dynamic_sentence(program="none")


def test_heads_of_a_dynamic_site_are_matrices():
    assert "attribute 'head_axis' is 'output', expected one of none, matrix." in dynamic_sentence(
        head_axis="output", heads=2
    )


def test_an_unknown_entry_is_named():
    assert "attribute 'entries' names 'dac.gain', expected names among program.sigma," in stored_sentence(
        entries="dac.gain"
    )


_PAIR = {"program": "none", "encoding": "differential"}
_EVERY_ENTRY = (
    *NUMBERS,
    *(f"program.c{power}" for power in range(5)),
    *("program.reference_us", "program.scale", "program.current_max_na", "program.time_s", "program.sigma_off"),
    *("program.amplitude_na", "program.knee_na", "drift.t_read_s", "drift.final_us", "drift.tau_s", "drift.tau_sigma"),
    *("program.target_us.0", "program.target_us.1", "program.mean_us.0.0", "program.mean_us.0.1"),
    *("program.std_us.0.0", "program.std_us.0.1", "program.table_time_s.0"),
    *("drift.time_s", "drift.scale", "drift.read_scale", "drift.nu", "drift.nu_sigma", "drift.t0_s"),
    *("faults.ber", "read.ir_drop", "read.ir_drop_ratio", "read.row_ohm", "read.column_ohm"),
    *("write.gamma", "write.alpha", "write.beta", "write.bits"),
)


@pytest.mark.parametrize(
    ("dynamic", "structure", "entry", "attribute"),
    [
        (False, {}, "program.sigma", "program"),
        (False, {}, "program.sigma_cycle", "program"),
        (True, {}, "write.sigma", "write"),
        (False, {"program": "none", "encoding": "differential"}, "mapping.g_min_us", "encoding"),
        (False, _PAIR | {"program": "polynomial"}, "program.c0", "program"),
        (False, _PAIR | {"program": "polynomial"}, "program.scale", "program"),
        (False, _PAIR | {"program": "saturating"}, "program.knee_na", "program"),
        (False, _PAIR | {"program": "resistance_range"}, "program.sigma_off", "program"),
        (False, _PAIR | {"program": "table", "table_times": 1, "table_points": 2}, "program.mean_us.0.1", "program"),
        (False, _PAIR | {"drift": "power_law"}, "drift.nu", "drift"),
        (False, _PAIR | {"drift": "power_law_fit"}, "drift.read_scale", "drift"),
        (False, _PAIR | {"drift": "power_law_table", "drift_points": 1}, "drift.target_us.0", "drift"),
        (False, _PAIR | {"drift": "log_time"}, "drift.shift_us", "drift"),
        (False, _PAIR | {"drift": "relaxation"}, "drift.tau_s", "drift"),
        (False, {"fault_source": "random", "fault_storage": "int"}, "faults.ber", "fault_storage"),
        (False, {"ir_drop": "formula"}, "read.ir_drop_ratio", "ir_drop"),
        (False, _PAIR | {"ir_drop": "network"}, "read.column_ohm", "ir_drop"),
        (True, {"write": "clipformer"}, "write.gamma", "write"),
        (True, {"write": "lognormal_g"}, "mapping.g_min_us", "write"),
        (False, {}, "dac.bits", "dac"),
        (False, {}, "dac.steps", "dac"),
        (False, {}, "dac.bound", "dac"),
        (False, {"dac": "fixed"}, "dac.max", "dac"),
        (False, {}, "adc.bits", "adc"),
        (False, {}, "adc.steps", "adc"),
        (False, {}, "adc.bound", "adc"),
        (False, {}, "adc.max_bound_factor", "bound_management"),
        (False, {}, "adc.max_bound_resolution", "bound_management"),
        (False, {"dac": "absmax_sum"}, "dac.assumed_weight", "dac"),
        (False, {"bound_management": "worst_case"}, "adc.assumed_weight", "bound_management"),
        (False, {}, "read.weight_noise", "read_noise"),
    ],
)
def test_an_entry_that_the_structure_uses_must_be_there(dynamic, structure, entry, attribute):
    of_table = ("program.target_us", "program.mean_us", "program.std_us", "program.table_time_s")
    entries = ",".join(
        name
        for name in _EVERY_ENTRY
        if name != entry and (structure.get("program") == "table" or not name.startswith(of_table))
    )
    sentence = (dynamic_sentence if dynamic else stored_sentence)(entries=entries, **structure)
    assert f"attribute 'entries' lacks '{entry}', expected it because '{attribute}' is '" in sentence


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("program.sigma", -0.1, "0 to 10"),
        ("program.sigma", 11, "0 to 10"),
        ("program.sigma_cycle", 11, "0 to 10"),
        ("write.sigma", 11, "0 to 10"),
        ("mapping.g_min_us", -1, "at least 0"),
        ("mapping.g_min_us", 10, "less than 'mapping.g_max_us', which is 10"),
        ("mapping.g_max_us", 0, "greater than 0"),
        ("dac.bits", 1, "0, or a whole number from 2 to 16"),
        ("dac.bits", 7.5, "0, or a whole number from 2 to 16"),
        ("dac.bits", 17, "0, or a whole number from 2 to 16"),
        ("dac.steps", 1, "0, or a whole number from 2 to 65536"),
        ("dac.steps", 65537, "0, or a whole number from 2 to 65536"),
        ("dac.bound", 0, "greater than 0"),
        ("dac.max", 0, "greater than 0"),
        ("adc.bits", 1, "0, or a whole number from 2 to 16"),
        ("adc.steps", 2.5, "0, or a whole number from 2 to 65536"),
        ("adc.bound", -1, "greater than 0"),
        ("adc.max_bound_factor", 0.5, "1 to 1048576"),
        ("adc.max_bound_factor", 2**21, "1 to 1048576"),
        ("adc.max_bound_resolution", 0, "greater than 0"),
        ("read.weight_noise", -1, "at least 0"),
        ("read.output_noise", float("nan"), "at least 0"),
        ("read.output_noise", float("inf"), "at least 0"),
    ],
)
def test_a_device_number_out_of_range_is_named(entry, value, expected):
    sentence = stored_sentence(numbers={entry: value})
    assert sentence == (
        f"emu: CrossbarMatMul at site 1: entry '{entry}' of input 'device' is {value:g}, expected {expected}."
    )


CONTROLS = [
    ({"device": np.zeros(3, np.float32)}, "input 'device' has shape [3], expected [16], one number for each name"),
    (
        {"ranges": np.zeros((3, 2), np.float32)},
        "input 'ranges' has shape [3, 2], expected [3, 4 R], one row for each site and R at least 1.",
    ),
    ({"ranges": np.zeros((3, 4))}, "input 'ranges' is float64, expected float32."),
    (
        {"faults": np.array([(3, 0), (1, 7)]), "array": 1},
        "input 'faults' has 1 faults of array 1, expected none because 'fault_source' is 'none'.",
    ),
    (
        {"faults": np.zeros((0, 1), np.int64)},
        "input 'faults' has shape [0, 1], expected [F, 2], an array and a fault in each row.",
    ),
    ({"faults": np.zeros(0)}, "input 'faults' is float64, expected int64."),
    ({"device": np.zeros((16, 1), np.float32)}, "input 'device' has shape [16, 1], expected [16]"),
    ({"device": np.zeros(16)}, "input 'device' is float64, expected float32."),
    ({"strength": np.ones(2, np.float32)}, "input 'strength' has shape [2], expected [3], one number for each site."),
    ({"strength": np.ones(3)}, "input 'strength' is float64, expected float32."),
    ({"strength": np.float32([1, -1, 1])}, "input 'strength' is -1 for this site, expected finite and 0 or greater."),
    ({"strength": np.float32([1, np.nan, 1])}, "input 'strength' is nan for this site"),
    ({"strength": np.float32([1, np.inf, 1])}, "input 'strength' is inf for this site"),
    ({"seed": np.int64(-1)}, "input 'seed' is -1, expected 0 to 2^32 - 1."),
    ({"seed": np.int64(2**32)}, "input 'seed' is 4294967296, expected 0 to 2^32 - 1."),
    ({"seed": np.int32(1)}, "input 'seed' is int32, expected int64."),
    ({"seed": np.zeros(1, np.int64)}, "input 'seed' has shape [1], expected [], one integer."),
    ({"read_seed": np.int64(2**32)}, "input 'read_seed' is 4294967296, expected 0 to 2^32 - 1."),
    ({"read_seed": np.float32(1)}, "input 'read_seed' is float32, expected int64."),
    ({"sample": np.int64(-1)}, "input 'sample' is -1, expected 0 to 2^32 - 1."),
    ({"sample": np.array([0, -2])}, "input 'sample' is [0, -2], expected 0 to 2^32 - 1."),
    (
        {"sample": np.array([2**32 - 2, 3])},
        "input 'sample' is [4294967294, 3], expected 0 to 2^32 - 1 for every sample of the batch.",
    ),
    ({"sample": np.zeros(3, np.int64)}, "input 'sample' has shape [3], expected [] or [2]."),
    ({"head": np.int64(-2)}, "input 'head' is -2, expected -1 (all heads) or greater."),
    ({"head": np.zeros(2, np.int64)}, "input 'head' has shape [2], expected [], one integer."),
    (
        {"head": np.int64(6), "heads": 3, "head_share": 2, "head_axis": "output"},
        "input 'head' is 6, expected below 6 (3 heads, each shared by 2).",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), CONTROLS, ids=str)
def test_a_wrong_control_is_named(changes, sentence):
    assert stored_sentence(**changes).startswith(f"emu: CrossbarMatMul at site 1: {sentence}")


def test_another_sites_strength_is_not_this_sites_business():
    node = arguments(strength=np.float32([-1, 1, np.nan]))
    crossbar_matmul(X, W, **node)


@pytest.mark.parametrize(
    ("operands", "sentence"),
    [
        ({"x": np.zeros((2, 6))}, "input 'X' is float64, expected float32."),
        ({"w": np.zeros((6, 12))}, "input 'W' is float64, expected float32."),
        ({"x": np.zeros(6, np.float32)}, "input 'X' has rank 1, expected rank 2 or more."),
        ({"w": np.zeros((1, 1, 6, 12), np.float32)}, "input 'W' has rank 4, expected rank 2 or 3."),
        (
            {"x": np.zeros((2, 5), np.float32)},
            "input 'X' has 5 columns, expected 6, the number of rows of 'W'.",
        ),
        ({"sample_axis": 1}, "input 'X' has rank 2, expected 3 or more because 'sample_axis' is 1."),
        (
            {"x": np.zeros((2, 70000), np.float32), "w": np.ones((70000, 1), np.float32), "tile_rows": 1},
            "attribute 'tile_rows' is 1, which cuts 70000 rows into 70000 tiles, expected at most 65536; "
            "use taller tiles.",
        ),
    ],
    ids=str,
)
def test_a_wrong_operand_is_named(operands, sentence):
    assert stored_sentence(**operands) == f"emu: CrossbarMatMul at site 1: {sentence}"


@pytest.mark.parametrize(
    ("operands", "sentence"),
    [
        ({"a": np.zeros(6, np.float32)}, "input 'A' has rank 1, expected rank 2 or more."),
        ({"b": np.zeros(6, np.float32)}, "input 'B' has rank 1, expected rank 2 or more."),
        ({"b": np.zeros((2, 6, 12))}, "input 'B' is float64, expected float32."),
        ({"b": np.zeros((2, 7, 12), np.float32)}, "input 'A' has 6 columns, expected 7, the number of rows of 'B'."),
        (
            {"b": np.zeros((3, 6, 12), np.float32)},
            "input 'B' has shape [3, 6, 12], expected leading dimensions that broadcast with those of 'A', [2, 4, 6].",
        ),
    ],
    ids=str,
)
def test_a_wrong_dynamic_operand_is_named(operands, sentence):
    assert dynamic_sentence(**operands) == f"emu: CrossbarMatMulDynamic at site 1: {sentence}"


def test_entries_of_other_sites_are_allowed_and_checked():
    """A stored site has no write, but reads the same device as a dynamic one."""
    assert "write.sigma" in arguments()["entries"]
    assert "entry 'write.sigma'" in stored_sentence(numbers={"write.sigma": 100})


# What excludes each other.

_SLICED = {"weight_bits": 8, "slice_bits": 2}
_PLAIN_PAIR = {"encoding": "differential", "numbers": MAPPING}
_DRIFTING = {"drift.time_s": 1, "drift.scale": 1, "drift.read_scale": 1}
_DAC = {"dac.bits": 8, "dac.steps": 0, "dac.bound": 1}


@pytest.mark.parametrize(
    ("changes", "attribute"),
    [
        ({**_PLAIN_PAIR, "program": "gauss_prop"}, "program"),
        ({"program": "lognormal_g"}, "program"),
        (_SLICED, "slice_bits"),
        ({**_PLAIN_PAIR, "slice_bits": 2}, "slice_bits"),
        ({**_PLAIN_PAIR, **_SLICED, "encoding": "two_sided"}, "slice_bits"),
        ({**_PLAIN_PAIR, **_SLICED, "program": "function", "program_function": "f"}, "slice_bits"),
        ({"program": "function"}, "program_function"),
        (
            {
                **_PLAIN_PAIR,
                "encoding": "offset",
                "offset_correction": "unit_column",
                "program": "function",
                "program_function": "f",
            },
            "offset_correction",
        ),
        ({**_PLAIN_PAIR, "program": "table", "table_points": 1}, "table_times"),
        ({**_PLAIN_PAIR, "program": "level_shared"}, "program"),
        ({"drift": "power_law_fit"}, "drift"),
        ({**_PLAIN_PAIR, "encoding": "two_sided", "drift_pairs": "net"}, "drift_pairs"),
        ({**_PLAIN_PAIR, "compensation": "global"}, "compensation"),
        ({**_PLAIN_PAIR, "encoding": "offset", "drift": "power_law_fit", "compensation": "column"}, "compensation"),
        ({**_PLAIN_PAIR, "fault_storage": "float32"}, "fault_storage"),
        ({"fault_storage": "int", "fault_bits": 4}, "fault_mask"),
        ({"fault_storage": "int", "fault_mask": 127, "fault_protection": "secded"}, "fault_mask"),
        ({"ir_drop": "network"}, "ir_drop"),
        ({"dac_slice_bits": 1}, "dac_slice_bits"),
        ({"dac": "absmax", "dac_code": "offset_binary", "dac_slice_bits": 1, "numbers": _DAC}, "dac_slice_bits"),
        ({"dac": "absmax", "dac_slice_bits": 1, "numbers": {**_DAC, "read.input_noise": 0.1}}, "dac_slice_bits"),
        ({"weight_bits": 1}, "weight_bits"),
        ({"fault_bits": 5}, "fault_bits"),
    ],
    ids=str,
)
def test_attributes_that_exclude_each_other_are_named(changes, attribute):
    with pytest.raises(InputError, match=f"at site 0: attribute '{attribute}' is "):
        stored(X, W, **changes)


def test_operands_of_a_sample_share_a_scale_only_without_finer_scales():
    with pytest.raises(InputError, match="attribute 'scaling' is 'column', expected 'tensor'"):
        crossbar_matmul_dynamic(A, B, **arguments(dynamic=True, write_scaling="sample", scaling="column"))


def test_floats_of_a_quantized_site_cannot_be_hit():
    with pytest.raises(InputError, match="attribute 'fault_storage' is 'float32'"):
        quantized(X, W, 1.0, 0.0, fault_storage="float32", fault_mask=0)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"faults.stuck_low": 0.1}, "lacks 'faults.stuck_high', expected it because 'faults.stuck_low' is there."),
        ({"adc.offset_sigma": 0.1}, "lacks 'adc.gain_sigma', expected it because 'adc.offset_sigma' is there."),
        ({"write.beta_value": 0.5}, "lacks 'mapping.g_min_us', expected it because 'write.beta_value' is there."),
        ({"mapping.g_min_us": 0.5}, "lacks 'mapping.g_max_us', expected it because 'mapping.g_min_us' is there."),
        ({"faults.stuck_low": 0.1, "faults.stuck_high": 0.1}, "names 'faults.stuck_low', expected not to because"),
        ({"mapping.cell_bits": 4}, "names 'mapping.cell_bits', expected not to because"),
        ({"program.c5": 1}, "names 'program.c5', expected names among"),
        ({"program.parameter.": 1}, "names 'program.parameter.', expected names among"),
        ({"program.mean_us.1": 1}, "names 'program.mean_us.1', expected names among"),
    ],
    ids=str,
)
def test_entries_that_do_not_fit_are_named(entries, sentence):
    with pytest.raises(InputError, match=f"attribute 'entries' {sentence}"):
        stored(X, W, numbers=entries)


@pytest.mark.parametrize(
    ("changes", "numbers", "entry"),
    [
        ({"encoding": "offset"}, {"mapping.cell_bits": 1}, "mapping.cell_bits"),
        (
            {"encoding": "offset", "program": "level_shared"},
            {"mapping.cell_bits": 0, "program.sigma": 0},
            "mapping.cell_bits",
        ),
        ({"encoding": "offset"}, {"faults.stuck_low": 0.6, "faults.stuck_high": 0.6}, "faults.stuck_high"),
        (
            {"encoding": "offset", "drift": "log_time"},
            {**law_of("rram_cmo"), "drift.time_s": 0.5},
            "drift.time_s",
        ),
        ({"dac": "absmax", "dac_slice_bits": 1}, {**_DAC, "dac.steps": 100}, "dac.steps"),
        ({"dac": "absmax", "dac_slice_bits": 1}, {**_DAC, "dac.bits": 0}, "dac.bits"),
        ({"dac": "absmax", "dac_slice_bits": 1}, {**_DAC, "dac.bound": 2}, "dac.bound"),
        ({"adc": "granular", "weight_bits": 8}, {"adc.bits": 0, "adc.steps": 4}, "adc.bits"),
        (
            {"encoding": "offset", "program": "table", "table_times": 1, "table_points": 2},
            {
                "program.scale": 1,
                "program.target_us.0": 5,
                "program.target_us.1": 5,
                "program.mean_us.0.0": 5,
                "program.mean_us.0.1": 5,
                "program.std_us.0.0": 5,
                "program.std_us.0.1": 5,
                "program.table_time_s.0": 1,
            },
            "program.target_us.1",
        ),
        (
            {"encoding": "offset", "drift": "power_law_fit"},
            {**_DRIFTING, "drift.t0_s": 1, "drift.t_read_s": 2},
            "drift.t_read_s",
        ),
        (
            {"encoding": "offset", "drift": "power_law_table", "drift_points": 2},
            {
                **_DRIFTING,
                "drift.t0_s": 1,
                "drift.t_read_s": 1,
                **{f"drift.{name}.{k}": 1 for name in ("target_us", "mean_nu", "std_nu") for k in range(2)},
            },
            "drift.target_us.1",
        ),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_each_other_are_named(changes, numbers, entry):
    with pytest.raises(InputError, match=f"entry '{entry}' of input 'device' is "):
        stored(X, W, numbers={**MAPPING, **numbers}, **changes)


def test_a_calibrated_range_must_be_one():
    dac = {"dac": "calibrated", "numbers": _DAC}
    with pytest.raises(InputError, match="input 'ranges' has the activation 0 for this site"):
        stored(X, W, ranges=(0, -1, 1, 0), **dac)
    stored(X, W, ranges=(1, 0, 0, 0), **dac)
    adc = {"adc": "calibrated", "numbers": {"adc.bits": 8, "adc.steps": 0}}
    with pytest.raises(InputError, match="input 'ranges' has the outputs 2 to 2 for this site"):
        stored(X, W, ranges=(1, 2, 2, 1), **adc)
    stored(X, W, ranges=(np.nan, -2, 2, np.nan), **adc)
    for bad in (0, -1, np.inf, np.nan):
        with pytest.raises(InputError, match=f"input 'ranges' has the operand {bad:g} for this site, expected finite"):
            dynamic(A, B, ranges=(1, -1, 1, bad), write_scaling="calibrated")
    dynamic(A, B, ranges=(0, 0, 0, 2), write_scaling="calibrated")


def test_weights_must_be_finite():
    for bad in (np.inf, np.nan):
        w = W.copy()
        w[1, 2] = bad
        with pytest.raises(InputError, match="input 'W' has an infinite value or a NaN"):
            held(w)


def test_granular_steps_need_levels_of_weights_and_inputs():
    adc = {"adc": "granular", "numbers": {"adc.bits": 8, "adc.steps": 0, **_DAC}}
    with pytest.raises(InputError, match="how many levels a weight has"):
        stored(X + 1, W, dac="absmax", **adc)
    with pytest.raises(InputError, match="how many levels an input has"):
        stored(X + 1, W, weight_bits=8, **adc)
