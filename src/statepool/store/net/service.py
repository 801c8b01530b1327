"""What a client may call of a store, by name, with the form of the arguments. Input and output are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from statepool.core.errors import InvalidRequest, SnapshotExpired
from statepool.store.coordination import Counter
from statepool.store.native import Verb, core
from statepool.store.sequences import now_ms

_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Word = Annotated[int, msgspec.Meta(ge=0)]
_Level = Annotated[int, msgspec.Meta(ge=0, le=2)]
_Bounds = tuple[bytes | None, bytes | None, bool, bool, bool]
_Operation = tuple[
    Annotated[int, msgspec.Meta(ge=int(Verb.PUT), le=int(Verb.TAKE_DEAD))], _Id, bytes, bytes, _Word, _Word
]
_Seen = tuple[_Id, bytes | None, _Word]

FIRST_SLOT = 1 << 31
"""Client numbers from here on are slots, which the daemon gives out; the core logs only what they change."""


@dataclass
class Session:
    """What the daemon keeps for one connection."""

    level: int = 1
    slots: list[int] = field(default_factory=list)
    snapshots: dict[int, Any] = field(default_factory=dict)


class Service:
    """The callable surface of one open store.

    ``quick`` calls end at once; ``slow`` ones may wait for the disk and belong in a thread.
    """

    def __init__(self, native: Any, term: int, slots: Counter) -> None:
        self._native, self._slots = native, slots
        self._first = FIRST_SLOT + (term % 128 << 24)  # no two reigns give out the same number
        self._free: list[int] = []
        plain: dict[str, Any] = {
            "get": tuple[_Id, bytes],
            "get_many": tuple[_Id, list[bytes]],
            "lookup": tuple[_Id, bytes],
            "scan": tuple[_Id, _Word],
            "peek": tuple[_Id, _Word, _Word],
            "dead": tuple[_Id, _Word],
            "size": tuple[_Id],
            "last_change": tuple[_Id],
            "last_of": tuple[_Id],
            "structures": tuple[()],
            "facts": tuple[()],
        }
        self._quick: dict[str, tuple[Any, Callable[..., Any]]] = {
            name: (shape, _ignoring_session(getattr(native, name))) for name, shape in plain.items()
        } | {
            "range": (tuple[_Id, _Bounds, _Word], self._range),
            "unpin": (tuple[_Word], self._unpin),
            "get_at": (tuple[_Word, bytes], self._get_at),
            "range_at": (tuple[_Word, _Bounds, _Word], self._range_at),
        }
        self._slow: dict[str, tuple[Any, Callable[..., Any]]] = {
            "structure": (tuple[str, Annotated[int, msgspec.Meta(ge=1, le=8)], bool], self._structure),
            "drop": (tuple[_Id], self._drop),
            "slot": (tuple[()], self._slot),
            "pin": (tuple[_Id, _Word], self._pin),
            "wait": (tuple[_Word], _ignoring_session(native.wait)),
            "flush": (tuple[()], _ignoring_session(native.flush)),
            "checkpoint": (tuple[()], _ignoring_session(native.checkpoint)),
        }

    def is_slow(self, method: str) -> bool:
        """Whether it may wait for the disk."""
        return method in self._slow

    def run(self, session: Session, method: str, arguments: list[Any]) -> Any:
        """Call something that reads, or administers.

        Raises:
            InvalidRequest: there is no such call, or its arguments do not fit.
            StatepoolError: whatever the store refuses.
        """
        shape, call = self._quick.get(method) or self._slow.get(method) or (None, None)
        if call is None:
            raise InvalidRequest(f"method: a store has no '{method}'")
        return call(session, *_convert(arguments, shape))

    def commit(self, arguments: list[Any]) -> tuple[list[Any], int]:
        """Apply operations; returns their outcomes and the level to wait for.

        Raises:
            InvalidRequest, Conflict, StoreFull, StoreReadOnly: nothing was changed.
        """
        shape = tuple[list[_Operation], list[_Seen], _Id, _Word, _Level]
        operations, seen, client, sequence, level = _convert(arguments, shape)
        operations = [_stamped(operation) for operation in operations]
        return list(self._native.commit(operations, seen, client, sequence, 0)), level

    def end(self, session: Session) -> None:
        """A connection is gone."""
        for snapshot in session.snapshots.values():
            self._native.unpin(snapshot)
        session.snapshots.clear()
        session.slots.clear()

    def release(self, session: Session) -> None:
        """A client says goodbye: its slots can serve others."""
        self._free += session.slots
        session.slots.clear()

    # ---- calls that need more than the core ----------------------------------------------------------------------

    def _slot(self, session: Session) -> tuple[int, int]:
        try:
            number = self._free.pop()
        except IndexError:
            number = self._first + self._slots.add()
        session.slots.append(number)
        return number, self._native.last_of(number)[0]

    def _structure(self, session: Session, name: str, kind: int, create: bool) -> int:
        return int(self._native.structure(name, kind, create))

    def _drop(self, session: Session, identity: int) -> None:
        self._native.drop(identity)

    def _range(self, session: Session, identity: int, bounds: Any, limit: int) -> Any:
        return self._native.range(identity, core.Range(*bounds), limit)

    def _pin(self, session: Session, identity: int, lease: int) -> tuple[int, int, int]:
        snapshot = self._native.pin(identity, lease)
        number = max(session.snapshots, default=0) + 1
        session.snapshots[number] = snapshot
        return number, snapshot.version, snapshot.size

    def _pinned(self, session: Session, number: int) -> Any:
        if number not in session.snapshots:
            raise SnapshotExpired("snapshot: it was closed, or its connection was lost; take another one")
        return session.snapshots[number]

    def _unpin(self, session: Session, number: int) -> None:
        if number in session.snapshots:
            self._native.unpin(session.snapshots.pop(number))

    def _get_at(self, session: Session, number: int, key: bytes) -> Any:
        return self._native.get_at(self._pinned(session, number), key)

    def _range_at(self, session: Session, number: int, bounds: Any, limit: int) -> Any:
        return self._native.range_at(self._pinned(session, number), core.Range(*bounds), limit)


def _ignoring_session(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *arguments: call(*arguments)


def _stamped(operation: _Operation) -> _Operation:
    """Leases run by the daemon's clock alone: a client whose clock is wrong would end those of all others."""
    verb, identity, a, b, x, y = operation
    if verb in (Verb.TAKE, Verb.TAKE_DEAD):
        x = now_ms()
    elif verb == Verb.EXTEND:
        a = now_ms().to_bytes(8, "little") + a[8:]
    return verb, identity, a, b, x, y


def _convert(arguments: list[Any], shape: Any) -> Any:
    try:
        return msgspec.convert(arguments, shape)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"arguments: {error}") from error
