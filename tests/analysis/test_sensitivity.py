"""Sensitivity: what is lost with one part disturbed, what is regained with it digital, paired by chip."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from emu import Bench, Trial
from emu.analysis.ground import Run, disturbed_groups, groups_of
from emu.analysis.sensitivity import draw_sensitivity, sensitivity
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation.statistics import chip_spread, crossed, holm
from emu.sweep import Store
from tests.contract.made import made_site

CHIPS = 3


@pytest.fixture(scope="module")
def bench() -> Bench:
    sites = "component=patch_embedding,value,ffn_up,attention_scores"
    device = {"device": "rram", "set": {"program.sigma": 0.6}}
    return Bench(model_path("digits_vit"), data_path("digits_test"), only=sites, samples=60, **device)


@pytest.fixture(scope="module")
def table(bench: Bench) -> pd.DataFrame:
    return sensitivity(bench, "both", chips=CHIPS, first_seed=4).table


def row_of(table: pd.DataFrame, mode: str, layer: int | None, component: str) -> pd.Series:
    rows = table[(table["mode"] == mode) & (table["component"] == component)]
    rows = rows[rows["layer"].isna() if layer is None else rows["layer"] == layer]
    assert len(rows) == 1
    return rows.iloc[0]


def test_only_is_the_accuracy_that_one_part_costs(bench: Bench, table: pd.DataFrame) -> None:
    lost = [
        bench.clean.accuracy - bench.run(Trial(seed, only="layer=0 component=ffn_up")).accuracy for seed in (4, 5, 6)
    ]
    row = row_of(table, "only", 0, "ffn_up")
    assert row["effect"] == pytest.approx(np.mean(lost)) and row["std"] == pytest.approx(np.std(lost, ddof=1))
    assert row["chips"] == CHIPS


def test_effects_are_paired_by_chip_and_by_sample(bench: Bench, table: pd.DataFrame) -> None:
    clean, every = bench.clean.values, [bench.run(Trial(seed)).values for seed in (4, 5, 6)]
    assert clean is not None
    alone = [bench.run(Trial(seed, only="layer=0 component=ffn_up")).values for seed in (4, 5, 6)]
    rest = [bench.run(Trial(seed, exclude="component=patch_embedding")).values for seed in (4, 5, 6)]
    lost = crossed(clean.astype(float) - np.array(alone, float), -1, 1)
    gained = crossed(np.array(rest, float) - np.array(every, float), -1, 1)
    for row, found in (
        (row_of(table, "only", 0, "ffn_up"), lost),
        (row_of(table, "all-but", None, "patch_embedding"), gained),
    ):
        assert (row["effect"], row["low"], row["high"], row["p"]) == pytest.approx(
            (found.mean, found.low, found.high, found.p)
        )
    only = table[(table["mode"] == "only") & (table["chips"] > 0)]
    assert only["p_corrected"].tolist() == pytest.approx(holm(only["p"].tolist()))


def test_all_but_is_paired_with_the_same_chip_fully_disturbed(bench: Bench, table: pd.DataFrame) -> None:
    gained = [
        bench.run(Trial(seed, exclude="component=patch_embedding")).accuracy - bench.run(Trial(seed)).accuracy
        for seed in (4, 5, 6)
    ]
    row = row_of(table, "all-but", None, "patch_embedding")
    assert row["effect"] == pytest.approx(np.mean(gained))


def test_products_that_the_device_leaves_exact_are_not_measured(bench: Bench, table: pd.DataFrame) -> None:
    exact = table[table["component"] == "attention_scores"]
    assert len(exact) == 8 and exact[["effect", "low", "high", "p", "p_corrected"]].isna().all(axis=None)
    assert (exact["chips"] == 0).all() and (table[table["component"] != "attention_scores"]["chips"] == CHIPS).all()
    acting = disturbed_groups(bench)
    assert len(acting) == 9 and "attention_scores" not in {group.component for group in acting}


def test_a_device_that_does_nothing_at_all_is_refused() -> None:
    bench = Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="component=attention_scores")
    with pytest.raises(InputError, match="Nothing is disturbed: 'rram' leaves all 4 sites exact"):
        sensitivity(bench, chips=2)


def test_trials_of_a_store_are_paired_by_chip_alone(bench: Bench, tmp_path: Path) -> None:
    for _ in range(2):
        with Store(tmp_path / "trials.db") as store:
            analysis = sensitivity(bench, chips=CHIPS, first_seed=4, store=store)
    assert "Intervals are for other chips alone where the store held trials" in analysis.sections[0].below[-1]
    lost = [
        bench.clean.accuracy - bench.run(Trial(seed, only="layer=0 component=ffn_up")).accuracy for seed in (4, 5, 6)
    ]
    row = row_of(analysis.table, "only", 0, "ffn_up")
    spread = chip_spread(lost)
    assert (row["low"], row["high"]) == pytest.approx(spread.ci95 or (np.nan, np.nan), nan_ok=True)


def test_every_part_has_one_row_per_mode(bench: Bench, table: pd.DataFrame) -> None:
    assert len(groups_of(bench)) == 1 + 3 * 4
    assert table.groupby("mode")["sites"].sum().to_dict() == {"only": 13, "all-but": 13}
    assert row_of(table, "only", 2, "ffn_up")["parameters"] == 48 * 192


def test_protecting_the_only_part_regains_everything() -> None:
    one = Bench(
        model_path("digits_vit"),
        data_path("digits_test"),
        device="rram",
        set={"program.sigma": 2},
        only="component=patch_embedding",
        samples=40,
    )
    table = sensitivity(one, "both", chips=2).table
    assert table["effect"].iloc[0] == pytest.approx(table["effect"].iloc[1])
    assert table["effect"].iloc[0] > 0


def test_sites_outside_layers_are_told_from_those_of_the_same_component_inside() -> None:
    places = [(0, "other", "a"), (None, "other", "b"), (None, "other", "c"), (None, "pooler", "d")]
    sites = [made_site(layer=layer, component=component, node=node) for layer, component, node in places]
    groups = groups_of(cast(Bench, SimpleNamespace(sites=sites, name="it")))
    assert [group.selection for group in groups] == ["layer=0 component=other", "node=b", "node=c", "component=pooler"]


def test_the_number_of_trials_is_said_before_the_first_one(bench: Bench) -> None:
    said: list[str] = []
    done: list[tuple[int, int, int]] = []
    trials = [Trial(1), Trial(2)]
    Run(echo=said.append, progress=lambda i, n: done.append((i, n, len(said)))).measure(bench, trials, "a test", "")
    assert said == ["2 trials of 60 samples: a test."]
    assert done == [(1, 2, 1), (2, 2, 1)]


def test_a_store_spares_trials(bench: Bench, tmp_path: Path) -> None:
    ran: list[int] = []
    for expected in (2, 2):
        with Store(tmp_path / "trials.db") as store:
            Run(store=store, progress=lambda i, n: ran.append(i)).measure(bench, [Trial(8), Trial(9)], "", "")
        assert len(ran) == expected


def test_a_plain_model_is_refused() -> None:
    with pytest.raises(InputError, match="give a device"):
        sensitivity(Bench(model_path("digits_vit"), data_path("digits_test"), samples=10))


def test_the_heat_map_shows_every_part_in_points(table: pd.DataFrame) -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    draw_sensitivity(axes, table, "only")
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["patch_embedding", "layer 0", "layer 1", "layer 2", "layer 3"]
    numbers = [text.get_text() for text in axes.texts]
    assert len(numbers) == 13 and numbers.count("not\ndisturbed") == 4
    expected = 100 * row_of(table, "only", None, "patch_embedding")["effect"]
    assert float(numbers[0]) == pytest.approx(expected, abs=0.051)
    assert "-0.0" not in numbers
