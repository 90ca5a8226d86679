"""What is measured on the outputs of a model: one task per kind of model."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emu.errors import InputError
from emu.evaluation.data import DataSet

Metrics = dict[str, float]


class Task(Protocol):
    """Measures one trial: `begin`, then `add` for each batch, then `end`."""

    name: str
    """Names the task and everything that changes its numbers, for fingerprints."""
    primary: str
    """The metric that is meant where one number is asked for."""

    def begin(self) -> None:
        """Forgets what was added."""

    def add(self, session: Any, feeds: Mapping[str, NDArray[Any]], dataset: DataSet, start: int, size: int) -> None:
        """Runs one batch, the samples from `start` on, and takes in its outputs."""

    def end(self) -> tuple[Metrics, int, int]:
        """The metrics, the number of right answers, and the number of samples without a defined answer."""


class Classification:
    """Accuracy of the argmax over the last axis of the output `logits`, or of the first output if none is so named."""

    name = "classification"
    primary = "accuracy"

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets what was added."""
        self._correct = self._undefined = self._samples = 0

    def add(self, session: Any, feeds: Mapping[str, NDArray[Any]], dataset: DataSet, start: int, size: int) -> None:
        """Runs one batch and counts.

        Raises:
            InputError: the output has no row of class scores per sample, or too few classes for the labels.
        """
        names = [output.name for output in session.get_outputs()]
        output = "logits" if "logits" in names else names[0]
        labels = dataset.labels[start : start + size]
        scores = np.asarray(session.run([output], dict(feeds))[0])
        if scores.ndim != 2 or len(scores) < len(labels):
            raise InputError(
                f"Output '{output}' of the model is of shape {list(scores.shape)} for {len(labels)} samples: "
                "accuracy needs one row of class scores for each sample."
            )
        if labels.max() >= scores.shape[1]:
            raise InputError(
                f"'labels' of {dataset.where} has class {labels.max()}, but the model has {scores.shape[1]} classes."
            )
        scores = scores[: len(labels)]
        defined = ~np.isnan(scores).any(axis=1)
        self._correct += int(((scores.argmax(axis=1) == labels) & defined).sum())
        self._undefined += int((~defined).sum())
        self._samples += len(labels)

    def end(self) -> tuple[Metrics, int, int]:
        """The accuracy, and the counts behind it."""
        return {"accuracy": self._correct / self._samples}, self._correct, self._undefined
