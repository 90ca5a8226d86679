"""Runs data through the clean model and fits the ranges of each site's converters to what they meet."""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from emu.calibration.outputs import scale_of_sample, stored_contents, tile_outputs, written_contents
from emu.calibration.ranges import Method, check_method, find_range
from emu.contract.codes import numbers_of
from emu.contract.schema import NUMBERS_OF_RANGE, OPERATORS
from emu.contract.site import Site
from emu.contract.structure import Controls, Structure, check_controls, parse_structure
from emu.errors import InputError
from emu.evaluation.data import DataSet, fixed_batch, model_inputs
from emu.evaluation.preparing import load
from emu.evaluation.sources import DataSource
from emu.evaluation.tasks import Arrays
from emu.reference import windows
from emu.reference.mapping import row_scales
from emu.reference.places import keys_that_count, places
from emu.rewriter import Calibrated, EmulatedModel, calibrated_sites
from emu.rewriter.positions import ends_beside

if TYPE_CHECKING:
    import onnx

DEFAULT_BATCH = 8  # every site's activations are in memory for one batch
# What is kept of the data: so many rows of each activation at most, fewer if all of them would exceed the limit.
_MOST_ROWS, _FEWEST_ROWS = 1024, 64
_MOST_NUMBERS = 1 << 27  # half a GB
_MATRICES, _ROWS_OF_MATRIX = 32, 32  # of operands that are written at run time
_MOST_OUTPUTS = 1 << 24  # of a site, for histograms


def calibrate(
    model: "str | Path | onnx.ModelProto | EmulatedModel",
    data: str | Path | Mapping[str, Any] | DataSource | DataSet,
    samples: int | None = None,
    method: Method = "minmax",
    percentile: float = 99.99,
    batch_size: int | None = None,
    threads: int | None = None,
    ops: Literal["native", "python"] = "native",
    progress: Callable[[int, int], None] | None = None,
) -> EmulatedModel:
    """Fits the ranges of `calibrated` DACs and ADCs to data.

    The range of a DAC follows from the activations that enter its site on the clean model (strength 0). That of an ADC
    follows from the outputs of the site's tiles before conversion: products of inputs that went through the DAC with
    what the arrays hold undisturbed, for every slice, of evenly spaced rows of the data.

    Args:
        model: a rewritten model with sites whose DAC or ADC is `calibrated`.
        data: an .npz file or a mapping with one array per model input, samples along the first axis; or images or
            texts, as `emu.evaluation.DataSource` describes, which also takes options. No labels are needed.
        samples: use only this many samples, the first ones.
        method: `minmax`: all numbers are in range; `percentile`: so many of them; `entropy`: the range that loses the
            least information (as TensorRT and onnxruntime calibrate).
        percentile: for `percentile`, in percent.
        batch_size: samples at once; None for 8.
        threads: threads of the session; None for onnxruntime's default.
        ops: `native` for the C++ operators, `python` for their NumPy twin.
        progress: called with the batches done and the batches in total.

    Returns:
        The model with these ranges as the default of `emu.ranges`; its manifest says how they were found, under
        `calibration`.

    Raises:
        InputError: the model has no calibrated converters, the data do not fit it, or an option is wrong.
    """
    check_method(method, percentile)
    emulated = EmulatedModel.open(model)
    wanted = calibrated_sites(emulated.manifest)
    if not wanted:
        raise InputError(
            f"{emulated.name} has no converters with calibrated ranges: rewrite the original model for a device whose "
            'dac or adc has range = "calibrated", or whose write has scaling = "calibrated".'
        )
    ranges = emulated.value("emu.ranges").copy()
    sites = [_Site.of(emulated, index, fitted, ranges) for index, fitted in wanted.items()]
    observer = _Observer(sites)
    folder = Path(model).parent if isinstance(model, str | Path) else None
    used, where = _run(emulated, observer, data, folder, samples, batch_size, threads, ops, progress)
    for site in sites:
        if site.fitted.operand:
            operands = (written.matrix for written in observer.written[site.facts.index])
            largest = site.largest_operand if method == "minmax" else find_range(operands, True, method, percentile)[1]
            site.ranges[..., 3] = largest or 1.0
        if site.fitted.dac:
            _fit_inputs(site, observer, method, percentile)
        if site.fitted.adc:
            _fit_outputs(emulated, site, observer, method, percentile)
    how: dict[str, Any] = {"method": method, "samples": used, "data": where}
    if method == "percentile":
        how["percentile"] = percentile
    return emulated.calibrated(ranges, how)


