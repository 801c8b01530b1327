"""The files of a store as another machine copies them: superblock, segments and frames (docs/store-format.md)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import msgspec

from statepool.core.errors import StoreCorrupt
from statepool.store.native import core
from statepool.store.net.roles import Position

SECTOR = 4096
_FRAME = struct.Struct("<IIIIQQQQIIQ")
_SEGMENT = struct.Struct("<II16sQQQQII")
_SUPERBLOCK = struct.Struct("<II16sQQQQQQQQQII")
_FRAME_MAGIC, _SEGMENT_MAGIC, _SUPERBLOCK_MAGIC = 0x52465053, 0x47535053, 0x4D535053


class Superblock(msgspec.Struct, array_like=True):
    """The fields of a store's first word, in their order on disk."""

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
    replica: int


def read_superblock(folder: Path) -> Superblock | None:
    """The newer valid one of the two slots; None if there is no store."""
    try:
        data = (folder / "meta").read_bytes()
    except FileNotFoundError:
        return None
    found = None
    for at in (0, SECTOR):
        slot = data[at : at + _SUPERBLOCK.size]
        if len(slot) < _SUPERBLOCK.size or core.crc32c(slot[:-4]) != int.from_bytes(slot[-4:], "little"):
            continue
        block = Superblock(*_SUPERBLOCK.unpack(slot)[:-1])
        if block.magic == _SUPERBLOCK_MAGIC and (found is None or block.generation > found.generation):
            found = block
    return found


def write_superblock(folder: Path, block: Superblock) -> None:
    """Replace the older slot, durable when it returns; the generation goes up."""
    block.generation += 1
    packed = _SUPERBLOCK.pack(*msgspec.structs.astuple(block), 0)[:-4]
    packed += core.crc32c(packed).to_bytes(4, "little")
    path = folder / "meta"
    if not path.exists():
        path.write_bytes(bytes(2 * SECTOR))
    with path.open("r+b") as file:
        file.seek(block.generation % 2 * SECTOR)
        file.write(packed.ljust(SECTOR, b"\0"))
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Segment:
    """The header of a file of the log."""

    number: int
    base_lsn: int
    salt: int
    prev_crc: int
    raw: bytes

    @property
    def before(self) -> Position:
        """Where a reader is that has nothing of this segment."""
        return Position(0, self.base_lsn - 1, self.prev_crc)


@dataclass(frozen=True)
class Frame:
    """The header of a frame."""

    length: int
    first_lsn: int
    last_lsn: int
    epoch: int
    salt: int
    prev_crc: int
    crc: int

    @property
    def position(self) -> Position:
        """Where a reader is that has it."""
        return Position(self.epoch, self.last_lsn, self.crc)


class Piece(msgspec.Struct, array_like=True):
    """A frame on its way to a mirror: the same bytes at the same place. ``start``: the header of a segment it opens,
    which is all there is of an empty one.
    """

    segment: int
    segment_bytes: int
    offset: int
    start: bytes
    data: bytes


def segment_path(folder: Path, number: int) -> Path:
    """The file of a segment."""
    return folder / "log" / f"{number:016x}"


def parse_segment(raw: bytes) -> Segment | None:
    """The header in the first sector of a segment; None if it is no valid one."""
    if len(raw) < _SEGMENT.size:
        return None
    magic, _, _, number, base_lsn, _, salt, prev_crc, crc = _SEGMENT.unpack_from(raw)
    if magic != _SEGMENT_MAGIC or core.crc32c(raw[: _SEGMENT.size - 4]) != crc:
        return None
    return Segment(number, base_lsn, salt, prev_crc, raw)


def parse_frame(raw: bytes) -> Frame | None:
    """The header at the start of a frame; None if there is none. The checksum is not checked."""
    if len(raw) < _FRAME.size:
        return None
    magic, length, _, _, first, last, epoch, salt, prev_crc, crc, _ = _FRAME.unpack_from(raw)
    if magic != _FRAME_MAGIC or length == 0 or length % SECTOR:
        return None
    return Frame(length, first, last, epoch, salt, prev_crc, crc)


