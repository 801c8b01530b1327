"""Messages between the manager and what runs inside: four bytes of length, a body, file descriptors beside it.

A body is JSON; what is asked of a process without Python (``native/sandbox/init.cpp``) is fields with a zero byte
between them, and what a kernel is told is marshal's, which it reads with few of its pages written. Both ends use the
standard library only, so that the inside needs nothing of the tenant's packages.
"""

from __future__ import annotations

import array
import errno
import json
import marshal
import os
import socket
from collections.abc import Iterable
from typing import Any

__all__ = ["Channel", "Closed", "encode", "pair"]

MOST_BYTES = 64 << 20
"""Longest message; a tenant that announces more is cut off."""
_MOST_FDS = 32
_MARSHAL = 2
"""The version without references, which every Python reads."""
_encoder = json.JSONEncoder(separators=(",", ":"))


def encode(message: dict[str, Any]) -> bytes:
    """A body."""
    return _encoder.encode(message).encode()


class Closed(OSError):
    """The other end has gone, or sent what is no message."""


class Channel:
    """One end of a stream socket. Not for two threads at once in the same direction."""

    __slots__ = ("_cut", "socket")

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def fileno(self) -> int:
        """For ``select``."""
        return self.socket.fileno()

    def send(self, message: dict[str, Any], fds: Iterable[int] = ()) -> None:
        """Send one message with duplicates of ``fds``.

        Raises:
            Closed: the other end has gone.
        """
        self._write(encode(message), fds)

    def order(self, fields: Iterable[str | int], fds: Iterable[int] = ()) -> None:
        """Send fields to a process that runs no Python, with duplicates of ``fds``.

        Raises:
            Closed: the other end has gone.
            ValueError: a field holds a zero byte, or what UTF-8 cannot write.
        """
        texts = [str(field) for field in fields]
        body = "\0".join(texts)
        if body.count("\0") >= len(texts):
            raise ValueError("a field holds a zero byte")
        self._write(body.encode("utf-8", "surrogateescape"), fds)

    def instruct(self, message: dict[str, Any], fds: Iterable[int] = ()) -> None:
        """Tell a kernel something, with duplicates of ``fds``.

        Raises:
            Closed: the other end has gone.
        """
        self._write(marshal.dumps(message, _MARSHAL), fds)

    def _write(self, body: bytes, fds: Iterable[int]) -> None:
        data = len(body).to_bytes(4, "little") + body
        rights = array.array("i", fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        try:
            sent = self.socket.sendmsg([data], ancillary)
            if sent < len(data):
                self.socket.sendall(memoryview(data)[sent:])
        except OSError as error:
            raise Closed(f"the other end has gone: {error.strerror}") from None

    def receive(self, rights: bool = False) -> tuple[dict[str, Any], list[int]]:
        """The next message and its descriptors; without ``rights`` the kernel throws descriptors away. A message whose
        descriptors found no room here says so as its ``error``.

        Raises:
            Closed: the other end has gone, or sent what is no message.
        """
        fds: list[int] = []
        self._cut = False
        try:
            head = self._read(4, fds if rights else None)
            length = int.from_bytes(head, "little")
            if length > MOST_BYTES:
                raise Closed(f"a message of {length} bytes is announced; at most {MOST_BYTES}")
            message = json.loads(self._read(length, fds if rights else None).decode("utf-8", "surrogatepass"))
            if not isinstance(message, dict):
                raise Closed("a message is no object")
            if self._cut:
                message |= {"error": os.strerror(errno.EMFILE), "errno": errno.EMFILE}
                while fds:
                    os.close(fds.pop())
        except (OSError, ValueError, RecursionError) as error:
            for fd in fds:
                os.close(fd)
            raise error if isinstance(error, Closed) else Closed(f"no message: {error}") from None
        return message, fds

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def _read(self, length: int, fds: list[int] | None) -> bytes:
        parts: list[bytes] = []
        while length:
            if fds is None:
                data = self.socket.recv(min(length, 1 << 20))
            else:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    min(length, 1 << 20), socket.CMSG_SPACE(4 * _MOST_FDS), socket.MSG_CMSG_CLOEXEC
                )
                for level, kind, block in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        found = array.array("i")
                        found.frombytes(block[: len(block) - len(block) % found.itemsize])
                        fds.extend(found)
                self._cut |= bool(flags & socket.MSG_CTRUNC)
            if not data:
                raise Closed("the other end has gone")
            parts.append(data)
            length -= len(data)
        return b"".join(parts)


def pair() -> tuple[Channel, Channel]:
    """Two connected ends."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(one), Channel(other)
