"""Any index of ``bench/vector/systems.py``, in a process of its own."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
from turns import serve

from bench.vector import data
from bench.vector.systems import make, version_of

K = 10
REALTIME = 30
"""Priority of the timed bursts, each shorter than a second."""


class Searcher:
    """One index over one set, asked one query per call."""

    def load(self, system: str, data_set: str, build_threads: int = 1, realtime: bool = False) -> dict[str, Any]:
        """Build; ``build_seconds`` is processor time of all threads."""
        rows, self._queries, truth = data.load(data_set)
        self._truth = truth[:, :K]
        self._system = make(system)
        started = time.process_time()
        self._system.build(rows, build_threads)
        seconds = time.process_time() - started
        self._realtime = realtime
        if realtime:
            # Helpers inherit the policy of the thread that starts them.
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME))
            self._system.tune(64, 2)
            for query in self._queries[:20]:
                self._system.search(query, K)
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return {"build_seconds": seconds, "versions": version_of(self._system)}

    def run(
        self, width: int, threads: int = 1, queries: int = 0, offset: int = 0, repeats: int = 1, callers: int = 1
    ) -> dict[str, Any]:
        """Microseconds per query on the wall and on the processor: per query the least of the repeats.

        With several ``callers``, also queries per second of so many Python threads, each with its share.
        """
        asked = np.roll(self._queries, -offset, axis=0)[: queries or len(self._queries)]
        truth = np.roll(self._truth, -offset, axis=0)[: len(asked)]
        self._system.tune(width, threads)
        search = self._system.search
        for query in asked[:20]:
            search(query, K)
        if self._realtime:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME))
        clock = time.perf_counter_ns
        wall = np.empty((repeats, len(asked)), dtype=np.int64)
        started, found = time.process_time_ns(), []
        for repeat in range(repeats):
            found = []
            for number, query in enumerate(asked):
                at = clock()
                ids = search(query, K)
                wall[repeat, number] = clock() - at
                found.append(ids)
        spent = time.process_time_ns() - started
        rate = 0.0 if callers == 1 else self._rate(callers)
        if self._realtime:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        hits = sum(len(set(map(int, ids)) & set(best.tolist())) for ids, best in zip(found, truth, strict=True))
        least = wall.min(axis=0) / 1e3
        return {
            "recall": hits / truth.size,
            "us": float(least.mean()),
            "us_p99": float(np.percentile(least, 99)),
            "rate": rate,
            "cpu_us": spent / 1e3 / len(asked) / repeats,
        }

    def _rate(self, callers: int) -> float:
        def part(number: int) -> None:
            for query in self._queries[number::callers]:
                self._system.search(query, K)

        best = 0.0
        for _ in range(5):
            threads = [threading.Thread(target=part, args=(number,)) for number in range(callers)]
            at = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            best = max(best, len(self._queries) / (time.perf_counter() - at))
        return best


if __name__ == "__main__":
    serve(Searcher())
