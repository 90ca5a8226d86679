"""Configurations of aihwkit become devices, or every field that no device says is named."""

import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from emu.device import import_aihwkit, load_profile, toml_of
from emu.errors import InputError

# What the presets of aihwkit's tile were written by hand from.
TILE: dict[str, Any] = {
    "forward": {
        "inp_res": 1 / 256,
        "out_res": 256,
        "out_bound": 10.0,
        "out_noise": 0.04,
        "w_noise": 0.0175,
        "w_noise_type": "PCM_READ",
        "bound_management": "BoundManagementType.ITERATIVE",
        "noise_management": "AbsMax",
    },
    "mapping": {
        "max_input_size": 256,
        "max_output_size": 256,
        "weight_scaling_omega": 1.0,
        "weight_scaling_columnwise": True,
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    """TILE with other fields, `forward__inp_res=64`."""
    content: dict[str, Any] = json.loads(json.dumps(TILE))
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = content
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return content


def refusal(content: Any) -> list[str]:
    with pytest.raises(InputError) as refused:
        import_aihwkit(content)
    return str(refused.value).splitlines()


def test_the_tile_of_aihwkit_is_the_preset_that_was_written_by_hand() -> None:
    ours, by_hand = import_aihwkit(TILE, {"drift.time_s": "1h"}), load_profile("pcm_aihwkit")
    assert ours.structure() == by_hand.structure()
    assert ours.entries() == by_hand.entries()


def test_the_modifier_acts_only_where_it_is_enabled_at_inference() -> None:
    modifier = {"type": "ADD_NORMAL", "std_dev": 0.05, "rel_to_actual_wmax": True}
    assert "program.modifier" not in import_aihwkit(changed(modifier=modifier)).entries()
    ours = import_aihwkit(changed(modifier=modifier | {"enable_during_test": True}), {"drift.time_s": "1h"})
    assert ours.entries() == load_profile("pcm_aihwkit_literal").entries()


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("PCMLikeNoiseModel", "pcm"),
        ({"class": "HermesNoiseModel", "num_devices": 2, "g_max": 20.7, "t_0": 300.0}, "pcm_hermes"),
        ({"class": "HermesNoiseModel", "num_devices": 1, "g_max": 10.35, "t_0": 200.0}, "pcm_hermes_single"),
        ({"class": "StateIndependentNoiseModel", "prog_coeff": [0.2, 0, 0]}, "pcm_state_independent"),
    ],
)
def test_noise_models_of_phase_change_memory_are_the_presets(model: Any, preset: str) -> None:
    content = changed(forward__is_perfect=True, noise_model=model)
    ours = import_aihwkit(content, {"drift.time_s": "1h", "drift.pairs": "physical"}).entries()
    theirs = load_profile(preset).entries()
    assert {name: value for name, value in ours.items() if value or name in theirs} == theirs


def test_numbers_of_a_noise_model_are_taken() -> None:
    model = {
        "class": "PCMLikeNoiseModel", "prog_coeff": [0.1, 0.2, 0.3, 0.4], "prog_coeff_g_max_reference": 30.0,
        "g_converter": {"class": "SinglePairConductanceConverter", "g_max": 40.0, "g_min": 1.0, "scale_ratio": None},
        "g_max": 40.0, "t_0": 10.0, "t_read": 1e-6, "prog_noise_scale": 0.5, "drift_scale": 2.0, "read_noise_scale": 0,
    }  # fmt: skip
    entries = import_aihwkit(changed(noise_model=model, drift_compensation=None)).entries()
    expected = {
        "mapping.g_min_us": 1, "mapping.g_max_us": 40, "program.c0": 0.1, "program.c3": 0.4, "program.c4": 0,
        "program.reference_us": 30, "program.scale": 0.5, "drift.t0_s": 10, "drift.t_read_s": 1e-6, "drift.scale": 2,
        "drift.read_scale": 0, "drift.time_s": 0,
    }  # fmt: skip
    assert {name: entries[name] for name in expected} == expected


