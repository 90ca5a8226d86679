"""Tables of stored trials: filtered, summarized over chips, exported."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emu.errors import InputError
from emu.evaluation.metrics import within_bounds
from emu.evaluation.statistics import student_t_quantile
from emu.files import whole_file
from emu.sweep.environment import Environment
from emu.sweep.rows import names_with, natural, number_of
from emu.sweep.setup import STRUCTURE_AXES

QUANTILES = (0.05, 0.25, 0.75, 0.95)


def keep(frame: pd.DataFrame, conditions: Iterable[str]) -> pd.DataFrame:
    """The rows of a table of trials that meet all conditions.

    Args:
        frame: a table of `run_trials`, `run_plan` or `Store.frame`.
        conditions: `program.sigma=0.1`, with alternatives as `program.sigma=0.1,0.2`; times as `1h`; `layer` and
            `component` are what `only` names. The value of `only`, `exclude` and of other texts is taken whole.

    Raises:
        InputError: a column or value that the table does not have.
    """
    for condition in conditions:
        name, equals, text = condition.partition("=")
        if not equals:
            raise InputError(f"'{condition}' is no condition: write it as name=value, as in program.sigma=0.1.")
        if name not in frame:
            raise InputError(f"The results have no column '{name}'{_close_match(name, frame)}.")
        values = with_short_names(frame)[name] if name in ("model", "data") else frame[name]
        wanted = _numbers(name, text) if values.dtype.kind in "iuf" else [text.strip()]
        kept = values.isin(wanted).fillna(False).astype(bool)
        if not kept.any():
            raise InputError(f"No trial has {condition}: {_what_there_is(frame, name, values)}.")
        frame = frame[kept.to_numpy()].reset_index(drop=True)
    return frame


def summarize(frame: pd.DataFrame, group: Sequence[str] | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """Statistics of each metric over chips.

    Repetitions on one chip, and whatever else differs within a group, are averaged chip by chip first, so that a chip
    counts once.

    Args:
        frame: a table of `run_trials`, `run_plan` or `Store.frame`.
        group: columns whose values make a group; None for all axes that vary.
        confidence: the probability with which the t interval from `low` to `high` holds the mean over all chips that
            could be made, 0 to 1.

    Returns:
        One row per group: its values, `chips`, `trials`, and for each metric `mean`, `std` (of chips, n - 1), `low` and
        `high`, `min`, `q05`, `q25`, `median`, `q75`, `q95` and `max`, named like `accuracy.mean`. What a single chip
        does not have is missing, the interval also of equal chips, and all but the mean where a value is not finite.
        Quantiles are interpolated.
        `attrs["confidence"]` is that of the interval.

    Raises:
        InputError: a column that the table does not have, or a confidence out of its range.
    """
    if not 0 < confidence < 1:
        raise InputError(f"The confidence of an interval is {confidence:g} and must be above 0 and below 1, as 0.95.")
    metrics = metric_names(frame)
    table = with_short_names(frame)
    if group is None or "only" not in group:
        table = with_rest_of_selections(table)
    points = ["study", *point_names(table)]
    points = [name for name in points if name in table and table[name].nunique(dropna=False) > 1]
    if group is None:
        names = points
    else:
        for name in group:
            if name not in table or name in metrics:
                raise InputError(f"The results have no column '{name}' to group by{_close_match(name, table)}.")
        names = list(dict.fromkeys([*(["study"] if "study" in points else []), *group]))
    point = _numbered(table, names)
    order, first = np.unique(point, return_index=True)
    summary = table.iloc[first][names].reset_index(drop=True) if names else pd.DataFrame(index=[0])
    chip = point * (1 + int(table["seed"].max())) + table["seed"].to_numpy()
    _, first_of_chip, chip = np.unique(chip, return_index=True, return_inverse=True)
    point_of_chip = point[first_of_chip]
    summary["chips"] = np.bincount(point_of_chip, minlength=len(order))
    summary["trials"] = np.bincount(point, minlength=len(order))
    of_metrics: dict[str, Any] = {}
    for metric in metrics:
        over_chips = _chip_means(table[metric].to_numpy(float), chip, len(point_of_chip))
        found = _statistics(metric, over_chips, point_of_chip, len(order), confidence)
        of_metrics |= {f"{metric}.{name}": values for name, values in found.items()}
    summary = pd.concat([summary, pd.DataFrame(of_metrics)], axis=1)
    if names:
        summary = summary.sort_values(names, key=natural, kind="stable", ignore_index=True)
    summary.attrs = {"confidence": confidence, "points": [*names, "chips", "trials"]}
    return summary


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
    rows = frame[["emu", "onnxruntime", "instruction_set", "platform"]].drop_duplicates().astype(object)
    return [Environment(*row) for row in rows.where(rows.notna(), None).itertuples(index=False)]


def metric_names(frame: pd.DataFrame) -> list[str]:
    """The metrics in a table of trials."""
    return names_with(frame, "metric")


def point_names(frame: pd.DataFrame) -> list[str]:
    """The columns that say which point of a sweep a trial is of: structure, settings, places, other controls."""
    axes = names_with(frame, "axis")
    places = ("layer", "component")
    last = ("head", "strength", "only", "exclude")
    structure = [name for name in STRUCTURE_AXES if name in axes]
    settings = [name for name in axes if name not in (*structure, *places, *last)]
    return [*structure, *settings, *(name for name in (*places, *last) if name in axes)]


def with_short_names(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with files of models and data by their names alone, where these tell them apart."""
    short = {}
    for name in ("model", "data"):
        paths = frame[name].dropna().unique() if name in frame else ()
        if len(paths) > 1 and len({Path(path).name for path in paths}) == len(paths):
            short[name] = frame[name].map({path: Path(path).name for path in paths})
    return frame.assign(**short) if short else frame


