"""Repair in PyTorch: noise on a model's products, noise-aware distillation, export.

Needs the extra `train`. Everything is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.train.cdeit import CDeiTForImageClassification
    from emu.train.exporting import export, onnx_of
    from emu.train.finetuning import finetune
    from emu.train.noise import Chip
    from emu.train.remeasuring import remeasure
    from emu.train.settings import Finetuning

_HOMES = {
    "CDeiTForImageClassification": "emu.train.cdeit",
    "Chip": "emu.train.noise",
    "Finetuning": "emu.train.settings",
    "export": "emu.train.exporting",
    "finetune": "emu.train.finetuning",
    "onnx_of": "emu.train.exporting",
    "remeasure": "emu.train.remeasuring",
}

__all__ = ["CDeiTForImageClassification", "Chip", "Finetuning", "export", "finetune", "onnx_of", "remeasure"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'emu.train' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
