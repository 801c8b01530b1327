"""One shard: an index in a process of its own, asked over a socket. ``python -m statepool.vector.shard INDEX WHERE``.

WHERE is the number of an open socket, or an address of this machine at which the process listens; it prints the port.

A message is its length in eight bytes and a ``Question`` or a ``Reply`` as ``core.wire`` writes them. The process ends
when whoever started it is gone.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.core.wire import Codec

from .answer import Stats
from .opening import open  # noqa: A004 - the name users know from files

__all__ = [
    "KEY_VARIABLE",
    "Found",
    "Question",
    "Reply",
    "connect",
    "main",
    "questions",
    "read_message",
    "replies",
    "write_message",
]

KEY_VARIABLE = "STATEPOOL_SHARD_KEY"
"""Environment variable with what whoever connects has to send first."""

_LENGTH = struct.Struct("<Q")
_CONNECT_SECONDS = 60.0
_KEY_SECONDS = 5.0


@dataclass(slots=True)
class Question:
    """Queries that are asked at once."""

    number: int
    queries: Any
    """float32 ``[m, dim]``."""
    k: int
    ef: int | None
    exact: bool
    filter: Any = None


@dataclass(slots=True)
class Found:
    """What one query found."""

    ids: Any
    """int64 ``[<= k]``, or a list of texts."""
    distances: Any
    truncated: bool
    stats: Stats


@dataclass(slots=True)
class Reply:
    """To the question of that number; number 0 comes unasked when the index is open."""

    number: int
    rows: int
    dim: int
    found: list[Found] = field(default_factory=list)
    error: str = ""
    """What is wrong with the question, or with the index."""
    damaged: bool = False
    """It is the index."""


questions: Codec[Question] = Codec(Question)
replies: Codec[Reply] = Codec(Reply)


def write_message(line: socket.socket, body: bytes) -> None:
    """Send one message.

    Raises:
        OSError: the other side is gone.
    """
    line.sendall(_LENGTH.pack(len(body)) + body)


def read_message(line: socket.socket) -> bytes:
    """The next message.

    Raises:
        ConnectionError: the other side is gone.
        TimeoutError: none came in the time the socket has.
    """
    (length,) = _LENGTH.unpack(_exactly(line, _LENGTH.size))
    return _exactly(line, length)


def _exactly(line: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = line.recv(min(count - len(data), 1 << 20))
        if not part:
            raise ConnectionError("the other side is gone")
        data += part
    return bytes(data)


def connect(address: str, key: str, seconds: float) -> socket.socket:
    """A line to the process that listens at ``host:port``.

    Raises:
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    line = socket.create_connection((host, int(port)), seconds)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.sendall(key.encode())
    return line


def _accept(host: str, key: bytes) -> socket.socket:
    """The first who knows the key; nobody after that.

    Raises:
        TimeoutError: nobody came.
    """
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        sys.stdout.write(f"{host}:{server.getsockname()[1]}\n")
        sys.stdout.flush()
        server.settimeout(_CONNECT_SECONDS)
        while True:
            line, _ = server.accept()
            try:
                line.settimeout(_KEY_SECONDS)
                if hmac.compare_digest(_exactly(line, len(key)), key):
                    line.settimeout(None)
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return line
            except OSError:
                pass
            line.close()


def main(arguments: list[str]) -> int:
    """Serve one index until the other side is gone; 1 if it could not be opened, or nobody asked for it."""
    path, where = arguments
    try:
        given = where.isdigit()
        found = socket.socket(fileno=int(where)) if given else _accept(where, os.environ[KEY_VARIABLE].encode())
    except TimeoutError:
        return 1
    with found as line:
        try:
            index = open(Path(path))
        except (StatepoolError, OSError) as error:
            write_message(line, replies.encode(Reply(0, 0, 0, error=str(error), damaged=True)))
            return 1
        dim = index.settings.dim
        write_message(line, replies.encode(Reply(0, len(index), dim)))
        while True:
            try:
                question = questions.decode(read_message(line))
            except ConnectionError:
                return 0
            reply = Reply(question.number, len(index), dim)
            try:
                reply.found = [_answer(index, query, question) for query in question.queries]
            except InvalidRequest as error:
                reply.error = error.message
            except StatepoolError as error:
                reply.error, reply.damaged = error.message, True
            write_message(line, replies.encode(reply))


def _answer(index: Any, query: np.ndarray, question: Question) -> Found:
    if question.exact:
        found = index.exact(query, question.k, filter=question.filter)
    else:
        found = index.search(query, question.k, question.ef, filter=question.filter)
    ids = found.ids.tolist() if found.ids.dtype == object else found.ids
    return Found(ids, found.distances, found.truncated, found.stats)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
