"""RocksDB through rocksdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from bench.store.systems.base import Get, Level, Pair, Session, System


class RocksSession(Session):
    """All threads share the database."""

    def __init__(self, db: Rdict) -> None:
        self._db = db
        self.put = db.put

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        batch = WriteBatch(raw_mode=True)
        put = batch.put
        for key, value in pairs:
            put(key, value)
        self._db.write(batch)

    @contextmanager
    def getter(self, table: str) -> Iterator[Get]:
        yield self._db.get


class Rocks(System):
    """Default options, bytes as they are; ``sync`` in the write options is the only difference between levels."""

    def open(self, folder: Path, level: Level) -> None:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        self._db = Rdict(str(folder / "rocksdb"), options)
        writing = WriteOptions()
        writing.sync = level == "power"
        self._db.set_write_options(writing)

    def session(self) -> Session:
        return RocksSession(self._db)

    def versions(self) -> dict[str, str]:
        return {"rocksdict": version("rocksdict")}

    def close(self) -> None:
        self._db.close()

    def settle(self) -> None:
        self._db.flush(True)