def test_the_times_of_a_fit_are_chosen_by_the_device() -> None:
    fits = {"1.0": [0.348, 16.03], "86400.0": [0.701, 22.086]}
    model = {"class": "ReRamWan2022NoiseModel", "coeff_dic": fits, "g_max": 25.0, "coeff_g_max_reference": 25.0}
    content = changed(noise_model=model, drift_compensation=None)
    assert import_aihwkit(content).entries()["program.c1"] == 16.03
    assert import_aihwkit(content, {"program.time_s": "1d"}).entries()["program.c1"] == 22.086
    assert "compensation" in refusal(changed(noise_model=model))[1]


def test_a_measured_drift_is_a_table() -> None:
    measured = {"g_lst": [0, 10, 25], "nu_mean_lst": [0.1, 0.06, 0.05], "nu_std_lst": [0.04, 0.02, 0.01]}
    model = {"class": "CustomDriftPCMLikeNoiseModel", "custom_drift_model": measured}
    profile = import_aihwkit(changed(noise_model=model, drift_compensation={"class": "PerColumnDriftCompensation"}))
    assert profile.structure()["drift"] == "power_law_table"
    assert profile.structure()["compensation"] == "column"
    assert profile.entries()["drift.mean_nu.1"] == 0.06


def test_rounding_at_random_is_that_of_the_converters() -> None:
    structure = import_aihwkit(changed(forward__inp_sto_round=True, forward__out_sto_round=True)).structure()
    assert (structure["dac_rounding"], structure["adc_rounding"]) == ("stochastic", "stochastic")
    unquantized = changed(forward__inp_sto_round=True, forward__inp_res=-1)
    assert import_aihwkit(unquantized).structure()["dac_rounding"] == "nearest"  # nothing is rounded


def test_outputs_and_inputs_that_are_not_linear_are_taken() -> None:
    fields = {"out_noise_std": 0.3, "out_scale": 2.0, "out_nonlinearity": 0.1, "out_nonlinearity_std": 0.2}
    fields |= {"slope_calibration": 0.5, "inp_asymmetry": 0.05, "out_asymmetry": 0.1}
    content = changed(mapping__weight_scaling_omega=0.5, **{f"forward__{name}": fields[name] for name in fields})
    entries = import_aihwkit(content).entries()
    expected = {
        "read.output_noise_spread": 0.3, "adc.scale": 2, "adc.nonlinearity": 0.1, "adc.nonlinearity_sigma": 0.2,
        "adc.slope_calibration": 0.5, "dac.asymmetry": 0.05, "adc.asymmetry": 0.1,
    }  # fmt: skip
    assert {name: entries[name] for name in expected} == expected
    unbounded = {"forward__out_bound": 0.0, "forward__out_res": -1, "forward__bound_management": "NONE"}
    (_, line) = refusal(changed(forward__out_scale=2.0, **unbounded))
    assert "forward.out_scale = 2.0: emu does not model this without an ADC" in line


def test_ranges_by_the_largest_value_and_by_the_sum() -> None:
    largest = import_aihwkit(changed(forward__noise_management="MAX", forward__nm_thres=3.0))
    assert (largest.structure()["dac"], largest.entries()["dac.limit"]) == ("max", 3)
    content = changed(forward__noise_management="ABS_MAX_NP_SUM", forward__nm_assumed_wmax=0.3)
    content["mapping"]["weight_scaling_omega"] = 0.5
    summed = import_aihwkit(content)
    assert (summed.structure()["dac"], summed.structure()["bound_management"]) == ("absmax_sum", "iterative")
    assert (summed.entries()["dac.assumed_weight"], summed.entries()["dac.sum_resolution"]) == (0.6, 0.25)
    worst = import_aihwkit(changed(forward__bound_management="ITERATIVE_WORST_CASE", forward__nm_assumed_wmax=0.3))
    assert (worst.structure()["bound_management"], worst.entries()["adc.assumed_weight"]) == ("worst_case", 0.3)
    content["forward"]["bound_management"] = "ITERATIVE_WORST_CASE"  # what the range begins with already
    assert import_aihwkit(content).structure()["bound_management"] == "iterative"
    none = changed(forward__bound_management="ITERATIVE_WORST_CASE", forward__noise_management="NONE")
    assert "forward.bound_management" in refusal(none)[1]


