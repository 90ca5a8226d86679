"""What a model says about itself is checked before anything is done with it: it comes from anywhere."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import emu
from emu.contract.manifest import Manifest, plain
from emu.contract.schema import FORMAT
from emu.errors import InputError
from emu.rewriter import device_numbers, read_manifest, rewrite
from tests.rewriter.small import transformer

# Of models with integer codes, with a shared array, with tied weights, and calibrated with a list of faults.
WRITTEN = [
    line.replace('"format": 2', f'"format": {FORMAT}')
    for line in Path(__file__).with_name("manifests.jsonl").read_text().splitlines()
]


@pytest.fixture(scope="module")
def rewritten() -> onnx.ModelProto:
    return rewrite(transformer(), only="*").model


def changed(model: onnx.ModelProto, text: str) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    next(each for each in other.metadata_props if each.key == "emu.manifest").value = text
    return other


@pytest.mark.parametrize("text", WRITTEN, ids=["codes", "shared", "tied", "calibrated"])
def test_a_manifest_that_was_written_before_is_read_and_written_to_the_byte(text: str) -> None:
    assert Manifest.from_json(text, "It").to_json() == text


def test_what_files_of_earlier_versions_lack_is_what_they_meant(rewritten: onnx.ModelProto) -> None:
    manifest = read_manifest(rewritten)
    old = plain(manifest)
    for key in ("digital_share", "batch", "notes"):
        del old[key]
    for site in old["sites"]:
        del site["stack"], site["window"]
    assert Manifest.from_json(json.dumps(old), "It") == replace(manifest, batch=None)


def cut(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut("sites"), "it has no 'sites'"),
        (cut("devices"), "it has no 'devices'"),
        (put({}, "devices"), "it has no device"),
        (put([], "devices"), r"'devices' is \[\]"),
        (put(3, "devices", "rram"), "device 'rram' is 3"),
        (cut("devices", "rram", "profile"), "it has no 'profile' of device 'rram'"),
        (put({}, "sites"), r"'sites' is \{\}"),
        (put("x", "sites", 0), "site 0 is x"),
        (cut("sites", 1, "component"), "it has no 'component' of site 1"),
        (put("0", "sites", 1, "layer"), "'layer' of site 1 is 0"),
        (put(7, "sites", 1, "index"), "site 1 has index 7"),
        (put("pcm", "sites", 1, "device"), "site 1 is on device 'pcm', which it has not"),
        (put([1, 2, 3], "sites", 1, "shape"), r"'shape' of site 1 is \[1, 2, 3\]"),
        (put(["8", 8], "sites", 1, "shape"), "'shape' of site 1 is 8"),
        (put(True, "sites", 1, "heads"), "'heads' of site 1 is True"),
        (put([1], "devices", "rram", "entries"), "'entries' of device 'rram' is 1"),
        (put([{}], "skipped"), "it has no 'node' of skipped product 0"),
        (put({}, "batch"), "it has no 'input' of 'batch'"),
        (put(3, "notes"), "'notes' is 3"),
        (put(3, "calibration"), "'calibration' is 3"),
    ],
)
def test_a_manifest_without_what_emu_relies_on_is_one_sentence(
    rewritten: onnx.ModelProto, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    manifest = plain(read_manifest(rewritten))
    change(manifest)
    model = changed(rewritten, json.dumps(manifest))
    for read in (read_manifest, emu.session):
        with pytest.raises(InputError, match=f"damaged manifest .{said}") as refusal:
            read(model)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format":' * 100_000, "1" * 5_000, "{", '{"format": [' * 2])
def test_a_manifest_that_is_no_json_is_one_sentence(rewritten: onnx.ModelProto, text: str) -> None:
    for read in (read_manifest, emu.session):
        with pytest.raises(InputError, match="has a damaged manifest") as refusal:
            read(changed(rewritten, text))
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_a_manifest_names_no_files(rewritten: onnx.ModelProto) -> None:
    manifest = plain(read_manifest(rewritten))
    program = {"model": "table", "csv": "/dev/zero"}
    manifest["devices"]["rram"]["profile"]["program"] = program
    model = changed(rewritten, json.dumps(manifest))
    for use in (emu.session, lambda model: device_numbers(read_manifest(model))):
        with pytest.raises(InputError, match="names a file, which plain data may not"):
            use(model)


def test_a_number_that_the_profile_has_not_is_one_sentence(rewritten: onnx.ModelProto) -> None:
    manifest = read_manifest(rewritten)
    device = replace(manifest.devices["rram"], entries=("program.nonsense",))
    with pytest.raises(InputError, match="device 'rram' has no number 'program.nonsense'"):
        device_numbers(replace(manifest, devices={"rram": device}))


def test_a_run_may_choose_among_the_times_that_a_device_was_measured_at() -> None:
    manifest = read_manifest(rewrite(transformer(), device="rram_wan").model)
    assert manifest is not None
    (own,), (later,) = (device_numbers(manifest).changed(set).values() for set in (None, {"program.time_s": "2d"}))
    assert own.keys() == later.keys() and "program.time_s" not in own
    assert (own["program.c0"], later["program.c0"]) == (0.701, 0.782)
    (scaled,) = device_numbers(manifest).changed(["rram_wan:program.time_s=1", "program.scale=2"]).values()
    assert (scaled["program.c0"], scaled["program.scale"]) == (0.348, 2)
    with pytest.raises(InputError, match=r"time_s is 7, expected one of 1, 86400, 172800"):
        device_numbers(manifest).changed({"program.time_s": 7})
    at_once = read_manifest(rewrite(transformer(), device="sonos").model)  # its own time is 0
    assert at_once is not None
    (later,) = device_numbers(at_once).changed(["program.time_s=5d"]).values()
    assert (later["program.amplitude_na"], later["program.knee_na"]) == (34.57909, 207.34309)