def _fit_inputs(site: "_Site", observer: "_Observer", method: Method, percentile: float) -> None:
    """Fills in the input ranges: of each row tile, or one for all."""
    largest = site.largest
    if method != "minmax":
        rows = observer.inputs_of(site)
        of_tiles = [rows] if site.fitted.dac == "site" else zip(*map(site.in_tiles, rows), strict=True)
        largest = np.array([find_range(each, True, method, percentile)[1] for each in of_tiles], np.float32)
    if site.fitted.dac == "site":
        largest = largest.max(keepdims=True)
    site.ranges[..., 0] = np.where(largest > 0, largest, 1.0)[:, None, None]


def _fit_outputs(
    emulated: EmulatedModel, site: "_Site", observer: "_Observer", method: Method, percentile: float
) -> None:
    """Fills in the output ranges: of each row tile, slice and device, or one for all of them."""
    fitted = site.ranges if "tile" in site.fitted.adc else site.ranges[:1]
    seen: dict[tuple[int, ...], list[NDArray[np.float32]]] = {}
    for place, y in _outputs(emulated, observer, site, None if method == "minmax" else _MOST_OUTPUTS):
        own = tuple(each if size > 1 else 0 for each, size in zip(place, fitted.shape, strict=False))
        ends = np.array([y.min(initial=0), y.max(initial=0)], np.float32) if method == "minmax" else y
        seen.setdefault(own, []).append(ends)
    symmetric = site.structure.adc_code != "offset_binary"
    for own, outputs in seen.items():
        fitted[own][1:3] = find_range(outputs, symmetric, method, percentile)
    site.ranges[..., 1:3] = fitted[..., 1:3]


