"""Evaluation: accuracy of a model on data, clean and over chips."""

from emu.evaluation.evaluation import Evaluation, Score, evaluate, run
from emu.evaluation.faults import draw_faults

__all__ = ["Evaluation", "Score", "draw_faults", "evaluate", "run"]
