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


class OurSession(Session):
    """All threads share the store and its structures."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._tables: dict[str, Any] = {MAIN: store.dict(MAIN), _SORTED: store.sorted_dict(_SORTED)}
        self._queue = store.queue("queue")
        self.put = self._tables[MAIN].__setitem__

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        self._table(table).update(pairs)

    @contextmanager
    def getter(self, table: str) -> Iterator[Get]:
        yield self._table(table).get

    def read(self, places: Sequence[Place]) -> list[bytes | None]:
        if len(places) == 1:
            table, key = places[0]
            return [self._table(table).get(key)]
        with self._store.transaction() as transaction:
            return [transaction[self._table(table)].get(key) for table, key in places]

    def update(self, places: Sequence[Place], change: Change) -> None:
        while True:
            try:
                self._update(places, change)
            except public.Conflict:
                continue
            return

    def _update(self, places: Sequence[Place], change: Change) -> None:
        with self._store.transaction() as transaction:
            values = [transaction[self._table(table)].get(key) for table, key in places]
            for (table, key), value in change(values).items():
                if value is None:
                    del transaction[self._table(table)][key]
                else:
                    transaction[self._table(table)][key] = value

    def pass_through(self, values: Sequence[bytes]) -> int:
        self._queue.put_many(values)
        items = self._queue.take_many(len(values), lease=_LEASE)
        self._queue.ack_many(items)
        return len(items)

    def _table(self, name: str) -> Any:
        found = self._tables.get(name)
        if found is None:
            found = self._tables[name] = self._store.dict(name)
        return found


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