def test_two_passes_that_are_added_in_analog_are_one() -> None:
    """Both are linear in the inputs, and the noise of two passes adds up to that of one."""
    two, one = import_aihwkit(changed(forward__mv_type="POS_NEG_SEPARATE")), import_aihwkit(TILE)
    assert (two.structure(), two.entries()) == (one.structure(), one.entries())
    (_, line) = refusal(changed(forward__mv_type="POS_NEG_SEPARATE", forward__ir_drop=1.0))
    assert line.startswith("  field forward.mv_type = POS_NEG_SEPARATE: ")


def test_units_follow_the_scale_of_the_weights() -> None:
    half = changed(mapping__weight_scaling_omega=0.5, forward__ir_drop=1.0, forward__ir_drop_g_ratio=1e5)
    entries = import_aihwkit(half).entries()
    assert (entries["adc.bound"], entries["read.output_noise"]) == (20, 0.08)
    assert entries["read.weight_noise"] == pytest.approx(0.0175 * 2**0.5)
    assert entries["read.ir_drop_ratio"] == 2e5
    lines = refusal(changed(mapping__weight_scaling_omega=0.0))
    assert len(lines) == 2 and "weight_scaling_omega = 0.0" in lines[1] and "adc.bound" in lines[1]


def test_input_ranges() -> None:
    def dac(**fields: Any) -> dict[str, Any]:
        content = changed(forward__noise_management="NONE", forward__bound_management="NONE", noise_model=None)
        for name, value in fields.items():
            section = content["forward"] if name in ("noise_management", "nm_thres", "inp_bound") else None
            content.setdefault("pre_post", {}).setdefault("input_range", {})
            (content["pre_post"]["input_range"] if section is None else section)[name] = value
        return import_aihwkit(content).dac.model_dump(exclude_unset=True)

    uniform = {"model": "uniform", "steps": 256}
    assert dac() == uniform | {"range": "fixed", "max": 1, "bound": 1}
    assert dac(inp_bound=0.5) == uniform | {"range": "fixed", "max": 1, "bound": 0.5}
    assert dac(noise_management="CONSTANT", nm_thres=4.0) == uniform | {"range": "fixed", "max": 4, "bound": 1}
    assert dac(noise_management="ABS_MAX", nm_thres=4.0) == uniform | {"range": "absmax", "limit": 4, "bound": 1}
    given = {"enable": True, "init_from_data": 0, "init_value": 2.0}
    assert dac(**given) == uniform | {"range": "fixed", "max": 2, "bound": 1}
    assert dac(enable=True) == uniform | {"range": "calibrated", "range_per": "tile", "bound": 1}
    limited = dac(noise_management="ABS_MAX", nm_thres=0.5, **given)
    assert limited == uniform | {"range": "absmax", "limit": 1, "bound": 1}
    constant = {"noise_management": "CONSTANT"}
    assert dac(**constant, nm_thres=1.0, enable=True) == uniform | {
        "range": "calibrated",
        "range_per": "tile",
        "bound": 1,
    }
    assert dac(**constant, nm_thres=0.5, **given) == uniform | {"range": "fixed", "max": 1, "bound": 1}
    for wrong in ({**constant, "nm_thres": 2.0, **given}, {"noise_management": "ABS_MAX", "enable": True}):
        with pytest.raises(InputError, match="noise_management"):
            dac(**wrong)
    with pytest.raises(InputError, match="inp_bound"):
        dac(inp_bound=2.0, **given)


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("forward.v_offset_std", 0.1),
        ("forward.r_series", 0.1),
        ("forward.w_read_asymmetry_dtod", 0.1),
        ("forward.mv_type", "POS_NEG_SEPARATE_DIGITAL_SUM"),
        ("forward.bound_management", "SHIFT"),
        ("forward.noise_management", "AVERAGE_ABS_MAX"),
        ("forward.bm_test_negative_bound", False),
        ("forward.inp_res", 0.3),
        ("forward.inp_bound", -1.0),
        ("forward.out_bound", 0.0),
        ("forward.adc_quantization", True),
        ("forward.apply_xdep_pcm_read_noise", True),
        ("mapping.digital_bias", False),
    ],
)
def test_a_field_that_no_device_says_is_named(field_name: str, value: Any) -> None:
    (_, line) = refusal(changed(**{field_name.replace(".", "__"): value}))
    shown = value if isinstance(value, str) else json.dumps(value)
    assert line.startswith(f"  field {field_name} = {shown}: emu does not model ") and line.endswith(".")
    if field_name.startswith("forward"):
        import_aihwkit(changed(**{field_name.replace(".", "__"): value}, forward__is_perfect=True))


