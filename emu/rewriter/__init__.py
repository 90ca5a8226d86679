"""Rewrites exported ONNX transformers so that their matrix products run on emulated crossbars."""

from emu.rewriter.devices import Device, Rule, load_devices
from emu.rewriter.faults import ArrayFaults, Faults, fault_storage
from emu.rewriter.manifest import device_choices, device_settings, read_manifest
from emu.rewriter.rewriter import EmulatedModel, find_sites, find_stored_tensors, rewrite
from emu.rewriter.selection import matching, select
from emu.rewriter.sharing import Share
from emu.rewriter.site import COMPONENTS, STORED_COMPONENTS, Site, Skipped

__all__ = [
    "COMPONENTS",
    "STORED_COMPONENTS",
    "ArrayFaults",
    "Device",
    "EmulatedModel",
    "Faults",
    "Rule",
    "Share",
    "Site",
    "Skipped",
    "device_choices",
    "device_settings",
    "fault_storage",
    "find_sites",
    "find_stored_tensors",
    "load_devices",
    "matching",
    "read_manifest",
    "rewrite",
    "select",
]
