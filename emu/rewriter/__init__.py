"""Rewrites exported ONNX transformers so that their matrix products run on emulated crossbars."""

from emu.rewriter.manifest import read_manifest
from emu.rewriter.rewriter import EmulatedModel, find_sites, rewrite
from emu.rewriter.selection import matching, select
from emu.rewriter.site import COMPONENTS, Site, Skipped

__all__ = [
    "COMPONENTS",
    "EmulatedModel",
    "Site",
    "Skipped",
    "find_sites",
    "matching",
    "read_manifest",
    "rewrite",
    "select",
]
