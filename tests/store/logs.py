"""Logs on simulated disks, as the tests of this folder make them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from statepool.native import _store  # type: ignore[attr-defined]

SECTOR = 4096
SEGMENT = 6 * SECTOR


def record(body: bytes, kind: int = 3, **fields: int) -> bytes:
    return bytes(_store.encode_record(kind, body, **fields))


def numbered(data: bytes, lsn: int) -> bytes:
    """As the log keeps a record: with its lsn."""
    return data[:28] + (lsn & 0xFFFFFFFF).to_bytes(4, "little") + data[32:]


class Logged:
    """A log, its disk, and what went into it."""

    def __init__(self, files: dict[str, bytes] | None = None, disk: Any = None, segment: int = SEGMENT) -> None:
        self.disk = disk or _store.SimDisk(files or {})
        self.meta = _store.Superblock(segment)
        self.records: list[bytes] = []
        self.ends: list[int] = [0]

    def create(self) -> Logged:
        self.meta.epoch = 1
        self.log = _store.Log.create(self.disk, self.meta)
        self.meta.create(self.disk)
        return self

    def open(self) -> Logged:
        """What it holds goes to `records`; those that a checkpoint has made superfluous are empty there."""
        assert self.meta.read(self.disk)
        first = self.meta.checkpoint_lsn + 1
        self.records = [b""] * (first - 1)
        self.meta.epoch += 1
        self.log = _store.Log.open(self.disk, self.meta, first, self._visit)
        self.meta.clean = 0
        self.meta.write(self.disk)
        return self

    def _visit(self, lsn: int, data: bytes) -> None:
        assert lsn == len(self.records) + 1
        self.records.append(data)

    def append(self, records: Iterable[bytes]) -> None:
        records = list(records)
        self.log.append(records)
        self.records += [numbered(data, len(self.records) + 1 + i) for i, data in enumerate(records)]
        self.ends.append(len(self.records))

    def checkpoint(self, lsn: int) -> None:
        self.meta.checkpoint_lsn = lsn
        self.meta.first_segment = self.log.segment_of(lsn + 1)
        self.meta.write(self.disk)
        self.log.recycle(self.meta.first_segment)

    def close(self) -> None:
        self.meta.clean = self.log.last_lsn + 1
        self.meta.write(self.disk)

    @property
    def files(self) -> dict[str, bytes]:
        return dict(self.disk.files)


def drawn(seed: int, frames: int, segment: int = SEGMENT) -> Logged:
    """A log of some frames of some records, no checkpoint."""
    noise = random.Random(seed)
    logged = Logged(segment=segment).create()
    for _ in range(frames):
        sizes = [noise.choice((0, 1, 8, 40, 90, 700, 4032, 5000)) for _ in range(noise.randint(1, 4))]
        logged.append(record(noise.randbytes(size), structure=noise.randint(0, 9)) for size in sizes)
    return logged
