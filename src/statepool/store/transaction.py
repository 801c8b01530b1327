"""Transactions: several operations on several structures, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from statepool.core.errors import InvalidRequest
from statepool.store.dicts import PLAIN, Dict, SortedDict, VersionedDict
from statepool.store.native import Verb, level_number
from statepool.store.sequences import Item, Queue, Stack

_MISSING = object()

if TYPE_CHECKING:
    from statepool.store.store import Store


class Transaction:
    """Collects reads and writes; :meth:`Store.transaction` makes one.

    Index it with a structure to get that structure's face inside the transaction. Nothing is written before the block
    ends; then all of it is, unless something the block had read was changed by another meanwhile. A block that only
    reads has read it all at one moment, or raises too. What it is told may still wait for the disk: its end waits with
    it, so tell nobody before that.

    Raises:
        Conflict: at the end of the block, in that case. Nothing was written: run the block again.
    """

    __slots__ = ("_native", "_pending")

    def __init__(self, store: Store, durability: str | None, op_id: tuple[int, int] | None) -> None:
        self._native = store.native
        level = -1 if durability is None else level_number(durability)
        client, sequence = (0, 0) if op_id is None else op_id
        self._pending = self._native.transaction(level, client, sequence)

    def __getitem__(self, structure: Dict | Queue | Stack) -> Any:
        face = _FACES.get(type(structure))
        if face is None:
            raise InvalidRequest(f"transaction: a {type(structure).__name__} cannot take part")
        if structure.native is not self._native:
            raise InvalidRequest(f"transaction: '{structure.name}' belongs to another store")
        return face(structure, self._pending)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        if kind is None:
            self._pending.commit()
        else:
            self._pending.leave()


class Pending:
    """What a transaction has read and will write, for a store whose core is elsewhere; the core has its own.

    ``native`` needs ``lookup``, ``last_change`` and ``commit``.
    """

    def __init__(self, native: Any, level: int, client: int, sequence: int) -> None:
        self._native, self._level, self._client, self._sequence = native, level, client, sequence
        self._operations: list[tuple[int, int, bytes, bytes, int, int]] = []
        self._seen: dict[tuple[int, bytes | None], int] = {}
        self._written: dict[int, dict[bytes, bytes | None]] = {}

    def get(self, identity: int, key: bytes, default: Any = None) -> Any:
        """The value that this transaction has written, or else the present one."""
        written = self._written.get(identity, {})
        if key in written:
            value = written[key]
        else:
            value, lsn = self._native.lookup(identity, key)
            self._seen.setdefault((identity, key), lsn)
        return default if value is None else value

    def put(self, identity: int, key: bytes, value: bytes) -> None:
        """Write one entry."""
        self._written.setdefault(identity, {})[key] = value
        self.add(Verb.PUT, identity, key, value)

    def erase(self, identity: int, key: bytes) -> bool:
        """Remove one entry; whether there is one."""
        if self.get(identity, key) is None:
            return False
        self._written.setdefault(identity, {})[key] = None
        self.add(Verb.ERASE, identity, key, b"")
        return True

    def add(self, verb: int, identity: int, a: bytes, b: bytes, x: int = 0, y: int = 0) -> None:
        """Any operation."""
        self._operations.append((verb, identity, a, b, x, y))

    def whole(self, identity: int) -> None:
        """From here on any change of the structure by another is a conflict."""
        self._seen.setdefault((identity, None), self._native.last_change(identity))

    def writes(self, identity: int) -> dict[bytes, bytes | None]:
        """The last write of each key of a structure."""
        return dict(self._written.get(identity, {}))

    def commit(self) -> None:
        """Write everything, or raise ``Conflict`` and write nothing."""
        seen = [(identity, key, lsn) for (identity, key), lsn in self._seen.items()]
        self._native.commit(self._operations, seen, self._client, self._sequence, self._level)

    def leave(self) -> None:
        """Write nothing. What was read was durable then."""


class _DictFace(MutableMapping[Any, Any]):
    """A dictionary as the transaction sees it: with its own writes, and remembering what was read."""

    __slots__ = ("_of", "_pending")

    def __init__(self, of: Dict, pending: Any) -> None:
        self._of, self._pending = of, pending

    def __getitem__(self, key: Any) -> Any:
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        of = self._of
        value = self._pending.get(of.identity, of.encode_key(key))
        return default if value is None else of.decode(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        of = self._of
        self._pending.put(of.identity, of.encode_key(key), of.encode(value))

    def __delitem__(self, key: Any) -> None:
        if not self._pending.erase(self._of.identity, self._of.encode_key(key)):
            raise KeyError(key)

    def _whole(self) -> dict[Any, Any]:
        self._pending.whole(self._of.identity)
        entries = {self._of.encode_key(key): self._of.encode(value) for key, value in self._of.entries()}
        written = self._pending.writes(self._of.identity)
        merged = {key: value for key, value in (entries | written).items() if value is not None}
        return {self._of.decode_key(key): self._of.decode(value) for key, value in sorted(merged.items())}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())


class _PlainFace(_DictFace):
    """The short ways for bytes keys and bytes values; the core checks their types."""

    __slots__ = ()

    def get(self, key: Any, default: Any = None) -> Any:
        return self._pending.get(self._of.identity, key, default)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._pending.put(self._of.identity, key, value)


class _QueueFace:
    """What a transaction may do with a queue: put, and acknowledge what was taken before."""

    def __init__(self, of: Queue, pending: Any) -> None:
        self._of, self._pending = of, pending

    def put(self, value: Any, *, dedup: str = "") -> None:
        self._pending.add(Verb.ENQUEUE, self._of.identity, self._of.encode(value), dedup.encode())

    def ack(self, item: Item) -> None:
        self._pending.add(Verb.ACKNOWLEDGE, self._of.identity, b"", b"", item.sequence, item.token)


class _StackFace:
    """What a transaction may do with a stack: push."""

    def __init__(self, of: Stack, pending: Any) -> None:
        self._of, self._pending = of, pending

    def push(self, value: Any) -> None:
        self._pending.add(Verb.PUSH, self._of.identity, self._of.encode(value), b"")


_FACES: dict[type, Any] = {
    **dict.fromkeys((Dict, SortedDict, VersionedDict), _DictFace),
    **dict.fromkeys(PLAIN.values(), _PlainFace),
    Queue: _QueueFace,
    Stack: _StackFace,
}
