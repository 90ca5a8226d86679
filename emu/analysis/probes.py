"""Inner tensors of a rewritten model: attention probabilities, outputs of blocks, outputs of sites.

They become further outputs of the graph, so that clean and disturbed values come from one session: clean is strength 0.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from emu.contract.schema import FAULTY_WEIGHT
from emu.contract.site import Site, Skipped
from emu.errors import InputError
from emu.evaluation.bench import DEFAULT_BATCH as USUAL_BATCH
from emu.evaluation.bench import Bench, Trial
from emu.evaluation.controls import control_feeds
from emu.evaluation.data import fixed_batch, model_inputs
from emu.evaluation.metrics import fixed
from emu.evaluation.statistics import chip_spread
from emu.evaluation.tasks import Arrays
from emu.rewriter import EmulatedModel
from emu.rewriter.dataflow import DataFlow, is_standard
from emu.rewriter.find import PRODUCTS
from emu.rewriter.load import DOMAIN

Kind = Literal["attention", "block", "context"]

DEFAULT_BATCH = 8  # attention of every layer is in memory for one batch

_MOST_NUMBERS = 1 << 27  # half a GB of clean values

_MASK = "attention_mask"
_NO_CONTEXT = "its context product was not found"
# What may stand between a Softmax and the product with the values, and keeps every probability as it is.
_PASSES = frozenset(
    [
        "Cast",
        "Dropout",
        "Expand",
        "Identity",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
        "Where",
        "QuantizeLinear",
        "DequantizeLinear",
    ]
)


@dataclass(frozen=True)
class Probe:
    """One inner tensor of a rewritten model.

    Attributes:
        kind: `attention`: the probabilities that enter a context product; `block`: the residual sum at the end of a
            layer; `context`: the output of a context product, which is the attention of the layer.
        value: name of the tensor in the graph.
        layer: index of the transformer block.
        heads: number of heads; 1 where they could not be told.
        axis: axis of the tensor that carries the samples.
        transposed: whether queries are columns, as where values stand on the left of the product.
    """

    kind: Kind
    value: str
    layer: int
    heads: int
    axis: int
    transposed: bool = False


@dataclass(frozen=True)
class Batch:
    """Some samples of the data.

    Attributes:
        start: index of the first sample in the data set.
        samples: number of samples, without those that only fill a fixed batch.
        feeds: the model's inputs, the index of the first sample included.
        mask: which tokens are no padding, bool `[samples, tokens]`; None for a model without `attention_mask`.
    """

    start: int
    samples: int
    feeds: Mapping[str, NDArray[Any]]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Comparison:
    """What one trial gave on one batch.

    Attributes:
        trial: index of the trial.
        batch: the batch.
        values: for each probe that was looked at its index, what it should be, and what it was.
    """

    trial: int
    batch: Batch
    values: list[tuple[int, NDArray[Any], NDArray[Any]]]


def find_probes(emulated: EmulatedModel, kind: Kind) -> tuple[list[Probe], list[str]]:
    """The inner tensors of one kind, by layer, found by following the data through the graph.

    Args:
        emulated: a rewritten model.
        kind: which tensors.

    Returns:
        The probes, and one sentence for each layer that has none.

    Raises:
        InputError: an unknown kind, or a model without any such tensor.
    """
    if kind not in get_args(Kind):
        raise InputError(f"The inner tensors '{kind}' are not known: expected {', '.join(get_args(Kind))}.")
    finder = _Finder(emulated)
    find = {"attention": finder.attention, "block": finder.block, "context": finder.context}[kind]
    layers = sorted({site.layer for site in emulated.manifest.sites if site.layer is not None})
    probes: list[Probe] = []
    missing: list[str] = []
    for layer in layers:
        found = find(layer)
        if isinstance(found, str):
            missing.append(f"Layer {layer} is left out: {found}.")
        else:
            probes.append(found)
    if not probes:
        reason = missing[0] if missing else "It has no transformer blocks."
        raise InputError(f"{emulated.name} has nothing to look at. {reason}")
    return probes, missing


class ProbedModel:
    """A model on data whose inner tensors of one kind can be had, clean and under any trial.

    Args:
        bench: a model with a device, and its data; labels are not needed. Inner tensors of all layers are in memory for
            one batch: where the bench has the default size of a batch, it is 8 samples here.
        kind: which inner tensors.

    Raises:
        InputError: the model is plain, or has no such tensors.
    """

    def __init__(self, bench: Bench, kind: Kind) -> None:
        if bench.manifest is None:
            raise InputError(f"{bench.name} is not rewritten: give a device.")
        emulated = EmulatedModel.open(bench.model)
        self.name, self._of = bench.name, bench
        self.probes, self.missing = find_probes(replace(emulated, name=bench.name), kind)
        self.bench = Bench(
            emulated.observed(probe.value for probe in self.probes),
            bench.dataset,
            set=bench.arguments["set"] or None,
            task=Arrays(),  # inner tensors are compared, with no label
            batch_size=min(bench.batch_size, DEFAULT_BATCH) if bench.batch_size == USUAL_BATCH else bench.batch_size,
            threads=bench.arguments["threads"],
            ops=bench.arguments["ops"],
        )
        self._fixed = fixed_batch(model_inputs(self.bench.session))

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.bench.dataset.rows

    def described(self) -> dict[str, Any]:
        """What an analysis is of: the arguments `heading`, `facts` and `caption` of `emu.analysis.ground.Analysis`."""
        bench, notes = self.bench, [*self.bench.about_sites, *self.missing]
        return {
            "heading": [
                f"model    {self.name} ({bench.device_names})",
                f"data     {bench.dataset.where}, {self.samples} samples",
                *(f"Note: {note}" for note in notes),
            ],
            "facts": {
                "model": self.name,
                "device": bench.device_names,
                "settings": dict(bench.settings),
                "data": bench.dataset.where,
                "samples": self.samples,
                "notes": notes,
            },
            "caption": f"{Path(self.name).name} on {bench.device_names}, {self.samples} samples",
        }

    def batches(self) -> Iterator[Batch]:
        """The data, one batch after another."""
        bench = self.bench
        assert bench.manifest is not None, "a bench of a rewritten model"
        for start, feeds in bench.dataset.batches(bench.batch_size, pad=self._fixed is not None):
            samples = min(bench.batch_size, self.samples - start)
            mask = feeds[_MASK][:samples] != 0 if _MASK in feeds else None
            if mask is not None and mask.ndim != 2:
                mask = None
            yield Batch(start, samples, {**feeds, **control_feeds(bench.manifest, sample=start)}, mask)

    def compare(
        self,
        trials: Sequence[Trial],
        *,
        places: Sequence[Sequence[int]] | None = None,
        references: Sequence[Trial] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator["Comparison"]:
        """Runs every trial on all data, beside what it is compared with.

        Args:
            trials: the settings of the controls, the chips among them.
            places: for each trial the probes to look at, as indices of `self.probes`; None for all.
            references: for each trial another one to compare with; None for the clean model (strength 0).
            progress: called with the steps done and the steps in total.
        """
        done, total = 0, self.bench.batches * len(trials)
        for group in self._groups(clean=references is None):
            # A chip that changed with every batch would be programmed for every batch.
            for index, (batch, clean) in itertools.product(range(len(trials)), group):
                chosen = range(len(self.probes)) if places is None else places[index]
                probes = [self.probes[place] for place in chosen]
                if references is None:
                    wanted = [clean[place] for place in chosen]
                else:
                    wanted = self.run(batch, references[index], probes)
                found = self.run(batch, trials[index], probes)
                yield Comparison(index, batch, list(zip(chosen, wanted, found, strict=True)))
                done += 1
                if progress is not None:
                    progress(done, total)

    def _groups(self, clean: bool) -> Iterator[list[tuple[Batch, list[NDArray[Any]]]]]:
        """Batches with their clean inner tensors (none without `clean`), as many at once as memory should hold."""
        group: list[tuple[Batch, list[NDArray[Any]]]] = []
        held = 0
        for batch in self.batches():
            group.append((batch, self.run(batch, None) if clean else []))
            held += sum(each.size for each in (*group[-1][1], *batch.feeds.values()))
            if held > _MOST_NUMBERS:
                yield group
                group, held = [], 0
        if group:
            yield group

    def run(self, batch: Batch, trial: Trial | None, probes: Sequence[Probe] | None = None) -> list[NDArray[Any]]:
        """The inner tensors of one batch.

        Args:
            batch: of `batches`.
            trial: the setting of the controls; None for the clean model (strength 0).
            probes: some of `self.probes`; None for all.

        Returns:
            For each probe float32 `[samples, rows, width]` (block) or `[samples, windows, heads, rows, width]`, one
            window but where attention is windowed; rows are queries, width counts keys (attention) or the columns of a
            head (context).

        Raises:
            InputError: as in `Bench.controls`, or a tensor without a sample axis.
        """
        probes = self.probes if probes is None else probes
        controls = self.bench.controls(Trial(strength=0.0) if trial is None else trial)
        arrays = self.bench.session.run([probe.value for probe in probes], {**batch.feeds, **controls})
        size = self._fixed or batch.samples
        return [
            _by_sample(array, probe, size, self.name)[: batch.samples]
            for array, probe in zip(arrays, probes, strict=True)
        ]


def with_interval(row: Mapping[str, Any], name: str, digits: int) -> list[str]:
    """What `over_chips` gave, for a table."""
    low, high = float(row[f"{name}_low"]), float(row[f"{name}_high"])
    interval = "-" if math.isnan(low) else f"{fixed(low, digits)} to {fixed(high, digits)}"
    return [fixed(float(row[name]), digits), interval]


def over_chips(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean over chips as `name`, its standard deviation and 95 % t interval as `name_std`, `name_low`, `name_high`.

    All but the mean are NaN for a single chip, and where a value is not finite; the interval also of equal chips.
    """
    std = low = high = None
    mean = float(np.mean(values))
    if math.isfinite(mean):
        spread = chip_spread(values)
        std, (low, high) = spread.std, spread.ci95 or (None, None)
    ends = {f"{name}_std": std, f"{name}_low": low, f"{name}_high": high}
    return {name: mean, **{key: math.nan if value is None else value for key, value in ends.items()}}


