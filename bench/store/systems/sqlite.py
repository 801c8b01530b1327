"""SQLite through apsw."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw

from bench.store.systems.base import MAIN, Change, Get, Level, Pair, Place, Session, System

_SYNCHRONOUS = {"power": "full", "process": "normal"}


class SqliteSession(Session):
    """A connection of its own. Writers queue at a lock of ours: SQLite's own waiting sleeps, and would cost it much."""

    def __init__(self, path: Path, level: Level, writing: threading.Lock) -> None:
        self._connection = apsw.Connection(str(path))
        self._execute = self._connection.execute
        self._writing = writing
        self._connection.set_busy_timeout(10_000)
        self._execute("pragma journal_mode=wal")
        self._execute(f"pragma synchronous={_SYNCHRONOUS[level]}")

    def put(self, key: bytes, value: bytes) -> None:
        """A statement outside a transaction is a commit."""
        with self._writing:
            self._execute("replace into main values (?, ?)", (key, value))

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        with self._writing:
            self._execute("begin immediate")
            self._connection.executemany(f"replace into {table} values (?, ?)", pairs)
            self._execute("commit")

    @contextmanager
    def getter(self, table: str) -> Iterator[Get]:
        execute, query = self._execute, f"select v from {table} where k=?"

        def get(key: bytes) -> bytes | None:
            row = execute(query, (key,)).fetchone()
            return row[0] if row else None

        self._execute("begin")
        yield get
        self._execute("commit")

    def read(self, places: Sequence[Place]) -> list[bytes | None]:
        if len(places) == 1:
            return [self._get(*places[0])]
        self._execute("begin")
        values = [self._get(table, key) for table, key in places]
        self._execute("commit")
        return values

    def update(self, places: Sequence[Place], change: Change) -> None:
        with self._writing:
            self._execute("begin immediate")
            for (table, key), value in change([self._get(table, key) for table, key in places]).items():
                if value is None:
                    self._execute(f"delete from {table} where k=?", (key,))
                else:
                    self._execute(f"replace into {table} values (?, ?)", (key, value))
            self._execute("commit")

    def create(self, table: str) -> None:
        """Declare a table."""
        self._execute(f"create table if not exists {table} (k blob primary key, v blob) without rowid")

    def close(self) -> None:
        self._connection.close()

    def _get(self, table: str, key: bytes) -> bytes | None:
        row = self._execute(f"select v from {table} where k=?", (key,)).fetchone()
        return row[0] if row else None


class Sqlite(System):
    """Write-ahead log; ``synchronous`` full or normal."""

    def open(self, folder: Path, level: Level) -> None:
        self._path, self._level, self._writing = folder / "sqlite.db", level, threading.Lock()
        self.create_tables([MAIN])

    def create_tables(self, names: Iterable[str]) -> None:
        session = SqliteSession(self._path, self._level, self._writing)
        for name in names:
            session.create(name)
        session.close()

    def session(self) -> Session:
        return SqliteSession(self._path, self._level, self._writing)

    def versions(self) -> dict[str, str]:
        return {"apsw": apsw.apsw_version(), "SQLite": apsw.sqlite_lib_version()}

    def close(self) -> None:
        """Nothing is open but the sessions."""
