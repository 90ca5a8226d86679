"""Rewrites exported ONNX transformers so that their matrix products run on emulated crossbars."""

from emu.rewriter.manifest import read_manifest
from emu.rewriter.rewriter import EmulatedModel, find_sites, find_stored_tensors, rewrite
from emu.rewriter.selection import matching, select
from emu.rewriter.site import COMPONENTS, STORED_COMPONENTS, Site, Skipped

__all__ = [
    "COMPONENTS",
    "STORED_COMPONENTS",
    "EmulatedModel",
    "Site",
    "Skipped",
    "find_sites",
    "find_stored_tensors",
    "matching",
    "read_manifest",
    "rewrite",
    "select",
]
