"""Files of other times: old opsets, sparse weights, newer IR versions, outputs without types, links to data."""

import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from emu.cli import app
from emu.errors import InputError
from emu.rewriter import rewrite
from emu.runtime import session

from .small import model, values

X = {"x": values(3, 4)}


def same(original: onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None) -> dict:
    feeds = feeds or X
    rewritten = rewrite(original, device="ideal")
    names = [value.name for value in original.graph.output]
    expected = onnxruntime.InferenceSession(original.SerializeToString()).run(names, feeds)
    for result, wanted in zip(session(rewritten).run(names, feeds), expected, strict=True):
        np.testing.assert_allclose(result, wanted, atol=1e-6)
    return rewritten.manifest


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_an_old_opset_is_converted_and_the_note_says_so(opset):
    manifest = same(model("h = MatMul(x, w) y = Softmax <axis = 1> (h)", opset=opset, ir_version=4, w=values(4, 3)))
    assert manifest.notes == (f"opset {opset} was converted to opset 11 by onnx's version converter",)


def test_an_opset_that_cannot_be_converted_is_refused():
    original = model("h = MatMul(x, w) y = Upsample <scales = [2.0]> (h)", opset=6, ir_version=3, w=values(4, 3))
    with pytest.raises(InputError, match="uses opset 6, which onnx's version converter cannot raise to 11"):
        rewrite(original, only="*")


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_weights_are_written_out(flat):
    original = model("y = MatMul(x, w)")
    places = np.array([1, 7]) if flat else np.array([[0, 1], [2, 1]])
    sparse = onnx.helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(np.array([2.0, -1.0], np.float32), "w"),
        onnx.numpy_helper.from_array(places.astype(np.int64), "places"),
        [4, 3],
    )
    original.graph.sparse_initializer.append(sparse)
    w = np.zeros((4, 3), np.float32)
    w[0, 1], w[2, 1] = 2, -1
    rewritten = rewrite(original, device="ideal")
    np.testing.assert_allclose(session(rewritten).run(None, X)[0], X["x"] @ w, atol=1e-6)
    assert rewritten.manifest.notes == ("sparse weights were written out in full",)
    original.graph.sparse_initializer[0].indices.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 12]), "places"))
    with pytest.raises(InputError, match="the indices of sparse tensor 'w' do not fit its shape"):
        rewrite(original, only="*")


@pytest.mark.parametrize(("opset", "lowest"), [(17, 8), (21, 10), (11, 6)])
def test_the_lowest_ir_version_that_serves_is_written(opset, lowest):
    assert (
        rewrite(model("y = MatMul(x, w)", opset=opset, ir_version=13, w=values(4, 3)), only="*").model.ir_version
        == lowest
    )


def test_outputs_that_only_a_name_was_given_for_stay_outputs():
    original = model("h = MatMul(x, w) y = Relu(h)", w=values(4, 3))
    original.graph.output.append(onnx.ValueInfoProto(name="h"))
    same(original)
    original = model("y = MatMul(x, w)", w=values(4, 3))
    original.graph.output[0].type.tensor_type.ClearField("shape")
    original.graph.input[0].type.tensor_type.ClearField("shape")
    same(original)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensor: tensor.dims.__setitem__(0, -4), "negative size"),
        (lambda tensor: tensor.float_data.pop(), r"holds 11 numbers, its shape \[4, 3\] needs 12"),
        (lambda tensor: tensor.float_data.append(0), "holds 13 numbers"),
    ],
)
@pytest.mark.parametrize("constant", [False, True])
def test_tensors_that_are_not_what_their_shape_says_are_refused(change, problem, constant):
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4, 3], values(4, 3).ravel())
    change(tensor)
    original = model("y = MatMul(x, w)")
    if constant:
        original.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], name="w", value=tensor))
    else:
        original.graph.initializer.append(tensor)
    with pytest.raises(InputError, match=f"tensor 'w' .*{problem}"):
        rewrite(original, only="*")


def cached(tmp_path, external: str = "model.onnx_data"):
    """A model as a cache of Hugging Face keeps it: links in one folder to files in another."""
    original = model("y = MatMul(x, w)", w=values(4, 3000), outputs="float[batch, n] y")
    store, links = tmp_path / "blobs", tmp_path / "snapshot"
    store.mkdir()
    links.mkdir()
    onnx.save(original, store / "aaa", save_as_external_data=True, location=external, size_threshold=0)
    (store / external).rename(store / "bbb")
    os.symlink("../blobs/aaa", links / "model.onnx")
    return store, links


def test_links_to_a_model_and_its_data_are_followed(tmp_path):
    _, links = cached(tmp_path)
    os.symlink("../blobs/bbb", links / "model.onnx_data")
    rewrite(links / "model.onnx", device="ideal").save(tmp_path / "out.onnx")
    expected = onnxruntime.InferenceSession(links / "model.onnx").run(None, X)[0]
    np.testing.assert_allclose(session(tmp_path / "out.onnx").run(None, X)[0], expected, atol=1e-6)


def test_a_link_that_leads_elsewhere_is_refused(tmp_path):
    store, links = cached(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (store / "bbb").rename(tmp_path / "elsewhere" / "bbb")
    os.symlink("../elsewhere/bbb", links / "model.onnx_data")
    with pytest.raises(InputError, match="is a link to .*, which lies neither in the model's folder nor"):
        rewrite(links / "model.onnx", only="*")


def test_the_command_line_says_what_reading_changed_and_where_samples_lie(tmp_path):
    path = tmp_path / "old.onnx"
    onnx.save(model("y = MatMul(x, w)", opset=9, ir_version=4, w=values(4, 3)), path)
    printed = said("inspect", str(path))
    assert "opset 9 was converted to opset 11" in printed
    assert "Samples: axis 0 of 'x' (by 'batch')." in printed
    batch = json.loads(said("inspect", str(path), "--json"))["batch"]
    assert batch == {"input": "x", "axis": 0, "size": None, "told": "by 'batch'"}
    options = ("--device", "ideal", "--batch-axis", "x:1", "-o", str(tmp_path / "r.onnx"))
    assert "Samples: axis 1 of 'x' (given)." in said("rewrite", str(path), *options)


def test_the_data_of_a_constant_node_may_lie_in_another_file(tmp_path):
    original = model("y = MatMul(x, w)")
    weight = onnx.numpy_helper.from_array(values(4, 3))
    original.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weight))
    path = tmp_path / "model.onnx"
    onnx.save(
        original, path, save_as_external_data=True, size_threshold=0, location="model.data", convert_attribute=True
    )
    rewrite(path, device="ideal").save(tmp_path / "ideal.onnx")
    (y,) = session(tmp_path / "ideal.onnx").run(None, {"x": values(2, 4, seed=1)})
    np.testing.assert_allclose(y, values(2, 4, seed=1) @ values(4, 3), atol=1e-5)
    (tmp_path / "model.data").unlink()
    with pytest.raises(InputError, match=r"its external data .*model\.data is missing"):
        rewrite(path, only="*")
