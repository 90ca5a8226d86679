"""Repair without training: closed-form corrections of a chip, in digital logic around its arrays."""

from emu.correction.repair import METHODS, Comparison, Method, Repaired, repair

__all__ = ["METHODS", "Comparison", "Method", "Repaired", "repair"]
