"""Results in a database: SQLite in a file, or PostgreSQL by its URL."""

import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from emu.errors import InputError
from emu.evaluation import Score, Trial
from emu.sweep.environment import Environment
from emu.sweep.rows import Result, natural, plain, record, shaping_axes, trial_id
from emu.sweep.setup import STRUCTURE_AXES, Setup, digest

if TYPE_CHECKING:
    import pandas as pd

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}  # where a URL names none
_AT_ONCE = 500  # ids in one query
_FIRST_PAUSE_S = 0.25  # before the first attempt to reach a database again; each further one waits twice as long
_LONGEST_NAME = 200  # characters; PostgreSQL refuses more, SQLite would take any

_Found = TypeVar("_Found")

_tables = sql.MetaData()
_setups = sql.Table(
    "emu_setup",
    _tables,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("setup", sql.Text, nullable=False),
)
_studies = sql.Table(
    "emu_study",
    _tables,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("name", sql.String(_LONGEST_NAME), nullable=False),
    sql.Column("fingerprint", sql.String(64), nullable=False),
    sql.Column("setup_id", sql.ForeignKey("emu_setup.id"), nullable=False),
    sql.Column("started", sql.String(32), nullable=False),
    sql.UniqueConstraint("name", "fingerprint"),
)
_trials = sql.Table(
    "emu_trial",
    _tables,
    sql.Column("id", sql.String(16), primary_key=True),
    sql.Column("setup_id", sql.ForeignKey("emu_setup.id"), nullable=False),
    sql.Column("seed", sql.BigInteger, nullable=False),
    sql.Column("read_seed", sql.BigInteger, nullable=False),
    sql.Column("head", sql.Integer, nullable=False),
    sql.Column("strength", sql.Double, nullable=False),
    sql.Column("only", sql.Text),
    sql.Column("exclude", sql.Text),
    sql.Column("settings", sql.Text, nullable=False),
    sql.Column("metrics", sql.Text, nullable=False),
    sql.Column("correct", sql.BigInteger, nullable=False),
    sql.Column("samples", sql.BigInteger, nullable=False),
    sql.Column("undefined", sql.BigInteger, nullable=False),
    sql.Column("seconds", sql.Double, nullable=False),
    sql.Column("finished", sql.String(32), nullable=False),
    # Stores of the first emu lack these: they are read as they are, and get them when they are written to.
    sql.Column("onnxruntime", sql.String(64)),
    sql.Column("instruction_set", sql.String(64)),
)
_members = sql.Table(
    "emu_member",
    _tables,
    sql.Column("study_id", sql.ForeignKey("emu_study.id"), primary_key=True),
    sql.Column("trial_id", sql.ForeignKey("emu_trial.id"), primary_key=True),
)


@dataclass(frozen=True)
class StudyInfo:
    """A study of a store: its number and name, how its bench was first made, when, and its number of trials."""

    number: int
    name: str
    setup: Setup
    started: str
    trials: int


class Study:
    """A study that is under way; made by `Store.study`."""

    def __init__(self, store: "Store", number: int, setup: Setup, setup_id: str) -> None:
        self._store, self.number, self._setup, self._setup_id = store, number, setup, setup_id

    def id(self, trial: Trial) -> str:
        """The id of a trial: 16 hexadecimal digits, equal for equal trials with equal fingerprints."""
        return trial_id(self._setup, trial)

    def held(self, trials: Iterable[Trial]) -> dict[str, Result]:
        """The results that the store holds for these trials, by their ids, whichever study they were run for."""
        ids = list({self.id(trial) for trial in trials})
        held = {}
        for start in range(0, len(ids), _AT_ONCE):
            query = self._store.trials_and_setups().where(_trials.c.id.in_(ids[start : start + _AT_ONCE]))
            for row in self._store.rows(query):
                held[row.id] = self._store.read(row)[2]
        return held

    def link(self, ids: Iterable[str]) -> None:
        """Makes trials that the store holds part of this study too."""
        rows = [{"study_id": self.number, "trial_id": each} for each in sorted(ids)]  # no deadlock
        if rows:
            self._store.transact(lambda connection: connection.execute(self._store.insert(_members), rows))

    def add(self, trial: Trial, result: Result) -> None:
        """Stores a finished trial; a second one that is equal changes nothing."""
        controls = plain(trial)
        row = {
            "id": self.id(trial),
            "setup_id": self._setup_id,
            "settings": json.dumps(controls.pop("set")),
            **controls,
            "metrics": json.dumps({name: _number_out(value) for name, value in result.score.metrics.items()}),
            "correct": result.score.correct,
            "samples": result.score.samples,
            "undefined": result.score.undefined,
            "seconds": result.seconds,
            "finished": _now(),
            "onnxruntime": result.environment.onnxruntime,
            "instruction_set": result.environment.instruction_set,
        }

        def store(connection: sql.Connection) -> None:
            connection.execute(self._store.insert(_trials), row)
            connection.execute(self._store.insert(_members), {"study_id": self.number, "trial_id": row["id"]})

        self._store.transact(store)


