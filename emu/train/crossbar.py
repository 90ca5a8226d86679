"""What a crossbar delivers, in PyTorch: writing of operands, DAC, tiles, noise and ADC on any device, with gradients.

The forward pass is docs/operators.md step by step, as in `emu.reference`; the backward pass is that of the plain
product with what the array holds (converters are straight-through, and pass nothing where they clip).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emu.contract.schema import DYNAMIC
from emu.contract.structure import Controls, Structure
from emu.reference.mapping import Mapping, levels_of_cell
from emu.reference.random import Stream

Normals = Callable[[Stream, int, int, int], Tensor]
"""Standard normals of one reading: of a stream, so many columns, a row tile and a reading; [..., M, columns]."""


@dataclass(frozen=True)
class Held:
    """What arrays hold of matrices [..., K, N], as a reading finds it.

    Args:
        v: of each weight slice, in units of g_max, float32 `[..., K, N]`.
        scales: of every column in every row tile, float32 `[..., row tiles, N]`.
        mapping: what v is worth in weights.
        unit_column: v of the column of cells that holds 0, of each slice, float32 `[K, 1]`.
        adc_errors: gain (about 1) and offset of the ADC of every column, float32 `[slices, row tiles, N]`.
    """

    v: Sequence[Tensor]
    scales: Tensor
    mapping: Mapping
    unit_column: Sequence[Tensor] | None = None
    adc_errors: tuple[Tensor, Tensor] | None = None

    def weights(self, structure: Structure) -> Tensor:
        """What all of this amounts to, float32 `[..., K, N]`."""
        total = sum(f * v for f, v in zip(self.mapping.factors, self.v, strict=True)) - self.mapping.offset
        heights = [tile.stop - tile.start for tile in structure.row_tiles(self.v[0].shape[-2])]
        repeats = torch.tensor(heights, device=self.scales.device)
        spread: Tensor = total * self.scales.repeat_interleave(repeats, dim=-2)
        return spread


def crossbar_product(
    x: Tensor, weights: Tensor, held: Held, structure: Structure, controls: Controls, normals: Normals
) -> Tensor:
    """The product as the crossbar delivers it.

    Args:
        x: float32 `[..., M, K]`.
        weights: what the array holds, in weights, `[..., K, N]`: gradients pass through it and x as in `x @ weights`.
        held: the same, as a reading finds it.
        structure: the attributes of the node.
        controls: its control inputs.
        normals: source of run-time noise.

    Returns:
        float32 `[..., M, N]`.
    """
    product: Tensor = _Product.apply(x, weights, held, structure, controls, normals)  # type: ignore[no-untyped-call]
    return product


def written(b: Tensor, structure: Structure, controls: Controls, normals: Normals) -> Held:
    """What arrays hold of operands that are written for every sample.

    Args:
        b: float32 `[samples, matrices, K, N]`.
        structure: the attributes of the node.
        controls: its control inputs.
        normals: standard normals of a stream, `[samples, matrices, K, columns]`.
    """
    scales = _operand_scales(b, structure, controls)
    heights = torch.tensor([tile.stop - tile.start for tile in structure.row_tiles(b.shape[-2])], device=b.device)
    w = b / scales.repeat_interleave(heights, dim=-2)
    conductances = structure.write in ("lognormal_g", "clipformer")
    if "mapping.percentile" in controls.numbers:
        w = w.clamp(-1, 1)
    mapping = Mapping(lowest=0.0, factors=(1.0,), offset=0.0)
    sigma = controls.strength * controls.numbers.get("write.sigma", 0.0)
    columns = b.shape[-1]
    if conductances:
        r = controls.numbers["mapping.g_min_us"] / controls.numbers["mapping.g_max_us"]
        mapping = Mapping(lowest=r, factors=(1 / (1 - r),), offset=0.0)
        device = _lognormal if structure.write == "lognormal_g" else _clipformer
        pair = [
            device(side.clamp(min=0), sigma * normals(stream, columns, 0, 0), r, structure, controls)
            for side, stream in ((w, Stream.WRITE), (-w, Stream.WRITE_NEGATIVE))
        ]
        return Held([pair[0] - pair[1]], scales, mapping)
    if structure.write != "none":
        theta = sigma * normals(Stream.WRITE, columns, 0, 0)
        w = {
            "lognormal_w": lambda: w * torch.exp(theta),
            "lognormal_w_meancorr": lambda: w * torch.exp(theta - sigma**2 / 2),
            "gauss_prop": lambda: w * (1 + theta),
            "gauss_range": lambda: w + theta,
        }[structure.write]()
    return Held([w], scales, mapping)


def _operand_scales(b: Tensor, structure: Structure, controls: Controls) -> Tensor:
    """The scale of every column in every row tile, [samples, matrices, row tiles, N]."""
    magnitude, tiles = b.abs(), structure.row_tiles(b.shape[-2])
    s = b.new_zeros((*b.shape[:-2], len(tiles), b.shape[-1]))
    if structure.write_scaling == "sample":
        s[:] = _largest(magnitude.flatten(1)[..., None], controls)[:, None, :, None]
    elif structure.scaling == "tensor":
        s[:] = _largest(magnitude.flatten(-2)[..., None], controls)[..., None]
    elif structure.scaling == "column":
        s[:] = _largest(magnitude, controls)[..., None, :]
    else:
        for tile, k in enumerate(tiles):
            for n in structure.column_tiles(b.shape[-1]):
                inside = magnitude[..., k, n]
                if structure.scaling == "tile":
                    inside = inside.flatten(-2)[..., None]
                s[..., tile, n] = _largest(inside, controls)
    return torch.where(s == 0, torch.ones_like(s), s)


def _largest(magnitude: Tensor, controls: Controls) -> Tensor:
    """The largest magnitude of each column of [..., count, columns], or the one of the percentile's rank."""
    if "mapping.percentile" not in controls.numbers:
        return magnitude.amax(dim=-2)
    rank = int(np.ceil(controls.numbers["mapping.percentile"] * magnitude.shape[-2]))
    return magnitude.kthvalue(rank, dim=-2).values


