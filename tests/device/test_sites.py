"""[sites]: which products of any model are on a device, and which studies say so."""

import pytest

from emu.contract.site import COMPONENTS
from emu.device import describe, load_profile, preset_names
from emu.errors import InputError
from emu.rewriter import find_sites
from tests.rewriter.small import transformer

SITES = find_sites(transformer(2))
WEIGHTS = {"query", "key", "value", "attention_output", "ffn_up", "ffn_down"}  # of a block
PRODUCTS = {"attention_scores", "attention_context"}

# The components of SITES that are on a preset; all of them on the others.
BY_STUDY = {
    "rram": WEIGHTS,
    "pcm_aihwkit": WEIGHTS | {"classifier"},
    "pcm_aihwkit_literal": WEIGHTS | {"classifier"},
    "isaac": WEIGHTS | {"classifier"},
    "prime": WEIGHTS | {"classifier"},
}


def components(profile):
    return {site.component for site in profile.sites.of(SITES)}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_on_the_products_of_its_study(name):
    assert components(load_profile(name)) == BY_STUDY.get(name, WEIGHTS | PRODUCTS | {"classifier"})


def test_the_linear_layers_of_attention_and_ffn_are_named_for_any_model():
    blocks = {"query", "key", "value", "key_value", "query_key_value", "attention_output"}
    blocks |= {"ffn_up", "ffn_gate", "ffn_down"}
    words = load_profile("rram").sites.only.removeprefix("component=").split(",")
    named = {
        each
        for each in COMPONENTS
        if any(each == word or (each.startswith(word[:-1]) and "*" in word) for word in words)
    }
    assert named == blocks


def test_parts_that_a_model_lacks_count_for_nothing():
    both = {"only": "component=ffn_*,pooler layer=0,7", "exclude": "component=ffn_up,patch_embedding"}
    assert [site.node for site in load_profile({"sites": both}).sites.of(SITES)] == ["down0"]
    assert load_profile({"sites": {"only": "component=pooler"}}).sites.of(SITES) == []


def test_a_setting_replaces_or_removes_the_selection():
    assert components(load_profile("rram", {"sites.only": "component=classifier"})) == {"classifier"}
    assert components(load_profile("rram", ["sites.only=off"])) == components(load_profile("ideal"))
    assert components(load_profile("ideal", ["sites.exclude=operand=written"])) == WEIGHTS | {"classifier"}


def test_a_selection_changes_no_number_and_no_structure_of_the_device():
    plain, selected = load_profile("pcm"), load_profile("pcm", {"sites.only": "layer=0"})
    assert plain.entries() == selected.entries() and plain.structure() == selected.structure()
    assert {row.name: row.value for row in describe(selected)}["sites.only"] == "layer=0"


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (
            {"only": "component=ffn_upp"},
            r"sites.only names 'ffn_upp' \(did you mean 'ffn_up'\?\); components are",
        ),
        ({"exclude": "component=query,norm_*"}, r"sites.exclude names 'norm_\*'; components are"),
        ({"only": "layer=first"}, "sites.only 'layer=first' cannot be read: write layers as 3, 0-3 or 0,2$"),
        ({"only": "block=1"}, "sites.only 'block=1' cannot be read: a term starts with layer="),
        (
            {"exclude": "operand=dynamic"},
            "sites.exclude 'operand=dynamic' cannot be read: an operand is stored or written",
        ),
        ({"only": " "}, "sites.only is empty: write for example"),
        ({"only": 3}, "sites.only is 3, expected text"),
        ({"onyl": "layer=0"}, r"there is no setting 'sites.onyl' \(did you mean 'only'\?\)"),
    ],
)
def test_a_selection_that_none_can_be_is_refused_with_the_profile(sites, message):
    with pytest.raises(InputError, match=f"^Device profile 'mine': {message.rstrip('$')}") as caught:
        load_profile({"name": "mine", "sites": sites})
    assert str(caught.value).count(".") >= 1 and str(caught.value).endswith(".") and "..." not in str(caught.value)
