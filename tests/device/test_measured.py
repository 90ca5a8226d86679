"""Measured tables and functions of one's own become profiles; what is wrong names the file and the line."""

import os
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emu.device import Profile, functions, load_profile
from emu.errors import InputError

CSV = "target,mean,std\n1,1.1,0.2\n10,9.5,0.5\n5,5,0.3\n"
TIMES = "Time, Target, Mean, Std\n1h,1,1.1,0.2\n1h,10,9.5,0.5\n1,1,1,0.1\n1,10,10,0.4\n"
TOML = '[mapping]\nencoding = "differential"\ng_min_us = 1\ng_max_us = 10\n[program]\nmodel = "table"\n'


def profile_of(folder: Path, csv: str, more: str = "") -> Profile:
    (folder / "measured.csv").write_text(csv)
    (folder / "mine.toml").write_text(TOML + 'csv = "measured.csv"\n' + more)
    return load_profile(folder / "mine.toml")


def refusal(folder: Path, csv: str, more: str = "") -> str:
    with pytest.raises(InputError) as caught:
        profile_of(folder, csv, more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_table_beside_the_profile_is_read_into_it(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, CSV)
    (tmp_path / "measured.csv").unlink()
    again = Profile.model_validate(profile.model_dump(mode="json"))
    entries = again.entries()
    assert [entries[f"program.target_us.{i}"] for i in range(3)] == [1, 5, 10]
    assert [entries[f"program.mean_us.0.{i}"] for i in range(3)] == [1.1, 5, 9.5]
    assert [entries[f"program.std_us.0.{i}"] for i in range(3)] == [0.2, 0.3, 0.5]


def test_a_table_may_have_several_times(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, TIMES, 'time_s = "30min"\n')
    assert profile.structure()["table_times"] == 2
    entries = profile.entries()
    assert (entries["program.table_time_s.0"], entries["program.table_time_s.1"]) == (1, 3600)
    assert (entries["program.mean_us.0.1"], entries["program.mean_us.1.1"]) == (10, 9.5)


def test_another_table_may_be_set(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, CSV)
    other = tmp_path / "other.csv"
    other.write_text("target,mean,std\n2,2,0\n3,3,0\n")
    changed = load_profile(profile, {"program.csv": str(other)})
    assert changed.entries()["program.target_us.0"] == 2
    assert changed.structure()["table_points"] == 2


def test_single_numbers_of_a_table_may_be_set(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, CSV)
    assert load_profile(profile, ["program.std_us.0.1=0.9"]).entries()["program.std_us.0.1"] == 0.9
    with pytest.raises(InputError, match="not in the table"):
        load_profile(profile, ["program.std_us.0.7=0.9"])
    with pytest.raises(InputError, match=r"program.std_us.0.1 is -1, expected at least 0"):
        load_profile(profile, ["program.std_us.0.1=-1"])


@pytest.mark.parametrize(
    ("csv", "more", "says"),
    [
        ("", "", "no column 'target'"),
        ("target,mean\n1,2\n", "", "no column 'std'"),
        ("target,mean,std,std\n1,2,3,4\n", "", "a column twice"),
        (CSV + "x,1,1\n", "", "line 5: target is 'x'"),
        (CSV + "7,1\n", "", "line 5: std is ''"),
        (CSV + "5,1,1\n", "", "line 5: target 5 is measured twice"),
        (CSV + "7,1,nan\n", "", "line 5: std is 'nan'"),
        (TIMES + "1,5,5,0.1\n", "time_s = 1\n", "lacks target 5 at 3600 s"),
        (TIMES.replace("1h,10", "soon,10"), "time_s = 1\n", "line 3: time is 'soon'"),
        (TIMES, "", "time_s is missing"),
        (CSV, "time_s = 5\n", "time_s has no effect"),
        ("target,mean,std\n1,1,1\n", "", "at least 2 targets"),
        (CSV, "target_us = [1, 2]\n", "program.target_us is in the table that program.csv names"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, csv: str, more: str, says: str) -> None:
    assert says in refusal(tmp_path, csv, more)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML + 'csv = "none.csv"\n')
    with pytest.raises(InputError, match=r"none\.csv cannot be read"):
        load_profile(tmp_path / "mine.toml")
    with pytest.raises(InputError, match="program.csv has no effect"):
        load_profile({"program": {"model": "none", "csv": "x.csv"}})


def test_a_table_is_a_regular_file_of_limited_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "large.csv").write_bytes(b"")
    os.truncate(tmp_path / "large.csv", 20_000_000)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to("/dev/zero")
    for name, says in (
        ("/dev/zero", "is no regular file"),
        ("link.csv", "is no regular file"),
        ("pipe.csv", "is no regular file"),
        ("large.csv", "has 20 MB: give a file of at most 16 MB"),
        ("folder.csv", "is a folder"),
    ):
        (tmp_path / "mine.toml").write_text(TOML + f'csv = "{name}"\n')
        with pytest.raises(InputError, match=says):
            load_profile(tmp_path / "mine.toml")
        with pytest.raises(InputError, match=says):
            load_profile("rram", {"program.model": "table", "program.csv": str(tmp_path / name)})
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="Device profile .*endless.toml is no regular file"):
        load_profile(tmp_path / "endless.toml")


