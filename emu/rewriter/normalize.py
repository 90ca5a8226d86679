"""Brings a model to the plain form in which sites are found: one list of steps, in order."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from emu.errors import InputError
from emu.rewriter.batch import Batch
from emu.rewriter.conditions import (
    CODES_KEPT,
    CODES_STORED,
    FLOAT32,
    INLINED,
    NAMED,
    PLAIN_BLOCKS,
    PLAIN_CODES,
    PLAIN_FUSED,
    STORED,
    TURNED,
    Condition,
)
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


@dataclass(frozen=True)
class Step:
    """A pass, what must be true of the graph before it, and what is true from it on."""

    run: ir.passes.PassBase
    requires: tuple[Condition, ...] = ()
    ensures: tuple[Condition, ...] = ()


def steps(name: str, batch: Batch) -> list[Step]:
    """The steps of normalization, in order.

    Args:
        name: how to call the model in an error.
        batch: where its samples lie.

    """
    return [
        Step(common_passes.InlinePass(), ensures=(INLINED,)),
        Step(NameNodesPass()),
        Step(FoldCodesPass(), requires=(INLINED,), ensures=(CODES_STORED,)),
        Step(RefuseUnsupportedPass(name), requires=(CODES_STORED,)),
        Step(ExpandQuantizedPass(), requires=(CODES_STORED,), ensures=(PLAIN_CODES,)),
        Step(ExpandFusedPass(), requires=(PLAIN_CODES,), ensures=(PLAIN_FUSED,)),
        Step(ExpandAttentionPass(batch), requires=(PLAIN_FUSED,)),
        Step(ExpandEinsumPass(batch), requires=(PLAIN_FUSED,)),
        Step(ExpandConvTransposePass(batch), ensures=(PLAIN_BLOCKS,)),
        Step(NameNodesPass()),
        Step(StoreRepeatedPass(batch), requires=(PLAIN_FUSED, PLAIN_CODES)),
        Step(OrientProductsPass(batch), ensures=(TURNED,)),
        Step(LeadWithSamplesPass(batch), requires=(TURNED,)),
        Step(KeepCodesPass(name), requires=(PLAIN_CODES, TURNED), ensures=(CODES_KEPT,)),
        Step(FoldWeightsPass(), requires=(CODES_KEPT,), ensures=(STORED,)),
        Step(WidenHalfPass(batch), requires=(STORED,), ensures=(FLOAT32,)),
        Step(NameNodesPass(), ensures=(NAMED,)),
        Step(common_passes.RemoveUnusedOpsetsPass()),
    ]


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
    for step in steps(name, batch):
        model = step.run(model).model
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
