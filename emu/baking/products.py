"""Puts plain products, with what a chip's arrays hold, in the place of crossbar products."""

import hashlib
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from emu.baking.chip import Chip, Held
from emu.baking.reading import write_reading
from emu.contract.codes import Codes, of_each_code
from emu.contract.schema import DYNAMIC, FAULTY_WEIGHT, QUANTIZED
from emu.contract.structure import Structure
from emu.rewriter.builder import GraphBuilder
from emu.rewriter.load import DOMAIN

_CONTRIB = "com.microsoft"
_AXIS_OPSET = 13  # the opset from which DequantizeLinear takes a scale for each index of an axis
_INT16_OPSET = 21  # that from which it takes codes of 16 bits, and blocks that share a scale
_TYPES = {2: ir.DataType.INT8, 4: ir.DataType.INT8, 8: ir.DataType.INT8, 16: ir.DataType.INT16}


@dataclass
class Made:
    """What replacing made.

    Attributes:
        fingerprint: SHA-256 of all stored values, in the order of the sites, in hexadecimal.
        stored: names of the initializers that hold them.
        notes: sentences on what is not as before.
        contrib: the domain of onnxruntime's own operators if one is used, else empty.

    """

    fingerprint: str = ""
    stored: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    contrib: str = ""


def replace_by_plain(model: ir.Model, chip: Chip, name: str, converters: bool = False) -> Made:
    """Replaces the crossbar nodes of a model by plain ONNX nodes, in place.

    Args:
        model: a rewritten model whose nodes do nothing at run time that is to be kept.
        chip: what the arrays hold.
        name: how to call the model in an error.
        converters: whether DAC, ADC and tiles are written too.

    Raises:
        InputError: what the native library refuses.

    """
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    nodes.sort(key=lambda node: chip.sites[node.name or ""].index)
    holders: dict[Hashable, ir.Node] = {}
    for node in nodes:
        if node.op_type != DYNAMIC:
            holders.setdefault(_array_of(node, chip), node)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = dict(zip(holders, pool.map(chip.held, holders.values()), strict=True))
    digest = hashlib.sha256()
    for held in contents.values():
        digest.update(np.ascontiguousarray(held.values).data)
    work = _Work(model, GraphBuilder(model.graph, name), chip, converters)
    for node in nodes:
        work.replace(node, None if node.op_type == DYNAMIC else contents[_array_of(node, chip)])
    notes = []
    if work.widened:
        count, some = len(work.widened), ", ".join(work.widened[:3])
        notes.append(
            f"Codes of {count} site{'s' * (count > 1)} became floats, because what the chip holds in their place are "
            f"no codes: {some}{', ...' if count > 3 else ''}."
        )
    return Made(digest.hexdigest(), frozenset(work.stored), tuple(notes), work.contrib)


def _array_of(node: ir.Node, chip: Chip) -> Hashable:
    """Equal for nodes whose arrays hold the same: of one array, disturbed by the same strength."""
    weight = node.inputs[0 if node.op_type == FAULTY_WEIGHT else 1]
    assert weight is not None, "every stored product has one"
    return node.attributes.get_int("array", 0), weight.name, node.op_type, chip.strength(node)


