"""Results in a database: SQLite in a file, or PostgreSQL by its URL."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from emu.errors import InputError
from emu.evaluation import Score, Trial
from emu.libraries import missing
from emu.sweep.rows import CONTROLS, Result, natural, plain, record, trial_id
from emu.sweep.setup import Setup, digest

if TYPE_CHECKING:
    import pandas as pd

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_AT_ONCE = 500  # ids in one query

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
    sql.Column("name", sql.String(200), nullable=False),
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
        self._store, self._number, self._setup, self._setup_id = store, number, setup, setup_id

    def id(self, trial: Trial) -> str:
        """The id of a trial: 16 hexadecimal digits, equal for equal trials with equal fingerprints."""
        return trial_id(self._setup, trial)

    def held(self, trials: Iterable[Trial]) -> dict[str, Result]:
        """The results that the store holds for these trials, by their ids, whichever study they were run for."""
        ids = list({self.id(trial) for trial in trials})
        held = {}
        with self._store.connection() as connection:
            for start in range(0, len(ids), _AT_ONCE):
                query = sql.select(_trials).where(_trials.c.id.in_(ids[start : start + _AT_ONCE]))
                for row in connection.execute(query):
                    held[row.id] = Result(_score(row), row.seconds)
        return held

    def link(self, ids: Iterable[str]) -> None:
        """Makes trials that the store holds part of this study too."""
        rows = [{"study_id": self._number, "trial_id": each} for each in sorted(ids)]  # no deadlock
        if rows:
            with self._store.connection() as connection:
                connection.execute(self._store.insert(_members), rows)

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
        }
        with self._store.connection() as connection:
            connection.execute(self._store.insert(_trials), row)
            connection.execute(self._store.insert(_members), {"study_id": self._number, "trial_id": row["id"]})


class Store:
    """Trials and their results in a database.

    A trial is stored once for one fingerprint of model, device, data and task; studies with a name and a fingerprint
    refer to it. Several processes may write at the same time.

    Args:
        where: an SQLite file, made if missing, or the URL of a database, such as `postgresql+psycopg://host/name`.
        create: False to refuse a file that does not exist.
        patience_s: how long to wait for another process that is writing, seconds.

    Raises:
        InputError: the folder or file is missing, or it is not a database.
    """

    def __init__(self, where: str | Path, *, create: bool = True, patience_s: float = 30.0) -> None:
        self.where = str(where)
        self._is_new = False  # a file is made with the first result, not by a command that is refused
        if "://" in self.where:
            self._engine = self._open(self.where)
            self.where = self._engine.url.render_as_string(hide_password=True)
        else:
            self._engine = self._open_file(Path(self.where), create, patience_s)
            self._is_new = not Path(self.where).exists()
        if not self._is_new:
            self._create_tables()

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def study(self, name: str, setup: Setup) -> Study:
        """Begins or continues the study of this name and fingerprint."""
        if self._is_new:
            self._create_tables()
        text = setup.as_json()
        setup_id = digest(text)
        row = {"name": name, "fingerprint": setup.identity, "setup_id": setup_id, "started": _now()}
        query = sql.select(_studies.c.id).where(_studies.c.name == name, _studies.c.fingerprint == setup.identity)
        with self.connection() as connection:
            connection.execute(self.insert(_setups), {"id": setup_id, "setup": text})
            connection.execute(self.insert(_studies), row)
            number = connection.execute(query).scalar_one()
        return Study(self, number, setup, setup_id)

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
        with self.connection() as connection:
            return [
                StudyInfo(row.id, row.name, Setup.from_json(row.setup), row.started, row.trials)
                for row in connection.execute(query)
            ]

    def trial(self, beginning: str) -> tuple[str, Setup, Trial, Result]:
        """One stored trial by its id, or by a beginning of its id that no other has.

        Raises:
            InputError: none or several begin like that.
        """
        if self._is_new:
            raise InputError(f"{self.where} has no results.")
        query = (
            sql.select(_trials, _setups.c.setup)
            .join(_setups, _trials.c.setup_id == _setups.c.id)
            .where(_trials.c.id.startswith(beginning, autoescape=True))
            .limit(2)
        )
        with self.connection() as connection:
            rows = connection.execute(query).all()
        if len(rows) != 1:
            what = "several trials whose ids begin with" if rows else "no trial"
            raise InputError(f"{self.where} has {what} '{beginning}': 'emu results {self.where} --trials' lists them.")
        row = rows[0]
        return row.id, Setup.from_json(row.setup), _trial(row), Result(_score(row), row.seconds)

    def frame(self, study: str | int | None = None) -> "pd.DataFrame":
        """All trials, one row each and study, in an order that does not depend on which ran first.

        Args:
            study: the number or name of a study; None for all.

        Returns:
            The columns `id`, `study` (its number), those of `run_trials`, `correct`, `samples`, `finished` (UTC),
            `model`, `data`, `device`, `task`, `batch_size`, `emu`, and `setup`, the JSON of all that is needed to make
            the bench again. `attrs["primary"]` lists the metrics that are meant where one number is asked for.

        Raises:
            InputError: there is no such study, or the store is empty.
        """
        import pandas as pd

        numbers = self._numbers(study)
        query = (
            sql.select(_members.c.study_id, _trials, _setups.c.setup)
            .join(_trials, _members.c.trial_id == _trials.c.id)
            .join(_setups, _trials.c.setup_id == _setups.c.id)
            .where(_members.c.study_id.in_(numbers))
        )
        with self.connection() as connection:
            rows = connection.execute(query).all()
        setups = {text: Setup.from_json(text) for text in {row.setup for row in rows}}
        names = list(dict.fromkeys(name for row in rows for name in json.loads(row.settings)))
        table = []
        for row in rows:
            setup = setups[row.setup]
            table.append(
                {
                    "id": row.id,
                    "study": row.study_id,
                    **record(_trial(row), Result(_score(row), row.seconds), sorted(names), setup.settings),
                    "correct": row.correct,
                    "samples": row.samples,
                    "finished": row.finished,
                    "model": setup.model,
                    "data": setup.data,
                    "device": ", ".join(setup.devices),
                    "task": setup.task,
                    "batch_size": setup.batch_size,
                    "emu": setup.emu,
                    "setup": row.setup,
                }
            )
        if not table:
            raise InputError(
                f"{self.where} has no results of {'any study' if study is None else f'study {study}'} yet."
            )
        frame = pd.DataFrame(table)
        frame.attrs["primary"] = list(dict.fromkeys(setup.primary for setup in setups.values()))
        order = ["study", *sorted(names), "strength", "only", "exclude", "head", "read_seed", "seed"]
        return frame.sort_values(order, key=natural, kind="stable", na_position="first", ignore_index=True)

    @contextmanager
    def connection(self) -> Iterator[sql.Connection]:
        """A transaction; what the database refuses becomes a sentence."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise self._refused(error) from None

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

    def _open_file(self, path: Path, create: bool, patience_s: float) -> sql.Engine:
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent} for the store {path.name}: make it first.")
        if path.is_dir():
            raise InputError(f"{path} is a folder: give a file for the store, such as {path / 'study.db'}.")
        if not path.exists() and not create:
            raise InputError(f"There is no store {path}: 'emu sweep --store {path}' would make it.")
        engine = sql.create_engine(sql.URL.create("sqlite", database=str(path)), connect_args={"timeout": patience_s})

        @sql.event.listens_for(engine, "connect")
        def _prepare(connection: Any, _: Any) -> None:
            # Readers and a writer do not wait for each other, and a killed process leaves a whole database.
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        return engine

    def _open(self, url: str) -> sql.Engine:
        try:
            if sql.make_url(url).get_backend_name() not in _INSERT:
                raise InputError(f"'{_shown(url)}' is a database that emu cannot use: give a file, or postgresql://...")
            return sql.create_engine(url)
        except ModuleNotFoundError as error:
            sentence = missing(error)
            if isinstance(sentence, InputError):
                raise sentence from None
            raise InputError(f"The store needs {error.name}: pip install {error.name}.") from None
        except SQLAlchemyError as error:
            raise InputError(f"'{_shown(url)}' is no URL of a database: {error}.") from None

    def _create_tables(self) -> None:
        """Makes the tables; where another process makes them at the same time, once more finds them made."""
        for attempt in range(5):
            try:
                with self._engine.begin() as connection:
                    for table in _tables.sorted_tables:
                        connection.execute(CreateTable(table, if_not_exists=True))
                self._is_new = False
                return
            except DBAPIError as error:
                if attempt == 4 or "not a database" in str(error.orig):
                    raise self._refused(error) from None
                time.sleep(0.05 * 2**attempt)

    def _refused(self, error: DBAPIError) -> InputError:
        said = " ".join(str(error.orig).split())
        if "not a database" in said:
            return InputError(f"{self.where} is no database: give another file for the store.")
        if "locked" in said:
            return InputError(
                f"{self.where} is locked by another process: wait until it has finished writing, or end it."
            )
        if "no column" in said or "no such column" in said:
            return InputError(f"{self.where} was written by another version of emu: give another file for the store.")
        return InputError(f"{self.where}: the database refuses: {said.rstrip('.?')}.")


def _trial(row: Any) -> Trial:
    return Trial(**{name: getattr(row, name) for name in CONTROLS}, set=json.loads(row.settings))


def _score(row: Any) -> Score:
    metrics = {name: float(value) for name, value in json.loads(row.metrics).items()}
    return Score(metrics, row.correct, row.samples, row.undefined)


def _number_out(value: float) -> float | str:
    """JSON has no NaN and no infinity: they become text, which `float` reads."""
    return float(value) if math.isfinite(value) else str(float(value))


def _shown(url: str) -> str:
    """A URL without its user and password."""
    return url.rpartition("@")[2]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
