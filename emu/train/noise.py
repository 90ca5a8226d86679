"""A PyTorch model on an emulated chip: a device's disturbances on its products, gradients to the clean weights."""

import inspect
import math
import os
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from emu.contract.schema import DYNAMIC, OPERATORS, STORED
from emu.contract.site import Site
from emu.contract.structure import Controls, Structure, check_controls
from emu.device import Overrides, parse_overrides
from emu.errors import InputError
from emu.evaluation.bench import check_calibrated
from emu.evaluation.controls import LARGEST_SEED
from emu.rewriter import Device, EmulatedModel, Rule, device_numbers, rewrite
from emu.train.emulated import Draw, StoredProduct, WrittenProduct
from emu.train.exporting import example_inputs, onnx_of
from emu.train.positions import Positions
from emu.train.products import (
    Place,
    Product,
    call_of,
    check_same_weights,
    find_products,
    labelled,
    match,
    opened,
)

Gradient = Literal["straight_through", "reparametrized"]


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
        InputError: the model cannot be exported or is on a chip already, a wrong device or setting, a selection that
            matches nothing, or a selected site that no product of the PyTorch model computes; in a forward: a seed,
            sample or strength out of its range.
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
        self.sites: tuple[Site, ...] = self._emulated.manifest.sites
        self._numbers: dict[str, NDArray[np.float32]] = {}
        self.set(set)
        self._modules = dict(model.named_modules())
        self._positions = Positions(self._emulated.positions())
        self._places: dict[str, NDArray[np.int64]] = {}
        self._place_names: dict[int, dict[str, str]] = {}
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
            InputError: an override as in `emu.device.DeviceNumbers.changed`.
        """
        for name, entries in device_numbers(self._emulated.manifest).changed(set).items():
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
        stored = {id(each.weight) for each in self._emulators.values() if isinstance(each, StoredProduct)}
        for name, parameter in self.model.named_parameters():
            if id(parameter) in stored:
                yield name, parameter

    def _build(
        self, whole: EmulatedModel, behind: Mapping[int, Product]
    ) -> dict[Place, "StoredProduct | WrittenProduct"]:
        """The emulators of the selected sites, by where their product is computed."""
        by_label: dict[tuple[Any, ...], list[int]] = {}
        for site in whole.manifest.sites:
            by_label.setdefault(labelled(site), []).append(site.index)
        by_node = {site.node: site.index for site in whole.manifest.sites}
        nodes = self._emulated.nodes()
        emulators: dict[Place, StoredProduct | WrittenProduct] = {}
        for site in self.sites:
            if site.op not in (STORED, DYNAMIC):
                raise InputError(
                    f"Site {site.index} ({site.component}) is a {site.op}, which a PyTorch model does not "
                    "compute: rewrite the float model without 'stored'."
                )
            same = by_label.get(labelled(site), [])
            index = by_node.get(site.node)
            if index is None and same:
                index = same[0]  # an export with other names: the next one of its label
            if index in same:
                same.remove(index)
            product = behind.get(index) if index is not None else None
            if product is None:
                raise InputError(
                    f"Site {site.index} ({site.component} of layer {site.layer}, {site.node}) is no linear "
                    "layer, patch convolution or attention product that PyTorch computes by itself: leave it digital "
                    "with 'exclude'."
                )
            node = nodes[site.node]
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            read = zip(OPERATORS[node.op_type].inputs, node.inputs, strict=True)
            self._place_names[site.index] = {
                each.name: value.name or ""
                for each, value in read
                if each.name in ("position", "keys") and value is not None
            }
            if product.weight is not None:
                check_same_weights(site, product, self._emulated.stored(node)[0], self._emulated.name)
                listed = node.inputs[OPERATORS[node.op_type].place("faults")]
                faults = self._emulated.value(listed.name or "") if listed is not None else None
                emulators[product.place] = StoredProduct(self, site, attributes, product.weight, product, faults)
            else:
                emulators[product.place] = WrittenProduct(self, site, attributes)
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
        for name in ("seed", "read_seed", "sample"):
            if not 0 <= getattr(self, name) <= LARGEST_SEED:
                raise InputError(f"The chip's {name} is {getattr(self, name)} and must be 0 to {LARGEST_SEED}.")
        if not 0 <= self.strength < math.inf:
            raise InputError(f"The chip's strength is {self.strength} and must be 0 or greater.")
        given = self._given(arguments, keywords)
        self._batch = self._samples_of(given, (*arguments, *keywords.values()))
        self._places = self._positions.of(given)
        for scope in self._scopes:
            scope.visits = 0
        if self.model.training:
            seed, read_seed = (int(each) for each in torch.randint(LARGEST_SEED + 1, (2,)))
            self._drawn = Draw(seed, read_seed, 0)
        else:
            self._drawn = Draw(self.seed, self.read_seed, self.sample)
        if self._active and self.strength > 0:
            stored = [each for each in self._emulators.values() if isinstance(each, StoredProduct)]
            with ThreadPoolExecutor(min(len(stored), os.cpu_count() or 1) or 1) as pool:
                list(pool.map(StoredProduct.prepare, stored))

    def _given(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """What a forward is given, by the names of its parameters."""
        names = inspect.signature(type(self.model).forward).parameters
        return {**dict(zip(names, (self.model, *arguments), strict=False)), **keywords}

    def _samples_of(self, given: Mapping[str, Any], values: Sequence[Any]) -> int:
        """Samples of a forward: the length of the axis that counts them in the exported model, as there."""
        source, axis = self._emulated.batch
        counting = given.get(source or "")
        if isinstance(counting, Tensor) and counting.ndim > axis:
            return int(counting.shape[axis])
        return next((len(each) for each in values if isinstance(each, Tensor) and each.ndim), 1)

    def controls(self, structure: Structure, site: Site, faults: NDArray[np.int64] | None) -> Controls:
        """The control inputs of one node for the noise of this forward."""
        strength = np.zeros(structure.sites, np.float32)
        strength[structure.site] = self.strength
        drawn = self._drawn
        return check_controls(
            structure,
            self._numbers[site.device],
            strength,
            self._emulated.value("emu.ranges"),
            faults if structure.op == STORED else None,
            np.asarray(drawn.seed, np.int64),
            np.asarray(drawn.read_seed, np.int64),
            np.asarray([drawn.sample, self._batch], np.int64),
            self._place(site, "position"),
            self._place(site, "keys"),
        )

    def _place(self, site: Site, name: str) -> NDArray[np.int64] | None:
        """Where rows or keys of a site lie in this forward; None where they count from 0."""
        return self._places.get(self._place_names[site.index].get(name, ""))

    def numbers(self, device: str) -> NDArray[np.float32]:
        """The numbers of a device, in the order of its entries."""
        return self._numbers[device]

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

    def emulator(self, place: Place) -> "StoredProduct | WrittenProduct | None":
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
            if isinstance(emulator, WrittenProduct):
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


def _of(emulator: "WrittenProduct | None", a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b) if emulator is None else emulator.product(a, b)
