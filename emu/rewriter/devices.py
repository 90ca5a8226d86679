"""Which device each site is mapped to: one for all, or by rules such as `component=ffn_*:pcm`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from emu.contract.selection import Selection, existing, select
from emu.contract.site import Site
from emu.device import Overrides, Profile, load_profile
from emu.device.overrides import read_changes
from emu.errors import InputError
from emu.rewriter.sharing import Share

Device: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Profile
# `SELECTION:DEVICE`, or the two apart.
Rule: TypeAlias = str | tuple[str, Device]


class Rewriting(TypedDict, total=False):
    """How a plain model is rewritten: keyword arguments of `rewrite`, and of what rewrites a model itself.

    `device` is the profile, and `set` its settings; `map`, other devices for some sites; `only`, sites to emulate, and
    `exclude`, sites to leave digital; `stored`, tensors that feed no product to put into arrays too; and `share`, which
    sites share one physical array.
    """

    device: Device | None
    set: Overrides | None
    map: Sequence[Rule]
    only: str | None
    exclude: str | None
    stored: str | None
    share: Share | None


BY_PROFILE = "the profile of "  # how the reason begins why a product stays digital, where that is the device's


def load_devices(
    device: Device, rules: Sequence[Rule] = (), set: Overrides | None = None
) -> tuple[Profile, list[tuple[str, Profile]]]:
    """Loads the devices of a rewriting.

    Args:
        device: for the sites that no rule matches: a preset's name, the path of a TOML file, plain data, or a profile.
        rules: `SELECTION:DEVICE`, split at the last colon, or pairs.
        set: changes of settings: `program.sigma` of `device`, `pcm:drift.time_s` of the device of that name.

    Returns:
        The profile of `device`, and the selection and profile of each rule.

    Raises:
        InputError: a rule that cannot be read, a wrong device or setting, or two devices that differ under one name.

    """
    pairs = [_pair(rule) for rule in rules]
    changes = read_changes(set)
    named = {each.device: [other for other in changes if other.device == each.device] for each in changes}
    default = load_profile(_source(device), named.pop("", ()))
    loaded = [default, *(default if _same(source, device) else load_profile(_source(source)) for _, source in pairs)]
    profiles: dict[str, Profile] = {}
    for profile in loaded:
        if profiles.setdefault(profile.name, profile).model_dump() != profile.model_dump():
            raise InputError(f"Two devices are named '{profile.name}' and differ: give one of them another name.")
    for name, its_changes in named.items():
        if name not in profiles:
            raise InputError(
                f"'{name}:{its_changes[0].name}' sets a device that is not used here: write one of "
                f"{', '.join(profiles)} before the colon."
            )
        profiles[name] = load_profile(profiles[name], its_changes)
    chosen = [profiles[profile.name] for profile in loaded]
    return chosen[0], [(selection, profile) for (selection, _), profile in zip(pairs, chosen[1:], strict=True)]


def choose(
    sites: Sequence[Site],
    default: Profile,
    rules: Sequence[tuple[str, Profile]],
    only: str | None,
    exclude: str | None,
    may_be_empty: bool,
) -> tuple[list[Site], str]:
    """The products of a model that are mapped, in order, and why the others stay digital.

    Without `only` and `exclude`, those that a rule maps and those that the profile of `default` is for.

    Raises:
        InputError: nothing is left.

    """
    if only is not None or exclude is not None:
        return select(sites, only, exclude, may_be_empty), "not selected"
    own = default.sites
    by_profile = own.of(sites)
    by_rule = [site for selection, _ in rules for site in Selection.parse(selection, "map").found_in(sites)]
    chosen = [site for site in sites if site in by_profile or site in by_rule]
    if not by_profile and not may_be_empty and len(chosen) < len(sites):
        part = f"only '{own.only}'" if own.only is not None else f"exclude '{own.exclude}'"
        raise InputError(
            f"[sites] {part} of the device '{default.name}' leaves no product of this model on it: {existing(sites)}; "
            "say which are, in the place of that: only='*' (--only '*') for all."
        )
    return chosen, f"{BY_PROFILE}'{default.name}' leaves it digital"


def assign(
    sites: Sequence[Site], default: Profile, rules: Sequence[tuple[str, Profile]]
) -> tuple[list[Site], dict[str, Profile]]:
    """The sites with the names of their devices: that of the last rule that matches one, else `default`.

    Returns:
        The sites, and the devices by name, in order of first use.

    Raises:
        InputError: a rule that matches no site.

    """
    chosen = dict.fromkeys((site.node for site in sites), default)
    for selection, profile in rules:
        chosen |= {site.node: profile for site in Selection.parse(selection, "map").of(sites)}
    mapped = [replace(site, device=chosen[site.node].name) for site in sites]
    return mapped, {profile.name: profile for profile in chosen.values()}


def _pair(rule: Rule) -> tuple[str, Device]:
    if not isinstance(rule, str):
        return rule
    selection, colon, device = rule.rpartition(":")
    if not colon or not selection.strip() or not device.strip():
        raise InputError(f"map '{rule}' cannot be read: write SELECTION:DEVICE, as in component=ffn_*:rram.")
    return selection, device.strip()


def _source(device: Device) -> str | Path | Mapping[str, Any] | Profile:
    return Path(device) if isinstance(device, os.PathLike) else device


def _same(one: Device, other: Device) -> bool:
    return one is other or (type(one) is type(other) and one == other)
