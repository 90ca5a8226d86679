"""Gradients through a crossbar: its product forward, by the laws of `emu.reference`, the plain product's backward.

Converters are straight-through, and pass nothing where they clip.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from emu.contract.structure import Controls, Structure
from emu.reference.converters import AdcRange
from emu.reference.periphery import Observer, Reading


def crossbar_product(x: Tensor, weights: Tensor, reading: Reading) -> Tensor:
    """The product as the crossbar delivers it, float32 `[..., M, N]`, on the device of its operands.

    Args:
        x: float32 `[..., M, K]`.
        weights: what the array holds, in weights, `[..., K, N]`: gradients pass through it and x as in `x @ weights`.
        reading: the same, as a reading finds it.
    """
    product: Tensor = _Product.apply(x, weights, reading)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weights: Tensor, reading: Reading) -> Tensor:
        clipped = _Clipped(x, weights.shape[-1], reading.structure, reading.controls)
        y: Tensor = replace(reading, observer=clipped).of(x)
        context.save_for_backward(x, weights)
        context.tiles, context.fed, context.inside = reading.structure.row_tiles(x.shape[-1]), *clipped.passed()
        return y

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weights = context.saved_tensors
        of_x, of_weights = torch.zeros_like(x), torch.zeros_like(weights)
        parts = [(k, gradient * context.inside.get(tile, 1)) for tile, k in enumerate(context.tiles)]
        if not context.inside:
            parts = [(slice(None), gradient)]
        for k, of_y in parts:
            if context.needs_input_grad[0]:
                of_x[..., k] = of_y @ weights[..., k, :].transpose(-1, -2)
            if context.needs_input_grad[1]:
                product = x[..., k].transpose(-1, -2) @ of_y
                of_weights[..., k, :] = product.sum_to_size(of_weights[..., k, :].shape)
        return of_x if context.fed is None else of_x * context.fed, of_weights, None


class _Clipped(Observer):
    """Notes what converters clip, which passes no gradient."""

    def __init__(self, x: Tensor, columns: int, structure: Structure, controls: Controls) -> None:
        self.shape = (*x.shape[:-1], columns)
        self.has_dac, self.has_adc = structure.dac != "none", structure.adc not in ("none", "absmax")
        self.bound = controls.numbers.get("dac.bound", 1.0)
        self.inputs = torch.zeros_like(x, dtype=torch.bool) if self.has_dac else None
        self.outputs: dict[int, Tensor] = {}

    def fed(self, k: slice, x: Tensor, alpha: Tensor) -> None:
        if self.inputs is not None:
            self.inputs[..., k] = x.abs() > alpha * self.bound

    def converted(
        self, tile: int, n: slice, y: Tensor, margin: Callable[[], Tensor], limits: AdcRange, rows: Tensor, again: Any
    ) -> None:
        if not self.has_adc:
            return
        if tile not in self.outputs:
            self.outputs[tile] = torch.zeros(self.shape, dtype=torch.bool, device=y.device)
        stand = rows if again is None else rows & ~again
        self.outputs[tile][..., n] |= stand & ((y < limits.low) | (y > limits.high))

    def passed(self) -> tuple[Tensor | None, dict[int, Tensor]]:
        """Factors on the gradients of X `[..., M, K]` and of the outputs of row tiles `[..., M, N]`, if not all 1."""
        inputs = (~self.inputs).float() if self.inputs is not None and bool(self.inputs.any()) else None
        return inputs, {tile: (~each).float() for tile, each in self.outputs.items() if bool(each.any())}
