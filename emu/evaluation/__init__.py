"""Evaluation: a model on data, clean and over chips, or under any setting of its controls."""

from emu.evaluation.bench import Bench, Score, Trial
from emu.evaluation.evaluation import Evaluation, evaluate, run
from emu.evaluation.faults import draw_faults
from emu.evaluation.tasks import Classification, Task

__all__ = ["Bench", "Classification", "Evaluation", "Score", "Task", "Trial", "draw_faults", "evaluate", "run"]
