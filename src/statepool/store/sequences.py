"""Queues with leases, stacks, and logs that are only appended to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from statepool.core.errors import InvalidRequest
from statepool.store.codec import Codec
from statepool.store.dicts import Dict, SortedDict
from statepool.store.native import Verb, level_number

if TYPE_CHECKING:
    from statepool.store.store import Store

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BEGAN = time.time_ns() - time.clock_gettime_ns(_CLOCK)


def now_ms() -> int:
    """Milliseconds since 1970 when the process began and as they passed since: leases must mean the same to the next
    process, and a clock that is set meanwhile must not end them or make them last.
    """
    return (_BEGAN + time.clock_gettime_ns(_CLOCK)) // 1_000_000


def _lease(seconds: float) -> int:
    """In milliseconds. Raises InvalidRequest for what is no time ahead, or is more than a thousand years of it."""
    if not 0 <= seconds <= 3.2e10:
        raise InvalidRequest(f"lease: {seconds} seconds; it must be between 0 and 3.2e10", param="lease")
    return round(seconds * 1000)


@dataclass(slots=True)
class Item:
    """A value taken from a queue. It comes back to the queue when its lease ends without :meth:`ack`."""

    value: Any
    sequence: int
    """Its place: items are numbered from 1 in the order they were put."""
    attempts: int
    """How often it has been taken, this time included."""
    token: int
    queue: Queue

    def ack(self) -> bool:
        """Remove it for good. False if the lease had ended and somebody else has it or has acknowledged it."""
        return self.queue.ack_many([self]) == 1

    def nack(self) -> bool:
        """Give it back at once, at its place. False as in :meth:`ack`."""
        return self.queue.operate(Verb.GIVE_BACK, self)

    def extend(self, lease: float) -> bool:
        """Hold it for ``lease`` more seconds from now. False as in :meth:`ack`."""
        span = now_ms().to_bytes(8, "little") + _lease(lease).to_bytes(8, "little")
        return self.queue.operate(Verb.EXTEND, self, span)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An item that was taken as often as its queue allows and never acknowledged."""

    value: Any
    sequence: int
    """Its place in the queue when it was put."""
    attempts: int


