"""The file of an index: one page of header, arrays on pages of their own, a checksum per 64 KiB, a trailer.

    0       header page: magic, version, JSON {settings, sections: name -> [offset, dtype, shape]}, CRC32C
    4096    sections, each from a multiple of 4096 on, zeros between them
    sums    uint32 CRC32C of every 64 KiB of [4096, sums)
    -32     trailer: CRC32C of the sums, where they begin, length of the file, magic

Little-endian. Written beside its place, synced, then renamed: whoever opens it sees the old or the new file.
"""

from __future__ import annotations

import json
import math
import mmap as memory_map
import os
import struct
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from statepool.core.errors import InvalidRequest

from .errors import IndexCorruptError
from .native import checksum, core

__all__ = ["IndexFile", "Report", "Verify", "sync_folder", "verify", "write"]

Verify = Literal["lazy", "full", "off"]

_MAGIC, _END, _VERSION = b"SPVIDX\r\n", b"SPVEND\r\n", 1
_PAGE, _BLOCK = 4096, int(core.BLOCK)
_HEAD = struct.Struct("<8sII")
_TRAILER = struct.Struct("<IIQQ8s")


@dataclass(frozen=True, slots=True)
class Section:
    """Where an array lies."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Report:
    """What ``verify`` found."""

    path: Path
    nbytes: int
    rows: int
    damaged: tuple[tuple[str, int], ...] = ()
    """Section and offset in the file of every damaged 64 KiB block."""

    @property
    def ok(self) -> bool:
        """Nothing is damaged."""
        return not self.damaged


def write(path: Path, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one.

    Raises:
        InvalidRequest: the folder does not exist or cannot be written.
        OSError: the disk is full or fails; the old file is as it was.
    """
    sections, at = {}, _PAGE
    for name, array in arrays.items():
        sections[name] = Section(at, array.dtype.str, array.shape)
        at = _whole_pages(at + array.nbytes)
    body = json.dumps({**head, "sections": {k: [s.offset, s.dtype, s.shape] for k, s in sections.items()}}).encode()
    page = bytearray(_PAGE)
    _HEAD.pack_into(page, 0, _MAGIC, _VERSION, len(body))
    page[_HEAD.size : _HEAD.size + len(body)] = body
    page[-4:] = checksum(bytes(page[:-4])).to_bytes(4, "little")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InvalidRequest(f"path: cannot write in {path.parent}: {error.strerror}", param="path") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page)
            sums = _Sums()
            for name, array in arrays.items():
                _put(file, sums, sections[name].offset, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            _put(file, sums, at, memoryview(b""))
            table = sums.finish()
            file.write(table)
            file.write(_TRAILER.pack(checksum(table), 0, at, at + len(table) + _TRAILER.size, _END))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(slots=True)
class _Sums:
    """Checksums of the blocks of a stream."""

    table: list[np.ndarray] = field(default_factory=list)
    rest: bytes = b""
    done: int = _PAGE

    def add(self, data: memoryview) -> None:
        self.done += len(data)
        if self.rest:
            missing = _BLOCK - len(self.rest)
            self.rest += data[:missing]
            data = data[missing:]
            if len(self.rest) < _BLOCK:
                return
            self.table.append(core.checksums(np.frombuffer(self.rest, np.uint8), _BLOCK))
            self.rest = b""
        whole = len(data) // _BLOCK * _BLOCK
        if whole:
            self.table.append(core.checksums(np.frombuffer(data[:whole], np.uint8), _BLOCK))
        self.rest = bytes(data[whole:])

    def finish(self) -> bytes:
        if self.rest:
            self.table.append(core.checksums(np.frombuffer(self.rest, np.uint8), _BLOCK))
        return b"".join(part.astype("<u4").tobytes() for part in self.table)


def _put(file: Any, sums: _Sums, offset: int, data: memoryview) -> None:
    for part in (memoryview(bytes(offset - sums.done)), data):
        if len(part):
            file.write(part)
            sums.add(part)


class IndexFile:
    """An open file: its settings and its arrays, in place.

    Args:
        path: The file.
        mmap: Map it; else read it all, which checks it all.
        verify: ``lazy`` checks a block when a search first reads it, ``full`` all of them now, ``off`` none. Header,
            table, ids and entries are always checked now.

    Raises:
        FileNotFoundError: there is none.
        IndexCorruptError: it is no index, is truncated, or is damaged where it was looked at.
        InvalidRequest: a newer version wrote it.
    """

    def __init__(self, path: Path, *, mmap: bool = True, verify: Verify = "lazy") -> None:
        if sys.byteorder != "little":
            raise InvalidRequest("path: files of an index are little-endian; this machine is not", param="path")
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _PAGE + _TRAILER.size:
                raise self._corrupt("header", 0, f"the file has {size} bytes, too few for an index")
            if mmap:
                self._memory: Any = memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_READ)
            else:
                self._memory = file.read()
        self._data = np.frombuffer(self._memory, np.uint8)
        self.head = self._read_header()
        begin = self._read_trailer()
        self.sections = self._read_sections(begin)
        self.guard = core.Guard(self._data[_PAGE:begin], self._data[begin : -_TRAILER.size].view("<u4"))
        if verify == "full" or not mmap:
            self.touch(_PAGE, begin - _PAGE)
        for name in self.sections:
            if verify != "off" and (name in ("ids", "entries", "texts") or name.startswith(("column ", "words "))):
                self.touch(self.sections[name].offset, self.sections[name].nbytes)

    def array(self, name: str) -> np.ndarray:
        """A section, in place and read-only."""
        section = self.sections[name]
        return self._data[section.offset : section.offset + section.nbytes].view(section.dtype).reshape(section.shape)

    @property
    def identity(self) -> str:
        """Of its content, by the checksums of all of it."""
        return self._data[_PAGE - 4 : _PAGE].tobytes().hex() + self._data[-_TRAILER.size :][:4].tobytes().hex()

    def touch(self, offset: int, nbytes: int) -> None:
        """Check the blocks of a part.

        Raises:
            IndexCorruptError: one of them is damaged.
        """
        if not self.guard.touch(offset - _PAGE, nbytes):
            raise self.damage()

    def damage(self) -> IndexCorruptError:
        """The error for the damage that the guard found."""
        at = _PAGE + int(self.guard.bad)
        return self._corrupt(self.section_at(at), at, "the checksum or the content is wrong")

    def damaged(self) -> list[tuple[str, int]]:
        """Section and offset of every damaged block."""
        end = self._end_of_sections
        return [
            (self.section_at(at), at)
            for at in range(_PAGE, end, _BLOCK)
            if not self.guard.touch(at - _PAGE, min(_BLOCK, end - at))
        ]

    def section_at(self, offset: int) -> str:
        """The section that a block at ``offset`` begins in, or the first one inside it."""
        for name, section in self.sections.items():
            if section.offset < offset + _BLOCK and offset < section.offset + section.nbytes:
                return name
        return "padding"

    def _read_header(self) -> dict[str, Any]:
        page = self._data[:_PAGE].tobytes()
        magic, version, length = _HEAD.unpack_from(page)
        if magic != _MAGIC:
            raise self._corrupt("header", 0, "it does not begin like an index")
        if int.from_bytes(page[-4:], "little") != checksum(page[:-4]):
            raise self._corrupt("header", 0, "the checksum is wrong")
        if version != _VERSION:
            raise InvalidRequest(f"path: {self.path} has format {version}; this version reads {_VERSION}", param="path")
        return dict(json.loads(page[_HEAD.size : _HEAD.size + length]))

    def _read_trailer(self) -> int:
        size, at = len(self._data), len(self._data) - _TRAILER.size
        crc, _, begin, length, magic = _TRAILER.unpack(self._data[at:].tobytes())
        if magic != _END or length != size:
            raise self._corrupt("trailer", at, "it does not end like an index; it was truncated or overwritten")
        blocks = (begin - _PAGE + _BLOCK - 1) // _BLOCK
        if begin % _PAGE or begin + 4 * blocks != at:
            raise self._corrupt("trailer", at, "it contradicts the length of the file")
        if crc != checksum(self._data[begin:at].tobytes()):
            raise self._corrupt("checksums", begin, "the checksum of the checksums is wrong")
        self._end_of_sections = int(begin)
        return int(begin)

    def _read_sections(self, end: int) -> dict[str, Section]:
        sections = {
            name: Section(at, dtype, tuple(shape)) for name, (at, dtype, shape) in self.head.pop("sections").items()
        }
        for name, section in sections.items():
            if section.offset % _PAGE or not _PAGE <= section.offset <= section.offset + section.nbytes <= end:
                raise self._corrupt(name, section.offset, "it lies outside the file")
        return sections

    def _corrupt(self, section: str, offset: int, reason: str) -> IndexCorruptError:
        return IndexCorruptError(f"{self.path}: {section} at byte {offset}: {reason}", section, offset)


def verify(path: str | Path) -> Report:
    """Check every byte of a file.

    Raises:
        FileNotFoundError: there is none.
        IndexCorruptError: header or trailer are damaged, so that nothing can be said of the rest.
    """
    file = IndexFile(Path(path), verify="off")
    return Report(Path(path), len(file._data), int(file.head["rows"]), tuple(file.damaged()))


def _whole_pages(nbytes: int) -> int:
    return (nbytes + _PAGE - 1) // _PAGE * _PAGE
