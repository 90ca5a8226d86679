"""Results in a database: SQLite in a file, or PostgreSQL by its URL."""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql

from emu.errors import InputError
from emu.sweep import schema as tables
from emu.sweep.database import Database
from emu.sweep.environment import Environment
from emu.sweep.frame import check_real, check_whole, read_frame
from emu.sweep.migrate import migrate
from emu.sweep.outcomes import Arrays, pack, sample_table, unpack
from emu.sweep.rows import Result, Role, controls, number_of, shaping_axes, trial_id
from emu.sweep.schema import Schema
from emu.sweep.setup import STRUCTURE_AXES, Setup
from emu.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from emu.evaluation import Trial

_AT_ONCE = 500  # ids in one query


@dataclass(frozen=True)
class StudyInfo:
    """A study of a store: its number and name, how its bench was first made, when, and its number of trials."""

    number: int
    name: str
    setup: Setup
    started: str
    trials: int


class Study:
    """A study that is under way, on one of its benches; made by `Store.study`.

    Attributes:
        number: of the study.
    """

    def __init__(self, store: "Store", number: int, setup: Setup, setup_id: str) -> None:
        self.number = number
        self._store, self._setup, self._setup_id = store, setup, setup_id

    def id(self, trial: "Trial") -> str:
        """The id of a trial: 16 hexadecimal digits, equal for equal trials with equal fingerprints."""
        return trial_id(self._setup, trial)

    def held(self, trials: Iterable["Trial"], with_samples: bool = False) -> dict[str, Result]:
        """The results that the store holds for these trials, by their ids, whichever study they were run for.

        With `with_samples` only of those whose samples it holds too.
        """
        ids = list({self.id(trial) for trial in trials})
        parts = [ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE)]
        if with_samples:
            column = self._store.schema.outcomes.c.trial_id
            queries = [sql.select(column).where(column.in_(part)) for part in parts]
            parts = [[row.trial_id for row in self._store.database.rows(query)] for query in queries]
        return {id: result for part in parts for id, (_, result) in self._store.read(part).items()}

    def describe_samples(self, facts: Arrays) -> None:
        """Stores what is known of the samples of this study's data, as `emu.evaluation.data.DataSet.facts`."""
        database, table = self._store.database, self._store.schema.samples
        row = {"data": self._setup.fingerprint["data"], "arrays": pack(facts)}
        database.transact(lambda connection: connection.execute(database.insert(table), row))

    def link(self, ids: Iterable[str]) -> None:
        """Makes trials that the store holds part of this study too."""
        rows = [{"study_id": self.number, "trial_id": each} for each in sorted(ids)]  # no deadlock
        if rows:
            database = self._store.database
            members = self._store.schema.members
            database.transact(lambda connection: connection.execute(database.insert(members), rows))

    def add(self, trial: "Trial", result: Result) -> None:
        """Stores a finished trial; a second one that is equal changes nothing."""
        self.add_all([(trial, result)])

    def add_all(self, finished: Sequence[tuple["Trial", Result]]) -> None:
        """Stores some finished trials in one transaction."""
        rows = [self._row(trial, result) for trial, result in finished]
        schema, insert = self._store.schema, self._store.database.insert
        absent = dict.fromkeys(name for row in rows for name in row)
        members = [{"study_id": self.number, "trial_id": row["id"]} for row in rows]
        scores = [(row["id"], result.score) for row, (_, result) in zip(rows, finished, strict=True)]
        outcomes = [{"trial_id": id, "arrays": pack(each.outcomes)} for id, each in scores if each.outcomes is not None]

        def store(connection: sql.Connection) -> None:
            connection.execute(insert(schema.trials), [{**absent, **row} for row in rows])
            connection.execute(insert(schema.members), members)
            if outcomes:
                connection.execute(insert(schema.outcomes), outcomes)

        self._store.database.transact(store)

    def _row(self, trial: "Trial", result: Result) -> dict[str, Any]:
        metrics = {name: float(value) for name, value in result.score.metrics.items()}
        numbers = {name: number_of(name, value) for name, value in sorted(trial.set.items())}
        stored = self._store.stored_names(numbers, metrics)
        lost = [name for name, value in metrics.items() if math.isnan(value)]
        environment = result.environment
        return {
            "id": self.id(trial),
            "setup_id": self._setup_id,
            **controls(trial),
            **{stored[name]: value for name, value in numbers.items()},
            **{stored[name]: None if math.isnan(value) else value for name, value in metrics.items()},
            "not_a_number": json.dumps(lost) if lost else None,
            "correct": result.score.correct,
            "samples": result.score.samples,
            "undefined": result.score.undefined,
            "seconds": result.seconds,
            "finished": _now(),
            "emu": environment.emu or __version__,
            "onnxruntime": environment.onnxruntime,
            "instruction_set": environment.instruction_set,
            "platform": environment.platform,
        }


