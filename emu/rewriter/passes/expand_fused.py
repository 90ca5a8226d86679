"""Expands onnxruntime's fused operators (domain com.microsoft) into plain ONNX nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from emu.errors import InputError
from emu.rewriter.passes.expand_fused_attention import (
    expand_attention,
    expand_group_query_attention,
    expand_multi_head_attention,
    refuse_attention,
    refuse_group_query_attention,
    refuse_multi_head_attention,
)
from emu.rewriter.passes.expand_fused_body import Body, Names, UnknownShapeError
from emu.rewriter.passes.expand_fused_elementwise import (
    expand_embed_layer_normalization,
    expand_expand_dims,
    expand_fast_gelu,
    expand_gelu,
    expand_layer_normalization,
    expand_quick_gelu,
    expand_rotary_embedding,
    expand_simplified_layer_normalization,
    expand_skip_layer_normalization,
    expand_skip_simplified_layer_normalization,
    refuse_axis,
    refuse_expand_dims,
    refuse_norm,
    refuse_rotary,
)
from emu.rewriter.passes.expand_fused_products import (
    BLOCKED,
    expand_blocked_conv,
    expand_fused_conv,
    expand_fused_gemm,
    expand_fused_matmul,
    expand_gemm_fast_gelu,
    expand_reorder_input,
    expand_reorder_output,
    refuse_activation,
    refuse_blocked_conv,
)

FUSED = "com.microsoft"


@dataclass(frozen=True)
class _Fused:
    """How one operator is expanded, and what says why a node of it cannot be."""

    expand: Callable[[Body], Sequence[ir.Value | None]]
    refuse: Callable[[ir.Node], str | None] = lambda node: None


# Those that need no shapes come first: with them plain, shape inference reaches further.
_OPERATORS: dict[tuple[str, str], _Fused] = {
    (FUSED, "Gelu"): _Fused(expand_gelu),
    (FUSED, "BiasGelu"): _Fused(expand_gelu),
    (FUSED, "FastGelu"): _Fused(expand_fast_gelu),
    (FUSED, "QuickGelu"): _Fused(expand_quick_gelu),
    (FUSED, "LayerNormalization"): _Fused(expand_layer_normalization, refuse_axis),
    (FUSED, "SimplifiedLayerNormalization"): _Fused(expand_simplified_layer_normalization, refuse_axis),
    (FUSED, "SkipLayerNormalization"): _Fused(expand_skip_layer_normalization, refuse_norm),
    (FUSED, "SkipSimplifiedLayerNormalization"): _Fused(expand_skip_simplified_layer_normalization, refuse_norm),
    (FUSED, "EmbedLayerNormalization"): _Fused(expand_embed_layer_normalization),
    (FUSED, "FusedGemm"): _Fused(expand_fused_gemm, refuse_activation),
    (FUSED, "GemmFastGelu"): _Fused(expand_gemm_fast_gelu),
    (FUSED, "FusedConv"): _Fused(expand_fused_conv, refuse_activation),
    (BLOCKED, "Conv"): _Fused(expand_blocked_conv, refuse_blocked_conv),
    (BLOCKED, "ReorderInput"): _Fused(expand_reorder_input),
    (BLOCKED, "ReorderOutput"): _Fused(expand_reorder_output),
    (FUSED, "FusedMatMul"): _Fused(expand_fused_matmul),
    (FUSED, "TransposeMatMul"): _Fused(expand_fused_matmul),  # its name before onnxruntime 1.6
    (FUSED, "ExpandDims"): _Fused(expand_expand_dims, refuse_expand_dims),
    (FUSED, "RotaryEmbedding"): _Fused(expand_rotary_embedding, refuse_rotary),
    (FUSED, "Attention"): _Fused(expand_attention, refuse_attention),
    (FUSED, "MultiHeadAttention"): _Fused(expand_multi_head_attention, refuse_multi_head_attention),
    (FUSED, "GroupQueryAttention"): _Fused(expand_group_query_attention, refuse_group_query_attention),
}
_ORDER = {operator: place for place, operator in enumerate(_OPERATORS)}
_BY_TOKEN = ("Attention", "MultiHeadAttention", "GroupQueryAttention")  # their result is [batch, tokens, width]
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LAYER_NORMALIZATION = 17  # the opset from which ONNX has the operator itself


def can_expand(node: ir.Node) -> bool:
    """Whether the operator of a node is one that `ExpandFusedPass` knows."""
    return (node.domain, node.op_type) in _OPERATORS


def why_not_expanded(node: ir.Node) -> str | None:
    """The option of an operator that keeps `ExpandFusedPass` from expanding a node, None where there is none."""
    return _OPERATORS[node.domain, node.op_type].refuse(node)


class NameFusedDomainPass(ir.passes.InPlacePass):
    """Puts operators that onnxruntime added to ONNX's own domain, which no checker knows there, into its domain."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes SimplifiedLayerNormalization, and LayerNormalization where the opset has none."""
        added = ["SimplifiedLayerNormalization"]
        if model.opset_imports.get("", _LAYER_NORMALIZATION) < _LAYER_NORMALIZATION:
            added.append("LayerNormalization")
        modified = False
        for node in model.graph.all_nodes():
            if node.domain == "" and node.op_type in added:
                node.domain = FUSED
                model.opset_imports.setdefault(FUSED, 1)
                modified = True
        return ir.passes.PassResult(model, modified)