def _lognormal(q: Tensor, theta: Tensor, r: float, structure: Structure, controls: Controls) -> Tensor:
    return (r + (1 - r) * q) * torch.exp(theta)


def _clipformer(q: Tensor, theta: Tensor, r: float, structure: Structure, controls: Controls) -> Tensor:
    """The conductances of one device: moved towards zero, limited, written with noise that grows with them."""
    numbers = controls.numbers
    if numbers["write.bits"]:
        most = 2 ** numbers["write.bits"] - 1
        q = torch.round(q * most) / most
    moved = (r + (1 - r) * q - numbers["write.alpha"] * r).clamp(min=r)
    limited = moved.clamp(max=numbers["write.beta"]).clamp(min=r)
    p = (limited - r) / (1 - r)
    spread = torch.sqrt(p) if structure.write_cells == "composite" else _spread_of_cells(p)
    return (r + (1 - r) * (p + numbers["write.gamma"] * theta * spread)).clamp(r, 1.0)


def _spread_of_cells(p: Tensor) -> Tensor:
    """The amplitude of the noise of a code in four cells of two bits, each with its own noise."""
    code = torch.round(255 * p).to(torch.int64)
    variance = torch.zeros_like(p)
    for cell in range(4):
        variance += (3 * 4.0**cell / 255) ** 2 * ((code >> (2 * cell)) & 3) / 3
    return torch.sqrt(variance)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weights: Tensor,
        held: Held,
        structure: Structure,
        controls: Controls,
        normals: Normals,
    ) -> Tensor:
        reader = _Reader(x, held, structure, controls, normals)
        y = reader.read()
        context.save_for_backward(x, weights)
        context.tiles, context.fed, context.inside = reader.tiles, reader.fed_inside, reader.read_inside
        return y

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weights = context.saved_tensors
        of_x, of_weights = torch.zeros_like(x), torch.zeros_like(weights)
        if context.fed is None and not context.inside:
            parts = [(slice(None), gradient)]
        else:
            parts = [(k, gradient * context.inside.get(tile, 1)) for tile, k in enumerate(context.tiles)]
        for k, of_y in parts:
            if context.needs_input_grad[0]:
                of_x[..., k] = of_y @ weights[..., k, :].transpose(-1, -2)
            if context.needs_input_grad[1]:
                product = x[..., k].transpose(-1, -2) @ of_y
                of_weights[..., k, :] = product.sum_to_size(of_weights[..., k, :].shape)
        if context.fed is not None:
            of_x = of_x * context.fed
        return of_x, of_weights, None, None, None, None


