"""A slot lent to one tenant: shared by a sandbox, its forks and snapshots, given back when the last has gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from statepool.sandbox.errors import SandboxError, SandboxGone
from statepool.sandbox.slots import Reply, Slot
from statepool.sandbox.template import Limits

if TYPE_CHECKING:
    from statepool.sandbox.pool import Pool

__all__ = ["Ending", "Lease"]


class Ending(contextlib.AbstractContextManager["Ending"]):
    """Becomes readable when a process has ended; for ``select``, and to wait for."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._event = threading.Event()

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For ``select``."""
        return self._fd

    def set(self) -> None:
        """It has ended."""
        self._event.set()
        with contextlib.suppress(OSError):
            os.eventfd_write(self._fd, 1)

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end; answers whether it came."""
        return self._event.wait(timeout)

    def close(self) -> None:
        """Free the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


class Lease:
    """One tenant's hold on a slot."""

    def __init__(self, pool: Pool, slot: Slot, uid: int, domain: str | None, limits: Limits) -> None:
        self.pool, self.slot, self.uid, self.domain, self.limits = pool, slot, uid, domain, limits
        self._lock = threading.Lock()
        self._holders = 1
        self._paused = 0
        self._roots = 0
        self.frozen: set[int] = set()
        """Processes that hold snapshots: they touch no file, so nobody need look where they are."""
        self._codes: dict[int, int] = {}
        self._endings: dict[int, list[Ending]] = {}
        slot.on_exit = self._exited
        slot.on_lost = self._lost

    def ask(self, what: str, *fields: str | int, fds: Iterable[int] = ()) -> Reply:
        """A request to the slot."""
        return self.slot.ask(what, *fields, fds=fds)

    def processes(self) -> list[tuple[int, str]]:
        """Ids, inside, and command lines of everything that runs."""
        return _shown(self.ask("processes")[0]["processes"])

    def signal(self, pid: int, number: int, group: bool = False) -> bool:
        """Send a signal to a process inside; answers whether it was there."""
        return self.slot.signal(pid, number, group)

    def kill(self, pid: int) -> None:
        """End a process inside. Nobody waits for it."""
        with contextlib.suppress(SandboxGone):
            self.slot.post("signal", pid, 0, signal.SIGKILL)

    def ending(self, pid: int) -> Ending:
        """What tells when this process has ended."""
        made = Ending()
        with self._lock:
            if pid in self._codes or not self.slot.alive:
                made.set()
            else:
                self._endings.setdefault(pid, []).append(made)
        return made

    def code(self, pid: int) -> int:
        """Exit code of a process that has ended; -9 if its sandbox has."""
        with self._lock:
            return self._codes.get(pid, -9)

    def others(self, root: int, allowed: int) -> Callable[[], list[tuple[int, str]]]:
        """Ask who but the process ``allowed`` is at work in a root; answers what waits for the answer."""
        wait = self.slot.later("busy", root, allowed, *self.frozen)
        return lambda: _shown(_answer(wait)[0]["busy"])

    def touched(self, root: int, allowed: int) -> bool:
        """Whether a root's files differ from those it began with, or others than ``allowed`` are at work there."""
        return bool(self.ask("touched", root, allowed, *self.frozen)[0]["touched"])

    def roots(self, below: int, count: int) -> Callable[[], list[tuple[int, int]]]:
        """Ask for new root directories above one that is sealed, at most 16 at once.

        Returns:
            What waits for the answer: their numbers and descriptors.
        """
        with self._lock:
            numbers = [*range(self._roots + 1, self._roots + 1 + count)]
            self._roots += count
        wait = self.slot.later("layers", below, *numbers)
        return lambda: [*zip(numbers, _answer(wait)[1], strict=True)]

    def scrap(self, answer: Callable[[], list[tuple[int, int]]]) -> None:
        """Take roots away that were asked for and are not needed."""
        with contextlib.suppress(SandboxError):
            for number, root in answer():
                os.close(root)
                self.drop(number)

    def drop(self, root: int) -> None:
        """Take a root directory away and end who is in it. Nobody waits for it."""
        with contextlib.suppress(SandboxGone):
            self.slot.post("drop", root, *self.frozen)

    @property
    def holders(self) -> int:
        """Sandboxes and snapshots that live in the slot."""
        return self._holders

    def hold(self) -> None:
        """One more sandbox or snapshot lives in this slot."""
        with self._lock:
            if self._holders == 0:
                raise SandboxGone("the sandbox has ended")
            self._holders += 1

    def let_go(self) -> None:
        """One less; the last one gives the slot back."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            if self._paused:
                self.slot.cgroup.freeze(False)
            self.slot.on_exit = self.slot.on_lost = None
            self.pool.release(self.slot, self.uid, self.domain)

    def pause(self, paused: bool) -> bool:
        """Count one more or less paused sandbox; all processes stop once every sandbox of the slot is paused."""
        with self._lock:
            self._paused += 1 if paused else -1
            stop = self._paused >= self._holders
        return self.slot.cgroup.freeze(stop)

    def _exited(self, pid: int, code: int) -> None:
        with self._lock:
            self._codes[pid] = code
            endings = self._endings.pop(pid, [])
        for ending in endings:
            ending.set()

    def _lost(self, slot: Slot) -> None:
        with self._lock:
            endings = [ending for found in self._endings.values() for ending in found]
            self._endings.clear()
        for ending in endings:
            ending.set()


def _answer(wait: Callable[[], Reply]) -> Reply:
    try:
        return wait()
    except OSError as error:
        raise SandboxError(f"snapshot: {error.strerror}") from None


def _shown(found: list[list[Any]]) -> list[tuple[int, str]]:
    """Command lines as text; their bytes outside ASCII come as lone surrogates."""
    return [(pid, line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")) for pid, line in found]
