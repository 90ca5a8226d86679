"""Proves that a baked model computes what the emulated one computes on that chip."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from emu.errors import InputError
from emu.evaluation.data import ModelInput, fixed_batch, model_inputs
from emu.evaluation.preparing import load
from emu.evaluation.sources import DataSource
from emu.evaluation.tasks import Arrays
from emu.rewriter import EmulatedModel
from emu.rewriter.protobuf_file import read_model
from emu.runtime import session as open_session

Feeds = dict[str, NDArray[Any]]

_SAMPLES, _BATCH, _MOST_GIVEN = 2, 16, 64
_SIZES = (8, 224, 32, 28, 30, 64, 1)  # of free axes: tokens, then images


@dataclass(frozen=True)
class Proof:
    """How far the outputs of a baked model and of the emulated one are apart.

    Attributes:
        largest_difference: as a share of an output's largest magnitude.
        equal: whether all numbers are the same, to the bit.
        equal_unoptimized: likewise with onnxruntime's graph optimizations off in both, which fuse what is plain in one
            of them (layouts of convolutions, integer products).
        random: samples of random numbers.
        given: samples of the user's data.

    """

    largest_difference: float
    equal: bool
    equal_unoptimized: bool
    random: int
    given: int

    @property
    def in_words(self) -> str:
        """One line."""
        counts = ((self.random, "random"), (self.given, "given"))
        on = " and ".join(f"{count} {what}" for count, what in counts if count)
        if self.equal:
            return f"outputs equal those of the emulated chip to the bit, on {on} samples"
        said = f"outputs differ from those of the emulated chip by {self.largest_difference:.1e} of the largest"
        bits = "; to the bit the same without onnxruntime's graph optimizations" if self.equal_unoptimized else ""
        return f"{said}, on {on} samples{bits}"


def prove(
    emulated: EmulatedModel,
    controls: Mapping[str, NDArray[Any]],
    baked: Path,
    data: str | Path | Mapping[str, Any] | DataSource | None,
    exact: bool,
) -> Proof:
    """Runs both models on random inputs and on data.

    Args:
        emulated: the rewritten model.
        controls: its control inputs for the chip.
        baked: the file of the baked model.
        data: samples, or None.
        exact: whether only rounding may differ; more is then an error.

    Raises:
        InputError: a difference that rounding does not explain, data that do not fit, or neither data nor random
            inputs that the model takes.

    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "emulated.onnx"
        emulated.save(path)
        proto = read_model(baked)
        pairs = _Pairs(path, baked, controls)
        pairs.open(optimized=True)
        tolerance = _tolerance(proto)
        equal, equal_unoptimized, largest = True, True, 0.0
        counts = {"random": 0, "given": 0}
        for kind, feeds in _samples(emulated, proto, pairs, data):
            expected, got = pairs.run(feeds)
            counts[kind] += len(next(iter(feeds.values()), [0]))
            difference = _difference(expected, got)
            largest = max(largest, difference)
            if not all(map(_same, expected, got)):
                equal = False
                expected, got = pairs.run(feeds, optimized=False)
                equal_unoptimized = equal_unoptimized and all(map(_same, expected, got))
                if exact and not equal_unoptimized and _difference(expected, got) > tolerance:
                    raise InputError(
                        f"{emulated.name}: the baked model's outputs differ from those of the emulated chip by "
                        f"{difference:.1e} of the largest: report this model to the makers of emu."
                    )
    if not any(counts.values()):
        raise InputError(
            f"{emulated.name} takes no inputs of random numbers, so nothing is proved: give data that fit it, or ask "
            "for no proof."
        )
    return Proof(largest, equal, equal_unoptimized, counts["random"], counts["given"])


@dataclass
class _Pairs:
    """Sessions of the emulated and the baked model, with and without optimizations."""

    emulated: Path
    baked: Path
    controls: Mapping[str, NDArray[Any]]
    opened: dict[bool, tuple[Any, Any]] = field(default_factory=dict)

    def open(self, optimized: bool) -> tuple[Any, Any]:
        """Both, opened when they are first needed."""
        if optimized not in self.opened:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            if not optimized:
                options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            # emu's operators are registered with the options of the first, and unknown to the second.
            plain = onnxruntime.InferenceSession(self.baked, options, providers=["CPUExecutionProvider"])
            self.opened[optimized] = open_session(self.emulated, options=options), plain
        return self.opened[optimized]

    def run(self, feeds: Feeds, optimized: bool = True) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """The outputs of both."""
        emulated, baked = self.open(optimized)
        return emulated.run(None, {**feeds, **self.controls}), baked.run(None, feeds)


