"""Tables: statistics over chips, filters, exports."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emu import Bench, InputError, Trial
from emu.evaluation.statistics import chip_spread
from emu.sweep import Store, export, keep, run_trials, summarize


@pytest.fixture(scope="module")
def table(bench: Bench) -> pd.DataFrame:
    trials = [
        Trial(seed=seed, read_seed=read, only=f"layer={layer} component=query", set={"program.sigma": sigma})
        for sigma in (0.1, 0.5)
        for layer in (0, 1)
        for seed in (0, 1, 2)
        for read in (0, 1)
    ]
    return run_trials(bench, trials)


def test_points_are_summarized_over_chips(table: pd.DataFrame) -> None:
    summary = summarize(table)
    assert list(summary)[:4] == ["program.sigma", "layer", "chips", "trials"]
    assert summary[["program.sigma", "layer"]].values.tolist() == [[0.1, 0], [0.1, 1], [0.5, 0], [0.5, 1]]
    assert set(summary["chips"]) == {3} and set(summary["trials"]) == {6}
    part = table[(table["program.sigma"] == 0.5) & (table["only"] == "layer=0 component=query")]
    per_chip = part.groupby("seed")["accuracy"].mean().tolist()  # the repetitions of a chip are no further chips
    spread = chip_spread(per_chip)
    row = summary.iloc[2]
    assert row["accuracy.mean"] == pytest.approx(spread.mean, rel=1e-14)
    assert row["accuracy.std"] == pytest.approx(spread.std, rel=1e-12)
    ends = spread.ci95 or (np.nan, np.nan)  # equal chips have no interval
    found = [float(np.nan if pd.isna(row[f"accuracy.{end}"]) else row[f"accuracy.{end}"]) for end in ("low", "high")]
    assert found == pytest.approx([*ends], rel=1e-12, nan_ok=True)


def test_a_group_averages_what_differs_within_it_chip_by_chip(table: pd.DataFrame) -> None:
    summary = summarize(table, ["program.sigma"])
    assert summary["chips"].tolist() == [3, 3] and summary["trials"].tolist() == [12, 12]
    per_chip = table[table["program.sigma"] == 0.5].groupby("seed")["accuracy"].mean().tolist()
    assert summary["accuracy.std"][1] == pytest.approx(chip_spread(per_chip).std, rel=1e-12)
    assert len(summarize(table, ["read_seed", "layer"])) == 4
    with pytest.raises(InputError, match="no column 'sigma' to group by .did you mean 'program.sigma'"):
        summarize(table, ["sigma"])


def test_a_wider_selection_takes_no_places_from_other_rows(table: pd.DataFrame) -> None:
    nowhere = table.tail(6).assign(layer=pd.array([None] * 6, "Int64"), component=None)
    wide, twice = nowhere.assign(only="layer=2-3"), nowhere.assign(only="layer=0 layer=1")
    together = pd.concat([table, wide, twice], ignore_index=True)
    assert len(keep(together, ["component=query"])) == len(table)
    assert len(keep(together, ["layer=1"])) == len(table) / 2
    assert len(keep(together, ["only=layer=2-3"])) == len(wide)
    assert len(keep(together, ["only=layer=1 component=query"])) == len(table) / 2
    summary = summarize(together)
    assert list(summary)[:4] == ["program.sigma", "layer", "component", "only"]
    points = [tuple(None if pd.isna(cell) else cell for cell in row) for row in summary.iloc[:, :4].values]
    assert points == [
        (0.1, 0, "query", None),
        (0.1, 1, "query", None),
        (0.5, 0, "query", None),
        (0.5, 1, "query", None),
        (0.5, None, None, "layer=0 layer=1"),
        (0.5, None, None, "layer=2-3"),
    ]


def test_a_single_chip_has_no_interval(table: pd.DataFrame) -> None:
    summary = summarize(keep(table, ["seed=0"]))
    assert summary["accuracy.mean"].notna().all() and summary["accuracy.low"].isna().all()


def test_a_metric_that_is_not_finite_has_a_mean_alone(table: pd.DataFrame) -> None:
    broken = table.assign(accuracy=table["accuracy"].where(table["seed"] > 0, float("inf")))
    row = summarize(broken).iloc[0]
    assert row["accuracy.mean"] == float("inf") and pd.isna(row["accuracy.std"]) and pd.isna(row["accuracy.max"])


def test_quantiles_are_those_of_numpy_over_chips(table: pd.DataFrame) -> None:
    one = keep(table, ["read_seed=0", "layer=0"])
    many = pd.concat([one.assign(seed=one["seed"] + 3 * k, loss=one["loss"] * (k + 1)) for k in range(7)])
    many.attrs = one.attrs
    row = summarize(many, confidence=0.9).iloc[1]
    values = many[many["program.sigma"] == 0.5]["loss"]
    assert row["chips"] == len(values) == 21
    levels = {"min": 0, "q05": 5, "q25": 25, "median": 50, "q75": 75, "q95": 95, "max": 100}
    for name, level in levels.items():
        assert row[f"loss.{name}"] == pytest.approx(np.percentile(values, level), rel=1e-14)
    low, high = stats.t.interval(0.9, 20, values.mean(), stats.sem(values))
    assert (row["loss.low"], row["loss.high"]) == pytest.approx((low, high), rel=1e-9)
    with pytest.raises(InputError, match="confidence of an interval is 1 "):
        summarize(many, confidence=1)


def test_equal_chips_have_no_interval(table: pd.DataFrame) -> None:
    row = summarize(table.assign(accuracy=0.1)).iloc[0]
    assert row["accuracy.mean"] == row["accuracy.max"] == 0.1 and row["accuracy.std"] == 0
    assert pd.isna(row["accuracy.low"]) and pd.isna(row["accuracy.high"])  # a spread that was not seen


def test_a_table_without_roles_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="does not say which of its columns are axes and metrics"):
        summarize(pd.DataFrame(table.to_dict("list")))


def test_conditions_keep_rows(table: pd.DataFrame) -> None:
    assert len(keep(table, ["program.sigma=0.1"])) == 12
    assert len(keep(table, ["program.sigma=0.1,0.5", "layer=1", "seed=0,2"])) == 8
    assert len(keep(table, ["component=query"])) == 24


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("program.sigma=0.3", "program.sigma is 0.1, 0.5"),
        ("sigma=0.1", "did you mean 'program.sigma'"),
        ("program.sigma=big", "is a number"),
        ("layer", "write it as name=value"),
        ("layer=7", "layer is 0, 1"),
        ("exclude=layer=1", "no trial has one"),
    ],
)
def test_a_condition_that_nothing_meets_is_refused(table: pd.DataFrame, condition: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        keep(table, [condition])


def test_rows_are_in_the_order_of_their_values_whichever_ran_first(bench: Bench, tmp_path: Path) -> None:
    trials = [Trial(only=only, seed=seed) for seed in (10, 9) for only in ("layer=0-10", "layer=0-9", None)]
    with Store(tmp_path / "s.db") as store:
        run_trials(bench, trials, store=store)
        frame = store.frame()
    assert frame["only"].fillna("all").tolist() == ["all", "all", "layer=0-9", "layer=0-9", "layer=0-10", "layer=0-10"]
    assert frame["seed"].tolist() == [9, 10] * 3


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_export_reads_back_as_the_table(table: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    export(table, tmp_path / f"t.{suffix}")
    read = pd.read_csv if suffix == "csv" else pd.read_parquet
    back = read(tmp_path / f"t.{suffix}")
    assert list(back) == list(table)
    assert back["accuracy"].tolist() == table["accuracy"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == [f"t.{suffix}"]


def test_an_export_that_cannot_be_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends in .csv or .parquet"):
        export(table, tmp_path / "t.xls")
    with pytest.raises(InputError, match="There is no folder"):
        export(table, tmp_path / "none" / "t.csv")


def test_a_missing_library_is_asked_for_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import emu.sweep

    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.delitem(sys.modules, "emu.sweep.store")
    with pytest.raises(InputError, match=r'needs sqlalchemy: pip install "emu-onnx\[analysis\]"'):
        emu.sweep.Store  # noqa: B018
