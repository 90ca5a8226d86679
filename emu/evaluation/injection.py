"""Campaigns of fault injection: a few chosen faults at a time, in one session, and what each costs."""

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from emu.contract.selection import select
from emu.contract.site import Site, one_of_each_array
from emu.contract.structure import Structure
from emu.errors import InputError
from emu.evaluation.bench import Bench, Score, Trial
from emu.rewriter import arrays_with_faults, structure_of

Pattern = Literal["bit", "burst", "word", "row", "column", "cell", "dead_row", "dead_column"]
_OF_BITS = ("bit", "burst", "word", "row", "column")
_FIRST_STUCK = 64


@dataclass(frozen=True)
class Injection:
    """What some faults did.

    Attributes:
        faults: the list: `(array, number)`, as `docs/operators.md` has it.
        site: where the first pattern struck: the first site that its array serves.
        matrix: which matrix of a stack.
        row: row of the weight.
        column: column of the weight.
        what: what struck there, such as `bit 30` or `dead row`.
        score: what the trial measured.

    """

    faults: tuple[tuple[int, int], ...]
    site: Site
    matrix: int
    row: int
    column: int
    what: str
    score: Score


@dataclass(frozen=True)
class Campaign:
    """Injections of one model.

    Attributes:
        clean: the score without faults, everything else of the device on.
        injections: in order.
        primary: the metric that matters most.
        seconds: what the injections took.

    """

    clean: Score
    injections: tuple[Injection, ...]
    primary: str
    seconds: float

    def loss(self, injection: Injection) -> float:
        """By how much the primary metric fell; a metric that is not a number has fallen all the way."""
        after = injection.score.metrics[self.primary]
        return self.clean.metrics[self.primary] - (0.0 if math.isnan(after) else after)

    def by_component(self) -> dict[str, dict[str, float]]:
        """By component, and for `all`: injections, the share that changed the metric, the mean and the worst loss."""
        losses: dict[str, list[float]] = {}
        for each in self.injections:
            losses.setdefault(each.site.component, []).append(self.loss(each))
        losses["all"] = [loss for group in losses.values() for loss in group]
        return {
            name: {
                "injections": len(group),
                "changed": float(np.mean(np.array(group) != 0)),
                "mean_loss": float(np.mean(group)),
                "worst_loss": max(group),
            }
            for name, group in losses.items()
        }

    def as_csv(self) -> str:
        """One line for each injection: where it struck first, what, all faults, and the metrics."""
        text = io.StringIO()
        place = ["layer", "component", "node", "array", "matrix", "row", "column", "what", "faults", "lost"]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*place, *self.clean.metrics])
        for each in self.injections:
            site, faults = each.site, " ".join(f"{array}:{number}" for array, number in each.faults)
            where = [site.layer, site.component, site.node, site.array, each.matrix, each.row, each.column, each.what]
            writer.writerow([*where, faults, self.loss(each), *each.score.metrics.values()])
        return text.getvalue()


