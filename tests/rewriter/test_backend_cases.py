"""ONNX's own cases of the operators that hold products, as the installed onnx brings them: equal on an ideal device."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.backend.test.loader import load_model_tests

from emu.errors import InputError
from emu.rewriter import rewrite
from emu.runtime import session

pytestmark = pytest.mark.slow
OPERATORS = ("Attention", "MatMul", "MatMulInteger", "QLinearMatMul", "Conv", "ConvTranspose", "Einsum", "Gemm")


def cases():
    found = []
    for case in load_model_tests(kind="node"):
        path = f"{case.model_dir}/model.onnx" if case.model is None else None
        model = case.model or onnx.load(path)
        if any(node.op_type in OPERATORS for node in model.graph.node):
            found.append(pytest.param(case, model, id=case.name))
    return found


def inputs_of(case, model) -> dict[str, np.ndarray]:
    if case.data_sets is not None:
        arrays = case.data_sets[0][0]
    else:
        folder = f"{case.model_dir}/test_data_set_0"
        arrays = [
            onnx.numpy_helper.to_array(onnx.load_tensor(f"{folder}/input_{place}.pb"))
            for place in range(len(model.graph.input))
        ]
    return dict(zip((value.name for value in model.graph.input), arrays, strict=True))


@pytest.mark.parametrize(("case", "model"), cases())
def test_a_case_of_onnx_equals_the_original_on_an_ideal_device(case, model):
    feeds = inputs_of(case, model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        original = onnxruntime.InferenceSession(model.SerializeToString(), options)
        expected = original.run(None, feeds)
    except Exception as error:
        pytest.skip(f"onnxruntime does not run it: {str(error)[:80]}")
    try:
        rewritten = rewrite(model, device="ideal")
    except InputError as error:
        # Weights are inputs in these cases: a Conv or integer product without a constant weight is no site.
        assert "has no matrix product" in str(error) or "works in" in str(error)
        return
    results = session(rewritten).run([value.name for value in model.graph.output], feeds)
    for result, wanted in zip(results, expected, strict=True):
        assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
        if wanted.dtype.kind == "f":  # onnxruntime hides keys by its lowest number, the standard by minus infinity
            wanted = np.where(wanted <= np.finfo(wanted.dtype).min, -np.inf, wanted).astype(wanted.dtype)
        tolerance = 2e-2 if wanted.dtype == np.float16 else 1e-4
        np.testing.assert_allclose(result.astype(np.float64), wanted.astype(np.float64), rtol=tolerance, atol=tolerance)
