"""Device profiles: how values are stored on crossbars, what disturbs them, and how products are read."""

from emu.device.aihwkit import import_aihwkit
from emu.device.explain import Setting, describe
from emu.device.loading import load_profile, preset_names
from emu.device.numbers import DeviceNumbers, override_entries
from emu.device.overrides import Overrides, parse_overrides
from emu.device.profile import Profile
from emu.device.writing import toml_of

__all__ = [
    "DeviceNumbers",
    "Overrides",
    "Profile",
    "Setting",
    "describe",
    "import_aihwkit",
    "load_profile",
    "override_entries",
    "parse_overrides",
    "preset_names",
    "toml_of",
]
