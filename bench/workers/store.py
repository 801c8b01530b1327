"""Any store of ``bench/store/systems``, in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from turns import serve

from bench.store import data, loads
from bench.store.smallbank import SmallBank
from bench.store.systems import make
from bench.store.systems.base import Level, Session, System
from bench.store.tatp import Tatp

_WRITTEN = 1000
"""Keys that loads write to where nothing was filled in."""


class Store:
    """One store, filled with the data its cases need."""

    system: System
    _bench: SmallBank | Tatp

    def load(self, system: str, folder: str, level: Level, fill: str, size: int, realtime: bool) -> dict[str, Any]:
        """Open ``system``; ``seconds`` is how long that took, with ``nothing`` up to a value read.

        ``fill``: ``kv`` writes ``size`` pairs, ``tatp`` and ``smallbank`` write their tables, ``tail`` is ``kv``
        out of the log and then 64 MiB that stay in it; ``empty`` is a new store, ``nothing`` an old one.
        """
        if realtime:
            # Before the store starts threads or a server: they inherit it.
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        self._keys = data.keys(size or _WRITTEN)
        self.system = make(system)
        started = time.perf_counter()
        self.system.open(Path(folder), level)
        self._sessions = [self.system.session()]
        found = self._first() if fill == "nothing" else b""
        seconds = time.perf_counter() - started
        if found is None:
            raise LookupError("a key that was written is not found")
        self._fill(fill, size)
        return {"seconds": seconds, "versions": self.system.versions()}

    def run(self, load: str, seconds: float = 0.0, seed: int = 0, threads: int = 1, **options: Any) -> dict[str, Any]:
        """Run one load; ``done`` operations in ``seconds``."""
        sessions = self._grown(threads)
        if load == "check":
            self._bench.check(sessions[0])
            return {}
        if options.get("table") == "ordered":
            options["table"] = self.system.ordered
        if load == "puts":
            done, took = loads.puts(sessions, self._keys, seconds, seed)
        elif load == "steps":
            done, took = loads.steps(sessions, self._bench.plan, seconds, seed)
        elif load == "queue":
            done, took = loads.queue(sessions[0], seconds, seed, **options)
        else:
            loop = {"put_one": loads.put_one, "put_many": loads.put_many, "get": loads.get}[load]
            done, took = loop(sessions[0], self._keys, seconds, seed, **options)
        return {"done": done, "seconds": took}

    def _first(self) -> bytes | None:
        with self._sessions[0].getter("main") as get:
            return get(self._keys[0])

    def _fill(self, fill: str, size: int) -> None:
        session = self._sessions[0]
        if fill in ("kv", "tail"):
            # In order: random bulk writes leave LMDB a list of free pages that halves its speed from then on.
            pairs = sorted(zip(self._keys, data.values(size, 1), strict=True))
            for table in sorted({"main", self.system.ordered} if fill == "kv" else {"main"}):
                for part in data.commits(pairs):
                    session.fill(table, part)
        if fill == "tail":
            session.close()
            self.system.settle()
            self._sessions = [session] = [self.system.session()]
            for part in data.commits(data.pairs(self._keys, data.TAIL, 2)):
                session.put_many(part)
        if fill in ("tatp", "smallbank"):
            self._bench = Tatp(size) if fill == "tatp" else SmallBank(size)
            self.system.create_tables(self._bench.tables)
            for table, part in self._bench.rows():
                session.fill(table, part)

    def _grown(self, threads: int) -> list[Session]:
        while len(self._sessions) < threads:
            self._sessions.append(self.system.session())
        return self._sessions[:threads]


if __name__ == "__main__":
    serve(Store())
