"""The words between a pool node and its clients: msgpack bodies of messages (``core.sockets``).

The bytes of blocks follow ``Write`` and ``Blocks`` as they are, one after the other.
"""

from __future__ import annotations

import msgspec

from statepool.core.wire import Codec

__all__ = [
    "Begin",
    "Blocks",
    "Count",
    "Drop",
    "Finish",
    "Get",
    "Granted",
    "Hello",
    "Match",
    "Placed",
    "Put",
    "Read",
    "Refused",
    "Release",
    "Stats",
    "Stored",
    "Welcome",
    "Write",
    "reply_codec",
    "request_codec",
]


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First message: the size of the client's blocks in bytes; 0 for one that moves none."""

    block_bytes: int


class Match(msgspec.Struct, frozen=True, tag=True):
    """How many leading blocks are here? Answered by Count."""

    keys: list[bytes]


class Get(msgspec.Struct, frozen=True, tag=True):
    """Hold leading blocks in memory that this client can reach itself. Answered by Granted."""

    keys: list[bytes]


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Slots to write blocks to, in memory that this client can reach itself. Answered by Granted."""

    keys: list[bytes]


class Finish(msgspec.Struct, frozen=True, tag=True):
    """What was begun is written. Answered by Placed."""

    lease: int
    checksums: list[int]


class Put(msgspec.Struct, frozen=True, tag=True):
    """Blocks that are written already, to the first slots that this client was given ahead. Answered by Placed."""

    lease: int
    keys: list[bytes]
    checksums: list[int]


class Release(msgspec.Struct, frozen=True, tag=True):
    """Nothing of a lease is needed any more. Not answered: nobody waits for it."""

    lease: int


class Read(msgspec.Struct, frozen=True, tag=True):
    """Send leading blocks. Answered by Blocks."""

    keys: list[bytes]


class Write(msgspec.Struct, frozen=True, tag=True):
    """Blocks, which follow. Answered by Count."""

    keys: list[bytes]
    checksums: list[int]


class Drop(msgspec.Struct, frozen=True, tag=True):
    """These blocks were not what their checksums say. Answered by Count."""

    keys: list[bytes]
    checksums: list[int]


class Stats(msgspec.Struct, frozen=True, tag=True):
    """What does the node hold? Answered by Stored."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Answer to Hello: the node, and where its memory is for a process of the same machine; with ``transfer``, also
    where for Mooncake's transfer engine.
    """

    node: str
    pid: int
    descriptor: int
    slots: int
    slot_bytes: int
    transfer: str = ""
    session: str = ""
    base: int = 0
    lease_s: float = 0.0


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The node does not do this; the connection ends."""

    message: str


class Count(msgspec.Struct, frozen=True, tag=True):
    """A number of blocks."""

    count: int


class Placed(msgspec.Struct, frozen=True, tag=True):
    """So many blocks are readable that were not; -1 if the lease had ended. And slots for the next ``Put``, if any."""

    count: int
    lease: int
    slots: list[int]


class Granted(msgspec.Struct, frozen=True, tag=True):
    """A lease: of ``keys`` of the question those at ``indices``, each in its slot.

    ``hot``: they are read so often that the reader should give them to one more node.
    """

    lease: int
    indices: list[int]
    slots: list[int]
    checksums: list[int]
    hot: bool = False


class Blocks(msgspec.Struct, frozen=True, tag=True):
    """Leading blocks, which follow, each of ``block_bytes``; ``hot`` as in ``Granted``."""

    checksums: list[int]
    hot: bool = False


class Stored(msgspec.Struct, frozen=True, tag=True):
    """Figures of a node."""

    blocks: int
    slots: int
    slot_bytes: int
    on_disk: int
    evicted: int
    expired: int
    dropped: int
    disk_bad: int
    hits: int
    misses: int
    held: int


Request = Hello | Match | Get | Begin | Finish | Put | Release | Read | Write | Drop | Stats
Reply = Welcome | Refused | Count | Placed | Granted | Blocks | Stored

request_codec: Codec[Request] = Codec(Request)
reply_codec: Codec[Reply] = Codec(Reply)
