"""The words between a model worker and its attention workers, and how they travel.

A message is a header of 16 bytes and a body. In the middle of a step bodies are bare arrays: rows of queries, of keys
and values, of results; everything else is msgpack. Addresses are those of the pool, ``unix:/path`` or ``tcp://host:port``.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from statepool.core import sockets
from statepool.core.errors import Corruption
from statepool.core.wire import Codec

__all__ = [
    "HEADER",
    "Entry",
    "Figures",
    "Follow",
    "Held",
    "Hello",
    "Joined",
    "Kind",
    "Message",
    "Plan",
    "Publish",
    "Read",
    "Refused",
    "Rows",
    "Stats",
    "read",
    "ready",
    "reply_codec",
    "request_codec",
    "send",
    "wait",
]

HEADER = struct.Struct("<BBHIQ")
"""Kind, lane, layer, rows, bytes of the body."""
_LONGEST = 1 << 33


class Kind(IntEnum):
    """What a body is."""

    WORDS = 0
    QUERY = 1
    KEYS = 2
    OUT = 3
    BLOCKS = 4


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A full block that a later request may find: its number, its key, its tokens."""

    block: int
    key: bytes
    tokens: list[int]


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First words of a model worker. A worker that holds blocks of another ``identity`` or shape forgets them, and with
    ``fresh`` all of them.

    Answered by Held.
    """

    identity: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: Literal["bf16", "fp32"]
    blocks: int
    fresh: bool = False


class Plan(msgspec.Struct, frozen=True, tag=True):
    """The arrays of one step for one lane, before its rows come; see ``engine.batch.Batch``. Not answered.

    ``after`` is how many layers of incoming blocks have to be there for the last layer of this step (see ``incoming``).
    ``slots`` are where the rows of keys and values go. ``parts`` int32 ``[n][2]`` names what to compute apart:
    (request, segment of 1024 tokens); empty means all of every request.
    """

    lane: int
    tables: Any
    query_start: Any
    context_len: Any
    slots: Any
    parts: Any
    after: int = 0


class Publish(msgspec.Struct, frozen=True, tag=True):
    """Blocks that have become full, as the next model worker may want to know them. Not answered."""

    entries: list[Entry]


class Read(msgspec.Struct, frozen=True, tag=True):
    """Send whole blocks, once ``after`` layers of incoming ones are there. Answered by Rows."""

    blocks: list[int]
    after: int


class Follow(msgspec.Struct, frozen=True, tag=True):
    """First words on the connection for incoming blocks, made behind the other one. Answered by Joined."""


class Stats(msgspec.Struct, frozen=True, tag=True):
    """First words of somebody who only asks. Answered by Figures."""


class Held(msgspec.Struct, frozen=True, tag=True):
    """What is still here, of an earlier model worker with the same identity."""

    entries: list[Entry]


class Rows(msgspec.Struct, frozen=True, tag=True):
    """Blocks ``[n, *block_shape]``."""

    data: Any


class Joined(msgspec.Struct, frozen=True, tag=True):
    """Blocks may come."""


class Figures(msgspec.Struct, frozen=True, tag=True):
    """What a worker has done so far."""

    blocks: int
    """Block numbers it has memory for."""
    found: int
    """Full ones that the next model worker would find."""
    answers: int
    """Layers of steps it has attended for."""
    in_gaps: int
    """Pieces of blocks taken in while no step was waiting."""
    in_steps: int
    """Pieces that a step had to wait for."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It is not done, and why."""

    message: str


Request = Hello | Plan | Publish | Read | Follow | Stats
Reply = Held | Rows | Joined | Figures | Refused

request_codec: Codec[Request] = Codec(Request)
reply_codec: Codec[Reply] = Codec(Reply)


class Message(NamedTuple):
    """What arrived."""

    kind: Kind
    lane: int
    layer: int
    rows: int
    body: bytearray

    def array(self, dtype: Any, *shape: int) -> npt.NDArray[Any]:
        """The body as an array ``[rows, *shape]``.

        Raises:
            Corruption: it has another size.
        """
        flat = np.frombuffer(self.body, dtype)
        if flat.size != self.rows * int(np.prod(shape)):
            raise Corruption(f"{len(self.body)} bytes came for {self.rows} rows of {shape} {np.dtype(dtype).name}")
        return flat.reshape(self.rows, *shape)


def send(
    connection: socket.socket, kind: Kind, body: Any, lane: int = 0, layer: int = 0, rows: int = 0, stall: Any = None
) -> int:
    """Send one message; how many bytes it was.

    ``stall`` is called when a non-blocking connection takes no more for the moment, and returns when it may.

    Raises:
        OSError: the connection broke.
    """
    data = memoryview(body.reshape(-1).view(np.uint8).data if isinstance(body, np.ndarray) else body).cast("B")
    head = HEADER.pack(kind, lane, layer, rows, data.nbytes)
    sockets.send_parts(connection, [memoryview(head), data], stall)
    return len(head) + data.nbytes


def read(connection: socket.socket, patience: float | None = None) -> Message | None:
    """The next message; None if the other side has closed.

    Raises:
        Corruption: no message of ours. TimeoutError: nothing came for ``patience`` seconds. OSError: it broke.
    """
    head = bytearray(HEADER.size)
    if not sockets.fill(connection, memoryview(head), at_start=True, stall=lambda: wait(connection, patience)):
        return None
    kind, lane, layer, rows, size = HEADER.unpack(head)
    if size > _LONGEST or kind not in Kind.__members__.values():
        raise Corruption(f"a message of kind {kind} with {size} bytes is none of an attention worker's")
    body = bytearray(size)
    sockets.fill(connection, memoryview(body), stall=lambda: wait(connection, patience))
    return Message(Kind(kind), lane, layer, rows, body)


def ready(connection: socket.socket) -> bool:
    """Whether something can be read now."""
    return bool(_poll(connection, select.POLLIN).poll(0))


def wait(connection: socket.socket, patience: float | None, *, write: bool = False) -> bool:
    """Wait until something can be read (or, with ``write``, written as well); whether something can be read.

    Raises:
        TimeoutError: neither was possible for ``patience`` seconds.
    """
    poll = _poll(connection, select.POLLIN | (select.POLLOUT if write else 0))
    deadline = None if patience is None else time.monotonic() + patience
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
        found = poll.poll(left)
        if found:
            return bool(found[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR))
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"nothing moved for {patience:g} s")


def _poll(connection: socket.socket, events: int) -> select.poll:
    if connection.fileno() < 0:
        raise ConnectionResetError("the connection was closed meanwhile")
    poll = select.poll()
    poll.register(connection, events)
    return poll
