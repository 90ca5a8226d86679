"""emu: what will this transformer do on that analog or faulty chip?

    import emu

    model = emu.rewrite("model.onnx", device="rram")
    model.save("model.rram.onnx")
    session = emu.session("model.rram.onnx")  # an onnxruntime.InferenceSession

Everything is imported when it is first used, so that `import emu` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from emu.version import __version__

if TYPE_CHECKING:
    from emu.baking import bake
    from emu.calibration import calibrate
    from emu.device import Profile, load_profile
    from emu.errors import InputError
    from emu.evaluation import Bench, Trial, draw_faults, evaluate, inject
    from emu.experiment import Experiment
    from emu.rewriter import EmulatedModel, find_sites, read_manifest, rewrite
    from emu.runtime import library_path, register, register_device_function, session

_HOMES = {
    "Bench": "emu.evaluation",
    "EmulatedModel": "emu.rewriter",
    "Evaluation": "emu.evaluation",
    "Experiment": "emu.experiment",
    "InputError": "emu.errors",
    "Profile": "emu.device",
    "Trial": "emu.evaluation",
    "bake": "emu.baking",
    "calibrate": "emu.calibration",
    "draw_faults": "emu.evaluation",
    "evaluate": "emu.evaluation",
    "find_sites": "emu.rewriter",
    "inject": "emu.evaluation",
    "library_path": "emu.runtime",
    "load_profile": "emu.device",
    "read_manifest": "emu.rewriter",
    "register": "emu.runtime",
    "register_device_function": "emu.runtime",
    "rewrite": "emu.rewriter",
    "session": "emu.runtime",
}

__all__ = [
    "Bench",
    "EmulatedModel",
    "Evaluation",
    "Experiment",
    "InputError",
    "Profile",
    "Trial",
    "__version__",
    "bake",
    "calibrate",
    "draw_faults",
    "evaluate",
    "find_sites",
    "inject",
    "library_path",
    "load_profile",
    "read_manifest",
    "register",
    "register_device_function",
    "rewrite",
    "session",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'emu' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
