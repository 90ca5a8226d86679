"""Refuses what cannot be emulated faithfully yet: some quantized and fused operators, and opsets that are too old."""

import onnx_ir as ir

from emu.errors import InputError
from emu.rewriter.passes.expand_fused import FUSED, can_expand
from emu.rewriter.passes.expand_fused import why_not_expanded as why_fused_stays
from emu.rewriter.passes.expand_quantized import is_quantized, why_not_expanded
from emu.rewriter.passes.fold_weights import constant_nodes, constant_values, weight_operands
from emu.rewriter.passes.keep_codes import weight_of, why_not

_OLDEST_OPSET = 11  # Slice and Pad with inputs: the nodes that rewriting adds are written for this one and later


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
            if is_quantized(node):
                inside = "inside If, Loop or Scan" if node.graph is not model.graph else None
                if reason := inside or why_not_expanded(node):
                    self._refuse(node, "quantization", reason)
            elif node.domain.startswith(FUSED):
                reason = why_fused_stays(node) if can_expand(node) else ""
                if reason is not None:
                    self._refuse(node, "onnxruntime's optimizations (fused operators)", reason)
        constants = constant_values(model.graph)
        for node in model.graph:
            for operand in weight_operands(node):
                if operand is weight_of(node) and (reason := why_not(operand, constant_nodes(operand, constants))):
                    self._refuse(node, "quantization", reason)
        return ir.passes.PassResult(model, modified=False)

    def _refuse(self, node: ir.Node, without: str, reason: str = "") -> None:
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise InputError(
            f"{self._name}: node '{node.name or node.outputs[0].name}' ({op}) is not supported yet"
            f"{f' ({reason})' if reason else ''}; export the model without {without}."
        )
