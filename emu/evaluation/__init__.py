"""Evaluation: a model on data, clean and over chips, or under any setting of its controls."""

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