class _Reader:
    """One product: every row of x through all tiles."""

    def __init__(self, x: Tensor, held: Held, structure: Structure, controls: Controls, normals: Normals) -> None:
        self.x, self.held, self.structure, self.controls, self.normals = x, held, structure, controls, normals
        self.tiles = structure.row_tiles(x.shape[-1])
        self.columns = held.v[0].shape[-1]
        self.fed_inside: Tensor | None = None
        self.read_inside: dict[int, Tensor] = {}

    def read(self) -> Tensor:
        y = self.x.new_zeros((*self.x.shape[:-1], self.columns))
        for tile, k in enumerate(self.tiles):
            x = self.x[..., k]
            alpha = self._input_range(x)
            self._note_clipped_inputs(k, x, alpha)
            dark = alpha == 0
            alpha = torch.where(dark, torch.ones_like(alpha), alpha)
            noise = self._input_noise(k)
            for n in self.structure.column_tiles(self.columns):
                read = self._tile(tile, k, n, x, alpha, noise)
                y[..., n] += torch.where(dark, torch.zeros_like(read), read)
            if self.held.mapping.offset != 0:
                offset = self._offset(tile, k, x, alpha, noise) * alpha * self.held.scales[..., tile : tile + 1, :]
                y -= torch.where(dark, torch.zeros_like(offset), offset)
        return y

    def _input_range(self, x: Tensor) -> Tensor:
        """The input range alpha of every row, [..., M, 1]."""
        structure, numbers = self.structure, self.controls.numbers
        if structure.dac == "absmax":
            largest = x.abs().amax(dim=-1, keepdim=True)
            return largest.clamp(max=numbers["dac.limit"]) if "dac.limit" in numbers else largest
        alpha = {"fixed": numbers.get("dac.max", 1.0), "calibrated": self.controls.input_range, "none": 1.0}
        return x.new_full((*x.shape[:-1], 1), alpha[structure.dac])

    def _note_clipped_inputs(self, k: slice, x: Tensor, alpha: Tensor) -> None:
        if self.structure.dac == "none":
            return
        clipped = x.abs() > alpha * self.controls.numbers["dac.bound"]
        if bool(clipped.any()):
            if self.fed_inside is None:
                self.fed_inside = torch.ones_like(self.x)
            self.fed_inside[..., k][clipped] = 0

    def _input_noise(self, k: slice) -> Tensor | None:
        amplitude = self.controls.strength * self.controls.numbers.get("read.input_noise", 0.0)
        if amplitude == 0:
            return None
        return amplitude * self.normals(Stream.INPUT_NOISE, self.x.shape[-1], 0, 0)[..., k]

    def _fed(self, x: Tensor, alpha: Tensor, noise: Tensor | None) -> list[tuple[Tensor, float]]:
        """What the array is fed: every input slice and its weight."""
        structure = self.structure
        x1 = x * (1 / alpha)
        if structure.dac != "none":
            n, bound = self.controls.dac_steps(structure), self.controls.numbers["dac.bound"]
            if n > 0:
                to_code, to_value = float(np.float32(n / (2 * bound))), float(np.float32(2 * bound / n))
                if structure.dac_code == "offset_binary":
                    x1 = torch.round((x1 + bound) * to_code) * to_value - bound
                else:
                    x1 = torch.round(x1 * to_code) * to_value
            x1 = x1.clamp(-bound, bound)
        if noise is not None:
            x1 = x1 + noise
        s = structure.dac_slice_bits
        if s == 0:
            return [(x1, 1.0)]
        most = self.controls.dac_steps(structure) // 2
        code = torch.round(x1.abs() * most).to(torch.int64)
        return [
            (
                x1.sign() * (((code >> (j * s)) & (2**s - 1)).to(x1.dtype) / (2**s - 1)),
                2.0 ** (j * s) * (2**s - 1) / most,
            )
            for j in range(self.controls.input_slices(structure))
        ]

    def _tile(self, tile: int, k: slice, n: slice, x: Tensor, alpha: Tensor, noise: Tensor | None) -> Tensor:
        """What one tile adds to y; rows that saturate are read again with halved inputs."""
        structure = self.structure
        scales = self.held.scales[..., tile : tile + 1, n]
        result = x.new_zeros((*x.shape[:-1], n.stop - n.start))
        waiting = torch.ones_like(alpha, dtype=torch.bool)
        b, repeats = 1.0, 0
        while True:
            repeatable = structure.bound_management == "iterative" and not self._is_last_repeat(b)
            fed = self._fed(x, alpha * b, noise)
            again = torch.zeros_like(waiting)
            total = torch.zeros_like(result)
            clipped = torch.zeros_like(result, dtype=torch.bool)
            for i, f in enumerate(self.held.mapping.factors):
                v = self.held.v[i][..., k, n]
                for j, (x1, h) in enumerate(fed):
                    reading = repeats if structure.bound_management == "iterative" else i * len(fed) + j
                    y = self._analog(x1, v, i, tile, n, reading)
                    low, high = self._output_range(y, v.shape[-2])
                    if repeatable:
                        again |= (y.abs() > high).any(dim=-1, keepdim=True)
                    code = self._through_adc(y, low, high)
                    if self._clips:
                        clipped |= (y < low) | (y > high)
                    total = total + code * (f * h)
            done = waiting & ~again
            result = torch.where(done, total * (alpha * b) * scales, result)
            if self._clips and bool((done & clipped).any()):
                inside = self.read_inside.setdefault(tile, torch.ones((*x.shape[:-1], self.columns), device=x.device))
                inside[..., n] = torch.where(done & clipped, torch.zeros_like(total), inside[..., n])
            waiting = waiting & again
            if not repeatable or not bool(waiting.any()):
                return result
            b, repeats = 2 * b, repeats + 1

    def _analog(self, x1: Tensor, v: Tensor, weight_slice: int, tile: int, n: slice, reading: int) -> Tensor:
        y = x1 @ v
        if self.structure.ir_drop == "formula":
            y = y - self._dropped(x1, v)
        amplitude = self._noise_amplitude(x1, v)
        if amplitude is not None:
            y = y + amplitude * self.normals(Stream.READ, self.columns, tile, reading)[..., n]
        if self.held.adc_errors is not None:
            gain, offset = (each[weight_slice, tile, n] for each in self.held.adc_errors)
            y = y * gain + offset
        return y

    def _offset(self, tile: int, k: slice, x: Tensor, alpha: Tensor, noise: Tensor | None) -> Tensor:
        """What is subtracted from every row for cells that hold an offset, [..., M, 1]."""
        total = torch.zeros_like(alpha)
        fed = self._fed(x, alpha, noise)
        for j, (x1, h) in enumerate(fed):
            if self.held.unit_column is None:
                total = total + self.held.mapping.offset * h * x1.sum(dim=-1, keepdim=True)
                continue
            for i, f in enumerate(self.held.mapping.factors):
                column = self.held.unit_column[i][k]
                y = x1 @ column
                if self.structure.ir_drop == "formula":
                    y = y - self._dropped(x1, column)
                amplitude = self._noise_amplitude(x1, column)
                if amplitude is not None:
                    y = y + amplitude * self.normals(Stream.UNIT_COLUMN_READ, 1, tile, i * len(fed) + j)
                low, high = self._output_range(y, column.shape[0])
                total = total + f * h * self._through_adc(y, low, high)
        return total

    def _dropped(self, x1: Tensor, v: Tensor) -> Tensor:
        """What the wires take from y by aihwkit's formula."""
        rows, numbers = v.shape[-2], self.controls.numbers
        a = rows / numbers["read.ir_drop_ratio"] * (x1.abs() @ v.abs())
        away = 1 - (1 - torch.arange(rows, device=x1.device, dtype=x1.dtype) / rows) ** 2
        dropped: Tensor = numbers["read.ir_drop"] * a * (a * (0.05 * a - 0.2) + 0.5) * ((x1 * away) @ v)
        return dropped

    def _noise_amplitude(self, x1: Tensor, v: Tensor) -> Tensor | None:
        """Standard deviation of the noise on y, [..., M, 1] or [..., M, N]; None where there is none."""
        numbers, structure = self.controls.numbers, self.structure
        constant, c = numbers.get("read.output_noise", 0.0), numbers.get("read.weight_noise", 0.0)
        has_weight_noise = structure.read_noise != "none" and c > 0
        if self.controls.strength == 0 or (constant == 0 and not has_weight_noise):
            return None
        variance = x1.new_full((*x1.shape[:-1], 1), constant**2)
        if has_weight_noise:
            squares = x1**2
            if structure.read_noise == "additive_constant":
                grows = squares.sum(dim=-1, keepdim=True)
            else:
                grows = squares @ (v.abs() if structure.read_noise == "pcm_read" else v**2)
            variance = variance + c**2 * grows
        return self.controls.strength * torch.sqrt(variance)

    @property
    def _clips(self) -> bool:
        return self.structure.adc in ("fixed", "calibrated", "rows", "granular")

    def _output_range(self, y: Tensor, tile_rows: int) -> tuple[Any, Any]:
        """Low and high of the ADC: numbers, or [..., M, 1] where the range follows the outputs."""
        structure, numbers = self.structure, self.controls.numbers
        if structure.adc == "calibrated" and structure.adc_code == "offset_binary":
            return self.controls.output_range
        if structure.adc == "absmax":
            bound = y.abs().amax(dim=-1, keepdim=True)
            bound = torch.where(bound == 0, torch.ones_like(bound), bound)
            return -bound, bound
        if structure.adc == "none":
            same = np.inf
        elif structure.adc == "fixed":
            same = numbers["adc.bound"]
        elif structure.adc == "calibrated":
            same = max(map(abs, self.controls.output_range))
        elif structure.adc == "rows":
            same = float(tile_rows)
        else:
            same = _smallest_step(structure, self.controls) * self.controls.adc_steps(structure) / 2
        return -same, same

    def _through_adc(self, y: Tensor, low: Any, high: Any) -> Tensor:
        value: Tensor
        structure = self.structure
        n = self.controls.adc_steps(structure)
        if structure.adc == "none":
            return y
        if n == 0:
            value = y.clamp(low, high) if structure.adc in ("fixed", "calibrated", "rows") else y
            return value
        # Every code is decided as in the operators: factors in double, rounded once.
        width = high.double() - low.double() if isinstance(high, Tensor) else high - low
        to_code, to_value = n / width, width / n
        if isinstance(to_code, Tensor):
            to_code, to_value = to_code.to(y.dtype), to_value.to(y.dtype)
        if structure.adc_code == "offset_binary":
            value = torch.round((y - low) * to_code) * to_value + low
        else:
            value = torch.round(y * to_code) * to_value
        if structure.adc_code == "twos_complement":
            high = high - to_value
        if structure.adc == "absmax":
            if structure.adc_code == "sign_magnitude":
                return value
            return torch.minimum(torch.maximum(value, low), high)
        value = value.clamp(low, high)
        return value

    def _is_last_repeat(self, b: float) -> bool:
        numbers = self.controls.numbers
        if b > numbers["adc.max_bound_factor"]:
            return True
        n = self.controls.dac_steps(self.structure)
        return n > 0 and b > numbers["adc.max_bound_resolution"] / (2 * numbers["dac.bound"] / n)


def _smallest_step(structure: Structure, controls: Controls) -> float:
    """How far apart two outputs are at least: one digit of a weight times one digit of an input."""
    weight_steps = levels_of_cell(structure, controls) or 2 ** (structure.weight_bits - 1) - 1
    input_steps = 2**structure.dac_slice_bits - 1 if structure.dac_slice_bits else controls.dac_steps(structure) / 2
    in_conductances = structure.encoding != "weight"
    if structure.op == DYNAMIC:
        in_conductances = structure.write in ("lognormal_g", "clipformer")
    span = 1 - controls.numbers["mapping.g_min_us"] / controls.numbers["mapping.g_max_us"] if in_conductances else 1.0
    return span / (weight_steps * input_steps)
