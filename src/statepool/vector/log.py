"""The log of an index: every change is in it before it is acknowledged.

    0    header: magic, version, length, CRC32C; JSON: identity of the index, lsn before the first record
    …    records: length, type, lsn, bytes known to be on disk when it was written, CRC32C of head and body; body

One file beside the index, replaced whole by a compaction. The store's log is another thing: it owns a folder of
segments written ahead, has one frame in flight, and its level ``process`` is shared memory that only its heap makes
sense of; and a room does not import its neighbours. What both need, CRC32C, is the same code.

The bytes known to be on disk tell a torn end from damage: a bad record that any later one vouches for was acknowledged
and is damaged; one that none does was under way when the power went, and ends the log.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from statepool.core.errors import InvalidRequest, OutcomeUnknown, StoreFull, StoreLocked, StoreReadOnly

from .check import one_of
from .errors import IndexCorruptError
from .file import sync_folder
from .native import checksum

__all__ = ["Durability", "Lock", "Log", "Record", "Replay", "log_path", "read"]

Durability = Literal["process", "power"]
"""What a change has survived when it returns: the death of the process, or also a loss of power."""

LEVELS = {"process": 0, "power": 1}
CLOSED = 0
"""Kind of the record that ends a log closed in good order; it changes nothing."""

_MAGIC, _VERSION = b"SPVLOG\r\n", 1
_HEAD = struct.Struct("<8sIII")
_RECORD = struct.Struct("<IHHQQI")
_MOST = 1 << 30
_FULL = (28, 122)
"""Numbers of ENOSPC and EDQUOT."""


@dataclass(frozen=True, slots=True)
class Record:
    """A change."""

    lsn: int
    kind: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Replay:
    """What a log held when it was opened."""

    index: str
    """Identity of the index the changes belong to."""
    before: int
    """Operations before the first record."""
    records: tuple[Record, ...]
    last: int
    """Number of the last record."""
    end: int
    """Bytes of whole records and the header."""
    torn: int
    """Bytes behind them: of a change that was never acknowledged."""


def log_path(index: Path) -> Path:
    """Where the log of an index is."""
    return index.with_name(index.name + ".log")


def read(path: Path) -> Replay:
    """All whole records.

    Raises:
        FileNotFoundError: there is no log.
        IndexCorruptError: the header is damaged, or a record that was acknowledged is.
        InvalidRequest: a newer version wrote it.
    """
    data = path.read_bytes()
    if len(data) < _HEAD.size or data[:8] != _MAGIC:
        raise _corrupt(path, 0, "it does not begin like the log of an index")
    _, version, length, crc = _HEAD.unpack_from(data)
    at = _HEAD.size + length
    if version != _VERSION:
        raise InvalidRequest(f"path: {path} has format {version}; this version reads {_VERSION}", param="path")
    if at > len(data) or crc != checksum(data[_HEAD.size : at]):
        raise _corrupt(path, 0, "the checksum of the header is wrong")
    head = json.loads(data[_HEAD.size : at])
    lsn, records = int(head["before"]), []
    while (record := _record(data, at, lsn + 1)) is not None:
        if record.kind != CLOSED:
            records.append(record)
        lsn, at = record.lsn, at + _RECORD.size + len(record.body)
    if any(synced > at for synced in _vouchers(data, at, lsn)):
        raise _corrupt(path, at, "a record that was acknowledged is damaged; restore the index from a copy")
    return Replay(str(head["index"]), int(head["before"]), tuple(records), lsn, at, len(data) - at)


def _record(data: bytes, at: int, lsn: int | None) -> Record | None:
    """The whole record at ``at``, None if there is none or it has another number."""
    if at + _RECORD.size > len(data):
        return None
    length, kind, _, number, _, crc = _RECORD.unpack_from(data, at)
    begin = at + _RECORD.size
    if length > _MOST or begin + length > len(data) or (lsn is not None and number != lsn):
        return None
    body = data[begin : begin + length]
    return Record(number, kind, body) if crc == checksum(data[at : begin - 4] + body) else None


def _vouchers(data: bytes, at: int, lsn: int) -> Iterator[int]:
    """Of every whole record somewhere behind ``at`` the bytes it knew to be on disk."""
    most = lsn + 1 + (len(data) - at) // _RECORD.size
    for first in range(at, at + 8):
        count = (len(data) - first - _RECORD.size) // 8 + 1
        if count < 1:
            return
        numbers = np.frombuffer(data, "<u8", count, first + 8)
        for place in (first + 8 * np.flatnonzero((numbers > lsn) & (numbers <= most))).tolist():
            if _record(data, place, None) is not None:
                yield int(_RECORD.unpack_from(data, place)[4])


class Lock:
    """One writer of an index, by a lock on a file beside it.

    Raises:
        StoreLocked: somebody else has it.
        StoreReadOnly: the folder cannot be written.
    """

    def __init__(self, index: Path) -> None:
        try:
            self._handle = os.open(index.with_name(index.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise StoreReadOnly(f"path: cannot write in {index.parent}; open it with mode 'r'") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise StoreLocked(f"path: {index} has a writer already, here or in another process; close it") from error

    def close(self) -> None:
        """Let others write."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Log:
    """Takes changes. Threads may append at the same time; whoever waits for the disk waits for all before him.

    Args:
        path: The file, which ``create`` or ``read`` has seen.
        index: Identity of the index.
        last: Number of the last record.
        end: Bytes of whole records; what is behind is cut off.
    """

    def __init__(self, path: Path, index: str, last: int, end: int) -> None:
        self.path, self.index, self.last = path, index, last
        self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._handle, end)
        # What a killed process left in a cache is made durable before anybody sees it.
        os.fsync(self._handle)
        self._end = self._synced = end
        self._writing, self._syncing = threading.Lock(), threading.Lock()
        self._failed = ""

    @classmethod
    def create(cls, path: Path, index: str, before: int) -> Self:
        """An empty log in place of the one that may be there; a crash leaves the old one or the new one.

        Raises:
            StoreReadOnly: the folder cannot be written.
            OSError: the disk is full or fails.
        """
        body = json.dumps({"index": index, "before": before}).encode()
        fresh = path.with_name(path.name + ".new")
        try:
            with fresh.open("wb") as file:
                file.write(_HEAD.pack(_MAGIC, _VERSION, len(body), checksum(body)) + body)
                file.flush()
                os.fsync(file.fileno())
        except PermissionError as error:
            raise StoreReadOnly(f"path: cannot write in {path.parent}; open it with mode 'r'") from error
        fresh.replace(path)
        sync_folder(path.parent)
        return cls(path, index, before, _HEAD.size + len(body))

    def append(self, kind: int, body: bytes, level: Durability) -> int:
        """Keep a change; returns its number.

        Raises:
            InvalidRequest: it is too large, or the level is unknown.
            StoreFull: the disk is full; nothing was kept.
            OutcomeUnknown: the disk did not confirm; reopening the index tells.
            StoreReadOnly: that happened earlier, or the index is closed.
        """
        one_of("durability", level, LEVELS)
        if len(body) > _MOST:
            raise InvalidRequest(f"X: {len(body)} bytes in one change; add fewer rows at once", param="X")
        with self._writing:
            self.check()
            lsn = self.last + 1
            self._write(_sealed(kind, lsn, self._synced, body))
            self.last = lsn
            end = self._end
        if level == "power":
            self.sync(end)
        return lsn

    def sync(self, end: int | None = None) -> None:
        """Until the first ``end`` bytes, or all, are on disk."""
        with self._syncing:
            with self._writing:
                whole = self._end
            if self._synced >= (whole if end is None else end):
                return
            try:
                os.fdatasync(self._handle)
            except OSError as error:
                self.fail("the disk did not confirm a write")
                raise OutcomeUnknown(f"{self.path}: the disk did not confirm ({error.strerror}); reopen it") from error
            self._synced = whole

    def check(self) -> None:
        """Raise StoreReadOnly if it takes nothing more."""
        if self._failed:
            raise StoreReadOnly(f"{self.path}: {self._failed}; reopen the index")

    def abandon(self) -> None:
        """Take nothing more: another log stands in its place."""
        self.fail("the index was compacted")
        os.close(self._handle)
        self._handle = -1

    def fail(self, why: str) -> None:
        """Take nothing more: what the log says and what the index holds may differ from here on."""
        self._failed = self._failed or why

    def close(self) -> None:
        """Everything on disk and a last record that vouches for it, then no more."""
        if self._handle >= 0:
            if not self._failed:
                self.sync()
                self.append(CLOSED, b"", "power")
            self.fail("the index is closed")
            os.close(self._handle)
            self._handle = -1

    def _write(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._handle, data[done:], self._end + done)
        except OSError as error:
            try:
                os.ftruncate(self._handle, self._end)
            except OSError:
                self.fail("half a change could not be taken back")
            if error.errno in _FULL:
                raise StoreFull(f"{self.path}: the disk is full; nothing was changed") from error
            raise
        self._end += len(data)


def _sealed(kind: int, lsn: int, synced: int, body: bytes) -> bytes:
    head = _RECORD.pack(len(body), kind, 0, lsn, synced, 0)[:-4]
    return head + checksum(head + body).to_bytes(4, "little") + body


def _corrupt(path: Path, at: int, reason: str) -> IndexCorruptError:
    return IndexCorruptError(f"{path}: log at byte {at}: {reason}", "log", at)
