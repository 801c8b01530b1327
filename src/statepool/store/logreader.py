"""Reads a store's files in plain Python, from docs/store-format.md alone: a second opinion on what is in them.

It shares no code with the store, so it does not share its mistakes. ``Files(path)`` checks every checksum and yields
the operations of the log; ``statepool.store.logreplay`` plays them into dictionaries and lists.

Example:
    >>> import statepool.store, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with statepool.store.open(folder) as store:
    ...     store.dict("users")[b"ada"] = b"1815"
    >>> [record.verb for record in Files(folder).records()]
    ['create', 'put']
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from statepool.core.errors import StoreCorrupt, StoreFormat

SECTOR, BLOCK, VERSION = 4096, 65536, 1
META, SEGMENT = Struct("<II16s9QII"), Struct("<II16s4QII")
FRAME, RECORD, BODY = Struct("<4I4QIIQ"), Struct("<IHHIIQII"), Struct("<IIQQ")
HEAD, CHUNK = Struct("<II4QII"), Struct("<II16QII")
VERBS = ["create", "drop", "put", "erase", "push", "pop", "enqueue", "take", "acknowledge", "give_back", "extend"]
VERBS += ["limit_attempts", "take_dead"]


def _table() -> list[int]:
    out = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        out.append(value)
    return out


_TABLE = _table()


def crc32c(data: bytes | memoryview, before: int = 0) -> int:
    """CRC-32C of the bytes; ``before`` is the value over the bytes that precede them."""
    crc = before ^ 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Superblock:
    """The slot of ``meta`` that counts."""

    uuid: bytes
    generation: int
    epoch: int
    checkpoint_lsn: int
    checkpoint: int
    first_segment: int
    segment_size: int
    capacity: int
    nonce: int
    clean: int


@dataclass(frozen=True, slots=True)
class Record:
    """One operation of the log."""

    lsn: int
    verb: str
    begins: bool
    """Whether it is the first of its transaction."""
    ends: bool
    structure: int
    client: int
    client_seq: int
    a: bytes
    b: bytes
    x: int
    y: int


class Files:
    """The files of one store.

    Args:
        path: the folder. It is only read, and should not be open for writing meanwhile.

    Raises:
        StoreCorrupt: a file contradicts its checksum or its neighbours.
        StoreFormat: a newer version wrote it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.meta = self._meta()

    def records(self) -> Iterator[Record]:
        """Every operation in the log, in order; raises at its end if the log is shorter than it must be."""
        last = 0
        for frame, first in self.frames():
            at, (_, _, count, payload, *_) = FRAME.size, FRAME.unpack_from(frame)
            for lsn in range(first, first + count):
                record, at = _record(frame, at, FRAME.size + payload, lsn)
                last = lsn
                yield record
        if last < self.meta.checkpoint_lsn and self._base > self.meta.checkpoint_lsn + 1:
            raise StoreCorrupt("log: it begins behind the checkpoint")
        last = max(last, self._base - 1)
        if last < self.meta.checkpoint_lsn or self.meta.clean not in (0, last + 1):
            raise StoreCorrupt(f"log: it ends at operation {last}, which is too early")

    def frames(self) -> Iterator[tuple[memoryview, int]]:
        """Every frame and the number of its first operation."""
        number = self.meta.first_segment
        content, base, salt, chain = self._segment(number)
        self._base, lsn, at = base, base, SECTOR
        while True:
            while (frame := _frame(content, at, salt, chain, lsn)) is not None:
                yield frame, lsn
                header = FRAME.unpack_from(frame)
                at, lsn, chain = at + len(frame), header[5] + 1, header[9]
            for later in range(at, len(content), SECTOR):
                if _frame(content, later, salt, None, lsn) is not None:
                    raise StoreCorrupt(f"log/{number:016x}: a damaged frame at byte {at}, with others behind it")
            number += 1
            if not self._present(number):
                return
            content, base, salt, before = self._segment(number)
            if base != lsn or before != chain:
                raise StoreCorrupt(f"log/{number - 1:016x}: a damaged frame at byte {at}, with a segment behind it")
            at = SECTOR

    def checkpoint(self) -> dict[int, bytes]:
        """Blocks of the heap in the checkpoint, checked; empty if there is none."""
        if self.meta.checkpoint == 0:
            return {}
        name = f"ckpt/{self.meta.checkpoint:016x}"
        content = memoryview((self.path / name).read_bytes())
        head = HEAD.unpack_from(content)
        _check(content[: HEAD.size], head[-1], head[0] == 0x4B435053, name)
        if head[1] != VERSION:
            raise StoreFormat(f"{name}: version {head[1]}, this program reads {VERSION}")
        if head[2] != self.meta.checkpoint_lsn:
            raise StoreCorrupt(f"{name}: it is of operation {head[2]}, the superblock names {self.meta.checkpoint_lsn}")
        blocks: dict[int, bytes] = {}
        at = SECTOR
        while len(blocks) < head[4]:
            magic, count, *numbers, data_crc, crc = CHUNK.unpack_from(content, at)
            _check(content[at : at + CHUNK.size], crc, magic == 0x4B435053 and 1 <= count <= 16, name)
            data = content[at + SECTOR : at + SECTOR + count * BLOCK]
            if crc32c(data) != data_crc:
                raise StoreCorrupt(f"{name}: the blocks at byte {at} contradict their checksum")
            blocks.update((numbers[i], bytes(data[i * BLOCK : (i + 1) * BLOCK])) for i in range(count))
            at += SECTOR + count * BLOCK
        return blocks

    def _meta(self) -> Superblock:
        content = (self.path / "meta").read_bytes()
        found: list[Superblock] = []
        for at in (0, SECTOR):
            magic, version, uuid, *words, _, crc = META.unpack_from(content, at)
            if magic != 0x4D535053 or crc32c(content[at : at + META.size - 4]) != crc:
                continue
            if version != VERSION:
                raise StoreFormat(f"meta: version {version}, this program reads {VERSION}")
            found.append(Superblock(uuid, *words))
        if not found:
            raise StoreCorrupt("meta: neither of its two slots is valid")
        return max(found, key=lambda block: block.generation)

    def _present(self, number: int) -> bool:
        name = f"{number:016x}"
        names = sorted(p.name for p in (self.path / "log").iterdir() if len(p.name) == len(name))
        if name not in names and any(other > name for other in names):
            raise StoreCorrupt(f"log/{name}: it is missing, but there are later segments")
        return name in names

    def _segment(self, number: int) -> tuple[memoryview, int, int, int]:
        """The content, the first operation's number, the salt, and the checksum of the last frame before it."""
        name = f"log/{number:016x}"
        if not (self.path / name).exists():
            raise StoreCorrupt(f"{name}: it is missing")
        content = memoryview((self.path / name).read_bytes())
        magic, version, uuid, its_number, base, _, salt, chain, crc = SEGMENT.unpack_from(content)
        _check(content[: SEGMENT.size], crc, magic == 0x47535053 and its_number == number, name)
        if version != VERSION:
            raise StoreFormat(f"{name}: version {version}, this program reads {VERSION}")
        if uuid != self.meta.uuid:
            raise StoreCorrupt(f"{name}: it belongs to another store")
        return content, base, salt, chain


