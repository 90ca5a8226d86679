"""Deterministic converters and tiles of a stored product, in standard operators: docs/operators.md, What is read."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from emu.contract.schema import STORED
from emu.contract.structure import Controls, Structure
from emu.rewriter.builder import GraphBuilder

# Numbers of converters that have no standard operators here, at the values that do nothing.
_STRAIGHT = {"dac.asymmetry": 0.0, "adc.asymmetry": 0.0, "adc.nonlinearity": 0.0, "adc.scale": 1.0}

_AXES_OPSET = 18  # the opset from which ReduceMax takes its axes as an input


def why_not_written(structure: Structure, numbers: Mapping[str, float]) -> str | None:
    """What of a site's reading has no standard operators here, None if all of it has."""
    reasons = {
        "a product of activations, or integer codes": structure.op != STORED,
        "a convolution": bool(structure.window),
        "slices of weights or of inputs": structure.weight_slices > 1 or structure.dac_slice_bits > 0,
        "an offset of its weights": structure.encoding == "offset",
        "bound management": structure.bound_management != "none",
        "a granular ADC": structure.adc == "granular",
        "errors of its ADCs": numbers.get("adc.gain_sigma", 0) > 0 or numbers.get("adc.offset_sigma", 0) > 0,
        "a pair whose devices are converted apart": structure.converts_apart,
        "rounding at random": "stochastic" in (structure.dac_rounding, structure.adc_rounding),
        "an input range by value or by sum": structure.dac in ("max", "absmax_sum"),
        "converters that bend, scale or differ by sign": any(
            numbers.get(name, plain) != plain for name, plain in _STRAIGHT.items()
        ),
        "an absmax ADC for each of several column tiles": structure.adc == "absmax" and structure.tile_columns > 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def write_reading(
    builder: GraphBuilder,
    opset: int,
    name: str,
    x: ir.Value,
    v: NDArray[np.float32],
    scales: NDArray[np.float32],
    structure: Structure,
    controls: Controls,
) -> tuple[ir.Value, list[str]]:
    """Adds the nodes that read a product tile by tile; not yet in the graph.

    Args:
        builder: of the graph.
        opset: its version of ONNX's operators.
        name: of the product.
        x: its input `[..., K]`.
        v: what the array holds, float32 `[K, N]`, in units of g_max.
        scales: of every column in every row tile, float32 `[row tiles, N]`.
        structure: the site's attributes.
        controls: the numbers and ranges of the site.

    Returns:
        The result, and the names of the initializers that hold stored values.
    """
    work = _Reading(builder, opset, name, structure, controls)
    parts, stored = [], []
    tiles = structure.row_tiles(len(v))
    for number, (tile, scale) in enumerate(zip(tiles, scales, strict=True)):
        part = x
        if len(tiles) > 1:
            ends = (work.integers("from", [tile.start]), work.integers("to", [tile.stop]), work.integers("axis", [-1]))
            part = work.op("Slice", x, *ends)
        fed, alpha = work.fed(part, number)
        weight = builder.constant(f"{name}.tile", np.ascontiguousarray(v[tile]))
        stored.append(weight.name or "")
        read = work.converted(work.op("MatMul", fed, weight), tile.stop - tile.start, number)
        if alpha is not None:
            read = work.op("Mul", read, alpha)
        read = work.op("Mul", read, work.number("scales", scale))
        parts.append(read if structure.dac != "absmax" else work.where_fed(alpha, read))
    return (parts[0] if len(parts) == 1 else work.op("Sum", *parts)), stored


class _Reading:
    def __init__(self, builder: GraphBuilder, opset: int, name: str, structure: Structure, controls: Controls) -> None:
        self.builder, self.opset, self.name = builder, opset, name
        self.structure, self.controls, self.numbers = structure, controls, controls.numbers

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """A node."""
        return self.builder.node(op_type, inputs, f"{self.name}.{op_type}", **attributes)

    def number(self, what: str, value: object) -> ir.Value:
        """A float32 constant."""
        return self.builder.constant(f"{self.name}.{what}", np.asarray(value, np.float32))

    def integers(self, what: str, values: list[int]) -> ir.Value:
        """An int64 constant."""
        return self.builder.constant(f"{self.name}.{what}", np.array(values))

    def largest(self, x: ir.Value) -> ir.Value:
        """The largest magnitude of each row, `[..., 1]`."""
        magnitude, name = self.op("Abs", x), f"{self.name}.largest"
        if self.opset >= _AXES_OPSET:
            return self.builder.node("ReduceMax", [magnitude, self.integers("last", [-1])], name, keepdims=1)
        return self.builder.node("ReduceMax", [magnitude], name, axes=[-1], keepdims=1)

    def fed(self, x: ir.Value, tile: int) -> tuple[ir.Value, ir.Value | None]:
        """What the rows of a tile are fed (steps 1 and 2), and the activation that maps to 1."""
        structure, numbers = self.structure, self.numbers
        if structure.dac == "none":
            return x, None
        if structure.dac == "absmax":
            alpha = self.largest(x)
            if "dac.limit" in numbers:
                alpha = self.op("Min", alpha, self.number("limit", numbers["dac.limit"]))
            one = self.number("one", 1)
            safe = self.op("Where", self.op("Greater", alpha, self.number("tiny", 1e-38)), alpha, one)
            x1 = self.op("Mul", x, self.op("Div", one, safe))
        else:
            top = np.float32(numbers["dac.max"] if structure.dac == "fixed" else self.controls.input_range(tile))
            alpha = self.number("range", top)
            x1 = self.op("Mul", x, self.number("to_one", np.float32(1) / top))
        bound, steps = numbers["dac.bound"], self.controls.dac_steps(structure)
        if steps:
            up, down = self.number("steps", steps / (2 * bound)), self.number("step", 2 * bound / steps)
            shift = self.number("bound", bound)
            x1 = self.op("Add", x1, shift) if structure.dac_code == "offset_binary" else x1
            x1 = self.op("Mul", self.op("Round", self.op("Mul", x1, up)), down)
            x1 = self.op("Sub", x1, shift) if structure.dac_code == "offset_binary" else x1
        return self.op("Clip", x1, self.number("lowest", -bound), self.number("highest", bound)), alpha

    def where_fed(self, alpha: ir.Value | None, result: ir.Value) -> ir.Value:
        """Nothing, for rows of zeros."""
        assert alpha is not None, "absmax has one"
        fed = self.op("Greater", alpha, self.number("tiny", 1e-38))
        return self.op("Where", fed, result, self.number("nothing", 0))

    def converted(self, y: ir.Value, rows: int, tile: int) -> ir.Value:
        """What the ADCs make of the outputs of a tile (step 6)."""
        structure, steps = self.structure, self.controls.adc_steps(self.structure)
        if structure.adc == "none":
            return y
        if structure.adc == "absmax":
            return self._by_largest(y, steps)
        low, high = self.controls.output_range(tile, 0, 0)
        bound = {"fixed": self.numbers.get("adc.bound", 0.0), "rows": float(rows)}.get(
            structure.adc, max(abs(low), abs(high))
        )
        shifted = structure.adc_code == "offset_binary"
        if not shifted or structure.adc != "calibrated":
            low, high = -bound, bound
        if steps:
            up, down = self.number("levels", steps / (high - low)), self.number("level", (high - low) / steps)
            y = self.op("Sub", y, self.number("low", low)) if shifted else y
            y = self.op("Mul", self.op("Round", self.op("Mul", y, up)), down)
            y = self.op("Add", y, self.number("low", low)) if shifted else y
            high = high - 2 * bound / steps if structure.adc_code == "twos_complement" else high
        return self.op("Clip", y, self.number("lowest", low), self.number("highest", high))

    def _by_largest(self, y: ir.Value, steps: int) -> ir.Value:
        """Codes whose range is the largest magnitude of each row."""
        if not steps:
            return y
        bound = self.largest(y)
        zero = self.number("nothing", 0)
        some = self.op("Greater", bound, zero)
        bound = self.op("Where", some, bound, self.number("one", 1))
        up = self.op("Div", self.number("levels", steps / 2), bound)
        down = self.op("Mul", bound, self.number("level", 2 / steps))
        shifted = self.structure.adc_code == "offset_binary"
        codes = self.op("Round", self.op("Mul", self.op("Add", y, bound) if shifted else y, up))
        result = self.op("Mul", codes, down)
        if shifted:
            result = self.op("Sub", result, bound)
        if self.structure.adc_code == "twos_complement":
            result = self.op("Min", result, self.op("Sub", bound, down))
        return self.op("Where", some, result, zero)
