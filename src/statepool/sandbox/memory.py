"""Data that sandboxes share without copies: sealed memory, or pages fetched from another process when touched.

Two of TrEnv's pools without a changed kernel: ``Dataset`` attaches in microseconds whatever its size; ``Remote``
fetches what is read over a socket (userfaultfd), first what an earlier run touched (its recorded working set).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from statepool.core.errors import Corruption, InvalidRequest, Unavailable
from statepool.core.wire import Codec
from statepool.sandbox.pages import CHUNK, Ask, Hello, Told, read_exactly

if TYPE_CHECKING:
    from statepool.sandbox.sandbox import Sandbox

__all__ = ["Dataset", "Part", "Remote"]

_PAGE = mmap.PAGESIZE
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_COPY, _UNREGISTER = 0xC028AA03, 0x8010AA01
_FAULT = 0x12
_EVENT = 32


@dataclass(frozen=True, slots=True)
class Part:
    """One named array in a dataset: offset in bytes, a multiple of a page."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def plain(self) -> list[Any]:
        """For a message."""
        return [self.name, self.dtype, list(self.shape), self.offset]


class Dataset:
    """Arrays in sealed memory: nobody can change them, everybody can map them. A writer gets pages of its own."""

    def __init__(self, arrays: Mapping[str, np.ndarray | bytes]) -> None:
        """Copy ``arrays`` (any dtype without objects, or bytes) in.

        Raises:
            InvalidRequest: a name is no identifier, or an array holds objects.
        """
        parts, offset = [], 0
        plain = {
            name: np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data for name, data in arrays.items()
        }
        for name, array in plain.items():
            if not name.isidentifier() or array.dtype.hasobject:
                raise InvalidRequest(f"arrays: {name!r} must be an identifier and hold numbers", param="arrays")
            parts.append(Part(name, array.dtype.str, array.shape, offset))
            offset += -(-array.nbytes // _PAGE) * _PAGE
        self.parts, self.length = tuple(parts), max(offset, _PAGE)
        self.fd = os.memfd_create("statepool-dataset", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.length)
        with mmap.mmap(self.fd, self.length) as space:
            for part, array in zip(parts, plain.values(), strict=True):
                raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1) if array.size else np.zeros(0, np.uint8)
                space[part.offset : part.offset + raw.nbytes] = raw.tobytes()
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def attach(self, sandbox: Sandbox) -> None:
        """Give a sandbox the arrays under their names. What it writes into them is its own."""
        message = {"op": "attach", "parts": [part.plain() for part in self.parts], "length": self.length}
        sandbox.context.ask(message, (self.fd,))

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the memory."""
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        """Forget it here; sandboxes keep what they have mapped."""
        os.close(self.fd)


class Remote:
    """A dataset of a page server, in one sandbox: pages come when they are touched, in chunks whose hash is checked."""

    def __init__(self, uffd: int, address: int, told: Told, line: socket.socket, first: Sequence[int]) -> None:
        self._uffd, self._address, self._told, self._line = uffd, address, told, line
        self.order: list[int] = []
        """Chunks in the order in which they were needed: the working set for the next run."""
        self.bytes_fetched = 0
        self.failure: str | None = None
        self._here = [False] * len(told.chunks)
        self._lock = threading.Lock()
        self._buffer = ctypes.create_string_buffer(CHUNK)
        self._wake, self._wake_in = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, args=(list(first),), name="sandbox pages", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, sandbox: Sandbox, address: tuple[str, int] | str, name: str, first: Sequence[int] = ()) -> Remote:
        """Attach the dataset ``name`` of the page server at ``address`` to a sandbox; its kernel starts anew for it.

        ``first`` are chunks to fetch ahead, such as ``order`` of an earlier run.

        Raises:
            Unavailable: no page server answers there, or this host has no userfaultfd.
            InvalidRequest: it has no such dataset.
        """
        line = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM)
        try:
            line.connect(address)
        except OSError as error:
            line.close()
            raise Unavailable(f"pages: nothing answers at {address}: {error.strerror}", param="pages") from None
        line.sendall(_framed(Hello(name)))
        told = Codec[Told](Told).decode(read_exactly(line, int.from_bytes(read_exactly(line, 4), "little")))
        if told.error:
            line.close()
            raise InvalidRequest(told.error, param="name")
        uffd, start = sandbox.restart_with_memory(told.length, told.parts)
        made = cls(uffd, start, told, line, first)
        sandbox.remotes.append(made)
        return made

    def bring_back(self) -> None:
        """Fetch all that is missing; afterwards the memory is the sandbox's own, and it can be forked.

        Raises:
            Unavailable: the page server has gone.
        """
        for index in range(len(self._here)):
            self._fetch(index, note=False)
        if self._wake_in >= 0:
            fcntl.ioctl(self._uffd, _UNREGISTER, struct.pack("QQ", self._address, self._told.length))
        self.close()

    @property
    def complete(self) -> bool:
        """Whether all of it is in the sandbox."""
        return all(self._here)

    def close(self) -> None:
        """Fetch no more; who touches what is missing waits for ever, so close it with its sandbox."""
        if self._wake_in >= 0:
            os.close(self._wake_in)
            self._wake_in = -1
            self._thread.join(5)
            os.close(self._wake)
            os.close(self._uffd)
            self._line.close()

    def _serve(self, first: list[int]) -> None:
        poll = select.poll()
        poll.register(self._uffd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while True:
                ready = poll.poll(0 if first else None)
                if any(fd == self._wake for fd, _ in ready):
                    return
                if any(fd == self._uffd for fd, _ in ready):
                    event = os.read(self._uffd, _EVENT)
                    if event and event[0] == _FAULT:
                        place = struct.unpack_from("Q", event, 16)[0] - self._address
                        self._fetch(place // CHUNK, note=True)
                elif first:
                    self._fetch(first.pop(0), note=False)
        except (OSError, Unavailable, Corruption) as error:
            self.failure = str(error)

    def _fetch(self, index: int, note: bool) -> None:
        with self._lock:
            if note and index not in self.order:
                self.order.append(index)
            if self._here[index]:
                return
            try:
                self._line.sendall(_framed(Ask(index)))
                size = min(CHUNK, self._told.length - index * CHUNK)
                data = read_exactly(self._line, size)
            except OSError as error:
                raise Unavailable(f"pages: the server has gone: {error}") from None
            if hashlib.blake2b(data, digest_size=16).digest() != self._told.chunks[index]:
                raise Corruption(f"pages: chunk {index} does not have the hash it was published with")
            self.bytes_fetched += size
            ctypes.memmove(self._buffer, data, size)
            self._put(index * CHUNK, size)
            self._here[index] = True

    def _put(self, offset: int, size: int) -> None:
        done = 0
        while done < size:
            source = ctypes.addressof(self._buffer) + done
            request = bytearray(struct.pack("QQQQq", self._address + offset + done, source, size - done, 0, 0))
            try:
                fcntl.ioctl(self._uffd, _COPY, request)
                return
            except OSError as error:
                copied = struct.unpack_from("q", request, 32)[0]
                if error.errno != errno.EAGAIN or copied < 0:
                    raise
                done += copied


def _framed(message: Hello | Ask) -> bytes:
    body = Codec[Hello | Ask](Hello | Ask).encode(message)
    return len(body).to_bytes(4, "little") + body
