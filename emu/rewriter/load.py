"""Reads a model into onnx-ir, from a file or from memory, and refuses what is not a whole, valid ONNX model."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from emu.contract.manifest import MANIFEST_KEY
from emu.errors import InputError
from emu.rewriter.dataflow import captured_values
from emu.rewriter.modernize import OLDEST_OPSET, modernized
from emu.rewriter.protobuf_file import CutShortError, DamagedError, in_memory, read_model
from emu.rewriter.tensor_checks import check_tensors

ModelSource: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | ir.Model

DOMAIN = "emu"
_SMALL_BYTES = 4096


@dataclass(frozen=True)
class Loaded:
    """A model that was read.

    Attributes:
        model: owned by the caller. Tensors are shared with the source, nothing else is; external data stay on disk,
            memory-mapped.
        name: how to call it in an error.
        notes: what reading changed, in sentences.

    """

    model: ir.Model
    name: str
    notes: list[str]


def load(source: ModelSource, rewritten: bool = False) -> Loaded:
    """Reads a plain model, or a rewritten one.

    Args:
        source: the path of an .onnx file (external data beside it), an `onnx.ModelProto` or an onnx-ir model.
        rewritten: which of the two it must be.

    Raises:
        InputError: no such file, not an ONNX model, missing or short external data, a cycle, an opset that is too old
            to be converted, or a model that is rewritten already, or not yet.

    """
    notes: list[str] = []
    folders: list[Path] = []  # that external data may lie in; none: wherever the caller's model says
    if isinstance(source, ir.Model):
        model, name = source.clone(), f"Model '{source.graph.name or 'in memory'}'"
        if model.opset_imports.get("", OLDEST_OPSET) < OLDEST_OPSET:
            model, notes = _from_proto(ir.to_proto(in_memory(model)), name)
    elif isinstance(source, onnx.ModelProto):
        name = f"Model '{source.graph.name or 'in memory'}'"
        model, notes = _from_proto(source, name)
    else:
        path = Path(source)
        name = f"Model {path}"
        model, notes = _from_proto(read_proto(path), name)
        ir.external_data.set_base_dir(model.graph, path.parent)
        folders = [path.parent.resolve(), path.resolve().parent]
    _check_rewritten(model, name, rewritten)
    _check_data(model, name, folders)
    _sort(model, name)
    return Loaded(model, name, notes)


def read_proto(path: Path) -> onnx.ModelProto:
    """Reads the protobuf of a model file, without its external data.

    Raises:
        InputError: no such file, or not an ONNX model.

    """
    if path.is_dir():
        raise InputError(f"Model {path} is a folder: give the .onnx file in it.")
    try:
        proto = read_model(path)
    except OSError as error:
        raise InputError(f"Model {path} cannot be read: {error.strerror or error}.") from None
    except CutShortError as error:
        raise InputError(f"Model {path} is not an ONNX model, or is cut short: {error}.") from None
    except DamagedError:
        raise InputError(f"Model {path} is not an ONNX model, or is damaged: give a binary .onnx file.") from None
    if not proto.HasField("graph"):
        raise InputError(f"Model {path} is not an ONNX model, or is cut short: it holds no graph.")
    return proto


def check_graph(model: ir.Model, what_is_wrong: str, what_to_do: str) -> None:
    """Runs onnx's checker, without handing it the weights.

    Raises:
        InputError: `<what_is_wrong>: <the checker's sentence>; <what_to_do>.`

    """
    try:
        with _complete_interface(model.graph):
            common_passes.CheckerPass()(model)
    except onnx.checker.ValidationError as error:
        raise InputError(f"{what_is_wrong}: {_checker_sentence(error)}; {what_to_do}.") from None
    except (ValueError, ir.serde.SerdeError) as error:
        raise InputError(f"{what_is_wrong}: {_first_line(_cause(error))}; {what_to_do}.") from None


@contextmanager
def _complete_interface(graph: ir.Graph) -> Iterator[None]:
    """Gives inputs and outputs without a type or shape some, for as long as the checker looks: it asks for both.

    onnxruntime finds them by itself; an output that only a name was given for is the usual way to see hidden values.
    """
    bare = [value for value in (*graph.inputs, *graph.outputs) if value.type is None or value.shape is None]
    before = [(value.type, value.shape) for value in bare]
    try:
        for value in bare:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            value.shape = value.shape if value.shape is not None else ir.Shape([])
        yield
    finally:
        for value, (kind, shape) in zip(bare, before, strict=True):
            value.type, value.shape = kind, shape


def _from_proto(proto: onnx.ModelProto, name: str) -> tuple[ir.Model, list[str]]:
    if not proto.HasField("graph") or not proto.opset_import:
        raise InputError(f"{name} is not an ONNX model, or is cut short: it holds no graph or no opset version.")
    damaged = _text_that_is_none(proto.graph)
    if damaged is not None:
        raise InputError(f"{name} is damaged: {damaged} is no valid text; copy or export it again.")
    check_tensors(proto, name)
    proto, notes = modernized(proto, name)
    reports = logging.getLogger("onnx_ir")
    level = reports.level
    reports.setLevel(logging.ERROR)  # the checker says the same of a graph with missing values, in one sentence
    try:
        return ir.from_proto(proto), notes
    except Exception as error:  # onnx-ir raises many kinds for a malformed graph
        raise InputError(f"{name} is not a valid ONNX model: {_first_line(_cause(error))}; export it again.") from None
    finally:
        reports.setLevel(level)


def _text_that_is_none(graph: onnx.GraphProto) -> str | None:
    """Says which name of a graph is no UTF-8: protobuf hands such a string out as bytes."""
    for node in graph.node:
        texts = (node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output)
        texts += tuple(text for each in node.metadata_props for text in (each.key, each.value))
        texts += tuple(attribute.name for attribute in node.attribute)
        if not all(isinstance(text, str) for text in texts):
            return f"a name of node {node.name!r}"
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                damaged = _text_that_is_none(inner)
                if damaged is not None:
                    return damaged
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    texts = (graph.name, *(value.name for value in values))
    texts += tuple(
        dim.dim_param
        for value in (*graph.input, *graph.output, *graph.value_info)
        for dim in value.type.tensor_type.shape.dim
    )
    return None if all(isinstance(text, str) for text in texts) else "the name of a value"


def _check_rewritten(model: ir.Model, name: str, wanted: bool) -> None:
    found = MANIFEST_KEY in model.metadata_props
    if wanted and not found:
        raise InputError(f"{name} is not rewritten: rewrite it for a device first.")
    if not wanted and (found or any(node.domain == DOMAIN for node in model.graph.all_nodes())):
        raise InputError(f"{name} is rewritten already: give the original model.")


def _check_data(model: ir.Model, name: str, folders: list[Path]) -> None:
    """Checks that every tensor has all of its bytes; `folders` may hold external data."""
    for node in model.graph.all_nodes():
        for attribute in list(node.attributes.values()):
            if attribute.type is ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                # Read at once: the checker, which sees attributes, cannot follow their files.
                data = _found_external(attribute.value, name, folders).numpy().copy()
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(data))
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                tensor = _found_external(tensor, name, folders)
                value.const_value = tensor
                if tensor.nbytes <= _SMALL_BYTES:  # onnx's checker sees small tensors, and cannot follow their files
                    value.const_value = ir.tensor(tensor.numpy().copy(), name=value.name)
            elif isinstance(tensor, ir.TensorProtoTensor) and tensor.raw is not None:
                raw = tensor.raw
                if raw.HasField("raw_data") and len(raw.raw_data) != tensor.nbytes:
                    raise InputError(
                        f"{name} is not a valid ONNX model: tensor '{value.name}' holds {len(raw.raw_data)} bytes, "
                        f"its shape needs {tensor.nbytes}; export it again."
                    )


def _sort(model: ir.Model, name: str) -> None:
    """Sorts nodes that some converters leave unsorted (onnxruntime runs such models); a sorted graph stays as it is."""
    made = {*model.graph.inputs, *model.graph.initializers.values()}
    for node in model.graph:
        needed = [value for value in (*node.inputs, *captured_values(node)) if value is not None]
        if any(value not in made and value.producer() is not None for value in needed):
            break
        made.update(node.outputs)
    else:
        return
    try:
        model.graph.sort()
    except ValueError:
        raise InputError(f"{name} is not a valid ONNX model: its nodes form a cycle; export it again.") from None


def _found_external(tensor: ir.ExternalTensor, name: str, folders: list[Path]) -> ir.ExternalTensor:
    """The tensor with the file that its data really lie in, by the rules of onnxruntime.

    The data lie beside the model. They may be a link (every large model of a Hugging Face cache is): to a file in the
    model's own folder, or in the folder of the file that the model itself is a link to.
    """
    location = Path(tensor.location)
    if location.is_absolute() or ".." in location.parts:
        raise InputError(f"{name}: tensor '{tensor.name}' lies outside the model's folder ({location}).")
    path = Path(tensor.path)
    if not path.is_file():
        raise InputError(
            f"{name}: its external data {path} is missing: keep it beside the model, "
            "or, for a model in memory, load it together with its data (onnx.load does)."
        )
    real = path.resolve()
    if folders and not any(real.is_relative_to(folder) for folder in folders):
        raise InputError(
            f"{name}: its external data {path} is a link to {real}, which lies neither in the model's folder nor "
            "beside the file that the model is a link to: copy the data beside the model."
        )
    needed = (tensor.offset or 0) + tensor.nbytes
    if real.stat().st_size < needed:
        raise InputError(
            f"{name}: its external data {path} is cut short: tensor '{tensor.name}' needs {needed} bytes, "
            f"the file has {real.stat().st_size}; copy it again."
        )
    if real == path.absolute():
        return tensor
    return ir.ExternalTensor(
        real.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        base_dir=real.parent,
    )


def _cause(error: BaseException) -> BaseException:
    """What an error began with: onnx-ir wraps it once for every level of the graph."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _checker_sentence(error: Exception) -> str:
    """The checker's first sentence, and the node that it was about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    node = next((line for line in lines if "Name: " in line), "")
    if node:
        words = node.split("Name: ", 1)[1].split(" OpType:")[0].strip()
        return f"{lines[0].rstrip('.')} (node '{words}')"
    return lines[0].rstrip(".") if lines else "the checker gave no reason"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
