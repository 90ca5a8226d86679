"""From an exported model to numbers that a user believes: whole models through rewriting, native operators and data."""

import gzip
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

import emu
from emu.demo import data_path, model_path
from tests.rewriter.exported import feeds, float_graphs, original_session, path_of, rewritten_ideal

ASSETS = os.environ.get("EMU_ASSETS")
needs_assets = pytest.mark.skipif(not ASSETS, reason="EMU_ASSETS names no folder of real models and data")
graphs = pytest.mark.parametrize("graph", float_graphs(), ids=lambda graph: graph["file"])


def largest_difference(results: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference over all outputs, relative to each output's largest magnitude where that is above 1."""
    return max(
        float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
        for a, b in zip(results, expected, strict=True)
        if a.size and a.dtype.kind == "f"
    )


@needs_assets
@graphs
@pytest.mark.parametrize("batch", [1, 3])
def test_device_ideal_reproduces_every_float_graph(graph: dict[str, Any], batch: int) -> None:
    original = onnx.load(path_of(graph))
    inputs = feeds(original, batch)
    try:
        expected = original_session(path_of(graph)).run(None, inputs)
    except (RuntimeException, InvalidArgument):
        pytest.skip("onnxruntime cannot run the original at this batch size")
    session = emu.session(rewritten_ideal(path_of(graph)), threads=1)
    assert largest_difference(session.run(None, inputs), expected) < 1e-5


@needs_assets
@graphs
def test_strength_zero_reproduces_every_float_graph_under_a_noisy_device(graph: dict[str, Any]) -> None:
    original = onnx.load(path_of(graph))
    inputs = feeds(original, 1)
    emulated = emu.rewrite(path_of(graph), device="rram_adc", set={"mapping.tile_rows": 32})
    session = emu.session(emulated, threads=1)
    strength = np.zeros(len(emulated.manifest.sites), np.float32)
    expected = original_session(path_of(graph)).run(None, inputs)
    assert largest_difference(session.run(None, {**inputs, "emu.strength": strength}), expected) < 1e-5
    disturbed = session.run(None, inputs)
    assert largest_difference(disturbed, expected) > 1e-4


@needs_assets
@graphs
def test_a_batch_split_meets_the_same_noise_in_every_float_graph(graph: dict[str, Any]) -> None:
    """Noise is keyed by sample wherever the batch lies: windows, flattened tokens, [tokens, batch, width]."""
    original = onnx.load(path_of(graph))
    whole = feeds(original, 4)
    if any(value.ndim and len(value) != 4 for value in whole.values()):
        pytest.skip("the batch size of this graph is fixed")
    # No DAC and ADC: rounding would turn a last-bit difference of a sum into a step.
    noisy = {"program.sigma": 0.1, "read.output_noise": 0.05}
    emulated = emu.rewrite(path_of(graph), device="rram", set=noisy)
    session = emu.session(emulated, threads=1)
    try:
        expected = session.run(None, whole)
    except RuntimeException:
        pytest.skip("onnxruntime cannot run this graph at batch 4")
    for first in (0, 2):
        part = {name: value[first : first + 2] if value.ndim else value for name, value in whole.items()}
        results = session.run(None, {**part, "emu.sample": np.int64(first)})
        assert largest_difference(results, [value[first : first + 2] for value in expected]) < 1e-4


def fashion() -> tuple[Path, dict[str, np.ndarray], np.ndarray]:
    folder = Path(ASSETS or "")
    images, labels = (
        np.frombuffer(gzip.decompress((folder / "fashion_mnist" / name).read_bytes())[offset:], np.uint8)
        for name, offset in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8))
    )
    pixels = (images.reshape(-1, 1, 28, 28).astype(np.float32) / 255 - 0.2860) / 0.3530
    model = folder / "fashion_vit_4x64_p7" / "fashion_vit_4x64_p7.onnx"
    return model, {onnx.load(model).graph.input[0].name: pixels}, labels.astype(np.int64)


def banking() -> tuple[Path, dict[str, np.ndarray], np.ndarray]:
    folder = Path(ASSETS or "")
    model = folder / "bert_tiny_banking77" / "bert_tiny_banking77.onnx"
    with np.load(folder / "banking77" / "test_ids_trimmed_vocab.npz") as data:
        arrays = {name: data[name] for name in data.files}
    labels = next(arrays[name] for name in arrays if "label" in name)
    ids = next(arrays[name] for name in arrays if "id" in name).astype(np.int64)
    available = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    names = [value.name for value in onnx.load(model).graph.input]
    return model, {name: available[name] for name in names}, labels.astype(np.int64)


