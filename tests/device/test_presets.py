"""Presets have the published numbers, and the operators take every one of them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emu.contract.schema import DYNAMIC, STORED, plain
from emu.device import load_profile, preset_names
from emu.reference import crossbar_matmul, crossbar_matmul_dynamic

# Standard deviation of programming in microsiemens at some conductances, as published models give it.
PROGRAMMING = {
    "pcm": ([0, 2.5, 6.25, 12.5, 18.75, 25], [0.26348, 0.448249, 0.681411, 0.952705, 1.077361, 1.055380]),
    "pcm_hermes": ([0, 5.175, 10.35, 15.525, 20.7], [0.166, 0.8888, 0.991, 0.9124, 1.0927]),
    "pcm_hermes_single": ([0, 2.5875, 5.175, 7.7625, 10.35], [0.1578, 0.6145, 0.8653, 0.9748, 1.0076]),
    "pcm_state_independent": ([0, 25], [0.2, 0.2]),
    "pcm_joshi": ([0.25, 5, 12.5, 20, 25], [0.3052, 0.621, 0.9553, 1.0885, 1.0655]),
    "fefet": ([0.5, 10, 20], [0.5, 0.5, 0.5]),
    "rram_milo": ([50, 100, 150, 225], [4.327, 3.8716, 3.4163, 2.7332]),
    "rram_crosssim_wan": ([0, 10, 20, 30, 39.26], [1.053, 2.4136, 2.3618, 1.8192, 1.6806]),
    "rram_cmo": ([9, 50, 88.2], [0.112831, 0.575732, 1.007021]),
}
# ISAAC reads stored weights only: the steps of its ADC are those of their cells.
STORED_ONLY = ["isaac"]
# What no device says of a node.
OF_THE_NODE = {"format", "site", "array", "sites", "sample_axis", "heads", "head_axis", "head_groups", "head_share"}
OF_THE_NODE |= {"window", "key_axis", "range_tiles", "range_slices", "range_polarities"}


@pytest.mark.parametrize("name", PROGRAMMING)
def test_programming_errors_are_the_published_ones(name: str) -> None:
    entries = load_profile(name).entries()
    conductances, expected = PROGRAMMING[name]
    g = np.array(conductances) / entries["mapping.g_max_us"]
    polynomial = sum(entries[f"program.c{power}"] * g**power for power in range(5))
    sigma_us = polynomial * entries["mapping.g_max_us"] / entries["program.reference_us"]
    np.testing.assert_allclose(sigma_us, expected, rtol=2e-3)


def test_the_table_of_analog_foundation_models_is_their_two_cubics() -> None:
    program = load_profile("pcm_afm").program
    assert program.model == "table"
    g = np.linspace(0, 180, 180_001)
    mean, std = (np.interp(g, program.target_us, row[0]) for row in (program.mean_us, program.std_us))
    below = np.polyval([2.9398e-5, -3.7158e-3, 0.22420, 2.57974], g)
    above = np.polyval([1.23298e-5, -3.05499e-3, 0.245349, 2.11030], g)
    between_points = ((g > 0.599) & (g < 0.6)) | ((g > 52.5) & (g < 52.51))  # where the law has a step
    expected = np.where(g < 0.6, 0, np.where(g <= 52.5, below, above))
    np.testing.assert_allclose(std[~between_points], expected[~between_points], atol=0.0105)
    np.testing.assert_allclose(mean[~between_points], np.where(g < 0.6, 0, g)[~between_points], atol=1e-9)


def test_the_configuration_of_aihwkit_is_complete() -> None:
    profile = load_profile("pcm_aihwkit")
    entries, structure = profile.entries(), profile.structure()
    assert {name: entries[name] for name in ("dac.steps", "adc.steps", "adc.bound")} == {
        "dac.steps": 256,
        "adc.steps": 256,
        "adc.bound": 10,
    }
    assert (entries["read.weight_noise"], entries["read.output_noise"]) == (0.0175, 0.04)
    assert (structure["tile_rows"], structure["tile_split"], structure["scaling"]) == (256, "balanced", "tile_column")
    assert (structure["drift_pairs"], structure["compensation"]) == ("net", "global")
    assert (structure["dac"], structure["bound_management"]) == ("absmax", "iterative")
    assert "program.modifier" not in entries
    assert load_profile("pcm_aihwkit_literal").entries()["program.modifier"] == 0.05


def test_the_literal_configuration_differs_in_the_modifier_alone() -> None:
    literal = load_profile("pcm_aihwkit_literal", {"program.modifier": "off"})
    assert literal.entries() == load_profile("pcm_aihwkit").entries()
    assert literal.structure() == load_profile("pcm_aihwkit").structure()


@pytest.mark.parametrize(
    ("bits", "name"), [(4, "int4_flips"), (8, "int8_flips"), (16, "int16_flips"), (8, "int8_secded")]
)
def test_integer_flips_hit_every_bit_of_a_code(bits: int, name: str) -> None:
    structure = load_profile(name).structure()
    assert (structure["fault_bits"], structure["fault_mask"]) == (bits, 2**bits - 1)
    assert (structure["fault_range"], structure["fault_scale"]) == ("symmetric", "tensor")
    assert structure["fault_protection"] == ("secded" if name == "int8_secded" else "none")


@pytest.mark.parametrize("name", preset_names())
def test_the_operators_take_every_preset(name: str) -> None:
    draw = np.random.default_rng(0)
    x, w = draw.normal(size=(1, 3, 70)).astype(np.float32), draw.normal(size=(70, 9)).astype(np.float32)
    profile = load_profile(name)
    controls: list[Any] = [
        np.array(list(profile.entries().values()), np.float32),
        np.ones(1, np.float32),
        np.array([[4, -30, 30, 2]], np.float32),
    ]
    numbers = [np.int64(1), np.int64(2), np.int64(0)]
    of_stored = {key: value for key, value in profile.structure().items() if key in plain(STORED)}
    y = crossbar_matmul(x, w, *controls, np.zeros((0, 2), np.int64), *numbers, **{**plain(STORED), **of_stored})
    assert y.shape == (1, 3, 9) and np.isfinite(y).all()
    assert of_stored.keys() == plain(STORED).keys() - OF_THE_NODE
    if name not in STORED_ONLY:
        of_written = {key: value for key, value in profile.structure().items() if key in plain(DYNAMIC)}
        assert of_written.keys() == plain(DYNAMIC).keys() - OF_THE_NODE
        y = crossbar_matmul_dynamic(x, w[None], *controls, *numbers, **{**plain(DYNAMIC), **of_written})
        assert y.shape == (1, 3, 9) and np.isfinite(y).all()


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_it_assumes_and_the_page_lists_it(name: str) -> None:
    root = Path(__file__).parents[2]
    head = (root / "emu" / "device" / "presets" / f"{name}.toml").read_text("utf-8").split("\nname = ")[0]
    assert all(line.startswith("#") or not line for line in head.splitlines())
    if name not in ("ideal", "rram", "rram_adc"):
        assert "# Source:" in head and "# Valid" in head and "# Assumed:" in head
    assert f"| `{name}` |" in (root / "docs" / "devices.md").read_text("utf-8")


def test_the_profile_of_the_page_loads(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text("utf-8")
    first = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    (tmp_path / "mine.toml").write_text(first)
    assert load_profile(tmp_path / "mine.toml").structure()["compensation"] == "column"
