"""Repair in PyTorch: noise on a model's products, noise-aware distillation, export.

Needs the extra `train`. Everything is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.train.noise import Chip

_HOMES = {"Chip": "emu.train.noise"}

__all__ = ["Chip"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'emu.train' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
