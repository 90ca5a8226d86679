"""Profiles come from presets, files and data; whatever is wrong is said in one sentence that names the setting."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.device import Profile, load_profile, override_entries, parse_overrides, preset_names
from emu.errors import InputError


def refusal(device: Any, overrides: Any = None) -> str:
    with pytest.raises(InputError) as caught:
        load_profile(device, overrides)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_the_shipped_presets_are_listed() -> None:
    assert {"ideal", "rram", "rram_adc", "pcm", "pcm_aihwkit", "int8_flips", "clipformer", "isaac"} <= set(
        preset_names()
    )
    assert preset_names() == sorted(preset_names())


def test_a_profile_loads_from_a_file_and_takes_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "my_device.toml"
    path.write_text('[program]\nmodel = "gauss_prop"\nsigma = 1\n')
    assert load_profile(path).name == "my_device"
    assert load_profile(str(path)).entries() == {"program.sigma": 1.0, "program.sigma_cycle": 0.0}


def test_a_profile_loads_from_itself_and_from_its_own_data() -> None:
    profile = load_profile("rram_adc")
    assert load_profile(profile) == profile
    assert load_profile(profile.model_dump(mode="json")) == profile


def test_loading_leaves_the_callers_data_alone() -> None:
    data: dict[str, Any] = {"program": {"model": "lognormal_w", "sigma": 0.1}}
    load_profile(data, {"program.sigma": 0.2, "dac.model": "uniform", "dac.range": "absmax", "dac.bits": 6})
    assert data == {"program": {"model": "lognormal_w", "sigma": 0.1}}


def test_overrides_are_text_or_values() -> None:
    expected = load_profile("rram", {"program.sigma": 0.15})
    assert expected.entries()["program.sigma"] == 0.15
    assert load_profile("rram", ["program.sigma=0.15"]) == expected
    assert load_profile("rram", "program.sigma = 0.15") == expected
    assert load_profile("rram", {"program.sigma": np.float64(0.15)}) == expected
    assert parse_overrides(["a.b=.5", "a.c=1e-3", "a.d=word", "a.e='word'", "a.f=3"]) == {
        "a.b": 0.5,
        "a.c": 0.001,
        "a.d": "word",
        "a.e": "word",
        "a.f": 3,
    }


def test_choosing_another_model_drops_the_settings_of_the_old_one() -> None:
    assert load_profile("rram", ["program.model=none"]).entries() == {}
    coarse = load_profile("rram_adc", ["adc.range=absmax"])
    assert [name for name in coarse.entries() if name.startswith("adc")] == ["adc.bits", "adc.steps"]
    conductances = ["mapping.encoding=differential", "mapping.g_min_us=1", "mapping.g_max_us=20"]
    pair = load_profile("rram", ["program.model=lognormal_g", *conductances])
    assert load_profile(pair, ["program.model=lognormal_w", "mapping.encoding=weight"]) == load_profile("rram")
    steady = load_profile("pcm", ["drift.model=none"])
    assert not any(name.startswith("drift") for name in steady.entries())
    assert load_profile("clipformer", ["write.model=none"]).entries() == {"dac.bits": 8, "dac.steps": 0, "dac.bound": 1}


def test_an_optional_number_is_switched_off() -> None:
    quiet = load_profile("rram_adc", ["read.output_noise=off"])
    assert "read.output_noise" not in quiet.entries()
    assert "program.modifier" not in load_profile("pcm_aihwkit_literal", {"program.modifier": "off"}).entries()
    assert "expected 0 to 10" in refusal("rram", ["program.sigma=off"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30min", 1800),
        ("1h", 3600),
        ("1d", 86400),
        ("30 d", 2592000),
        ("1y", 31536000),
        ("1.5h", 5400),
        ("7", 7),
    ],
)
def test_times_may_be_text(text: str, seconds: float) -> None:
    assert load_profile("pcm", {"drift.time_s": text}).entries()["drift.time_s"] == seconds
    assert load_profile("pcm", [f"drift.time_s={text}"]).entries()["drift.time_s"] == seconds
    entries = load_profile("pcm").entries()
    assert override_entries(entries, [f"drift.time_s={text}"])["drift.time_s"] == seconds


@pytest.mark.parametrize("text", ["1 fortnight", "h", "-1h", "1m", ""])
def test_text_that_is_no_time_is_refused(text: str) -> None:
    assert "30min" in refusal("pcm", {"drift.time_s": text})
    with pytest.raises(InputError, match="30min"):
        override_entries(load_profile("pcm").entries(), {"drift.time_s": text})


def test_bits_and_steps_replace_each_other() -> None:
    entries = load_profile("rram_adc", ["adc.steps=256"]).entries()
    assert (entries["adc.bits"], entries["adc.steps"]) == (0, 256)
    assert "give one" in refusal("rram_adc", ["adc.steps=256", "adc.bits=8"])
    assert "resolution" in refusal({"dac": {"model": "uniform", "range": "absmax"}})


def test_an_unknown_preset_lists_the_presets_and_guesses() -> None:
    message = refusal("rrma")
    assert "did you mean 'rram'" in message and "ideal, int16_flips" in message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "no.toml" in refusal(tmp_path / "no.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[program\n")
    assert "not valid TOML" in refusal(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    assert "no text in UTF-8" in refusal(broken)
    assert str(tmp_path / "dir.toml") in refusal(_folder(tmp_path / "dir.toml"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("device", "overrides", "says"),
    [
        ("rram", ["program.sgma=1"], ["program.sgma", "'sigma'", "[program] has modifier, model"]),
        ({"program": {"model": "lognormal_w", "sgma": 1}}, None, ["program.sgma", "did you mean 'sigma'"]),
        ({"progam": {}}, None, ["no section 'progam'", "'program'"]),
        ("rram", ["progam.sigma=1"], ["progam.sigma", "did you mean 'program.sigma'"]),
        ("rram", ["program.sigma=11"], ["program.sigma is 11", "0 to 10"]),
        ("rram", ["program.sigma=nan"], ["program.sigma", "0 to 10"]),
        ("rram", ["program.sigma=true"], ["program.sigma", "0 to 10"]),
        ("rram", ["program.sigma=x"], ["program.sigma is 'x'", "0 to 10"]),
        ("rram", ["program"], ["'program'", "section.setting=value"]),
        ("rram", ["program.sigma=1", "program.sigma=2"], ["twice"]),
        ("rram", ["program.model=lognorml_w"], ["program.model is 'lognorml_w'", "did you mean 'lognormal_w'"]),
        ("rram", ["program.model=none", "program.sigma=0.1"], ["program.sigma has no effect", "program.model none"]),
        ("ideal", ["dac.bits=3"], ["dac.bits has no effect", "choose dac.model uniform"]),
        ("rram_adc", ["dac.max=3"], ["dac.max has no effect", "choose dac.range fixed"]),
        ("rram_adc", ["dac.range=fixed"], ["dac.max is missing"]),
        ("rram_adc", ["adc.bits=8.0"], ["adc.bits", "whole number"]),
        ("rram_adc", ["adc.bits=1"], ["adc.bits is 1", "2 to 16"]),
        ("rram_adc", ["mapping.tile_rows=-1"], ["mapping.tile_rows is -1"]),
        ("rram_adc", ["read.weight_noise_model=pcm_read"], ["read.weight_noise is missing"]),
        ("rram", ["adc.model=uniform"], ["adc.range is missing", "absmax, fixed, calibrated, rows, granular."]),
        ("rram", ["mapping.split=even"], ["mapping.split is 'even'", "one of fill, balanced"]),
        ("rram", ["mapping.g_max_us=3"], ["mapping.g_max_us has no effect", "lognormal_g"]),
        (
            "rram",
            ["program.model=lognormal_g"],
            ["program.model is 'lognormal_g'", "unless mapping.encoding is 'differential'"],
        ),
        ("rram", ["mapping.encoding=differential"], ["mapping.g_min_us is missing"]),
        (
            "rram",
            ["write.model=lognormal_g", "write.sigma=0.1"],
            ["mapping.g_min_us is missing", "because write.model is 'lognormal_g'"],
        ),
        ("stuck_at", ["mapping.g_min_us=5", "mapping.g_max_us=5"], ["mapping.g_min_us is 5", "less than"]),
        (
            {"adc": {"model": "uniform", "range": "fixed", "bits": 8, "bound": 1.0, "max_bound_factor": 4.0}},
            None,
            ["adc.max_bound_factor has no effect", "choose adc.bound_management iterative"],
        ),
        ({"program": 3}, None, ["program is 3", "section"]),
        ({"name": "../x"}, None, ["name is '../x'"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(device: Any, overrides: Any, says: list[str]) -> None:
    message = refusal(device, overrides)
    assert [part for part in says if part not in message] == []


def test_a_file_with_a_setting_without_effect_is_refused_whatever_is_overridden() -> None:
    assert "no effect" in refusal({"mapping": {"g_min_us": 1.0}}, {"mapping.tile_rows": 4})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "range", "bits", "sigma", "flip", "target_us", "parameters", "csv", "x"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ),
    st.sampled_from(["mapping", "program", "drift", "faults", "write", "dac", "adc", "read", "name", "other"]),
)
def test_any_data_is_a_profile_or_one_sentence(content: Any, section: str) -> None:
    try:
        assert isinstance(load_profile({section: content}), Profile)
    except InputError as error:
        assert str(error).count("\n") == 0 or "\n" in repr(content)


class TestEntriesOfARewrittenModel:
    entries = load_profile("rram_adc").entries()

    def test_numbers_change_and_the_order_stays(self) -> None:
        changed = override_entries(self.entries, ["program.sigma=0.2", "adc.bound=12"])
        assert list(changed) == list(self.entries)
        assert changed == {**self.entries, "program.sigma": 0.2, "adc.bound": 12.0}

    def test_no_override_keeps_the_models_own_numbers(self) -> None:
        assert override_entries(self.entries, None) == self.entries

    def test_steps_replace_bits(self) -> None:
        changed = override_entries(self.entries, {"adc.steps": 256})
        assert (changed["adc.bits"], changed["adc.steps"]) == (0, 256)

    @pytest.mark.parametrize("setting", ["program.model=none", "mapping.tile_rows=64", "dac.max=3", "write.sigma=1"])
    def test_what_shapes_the_graph_needs_a_new_rewrite(self, setting: str) -> None:
        with pytest.raises(InputError, match="shapes the graph.*rewrite the original model"):
            override_entries(self.entries, [setting])

    @pytest.mark.parametrize(
        ("setting", "says"),
        [
            ("program.sigm=1", "did you mean 'program.sigma'"),
            ("program.sigma=-1", "program.sigma is -1, expected 0 to 10"),
            ("program.sigma=x", "program.sigma is 'x'"),
            ("adc.bits=7.5", "adc.bits is 7.5"),
        ],
    )
    def test_wrong_numbers_are_named(self, setting: str, says: str) -> None:
        with pytest.raises(InputError) as caught:
            override_entries(self.entries, [setting])
        assert says in str(caught.value)

    def test_numbers_that_contradict_each_other_are_refused(self) -> None:
        with pytest.raises(InputError, match="less than"):
            override_entries({"mapping.g_min_us": 1.0, "mapping.g_max_us": 5.0}, {"mapping.g_min_us": 5.0 - 1e-9})
        with pytest.raises(InputError, match="give one"):
            override_entries(self.entries, {"adc.bits": 8, "adc.steps": 254})


@pytest.mark.parametrize("preset", preset_names())
def test_a_change_of_a_number_is_judged_alike_before_and_after_rewriting(preset: str) -> None:
    profile = load_profile(preset)
    own, attributes = profile.entries(), profile.structure()
    for name in own:
        for value in (-1, 0, 0.5, 1, 2, 7.5, 8, 17, 1e6, 86400, math.nan, True, "x"):
            try:
                given = override_entries(own, {name: value}, attributes)[name]
            except InputError as error:
                assert refusal(preset, {name: value}).split(": ", 1)[1] == str(error)
            else:
                assert given == value == load_profile(preset, {name: value}).entries()[name]


def test_numbers_of_a_fit_are_set_by_name() -> None:
    assert load_profile("pcm", ["drift.nu.low=0.05"]).entries()["drift.nu.low"] == pytest.approx(0.05)
    assert load_profile("pcm", ["drift.nu={c0 = 0.1}"]).entries().keys() >= {"drift.nu.c0", "drift.nu_sigma.low"}
    assert "drift.nu.slop is 'slop', expected one of joint, slope" in refusal("pcm", ["drift.nu={slop = 1}"])
    assert "there is no setting 'drift.nu.slop'" in refusal("pcm", ["drift.nu.slop=1"])
    assert "drift.nu is 0.1, expected numbers by name" in refusal("pcm", ["drift.nu=0.1"])
    assert "drift.read.q is -1, expected at least 0" in refusal("pcm", ["drift.read.q=-1"])


def test_a_fit_goes_with_its_model() -> None:
    plain = load_profile("pcm", ["drift.model=power_law", "drift.nu=0.1"])
    assert plain.entries()["drift.nu"] == 0.1 and plain.entries()["drift.nu_sigma"] == 0
    fitted = load_profile(plain, ["drift.model=power_law_fit", "drift.t_read_s=1e-6", "drift.nu={c0 = 0.2}"])
    assert [name for name in fitted.entries() if name.startswith("drift.nu")] == ["drift.nu.c0"]
