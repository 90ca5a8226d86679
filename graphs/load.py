"""Loads the stored graphs: `load("vit_base-torchscript")`."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphs.weightless import Weights, rebuild

FOLDER = Path(__file__).parent


@cache
def manifest() -> dict[str, Any]:
    """What was exported, how, and the sites that are in it: see `graphs/README.md`."""
    return json.loads((FOLDER / "manifest.json").read_text())  # type: ignore[no-any-return]


def names() -> list[str]:
    """The names of all graphs."""
    return list(manifest()["graphs"])


def path_of(name: str) -> Path:
    """The file of a graph: compressed, and without weights."""
    return FOLDER / f"{name}.onnx.gz"


def load(name: str, weights: Weights = "constant") -> ir.Model:
    """A graph with weights, as `emu.rewrite` takes it.

    Args:
        name: one of `names()`.
        weights: `constant` for all weights the same (nothing is computed), `random` for numbers like trained ones.

    """
    return rebuild(onnx.load_from_string(gzip.decompress(path_of(name).read_bytes())), weights)
