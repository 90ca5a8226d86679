"""Sweeps: many trials on one bench, kept in a store that an interrupted study continues from.

Pandas, SQLAlchemy and Dask are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.sweep.plan import Plan
    from emu.sweep.results import export, keep, summarize
    from emu.sweep.running import rerun, run_plan, run_trials
    from emu.sweep.store import Store

_HOMES = {
    "Plan": "emu.sweep.plan",
    "Store": "emu.sweep.store",
    "export": "emu.sweep.results",
    "keep": "emu.sweep.results",
    "rerun": "emu.sweep.running",
    "run_plan": "emu.sweep.running",
    "run_trials": "emu.sweep.running",
    "summarize": "emu.sweep.results",
}

__all__ = ["Plan", "Store", "export", "keep", "rerun", "run_plan", "run_trials", "summarize"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'emu.sweep' has no attribute '{name}'")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from emu.libraries import missing

        raise missing(error) from None
