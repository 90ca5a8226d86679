"""Evaluation: accuracy of a model on data, clean and over chips."""

from emu.evaluation.evaluation import Evaluation, Score, evaluate, run

__all__ = ["Evaluation", "Score", "evaluate", "run"]