class Store:
    """Trials and their results in a database.

    A trial is stored once for one fingerprint of model, device, data and task; studies with a name and a fingerprint
    refer to it. Several processes may write at the same time. A server that goes away is tried again. The tables of an
    older emu are brought to those of this one when the store is opened to write, and a copy is kept: of a file as
    `NAME.schema-1`, in PostgreSQL as tables whose names end in `_1`.

    Args:
        where: an SQLite file, made if missing, or the URL of a database, such as `postgresql://user@host/name`.
        create: False to read only: a file that does not exist is refused, and nothing is written, so that the store may
            lie on a medium that cannot be written to.
        patience_s: how long to wait for another process that is writing, or for a server that went away, seconds.

    Attributes:
        where: the file or URL, without a password.
        migrated: what was done to a store of an older emu, in one sentence; empty for one of this emu.

    Raises:
        InputError: the folder or file is missing, or it is not a database, or a server or its driver is not there, or a
            newer emu wrote it.
    """

    def __init__(self, where: str | Path, *, create: bool = True, patience_s: float = 30.0) -> None:
        self.database = Database(where, writes=create, patience_s=patience_s)
        self.where = self.database.where
        self.schema = Schema()
        self.migrated = ""
        # A file is made with the first result, not by a command that is refused.
        self._is_new = self.database.file is not None and not self.database.file.exists()
        if not self._is_new:
            self._open()

    def close(self) -> None:
        """Closes the connections."""
        self.database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def study(self, name: str, setup: Setup, number: int | None = None) -> Study:
        """Begins or continues the study of this name and fingerprint, or adds a setup to the study of that number.

        What differs between the setups of one study, such as the device, is an axis of the store from then on.

        Raises:
            InputError: the name is too long.
        """
        if len(name) > tables.LONGEST_NAME:
            raise InputError(
                f"The name of the study, '{name[:20]}...', has {len(name)} characters: give one of at most "
                f"{tables.LONGEST_NAME}."
            )
        if self._is_new:
            self._open()

        def begin(connection: sql.Connection) -> tuple[Schema, int, str]:
            schema = tables.read_schema(connection)
            row, studies, insert = tables.setup_row(schema, setup), schema.studies, self.database.insert
            connection.execute(insert(schema.setups), row)
            found = number
            if found is None:
                same = (studies.c.name == name, studies.c.fingerprint == setup.identity)
                new = {"name": name, "fingerprint": setup.identity, "setup_id": row["id"], "started": _now()}
                connection.execute(insert(studies), new)
                found = int(connection.execute(sql.select(studies.c.id).where(*same)).scalar_one())
            connection.execute(insert(schema.benches), {"study_id": found, "setup_id": row["id"]})
            setups = [each for _, each in tables.read_setups(connection, schema, found)]
            axes = [name for name in shaping_axes((found, each) for each in setups) if name not in STRUCTURE_AXES]
            kinds = {name: tables.kind_of(each.values.get(name) for each in setups) for name in axes}
            return tables.grow(connection, [(name, "axis", kinds[name]) for name in axes]), found, row["id"]

        self.schema, number_found, setup_id = self.database.alone(begin)
        return Study(self, number_found, setup, setup_id)

    def studies(self) -> list[StudyInfo]:
        """The studies, the oldest first."""
        if self._is_new:
            return []
        studies, setups, members = self.schema.studies, self.schema.setups, self.schema.members
        count = sql.select(members.c.study_id, sql.func.count().label("trials")).group_by(members.c.study_id).subquery()
        query = (
            sql.select(studies, setups.c.setup, sql.func.coalesce(count.c.trials, 0).label("trials"))
            .join(setups, studies.c.setup_id == setups.c.id)
            .outerjoin(count, count.c.study_id == studies.c.id)
            .order_by(studies.c.id)
        )
        return [
            StudyInfo(row.id, row.name, self._setup(row.setup, f"study {row.id}"), row.started, row.trials)
            for row in self.database.rows(query)
        ]

    def trial(self, beginning: str) -> tuple[str, Setup, "Trial", Result]:
        """One stored trial by its id, or by a beginning of its id that no other has.

        Raises:
            InputError: none or several begin like that.
        """
        if self._is_new:
            raise InputError(f"{self.where} has no results.")
        column = self.schema.trials.c.id
        query = sql.select(column).where(column.startswith(beginning, autoescape=True)).limit(2)
        ids = [row.id for row in self.database.rows(query)]
        if len(ids) != 1:
            what = "several trials whose ids begin with" if ids else "no trial"
            raise InputError(f"{self.where} has {what} '{beginning}': 'emu results {self.where} --trials' lists them.")
        (row, result), setups = self.read(ids)[ids[0]], self.schema.setups
        text = self.database.rows(sql.select(setups.c.setup).where(setups.c.id == row.setup_id))[0].setup
        return ids[0], self._setup(text, f"trial {ids[0]}"), self._trial(row), result

    def read(self, ids: Sequence[str]) -> dict[str, tuple[Any, Result]]:
        """The rows of some trials and what they gave, by their ids.

        Raises:
            InputError: a row is damaged.
        """
        self._refresh()
        rows = self.database.rows(sql.select(self.schema.trials).where(self.schema.trials.c.id.in_(ids)))
        return {row.id: (row, self._result(row)) for row in rows}

    def frame(self, study: str | int | None = None, roles: Collection[Role] | None = None) -> "pd.DataFrame":
        """All trials, one row each and study, in an order that does not depend on which ran first.

        Args:
            study: the number or name of a study; None for all.
            roles: of the columns wanted, beside `study` and `task`; None for all.

        Returns:
            The columns `id`, `study` (its number), those of `run_trials`, `correct`, `samples`, `finished` (UTC),
            `model`, `data`, `device`, `task`, `batch_size`, `emu`, `onnxruntime`, `instruction_set`, `platform` (None
            for trials of an emu that did not store them), and `setup`, the JSON of all that is needed to make the bench
            again. `attrs["roles"]` says what each column is, as `emu.sweep.rows.Role`, and `attrs["primary"]` lists
            the metrics that are meant where one number is asked for.

        Raises:
            InputError: there is no such study, or the store is empty.
        """
        numbers = self._numbers(study)
        self._refresh()
        frame = read_frame(self.database, self.schema, numbers, self._setups(), roles, self._damaged)
        if frame is None:
            raise InputError(
                f"{self.where} has no results of {'any study' if study is None else f'study {study}'} yet."
            )
        return frame

    def samples(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """What trials gave for each sample, for those that ran with `keep_samples`.

        Args:
            frame: a table of `frame` with all columns, or some rows of it.

        Returns:
            One row for each trial and sample: `id`, `study`, the axes that vary, `seed`, `read_seed`, `sample`, its
            `label` and `length` in tokens where there are any, and what the task keeps, as `emu.evaluation.Task` says:
            `predicted`, `correct` and `margin` for classification.

        Raises:
            InputError: no trial has any, or what is stored is damaged.
        """
        outcomes, samples = self.schema.outcomes, self.schema.samples
        packed: dict[str, bytes] = {}
        ids = frame["id"].unique().tolist()
        for start in range(0, len(ids), _AT_ONCE):
            query = sql.select(outcomes).where(outcomes.c.trial_id.in_(ids[start : start + _AT_ONCE]))
            packed |= {row.trial_id: row.arrays for row in self.database.rows(query)}
        if not packed:
            raise InputError(f"{self.where} holds no outcomes of samples of these trials: sweep with --keep-samples.")
        known = {row.data: unpack(row.arrays) for row in self.database.rows(sql.select(samples))}
        data_of = {text: Setup.from_json(text).fingerprint["data"] for text in frame["setup"].unique()}
        frame = frame[frame["id"].isin(list(packed))].reset_index(drop=True)
        facts = [known.get(data_of[text], {}) for text in frame["setup"]]
        found = []
        for id in frame["id"]:
            try:
                found.append(unpack(packed[id]))
            except (ValueError, OSError, EOFError) as error:
                raise self._damaged(id, f"its samples: {error}") from None
        return sample_table(frame, found, facts)

    def environments(self) -> dict[int, list[Environment]]:
        """The software and processors that the trials of each study ran on, by its number."""
        trial, members = self.schema.trials.c, self.schema.members
        columns = [trial[each.name] for each in fields(Environment)]
        query = sql.select(members.c.study_id, *columns).join_from(members, self.schema.trials).distinct()
        found: dict[int, list[Environment]] = {}
        for number, *row in sorted(self.database.rows(query), key=repr):
            found.setdefault(number, []).append(Environment(*row))
        return found

    def stored_names(self, axes: Iterable[str], metrics: Iterable[str]) -> dict[str, str]:
        """The columns of the database for these axes and metrics, which are made where they are missing.

        Raises:
            InputError: one has the name of another column.
        """
        wanted = {**dict.fromkeys(axes, "axis"), **dict.fromkeys(metrics, "metric")}
        own = self.schema.own
        if any(name not in own or own[name].role != role for name, role in wanted.items()):
            new: Any = [(name, role, "number") for name, role in wanted.items()]
            self.schema = self.database.alone(lambda connection: tables.grow(connection, new))
        return {name: self.schema.own[name].stored for name in wanted}

    def _refresh(self) -> None:
        """Sees the columns that other processes made."""
        self.schema = self.database.transact(tables.read_schema)

    def _trial(self, row: Any) -> "Trial":
        """The controls in a row of the table of trials.

        Raises:
            InputError: the row is damaged.
        """
        from emu.evaluation import Trial

        numbers = {each.name: row._mapping[each.stored] for each in self.schema.axes}
        return Trial(
            seed=row.seed,
            read_seed=row.read_seed,
            head=row.head,
            strength=row.strength,
            only=row.only,
            exclude=row.exclude,
            set={name: value for name, value in numbers.items() if value is not None},
        )

    def _result(self, row: Any) -> Result:
        """What a row of the table of trials says that the trial gave.

        Raises:
            InputError: the row is damaged.
        """
        from emu.evaluation import Score

        try:
            for name in ("seed", "read_seed", "head"):
                check_whole(row._mapping[name])
            for name in ("strength", *(each.stored for each in self.schema.axes if each.kind == "number")):
                if name == "strength" or row._mapping[name] is not None:
                    check_real(row._mapping[name])
            lost = json.loads(row.not_a_number) if row.not_a_number else []
            values = {each.name: row._mapping[each.stored] for each in self.schema.metrics}
            metrics = {
                name: math.nan if value is None else check_real(value)
                for name, value in values.items()
                if value is not None or name in lost
            }
            score = Score(metrics, check_whole(row.correct), check_whole(row.samples), check_whole(row.undefined))
            environment = Environment(row.emu, row.onnxruntime, row.instruction_set, row.platform)
            return Result(score, check_real(row.seconds), environment)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(row.id, str(error)) from None

    def _numbers(self, study: str | int | None) -> list[int]:
        studies = self.studies()
        if not studies:
            raise InputError(f"{self.where} has no results.")
        wanted = [each.number for each in studies if study is None or str(study) in (str(each.number), each.name)]
        if not wanted:
            listed = ", ".join(f"{each.number} '{each.name}'" for each in studies)
            raise InputError(f"{self.where} has no study '{study}': it has {listed}.")
        return wanted

    def _setups(self) -> dict[str, tuple[str, Setup]]:
        """How benches were made, by id: as it is stored, and read."""
        setups = self.schema.setups
        rows = self.database.rows(sql.select(setups.c.id, setups.c.setup))
        return {row.id: (row.setup, self._setup(row.setup, f"setup {row.id}")) for row in rows}

    def _setup(self, text: str, of: str) -> Setup:
        """How a bench was made.

        Raises:
            InputError: it is damaged, or of another version of emu.
        """
        try:
            return Setup.from_json(text)
        except InputError as error:
            raise InputError(f"{self.where}, {of}: {error}") from None

    def _damaged(self, id: str, reason: str) -> InputError:
        return InputError(
            f"{self.where} is damaged: trial {id} cannot be read ({' '.join(reason.split())}): restore the store from "
            "a copy, or delete that row of emu_trial, and of emu_member, and run the sweep again."
        )

    def _open(self) -> None:
        """Makes or migrates the tables where that is due, and learns their columns."""
        database = self.database
        version = database.opening(tables.read_version)
        if version is not None and version > tables.VERSION:
            raise InputError(
                f"{self.where} was written by a newer emu, whose tables are of version {version}: emu {__version__} "
                f"reads up to {tables.VERSION}. Use that emu, or give another store."
            )
        if version == 1:
            self._migrate()
        elif version is None and not database.writes:
            self._is_new = True  # nothing was ever stored
            return
        elif version is None:
            database.alone(lambda it: tables.create(it) if tables.read_version(it) is None else None)
        self._refresh()
        self._is_new = False

    def _migrate(self) -> None:
        database = self.database
        is_file = database.file is not None
        if not database.writes:
            if not is_file:
                raise InputError(
                    f"{self.where} is a store of an older emu: 'emu results {self.where} --migrate' brings it to the "
                    "tables of this one, and keeps those that are there."
                )
            database.into_memory()
        elif database.file is not None:
            copy = database.file.with_name(f"{database.file.name}.schema-1")
            if not copy.exists():
                database.copy_file(copy)
            self.migrated = f"{self.where} was a store of an older emu, of which {copy} is a copy."
        else:
            kept = "emu_trial_1 and emu_member_1"
            self.migrated = f"{self.where} was a store of an older emu, whose tables are kept as {kept}."

        def work(connection: sql.Connection) -> None:
            if tables.read_version(connection) == 1:
                migrate(connection, keep=not is_file)

        try:
            database.alone(work)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(error.args[0], str(error.args[-1])) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
