"""Brings a model to the plain form in which sites are found: one list of passes, in order."""

from collections.abc import Iterable

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from emu.errors import InputError
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

_LARGEST_GRAPH = 1_000_000  # nodes, with all functions written out


def normalize(model: ir.Model, name: str, batch: Batch) -> ir.Model:
    """The same function of the same inputs, with every product as a plain MatMul, Gemm or Conv.

    After it every node of the main graph has a name of its own, and weights that the graph computed from constants are
    initializers.

    Args:
        model: may be changed.
        name: how to call it in an error.
        batch: where its samples lie.

    Raises:
        InputError: an operator that holds products which would be missed, or functions that call each other so often
            that no memory holds the graph.

    """
    _check_functions(model, name)
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


def _check_functions(model: ir.Model, name: str) -> None:
    """Refuses functions that double with every call: a small file may stand for any number of nodes."""
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size(nodes: Iterable[ir.Node]) -> int:
        total = 0
        for node in nodes:
            called = node.op_identifier()
            if called in model.functions and called not in sizes:
                sizes[called] = 1  # a function that calls itself is refused where it is written out
                sizes[called] = size(model.functions[called].all_nodes())
            total += sizes.get(called, 1)
        return total

    if (total := size(model.graph.all_nodes())) > _LARGEST_GRAPH:
        raise InputError(
            f"{name} has {total} nodes with its functions written out, more than {_LARGEST_GRAPH}: export it again "
            "without functions."
        )
