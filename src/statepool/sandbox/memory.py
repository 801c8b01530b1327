"""Data that sandboxes share without copies: sealed memory, or pages fetched from another process when touched.

Two of TrEnv's pools without a changed kernel: ``Dataset`` attaches in microseconds whatever its size; ``Remote``
fetches what is read over a socket (userfaultfd), first what an earlier run touched (its recorded working set).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from statepool.core.errors import Corruption, InvalidRequest, Unavailable
from statepool.core.sockets import receive, receive_into, send
from statepool.core.wire import Codec
from statepool.sandbox.inside.attach import mapped
from statepool.sandbox.pages import CHUNK, Ask, Hello, Told, digest, tuned

if TYPE_CHECKING:
    from statepool.sandbox.sandbox import Sandbox

__all__ = ["Dataset", "Part", "Remote"]

_PAGE = mmap.PAGESIZE
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_COPY, _UNREGISTER, _POISON = 0xC028AA03, 0x8010AA01, 0xC020AA08
_FAULT = 0x12
_COLLAPSE = 25
"""MADV_COLLAPSE: pages of 2 MiB, so that who maps them needs no tables of small ones."""
_EVENT = 32
_CODEC = Codec[Hello | Ask](Hello | Ask)
_MOST_AHEAD = 16
"""Chunks asked for at once: who reads in order waits for one answer in so many; a fault elsewhere waits behind them."""


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
        space, begin = mapped(self.fd, self.length, mmap.MAP_SHARED)
        with space:
            for part, array in zip(parts, plain.values(), strict=True):
                raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1) if array.size else np.zeros(0, np.uint8)
                start = begin + part.offset
                space[start : start + raw.nbytes] = raw.tobytes()
            with contextlib.suppress(OSError):  # an older Linux cannot
                space.madvise(_COLLAPSE, begin, self.length)
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
    """A dataset of a page server, in one sandbox: pages come when they are touched, in chunks whose hash is checked.

    Who reads on where the last chunks ended gets twice as many, up to 4 MiB.
    """

    def __init__(self, uffd: int, address: int, told: Told, line: socket.socket, first: Sequence[int]) -> None:
        self._uffd, self._address, self._told, self._line = uffd, address, told, line
        self.order: list[int] = []
        """Chunks in the order in which they were needed: the working set for the next run."""
        self.bytes_fetched = 0
        self.failure: str | None = None
        self._here = [False] * len(told.chunks)
        self._missing = len(told.chunks)
        self._ahead = deque(first)
        self._asked: deque[int] = deque()
        self._next, self._window = -1, 1
        self._buffer = ctypes.create_string_buffer(CHUNK)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._closing = False
        self._ended = threading.Event()
        """All is here, or nothing more will come."""
        self._thread = threading.Thread(target=self._serve, name="sandbox pages", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, sandbox: Sandbox, address: tuple[str, int] | str, name: str, first: Sequence[int] = ()) -> Remote:
        """Attach the dataset ``name`` of the page server at ``address`` to a sandbox; its kernel starts anew for it.

        ``first`` are chunks to fetch ahead, such as ``order`` of an earlier run.

        Raises:
            Unavailable: no page server answers there, or this host has no userfaultfd.
            InvalidRequest: it has no such dataset.
        """
        line = tuned(socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM))
        try:
            line.connect(address)
        except OSError as error:
            line.close()
            raise Unavailable(f"pages: nothing answers at {address}: {error.strerror}", param="pages") from None
        send(line, _CODEC.encode(Hello(name)))
        answer = receive(line)
        if answer is None:
            line.close()
            raise Unavailable(f"pages: the server at {address} has gone", param="pages")
        told = Codec[Told](Told).decode(answer)
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
        if self._uffd < 0:
            return
        self._ahead.extend(index for index, here in enumerate(self._here) if not here)
        os.eventfd_write(self._wake, 1)
        self._ended.wait()
        if not self.complete:
            raise Unavailable(f"pages: {self.failure}")
        fcntl.ioctl(self._uffd, _UNREGISTER, struct.pack("QQ", self._address, self._told.length))
        self.close()

    @property
    def complete(self) -> bool:
        """Whether all of it is in the sandbox."""
        return self._missing == 0

    def close(self) -> None:
        """Fetch no more; who touches what is missing waits for ever, so close it with its sandbox."""
        if self._uffd >= 0:
            self._closing = True
            os.eventfd_write(self._wake, 1)
            self._thread.join(5)
            os.close(self._wake)
            os.close(self._uffd)
            self._uffd = -1
            self._line.close()

    def _serve(self) -> None:
        poll = select.poll()
        for fd in (self._uffd, self._wake, self._line.fileno()):
            poll.register(fd, select.POLLIN)
        try:
            while not self._closing:
                self._look_ahead()
                for fd, _ in poll.poll():
                    if fd == self._wake:
                        os.eventfd_read(self._wake)
                    elif fd == self._uffd:
                        self._faulted()
                    else:
                        self._take()
        except (OSError, Corruption) as error:
            self.failure = str(error)
            self._poison()
        self._ended.set()

    def _look_ahead(self) -> None:
        while self._ahead and len(self._asked) < _MOST_AHEAD:
            start = self._ahead.popleft()
            count = 1
            while self._ahead and self._ahead[0] == start + count and count < _MOST_AHEAD:
                self._ahead.popleft()
                count += 1
            self._ask(start, count)

    def _faulted(self) -> None:
        try:
            events = os.read(self._uffd, 16 * _EVENT)
        except BlockingIOError:
            return  # who faulted has been woken meanwhile
        for at in range(0, len(events), _EVENT):
            if events[at] != _FAULT:
                continue
            index = (struct.unpack_from("Q", events, at + 16)[0] - self._address) // CHUNK
            if self._here[index] or index in self._asked:
                continue
            self._window = min(2 * self._window, _MOST_AHEAD) if index == self._next else 1
            self.order += self._ask(index, self._window)
            self._next = index + self._window

    def _ask(self, start: int, count: int) -> list[int]:
        """Ask for what is not here yet of these chunks; answers which."""
        chunks = range(start, min(start + count, len(self._here)))
        wanted = [index for index in chunks if not self._here[index] and index not in self._asked]
        for _, run in itertools.groupby(enumerate(wanted), lambda pair: pair[1] - pair[0]):
            follow = [index for _, index in run]
            send(self._line, _CODEC.encode(Ask(follow[0], len(follow))))
        self._asked.extend(wanted)
        return wanted

    def _take(self) -> None:
        """One chunk from the line, into the sandbox."""
        if not self._asked:
            raise ConnectionResetError("the page server has gone")
        index = self._asked[0]
        size = min(CHUNK, self._told.length - index * CHUNK)
        view = memoryview(self._buffer).cast("B")[:size]
        try:
            receive_into(self._line, view)
        except ConnectionResetError:
            raise ConnectionResetError("the page server has gone") from None
        if digest(view) != self._told.chunks[index]:
            raise Corruption(f"pages: chunk {index} does not have the hash it was published with")
        self.bytes_fetched += size  # before anybody can see them
        self._put(index * CHUNK, size)
        self._asked.popleft()
        self._here[index] = True
        self._missing -= 1
        if self._missing == 0:
            self._ended.set()

    def _poison(self) -> None:
        """Who touches what will never come gets SIGBUS, where the kernel can (Linux 6.6); else he waits."""
        for index, here in enumerate(self._here):
            if not here:
                size = min(CHUNK, self._told.length - index * CHUNK)
                request = bytearray(struct.pack("QQQq", self._address + index * CHUNK, size, 0, 0))
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._uffd, _POISON, request)

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
