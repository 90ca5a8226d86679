"""Evaluation: a model on data, clean and over chips, or under any setting of its controls.

Its parts are imported when they are first used: what only prints metrics needs no model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.evaluation.bench import Bench, Score, Settings, Trial
    from emu.evaluation.corrupted import write_corrupted
    from emu.evaluation.corruptions import CORRUPTIONS, corrupt
    from emu.evaluation.evaluation import Evaluation, evaluate, run
    from emu.evaluation.faults import draw_faults
    from emu.evaluation.injection import Campaign, Injection, inject
    from emu.evaluation.metrics import expected_calibration_error, mean_corruption_error
    from emu.evaluation.sources import DataSource
    from emu.evaluation.tasks import (
        TASKS,
        Arrays,
        Classification,
        MaskedTokens,
        Measured,
        MultipleChoice,
        QuestionAnswering,
        Similarity,
        Task,
        task_by_name,
    )

_HOMES = {
    "Arrays": "emu.evaluation.tasks",
    "Bench": "emu.evaluation.bench",
    "CORRUPTIONS": "emu.evaluation.corruptions",
    "Campaign": "emu.evaluation.injection",
    "Classification": "emu.evaluation.tasks",
    "DataSource": "emu.evaluation.sources",
    "Evaluation": "emu.evaluation.evaluation",
    "Injection": "emu.evaluation.injection",
    "MaskedTokens": "emu.evaluation.tasks",
    "Measured": "emu.evaluation.tasks",
    "MultipleChoice": "emu.evaluation.tasks",
    "QuestionAnswering": "emu.evaluation.tasks",
    "Score": "emu.evaluation.bench",
    "Settings": "emu.evaluation.bench",
    "Similarity": "emu.evaluation.tasks",
    "TASKS": "emu.evaluation.tasks",
    "Task": "emu.evaluation.tasks",
    "Trial": "emu.evaluation.bench",
    "corrupt": "emu.evaluation.corruptions",
    "draw_faults": "emu.evaluation.faults",
    "evaluate": "emu.evaluation.evaluation",
    "expected_calibration_error": "emu.evaluation.metrics",
    "inject": "emu.evaluation.injection",
    "mean_corruption_error": "emu.evaluation.metrics",
    "run": "emu.evaluation.evaluation",
    "task_by_name": "emu.evaluation.tasks",
    "write_corrupted": "emu.evaluation.corrupted",
}

__all__ = [
    "CORRUPTIONS",
    "TASKS",
    "Arrays",
    "Bench",
    "Campaign",
    "Classification",
    "DataSource",
    "Evaluation",
    "Injection",
    "MaskedTokens",
    "Measured",
    "MultipleChoice",
    "QuestionAnswering",
    "Score",
    "Settings",
    "Similarity",
    "Task",
    "Trial",
    "corrupt",
    "draw_faults",
    "evaluate",
    "expected_calibration_error",
    "inject",
    "mean_corruption_error",
    "run",
    "task_by_name",
    "write_corrupted",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'emu.evaluation' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
