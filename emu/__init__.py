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
    from emu.analysis.attention import attention
    from emu.analysis.compare import compare
    from emu.analysis.corruptions import corruptions
    from emu.analysis.heads import heads
    from emu.analysis.pareto import pareto
    from emu.analysis.protect import protect
    from emu.analysis.sensitivity import sensitivity
    from emu.analysis.snr import signal_to_noise
    from emu.analysis.thresholds import thresholds
    from emu.baking import bake
    from emu.calibration import calibrate
    from emu.correction import repair
    from emu.device import Profile, load_profile
    from emu.errors import InputError
    from emu.evaluation import Bench, Evaluation, Trial, draw_faults, evaluate, inject
    from emu.experiment import Experiment
    from emu.rewriter import EmulatedModel, find_sites, read_manifest, rewrite
    from emu.runtime import library_path, register, register_device_function, session
    from emu.sweep import Plan, Store, run_plan, run_trials, summarize

_HOMES = {
    "Bench": "emu.evaluation",
    "EmulatedModel": "emu.rewriter",
    "Evaluation": "emu.evaluation",
    "Experiment": "emu.experiment",
    "InputError": "emu.errors",
    "Plan": "emu.sweep",
    "Profile": "emu.device",
    "Store": "emu.sweep",
    "Trial": "emu.evaluation",
    "attention": "emu.analysis.attention",
    "bake": "emu.baking",
    "calibrate": "emu.calibration",
    "compare": "emu.analysis.compare",
    "corruptions": "emu.analysis.corruptions",
    "draw_faults": "emu.evaluation",
    "evaluate": "emu.evaluation",
    "find_sites": "emu.rewriter",
    "heads": "emu.analysis.heads",
    "inject": "emu.evaluation",
    "library_path": "emu.runtime",
    "load_profile": "emu.device",
    "pareto": "emu.analysis.pareto",
    "protect": "emu.analysis.protect",
    "read_manifest": "emu.rewriter",
    "register": "emu.runtime",
    "register_device_function": "emu.runtime",
    "repair": "emu.correction",
    "rewrite": "emu.rewriter",
    "run_plan": "emu.sweep",
    "run_trials": "emu.sweep",
    "sensitivity": "emu.analysis.sensitivity",
    "session": "emu.runtime",
    "signal_to_noise": "emu.analysis.snr",
    "summarize": "emu.sweep",
    "thresholds": "emu.analysis.thresholds",
}

__all__ = [
    "Bench",
    "EmulatedModel",
    "Evaluation",
    "Experiment",
    "InputError",
    "Plan",
    "Profile",
    "Store",
    "Trial",
    "__version__",
    "attention",
    "bake",
    "calibrate",
    "compare",
    "corruptions",
    "draw_faults",
    "evaluate",
    "find_sites",
    "heads",
    "inject",
    "library_path",
    "load_profile",
    "pareto",
    "protect",
    "read_manifest",
    "register",
    "register_device_function",
    "repair",
    "rewrite",
    "run_plan",
    "run_trials",
    "sensitivity",
    "session",
    "signal_to_noise",
    "summarize",
    "thresholds",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'emu' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
