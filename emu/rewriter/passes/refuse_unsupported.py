"""Refuses operators that hold products which would be missed; what holds none may stay as it is."""

import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.passes.expand_fused import FUSED, can_expand
from emu.rewriter.passes.expand_fused import why_not_expanded as why_fused_stays
from emu.rewriter.passes.expand_quantized import holds_product, is_quantized, why_not_expanded

# Operators of onnxruntime that multiply weights, or activations, somewhere inside; all others are left as they are.
_HOLDING_PRODUCTS = frozenset(
    [
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "LongformerAttention", "PackedAttention"),
        *("PackedMultiHeadAttention", "DecoderAttention", "DecoderMaskedSelfAttention", "SparseAttention"),
        *("DecoderMaskedMultiHeadAttention", "PagedAttention", "LinearAttention", "QAttention", "QOrderedAttention"),
        *("QOrderedLongformerAttention", "GatedRelativePositionBias", "BeamSearch", "GreedySearch", "Sampling"),
        *("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", "FusedGemm", "GemmFastGelu", "GemmFloat8"),
        *("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16", "QOrderedMatMul", "SparseToDenseMatMul"),
        *(
            "MoE",
            "QMoE",
            "DynamicQuantizeLSTM",
            "NhwcConv",
            "FusedConv",
            "NhwcFusedConv",
            "ConvTransposeWithDynamicPads",
        ),
        *("Conv", "ReorderInput", "ReorderOutput"),  # of the blocked layout
    ]
)


class RefuseUnsupportedPass(ir.passes.InPlacePass):
    """Raises `InputError` for a model with operators whose products would be missed. Changes nothing."""

    def __init__(self, name: str) -> None:
        """`name` is how to call the model in an error."""
        super().__init__()
        self._name = name

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at every node of the main graph."""
        for node in model.graph:
            if is_quantized(node):
                if holds_product(node) and (reason := why_not_expanded(node)):
                    self._refuse(node, "quantization", reason)
            elif node.domain.startswith(FUSED) and node.op_type in _HOLDING_PRODUCTS:
                reason = why_fused_stays(node) if can_expand(node) else ""
                if reason is not None:
                    self._refuse(node, "onnxruntime's optimizations (fused operators)", reason)
        return ir.passes.PassResult(model, modified=False)

    def _refuse(self, node: ir.Node, without: str, reason: str = "") -> None:
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise InputError(
            f"{self._name}: node '{node.name or node.outputs[0].name}' ({op}) is not supported yet"
            f"{f' ({reason})' if reason else ''}; export the model without {without}: "
            "what optimum and torch.onnx write has no such node."
        )