@pytest.fixture(scope="module", params=["fashion_vit_4x64_p7", "bert_tiny_banking77"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not ASSETS:
        pytest.skip("EMU_ASSETS names no folder of real models and data")
    model, inputs, labels = fashion() if request.param.startswith("fashion") else banking()
    data = tmp_path_factory.mktemp("data") / "set.npz"
    np.savez(data, **inputs, labels=labels)
    clean = {"fashion_vit_4x64_p7": 0.8542, "bert_tiny_banking77": 0.9013}[request.param]
    return {"model": model, "inputs": inputs, "labels": labels, "data": data, "clean": clean}


def test_device_ideal_gives_the_clean_accuracy_to_the_last_sample(trained: dict[str, Any]) -> None:
    whole = emu.evaluate(trained["model"], trained["data"])
    assert whole.clean.accuracy == pytest.approx(trained["clean"], abs=1e-4)
    plain = emu.evaluate(trained["model"], trained["data"], samples=1000)
    ideal = emu.evaluate(trained["model"], trained["data"], samples=1000, device="ideal", chips=1)
    assert ideal.chips[0].correct == plain.clean.correct


@pytest.mark.parametrize("device", ["rram", "rram_adc"])
def test_native_and_python_operators_agree_on_every_prediction_but_ties(trained: dict[str, Any], device: str) -> None:
    emulated = emu.rewrite(trained["model"], device=device, set={"program.sigma": 0.2})
    inputs = {name: value[:64] for name, value in trained["inputs"].items()}
    native, python = (emu.session(emulated, ops=ops) for ops in ("native", "python"))
    for seed in (0, 1):
        a = native.run(None, {**inputs, "emu.seed": np.int64(seed)})[0]
        b = python.run(None, {**inputs, "emu.seed": np.int64(seed)})[0]
        best, second = np.sort(b, axis=-1)[:, -1], np.sort(b, axis=-1)[:, -2]
        # An ADC code on a rounding tie may fall either way and moves logits a little; without ADC nothing does.
        margin = 1e-4 if device == "rram" else 0.05 * np.abs(b).max()
        clear = best - second > margin
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(a.argmax(-1)[clear], b.argmax(-1)[clear])
        if device == "rram":
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_accuracy_falls_with_sigma(trained: dict[str, Any]) -> None:
    options = {"device": "rram", "chips": 2, "samples": 300}
    accuracies = [
        emu.evaluate(trained["model"], trained["data"], set={"program.sigma": sigma}, **options).spread.mean
        for sigma in (0.0, 0.4, 0.8)
    ]
    assert accuracies[0] > accuracies[1] > accuracies[2]


@pytest.mark.parametrize("name", ["digits_vit", "digits_deit", "listops_bert"])
def test_threads_process_and_order_change_nothing_in_a_whole_model(name: str) -> None:
    emulated = emu.rewrite(model_path(name), device="rram_adc")
    with np.load(data_path(name)) as data:
        inputs = {key: data[key][:6] for key in data.files if key != "labels"}
    one, two = emu.session(emulated, threads=1), emu.session(emulated, threads=2)
    first = one.run(None, {**inputs, "emu.seed": np.int64(3)})
    one.run(None, {**inputs, "emu.seed": np.int64(4)})
    for again in (one, two):
        for a, b in zip(first, again.run(None, {**inputs, "emu.seed": np.int64(3)}), strict=True):
            np.testing.assert_array_equal(a, b)


FRESH_PROCESS = """
import sys, numpy, onnxruntime
library, model, feeds, out = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
numpy.save(out, session.run(None, dict(numpy.load(feeds)))[0])
assert not any(name.split(".")[0] == "emu" for name in sys.modules)
"""


@pytest.mark.parametrize("name", ["digits_deit", "listops_bert"])
def test_a_saved_model_needs_nothing_but_onnxruntime_and_the_library(name: str, tmp_path: Path) -> None:
    emulated = emu.rewrite(model_path(name), device="rram_adc")
    emulated.save(tmp_path / "model.onnx")
    with np.load(data_path(name)) as data:
        inputs = {key: data[key][:6] for key in data.files if key != "labels"}
    feeds = {**inputs, "emu.seed": np.asarray(5)}
    np.savez(tmp_path / "feeds.npz", **feeds)
    files = [str(tmp_path / each) for each in ("model.onnx", "feeds.npz", "out.npy")]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(emu.library_path()), *files], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), emu.session(emulated).run(None, feeds)[0])


