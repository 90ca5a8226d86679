"""A model of one crossbar node, for running an operator alone."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from emu.runtime import session

CONTROLS = ("device", "strength", "seed", "read_seed", "sample", "head")


def one_node_model(op: str, attributes: dict[str, int | str], w: NDArray[np.float32] | None = None) -> onnx.ModelProto:
    """Return a model whose inputs are the operands (W is constant if given) and the six controls."""
    stored = op == "CrossbarMatMul"
    operands = ("X", "W") if stored else ("A", "B")
    floats = {operands[0], operands[1], "device", "strength"}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT if name in floats else TensorProto.INT64, None)
        for name in (*operands, *CONTROLS)
        if not (name == "W" and w is not None)
    ]
    node = helper.make_node(op, [*operands, *CONTROLS], ["Y"], name="the/node", domain="emu", **attributes)
    graph = helper.make_graph(
        [node],
        "one_node",
        inputs,
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "W")] if w is not None else [],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("emu", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def controls(
    device: Any, strength: float = 1.0, seed: int = 0, read_seed: int = 0, sample: Any = 0, head: int = -1
) -> dict[str, NDArray[Any]]:
    """Return feeds for the six controls of a model with one site."""
    return {
        "device": np.asarray(device, np.float32),
        "strength": np.asarray([strength], np.float32),
        "seed": np.asarray(seed, np.int64),
        "read_seed": np.asarray(read_seed, np.int64),
        "sample": np.asarray(sample, np.int64),
        "head": np.asarray(head, np.int64),
    }


def run_one_node(
    op: str,
    attributes: dict[str, int | str],
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    feeds: dict[str, NDArray[Any]],
    **session_options: Any,
) -> NDArray[np.float32]:
    """Run the native operator once."""
    if op == "CrossbarMatMul":
        opened = session(one_node_model(op, attributes, right), **session_options)
        operands = {"X": left}
    else:
        opened = session(one_node_model(op, attributes), **session_options)
        operands = {"A": left, "B": right}
    (y,) = opened.run(None, {**operands, **feeds})
    return np.asarray(y)
