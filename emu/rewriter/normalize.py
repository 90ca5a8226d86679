"""Brings a model to the plain form in which sites are found: one list of passes, in order."""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from emu.rewriter.passes import (
    ExpandAttentionPass,
    ExpandFusedPass,
    ExpandQuantizedPass,
    FoldWeightsPass,
    KeepCodesPass,
    NameNodesPass,
    WidenHalfPass,
)

# A pass of onnx-ir: it takes a model and says whether it changed it.
_PASSES: list[Callable[[], ir.passes.PassBase]] = [
    common_passes.InlinePass,  # functions of the model itself
    common_passes.RemoveInitializersFromInputsPass,  # weights that old exporters also list as inputs
    NameNodesPass,
    ExpandQuantizedPass,
    ExpandFusedPass,
    ExpandAttentionPass,
    NameNodesPass,
    KeepCodesPass,
    FoldWeightsPass,
    WidenHalfPass,
    NameNodesPass,
    common_passes.RemoveUnusedOpsetsPass,
]


def normalize(model: ir.Model) -> ir.Model:
    """The same function of the same inputs, with every product as a plain MatMul, Gemm or Conv.

    After it every node of the main graph has a name of its own, and weights that the graph computed from constants are
    initializers. `model` may be changed.
    """
    for make in _PASSES:
        model = make()(model).model
    return model