def is_whole(frame: Frame, data: bytes) -> bool:
    """Whether these are the bytes that the frame's checksum is of."""
    field = 56  # where the checksum ends, which is counted as 0
    return len(data) == frame.length and frame.crc == core.crc32c(
        data[field:], core.crc32c(bytes(4), core.crc32c(data[: field - 4]))
    )


class LogReader:
    """Reads the frames of a log in their order, also while its owner appends. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        self._segment = Segment(0, 0, 0, 0, b"")
        self._size = self._at = 0
        self.position = Position()

    def seek(self, position: Position) -> bool:
        """Go behind the frame that ends there; False if it is not in the log (any more)."""
        for number in sorted(self._numbers(), reverse=True):
            if not self._enter(number) or self._segment.base_lsn > position.lsn + 1:
                continue
            if self._segment.base_lsn == position.lsn + 1 and not self._enter(number - 1):  # it may be empty
                self._enter(number)
            self.position = self._segment.before
            while self.position.lsn < position.lsn and (frame := self._header()) is not None:
                self._at += frame.length
                self.position = frame.position
            same = self.position.lsn == position.lsn and self.position.crc == position.crc
            self.position = position if same else Position()
            return same
        return False

    def next(self, until: int) -> Piece | None:
        """The next frame, if it ends with operation ``until`` or before; None if there is none. Of a segment that was
        left empty, because its first frame would not fit, a piece without a frame: a log has no gaps.

        Raises:
            StoreCorrupt: there is one, and it is not in the log: it was recycled meanwhile, or is damaged.
        """
        frame = self._header()
        if frame is None:
            empty = Piece(self._segment.number, self._size, SECTOR, self._segment.raw, b"")
            nothing = self._at == SECTOR
            if self._enter_next():
                if nothing:
                    return empty
                frame = self._header()
        if frame is None or frame.last_lsn > until:
            return None
        assert self._file is not None
        data = os.pread(self._file, frame.length, self._at)
        if not is_whole(frame, data):
            raise StoreCorrupt(f"log: a frame of segment {self._segment.number:016x} is damaged or was recycled")
        start = self._segment.raw if self._at == SECTOR else b""
        piece = Piece(self._segment.number, self._size, self._at, start, data)
        self._at += frame.length
        self.position = frame.position
        return piece

    def _numbers(self) -> list[int]:
        names = [path.name for path in (self._folder / "log").glob("*")]
        return [int(name, 16) for name in names if len(name) == 16 and not set(name) - set("0123456789abcdef")]

    def _header(self) -> Frame | None:
        if self._file is None:
            return None
        frame = parse_frame(os.pread(self._file, _FRAME.size, self._at))
        last = self.position
        if (
            frame is None
            or (frame.salt, frame.prev_crc, frame.first_lsn) != (self._segment.salt, last.crc, last.lsn + 1)
            or frame.length > self._size - self._at
        ):
            return None
        return frame

    def _enter_next(self) -> bool:
        held, at, segment, size = self._file, self._at, self._segment, self._size
        self._file = None
        if self._enter(segment.number + 1) and self._segment.before == _without_epoch(self.position):
            if held is not None:
                os.close(held)
            return True
        self._release()
        self._file, self._at, self._segment, self._size = held, at, segment, size
        return False

    def _enter(self, number: int) -> bool:
        self._release()
        try:
            self._file = os.open(segment_path(self._folder, number), os.O_RDONLY)
        except FileNotFoundError:
            return False
        segment = parse_segment(os.pread(self._file, SECTOR, 0))
        if segment is None or segment.number != number:
            self._release()
            return False
        self._segment, self._at, self._size = segment, SECTOR, os.fstat(self._file).st_size
        return True

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """Let the files go."""
        self._release()


def _without_epoch(position: Position) -> Position:
    """The same place as a segment's header names it, which knows no epoch."""
    return msgspec.structs.replace(position, epoch=0)


def first_segment(folder: Path, number: int) -> Segment:
    """The header of a segment that must be there.

    Raises:
        StoreCorrupt: it is not.
    """
    try:
        with segment_path(folder, number).open("rb") as file:
            segment = parse_segment(file.read(SECTOR))
    except FileNotFoundError:
        segment = None
    if segment is None:
        raise StoreCorrupt(f"log: segment {number:016x} is missing or damaged")
    return segment