class Queue:
    """A durable first-in-first-out queue whose items are leased, then acknowledged. Made by :meth:`Store.queue`."""

    def __init__(self, store: Store, identity: int, name: str, values: Codec) -> None:
        self.native, self.identity, self.name = store.native, identity, name
        self.encode, self.decode = values.encode, values.decode

    def put(self, value: Any, *, dedup: str | None = None, durability: str | None = None) -> int:
        """Append ``value``; returns its sequence number.

        An item with a ``dedup`` id that is in the queue, or was among the last 65,536 acknowledged ones, is not put
        again: the number is that of the first.
        """
        return self.put_many([value], dedup=None if dedup is None else [dedup], durability=durability)[0]

    def put_many(
        self, values: Iterable[Any], *, dedup: Iterable[str] | None = None, durability: str | None = None
    ) -> list[int]:
        """Append all values in one commit; returns their sequence numbers."""
        encoded = [self.encode(value) for value in values]
        ids = [b""] * len(encoded) if dedup is None else [name.encode() for name in dedup]
        if len(ids) != len(encoded):
            raise InvalidRequest(f"dedup: {len(ids)} ids for {len(encoded)} values", param="dedup")
        operations = [
            (Verb.ENQUEUE, self.identity, value, name, 0, 0) for value, name in zip(encoded, ids, strict=True)
        ]
        return [outcome[1] for outcome in self.native.commit(operations, [], level=level_number(durability))]

    def take(self, lease: float = 30.0, *, owner: int = 0) -> Item | None:
        """The oldest item nobody holds, held for ``lease`` seconds; ``None`` if there is none.

        A lease of 0 removes it at once.
        """
        return next(iter(self.take_many(1, lease, owner=owner)), None)

    def take_many(self, limit: int, lease: float = 30.0, *, owner: int = 0) -> list[Item]:
        """Up to ``limit`` items at once, as :meth:`take`."""
        operation = (Verb.TAKE, self.identity, owner.to_bytes(8, "little"), b"", now_ms(), _lease(lease))
        taken = self.native.commit([operation] * limit, [])
        return [
            Item(self.decode(value), sequence, attempts, token, self)
            for changed, sequence, token, attempts, value in taken
            if changed
        ]

    def ack_many(self, items: Iterable[Item]) -> int:
        """Acknowledge several items in one commit; how many of them were still ours."""
        operations = [(Verb.ACKNOWLEDGE, self.identity, b"", b"", item.sequence, item.token) for item in items]
        return sum(outcome[0] for outcome in self.native.commit(operations, []))

    def operate(self, verb: Verb, item: Item, argument: bytes = b"") -> bool:
        """Apply an operation on a taken item; whether the item was still ours."""
        outcome = self.native.commit([(verb, self.identity, argument, b"", item.sequence, item.token)], [])
        return bool(outcome[0][0])

    def limit_attempts(self, attempts: int) -> None:
        """Let an item be taken ``attempts`` times at most, durably; 0: any number of times, as at first.

        One that comes back after its last time, by :meth:`Item.nack` or because its lease ended, becomes a dead letter
        instead: no take sees it any more.
        """
        if attempts < 0:
            raise InvalidRequest(f"attempts: {attempts}; it must be 0 (no limit) or more", param="attempts")
        self.native.commit([(Verb.LIMIT_ATTEMPTS, self.identity, b"", b"", attempts, 0)], [])

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Up to ``limit`` dead letters, left in place; the one that died first comes first."""
        return [
            DeadLetter(self.decode(value), sequence, attempts)
            for sequence, attempts, value in self.native.dead(self.identity, limit)
        ]

    def take_dead_letter(self) -> DeadLetter | None:
        """Remove and return the dead letter that died first; ``None`` if there is none. Its ``dedup`` id counts as
        acknowledged: put it again without one.
        """
        outcome = self.native.commit([(Verb.TAKE_DEAD, self.identity, b"", b"", now_ms(), 0)], [])[0]
        changed, sequence, _, attempts, value = outcome
        return DeadLetter(self.decode(value), sequence, attempts) if changed else None

    def peek_range(self, start: int = 0, limit: int = 100) -> list[tuple[int, Any]]:
        """Sequence numbers and values of items not yet acknowledged, leased or not, from ``start`` on."""
        return [(sequence, self.decode(value)) for sequence, value in self.native.peek(self.identity, start, limit)]

    def __len__(self) -> int:
        """Items not yet acknowledged."""
        size: int = self.native.size(self.identity)
        return size

    def __repr__(self) -> str:
        return f"<Queue {self.name!r}>"


class Stack:
    """A durable last-in-first-out stack. Made by :meth:`Store.stack`."""

    def __init__(self, store: Store, identity: int, name: str, values: Codec) -> None:
        self.native, self.identity, self.name = store.native, identity, name
        self.encode, self.decode = values.encode, values.decode

    def push(self, value: Any, *, durability: str | None = None) -> None:
        """Put ``value`` on top."""
        self.extend([value], durability=durability)

    def extend(self, values: Iterable[Any], *, durability: str | None = None) -> None:
        """Push all values in one commit; the last one ends on top."""
        operations = [(Verb.PUSH, self.identity, self.encode(value), b"", 0, 0) for value in values]
        self.native.commit(operations, [], level=level_number(durability))

    def pop(self) -> Any:
        """Remove and return the top; ``IndexError`` if the stack is empty."""
        changed, _, _, _, value = self.native.commit([(Verb.POP, self.identity, b"", b"", 0, 0)], [])[0]
        if not changed:
            raise IndexError(f"pop from empty stack '{self.name}'")
        return self.decode(value)

    def peek(self) -> Any:
        """The top, left in place; ``IndexError`` if the stack is empty."""
        return self[-1]

    def __getitem__(self, index: int) -> Any:
        """As a list whose end is the top: ``stack[-1]`` is the top, ``stack[0]`` the bottom."""
        from_top = -index - 1 if index < 0 else len(self) - 1 - index
        found = self.native.peek(self.identity, from_top, 1) if from_top >= 0 else []
        if not found:
            raise IndexError(f"stack index {index} out of range")
        return self.decode(found[0][1])

    def __len__(self) -> int:
        size: int = self.native.size(self.identity)
        return size

    def __repr__(self) -> str:
        return f"<Stack {self.name!r}>"


class Log:
    """A durable sequence of entries numbered from 0 that is only appended to. Made by :meth:`Store.log`."""

    def __init__(self, entries: SortedDict, cells: Dict) -> None:
        self._entries, self._cells, self.name = entries, cells, entries.name

    def append(self, value: Any) -> int:
        """Add ``value`` at the end; returns its number."""
        while True:
            last = self._entries.last()
            number = self._cells.get(self.name, 0) if last is None else _number(last[0]) + 1
            if self._entries.compare_and_set(_key(number), None, value):
                return number

    def read(self, start: int = 0, limit: int | None = None) -> Iterator[tuple[int, Any]]:
        """Numbers and values from ``start`` on."""
        return ((_number(key), value) for key, value in self._entries.range(_key(start), limit=limit))

    def truncate(self, before: int) -> None:
        """Forget the entries numbered below ``before``; the others keep their numbers."""
        last = self._entries.last()
        if last is None:
            return
        self._cells[self.name] = min(before, _number(last[0]) + 1)  # where numbers go on if nothing is left
        for key, _ in self._entries.range(None, _key(before)):
            self._entries.pop(key, None)

    def __getitem__(self, number: int) -> Any:
        try:
            return self._entries[_key(number)]
        except (KeyError, OverflowError):
            raise IndexError(f"log '{self.name}' has no entry {number}") from None

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<Log {self.name!r}>"


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")
