"""The command line says in one sentence what is wrong, exits with the right code, and starts quickly."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from emu.cli import app
from emu.cli.guide import EXAMPLES, PARTS
from emu.demo import data_path, model_path
from emu.device import preset_names
from emu.errors import InputError
from emu.runtime import library_path

ROOT = Path(__file__).parents[1]


def emu(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    result = emu(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    return result.stderr


def test_help_loads_nothing_heavy() -> None:
    check = "import emu.cli, sys; print([m for m in ('numpy', 'onnx', 'onnxruntime', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_checkout_runs_without_installing() -> None:
    done = subprocess.run([sys.executable, "cli.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = ("devices", "inspect", "rewrite", "faults", "calibrate", "run", "evaluate", "demo", "doctor")
    for command in commands:
        assert command in done.stdout


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands that do something, with their names."""
    for name, sub in getattr(command, "commands", {}).items():
        yield from leaves(sub, (*path, name)) if hasattr(sub, "commands") else [((*path, name), sub)]


@pytest.mark.parametrize(("path", "command"), [*leaves(get_command(app))], ids=lambda value: str(value)[:30])
def test_every_command_has_an_example_that_its_own_options_read(path: tuple[str, ...], command: Any) -> None:
    example = EXAMPLES[" ".join(path)]
    words = shlex.split(example)[1:]
    assert tuple(words[: len(path)]) == path
    command.parse_args(command.context_class(command, info_name="emu"), words[len(path) :])
    short = emu(*path, "-h")
    assert short.exit_code == 0 and example in " ".join(short.stdout.split())


def test_help_lists_every_command_once_by_the_part_of_the_work_with_a_whole_sentence() -> None:
    shown = emu("-h").stdout
    commands = get_command(app).commands  # type: ignore[attr-defined]
    parts = [name for names in PARTS.values() for name in names]
    assert "Start here:" in shown and "More:" not in shown and "..." not in shown.partition("Options:")[2]
    assert len(parts) == len(set(parts)) and set(commands) <= set(parts)


def test_devices_lists_the_presets() -> None:
    listed = emu("devices")
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in preset_names())
    assert [device["name"] for device in json.loads(emu("devices", "--json").stdout)] == preset_names()


def test_devices_explains_every_setting_of_one() -> None:
    shown = emu("devices", "rram_adc", "--set", "program.sigma=0.15").stdout
    data = json.loads(emu("devices", "rram_adc", "--set", "program.sigma=0.15", "--json").stdout)
    assert "* program.sigma = 0.15   (0 to 10)" in shown
    assert data["entries"]["program.sigma"] == 0.15
    assert all(setting["name"] in shown for setting in data["settings"])
    assert {s["name"] for s in data["settings"] if s["entry"]} == set(data["entries"])


def test_an_unknown_device_is_a_sentence_and_exit_code_2() -> None:
    assert "did you mean 'rram'" in refusal("devices", "rrma")
    assert "0 to 10" in refusal("devices", "rram", "--set", "program.sigma=11")
    assert "name it" in refusal("devices", "--set", "program.sigma=1")


def test_devices_imports_a_configuration_or_names_what_it_cannot_say(tmp_path: Path) -> None:
    configuration, device = tmp_path / "rpu_config.json", tmp_path / "mine.toml"
    configuration.write_text('{"forward": {"out_res": 254}, "mapping": {"weight_scaling_omega": 1}}')
    imported = ("devices", "--import", str(configuration), "--set", "drift.time_s=1h")
    assert str(device) in emu(*imported, "--output", str(device)).stdout
    assert emu(*imported).stdout == device.read_text("utf-8")
    assert json.loads(emu(*imported, "--json").stdout)["profile"]["drift"]["time_s"] == 3600
    assert json.loads(emu("devices", str(device), "--json").stdout)["entries"]["adc.steps"] == 254

    before = device.read_text("utf-8")
    configuration.write_text('{"forward": {"r_series": 2, "v_offset_std": 0.1}, "noise_model": null}')
    refused = emu(*imported, "--output", str(device))
    assert refused.exit_code == 2 and refused.stderr.startswith(f"Error: Configuration {configuration} is not a device")
    assert "\n  field forward.r_series = 2: emu does not model " in refused.stderr
    assert "\n  field forward.v_offset_std = 0.1: emu does not model " in refused.stderr
    assert device.read_text("utf-8") == before
    assert "give both" in refusal("devices", "--output", str(device))
    assert "leave the name" in refusal("devices", "rram", "--import", str(configuration))


