"""A reader of logs in memory, whatever their records' bodies are: written from ``docs/store-format.md`` alone.

``statepool.store.logreader`` reads whole stores and knows what operations mean; this one also reads what is none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from statepool.core.errors import NotFound, StoreCorrupt, StoreFormat

SECTOR = 4096
TXN_BEGIN, TXN_END = 1, 2
MAX_BODY = 17 << 20

_META = struct.Struct("<II16sQQQQQQQQQII")
_SEGMENT = struct.Struct("<II16sQQQQII")
_FRAME = struct.Struct("<IIIIQQQQIIQ")
_RECORD = struct.Struct("<IHHIIQII")
_BODY = struct.Struct("<IIQQ")


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 if value & 1 else value >> 1
        table.append(value)
    return tuple(table)


_TABLE = _table()


def crc32c(data: bytes | memoryview, before: int = 0) -> int:
    """CRC-32C of `data` behind bytes whose CRC is `before`."""
    crc, table = before ^ 0xFFFFFFFF, _TABLE
    for byte in bytes(data):
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class Meta(NamedTuple):
    """What a slot of ``meta`` says."""

    magic: int
    version: int
    uuid: bytes
    generation: int
    epoch: int
    checkpoint_lsn: int
    checkpoint_id: int
    first_segment: int
    segment_size: int
    capacity: int
    heap_nonce: int
    clean: int
    zero: int
    crc: int


class Record(NamedTuple):
    """One operation of the log."""

    lsn: int
    type: int
    flags: int
    structure: int
    client: int
    client_seq: int
    lock_epoch: int
    body: bytes

    def operation(self) -> tuple[bytes, bytes, int, int]:
        """The body's parts: a, b, x, y.

        Raises:
            StoreCorrupt: their sizes do not add up.
        """
        if len(self.body) < _BODY.size:
            raise StoreCorrupt(f"operation {self.lsn}: its body of {len(self.body)} bytes is shorter than its header")
        a_size, b_size, x, y = _BODY.unpack_from(self.body)
        b_at = _BODY.size + _padded(a_size)
        if b_at + _padded(b_size) != len(self.body):
            raise StoreCorrupt(f"operation {self.lsn}: the sizes of its parts do not add up")
        return self.body[_BODY.size :][:a_size], self.body[b_at:][:b_size], x, y


@dataclass(frozen=True)
class Place:
    """A byte of a file."""

    file: str
    offset: int

    def __str__(self) -> str:
        return f"{self.file}: byte {self.offset}"


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8


class LogReader:
    """The log of a store. Iterate over it; afterwards `end` and `last_lsn` say where it ends.

    Args:
        files: the store's folder, or its files by name (``"meta"``, ``"log/0000000000000001"``).

    Raises:
        NotFound: there is no store.
        StoreFormat: a newer version wrote it.
        StoreCorrupt: here or while iterating; the message names file and byte.
    """

    def __init__(self, files: Path | Mapping[str, bytes]) -> None:
        self._files = files
        self.meta = self._read_meta()
        self.last_lsn = 0
        self.end: Place | None = None
        self.frames = 0
        self._crc = 0

    def _read(self, name: str) -> bytes | None:
        if isinstance(self._files, Path):
            path = self._files / name
            return path.read_bytes() if path.is_file() else None
        return self._files.get(name)

    def _segments(self) -> list[int]:
        if isinstance(self._files, Path):
            names = [path.name for path in (self._files / "log").glob("*")]
        else:
            names = [name.removeprefix("log/") for name in self._files if name.startswith("log/")]
        return sorted(int(name, 16) for name in names if len(name) == 16)

    def _read_meta(self) -> Meta:
        data = self._read("meta")
        if data is None:
            raise self._no_meta()
        magic = struct.unpack("<I", b"SPSM")[0]
        slots = [data[at : at + _META.size].ljust(_META.size, b"\0") for at in (0, SECTOR)]
        read = [Meta._make(_META.unpack(slot)) for slot in slots]
        valid = [
            meta
            for meta, slot in zip(read, slots, strict=True)
            if (meta.magic, meta.version, meta.crc) == (magic, 1, crc32c(slot[:-4]))
        ]
        if valid:
            return max(valid, key=lambda meta: meta.generation)
        newer = [meta.version for meta in read if meta.magic == magic and meta.version > 1]
        if newer:
            raise StoreFormat(f"meta: format {newer[0]}, this program reads 1")
        if not any(meta.magic for meta in read):
            raise self._no_meta()
        raise StoreCorrupt("meta: neither of its two slots is valid")

    def _no_meta(self) -> NotFound | StoreCorrupt:
        if isinstance(self._files, Path):
            checkpoints = any((self._files / "ckpt").glob("*"))
        else:
            checkpoints = any(name.startswith("ckpt/") for name in self._files)
        start = (self._read(f"log/{1:016x}") or b"")[SECTOR : SECTOR + 8]
        if checkpoints or self._segments() not in ([], [1]) or any(start):
            return StoreCorrupt("meta: it is lost, but there is a log")
        return NotFound("store: there is none in this folder")

    def __iter__(self) -> Iterator[Record]:
        number, base = self.meta.first_segment, None
        self.last_lsn = self.frames = 0
        while True:
            name = f"log/{number:016x}"
            data = self._read(name)
            if data is None:
                if base is None or any(other > number for other in self._segments()):
                    raise StoreCorrupt(f"{name}: this segment is missing")
                break
            chain = self._crc
            at = end = Place(name, SECTOR)
            salt, base = self._enter(name, number, data, first=base is None, chain=chain, before=self.end)
            while (frame := self._frame(data, at.offset, salt)) is not None:
                yield from self._records(data, at, frame)
                at = end = Place(name, at.offset + frame[1])
                self.frames += 1
                self.last_lsn, self._crc = frame[5], frame[9]
            self.end = end
            if self._valid_frame_after(data, end.offset, salt):
                raise StoreCorrupt(f"{end}: a damaged frame, with operations after it")
            number += 1
        if self.last_lsn + 1 < self.meta.clean:
            raise StoreCorrupt(
                f"{self.end}: the log ends before operation {self.meta.clean - 1}, after which it was closed"
            )

    def _enter(
        self, name: str, number: int, data: bytes, *, first: bool, chain: int, before: Place | None
    ) -> tuple[int, int]:
        """Check a segment's header; its salt and its first lsn."""
        if len(data) < max(self.meta.segment_size, SECTOR):
            raise StoreCorrupt(f"{Place(name, len(data))}: the segment was cut off here")
        magic, version, uuid, seg_no, base, _, salt, prev_crc, crc = _SEGMENT.unpack_from(data)
        if magic == struct.unpack("<I", b"SPSG")[0] and version != 1:
            raise StoreFormat(f"{name}: format {version}, this program reads 1")
        if data[:4] != b"SPSG" or crc != crc32c(data[: _SEGMENT.size - 4]) or seg_no != number:
            raise StoreCorrupt(f"{name}: the segment's header is damaged")
        if uuid != self.meta.uuid:
            raise StoreCorrupt(f"{name}: belongs to another store")
        if first:
            if base > self.meta.checkpoint_lsn + 1:
                raise StoreCorrupt(f"{name}: it begins with operation {base}; earlier ones are missing")
            self.last_lsn, self._crc = base - 1, prev_crc
        elif base != self.last_lsn + 1 or prev_crc != chain:
            raise StoreCorrupt(f"{before}: a damaged frame, with operations after it")
        return salt, base

    def _frame(self, data: bytes, at: int, salt: int) -> tuple[int, ...] | None:
        """The header of the frame at `at` if it is next in the chain and whole."""
        if at + SECTOR > len(data):
            return None
        frame = _FRAME.unpack_from(data, at)
        length, payload, first_lsn, prev_crc = frame[1], frame[3], frame[4], frame[8]
        if first_lsn != self.last_lsn + 1 or prev_crc != self._crc or payload > length - _FRAME.size:
            return None
        return frame if self._whole(data, at, salt) else None

    @staticmethod
    def _whole(data: bytes, at: int, salt: int) -> bool:
        """Whether any frame of this salt is at `at`, with the right checksum."""
        _magic, length, *_, frame_salt, _, crc, _ = _FRAME.unpack_from(data, at)
        if data[at : at + 4] != b"SPFR" or frame_salt != salt or length % SECTOR or not 0 < length <= len(data) - at:
            return False
        field = at + 52
        return bool(crc == crc32c(data[field + 4 : at + length], crc32c(bytes(4), crc32c(data[at:field]))))

    def _valid_frame_after(self, data: bytes, at: int, salt: int) -> bool:
        return any(
            data[place : place + 4] == b"SPFR"
            and _FRAME.unpack_from(data, place)[4] > self.last_lsn
            and self._whole(data, place, salt)
            for place in range(at, len(data) - SECTOR + 1, SECTOR)
        )

    @staticmethod
    def _records(data: bytes, at: Place, frame: tuple[int, ...]) -> Iterator[Record]:
        _, _, count, payload, lsn, last_lsn, *_ = frame
        here, end = at.offset + _FRAME.size, at.offset + _FRAME.size + payload
        wrong = StoreCorrupt(f"{at}: the frame has the right checksum and not the records it announces")
        if last_lsn - lsn + 1 != count:
            raise wrong
        for number in range(lsn, last_lsn + 1):
            if end - here < _RECORD.size:
                raise wrong
            length, kind, flags, structure, client, client_seq, lock_epoch, lsn_low = _RECORD.unpack_from(data, here)
            body = here + _RECORD.size
            if length > MAX_BODY or body + _padded(length) > end or lsn_low != number & 0xFFFFFFFF:
                raise wrong
            yield Record(number, kind, flags, structure, client, client_seq, lock_epoch, data[body : body + length])
            here = body + _padded(length)
        if here != end:
            raise wrong
