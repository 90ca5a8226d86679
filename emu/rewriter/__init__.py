"""Rewrites exported ONNX transformers so that their matrix products run on emulated crossbars."""

from emu.rewriter.devices import Device, Rule, load_devices
from emu.rewriter.faults import ArrayFaults, Faults, fault_storage
from emu.rewriter.manifest import (
    about_sites,
    arrays_with_faults,
    calibrated_sites,
    device_numbers,
    read_manifest,
    structure_of,
    undisturbed_sites,
)
from emu.rewriter.replace import Calibrated
from emu.rewriter.rewriter import EmulatedModel, find_sites, find_stored_tensors, rewrite
from emu.rewriter.sharing import Share

__all__ = [
    "ArrayFaults",
    "Calibrated",
    "Device",
    "EmulatedModel",
    "Faults",
    "Rule",
    "Share",
    "about_sites",
    "arrays_with_faults",
    "calibrated_sites",
    "device_numbers",
    "fault_storage",
    "find_sites",
    "find_stored_tensors",
    "load_devices",
    "read_manifest",
    "rewrite",
    "structure_of",
    "undisturbed_sites",
]
