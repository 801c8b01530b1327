"""Reference-counted KV blocks and the index of those that can be found again.

``BlockPool`` is bookkeeping only: it knows which block ids are held, cached or empty, never their
bytes (those are ``KVLayout.allocate``). A block is in one of three states:

* held: one or more tables refer to it;
* cached: nobody refers to it, but its key is indexed; it waits in LRU order to be found or evicted;
* empty: nobody refers to it and it has no key; taken before any cached one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from statepool.core.errors import OutOfBlocks
from statepool.kv.layout import BLOCK_SIZE


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence in position order, and the keys of those that are full."""

    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    published: int = 0
    """How many leading blocks are in the index under their key."""

    def missing(self, tokens: int) -> int:
        """How many more blocks are needed to hold ``tokens`` tokens."""
        return max(0, -(-tokens // BLOCK_SIZE) - len(self.blocks))


@dataclass(slots=True)
class _Entry:
    key: bytes
    tokens: tuple[int, ...]


class BlockPool:
    """Owner of all block ids of one KV cache."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise OutOfBlocks(f"the KV pool needs at least 1 block, got {total}; raise kv_bytes")
        self.total = total
        self._refs = [0] * total
        self._entries: list[_Entry | None] = [None] * total
        self._index: dict[bytes, int] = {}
        self._empty = list(range(total - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Blocks that can be taken now: empty plus cached."""
        return len(self._empty) + len(self._cached)

    @property
    def cached(self) -> int:
        """Blocks nobody holds that a later request may still find."""
        return len(self._cached)

    def references(self, block: int) -> int:
        """How many holders a block has."""
        return self._refs[block]

    def sole(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` have one holder alone, so that its release frees them."""
        return sum(self._refs[block] == 1 for block in blocks)

    def is_published(self, block: int) -> bool:
        """Whether a block is in the index, so that its bytes must not change."""
        return self._entries[block] is not None

    def match(self, keys: Sequence[bytes], tokens: Sequence[int]) -> list[int]:
        """The blocks of the longest indexed prefix of ``keys``.

        The tokens of every hit are compared with ``tokens``: a colliding key is a miss, not a
        wrong answer. Nothing is held yet; see ``hold``.
        """
        found: list[int] = []
        for i, key in enumerate(keys):
            block = self._index.get(key)
            if block is None:
                break
            entry = self._entries[block]
            if entry is None or entry.tokens != tuple(tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE]):
                break
            found.append(block)
        return found

    def hold(self, blocks: Iterable[int]) -> None:
        """Add one holder to each of ``blocks``."""
        for block in blocks:
            if self._refs[block] == 0:
                self._cached.pop(block)
            self._refs[block] += 1

    def take(self, count: int) -> list[int]:
        """``count`` blocks for writing, evicting the least recently used cached ones if need be.

        Raises:
            OutOfBlocks: fewer than ``count`` are free; nothing was taken.
        """
        if count > self.free:
            raise OutOfBlocks(f"{count} KV blocks needed, {self.free} of {self.total} free")
        taken = []
        for _ in range(count):
            if self._empty:
                block = self._empty.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                self._forget(block)
            self._refs[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one holder of each block, last first, so that tails are evicted before heads."""
        for block in reversed(blocks):
            if self._refs[block] <= 0:
                raise AssertionError(f"block {block} released more often than held")
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._entries[block] is None:
                    self._empty.append(block)
                else:
                    self._cached[block] = None

    def publish(self, block: int, key: bytes, tokens: Sequence[int]) -> None:
        """Index a full, held block under ``key``. The first block under a key stays."""
        if key in self._index or self._entries[block] is not None:
            return
        self._index[key] = block
        self._entries[block] = _Entry(key, tuple(tokens))

    def key_of(self, block: int) -> bytes | None:
        """The key a block is indexed under."""
        entry = self._entries[block]
        return None if entry is None else entry.key

    def recover(self, entries: Iterable[tuple[int, bytes, Sequence[int]]]) -> None:
        """Index blocks (id, key, tokens) whose bytes outlived an earlier pool; only ids that are empty here."""
        empty = set(self._empty)
        for block, key, tokens in entries:
            if block in empty and key not in self._index:
                empty.discard(block)
                self.publish(block, key, tokens)
                self._cached[block] = None
        self._empty = [block for block in self._empty if block in empty]

    def reset(self) -> None:
        """Forget every key and every holder: the bytes are gone."""
        self.clear()
        self._refs = [0] * self.total
        self._empty = list(range(self.total - 1, -1, -1))

    def clear(self) -> None:
        """Forget every key. Held blocks stay with their holders, cached ones become empty."""
        for block in range(self.total):
            self._forget(block)
        self._empty.extend(self._cached)
        self._cached.clear()

    def check(self) -> None:
        """Raise AssertionError if the books do not balance; for tests."""
        held = {b for b, refs in enumerate(self._refs) if refs > 0}
        empty, cached = set(self._empty), set(self._cached)
        assert len(empty) == len(self._empty), "a block is twice in the empty list"
        assert not (held & empty or held & cached or empty & cached), "a block is in two states"
        assert len(held) + len(empty) + len(cached) == self.total, "a block leaked"
        assert all(self._entries[b] is None for b in empty), "an empty block has a key"
        assert all(self._entries[b] is not None for b in cached), "a cached block has no key"
        for key, block in self._index.items():
            entry = self._entries[block]
            assert entry is not None and entry.key == key, "the index points to a foreign block"

    def _forget(self, block: int) -> None:
        entry = self._entries[block]
        if entry is not None:
            del self._index[entry.key]
            self._entries[block] = None
