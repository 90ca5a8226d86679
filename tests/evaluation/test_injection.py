"""Fault lists as an input of a model, and campaigns: what strikes where, in one session."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import emu
from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation.injection import inject
from emu.rewriter import EmulatedModel, rewrite
from emu.runtime import session
from emu.sweep import Store, run_trials
from tests.rewriter.small import model, transformer, values

FLIPS = {"faults": {"storage": "float32", "ber": 0.0}}
PAIRS = {"encoding": "differential", "g_min_us": 0, "g_max_us": 100, "tile_rows": 3, "tile_columns": 4, "split": "fill"}
CELLS = {"mapping": PAIRS, "faults": {"stuck_low": 0.1, "stuck_high": 0.1}}
X = {"x": values(3, 5, 8)}


def bench(device: Any, original: Any = None, **options: Any) -> emu.Bench:
    data = {"x": values(3, 6, seed=3), "labels": np.array([0, 1, 2])}
    original = original or model(
        "y = MatMul(x, w)", inputs="float[batch, 6] x", outputs="float[batch, 8] y", w=values(6, 8)
    )
    return emu.Bench(original, data, device=device, task="arrays", **options)


@pytest.mark.parametrize("ops", ["native", "python"])
def test_a_listed_flip_is_a_flipped_bit_of_the_weight_and_goes_with_its_list(ops: Any) -> None:
    w = values(4, 6)
    x = values(3, 4)
    opened = session(rewrite(model("y = MatMul(x, w)", w=w), FLIPS), ops=ops)
    flipped = w.copy()
    flipped.view(np.uint32)[2, 5] ^= np.uint32(1 << 24)
    flipped.view(np.uint32)[0, 1] ^= np.uint32(1 << 22)
    faults = np.array([[0, (2 * 6 + 5) * 256 + 24], [0, 256 + 22]])
    clean = opened.run(None, {"x": x})[0]
    np.testing.assert_allclose(clean, x @ w, rtol=1e-5)
    for listed, expected in ((faults, flipped), (faults[:0], w), (faults, flipped)):
        found = opened.run(None, {"x": x, "emu.faults": listed})[0]
        np.testing.assert_allclose(found, x @ expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(opened.run(None, {"x": x})[0], clean)


def test_an_injection_is_what_rewriting_for_its_list_gives() -> None:
    """One session and its list, against a model that has the list by default."""
    device = {"faults": {"storage": "int", "bits": 8, "ber": 0.0}, "program": {"model": "lognormal_w", "sigma": 0.1}}
    random = rewrite(transformer(), device, set={"faults.ber": 0.01})
    faults = emu.draw_faults(random, seed=3)
    listed = rewrite(transformer(), device, faults=faults)
    rows = EmulatedModel.open(listed).value("emu.faults")
    feeds = {**X, "emu.seed": np.int64(3)}
    one = session(rewrite(transformer(), device)).run(None, {**feeds, "emu.faults": rows})[0]
    np.testing.assert_array_equal(one, session(listed).run(None, feeds)[0])
    np.testing.assert_array_equal(one, session(random).run(None, feeds)[0])


def test_an_injection_follows_from_its_seed_and_number_alone() -> None:
    chip = bench(FLIPS)
    short, long = inject(chip, 3), inject(chip, 5)
    assert [each.faults for each in long.injections[:3]] == [each.faults for each in short.injections]
    assert short.injections[0].faults != inject(chip, 1, first_seed=1).injections[0].faults
    assert {len(set(each.faults)) for each in inject(chip, 4, size=7).injections} == {7}
    (first,) = inject(chip, 1).injections
    ((array, number),) = first.faults
    assert (array, number // 256, f"bit {number % 256}") == (0, first.row * 8 + first.column, first.what)
    assert chip.run(emu.Trial(faults=first.faults)) == first.score


def test_random_faults_are_off_in_a_campaign_and_other_disturbances_are_not() -> None:
    noisy = {"faults": {"storage": "float32", "ber": 0.3}, "program": {"model": "lognormal_w", "sigma": 0.1}}
    campaign = inject(bench(noisy), 2, chip=5)
    assert campaign.clean == bench({"program": noisy["program"]}).run(emu.Trial(seed=5))


@pytest.mark.parametrize(
    ("device", "pattern", "count"),
    [
        *((FLIPS, name, count) for name, count in (("bit", 1), ("burst", 3), ("word", 32), ("row", 8), ("column", 6))),
        *((CELLS, name, count) for name, count in (("cell", 1), ("dead_row", 8), ("dead_column", 3))),
    ],
)
def test_a_pattern_is_so_many_faults(device: Any, pattern: Any, count: int) -> None:
    for each in inject(bench(device), 4, pattern=pattern, burst=3).injections:
        assert len(set(each.faults)) == count, each


def test_a_dead_row_of_pairs_holds_nothing() -> None:
    w = values(6, 8)
    emulated = rewrite(
        model("y = MatMul(x, w)", inputs="float[batch, 6] x", outputs="float[batch, 8] y", w=w),
        CELLS,
        set={"faults.stuck_low": 0, "faults.stuck_high": 0},
    )
    (each,) = inject(bench(CELLS), 1, pattern="dead_row").injections
    y = session(emulated).run(None, {"x": np.eye(6, dtype=np.float32), "emu.faults": np.array(each.faults)})[0]
    lost = w.copy()
    start = each.column // 4 * 4
    lost[each.row, start : start + 4] = 0
    np.testing.assert_allclose(y, lost, atol=1e-5)


def test_trials_with_other_lists_are_other_trials_and_no_store_takes_them(tmp_path: Path) -> None:
    chip = bench(FLIPS)
    trials = [emu.Trial(faults=[]), emu.Trial(faults=[(0, 22)]), emu.Trial(faults=[])]
    snr = run_trials(chip, trials)["output_snr_db"].tolist()
    assert snr[0] == snr[2] == float("inf") and snr[1] < 100
    again = emu.Trial(**json.loads(json.dumps(trials[1].as_dict())))
    assert chip.run(again) == chip.run(trials[1])
    with Store(tmp_path / "s.db") as store, pytest.raises(InputError, match="A store holds no lists of faults"):
        run_trials(chip, trials, store=store)


def test_what_cannot_be_struck_is_refused() -> None:
    with pytest.raises(InputError, match="no array with stuck cells for the pattern 'cell'"):
        inject(bench(FLIPS), 1, pattern="cell")
    with pytest.raises(InputError, match="no array with bit flips for the pattern 'bit'"):
        inject(bench("rram", only="*"), 1)
    with pytest.raises(InputError, match="There are 1536 places for the pattern 'bit', fewer than 1537"):
        inject(bench(FLIPS), 1, size=6 * 8 * 32 + 1)
    with pytest.raises(InputError, match="a fault of array 1, and no array of that number has faults"):
        bench(FLIPS).run(emu.Trial(faults=[(1, 0)]))
    with pytest.raises(Exception, match="names an element, bit or device that the array does not have"):
        bench(FLIPS).run(emu.Trial(faults=[(0, 32)]))


def test_a_campaign_is_told_by_component_and_line_by_line() -> None:
    chip = emu.Bench(model_path("digits_vit"), data_path("digits_test"), device="float32_flips", samples=20)
    campaign = inject(chip, 12, only="component=ffn_*", pattern="word")
    rows = campaign.by_component()
    assert set(rows) <= {"ffn_up", "ffn_down", "all"} and rows["all"]["injections"] == 12
    assert rows["all"]["worst_loss"] == max(campaign.loss(each) for each in campaign.injections)
    lines = campaign.as_csv().splitlines()
    assert len(lines) == 13 and lines[0].startswith(
        "layer,component,node,array,matrix,row,column,what,faults,lost,accuracy"
    )


def test_the_command_says_what_is_struck_and_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    onnx.save(
        model("y = MatMul(x, w)", inputs="float[batch, 6] x", outputs="float[batch, 8] y", w=values(6, 8)),
        tmp_path / "m.onnx",
    )
    np.savez(tmp_path / "d.npz", x=values(3, 6, seed=3), labels=np.array([0, 1, 2]))
    command = ["inject", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--count", "3"]
    command += ["--device", "float32_flips", "--task", "arrays"]
    lost = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "nowhere" / "x.csv")])
    assert isinstance(lost.exception, InputError) or lost.exit_code == 2
    assert "accuracy" not in lost.output and not (tmp_path / "nowhere").exists()
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "x.csv")])
    assert "(float32_flips, 1 sites)" in done.output and len((tmp_path / "x.csv").read_text().splitlines()) == 4
    away = CliRunner().invoke(app, [*command, "--exclude", "node=*"])
    assert away.exit_code != 0