def test_every_problem_is_said_at_once() -> None:
    content = changed(
        forward__r_series=0.1, forward__inp_ress=3, forward__out_noise="much", forward__ir_drop_segments=8,
        noise_model={"class": "ReRamCMONoiseModel"}, modifier={"type": "DoReFa", "enable_during_test": True},
        device={"construction_seed": 0, "w_max": 0.6}, mapping__digital_bias=1, colour="red",
    )  # fmt: skip
    first, *lines = refusal(content)
    assert first == "The configuration is not a device of emu:"
    for name in (
        *("forward.r_series", "forward.inp_ress", "forward.out_noise", "forward.ir_drop", "noise_model.class"),
        *("modifier.type", "device", "colour"),
    ):
        assert sum(line.startswith(f"  field {name}{end}") for line in lines for end in (" =", ":")) == 1, name
    assert len(lines) == 8


@pytest.mark.parametrize(
    "model",
    [
        {"class": "PCMLikeNoiseModel", "g_converter": {"class": "DualPairConductanceConverter"}},
        {"class": "PCMLikeNoiseModel", "g_converter": {"class": "SinglePairConductanceConverter", "g_mx": 3}},
        {"class": "PCMLikeNoiseModel", "prog_coeff": [1, 2, 3, 4, 5, 6]},
        {"class": "PCMLikeNoiseModel", "t_zero": 3},
        {"class": "HermesNoiseModel", "num_devices": 3},
        {"class": "MineNoiseModel"},
        ["PCMLikeNoiseModel"],
    ],
)
def test_noise_models_that_no_device_says_are_named(model: Any) -> None:
    (_, line) = refusal(changed(noise_model=model))
    assert line.startswith("  field noise_model.")


class Management(Enum):
    ABS_MAX = "AbsMax"
    NONE = "None"


@dataclass
class Forward:
    inp_res: float = 1 / 254
    noise_management: Management = Management.ABS_MAX
    out_bound: float = 0.0
    out_res: float = -1
    out_noise: float = 0.0


class PCMLikeNoiseModel:
    def __init__(self) -> None:
        self.g_max = 25.0


@dataclass
class Configuration:
    forward: Forward = field(default_factory=Forward)
    noise_model: PCMLikeNoiseModel = field(default_factory=PCMLikeNoiseModel)
    tile_class: type = Forward


def test_a_configuration_and_the_json_of_the_page_are_the_same(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text("utf-8")
    (snippet,) = (part for part in page.split("```python\n")[1:] if "json.dump" in part)
    (tmp_path / "run").mkdir()
    file = tmp_path / "rpu_config.json"
    program = snippet.split("```")[0].replace('"rpu_config.json"', repr(str(file)))
    exec(program, {"rpu_config": Configuration()})
    from_file, from_object = import_aihwkit(file), import_aihwkit(Configuration())
    assert from_file.name == "rpu_config"
    assert from_file.entries() == from_object.entries() and from_file.structure() == from_object.structure()
    assert from_file.entries()["dac.steps"] == 254


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not valid JSON"), ("[3]", "expected a JSON object"), (None, "cannot be read"), ("[" * 10**5, "not valid")],
)
def test_files_that_hold_no_configuration(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rpu_config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=said):
        import_aihwkit(file)


@pytest.mark.parametrize("preset", ["pcm_aihwkit", "rram_wan", "isaac", "pcm_hermes"])
def test_a_profile_survives_being_written(preset: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(toml_of(load_profile(preset)), "utf-8")
    assert load_profile(tmp_path / "mine.toml").model_dump() == load_profile(preset).model_dump()