def inject(
    bench: Bench,
    count: int = 1000,
    *,
    pattern: Pattern = "bit",
    size: int = 1,
    burst: int = 2,
    only: str | None = None,
    exclude: str | None = None,
    first_seed: int = 0,
    chip: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Campaign:
    """Injects faults at random places, `size` patterns at a time, each time into an intact chip.

    Random faults of the device are off meanwhile. Every bit (cell) of all chosen arrays is equally likely.

    Args:
        bench: a model whose device has bit flips (`bit`, `burst`, `word`, `row`, `column`) or stuck cells.
        count: number of injections.
        pattern: `bit`: one bit flips; `burst`: that many neighbouring bits of one number; `word`: all its bits; `row`,
            `column`: the same bit of all numbers in one row or column of a tile; `cell`: one cell is stuck, at g_min or
            g_max; `dead_row`: all cells of a row of a tile are stuck at g_min; `dead_column`: likewise those of one
            column of devices, one of a pair and one slice.
        size: patterns at once, at different places.
        burst: bits of a burst.
        only: arrays of these sites only.
        exclude: not those of these sites.
        first_seed: injection i is drawn from `first_seed` and i alone.
        chip: `seed` of the trials.
        progress: called with the injections done and all of them.

    Raises:
        InputError: the model has no such faults, or fewer places than `size`.

    """
    if bench.manifest is None:
        raise InputError(f"{bench.name} is not rewritten and has no arrays: give a device.")
    if count < 1 or size < 1 or burst < 1 or first_seed < 0:
        raise InputError("count, size and burst of injections must be 1 or more, and the first seed 0 or more.")
    if pattern not in get_args(Pattern):
        raise InputError(f"pattern is '{pattern}': expected {', '.join(get_args(Pattern))}.")
    draw = _Places(bench, pattern, burst, only, exclude)
    off = {name: 0.0 for name in bench.settings if name.partition("faults.")[2] in ("ber", "stuck_low", "stuck_high")}
    clean = bench.run(Trial(seed=chip, set=off, faults=()))
    start = time.monotonic()
    injections = []
    for index in range(count):
        places = draw.places(np.random.default_rng((first_seed, index)), size)
        faults = tuple(fault for place in places for fault in place.faults)
        first = places[0]
        score = bench.run(Trial(seed=chip, set=off, faults=faults))
        injections.append(Injection(faults, first.site, first.matrix, first.row, first.column, first.what, score))
        if progress is not None:
            progress(index + 1, count)
    return Campaign(clean, tuple(injections), bench.task.primary, time.monotonic() - start)


@dataclass(frozen=True)
class _Place:
    site: Site
    matrix: int
    row: int
    column: int
    what: str
    faults: tuple[tuple[int, int], ...]


class _Places:
    """Draws places among all arrays."""

    def __init__(self, bench: Bench, pattern: Pattern, burst: int, only: str | None, exclude: str | None) -> None:
        manifest = bench.manifest
        assert manifest is not None, "checked before"
        can = arrays_with_faults(manifest)
        chosen = {site.array for site in select(manifest.sites, only, exclude)}
        self._pattern, self._burst = pattern, burst
        self._sites = [site for site in one_of_each_array(can.values()) if site.array in chosen]
        self._structures = [structure_of(site, manifest) for site in self._sites]
        starts = [len(self._starts(structure)) for structure in self._structures]
        weights = [_elements(site) * count for site, count in zip(self._sites, starts, strict=True)]
        self._ends = np.cumsum(weights)
        if not sum(weights):
            kind = "bit flips" if pattern in _OF_BITS else "stuck cells"
            raise InputError(
                f"{bench.name} has no array with {kind} for the pattern '{pattern}': rewrite it for a device that has "
                "them, and choose among its sites."
            )

    def places(self, random: np.random.Generator, size: int) -> list[_Place]:
        """That many different places."""
        total = int(self._ends[-1])
        if size > total:
            raise InputError(f"There are {total} places for the pattern '{self._pattern}', fewer than {size}.")
        drawn: dict[int, None] = {}
        while len(drawn) < size:
            drawn[int(random.integers(total))] = None
        return [self._place(number) for number in drawn]

    def _place(self, number: int) -> _Place:
        index = int(np.searchsorted(self._ends, number, side="right"))
        site, structure = self._sites[index], self._structures[index]
        starts = self._starts(structure)
        element, which = divmod(number - (int(self._ends[index - 1]) if index else 0), len(starts))
        rows, columns = (int(each or 0) for each in site.shape)
        matrix, row, column = element // (rows * columns), element // columns % rows, element % columns
        what, name = self._struck(structure, starts[which])
        line = range(element, element + 1)
        if self._pattern.endswith("row"):
            tile = _tile_of(structure.column_tiles(columns), column)
            line = range(element - column + tile.start, element - column + tile.stop)
        elif self._pattern.endswith("column"):
            tile = _tile_of(structure.row_tiles(rows), row)
            top = element - row * columns
            line = range(top + tile.start * columns, top + tile.stop * columns, columns)
        faults = tuple((site.array, each * 256 + one) for each in line for one in what)
        return _Place(site, matrix, row, column, name, faults)

    def _starts(self, structure: Structure) -> list[int]:
        """What of an element a pattern can begin with: a bit, or a device and where it is stuck."""
        if self._pattern in _OF_BITS:
            if structure.fault_storage == "none":
                return []
            mask, bits = structure.usable_fault_mask, structure.fault_word_bits
            starts = [bit for bit in range(bits) if mask >> bit & 1]
            if self._pattern == "burst":
                return [bit for bit in starts if bit + self._burst <= bits]
            return starts[:1] if self._pattern == "word" else starts
        if structure.encoding == "weight":
            return []
        devices = range(structure.weight_slices * (2 if structure.has_pairs else 1))
        each = 4 if not structure.has_pairs else 2
        if self._pattern == "cell":
            return [_FIRST_STUCK + each * device + high for device in devices for high in (0, 1)]
        return [_FIRST_STUCK + each * device for device in devices][: 1 if self._pattern == "dead_row" else None]

    def _struck(self, structure: Structure, start: int) -> tuple[Sequence[int], str]:
        """What of an element is struck, and how to call it."""
        if self._pattern == "burst":
            return range(start, start + self._burst), f"bits {start} to {start + self._burst - 1}"
        if self._pattern == "word":
            return range(structure.fault_word_bits), "word"
        if start < _FIRST_STUCK:
            return (start,), {"bit": "bit", "row": "row, bit", "column": "column, bit"}[self._pattern] + f" {start}"
        if self._pattern == "dead_row":
            per_slice = (0, 2) if structure.has_pairs else (0,)
            cells = [
                _FIRST_STUCK + 4 * each + device for each in range(structure.weight_slices) for device in per_slice
            ]
            return cells, "dead row"
        device = f"slice {(start - _FIRST_STUCK) // 4} " if structure.weight_slices > 1 else ""
        device += ("g- " if start & 2 else "g+ ") if structure.has_pairs else ""
        end = "dead column" if self._pattern == "dead_column" else f"stuck at g_{'max' if start & 1 else 'min'}"
        return (start,), device + end


def _elements(site: Site) -> int:
    return site.stack * math.prod(int(each or 0) for each in site.shape)


def _tile_of(tiles: Sequence[slice], index: int) -> slice:
    return next(tile for tile in tiles if tile.start <= index < tile.stop)
