"""The products of one site on a chip, in PyTorch: with a parameter of the model, or with an operand that is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from emu.contract.schema import DYNAMIC, NUMBER_PROGRAMS, STORED
from emu.contract.site import Site
from emu.contract.structure import Controls, Structure, parse_structure
from emu.errors import InputError
from emu.evaluation.controls import LARGEST_SEED
from emu.reference.arrays import Normals
from emu.reference.mapping import largest, mapping_of
from emu.reference.periphery import Reading, column_errors
from emu.reference.places import CellsOfRows, Places, keys_that_count, places, rows_of_operand
from emu.reference.storing import Stored, held_weights, stored_operand
from emu.runtime.library import programmed_array, programmed_weight, run_time_normals
from emu.train.crossbar import crossbar_product
from emu.train.products import Call, Product, matrix_of, parameter_of

_Errors = dict[str, Tensor]


@dataclass(frozen=True)
class Draw:
    """Which noise: a chip, a repetition on it, and the index of a batch's first sample."""

    seed: int
    read_seed: int
    sample: int


class Chip(Protocol):
    """The chip that a site lies on, as far as its products ask it."""

    model: nn.Module
    strength: float
    drop_connect: float

    @property
    def gradient(self) -> str:
        """How gradients pass what disturbs a weight."""

    @property
    def drawn(self) -> Draw:
        """The noise of the latest forward."""

    @property
    def batch(self) -> int:
        """Samples of the latest forward."""

    def numbers(self, device: str) -> NDArray[np.float32]:
        """The numbers of a device, in the order of its entries."""

    def controls(self, structure: Structure, site: Site, faults: NDArray[np.int64] | None) -> Controls:
        """The control inputs of one node for the noise of this forward."""


