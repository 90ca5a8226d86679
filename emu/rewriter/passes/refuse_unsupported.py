"""Refuses what cannot be emulated faithfully yet: quantized products, fused operators, and opsets that are too old."""

import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.passes.fold_weights import constant_nodes, constant_values, weight_operands

_OLDEST_OPSET = 11  # Slice and Pad with inputs: the nodes that rewriting adds are written for this one and later
_QUANTIZED = (
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MatMulBnb4",
    "MatMulFpQ4",
    "QGemm",
    "QAttention",
    "DynamicQuantizeLSTM",
)


class RefuseUnsupportedPass(ir.passes.InPlacePass):
    """Raises `InputError` for a model with operators whose products would be missed. Changes nothing."""

    def __init__(self, name: str) -> None:
        """`name` is how to call the model in an error."""
        super().__init__()
        self._name = name

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Looks at every node, those of subgraphs included."""
        opset = model.opset_imports.get("", _OLDEST_OPSET)
        if opset < _OLDEST_OPSET:
            raise InputError(
                f"{self._name} uses opset {opset}, older than {_OLDEST_OPSET}: "
                f"export it with opset_version={_OLDEST_OPSET} or newer."
            )
        for node in model.graph.all_nodes():
            if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
                self._refuse(node, node, "quantization")
            if node.domain.startswith("com.microsoft"):
                self._refuse(node, node, "onnxruntime's optimizations (fused operators)")
        constants = constant_values(model.graph)
        for node in model.graph:
            for operand in weight_operands(node):
                for source in constant_nodes(operand, constants):
                    if source.op_type == "DequantizeLinear":
                        self._refuse(source, node, "quantization")
        return ir.passes.PassResult(model, modified=False)

    def _refuse(self, node: ir.Node, product: ir.Node, without: str) -> None:
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        feeding = "" if node is product else f", which holds the weight of '{product.name or product.outputs[0].name}',"
        raise InputError(
            f"{self._name}: node '{node.name or node.outputs[0].name}' ({op}){feeding} is not supported yet; "
            f"export the model without {without}."
        )
