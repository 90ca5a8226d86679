"""Reads and writes .onnx files tensor by tensor, so that no second copy of the weights is ever in memory.

protobuf's own functions need the whole file as one string beside the model. A message is a sequence of fields, each a
tag (field number and wire type) and, for what is stored here, a length and that many bytes:
https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from emu.rewriter.dataflow import sizes_of

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_LENGTH_DELIMITED = 2
_LARGE_BYTES = 1 << 16  # tensors above this are handled one by one


class CutShortError(ValueError):
    """A file ends within a field."""


class DamagedError(ValueError):
    """A file holds something else than an ONNX model."""


def read_model(path: Path) -> onnx.ModelProto:
    """Reads a binary .onnx file, without the external data that it may refer to.

    Raises:
        OSError: the file cannot be read.
        CutShortError: the file ends too early.
        DamagedError: the file is no ONNX model.

    """
    try:
        return _read_model(path)
    except DecodeError as error:
        raise DamagedError(str(error)) from None


def _read_model(path: Path) -> onnx.ModelProto:
    model = onnx.ModelProto()
    with path.open("rb") as file:
        size = path.stat().st_size
        for number, wire, header, end in _fields(file, size):
            if (number, wire) != (_MODEL_GRAPH, _LENGTH_DELIMITED):
                model.MergeFromString(header + _read(file, end - file.tell()))
                continue
            model.graph.SetInParent()
            for inner, inner_wire, inner_header, inner_end in _fields(file, end):
                content = _read(file, inner_end - file.tell())
                if (inner, inner_wire) == (_GRAPH_INITIALIZER, _LENGTH_DELIMITED):
                    model.graph.initializer.add().MergeFromString(content)
                else:
                    model.graph.MergeFromString(inner_header + content)
    return model


def write_model(model: ir.Model, path: Path) -> None:
    """Writes a model and all of its weights to one binary file. The sum must stay below 2 GiB."""
    bare = in_memory(model.clone(), _LARGE_BYTES)
    large = [(name, value.const_value) for name, value in bare.graph.initializers.items()]
    tensors = [(name, tensor) for name, tensor in large if tensor is not None and tensor.nbytes > _LARGE_BYTES]
    for name, _ in tensors:
        bare.graph.initializers.pop(name)
    proto = ir.to_proto(bare)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_tensor_head(name, tensor) for name, tensor in tensors]
    contents = [len(head) + tensor.nbytes for head, (_, tensor) in zip(heads, tensors, strict=True)]
    fields = [_header(_GRAPH_INITIALIZER, size) for size in contents]
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_header(_MODEL_GRAPH, len(graph) + sum(map(len, fields)) + sum(contents)))
        file.write(graph)
        for field, head, (_, tensor) in zip(fields, heads, tensors, strict=True):
            file.write(field + head)
            file.write(tensor.tobytes())


def in_memory(model: ir.Model, up_to_bytes: int | None = None) -> ir.Model:
    """The model, its external data (of tensors up to a size) read into memory, in place."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and (up_to_bytes is None or tensor.nbytes <= up_to_bytes):
                value.const_value = ir.tensor(tensor.numpy().copy(), name=value.name)
    return model


def _tensor_head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A tensor's message up to its data."""
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=sizes_of(tensor))
    return bytes(proto.SerializeToString()) + _header(_TENSOR_RAW_DATA, tensor.nbytes)


def _header(number: int, size: int) -> bytes:
    """The tag and length of a field whose content has `size` bytes."""
    written = bytearray()
    for value in (number << 3 | _LENGTH_DELIMITED, size):
        while value > 0x7F:
            written.append(value & 0x7F | 0x80)
            value >>= 7
        written.append(value)
    return bytes(written)


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, bytes, int]]:
    """The fields up to `end`: number, wire type, header bytes, and the position where the content ends.

    The caller reads the content before it asks for the next field.
    """
    while file.tell() < end:
        tag, header = _varint(file)
        number, wire = tag >> 3, tag & 7
        if wire == _LENGTH_DELIMITED:
            size, more = _varint(file)
            header += more
        elif wire == 0:
            start = file.tell()
            _, more = _varint(file)
            size = len(more)
            file.seek(start)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise CutShortError(f"it holds a field of an unknown kind at byte {file.tell()}")
        if file.tell() + size > end:
            raise CutShortError(f"it ends at byte {end}, within a field of {size} bytes")
        yield number, wire, header, file.tell() + size


def _varint(file: BinaryIO) -> tuple[int, bytes]:
    value, shift, read = 0, 0, b""
    while True:
        byte = _read(file, 1)
        read += byte
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value, read
        shift += 7
        if shift > 63:
            raise CutShortError("it holds a number that is too long")


def _read(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise CutShortError("it ends too early")
    return content