class Store:
    """Trials and their results in a database.

    A trial is stored once for one fingerprint of model, device, data and task; studies with a name and a fingerprint
    refer to it. Several processes may write at the same time. A server that goes away is tried again.

    Args:
        where: an SQLite file, made if missing, or the URL of a database, such as `postgresql://user@host/name`.
        create: False to read only: a file that does not exist is refused, and nothing is written, so that the store may
            lie on a medium that cannot be written to.
        patience_s: how long to wait for another process that is writing, or for a server that went away, seconds.

    Attributes:
        where: the file or URL, without a password.

    Raises:
        InputError: the folder or file is missing, or it is not a database, or a server or its driver is not there.
    """

    def __init__(self, where: str | Path, *, create: bool = True, patience_s: float = 30.0) -> None:
        self.where = str(where)
        self._is_new = False  # a file is made with the first result, not by a command that is refused
        self._writes, self._patience_s = create, patience_s
        self._secrets: list[str] = []
        self._absent: set[str] = set()  # columns of trials that a store of an older emu lacks
        if "://" in self.where:
            self._engine = self._open(self.where)
        else:
            self._engine = self._open_file(Path(self.where))
            self._is_new = not Path(self.where).exists()
        if not self._is_new:
            self._prepare_tables()

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def study(self, name: str, setup: Setup, number: int | None = None) -> Study:
        """Begins or continues the study of this name and fingerprint, or adds a setup to the study of that number.

        Raises:
            InputError: the name is too long.
        """
        if len(name) > _LONGEST_NAME:
            raise InputError(
                f"The name of the study, '{name[:20]}...', has {len(name)} characters: give one of at most "
                f"{_LONGEST_NAME}."
            )
        if self._is_new:
            self._prepare_tables()
        text = setup.as_json()
        setup_id = digest(text)
        row = {"name": name, "fingerprint": setup.identity, "setup_id": setup_id, "started": _now()}
        query = sql.select(_studies.c.id).where(_studies.c.name == name, _studies.c.fingerprint == setup.identity)

        def begin(connection: sql.Connection) -> int:
            connection.execute(self.insert(_setups), {"id": setup_id, "setup": text})
            if number is not None:
                return number
            connection.execute(self.insert(_studies), row)
            return int(connection.execute(query).scalar_one())

        return Study(self, self.transact(begin), setup, setup_id)

    def studies(self) -> list[StudyInfo]:
        """The studies, the oldest first."""
        if self._is_new:
            return []
        count = sql.func.count(_members.c.trial_id)
        query = (
            sql.select(_studies, _setups.c.setup, count.label("trials"))
            .join(_setups, _studies.c.setup_id == _setups.c.id)
            .outerjoin(_members, _members.c.study_id == _studies.c.id)
            .group_by(*_studies.c, _setups.c.setup)
            .order_by(_studies.c.id)
        )
        return [
            StudyInfo(row.id, row.name, self._setup(row.setup, f"study {row.id}"), row.started, row.trials)
            for row in self.rows(query)
        ]

    def trial(self, beginning: str) -> tuple[str, Setup, Trial, Result]:
        """One stored trial by its id, or by a beginning of its id that no other has.

        Raises:
            InputError: none or several begin like that.
        """
        if self._is_new:
            raise InputError(f"{self.where} has no results.")
        query = self.trials_and_setups().where(_trials.c.id.startswith(beginning, autoescape=True)).limit(2)
        rows = self.rows(query)
        if len(rows) != 1:
            what = "several trials whose ids begin with" if rows else "no trial"
            raise InputError(f"{self.where} has {what} '{beginning}': 'emu results {self.where} --trials' lists them.")
        return rows[0].id, *self.read(rows[0])

    def frame(self, study: str | int | None = None) -> "pd.DataFrame":
        """All trials, one row each and study, in an order that does not depend on which ran first.

        Args:
            study: the number or name of a study; None for all.

        Returns:
            The columns `id`, `study` (its number), those of `run_trials`, `correct`, `samples`, `finished` (UTC),
            `model`, `data`, `device`, `task`, `batch_size`, `emu`, `onnxruntime`, `instruction_set` (None for trials
            of an emu that did not store them), and `setup`, the JSON of all that is needed to make the bench again.
            `attrs["primary"]` lists the metrics that are meant where one number is asked for.

        Raises:
            InputError: there is no such study, or the store is empty.
        """
        import pandas as pd

        numbers = self._numbers(study)
        query = (
            self.trials_and_setups()
            .add_columns(_members.c.study_id)
            .join(_members, _members.c.trial_id == _trials.c.id)
            .where(_members.c.study_id.in_(numbers))
        )
        rows = self.rows(query)
        setups = {row.setup: self._setup(row.setup, f"trial {row.id}") for row in rows}
        read = [self.read(row, setups[row.setup]) for row in rows]
        shaping = shaping_axes((row.study_id, setup) for row, (setup, _, _) in zip(rows, read, strict=True))
        names = {name for _, trial, _ in read for name in trial.set}
        names |= {name for name in shaping if name not in STRUCTURE_AXES}
        table = []
        for row, (setup, trial, result) in zip(rows, read, strict=True):
            table.append(
                {
                    "id": row.id,
                    "study": row.study_id,
                    **record(trial, result, sorted(names), setup.values),
                    "correct": result.score.correct,
                    "samples": result.score.samples,
                    "finished": row.finished,
                    "model": setup.model,
                    "data": setup.data,
                    "device": ", ".join(setup.devices),
                    "task": setup.task,
                    "batch_size": setup.batch_size,
                    "emu": setup.emu,
                    "onnxruntime": result.environment.onnxruntime,
                    "instruction_set": result.environment.instruction_set,
                    "setup": row.setup,
                }
            )
        if not table:
            raise InputError(
                f"{self.where} has no results of {'any study' if study is None else f'study {study}'} yet."
            )
        frame = pd.DataFrame(table)
        frame.attrs["primary"] = list(dict.fromkeys(setup.primary for setup in setups.values()))
        places = [name for name in STRUCTURE_AXES if name in shaping]
        order = ["study", *places, *sorted(names), "strength", "only", "exclude", "head", "read_seed", "seed"]
        return frame.sort_values(order, key=natural, kind="stable", na_position="first", ignore_index=True)

    def rows(self, query: "sql.Select[Any]") -> list[Any]:
        """All rows of a query."""
        return list(self.transact(lambda connection: connection.execute(query).all()))

    def transact(self, work: Callable[[sql.Connection], _Found]) -> _Found:
        """Does some work in a transaction; again if a server went away meanwhile, as all work may be done twice.

        Raises:
            InputError: what the database refuses, or a server that does not come back.
        """
        pause, end = _FIRST_PAUSE_S, time.monotonic() + self._patience_s
        while True:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                if not self._is_lost(error):
                    raise self._refused(error) from None
                if time.monotonic() + pause > end:
                    raise InputError(
                        f"{self.where} does not answer any more ({self._said(error)}): what it holds is kept, and the "
                        "same command goes on from there once it is back."
                    ) from None
            self._engine.dispose()  # connections that are as dead as this one
            time.sleep(pause)
            pause *= 2

    def trials_and_setups(self) -> "sql.Select[Any]":
        """The query of all trials, each with how its bench was made."""
        columns = [sql.null().label(each.name) if each.name in self._absent else each for each in _trials.c]
        return sql.select(*columns, _setups.c.setup).join(_setups, _trials.c.setup_id == _setups.c.id)

    def read(self, row: Any, setup: Setup | None = None) -> tuple[Setup, Trial, Result]:
        """What a row of `trials_and_setups` holds; its setup, where it was read before.

        Raises:
            InputError: the row is damaged.
        """
        setup = setup or self._setup(row.setup, f"trial {row.id}")
        try:
            settings: dict[str, Any] = json.loads(row.settings)
            numbers: dict[str, Any] = {
                name: value if isinstance(value, str) else _real(value) for name, value in settings.items()
            }
            metrics = {name: float(value) for name, value in json.loads(row.metrics).items()}
            trial = Trial(
                seed=_whole(row.seed),
                read_seed=_whole(row.read_seed),
                head=_whole(row.head),
                strength=_real(row.strength),
                only=row.only,
                exclude=row.exclude,
                set=dict[str, Any](numbers),
            )
            score = Score(metrics, _whole(row.correct), _whole(row.samples), _whole(row.undefined))
            environment = Environment(setup.emu, row.onnxruntime, row.instruction_set)
            return setup, trial, Result(score, _real(row.seconds), environment)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.where} is damaged: trial {row.id} cannot be read ({reason}): restore the store from a copy, or "
                "delete that row of emu_trial, and of emu_member, and run the sweep again."
            ) from None

    def insert(self, table: sql.Table) -> Any:
        """An insertion that leaves an equal row as it is."""
        return _INSERT[self._engine.dialect.name](table).on_conflict_do_nothing()

    def _numbers(self, study: str | int | None) -> list[int]:
        studies = self.studies()
        if not studies:
            raise InputError(f"{self.where} has no results.")
        wanted = [each.number for each in studies if study is None or str(study) in (str(each.number), each.name)]
        if not wanted:
            listed = ", ".join(f"{each.number} '{each.name}'" for each in studies)
            raise InputError(f"{self.where} has no study '{study}': it has {listed}.")
        return wanted

    def _setup(self, text: str, of: str) -> Setup:
        """How a bench was made.

        Raises:
            InputError: it is damaged, or of another version of emu.
        """
        try:
            return Setup.from_json(text)
        except InputError as error:
            raise InputError(f"{self.where}, {of}: {error}") from None

    def _open_file(self, path: Path) -> sql.Engine:
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent} for the store {path.name}: make it first.")
        if path.is_dir():
            raise InputError(f"{path} is a folder: give a file for the store, such as {path / 'study.db'}.")
        if not path.exists() and not self._writes:
            raise InputError(f"There is no store {path}: 'emu sweep --store {path}' would make it.")
        if not self._writes and not (_writable(path) and _writable(path.parent)):
            # SQLite writes beside a file in WAL mode even to read it, unless it is told that nothing changes it. What
            # another process did not move into the file yet would be lost on it: then it must do without.
            log = path.with_name(f"{path.name}-wal")
            unchanging = "" if log.exists() and log.stat().st_size else "&immutable=1"
            name = f"file:{quote(str(path.absolute()))}?mode=ro{unchanging}"

            def connect() -> sqlite3.Connection:
                return sqlite3.connect(name, uri=True, timeout=self._patience_s)

            return sql.create_engine("sqlite://", creator=connect, poolclass=sql.NullPool)
        timeout = {"timeout": self._patience_s}
        engine = sql.create_engine(sql.URL.create("sqlite", database=str(path)), connect_args=timeout)
        if not self._writes:
            return engine

        @sql.event.listens_for(engine, "connect")
        def _prepare(connection: Any, _: Any) -> None:
            # Readers and a writer do not wait for each other, and a killed process leaves a whole database.
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        return engine

    def _open(self, text: str) -> sql.Engine:
        """The engine of a URL. `where` and every message name it without its passwords from here on."""
        self.where = _shown(text)
        try:
            url = sql.make_url(text)
        except (SQLAlchemyError, ValueError):  # ValueError: a port that is no number
            raise InputError(
                f"'{self.where}' is no URL of a database: write postgresql://user@host:5432/name."
            ) from None
        if "@" in (url.host or ""):
            raise InputError(f"The URL of '{self.where}' has more than one @: write one in the password as %40.")
        hidden = [name for name in url.query if "password" in name.lower()]
        self._secrets = [str(each) for each in (url.password, *(url.query[name] for name in hidden)) if each]
        self.where = url.difference_update_query(hidden).render_as_string(hide_password=True)
        driver = url.drivername
        if driver.partition("+")[0] not in (*_INSERT, *_DRIVERS):
            raise InputError(f"'{self.where}' is a database that emu cannot use: give a file, or postgresql://...")
        url = url.set(drivername=_DRIVERS.get(driver, driver))
        try:
            return sql.create_engine(url)
        except ImportError as error:  # also of a driver that is there and lacks its library
            if "psycopg" in url.drivername:
                raise InputError(
                    f"The store {self.where} needs psycopg with its library: pip install 'psycopg[binary]'."
                ) from None
            raise InputError(f"The store {self.where} needs {error.name}: pip install {error.name}.") from None
        except SQLAlchemyError as error:
            raise InputError(f"'{self.where}' is no URL of a database: {self._masked(str(error))}.") from None

    def _prepare_tables(self) -> None:
        """Makes what is missing of the tables, and looks which columns there are.

        Where another process makes them at the same time, once more finds them made.
        """
        for attempt in range(5):
            try:
                with self._engine.begin() as connection:
                    if self._writes:
                        for table in _tables.sorted_tables:
                            connection.execute(CreateTable(table, if_not_exists=True))
                    found = sql.inspect(connection)
                    if not found.has_table(_members.name):
                        self._is_new = True  # nothing was ever stored
                        return
                    there = {each["name"] for each in found.get_columns(_trials.name)}
                    self._absent = {each.name for each in _trials.c if each.nullable} - there
                    for name in sorted(self._absent) if self._writes else ():
                        kind = _trials.c[name].type.compile(self._engine.dialect)
                        connection.execute(sql.text(f"ALTER TABLE {_trials.name} ADD COLUMN {name} {kind}"))
                if self._writes:
                    self._absent = set()
                self._is_new = False
                return
            except DBAPIError as error:
                if attempt == 4 or "not a database" in str(error.orig) or self._is_lost(error):
                    raise self._refused(error) from None
                time.sleep(0.05 * 2**attempt)

    def _is_lost(self, error: DBAPIError) -> bool:
        """Whether a server went away, or cannot be reached."""
        unreached = isinstance(error, OperationalError) and error.statement is None
        return self._engine.dialect.name != "sqlite" and (error.connection_invalidated or unreached)

    def _refused(self, error: DBAPIError) -> InputError:
        said = self._said(error)
        if "not a database" in said:
            return InputError(f"{self.where} is no database: give another file for the store.")
        if "locked" in said:
            return InputError(
                f"{self.where} is locked by another process: wait until it has finished writing, or end it."
            )
        if "readonly" in said or "unable to open" in said:
            return InputError(
                f"{self.where} cannot be written, or its folder cannot: give another file for the store, or copy it "
                "elsewhere."
            )
        if "no column" in said or "no such column" in said:
            return InputError(f"{self.where} was written by another version of emu: give another file for the store.")
        if self._is_lost(error):
            return InputError(f"{self.where} cannot be reached ({said}): check host, port, name and user of the URL.")
        return InputError(f"{self.where}: the database refuses: {said}.")

    def _said(self, error: DBAPIError) -> str:
        """What the database said, in one line, without advice on servers and without passwords."""
        said = " ".join(str(error.orig).split()).partition(" Is the server running")[0]
        return self._masked(said.rstrip(".?"))

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _real(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _number_out(value: float) -> float | str:
    """JSON has no NaN and no infinity: they become text, which `float` reads."""
    return float(value) if math.isfinite(value) else str(float(value))


def _shown(url: str) -> str:
    """A URL that cannot be read, without its user, password and options."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