@dataclass
class _Work:
    model: ir.Model
    builder: GraphBuilder
    chip: Chip
    converters: bool
    made: dict[Hashable, ir.Value] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    widened: list[str] = field(default_factory=list)
    contrib: str = ""

    def replace(self, node: ir.Node, held: Held | None) -> None:
        """Replaces one node; `held` is None for a product of activations."""
        structure = self.chip.structure(node)
        x = node.inputs[0]
        assert x is not None, "every product has one"
        if held is None:
            result = self._product(node, "MatMul", [x, node.inputs[1]])
        elif node.op_type == FAULTY_WEIGHT:
            value = self._constant(("tensor", *_key(node, self.chip)), f"{x.name}.stored", held.values)
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=False)
            if node.outputs[0].is_graph_output():
                result = self._product(node, "Identity", [value])
            else:
                self.builder.graph.remove(node, safe=True)
                return
        else:
            result = self._stored(node, x, held, structure)
        self.builder.swap(node, result)

    def _stored(self, node: ir.Node, x: ir.Value, held: Held, structure: Structure) -> ir.Value:
        if self.converters and (structure.dac != "none" or structure.adc != "none") and self.chip.strength(node):
            v, scales = self.chip.read(node)
            opset, controls = self.model.opset_imports.get("", 1), self.chip.controls_of(node)
            result, names = write_reading(
                self.builder, opset, node.name or "product", x, v, scales, structure, controls
            )
            self.stored += names
            return result
        key = _key(node, self.chip)
        codes = None if held.codes is None else _changed_codes(held, structure)
        if codes is not None and node.op_type == QUANTIZED:
            packed = self._nbits(node, x, held, codes, structure)
            if packed is not None:
                return packed
        weight = self.made.get(key)
        if weight is None and codes is not None:
            weight = self._dequantized(node, held, codes, structure)
        if weight is None:
            if held.codes is not None and node.name:
                self.widened.append(node.name)
            name = node.inputs[1].name if node.inputs[1] is not None else node.name
            weight = self._constant(key, f"{name}.stored", _laid_out(held.values, structure))
        self.made[key] = weight
        if structure.window:
            return self._product(node, "Conv", [x, weight], **_convolution(structure, held.clean.shape))
        return self._product(node, "MatMul", [x, weight])

    def _nbits(self, node: ir.Node, x: ir.Value, held: Held, codes: Codes, structure: Structure) -> ir.Value | None:
        """MatMulNBits of onnxruntime, where ONNX has no codes whose blocks share a scale; packed along K."""
        bits, block = structure.code_bits, structure.block_rows
        standard = self.model.opset_imports.get("", 1) >= _INT16_OPSET
        if standard or codes.ndim != 2 or block < 16 or block & (block - 1) or bits not in (4, 8):
            return None
        rows, columns = codes.shape
        blocks, half = -(-rows // block), 1 << (bits - 1)
        assert held.codes is not None, "only for codes"
        _, scale, zero_point = held.codes
        zeros = zero_point + np.float32(half)
        if scale.shape != (blocks, columns) or not _are_codes(zeros, 0, 2**bits - 1):
            return None
        unsigned = np.full((columns, blocks * block), half, np.uint8)
        unsigned[:, :rows] = (codes.astype(np.int16) + half).T
        packed = _packed(unsigned, bits).reshape(columns, blocks, block * bits // 8)
        per_byte = 8 // bits
        padded = np.zeros((columns, -(-blocks // per_byte) * per_byte), np.uint8)
        padded[:, :blocks] = zeros.T
        key, name = _key(node, self.chip), node.name
        operands = [
            x,
            self._constant((key, "packed"), f"{name}.packed", packed),
            self._constant((key, "scales"), f"{name}.scales", np.ascontiguousarray(scale.T).reshape(-1), held=False),
            self._constant((key, "zeros"), f"{name}.zero_points", _packed(padded, bits).reshape(-1), held=False),
        ]
        self.contrib = _CONTRIB
        sizes = {"K": rows, "N": columns, "bits": bits, "block_size": block}
        return self._product(node, "MatMulNBits", operands, domain=_CONTRIB, **sizes)

    def _dequantized(self, node: ir.Node, held: Held, codes: Codes, structure: Structure) -> ir.Value | None:
        """DequantizeLinear of codes; None where the opset has none for them."""
        assert held.codes is not None, "only for codes"
        _, scale, zero_point = held.codes
        opset, kind, block = self.model.opset_imports.get("", 1), _TYPES[structure.code_bits], structure.block_rows
        lowest, highest = np.iinfo(kind.numpy()).min, np.iinfo(kind.numpy()).max
        wide = kind is ir.DataType.INT16 or block
        if not _are_codes(zero_point, lowest, highest) or (wide and opset < _INT16_OPSET):
            return None
        attributes: dict[str, int] = {}
        if block:
            if codes.ndim != 2:
                return None
            attributes = {"axis": 0, "block_size": block}
        elif scale.ndim:
            if opset < _AXIS_OPSET or (codes.ndim == 3 and not structure.window):
                return None
            attributes = {"axis": 0 if structure.window else codes.ndim - 1}
            scale, zero_point = scale.reshape(-1), zero_point.reshape(-1)
        key, name = _key(node, self.chip), node.inputs[1].name if node.inputs[1] is not None else node.name
        laid_out = _laid_out(codes, structure).astype(kind.numpy())
        parts = [
            self._constant((key, "codes"), f"{name}.stored", laid_out),
            self._constant((key, "scale"), f"{name}.scale", scale, held=False),
            self._constant((key, "zero_point"), f"{name}.zero_point", zero_point.astype(kind.numpy()), held=False),
        ]
        return self.builder.node("DequantizeLinear", parts, f"{name}.dequantized", **attributes)

    def _constant(self, key: Hashable, name: str, array: NDArray[np.generic], held: bool = True) -> ir.Value:
        """An initializer, once for each key."""
        if key not in self.made:
            value = self.builder.constant(name, np.ascontiguousarray(array).reshape(array.shape))
            self.made[key] = value
            if held and value.name:
                self.stored.append(value.name)
        return self.made[key]

    def _product(
        self, old: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], domain: str = "", **attributes: Any
    ) -> ir.Value:
        node = ir.node(
            op_type, inputs, attributes, domain=domain, name=old.name, doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )  # fmt: skip
        return self.builder.add(node)


def _key(node: ir.Node, chip: Chip) -> tuple[Hashable, ...]:
    return (_array_of(node, chip), node.attributes.get_string("window", ""))


def _changed_codes(held: Held, structure: Structure) -> Codes | None:
    """The codes that stand for what the chip holds, None where it holds something else."""
    assert held.codes is not None, "only for codes"
    codes, scale, zero_point = held.codes
    if held.values is held.clean:
        return codes
    of_scale, zeros = (of_each_code(each, codes.shape[-2], structure.block_rows) for each in (scale, zero_point))
    half = 1 << (structure.code_bits - 1)
    with np.errstate(all="ignore"):
        found = np.rint(held.values / of_scale) + zeros
        found = np.where(held.values == held.clean, codes, found)
        if not _are_codes(found, -half, half - 1):
            return None
        exact = (found.astype(np.float32) - zeros) * of_scale == held.values
    return found.astype(codes.dtype) if exact.all() else None


def _are_codes(numbers: NDArray[np.floating], lowest: int, highest: int) -> bool:
    """Whether all are whole numbers in a range."""
    return bool((np.rint(numbers) == numbers).all() and (numbers >= lowest).all() and (numbers <= highest).all())


def _laid_out(matrix: NDArray[np.generic], structure: Structure) -> NDArray[np.generic]:
    """What an array holds, as the plain operator takes it: the kernel `[G N, C, sizes]` of a convolution."""
    if not structure.window:
        return matrix
    stack = matrix if matrix.ndim == 3 else matrix[None]
    groups, rows, columns = stack.shape
    sizes = [axis.size for axis in structure.window]
    channels = rows // int(np.prod(sizes))
    return np.ascontiguousarray(stack.swapaxes(1, 2)).reshape(groups * columns, channels, *sizes)


def _convolution(structure: Structure, shape: tuple[int, ...]) -> dict[str, Any]:
    """The attributes of a Conv with these windows."""
    axes = structure.window
    return {
        "group": shape[0] if len(shape) == 3 else 1,
        "kernel_shape": [axis.size for axis in axes],
        "strides": [axis.stride for axis in axes],
        "dilations": [axis.dilation for axis in axes],
        "pads": [axis.before for axis in axes] + [axis.after for axis in axes],
    }


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes from codes of 2, 4 or 8 bits, along the last axis; the low bits of a byte come first."""
    parts = codes.reshape(*codes.shape[:-1], -1, 8 // bits)
    result = np.zeros(parts.shape[:-1], np.uint8)
    for place in range(8 // bits):
        result |= parts[..., place] << np.uint8(place * bits)
    return result
