"""Baked chips: plain ONNX files that hold what the arrays of one chip hold, for any runtime."""

from emu.baking.baking import DROPS, BakedModel, Drop, bake, bake_chips, read_baked
from emu.baking.proof import Proof

__all__ = ["DROPS", "BakedModel", "Drop", "Proof", "bake", "bake_chips", "read_baked"]
