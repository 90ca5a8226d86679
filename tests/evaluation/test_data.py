"""Data that does not fit the model is refused before anything runs, in one sentence that names the array."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emu.errors import InputError
from emu.evaluation.data import ModelInput, convert_inputs, load_data, match_inputs, read_arrays

IMAGES = [ModelInput("pixels", np.dtype("float32"), ("batch", 1, 4, 4))]
TOKENS = [
    ModelInput("input_ids", np.dtype("int64"), ("batch", "sequence")),
    ModelInput("attention_mask", np.dtype("int64"), ("batch", "sequence")),
]


def images(samples: int = 5, **changes: Any) -> dict[str, Any]:
    return {"pixels": np.zeros((samples, 1, 4, 4), np.float32), "labels": np.arange(samples), **changes}


def refusal(data: Any, inputs: list[ModelInput], samples: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_data(data, inputs, samples)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def test_batches_cover_all_samples_once_in_order() -> None:
    data = load_data(images(pixels=np.arange(80.0).reshape(5, 1, 4, 4)), IMAGES)
    batches = list(data.batches(2))
    assert [start for start, _ in batches] == [0, 2, 4]
    assert [len(feeds["pixels"]) for _, feeds in batches] == [2, 2, 1]
    assert np.concatenate([feeds["pixels"] for _, feeds in batches]).ravel().tolist() == list(range(80))


def test_padded_batches_are_full_and_repeat_the_last_sample() -> None:
    data = load_data(images(pixels=np.arange(80.0).reshape(5, 1, 4, 4)), IMAGES)
    last = list(data.batches(4, pad=True))[-1][1]["pixels"]
    assert last.shape == (4, 1, 4, 4)
    assert all((sample == np.arange(64, 80).reshape(1, 4, 4)).all() for sample in last)


def test_numbers_convert_when_nothing_is_lost() -> None:
    data = {
        "input_ids": np.ones((3, 7), np.int16),
        "attention_mask": np.ones((3, 7), bool),
        "labels": np.zeros(3, np.uint8),
    }
    _, feeds = next(load_data(data, TOKENS).batches(8))
    assert {array.dtype for array in feeds.values()} == {np.dtype("int64")}
    _, feeds = next(load_data(images(pixels=np.ones((5, 1, 4, 4))), IMAGES).batches(8))
    assert feeds["pixels"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "int64", "complex64", "bool", "<U3"])
def test_other_kinds_of_numbers_are_refused(dtype: str) -> None:
    message = refusal(images(pixels=np.zeros((5, 1, 4, 4), dtype)), IMAGES)
    assert "'pixels'" in message and "float32" in message


def test_whole_numbers_do_not_narrow_and_reals_do_not_become_whole() -> None:
    narrow = [ModelInput("ids", np.dtype("int32"), ("batch",))]
    for dtype in ("int64", "uint32", "float32"):
        with pytest.raises(InputError, match="'ids'"):
            match_inputs({"ids": np.zeros(3, dtype)}, narrow, "x")


def test_reals_too_large_for_the_model_are_refused() -> None:
    data = load_data(images(pixels=np.full((5, 1, 4, 4), 1e300)), IMAGES)
    with pytest.raises(InputError, match="too large for float32"):
        next(data.batches(2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pixels": np.zeros((5, 3, 4, 4), np.float32)}, ["'pixels'", "[5, 3, 4, 4]", "[batch, 1, 4, 4]"]),
        ({"pixels": np.zeros((5, 4, 4), np.float32)}, ["'pixels'", "[5, 4, 4]"]),
        ({"labels": np.arange(4)}, ["5 samples", "'labels' has 4"]),
        ({"labels": np.full(5, 0.5)}, ["'labels'", "float64", "whole number"]),
        ({"labels": np.zeros((5, 2), int)}, ["'labels'", "[5, 2]"]),
        ({"labels": np.array([0, 1, -100, 2, 3])}, ["'labels'", "-100"]),
        ({"pixels": np.zeros((0, 1, 4, 4), np.float32), "labels": np.zeros(0, int)}, ["no samples"]),
    ],
)
def test_wrong_arrays_are_named(changes: dict[str, Any], says: list[str]) -> None:
    message = refusal(images(**changes), IMAGES)
    assert [part for part in says if part not in message] == []


def test_missing_arrays_are_named_with_those_that_exist() -> None:
    message = refusal({"pixel": np.zeros((5, 1, 4, 4), np.float32), "labels": np.arange(5)}, IMAGES)
    assert "no array 'pixels'" in message and "'pixel'" in message
    assert "no array 'labels'" in refusal({"pixels": np.zeros((5, 1, 4, 4), np.float32)}, IMAGES)


def test_free_dimensions_of_one_name_must_agree() -> None:
    data = {
        "input_ids": np.ones((3, 7), np.int64),
        "attention_mask": np.ones((3, 8), np.int64),
        "labels": np.zeros(3, int),
    }
    assert "sequence = 8" in refusal(data, TOKENS)


def test_samples_limits_the_set_and_cannot_exceed_it() -> None:
    assert len(load_data(images(), IMAGES, 3).labels) == 3
    for samples in (0, 6, -1):
        assert "1 to 5" in refusal(images(), IMAGES, samples)


def test_arrays_that_the_model_does_not_take_are_reported() -> None:
    assert load_data(images(text=np.zeros(5)), IMAGES).ignored == ("text",)


def test_one_run_needs_the_models_fixed_batch() -> None:
    fixed = [ModelInput("pixels", np.dtype("float32"), (2, 4))]
    assert convert_inputs({"pixels": np.zeros((2, 4))}, fixed, "x")["pixels"].dtype == np.float32
    with pytest.raises(InputError, match="exactly 2 at once"):
        convert_inputs({"pixels": np.zeros((3, 4))}, fixed, "x")


def test_scalars_stay_scalars() -> None:
    scalar = [ModelInput("scale", np.dtype("float32"), ())]
    assert convert_inputs({"scale": np.float64(2)}, scalar, "x")["scale"].shape == ()


def test_files_that_are_no_npz_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data file"):
        read_arrays(tmp_path / "none.npz")
    for name, content in {"text.npz": b"hello", "empty.npz": b"", "cut.npz": b"PK\x03\x04 rest"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is no .npz file"):
            read_arrays(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match="no .npz file"):
        read_arrays(tmp_path / "array.npy")
    np.savez(tmp_path / "objects.npz", labels=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="'labels'.*cannot be read"):
        read_arrays(tmp_path / "objects.npz")


def test_a_file_gives_what_was_saved(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **images())
    arrays, where = read_arrays(tmp_path / "set.npz")
    assert sorted(arrays) == ["labels", "pixels"] and where.endswith("set.npz")


def test_data_sorted_by_class_are_noted() -> None:
    labels = np.repeat(np.arange(10), 20)
    arrays = {"x": np.zeros((200, 4), np.float32), "labels": labels}
    inputs = [ModelInput("x", np.dtype("float32"), (None, 4))]
    sentence = "The first 40 samples hold 2 of 10 classes: shuffle data that are sorted by class."
    assert load_data(arrays, inputs, 40).notes == (sentence,)
    assert load_data(arrays, inputs).notes == ()
    shuffled = {**arrays, "labels": np.random.default_rng(0).permutation(labels)}
    assert load_data(shuffled, inputs, 40).notes == ()
