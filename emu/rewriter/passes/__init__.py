"""Normalization passes: each brings one exporter's or optimizer's habit to the plain form that sites are found in."""

from emu.rewriter.passes.expand_attention import ExpandAttentionPass
from emu.rewriter.passes.expand_conv_transpose import ExpandConvTransposePass
from emu.rewriter.passes.expand_einsum import ExpandEinsumPass
from emu.rewriter.passes.expand_fused import ExpandFusedPass, NameFusedDomainPass
from emu.rewriter.passes.expand_quantized import ExpandQuantizedPass
from emu.rewriter.passes.fold_weights import FoldCodesPass, FoldWeightsPass
from emu.rewriter.passes.keep_codes import KeepCodesPass
from emu.rewriter.passes.lead_with_samples import LeadWithSamplesPass
from emu.rewriter.passes.name_nodes import NameNodesPass
from emu.rewriter.passes.orient_products import OrientProductsPass
from emu.rewriter.passes.refuse_unsupported import RefuseUnsupportedPass
from emu.rewriter.passes.restore_codes import RestoreCodesPass
from emu.rewriter.passes.store_repeated import StoreRepeatedPass
from emu.rewriter.passes.widen_half import WidenHalfPass

__all__ = [
    "ExpandAttentionPass",
    "ExpandConvTransposePass",
    "ExpandEinsumPass",
    "ExpandFusedPass",
    "ExpandQuantizedPass",
    "FoldCodesPass",
    "FoldWeightsPass",
    "KeepCodesPass",
    "LeadWithSamplesPass",
    "NameFusedDomainPass",
    "NameNodesPass",
    "OrientProductsPass",
    "RefuseUnsupportedPass",
    "RestoreCodesPass",
    "StoreRepeatedPass",
    "WidenHalfPass",
]
