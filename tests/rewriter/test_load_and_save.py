"""Broken files get one sentence each; written files are whole, or as they were."""

import os

import numpy as np
import onnx
import pytest

import emu
from emu.contract.schema import FORMAT
from emu.errors import InputError
from emu.rewriter import find_sites, read_manifest, rewrite
from emu.rewriter import save as save_module

from .exported import run, with_plain_products
from .small import model, transformer, values


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "model.onnx"
    onnx.save(transformer(2), target)
    return target


def with_external_data(path):
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def refusal(source):
    with pytest.raises(InputError) as caught:
        rewrite(source, only="*")
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "no.onnx") == f"Model {tmp_path / 'no.onnx'} cannot be read: No such file or directory."


def test_a_folder_is_no_model(tmp_path):
    assert "is a folder: give the .onnx file in it" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is not a model\n" * 9, bytes(range(256)), b"version https://git"]
)
def test_other_files_are_no_models(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    assert "is not an ONNX model" in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_model_that_is_cut_short_is_refused(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "is not an ONNX model, or is cut short" in refusal(path)


def test_missing_external_data_are_named(path):
    (with_external_data(path).parent / "weights.bin").unlink()
    sentence = refusal(path)
    assert "weights.bin is missing" in sentence
    assert str(path) in sentence


def test_external_data_that_are_cut_short_are_refused(path):
    data = with_external_data(path).parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:-8])
    assert "weights.bin is cut short: tensor '" in refusal(path)


