"""The shipped models are as small and as good as their README says, in plain onnxruntime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from emu.demo import DATA, MODELS, data_path, model_path
from emu.errors import InputError

EXPECTED_ACCURACY = {"digits_vit": 0.9867, "digits_deit": 0.9889, "listops_bert": 0.9930}
FOLDER = Path(str(model_path("digits_vit"))).parent


def logits_and_labels(name: str, batch: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(str(model_path(name)), providers=["CPUExecutionProvider"])
    with np.load(data_path(name)) as data:
        feed = {each.name: data[each.name][batch] for each in session.get_inputs()}
        return session.run(["logits"], feed)[0], data["labels"][batch]


@pytest.mark.parametrize("name", MODELS)
def test_clean_accuracy_is_the_one_in_the_readme(name: str) -> None:
    logits, labels = logits_and_labels(name)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    assert accuracy >= 0.97
    # One sample of slack: another processor may round a close call to the other side.
    assert accuracy == pytest.approx(EXPECTED_ACCURACY[name], abs=1.1 / len(labels))
    assert f"{100 * EXPECTED_ACCURACY[name]:.2f} %" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_one_small_file_that_names_no_machine(name: str) -> None:
    path = model_path(name)
    assert path.stat().st_size < 1_000_000
    model = onnx.load(path, load_external_data=False)
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    onnx.checker.check_model(model, full_check=True)
    content = path.read_bytes()
    assert not any(trace in content for trace in (b"/home", b"/root", b"/tmp", b"site-packages"))


@pytest.mark.parametrize("name", MODELS)
def test_the_batch_is_free_and_samples_do_not_see_each_other(name: str) -> None:
    together, _ = logits_and_labels(name, slice(0, 7))
    alone, _ = logits_and_labels(name, slice(3, 4))
    np.testing.assert_allclose(alone[0], together[3], atol=1e-4)


def test_first_output_of_the_deit_is_the_mean_of_its_two_heads() -> None:
    session = onnxruntime.InferenceSession(str(model_path("digits_deit")), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "logits"
    with np.load(data_path("digits_deit")) as data:
        logits, class_head, distillation_head = session.run(None, {"pixel_values": data["pixel_values"]})
    np.testing.assert_allclose(logits, (class_head + distillation_head) / 2, atol=1e-5)
    assert np.abs(class_head - distillation_head).max() > 0.1, "the two heads must not be copies"


def test_digits_data_are_the_fixed_quarter_of_scikit_learns_digits() -> None:
    source = pytest.importorskip("sklearn.datasets").load_digits()
    split = pytest.importorskip("sklearn.model_selection").train_test_split
    _, images, _, labels = split(source.images, source.target, test_size=0.25, random_state=0, stratify=source.target)
    with np.load(data_path("digits_test")) as data:
        assert data["pixel_values"].dtype == np.float32
        np.testing.assert_array_equal((data["pixel_values"][:, 0] + 1) * 8, images)
        np.testing.assert_array_equal(data["labels"], labels)


def test_the_whole_folder_stays_small() -> None:
    files = [path for path in FOLDER.iterdir() if path.suffix in (".onnx", ".npz")]
    assert {path.stem for path in files} == {*MODELS, *DATA.values()}
    assert sum(path.stat().st_size for path in files) < 2_500_000
    assert all(path.stat().st_size < 200_000 for path in files if path.suffix == ".npz")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="digits_vit, digits_deit, listops_bert"):
        model_path("imagenet")
    with pytest.raises(InputError, match="digits_test, listops_test"):
        data_path("imagenet")
