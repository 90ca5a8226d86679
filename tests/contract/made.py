"""Sites and manifests for tests, by what matters of them."""

from collections.abc import Sequence
from typing import Any

from emu.contract.manifest import Manifest, MappedDevice
from emu.contract.schema import FORMAT, STORED
from emu.contract.site import Site
from emu.device import load_profile


def made_site(index: int = 0, **facts: Any) -> Site:
    """A site with a weight [4, 3], of which `facts` say what is different."""
    plain = {"array": index, "device": "rram", "node": f"n{index}", "op": STORED, "source_op": "MatMul", "layer": None}
    plain |= {"component": "other", "shape": (4, 3), "heads": 0, "head_axis": "none", "head_groups": 1, "head_share": 1}
    plain |= {"sample_axis": 0, "stack": 1, "window": "", "tiles": 1, "parameters": 12, "macs": 12, "macs_per_row": 12}
    return Site(index=index, **(plain | facts))


def made_manifest(devices: Sequence[str] = ("rram",), sites: int = 3, **changes: Any) -> Manifest:
    """A manifest with as many sites, and with these presets as devices."""
    several = len(devices) > 1
    profiles = {name: load_profile(name) for name in devices}
    mapped = {
        name: MappedDevice(
            profile.model_dump(mode="json"), tuple(profile.entries()), f"emu.device.{name}" if several else "emu.device"
        )
        for name, profile in profiles.items()
    }
    plain = {"format": FORMAT, "emu_version": "", "devices": mapped, "controls": {}, "skipped": (), "batch": None}
    plain |= {"digital_share": 0.0, "notes": (), "sites": tuple(made_site(index) for index in range(sites))}
    return Manifest(**(plain | changes))