def test_external_data_outside_the_folder_are_refused(path, tmp_path):
    proto = onnx.load(with_external_data(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = "../weights.bin"
    path.write_bytes(proto.SerializeToString())
    assert "lies outside the model's folder" in refusal(path)


def test_an_invalid_graph_names_its_node(path):
    proto = onnx.load(path)
    next(node for node in proto.graph.node if node.name == "up0").op_type = "MatMulTypo"
    onnx.save(proto, path)
    assert "is not a valid ONNX model: No Op registered for MatMulTypo" in refusal(path)
    assert "(node 'up0'); export it again." in refusal(path)


def test_a_tensor_with_too_few_bytes_is_refused():
    proto = transformer()
    tensor = next(each for each in proto.graph.initializer if each.name == "wq0")
    tensor.raw_data = tensor.raw_data[:-4]
    assert "tensor 'wq0' holds 252 bytes, its shape needs 256" in refusal(proto)


def test_a_cycle_is_refused():
    proto = transformer()
    next(node for node in proto.graph.node if node.name == "q0").input[0] = "x0"
    assert "its nodes form a cycle" in refusal(proto)


@pytest.mark.parametrize("external", [False, True])
def test_a_saved_model_is_one_file_with_the_same_results(path, external, tmp_path):
    source = with_external_data(path) if external else path
    rewritten = rewrite(source, device="ideal")
    target = tmp_path / "out" / "model.ideal.onnx"
    target.parent.mkdir()
    rewritten.save(target)
    assert os.listdir(target.parent) == ["model.ideal.onnx"]
    saved = onnx.load(target)
    onnx.checker.check_model(saved)
    inputs = {"x": values(3, 5, 8)}
    expected = run(onnx.load(source), inputs)
    np.testing.assert_allclose(run(with_plain_products(saved), inputs)[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(run(with_plain_products(rewritten.model), inputs)[0], expected[0], atol=1e-5)


def test_large_tensors_are_written_whole(tmp_path):
    """Tensors above 64 KiB are written past protobuf, one by one."""
    weight, bias = values(300, 200), values(200)
    original = model("y = Gemm <transB = 1> (x, w, b)", inputs="float[batch, 300] x", w=weight.T.copy(), b=bias)
    rewritten = rewrite(original, device="ideal")
    rewritten.save(tmp_path / "m.onnx")
    saved = onnx.load(tmp_path / "m.onnx")
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in saved.graph.initializer}
    in_memory = {each.name: onnx.numpy_helper.to_array(each) for each in rewritten.model.graph.initializer}
    assert set(stored) == set(in_memory)
    for name, array in in_memory.items():
        np.testing.assert_array_equal(stored[name], array)
    assert saved.graph.node == rewritten.model.graph.node
    assert any(np.array_equal(array, weight) for array in stored.values())


def test_a_model_too_large_for_one_file_gets_its_data_beside_it(path, tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "LARGEST_FILE_BYTES", 1000)
    target = tmp_path / "big.onnx"
    rewrite(path, device="ideal").save(target)
    assert (tmp_path / "big.onnx.data").is_file()
    inputs = {"x": values(2, 5, 8)}
    saved = with_plain_products(onnx.load(target))
    np.testing.assert_allclose(run(saved, inputs)[0], run(onnx.load(path), inputs)[0], atol=1e-5)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(path, tmp_path, monkeypatch):
    rewritten = rewrite(path, only="*")
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_module, "write_model", full)
    with pytest.raises(InputError, match=r"out\.onnx cannot be written: No space left on device"):
        rewritten.save(target)
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == before


def test_saving_over_the_source_works(path):
    with_external_data(path)
    rewrite(path, device="ideal").save(path)
    assert list(read_manifest(path).devices) == ["ideal"]


def test_a_missing_folder_is_named(path, tmp_path):
    with pytest.raises(InputError, match="There is no folder .*absent to write m.onnx to"):
        rewrite(path, only="*").save(tmp_path / "absent" / "m.onnx")


def test_the_manifest_in_the_file_is_the_one_in_memory(path, tmp_path):
    import onnx_ir as ir

    rewritten = rewrite(path, device="rram_adc", exclude="component=classifier")
    rewritten.save(tmp_path / "m.onnx")
    assert read_manifest(tmp_path / "m.onnx") == read_manifest(rewritten.model) == rewritten.manifest
    assert read_manifest(ir.from_proto(rewritten.model)) == rewritten.manifest
    assert read_manifest(path) is None


def test_a_manifest_of_another_format_is_refused(path, tmp_path):
    proto = rewrite(path, only="*").model
    entry = next(each for each in proto.metadata_props if each.key == "emu.manifest")
    for other in (1, 9):
        entry.value = f'{{"format": {other}}}'
        with pytest.raises(InputError, match=f"manifest of format {other}, this emu reads format {FORMAT}"):
            read_manifest(proto)
    entry.value = "{"
    with pytest.raises(InputError, match="damaged manifest"):
        read_manifest(proto)


def test_a_site_in_the_manifest_has_its_costs():
    rewritten = rewrite(transformer(), device="rram_adc", set={"mapping.tile_rows": 5, "mapping.tile_columns": 3})
    up = next(site for site in rewritten.manifest.sites if site.node == "up0")
    assert up.shape == (8, 12)
    assert up.parameters == up.macs_per_row == 96
    assert up.macs == 5 * 96
    assert up.tiles == 2 * 4
    scores = next(site for site in rewritten.manifest.sites if site.node == "scores0")
    assert (scores.parameters, scores.macs) == (0, 2 * 5 * 5 * 4)
    assert [site.node for site in find_sites(transformer())] == [s.node for s in rewritten.manifest.sites]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestLargeModels:
    """A model with its tensors beside it is replaced as a whole: both files, or none."""

    @pytest.fixture
    def old(self, path, tmp_path, monkeypatch):
        folder = tmp_path / "models"
        folder.mkdir()
        monkeypatch.setattr(save_module, "LARGEST_FILE_BYTES", 1000)
        rewrite(path, device="rram", only="*").save(folder / "big.onnx")
        assert sorted(contents(folder)) == ["big.onnx", "big.onnx.data"]
        return folder

    @pytest.mark.parametrize("failing", [1, 2, 3, 4])
    def test_none_is_replaced_where_one_cannot_be(self, path, old, monkeypatch, failing):
        before, calls, rename = contents(old), 0, os.rename

        def fail(source, target):
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device")
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail)
        with pytest.raises(InputError, match="big.onnx cannot be written: No space left on device"):
            rewrite(path, device="pcm").save(old / "big.onnx")
        assert contents(old) == before

    def test_both_are_replaced(self, path, old):
        before = contents(old)
        rewrite(path, device="pcm", set={"mapping.tile_rows": 7}).save(old / "big.onnx")
        assert sorted(contents(old)) == sorted(before) and contents(old)["big.onnx"] != before["big.onnx"]
        assert list(read_manifest(old / "big.onnx").devices) == ["pcm"]
        emu.session(old / "big.onnx")

    def test_the_tensors_of_the_old_one_go_with_it_and_no_other_file(self, path, old, monkeypatch):
        (old / "other.onnx.data").write_bytes(b"of another")
        monkeypatch.setattr(save_module, "LARGEST_FILE_BYTES", 10**9)
        rewrite(path, device="pcm").save(old / "big.onnx")
        rewrite(path, device="pcm").save(old / "other.onnx")
        assert sorted(contents(old)) == ["big.onnx", "other.onnx", "other.onnx.data"]

    def test_a_new_pair_may_come_where_there_was_none(self, path, tmp_path, old):
        rewrite(path, device="pcm").save(tmp_path / "new.onnx")
        emu.session(tmp_path / "new.onnx")
