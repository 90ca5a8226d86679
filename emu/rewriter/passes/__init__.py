"""Normalization passes: each brings one exporter's or optimizer's habit to the plain form that sites are found in."""

from emu.rewriter.passes.expand_attention import ExpandAttentionPass
from emu.rewriter.passes.expand_fused import ExpandFusedPass, NameFusedDomainPass
from emu.rewriter.passes.expand_quantized import ExpandQuantizedPass
from emu.rewriter.passes.fold_weights import FoldWeightsPass
from emu.rewriter.passes.keep_codes import KeepCodesPass
from emu.rewriter.passes.name_nodes import NameNodesPass
from emu.rewriter.passes.refuse_unsupported import RefuseUnsupportedPass
from emu.rewriter.passes.restore_codes import RestoreCodesPass
from emu.rewriter.passes.widen_half import WidenHalfPass

__all__ = [
    "ExpandAttentionPass",
    "ExpandFusedPass",
    "ExpandQuantizedPass",
    "FoldWeightsPass",
    "KeepCodesPass",
    "NameFusedDomainPass",
    "NameNodesPass",
    "RefuseUnsupportedPass",
    "RestoreCodesPass",
    "WidenHalfPass",
]
