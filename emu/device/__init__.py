"""Device profiles: how values are stored on crossbars, what disturbs them, and how products are read."""

from emu.device.explain import Setting, describe
from emu.device.loading import check_entries, load_profile, override_entries, parse_overrides, preset_names
from emu.device.profile import Profile

__all__ = [
    "Profile",
    "Setting",
    "check_entries",
    "describe",
    "load_profile",
    "override_entries",
    "parse_overrides",
    "preset_names",
]
