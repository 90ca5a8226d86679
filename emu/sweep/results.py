"""Tables of stored trials: filtered, summarized over chips, exported."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from emu.device.fields import to_seconds
from emu.errors import InputError
from emu.evaluation.metrics import metric_spread
from emu.files import whole_file
from emu.sweep.axes import close_match
from emu.sweep.environment import Environment
from emu.sweep.rows import CONTROLS, natural
from emu.sweep.setup import STRUCTURE_AXES

_PLACE = re.compile(r"(layer)=(\d+)|(component)=([^\s,*?\[]+)")
_REPETITIONS = ("seed", "read_seed")


def keep(frame: pd.DataFrame, conditions: Iterable[str]) -> pd.DataFrame:
    """The rows of a table of trials that meet all conditions.

    Args:
        frame: a table of `run_trials`, `run_plan` or `Store.frame`.
        conditions: `program.sigma=0.1`, with alternatives as `program.sigma=0.1,0.2`; times as `1h`; `layer` and
            `component` stand for what `only` says. The value of `only`, `exclude` and of other texts is taken whole.

    Raises:
        InputError: a column or value that the table does not have.
    """
    for condition in conditions:
        name, equals, text = condition.partition("=")
        if not equals:
            raise InputError(f"'{condition}' is no condition: write it as name=value, as in program.sigma=0.1.")
        column = frame if name in frame else _with_places(frame)
        if name not in column:
            raise InputError(f"The results have no column '{name}'{close_match(name, column)}.")
        values = (_with_short_names(column) if name in ("model", "data") else column)[name]
        wanted = _numbers(name, text) if values.dtype.kind in "iuf" else [text.strip()]
        kept = values.isin(wanted)
        if not kept.any():
            there = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in _several(values))
            raise InputError(f"No trial has {condition}: {name} is {there}.")
        frame = frame[kept.to_numpy()]
    return frame.reset_index(drop=True)


def summarize(frame: pd.DataFrame, group: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean, standard deviation and 95 % t interval of each metric over chips.

    Repetitions on one chip, and whatever else differs within a group, are averaged chip by chip first, so that a chip
    counts once.

    Args:
        frame: a table of `run_trials`, `run_plan` or `Store.frame`.
        group: columns whose values make a group; None for all that vary but for `seed` and `read_seed`.

    Returns:
        One row per group: its values, `chips`, `trials`, and for each metric `mean`, `std`, `low` and `high`, named
        like `accuracy.mean`; std and interval are missing for a single chip.

    Raises:
        InputError: a column that the table does not have.
    """
    table = _with_short_names(_with_places(frame))
    metrics = metric_names(frame)
    points = [
        name for name in ["study", *point_names(table)] if name in table and table[name].nunique(dropna=False) > 1
    ]
    if group is None:
        names = points
    else:
        for name in group:
            if name not in table or name in metrics:
                raise InputError(f"The results have no column '{name}' to group by{close_match(name, table)}.")
        names = list(dict.fromkeys([*(["study"] if "study" in points else []), *group]))
    rows = []
    parts = table.groupby(names, dropna=False, sort=False) if names else [((), table)]
    for values, part in parts:
        row: dict[str, Any] = dict(zip(names, values, strict=True))
        chips = part.groupby("seed")
        row |= {"chips": chips.ngroups, "trials": len(part)}
        for metric in metrics:
            over_chips = [fmean(values) for _, values in chips[metric] if not values.isna().all()]
            if over_chips:
                row |= {f"{metric}.{name}": value for name, value in _spread(metric, over_chips).items()}
        rows.append(row)
    summary = pd.DataFrame(rows)
    if "layer" in names:  # numbers, also where some points are of no layer
        summary["layer"] = summary["layer"].astype("Int64")
    return summary.sort_values(names, key=natural, kind="stable", ignore_index=True) if names else summary


