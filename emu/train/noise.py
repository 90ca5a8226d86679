"""A PyTorch model on an emulated chip: a device's disturbances on its products, gradients to the clean weights."""

import inspect
import os
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from emu.device import parse_overrides
from emu.device.loading import Overrides
from emu.errors import InputError
from emu.evaluation.bench import check_calibrated
from emu.evaluation.controls import LARGEST_SEED
from emu.reference.mapping import mapping_of
from emu.reference.random import Stream, stored_normals
from emu.reference.structure import (
    DYNAMIC,
    NUMBER_PROGRAMS,
    STORED,
    Controls,
    Structure,
    check_controls,
    parse_structure,
)
from emu.rewriter import Device, EmulatedModel, Rule, device_settings, rewrite
from emu.runtime.library import programmed_array, programmed_weight, sample_normals
from emu.train.crossbar import Held, crossbar_product, written
from emu.train.exporting import example_inputs, onnx_of
from emu.train.products import (
    Call,
    Place,
    Product,
    call_of,
    check_same_weights,
    find_products,
    labelled,
    match,
    matrix_of,
    opened,
    parameter_of,
)

Gradient = Literal["straight_through", "reparametrized"]


@dataclass(frozen=True)
class Draw:
    """Which noise: a chip, a repetition on it, and the index of a batch's first sample."""

    seed: int
    read_seed: int
    sample: int


