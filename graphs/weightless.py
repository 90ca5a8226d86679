"""Graphs without weights: a large tensor is stored as a recipe that rebuilds it.

A stored tensor keeps its name, type and shape, and says in its `doc_string`, as JSON, how to rebuild it:

- `{"recipe": "random", "seed": 5, "transposed": false}`: numbers drawn for its shape (for that of its transpose);
  tensors with the same seed have the same content, as an exporter's copies of one parameter do;
- `{"recipe": "zlib"}`: its bytes, compressed, in `raw_data`. For indices, masks and tables that are no parameters.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

Weights = Literal["constant", "random"]
CONSTANT = 0.01


def random_tensor(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of the size of trained weights, float32."""
    return 0.05 * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def seed_of(name: str) -> int:
    """The seed of a parameter, from its name."""
    return zlib.crc32(name.encode())


def strip(proto: onnx.ModelProto, parameters: Mapping[int, tuple[str, bool]], largest_bytes: int = 1024) -> None:
    """Replaces tensors of more than `largest_bytes` by recipes, in place.

    Args:
        proto: the exported model, weights inside.
        parameters: name of the parameter by the checksum of its content as it may lie in the graph, and whether that
            is the transpose; the parameter itself holds `random_tensor(seed_of(name), shape)`.
        largest_bytes: smaller tensors stay as they are.

    """
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.nbytes <= largest_bytes:
            continue
        content = np.ascontiguousarray(array).tobytes()
        tensor.ClearField("raw_data")
        for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        name, transposed = parameters.get(zlib.crc32(content), ("", False))
        compressed = zlib.compress(content, 9)
        if name or (array.dtype == np.float32 and len(compressed) > len(content) // 4):
            seed = seed_of(name) if name else zlib.crc32(content)
            tensor.doc_string = json.dumps({"recipe": "random", "seed": seed, "transposed": transposed})
        else:
            tensor.doc_string = json.dumps({"recipe": "zlib"})
            tensor.raw_data = compressed


def rebuild(proto: onnx.ModelProto, weights: Weights = "constant") -> ir.Model:
    """The model with all of its tensors.

    Args:
        proto: a stripped model.
        weights: `constant` takes no memory and no time; `random` is computed whenever a tensor is read.

    """
    recipes = {}
    for tensor in proto.graph.initializer:
        if tensor.doc_string:
            recipes[tensor.name] = _tensor(tensor, json.loads(tensor.doc_string), weights)
    model = ir.from_proto(proto)
    for name, tensor in recipes.items():
        model.graph.initializers[name].const_value = tensor
    return model


def _tensor(tensor: onnx.TensorProto, recipe: Mapping[str, Any], weights: Weights) -> ir.TensorProtocol:
    shape, dtype = tuple(tensor.dims), ir.DataType(tensor.data_type)
    if recipe["recipe"] == "zlib":
        array = np.frombuffer(zlib.decompress(tensor.raw_data), dtype.numpy()).reshape(shape)
        return ir.tensor(array, name=tensor.name)
    if weights == "constant":
        return ir.Tensor(np.broadcast_to(np.float32(CONSTANT), shape), name=tensor.name)
    return ir.LazyTensor(_random(recipe["seed"], shape, recipe["transposed"]), dtype, ir.Shape(shape))


def _random(seed: int, shape: tuple[int, ...], transposed: bool) -> Callable[[], ir.TensorProtocol]:
    def make() -> ir.TensorProtocol:
        array = random_tensor(seed, shape[::-1] if transposed else shape)
        return ir.tensor(np.ascontiguousarray(array.T) if transposed else array)

    return make
