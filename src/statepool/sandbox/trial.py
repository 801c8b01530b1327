"""What sandboxes cost on this machine, as a user sees it: starts one by one, many at once, forks."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from statepool.core.errors import StatepoolError
from statepool.sandbox.pool import Pool
from statepool.sandbox.sandbox import Sandbox

__all__ = ["Burst", "burst", "forks", "quantile", "starts"]

_CELL = "1 + 1"
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Burst:
    """Sandboxes asked for at once: seconds from the request to the first result of each, how many failed, and the
    seconds of all together.
    """

    times: tuple[float, ...]
    errors: tuple[str, ...]
    seconds: float

    @property
    def per_second(self) -> float:
        """Sandboxes that came, ran and went in a second."""
        return len(self.times) / self.seconds


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the others lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def starts(pool: Pool, template: str, count: int) -> list[float]:
    """Seconds from nothing to the first result, ``count`` times, each after a rest in which the pool can settle."""
    times = []
    for _ in range(count):
        pool.settle()
        time.sleep(_PAUSE_SECONDS)
        began = time.perf_counter()
        with Sandbox(template, pool=pool) as sandbox:
            sandbox.run_code(_CELL)
            times.append(time.perf_counter() - began)
    return times


def burst(pool: Pool, template: str, count: int, at_once: int) -> Burst:
    """``count`` sandboxes, asked for by ``at_once`` callers that do not wait for each other."""
    times: list[float] = []
    errors: list[str] = []
    lock = threading.Lock()

    def one(_: int) -> None:
        began = time.perf_counter()
        try:
            with Sandbox(template, pool=pool) as sandbox:
                failed = sandbox.run_code(_CELL).error
                problem = failed and f"{failed.name}: {failed.value}"
        except StatepoolError as error:
            problem = error.message
        with lock:
            if problem:
                errors.append(problem)
            else:
                times.append(time.perf_counter() - began)

    with ThreadPoolExecutor(at_once) as crowd:
        began = time.perf_counter()
        list(crowd.map(one, range(count)))
        return Burst(tuple(times), tuple(errors), time.perf_counter() - began)


def forks(pool: Pool, template: str, count: int, repeats: int = 3) -> float:
    """Median seconds until ``count`` forks of a running sandbox are ready."""
    times = []
    with Sandbox(template, pool=pool, memory="4GiB") as sandbox:
        sandbox.run_code("x = 1")
        for _ in range(repeats):
            began = time.perf_counter()
            kids = sandbox.fork(count)
            times.append(time.perf_counter() - began)
            for kid in kids:
                kid.close()
    return statistics.median(times)
