"""A database that trials are kept in: SQLite in a file, or PostgreSQL by its URL; opened, and tried again."""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from emu.errors import InputError

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}  # where a URL names none
_ROWS_AT_ONCE = 2000
_LOCK = 0x656D75  # of all stores in one PostgreSQL database; the letters "emu"
_FIRST_PAUSE_S = 0.25  # before the first attempt to reach a database again; each further one waits twice as long

_Found = TypeVar("_Found")


class Database:
    """Connections to one database, and what it says in sentences.

    Args:
        where: an SQLite file, or the URL of a database, such as `postgresql://user@host/name`.
        writes: False to read only: a file that does not exist is refused, and nothing is written.
        patience_s: how long to wait for another process that is writing, or for a server that went away, seconds.

    Attributes:
        where: the file or URL, without a password.
        file: the SQLite file; None for a server.

    Raises:
        InputError: the folder or file is missing, or a URL, driver or database that cannot be used.
    """

    def __init__(self, where: str | Path, writes: bool, patience_s: float) -> None:
        self.where = str(where)
        self.file = None if "://" in self.where else Path(self.where)
        self.writes, self._patience_s = writes, patience_s
        self._secrets: list[str] = []
        self.engine = self._open(self.where) if self.file is None else self._open_file(self.file)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    def rows(self, query: "sql.Select[Any]") -> list[Any]:
        """All rows of a query."""
        return list(self.transact(lambda connection: connection.execute(query).all()))

    def blocks(self, query: "sql.Select[Any]", read: Callable[[list[tuple[Any, ...]]], _Found]) -> list[_Found]:
        """What `read` makes of some rows of a query at a time, plain tuples: they take ten times their content."""

        def work(connection: sql.Connection) -> list[_Found]:
            result: Any = connection.execute(query)
            return [read(rows) for rows in iter(lambda: result.cursor.fetchmany(_ROWS_AT_ONCE), [])]

        return self.transact(work)

    def opening(self, work: Callable[[sql.Connection], _Found]) -> _Found:
        """The first transaction: a server that cannot be reached is not waited for, and files may be made by others."""
        for attempt in range(5):
            try:
                with self.engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                if attempt == 4 or "not a database" in str(error.orig) or self._is_lost(error):
                    raise self._refused(error) from None
                time.sleep(0.05 * 2**attempt)
        raise AssertionError

    def copy_file(self, path: Path) -> None:
        """Copies the SQLite file with all that was written to it."""
        with sqlite3.connect(path) as copy:
            self.transact(lambda connection: connection.connection.driver_connection.backup(copy))  # type: ignore[union-attr]
        copy.close()

    def into_memory(self) -> None:
        """Goes on with a copy of the SQLite file in memory: what is written there changes no file."""
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        self.transact(lambda connection: connection.connection.driver_connection.backup(copy))  # type: ignore[union-attr]
        self.engine.dispose()
        self.engine = sql.create_engine("sqlite://", creator=lambda: copy, poolclass=sql.StaticPool)

    def alone(self, work: Callable[[sql.Connection], _Found]) -> _Found:
        """As `transact`, while no other process is in `alone` on this database: for changes of its tables."""

        def locked(connection: sql.Connection) -> _Found:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            return work(connection)

        return self.transact(locked)

    def transact(self, work: Callable[[sql.Connection], _Found]) -> _Found:
        """Does some work in a transaction; again if a server went away meanwhile, as all work may be done twice.

        Raises:
            InputError: what the database refuses, or a server that does not come back.
        """
        pause, end = _FIRST_PAUSE_S, time.monotonic() + self._patience_s
        while True:
            try:
                with self.engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                if not self._is_lost(error) and not _is_deadlock(error):
                    raise self._refused(error) from None
                if time.monotonic() + pause > end:
                    raise InputError(
                        f"{self.where} does not answer any more ({self._said(error)}): what it holds is kept, and the "
                        "same command goes on from there once it is back."
                    ) from None
            self.engine.dispose()  # connections that are as dead as this one
            time.sleep(pause)
            pause *= 2

    def insert(self, table: sql.Table) -> Any:
        """An insertion that leaves an equal row as it is."""
        return _INSERT[self.engine.dialect.name](table).on_conflict_do_nothing()

    def _open_file(self, path: Path) -> sql.Engine:
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent} for the store {path.name}: make it first.")
        if path.is_dir():
            raise InputError(f"{path} is a folder: give a file for the store, such as {path / 'study.db'}.")
        if not path.exists() and not self.writes:
            raise InputError(f"There is no store {path}: 'emu sweep --store {path}' would make it.")
        if not self.writes and not (_writable(path) and _writable(path.parent)):
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
        if not self.writes:
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

    def _is_lost(self, error: DBAPIError) -> bool:
        """Whether a server went away, or cannot be reached."""
        unreached = isinstance(error, OperationalError) and error.statement is None
        return self.engine.dialect.name != "sqlite" and (error.connection_invalidated or unreached)

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


def _is_deadlock(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) == "40P01"


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _shown(url: str) -> str:
    """A URL that cannot be read, without its user, password and options."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