def _tolerance(proto: onnx.ModelProto) -> float:
    """The largest difference that rounding explains, as a share of an output's largest magnitude.

    A sum that is rounded otherwise can move an activation to the next code, or to the next number of half precision.
    """
    operators = {node.op_type for node in proto.graph.node}
    if operators & {"QuantizeLinear", "DynamicQuantizeLinear", "Round"}:
        return 0.1
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    casts = [attribute.i for node in proto.graph.node if node.op_type == "Cast" for attribute in node.attribute]
    kinds = {*casts, *(tensor.data_type for tensor in proto.graph.initializer)}
    return 1e-2 if kinds & half else 1e-4


def _samples(
    emulated: EmulatedModel,
    proto: onnx.ModelProto,
    pairs: _Pairs,
    data: str | Path | Mapping[str, Any] | DataSource | None,
) -> Iterator[tuple[str, Feeds]]:
    """Random inputs of the first sizes that the model takes, then the first of the data."""
    session = pairs.open(optimized=True)[1]
    inputs = model_inputs(session)
    for size in _SIZES:
        feeds = _random_inputs(inputs, proto, emulated.batch, size)
        with contextlib.suppress(Exception):  # of whatever kind: onnxruntime refuses sizes that do not go together
            session.run(None, feeds)
            yield "random", feeds
            break
    if data is not None:
        dataset, _ = load(data, session, inputs, Arrays(), None, None)
        fixed = fixed_batch(inputs)
        for start, feeds in dataset.batches(fixed or _BATCH, pad=fixed is not None):
            if start >= _MOST_GIVEN:
                return
            yield "given", feeds


def _random_inputs(inputs: list[ModelInput], proto: onnx.ModelProto, batch: tuple[str | None, int], free: int) -> Feeds:
    """Inputs of the right types and sizes; indices of tables stay within them. `free` is every other free size."""
    random = np.random.default_rng(0)
    counted = next((each for each in inputs if each.name == batch[0]), None)
    symbol = counted.shape[batch[1]] if counted is not None and batch[1] < len(counted.shape) else None
    channels = _channels(proto.graph)
    feeds = {}
    for each in inputs:
        shape = [size if isinstance(size, int) else _SAMPLES if size == symbol else free for size in each.shape]
        if each.name in channels and not isinstance(each.shape[1], int):
            shape[1] = channels[each.name]
        if each.dtype.kind == "f":
            feeds[each.name] = random.standard_normal(shape).astype(each.dtype)
        elif each.dtype.kind == "b":
            feeds[each.name] = np.ones(shape, bool)
        else:
            rows = _rows_of_table(proto.graph, each.name)
            feeds[each.name] = (random.integers(0, rows, shape) if rows else np.ones(shape)).astype(each.dtype)
    return feeds


def _channels(graph: onnx.GraphProto) -> dict[str, int]:
    """The channels of each image that a convolution reads, by its name."""
    kernels = {tensor.name: tensor.dims[1] for tensor in graph.initializer if len(tensor.dims) > 2}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in kernels]
    groups = [next((each.i for each in node.attribute if each.name == "group"), 1) for node in convolutions]
    return {node.input[0]: kernels[node.input[1]] * count for node, count in zip(convolutions, groups, strict=True)}


def _rows_of_table(graph: onnx.GraphProto, name: str) -> int | None:
    """Number of rows of the smallest table that an input picks from, None for an input that picks nothing."""
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    for node in graph.node:  # a table of codes is dequantized first
        if node.op_type == "DequantizeLinear" and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    same, found = {name}, []
    for node in graph.node:
        if node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze") and node.input[0] in same:
            same.update(node.output)
        if node.op_type == "Gather" and node.input[1] in same:
            found.append(sizes.get(node.input[0], 2))
    return min(found, default=None)


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")


def _difference(expected: list[NDArray[Any]], got: list[NDArray[Any]]) -> float:
    """The largest difference, as a share of an output's largest finite magnitude."""
    largest = 0.0
    for one, other in zip(expected, got, strict=True):
        if one.size and not _same(one, other):
            one, other = one.astype(np.float64), other.astype(np.float64)
            finite = np.isfinite(one)
            if (finite != np.isfinite(other)).any():
                return float("inf")
            scale = np.abs(one[finite]).max(initial=0) or 1.0
            largest = max(largest, float(np.abs(one[finite] - other[finite]).max(initial=0)) / scale)
    return largest
