"""The pool: slots that wait clean, zygotes that hold templates, and the thread that tends both."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidRequest, Overloaded, StatepoolError
from statepool.sandbox import caps, ledger, policy
from statepool.sandbox.cgroup import Cgroup, roots
from statepool.sandbox.errors import SandboxError, SlotFailed
from statepool.sandbox.slots import Reactor, Slot, Zygote
from statepool.sandbox.template import Limits, Template

__all__ = ["Pool"]

_log = logging.getLogger(__name__)
_FIRST_UID = 0x30000
_UIDS = 0x10000
_TICK = 0.25
_SMOOTH = 0.3
_FADE = 0.5 ** (_TICK / 30)
"""A peak counts for half after 30 seconds."""
_PATIENCE = 5.0
_HIGH = 8
_CORES = os.cpu_count() or 1
_AT_ONCE = 2 * _CORES
"""Slots made at the same time: more only take the cores from those who run."""
_YOUNG_SECONDS, _PAUSE = 0.1, 0.01
"""Who has come lately is at work; how often it is looked whether many are."""
_MOST_USES = 1000
"""Slots are made anew after so many tenants, so that nothing can pile up in one."""

_NAMES = itertools.count()
"""Of slots: one count for all pools of this process, since cgroups have their names."""


@dataclass(slots=True)
class _Shelf:
    """One template: its zygote, the slots that wait, and how many are wanted how quickly."""

    zygote: Zygote
    parked: list[tuple[Slot, policy.Parked]] = field(default_factory=list)
    start_seconds: float = 0.02
    lease_seconds: float = 0.0
    """From when a slot is taken until it waits again, if it is cleaned at once."""
    asking: int = 0
    """Who waits for a slot."""
    peak: float = 0.0
    """The most that were out or asked for at once, lately."""


class Pool(contextlib.AbstractContextManager["Pool"]):
    """Owns all slots of one manager.

    Args:
        templates: kinds of sandboxes; ``py`` is there in any case.
        driver: ``ns`` (root), ``userns`` (any user) or ``auto``, the strongest that this host and user can give.
        folder: where its few files are; a folder of its own by default.
        low: slots per used template that wait ready at least.
        high: and at most; by default eight, more where ``low`` is, fewer where ``most`` is.
        most: slots at once.
    """

    def __init__(
        self,
        templates: Iterable[Template] = (),
        *,
        driver: str = "auto",
        folder: Path | None = None,
        low: int = 1,
        high: int | None = None,
        most: int = 512,
    ) -> None:
        if high is None:
            high = min(max(_HIGH, low), most)
        if not 0 <= low <= high <= most:
            raise InvalidRequest(f"low, high, most: must not fall, got {low}, {high}, {most}", param="low")
        self.driver = caps.pick(driver)
        self.low, self.high, self.most = low, high, most
        self._userns = self.driver == "userns"
        self._cgroups = roots()
        self._ledger = ledger.Ledger(folder)
        self._reactor = Reactor()
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        """A slot was given back or is clean."""
        self._count = itertools.count(int.from_bytes(os.urandom(2), "little"))
        self._uids: set[int] = set()
        self._busy: set[Slot] = set()
        self._making = self._cleaning = 0
        self._dirty: list[tuple[Slot, int, str | None]] = []
        self._due: dict[Any, tuple[float, Callable[[], None]]] = {}
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.closed = False
        self.counters = {"created": 0, "reuse": 0, "switch": 0, "cold": 0, "resets": 0, "destroyed": 0}
        for template in [Template(), *templates]:
            self.add(template)
        self._thread = threading.Thread(target=self._keep, name="statepool-pool", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def templates(self) -> dict[str, Template]:
        """By name."""
        with self._lock:
            return {name: shelf.zygote.template for name, shelf in self._shelves.items()}

    def add(self, template: Template) -> None:
        """Add a template, or put another one in place of it; its running sandboxes keep what they have."""
        with self._lock:
            old = self._shelves.get(template.name)
            if old is not None and old.zygote.template == template:
                return
            folder = self._ledger.folder / str(next(self._count))
            folder.mkdir(mode=0o755)
            zygote = Zygote(template, folder, userns=self._userns, born=self._journal)
            self._shelves[template.name] = _Shelf(zygote)
        if old is not None:
            for slot, _ in old.parked:
                self._destroy(slot)
            old.zygote.close()

    def fill(self, template: str, count: int) -> None:
        """Make slots until ``count`` of them wait, or no more may be.

        Raises:
            SlotFailed: one could not be made.
        """
        while True:
            with self._lock:
                shelf = self._shelf(template)
                waiting = sum(len(other.parked) for other in self._shelves.values())
                if len(shelf.parked) >= count or waiting + len(self._busy) + self._making >= self.most:
                    return
                self._making += 1
            self._make(shelf, self._shelve)

    def acquire(self, template: str = "py", domain: str | None = None) -> Slot:
        """A clean slot of this template.

        Raises:
            InvalidRequest: no such template.
            Overloaded: all slots are busy.
            SlotFailed: one could not be made.
        """
        shelf = self._shelf(template)
        choice, taken = self._wait_for(shelf, domain)
        if choice.kind == "reuse" and taken is not None:
            if len(shelf.parked) < self.low and not self._returns_soon(shelf, 0.0):
                self._work.put(lambda: self._refill(template))
            return self._cross(taken, template, domain) if choice.fresh_network else taken
        if taken is not None:
            self._destroy(taken)
        return self._make(shelf, self._take) or self.acquire(template, domain)

    def _take(self, slot: Slot) -> None:
        slot.taken = time.monotonic()
        self._busy.add(slot)

    def _shelve(self, slot: Slot, domain: str | None = None) -> None:
        about = policy.Parked(slot.zygote.template.name, domain, time.monotonic(), slot.uses)
        self._shelves[about.template].parked.append((slot, about))

    def _wait_for(self, shelf: _Shelf, domain: str | None) -> tuple[policy.Choice, Slot | None]:
        """A choice. Where nothing waits, the caller cleans what lies there: that is quicker than making another."""
        template = shelf.zygote.template.name
        began = time.monotonic()
        with self._lock:
            shelf.asking += 1
            shelf.peak = max(shelf.peak, self._out(shelf) + shelf.asking)
        try:
            while True:
                if not shelf.parked and self._clean_one(template):
                    continue
                waited = time.monotonic() - began
                if shelf.parked or not (self._making >= _AT_ONCE or self._returns_soon(shelf, waited)):
                    found = self._choose(template, domain)
                    if found is not None:
                        return found
                    if not (self._making or self._cleaning or self._dirty) or waited > _PATIENCE:
                        raise Overloaded(f"all {self.most} slots are busy; close a sandbox or raise most")
                if not self._clean_one(None):
                    with self._news:
                        self._news.wait(0.005)
        finally:
            with self._lock:
                shelf.asking -= 1

    def _out(self, shelf: _Shelf) -> int:
        """Slots of a template that are in use or being cleaned."""
        with self._lock:
            return sum(slot.zygote is shelf.zygote for slot in self._busy)

    def _returns_soon(self, shelf: _Shelf, waited: float) -> bool:
        return policy.returns_soon(self._out(shelf), shelf.asking, shelf.lease_seconds, shelf.start_seconds, waited)

    def _choose(self, template: str, domain: str | None) -> tuple[policy.Choice, Slot | None] | None:
        """Decide, and take what was decided on out of the others' reach."""
        with self._lock:
            waiting = [(other, slot, about) for other in self._shelves.values() for slot, about in other.parked]
            everything = len(waiting) + len(self._busy) + self._making
            choice = policy.choose([about for *_, about in waiting], template, domain, everything, self.most)
            if choice is None:
                return None
            self.counters["created"] += 1
            self.counters[choice.kind] += 1
            taken = None
            if choice.index >= 0:
                other, taken, about = waiting[choice.index]
                other.parked.remove((taken, about))
            if choice.kind == "reuse" and taken is not None:
                self._take(taken)
            else:
                self._making += 1
            return choice, taken

    def _cross(self, slot: Slot, template: str, domain: str | None) -> Slot:
        """Make a slot of another trust domain fit for this one."""
        assert slot.tenant is not None
        self.give_uid(slot.tenant[0])
        problem = slot.reset(network=True)
        try:
            if problem is None:
                self._park(slot)
                return slot
        except OSError as error:
            problem = str(error)
        self.discard(slot, problem)
        return self.acquire(template, domain)

    def release(self, slot: Slot, uid: int, domain: str | None) -> None:
        """Give a slot back; it is cleaned behind the caller's back, or ended if it cannot be."""
        with self._lock:
            slot.uses += 1
            slot.held = time.monotonic() - slot.taken
            self._dirty.append((slot, uid, domain))
            self._news.notify_all()
        self._work.put(self._tidy)

    def discard(self, slot: Slot, reason: str) -> None:
        """End a slot that must not be used again."""
        _log.info("slot %s is ended: %s", slot.name, reason)
        with self._lock:
            self._busy.discard(slot)
        self._destroy(slot)

    def end_waiting(self, template: str) -> None:
        """End the slots of this template that wait; the next one is made anew."""
        with self._lock:
            shelf = self._shelf(template)
            waiting, shelf.parked = shelf.parked, []
        for slot, _ in waiting:
            self._destroy(slot)

    def take_uid(self) -> int:
        """A user id that no living sandbox has."""
        if self._userns:
            return 1000
        with self._lock:
            for _ in range(_UIDS):
                uid = _FIRST_UID + next(self._count) % _UIDS
                if uid not in self._uids:
                    self._uids.add(uid)
                    return uid
        raise Overloaded("all user ids are in use")

    def give_uid(self, uid: int) -> None:
        """The last sandbox with this id has ended."""
        with self._lock:
            self._uids.discard(uid)

    def at(self, key: Any, when: float | None, act: Callable[[], None]) -> None:
        """Call ``act`` once ``time.monotonic()`` passes ``when``; None: do not, after all."""
        with self._lock:
            if when is None:
                self._due.pop(key, None)
            else:
                self._due[key] = (when, act)

    @property
    def limits_by_cgroup(self) -> bool:
        """False for a user without cgroups: the data segment of each process is limited instead."""
        return bool(self._cgroups)

    def restart(self, slot: Slot, limits: Limits) -> None:
        """Begin a waiting slot anew, with other limits than its template's."""
        assert slot.tenant is not None
        uid, _, link = slot.tenant
        slot.signal(link.process(), signal.SIGKILL)
        link.close()
        slot.park(uid, limits, memory_rlimit=not self._cgroups)

    def waiting(self) -> dict[str, int]:
        """Slots that wait, by template."""
        with self._lock:
            return {name: len(shelf.parked) for name, shelf in self._shelves.items()}

    def busy(self) -> int:
        """Slots in use or being cleaned."""
        with self._lock:
            return len(self._busy)

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until everything given back is clean again, and nothing is being made."""
        deadline = time.monotonic() + timeout
        while (self._dirty or self._cleaning or self._making) and time.monotonic() < deadline:
            if not self._clean_one(None):
                time.sleep(0.001)

    def close(self) -> None:
        """End all sandboxes and zygotes and remove everything."""
        if self.closed:
            return
        self.closed = True
        self._work.put(None)
        self._thread.join(30)
        self._dirty.clear()
        self.settle()
        with self._lock:
            slots = [*self._busy, *(slot for shelf in self._shelves.values() for slot, _ in shelf.parked)]
            self._busy.clear()
        for slot in slots:
            self._destroy(slot)
        for shelf in self._shelves.values():
            shelf.zygote.close()
        self._reactor.close()
        self._ledger.close()

    def _shelf(self, template: str) -> _Shelf:
        shelf = self._shelves.get(template)
        if shelf is None:
            raise InvalidRequest(
                f"template: there is no {template!r}; known are {', '.join(self._shelves)}", param="template"
            )
        if self.closed:
            raise SandboxError("the pool is closed")
        return shelf

    def _make(self, shelf: _Shelf, keep: Callable[[Slot], None]) -> Slot | None:
        """Make a slot that was counted, and keep it; None if another template has come in place of its own."""
        name, made, slot = f"{os.getpid()}-{next(_NAMES)}", None, None
        try:
            shelf.zygote.start()  # before anything is made that a failure would leave
            began = time.monotonic()
            made = Slot(name, shelf.zygote, Cgroup(name, self._cgroups), self._reactor)
            self._ledger.write(cgroup=name)
            made.cgroup.create()
            made.start(self._journal)
            self._park(made)
            shelf.start_seconds += _SMOOTH * (time.monotonic() - began - shelf.start_seconds)
            slot = made
        except (OSError, StatepoolError) as error:
            if not self._replaced(shelf):
                told = isinstance(error, StatepoolError)
                raise error if told else SlotFailed(f"a slot could not be made: {error}") from error
        finally:
            with self._lock:  # at once, so that who closes the pool, or puts another template here, finds it
                self._making -= 1
                slot = None if self._replaced(shelf) else slot
                if slot is not None:
                    keep(slot)
            if made is not None and slot is None:
                self._destroy(made)
        return slot

    def _replaced(self, shelf: _Shelf) -> bool:
        return self._shelves.get(shelf.zygote.template.name) is not shelf

    def _journal(self, pid: int) -> None:
        self._ledger.write(pid=pid, started=ledger.started(pid))

    def _park(self, slot: Slot) -> None:
        limits = slot.zygote.template.limits
        slot.cgroup.limit(limits.memory_bytes, limits.processes, limits.cpus)
        slot.park(self.take_uid(), limits, memory_rlimit=not self._cgroups)

    def _destroy(self, slot: Slot) -> None:
        if slot.tenant is not None:
            self.give_uid(slot.tenant[0])
        self.counters["destroyed"] += 1
        if not slot.destroy():
            _log.warning("a cgroup of slot %s could not be removed: something in it does not die", slot.name)

    def _clean_one(self, template: str | None) -> bool:
        """Clean one slot of this template, or of any; answers whether there was one."""
        with self._lock:
            found = (item for item in self._dirty if template in (None, item[0].zygote.template.name))
            item = next(found, None)
            if item is None:
                return False
            self._dirty.remove(item)
            self._cleaning += 1
        try:
            self._clean(*item)
        finally:
            with self._lock:
                self._cleaning -= 1
        return True

    def _tidy(self) -> None:
        """Clean what was given back, unless those who have just come want the cores."""
        while True:
            with self._lock:
                if not self._dirty:
                    return
                shelf = self._shelves.get(self._dirty[0][0].zygote.template.name)
                ready = 0 if shelf is None else len(shelf.parked)
                running = self._busy - {slot for slot, *_ in self._dirty}
                young = sum(slot.taken > time.monotonic() - _YOUNG_SECONDS for slot in running)
            if not policy.cleans(young, _CORES, ready, self.low):
                return
            self._clean_one(None)

    def _clean(self, slot: Slot, uid: int, domain: str | None) -> None:
        began = time.monotonic()
        problem = slot.reset(network=False) if slot.alive and slot.uses < _MOST_USES else "it was used often enough"
        self.give_uid(uid)
        shelf = self._shelves.get(slot.zygote.template.name)
        if problem is None and (shelf is None or shelf.zygote is not slot.zygote or len(shelf.parked) >= self.high):
            problem = "enough slots wait"
        if problem is None and not self.closed:
            try:
                self._park(slot)
            except (SandboxError, OSError) as error:
                problem = str(error)
        with self._lock:
            if problem is None and shelf is not None and not self.closed and not self._replaced(shelf):
                self.counters["resets"] += 1
                self._busy.discard(slot)
                shelf.lease_seconds += _SMOOTH * (slot.held + time.monotonic() - began - shelf.lease_seconds)
                self._shelve(slot, domain)
                self._news.notify_all()
                return
        self.discard(slot, problem or "the pool is closed")

    def _refill(self, template: str) -> None:
        shelf = self._shelves[template]
        want = policy.wanted(self.low, self.high, round(shelf.peak) - self._out(shelf))
        try:
            self.fill(template, want)
        except (StatepoolError, OSError) as error:
            if not self.closed:
                _log.warning("template %s: %s", template, error)
            shelf.peak = 0.0  # not again before somebody asks

    def _keep(self) -> None:
        tick = time.monotonic() + _TICK
        while True:
            try:
                work = self._work.get(timeout=_PAUSE if self._dirty else max(0.0, tick - time.monotonic()))
            except queue.Empty:
                work = self._tidy
            if work is None:
                return
            try:
                work()
            except (StatepoolError, OSError) as error:
                _log.warning("a slot could not be cleaned: %s", error)
            now = time.monotonic()
            if now >= tick:
                tick = now + _TICK
                self._tend(now)

    def _tend(self, now: float) -> None:
        with self._lock:
            due = [key for key, (when, _) in self._due.items() if when <= now]
            acts = [self._due.pop(key)[1] for key in due]
            used = [name for name, shelf in self._shelves.items() if shelf.peak > 0.5]
            for shelf in self._shelves.values():
                shelf.peak *= _FADE
        for act in acts:
            try:
                act()
            except (StatepoolError, OSError) as error:
                _log.warning("a sandbox whose time was over could not be ended: %s", error)
        for name in used:
            self._refill(name)
