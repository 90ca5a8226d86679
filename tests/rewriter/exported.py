"""The exported graphs of EMU_ASSETS with their truth, and ways to run a graph with and without its crossbars."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from emu.contract.codes import numbers_of, read_codes
from emu.contract.site import Site
from emu.rewriter import EmulatedModel, find_sites, rewrite

ASSETS = os.environ.get("EMU_ASSETS")
COMPONENTS = {
    "patch_embed": {"patch_embedding"},
    "pre": {"embedding_projection"},
    "q": {"query"},
    "k": {"key"},
    "v": {"value"},
    "qkv": {"query_key_value"},
    "kv": {"key_value"},
    "qk": {"attention_scores"},
    "sv": {"attention_context"},
    "attn_out": {"attention_output"},
    "fc1": {"ffn_up", "ffn_gate"},
    "fc1b": {"ffn_up", "ffn_gate"},
    "fc2": {"ffn_down"},
    "pooler": {"pooler"},
    "classifier": {"classifier"},
    "rel_pos": {"position_projection"},
    "qk_side": {"position_scores"},
    "extra": {"other"},
}
QUANTIZED = ("DequantizeLinear", "Integer", "QLinear", "DynamicQuantize", "MatMulNBits", "QGemm")
INVALID = "vit__sdpa__tf4-dyn26.onnx"
# The fusion to GroupQueryAttention gave it one length for all samples: onnxruntime runs it with one sample alone.
ONE_SAMPLE_ONLY = ("llama__sdpa__tf4-dyndef-ofo.onnx",)


@cache
def exported_graphs() -> list[dict[str, Any]]:
    if not ASSETS:
        return []
    return json.loads((Path(ASSETS) / "graphs" / "manifest.json").read_text())["files"]


def path_of(graph: dict[str, Any]) -> Path:
    return Path(ASSETS or "") / "graphs" / graph["file"]


def is_float(graph: dict[str, Any]) -> bool:
    ops = [op for part in graph["op_types"].values() for op in part]
    return (
        graph["file"] != INVALID and "fp16" not in graph["file"] and not any(w in op for op in ops for w in QUANTIZED)
    )


def is_fused(graph: dict[str, Any]) -> bool:
    """Whether onnxruntime or onnxscript fused operators of a float graph."""
    ops = [op for part in graph["op_types"].values() for op in part]
    fused = ("com.microsoft", "SimplifiedLayerNormalization")
    return is_float(graph) and any(op.startswith(fused) for op in ops)


def float_graphs() -> list[dict[str, Any]]:
    return [graph for graph in exported_graphs() if is_float(graph)]


def half_graphs() -> list[dict[str, Any]]:
    return [graph for graph in exported_graphs() if "fp16" in graph["file"]]


def quantized_graphs() -> list[dict[str, Any]]:
    known = [*float_graphs(), *half_graphs()]
    return [graph for graph in exported_graphs() if graph not in known and graph["file"] != INVALID]


def supported_graphs() -> list[dict[str, Any]]:
    return [*float_graphs(), *half_graphs(), *quantized_graphs()]


@cache
def rewritten_ideal(path: Path) -> EmulatedModel:
    return rewrite(path, device="ideal")


@cache
def sites_of(path: Path) -> list[Site]:
    return find_sites(path)


def truth(graph: dict[str, Any]) -> dict[str, tuple[int | None, set[str]]]:
    """Node name to layer and allowed components; a fused attention is two or three sites of its expansion."""
    sites: dict[str, tuple[int | None, set[str]]] = {}
    for node in graph["nodes"]:
        layer, label = node["label"]
        if node["op"].startswith("com.microsoft") and label in ("qkv+qk+sv", "qk+sv"):
            inside = ["attention_scores", "attention_context"]
            inside += ["query_key_value"] if label == "qkv+qk+sv" else []
            sites |= {f"{node['name']}/{component}": (layer, {component}) for component in inside}
        elif label == "qk+sv":
            sites |= {
                f"{node['name']}/{component}": (layer, {component})
                for component in ("attention_scores", "attention_context")
            }
        elif label == "rel_pos" and graph["model"].startswith("deberta_v2"):
            continue  # a product of constants: a table of positions is what the next product stores
        elif label == "qk_side" and graph["model"].startswith("deberta_v1"):
            continue  # the length of the text decides which part of the table of positions it multiplies with
        elif label != "rotary":
            sites[node["name"]] = (layer, COMPONENTS[label])
    return sites


def heads_of(graph: dict[str, Any], layer: int | None) -> tuple[int, int]:
    """Query heads and key heads, from the configuration that the graph was made with."""
    if graph["model"] == "llama":
        return 4, 2
    if graph["model"] == "swin":
        heads = 2 if layer in (0, 1) else 4
        return heads, heads
    return 3, 3


def with_plain_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The rewritten model with MatMul or Conv in the place of every crossbar product, and float weights for codes."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    tensors = {each.name: each for each in plain.graph.initializer}
    for node in plain.graph.node:
        if node.domain == "emu":
            operands = list(node.input[:2])
            if node.op_type == "CrossbarMatMulQuantized":
                tensors[operands[1]].CopyFrom(onnx.numpy_helper.from_array(dequantized(model, node), operands[1]))
            window = next((each.s.decode() for each in node.attribute if each.name == "window"), "")
            node.ClearField("input")
            node.ClearField("attribute")
            node.domain, node.op_type = "", "MatMul"
            if window:
                kernel, attributes = _convolution(onnx.numpy_helper.to_array(tensors[operands[1]]), window)
                operands[1] = f"{node.name}.kernel"
                plain.graph.initializer.append(onnx.numpy_helper.from_array(kernel, operands[1]))
                node.op_type = "Conv"
                node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
            node.input.extend(operands)
    return plain


def _convolution(weight: np.ndarray, window: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The kernel of a Conv, and its attributes, from a weight [K, N] or [groups, K, N] and its window."""
    sides = [list(map(int, side.split(","))) for side in window.split(";")]
    sizes, strides, dilations, before, behind = (list(each) for each in zip(*sides, strict=True))
    stack = weight if weight.ndim == 3 else weight[None]
    kernel = np.ascontiguousarray(stack.swapaxes(1, 2)).reshape(stack.shape[0] * stack.shape[2], -1, *sizes)
    return kernel, {"strides": strides, "dilations": dilations, "pads": before + behind, "group": len(stack)}


