"""Every way to write the values of an axis, and what is said of those that cannot be read."""

from typing import Any

import pytest

from emu import Bench, InputError, Trial
from emu.demo import data_path, model_path
from emu.sweep.axes import axis_name, axis_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.05,0.1", [0.05, 0.1]),
        ("0.1:0.5:0.1", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("0.5:0.1:-0.2", [0.5, 0.3, 0.1]),
        ("0:1:0.3", [0.0, 0.3, 0.6, 0.9]),
        ("1e-3:1:4log", [1e-3, 1e-2, 1e-1, 1.0]),
        ("0,1e-2:1:3log", [0.0, 1e-2, 1e-1, 1.0]),
        (["0.1", 0.2], [0.1, 0.2]),
        ("0.1,0.1,.2", [0.1, 0.2]),
    ],
)
def test_numbers_are_lists_steps_or_equal_ratios(bench: Bench, text: Any, values: list[float]) -> None:
    assert axis_values(bench, "program.sigma", text) == values


def test_times_may_have_units() -> None:
    bench = Bench(model_path("digits_vit"), data_path("digits_test"), device="pcm", samples=10)
    assert axis_values(bench, "drift.time_s", "1min,1h,1d") == [60, 3600, 86400]


def test_times_that_a_device_was_measured_at_are_an_axis() -> None:
    at_once = {"program.time_s": 1}
    bench = Bench(model_path("digits_vit"), data_path("digits_test"), device="rram_wan", set=at_once, samples=10)
    assert axis_name(bench, "program.time_s") == "program.time_s"
    assert axis_values(bench, "program.time_s", "1,2d") == [1, 172800]
    with pytest.raises(InputError, match="time_s is 5, expected one of 1, 86400, 172800"):
        axis_values(bench, "program.time_s", "5")
    ran = bench.run(Trial(seed=1, set={"program.time_s": "2d"}))
    later = Bench(
        model_path("digits_vit"), bench.dataset, device="rram_wan", set={"program.time_s": "2d"}, task=bench.task
    )
    assert ran == later.run(Trial(seed=1)) and ran != bench.run(Trial(seed=1))


@pytest.mark.parametrize(("text", "values"), [("0-3", [0, 1, 2, 3]), ("4,0", [4, 0]), ("0:9:4", [0, 4, 8]), (7, [7])])
def test_seeds_are_whole_numbers(bench: Bench, text: Any, values: list[int]) -> None:
    assert axis_values(bench, "seed", text) == values


def test_all_layers_heads_and_components_are_those_of_the_model(bench: Bench) -> None:
    assert axis_values(bench, "layer", "all") == [0, 1, 2, 3]
    assert axis_values(bench, "head", "all") == [0, 1, 2, 3]
    components = axis_values(bench, "component", "all")
    assert components[0] == "patch_embedding" and components[-1] == "classifier" and len(components) == 10
    assert axis_values(bench, "component", "ffn_*,query") == ["ffn_up", "ffn_down", "query"]


def test_selections_are_separated_by_semicolons(bench: Bench) -> None:
    assert axis_values(bench, "only", "layer=0-1 ; layer=2  component=key,query") == [
        "layer=0-1",
        "layer=2 component=key,query",
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("program.sigma", "0.5:0.1:0.1", "is empty"),
        ("program.sigma", "0.1:0.5:0", "is empty"),
        ("program.sigma", "0:1:1e-9", "at most 100000"),
        ("program.sigma", "0:1:5log", "greater than 0"),
        ("program.sigma", "a lot", "start:stop:step"),
        ("program.sigma", "0.1,,0.2", "empty value"),
        ("program.sigma", "11", "0 to 10"),
        ("program.sigma", "nan", "expected 0 to 10"),
        ("program.sigma", [], "no values"),
        ("strength", "-1", "at least 0"),
        ("seed", "0.5", "whole numbers"),
        ("seed", "3-1", "write 1-3"),
        ("seed", "4294967296", "4294967295"),
        ("layer", "9", "the layers 0 to 3"),
        ("head", "4", "the heads 0 to 3"),
        ("component", "ffn", "did you mean 'ffn_up'"),
        ("only", "layer=9", "matches no site"),
    ],
)
def test_values_that_cannot_be_are_refused(bench: Bench, name: str, text: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        axis_values(bench, name, text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sigma", "did you mean 'program.sigma'"),
        ("layers", "did you mean 'layer'"),
        ("program.sigm", "did you mean 'program.sigma'"),
        ("adc.bits", "shapes the graph"),
    ],
)
def test_an_unknown_axis_is_refused_with_the_closest(bench: Bench, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        axis_name(bench, name, "1")


def test_a_number_that_one_of_two_devices_has_gets_its_name() -> None:
    model, data = model_path("digits_vit"), data_path("digits_test")
    bench = Bench(model, data, device="rram", only="*", map=["layer=0:pcm"], samples=10)
    assert axis_name(bench, "program.sigma") == "rram:program.sigma"
    assert axis_name(bench, "pcm:drift.time_s") == "pcm:drift.time_s"
