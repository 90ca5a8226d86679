"""Which matrix products a PyTorch model computes, and which site of its export each of them is.

The sites and their labels come from the exported graph, by the same rules as in `emu rewrite`, so that a component or
layer means the same in training and on the emulated chip.
"""

import hashlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from emu.contract.schema import DYNAMIC, STORED
from emu.contract.site import Site
from emu.errors import InputError
from emu.rewriter import EmulatedModel

Kind = Literal["linear", "transposed", "convolution", "dynamic", "added", "attention"]

LINEAR = (functional.linear,)
ADDED = (torch.addmm, Tensor.addmm)
CONVOLUTION = (functional.conv2d, torch.conv2d)
MATMUL = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
ATTENTION = (functional.scaled_dot_product_attention,)
ADDED_BATCH = (torch.baddbmm, Tensor.baddbmm)
_ALL = frozenset((*LINEAR, *ADDED, *CONVOLUTION, *MATMUL, *ATTENTION, *ADDED_BATCH))


@dataclass(frozen=True)
class Call:
    """One call of a product function: its kind and, with a stored weight, that parameter."""

    kind: Kind
    weight: nn.Parameter | None = None

    @property
    def products(self) -> int:
        """Matrix products of the call: scores and context for attention as one function."""
        return 2 if self.kind == "attention" else 1


@dataclass(frozen=True)
class Place:
    """Where in a model a product is computed.

    Args:
        module: name of the module whose own `forward` calls it.
        call: which product call of that forward, from 0.
        visit: which forward of that module within one forward of the model, from 0.
        part: which product of the call: 0, or 1 for the context of attention as one function.
    """

    module: str
    call: int
    visit: int
    part: int = 0


@dataclass(frozen=True)
class Product:
    """One product of a model: where, of which parameter, and rows K and columns N of its matrix."""

    place: Place
    kind: Kind
    weight: nn.Parameter | None
    shape: tuple[int, int]


def call_of(function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Call | None:
    """What a call of a torch function computes, None if it is no product that a crossbar could do."""
    if function not in _ALL:
        return None
    if function in ATTENTION:
        return Call("attention")
    if function in ADDED_BATCH:
        return Call("added") if {"beta", "alpha"}.isdisjoint(keywords) else None
    if function in MATMUL:
        operands = [*arguments, *keywords.values()][:2]
        is_weight = [isinstance(each, nn.Parameter) for each in operands]
        if is_weight[1] and operands[1].ndim == 2:
            return Call("transposed", operands[1])
        return None if any(is_weight) else Call("dynamic")
    place = 2 if function in ADDED else 1
    weight = keywords.get("mat2" if function in ADDED else "weight")
    weight = arguments[place] if weight is None and len(arguments) > place else weight
    if not isinstance(weight, nn.Parameter):
        return None
    if function in CONVOLUTION:
        return Call("convolution", weight)
    return Call("transposed" if function in ADDED else "linear", weight)


def opened(function: Any) -> Callable[..., Any]:
    """A function of `torch.nn.functional` that shows the products it is made of, where it is one of several.

    `torch.nn.MultiheadAttention` computes by one function, which passes itself on as a whole where others may replace
    it. A copy that does not look whether there are any lets its products be replaced one by one.
    """
    if function is not functional.multi_head_attention_forward:
        called: Callable[..., Any] = function
        return called
    return _OPENED


_whole = functional.multi_head_attention_forward
_OPENED = types.FunctionType(
    _whole.__code__,
    {**_whole.__globals__, "has_torch_function": lambda _: False},
    argdefs=_whole.__defaults__,
    closure=_whole.__closure__,
)


def matrix_of(weight: Tensor, kind: Kind) -> NDArray[np.float32]:
    """A parameter as the matrix `[K, N]` that an array holds, float32."""
    values = weight.detach().to(device="cpu", dtype=torch.float32)
    if kind != "transposed":
        values = values.reshape(values.shape[0], -1).T
    return np.ascontiguousarray(values.numpy())


def parameter_of(matrix: NDArray[np.float32], like: Tensor, kind: Kind) -> Tensor:
    """A matrix `[K, N]` in the shape, on the device and of the type of its parameter."""
    values = torch.from_numpy(matrix)
    if kind != "transposed":
        values = values.T.reshape(like.shape)
    return values.to(device=like.device, dtype=like.dtype)


def find_products(model: nn.Module, example: Mapping[str, Tensor]) -> list[Product]:
    """The products that a forward of the model computes, in order; the model is left as it was."""
    recorder = _Recorder(model)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), recorder.watching(), recorder:
            model(**example)
    finally:
        for module, was in training.items():
            module.training = was
    return recorder.found


