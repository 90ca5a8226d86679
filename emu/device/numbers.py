"""The numbers of the devices of a rewritten model, which a run may change within what the graph is made for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from emu.contract.structure import number_of, wrong_numbers
from emu.device.fields import said_of_settings, to_seconds
from emu.device.loading import all_settings, load_profile
from emu.device.overrides import Change, Overrides, listing, read_changes, shown
from emu.device.profile import SETTINGS, Profile
from emu.errors import InputError, suggestion

# Two ways to say the same, of which one is 0.
_RESOLUTIONS = (("dac.bits", "dac.steps"), ("adc.bits", "adc.steps"))


class DeviceNumbers:
    """The numbers in the `device` tensors of one rewritten model, checked once; a change is checked by itself.

    Args:
        devices: by the device's name, its profile and the entries of its tensor in their order, all of the profile.

    Attributes:
        own: the model's own numbers by the device's name, by entry in the order of the tensor.
    """

    def __init__(self, devices: Mapping[str, tuple[Profile, Sequence[str]]]) -> None:
        self.own: dict[str, dict[str, float]] = {}
        for name, (profile, names) in devices.items():
            values = profile.entries()
            self.own[name] = {entry: values[entry] for entry in names}
        self._profiles = {name: profile for name, (profile, _) in devices.items()}
        self._choices = {name: profile.choices() for name, profile in self._profiles.items()}
        self._attributes = {name: profile.structure() for name, (profile, _) in devices.items()}

    def changed(self, set: Overrides | None) -> dict[str, dict[str, float]]:
        """All numbers as in `own`, some of them changed.

        Args:
            set: `program.sigma` where one device has it, `pcm:program.sigma` where several do; of a device that was
                measured at several times also `program.time_s`, which chooses its coefficients.

        Raises:
            InputError: a device or entry that is not there, an entry that several devices have, or as in
                `override_entries`.
        """
        changes: dict[str, list[Change]] = {}
        for change in read_changes(set):
            device = self._device(change)
            changes.setdefault(device, []).append(replace(change, device=device))
        return {name: self._with(name, changes[name]) if name in changes else own for name, own in self.own.items()}

    def _with(self, name: str, changes: Sequence[Change]) -> dict[str, float]:
        """The numbers of one device with changes, those first that choose which numbers others have."""
        own, choices = self.own[name], self._choices[name]
        chosen = [each for each in changes if each.name in choices]
        if chosen:
            values = load_profile(self._profiles[name], [replace(each, device="") for each in chosen]).entries()
            own = {entry: values[entry] for entry in own}
        return override_entries(own, [each for each in changes if each not in chosen], self._attributes[name])

    def flat(self, set: Overrides | None = None) -> dict[str, float]:
        """All numbers and what chose them as `set` names them: `program.sigma`, or `pcm:program.sigma` of several."""
        changes = read_changes(set)
        devices = {name: {**entries, **self._choices[name]} for name, entries in self.changed(changes).items()}
        for change in changes:
            device = self._device(change)
            if change.name in self._choices[device]:
                devices[device][change.name] = float(to_seconds(change.value))
        if len(devices) == 1:
            return next(iter(devices.values()))
        return {f"{name}:{entry}": value for name, entries in devices.items() for entry, value in entries.items()}

    def differing(self, settings: Mapping[str, float]) -> dict[str, float]:
        """Those of `flat` that are not the model's own, without what follows from others, such as from a time."""
        own = self.flat()
        choices = {choice for each in self._choices.values() for choice in each}
        chosen = {
            name: value for name, value in settings.items() if name.rpartition(":")[2] in choices and value != own[name]
        }
        follow = self.flat(chosen)
        return chosen | {name: value for name, value in settings.items() if value != follow[name]}

    def _device(self, change: Change) -> str:
        """The device that a change means."""
        if change.device:
            if change.device not in self.own:
                key = f"{change.device}:{change.name}"
                raise InputError(f"'{key}' sets a device that the model does not have: it has {listing(self.own)}.")
            return change.device
        having = [
            each for each, entries in self.own.items() if change.name in entries or change.name in self._choices[each]
        ]
        if len(having) > 1:
            raise InputError(
                f"Several devices have '{change.name}' ({listing(having)}): say which, as in "
                f"{having[0]}:{change.name}={change.value}."
            )
        # A setting that no device has is refused with what can change.
        return having[0] if having else next(iter(self.own))


def override_entries(
    own: Mapping[str, float], overrides: Overrides | None, attributes: Mapping[str, int | str] | None = None
) -> dict[str, float]:
    """Changes numbers of one device's tensor.

    Args:
        own: entry name to the model's own value, in the order of the tensor, right among themselves.
        overrides: as for `load_profile`, but only of these entries; times may be text such as `1h`. Of `bits` and
            `steps` of a converter the one set replaces the other.
        attributes: what the device gives to nodes (`Profile.structure`), for what depends on them.

    Returns:
        All entries in the same order, with the overrides.

    Raises:
        InputError: an override of something that is not in the tensor, a value out of its range, or values that
            contradict each other or the attributes.
    """
    changes: dict[str, Any] = {}
    for change in read_changes(overrides):
        if change.name not in own:
            raise _not_there(change.name, change.value, own)
        changes[change.name] = _in_seconds(change.name, change.value)
    for bits, steps in _RESOLUTIONS:
        if (bits in changes) != (steps in changes):
            changes[steps if bits in changes else bits] = 0
    for name in filter(changes.__contains__, own):
        value, row = changes[name], number_of(name)
        assert row is not None, name
        if not isinstance(value, int | float) or not row.legal.allows_stored(value):
            raise InputError(f"{name} is {shown(value)}, expected {row.legal.in_words}.")
    for bits, steps in _RESOLUTIONS:
        if changes.get(bits) and changes.get(steps):
            raise InputError(f"{bits} has no effect beside {steps}: give one of them and 0 for the other.")
    numbers = {name: float(changes.get(name, value)) for name, value in own.items()}
    for problem in said_of_settings(wrong_numbers(attributes or {}, numbers, changes.keys()), SETTINGS):
        raise InputError(f"{problem}.")
    return numbers


def _not_there(name: str, value: Any, own: Mapping[str, float]) -> InputError:
    if name in all_settings() or number_of(name) is not None:
        return InputError(
            f"'{name}' shapes the graph and cannot change in a rewritten model: rewrite the original model with "
            f"--set {name}={value} (here {listing(own) or 'nothing'} can change)."
        )
    return InputError(f"'{name}' is no setting of a device{suggestion(name, list(own))}.")


def _in_seconds(name: str, value: Any) -> Any:
    """The value of an entry, in seconds if it is a time written as text."""
    row = number_of(name)
    if row is None or row.unit != "seconds":
        return value
    try:
        return to_seconds(value)
    except ValueError as error:
        raise InputError(f"{name}{error}.") from None