def dequantized(model: onnx.ModelProto, node: onnx.NodeProto) -> np.ndarray:
    """The weight of a CrossbarMatMulQuantized, as docs/operators.md has it."""
    return numbers_of(*stored_codes(model, node), _integer(node, "block_rows"))


def stored_codes(model: onnx.ModelProto, node: onnx.NodeProto) -> list[np.ndarray]:
    """Codes, scale and zero point of a CrossbarMatMulQuantized."""
    tensors = {each.name: each for each in model.graph.initializer}
    codes, scale, zero_point = (onnx.numpy_helper.to_array(tensors[name]) for name in node.input[1:4])
    return [read_codes(codes, _integer(node, "code_bits")), scale, zero_point]


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next(each.i for each in node.attribute if each.name == name)


def feeds(model: onnx.ModelProto, batch: int, tokens: int = 9) -> dict[str, np.ndarray]:
    """Random inputs, of which sample i is the same for every batch size."""
    result: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name.startswith("emu."):
            continue
        dims = value.type.tensor_type.shape.dim
        shape = []
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value"):
                shape.append(dim.dim_value)
            elif axis == 0:
                shape.append(batch)
            elif dim.dim_param.isdigit():
                shape.append(int(dim.dim_param))
            elif len(dims) == 4:
                shape.append(3 if axis == 1 else 32)
            else:
                shape.append(tokens)
        result[value.name] = _random(value, shape)
    return result


def _random(value: onnx.ValueInfoProto, shape: list[int]) -> np.ndarray:
    if not shape:
        return np.array(0)
    samples = []
    for sample in range(shape[0]):
        generator = np.random.default_rng(sample)
        if value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            samples.append(generator.standard_normal(shape[1:], dtype=np.float32))
        elif "mask" in value.name:
            samples.append(np.arange(shape[1]) < shape[1] - sample)
        else:
            samples.append(generator.integers(0, 2 if "type" in value.name else 100, shape[1:]))
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return np.stack(samples).astype(kind)


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return opened(model).run(None, inputs)


def opened(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@cache
def original_session(path: Path) -> onnxruntime.InferenceSession:
    """The session of a graph as it was exported, which several tests run."""
    return opened(onnx.load(path))
