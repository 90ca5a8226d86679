"""A profile holds exactly the settings that act, and tells the graph its structure and its numbers."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from emu.device import Profile, describe, load_profile, preset_names
from emu.device.profile import ENTRY_NAMES, VARIANTS, entry_number, explain

STRUCTURE_KEYS = [
    "tile_rows",
    "tile_columns",
    "tile_split",
    "scaling",
    "program",
    "write",
    "dac",
    "adc",
    "bound_management",
    "read_noise",
    "entries",
]

EVERYTHING = {
    "name": "everything",
    "mapping": {
        "tile_rows": 64,
        "tile_columns": 32,
        "split": "balanced",
        "scaling": "tile",
        "g_min_us": 1.0,
        "g_max_us": 9,
    },
    "program": {"model": "lognormal_g", "sigma": 0.2, "sigma_cycle": 0.1},
    "write": {"model": "gauss_prop", "sigma": 0.3},
    "dac": {"model": "uniform", "range": "fixed", "bits": 7, "bound": 1.5, "max": 4.0},
    "adc": {"model": "uniform", "range": "fixed", "steps": 500, "bound": 12.0, "bound_management": "iterative"},
    "read": {"weight_noise_model": "pcm_read", "weight_noise": 0.0175, "output_noise": 0.06},
}


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
    assert profile.structure() == {
        "tile_rows": 256,
        "tile_columns": 256,
        "tile_split": "balanced",
        "scaling": "tile_column",
        "program": "lognormal_w",
        "write": "none",
        "dac": "absmax",
        "adc": "fixed",
        "bound_management": "iterative",
        "read_noise": "none",
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


def test_a_profile_that_uses_every_effect_has_every_entry_in_the_documented_order() -> None:
    profile = load_profile(EVERYTHING)
    assert tuple(profile.entries()) == ENTRY_NAMES
    assert list(profile.structure()) == STRUCTURE_KEYS
    assert profile.structure()["entries"] == ",".join(ENTRY_NAMES)
    assert profile.structure()["read_noise"] == "pcm_read"


def test_the_entries_and_structure_are_those_of_the_operators_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operators.md").read_text("utf-8")
    table = page[page.index("Entries of `device`") : page.index("All entries of one device")]
    named = re.findall(r"`((?:program|write|mapping|dac|adc|read)\.[a-z_]+)`", table)
    assert set(named) == set(ENTRY_NAMES)
    attributes = set(re.findall(r"`([a-z_]+)`", page[page.index("## Attributes") : page.index("Entries of `device`")]))
    assert set(STRUCTURE_KEYS) <= attributes


@pytest.mark.parametrize("name", [*preset_names(), "everything"])
def test_a_profile_survives_json(name: str) -> None:
    profile = load_profile(EVERYTHING if name == "everything" else name)
    assert Profile.model_validate(json.loads(json.dumps(profile.model_dump(mode="json")))) == profile


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
    rows = describe(load_profile(EVERYTHING))
    assert {row.name for row in rows if row.entry} == set(ENTRY_NAMES)
    assert all(row.meaning and row.range and row.source for row in rows)
    assert all(row.unit for row in rows if isinstance(row.value, int | float))


def test_choices_are_listed_once_and_before_the_numbers_that_they_bring() -> None:
    rows = {row.name: row for row in describe(load_profile("rram_adc"))}
    assert rows["adc.range"].range == "absmax, fixed"
    assert rows["adc.bound_management"].range == "none, iterative"
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
    ],
)
def test_ranges_are_those_of_the_operators_page_also_in_float32(name: str, good: list[float], bad: list[float]) -> None:
    assert [entry_number(name).allows(value) for value in good] == [True] * len(good)
    assert [entry_number(name).allows(value) for value in bad] == [False] * len(bad)
