"""Bytes of blocks and their XXH3-64: summed, copied or received, with the sum of what is in the receiver's memory.

The native kernels sum in the pass that moves the bytes; their twins here do one after the other, in pieces that stay in
the cache, and serve blocks of up to 240 bytes everywhere.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from statepool.core.sockets import receive_into
from statepool.native import kernels

__all__ = ["Row", "as_bytes", "checksum", "copy_checked", "receive_checked"]

Row = npt.NDArray[Any]
"""The bytes of one block, wherever they lie: contiguous, of ``block_bytes``."""

_PIECE = 256 << 10
_SHORT = 240
"""XXH3 is another function up to here, which no block of a model comes down to."""


def as_bytes(row: Row) -> memoryview:
    """What a row holds."""
    return memoryview(_flat(row).data)


def checksum(row: Row) -> int:
    """XXH3-64 of a block."""
    return int(xxhash.xxh3_64_intdigest(as_bytes(row)))


def copy_checked(target: Row, source: Row) -> int:
    """Copy a block; the checksum of what arrived."""
    into, from_ = _flat(target), _flat(source)
    if kernels is not None and into.size > _SHORT:
        return int(kernels.copy_checked(from_, into))
    digest = xxhash.xxh3_64()
    for at in range(0, into.size, _PIECE):
        np.copyto(into[at : at + _PIECE], from_[at : at + _PIECE])
        digest.update(into[at : at + _PIECE].data)
    return int(digest.intdigest())


def receive_checked(connection: socket.socket, rows: Sequence[Row]) -> list[int]:
    """Receive blocks; their checksums.

    Raises:
        OSError: the connection broke, or nothing came in time.
    """
    timeout = connection.gettimeout()
    if kernels is None or timeout is None or any(row.nbytes <= _SHORT for row in rows):
        return [_receive(connection, row) for row in rows]
    sums, status = kernels.receive_checked(connection.fileno(), [_flat(row) for row in rows], timeout)
    if status < 0:
        raise ConnectionResetError("the other side closed in the middle of a message")
    if status:
        raise OSError(status, os.strerror(status))
    return list(sums)


def _receive(connection: socket.socket, row: Row) -> int:
    into, digest = as_bytes(row), xxhash.xxh3_64()
    for at in range(0, len(into), _PIECE):
        piece = into[at : at + _PIECE]
        receive_into(connection, piece)
        digest.update(piece)
    return int(digest.intdigest())


def _flat(row: Row) -> npt.NDArray[np.uint8]:
    return row.reshape(-1).view(np.uint8)
