"""What a sweep runs: an experiment, what varies in it, and how many chips; from flags, a TOML file or Python."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field

from emu.device import load_profile
from emu.device.loading import all_settings
from emu.errors import InputError
from emu.evaluation import Bench, Trial
from emu.experiment import Experiment
from emu.sweep.axes import (
    CONTROL_AXES,
    axis_name,
    axis_values,
    structure_values,
    values_in_order,
)
from emu.sweep.setup import STRUCTURE_AXES

FEWEST = 3  # chips before a half-width counts

Value = str | int | float | bool
Given = Value | list[Value]


class Plan(Experiment, frozen=True, extra="forbid"):
    """A sweep: the product of all varied axes, and some chips for each point of it.

    Args:
        vary: axis to values, see `emu.sweep.axes.values_in_order`: texts such as `0.05,0.1`, `0.1:0.5:0.1`,
            `1e-7:1e-3:5log`, `0-9`, `all`, or lists. Axes are controls, numbers of the device, and what is rewritten
            and calibrated once for each value: `model`, `data`, `device`, and settings that shape the graph, such as
            `mapping.tile_rows`. A mapping of axes, under any name, is of axes that go together: the first values of
            all, then the second ones, and so on.
        seeds: number of chips of each point, seeds 0, 1, ...
        until: `ci=0.5%` to run chips until the 95 % interval of the mean is at most so much wide to each side, at least
            3 and at most `most`, instead of `seeds`.
        most: see `until`.
        cost: measure energy, latency and area as well, as `emu.cost` counts them.
        costs_of: a device whose constants of cost stand in where a device has none; it implies `cost`.

    The other settings are those of `emu.Experiment`.

    Raises:
        InputError: a setting of another kind, or one that does not exist.
    """

    what: ClassVar[str] = "plan"

    vary: dict[str, Given | dict[str, Given]] = Field(default_factory=dict)
    seeds: int | None = Field(default=None, ge=1, le=2**32)
    until: str | None = None
    most: int | None = Field(default=None, ge=FEWEST, le=2**32)
    cost: bool = False
    costs_of: str | None = None

    def __init__(self, **settings: Any) -> None:
        vary = settings.get("vary")
        for name in ("model", "data"):  # what varies need not be given once more
            if isinstance(vary, dict) and settings.get(name) is None:
                parts = [each if isinstance(each, dict) else {key: each} for key, each in vary.items()]
                given = next((each[name] for each in parts if name in each), None)
                settings |= {name: structure_values(name, given)[0]} if given else {}
        super().__init__(**settings)
        half_width(self.until)
        if self.until is None and self.most is not None:
            raise InputError("'most' limits 'until': give both, or 'seeds' for a number of chips.")
        for name, other in (("seeds", "until"), ("seed", "seeds"), ("seed", "until")):
            if (name in self.vary or (name != "seed" and getattr(self, name))) and getattr(self, other) is not None:
                raise InputError(f"'{name}' and '{other}' both say how many chips to run: give one of them.")
        names = [name for group in self._groups for name in group]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"'{name}' varies twice: once by itself or with others.")
        for group in self._groups:
            for name in ("seed", "read_seed"):
                if name in group and len(group) > 1:
                    raise InputError(f"'{name}' varies with every point: give it an axis of its own.")

    def structures(self) -> list["Structure"]:
        """What is rewritten, each once, with the points that run on it.

        Raises:
            InputError: axes that go together of different lengths, or a device or setting that cannot be.
        """
        shaping = self._shaping()
        columns = []
        for group in (each for each in self._groups if shaping & each.keys()):
            chosen = {name: structure_values(name, given) for name, given in group.items() if name in shaping}
            columns.append(_together(chosen))
        found: dict[str, tuple[dict[str, Any], list[tuple[int, ...]]]] = {}
        for places in itertools.product(*(range(len(each)) for each in columns)):
            parts = [each[place] for each, place in zip(columns, places, strict=True)]
            values = {name: value for part in parts for name, value in part.items()}
            found.setdefault(json.dumps(values, default=str), (values, []))[1].append(places)
        structures = [
            Structure(self, self._with(values), values, tuple(places), frozenset(shaping))
            for values, places in found.values()
        ]
        for each in structures if shaping else ():
            each.experiment.profiles()  # what is wrong in the last one is said before the first one runs
        return structures

    def bench(self) -> Bench:
        """Makes the bench of a plan that rewrites one model for one device.

        Raises:
            InputError: as in `Bench`, or a plain model without a device.
        """
        return self.structures()[0].bench()

    def points(self, bench: Bench) -> "Points":
        """What to run on the bench of a plan that rewrites one model for one device; see `Structure.points`."""
        return self.structures()[0].points(bench)

    @property
    def chips(self) -> int:
        """The largest number of chips of a point."""
        if self.until is not None:
            return self.most or 100
        return self.seeds or 10

    @property
    def _groups(self) -> list[dict[str, Given]]:
        """The axes, those that go together in one mapping."""
        return [given if isinstance(given, dict) else {name: given} for name, given in self.vary.items()]

    def _shaping(self) -> set[str]:
        """The axes whose values are rewritten: settings that are a number of every device vary within one session."""
        axes = {name: given for group in self._groups for name, given in group.items()}
        shaping = axes.keys() & set(STRUCTURE_AXES)
        settings = [name for name in axes if name not in (*STRUCTURE_AXES, *CONTROL_AXES)]
        if not settings or (self.device is None and "device" not in axes):
            return shaping
        known = set(all_settings())
        devices = structure_values("device", axes["device"]) if "device" in axes else [self.device]
        numbers = []
        for device in devices:
            profiles = self._with({"device": device}).profiles()
            numbers.append({each.name: {**each.entries(), **each.choices()} for each in profiles})
        for name in settings:
            device, _, setting = name.rpartition(":")
            inside = [[each for key, each in all_of.items() if device in ("", key)] for all_of in numbers]
            is_number = all(any(setting in each for each in having) for having in inside if having)
            if setting in known and not is_number:
                shaping.add(name)
        return shaping

    def _with(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment of one choice of what is rewritten."""
        chosen = {name: str(value) for name, value in values.items() if name in STRUCTURE_AXES}
        settings = {**self.set, **{name: value for name, value in values.items() if name not in STRUCTURE_AXES}}
        if "device" in chosen and any(":" in name for name in settings):
            # Settings of a device that is used elsewhere in the plan have no effect here.
            used = {_name_of(chosen["device"]), *(_name_of(rule.rpartition(":")[2]) for rule in self.map)}
            settings = {name: each for name, each in settings.items() if name.rpartition(":")[0] in ("", *used)}
        plain = {name: getattr(self, name) for name in Experiment.model_fields}
        return Experiment(**{**plain, **chosen, "set": settings})


