"""Repairs a chip without training: corrections from unlabelled data, a choice among methods, proof on other data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from emu.baking.baking import opened
from emu.baking.chip import Chip, chip_of
from emu.contract.schema import OPERATORS
from emu.contract.site import Site
from emu.contract.structure import Structure, check_controls
from emu.correction.fit import Correction, Covariance, Moments, gain_of_weights, low_rank, output_range, widened
from emu.correction.nodes import write_corrections
from emu.correction.walk import Lane, temporary_folder, walk
from emu.device import Overrides
from emu.errors import InputError
from emu.evaluation.data import DataSet, fixed_batch, model_inputs
from emu.evaluation.preparing import load
from emu.evaluation.sources import DataSource
from emu.evaluation.statistics import chip_spread
from emu.reference.places import places
from emu.rewriter import Device, EmulatedModel, Rule, Share, undisturbed_sites
from emu.rewriter.load import DOMAIN, ModelSource
from emu.rewriter.positions import ends_beside
from emu.runtime import session as open_session

if TYPE_CHECKING:
    import onnx

Method = str
METHODS = ("bias", "gain", "low_rank", "low_rank+gain")
"""A bias for each column; a gain and a bias; a side path of low rank; that, then gain and bias."""

DEFAULT_BATCH = 16
_FEWEST = 16  # samples
_FAR = 10.0  # an output so many times beyond the clean range is cut off first


@dataclass(frozen=True)
class Comparison:
    """A measure before and after the repair, on data that it has not seen; shares from 0 to 1.

    Attributes:
        name: `agreement` with the clean model, or `accuracy` where there are labels.
        clean: of the clean model.
        before: of the chip.
        after: of the repaired chip.
        gain: mean, and 95 % interval over the samples, of after - before, sample by sample.
        samples: number of samples.
    """

    name: str
    clean: float
    before: float
    after: float
    gain: tuple[float, float, float]
    samples: int

    @property
    def in_words(self) -> str:
        """One line."""
        mean, low, high = (100 * each for each in self.gain)
        return (
            f"{self.name} {self.before:.2%} to {self.after:.2%} (clean {self.clean:.2%}): {mean:+.2f} points, "
            f"95 % interval {low:+.2f} to {high:+.2f}, {self.samples} samples"
        )


@dataclass(frozen=True, eq=False)
class Repaired:
    """A repaired model.

    Attributes:
        model: a rewritten model as any other, whose sites have corrections behind them.
        method: which method it is.
        tried: agreement with the clean model on the data of calibration, by method, `none` among them.
        comparisons: what the repair gives on the other half of the data.
        cost: digital multiplications of the corrections, as a share of all multiplications of the model.
        numbers: stored numbers of the corrections.
        notes: what a user should know, as sentences.
    """

    model: EmulatedModel
    method: Method
    tried: Mapping[str, float]
    comparisons: tuple[Comparison, ...]
    cost: float
    numbers: int
    notes: tuple[str, ...]

    def save(self, path: str | Path) -> None:
        """Writes the model; see `EmulatedModel.save`."""
        self.model.save(path)


def repair(
    model: ModelSource | EmulatedModel,
    data: str | Path | Mapping[str, Any] | DataSource | DataSet,
    device: Device | None = None,
    *,
    set: Overrides | None = None,
    seed: int = 0,
    read_seed: int = 0,
    method: Method = "auto",
    budget: float = 0.02,
    rank: int | None = None,
    only: str | None = None,
    exclude: str | None = None,
    map: Sequence[Rule] = (),
    share: Share | None = None,
    stored: str | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Repaired:
    """Corrects one chip in digital logic around its arrays, on unlabelled data and without training.

    Site after site in data-flow order, with everything before already repaired, what leaves an array is fitted to what
    leaves it in the clean model: `bias` adds a number to each column; `gain` multiplies and adds (least squares);
    `low_rank` adds a digital path of low rank that takes most of the error of the stored values away, for the inputs
    that the site meets; `low_rank+gain` does both. Half of the data (every other sample) is for that; what the repair
    gives is measured on the other half.

    Args:
        model: a rewritten model, or a plain one with a `device`; `only` to `stored` as for `emu.rewrite`.
        data: as for `emu.calibrate`; labels are not used, but where there are any, accuracy is measured too.
        device: for a plain model.
        set: settings of the device; of a rewritten model only the numbers of its devices.
        seed: which chip.
        read_seed: which repetition.
        method: one of `METHODS`, or `auto`: the one with the highest agreement with the clean model.
        budget: the largest share of digital multiplications that the repair may add.
        rank: of side paths, whatever the budget says; None for what it allows, which is split by multiplications.
        only: for a plain model.
        exclude: for a plain model.
        map: for a plain model.
        share: for a plain model.
        stored: for a plain model.
        samples: use only the first so many samples.
        batch_size: samples at once; None for 16.
        threads: threads of the sessions.
        progress: called with the sites done and the sites in total.

    Raises:
        InputError: no or too few data, data that do not fit, a device that disturbs no stored weight, a budget that no
            method fits in, an unknown method, a model that is repaired or baked already, or as for `emu.rewrite`.
    """
    if method not in ("auto", *METHODS):
        raise InputError(f"method is '{method}': expected auto, {', '.join(METHODS)}.")
    if not 0 < budget <= 1:
        raise InputError(f"budget is {budget:g}: give a share of all multiplications above 0 and up to 1.")
    emulated = opened(model, device, set=set, only=only, exclude=exclude, map=map, share=share, stored=stored)
    if emulated.manifest.repair is not None:
        raise InputError(f"{emulated.name} is repaired already: give the model that it was made from.")
    chip = chip_of(emulated, seed, read_seed, set if device is None else None)
    sites = _sites(emulated, chip)
    folder = Path(model).parent if isinstance(model, str | Path) else None
    work = _Work(emulated, chip, sites, budget, rank, threads)
    first, second = work.data(data, folder, samples, batch_size)
    wanted = METHODS if method == "auto" else (method,)
    methods = [each for each in wanted if work.ranks(each) is not None]
    if not methods:
        least = work.least_cost(wanted[0])
        raise InputError(
            f"{emulated.name}: a budget of {budget:.3g} is too small: {wanted[0]} needs {least:.3g} of all "
            "multiplications."
        )
    fitted, tried, notes = work.fit(methods, first, progress)
    best = max(methods, key=lambda each: tried[each])
    if tried["none"] >= tried[best]:
        notes.append(f"No method brings the outputs of this chip closer to the clean ones; the best of them is {best}.")
    corrections = fitted[best]
    cost = work.cost(corrections)
    graph = emulated.graph_to_change()
    write_corrections(graph, {site.node: site for site in emulated.manifest.sites}, corrections, emulated.name)
    numbers = sum(each.numbers for each in corrections.values())
    record: dict[str, Any] = {
        "method": best, "seed": seed, "read_seed": read_seed, "settings": dict(chip.settings), "samples": first.rows,
        "cost": cost, "numbers": numbers,
        "ranks": {str(sites[name].index): each.rank for name, each in corrections.items()},
    }  # fmt: skip
    result = emulated.repaired(graph, record)
    comparisons = work.compare(result, second)
    return Repaired(result, best, tried, comparisons, cost, numbers, tuple(notes))


def _sites(emulated: EmulatedModel, chip: Chip) -> dict[str, Site]:
    """The products with stored weights that a device disturbs, by the names of their nodes."""
    exact = {site.index for site in undisturbed_sites(emulated.manifest)}
    found = {
        site.node: site
        for site in emulated.manifest.sites
        if site.is_product and site.is_stored and site.index not in exact
    }
    nodes = emulated.nodes()
    found = {name: site for name, site in found.items() if chip.strength(nodes[name]) > 0}
    if not found:
        raise InputError(
            f"{emulated.name}: there is nothing to repair, because {', '.join(emulated.manifest.devices)} disturbs no "
            "product with stored weights."
        )
    return found


@dataclass
class _Work:
    emulated: EmulatedModel
    chip: Chip
    sites: Mapping[str, Site]
    budget: float
    rank: int | None
    threads: int | None
    proto: "onnx.ModelProto" = field(init=False)
    nodes: Mapping[str, ir.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.proto = self.emulated.model
        self.nodes = self.emulated.nodes()
        self.order = [node for node in self.proto.graph.node if node.name in self.sites and node.domain == DOMAIN]
        self.made = {name for node in self.proto.graph.node for name in node.output}
        self.batch = DEFAULT_BATCH
        self.fixed: int | None = None
        self.labelled = False

    # --- Data

    def data(
        self, data: Any, folder: Path | None, samples: int | None, batch_size: int | None
    ) -> tuple[DataSet, DataSet]:
        """Every other sample, to fit on; and the others, to measure on."""
        session = open_session(self.proto, threads=self.threads)
        inputs = model_inputs(session)
        dataset, task = load(data, session, inputs, None, samples, folder)
        self.labelled = (
            task.kind == "classification" and len(dataset.labels) == dataset.rows and dataset.labels.ndim == 1
        )
        self.fixed = fixed_batch(inputs)
        self.batch = self.fixed or batch_size or DEFAULT_BATCH
        if dataset.rows < _FEWEST:
            raise InputError(f"{dataset.where} has {dataset.rows} samples: give at least {_FEWEST} to repair with.")
        return _part(dataset, 0), _part(dataset, 1)

    # --- Costs

    def macs(self, site: Site) -> float:
        """Multiplications of a site, of one sample; of one row where the number of rows is not known."""
        return float(site.macs or site.macs_per_row or 1)

    def all_macs(self) -> float:
        """Multiplications of the model, as far as they are known."""
        manifest = self.emulated.manifest
        products = [site for site in manifest.sites if site.is_product]
        return sum(map(self.macs, products)) + sum(each.macs or 0 for each in manifest.skipped)

    def per_row(self, site: Site) -> float:
        """Multiplications of one row of a site."""
        return float((site.shape[0] or 1) * (site.shape[1] or 1) * site.stack)

    def cost(self, corrections: Mapping[str, Correction]) -> float:
        """Multiplications of corrections, as a share of all."""
        spent = 0.0
        for name, each in corrections.items():
            site = self.sites[name]
            spent += each.multiplications / self.per_row(site) * self.macs(site)
        return spent / self.all_macs()

    def least_cost(self, method: Method) -> float:
        """The least share of multiplications that a method needs."""
        spent = 0.0
        for site in self.sites.values():
            columns = (site.shape[1] or 1) * site.stack
            row = columns * ("gain" in method)
            row += ((site.shape[0] or 1) + columns) * ("low_rank" in method and self.can_have_path(site))
            spent += row / self.per_row(site) * self.macs(site)
        return spent / self.all_macs()

    def can_have_path(self, site: Site) -> bool:
        """Whether a side path can lie beside a site: beside one matrix, which no windows are fed to."""
        return site.stack == 1 and not site.window

    def ranks(self, method: Method) -> dict[str, int] | None:
        """The rank of the side path of each site; None where the budget is too small.

        What the gains leave of the budget is split between sites in proportion to their multiplications; what one
        cannot use is left to the next.
        """
        gain = self.least_cost("gain") if "gain" in method else 0.0
        if "low_rank" not in method:
            return dict.fromkeys(self.sites, 0) if gain <= self.budget else None
        able = [node.name for node in self.order if self.can_have_path(self.sites[node.name])]
        result = dict.fromkeys(self.sites, 0)
        if self.rank is not None:
            result |= {name: min(self.rank, *self._shape(name)) for name in able}
            return result
        left = (self.budget - gain) * self.all_macs()
        total = sum(self.macs(self.sites[name]) for name in able)
        spare = 0.0
        for name in able:
            site = self.sites[name]
            rows, columns = self._shape(name)
            one = (rows + columns) / (rows * columns) * self.macs(site)
            spare += left * self.macs(site) / total
            result[name] = max(0, min(int(spare / one), rows, columns))
            spare -= result[name] * one
        return result if any(result.values()) else None

    def _shape(self, name: str) -> tuple[int, int]:
        site = self.sites[name]
        return site.shape[0] or 1, site.shape[1] or 1

    # --- Fitting

    def fit(
        self, methods: Sequence[Method], dataset: DataSet, progress: Callable[[int, int], None] | None
    ) -> tuple[dict[Method, dict[str, Correction]], dict[str, float], list[str]]:
        """The corrections of each method, the agreement of each (and of `none`) on these data, and notes."""
        controls = {name: value for name, value in self.chip.controls.items() if name != "emu.sample"}
        clean = {**controls, "emu.strength": np.zeros(len(self.emulated.manifest.sites), np.float32)}
        batches = list(dataset.batches(self.batch, pad=self.fixed is not None))
        corrections: dict[Method, dict[str, Correction]] = {each: {} for each in methods}
        ranks = {each: self.ranks(each) or {} for each in methods}
        cut: list[str] = []
        with temporary_folder() as name:
            folder = Path(name)
            reference = Lane(clean, batches, folder)
            lanes = {each: Lane(controls, batches, folder) for each in ("none", *methods)}
            outputs = [value.name for value in self.proto.graph.output]
            stops = [*(self._values_at(node) for node in self.order), outputs]
            for place in walk(self.proto, [reference, *lanes.values()], stops, self.threads):
                if place == len(self.order):
                    break
                node = self.order[place]
                for each in methods:
                    found = self._correct(node, each, ranks[each][node.name], reference, lanes[each])
                    corrections[each][node.name] = found
                    if found.low is not None and node.name not in cut:
                        cut.append(node.name)
                if progress is not None:
                    progress(place + 1, len(self.order))
            answers = {each: _outputs_of(lane, outputs[0], dataset.rows) for each, lane in lanes.items()}
            right = _outputs_of(reference, outputs[0], dataset.rows)
        tried = {each: float(agreement(right, answer).mean()) + _tie(right, answer) for each, answer in answers.items()}
        notes = []
        if cut:
            notes.append(
                f"Outputs of {len(cut)} sites were not finite, or far beyond the clean range: they are cut off to it "
                "first."
            )
        return corrections, tried, notes

    def _values_at(self, node: "onnx.NodeProto") -> list[str]:
        """The values to look at when a site is reached: output, input, and where its rows lie."""
        position = node.input[[each.name for each in OPERATORS[node.op_type].inputs].index("position")]
        ends = ends_beside(position)
        told = [position, ends] if ends is not None and ends in self.made else []
        return [node.output[0], node.input[0], *told]

    def _correct(self, node: "onnx.NodeProto", method: Method, rank: int, reference: Lane, lane: Lane) -> Correction:
        """Fits the correction of a site, and puts what it gives in the place of its output."""
        site, name = self.sites[node.name], node.output[0]
        structure = self.chip.structure(self.nodes[node.name])
        columns = (site.shape[1] or 1) * site.stack
        correction = self._cut_off(node, structure, reference, lane)
        if rank:
            covariance = Covariance(site.shape[0] or 1)
            for batch in range(lane.batches):
                x = lane.get(batch, node.input[0])
                covariance.add(x[self._counts(node, structure, lane, batch, x)].reshape(-1, x.shape[-1]))
            held = self.chip.held(self.nodes[node.name])
            stored = np.clip(np.nan_to_num(held.values), *_column_range(held.clean))
            clean, stored = (each.reshape(-1, columns) for each in (held.clean, stored))
            if "gain" in method:  # an error that is a factor needs no path
                gain = gain_of_weights(clean, stored, covariance)
                correction, stored = replace(correction, gain=gain), stored * gain
            left, right = low_rank(clean - stored, covariance, rank)
            correction = replace(correction, left=left, right=right)
        if "gain" in method or method == "bias":
            moments = Moments(columns)
            for batch in range(lane.batches):
                y = self._applied(node, site, correction, lane, batch)
                c, counts = (
                    reference.get(batch, name),
                    self._counts(node, structure, lane, batch, lane.get(batch, node.input[0])),
                )
                moments.add(_columns(y, site, counts), _columns(c, site, counts))
            if method == "bias":
                correction = replace(correction, bias=moments.bias())
            else:
                correction = correction.scaled(*moments.gain_and_bias())
        for batch in range(lane.batches):
            lane.put(batch, name, self._applied(node, site, correction, lane, batch))
        return correction

    def _cut_off(self, node: "onnx.NodeProto", structure: Structure, reference: Lane, lane: Lane) -> Correction:
        """The clean range of each column, where what the chip gives is not finite or far beyond."""
        site, seen, wild = self.sites[node.name], None, False
        for batch in range(lane.batches):
            counts = self._counts(node, structure, lane, batch, lane.get(batch, node.input[0]))
            seen = output_range(_columns(reference.get(batch, node.output[0]), site, counts), seen)
        assert seen is not None, "there are data"
        low, high = widened(*seen)
        limit = _FAR * max(float(np.abs(low).max()), float(np.abs(high).max()), 1e-30)
        for batch in range(lane.batches):
            y = lane.get(batch, node.output[0])
            wild = wild or not (np.abs(y) <= limit).all()
        return Correction(low=low, high=high) if wild else Correction()

    def _applied(self, node: "onnx.NodeProto", site: Site, correction: Correction, lane: Lane, batch: int) -> Any:
        y = lane.get(batch, node.output[0])
        moved = _to_columns(y, site)
        x = None
        if correction.left is not None:
            x = lane.get(batch, node.input[0])
            x = x.reshape(-1, x.shape[-1])
        rows = correction.apply(moved.reshape(-1, moved.shape[-1]), x)
        return _from_columns(np.asarray(rows, np.float32).reshape(moved.shape), y.shape, site)

    def _counts(self, node: "onnx.NodeProto", structure: Structure, lane: Lane, batch: int, x: NDArray[Any]) -> Any:
        """Which rows of the input count: all but padding; bool, of the leading dimensions of x."""
        leading = x.shape[:-1]
        told = self._values_at(node)[2:]
        if not told or structure.window:
            return np.ones(leading, bool)
        position, ends = (lane.get(batch, each) for each in told)
        device = np.array(list(self.chip.numbers(self.nodes[node.name]).values()), np.float32)
        numbers = check_controls(
            structure, device, np.zeros(structure.sites, np.float32), None, None, np.int64(0), np.int64(0)
        )
        where = places(leading, structure.sample_axis, replace(numbers, positions=position, samples=lane.sizes[batch]))
        last = ends[np.zeros_like(where.of_batch) if len(ends) == 1 else where.of_batch, 1]
        return (where.position >= 0) & (where.position < last)

    # --- Measuring

    def compare(self, result: EmulatedModel, dataset: DataSet) -> tuple[Comparison, ...]:
        """What the repair gives on data that it has not seen."""
        session = open_session(result, threads=self.threads)
        controls = dict(self.chip.controls)
        off = {**controls, "emu.strength": np.zeros(len(result.manifest.sites), np.float32)}
        clean = self._run(session, off, dataset)
        after = self._run(session, controls, dataset)
        before = self._run(open_session(self.emulated, threads=self.threads), controls, dataset)
        found = [_comparison("agreement", *(agreement(clean, each) for each in (clean, before, after)))]
        if self.labelled and clean.ndim == 2:
            found.append(_comparison("accuracy", *(_right(each, dataset.labels) for each in (clean, before, after))))
        return tuple(found)

    def _run(self, session: Any, controls: Mapping[str, Any], dataset: DataSet) -> NDArray[Any]:
        parts = []
        name = session.get_outputs()[0].name
        for start, feeds in dataset.batches(self.batch, pad=self.fixed is not None):
            parts.append(session.run([name], {**feeds, **controls, "emu.sample": np.asarray(start, np.int64)})[0])
        return np.concatenate(parts)[: dataset.rows]


def _part(dataset: DataSet, first: int) -> DataSet:
    """Every other sample from the first or second on."""
    rows = list(range(first, dataset.rows, 2))
    arrays = {name: array[rows] for name, array in dataset.arrays.items()}
    labels = dataset.labels[rows] if len(dataset.labels) == dataset.rows else np.zeros(len(rows), np.int64)
    return replace(dataset, arrays=arrays, labels=labels, targets={})


def agreement(clean: NDArray[Any], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """For each sample the share of its rows of scores whose largest is the clean one; outputs with NaN never agree."""
    if clean.ndim < 2:
        return np.asarray((clean > 0) == (outputs > 0), np.float64)
    same = (clean.argmax(axis=-1) == outputs.argmax(axis=-1)) & np.isfinite(outputs).all(axis=-1)
    return np.asarray(same.reshape(len(same), -1).mean(axis=1), np.float64)


def _tie(clean: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Less than a sample's worth, more for outputs closer to the clean ones."""
    error = np.linalg.norm(np.nan_to_num(outputs.astype(np.float64)) - clean) / (np.linalg.norm(clean) or 1.0)
    return float(1e-6 / (1 + error))


