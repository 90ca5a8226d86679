"""The control inputs of a rewritten model: which chip, which repetition, which numbers of the device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.device import parse_overrides
from emu.device.loading import Overrides
from emu.errors import InputError
from emu.rewriter import device_choices, device_settings

LARGEST_SEED = 2**32 - 1


def control_feeds(
    manifest: Mapping[str, Any],
    *,
    seed: int | None = None,
    read_seed: int | None = None,
    sample: int | None = None,
    head: int | None = None,
    strength: float | None = None,
    set: Overrides | None = None,
) -> dict[str, NDArray[Any]]:
    """The inputs that set these controls of a rewritten model; a control left None keeps the model's default.

    Args:
        manifest: the model's manifest.
        seed: which chip, 0 to 2^32 - 1.
        read_seed: which repetition on that chip, 0 to 2^32 - 1.
        sample: index of the batch's first sample in the data set, 0 to 2^32 - 1.
        head: disturb this head only; -1 for all.
        strength: one factor on every disturbance of every site; 0 makes the model digital.
        set: numbers of the device, such as `{"program.sigma": 0.15}`; with the name of the device in front, as in
            `pcm:program.sigma`, where several have that number.

    Raises:
        InputError: a control out of its range, or an override as in `emu.rewriter.device_settings`.
    """
    feeds: dict[str, NDArray[Any]] = {}
    for name, value, low, high in (
        ("seed", seed, 0, LARGEST_SEED),
        ("read_seed", read_seed, 0, LARGEST_SEED),
        ("sample", sample, 0, LARGEST_SEED),
        ("head", head, -1, 2**31 - 1),
    ):
        if value is not None:
            if not low <= value <= high:
                raise InputError(f"{name} is {value} and must be {low} to {high}.")
            feeds[f"emu.{name}"] = np.asarray(value, np.int64)
    if strength is not None:
        feeds["emu.strength"] = np.full(len(manifest["sites"]), strength, np.float32)
    if parse_overrides(set):
        unchanged = device_settings(manifest)
        for name, entries in device_settings(manifest, set).items():
            if entries != unchanged[name]:
                feeds[manifest["devices"][name]["input"]] = np.asarray(list(entries.values()), np.float32)
    return feeds


def flat_settings(manifest: Mapping[str, Any], set: Overrides | None = None) -> dict[str, float]:
    """The numbers of a rewritten model's devices as `set` names them: `program.sigma`, or `pcm:program.sigma`.

    Args:
        manifest: the model's manifest.
        set: numbers that change.

    Raises:
        InputError: as in `emu.rewriter.device_settings`.
    """
    entries, choices = device_settings(manifest, set), device_choices(manifest, set)
    return _flat({name: {**entries[name], **choices[name]} for name in entries})


def changed_settings(manifest: Mapping[str, Any], settings: Mapping[str, float]) -> dict[str, float]:
    """Those of `flat_settings` that are not the model's own, without what follows from others, such as from a time."""
    own, choices = flat_settings(manifest), _flat(device_choices(manifest))
    chosen = {name: settings[name] for name in choices if settings[name] != own[name]}
    follow = flat_settings(manifest, chosen)
    return chosen | {name: value for name, value in settings.items() if value != follow[name]}


def _flat(devices: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    if len(devices) == 1:
        return dict(next(iter(devices.values())))
    return {f"{name}:{entry}": value for name, entries in devices.items() for entry, value in entries.items()}
