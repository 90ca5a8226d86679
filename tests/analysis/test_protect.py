"""Protection: a cheap set of sites that keeps the loss under a target, proven on fresh chips."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from emu import Bench, evaluate
from emu.analysis import protect as module
from emu.analysis.ground import Measurement
from emu.analysis.protect import Protection, draw_protection, protect
from emu.demo import data_path, model_path
from emu.errors import InputError

SITES = "layer=0-1 component=value,ffn_up,attention_scores"
SETUP: dict[str, Any] = {"device": "rram", "set": {"program.sigma": 0.9}, "only": SITES, "samples": 50}
TARGET = 0.02


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(model_path("digits_vit"), data_path("digits_test"), **SETUP)


@pytest.fixture(scope="module")
def found(bench: Bench) -> Protection:
    return protect(bench, TARGET, "parameters", chips=3)


def test_the_target_holds_and_not_everything_is_protected(found: Protection) -> None:
    assert found.table["loss"].iloc[0] > TARGET
    assert found.verified
    assert found.loss <= TARGET
    assert 0 < found.share < 1


def test_verification_is_on_chips_that_were_not_used_before(found: Protection) -> None:
    used: set[int] = set()
    for step in found.table.itertuples():
        if step.action == "verify":
            fresh = set(range(step.first_seed, step.first_seed + step.chips))
            assert not used & fresh
        used |= set(range(step.first_seed, step.first_seed + 3))
    assert "verify" in set(found.table["action"])


def test_the_rules_give_evaluate_the_same_accuracies(found: Protection) -> None:
    result = evaluate(
        model_path("digits_vit"),
        data_path("digits_test"),
        chips=3,
        first_seed=found.first_seed,
        map=found.rules,
        **SETUP,
    )
    assert result.spread is not None
    assert result.clean.accuracy - result.spread.mean == pytest.approx(found.loss, abs=1e-12)


def test_costs_are_counted_over_what_is_protected(bench: Bench, found: Protection) -> None:
    parts = found.parts
    assert parts["cost"].sum() == sum(site.parameters for site in bench.sites)  # exact products have no weights
    assert found.cost == parts.loc[parts["protected"], "cost"].sum()
    assert found.share == pytest.approx(found.cost / parts["cost"].sum())
    assert tuple(parts.loc[parts["protected"], "selection"]) == found.chosen
    assert not parts["part"].str.contains("attention_scores").any()  # not disturbed, so no part to protect


def test_no_part_of_the_set_can_be_spared_on_the_chips_that_chose_it(found: Protection) -> None:
    tried = found.table[found.table["action"].isin(["drop", "keep"])]
    assert (tried[tried["action"] == "keep"]["loss"] > TARGET).all()
    assert (tried[tried["action"] == "drop"]["loss"] <= TARGET).all()


def test_each_step_says_whether_the_target_holds_and_is_shown(found: Protection) -> None:
    steps = found.table
    assert (steps["holds"] == (steps["loss"] <= TARGET + 1e-12)).all()
    assert (steps["shown"] == (steps["high"] <= TARGET + 1e-12)).all() and not (steps["shown"] & ~steps["holds"]).any()
    assert (found.verified, found.shown) == tuple(steps.iloc[-1][["holds", "shown"]])


def test_nothing_is_protected_where_nothing_is_lost() -> None:
    mild = Bench(model_path("digits_vit"), data_path("digits_test"), **{**SETUP, "set": {"program.sigma": 1e-4}})
    found = protect(mild, TARGET, "macs", chips=2)
    assert found.rules == ()
    assert found.verified
    assert found.share == 0


def test_a_loss_of_just_the_target_holds_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.98 - 0.96 > 0.02  # in floating point

    def measured(value: float, trials: int) -> Measurement:
        return Measurement(np.full(trials, value), [None] * trials)

    monkeypatch.setattr(module, "undisturbed", lambda bench: measured(0.98, 1))
    monkeypatch.setattr(module.Run, "measure", lambda self, bench, trials, *of: measured(0.96, len(trials)))
    found = protect(bench, 0.02, "parameters", chips=3)
    assert found.verified and found.rules == ()


def test_sites_that_share_an_array_are_protected_together(tmp_path: Path) -> None:
    model = onnx.load(model_path("digits_vit"))
    weights = {each.name: each for each in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    one, other = (f"/vit/encoder/layer.{layer}/intermediate/dense/MatMul" for layer in (0, 1))
    source, target = weights[nodes[one].input[1]], weights[nodes[other].input[1]]
    target.raw_data = source.raw_data
    path = tmp_path / "shared.onnx"
    onnx.save(model, path)
    bench = Bench(path, data_path("digits_test"), **SETUP)
    found = protect(bench, 0.03, "parameters", chips=2)
    shared = found.parts[found.parts["selection"] == "layer=0 component=ffn_up; layer=1 component=ffn_up"].iloc[0]
    assert shared["cost"] == 48 * 192  # one array
    assert shared["protected"]
    result = evaluate(path, data_path("digits_test"), 2, first_seed=found.first_seed, map=found.rules, **SETUP)
    assert result.spread is not None
    assert result.clean.accuracy - result.spread.mean == pytest.approx(found.loss, abs=1e-12)


def test_a_guard_that_corrects_is_measured_as_it_is() -> None:
    setup = {**SETUP, "device": "int8_flips", "set": {"faults.ber": 0.02}, "only": "layer=0 component=value,ffn_up"}
    bench = Bench(model_path("digits_vit"), data_path("digits_test"), **setup)
    seen: list[list[str]] = []

    def guarded(rules: Any) -> Bench:
        seen.append(list(rules))
        changes = {"faults.ber": 0.02, "int8_secded:faults.ber": 0.002}
        arguments = {**setup, "set": changes}
        return Bench(model_path("digits_vit"), data_path("digits_test"), map=list(rules), **arguments)

    found = protect(bench, 0.01, "bits", chips=2, guard="int8_secded", guarded=guarded)
    assert found.parts["cost"].sum() == sum(site.parameters for site in bench.sites)  # one check bit for 8
    assert seen
    assert all(rule.endswith(":int8_secded") for rules in seen for rule in rules)
    last = found.table[found.table["action"] == "add"].iloc[-1]
    again = guarded(seen[len(found.table[found.table["action"] == "add"]) - 1])
    losses = [again.clean.accuracy - again.run(trial).accuracy for trial in _chips(2)]
    assert last["loss"] == pytest.approx(np.mean(losses))


@pytest.mark.parametrize(
    ("device", "cost", "target", "sentence"),
    [
        ("rram", "bits", 0.01, "stores no bits"),
        ("rram", "macs", 1.0, "between 0 and 1"),
        ("rram", "macs", 0.0, "between 0 and 1"),
    ],
)
def test_wrong_costs_and_targets_are_refused(device: str, cost: Any, target: float, sentence: str) -> None:
    bench = Bench(model_path("digits_vit"), data_path("digits_test"), device=device, samples=10)
    with pytest.raises(InputError, match=sentence):
        protect(bench, target, cost)


def test_macs_that_depend_on_a_free_size_are_refused() -> None:
    bench = Bench(model_path("listops_bert"), data_path("listops_test"), device="rram", samples=10)
    with pytest.raises(InputError, match="leaves open"):
        protect(bench, 0.01, "macs")


def test_the_figure_shows_the_way_and_the_choice(found: Protection) -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    draw_protection(axes, found, TARGET, "parameters")
    assert axes.get_xlabel() == "protected share of parameters (%)"
    assert "chosen, on fresh chips" in [text.get_text() for text in axes.get_legend().get_texts()]


def _chips(count: int) -> list[Any]:
    from emu import Trial

    return [Trial(seed) for seed in range(count)]
