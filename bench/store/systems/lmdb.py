"""LMDB through py-lmdb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from bench.store.systems.base import Get, Level, Pair, Session, System

_ROOM = 4 << 30


class LmdbSession(Session):
    """LMDB has one writer at a time; all threads share the environment."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._begin = env.begin

    def put(self, key: bytes, value: bytes) -> None:
        """A write transaction of one put."""
        transaction = self._begin(write=True)
        transaction.put(key, value)
        transaction.commit()

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        with self._begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(pairs)

    @contextmanager
    def getter(self, table: str) -> Iterator[Get]:
        """Reads in one read transaction: no lock is taken per read."""
        with self._begin() as transaction:
            yield transaction.get


class Lmdb(System):
    """Defaults for ``power``; no sync at all and a writable map, the fastest mode there is, for ``process``."""

    def open(self, folder: Path, level: Level) -> None:
        fast = level == "process"
        self._env = lmdb.open(str(folder / "lmdb"), map_size=_ROOM, sync=not fast, writemap=fast, map_async=fast)

    def session(self) -> Session:
        return LmdbSession(self._env)

    def versions(self) -> dict[str, str]:
        return {"py-lmdb": f"{lmdb.__version__} (LMDB {'.'.join(map(str, lmdb.version()))})"}

    def close(self) -> None:
        self._env.close()
