"""This project's store, through its public API only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import statepool
from bench.store.systems.base import MAIN, Change, Get, Level, Pair, Place, Session, System
from statepool import store as public

_SORTED = "sorted"
_ROOM = "2GiB"
_LEASE = 30.0


class _Tables(dict[str, Any]):
    """Dictionaries by name, made when first asked for."""

    def __init__(self, store: Any) -> None:
        super().__init__({MAIN: store.dict(MAIN), _SORTED: store.sorted_dict(_SORTED)})
        self._store = store

    def __missing__(self, name: str) -> Any:
        found = self[name] = self._store.dict(name)
        return found


class OurSession(Session):
    """All threads share the store and its structures."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._tables = _Tables(store)
        self._queue = store.queue("queue")
        self.put = self._tables[MAIN].__setitem__

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        self._tables[table].update(pairs)

    @contextmanager
    def getter(self, table: str) -> Iterator[Get]:
        yield self._tables[table].get

    def read(self, places: Sequence[Place]) -> list[bytes | None]:
        tables = self._tables
        if len(places) == 1:
            table, key = places[0]
            return [tables[table].get(key)]
        while True:
            try:
                with self._store.transaction() as transaction:
                    found = [transaction[tables[table]].get(key) for table, key in places]
            except public.Conflict:
                continue
            return found

    def update(self, places: Sequence[Place], change: Change) -> None:
        tables = self._tables
        while True:
            try:
                with self._store.transaction() as transaction:
                    values = [transaction[tables[table]].get(key) for table, key in places]
                    for (table, key), value in change(values).items():
                        if value is None:
                            del transaction[tables[table]][key]
                        else:
                            transaction[tables[table]][key] = value
            except public.Conflict:
                continue
            return

    def pass_through(self, values: Sequence[bytes]) -> int:
        self._queue.put_many(values)
        items = self._queue.take_many(len(values), lease=_LEASE)
        self._queue.ack_many(items)
        return len(items)


class Ours(System):
    """The levels have the same names here."""

    ordered = _SORTED

    def open(self, folder: Path, level: Level) -> None:
        self._store = public.open(folder / "statepool", durability=level, capacity=_ROOM)

    def session(self) -> Session:
        return OurSession(self._store)

    def versions(self) -> dict[str, str]:
        return {"statepool": statepool.__version__}

    def close(self) -> None:
        self._store.close()

    def settle(self) -> None:
        self._store.checkpoint()
