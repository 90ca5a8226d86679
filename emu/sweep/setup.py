"""How a bench was made: all that is needed to make it again, and to say what changed."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_origin

from emu.calibration import fit_ranges
from emu.errors import InputError
from emu.version import __version__

if TYPE_CHECKING:
    from emu.evaluation import Bench, Task

STRUCTURE_AXES = ("model", "data", "device")
"""Axes that choose what is rewritten, as settings do that shape the graph."""

_MOST = 3  # settings in a sentence


@dataclass(frozen=True)
class Setup:
    """How a bench was made, as plain data.

    Args:
        model: absolute path of the model file; None for a model that was in memory.
        model_sha256: of that file.
        data: absolute path of the data, or the name of a data set; None for arrays that were in memory.
        data_options: how they were prepared, as options of `DataSource`.
        samples: number of samples used.
        rewriting: arguments of `Bench` that rewrite a plain model: `device` and `map` hold whole profiles; empty for a
            model that was rewritten before.
        set: numbers of the devices that differ from those of the rewritten model.
        devices: the profiles of the devices, by name.
        settings: numbers of the devices, as `Bench.settings`.
        task: name of the task.
        primary: its metric that is meant where one number is asked for.
        batch_size: samples at once.
        threads: threads of the session, 0 for onnxruntime's default.
        ops: `native` or `python`.
        emu: version of emu.
        fingerprint: as `Bench.fingerprint`.
    """

    model: str | None
    model_sha256: str | None
    data: str | None
    data_options: Mapping[str, Any]
    samples: int
    rewriting: Mapping[str, Any]
    set: Mapping[str, float]
    devices: Mapping[str, Any]
    settings: Mapping[str, float]
    task: str
    primary: str
    batch_size: int
    threads: int
    ops: str
    emu: str
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> str:
        """As JSON; equal setups give equal texts."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Setup":
        """The setup that `as_json` wrote.

        Raises:
            InputError: it is damaged, or a newer emu wrote it.
        """
        damaged = "how its bench was made is damaged ({}): restore the store from a copy, or give another one."
        try:
            settings = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(damaged.format(str(error) or type(error).__name__)) from None
        if not isinstance(settings, dict):
            raise InputError(damaged.format("it is no object of JSON"))
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise InputError(
                f"it was written by emu {settings.get('emu', 'of another version')}, which stores '{unknown[0]}': use "
                f"that version instead of {__version__}."
            )
        for each in fields(cls):
            if each.name not in settings:
                if each.default_factory is MISSING:
                    raise InputError(damaged.format(f"'{each.name}' is missing"))
                continue
            kind: Any = each.type if isinstance(each.type, UnionType) else get_origin(each.type) or each.type
            if not isinstance(settings[each.name], kind):
                raise InputError(damaged.format(f"'{each.name}' is {json.dumps(settings[each.name])[:40]}"))
        return cls(**settings)

    @cached_property
    def identity(self) -> str:
        """Equal for equal fingerprints only."""
        return digest(self.fingerprint)

    @cached_property
    def values(self) -> dict[str, Any]:
        """What sweeps can vary: `model`, `data`, `device`, and each setting of the devices that is a number or a word.

        Of several devices their names stand in front, as in `pcm:drift.time_s`.
        """
        single = len(self.devices) == 1
        settings: dict[str, Any] = {}
        for device, profile in self.devices.items():
            flat = {name: value for name, value in _flat(profile).items() if "." in name}
            settings |= {name if single else f"{device}:{name}": value for name, value in flat.items()}
        scalars = {
            name: value for name, value in settings.items() if value is None or isinstance(value, str | int | float)
        }
        where = {"model": self.model, "data": self.data, "device": ", ".join(self.devices)}
        return {**where, **scalars, **self.settings}