class ExpandFusedPass(ir.passes.InPlacePass):
    """Writes fused operators of the main graph as the plain nodes that they stand for.

    A product keeps the fused node's name; the three of a fused attention are named after it. Operators that are not
    known, and nodes that `why_not_expanded` has a reason for, stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expands in rounds: some operators need the number of dimensions of what others, once plain, compute."""
        left = [node for node in model.graph if can_expand(node) and why_not_expanded(node) is None]
        left.sort(key=lambda node: _ORDER[node.domain, node.op_type])
        modified = bool(left)
        names, opset = Names(model.graph), model.opset_imports.get("", 1)
        while left:
            shapes = _Shapes(model)
            waiting = []
            unknown = None
            for node in left:
                try:
                    body = Body(node, opset, names, shapes.of, shapes.precision(node))
                    results = _OPERATORS[node.domain, node.op_type].expand(body)
                except UnknownShapeError as error:
                    waiting.append(node)
                    unknown = unknown or error.value
                else:
                    body.swap(results)
            if len(waiting) == len(left) and unknown is not None:
                raise InputError(
                    f"Node '{waiting[0].name}' ({waiting[0].domain}.{waiting[0].op_type}) needs the shape of "
                    f"'{unknown.name}', which cannot be told: export the model with shapes, or without onnxruntime's "
                    "optimizations."
                )
            left = waiting
        return ir.passes.PassResult(model, modified)


class _Shapes:
    """Shapes (None for sizes that are not numbers) and types, inferred by onnx when first asked for."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        values = (*model.graph.inputs, *model.graph.initializers.values())
        self._only_float32 = not any(value.dtype in _HALF for value in values)

    def of(self, value: ir.Value) -> list[int | None] | None:
        shape = value.shape
        if shape is None and value.name in self._inferred:
            shape = self._inferred[value.name].shape
        return None if shape is None else [size if isinstance(size, int) else None for size in shape]

    def precision(self, node: ir.Node) -> ir.DataType:
        """The type of a node's real numbers.

        Raises:
            UnknownShapeError: the model has half precision, and nothing tells whether this node has.

        """
        if self._only_float32:
            return ir.DataType.FLOAT
        inputs = [value for value in node.inputs if value is not None]
        for known in (lambda value: value.dtype, self._inferred_type):
            kinds = (known(value) for value in inputs)
            found = next((kind for kind in kinds if kind in (*_HALF, ir.DataType.FLOAT)), None)
            if found is not None:
                return found
        raise UnknownShapeError(inputs[0])

    def _inferred_type(self, value: ir.Value) -> ir.DataType | None:
        return self._inferred[value.name].dtype if value.name in self._inferred else None

    @cached_property
    def _inferred(self) -> dict[str | None, ir.Value]:
        model = self._model.clone()
        for node in model.graph:
            if node.domain == FUSED and node.op_type in _BY_TOKEN:
                node.outputs[0].shape = ir.Shape([None, None, None])
                if self._only_float32:
                    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        common_passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        return {value.name: value for node in model.graph for value in node.outputs}
