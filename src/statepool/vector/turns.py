"""Whose turn it is: queries that choose their threads share the cores and wait for one rather than share it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .native import core
from .policy import Load, choose_threads

__all__ = ["Turns"]


class Turns:
    """The cores of this process.

    A thread that shares its core is stopped for milliseconds, a query takes a quarter of one: to wait is quicker.

    Args:
        cores: how many there are.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._free = threading.Condition(threading.Lock())
        self._busy = self._waiting = 0

    @contextmanager
    def take(self, most: int, *, wait: bool) -> Iterator[int]:
        """Threads for one query, at most ``most``; they are its own until it is done.

        Who may not ``wait`` for a core that is free gets one thread at once.
        """
        with self._free:
            self._waiting += 1
            try:
                self._free.wait_for(lambda: not wait or self._busy < self._cores)
            finally:
                self._waiting -= 1
            busy = max(self._busy, core.busy())  # others chose their threads themselves
            threads = choose_threads(Load(self._cores, busy, self._waiting), most)
            self._busy += threads
        try:
            yield threads
        finally:
            with self._free:
                self._busy -= threads
                self._free.notify(threads)
