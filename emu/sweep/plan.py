"""What a sweep runs: the settings of a study, from flags, a TOML file or Python."""

import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from emu.device.measured import read_regular
from emu.errors import InputError
from emu.evaluation import Bench, DataSource, Task, Trial
from emu.files import whole_file
from emu.sweep.axes import axis_name, axis_values, close_match

FEWEST = 3  # chips before a half-width counts

Value = str | int | float


class Plan(BaseModel, frozen=True, extra="forbid"):
    """A sweep: the product of all varied axes, and so many chips for each point of it.

    Args:
        model: path of a plain or rewritten model.
        data: path of an .npz file, or what else `emu.evaluation.DataSource` takes.
        data_options: options of `DataSource`, which prepare images and texts.
        task: what is measured, by its name; None to guess it from the model's outputs and the data.
        device: a preset's name or a .toml file, for a plain model.
        set: settings of the device that stay the same.
        map: other devices for some sites, `SELECTION:DEVICE`.
        only: sites to emulate, when rewriting a plain model.
        exclude: sites to leave digital, when rewriting.
        stored: tensors that feed no product to put into arrays too, when rewriting.
        share: which sites share one physical array, when rewriting.
        vary: axis to values, see `emu.sweep.axes.axis_values`: texts such as `0.05,0.1`, `0.1:0.5:0.1`,
            `1e-7:1e-3:5log`, `0-9`, `all`, or lists.
        seeds: number of chips of each point, seeds 0, 1, ...
        until: `ci=0.5%` to run chips until the 95 % interval of the mean is at most so much wide to each side, at least
            3 and at most `most`, instead of `seeds`.
        most: see `until`.
        samples: use only the first so many samples.
        batch_size: samples at once.
        threads: threads of the session; None for onnxruntime's default.
        ops: `native` or `python`.

    Raises:
        InputError: a setting of another kind, or one that does not exist.
    """

    model: str
    data: str
    data_options: dict[str, Any] = Field(default_factory=dict)
    task: str | None = None
    device: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    map: tuple[str, ...] = ()
    only: str | None = None
    exclude: str | None = None
    stored: str | None = None
    share: Literal["by-content", "by-name", "never"] | None = None
    vary: dict[str, Value | list[Value]] = Field(default_factory=dict)
    seeds: int | None = Field(default=None, ge=1, le=2**32)
    until: str | None = None
    most: int | None = Field(default=None, ge=FEWEST, le=2**32)
    samples: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    ops: Literal["native", "python"] = "native"

    def __init__(self, **settings: Any) -> None:
        for name in ("model", "data", "device"):
            if isinstance(settings.get(name), Path):
                settings[name] = str(settings[name])
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise InputError(f"The plan cannot be used: {_sentence(error)}.") from None
        half_width(self.until)
        if self.until is None and self.most is not None:
            raise InputError("'most' limits 'until': give both, or 'seeds' for a number of chips.")
        for name, other in (("seeds", "until"), ("seed", "seeds"), ("seed", "until")):
            if (name in self.vary or (name != "seed" and getattr(self, name))) and getattr(self, other) is not None:
                raise InputError(f"'{name}' and '{other}' both say how many chips to run: give one of them.")

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """Reads a plan from a TOML file; its paths count from the current folder.

        Raises:
            InputError: the file is missing or not TOML, or a setting is wrong.
        """
        return cls(**read_settings(path))

    def write(self, path: str | Path) -> None:
        """Writes the plan as a TOML file that `read` reads.

        Raises:
            InputError: the folder does not exist.
        """
        path = Path(path)
        plain = self.model_dump(mode="json", exclude_defaults=True)
        tables = {name: plain.pop(name) for name in ("data_options", "set", "vary") if name in plain}
        lines = [f"{name} = {_toml(value)}" for name, value in plain.items()]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in table.items())]
        with whole_file(path) as part:
            part.write_text("\n".join(lines) + "\n", "utf-8")

    def bench(self, task: Task | None = None) -> Bench:
        """Makes the bench.

        Raises:
            InputError: as in `Bench`, or a plain model without a device.
        """
        bench = Bench(
            self.model,
            self._source(),
            device=self.device,
            set=self.set or None,
            map=self.map,
            only=self.only,
            exclude=self.exclude,
            stored=self.stored,
            share=self.share,
            task=task or self.task,
            batch_size=self.batch_size,
            threads=self.threads,
            samples=self.samples,
            ops=self.ops,
        )
        if bench.manifest is None:
            raise InputError(f"{self.model} is not rewritten: give a device with --device.")
        return bench

    def _source(self) -> DataSource:
        known = [field.name for field in fields(DataSource) if field.name != "path"]
        for name in self.data_options:
            if name not in known:
                raise InputError(
                    f"The plan cannot be used: there is no option '{name}' of data{close_match(name, known)}: options "
                    f"are {', '.join(known)}."
                )
        return DataSource(self.data, **self.data_options)

    def points(self, bench: Bench) -> "Points":
        """What to run on the bench.

        Raises:
            InputError: an axis as in `axis_values`, or a product of axes of which every point is empty.
        """
        names = {name: axis_name(bench, name, given) for name, given in self.vary.items()}
        axes = {names[name]: axis_values(bench, names[name], given) for name, given in self.vary.items()}
        reads = axes.pop("read_seed", [0])
        seeds = axes.pop("seed", None) or range(self.chips)
        points, empty = [], 0
        for values in itertools.product(*axes.values()):
            point = _Point(**_controls(dict(zip(axes, values, strict=True))))
            if point.is_empty(bench):
                empty += 1
            else:
                points.append(point)
        if not points:
            raise InputError(
                f"No point of the sweep disturbs anything: the model has no site for any of {', '.join(axes)} together."
            )
        return Points(tuple(points), tuple(seeds), tuple(reads), empty)

    @property
    def chips(self) -> int:
        """The largest number of chips of a point."""
        if self.until is not None:
            return self.most or 100
        return self.seeds or 10


