"""A model of one crossbar node, for running an operator alone."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from emu.contract.schema import OPERATORS
from emu.contract.structure import parse_structure
from emu.runtime import session

# Operands of each operator: those fed at run time, then the constants.
OPERANDS = {
    op: tuple(tuple(each.name for each in row.operands if each.constant == constant) for constant in (False, True))
    for op, row in OPERATORS.items()
}


def one_node_model(
    op: str, attributes: dict[str, int | str], *constants: NDArray[Any], constant: bool = True
) -> onnx.ModelProto:
    """Return a model of one node; its other operands and the controls are inputs (all operands if not constant)."""
    fed, fixed = OPERANDS[op]
    types = {each.name: each.type for each in OPERATORS[op].inputs}
    names = tuple(each.name for each in OPERATORS[op].controls)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if types[name] == "int64" else TensorProto.FLOAT, None)
        for name in (*fed, *(() if constant else fixed), *names)
    ]
    node = helper.make_node(op, [*fed, *fixed, *names], ["Y"], name="the/node", domain="emu", **attributes)
    weights = [numpy_helper.from_array(array, name) for name, array in zip(fixed, constants, strict=False)]
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one_node", inputs, [output], weights if constant else [])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("emu", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def controls(
    device: Any,
    strength: float = 1.0,
    seed: int = 0,
    read_seed: int = 0,
    sample: Any = 0,
    head: int = -1,
    ranges: Any = (1.0, -1.0, 1.0, 1.0),
    faults: Any = (),
    array: int = 0,
    position: Any = (),
) -> dict[str, NDArray[Any]]:
    """Return the controls of a model with one site; `ranges` is its row, `faults` are those of `array`."""
    return {
        "device": np.asarray(device, np.float32),
        "strength": np.asarray([strength], np.float32),
        "ranges": np.asarray([ranges], np.float32),
        "faults": np.array([(array, fault) for fault in faults], np.int64).reshape(-1, 2),
        "seed": np.asarray(seed, np.int64),
        "read_seed": np.asarray(read_seed, np.int64),
        "sample": np.asarray(sample, np.int64),
        "position": np.asarray(position, np.int64),
        "head": np.asarray(head, np.int64),
    }


def random_ranges(attributes: dict[str, Any], row_tiles: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the row of a site with several ranges, some of them shared, and set the attributes that count them."""
    structure = parse_structure("CrossbarMatMul" if "encoding" in attributes else "CrossbarMatMulDynamic", attributes)
    is_cache = structure.key_axis == "rows"
    attributes["range_tiles"] = 1 if is_cache else int(rng.choice((1, max(1, row_tiles))))
    if "encoding" in attributes:
        attributes["range_slices"] = int(rng.choice((1, structure.weight_slices)))
        attributes["range_polarities"] = int(rng.choice((1, 1 + structure.has_pairs)))
    count = attributes["range_tiles"] * attributes.get("range_slices", 1) * attributes.get("range_polarities", 1)
    low, high = (1.0, -4.0, 0.5, 1.0), (2.5, -1.0, 3.0, 1.5)
    return rng.uniform(low, high, (count + int(rng.integers(2)), 4)).astype(np.float32).reshape(-1)


def run_one_node(
    op: str,
    attributes: dict[str, int | str],
    operands: tuple[NDArray[Any], ...],
    feeds: dict[str, NDArray[Any]],
    **session_options: Any,
) -> NDArray[np.float32]:
    """Run an operator once; the operands in the order of its inputs."""
    fed, _ = OPERANDS[op]
    opened = session(one_node_model(op, attributes, *operands[len(fed) :]), **session_options)
    wanted = {value.name for value in opened.get_inputs()}
    given = {"keys": np.zeros((0, 2), np.int64), **dict(zip(fed, operands, strict=False)), **feeds}
    (y,) = opened.run(None, {name: value for name, value in given.items() if name in wanted})
    return np.asarray(y)
