"""Brings stores of an older emu to the tables of this one."""

import json
from typing import Any

import sqlalchemy as sql

from emu.sweep import schema as tables
from emu.sweep.rows import number_of, places

_AT_ONCE = 2000


def migrate(connection: sql.Connection, keep: bool) -> None:
    """Moves the trials of version 1, whose numbers and metrics are JSON, into columns.

    Args:
        connection: in a transaction, alone on the database.
        keep: leave the tables as they were, as `emu_trial_1` and `emu_member_1`.

    Raises:
        ValueError, TypeError, AttributeError, RecursionError: a row is damaged; the first argument begins with its id.
    """
    for name in ("emu_trial", "emu_member"):
        connection.exec_driver_sql(f"CREATE TABLE {name}_1 AS SELECT * FROM {name}")
    for name in ("emu_member", "emu_trial"):
        connection.exec_driver_sql(f"DROP TABLE {name}")
    schema = tables.Schema()
    there = {each["name"] for each in sql.inspect(connection).get_columns("emu_setup")}
    for column in schema.setups.c:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE emu_setup ADD COLUMN {column.name} {kind}")
    schema = tables.create(connection)
    emu = _fill_setups(connection, schema)
    old = sql.Table("emu_trial_1", sql.MetaData(), autoload_with=connection)
    last = ""
    while rows := connection.execute(sql.select(old).where(old.c.id > last).order_by(old.c.id).limit(_AT_ONCE)).all():
        last = rows[-1].id
        read = [_read(dict(row._mapping), emu) for row in rows]
        axes = {name: "axis" for _, numbers, _ in read for name in numbers}
        metrics = {name: "metric" for _, _, values in read for name in values}
        schema = tables.grow(connection, [(name, role, "number") for name, role in {**axes, **metrics}.items()])  # type: ignore[misc]
        stored = {name: each.stored for name, each in schema.own.items()}
        absent = dict.fromkeys(stored.values())
        connection.execute(
            sql.insert(schema.trials),
            [
                {**absent, **row, **{stored[name]: value for name, value in {**numbers, **values}.items()}}
                for row, numbers, values in read
            ],
        )
    members = sql.text("INSERT INTO emu_member (study_id, trial_id) SELECT study_id, trial_id FROM emu_member_1")
    connection.execute(members)
    if not keep:
        connection.exec_driver_sql("DROP TABLE emu_trial_1")
        connection.exec_driver_sql("DROP TABLE emu_member_1")


def _fill_setups(connection: sql.Connection, schema: tables.Schema) -> dict[str, str]:
    """Writes what SQL may ask of setups into their columns; the version of emu of each that is not damaged."""
    setups = tables.read_setups(connection, schema)
    for id, setup in setups:
        connection.execute(sql.update(schema.setups).where(schema.setups.c.id == id), tables.setup_facts(setup))
    query = "INSERT INTO emu_bench (study_id, setup_id) SELECT id, setup_id FROM emu_study"
    connection.execute(sql.text(query))
    return {id: setup.emu for id, setup in setups}


def _read(row: dict[str, Any], emu: dict[str, str]) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """A row of version 1: what is still in the columns of every store, numbers of the device, and metrics."""
    try:
        settings, metrics = json.loads(row.pop("settings")), json.loads(row.pop("metrics"))
        numbers = {name: number_of(name, value) for name, value in settings.items()}
        values = {name: float(value) for name, value in metrics.items()}
        found = places(row["only"])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise type(error)(row["id"], error) from None
    lost = [name for name, value in values.items() if value != value]
    return (
        {
            **{name: row.get(name) for name in ("onnxruntime", "instruction_set")},
            **row,
            "emu": emu.get(row["setup_id"]),
            "layer": found.get("layer"),
            "component": found.get("component"),
            "not_a_number": json.dumps(lost) if lost else None,
        },
        numbers,
        {name: None if value != value else value for name, value in values.items()},
    )
