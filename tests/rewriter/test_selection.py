"""Which sites a selection keeps, and what a wrong one is told."""

import pytest

from emu.errors import InputError
from emu.rewriter import find_sites, rewrite, select

from .small import crossbars, transformer

SITES = find_sites(transformer(3))


def nodes(only=None, exclude=None):
    return {site.node for site in select(SITES, only, exclude)}


def test_without_a_selection_every_site_is_kept():
    assert len(nodes()) == 3 * 8 + 1


def test_all_terms_must_hold():
    assert nodes("layer=1 component=ffn_up,ffn_down") == {"up1", "down1"}


def test_layers_are_numbers_and_ranges():
    assert nodes("layer=0-1 component=query") == {"q0", "q1"}
    assert nodes("layer=0,2 component=query") == {"q0", "q2"}


def test_globs_match_components_and_nodes():
    assert nodes("component=ffn_* layer=2") == {"up2", "down2"}
    assert nodes("node=q?") == nodes("q?") == {"q0", "q1", "q2"}


def test_exclude_takes_away_from_only():
    assert nodes("component=query", "layer=1-2") == {"q0"}


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("component=ffn_upp", "only 'component=ffn_upp' matches no site: the model has layers 0 to 2, the components"),
        ("component=ffn_up,nothing", "only 'component=nothing' matches no site"),
        ("layer=3", "only 'layer=3' matches no site"),
        ("layer=first", "write layers as 3, 0-3 or 0,2"),
        ("layer=2-0", "write the range 2-0 as 0-2"),
        ("layer=", "a value is missing after 'layer='"),
        ("block=1", "a term starts with layer=, component= or node="),
        ("node=nope", "only 'node=nope' matches no site: .* and nodes such as q0"),
        ("layer=0 component=classifier", "only 'layer=0 component=classifier' matches no site"),
        ("  ", "only is empty"),
    ],
)
def test_a_selection_that_matches_nothing_says_what_exists(selection, message):
    with pytest.raises(InputError, match=message):
        nodes(selection)


def test_excluding_everything_is_an_error():
    with pytest.raises(InputError, match="leaves no site"):
        nodes(None, "node=*")


def test_what_is_not_selected_stays_digital_and_sites_are_numbered_anew():
    rewritten = rewrite(transformer(2), only="layer=1 component=ffn_*")
    assert [(site["index"], site["node"], site["layer"]) for site in rewritten.manifest["sites"]] == [
        (0, "up1", 1),
        (1, "down1", 1),
    ]
    assert set(crossbars(rewritten.model)) == {"up1", "down1"}
    assert {"node": "q0", "op": "MatMul", "reason": "not selected"} in rewritten.manifest["skipped"]
