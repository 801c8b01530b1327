"""Dictionaries: hashed, sorted, and snapshots of the multi-version ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from statepool.core.errors import Conflict
from statepool.store.codec import Codec
from statepool.store.native import Verb, core, level_number

if TYPE_CHECKING:
    from statepool.store.store import Store

_PAGE = 256
_MISSING = object()


class Dict(MutableMapping[Any, Any]):
    """A durable dictionary without order; use it as a ``dict``. Made by :meth:`Store.dict`.

    Every write returns when its durability level is reached. Several threads may read and write; iteration raises
    ``RuntimeError`` when an entry is added or removed meanwhile, as that of a ``dict`` does.
    """

    encode_key: Callable[[Any], bytes]
    decode_key: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    def __init__(self, store: Store, identity: int, name: str, keys: Codec, values: Codec) -> None:
        self.identity, self.name = identity, name
        self.native = store.native
        self.encode_key, self.decode_key = keys.encode, keys.decode
        self.encode, self.decode = values.encode, values.decode

    # ---- one entry --------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        value = self.native.get(self.identity, self.encode_key(key), None)
        if value is None:
            raise KeyError(key)
        return self.decode(value)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of ``key``, or ``default``."""
        value = self.native.get(self.identity, self.encode_key(key), None)
        return default if value is None else self.decode(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.native.put(self.identity, self.encode_key(key), self.encode(value))

    def put(self, key: Any, value: Any, *, durability: str | None = None) -> None:
        """``self[key] = value`` with a durability level of its own."""
        self.native.put(self.identity, self.encode_key(key), self.encode(value), level_number(durability))

    def __delitem__(self, key: Any) -> None:
        if not self.native.erase(self.identity, self.encode_key(key)):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return self.native.get(self.identity, self.encode_key(key), None) is not None

    # ---- read, decide, write: nothing of another writer comes between ---------------------------------------------

    def compare_and_set(self, key: Any, expected: Any, value: Any) -> bool:
        """Set ``key`` to ``value`` if it holds ``expected`` (``None``: if it is absent); whether it did."""
        encoded = self.encode_key(key)
        while True:
            present, lsn = self.native.lookup(self.identity, encoded)
            if (None if present is None else self.decode(present)) != expected:
                return False
            if self._swap(encoded, lsn, self.encode(value)):
                return True

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of ``key``, which becomes ``default`` if it is absent."""
        encoded = self.encode_key(key)
        while True:
            present, lsn = self.native.lookup(self.identity, encoded)
            if present is not None:
                return self.decode(present)
            if self._swap(encoded, lsn, self.encode(default)):
                return default

    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Remove ``key`` and return its value, or ``default`` if it is absent."""
        encoded = self.encode_key(key)
        while True:
            present, lsn = self.native.lookup(self.identity, encoded)
            if present is None:
                if default is _MISSING:
                    raise KeyError(key)
                return default
            if self._swap(encoded, lsn, None):
                return self.decode(present)

    def popitem(self) -> tuple[Any, Any]:
        """Remove and return some entry; ``KeyError`` if there is none."""
        while True:
            for key in self:
                value = self.pop(key, _MISSING)
                if value is not _MISSING:
                    return key, value
                break
            else:
                raise KeyError(f"popitem(): '{self.name}' is empty")

    def _swap(self, key: bytes, lsn: int, value: bytes | None) -> bool:
        verb = Verb.ERASE if value is None else Verb.PUT
        try:
            self.native.commit([(verb, self.identity, key, value or b"", 0, 0)], [(self.identity, key, lsn)])
        except Conflict:
            return False
        return True

    # ---- many entries -----------------------------------------------------------------------------------------------

    def update(self, other: Any = (), /, *, durability: str | None = None, **named: Any) -> None:
        """Set all pairs of a mapping or an iterable in one commit: after a crash all of them are there, or none."""
        pairs: Iterable[tuple[Any, Any]] = other.items() if isinstance(other, Mapping) else other
        encoded = [(self.encode_key(k), self.encode(v)) for k, v in pairs]
        encoded += [(self.encode_key(k), self.encode(v)) for k, v in named.items()]
        self.native.update(self.identity, encoded, level_number(durability))

    def get_many(self, keys: Iterable[Any]) -> list[Any]:
        """The values of ``keys`` in their order, ``None`` where there is none."""
        found = self.native.get_many(self.identity, [self.encode_key(k) for k in keys])
        return [None if value is None else self.decode(value) for value in found]

    def clear(self) -> None:
        """Remove all entries, a page of them at a time."""
        while page := [(Verb.ERASE, self.identity, key, b"", 0, 0) for key, _ in self._first_page()]:
            self.native.commit(page, [])

    def _first_page(self) -> list[tuple[bytes, bytes]]:
        return next(self._pages(), [])

    def __len__(self) -> int:
        size: int = self.native.size(self.identity)
        return size

    def _pages(self) -> Iterator[list[tuple[bytes, bytes]]]:
        cursor = 0
        while True:
            cursor, entries = self.native.scan(self.identity, cursor)
            if entries:
                yield [(key, value) for key, value, _ in entries]
            if cursor == 0:
                return

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        size = len(self)
        for page in self._pages():
            if len(self) != size:
                raise RuntimeError("dictionary changed size during iteration")
            yield from page

    def __iter__(self) -> Iterator[Any]:
        return (self.decode_key(key) for key, _ in self._entries())

    def entries(self) -> Iterator[tuple[Any, Any]]:
        """Keys with their values, read together; ``items()`` looks each key up again."""
        return ((self.decode_key(key), self.decode(value)) for key, value in self._entries())

    def __repr__(self) -> str:
        kind = "SortedDict" if isinstance(self, SortedDict) else "Dict"
        return f"<{kind} {self.name!r}>"


class _Plain(Dict):
    """The short ways for bytes keys and bytes values, which need no codec; the core checks their types."""

    def __getitem__(self, key: Any) -> Any:
        value = self.native.get(self.identity, key)
        if value is None:
            raise KeyError(key)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        return self.native.get(self.identity, key, default)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.native.put(self.identity, key, value)

    def __contains__(self, key: object) -> bool:
        return self.native.get(self.identity, key) is not None

    def update(self, other: Any = (), /, *, durability: str | None = None, **named: Any) -> None:
        if named:  # no bytes: the codec says so
            super().update(other, durability=durability, **named)
            return
        pairs = other.items() if isinstance(other, Mapping) else other
        self.native.update(self.identity, pairs, level_number(durability))


class _Ordered:
    """Reading in the order of keys, over ``_range``."""

    encode_key: Callable[[Any], bytes]
    decode_key: Callable[[bytes], Any]
    decode: Callable[[bytes], Any]

    def _range(
        self, low: bytes | None, high: bytes | None, include: tuple[bool, bool], reverse: bool, limit: int
    ) -> list[tuple[bytes, bytes]]:
        raise NotImplementedError

    def range(
        self,
        low: Any = None,
        high: Any = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
        inclusive: bool = False,
    ) -> Iterator[tuple[Any, Any]]:
        """Entries with ``low <= key < high`` in order (``inclusive``: ``<= high``), ``None`` meaning no bound.

        Read a page at a time: each page is consistent, and entries changed meanwhile may or may not be seen.
        """
        include = (True, inclusive)
        first, last = (None if bound is None else self.encode_key(bound) for bound in (low, high))
        while limit is None or limit > 0:
            page = self._range(first, last, include, reverse, min(_PAGE, _PAGE if limit is None else limit))
            yield from ((self.decode_key(key), self.decode(value)) for key, value in page)
            if len(page) < _PAGE:
                return
            limit = None if limit is None else limit - len(page)
            edge = page[-1][0]
            first, last, include = (first, edge, (True, False)) if reverse else (edge, last, (False, inclusive))

    def floor(self, key: Any) -> tuple[Any, Any] | None:
        """The entry with the largest key ``<= key``."""
        return next(self.range(None, key, inclusive=True, reverse=True, limit=1), None)

    def ceiling(self, key: Any) -> tuple[Any, Any] | None:
        """The entry with the smallest key ``>= key``."""
        return next(self.range(key, limit=1), None)

    def first(self) -> tuple[Any, Any] | None:
        """The entry with the smallest key."""
        return next(self.range(limit=1), None)

    def last(self) -> tuple[Any, Any] | None:
        """The entry with the largest key."""
        return next(self.range(limit=1, reverse=True), None)

    def longest_prefix(self, key: Any) -> tuple[Any, Any] | None:
        """The entry whose encoded key is the longest prefix of ``key``'s."""
        encoded = self.encode_key(key)
        while True:
            page = self._range(None, encoded, (True, True), True, 1)
            if not page:
                return None
            found, value = page[0]
            if encoded.startswith(found):
                return self.decode_key(found), self.decode(value)
            # No key between: what they have in common is the longest that can still be one.
            common = next(i for i, (a, b) in enumerate(zip(encoded, found, strict=False)) if a != b)
            encoded = encoded[:common]

    def _pages(self) -> Iterator[list[tuple[bytes, bytes]]]:
        low: bytes | None = None
        include = (True, False)
        while page := self._range(low, None, include, False, _PAGE):
            yield page
            if len(page) < _PAGE:
                return
            low, include = page[-1][0], (False, False)

    def __reversed__(self) -> Iterator[Any]:
        return (key for key, _ in self.range(reverse=True))


class SortedDict(_Ordered, Dict):
    """A durable dictionary in the order of its encoded keys. Made by :meth:`Store.sorted_dict`."""

    def _range(
        self, low: bytes | None, high: bytes | None, include: tuple[bool, bool], reverse: bool, limit: int
    ) -> list[tuple[bytes, bytes]]:
        found = self.native.range(self.identity, core.Range(low, high, *include, reverse), limit)
        return [(key, value) for key, value, _ in found]

    def popitem(self, last: bool = True) -> tuple[Any, Any]:
        """Remove and return the last entry (or the first); ``KeyError`` if there is none."""
        while True:
            entry = self.last() if last else self.first()
            if entry is None:
                raise KeyError(f"popitem(): '{self.name}' is empty")
            if self.pop(entry[0], _MISSING) is not _MISSING:
                return entry


class VersionedDict(SortedDict):
    """A sorted dictionary that keeps old versions for those who read them. Made by :meth:`Store.versioned_dict`."""

    def snapshot(self, lease: float = 60.0) -> Snapshot:
        """The dictionary as it is now, for at most ``lease`` seconds, whatever is written meanwhile."""
        return Snapshot(self, self.native.pin(self.identity, round(lease * 1000)))


class Snapshot(_Ordered, Mapping[Any, Any]):
    """A dictionary as it was; close it, or use it as a context manager, so that its memory can be freed.

    Raises:
        SnapshotExpired: from every method, once the lease has ended or the snapshot was closed.
    """

    def __init__(self, of: VersionedDict, pinned: Any) -> None:
        self._of, self._pinned = of, pinned
        self.encode_key, self.decode_key, self.decode = of.encode_key, of.decode_key, of.decode
        self.version = int(pinned.version)
        """Number of the operation that made it."""

    def _range(
        self, low: bytes | None, high: bytes | None, include: tuple[bool, bool], reverse: bool, limit: int
    ) -> list[tuple[bytes, bytes]]:
        found = self._of.native.range_at(self._pinned, core.Range(low, high, *include, reverse), limit)
        return [(key, value) for key, value, _ in found]

    def __getitem__(self, key: Any) -> Any:
        value = self._of.native.get_at(self._pinned, self.encode_key(key))
        if value is None:
            raise KeyError(key)
        return self.decode(value)

    def __len__(self) -> int:
        return int(self._pinned.size)

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self.range())

    def close(self) -> None:
        """Let the version go."""
        self._of.native.unpin(self._pinned)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class _PlainSorted(_Plain, SortedDict):
    """Both."""


class _PlainVersioned(_Plain, VersionedDict):
    """Both."""


PLAIN: dict[type[Dict], type[Dict]] = {Dict: _Plain, SortedDict: _PlainSorted, VersionedDict: _PlainVersioned}


def make_dict(face: type[Dict], store: Store, identity: int, name: str, keys: Codec, values: Codec) -> Any:
    """A face of this type, the short one if no codec is needed."""
    plain = keys.name == values.name == "bytes"
    return (PLAIN[face] if plain else face)(store, identity, name, keys, values)