@dataclass
class _Site:
    """A site with calibrated ranges, and the largest magnitudes that it was fed and that were written."""

    facts: Site
    node: Any
    fitted: Calibrated
    structure: Structure
    controls: Controls
    shape: tuple[int, int, int]  # of a stored weight: the matrices of its stack, their rows and columns
    ranges: NDArray[np.float32]  # as `Controls.ranges`, filled in
    largest: NDArray[np.float32]  # of each row tile that has ranges of its own, or of all
    largest_operand: float = 0.0

    @classmethod
    def of(cls, emulated: EmulatedModel, index: int, fitted: Calibrated, ranges: NDArray[np.float32]) -> "_Site":
        """The site of that index. Its controls are those of an undisturbed one (strength 0).

        `ranges` are those of the model, which the site fills in.
        """
        facts = emulated.manifest.sites[index]
        node = emulated.nodes()[facts.node]
        structure = parse_structure(node.op_type, {name: each.value for name, each in node.attributes.items()})
        device = emulated.value(emulated.manifest.devices[facts.device].input)
        strength = np.zeros(structure.sites, np.float32)
        controls = check_controls(structure, device, strength, None, None, np.int64(0), np.int64(0))
        shape = (facts.stack, facts.shape[0] or 0, facts.shape[1] or 0)
        own = ranges[index, : math.prod(structure.ranges)].reshape(structure.ranges)
        largest = np.zeros(structure.range_tiles, np.float32)
        return cls(facts, node, fitted, structure, replace(controls, ranges=own), shape, own, largest)

    def in_tiles(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """What the row tiles that have ranges of their own are fed of rows `[..., K]` or `[stack, rows, K]`."""
        if self.structure.range_tiles == 1:
            return [x]
        matrices = x if self.facts.is_stored else [x]
        return [each[..., k] for each in matrices for k in self.structure.row_tiles(x.shape[-1])]

    def saw(self, x: NDArray[np.float32]) -> None:
        """Takes in what is fed."""
        peaks = [np.abs(each).max(initial=0) for each in self.in_tiles(x)]
        self.largest = np.maximum(self.largest, np.array(peaks, np.float32))

    @property
    def places(self) -> dict[str, str]:
        """Names of the values that say where its rows and keys lie: `position`, `keys`, and `ends` of the sequence."""
        named = zip(OPERATORS[self.node.op_type].inputs, self.node.inputs, strict=True)
        given = {each.name: value.name for each, value in named if each.name in ("position", "keys")}
        ends = ends_beside(given["position"])
        return {} if ends is None else {**given, "ends": ends}

    def without_padding(self, x: NDArray[np.float32], values: Mapping[str, Any], samples: int) -> NDArray[np.float32]:
        """An activation whose rows are 0 where they are padding, which no range is to hold."""
        if not self.places:
            return x
        position, ends = (values[self.places[name]] for name in ("position", "ends"))
        controls = replace(self.controls, positions=position, samples=samples)
        where = places(x.shape[:-1], self.structure.sample_axis, controls)
        last = ends[np.zeros_like(where.of_batch) if len(ends) == 1 else where.of_batch, 1]
        return np.where(((where.position >= 0) & (where.position < last))[..., None], x, np.float32(0))

    def keys_of(self, b: NDArray[np.float32], values: Mapping[str, Any], samples: int) -> NDArray[np.float32]:
        """A written operand whose keys are 0 where they are padding."""
        keys = values.get(self.places.get("keys", ""))
        if keys is None or not len(keys):
            return b
        controls, kept = replace(self.controls, keys=keys, samples=samples), np.zeros_like(b)
        where = places(b.shape[:-2], min(self.structure.sample_axis, 0), controls)
        for index in np.ndindex(b.shape[:-2]):
            rows, columns, _ = keys_that_count(b.shape, int(where.of_batch[index]), self.structure, controls)
            kept[index][rows, columns] = b[index][rows, columns]
        return kept

    @property
    def operands(self) -> list[str]:
        """Names of the activations that it multiplies."""
        return [value.name for value in self.node.inputs[: 1 if self.facts.is_stored else 2]]

    @property
    def fed(self) -> tuple[object, ...]:
        """What its arrays are fed: equal for sites that see the same rows of the same activation."""
        return self.operands[0], self.structure.window, self.shape[0]

    def rows_of(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows of an activation that each matrix of its stack is fed, `[stack, rows, K]`."""
        stack, depth, _ = self.shape
        if self.structure.window:
            cut, _ = windows.rows_of(x, self.shape, self.structure)
            return np.moveaxis(cut, 1, 0).reshape(stack, -1, depth)
        if stack == 1:
            return x.reshape(1, -1, depth)
        by_matrix = np.broadcast_to(x, (*np.broadcast_shapes(x.shape[:-2], (stack,)), *x.shape[-2:]))
        return np.moveaxis(by_matrix, -3, 0).reshape(stack, -1, depth)


@dataclass
class _Observer:
    """What was seen of the operands of sites: evenly spaced rows `[stack, rows, K]` of what stored weights are fed, and
    written matrices with some rows of what they meet.
    """

    sites: Sequence[_Site]
    rows: dict[tuple[object, ...], list[NDArray[np.float32]]] = field(default_factory=dict)
    written: dict[int, list["_Written"]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The activations to look at, and where their rows lie."""
        return list(dict.fromkeys(name for site in self.sites for name in (*site.operands, *site.places.values())))

    def see(self, values: Mapping[str, NDArray[Any]], samples: int, batches: int) -> None:
        """Takes in one of so many batches."""
        stored: dict[tuple[object, ...], list[_Site]] = {}
        for site in self.sites:
            if site.facts.is_stored:
                stored.setdefault(site.fed, []).append(site)
        width = sum(sites[0].shape[0] * sites[0].shape[1] for sites in stored.values())
        count = max(_FEWEST_ROWS, min(_MOST_ROWS, _MOST_NUMBERS // max(1, width)))
        for fed, sites in stored.items():
            array = sites[0].rows_of(sites[0].without_padding(values[sites[0].operands[0]], values, samples))
            self.rows.setdefault(fed, []).append(array[:, _evenly(array.shape[1], -(-count // batches))])
            for site in sites:
                site.saw(array)
        for site in self.sites:
            if not site.facts.is_stored:
                a, b = (values[name] for name in site.operands)
                a, b = site.without_padding(a, values, samples), site.keys_of(b, values, samples)
                of_keys = row_scales(b, site.structure, site.controls)
                a = a if of_keys is None else a * of_keys[..., None, :]  # as they are fed
                site.saw(a)
                site.largest_operand = max(site.largest_operand, float(np.abs(b).max(initial=0)))
                self.written.setdefault(site.facts.index, []).extend(
                    _written(site, a, b, samples, -(-_MATRICES // batches))
                )

    def inputs_of(self, site: _Site) -> list[NDArray[np.float32]]:
        """The rows that were kept of what a site is fed."""
        return self.rows[site.fed] if site.facts.is_stored else [each.rows for each in self.written[site.facts.index]]


@dataclass(frozen=True)
class _Written:
    """A matrix of a written operand, what all matrices of its sample are scaled by, and some rows that it meets."""

    matrix: NDArray[np.float32]
    top: NDArray[np.float32] | None
    rows: NDArray[np.float32]


def _written(
    site: _Site, a: NDArray[np.float32], b: NDArray[np.float32], samples: int, count: int
) -> Iterator[_Written]:
    """Some matrices of a written operand."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    of_a, of_b = (np.broadcast_to(each, (*batch, *each.shape[-2:])) for each in (a, b))
    places = list(np.ndindex(batch))
    for place in (places[i] for i in _evenly(len(places), count)):
        matrix, of_sample = of_b[place], b
        if site.structure.sample_axis == 0 and b.ndim == len(batch) + 2 > 2 and b.shape[0] == batch[0]:
            share = len(b) // samples if samples and len(b) % samples == 0 else 1
            first = place[0] // share * share
            of_sample = b[first : first + share]
        rows = of_a[place][_evenly(a.shape[-2], _ROWS_OF_MATRIX)]
        yield _Written(matrix.copy(), scale_of_sample(of_sample, site.structure, site.controls), rows)


def _outputs(
    emulated: EmulatedModel, observer: _Observer, site: _Site, most: int | None
) -> Iterator[tuple[tuple[int, int, int], NDArray[np.float32]]]:
    """What the ADCs of a site convert, by row tile, slice and device; about `most` numbers of evenly spaced rows."""
    if site.facts.is_stored:
        fed = np.concatenate(observer.inputs_of(site), axis=1)
        matrices = _weight(emulated, site).reshape(site.shape)
        pairs = [(x, stored_contents(w, site.structure, site.controls)) for x, w in zip(fed, matrices, strict=True)]
    else:
        seen = observer.written[site.facts.index]
        pairs = [(each.rows, written_contents(each.matrix, each.top, site.structure, site.controls)) for each in seen]
    for matrix, (x, contents) in enumerate(pairs):
        if most is not None:
            tiles, slices = len(site.structure.row_tiles(x.shape[1])), site.controls.input_readings(site.structure)
            per_row = contents[0].shape[1] * len(contents) * tiles * slices
            x = x[_evenly(len(x), max(1, most // len(pairs) // max(1, per_row)))]
        of_stack = matrix if site.facts.is_stored else 0
        yield from tile_outputs(x, contents, site.structure, site.controls, of_stack)


def _weight(emulated: EmulatedModel, site: _Site) -> NDArray[np.float32]:
    stored = emulated.stored(site.node)
    if len(stored) == 1:
        return np.asarray(stored[0], np.float32)
    codes, scale, zero_point = stored
    return numbers_of(codes, scale, zero_point, site.structure.block_rows)


def _evenly(count: int, wanted: int) -> NDArray[np.int64]:
    """Up to `wanted` indices below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def _run(
    emulated: EmulatedModel,
    observer: _Observer,
    data: str | Path | Mapping[str, Any] | DataSource | DataSet,
    model_folder: Path | None,
    samples: int | None,
    batch_size: int | None,
    threads: int | None,
    ops: Literal["native", "python"],
    progress: Callable[[int, int], None] | None,
) -> tuple[int, str]:
    """Shows the operands of all sites on the clean model; gives the number of samples and the name of the data."""
    from emu.runtime import session as open_session

    names = observer.names
    with tempfile.TemporaryDirectory() as folder:
        # From a file, because a model of more than 2 GB cannot be handed over in memory.
        path = Path(folder) / "observed.onnx"
        emulated.observed(names).save(path)
        session = open_session(path, ops=ops, threads=threads)
        inputs = model_inputs(session)
        dataset, _ = load(data, session, inputs, Arrays(), samples, model_folder)  # calibration needs no labels
        fixed = fixed_batch(inputs)
        if batch_size is not None and (batch_size < 1 or fixed not in (None, batch_size)):
            raise InputError(f"The batch size is {batch_size}: give {fixed or 'a whole number from 1'}.")
        size = fixed or batch_size or DEFAULT_BATCH
        batches = -(-len(dataset.labels) // size)
        count, ranges_of_site = len(emulated.manifest.sites), emulated.value("emu.ranges").shape[1] // NUMBERS_OF_RANGE
        # Ranges must be numbers, although nothing is converted at strength 0.
        clean = {
            "emu.strength": np.zeros(count, np.float32),
            "emu.ranges": np.tile(np.array([1, -1, 1, 1], np.float32), (count, ranges_of_site)),
        }
        outputs = {output.name for output in session.get_outputs()}
        fetched = [name for name in names if name in outputs]
        for done, (start, feeds) in enumerate(dataset.batches(size, pad=fixed is not None), 1):
            controls = {**clean, "emu.sample": np.asarray(start, np.int64)}
            # No names at all would mean every output.
            results = session.run(fetched, {**feeds, **controls}) if fetched else []
            values = dict(zip(fetched, results, strict=True))
            values |= {name: feeds[name] for name in names if name in feeds}
            values |= {name: emulated.value(name) for name in names if name not in values}
            for site in observer.sites:
                if not all(np.isfinite(values[name]).all() for name in site.operands):
                    raise InputError(
                        f"{dataset.where}: the inputs of node '{site.facts.node}' are not finite on these data."
                    )
            observer.see(values, size if fixed else len(next(iter(feeds.values()))), batches)
            if progress is not None:
                progress(done, batches)
    return len(dataset.labels), dataset.where