class Chip:
    """A model whose products are computed by crossbars of a device, until `remove` is called.

    While the model trains (`model.train()`), every forward has a new chip and a new repetition, drawn from PyTorch's
    generator; in evaluation (`model.eval()`) it is the chip `seed` with the repetition `read_seed`, the same one that
    the rewritten ONNX model emulates for these controls. The model's parameters stay the clean weights, and its state
    dictionary, its checkpoints and its optimizer know nothing of the chip.

    Sites and components are those of `emu rewrite`: the model is exported once to find them. Every device model of
    docs/devices.md acts, on the CPU and on accelerators; weights are programmed by the native library on the host.

    Args:
        model: a Hugging Face model or any module; changed by hooks only.
        device: a preset's name, the path of a TOML file, or a profile.
        only: emulate these sites only, as in `emu.rewrite`; the others are digital.
        exclude: leave these sites digital.
        set: changes of the device.
        map: other devices for some sites.
        rewritten: a model that `emu rewrite` made of this one's export, in the place of device, only, exclude and map:
            its sites, devices and calibrated ranges are used.
        example: inputs of one forward by name, two samples; None to make them from the configuration of a Hugging Face
            model.
        gradient: how gradients reach the clean weights. `straight_through`: as if the disturbed weight were the clean
            one plus a constant (aihwkit, Rasch et al. 2023); `reparametrized`: as if the random numbers were
            constants, so that the gradient of a weight that is multiplied by a factor is multiplied by it too (devices
            that disturb numbers, not conductances).
        drop_connect: in training, share of the stored weights that are set to zero after programming, 0 to below 1.

    Attributes:
        seed: the chip in evaluation.
        read_seed: the repetition in evaluation.
        sample: in evaluation, index of the next batch's first sample in the data set; keys the noise of readings.
        strength: factor on every disturbance; 0 is digital.
        sites: the emulated sites, as in the manifest of `emu rewrite`.

    Raises:
        InputError: the model cannot be exported, a wrong device or setting, a selection that matches nothing, or a
            selected site that no product of the PyTorch model computes.
    """

    def __init__(
        self,
        model: nn.Module,
        device: Device = "rram",
        *,
        only: str | None = None,
        exclude: str | None = None,
        set: Overrides | None = None,
        map: Sequence[Rule] = (),
        rewritten: str | Path | EmulatedModel | None = None,
        example: Mapping[str, Tensor] | None = None,
        gradient: Gradient = "straight_through",
        drop_connect: float = 0.0,
        seed: int = 0,
        read_seed: int = 0,
        strength: float = 1.0,
    ) -> None:
        if gradient not in get_args(Gradient):
            raise InputError(f"gradient is '{gradient}' and must be {' or '.join(get_args(Gradient))}.")
        if not 0 <= drop_connect < 1:
            raise InputError(f"drop_connect is {drop_connect} and must be 0 or greater and less than 1.")
        if isinstance(vars(model).get("forward"), _Forward):
            raise InputError(f"This {type(model).__name__} is on a chip already: take it off first (chip.remove()).")
        self.model, self.gradient, self.drop_connect = model, gradient, drop_connect
        self.seed, self.read_seed, self.sample, self.strength = seed, read_seed, 0, strength
        example = dict(example) if example is not None else example_inputs(model)
        where = next((each.device for each in model.parameters()), torch.device("cpu"))
        example = {name: value.to(where) for name, value in example.items()}
        plain = onnx_of(model, example)
        self._first_input = plain.graph.input[0].name
        whole = rewrite(plain, "ideal", share="never")
        products = find_products(model, example)
        behind = match(products, whole)
        if rewritten is None:
            self._emulated = rewrite(plain, device, only, exclude, parse_overrides(set), map=map)
            set = None
        else:
            if only is not None or exclude is not None or map:
                raise InputError("only, exclude and map are in the rewritten model already: leave them out.")
            self._emulated = EmulatedModel.open(rewritten)
        check_calibrated(self._emulated.manifest, self._emulated.name)
        self.sites: list[dict[str, Any]] = self._emulated.manifest["sites"]
        self._numbers: dict[str, NDArray[np.float32]] = {}
        self.set(set)
        self._modules = dict(model.named_modules())
        self._emulators = self._build(whole, behind)
        self._drawn = Draw(seed, read_seed, 0)
        self._batch = 1
        self._keep = False
        self._active = True
        self._scopes: list[_Scope] = []
        self._attach(products)

    def set(self, set: Overrides | None) -> None:
        """Change numbers of the device, such as `{"program.sigma": 0.1}`; the others get the device's own values.

        Raises:
            InputError: an override as in `emu.rewriter.device_settings`.
        """
        for name, entries in device_settings(self._emulated.manifest, set).items():
            self._numbers[name] = np.asarray(list(entries.values()), np.float32)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model is digital."""
        before, self._active = self._active, False
        try:
            yield
        finally:
            self._active = before

    def remove(self) -> None:
        """Make the model digital for good: takes all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if isinstance(vars(self.model).get("forward"), _Forward):
            del self.model.forward
        self._active = False

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights that lie in arrays, by their names in the model, each once."""
        stored = {id(each.weight) for each in self._emulators.values() if isinstance(each, _Stored)}
        for name, parameter in self.model.named_parameters():
            if id(parameter) in stored:
                yield name, parameter

    def _build(self, whole: EmulatedModel, behind: Mapping[int, Product]) -> dict[Place, "_Stored | _Dynamic"]:
        """The emulators of the selected sites, by where their product is computed."""
        by_label: dict[tuple[Any, ...], list[int]] = {}
        for site in whole.manifest["sites"]:
            by_label.setdefault(labelled(site), []).append(site["index"])
        by_node = {site["node"]: site["index"] for site in whole.manifest["sites"]}
        nodes = self._emulated.nodes()
        emulators: dict[Place, _Stored | _Dynamic] = {}
        for site in self.sites:
            if site["op"] not in ("CrossbarMatMul", "CrossbarMatMulDynamic"):
                raise InputError(
                    f"Site {site['index']} ({site['component']}) is a {site['op']}, which a PyTorch model does not "
                    "compute: rewrite the float model without 'stored'."
                )
            same = by_label.get(labelled(site), [])
            index = by_node.get(site["node"])
            if index is None and same:
                index = same[0]  # an export with other names: the next one of its label
            if index in same:
                same.remove(index)
            product = behind.get(index) if index is not None else None
            if product is None:
                raise InputError(
                    f"Site {site['index']} ({site['component']} of layer {site['layer']}, {site['node']}) is no linear "
                    "layer, patch convolution or attention product that PyTorch computes by itself: leave it digital "
                    "with 'exclude'."
                )
            node = nodes[site["node"]]
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            if product.weight is not None:
                check_same_weights(site, product, self._emulated.stored(node)[0], self._emulated.name)
                faults = self._emulated.value(node.inputs[5].name or "") if node.inputs[5] is not None else None
                emulators[product.place] = _Stored(self, site, attributes, product.weight, product, faults)
            else:
                emulators[product.place] = _Dynamic(self, site, attributes)
        return emulators

    def _attach(self, products: Sequence[Product]) -> None:
        self._handles: list[Any] = []
        # Every module that computes a product counts its own, so that none is taken for one of its parent.
        times: dict[str, int] = {}
        for product in products:
            times[product.place.module] = max(times.get(product.place.module, 0), product.place.visit + 1)
        for name, visits in times.items():
            scope = _Scope(self, name, visits)
            module = self._modules[name]
            self._handles.append(module.register_forward_pre_hook(_Hook(scope.enter)))
            self._handles.append(module.register_forward_hook(_Hook(scope.leave), always_call=True))
            self._scopes.append(scope)
        self.model.forward = _Forward(self)

    def begin(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Before a forward of the model: which noise it has, and the weights of all its arrays at once."""
        self._batch = self._samples_of(arguments, keywords)
        for scope in self._scopes:
            scope.visits = 0
        if self.model.training:
            seed, read_seed = (int(each) for each in torch.randint(LARGEST_SEED + 1, (2,)))
            self._drawn = Draw(seed, read_seed, 0)
        else:
            self._drawn = Draw(self.seed, self.read_seed, self.sample)
        if self._active and self.strength > 0:
            stored = [each for each in self._emulators.values() if isinstance(each, _Stored)]
            with ThreadPoolExecutor(min(len(stored), os.cpu_count() or 1) or 1) as pool:
                list(pool.map(_Stored.prepare, stored))

    def _samples_of(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> int:
        """Samples of a forward: the length of what is the first input of the exported model, as there."""
        given = dict(
            zip(inspect.signature(type(self.model).forward).parameters, (self.model, *arguments), strict=False)
        )
        first = {**given, **keywords}.get(self._first_input)
        tensors = [first, *arguments, *keywords.values()]
        return next((len(each) for each in tensors if isinstance(each, Tensor) and each.ndim), 1)

    def controls(self, structure: Structure, site: Mapping[str, Any], faults: NDArray[np.int64] | None) -> Controls:
        """The control inputs of one node for the noise of this forward."""
        strength = np.zeros(structure.sites, np.float32)
        strength[structure.site] = self.strength
        drawn = self._drawn
        return check_controls(
            structure,
            self._numbers[site["device"]],
            strength,
            self._emulated.value("emu.ranges"),
            faults if structure.op == STORED else None,
            np.asarray(drawn.seed, np.int64),
            np.asarray(drawn.read_seed, np.int64),
            np.asarray(drawn.sample, np.int64),
        )

    @property
    def drawn(self) -> Draw:
        """The noise of the latest forward."""
        return self._drawn

    @property
    def batch(self) -> int:
        """Samples of the latest forward."""
        return self._batch

    @property
    def is_on(self) -> bool:
        """Whether products are emulated now."""
        return self._active and self.strength > 0

    def emulator(self, place: Place) -> "_Stored | _Dynamic | None":
        """What emulates the product that is computed there, None for a digital one."""
        return self._emulators.get(place) if self.is_on else None


def _do_nothing(*_: Any) -> None:
    """What a hook of a chip is in a copy of the model, which is on no chip."""


def _idle_hook() -> Callable[..., None]:
    return _do_nothing


def _plain_forward(model: nn.Module) -> Callable[..., Any]:
    return types.MethodType(type(model).forward, model)


class _Hook:
    """A hook that copies of the model leave behind."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> None:
        self.call(*arguments)

    def __deepcopy__(self, memo: Any) -> Any:
        return _do_nothing

    def __reduce__(self) -> Any:
        return _idle_hook, ()


class _Forward:
    """The model's forward on a chip; in a copy of the model its plain forward."""

    def __init__(self, chip: Chip) -> None:
        self.chip, self.plain = chip, _plain_forward(chip.model)
        self.__signature__ = inspect.signature(self.plain)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        depth = len(_open_scopes())
        self.chip.begin(arguments, keywords)
        try:
            return self.plain(*arguments, **keywords)
        finally:
            # Hooks are not called where a forward is interrupted (KeyboardInterrupt).
            for scope in reversed(_open_scopes()[depth:]):
                scope.leave()

    def __deepcopy__(self, memo: Any) -> Any:
        return _plain_forward(memo[id(self.chip.model)])

    def __reduce__(self) -> Any:
        return _plain_forward, (self.chip.model,)


_open = threading.local()


def _open_scopes() -> list["_Scope"]:
    """The modules whose forward runs in this thread, outermost first."""
    if not hasattr(_open, "scopes"):
        _open.scopes = []
    scopes: list[_Scope] = _open.scopes
    return scopes


class _Scope(TorchFunctionMode):
    """Replaces the products that one module's own forward calls; others it passes on."""

    def __init__(self, chip: Chip, name: str, times: int) -> None:
        super().__init__()
        self.chip, self.name, self.times = chip, name, times
        self.visits = 0
        self.calls: list[list[int]] = []  # visit and calls so far, of each forward on its way

    def enter(self, *_: Any) -> None:
        # Activations that were not kept are computed again while gradients flow, the last ones first.
        visit = self.visits % (2 * self.times)
        self.calls.append([visit if visit < self.times else 2 * self.times - 1 - visit, 0])
        self.visits += 1
        _open_scopes().append(self)
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, *_: Any) -> None:
        if self.calls:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            _open_scopes().pop()
            self.calls.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if opened(func) is not func:
            with self:
                return opened(func)(*args, **kwargs)
        call = call_of(func, args, kwargs) if _open_scopes()[-1:] == [self] else None
        if call is None:
            return func(*args, **kwargs)
        visit, index = self.calls[-1]
        self.calls[-1][1] += 1
        emulators = [self.chip.emulator(Place(self.name, index, visit, part)) for part in range(call.products)]
        if not any(emulators):
            return func(*args, **kwargs)
        if call.kind == "attention":
            return _attention(emulators, *args, **kwargs)
        with torch._C.DisableTorchFunction():
            emulator = emulators[0]
            if isinstance(emulator, _Dynamic):
                operands = [*args, *kwargs.values()]
                if call.kind == "added":
                    return operands[0] + emulator.product(*operands[1:3])
                return emulator.product(*operands[:2])
            assert emulator is not None, "there is one"
            return emulator.product(func, call, args, kwargs)


