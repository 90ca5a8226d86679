"""One crossbar, computed by the NumPy twin or by the native library: what is compared with laws and with other tools.

Every setting is at its plainest; a caller names what differs: attributes as `docs/operators.md` calls them, `numbers`
for the entries of `device`, and the controls.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu import reference
from emu.contract.schema import OPERATORS, plain
from emu.device import load_profile

Array = NDArray[Any]
Attributes = dict[str, int | str]

Run = Callable[[str, dict[str, Array], Attributes], Array]


class Crossbar:
    """The operators of one implementation, each run once per call."""

    def __init__(self, name: str, run: Run) -> None:
        self.name = name
        self._run_operator = run

    def stored(self, x: ArrayLike, w: ArrayLike, **settings: Any) -> Array:
        """Return the product of x `[..., K]` with a stored w `[K, N]`."""
        return self._run("CrossbarMatMul", [_float(x), _float(w)], settings)

    def quantized(
        self, x: ArrayLike, codes: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, **settings: Any
    ) -> Array:
        """Return the product of x with int8 codes `[K, N]`."""
        operands = [_float(x), np.asarray(codes, np.int8), _float(scale), _float(zero_point)]
        return self._run("CrossbarMatMulQuantized", operands, settings)

    def dynamic(self, a: ArrayLike, b: ArrayLike, **settings: Any) -> Array:
        """Return the product of a `[..., M, K]` with a written b `[..., K, N]`."""
        return self._run("CrossbarMatMulDynamic", [_float(a), _float(b)], settings)

    def faulty_weight(self, w: ArrayLike, **settings: Any) -> Array:
        """Return what an array holds for w, in weight units."""
        return self._run("FaultyWeight", [_float(w)], settings)

    def held(self, w: ArrayLike, **settings: Any) -> Array:
        """Return the same through products with unit vectors, which are exact as long as nothing is read with error."""
        return self.stored(np.eye(len(np.asarray(w))), w, **settings)

    def written(self, b: ArrayLike, **settings: Any) -> Array:
        """Return what an array holds for a dynamic operand b `[K, N]`, through products with unit vectors."""
        return self.dynamic(np.eye(np.asarray(b).shape[-2]), b, **settings)

    def _run(self, operator: str, operands: list[Array], settings: dict[str, Any]) -> Array:
        row = OPERATORS[operator]
        given = dict(settings)
        numbers: Mapping[str, float] = given.pop("numbers", {})
        site, sites = given.get("site", 0), given.get("sites", 1)
        values: dict[str, Array] = {
            "device": _float(list(numbers.values())),
            "strength": np.full(sites, given.pop("strength", 1.0), np.float32),
            "ranges": np.broadcast_to(_float(given.pop("ranges", (1, -1, 1, 1))), (sites, 4)).copy(),
            "faults": np.array([(0, each) for each in given.pop("faults", ())], np.int64).reshape(-1, 2),
            **{
                name: np.asarray(given.pop(name, default), np.int64)
                for name, default in (("seed", 0), ("read_seed", 0), ("sample", 0), ("position", ()), ("head", -1))
            },
            "keys": np.asarray(given.pop("keys", ()), np.int64).reshape(-1, 2),
        }
        placed = {"site": site, "sites": sites, "entries": ",".join(numbers), "tile_split": "balanced"}
        inputs = {each.name: value for each, value in zip(row.operands, operands, strict=True)}
        inputs |= {each.name: values[each.name] for each in row.controls}
        attributes: Attributes = {**plain(operator), **placed, **given}
        return self._run_operator(operator, inputs, attributes)


def law_of(preset: str, section: str = "drift", **settings: Any) -> dict[str, float]:
    """Return the numbers of one section of a preset, with changed settings of it."""
    profile = load_profile(preset, {f"{section}.{name}": value for name, value in settings.items()})
    return {name: value for name, value in profile.entries().items() if name.startswith(f"{section}.")}


def _float(values: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def _run_twin(operator: str, inputs: dict[str, Array], attributes: Attributes) -> Array:
    functions: dict[str, Callable[..., Array]] = {
        "CrossbarMatMul": reference.crossbar_matmul,
        "CrossbarMatMulQuantized": reference.crossbar_matmul_quantized,
        "CrossbarMatMulDynamic": reference.crossbar_matmul_dynamic,
        "FaultyWeight": reference.faulty_weight,
    }
    return functions[operator](*inputs.values(), **attributes)


def _run_native(operator: str, inputs: dict[str, Array], attributes: Attributes) -> Array:
    from onnx import TensorProto, helper, numpy_helper

    from emu.runtime import session

    constant = {each.name for each in OPERATORS[operator].inputs if each.constant}
    fed = {name: value for name, value in inputs.items() if name not in constant}
    constants = [numpy_helper.from_array(inputs[name], name) for name in sorted(constant)]
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), ["Y"], name="the/node", domain="emu", **attributes)],
        "one_crossbar",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
            for name, value in fed.items()
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("emu", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    (y,) = session(model).run(None, fed)
    return np.asarray(y)


TWIN = Crossbar("twin", _run_twin)
NATIVE = Crossbar("native", _run_native)
