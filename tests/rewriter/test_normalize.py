"""Steps of normalization: in an order that gives each what it needs, and nothing given is lost again."""

from pathlib import Path

import pytest

from emu.demo import model_path
from emu.rewriter.batch import find_batch
from emu.rewriter.load import load
from emu.rewriter.normalize import steps
from emu.rewriter.passes import NameFusedDomainPass
from graphs.load import load as load_graph

from .exported import exported_graphs, path_of, supported_graphs

GRAPHS = ["bert_base-torchscript", "vit_small-dynamo23", "deberta_v3_small-dynamo", "dpt_base-torchscript"]


def check(source) -> None:
    loaded = load(source)
    model = loaded.model
    NameFusedDomainPass()(model)
    given: set = set()
    for step in steps(loaded.name, find_batch(model.graph, loaded.name)):
        name = type(step.run).__name__
        assert set(step.requires) <= given, f"{name} comes before what it needs"
        model = step.run(model).model
        given |= set(step.ensures)
        for condition in given:
            assert condition.holds(model), f"after {name} it is not true that {condition.says}"


@pytest.mark.parametrize("name", ["digits_vit", "digits_deit", "listops_bert"])
def test_every_step_has_what_it_needs_and_keeps_what_was_given_on_demo_models(name):
    check(model_path(name))


@pytest.mark.parametrize("name", GRAPHS)
def test_every_step_has_what_it_needs_on_graphs_at_real_widths(name):
    check(load_graph(name))


@pytest.mark.skipif(not exported_graphs(), reason="needs the exported graphs: set EMU_ASSETS to their folder")
@pytest.mark.parametrize("graph", supported_graphs(), ids=lambda graph: Path(graph["file"]).stem)
def test_every_step_has_what_it_needs_on_exported_graphs(graph):
    check(path_of(graph))
