"""Exports the architectures of `recipes.py` without their weights: `python -m graphs.export [NAME...]`.

Needs the extra `train`, and for the graphs of optimum the packages optimum and optimum-onnx beside it.
"""

import contextlib
import gzip
import io
import json
import logging
import re
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from graphs.load import FOLDER, path_of
from graphs.recipes import ARCHITECTURES, Architecture
from graphs.weightless import random_tensor, seed_of, strip

OPSETS = {"torchscript": 17, "dynamo": 20, "dynamo23": 23, "optimum": 18}
_SEEN_THROUGH = ("Identity", "Transpose", "Reshape", "Cast")
WITH_HEADS = ("query", "query_key_value", "attention_scores", "attention_context", "attention_output")
WITH_HEADS += ("position_scores",)


def main(wanted: list[str]) -> None:
    """Exports all graphs, or those whose names begin with one of the given ones."""
    path = FOLDER / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {"graphs": {}}
    for name, architecture in ARCHITECTURES.items():
        for exporter in architecture.exporters:
            graph = f"{name}-{exporter}"
            if wanted and not any(graph.startswith(each) for each in wanted):
                continue
            start = time.monotonic()
            proto, parameters = export(architecture, exporter)
            facts = describe(proto, parameters, architecture)
            clean(proto)
            strip(proto, parameters)
            path_of(graph).write_bytes(gzip.compress(proto.SerializeToString(deterministic=True), 9, mtime=0))
            size = path_of(graph).stat().st_size
            print(f"{graph}: {size / 1000:.0f} kB, {len(facts['sites'])} sites, {time.monotonic() - start:.0f} s")
            manifest["graphs"][graph] = {
                "architecture": architecture.source,
                "exporter": exporter,
                "opset": OPSETS[exporter],
                "held_out": architecture.held_out,
                **facts,
            }
            order = [f"{a}-{e}" for a, each in ARCHITECTURES.items() for e in each.exporters]
            manifest["graphs"] = {each: manifest["graphs"][each] for each in order if each in manifest["graphs"]}
            packages = ("torch", "transformers", "onnxscript", "optimum", "optimum-onnx", "onnx")
            manifest["versions"] = {package: version(package) for package in packages}
            path.write_text(_as_text(manifest))


def export(architecture: Architecture, exporter: str) -> tuple[onnx.ModelProto, dict[int, tuple[str, bool]]]:
    """The exported model, and the parameters by the checksum of their content (see `strip`)."""
    torch.manual_seed(0)
    model, inputs = architecture.make()
    model = model.eval()
    parameters: dict[int, tuple[str, bool]] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random_tensor(seed_of(name), tuple(parameter.shape))))
            array = parameter.numpy()
            parameters[zlib.crc32(array.tobytes())] = (name, False)
            if array.ndim == 2 and min(array.shape) > 1:
                parameters[zlib.crc32(np.ascontiguousarray(array.T).tobytes())] = (name, True)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        if exporter == "optimum":
            proto = _optimum(model, Path(folder), architecture.task)
        else:
            proto = _torch(model, inputs, architecture, exporter, Path(folder) / "model.onnx")
    return proto, parameters


def _torch(model: Any, inputs: dict[str, Any], architecture: Architecture, exporter: str, path: Path) -> Any:
    axes = {name: architecture.dynamic_axes[name] for name in inputs}
    options: dict[str, Any] = {"dynamo": False, "dynamic_axes": {**axes, "output": {0: "batch"}}}
    if exporter != "torchscript":
        dims = {each: torch.export.Dim.DYNAMIC for names in axes.values() for each in names.values()}
        shapes = {name: {axis: dims[each] for axis, each in own.items()} for name, own in axes.items()}
        options = {"dynamo": True, "dynamic_shapes": shapes, "external_data": True, "verbose": False}
    with torch.no_grad():
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["output"],
            opset_version=OPSETS[exporter],
            **options,
        )
    return onnx.load(path)


