"""What a client has read of a remote store, to be told again without a message for as long as that is right."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

_OVERHEAD = 200
"""Bytes that Python needs for an entry besides what was read."""


@dataclass(slots=True)
class _Entry:
    value: Any
    until: float
    size: int
    used: bool = False


class ReadCache:
    """Answers by question, in at most ``room`` bytes. Any thread may call.

    What goes first is the oldest answer that was not used since it was last looked at.
    """

    def __init__(self, room: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._room, self._clock = room, clock
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._changing = threading.Lock()
        self._changes = 0
        self.held = 0
        """Bytes in it."""

    def read(self, question: Hashable, ask: Callable[[], Any], age: float) -> Any:
        """The answer: kept, or that of ``ask()``, which is then kept for ``age`` seconds. ``None`` is not kept."""
        now = self._clock()
        entry = self._entries.get(question)
        if entry is not None and now < entry.until:
            entry.used = True
            return entry.value
        before = self._changes
        value = ask()
        if value is not None:  # who iterates would not find what was written since
            self._keep(before, question, _Entry(value, now + age, _OVERHEAD + _size(question) + _size(value)))
        return value

    def _keep(self, before: int, question: Hashable, entry: _Entry) -> None:
        with self._changing:
            if before != self._changes:  # it may have been read before what was written meanwhile
                return
            self._remove(question)
            self._entries[question] = entry
            self.held += entry.size
            while self.held > self._room:
                oldest, found = next(iter(self._entries.items()))
                if found.used:
                    found.used = False
                    self._entries.move_to_end(oldest)
                else:
                    self._remove(oldest)

    def _remove(self, question: Hashable) -> None:
        entry = self._entries.pop(question, None)
        if entry is not None:
            self.held -= entry.size

    def forget(self, questions: Iterable[Hashable]) -> None:
        """Their answers have changed; those under way are not kept either."""
        with self._changing:
            self._changes += 1
            for question in questions:
                self._remove(question)

    def clear(self) -> None:
        """All answers may have changed."""
        with self._changing:
            self._changes += 1
            self._entries.clear()
            self.held = 0

    def close(self) -> None:
        """Keep nothing from now on."""
        self._room = 0
        self.clear()


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8