def _by_sample(array: NDArray[Any], probe: Probe, samples: int, name: str) -> NDArray[np.float32]:
    """The tensor with the samples as its first axis, and heads where it has them."""
    if probe.transposed:
        array = array.swapaxes(-1, -2)
    array = np.moveaxis(np.asarray(array, np.float32), probe.axis, 0)
    if array.ndim < 3 - (probe.kind == "block") or len(array) % samples:
        raise InputError(
            f"{name}: '{probe.value}' is of shape {list(array.shape)} for {samples} samples, so that its samples "
            "cannot be told apart."
        )
    if probe.kind == "block":
        return array.reshape(samples, -1, array.shape[-1])
    matrices = array.reshape(samples, -1, *array.shape[-2:])
    if matrices.shape[1] % probe.heads:
        raise InputError(
            f"{name}: '{probe.value}' has {matrices.shape[1]} matrices per sample for {probe.heads} heads."
        )
    return matrices.reshape(samples, -1, probe.heads, *matrices.shape[2:])


class _Finder:
    """Follows the data of a rewritten graph from its products, on a device or not, to what surrounds them."""

    def __init__(self, emulated: EmulatedModel) -> None:
        self._sites = emulated.products()
        graph = self._sites[0][1].graph
        assert isinstance(graph, ir.Graph), "sites are nodes of the main graph"
        self._flow = DataFlow(graph)
        self._reads = self._flow.masks([node for _, node in self._sites])
        self._own = {node: 1 << place for place, (_, node) in enumerate(self._sites)}
        self._fixed = self._weights()

    def attention(self, layer: int) -> Probe | str:
        """The probabilities of a layer's attention: the operand of its context product that comes from a Softmax."""
        for site, node in self._of(layer, ("attention_context",)):
            for place, value in enumerate(node.inputs[:2]):
                if value is not None and _comes_from_softmax(value):
                    if site.sample_axis < 0:
                        return f"its attention ('{site.node}') is the same for every sample"
                    return Probe("attention", str(value.name), layer, max(1, site.heads), site.sample_axis, place == 1)
            return f"no Softmax feeds its context product '{site.node}' directly"
        return _NO_CONTEXT

    def context(self, layer: int) -> Probe | str:
        """What a layer's context product gives."""
        for site, node in self._of(layer, ("attention_context",)):
            if site.sample_axis < 0:
                return f"its attention ('{site.node}') is the same for every sample"
            return Probe("context", str(node.outputs[0].name), layer, max(1, site.heads), site.sample_axis)
        return _NO_CONTEXT

    def block(self, layer: int) -> Probe | str:
        """The residual sum at the end of a layer.

        It is the last sum of two activations that the layer's last linear site reaches without a further product, one
        of which does not depend on that site (what skips it).
        """
        ends = self._of(layer, ("ffn_down", "attention_output")) or self._of(layer, None)
        site, last = max(ends, key=lambda end: self._flow.position[end[1]])
        stop = {node for node in self._flow.nodes if node.domain == DOMAIN or node.op_type in PRODUCTS}
        sums = [node for node, _ in self._flow.downstream(last.outputs[0], stop) if self._joins(node, self._own[last])]
        if not sums:
            return f"no residual sum follows '{site.node}'"
        end = max(sums, key=self._flow.position.__getitem__)
        return Probe("block", str(end.outputs[0].name), layer, 1, max(0, site.sample_axis))

    def _of(self, layer: int, components: tuple[str, ...] | None) -> list[tuple[Site | Skipped, ir.Node]]:
        return [
            (site, node)
            for site, node in self._sites
            if site.layer == layer and (components is None or site.component in components)
        ]

    def _joins(self, node: ir.Node, last: int) -> bool:
        """Whether a node adds what comes from a site to an activation that does not."""
        if not is_standard(node) or node.op_type not in ("Add", "Sum"):
            return False
        from_last = [bool(self._read(value) & last) for value in node.inputs if value not in self._fixed]
        return any(from_last) and not all(from_last)

    def _read(self, value: ir.Value | None) -> int:
        """The sites that a value comes from, as bits."""
        node = None if value is None else value.producer()
        return 0 if node is None else self._reads.get(node, 0) | self._own.get(node, 0)

    def _weights(self) -> set[ir.Value | None]:
        """Values that are the same for all data: stored tensors, disturbed or not, and what is made of them alone."""
        weights: set[ir.Value | None] = {None}
        weights |= {value for value in self._flow.graph.initializers.values() if not value.is_graph_input()}
        for node in self._flow.nodes:
            if node.op_type == FAULTY_WEIGHT or all(value in weights for value in node.inputs):
                weights.update(node.outputs)
        return weights


def _comes_from_softmax(value: ir.Value) -> bool:
    """Whether a value is what a Softmax gave, at most in another layout, and with some of it masked."""
    seen: set[ir.Value] = set()
    queue = [value]
    while queue:
        current = queue.pop()
        node = current.producer()
        if node is None or current in seen:
            continue
        seen.add(current)
        if node.op_type == "Softmax":
            return True
        if is_standard(node) and node.op_type in _PASSES:
            places = (1, 2) if node.op_type == "Where" else (0,)
            queue.extend(each for each in (node.inputs[i] for i in places) if each is not None)
    return False
