"""The trials of a store as one table of pandas, without an object for each trial: it may hold some hundred thousand."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sql

from emu.sweep import schema as tables
from emu.sweep.database import Database
from emu.sweep.rows import Role, natural
from emu.sweep.schema import Column, Kind, Schema
from emu.sweep.setup import STRUCTURE_AXES, Setup

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]


def read_frame(
    database: Database,
    schema: Schema,
    studies: Sequence[int],
    setups: Mapping[str, tuple[str, Setup]],
    roles: Collection[Role] | None,
    damaged: Callable[[str, str], Exception],
) -> "pd.DataFrame | None":
    """The table of `Store.frame`; None where the studies have no trial.

    Args:
        database: where they are.
        schema: its columns.
        studies: their numbers.
        setups: text and content of each setup, by id.
        roles: of the columns wanted; None for all.
        damaged: the error for the trial of an id, and what is wrong with it.
    """
    import pandas as pd

    known = {each.name: each for each in (*tables.fixed_columns(), *schema.own.values())}
    wanted = [name for name in schema.names if name in ("study", "task") or roles is None or known[name].role in roles]
    trials, members = schema.trials.c, schema.members.c
    places = {name: trials[name] for name in tables.FIXED if name in trials}
    places |= {"study": members.study_id, **{name: trials[each.stored] for name, each in schema.own.items()}}
    asked = [name for name in dict.fromkeys([*wanted, "setup_id"]) if name in places]
    texts: dict[Any, Any] = {}  # each once, however many rows have it

    def numbers(name: str, values: Sequence[Any], ids: Sequence[str]) -> Array:
        return _numeric(known[name].kind, values, lambda at, why: damaged(ids[at], f"{name}: {why}"))

    def block(rows: list[tuple[Any, ...]]) -> list[Array]:
        ids, *columns = zip(*rows, strict=True)
        return [
            _once(texts, values) if known[name].kind == "text" or name == "layer" else numbers(name, values, ids)
            for name, values in zip(asked, columns, strict=True)
        ]

    query = sql.select(trials.id, *(places[name] for name in asked)).join_from(schema.members, schema.trials)
    blocks = database.blocks(query.where(members.study_id.in_(studies)), block)
    if not blocks:
        return None
    data = {name: np.concatenate([each.pop(0) for each in blocks]) for name in asked}
    setup_of, which = pd.factorize(data.pop("setup_id"))
    held = [setups[id] for id in which]
    for name in (*tables.OF_SETUPS, *(["setup"] if roles is None else [])):
        if name == "setup" or name in wanted:
            facts = [text if name == "setup" else tables.setup_facts(setup)[name] for text, setup in held]
            data[name] = np.array(facts, None if name == "batch_size" else object)[setup_of]
    lost = database.rows(sql.select(trials.not_a_number).where(trials.not_a_number.is_not(None)).distinct())
    nans = {name for row in lost for name in json.loads(row.not_a_number)}
    for each in schema.own.values():  # other studies have more
        own = {repr(setup.values.get(each.name)) for _, setup in held} if each.role == "axis" else nans & {each.name}
        if each.name in data and pd.isna(data[each.name]).all() and len(own) < (2 if each.role == "axis" else 1):
            del data[each.name]
    for each in schema.axes:
        if each.name in data:
            _fill_in(each, data[each.name], [setup.values.get(each.name) for _, setup in held], setup_of)

    def column(name: str) -> Any:
        """Texts stay objects, of which equal ones are one: pandas would copy each."""
        values = data.pop(name)
        return pd.Series(values, dtype=object, copy=False) if values.dtype == object else values

    axes = sorted(each.name for each in schema.axes)
    order = ["study", *STRUCTURE_AXES, *axes, "strength", "only", "exclude", "head", "read_seed", "seed"]
    order = [name for name in order if name in data and len(pd.unique(data[name])) > 1]
    if order:
        keys = pd.DataFrame({name: column(name) for name in order}, copy=False)
        data |= {name: keys[name].to_numpy() for name in order}
        rows = keys.sort_values(order, key=natural, kind="stable", na_position="first").index.to_numpy()
        del keys
        for name in data:
            data[name] = data[name][rows]
    if "layer" in data:
        data["layer"] = pd.array(data["layer"], "Int64")
    names = [name for name in (*wanted, "setup") if name in data]
    frame = pd.DataFrame({name: column(name) for name in names}, copy=False)
    frame.attrs["primary"] = list(dict.fromkeys(setup.primary for _, setup in held))
    frame.attrs["roles"] = {name: known[name].role if name in known else "bookkeeping" for name in names}
    return frame


def check_whole(value: Any) -> int:
    """A whole number of a database.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def check_real(value: Any) -> float:
    """A number of a database.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _numeric(kind: Kind, values: Sequence[Any], damaged: Callable[[int, str], Exception]) -> Array:
    """Numbers of some rows as an array; NaN for what is missing, where it may be."""
    try:
        array = np.array(values, np.float64 if kind == "number" else None)
        if kind == "number" or array.dtype.kind == "i":
            return array
    except (ValueError, TypeError):
        pass
    for at, value in enumerate(values):
        try:
            check_whole(value) if kind == "count" else value is None or check_real(value)
        except TypeError as error:
            raise damaged(at, str(error)) from None
    raise AssertionError(kind)


def _once(texts: dict[Any, Any], values: Sequence[Any]) -> Array:
    """Values as an array of objects, of which equal ones are one."""
    first = texts.setdefault(values[0], values[0])
    same = values.count(first) == len(values)
    array = np.empty(len(values), object)
    array[:] = [first] * len(values) if same else [texts.setdefault(value, value) for value in values]
    return array


def _fill_in(axis: Column, values: Array, own: Sequence[Any], setup_of: Array) -> None:
    """Where a trial does not set an axis, the bench's own value stands."""
    if axis.kind == "text":  # also of numbers, from before the first word
        values[:] = [tables.in_column(axis, value) for value in values]
    missing = values == None if axis.kind == "text" else np.isnan(values)  # noqa: E711  # element by element
    values[missing] = np.array([tables.in_column(axis, value) for value in own], values.dtype)[setup_of[missing]]
