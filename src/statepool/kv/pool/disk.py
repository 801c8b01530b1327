"""A node's blocks on disk: one file of equal places, which survives the node.

A place is a head of 64 bytes and the block. The head names the block and carries the checksum of its bytes and of
itself, so opening reads heads only, and a block that was torn by a crash, or has rotted, is found before it is used.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import xxhash

from statepool.core.errors import InvalidConfig
from statepool.kv.eviction import Eviction

__all__ = ["DiskTier"]

_FILE = struct.Struct("<8sQ")
_MAGIC = b"spblock1"
_HEAD = struct.Struct("<16sQQQQ")  # key, size, checksum of the bytes, number of the write, checksum of this head
_PAGE = 4096
_START = _PAGE


class DiskTier:
    """Blocks by key in a file. Not thread-safe.

    Args:
        path: the file; made if it is not there.
        capacity: most bytes it may grow to.
        block_bytes: size of the largest block.
        order: which block goes first when the file is full.

    Raises:
        InvalidConfig: the file was made for blocks of another size, is no such file, or ``capacity`` holds no block.
    """

    def __init__(self, path: Path, capacity: int, block_bytes: int, order: Eviction[bytes]) -> None:
        self._place = -(-(_HEAD.size + block_bytes) // _PAGE) * _PAGE
        self._order = order
        places = (capacity - _START) // self._place
        if places < 1:
            raise InvalidConfig(
                f"disk_bytes {capacity} holds no block; one takes {self._place + _START}", param="disk_bytes"
            )
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._check(path)
            self._index: dict[bytes, tuple[int, int, int]] = {}  # key -> place, size, checksum
            self._written = 0
            self._free = self._scan(places)
        except BaseException:
            os.close(self._fd)
            raise
        self.bad = 0
        """Blocks that were not what their head says."""

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def save(self, key: bytes, block: memoryview, checksum: int, now: float) -> None:
        """Write a block, in place of another if the file is full.

        Raises:
            OSError: the disk refused; the block is not there.
        """
        if key in self._index:
            return
        if not self._free:
            victim = self._order.victim()
            assert victim is not None, "a full file has a block to give up"
            self._free.append(self._index.pop(victim)[0])
        place = self._free.pop()
        try:
            self._written += 1
            head = _HEAD.pack(key, len(block), checksum, self._written, 0)[:-8]
            head += xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")
            if os.pwritev(self._fd, [head, block], self._at(place)) != len(head) + len(block):
                raise OSError(f"the disk took only part of block {key.hex()}")
        except OSError:
            self._free.append(place)
            raise
        self._index[key] = (place, len(block), checksum)
        self._order.used([key], now)

    def load(self, key: bytes, out: memoryview, now: float) -> int | None:
        """Read a block into ``out``; its checksum, or None if it is not there or not what it should be."""
        found = self._index.get(key)
        if found is None:
            return None
        place, size, checksum = found
        try:
            got = os.preadv(self._fd, [out[:size]], self._at(place) + _HEAD.size)
        except OSError:
            got = -1
        if got != size or xxhash.xxh3_64_intdigest(out[:size]) != checksum:
            self.drop(key)
            self.bad += 1
            return None
        self._order.used([key], now)
        return checksum

    def drop(self, key: bytes) -> None:
        """Forget a block; its head is wiped, so that it stays forgotten."""
        found = self._index.pop(key, None)
        if found is None:
            return
        self._order.forget(key)
        os.pwrite(self._fd, bytes(_HEAD.size), self._at(found[0]))
        self._free.append(found[0])

    def close(self) -> None:
        """Close the file. The blocks stay."""
        os.close(self._fd)

    def _at(self, place: int) -> int:
        return _START + place * self._place

    def _check(self, path: Path) -> None:
        own = _FILE.pack(_MAGIC, self._place)
        found = os.pread(self._fd, len(own), 0)
        if not found:
            os.pwrite(self._fd, own, 0)
        elif found[:8] != _MAGIC:
            raise InvalidConfig(f"{path} is no file of KV blocks; choose another disk_path", param="disk_path")
        elif found != own:
            raise InvalidConfig(
                f"{path} holds blocks of another size; delete it or choose another disk_path", param="disk_path"
            )

    def _scan(self, places: int) -> list[int]:
        """Index what the heads say, oldest write first; the free places."""
        end = os.fstat(self._fd).st_size
        heads = []
        free = []
        for place in range(places):
            raw = os.pread(self._fd, _HEAD.size, self._at(place)) if self._at(place) < end else b""
            if len(raw) == _HEAD.size and xxhash.xxh3_64_intdigest(raw[:-8]).to_bytes(8, "little") == raw[-8:]:
                key, size, checksum, number, _ = _HEAD.unpack(raw)
                heads.append((number, key, place, size, checksum))
            else:
                free.append(place)
        for number, key, place, size, checksum in sorted(heads):
            if key in self._index:  # written again after it had been given up
                free.append(self._index[key][0])
            self._index[key] = (place, size, checksum)
            self._order.used([key], 0.0)
            self._written = number
        return free[::-1]