class _Recorder(TorchFunctionMode):
    """Notes every product and the module that calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.found: list[Product] = []
        self.visits: dict[str, int] = {}
        self.stack: list[list[Any]] = []  # [name, visit, calls so far] of each module on its way

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._leaving, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Any:
        def enter(*_: Any) -> None:
            visit = self.visits.get(name, 0)
            self.visits[name] = visit + 1
            self.stack.append([name, visit, 0])

        return enter

    def _leaving(self, *_: Any) -> None:
        self.stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if opened(func) is not func:
            with self:
                return opened(func)(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        call = call_of(func, args, kwargs or {})
        if call is not None and self.stack:
            name, visit, index = self.stack[-1]
            self.stack[-1][2] += 1
            for part, shape in enumerate(_shapes(call, args, kwargs or {})):
                self.found.append(Product(Place(name, index, visit, part), call.kind, call.weight, shape))
        return result


def _shapes(call: Call, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of the matrix of each product of a call."""
    if call.weight is not None:
        rows, columns = call.weight.shape[0], call.weight[0].numel()
        return [(rows, columns) if call.kind == "transposed" else (columns, rows)]
    operands = [*arguments, *keywords.values()]
    if call.kind == "attention":
        key, value = operands[1], operands[2]
        return [(key.shape[-1], key.shape[-2]), (value.shape[-2], value.shape[-1])]
    matrix = operands[2 if call.kind == "added" else 1]
    return [(matrix.shape[-2], matrix.shape[-1])]


def match(products: Sequence[Product], exported: EmulatedModel) -> dict[int, Product]:
    """The product behind each site of an export of the same model, by the site's index; sites without one are left out.

    Stored weights are told by their values, in the order of the data flow; products of activations by their order and
    the shape of their matrix.
    """
    waiting: dict[str, list[Product]] = {}
    dynamic = [product for product in products if product.weight is None]
    for product in products:
        if product.weight is not None:
            waiting.setdefault(_digest(matrix_of(product.weight, product.kind)), []).append(product)
    nodes = exported.nodes()
    found: dict[int, Product] = {}
    for site in exported.manifest.sites:
        if site.op == STORED:
            same = waiting.get(_digest(exported.stored(nodes[site.node])[0]), [])
            if same:
                found[site.index] = same.pop(0)
        elif site.op == DYNAMIC:
            fits = (i for i, product in enumerate(dynamic) if _same_shape(product.shape, site.shape))
            first = next(fits, None)
            if first is not None:
                found[site.index] = dynamic[first]
                del dynamic[: first + 1]  # in the order of the data flow
    return found


def labelled(site: Site) -> tuple[Any, ...]:
    """What names a site in every export of one model."""
    return site.component, site.layer


def check_same_weights(site: Site, product: Product, stored: NDArray[np.float32], name: str) -> None:
    """Refuses a site whose array holds other weights than the PyTorch model.

    Raises:
        InputError: it does.
    """
    if product.weight is not None and _digest(matrix_of(product.weight, product.kind)) != _digest(stored):
        raise InputError(
            f"{name} holds other weights than the PyTorch model at site {site.index} ({site.node}): export the "
            "model again and rewrite that."
        )


def _same_shape(shape: tuple[int, int], of_site: Sequence[int | None]) -> bool:
    return all(size is None or size == own for own, size in zip(shape, of_site, strict=True))


def _digest(matrix: NDArray[np.float32]) -> str:
    return hashlib.sha256(f"{matrix.shape}".encode() + np.ascontiguousarray(matrix).tobytes()).hexdigest()
