"""What a store is made of: tables, columns that have a role, and the view `emu_results`, which SQL can ask."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sql
from sqlalchemy.schema import CreateTable

from emu.errors import InputError
from emu.sweep.rows import CONTROLS, Role
from emu.sweep.setup import STRUCTURE_AXES, Setup, digest

VERSION = 2
"""Of the tables. 1: controls and metrics of a trial were texts of JSON, in stores of the first emu."""

LONGEST_NAME = 200  # characters of a study's name; PostgreSQL refuses more, SQLite would take any
_LONGEST_COLUMN = 60  # bytes of a column's name; PostgreSQL cuts what is longer than 63

Kind = Literal["number", "count", "text"]

_TYPES: dict[Kind, type[Any]] = {"number": sql.Double, "count": sql.BigInteger, "text": sql.Text}


@dataclass(frozen=True)
class Column:
    """A column of the view, as the table `emu_column` lists it.

    Attributes:
        name: as people write it.
        role: what it is.
        kind: of its values.
        stored: its name in the database: `name`, unless that is too long or taken.
        position: its place, by which columns are sorted.
    """

    name: str
    role: Role
    kind: Kind
    stored: str
    position: int


_KINDS: dict[str, Kind] = {
    "seed": "count",
    "read_seed": "count",
    "head": "count",
    "strength": "number",
    "layer": "count",
    "undefined": "count",
    "seconds": "number",
    "correct": "count",
    "samples": "count",
    "study": "count",
    "batch_size": "count",
}
_ENVIRONMENT = ("emu", "onnxruntime", "instruction_set", "platform")
OF_SETUPS = ("model", "data", "device", "task", "batch_size")
_AFTER = ("undefined", "seconds", "correct", "samples", "finished", *OF_SETUPS, *_ENVIRONMENT, "setup_id")
_FIRST = ("id", "study")
FIXED = (*_FIRST, *CONTROLS, *_AFTER)
"""The columns of the view that every store has."""


def fixed_columns() -> list[Column]:
    """Those of `FIXED`, as the table `emu_column` lists them."""
    roles: dict[str, Role] = {**dict.fromkeys(STRUCTURE_AXES, "axis"), **CONTROLS}
    return [
        Column(name, roles.get(name, "bookkeeping"), _KINDS.get(name, "text"), name, place)
        for place, name in enumerate(FIXED)
    ]


class Schema:
    """The tables of a store with these axes and metrics of its own.

    An axis that a trial does not set is missing in its row, and has the bench's own number in that of its setup.
    """

    def __init__(self, own: Iterable[Column] = ()) -> None:
        self.own = {each.name: each for each in sorted(own, key=lambda each: each.position)}
        self.axes = [each for each in self.own.values() if each.role == "axis"]
        self.metrics = [each for each in self.own.values() if each.role == "metric"]
        tables = self.tables = sql.MetaData()
        self.version = sql.Table("emu_store", tables, sql.Column("schema_version", sql.Integer, nullable=False))
        self.columns = sql.Table(
            "emu_column",
            tables,
            sql.Column("name", sql.Text, primary_key=True),
            sql.Column("role", sql.String(16), nullable=False),
            sql.Column("kind", sql.String(16), nullable=False),
            sql.Column("stored", sql.String(64), nullable=False),
            sql.Column("position", sql.Integer, nullable=False),
        )
        self.setups = sql.Table(
            "emu_setup",
            tables,
            sql.Column("id", sql.String(64), primary_key=True),
            sql.Column("setup", sql.Text, nullable=False),
            sql.Column("model", sql.Text),
            sql.Column("data", sql.Text),
            sql.Column("device", sql.Text),
            sql.Column("task", sql.Text),
            sql.Column("batch_size", sql.BigInteger),
            *_columns(self.axes),
        )
        self.studies = sql.Table(
            "emu_study",
            tables,
            sql.Column("id", sql.Integer, primary_key=True),
            sql.Column("name", sql.String(LONGEST_NAME), nullable=False),
            sql.Column("fingerprint", sql.String(64), nullable=False),
            sql.Column("setup_id", sql.ForeignKey("emu_setup.id"), nullable=False),
            sql.Column("started", sql.String(32), nullable=False),
            sql.UniqueConstraint("name", "fingerprint"),
        )
        self.benches = sql.Table(
            "emu_bench",
            tables,
            sql.Column("study_id", sql.ForeignKey("emu_study.id"), primary_key=True),
            sql.Column("setup_id", sql.ForeignKey("emu_setup.id"), primary_key=True),
        )
        self.trials = sql.Table(
            "emu_trial",
            tables,
            sql.Column("id", sql.String(16), primary_key=True),
            sql.Column("setup_id", sql.ForeignKey("emu_setup.id"), nullable=False),
            sql.Column("seed", sql.BigInteger, nullable=False),
            sql.Column("read_seed", sql.BigInteger, nullable=False),
            sql.Column("head", sql.Integer, nullable=False),
            sql.Column("strength", sql.Double, nullable=False),
            sql.Column("only", sql.Text),
            sql.Column("exclude", sql.Text),
            sql.Column("layer", sql.Integer),
            sql.Column("component", sql.Text),
            sql.Column("correct", sql.BigInteger, nullable=False),
            sql.Column("samples", sql.BigInteger, nullable=False),
            sql.Column("undefined", sql.BigInteger, nullable=False),
            sql.Column("not_a_number", sql.Text),  # JSON of the metrics that are NaN: SQLite has none, and stores NULL
            sql.Column("seconds", sql.Double, nullable=False),
            sql.Column("finished", sql.String(32), nullable=False),
            *(sql.Column(name, sql.String(64)) for name in _ENVIRONMENT),
            *_columns(self.own.values()),
        )
        self.outcomes = sql.Table(
            "emu_outcome",
            tables,
            sql.Column("trial_id", sql.ForeignKey("emu_trial.id"), primary_key=True),
            sql.Column("arrays", sql.LargeBinary, nullable=False),
        )
        self.samples = sql.Table(
            "emu_samples",
            tables,
            sql.Column("data", sql.String(64), primary_key=True),
            sql.Column("arrays", sql.LargeBinary, nullable=False),
        )
        self.members = sql.Table(
            "emu_member",
            tables,
            sql.Column("study_id", sql.ForeignKey("emu_study.id"), primary_key=True),
            sql.Column("trial_id", sql.ForeignKey("emu_trial.id"), primary_key=True),
        )

    @property
    def names(self) -> list[str]:
        """The columns of the view, in their order there."""
        axes = sorted(each.name for each in self.axes)
        return [*_FIRST, *CONTROLS, *axes, *(each.name for each in self.metrics), *_AFTER]

    def results(self) -> "sql.Select[Any]":
        """The query of the view `emu_results`: a row for each trial and each study that it is part of."""
        setup, trial = self.setups.c, self.trials.c
        named = {
            **{name: trial[name] for name in (*CONTROLS, *_AFTER) if name in trial},
            **{name: setup[name] for name in OF_SETUPS},
            **{each.name: sql.func.coalesce(trial[each.stored], setup[each.stored]) for each in self.axes},
            **{each.name: trial[each.stored] for each in self.metrics},
            "id": trial.id,
            "study": self.members.c.study_id,
        }
        stored = {each.name: each.stored for each in self.own.values()}
        return (
            sql.select(*(named[name].label(stored.get(name, name)) for name in self.names))
            .join_from(self.members, self.trials, self.members.c.trial_id == trial.id)
            .join(self.setups, trial.setup_id == setup.id)
        )


def _columns(named: Iterable[Column]) -> list[sql.Column[Any]]:
    """For a table; the keys name the parameters of insertions, in which not every letter may stand."""
    return [sql.Column(each.stored, _TYPES[each.kind], key=each.stored) for each in named]


def read_version(connection: sql.Connection) -> int | None:
    """The version of the tables in a database; None where there are none."""
    there = sql.inspect(connection)
    if there.has_table("emu_store"):
        return int(connection.execute(sql.text("SELECT max(schema_version) FROM emu_store")).scalar_one() or 0) or None
    return 1 if there.has_table("emu_member") else None


def read_schema(connection: sql.Connection) -> Schema:
    """The schema with the columns that the database has by now."""
    found = connection.execute(sql.select(Schema().columns)).all()
    return Schema(Column(*row) for row in found if row.name not in FIXED)


def create(connection: sql.Connection) -> Schema:
    """Makes all tables and the view where there are none."""
    schema = Schema()
    for table in schema.tables.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
    connection.execute(sql.insert(schema.version), {"schema_version": VERSION})
    connection.execute(sql.insert(schema.columns), [vars(each) for each in fixed_columns()])
    _make_view(connection, schema)
    return schema


def grow(connection: sql.Connection, wanted: Sequence[tuple[str, Role, Kind]]) -> Schema:
    """Adds the columns that are missing, and for an axis the own number of every bench.

    Raises:
        InputError: a metric or axis has the name of another column.
    """
    schema = read_schema(connection)
    own, new = dict(schema.own), []
    wider = []
    for name, role, kind in wanted:
        there = own.get(name)
        if name in FIXED or (there and there.role != role):
            raise InputError(f"Every result has a column '{name}': give the {role} of this name another one.")
        if there is None:
            own[name] = Column(name, role, kind, _free(name, own.values()), len(FIXED) + len(own))
            new.append(own[name])
        elif kind == "text" != there.kind:  # a word where there were numbers so far
            own[name] = replace(there, kind="text")
            wider.append(own[name])
    if not new and not wider:
        return schema
    schema = Schema(own.values())
    connection.exec_driver_sql("DROP VIEW IF EXISTS emu_results")
    for each in new:
        connection.execute(sql.insert(schema.columns), vars(each))
        for table in _tables_with(schema, each):
            _alter(connection, f"ALTER TABLE {table.name} ADD COLUMN", table.c[each.stored], "")
    for each in wider:
        connection.execute(sql.update(schema.columns).where(schema.columns.c.name == each.name), {"kind": "text"})
        for table in _tables_with(schema, each) if connection.dialect.name != "sqlite" else ():  # which takes any value
            _alter(connection, f"ALTER TABLE {table.name} ALTER COLUMN", table.c[each.stored], "TYPE")
    axes = [each for each in [*new, *wider] if each.role == "axis"]
    if axes:
        for id, setup in read_setups(connection, schema):
            update = sql.update(schema.setups).where(schema.setups.c.id == id)
            connection.execute(update, {each.stored: in_column(each, setup.values.get(each.name)) for each in axes})
    _make_view(connection, schema)
    return schema


def setup_row(schema: Schema, setup: Setup) -> dict[str, Any]:
    """The row of a setup."""
    text = setup.as_json()
    return {
        "id": digest(text),
        "setup": text,
        **setup_facts(setup),
        **{each.stored: in_column(each, setup.values.get(each.name)) for each in schema.axes},
    }


def setup_facts(setup: Setup) -> dict[str, Any]:
    """What SQL may ask of a setup."""
    return {name: setup.values[name] for name in STRUCTURE_AXES} | {"task": setup.task, "batch_size": setup.batch_size}


def read_setups(connection: sql.Connection, schema: Schema, study: int | None = None) -> list[tuple[str, Setup]]:
    """The setups of one study or of all, with their ids; damaged ones are left to who needs them."""
    setups, benches = schema.setups, schema.benches
    query = sql.select(setups.c.id, setups.c.setup)
    if study is not None:
        query = query.join(benches, benches.c.setup_id == setups.c.id).where(benches.c.study_id == study)
    found = []
    for row in connection.execute(query).all():
        with suppress(InputError):
            found.append((row.id, Setup.from_json(row.setup)))
    return found


def kind_of(values: Iterable[Any]) -> Kind:
    """The kind of a column that holds these values."""
    numbers = all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)
    return "number" if numbers else "text"


def in_column(column: Column, value: Any) -> Any:
    """A value as a column holds it: among words a number is one too."""
    if column.kind != "text" or value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _tables_with(schema: Schema, column: Column) -> list[sql.Table]:
    return [schema.trials, schema.setups] if column.role == "axis" else [schema.trials]


def _alter(connection: sql.Connection, change: str, column: sql.Column[Any], word: str) -> None:
    name = connection.dialect.identifier_preparer.quote(column.name)
    text = f"{change} {name} {word} {column.type.compile(connection.dialect)}"
    connection.exec_driver_sql(text.replace("%", _percent(connection)))


def _make_view(connection: sql.Connection, schema: Schema) -> None:
    """The view names all columns: `*` would not see those that come later."""
    query = schema.results().compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
    connection.exec_driver_sql(f"CREATE VIEW emu_results AS {query}")


def _percent(connection: sql.Connection) -> str:
    """A % in a statement for the driver."""
    return "%%" if connection.dialect.paramstyle in ("format", "pyformat") else "%"


def _free(name: str, own: Iterable[Column]) -> str:
    """A name for a column that no other has, in a database that sees no capital letters."""
    taken = {each.casefold() for each in (*FIXED, "not_a_number", "setup", *(each.stored for each in own))}
    if name.casefold() not in taken and len(name.encode()) <= _LONGEST_COLUMN:
        return name
    short = name.encode()[: _LONGEST_COLUMN - 9].decode(errors="ignore")
    return f"{short}_{digest(name)[:8]}"
