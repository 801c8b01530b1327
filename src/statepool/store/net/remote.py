"""A store on another machine, with the methods of the native core, so that all faces work on it unchanged.

Every write carries the number of a slot that the daemon gave out and a sequence number: sent again after a lost
connection, to the same daemon or to the mirror that took over, it gives the outcome of the first time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from statepool.core.errors import (
    Fenced,
    MirrorLost,
    NotFound,
    OutcomeUnknown,
    SnapshotExpired,
    StoreError,
    StoreReadOnly,
    Unavailable,
)
from statepool.store.native import Verb
from statepool.store.net.framing import address, raised
from statepool.store.net.link import Link, LinkLost
from statepool.store.net.read_cache import ReadCache
from statepool.store.transaction import Pending

_PAUSE = 0.05
_PUT = int(Verb.PUT)
_OWN = "statepool."  # structures by which locks, counters and logs agree: never read from a cache


@dataclass(frozen=True)
class RemoteSnapshot:
    """A version that the daemon holds for this connection, and what was read of it, which cannot change."""

    number: int
    version: int
    size: int
    link: Link
    until: float
    cache: ReadCache


class _Refused(LinkLost):
    """What a daemon answered to the first message of a connection."""


def _telling(before: Exception | None, now: Exception) -> Exception:
    """The one to be told: a daemon's own words, if there were some, rather than somebody's silence."""
    return before if isinstance(before, _Refused | Fenced | Unavailable) and not isinstance(now, _Refused) else now


class RemoteNative:
    """Calls over a connection that is made again when it breaks. Any thread may call.

    ``urls`` are the places where the store may be: the first that answers as the primary is used. Single entries may be
    told ``max_age`` seconds after they were read; that cache, and that of each snapshot, takes ``room`` bytes at most.
    """

    def __init__(
        self, urls: Sequence[str], level: int, timeout: float, *, max_age: float = 0.0, room: int = 16 << 20
    ) -> None:
        for url in urls:
            address(url)
        self._urls, self._level, self._timeout = list(urls), level, timeout
        self._max_age, self._room, self._cache = max_age, room, ReadCache(room)
        self._uncached: set[int] = set()
        self._link: Link | None = None
        self._connecting, self._slot_lock = threading.Lock(), threading.Lock()
        self._slots: list[tuple[int, int]] = []
        self._term, self._closed = 0, False
        self._call("facts")

    # ---- calling ----------------------------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call until there is an answer. Only for what may happen twice, or carries a slot.

        Raises:
            Unavailable: nobody could be reached in time; nothing was changed.
            OutcomeUnknown: a write was sent and no answer came in time.
        """
        until, open_ended, link = time.monotonic() + self._timeout, False, None
        error: Exception | None = None
        while True:
            try:
                link = self._connected(until)
                reply = link.call(method, list(arguments), until)
                if reply.error is None:
                    return reply.result
                error = raised(reply.error)
                if open_ended and isinstance(error, MirrorLost | StoreReadOnly):
                    break  # this time nothing was changed; the first time it may have been
                if not isinstance(error, Fenced | Unavailable):
                    raise error
                open_ended = open_ended or method == "commit"
                self._drop(link)
            except LinkLost as lost:
                error = _telling(error, lost)
                open_ended = open_ended or (method == "commit" and link is not None)
            link = None
            if self._closed or time.monotonic() + _PAUSE > until:
                break
            time.sleep(_PAUSE)
        why = f"store: no answer within {self._timeout} s ({error})"
        if open_ended:
            raise OutcomeUnknown(why + "; the write may or may not have happened")
        raise Unavailable(why)

    def _connected(self, until: float) -> Link:
        with self._connecting:
            if self._closed:
                raise StoreReadOnly("store: it is closed")
            if self._link is None or self._link.lost:
                self._link = self._connect(until)
            return self._link

    def _connect(self, until: float) -> Link:
        why: Exception = LinkLost("no address")
        for url in list(self._urls):
            left = until - time.monotonic()
            try:
                link = Link(url, max(min(left, self._timeout / max(2, len(self._urls))), 0.01))
                reply = link.call(
                    "hello", [self._level, self._term], min(until, time.monotonic() + max(left / 2, 0.01))
                )
            except LinkLost as lost:
                why = _telling(why, lost)
            else:
                if reply.error is None:
                    if reply.result != self._term:
                        self._cache.clear()  # another primary may not have what this one told
                    self._term = max(self._term, reply.result)
                    return link
                link.close()
                why = _Refused(f"{url}: {reply.error[1]}")
            self._urls.append(self._urls.pop(0))  # the next one may be the primary now
        raise why

    def _drop(self, link: Link) -> None:
        with self._connecting:
            link.close()
            if self._link is link:
                self._link = None

    @contextmanager
    def _slot(self) -> Iterator[tuple[int, int]]:
        """The next name of an operation; no other call uses the slot meanwhile."""
        with self._slot_lock:
            slot = self._slots.pop() if self._slots else None
        client, last = slot or self._call("slot")
        try:
            yield client, last + 1
        finally:
            with self._slot_lock:
                self._slots.append((client, last + 1))

    # ---- writing ----------------------------------------------------------------------------------------------------

    def commit(
        self, operations: Any, seen: Any, client: int = 0, sequence: int = 0, level: int = -1
    ) -> list[tuple[bool, int, int, int, bytes]]:
        """As the core's."""
        if not operations and not seen:
            return []
        level = self._level if level < 0 else level
        plain = [(int(verb), *rest) for verb, *rest in operations]
        try:
            if client or not plain:
                outcomes = self._call("commit", plain, seen, client, sequence, level)
            else:
                with self._slot() as (client, sequence):
                    outcomes = self._call("commit", plain, seen, client, sequence, level)
        finally:  # also of unknown outcome
            if self._max_age:
                self._cache.forget((identity, key) for _, identity, key, *_ in plain)
        return [tuple(outcome) for outcome in outcomes]

    def transaction(self, level: int, client: int, sequence: int) -> Pending:
        """As the core's."""
        return Pending(self, level, client, sequence)

    def put(self, identity: int, key: bytes, value: bytes, level: int = -1) -> bool:
        """As the core's."""
        return bool(self.commit([(_PUT, identity, key, value, 0, 0)], [], level=level)[0][1])

    def erase(self, identity: int, key: bytes, level: int = -1) -> bool:
        """As the core's."""
        return self.commit([(int(Verb.ERASE), identity, key, b"", 0, 0)], [], level=level)[0][0]

    def update(self, identity: int, pairs: Iterable[tuple[bytes, bytes]], level: int = -1) -> None:
        """As the core's."""
        self.commit([(_PUT, identity, key, value, 0, 0) for key, value in pairs], [], level=level)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def get(self, identity: int, key: bytes, default: Any = None) -> Any:
        """As the core's, up to ``max_age`` seconds late."""
        if self._max_age and identity not in self._uncached:
            value = self._cache.read((identity, key), partial(self._call, "get", identity, key), self._max_age)
        else:
            value = self._call("get", identity, key)
        return default if value is None else value

    def get_many(self, identity: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """As the core's."""
        found: list[bytes | None] = self._call("get_many", identity, list(keys))
        return found

    def lookup(self, identity: int, key: bytes) -> tuple[bytes | None, int]:
        """As the core's."""
        value, lsn = self._call("lookup", identity, key)
        return value, lsn

    def range(self, identity: int, bounds: Any, limit: int) -> list[Any]:
        """As the core's."""
        found: list[Any] = self._call("range", identity, bounds.parts(), limit)
        return found

    def scan(self, identity: int, cursor: int) -> tuple[int, list[Any]]:
        """As the core's."""
        after, entries = self._call("scan", identity, cursor)
        return after, entries

    def peek(self, identity: int, start: int, limit: int) -> list[Any]:
        """As the core's."""
        return [tuple(item) for item in self._call("peek", identity, start, limit)]

    def dead(self, identity: int, limit: int) -> list[Any]:
        """As the core's."""
        return [tuple(item) for item in self._call("dead", identity, limit)]

    def size(self, identity: int) -> int:
        """As the core's."""
        return int(self._call("size", identity))

    def last_change(self, identity: int) -> int:
        """As the core's."""
        return int(self._call("last_change", identity))

    def last_of(self, client: int) -> tuple[int, Any]:
        """As the core's."""
        sequence, outcome = self._call("last_of", client)
        return sequence, outcome

    # ---- snapshots: they end with their connection ----------------------------------------------------------------

    def pin(self, identity: int, lease: int) -> RemoteSnapshot:
        """As the core's."""
        began = time.monotonic()
        until = began + self._timeout
        try:
            link = self._connected(until)
            reply = link.call("pin", [identity, lease], until)
        except LinkLost as lost:
            raise Unavailable(f"store: {lost}") from lost
        if reply.error is not None:
            raise raised(reply.error)
        number, version, size = reply.result
        return RemoteSnapshot(number, version, size, link, began + lease / 1000, ReadCache(self._room))

    def _at(self, snapshot: RemoteSnapshot, method: str, *arguments: Any) -> Any:
        try:
            reply = snapshot.link.call(method, [snapshot.number, *arguments], time.monotonic() + self._timeout)
        except LinkLost as lost:
            raise SnapshotExpired(f"snapshot: its connection was lost ({lost}); take another one") from lost
        if reply.error is not None:
            raise raised(reply.error)
        return reply.result

    def _kept(self, snapshot: RemoteSnapshot, method: str, *arguments: Any) -> Any:
        ask = partial(self._at, snapshot, method, *arguments)
        if snapshot.link.lost:
            return ask()
        return snapshot.cache.read((method, *arguments), ask, snapshot.until - time.monotonic())

    def get_at(self, snapshot: RemoteSnapshot, key: bytes) -> bytes | None:
        """As the core's; asked once for each key."""
        value: bytes | None = self._kept(snapshot, "get_at", key)
        return value

    def range_at(self, snapshot: RemoteSnapshot, bounds: Any, limit: int) -> list[Any]:
        """As the core's; asked once for each range."""
        found: list[Any] = self._kept(snapshot, "range_at", bounds.parts(), limit)
        return found

    def unpin(self, snapshot: RemoteSnapshot) -> None:
        """As the core's; of a lost connection, nothing is left to free."""
        snapshot.cache.close()
        if not snapshot.link.lost:
            self._at(snapshot, "unpin")

    # ---- the whole --------------------------------------------------------------------------------------------------

    def structures(self) -> list[tuple[str, int, int]]:
        """As the core's."""
        return [tuple(entry) for entry in self._call("structures")]

    def structure(self, name: str, kind: int, create: bool) -> int:
        """As the core's."""
        identity = int(self._call("structure", name, kind, create))
        if name.startswith(_OWN):
            self._uncached.add(identity)
        return identity

    def drop(self, identity: int) -> None:
        """As the core's. Dropped already counts as done: it may have been by the first of two tries."""
        try:
            self._call("drop", identity)
        except NotFound:
            return
        finally:
            self._cache.clear()

    def wait(self, lsn: int) -> None:
        """As the core's."""
        self._call("wait", lsn)

    def flush(self) -> None:
        """As the core's."""
        self._call("flush")

    def checkpoint(self) -> None:
        """As the core's."""
        self._call("checkpoint")

    def facts(self) -> Mapping[str, int]:
        """As the core's."""
        found: Mapping[str, int] = self._call("facts")
        return found

    @property
    def applied_lsn(self) -> int:
        """As the core's."""
        return self.facts()["applied_lsn"]

    @property
    def durable_lsn(self) -> int:
        """As the core's."""
        return self.facts()["durable_lsn"]

    def close(self) -> None:
        """Say goodbye and end the connection. Closing twice is fine."""
        with self._connecting:
            link, self._link, self._closed = self._link, None, True
        if link is None or link.lost:
            return
        try:
            link.call("bye", [], time.monotonic() + 1.0)
        except (LinkLost, StoreError):
            return
        finally:
            link.close()
