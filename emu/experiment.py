"""One experiment: which model runs on which data, emulated how, and what is measured; a plan adds what varies.

An experiment is plain data, of which TOML and JSON can be written and read, and `open` makes the bench on which trials
run. Converters whose ranges are to fit are calibrated by that.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, ValidationError

from emu.calibration import fit_ranges
from emu.device import Profile, load_profile
from emu.device.measured import read_regular
from emu.errors import InputError, suggestion
from emu.evaluation import Bench, DataSource, Task
from emu.evaluation.data import DataSet
from emu.files import whole_file
from emu.rewriter import read_manifest
from emu.rewriter.devices import load_devices


class Experiment(BaseModel, frozen=True, extra="forbid"):
    """Which model runs on which data, emulated how, and what is measured.

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
        samples: use only the first samples, this many.
        batch_size: samples at once.
        threads: threads of the session; None for onnxruntime's default.
        ops: `native` or `python`.

    Raises:
        InputError: a setting of another kind, or one that does not exist.
    """

    what: ClassVar[str] = "experiment"

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
            raise InputError(f"The {self.what} cannot be used: {self._sentence(error)}.") from None

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Reads a TOML or JSON file; paths in it count from the current folder.

        Raises:
            InputError: the file is missing or cannot be read, or a setting is wrong.
        """
        return cls(**read_settings(path, cls.what))

    def write(self, path: str | Path) -> None:
        """Writes a TOML file, or JSON where its name ends in .json, that `read` reads.

        Raises:
            InputError: the folder does not exist.
        """
        path, plain = Path(path), self.model_dump(mode="json", exclude_defaults=True)
        with whole_file(path) as part:
            part.write_text(json.dumps(plain, indent=2) + "\n" if path.suffix == ".json" else toml(plain), "utf-8")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all settings: equal for equal experiments. What is in the files is in `Bench.fingerprint`."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def open(self, task: Task | None = None, data: DataSet | None = None) -> Bench:
        """Makes the bench; converters whose ranges are to fit are fitted to the first of the data.

        Args:
            task: what is measured, where a name does not tell.
            data: the samples, where they are loaded already for that task.

        Raises:
            InputError: as in `Bench`.
        """
        return Bench(
            self.model,
            self.source if data is None else data,
            calibrate=fit_ranges,
            device=self.device,
            set=self.set or None,
            map=self.map,
            only=self.only,
            exclude=self.exclude,
            stored=self.stored,
            share=self.share,
            task=task or self.task,
            samples=self.samples if data is None else None,
            batch_size=self.batch_size,
            threads=self.threads,
            ops=self.ops,
        )

    @property
    def source(self) -> DataSource:
        """The data, and how they are prepared.

        Raises:
            InputError: an option that does not exist.
        """
        known = [field.name for field in fields(DataSource) if field.name != "path"]
        for name in self.data_options:
            if name not in known:
                raise InputError(
                    f"The {self.what} cannot be used: there is no option '{name}' of data{suggestion(name, known)}: "
                    f"options are {', '.join(known)}."
                )
        return DataSource(self.data, **self.data_options)

    def profiles(self) -> list[Profile]:
        """The devices: that of the experiment and those of its rules, or those of a model that is rewritten already.

        Raises:
            InputError: a wrong device or setting, or a plain model without a device.
        """
        if self.device is not None:
            profile, rules = load_devices(self.device, self.map, self.set or None)
            return [profile, *(each for _, each in rules)]
        manifest = read_manifest(self.model) if Path(self.model).is_file() else None
        if manifest is None:
            where = "There is no model file {}" if not Path(self.model).is_file() else "{} is not rewritten"
            raise InputError(f"{where.format(self.model)}: give a device with --device.")
        return [load_profile(each.profile) for each in manifest.devices.values()]

    @classmethod
    def _sentence(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:2] if isinstance(part, str) or first["loc"][0] == "map")
        if first["type"] == "extra_forbidden":
            return f"it has no setting '{name}'{suggestion(name, cls.model_fields)}"
        if first["type"] == "missing":
            return f"it does not name the {name}"
        said = first["msg"][0].lower() + first["msg"][1:]
        return f"{name} is {json.dumps(first['input'], default=str)}, and {said.replace('input should', 'it should')}"


def read_settings(path: str | Path, what: str = "experiment") -> dict[str, Any]:
    """The settings in a TOML or JSON file, not checked yet.

    Raises:
        InputError: the file is missing or not of that form.
    """
    text = read_regular(Path(path), f"The {what} {path}")
    kind, read = ("JSON", json.loads) if Path(path).suffix == ".json" else ("TOML", tomllib.loads)
    try:
        found = read(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The {what} {path} is not valid {kind}: {error}.") from None
    if not isinstance(found, dict):
        raise InputError(f"The {what} {path} is no object of JSON with settings by name.")
    return found


def toml(settings: Mapping[str, Any]) -> str:
    """Plain data as a TOML file: values, then a table for each mapping."""
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_toml(value)}" for name, value in settings.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value in TOML, whose texts, numbers and lists are written as in JSON."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_toml(key)} = {_toml(each)}' for key, each in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)
