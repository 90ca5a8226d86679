"""The control inputs of a rewritten model: which chip, which repetition, which numbers of the device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.contract.manifest import Manifest
from emu.device import DeviceNumbers, Overrides
from emu.errors import InputError
from emu.rewriter import arrays_with_faults, device_numbers

LARGEST_SEED = 2**32 - 1


def control_feeds(
    manifest: Manifest,
    *,
    seed: int | None = None,
    read_seed: int | None = None,
    sample: int | None = None,
    head: int | None = None,
    strength: float | None = None,
    set: Overrides | None = None,
    faults: Sequence[tuple[int, int]] | None = None,
    numbers: DeviceNumbers | None = None,
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
        faults: a list of faults, `(array, number)` as in docs/operators.md.
        numbers: those of the manifest, where they are at hand: reading them takes longer than changing some.

    Raises:
        InputError: a control out of its range, a fault of an array that cannot have one, or an override as in
            `emu.device.DeviceNumbers.changed`.
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
        feeds["emu.strength"] = np.full(len(manifest.sites), strength, np.float32)
    if faults is not None:
        listed = np.asarray(faults, np.int64).reshape(-1, 2)
        stray = np.setdiff1d(listed[:, 0], list(arrays_with_faults(manifest)))
        if stray.size:
            raise InputError(
                f"There is a fault of array {stray[0]}, and no array of that number has faults: rewrite the model for "
                "a device with bit flips or stuck cells, and choose among the arrays of its sites."
            )
        feeds["emu.faults"] = listed
    if set:
        numbers = numbers or device_numbers(manifest)
        for name, entries in numbers.changed(set).items():
            if entries != numbers.own[name]:
                feeds[manifest.devices[name].input] = np.asarray(list(entries.values()), np.float32)
    return feeds