@dataclass(frozen=True)
class _Point:
    """Controls of a trial, but for the seeds."""

    head: int
    strength: float
    only: str | None
    set: Mapping[str, float]

    def is_empty(self, bench: Bench) -> bool:
        """Whether a place is chosen that has no site, none with heads for a head, or that the device leaves exact."""
        if self.only is None and self.head < 0:
            return False
        try:
            return not bench.disturbs(Trial(head=self.head, only=self.only))
        except InputError:  # the terms match sites one by one, and none together
            return True


@dataclass(frozen=True)
class Points:
    """The points of a sweep, the seeds of the chips of each, and the repetitions on each chip.

    `left_out` counts the points at which no site would be disturbed, such as a layer without that component, or one
    whose products the device leaves exact.
    """

    points: tuple[_Point, ...]
    seeds: tuple[int, ...]
    reads: tuple[int, ...]
    left_out: int

    def __iter__(self) -> Iterator[list[list[Trial]]]:
        """For each point and chip the trials."""
        for point in self.points:
            yield [
                [
                    Trial(
                        seed=seed,
                        read_seed=read,
                        head=point.head,
                        strength=point.strength,
                        only=point.only,
                        set=point.set,
                    )
                    for read in self.reads
                ]
                for seed in self.seeds
            ]

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


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a plan file, not checked yet.

    Raises:
        InputError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(read_regular(Path(path), f"The plan {path}"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"The plan {path} is not valid TOML: {error}.") from None


def _controls(values: Mapping[str, Any]) -> dict[str, Any]:
    """The controls of a point from the values of its axes."""
    rest = dict(values)
    terms = [f"{name}={rest.pop(name)}" for name in ("layer", "component") if name in rest]
    terms += [rest.pop("only")] if "only" in rest else []
    head, strength = rest.pop("head", -1), rest.pop("strength", 1.0)
    return {"head": head, "strength": strength, "only": " ".join(terms) or None, "set": rest}


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:2] if isinstance(part, str) or first["loc"][0] == "map")
    if first["type"] == "extra_forbidden":
        return f"it has no setting '{name}'{close_match(name, Plan.model_fields)}"
    if first["type"] == "missing":
        return f"it does not name the {name}"
    said = first["msg"][0].lower() + first["msg"][1:]
    return f"{name} is {json.dumps(first['input'], default=str)}, and {said.replace('input should', 'it should')}"


def _toml(value: Any) -> str:
    """A value in TOML, whose texts, numbers and lists are written as in JSON."""
    return json.dumps(value, ensure_ascii=False)