def _right(outputs: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    right = (outputs.argmax(axis=-1) == labels) & np.isfinite(outputs).all(axis=-1)
    return np.asarray(right, np.float64)


def _comparison(name: str, clean: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> Comparison:
    spread = chip_spread((after - before).tolist())
    low, high = spread.ci95 or (spread.mean, spread.mean)
    gain = spread.mean, low, high
    return Comparison(name, float(clean.mean()), float(before.mean()), float(after.mean()), gain, len(clean))


def _outputs_of(lane: Lane, name: str, rows: int) -> NDArray[Any]:
    parts = [lane.get(batch, name) for batch in range(lane.batches)]
    return np.asarray(np.concatenate(parts)[:rows])


def _column_range(clean: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Twice the range of each column of clean weights: what a flipped exponent makes of one lies far beyond."""
    low, high = clean.min(axis=-2, keepdims=True), clean.max(axis=-2, keepdims=True)
    return low - (high - low), high + (high - low)


def _to_columns(y: NDArray[Any], site: Site) -> NDArray[Any]:
    """An output with its columns along the last axis."""
    if site.window:
        return np.moveaxis(y, 1, -1)
    if site.stack > 1:
        return np.moveaxis(y, -3, -2).reshape(*y.shape[:-3], y.shape[-2], -1)
    return y


def _from_columns(rows: NDArray[Any], shape: tuple[int, ...], site: Site) -> NDArray[Any]:
    if site.window:
        return np.ascontiguousarray(np.moveaxis(rows, -1, 1))
    if site.stack > 1:
        return np.ascontiguousarray(np.moveaxis(rows.reshape(*shape[:-3], shape[-2], shape[-3], shape[-1]), -2, -3))
    return rows


def _columns(y: NDArray[Any], site: Site, counts: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The rows of an output that count, `[rows, columns]`."""
    moved = _to_columns(y, site)
    if counts.shape == moved.shape[:-1]:
        return np.asarray(moved[counts], np.float32)
    return moved.reshape(-1, moved.shape[-1])
