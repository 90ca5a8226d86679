"""A profile holds exactly the settings that act, and tells the graph its structure and its numbers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from emu.contract.schema import ATTRIBUTES, NUMBERS
from emu.contract.structure import number_of
from emu.device import Profile, describe, load_profile, preset_names
from emu.device.sections import VARIANTS
from emu.device.sections.section import explain, words

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text("utf-8")

CONDUCTANCES = {"encoding": "differential", "g_min_us": 1.0, "g_max_us": 9}

EVERYTHING: dict[str, Any] = {
    "name": "everything",
    "mapping": {
        "tile_rows": 64,
        "tile_columns": 32,
        "split": "balanced",
        "scaling": "tensor",
        "weight_bits": 6,
        "cell_bits": 4,
        "percentile": 0.99,
        **CONDUCTANCES,
    },
    "program": {"model": "lognormal_g", "sigma": 0.2, "sigma_cycle": 0.1, "clip": "range", "modifier": 0.05},
    "drift": {
        "model": "power_law",
        "time_s": "2h",
        "nu": 0.05,
        "nu_sigma": 0.01,
        "t0_s": 20,
        "pairs": "net",
        "compensation": "column",
    },
    "faults": {
        "storage": "int",
        "bits": 4,
        "range": "asymmetric",
        "scale": "column",
        "flip": [1, 3],
        "ber": 1e-3,
        "stuck_low": 0.01,
        "stuck_high": 0.02,
    },
    "write": {
        "model": "clipformer",
        "sigma": 0.01,
        "gamma": 3,
        "alpha": 2,
        "beta": 0.25,
        "sigma_device": 0.01,
        "capacity": 64,
        "stuck_low": 0.01,
        "stuck_high": 0.02,
        "alpha_value": -1,
        "beta_value": 0.5,
        "bits": 8,
        "exponent": 1,
        "cells": "cells",
        "scaling": "sample",
        "operands": "key",
    },
    "dac": {"model": "uniform", "range": "fixed", "bits": 7, "bound": 1.5, "max": 4.0, "code": "offset_binary"},
    "adc": {
        "model": "uniform",
        "range": "fixed",
        "steps": 500,
        "bound": 12.0,
        "bound_management": "iterative",
        "code": "twos_complement",
        "gain_sigma": 0.01,
        "offset_sigma": 0.02,
        "columns": 8,
    },
    "read": {
        "weight_noise_model": "pcm_read",
        "weight_noise": 0.0175,
        "output_noise": 0.06,
        "input_noise": 0.01,
        "wires": "formula",
    },
}

FIT = dict.fromkeys(("joint", "slope", "offset", "low", "high", "c0", "c1", "c2", "c3"), 0.1)
# One profile for each other model that brings numbers of its own.
OTHERS: list[dict[str, Any]] = [
    {"mapping": CONDUCTANCES, "program": {"model": "polynomial", "c0": 0.1, "c4": -1.0, "reference_us": 40}},
    {
        "mapping": CONDUCTANCES,
        "program": {
            "model": "polynomial",
            "time_s": "1d",
            "fit_time_s": [1, "1d"],
            "c0": [0.1, 0.2],
            "reference_us": 40,
        },
        "drift": {"model": "power_law_fit", "time_s": 0, "t0_s": 20, "t_read_s": 1e-6, "nu": FIT, "nu_sigma": FIT}
        | {"read": {**FIT, "q": 0.1, "power": 0.5, "cap": 0.2}},
    },
    {
        "mapping": CONDUCTANCES,
        "program": {"model": "saturating", "amplitude_na": 20, "knee_na": 180, "current_max_na": 3200},
        "drift": {"model": "log_time", "time_s": "1h", "t0_s": 1, "t_read_s": 1e-6, "shift_us": -0.1, "spread_us": 0.1}
        | {"spread_t0_us": 0.4, "read_us": 0.03},
    },
    {"mapping": CONDUCTANCES, "program": {"model": "resistance_range", "sigma": 0.1, "sigma_off": 0.2}},
    {
        "mapping": CONDUCTANCES,
        "program": {
            "model": "table",
            "time_s": "1h",
            "target_us": [1, 5, 9],
            "mean_us": [[1, 5, 9], [1, 4, 8]],
            "std_us": [[0.1, 0.2, 0.3], [0.2, 0.4, 0.6]],
            "table_time_s": [1, "1d"],
        },
        "drift": {"model": "power_law_table", "time_s": 9, "t0_s": 1, "t_read_s": 1e-6, "target_us": [1, 9]}
        | {"mean_nu": [0.1, 0.05], "std_nu": [0.01, 0.02]},
    },
    {
        "mapping": CONDUCTANCES,
        "drift": {"model": "relaxation", "time_s": "1h", "final_us": 4, "tau_s": "1y"},
    },
    {"program": {"model": "function", "function": "my_device", "parameters": {"gain": 1.5}}},
    {
        "mapping": CONDUCTANCES,
        "dac": {"model": "uniform", "range": "absmax", "bits": 8, "limit": 3.0},
        "read": {"wires": "network", "row_ohm": 1.0, "column_ohm": 0.5},
    },
    {
        "dac": {"model": "uniform", "range": "absmax_sum", "bits": 8, "asymmetry": 0.1},
        "adc": {"model": "uniform", "range": "fixed", "bits": 8, "bound": 10, "scale": 2.0, "asymmetry": 0.1}
        | {"nonlinearity": 0.2, "nonlinearity_sigma": 0.1, "slope_calibration": 0.5},
        "read": {"output_noise": 0.1, "output_noise_spread": 0.3},
    },
    {
        "dac": {"model": "uniform", "range": "max", "bits": 8},
        "adc": {"model": "uniform", "range": "fixed", "bits": 8, "bound": 10, "bound_management": "worst_case"},
    },
]


def test_ideal_crossbars_need_no_numbers() -> None:
    assert load_profile("ideal").entries() == {}
    assert load_profile("ideal").structure()["entries"] == ""


def test_rram_disturbs_stored_weights_and_nothing_else() -> None:
    profile = load_profile("rram")
    assert profile.entries() == {"program.sigma": 0.1, "program.sigma_cycle": 0.0}
    structure = profile.structure()
    assert structure["program"] == "lognormal_w"
    assert [structure[name] for name in ("write", "dac", "adc", "bound_management", "read_noise")] == ["none"] * 5


def test_rram_adc_reads_256_row_tiles_through_8_bit_converters() -> None:
    profile = load_profile("rram_adc")
    plain = load_profile("ideal").structure()
    assert profile.structure() == plain | {
        "tile_rows": 256,
        "tile_columns": 256,
        "tile_split": "balanced",
        "scaling": "tile_column",
        "program": "lognormal_w",
        "dac": "absmax",
        "adc": "fixed",
        "bound_management": "iterative",
        "entries": ",".join(profile.entries()),
    }
    assert profile.entries() == {
        "program.sigma": 0.1,
        "program.sigma_cycle": 0.0,
        "dac.bits": 8,
        "dac.steps": 0,
        "dac.bound": 1,
        "adc.bits": 8,
        "adc.steps": 0,
        "adc.bound": 10,
        "adc.max_bound_factor": 1000,
        "adc.max_bound_resolution": 0.25,
        "read.output_noise": 0.04,
    }


def test_every_choice_reaches_the_structure() -> None:
    profile = load_profile(EVERYTHING)
    assert profile.structure() == {
        "tile_rows": 64,
        "tile_columns": 32,
        "tile_split": "balanced",
        "scaling": "tensor",
        "fault_source": "random",
        "fault_storage": "int",
        "fault_bits": 4,
        "fault_range": "asymmetric",
        "fault_scale": "column",
        "fault_mask": 0b1010,
        "fault_protection": "none",
        "encoding": "differential",
        "offset_correction": "digital",
        "weight_bits": 6,
        "slice_bits": 0,
        "program": "lognormal_g",
        "program_function": "",
        "table_times": 0,
        "table_points": 0,
        "drift_points": 0,
        "program_clip": "range",
        "drift": "power_law",
        "drift_pairs": "net",
        "compensation": "column",
        "write": "clipformer",
        "write_cells": "cells",
        "write_scaling": "sample",
        "dac": "fixed",
        "dac_code": "offset_binary",
        "dac_slice_bits": 0,
        "adc": "fixed",
        "adc_code": "twos_complement",
        "adc_columns": 8,
        "bound_management": "iterative",
        "read_noise": "pcm_read",
        "ir_drop": "formula",
        "adc_pairs": "subtracted",
        "dac_rounding": "nearest",
        "adc_rounding": "nearest",
        "dac_slice_sum": "digital",
        "entries": ",".join(profile.entries()),
    }


def test_entries_stand_in_one_order_whatever_the_device() -> None:
    seen = set()
    names = [name.split(".<")[0] for name in NUMBERS]
    for profile in map(load_profile, [EVERYTHING, *OTHERS, *preset_names()]):
        groups = [number_of(name).name.split(".<")[0] for name in profile.entries()]  # type: ignore[union-attr]
        places = [names.index(group) for group in groups]
        assert places == sorted(places)
        seen |= set(groups)
    assert seen == set(names)  # every number of the page is reached by one of these devices


def test_a_table_gives_one_entry_for_each_number() -> None:
    profile = load_profile(OTHERS[4])
    entries = profile.entries()
    assert entries["program.target_us.1"] == 5 and entries["program.mean_us.1.2"] == 8
    assert entries["program.std_us.0.0"] == 0.1 and entries["program.table_time_s.1"] == 86400
    assert entries["program.time_s"] == 3600
    assert (profile.structure()["table_times"], profile.structure()["table_points"]) == (2, 3)


def test_a_table_of_one_time_has_no_time_to_choose() -> None:
    table = {"model": "table", "target_us": [1, 9], "mean_us": [1, 9], "std_us": [0.1, 0.2]}
    profile = load_profile({"mapping": CONDUCTANCES, "program": table})
    assert "program.time_s" not in profile.entries()
    assert profile.structure()["table_times"] == 1


def test_parameters_of_a_function_are_entries_by_name() -> None:
    profile = load_profile(OTHERS[6])
    assert profile.entries() == {"program.parameter.gain": 1.5}
    assert profile.structure()["program_function"] == "my_device"


@pytest.mark.parametrize(
    ("storage", "flip", "mask"),
    [
        ("int", "all", 0xFF),
        ("int", "sign", 0x80),
        ("int", [0, 6], 0x41),
        ("float32", "all", 0xFFFFFFFF),
        ("float32", "sign", 0x80000000),
        ("float32", "exponent", 0x7F800000),
        ("float32", "mantissa", 0x007FFFFF),
        ("float32", [30], 0x40000000),
        ("float16", "exponent", 0x7C00),
        ("bfloat16", "mantissa", 0x7F),
        ("float8_e4m3", "exponent", 0x78),
        ("float8_e5m2", "all", 0xFF),
        ("model", "sign", 0x80000000),
    ],
)
def test_bits_that_may_flip_are_named_or_listed(storage: str, flip: Any, mask: int) -> None:
    bits = {"bits": 8} if storage == "int" else {}
    profile = load_profile({"faults": {"storage": storage, "ber": 1e-3, "flip": flip, **bits}})
    assert profile.structure()["fault_mask"] == mask


def test_stuck_cells_alone_are_random_faults_without_bit_flips() -> None:
    structure = load_profile("stuck_at").structure()
    assert (structure["fault_source"], structure["fault_storage"]) == ("random", "none")
    assert "faults.ber" not in load_profile("stuck_at").entries()


def test_the_attributes_of_the_contract_are_those_of_profiles_and_their_values_too() -> None:
    values = {name: set() if row.is_integer else set(row.legal) for name, row in ATTRIBUTES.items()}
    of_the_site = {"format", "site", "array", "sites", "sample_axis", "heads", "head_axis", "head_groups", "head_share"}
    of_the_site |= {"window", "key_axis", "range_tiles", "range_slices", "range_polarities"}
    of_the_model = {"code_bits", "block_rows"}
    assert set(load_profile("ideal").structure()) == set(values) - of_the_site - of_the_model
    settings = {
        "tile_split": "mapping.split",
        "scaling": "mapping.scaling",
        "encoding": "mapping.encoding",
        "offset_correction": "mapping.offset_correction",
        "fault_storage": "faults.storage",
        "fault_range": "faults.range",
        "fault_scale": "faults.scale",
        "fault_protection": "faults.protection",
        "program_clip": "program.clip",
        "drift": "drift.model",
        "drift_pairs": "drift.pairs",
        "compensation": "drift.compensation",
        "write": "write.model",
        "write_cells": "write.cells",
        "write_scaling": "write.scaling",
        "dac_code": "dac.code",
        "adc_code": "adc.code",
        "adc_pairs": "adc.pairs",
        "dac_rounding": "dac.rounding",
        "adc_rounding": "adc.rounding",
        "dac_slice_sum": "dac.slice_sum",
        "bound_management": "adc.bound_management",
        "read_noise": "read.weight_noise_model",
        "ir_drop": "read.wires",
    }
    for attribute, setting in settings.items():
        section, field = setting.split(".")
        known = {word for v in VARIANTS[section] if field in v.model_fields for word in words(v.model_fields[field])}
        known -= {"model"} if attribute == "fault_storage" else set()  # one of the others at every site
        assert known == values[attribute] - {"network"} | ({"network"} if attribute == "ir_drop" else set()), attribute
    for converter in ("dac", "adc"):
        known = {
            word for v in VARIANTS[converter] if "range" in v.model_fields for word in words(v.model_fields["range"])
        }
        assert known | {"none"} == values[converter]
    tables = {"program": ("| `program` | `encoding` |", "then clipped:"), "drift": ("| `drift` | g'' |", "L(t) = ")}
    for section, (start, end) in tables.items():
        rows = PAGE[PAGE.index(start) : PAGE.index(end)].splitlines()[2:]
        listed = {name for row in rows if "|" in row for name in re.findall(r"`(\w+)`", row.split("|")[1])}
        assert {word for v in VARIANTS[section] for word in words(v.model_fields["model"])} == listed | {"none"}


@pytest.mark.parametrize("name", [*preset_names(), "everything"])
def test_a_profile_survives_json(name: str) -> None:
    profile = load_profile(EVERYTHING if name == "everything" else name)
    plain = json.dumps(profile.model_dump(mode="json"))
    assert Profile.model_validate(json.loads(plain)) == profile
    # Fingerprints of stored studies are of the text, and stores sort what they hold.
    again = Profile.model_validate(json.loads(json.dumps(json.loads(plain), sort_keys=True)))
    assert json.dumps(again.model_dump(mode="json")) == plain


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description.endswith(".") and profile.source.endswith(".")


def test_a_profile_cannot_change() -> None:
    with pytest.raises(ValidationError):
        load_profile("rram").name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        load_profile("rram").mapping.tile_rows = 3  # type: ignore[misc]


def test_output_noise_of_zero_is_a_number_to_sweep_but_no_output_noise_is_not() -> None:
    assert "read.output_noise" not in load_profile("rram").entries()
    assert load_profile("rram", {"read.output_noise": 0.0}).entries()["read.output_noise"] == 0


def test_every_setting_of_every_variant_is_explained() -> None:
    for section, variants in VARIANTS.items():
        for variant in variants:
            assert variant.__doc__
            for field in variant.model_fields:
                about = explain(variant, field)
                assert about.meaning and about.source, (section, field)
    for device in [EVERYTHING, *OTHERS, *preset_names()]:
        profile = load_profile(device)
        rows = describe(profile)
        assert all(row.meaning and row.range and row.source for row in rows)
        assert all(row.unit for row in rows if row.entry)
        starts = tuple(row.name for row in rows if row.entry)
        assert all(name.startswith(starts) for name in profile.entries())


def test_choices_are_listed_once_and_before_the_numbers_that_they_bring() -> None:
    rows = {row.name: row for row in describe(load_profile("rram_adc"))}
    assert rows["adc.range"].range == "absmax, fixed, calibrated, rows, granular"
    assert rows["adc.bound_management"].range == "none, iterative, worst_case"
    assert list(rows).index("adc.model") < list(rows).index("adc.bits")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("program.sigma", [0, 10], [-0.001, 10.001, float("nan"), float("inf")]),
        ("write.sigma", [0, 0.3], [-1, 11]),
        ("dac.bits", [0, 2, 16], [1, 17, 7.5, -2]),
        ("adc.steps", [0, 2, 65536], [1, 65537, 3.5]),
        ("adc.bound", [1e-30, 1e30], [0, -1, 1e-60, 1e60]),
        ("adc.max_bound_factor", [1, 2**20], [0.5, 2**20 + 1]),
        ("adc.max_bound_resolution", [0.01], [0, -1]),
        ("read.weight_noise", [0, 5], [-0.1]),
        ("mapping.g_min_us", [0, 3], [-1]),
        ("mapping.g_max_us", [0.1], [0]),
        ("mapping.cell_bits", [0, 1, 12], [13, -1, 2.5]),
        ("mapping.percentile", [0.001, 1], [0, 1.01]),
        ("program.c3", [-43.8, 0, 1e30], [float("nan"), float("inf")]),
        ("program.reference_us", [25], [0]),
        ("program.std_us.2.11", [0, 1], [-0.1]),
        ("program.parameter.gain", [-3, 0], [float("inf")]),
        ("program.modifier", [0, 0.05], [-0.05]),
        ("drift.time_s", [0, 3e7], [-1]),
        ("drift.nu", [-0.1, 0.1], [float("nan")]),
        ("drift.t0_s", [1e-12], [0]),
        ("faults.ber", [0, 1e-9, 1], [-1e-9, 1.1]),
        ("write.exponent", [0, 10], [-1, 11]),
        ("write.beta", [0.25, 1], [0, 1.1]),
        ("write.bits", [0, 2, 16], [1, 17]),
        ("read.ir_drop_ratio", [571428.57], [0]),
        ("read.row_ohm", [0, 1], [-1]),
    ],
)
def test_ranges_are_those_of_the_operators_page_also_in_float32(name: str, good: list[float], bad: list[float]) -> None:
    row = number_of(name)
    assert row is not None
    assert [row.legal.allows_stored(value) for value in good] == [True] * len(good)
    assert [row.legal.allows_stored(value) for value in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    "name", ["mapping.tile_rows", "program.target_us", "program.mean_us.0", "program.mean_us.a.b", "drift", "x.y"]
)
def test_what_is_no_entry_has_no_number(name: str) -> None:
    assert number_of(name) is None
