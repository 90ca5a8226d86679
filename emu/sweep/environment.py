"""What computes a trial beside its model, device and data: only equals agree to the last bit."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache

from emu.version import __version__


@dataclass(frozen=True)
class Environment:
    """The software and the kind of processor that a trial ran on; None for what is not known of it.

    Args:
        emu: version of emu.
        onnxruntime: version of onnxruntime.
        instruction_set: whose loops the operators used, as `emu.runtime.library.instruction_set`; `python` for the
            NumPy twin.
        platform: operating system and architecture, such as `Linux x86_64`.
    """

    emu: str | None = None
    onnxruntime: str | None = None
    instruction_set: str | None = None
    platform: str | None = None

    def __str__(self) -> str:
        return ", ".join(_shown(each.name, getattr(self, each.name)) for each in fields(self) if self.knows(each.name))

    def knows(self, name: str) -> bool:
        """Whether this part is known."""
        return getattr(self, name) is not None

    def differences(self, now: "Environment") -> list[str]:
        """What is known of both and differs, each as `onnxruntime 1.30.0 then, 1.31.1 now`."""
        return [
            f"{_NAMES[each.name]} {getattr(self, each.name)} then, {getattr(now, each.name)} now"
            for each in fields(self)
            if self.knows(each.name) and now.knows(each.name) and getattr(self, each.name) != getattr(now, each.name)
        ]


UNKNOWN = Environment()

_NAMES = {"emu": "emu", "onnxruntime": "onnxruntime", "instruction_set": "instruction set", "platform": "platform"}


def here(ops: str) -> Environment:
    """That of this process, with operators `native` or `python`."""
    import onnxruntime

    loops = _loops() if ops == "native" else "python"
    return Environment(__version__, onnxruntime.__version__, loops, f"{platform.system()} {platform.machine()}")


def mixture(environments: Iterable[Environment]) -> str:
    """What differs among trials, such as `onnxruntime 1.30.0 and 1.31.1`; empty if nothing does."""
    seen = list(dict.fromkeys(environments))
    parts = []
    for each in fields(Environment):
        values = sorted({getattr(one, each.name) for one in seen if one.knows(each.name)})
        if len(values) > 1:
            parts.append(f"{_NAMES[each.name]} {', '.join(values[:-1])} and {values[-1]}")
    return "; ".join(parts)


def _shown(name: str, value: str) -> str:
    return value if name in ("instruction_set", "platform") else f"{name} {value}"


@cache
def _loops() -> str:
    from emu.runtime.library import instruction_set

    return instruction_set()
