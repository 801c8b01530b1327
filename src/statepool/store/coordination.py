"""Counters and locks, built on compare-and-set in a dictionary."""

from __future__ import annotations

import secrets
import time
from typing import Any

from statepool.core.errors import Conflict
from statepool.store.dicts import Dict


class Counter:
    """A durable integer. Made by :meth:`Store.counter`."""

    def __init__(self, cells: Dict, name: str) -> None:
        self._cells, self.name = cells, name

    def add(self, amount: int = 1) -> int:
        """Add ``amount``; returns the new value."""
        while True:
            before = self._cells.get(self.name)
            if self._cells.compare_and_set(self.name, before, (before or 0) + amount):
                return (before or 0) + amount

    @property
    def value(self) -> int:
        """The present value; 0 at first."""
        return int(self._cells.get(self.name, 0))

    def __repr__(self) -> str:
        return f"<Counter {self.name!r}>"


class Lock:
    """A lock with a lease, for processes that share a store. Made by :meth:`Store.lock`.

    A holder that dies keeps others out for one more lease, which each of them counts by its own clock from when it
    first saw the holder's last sign of life: whose clock is wrong, or is set, takes the lock from nobody. ``epoch``
    grows with every acquisition: pass it along with what you do under the lock, so that a holder whose lease ended
    while it slept can be refused.
    """

    def __init__(self, cells: Dict, name: str, lease: float) -> None:
        self._cells, self.name, self.lease = cells, name, lease
        self._holder = secrets.token_hex(8)
        self._sign: tuple[object, ...] = ()
        self._sign_seen = 0.0
        self._beat = self.epoch = 0

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock, at most ``timeout`` seconds; whether it is ours."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while not self._try():
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
        return True

    def _try(self) -> bool:
        state = self._cells.get(self.name)
        if state is not None and state["holder"] is not None and not self._silent(state):
            return False
        epoch = 1 if state is None else state["epoch"] + 1
        if not self._cells.compare_and_set(self.name, state, self._state(epoch)):
            return False
        self.epoch, self._beat = epoch, 0
        return True

    def _silent(self, state: dict[str, Any]) -> bool:
        """Whether the holder gave no sign of life for a whole lease that we saw."""
        sign = state["holder"], state["epoch"], state["beat"]
        if sign != self._sign:
            self._sign, self._sign_seen = sign, time.monotonic()
        return time.monotonic() - self._sign_seen > float(state["lease"])

    def _state(self, epoch: int, beat: int = 0, holder: bool = True) -> dict[str, Any]:
        return {"holder": self._holder if holder else None, "lease": self.lease, "epoch": epoch, "beat": beat}

    def renew(self) -> None:
        """Start the lease again.

        Raises:
            Conflict: the lease had ended and another holder came.
        """
        self._beat += 1
        self._replace(self._state(self.epoch, self._beat))

    def release(self) -> None:
        """Let others in. Does nothing if the lease had ended and another holder came."""
        try:
            self._replace(self._state(self.epoch, holder=False))
        except Conflict:
            return

    def _replace(self, state: dict[str, Any]) -> None:
        present = self._cells.get(self.name)
        ours = present is not None and (present["holder"], present["epoch"]) == (self._holder, self.epoch)
        if not ours or not self._cells.compare_and_set(self.name, present, state):
            raise Conflict(f"lock: '{self.name}' is not ours any more; its lease of {self.lease} s had ended")

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()