def test_four_threads_with_four_chips_share_one_session_of_a_whole_model() -> None:
    session = emu.session(emu.rewrite(model_path("digits_vit"), device="rram_adc"), threads=1)
    with np.load(data_path("digits_vit")) as data:
        pixels = data["pixel_values"][:8]

    def of_chip(seed: int) -> np.ndarray:
        return session.run(None, {"pixel_values": pixels, "emu.seed": np.int64(seed)})[0]

    expected = [of_chip(seed) for seed in range(4)]
    assert len({result.tobytes() for result in expected}) == 4
    with ThreadPoolExecutor(4) as pool:
        for index, result in enumerate(pool.map(lambda i: of_chip(i % 4), range(24))):
            np.testing.assert_array_equal(result, expected[index % 4])


@pytest.mark.parametrize("ops", ["native", "python"])
def test_a_device_function_programs_every_array_and_its_failure_is_a_sentence(ops: Any) -> None:
    calls = []

    def shrink(target: np.ndarray, normals: np.ndarray, parameters: dict[str, float]) -> np.ndarray:
        calls.append((target.shape, normals.std(), parameters))
        return (target * np.float32(parameters["gain"])).astype(np.float32)

    name = f"shrink_{ops}"
    device = {"program": {"model": "function", "function": name, "parameters": {"gain": 1.0}}}
    emulated = emu.rewrite(model_path("digits_vit"), device=device, only="component=classifier")
    with np.load(data_path("digits_vit")) as data:
        inputs = {"pixel_values": data["pixel_values"][:4]}
    with pytest.raises(emu.InputError, match=f"'{name}', which is not registered: call emu.register_device_function"):
        emu.session(emulated, ops=ops)
    emu.register_device_function(name, shrink)
    session = emu.session(emulated, ops=ops)
    plain = emu.session(model_path("digits_vit")).run(None, inputs)[0]
    np.testing.assert_allclose(session.run(None, inputs)[0], plain, atol=1e-4)
    (shape, spread, parameters), *_ = calls
    assert tuple(shape) == emulated.manifest.sites[0].shape and parameters == {"gain": 1.0}
    assert spread == pytest.approx(1, abs=0.15)
    halved = session.run(None, {**inputs, "emu.device": np.float32([0.5])})[0]
    assert np.abs(halved - plain).max() > 0.1

    emu.register_device_function(name, lambda target, normals, parameters: target[:1])
    with pytest.raises(Exception, match=r"\[1, 10\], expected float32"):
        session.run(None, {**inputs, "emu.seed": np.int64(1)})


def test_native_and_python_operators_agree_on_several_calibrated_devices() -> None:
    converter = {"model": "uniform", "range": "calibrated", "bits": 12}
    device = {"name": "mine", "mapping": {"tile_rows": 16}, "dac": converter, "adc": converter}
    rules = ["component=ffn_*:rram", "layer=1:ideal"]
    with np.load(data_path("digits_vit")) as data:
        inputs = {"pixel_values": data["pixel_values"][:8]}
    emulated = emu.rewrite(model_path("digits_vit"), device=device, map=rules)
    native, python = (emu.calibrate(emulated, inputs, ops=ops) for ops in ("native", "python"))
    np.testing.assert_allclose(native.value("emu.ranges"), python.value("emu.ranges"), rtol=1e-4)
    a, b = (
        emu.session(native, ops=ops).run(None, {**inputs, "emu.seed": np.int64(2)})[0] for ops in ("native", "python")
    )
    # A code on a rounding tie may fall either way: 12 bits make that small.
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())


def test_session_options_of_the_user_work_with_register(tmp_path: Path) -> None:
    emu.rewrite(model_path("digits_vit"), device="rram").save(tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    emu.register(options)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    with np.load(data_path("digits_vit")) as data:
        logits = session.run(None, {"pixel_values": data["pixel_values"][:4]})[0]
    assert logits.shape == (4, 10)


@pytest.mark.parametrize("name", ["digits_vit", "digits_deit", "listops_bert"])
@pytest.mark.parametrize("threads", [1, 2])
def test_strength_zero_is_the_clean_demo_model_to_the_bit(name: str, threads: int) -> None:
    """With all optimizations of onnxruntime in both, which is the default."""
    data = np.load(data_path("listops_test" if name == "listops_bert" else "digits_test"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    clean = onnxruntime.InferenceSession(model_path(name), options, providers=["CPUExecutionProvider"])
    inputs = {entry.name: data[entry.name][:40] for entry in clean.get_inputs()}
    rewritten = emu.rewrite(model_path(name), "rram_adc")
    off = {"emu.strength": np.zeros(len(rewritten.manifest.sites), np.float32)}
    result = emu.session(rewritten, threads=threads).run(None, {**inputs, **off})[0]
    np.testing.assert_array_equal(result, clean.run(None, inputs)[0])
