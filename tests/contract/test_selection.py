"""Which sites a selection keeps, and what a wrong one is told."""

import pytest

from emu.contract.selection import select
from emu.contract.site import Skipped
from emu.errors import InputError
from emu.rewriter import find_sites, rewrite
from tests.rewriter.small import crossbars, model, transformer, values

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


def test_shapes_are_rows_by_columns_with_any_size_for_a_star():
    assert nodes("shape=12x8") == {"down0", "down1", "down2"}
    assert nodes("shape=*x12 layer=0,2") == {"up0", "up2"}
    assert nodes("shape=8x12,8x3 layer=1") == {"up1"}
    assert nodes("shape=8x*") - nodes("shape=8x8") == {"up0", "up1", "up2", "classifier"}
    assert nodes("shape=*x*") == nodes()


def test_operands_are_stored_or_written():
    assert nodes("operand=written layer=0") == {"scores0", "context0"}
    assert nodes("operand=stored") == nodes(exclude="component=attention_scores,attention_context")
    with pytest.raises(InputError, match="'operand=read' cannot be read: an operand is stored or written"):
        nodes("operand=read")


def test_an_open_size_of_a_shape_is_a_question_mark():
    sites = find_sites(
        model(
            "t = Transpose <perm = [0, 2, 1]> (x) s = MatMul(x, t) y = MatMul(x, w)",
            inputs="float[batch, length, 4] x",
            outputs="float[batch, m, n] y",
            w=values(4, 3),
        )
    )
    assert [site.shape for site in sites] == [(4, None), (4, 3)]
    assert [site.node for site in select(sites, "shape=4x?")] == ["s"]
    assert [site.node for site in select(sites, "shape=4x*")] == ["s", "y"]


def test_exclude_takes_away_from_only():
    assert nodes("component=query", "layer=1-2") == {"q0"}


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            "component=ffn_upp",
            "only 'component=ffn_upp' matches no site .did you mean 'ffn_up'..: the model has layers",
        ),
        ("component=ffn_up,nothing", "only 'component=nothing' matches no site"),
        ("layer=3", "only 'layer=3' matches no site"),
        ("layer=first", "write layers as 3, 0-3 or 0,2"),
        ("layer=2-0", "write the range 2-0 as 0-2"),
        ("layer=", "a value is missing after 'layer='"),
        ("block=1", "a term starts with layer=, component=, operand=, shape= or node="),
        ("shape=8x9", "only 'shape=8x9' matches no site: .* the shapes 8x8, 4x5, 5x4, 8x12, 12x8, 8x3, and nodes"),
        ("shape=8", "write a shape as rows x columns, 768x3072 or 768x*"),
        ("shape=", "a value is missing after 'shape='"),
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
    assert [(site.index, site.node, site.layer) for site in rewritten.manifest.sites] == [
        (0, "up1", 1),
        (1, "down1", 1),
    ]
    assert set(crossbars(rewritten.model)) == {"up1", "down1"}
    assert Skipped("q0", "MatMul", "not selected", 5 * 8 * 8, "query", 0, 2, 1, 0) in rewritten.manifest.skipped
    macs = sum(site.macs for site in rewritten.manifest.sites)
    everything = sum(site.macs for site in rewrite(transformer(2), only="*").manifest.sites)
    assert rewritten.manifest.digital_share == pytest.approx(1 - macs / everything)


def test_a_bar_joins_selections():
    assert nodes("layer=0 component=query | component=classifier | up1") == {"q0", "classifier", "up1"}
    assert nodes(exclude="layer=0-1 | component=classifier") == nodes("layer=2")
    with pytest.raises(InputError, match="component=nothing"):
        nodes("layer=0 | component=nothing")