def _attention(
    emulators: Sequence[Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` as its export writes it: two products, the root of the scale on each operand."""
    with torch._C.DisableTorchFunction():
        if enable_gqa:
            share = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(share, -3), value.repeat_interleave(share, -3)
        root = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
        scores = _of(emulators[0], query * root, (key * root).transpose(-1, -2))
        if is_causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -torch.inf)
            else:
                scores = scores + attn_mask
        shares = functional.dropout(torch.softmax(scores, dim=-1), dropout_p)
        return _of(emulators[1], shares.to(value.dtype), value)


def _of(emulator: "_Dynamic | None", a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b) if emulator is None else emulator.product(a, b)


class _Emulator:
    """One site."""

    def __init__(
        self,
        chip: Chip,
        operator: str,
        site: Mapping[str, Any],
        attributes: dict[str, Any],
        faults: NDArray[np.int64] | None = None,
    ) -> None:
        self.chip, self.site, self.attributes = chip, site, attributes
        self.structure = parse_structure(operator, attributes)
        self.faults = faults if faults is not None else np.zeros(0, np.int64)

    def normals(self, draw: Draw, samples: int, matrices: int, rows: int, like: Tensor) -> Callable[..., Tensor]:
        """Source of the run-time noise of Y or X, `[samples, matrices, rows, columns]`."""

        def of(stream: Stream, columns: int, tile: int, reading: int) -> Tensor:
            c3 = (int(stream) + (tile << 8) + (reading << 24)) & 0xFFFFFFFF
            shape = (samples, matrices * rows, columns)
            if like.device.type != "cpu" and self.chip.model.training:
                generator = torch.Generator(like.device)
                generator.manual_seed(hash((draw.seed, draw.read_seed, self.structure.site, c3)) & LARGEST_SEED)
                normals = torch.randn(shape, device=like.device, generator=generator)
            else:
                width = -(-columns // 4) * 4
                sample = draw.sample if self.structure.sample_axis >= 0 else 0
                counter = (0, sample, self.structure.site, c3)
                values = sample_normals((draw.seed, draw.read_seed), counter, samples, matrices * rows * width)
                normals = torch.from_numpy(values).view(samples, matrices * rows, width)[..., :columns].to(like.device)
            return normals.reshape(samples, matrices, rows, columns)

        return of

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
        batch = self.chip.batch
        return batch if batch > 0 and length % batch == 0 else length


class _Stored(_Emulator):
    """A product with a parameter of the model."""

    def __init__(
        self,
        chip: Chip,
        site: Mapping[str, Any],
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
                f"gradient 'reparametrized' is for devices that disturb numbers, and '{site['device']}' disturbs "
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
        return self.chip._numbers[self.site["device"]]

    @property
    def _version(self) -> tuple[int, int]:
        return self.weight.data_ptr(), self.weight._version

    def _program(self) -> Any:
        """W' in the shape of the parameter, or what a reading finds."""
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
        controls = self.chip.controls(structure, self.site, self.faults)
        unit = structure.encoding == "offset" and structure.offset_correction == "unit_column"
        tiles = len(structure.row_tiles(matrix.shape[0]))
        v, scales, column = programmed_array(
            matrix, self.attributes, self._numbers, structure.weight_slices, tiles, unit, **chip
        )

        def tensor(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.weight.device)

        errors = None
        if structure.adc != "none" and "adc.gain_sigma" in controls.numbers:
            errors = _adc_errors(structure, controls, structure.array, len(v), tiles, matrix.shape[1], tensor)
        columns = None if column is None else [tensor(each[:, None]) for each in column]
        return Held([tensor(each) for each in v], tensor(scales), mapping_of(structure, controls), columns, errors)

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
        normals = self.normals(self.chip.drawn, rows.shape[0], 1, rows.shape[2], rows)
        matrix = held.weights(structure)
        disturbed = parameter_of_tensor(matrix, self.weight, self.kind)
        weights = matrix_of_tensor(self._differentiable(disturbed), self.kind)
        y = crossbar_product(rows, weights.float(), held, structure, controls, normals)[:, 0]
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


class _Dynamic(_Emulator):
    """A product of two activations, the second of which is written into an array for each sample."""

    def __init__(self, chip: Chip, site: Mapping[str, Any], attributes: dict[str, Any]) -> None:
        super().__init__(chip, DYNAMIC, site, attributes)
        if self.structure.sample_axis > 0:
            raise InputError(
                f"Site {site['index']} ({site['component']} of layer {site['layer']}) multiplies all samples with one "
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
        samples, matrices = second.shape[:2]
        drawn = self.chip.drawn
        with torch.no_grad():
            held = written(second, structure, controls, self.normals(drawn, samples, matrices, second.shape[2], second))
            if structure.adc != "none" and "adc.gain_sigma" in controls.numbers:
                tiles = len(structure.row_tiles(second.shape[2]))
                tensor = lambda values: torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(b.device)  # noqa: E731
                errors = _adc_errors(structure, controls, structure.site, 1, tiles, second.shape[3], tensor)
                held = Held(held.v, held.scales, held.mapping, None, errors)
            weights = held.weights(structure)
        disturbed = second + (weights - second).detach()
        if structure.has_periphery:
            normals = self.normals(drawn, samples, matrices, first.shape[2], first)
            y = crossbar_product(first, disturbed, held, structure, controls, normals)
        else:
            y = first @ disturbed
        return self.from_samples(y, leading, axis).to(_result_type(a))


def _adc_errors(
    structure: Structure,
    controls: Controls,
    array: int,
    slices: int,
    tiles: int,
    columns: int,
    tensor: Callable[[NDArray[Any]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Gain and offset of the ADC of every column, `[slices, row tiles, N]`."""
    adcs = -(-columns // structure.adc_columns)

    def normals(stream: Stream) -> NDArray[np.float64]:
        each = [stored_normals(controls.seed, 0, array, stream, tiles, adcs, weight_slice=i) for i in range(slices)]
        return np.array(each)[:, :, np.arange(columns) // structure.adc_columns]

    numbers, strength = controls.numbers, controls.strength
    gain = 1 + strength * numbers["adc.gain_sigma"] * normals(Stream.ADC_GAIN)
    return tensor(gain), tensor(strength * numbers["adc.offset_sigma"] * normals(Stream.ADC_OFFSET))


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
