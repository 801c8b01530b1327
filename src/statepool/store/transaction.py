"""Transactions: several operations on several structures, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from statepool.core.errors import InvalidRequest
from statepool.store.dicts import Dict
from statepool.store.native import Verb, level_number
from statepool.store.sequences import Item, Queue, Stack

if TYPE_CHECKING:
    from statepool.store.store import Store


class Transaction:
    """Collects reads and writes; :meth:`Store.transaction` makes one.

    Index it with a structure to get that structure's face inside the transaction. Nothing is written before the block
    ends; then all of it is, unless something the block had read was changed by another meanwhile.

    Raises:
        Conflict: at the end of the block, in that case. Nothing was written: run the block again.
    """

    def __init__(self, store: Store, durability: str | None, op_id: tuple[int, int] | None) -> None:
        self._store, self._level = store, level_number(durability)
        self._client, self._sequence = op_id or (0, 0)
        self._operations: list[tuple[int, int, bytes, bytes, int, int]] = []
        self._seen: dict[tuple[int, bytes | None], int] = {}
        self._faces: dict[int, Any] = {}

    def __getitem__(self, structure: Dict | Queue | Stack) -> Any:
        if id(structure) not in self._faces:
            self._faces[id(structure)] = self._face(structure)
        return self._faces[id(structure)]

    def _face(self, structure: Any) -> Any:
        if structure.native is not self._store.native:
            raise InvalidRequest(f"transaction: '{structure.name}' belongs to another store")
        if isinstance(structure, Dict):
            return _DictFace(structure, self._operations, self._seen)
        if isinstance(structure, Queue):
            return _QueueFace(structure, self._operations)
        if isinstance(structure, Stack):
            return _StackFace(structure, self._operations)
        raise InvalidRequest(f"transaction: a {type(structure).__name__} cannot take part")

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        if kind is not None:
            return
        seen = [(identity, key, lsn) for (identity, key), lsn in self._seen.items()]
        self._store.native.commit(self._operations, seen, self._client, self._sequence, self._level)


class _DictFace(MutableMapping[Any, Any]):
    """A dictionary as the transaction sees it: with its own writes, and remembering what was read."""

    def __init__(self, of: Dict, operations: list[Any], seen: dict[tuple[int, bytes | None], int]) -> None:
        self._of, self._operations, self._seen = of, operations, seen
        self._written: dict[bytes, bytes | None] = {}

    def _read(self, key: bytes) -> bytes | None:
        if key in self._written:
            return self._written[key]
        value, lsn = self._of.native.lookup(self._of.identity, key)
        self._seen.setdefault((self._of.identity, key), lsn)
        found: bytes | None = value
        return found

    def __getitem__(self, key: Any) -> Any:
        value = self._read(self._of.encode_key(key))
        if value is None:
            raise KeyError(key)
        return self._of.decode(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        encoded = self._of.encode_key(key)
        self._written[encoded] = self._of.encode(value)
        self._operations.append((Verb.PUT, self._of.identity, encoded, self._written[encoded], 0, 0))

    def __delitem__(self, key: Any) -> None:
        encoded = self._of.encode_key(key)
        if self._read(encoded) is None:
            raise KeyError(key)
        self._written[encoded] = None
        self._operations.append((Verb.ERASE, self._of.identity, encoded, b"", 0, 0))

    def _whole(self) -> dict[Any, Any]:
        native, identity = self._of.native, self._of.identity
        self._seen.setdefault((identity, None), native.last_change(identity))
        entries = {self._of.encode_key(key): self._of.encode(value) for key, value in self._of.entries()}
        merged = {key: value for key, value in (entries | self._written).items() if value is not None}
        return {self._of.decode_key(key): value for key, value in sorted(merged.items())}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())


class _QueueFace:
    """What a transaction may do with a queue: put, and acknowledge what was taken before."""

    def __init__(self, of: Queue, operations: list[Any]) -> None:
        self._of, self._operations = of, operations

    def put(self, value: Any, *, dedup: str = "") -> None:
        self._operations.append((Verb.ENQUEUE, self._of.identity, self._of.encode(value), dedup.encode(), 0, 0))

    def ack(self, item: Item) -> None:
        self._operations.append((Verb.ACKNOWLEDGE, self._of.identity, b"", b"", item.sequence, item.token))


class _StackFace:
    """What a transaction may do with a stack: push."""

    def __init__(self, of: Stack, operations: list[Any]) -> None:
        self._of, self._operations = of, operations

    def push(self, value: Any) -> None:
        self._operations.append((Verb.PUSH, self._of.identity, self._of.encode(value), b"", 0, 0))
