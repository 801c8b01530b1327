"""Which block a full cache gives up: orders over blocks, without the blocks.

A policy is told of every prompt whose blocks were used, as the chain of keys from the first block on, and names a
victim when asked. It keeps no time of its own; the same object serves a pool and a simulator. Chains matter: a block
is of use only while all blocks before it are there, so of equals the later goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Sequence
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

from statepool.core.errors import InvalidConfig
from statepool.kv.gittins import LikelyReuse

__all__ = ["EVICTIONS", "Eviction", "LeastFrequent", "LeastRecent", "LengthAware", "eviction"]

K = TypeVar("K", bound=Hashable)


class Eviction(Protocol[K]):
    """An order in which blocks are given up."""

    def used(self, chain: Sequence[K], at: float) -> None:
        """The blocks of ``chain`` are in the cache and were used at ``at`` seconds."""
        ...

    def victim(self, pinned: Container[K] = ()) -> K | None:
        """The block to give up, which is forgotten; None if all are ``pinned``."""
        ...

    def forget(self, key: K) -> None:
        """``key`` left the cache for another reason."""
        ...


class LeastRecent(Generic[K]):
    """LRU over blocks; of one prompt the last block goes first."""

    def __init__(self) -> None:
        self._order: OrderedDict[K, None] = OrderedDict()

    def used(self, chain: Sequence[K], at: float) -> None:
        """Move ``chain`` to the end of the order."""
        for key in reversed(chain):
            self._order[key] = None
            self._order.move_to_end(key)

    def victim(self, pinned: Container[K] = ()) -> K | None:
        """The least recently used block."""
        found = next((key for key in self._order if key not in pinned), None)
        if found is not None:
            del self._order[found]
        return found

    def forget(self, key: K) -> None:
        """Take ``key`` out of the order."""
        self._order.pop(key, None)


class _Ranked(Generic[K]):
    """The block of lowest rank goes first; ranks change with use, so the heap holds stale entries."""

    def __init__(self) -> None:
        self._ranks: dict[K, tuple[float, ...]] = {}
        self._heap: list[tuple[tuple[float, ...], int, K]] = []
        self._count = 0

    def _put(self, key: K, rank: tuple[float, ...]) -> None:
        self._ranks[key] = rank
        self._count += 1
        heappush(self._heap, (rank, self._count, key))
        if len(self._heap) > 4 * len(self._ranks) + 64:
            self._heap = [entry for entry in self._heap if self._ranks.get(entry[2]) == entry[0]]
            heapify(self._heap)

    def victim(self, pinned: Container[K] = ()) -> K | None:
        """The block of lowest rank."""
        spared = []
        found = None
        while self._heap:
            entry = heappop(self._heap)
            if self._ranks.get(entry[2]) != entry[0]:
                continue
            if entry[2] in pinned:
                spared.append(entry)
                continue
            found = entry[2]
            del self._ranks[found]
            break
        for entry in spared:
            heappush(self._heap, entry)
        return found

    def forget(self, key: K) -> None:
        """Take ``key`` out of the order."""
        self._ranks.pop(key, None)


class LeastFrequent(_Ranked[K]):
    """LFU: fewest uses while in the cache; of equals the least recent."""

    def used(self, chain: Sequence[K], at: float) -> None:
        """Count a use of every block of ``chain``."""
        for depth, key in enumerate(chain):
            uses = self._ranks.get(key, (0.0,))[0] + 1
            self._put(key, (uses, at, -float(depth)))


class LengthAware(_Ranked[K]):
    """LFU that prefers to give up blocks late in a prompt (Mooncake 2407.00079, Table 1)."""

    def used(self, chain: Sequence[K], at: float) -> None:
        """Count a use of every block of ``chain``."""
        for depth, key in enumerate(chain):
            uses = self._ranks.get(key, (0.0,))[0] + 1
            self._put(key, (uses, -float(depth), at))


EVICTIONS: dict[str, Callable[[], Eviction[int]]] = {
    "lru": LeastRecent,
    "lfu": LeastFrequent,
    "length": LengthAware,
    "likely": LikelyReuse,
}


def eviction(name: str) -> Eviction[int]:
    """A new policy of that name.

    Raises:
        InvalidConfig: there is none.
    """
    if name not in EVICTIONS:
        raise InvalidConfig(f"eviction is {name!r}; known are {', '.join(EVICTIONS)}", param="eviction")
    return EVICTIONS[name]()