@dataclass(frozen=True)
class Structure:
    """What is rewritten and calibrated once, and runs in one session: an experiment, and the points that run on it.

    Args:
        plan: what it is of.
        experiment: the experiment with the values that were chosen.
        chosen: the values of the axes that shape it.
        places: for each axis of the plan that shapes it, or goes together with one that does, which of its values.
        shaping: the axes that shape it.
    """

    plan: Plan
    experiment: Experiment
    chosen: Mapping[str, Any]
    places: tuple[tuple[int, ...], ...]
    shaping: frozenset[str]

    @property
    def name(self) -> str:
        """Its values in words."""
        return ", ".join(f"{name} {value}" for name, value in self.chosen.items())

    def bench(self, **loaded: Any) -> Bench:
        """Makes the bench; `loaded` may have the `task`, and the `data` for it.

        Raises:
            InputError: as in `Bench`, or a plain model without a device.
        """
        bench = self.experiment.open(**loaded)
        if bench.manifest is None:
            raise InputError(f"{self.experiment.model} is not rewritten: give a device with --device.")
        return bench

    def points(self, bench: Bench) -> "Points":
        """What to run on the bench.

        Raises:
            InputError: an axis as in `values_in_order`, axes that go together of different lengths, or a product of
                axes of which every point is empty, where nothing that is rewritten varies.
        """
        tied: list[list[dict[str, Any]]] = []  # the controls that go together with what shapes the structure
        axes: list[list[dict[str, Any]]] = []
        seeds: Sequence[int] = range(self.plan.chips)
        reads: Sequence[int] = (0,)
        for group in self.plan._groups:
            names = {name: axis_name(bench, name, given) for name, given in group.items() if name not in self.shaping}
            if len(names) < len(group):
                lengths = {each: len(structure_values(each, group[each])) for each in group.keys() & self.shaping}
                values = {names[name]: values_in_order(bench, names[name], group[name]) for name in names}
                of_all = _together({**{each: [None] * count for each, count in lengths.items()}, **values})
                tied.append([{name: each[name] for name in values} for each in of_all])
            elif len(group) == 1:
                given, name = next(iter(group.values())), next(iter(names.values()))
                values_of_axis = axis_values(bench, name, given)
                if name == "seed":
                    seeds = values_of_axis
                elif name == "read_seed":
                    reads = values_of_axis
                else:
                    axes.append([{name: value} for value in values_of_axis])
            else:
                axes.append(
                    _together({names[name]: values_in_order(bench, names[name], group[name]) for name in names})
                )
        points, empty = [], 0
        for places, values in itertools.product(self.places, itertools.product(*axes)):
            chosen = [each[place] for each, place in zip(tied, places, strict=True)]
            point = _controls({name: value for part in (*chosen, *values) for name, value in part.items()})
            if _is_empty(point, bench):
                empty += 1
            else:
                points.append(point)
        if not points and not self.chosen:  # another device of the plan may act there
            names_of_all = [name for each in axes for name in each[0]]
            raise InputError(
                "No point of the sweep disturbs anything: the model has no site for any of "
                f"{', '.join(names_of_all) or 'them'} together, or its device leaves them exact."
            )
        return Points(tuple(points), tuple(seeds), tuple(reads), empty)