def test_plain_data_name_no_file(tmp_path: Path) -> None:
    plain = profile_of(tmp_path, CSV).model_dump(mode="json")
    assert load_profile(plain).entries()["program.target_us.0"] == 1
    plain["program"] = {"model": "table", "csv": str(tmp_path / "measured.csv")}
    with pytest.raises(InputError, match=r"program.csv names a file, which plain data may not"):
        load_profile(plain)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            {"target_us": [1, 1], "mean_us": [1, 1], "std_us": [1, 1]},
            "program.target_us.1 is 1, expected greater than the one before it",
        ),
        ({"target_us": [1, 2], "mean_us": [1], "std_us": [1, 1]}, "mean_us must have 1 row"),
        ({"target_us": [1, 2], "mean_us": [[1, 2], [1, 2]], "std_us": [1, 1]}, "mean_us must have 1 row"),
        ({"target_us": [1, "x"], "mean_us": [1, 1], "std_us": [1, 1]}, "program.target_us.1 is 'x'"),
        ({"target_us": 3, "mean_us": [1, 1], "std_us": [1, 1]}, "program.target_us is 3"),
        ({"mean_us": [1, 1], "std_us": [1, 1]}, "program.target_us is missing"),
    ],
)
def test_a_wrong_list_is_named(table: dict[str, Any], says: str) -> None:
    mapping = {"encoding": "differential", "g_min_us": 1.0, "g_max_us": 10.0}
    with pytest.raises(InputError) as caught:
        load_profile({"mapping": mapping, "program": {"model": "table", **table}})
    assert says in str(caught.value)


PROFILE = {"program": {"model": "function", "function": "my_test_device", "parameters": {"gain": 2.0}}}


class TestFunctions:
    def test_a_profile_loads_where_the_function_is_not_known(self) -> None:
        assert load_profile(PROFILE).entries() == {"program.parameter.gain": 2.0}
        assert not functions.find_device_function("my_test_device_that_nobody_has")

    def test_parameters_are_set_by_name(self) -> None:
        changed = load_profile(PROFILE, ["program.parameter.gain=3", "program.parameter.spread=0.1"])
        assert changed.entries() == {"program.parameter.gain": 3, "program.parameter.spread": 0.1}

    def test_a_registered_function_is_found(self) -> None:
        functions.register_device_function("registered_here", lambda target, normals, parameters: target)
        assert functions.find_device_function("registered_here")

    def test_an_installed_function_is_found_by_its_entry_point(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from emu.contract.functions import registered

        point = EntryPoint("installed_here", "numpy:negative", functions.GROUP)
        monkeypatch.setattr(functions, "entry_points", lambda group, name: [point] if name == point.name else [])
        load_profile({"program": {"model": "function", "function": "installed_here"}})
        assert registered("installed_here") is np.negative

    def test_an_entry_point_that_cannot_be_loaded_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        point = EntryPoint("broken", "no_such_module:f", functions.GROUP)
        monkeypatch.setattr(functions, "entry_points", lambda group, name: [point])
        with pytest.raises(InputError, match=r"'broken' \(no_such_module:f\) cannot be loaded"):
            functions.find_device_function("broken")

    def test_a_name_that_two_packages_offer_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        points = [EntryPoint("twice", value, functions.GROUP) for value in ("a:f", "b:f")]
        monkeypatch.setattr(functions, "entry_points", lambda group, name: points)
        with pytest.raises(InputError, match="offered twice, as a:f and b:f"):
            functions.find_device_function("twice")

    @pytest.mark.parametrize("name", ["", "1x", "a b", "a,b"])
    def test_a_name_that_no_function_can_have_is_refused(self, name: str) -> None:
        with pytest.raises(InputError, match="program.function"):
            load_profile({"program": {"model": "function", "function": name}})
        with pytest.raises(InputError, match="program.parameters"):
            load_profile({"program": {"model": "function", "function": "f", "parameters": {name: 1.0}}})


class TestExponents:
    def exponents(self, folder: Path, csv: str) -> Profile:
        (folder / "exponents.csv").write_text(csv)
        drift = '[drift]\nmodel = "power_law_table"\ncsv = "exponents.csv"\ntime_s = 9\nt0_s = 1\nt_read_s = 1e-6\n'
        (folder / "mine.toml").write_text(TOML.partition("[program]")[0] + drift)
        return load_profile(folder / "mine.toml")

    def test_a_table_of_exponents_is_read_into_the_profile(self, tmp_path: Path) -> None:
        profile = self.exponents(tmp_path, "target,mean,std\n9,0.02,0.01\n1,0.1,0.02\n")
        entries = profile.entries()
        assert [entries[f"drift.{name}.{k}"] for name in ("target_us", "mean_nu", "std_nu") for k in range(2)] == [
            1, 9, 0.1, 0.02, 0.02, 0.01
        ]  # fmt: skip
        assert profile.structure()["drift_points"] == 2
        other = load_profile(profile, ["drift.mean_nu.1=0.5"])
        assert other.entries()["drift.mean_nu.1"] == 0.5

    def test_exponents_have_one_time(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="has 2 times and must have one: drift says what time does"):
            self.exponents(tmp_path, "time,target,mean,std\n1,1,0.1,0\n1,2,0.1,0\n2,1,0.1,0\n2,2,0.1,0\n")
