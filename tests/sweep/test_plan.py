"""A plan is the product of its axes, reads what it writes, and runs until the interval is narrow."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from emu import Bench, InputError, Trial
from emu.evaluation.statistics import chip_spread
from emu.sweep import Plan, Store, run_plan

Make = Callable[..., Plan]


def trials(plan: Plan, bench: Bench) -> list[Trial]:
    return [trial for point in plan.points(bench) for chip in point for trial in chip]


def test_a_plan_is_the_product_of_its_axes_times_seeds(plan: Make, bench: Bench) -> None:
    made = plan(vary={"program.sigma": "0.1,0.2", "layer": "0-1", "read_seed": "0-2", "strength": "1"}, seeds=2)
    expected = [
        Trial(seed=seed, read_seed=read, only=f"layer={layer}", set={"program.sigma": sigma})
        for sigma in (0.1, 0.2)
        for layer in (0, 1)
        for seed in (0, 1)
        for read in (0, 1, 2)
    ]
    assert trials(made, bench) == expected


def test_chips_may_be_chosen_by_their_seeds(plan: Make, bench: Bench) -> None:
    assert [trial.seed for trial in trials(plan(vary={"seed": "5,9"}), bench)] == [5, 9]


def test_layer_and_component_and_selection_must_all_hold(plan: Make, bench: Bench) -> None:
    made = plan(vary={"layer": "1", "component": "ffn_up", "only": "node=*"}, seeds=1)
    assert [trial.only for trial in trials(made, bench)] == ["layer=1 component=ffn_up node=*"]


def test_points_that_disturb_nothing_are_left_out(plan: Make, bench: Bench) -> None:
    points = plan(vary={"layer": "all", "component": "query,classifier"}).points(bench)
    assert len(points) == 4 and points.left_out == 4  # the classifier is in no layer
    points = plan(vary={"component": "query,ffn_up", "head": "all"}).points(bench)
    assert len(points) == 4 and points.left_out == 4  # the feed-forward block has no heads
    with pytest.raises(InputError, match="No point"):
        plan(vary={"layer": "0", "component": "classifier"}).points(bench)


def test_a_plan_reads_what_it_writes(plan: Make, tmp_path: Path) -> None:
    made = plan(
        set={"program.sigma": 0.2},
        map=("layer=0:ideal",),
        vary={"layer": "all", "only": ['node="x" \\', "layer=0"], "rram:program.sigma": [0.1, 0.2]},
        until="ci=0.5%",
        most=20,
    )
    made.write(tmp_path / "plan.toml")
    assert Plan.read(tmp_path / "plan.toml") == made
    assert [path.name for path in tmp_path.iterdir()] == ["plan.toml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('model = "m"', "does not name the data"),
        ('model = "m"\ndata = "d"\nsede = 3', "no setting 'sede' .did you mean 'seed"),
        ('model = "m"\ndata = "d"\nseeds = 0', "seeds is 0"),
        ('model = "m"\ndata = "d"\nseeds = 2\nuntil = "ci=1%"', "give one of them"),
        ('model = "m"\ndata = "d"\nseeds = 2\n[vary]\nseed = "1"', "give one of them"),
        ('model = "m"\ndata = "d"\nuntil = "1"', "write ci=0.5%"),
        ('model = "m"\ndata = "d"\nmost = 9', "limits 'until'"),
        ("model =", "not valid TOML"),
    ],
)
def test_a_wrong_plan_file_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "plan.toml").write_text(content)
    with pytest.raises(InputError, match=said):
        Plan.read(tmp_path / "plan.toml")


def test_a_missing_plan_file_or_folder_is_refused(plan: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Plan.read(tmp_path / "none.toml")
    with pytest.raises(InputError, match="There is no folder"):
        plan().write(tmp_path / "none" / "plan.toml")


def test_a_plain_model_needs_a_device(plan: Make) -> None:
    with pytest.raises(InputError, match="give a device"):
        run_plan(plan(device=None, only=None))
    with pytest.raises(InputError, match="no option 'procesor'"):
        run_plan(plan(data_options={"procesor": "x"}))


def test_each_point_stops_at_the_first_chip_that_makes_its_interval_narrow(plan: Make) -> None:
    table = run_plan(plan(vary={"program.sigma": "0.01,0.4"}, until="ci=4%", most=12))
    counts = []
    for _, point in table.groupby("program.sigma"):
        accuracies = point["accuracy"].tolist()
        counts.append(len(accuracies))
        assert point["seed"].tolist() == list(range(len(accuracies)))
        half = [half_width(accuracies[:n]) for n in range(3, len(accuracies) + 1)]
        assert all(width > 0.04 for width in half[:-1])
        assert half[-1] <= 0.04 or len(accuracies) == 12
    assert counts[0] == 3 < counts[1]


def test_repetitions_on_a_chip_count_as_one_for_the_interval(plan: Make) -> None:
    made = plan(device="rram_adc", vary={"read_seed": "0-1"}, until="ci=0.001%", most=3, samples=20)
    assert len(run_plan(made)) == 6


def test_a_narrower_interval_continues_with_more_chips(plan: Make, tmp_path: Path) -> None:
    lines: list[str] = []
    vary = {"program.sigma": "0.5"}
    with Store(tmp_path / "s.db") as store:
        few = run_plan(plan(vary=vary, until="ci=50%"), store=store)
        more = run_plan(plan(vary=vary, until="ci=1%", most=6), store=store, echo=lines.append)
    assert lines[-1] == "The store holds 3 of the trials already."
    pd.testing.assert_frame_equal(more[:3], few)
    assert len(more) == 6


def half_width(values: list[float]) -> float:
    interval = chip_spread(values).ci95
    if interval is None:
        assert len(set(values)) == 1  # equal chips have none, and more of them would be equal, too
        return 0.0
    return (interval[1] - interval[0]) / 2