def _optimum(model: Any, folder: Path, task: str) -> Any:
    from optimum.exporters.onnx import onnx_export_from_model

    onnx_export_from_model(model, folder, task=task, opset=OPSETS["optimum"], do_validation=False)
    return onnx.load(folder / "model.onnx")


@contextlib.contextmanager
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def describe(
    proto: onnx.ModelProto, parameters: dict[int, tuple[str, bool]], architecture: Architecture
) -> dict[str, Any]:
    """The sites of an exported model, from the parameters that its weights hold and the modules that its nodes are of.

    Raises:
        LookupError: a product that the recipe says nothing of.

    """
    model = ir.from_proto(proto)
    sites, digital = [], []
    uses: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        if node.op_type not in ("MatMul", "Gemm", "Conv", "Einsum", "Attention", "ConvTranspose"):
            continue
        parameter = _parameter(node.inputs[1], parameters) if len(node.inputs) > 1 else None
        module = module_of(node)
        entry: dict[str, Any] = {"node": node.name, "op": node.op_type}
        if parameter is not None:
            key = parameter
            component = architecture.component(parameter, uses[key])
            path = parameter
        elif re.search(architecture.attention, module) is None:
            digital.append(node.name)
            continue
        else:
            key = path = module
            count = 1 if node.op_type == "Attention" else len(architecture.products)
            found = architecture.products[uses[key] % count] if node.op_type != "Einsum" else "position_scores"
            component = "attention" if node.op_type == "Attention" else found
        layer = architecture.layer(path, uses[key] if parameter is not None else uses[key] // count)
        if node.op_type != "Einsum":
            uses[key] += 1
        if component == "position_projection":
            continue  # of constants: the rewriter computes it, and stores its result
        if component is None or not _is_mappable(node):
            digital.append(node.name)
            continue
        entry |= {"layer": layer, "component": component, "parameter": parameter}
        if layer is not None and component in (*WITH_HEADS, "attention") and node.op_type != "Einsum":
            entry["heads"] = architecture.heads(layer)[0]
        if layer is not None and component in ("key", "value", "key_value"):
            entry["heads"] = architecture.heads(layer)[1]
        sites.append(entry)
    return {"sites": sites, "digital": digital}


def _is_mappable(node: ir.Node) -> bool:
    """Transposed convolutions are sites only if their kernel is their stride."""
    if node.op_type != "ConvTranspose":
        return True
    kernel = list(node.attributes.get_ints("kernel_shape", []))
    strides = list(node.attributes.get_ints("strides", [1] * len(kernel)))
    return (
        kernel == strides and not any(node.attributes.get_ints("pads", [])) and node.attributes.get_int("group", 1) == 1
    )


def _parameter(value: ir.Value | None, parameters: dict[int, tuple[str, bool]]) -> str | None:
    """The parameter whose content a value holds, through operators that only move it."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _SEEN_THROUGH:
        value = node.inputs[0]
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None:
        return None
    found = parameters.get(zlib.crc32(np.ascontiguousarray(tensor.numpy()).tobytes()))
    return found[0] if found else None


def module_of(node: ir.Node) -> str:
    """The module that a node was made by: TorchScript puts it into names, dynamo into metadata."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        return next((each for each in reversed(json.loads(scopes.replace("'", '"'))[:-1]) if each), "")
    parts = (node.name or "").strip("/").split("/")[:-1]
    return ".".join(re.sub(r"_\d+$", "", part) for part in parts)  # a module's later calls are numbered


def clean(proto: onnx.ModelProto) -> None:
    """Removes what says where and by whom the graph was exported: stack traces, paths, comments."""
    for node in proto.graph.node:
        kept = [each for each in node.metadata_props if each.key == "namespace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.ClearField("doc_string")
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.ClearField("doc_string")
    proto.graph.ClearField("doc_string")


def _as_text(manifest: dict[str, Any]) -> str:
    """JSON with one line per site."""
    text = json.dumps(manifest, indent=1)
    return re.sub(r"\{\s+\"node\"[^{}]*\}", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