def digest(value: Any) -> str:
    """SHA-256 of plain data, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def describe(bench: "Bench") -> Setup:
    """How a bench was made."""
    devices = bench.manifest.devices if bench.manifest else {}
    model = bench.arguments["model"]
    return Setup(
        **{**bench.arguments, "threads": bench.arguments["threads"] or 0},
        model_sha256=_digest_of_file(model) if model else None,
        devices={name: dict(device.profile) for name, device in devices.items()},
        settings=dict(bench.settings),
        primary=bench.task.primary,
        emu=__version__,
        fingerprint=bench.fingerprint(),
    )


def rebuild(setup: Setup, task: "Task | None" = None, model: Path | None = None, data: Path | None = None) -> "Bench":
    """Makes the bench again.

    Args:
        setup: how it was made.
        task: what is measured, where its name does not tell.
        model: the model file, where it is another than then.
        data: the data, where they are elsewhere than then.

    Raises:
        InputError: a file is missing, the task is not known, or model, device, data or task are not those of then.
    """
    from emu.evaluation import Bench, DataSource  # what reads stores has no use for it

    for what, given, then in (("model", model, setup.model), ("data", data, setup.data)):
        if given is None and then is None:
            raise InputError(f"The {what} of this trial was in memory: give its file with --{what}.")
        if given is None and Path(str(then)).is_absolute() and not Path(str(then)).exists():
            raise InputError(f"There is no {what} file {then} any more: give it with --{what}.")
    found: Any = model or setup.model
    if setup.model is None:
        import onnx

        found = onnx.load(str(model))  # in memory as then, so that it has the same fingerprint
    bench = Bench(
        found,
        DataSource(data or str(setup.data), **setup.data_options),
        set=dict(setup.set) or None,
        task=task or setup.task,
        samples=setup.samples,
        batch_size=setup.batch_size,
        threads=setup.threads or None,
        ops="python" if setup.ops == "python" else "native",
        calibrate=fit_ranges,
        **setup.rewriting,
    )
    changed = differences(setup, describe(bench))
    if changed:
        raise InputError(f"This trial cannot run again as it was: {'; '.join(changed)}.")
    return bench


def differences(then: Setup, now: Setup) -> list[str]:
    """What differs between two setups, each as `model`, `device`, `data` or `task` and how; none if equal trials agree.

    A model that is rewritten in memory depends on the device too; it counts as changed only if its file did, or if
    nothing else explains the difference.
    """
    one, other = then.fingerprint, now.fingerprint
    if one == other:
        return []
    found = {}
    device = one["device"] != other["device"] or then.rewriting != now.rewriting
    if then.model_sha256 != now.model_sha256 or (one["model"] != other["model"] and not device):
        found["model"] = _change(_name(then.model), _name(now.model))
    if device:
        found["device"] = _changed_settings(then, now)
    # Another task takes other arrays from the same file.
    other_task = one["task"] != other["task"]
    if one["data"] != other["data"] and not (other_task and _data(then) == _data(now)):
        found["data"] = _change(_data(then), _data(now))
    if other_task:
        found["task"] = f"{one['task']} then, {other['task']} now"
    if then.emu != now.emu and set(found) <= {"model"} and then.model_sha256 == now.model_sha256:
        found["model"] = f"as rewritten by emu {then.emu} then, by emu {now.emu} now"
    return [f"the {part} differs ({how})" for part, how in found.items()]


def unexplained(then: Setup, now: Setup, axes: Collection[str]) -> list[str]:
    """What differs between two setups beside the axes of a sweep, as `differences` says it."""
    known = {name: value for name, value in then.values.items() if name not in axes}
    here = {name: value for name, value in now.values.items() if name not in axes}
    if "device" in axes or "model" in axes:
        known = here = {}
    parts = {name for name in ("data", "task") if then.fingerprint[name] != now.fingerprint[name]}
    parts -= {"data"} if {"data", "model"} & set(axes) else set()
    same_file = then.model_sha256 == now.model_sha256 or "model" in axes
    mapped = {"only", "exclude", "stored", "share"}
    same_sites = all(then.rewriting.get(name) == now.rewriting.get(name) for name in mapped)
    return [] if not parts and same_file and same_sites and known == here else differences(then, now)


def _change(then: str, now: str) -> str:
    return f"{then} then, {now} now" if then != now else f"{now} has other contents"


def _name(path: str | None) -> str:
    return path or "in memory"


def _data(setup: Setup) -> str:
    return f"{setup.samples} samples of {_name(setup.data)}"


def _changed_settings(then: Setup, now: Setup) -> str:
    """The first settings in which the devices differ, or that other sites are mapped."""
    for one, other in ((_flat(then.devices), _flat(now.devices)), (dict(then.settings), dict(now.settings))):
        names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
        names = [name for name in names if not name.endswith((".description", ".source"))] or names
        if names:
            shown = [
                f"{name} {one.get(name, 'absent')} then, {other.get(name, 'absent')} now" for name in names[:_MOST]
            ]
            return "; ".join(shown) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
    return "other sites are mapped"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with names such as `pcm.drift.time_s`."""
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("."): value}
    return {name: leaf for key, each in value.items() for name, leaf in _flat(each, f"{prefix}{key}.").items()}


def _digest_of_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
