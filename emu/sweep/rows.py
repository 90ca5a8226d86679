"""Trials and their results as rows of a table."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emu.evaluation import Score, Trial
from emu.sweep.environment import UNKNOWN, Environment
from emu.sweep.setup import STRUCTURE_AXES, Setup, digest

if TYPE_CHECKING:
    import pandas as pd

Row = tuple[Setup, Trial, "Result"]
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


def record(trial: Trial, result: Result, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a table: controls, the settings `names` of the device, metrics, `undefined`, `seconds`.

    A setting that the trial does not set is that of the bench, from `settings`.
    """
    return {
        **{name: value for name, value in plain(trial).items() if name in CONTROLS},
        **{name: trial.set.get(name, settings.get(name)) for name in names},
        **result.score.metrics,
        "undefined": result.score.undefined,
        "seconds": result.seconds,
    }


def table_of(rows: Sequence[Row], axes: Iterable[str] = ()) -> "pd.DataFrame":
    """One row per trial, as `emu.sweep.run_trials` gives them.

    Args:
        rows: how the bench was made, the trial, and what it gave.
        axes: what differs between the setups, for a sweep over several.
    """
    import pandas as pd

    shaping = list(axes)
    numbers = [
        name for name in dict.fromkeys(name for _, trial, _ in rows for name in trial.set) if name not in shaping
    ]
    settings = [name for name in shaping if name not in STRUCTURE_AXES]
    places = [name for name in STRUCTURE_AXES if name in shaping]
    table = pd.DataFrame(
        [
            {
                **record(trial, result, [*settings, *numbers], setup.values),
                **{name: setup.values[name] for name in places},
            }
            for setup, trial, result in rows
        ]
    )
    table.attrs["primary"] = list(dict.fromkeys(setup.primary for setup, _, _ in rows))
    return table


def shaping_axes(setups: Iterable[tuple[int, Setup]]) -> list[str]:
    """What differs within a study: `model`, `data`, `device`, and settings in which devices of one name differ.

    Args:
        setups: the number of a study and a setup of it, for each trial.
    """
    alike: dict[tuple[object, ...], dict[str, Setup]] = {}
    for number, setup in setups:
        keys: list[tuple[object, ...]] = [(number,), (number, setup.values["device"])]
        for key in keys:
            alike.setdefault(key, {})[setup.identity] = setup
    names = []
    for key, of_one in alike.items():
        if len(of_one) > 1:
            every = dict.fromkeys(name for setup in of_one.values() for name in setup.values)
            wanted = [name for name in every if (name in STRUCTURE_AXES) == (len(key) == 1)]
            names += [name for name in wanted if len({repr(setup.values.get(name)) for setup in of_one.values()}) > 1]
    return list(dict.fromkeys(names))


def natural(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A key for sorting in which `layer=2` comes before `layer=10`."""
    if column.dtype.kind in "biuf":
        return column

    def key(text: Any) -> str:
        return re.sub(r"\d+", lambda digits: digits[0].zfill(12), str(text)) if isinstance(text, str) else ""

    return column.map(key)
