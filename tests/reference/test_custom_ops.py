"""The twin inside a stock onnxruntime session, as Python custom ops."""

import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from emu.contract.schema import OPERATORS
from emu.errors import InputError
from emu.reference import custom_ops
from emu.reference.custom_ops import pending_error, register_python_ops

from .nodes import EVERYTHING_DYNAMIC, EVERYTHING_STORED, PLAIN_DYNAMIC, PLAIN_STORED, controls, dynamic, normal, stored

CONTROL_INPUTS = ("device", "strength", "ranges", "faults", "seed", "read_seed", "sample", "position", "keys", "head")


def model_bytes(op: str, w: np.ndarray | None, **node: Any) -> bytes:
    """A model of one site and a digital Neg behind it; controls are inputs with defaults. Without w, B is an input."""
    numbers = node.pop("numbers")
    is_dynamic = op == "CrossbarMatMulDynamic"
    values = {**(PLAIN_DYNAMIC if is_dynamic else PLAIN_STORED), **controls(numbers), **node}
    values |= {"keys": np.zeros((0, 2), np.int64)}
    names = tuple(each.name for each in OPERATORS[op].controls)
    defaults = {name: np.asarray(values[name]) for name in names}
    values = {name: value for name, value in values.items() if name not in CONTROL_INPUTS}
    leading = ["batch", "rows"]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*leading, None])]
    initializers = []
    if w is None:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["batch", None, None]))
    else:
        initializers.append(numpy_helper.from_array(w, "w"))
    for name, default in defaults.items():
        initializers.append(numpy_helper.from_array(default, f"emu.{name}"))
        shape = ["samples"] if name == "sample" and default.ndim else list(default.shape)
        inputs.append(
            helper.make_tensor_value_info(f"emu.{name}", helper.np_dtype_to_tensor_dtype(default.dtype), shape)
        )
    site = helper.make_node(
        op, ["x", "w", *(f"emu.{name}" for name in names)], ["product"], name="site", domain="emu", **values
    )
    negated = helper.make_node("Neg", ["product"], ["y"])
    graph = helper.make_graph(
        [site, negated], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], initializers
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("emu", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return model.SerializeToString()


def session(model: bytes) -> onnxruntime.InferenceSession:
    """A session that knows the Python ops."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    register_python_ops(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.fixture(autouse=True)
def no_error_left_behind():
    """Every test starts without a pending error."""
    pending_error()


def test_a_stored_site_runs_as_the_plain_function():
    x, w = normal(4, 6, 23), normal(23, 10)
    run = session(model_bytes("CrossbarMatMul", w, **EVERYTHING_STORED)).run
    (y,) = run(None, {"x": x})
    assert pending_error() is None
    np.testing.assert_array_equal(-y, stored(x, w, **EVERYTHING_STORED))
    fed = {"x": x, "emu.seed": np.asarray(7), "emu.read_seed": np.asarray(8), "emu.sample": np.asarray(9)}
    (y,) = run(None, fed)
    np.testing.assert_array_equal(-y, stored(x, w, seed=7, read_seed=8, sample=9, **EVERYTHING_STORED))
    (y,) = run(None, {"x": x, "emu.strength": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(-y, stored(x, w, strength=0.0, **EVERYTHING_STORED))


def test_a_dynamic_site_runs_as_the_plain_function():
    a, b = normal(4, 6, 23), normal(4, 23, 10, seed=1)
    (y,) = session(model_bytes("CrossbarMatMulDynamic", None, **EVERYTHING_DYNAMIC)).run(None, {"x": a, "w": b})
    assert pending_error() is None
    np.testing.assert_array_equal(-y, dynamic(a, b, **EVERYTHING_DYNAMIC))


def test_a_site_without_entries_and_an_empty_batch_run():
    w = normal(23, 10)
    node: dict[str, Any] = {"numbers": {}}
    run = session(model_bytes("CrossbarMatMul", w, **node)).run
    x = normal(2, 3, 23)
    np.testing.assert_array_equal(-run(None, {"x": x})[0], stored(x, w))
    assert run(None, {"x": np.zeros((0, 3, 23), np.float32)})[0].shape == (0, 3, 10)
    assert pending_error() is None


def test_sample_may_carry_the_size_of_the_batch():
    x, w = normal(2, 6, 23), normal(23, 10)
    model = model_bytes("CrossbarMatMul", w, **{**EVERYTHING_STORED, "sample": np.array([0, 1])})
    (y,) = session(model).run(None, {"x": x, "emu.sample": np.array([5, 1])})
    assert pending_error() is None
    np.testing.assert_array_equal(-y, stored(x, w, sample=[5, 1], **EVERYTHING_STORED))


def test_many_sessions_share_one_definition():
    w = normal(23, 10)
    sessions = [session(model_bytes("CrossbarMatMul", w, **EVERYTHING_STORED)) for _ in range(3)]
    x = normal(2, 6, 23)
    outputs = [one.run(None, {"x": x})[0] for one in sessions]
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_an_error_in_the_op_gives_nan_of_the_right_shape_and_is_kept():
    run = session(model_bytes("CrossbarMatMul", normal(23, 10), **EVERYTHING_STORED)).run
    (y,) = run(None, {"x": normal(2, 6, 23), "emu.seed": np.asarray(-1)})
    assert y.shape == (2, 6, 10) and np.isnan(y).all()
    error = pending_error()
    assert isinstance(error, InputError) and "input 'seed' is -1" in str(error)
    assert pending_error() is None
    (y,) = run(None, {"x": normal(2, 6, 23)})
    assert pending_error() is None and not np.isnan(y).any()


def test_operands_that_do_not_fit_are_an_error_not_a_crash():
    run = session(model_bytes("CrossbarMatMul", normal(23, 10), **EVERYTHING_STORED)).run
    run(None, {"x": normal(2, 6, 22)})
    assert "input 'X' has 22 columns, expected 23" in str(pending_error())
    run = session(model_bytes("CrossbarMatMulDynamic", None, **EVERYTHING_DYNAMIC)).run
    run(None, {"x": normal(2, 6, 23), "w": normal(2, 22, 10)})
    assert "input 'A' has 23 columns, expected 22" in str(pending_error())


def test_an_attribute_that_the_page_does_not_know_is_an_error():
    model = model_bytes("CrossbarMatMul", normal(23, 10), **{**EVERYTHING_STORED, "format": 1})
    session(model).run(None, {"x": normal(2, 6, 23)})
    assert "attribute 'format' is 1" in str(pending_error())


def test_even_an_interrupt_does_not_end_the_process(monkeypatch):
    def interrupted(*inputs: Any, **attributes: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("emu.reference.crossbar.check_controls", interrupted)
    session(model_bytes("CrossbarMatMul", normal(23, 10), **EVERYTHING_STORED)).run(None, {"x": normal(2, 6, 23)})
    assert isinstance(pending_error(), KeyboardInterrupt)


def test_an_error_belongs_to_the_thread_that_ran():
    run = session(model_bytes("CrossbarMatMul", normal(23, 10), **EVERYTHING_STORED)).run
    errors: dict[int, BaseException | None] = {}

    def work(seed: int) -> None:
        run(None, {"x": normal(2, 6, 23), "emu.seed": np.asarray(seed)})
        errors[seed] = pending_error()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (-1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(errors[-1], InputError) and errors[1] is None and pending_error() is None


def test_outputs_leave_the_op_without_a_python_list():
    """onnxruntime-extensions calls `flatten().tolist()` on a result; a list of floats costs 60 ns for each."""
    result = np.ones((2, 3), np.float32).view(custom_ops._Unlisted)
    assert isinstance(result.flatten().tolist(), np.ndarray)


def test_a_fresh_process_runs_a_model_file(tmp_path):
    """Nothing but the file and `register_python_ops`, and no import of onnxruntime-extensions before that."""
    x, w = normal(2, 6, 23), normal(23, 10)
    (tmp_path / "model.onnx").write_bytes(model_bytes("CrossbarMatMul", w, **EVERYTHING_STORED))
    np.save(tmp_path / "x.npy", x)
    program = """
        import sys, numpy, onnxruntime
        from emu.reference.custom_ops import pending_error, register_python_ops
        assert "onnxruntime_extensions" not in sys.modules
        options = onnxruntime.SessionOptions()
        register_python_ops(options)
        session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", options)
        numpy.save(sys.argv[1] + "/y.npy", session.run(None, {"x": numpy.load(sys.argv[1] + "/x.npy")})[0])
        assert pending_error() is None
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=True)
    np.testing.assert_array_equal(-np.load(tmp_path / "y.npy"), stored(x, w, **EVERYTHING_STORED))
