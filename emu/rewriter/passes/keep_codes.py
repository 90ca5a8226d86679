"""Keeps the integer codes of quantized weights: what dequantizes constants becomes one tensor that knows its codes.

Codes are dequantized by DequantizeLinear, or by Cast, Sub and Mul as weight-only quantizers write it. Layout around it
(Transpose, Reshape, Split and the like) goes into the codes, so that an array holds what the model stores.
"""

from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.builder import add_initializer
from emu.rewriter.dataflow import is_standard, sizes_of, tensor_of
from emu.rewriter.node_evaluator import NodeEvaluator
from emu.rewriter.passes.fold_weights import Recipes, constant_array, constant_nodes, constant_values, remove_unused
from emu.rewriter.quantized import CODE_TYPES, QuantizedTensor, picked, quantized_tensor

_LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_PICKS = ("Slice", "Split", "Gather", "Concat")  # operators that take some of the numbers, or put them side by side
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


class KeepCodesPass(ir.passes.InPlacePass):
    """Replaces dequantized constant weights of products by initializers with a `QuantizedTensor`."""

    def __init__(self, name: str) -> None:
        """`name` is how to call the model in an error."""
        super().__init__()
        self._name = name

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at the second operand of every product of the main graph; products that share codes still do.

        Raises:
            InputError: codes that cannot be kept, because of their type or of what the graph does with them.

        """
        reader = _Reader(constant_values(model.graph), NodeEvaluator(model))
        recipes = Recipes(reader.constants)
        made: dict[Hashable, ir.Value] = {}
        modified = False
        for node in list(model.graph):
            weight = _weight_of(node)
            nodes = constant_nodes(weight, reader.constants) if weight is not None else []
            if weight is None or not nodes:
                continue
            key = recipes.of(weight)
            if key not in made:
                tensor = reader.read(weight)
                if tensor is None:
                    self._check_plain(node, nodes)
                    continue
                made[key] = _initializer(model.graph, weight, tensor)
            node.replace_input_with(1, made[key])
            remove_unused(model.graph, nodes)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _check_plain(self, node: ir.Node, nodes: list[ir.Node]) -> None:
        """Refuses a weight that has codes which are not kept: its bits would be others than those of the model."""
        sources = [each for each in nodes if each.op_type == "DequantizeLinear"]
        if not sources:
            return
        kinds = [value.dtype for value in (sources[0].inputs[0], *sources[0].inputs[2:]) if value is not None]
        strange = [kind for kind in kinds if kind is not None and kind not in CODE_TYPES]
        reason = "its codes go through more than a change of layout and scale"
        if strange:
            known = ", ".join(kind.name.lower() for kind in CODE_TYPES)
            reason = f"its codes are of type {strange[0].name.lower()}, not {known}"
        raise InputError(
            f"{self._name}: node '{node.name}' ({node.op_type}) is not supported yet ({reason}); "
            "export the model without quantization."
        )


def _weight_of(node: ir.Node) -> ir.Value | None:
    """The operand of a product that may be a weight."""
    product = is_standard(node) and node.op_type in ("MatMul", "Gemm", "Conv")
    return node.inputs[1] if product and len(node.inputs) > 1 else None


class _Reader:
    """Reads what a graph computes from constant codes."""

    def __init__(self, constants: set[ir.Value], evaluator: NodeEvaluator) -> None:
        self.constants = constants
        self._evaluator = evaluator
        self._known: dict[ir.Value, QuantizedTensor | None] = {}

    def read(self, value: ir.Value | None) -> QuantizedTensor | None:
        """The tensor that a constant value is, None where it is no layout and scaling of codes."""
        if value is None or value not in self.constants:
            return None
        for node in constant_nodes(value, self.constants) if value not in self._known else ():
            for each in node.outputs:  # in order: no chain is too deep to be followed
                if each not in self._known:
                    self._known[each] = self._read(each)
        return self._known.get(value)

    def _read(self, value: ir.Value) -> QuantizedTensor | None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "DequantizeLinear":  # ONNX's, and onnxruntime's for more types of codes
            return self._dequantized(node)
        if not is_standard(node):
            return None
        if node.op_type == "Cast":
            return self._cast(node)
        if node.op_type in _LAYOUT:
            tensor = self.read(node.inputs[0])
            return None if tensor is None else self._laid_out(tensor, node)
        if node.op_type in _PICKS:
            return self._picked(node, value.index() or 0)
        if node.op_type in ("Mul", "Div", "Sub", "Add") and len(node.inputs) == 2:
            return self._arithmetic(node)
        return None

    def _array(self, value: ir.Value) -> np.ndarray:
        return constant_array(value, self.constants, self._evaluator)

    def _stored(self, codes: ir.Value) -> ir.TensorProtocol:
        """A tensor of codes; those that the graph computes (quantizes here, or transposes) are computed."""
        stored = tensor_of(codes)
        return stored if stored is not None else ir.tensor(self._array(codes))

    def _dequantized(self, node: ir.Node) -> QuantizedTensor | None:
        codes, scale, *zero_point = node.inputs
        assert codes is not None and scale is not None, "the checker has seen to it"
        stored, scales = self._stored(codes), self._array(scale)
        zeros = self._array(zero_point[0]) if zero_point and zero_point[0] is not None else None
        if stored.dtype not in CODE_TYPES:
            return None
        block = node.attributes.get_int("block_size", 0)
        axis = node.attributes.get_int("axis", 1)
        try:
            return quantized_tensor(stored, scales, zeros, axis, block, ir.DataType.from_numpy(scales.dtype))
        except ValueError:
            raise InputError(
                f"Node '{node.name}' (DequantizeLinear): its scale {list(scales.shape)} or zero point does not fit "
                f"codes {list(sizes_of(stored))} at axis {axis}: export the model again."
            ) from None

    def _cast(self, node: ir.Node) -> QuantizedTensor | None:
        kind = ir.DataType(node.attributes.get_int("to", 1))
        source = node.inputs[0]
        if source is None or kind not in _FLOATS:
            return None
        tensor = self.read(source)
        if tensor is not None:
            return tensor.cast(kind)
        dtype = source.dtype or (stored.dtype if (stored := tensor_of(source)) is not None else None)
        if dtype is not None and dtype not in CODE_TYPES:
            return None
        codes = self._stored(source)
        return quantized_tensor(codes, np.ones((), np.float32), None, 1, 0, kind) if codes.dtype in CODE_TYPES else None

    def _laid_out(self, tensor: QuantizedTensor, node: ir.Node) -> QuantizedTensor:
        """What a layout node makes of a tensor."""
        if node.op_type == "Identity":
            return tensor
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", list(reversed(range(len(tensor.sizes)))))
            return tensor.transposed(list(order))
        # What the operator says about a tensor of this shape, without its content.
        probe = np.broadcast_to(np.int8(0), tensor.sizes)
        others = [None if each is None else self._array(each) for each in node.inputs[1:]]
        return tensor.reshaped(self._evaluator.run(node, [probe, *others])[0].shape)

    def _picked(self, node: ir.Node, output: int) -> QuantizedTensor | None:
        """Parts of a tensor, or several tensors side by side: packed projections that are split, or joined."""
        count = len(node.inputs) if node.op_type == "Concat" else 1
        tensors = [tensor for value in node.inputs[:count] if (tensor := self.read(value)) is not None]
        if len(tensors) != count or len({(tensor.bits, tensor.dtype) for tensor in tensors}) > 1:
            return None
        others = [None if each is None else self._array(each) for each in node.inputs[count:]]
        return picked(tensors, lambda arrays: self._evaluator.run(node, [*arrays, *others])[output])

    def _arithmetic(self, node: ir.Node) -> QuantizedTensor | None:
        """A scale that is multiplied with codes or divides them, or a zero point that is taken off them."""
        left, right = node.inputs
        tensor, other = self.read(left), right
        if tensor is None and node.op_type in ("Mul", "Add"):
            tensor, other = self.read(right), left
        if tensor is None or other not in self.constants or self.read(other) is not None:
            return None  # two tensors of codes are no tensor and its scale
        array = self._array(other)
        if np.broadcast_shapes(array.shape, tensor.sizes) != tensor.sizes:
            return None
        if node.op_type in ("Mul", "Div"):
            return tensor.scaled(array if node.op_type == "Mul" else 1 / array)
        return tensor.shifted(array if node.op_type == "Sub" else -array) if (tensor.scale == 1).all() else None


def _initializer(graph: ir.Graph, weight: ir.Value, tensor: QuantizedTensor) -> ir.Value:
    """A new initializer, which takes over the name of `weight` unless something else needs it."""
    name = weight.name or "weight"
    # What a subgraph captures stays too: products there are not looked at.
    kept = (node.graph is not graph or _weight_of(node) is not weight or place != 1 for node, place in weight.uses())
    if weight.is_graph_output() or any(kept):
        name = f"{name}.codes"
    else:
        weight.name = None
    return add_initializer(graph, name, tensor)