def _check(header: memoryview, crc: int, plausible: bool, name: str) -> None:
    if not plausible or crc32c(header[:-4]) != crc:
        raise StoreCorrupt(f"{name}: its header is damaged")


def _frame(content: memoryview, at: int, salt: int, chain: int | None, lsn: int) -> memoryview | None:
    """The frame at that byte if it is whole and the next one, or with ``chain`` None any later one."""
    if at + SECTOR > len(content):
        return None
    magic, length, _, payload, first, _, _, its_salt, before, crc, _ = FRAME.unpack_from(content, at)
    follows = first >= lsn if chain is None else first == lsn and before == chain
    if magic != 0x52465053 or its_salt != salt or not follows or length == 0 or length % SECTOR:
        return None
    if length > len(content) - at or payload > length - FRAME.size:
        return None
    frame = content[at : at + length]
    whole = crc32c(frame[56:], crc32c(b"\0\0\0\0", crc32c(frame[:52])))
    return frame if whole == crc else None


def _record(frame: memoryview, at: int, end: int, lsn: int) -> tuple[Record, int]:
    length, verb, flags, structure, client, client_seq, _, low = RECORD.unpack_from(frame, at)
    body = frame[at + RECORD.size : at + RECORD.size + length]
    a_size, b_size, x, y = BODY.unpack_from(body)
    b_at = BODY.size + (a_size + 7) // 8 * 8
    behind = at + RECORD.size + length
    if behind > end or b_at + (b_size + 7) // 8 * 8 != length or low != lsn & 0xFFFFFFFF or not 1 <= verb <= len(VERBS):
        raise StoreCorrupt(f"log: operation {lsn} is malformed")
    a, b = bytes(body[BODY.size : BODY.size + a_size]), bytes(body[b_at : b_at + b_size])
    name = VERBS[verb - 1]
    return Record(lsn, name, bool(flags & 1), bool(flags & 2), structure, client, client_seq, a, b, x, y), behind