@pytest.mark.parametrize("arguments", [["no_such_command"], ["evaluate"], ["run", "x", "--head", "one"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert emu(*arguments).exit_code == 2


def test_a_missing_model_is_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    missing = tmp_path / "none.onnx"
    for command in (
        ["inspect", missing],
        ["rewrite", missing, "--device", "rram"],
        ["faults", missing, "-o", tmp_path / "f.npz"],
        ["calibrate", missing, "--data", missing],
        ["run", missing, "--input", missing],
        ["evaluate", missing, "--data", missing],
    ):
        assert "none.onnx" in refusal(*command)


class OrtError(Exception):
    """Stands for onnxruntime's exceptions, which have no common base class."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("the seed is wrong."), 2, "Error: the seed is wrong.\n"),
        (OrtError("[ONNXRuntimeError] : 6 :\nStatus Message: emu: node 'a': seed is -1."), 2, "Error: emu: node 'a': "),
        (OrtError("[ONNXRuntimeError] : 1 : FAIL :\nno kernel"), 1, "Error: [ONNXRuntimeError] : 1 : FAIL : no kernel"),
        (MemoryError(), 1, "Error: not enough memory."),
        (OSError(28, "No space left on device"), 1, "Error: [Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "Error: interrupted."),
    ],
)
def test_failures_become_a_sentence_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setattr("emu.device.preset_names", fail)
    result = emu("devices")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(says) and result.stderr.count("\n") == 1


def test_a_bug_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.device.preset_names", lambda: 1 / 0)
    assert isinstance(emu("devices").exception, ZeroDivisionError)


def test_doctor_fails_when_a_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [("python", True, "3.11"), ("native library", False, "not installed")]
    monkeypatch.setattr("emu.runtime.doctor", lambda: checks)
    result = emu("doctor")
    assert result.exit_code == 1 and "FAILED" in result.stdout
    assert json.loads(emu("doctor", "--json").stdout)[1] == {
        "name": "native library",
        "ok": False,
        "detail": "not installed",
    }
    checks.pop()
    assert emu("doctor").exit_code == 0


def test_demo_passes_its_folder_and_chips_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_demo(folder: Path, echo: Any, chips: int) -> None:
        echo(f"{chips} chips in {folder}")

    monkeypatch.setattr("emu.demo.run_demo", run_demo)
    assert emu("demo", tmp_path, "--chips", 3).stdout == f"3 chips in {tmp_path}\n"


def test_outputs_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"logits": np.array([[1.0, np.nan]], np.float32), "file": np.arange(3)}
    monkeypatch.setattr("emu.evaluation.run", lambda *_, **__: outputs)
    target = tmp_path / "y.npz"
    result = emu("run", "m.onnx", "--input", "x.npz", "-o", target)
    assert result.exit_code == 0 and "logits" in result.stdout
    with np.load(target) as written:
        assert set(written.files) == {"logits", "file"}
        np.testing.assert_array_equal(written["logits"], outputs["logits"])
    assert list(tmp_path.iterdir()) == [target]

    outputs["bad"] = np.array([{}], dtype=object)
    before = target.read_bytes()
    assert emu("run", "m.onnx", "--input", "x.npz", "-o", target).exit_code != 0
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]
    assert "no folder" in refusal("run", "m.onnx", "--input", "x.npz", "-o", tmp_path / "a" / "y.npz")


def test_a_run_summarizes_its_outputs_also_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"logits": np.array([[1.0, 3.0]], np.float32), "nothing": np.zeros(0), "bad": np.array([np.nan])}
    monkeypatch.setattr("emu.evaluation.run", lambda *_, **__: outputs)
    rows = json.loads(emu("run", "m.onnx", "--input", "x.npz", "--json").stdout)
    assert rows[0] == {"output": "logits", "shape": [1, 2], "dtype": "float32", "min": 1, "max": 3, "mean": 2}
    assert [row["mean"] for row in rows[1:]] == [None, None]


class TestWithATrainedModel:
    """The commands in the order in which a user meets them."""

    @pytest.fixture(autouse=True)
    def native_library(self) -> None:
        try:
            library_path()
        except InputError as error:
            pytest.skip(str(error))

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return Path(shutil.copy(model_path("digits_vit"), tmp_path / "digits.onnx"))

    def test_inspect_shows_the_sites_of_a_plain_and_of_a_rewritten_model_alike(self, model: Path) -> None:
        plain = json.loads(emu("inspect", model, "--json").stdout)
        assert plain["devices"] is None and "device" not in plain["sites"][0]
        emu("rewrite", model, "--device", "rram", "--only", "*")
        rewritten = json.loads(emu("inspect", model.with_name("digits.rram.onnx"), "--json").stdout)
        assert list(rewritten["devices"]) == ["rram"] and rewritten["sites"][0]["device"] == "rram"
        facts = ("node", "layer", "component", "shape", "parameters", "macs")
        assert [[s[f] for f in facts] for s in plain["sites"]] == [[s[f] for f in facts] for s in rewritten["sites"]]
        shown = emu("inspect", model).stdout
        assert "not rewritten, 34 sites" in shown and "attention_scores" in shown

    def test_rewrite_names_its_output_after_the_device_and_says_what_it_did(self, model: Path) -> None:
        result = emu("rewrite", model, "--device", "rram", "--only", "component=ffn_*", "--exclude", "layer=0")
        assert result.exit_code == 0, result.output
        assert model.with_name("digits.rram.onnx").is_file()
        assert "6 sites" in result.stdout and "not selected" not in result.stderr

    def test_what_a_profile_leaves_digital_and_what_is_exact_is_said_by_every_command(self, model: Path) -> None:
        left = (
            "Stays digital: 10 sites (patch_embedding 1, attention_scores 4, attention_context 4, classifier 1): the "
            "profile of 'rram' leaves them digital ([sites]; --only '*' maps all)."
        )
        rewritten = model.with_name("digits.rram.onnx")
        said = emu("rewrite", model, "--device", "rram").stdout
        assert left in said and "Digital in all: 5.74 %" in said and "for rram, 24 sites" in said
        assert left in emu("inspect", rewritten).stdout
        report = json.loads(emu("inspect", rewritten, "--json").stdout)
        assert report["exact"] == []
        assert {each["reason"] for each in report["skipped"]} == {"the profile of 'rram' leaves it digital"}
        measure = [
            "evaluate",
            model,
            "--data",
            data_path("digits_vit"),
            "--samples",
            20,
            "--chips",
            1,
            "--device",
            "rram",
        ]
        assert left in emu(*measure).stdout
        assert json.loads(emu(*measure, "--json").stdout)["about_sites"] == [left]
        exact = "Exact: 8 sites (attention_scores 4, attention_context 4): 'rram' does nothing there."
        everything = emu("rewrite", model, "--device", "rram", "--only", "*", "--overwrite").stdout
        assert exact in everything and "Stays digital" not in everything
        assert exact in emu("inspect", rewritten).stdout and exact in emu(*measure, "--only", "*").stdout
        assert len(json.loads(emu("inspect", rewritten, "--json").stdout)["exact"]) == 8
        assert "sites.only names 'ffnup'" in refusal(
            "rewrite", model, "--device", "rram", "--set", "sites.only=component=ffnup"
        )

    def test_rewrite_replaces_neither_its_input_nor_without_being_told_its_output(self, model: Path) -> None:
        before = model.read_bytes()
        assert "the model itself" in refusal("rewrite", model, "--device", "rram", "-o", model, "--overwrite")
        assert model.read_bytes() == before
        assert emu("rewrite", model, "--device", "rram").exit_code == 0
        assert "--overwrite" in refusal("rewrite", model, "--device", "rram")
        assert emu("rewrite", model, "--device", "rram", "--overwrite").exit_code == 0
        assert "no folder" in refusal("rewrite", model, "--device", "rram", "-o", model.parent / "a" / "b.onnx")

    def test_evaluate_prints_the_documented_json_and_nothing_else_on_stdout(self, model: Path) -> None:
        arguments = ["evaluate", model, "--data", data_path("digits_vit"), "--chips", 2, "--samples", 60]
        result = emu(*arguments, "--device", "rram", "--set", "program.sigma=0.3", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert len(report["accuracy"]["per_chip"]) == 2 and report["settings"]["program.sigma"] == 0.3
        table = emu(*arguments).stdout
        assert "clean" in table and "60 samples" in table and "chips" not in table

    def test_evaluate_maps_stores_and_shares_a_plain_model_as_rewrite_does(self, model: Path) -> None:
        arguments = ["evaluate", model, "--data", data_path("digits_vit"), "--chips", 1, "--samples", 20, "--json"]
        options = ["--only", "*", "--map", "layer=0:ideal", "--stored", "component=norm", "--share", "never"]
        report = json.loads(emu(*arguments, "--device", "rram", *options).stdout)
        assert report["device"] == "rram, ideal" and report["sites"] > 34
        assert "'map' is for rewriting a plain model" in refusal(*arguments, "--map", "layer=0:ideal")

    def test_several_devices_are_set_by_name(self, model: Path) -> None:
        rewritten, data = model.with_name("digits.rram.onnx"), data_path("digits_vit")
        devices = ["--device", "rram", "--only", "*", "--map", "component=ffn_*:rram_adc"]
        emu("rewrite", model, *devices, "--set", "rram:program.sigma=0.2")
        shown = emu("inspect", rewritten).stdout
        assert "rewritten for rram, rram_adc, 34 sites" in shown and "device" in shown.splitlines()[3].split()
        run = ["run", rewritten, "--input", data, "--json"]
        same, other = (emu(*run, "--set", f"rram:program.sigma={sigma}").stdout for sigma in (0.2, 0.3))
        assert same == emu(*run).stdout != other
        assert emu(*run, "--set", "adc.bound=5").stdout != same
        assert "as in rram:program.sigma=0.3" in refusal(*run, "--set", "program.sigma=0.3")
        assert "it has rram, rram_adc" in refusal(*run, "--set", "pcm:program.sigma=0.3")

    def test_faults_of_a_chip_are_written_counted_and_given_to_every_chip(self, model: Path, tmp_path: Path) -> None:
        device = [
            "--device",
            "ideal",
            "--set",
            "faults.storage=int",
            "--set",
            "faults.bits=8",
            "--set",
            "faults.ber=0.01",
        ]
        random, listed, file = tmp_path / "random.onnx", tmp_path / "listed.onnx", tmp_path / "faults.npz"
        emu("rewrite", model, *device, "-o", random)
        counts = json.loads(emu("faults", random, "--seed", 3, "-o", file, "--json").stdout)
        assert counts[0]["component"] == "patch_embedding" and counts[-1]["component"] == "all"
        assert counts[-1]["bit_flips"] == sum(row["bit_flips"] for row in counts[:-1]) > 0
        assert counts[-1]["bit_flips"] == pytest.approx(counts[-1]["values"] * 8 * 0.01, rel=0.1)
        assert "--overwrite" in refusal("faults", random, "-o", file)
        table = emu("faults", random, "--seed", 3, "-o", file, "--overwrite").stdout
        assert "bit_flips" in table and f"Wrote {file}: the faults of chip 3." in table

        assert emu("rewrite", model, *device, "--faults", file, "-o", listed).exit_code == 0
        assert "Every chip has the faults of chip 3." in emu("inspect", listed).stdout
        run = ["--input", data_path("digits_vit"), "--json", "--seed"]
        assert emu("run", random, *run, 3).stdout == emu("run", listed, *run, 8).stdout
        assert emu("run", random, *run, 3).stdout != emu("run", random, *run, 8).stdout
        assert "has no random faults" in refusal("faults", listed, "-o", tmp_path / "again.npz")
        narrow = [option.replace("bits=8", "bits=4") for option in device]
        assert "fault_bits = 8, here it is 4" in refusal("rewrite", model, *narrow, "--faults", file)

    def test_faults_are_injected_and_told_one_by_one(self, model: Path, tmp_path: Path) -> None:
        file = tmp_path / "injections.csv"
        words = [model, "--data", data_path("digits_test"), "--device", "float32_flips", "--samples", 8]
        words += ["--count", 3, "--pattern", "word", "-o", file]
        assert "3 injections of 8 rows of data" in emu("inject", *words).stdout
        assert len(file.read_text().splitlines()) == 4
        told = json.loads(emu("inject", *words, "--json").stdout)
        assert [part["injections"] for part in told["injections"] if part["component"] == "all"] == [3]

    def test_calibrated_converters_are_calibrated_before_they_run(self, model: Path, tmp_path: Path) -> None:
        profile, data = tmp_path / "adc.toml", data_path("digits_vit")
        converter = 'model = "uniform"\nrange = "calibrated"\nbits = 8\n'
        profile.write_text(f"[dac]\n{converter}[adc]\n{converter}")
        said = emu("rewrite", model, "--device", profile).stdout
        rewritten, calibrated = model.with_name("digits.adc.onnx"), model.with_name("digits.adc.calibrated.onnx")
        assert f"run 'emu calibrate {rewritten} --data DATA'" in said
        assert "run 'emu calibrate'" in emu("inspect", rewritten).stdout
        assert "is not calibrated yet: run 'emu calibrate'" in refusal("run", rewritten, "--input", data)
        said = "Calibrated for this: ranges of converters by minmax on the first 64 rows of "
        few = ["--data", data, "--chips", 1, "--samples", 70]
        assert f"{said}{data}" in emu("evaluate", model, "--device", profile, *few).stdout
        assert "is not calibrated yet: run 'emu calibrate'" in refusal("evaluate", rewritten, *few)

        options = ["--data", data, "--samples", 64]
        report = json.loads(emu("calibrate", rewritten, *options, "--json").stdout)
        assert report["output"] == str(calibrated) and report["samples"] == 64 and len(report["sites"]) == 34
        assert all(site["largest_input"] > 0 > site["lowest_output"] for site in report["sites"])
        assert "--overwrite" in refusal("calibrate", rewritten, *options)
        table = emu("calibrate", rewritten, *options, "--method", "percentile", "-o", tmp_path / "p.onnx").stdout
        assert "largest_input" in table and "calibrated on 64 samples" in table
        assert "calibrated by percentile on 64 samples" in emu("inspect", tmp_path / "p.onnx").stdout
        accuracy = json.loads(emu("evaluate", calibrated, "--data", data, "--chips", 1, "--json").stdout)
        assert accuracy["accuracy"]["mean"] > accuracy["clean"]["accuracy"] - 0.02
        assert "has no converters with calibrated ranges" in refusal("calibrate", self.for_rram(model), "--data", data)

    @staticmethod
    def for_rram(model: Path) -> Path:
        emu("rewrite", model, "--device", "rram")
        return model.with_name("digits.rram.onnx")

    def test_run_takes_controls_and_names_a_wrong_one(self, model: Path) -> None:
        emu("rewrite", model, "--device", "rram_adc")
        rewritten, data = model.with_name("digits.rram_adc.onnx"), data_path("digits_vit")
        outputs = [emu("run", rewritten, "--input", data, "--seed", seed, "--json").stdout for seed in (1, 1, 2)]
        assert outputs[0] == outputs[1] != outputs[2]
        assert "shapes the graph" in refusal("run", rewritten, "--input", data, "--set", "adc.model=none")
        assert "head" in refusal("run", rewritten, "--input", data, "--head", 99)
        assert "no control 'seed'" in refusal("run", model, "--input", data, "--seed", 1)

    def test_a_file_that_is_no_model_is_a_sentence(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"not a model")
        for command in (["inspect", broken], ["rewrite", broken, "--device", "rram"]):
            assert "broken.onnx" in refusal(*command)
        assert "broken.onnx" in refusal("evaluate", broken, "--data", data_path("digits_vit"))


def test_rewrite_stores_tensors_and_shares_arrays_as_asked(tmp_path: Path) -> None:
    model, output = model_path("listops_bert"), tmp_path / "out.onnx"
    stored = ("--stored", "component=word_embedding,norm layer=*", "-o", output)
    assert "write layers as" in refusal("rewrite", model, "--device", "rram", *stored)
    stored = ("--stored", "component=word_embedding,norm", "-o", output)
    assert emu("rewrite", model, "--device", "rram", "--share", "never", *stored).exit_code == 0
    sites = json.loads(emu("inspect", output, "--json").stdout)["sites"]
    assert {"word_embedding", "norm"} <= {site["component"] for site in sites if site["op"] == "FaultyWeight"}
    assert [site["array"] for site in sites] == [site["index"] for site in sites]
    assert emu("rewrite", model, "--device", "rram", "--share", "always").exit_code == 2


def test_inspect_shows_stored_tensors_of_a_plain_model_and_shared_arrays(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.arange(16, dtype=np.float32).reshape(4, 4)
    nodes = [helper.make_node("MatMul", [a, "w"], [b], name=b) for a, b in (("x", "h"), ("h", "i"))]
    nodes.append(helper.make_node("Add", ["i", "b"], ["y"], name="y"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight[0], "b")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    shown = emu("inspect", path, "--stored", "component=bias").stdout.splitlines()
    assert shown[1] == "Samples: axis 0 of 'x' (by 'n')."
    columns = shown[3].split()
    assert [line.split()[columns.index("array")] for line in shown[4:7]] == ["0", "0", "2"]
    total = next(line for line in shown if line.startswith("all"))
    assert total.split()[1:3] == ["3", "20"]  # the shared weight counts once
