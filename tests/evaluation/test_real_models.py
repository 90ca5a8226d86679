"""Evaluations of trained models: what a user measures follows from the device and from nothing else."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation import evaluate, run
from emu.rewriter import EmulatedModel, rewrite
from emu.runtime import library_path

MODEL, DATA = model_path("digits_vit"), data_path("digits_vit")


@pytest.fixture(autouse=True)
def native_library() -> None:
    try:
        library_path()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def rram() -> EmulatedModel:
    return rewrite(MODEL, "rram")


@pytest.fixture(scope="module")
def rram_adc() -> EmulatedModel:
    return rewrite(MODEL, "rram_adc")


def test_the_clean_accuracy_of_a_rewritten_model_is_that_of_the_plain_one(rram_adc: EmulatedModel) -> None:
    plain, rewritten = evaluate(MODEL, DATA), evaluate(rram_adc, DATA, chips=1)
    assert plain.clean == rewritten.clean and plain.clean.accuracy > 0.95
    assert not plain.chips


def test_a_device_for_a_plain_model_means_the_same_as_rewriting_it(rram: EmulatedModel, tmp_path: Path) -> None:
    rram.save(tmp_path / "model.onnx")
    from_file = evaluate(tmp_path / "model.onnx", DATA, chips=3, set=["program.sigma=0.4"])
    in_memory = evaluate(MODEL, DATA, chips=3, device="rram", set={"program.sigma": 0.4})
    assert from_file.chips == in_memory.chips
    assert from_file.settings == in_memory.settings == {"program.sigma": 0.4, "program.sigma_cycle": 0.0}


def test_the_batch_split_and_the_order_of_chips_change_nothing(rram_adc: EmulatedModel) -> None:
    whole = evaluate(rram_adc, DATA, chips=3, batch_size=450, samples=100, set={"read.output_noise": 0.5})
    split = evaluate(rram_adc, DATA, chips=3, batch_size=7, samples=100, set={"read.output_noise": 0.5})
    last = evaluate(rram_adc, DATA, chips=1, first_seed=2, samples=100, set={"read.output_noise": 0.5})
    assert whole.chips == split.chips
    assert last.chips[0] == whole.chips[2]


def test_chips_without_variation_are_clean_and_with_much_of_it_are_broken(rram: EmulatedModel) -> None:
    exact = evaluate(rram, DATA, chips=2, set={"program.sigma": 0.0})
    assert [chip.correct for chip in exact.chips] == [exact.clean.correct] * 2
    broken = evaluate(rram, DATA, chips=2, set={"program.sigma": 2.0})
    assert max(chip.accuracy for chip in broken.chips) < exact.clean.accuracy - 0.2


def test_another_read_seed_is_another_repetition_on_the_same_chip(rram_adc: EmulatedModel) -> None:
    with np.load(DATA) as data:
        inputs = {"pixel_values": data["pixel_values"][:8]}
    first, again, other = (run(rram_adc, inputs, seed=1, read_seed=r)["logits"] for r in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_both_implementations_of_the_operators_agree() -> None:
    model = rewrite(MODEL, "rram", only="layer=0 component=value,attention_scores")
    with np.load(DATA) as data:
        inputs = {"pixel_values": data["pixel_values"][:2]}
    native = run(model, inputs, seed=3)["logits"]
    python = run(model, inputs, seed=3, ops="python")["logits"]
    np.testing.assert_allclose(native, python, atol=1e-4)


def test_only_the_selected_sites_are_emulated() -> None:
    result = evaluate(MODEL, DATA, chips=1, device="rram", only="component=ffn_up,ffn_down", samples=50)
    assert result.sites == 8


def _idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


@pytest.fixture
def assets() -> Iterator[Path]:
    if not os.environ.get("EMU_ASSETS"):
        pytest.skip("EMU_ASSETS does not name a folder of models and data")
    yield Path(os.environ["EMU_ASSETS"])


def test_a_published_clean_accuracy_is_reproduced(assets: Path) -> None:
    images = _idx(assets / "fashion_mnist" / "t10k-images-idx3-ubyte.gz")
    data = {
        "input": ((images[:, None] / 255 - 0.2860) / 0.3530).astype(np.float32),
        "labels": _idx(assets / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz"),
    }
    result = evaluate(assets / "fashion_vit_4x64_p7" / "fashion_vit_4x64_p7.onnx", data, batch_size=250)
    assert result.clean.accuracy == pytest.approx(0.8542, abs=3e-4)
