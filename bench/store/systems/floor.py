"""The least a durable write can cost: 4 KiB over blocks that are already there, past the page cache."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from bench.store.systems.base import Level, Pair, Session, System

BLOCK = 4096
SIZE = 64 << 20


class FloorSession(Session):
    """``put`` writes one block and returns when the device has it; keys and values are ignored."""

    def __init__(self, file: int) -> None:
        self._file, self._offset = file, 0
        self._block = mmap.mmap(-1, BLOCK)  # O_DIRECT wants an aligned buffer
        self._block.write(os.urandom(BLOCK))

    def put(self, key: bytes, value: bytes) -> None:
        """One block, the next one each time."""
        os.pwrite(self._file, self._block, self._offset)
        self._offset = (self._offset + BLOCK) % SIZE

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        """Nothing to fill."""


class Floor(System):
    """A preallocated file. Zeroes are written, not just reserved: else each first write is a journal commit too."""

    def open(self, folder: Path, level: Level) -> None:
        path = folder / "floor"
        with path.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(bytes(1 << 20))
            os.fsync(file.fileno())
        self._file = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)

    def session(self) -> Session:
        return FloorSession(self._file)

    def versions(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        os.close(self._file)
