"""Normalization passes: each brings one exporter's or optimizer's habit to the plain form that sites are found in."""

from emu.rewriter.passes.expand_attention import ExpandAttentionPass
from emu.rewriter.passes.fold_weights import FoldWeightsPass
from emu.rewriter.passes.name_nodes import NameNodesPass
from emu.rewriter.passes.refuse_unsupported import RefuseUnsupportedPass

__all__ = ["ExpandAttentionPass", "FoldWeightsPass", "NameNodesPass", "RefuseUnsupportedPass"]