@dataclass(frozen=True)
class Points:
    """The points of a sweep, as trials of seed 0; the seeds of the chips of each, and the repetitions on each chip.

    `left_out` counts the points at which no site would be disturbed, such as a layer without that component, or one
    whose products the device leaves exact.
    """

    points: tuple[Trial, ...]
    seeds: tuple[int, ...]
    reads: tuple[int, ...]
    left_out: int

    def __iter__(self) -> Iterator[list[list[Trial]]]:
        """For each point and chip the trials."""
        for point in self.points:
            yield [[replace(point, seed=seed, read_seed=read) for read in self.reads] for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.points)


def half_width(until: str | None) -> float | None:
    """The half-width in `ci=0.5%` or `ci=0.005`.

    Raises:
        InputError: another text.
    """
    if until is None:
        return None
    name, _, text = until.replace(" ", "").partition("=")
    try:
        width = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        width = 0.0
    if name != "ci" or not 0 < width < float("inf"):
        raise InputError(f"until is '{until}': write ci=0.5% for a 95 % interval of the mean of +- 0.5 %.")
    return width


def read_axes(texts: Sequence[str]) -> dict[str, Any]:
    """The axes in texts such as `program.sigma=0.1,0.2`; one that is repeated has the values of both.

    Axes with `;` between them go together: `program.modifier=0.025,0.05; read.output_noise=0.02,0.04`. Behind `only=`
    a `;` is between selections.

    Raises:
        InputError: a text that is no axis.
    """
    axes: dict[str, Any] = {}
    for text in texts:
        group: dict[str, Any] = {}
        for part in _parts(text):
            name, equals, values = (each.strip() for each in part.partition("="))
            if not name or (equals and not values):
                raise InputError(f"'{part}' is no axis: write it as name=values, as in program.sigma=0.05,0.1.")
            if not equals and name not in ("layer", "component", "head"):
                raise InputError(f"The axis '{name}' has no values: write {name}=VALUES, such as {name}=1,2.")
            group[name] = values if equals else "all"
        if len(group) > 1:
            axes["; ".join(group)] = group
            continue
        for name, given in group.items():
            before = axes.get(name, [])
            axes[name] = [*([before] if isinstance(before, str) else before), given] if name in axes else given
    return axes


def _parts(text: str) -> list[str]:
    """The axes of a text that go together."""
    parts: list[str] = []
    for part in text.split(";"):
        if parts and parts[-1].partition("=")[0].strip() == "only":
            parts[-1] += f";{part}"
        else:
            parts.append(part)
    return parts


def _together(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The first values of all axes, the second ones, and so on.

    Raises:
        InputError: axes of different lengths.
    """
    counts = {name: len(each) for name, each in values.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise InputError(f"Axes that go together need one value each for every point: {told}.")
    return [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)]


def _controls(values: Mapping[str, Any]) -> Trial:
    """A trial of seed 0 at the values of axes."""
    rest = dict(values)
    terms = [f"{name}={rest.pop(name)}" for name in ("layer", "component") if name in rest]
    terms += [rest.pop("only")] if "only" in rest else []
    head, strength = rest.pop("head", -1), rest.pop("strength", 1.0)
    return Trial(head=head, strength=strength, only=" ".join(terms) or None, set=rest)


def _is_empty(point: Trial, bench: Bench) -> bool:
    """Whether a place is chosen that has no site, none with heads for a head, or that the device leaves exact."""
    if point.only is None and point.head < 0:
        return False
    try:
        return not bench.disturbs(Trial(head=point.head, only=point.only))
    except InputError:  # the terms match sites one by one, and none together
        return True


def _name_of(device: str) -> str:
    return load_profile(device).name
