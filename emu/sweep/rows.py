"""Trials and their results as rows of a table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emu.evaluation import Score, Trial
from emu.sweep.environment import UNKNOWN, Environment
from emu.sweep.setup import Setup, digest

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("seed", "read_seed", "head", "strength", "only", "exclude")


@dataclass(frozen=True)
class Result:
    """What a finished trial gave, how long it took, and what computed it."""

    score: Score
    seconds: float
    environment: Environment = UNKNOWN


def trial_id(setup: Setup, trial: Trial) -> str:
    """16 hexadecimal digits, equal for equal trials with equal fingerprints."""
    return digest([setup.identity, plain(trial)])[:16]


def plain(trial: Trial) -> dict[str, Any]:
    """A trial as JSON can hold it, equal for trials that do the same: numbers as Python's, one space between terms."""
    return {
        "seed": int(trial.seed),
        "read_seed": int(trial.read_seed),
        "head": int(trial.head),
        "strength": float(trial.strength),
        "only": trial.only and " ".join(trial.only.split()),
        "exclude": trial.exclude and " ".join(trial.exclude.split()),
        "set": {name: value if isinstance(value, str) else float(value) for name, value in sorted(trial.set.items())},
        **({} if trial.faults is None else {"faults": [[int(each) for each in fault] for fault in trial.faults]}),
    }


def record(trial: Trial, result: Result, names: Sequence[str], settings: Mapping[str, float]) -> dict[str, Any]:
    """One row of a table: controls, the numbers `names` of the device, metrics, `undefined`, `seconds`.

    A number that the trial does not set is that of the bench, from `settings`.
    """
    return {
        **{name: value for name, value in plain(trial).items() if name in CONTROLS},
        **{name: trial.set.get(name, settings.get(name)) for name in names},
        **result.score.metrics,
        "undefined": result.score.undefined,
        "seconds": result.seconds,
    }


def natural(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A key for sorting in which `layer=2` comes before `layer=10`."""
    if column.dtype.kind in "biuf":
        return column

    def key(text: Any) -> str:
        return re.sub(r"\d+", lambda digits: digits[0].zfill(12), str(text)) if isinstance(text, str) else ""

    return column.map(key)
