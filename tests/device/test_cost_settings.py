"""The section [cost] holds constants and their sources, and no product depends on it."""

import pytest

from emu.device import describe, load_profile
from emu.errors import InputError


def test_a_source_of_no_constant_is_refused() -> None:
    with pytest.raises(InputError, match="sources names volume, which is no constant"):
        load_profile({"name": "mine", "cost": {"adc_pj": 2.0, "sources": {"volume": "a guess"}}})


def test_a_changed_constant_loses_its_source() -> None:
    assert "adc_pj" not in load_profile("isaac", {"cost.adc_pj": 3.0}).cost.sources
    assert "dac_pj" in load_profile("isaac", {"cost.adc_pj": 3.0}).cost.sources


def test_costs_are_no_part_of_what_a_node_says() -> None:
    plain, changed = load_profile("isaac"), load_profile("isaac", {"cost.adc_pj": 3.0})
    assert plain.structure() == changed.structure() and plain.entries() == changed.entries()


def test_the_explanation_of_a_constant_names_the_source_of_its_value() -> None:
    rows = {row.name: row for row in describe(load_profile("isaac"))}
    assert rows["cost.adc_pj"].source.startswith("Shafiee 2016") and rows["cost.adc_pj"].unit == "pJ"
    assert rows["cost.write_pj"].shown == "off" and not rows["cost.adc_pj"].entry
    assert "cost.sources" not in rows


@pytest.mark.parametrize(
    "wrong", [{"adc_pj": -1.0}, {"adc": "flash"}, {"mean_input": 2.0}, {"model": "none", "adc_pj": 1.0}]
)
def test_wrong_constants_of_a_device_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="cost"):
        load_profile({"name": "mine", "cost": wrong})
