"""Whose turn it is: queries that choose their threads share the cores, and wait for one rather than stop each other."""

from __future__ import annotations

import threading

from .native import core
from .policy import Load, choose_threads, share_out

__all__ = ["Grant", "Turns"]


class Grant:
    """Threads of one query. ``lease`` tells the search when they become fewer."""

    __slots__ = ("lease", "lends", "threads")

    def __init__(self, threads: int, lends: bool) -> None:
        self.threads, self.lends, self.lease = threads, lends, core.Lease(threads)


class Turns:
    """The cores of this process.

    A thread that shares its core is stopped for milliseconds, a query takes a quarter of one: to wait is quicker. To be
    woken takes a quarter of a query again, so nobody waits for a core that another query has beside its first.

    Args:
        cores: how many there are.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._held: list[Grant] = []
        self._busy = self._waiting = 0

    def take(self, most: int, *, wait: bool, lends: bool) -> Grant:
        """Threads for one query, at most ``most``, until ``give_back``.

        Args:
            most: How many it can use.
            wait: Whether it waits while every core has a query; one that may not gets one thread at once.
            lends: Whether its search looks at the lease, so that all but the first may be called back.
        """
        with self._lock:
            if self._held:
                self._call_back(most)
            if wait and self._busy >= self._cores:
                self._wait()
            # Others chose their threads themselves.
            load = Load(self._cores, self._busy + core.busy(), self._waiting)
            grant = Grant(choose_threads(load, most), lends)
            self._held.append(grant)
            self._busy += grant.threads
        return grant

    def give_back(self, grant: Grant) -> None:
        """The query is done."""
        with self._lock:
            self._held.remove(grant)
            self._busy -= grant.threads
            if self._waiting:
                self._free.notify(grant.threads)

    def _call_back(self, most: int) -> None:
        lending = [one for one in self._held if one.lends and one.threads > 1]
        if not lending:
            return
        idle = max(0, self._cores - self._busy)
        kept = share_out([one.threads for one in lending], idle, most, self._cores // (len(self._held) + 1))
        for one, threads in zip(lending, kept, strict=True):
            if threads < one.threads:
                self._busy -= one.threads - threads
                one.threads = threads
                one.lease.lower(threads)

    def _wait(self) -> None:
        self._waiting += 1
        try:
            self._free.wait_for(lambda: self._busy < self._cores)
        finally:
            self._waiting -= 1
