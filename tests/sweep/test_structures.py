"""Axes of what is rewritten: devices, models and settings that shape the graph, each rewritten and calibrated once."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from emu import Bench, InputError, Trial
from emu.calibration import fit_ranges
from emu.demo import data_path, model_path
from emu.sweep import Plan, Store, keep, rerun, run_plan, summarize
from emu.sweep.plan import read_axes

Make = Callable[..., Plan]
FEW = {"samples": 20, "seeds": 2}
TILES = {"device": "rram,rram_adc", "mapping.tile_rows": "64,128"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, plan: Make) -> tuple[Path, pd.DataFrame, list[str]]:
    """A store, the table of the sweep that made it, and what was built and said."""
    path = tmp_path_factory.mktemp("structures") / "s.db"
    lines: list[str] = []
    with Store(path) as store:
        table = run_plan(
            plan(device=None, vary={**TILES, "program.sigma": "0.1,0.4"}, **FEW), store=store, echo=lines.append
        )
    return path, table, lines


def test_devices_and_settings_of_the_graph_make_a_product(opened: tuple[Path, pd.DataFrame, list[str]]) -> None:
    _, table, lines = opened
    assert lines[0].startswith("4 models are rewritten")
    points = table[["device", "mapping.tile_rows", "program.sigma", "seed"]].values.tolist()
    assert points == [
        [device, rows, sigma, seed]
        for device in ("rram", "rram_adc")
        for rows in (64, 128)
        for sigma in (0.1, 0.4)
        for seed in (0, 1)
    ]


def test_a_trial_of_a_structure_is_that_of_a_bench_of_its_own(opened: tuple[Path, pd.DataFrame, list[str]]) -> None:
    _, table, _ = opened
    settings = {"mapping.tile_rows": 128}
    bench = Bench(
        model_path("digits_vit"), data_path("digits_test"), device="rram_adc", set=settings, only="*", samples=20
    )
    alone = bench.run(Trial(seed=1, set={"program.sigma": 0.4}))
    row = table[(table["device"] == "rram_adc") & (table["mapping.tile_rows"] == 128)].iloc[-1]
    assert {name: row[name] for name in alone.metrics} == alone.metrics


def test_one_session_is_built_for_each_structure(plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import emu.runtime

    built: list[object] = []
    real = emu.runtime.session
    monkeypatch.setattr(
        emu.runtime, "session", lambda *given, **options: built.append(given) or real(*given, **options)
    )
    run_plan(
        plan(vary={"mapping.tile_rows": "64,128", "program.sigma": "0.1:0.3:0.1", "layer": "all"}, samples=4, seeds=1)
    )
    assert len(built) == 2


def test_one_study_holds_all_structures_and_is_asked_for_any(opened: tuple[Path, pd.DataFrame, list[str]]) -> None:
    path, table, _ = opened
    with Store(path, create=False) as store:
        assert [each.trials for each in store.studies()] == [16]
        frame = store.frame()
        again = rerun(store, frame["id"].iloc[0])
    assert again.equal
    assert len(keep(frame, ["device=rram", "mapping.tile_rows=64"])) == 4
    summary = summarize(frame)
    assert list(summary)[:4] == ["device", "mapping.tile_rows", "program.sigma", "chips"] and len(summary) == 8
    assert len(summarize(table, ["mapping.tile_rows"])) == 2


def test_a_study_goes_on_with_further_structures_and_with_nothing_else(
    opened: tuple[Path, pd.DataFrame, list[str]], plan: Make
) -> None:
    path, _, _ = opened
    lines: list[str] = []
    with Store(path) as store:
        more = {"device": "ideal,rram", "mapping.tile_rows": "128,64,32"}
        run_plan(plan(vary={**more, "strength": "1"}, samples=20, seeds=1), store=store, echo=lines.append)
        assert len(store.studies()) == 1
        with pytest.raises(InputError, match="something else: the data differs"):
            run_plan(plan(device="rram", vary={"mapping.tile_rows": "64"}, samples=19, seeds=1), store=store)
        with pytest.raises(InputError, match="something else: the device differs"):
            run_plan(plan(device="pcm", vary={"mapping.tile_rows": "64"}, **FEW), store=store)


def test_an_interrupted_sweep_over_structures_ends_as_an_unbroken_one(plan: Make, tmp_path: Path) -> None:
    made = plan(vary={"mapping.tile_rows": "64,128", "layer": "0-1"}, cost=True, device="rram_neurosim", **FEW)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with Store(tmp_path / "broken.db") as broken, Store(tmp_path / "whole.db") as whole:
        with pytest.raises(KeyboardInterrupt):
            run_plan(made, store=broken, progress=stop)
        assert len(broken.frame()) == 5
        tables = [run_plan(made, store=store).drop(columns="seconds") for store in (broken, whole)]
        frames = [store.frame().drop(columns=["seconds", "finished"]) for store in (broken, whole)]
    pd.testing.assert_frame_equal(*tables)
    pd.testing.assert_frame_equal(*frames)
    assert len(tables[0]) == 8


def test_workers_give_the_table_of_a_local_run(plan: Make) -> None:
    pytest.importorskip("distributed")
    made = plan(vary={"device": "rram,rram_adc", "layer": "0-1"}, samples=8, seeds=1, threads=1)
    tables = [run_plan(made, workers=workers).drop(columns="seconds") for workers in (None, 1)]
    pd.testing.assert_frame_equal(*tables)


def test_axes_in_one_text_go_together(plan: Make, bench: Bench) -> None:
    vary = read_axes(["program.sigma=0.1,0.2,0.1; layer=0-2", "strength=0.5,1"])
    trials = [trial for point in plan(vary=vary, seeds=1).points(bench) for chip in point for trial in chip]
    assert trials == [
        Trial(strength=strength, only=f"layer={layer}", set={"program.sigma": sigma})
        for sigma, layer in ((0.1, 0), (0.2, 1), (0.1, 2))
        for strength in (0.5, 1.0)
    ]


def test_models_go_together_with_their_data(tmp_path: Path) -> None:
    models, data = (",".join(map(str, each)) for each in (
        (model_path("digits_vit"), model_path("listops_bert")), (data_path("digits_test"), data_path("listops_test"))
    ))  # fmt: skip
    vary = read_axes([f"model={models}; data={data}; program.sigma=0.1,0.2", "device=rram,pcm_hermes"])
    with pytest.raises(InputError, match="no axis 'program.sigma'|program.sigma"):
        run_plan(Plan(vary=vary, seeds=1, samples=4))
    vary = read_axes([f"model={models}; data={data}; strength=0.5,1", "device=rram,pcm_hermes"])
    table = summarize(run_plan(Plan(vary=vary, seeds=1, samples=4)))
    assert table[["model", "device", "strength"]].values.tolist() == [
        ["digits_vit.onnx", "pcm_hermes", 0.5],
        ["digits_vit.onnx", "rram", 0.5],
        ["listops_bert.onnx", "pcm_hermes", 1.0],
        ["listops_bert.onnx", "rram", 1.0],
    ]


def test_ranges_are_calibrated_for_each_structure(plan: Make, tmp_path: Path) -> None:
    fitted = {"device": "rram_adc", "set": {"adc.range": "calibrated"}, "samples": 8, "seeds": 1}
    with Store(tmp_path / "s.db") as store:
        table = run_plan(plan(vary={"mapping.tile_rows": "16,64"}, **fitted), store=store)
        assert all(rerun(store, each).equal for each in store.frame()["id"])
    settings = {"adc.range": "calibrated", "mapping.tile_rows": 16}
    bench = Bench(
        model_path("digits_vit"), data_path("digits_test"), device="rram_adc", set=settings, only="*", samples=8,
        calibrate=fit_ranges,
    )  # fmt: skip
    assert bench.manifest is not None and bench.manifest.calibration is not None
    assert bench.run(Trial()).metrics["loss"] == table["loss"].iloc[0] != table["loss"].iloc[1]


def test_cost_stands_beside_accuracy(plan: Make) -> None:
    table = run_plan(plan(device="rram_neurosim", vary={"mapping.tile_rows": "32,128"}, cost=True, samples=4, seeds=1))
    assert (table[["energy_uj", "latency_us", "area_mm2"]] > 0).all().all()
    assert table["energy_uj"].nunique() == 2
    assert "energy_uj" not in run_plan(plan(vary={"mapping.tile_rows": "32"}, cost=True, samples=4, seeds=1))
    bits = run_plan(plan(device="rram_neurosim", vary={"adc.bits": "5,7"}, cost=True, samples=4, seeds=1))
    assert bits["energy_uj"].notna().all()
    lent = run_plan(plan(vary={"mapping.tile_rows": "32"}, costs_of="rram_neurosim", samples=4, seeds=1))
    assert lent["energy_uj"].iloc[0] > 0


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({"device": "rram,rrma"}, "did you mean 'rram'"),
        ({"mapping.tile_rows": "64,-1"}, "tile_rows is -1"),
        ({"mapping.tile_row": "64"}, "did you mean 'mapping.tile_rows'"),
        ({"both": {"program.sigma": "0.1,0.2", "strength": "1"}}, "program.sigma has 2, strength has 1"),
        ({"both": {"mapping.tile_rows": "64,128", "strength": "1"}}, "mapping.tile_rows has 2"),
        ({"both": {"seed": "0-1", "strength": "1,2"}}, "an axis of its own"),
        ({"both": {"layer": "0", "strength": "1"}, "layer": "1"}, "'layer' varies twice"),
    ],
)
def test_what_cannot_vary_is_refused_before_anything_runs(plan: Make, vary: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run_plan(plan(vary=vary, **FEW))


def test_a_device_that_leaves_a_place_exact_is_left_out_and_the_others_run(plan: Make) -> None:
    lines: list[str] = []
    places = {"component": "attention_scores"}
    table = run_plan(plan(device=None, vary={"device": "rram,rram_adc", **places}, **FEW), echo=lines.append)
    assert set(table["device"]) == {"rram_adc"} and len(table) == 2
    assert "1 of 1 points of device rram disturb no site and are left out." in lines
    with pytest.raises(InputError, match="No point of the sweep disturbs anything"):
        run_plan(plan(device=None, vary={"device": "rram", **places}, **FEW))


def test_a_plan_of_axes_that_go_together_reads_what_it_writes(plan: Make, tmp_path: Path) -> None:
    made = plan(
        vary={**read_axes(["adc.bits=4:8:1; program.sigma=0.1:0.5:0.1", "only=layer=0;layer=1"]), "device": "a"}
    )
    made.write(tmp_path / "plan.toml")
    made.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.toml") == Plan.read(tmp_path / "plan.json") == made
    assert made.vary["only"] == "layer=0;layer=1"
    assert made.fingerprint == Plan.read(tmp_path / "plan.json").fingerprint