class Emulator:
    """One site."""

    def __init__(
        self,
        chip: Chip,
        operator: str,
        site: Site,
        attributes: dict[str, Any],
        faults: NDArray[np.int64] | None = None,
    ) -> None:
        self.chip, self.site, self.attributes = chip, site, attributes
        self.structure = parse_structure(operator, attributes)
        self.faults = faults if faults is not None else np.zeros((0, 2), np.int64)

    def normals(self, where: Places, device: torch.device) -> Normals:
        """Source of the run-time noise of rows that lie there, in any arrangement."""
        draw, site = self.chip.drawn, self.structure.site
        shape = where.sample.shape
        sample, matrix, position = (each.reshape(-1) for each in (where.sample, where.matrix, where.position))

        def of(stream: int, *, part: slice, tile: int = 0, reading: int = 0, uniform: bool = False) -> Tensor:
            c3 = (int(stream) + (tile << 8) + (reading << 24)) & 0xFFFFFFFF
            columns = part.stop - part.start
            if device.type != "cpu" and self.chip.model.training:
                generator = torch.Generator(device)
                generator.manual_seed(hash((draw.seed, draw.read_seed, site, c3, part.start)) & LARGEST_SEED)
                return (torch.rand if uniform else torch.randn)((*shape, columns), device=device, generator=generator)
            seeds = draw.seed, draw.read_seed
            values = run_time_normals(seeds, site, c3, sample, matrix, position, part, uniform=uniform)
            return torch.from_numpy(values).view(*shape, columns).to(device)

        return of

    def places(self, leading: Sequence[int], axis: int, controls: Controls, trailing: int = 0) -> Places:
        """Where rows with these leading dimensions lie, as `to_samples` arranges what has `trailing` dimensions more.

        Of the matrices of an operand with `trailing` 1, whose rows are the last of `leading`.
        """
        if axis == 1 and len(leading) == 1:
            leading = leading[0] // self.chip.batch, self.chip.batch
        where = places(tuple(leading), axis, controls)
        return where.arranged(lambda each: self.to_samples(torch.from_numpy(each), axis, trailing).numpy())

    def read(
        self,
        x: Tensor,
        weights: Tensor,
        stored: Stored,
        errors: _Errors,
        structure: Structure,
        controls: Controls,
        where: Places,
    ) -> Tensor:
        """Rows `[samples, matrices, M, K]` times what arrays hold; `weights` are that of `stored`, with gradients."""
        return crossbar_product(x, weights, Reading(stored, errors, structure, controls, self.normals(where, x.device)))

    def column_errors(self, stored: Stored, structure: Structure, controls: Controls) -> _Errors:
        """What makes columns differ, `[slices, row tiles, N]` each."""
        errors = column_errors(stored, structure, controls)
        return {name: tensor_of(each, stored.v.device) for name, each in errors.items()}

    def to_samples(self, x: Tensor, axis: int, trailing: int) -> Tensor:
        """`x [..., *trailing]` as `[samples, what each sample has, *trailing]`."""
        leading, kept = x.shape[: x.ndim - trailing], x.shape[x.ndim - trailing :]
        if axis == 1 and len(leading) == 1:  # tokens first, samples second
            return self.to_samples(x.reshape(-1, self.chip.batch, *kept), axis, trailing)
        if axis < 0 or axis >= len(leading):
            return x.reshape(1, -1, *kept)
        samples = self.samples_of(leading[axis])
        split = x.reshape(*leading[:axis], samples, -1, *leading[axis + 1 :], *kept)
        return split.movedim(axis, 0).reshape(samples, -1, *kept)

    def from_samples(self, y: Tensor, leading: Sequence[int], axis: int) -> Tensor:
        """What `to_samples` was made of, with other trailing dimensions."""
        kept = y.shape[2:]
        if axis == 1 and len(leading) == 1:
            return self.from_samples(y, (leading[0] // self.chip.batch, self.chip.batch), axis).reshape(*leading, *kept)
        if 0 <= axis < len(leading):
            samples = y.shape[0]
            inner = leading[axis] // samples
            split = y.reshape(samples, *leading[:axis], inner, *leading[axis + 1 :], *kept)
            return split.movedim(0, axis).reshape(*leading, *kept)
        return y.reshape(*leading, *kept)

    def samples_of(self, length: int) -> int:
        """Samples along an axis of this length: those of the batch, or one for each index."""
        batch = self.chip.batch
        return batch if batch > 0 and length % batch == 0 else length


class StoredProduct(Emulator):
    """A product with a parameter of the model."""

    def __init__(
        self,
        chip: Chip,
        site: Site,
        attributes: dict[str, Any],
        weight: nn.Parameter,
        product: Product,
        faults: NDArray[np.int64] | None,
    ) -> None:
        super().__init__(chip, STORED, site, attributes, faults)
        self.weight, self.kind = weight, product.kind
        if chip.gradient == "reparametrized" and not (
            self.structure.encoding == "weight" and self.structure.program in ("none", *NUMBER_PROGRAMS)
        ):
            raise InputError(
                f"gradient 'reparametrized' is for devices that disturb numbers, and '{site.device}' disturbs "
                "conductances: use 'straight_through'."
            )
        self._made: tuple[Any, Any] | None = None

    def prepare(self) -> None:
        """Programs the array for the noise of this forward, unless it holds that already."""
        drawn = self.chip.drawn
        key = (drawn.seed, drawn.read_seed, self.chip.strength, self._numbers.tobytes(), self._version)
        if self._made is not None and self._made[0] == key:
            return
        self._made = (key, self._program())

    @property
    def _numbers(self) -> NDArray[np.float32]:
        return self.chip.numbers(self.site.device)

    @property
    def _version(self) -> tuple[int, int]:
        return self.weight.data_ptr(), self.weight._version

    def _program(self) -> Any:
        """W' in the shape of the parameter, or what a reading finds and the errors of its ADCs."""
        structure, drawn = self.structure, self.chip.drawn
        matrix = matrix_of(self.weight, self.kind)
        chip: dict[str, Any] = {
            "strength": self.chip.strength,
            "seed": drawn.seed,
            "read_seed": drawn.read_seed,
            "faults": self.faults,
        }
        if not structure.has_periphery:
            return parameter_of(
                programmed_weight(matrix, self.attributes, self._numbers, **chip), self.weight, self.kind
            )
        unit = structure.encoding == "offset" and structure.offset_correction == "unit_column"
        tiles = len(structure.row_tiles(matrix.shape[0]))
        chip["squares"] = structure.devices > 0 and structure.read_noise == "proportional"
        held = programmed_array(matrix, self.attributes, self._numbers, structure.arrays, tiles, unit, **chip)
        v, s = (tensor_of(each, self.weight.device) for each in held[:2])
        squares = None if held[3] is None else tensor_of(held[3], self.weight.device)
        column = None if held[2] is None else tensor_of(held[2], self.weight.device)[..., None]
        controls = self.chip.controls(structure, self.site, self.faults)
        mapping = mapping_of(structure, controls)
        stored = Stored(v, s, mapping, held_weights(v, s, mapping, structure), column, squares=squares)
        return stored, self.column_errors(stored, structure, controls)

    def product(self, func: Any, call: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The product that `func(*args, **kwargs)` computes, by the array."""
        self.prepare()
        assert self._made is not None, "just made"
        held = self._made[1]
        if isinstance(held, Tensor):
            return _with_weight(func, call, args, kwargs, self._differentiable(held))
        structure = self.structure
        controls = self.chip.controls(structure, self.site, self.faults)
        x, finish = _input_of(call, args, kwargs)
        axis = 0 if call.kind == "convolution" else structure.sample_axis
        rows = self.to_samples(x.float(), axis, 1)[:, None]  # one matrix for each sample
        stored, errors = held
        disturbed = parameter_of_tensor(stored.weights, self.weight, self.kind)
        weights = matrix_of_tensor(self._differentiable(disturbed), self.kind)
        where = self.places(x.shape[:-1], axis, controls)[:, None]
        y = self.read(rows, weights.float(), stored, errors, structure, controls, where)[:, 0]
        return finish(self.from_samples(y, x.shape[:-1], axis).to(_result_type(x)))

    def _differentiable(self, disturbed: Tensor) -> Tensor:
        """The disturbed weight, through which gradients reach the clean one."""
        chip, clean = self.chip, self.weight
        if chip.drop_connect > 0 and chip.model.training:
            disturbed = disturbed * (torch.rand(disturbed.shape, device=disturbed.device) >= chip.drop_connect)
        if chip.gradient == "straight_through" or self.structure.program in ("none", "gauss_range"):
            return clean + (disturbed - clean).detach()
        # A weight of 0 stays 0 and passes its gradient as it is.
        ones = torch.ones_like(clean)
        gain = torch.where(clean == 0, ones, disturbed / torch.where(clean == 0, ones, clean)).detach()
        return clean * gain


class WrittenProduct(Emulator):
    """A product of two activations, the second of which is written into an array for each sample."""

    def __init__(self, chip: Chip, site: Site, attributes: dict[str, Any]) -> None:
        super().__init__(chip, DYNAMIC, site, attributes)
        if self.structure.sample_axis > 0:
            raise InputError(
                f"Site {site.index} ({site.component} of layer {site.layer}) multiplies all samples with one "
                "operand, which noise in PyTorch does not do: leave it digital with 'exclude'."
            )

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """A `[..., M, K]` times B `[..., K, N]`, by the array."""
        structure = self.structure
        leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        axis = structure.sample_axis
        first = self.to_samples(a.expand(*leading, *a.shape[-2:]).float(), axis, 2)
        second = self.to_samples(b.expand(*leading, *b.shape[-2:]).float(), axis, 2)
        controls = self.chip.controls(structure, self.site, None)
        matrices = self.places(leading, axis, controls)
        rows = self.places((*leading, a.shape[-2]), axis, controls, 1)
        parts = [keys_that_count(second.shape, i, structure, controls) for i in range(len(second))]
        alike = [list(group) for _, group in groupby(range(len(second)), lambda i: parts[i])]
        products = [
            self._product(first[part], second[part], matrices[part], rows[part], *parts[group[0]], controls)
            for group in alike
            for part in (slice(group[0], group[-1] + 1),)
        ]
        return self.from_samples(torch.cat(products), leading, axis).to(_result_type(a))

    def _product(
        self,
        first: Tensor,
        second: Tensor,
        matrices: Places,
        rows: Places,
        counted_rows: slice,
        counted_columns: slice,
        first_key: int,
        controls: Controls,
    ) -> Tensor:
        """The product of samples whose keys lie alike: those rows and columns of the operand count."""
        structure = replace(self.structure, first_key=first_key)
        operand = second[..., counted_rows, counted_columns]
        if operand.numel() == 0:
            return first @ (second * 0 if structure.has_periphery else second)
        with torch.no_grad():
            shared = structure.write_scaling == "sample"
            of_sample = largest(operand.abs().reshape(len(operand), 1, -1, 1), controls) if shared else None
            of_operand = rows_of_operand(matrices, structure.first_row, operand.shape[-2])
            normals = self.normals(of_operand, operand.device)
            cells = CellsOfRows(of_operand, structure, controls)
            stored = stored_operand(operand, normals, structure, controls, of_sample, cells)
        if structure.has_periphery:
            disturbed = operand + (stored.weights - operand).detach()
            errors = self.column_errors(stored, structure, controls)
            y = self.read(first[..., counted_rows], disturbed, stored, errors, structure, controls, rows)
            after = second.shape[-1] - counted_columns.stop
            return functional.pad(y, (counted_columns.start, after)) if counted_columns.start or after else y
        whole = second.detach().clone()
        whole[..., counted_rows, counted_columns] = stored.weights
        return first @ (second + (whole - second).detach())


def tensor_of(values: NDArray[Any], device: torch.device) -> Tensor:
    """Numbers as a float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)


def _result_type(x: Tensor) -> torch.dtype:
    """The type that PyTorch's own product would give."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _with_weight(func: Any, call: Call, args: Sequence[Any], kwargs: dict[str, Any], weight: Tensor) -> Any:
    """`func(*args, **kwargs)` with another weight."""
    replaced = [weight if each is call.weight else each for each in args]
    return func(*replaced, **{name: weight if each is call.weight else each for name, each in kwargs.items()})


def _input_of(call: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The rows x `[..., K]` of a product, and what makes the result of the function of their products `[..., N]`."""
    if call.kind == "linear":
        x, _, bias = _bound(("input", "weight", "bias"), args, kwargs)
        return x, lambda y: y if bias is None else y + bias
    if call.kind == "transposed":
        if args and len(args) + len(kwargs) >= 3:  # addmm(bias, x, weight)
            bias, x, _ = _bound(("input", "mat1", "mat2"), args, kwargs)
            return x, lambda y: y + bias
        x = [*args, *kwargs.values()][0]
        return x, lambda y: y
    x, weight, bias, stride, padding, dilation, _ = _bound(
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, kwargs
    )
    size = weight.shape[2:]
    stride, padding, dilation = stride or 1, padding or 0, dilation or 1
    patches = functional.unfold(x.float(), size, dilation, padding, stride).transpose(1, 2)

    def image(y: Tensor) -> Tensor:
        steps, pads, gaps = (_pair(each) for each in (stride, padding, dilation))
        height, width = ((x.shape[2 + i] + 2 * pads[i] - gaps[i] * (size[i] - 1) - 1) // steps[i] + 1 for i in range(2))
        y = y.transpose(1, 2).reshape(x.shape[0], -1, height, width)
        return y if bias is None else y + bias[:, None, None]

    return patches, image


def _bound(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def matrix_of_tensor(weight: Tensor, kind: str) -> Tensor:
    """A parameter as the matrix `[K, N]`, with its gradient."""
    return weight if kind == "transposed" else weight.reshape(weight.shape[0], -1).T


def parameter_of_tensor(matrix: Tensor, like: Tensor, kind: str) -> Tensor:
    """A matrix `[K, N]` in the shape and type of its parameter."""
    return (matrix if kind == "transposed" else matrix.T.reshape(like.shape)).to(like.dtype)
