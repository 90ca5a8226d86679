"""The library's header and the operators' page are what the schema says, and follow it."""

from dataclasses import replace

import numpy as np
import pytest

from emu.contract import generate, schema
from emu.contract.schema import ATTRIBUTES, NUMBERS, Range
from emu.device import load_profile
from emu.errors import InputError
from tests.reference.nodes import stored


def test_what_is_generated_is_what_the_schema_says() -> None:
    for path, text in generate.generated().items():
        assert path.read_text("utf-8") == text, f"{path.name}: run python -m emu.contract.generate"
    assert generate.main(["--check"]) == 0


def test_a_changed_range_changes_library_page_twin_and_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    header, page = generate.generated()
    monkeypatch.setitem(NUMBERS, "program.sigma", replace(NUMBERS["program.sigma"], legal=Range(0, 0.25)))
    monkeypatch.setitem(
        ATTRIBUTES, "slice_bits", replace(ATTRIBUTES["slice_bits"], legal=Range(1, 5, or_zero=True, whole=True))
    )
    texts = generate.generated()
    assert "value >= 0 && value <= 0.25" in texts[header] and "value >= 1 && value <= 5);" in texts[header]
    assert "| 0 to 0.25 |" in texts[page] and "| `slice_bits` | S | 0, or a whole number from 1 to 5 |" in texts[page]
    assert generate.main(["--check"]) == 1
    x, w = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    numbers = {"program.sigma": 0.5, "program.sigma_cycle": 0.5}
    with pytest.raises(InputError, match=r"entry 'program.sigma' of input 'device' is 0.5, expected 0 to 0.25\."):
        stored(x, w, program="lognormal_w", numbers=numbers)
    with pytest.raises(InputError, match=r"program.sigma is 0.5, expected 0 to 0.25\."):
        load_profile("rram", ["program.sigma=0.5"])
    with pytest.raises(InputError, match=r"attribute 'slice_bits' is 8, expected 0, or a whole number from 1 to 5\."):
        stored(x, w, slice_bits=8)


def test_rules_speak_of_what_there_is() -> None:
    for rule in (*schema.ATTRIBUTE_RULES, *schema.NUMBER_RULES):
        assert rule.sentence.startswith(("attribute '", "entry '")) and rule.sentence.endswith(".")
    for row in NUMBERS.values():
        assert all(attribute in ATTRIBUTES for attribute, _ in row.needed)
        assert not row.beside or row.beside in NUMBERS