def export(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a table to a .csv or .parquet file, whole or not at all.

    Raises:
        InputError: another suffix, no such folder, or pyarrow is not installed.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path} cannot be written: give a file that ends in .csv or .parquet.")
    with whole_file(path) as part:
        if path.suffix == ".csv":
            frame.to_csv(part, index=False)
        else:
            try:
                frame.to_parquet(part, index=False, engine="pyarrow")
            except ImportError:
                raise InputError('This needs pyarrow: pip install "emu-onnx[analysis]".') from None


def environments(frame: pd.DataFrame) -> list[Environment]:
    """The software and processors that the trials of a table of `Store.frame` ran on, each once."""
    rows = frame[["emu", "onnxruntime", "instruction_set"]].drop_duplicates().astype(object)
    return [Environment(*row) for row in rows.where(rows.notna(), None).itertuples(index=False)]


def metric_names(frame: pd.DataFrame) -> list[str]:
    """The metrics in a table of trials."""
    return [name for name in _between(frame) if "." not in name]


def point_names(frame: pd.DataFrame) -> list[str]:
    """The columns that say which point of a sweep a trial is of: not its seeds."""
    shaping = [name for name in STRUCTURE_AXES if name in frame]
    settings = [name for name in _between(frame) if "." in name]
    places = [name for name in ("layer", "component") if name in frame]
    controls = [name for name in CONTROLS if name in frame and name not in _REPETITIONS]
    return [*shaping, *settings, *places, *controls]


def _between(frame: pd.DataFrame) -> list[str]:
    """The columns between the controls and `undefined`: numbers of the device, whose names have a dot, and metrics."""
    names = [str(name) for name in frame.columns]
    return names[names.index("exclude") + 1 : names.index("undefined")]


def _with_short_names(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with files of models and data by their names alone, where these tell them apart."""
    short = {}
    for name in ("model", "data"):
        paths = frame[name].dropna().unique() if name in frame else ()
        if len(paths) > 1 and len({Path(path).name for path in paths}) == len(paths):
            short[name] = frame[name].map(lambda path: Path(path).name if isinstance(path, str) else path)
    return frame.assign(**short) if short else frame


def _with_places(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds `layer` and `component` of the rows whose selection `only` names just one of them.

    Row by row: a selection that says more stays in `only`, and takes nothing from the other rows. Where none is left,
    the column `only` goes.
    """
    found = {text: places for text in frame["only"].dropna().unique() if (places := _places(text))}
    if not found:
        return frame
    table = frame.copy()
    for name in ("component", "layer"):
        if any(name in places for places in found.values()):
            values = [found.get(text, {}).get(name) for text in frame["only"]]
            table.insert(table.columns.get_loc("only") + 1, name, pd.Series(values, index=table.index, dtype=object))
    if "layer" in table:
        table["layer"] = pd.to_numeric(table["layer"]).astype("Int64")
    rest = [None if text in found else text for text in frame["only"]]
    table["only"] = pd.Series(rest, index=table.index, dtype=object)
    return table if table["only"].notna().any() else table.drop(columns="only")


def _places(text: str) -> dict[str, str]:
    """One layer, one component or both, where a selection names just that; else nothing."""
    places: dict[str, str] = {}
    for term in text.split():
        place = _PLACE.fullmatch(term)
        name = (place[1] or place[3]) if place else ""
        if not place or name in places:
            return {}
        places[name] = place[2] or place[4]
    return places


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(to_seconds(part.strip()) if name.endswith("_s") else part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"'{name}={text}' cannot be read: {name} is a number.") from None


def _spread(metric: str, values: list[float]) -> dict[str, float | None]:
    """Mean, std and interval; the mean alone where a value is not finite."""
    spread = metric_spread(metric, values)
    low, high = spread.ci95 or (None, None)
    return {"mean": spread.mean, "std": spread.std, "low": low, "high": high}


def _several(values: "pd.Series[Any]", most: int = 8) -> list[Any]:
    found = values.drop_duplicates().tolist()
    return found if len(found) <= most else [*found[:most], "..."]
