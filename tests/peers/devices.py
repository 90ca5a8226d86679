"""One crossbar of a whole device profile."""

from typing import Any

from benchmarks.agreement.one_crossbar import Crossbar
from emu.contract.schema import plain
from emu.device import Profile


def output_of_device(crossbar: Crossbar, x: Any, w: Any, profile: Profile, **controls: Any) -> Any:
    """The product of x `[..., K]` with w `[K, N]` on this device."""
    attributes = {name: value for name, value in profile.structure().items() if name in plain("CrossbarMatMul")}
    del attributes["entries"]
    return crossbar.stored(x, w, numbers=profile.entries(), **attributes, **controls)