def with_rest_of_selections(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with `only` where `layer` and `component` do not say the same."""
    if "only" not in frame:
        return frame
    return frame.assign(only=frame["only"].where(frame["layer"].isna() & frame["component"].isna(), None))


def _numbered(table: pd.DataFrame, names: Sequence[str]) -> NDArray[np.int64]:
    """The number of the group of equal values in these columns that each row is of, by first appearance."""
    if not names:
        return np.zeros(len(table), np.int64)
    groups = table.groupby(list(names), dropna=False, sort=False, observed=True).ngroup()
    return np.asarray(groups, np.int64)


def _chip_means(values: NDArray[np.float64], chip: NDArray[np.int64], chips: int) -> NDArray[np.float64]:
    """The mean over each chip's trials, `[chips]`; NaN where none of them has a value, or one has none."""
    count = np.bincount(chip, minlength=chips)
    with np.errstate(invalid="ignore"):
        total = np.bincount(chip, values, chips)
        return np.where(count == 1, total, total / count)


def _statistics(
    metric: str, values: NDArray[np.float64], point: NDArray[np.int64], points: int, confidence: float
) -> dict[str, NDArray[np.float64]]:
    """Statistics over the chips of each point, each `[points]`; chips without a value do not count.

    Args:
        metric: its name, for its bounds.
        values: one for each chip.
        point: which point a chip is of.
        points: their number.
        confidence: of the interval.
    """
    there = ~np.isnan(values)
    values, point = values[there], point[there]
    order = np.lexsort((values, point))
    values, point = values[order], point[order]
    count = np.bincount(point, minlength=points)
    start = np.cumsum(count) - count
    has = count > 0
    some, several = np.where(has, count, 1), count > 1

    def at(rank: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values of these ranks among those of each point, interpolated."""
        low, high = np.floor(rank).astype(int), np.ceil(rank).astype(int)
        padded = np.append(values, np.nan)
        below, above = (padded[np.where(has, start + each, len(values))] for each in (low, high))
        return np.where(low == high, below, below + (rank - low) * (above - below))

    with np.errstate(invalid="ignore", divide="ignore"):
        smallest, largest = at(some * 0.0), at(some - 1.0)
        total = np.bincount(point, values, points)
        mean = np.where(smallest == largest, smallest, total / np.where(has, count, np.nan))  # equal to the last bit
        squares = np.bincount(point, np.square(values - mean[point]), points)
        std = np.where(several, np.sqrt(squares / np.where(several, count - 1, np.nan)), np.nan)
        quantile = np.full(points, np.nan)
        for degrees in np.unique(count[several]) - 1:
            quantile[count == degrees + 1] = student_t_quantile(0.5 + confidence / 2, int(degrees))
        margin = np.where(smallest == largest, np.nan, quantile * std / np.sqrt(some))  # of equal chips none was seen
        found = {"mean": mean, "std": std, "low": mean - margin, "high": mean + margin, "min": smallest}
        quantiles = {q: at((some - 1) * q) for q in (*QUANTILES[:2], 0.5, *QUANTILES[2:])}
        found |= {"median" if q == 0.5 else f"q{100 * q:02.0f}": values for q, values in quantiles.items()}
        found["max"] = largest
    for name in ("low", "high"):
        found[name] = np.array([within_bounds(metric, end) for end in found[name].tolist()])
    finite = np.isfinite(mean)
    return {name: each if name == "mean" else np.where(finite, each, np.nan) for name, each in found.items()}


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [number_of(name, part.strip()) for part in text.split(",")]
    except ValueError:
        raise InputError(f"'{name}={text}' cannot be read: {name} is a number.") from None


def _what_there_is(frame: pd.DataFrame, name: str, values: "pd.Series[Any]", most: int = 8) -> str:
    """The values of a column, and where a place is none, what the trials select instead."""
    found = sorted(values.dropna().unique().tolist())
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in found]
    if shown:
        return f"{name} is {', '.join(shown[:most] + ['...'][: len(shown) > most])}"
    selections = frame["only"].dropna().unique().tolist() if name in ("layer", "component") else []
    return f"they select only={selections[0]}" if selections else "no trial has one"


def _close_match(name: str, known: Collection[str]) -> str:
    from emu.sweep.axes import close_match

    return close_match(name, known)
