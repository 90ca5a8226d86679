"""Brings a model to the plain form in which sites are found: one list of passes, in order."""

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from emu.rewriter.batch import Batch
from emu.rewriter.passes import (
    ExpandAttentionPass,
    ExpandConvTransposePass,
    ExpandEinsumPass,
    ExpandFusedPass,
    ExpandQuantizedPass,
    FoldCodesPass,
    FoldWeightsPass,
    KeepCodesPass,
    LeadWithSamplesPass,
    NameNodesPass,
    OrientProductsPass,
    RefuseUnsupportedPass,
    StoreRepeatedPass,
    WidenHalfPass,
)


def normalize(model: ir.Model, name: str, batch: Batch) -> ir.Model:
    """The same function of the same inputs, with every product as a plain MatMul, Gemm or Conv.

    After it every node of the main graph has a name of its own, and weights that the graph computed from constants are
    initializers.

    Args:
        model: may be changed.
        name: how to call it in an error.
        batch: where its samples lie.

    Raises:
        InputError: an operator that holds products which would be missed.

    """
    passes: list[ir.passes.PassBase] = [
        common_passes.InlinePass(),  # functions of the model itself
        NameNodesPass(),
        FoldCodesPass(),
        RefuseUnsupportedPass(name),
        ExpandQuantizedPass(),
        ExpandFusedPass(),
        ExpandAttentionPass(batch),
        ExpandEinsumPass(batch),
        ExpandConvTransposePass(batch),
        NameNodesPass(),
        StoreRepeatedPass(batch),
        OrientProductsPass(batch),
        LeadWithSamplesPass(batch),
        KeepCodesPass(name),
        FoldWeightsPass(),
        WidenHalfPass(batch),
        NameNodesPass(),
        common_passes.RemoveUnusedOpsetsPass(),
    ]
    for each in passes:
        model = each(model).model
    return model
