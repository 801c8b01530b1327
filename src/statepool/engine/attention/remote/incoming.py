"""Whole blocks on their way to an attention worker, taken in while there is nothing else to do.

What a prefill engine computed, a session kept or another request left in the shared pool moves in whole blocks. They
have a connection of their own, from which the worker takes a piece of one layer at a time, and only while no step of a
running request waits (Lamina, 5). Before a step that reads them it takes in what of them is missing, layer by layer as
the step gets there, so that the later layers still arrive while the earlier ones are computed.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import Corruption
from statepool.engine.attention.remote.protocol import Kind, read, send
from statepool.engine.attention.remote.share import Share

__all__ = ["Incoming", "Outgoing"]

_PIECE = 256 << 10
"""Most bytes of a message: what a step may have to wait for."""


class Outgoing:
    """The sender's side: blocks are queued here and leave in a thread of their own.

    Args:
        connection: used for nothing else.
        layers: of a block.
    """

    def __init__(self, connection: socket.socket, layers: int) -> None:
        self.queued = 0
        """Layers queued since the connection was made, one after the other."""
        self._connection = connection
        self._layers = layers
        self._blocks: queue.SimpleQueue[tuple[list[int], npt.NDArray[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()

    def put(self, blocks: Sequence[int], data: npt.NDArray[Any]) -> None:
        """Queue blocks ``[n, *block_shape]``; ``data`` must stay as it is."""
        self.queued += self._layers
        self._blocks.put((list(blocks), data))

    def close(self) -> None:
        """Drop what has not left."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._blocks.put(None)

    def _send(self) -> None:
        while (item := self._blocks.get()) is not None:
            blocks, data = item
            each = max(1, _PIECE // max(data[0, 0].nbytes, 1))
            for layer in range(self._layers):
                for at in range(0, len(blocks), each):
                    some = slice(at, at + each)
                    ids = np.array(blocks[some], np.int32)
                    body = ids.tobytes() + np.ascontiguousarray(data[some, layer]).tobytes()
                    try:
                        last = at + each >= len(blocks)
                        send(self._connection, Kind.BLOCKS, body, int(last), layer, len(ids))
                    except OSError:
                        return  # the other connection tells, or has told


class Incoming:
    """The worker's side.

    Args:
        connection: used for nothing else.
        share: what the blocks become part of.
        overwritten: called with the number of a block before it changes.
    """

    def __init__(self, connection: socket.socket, share: Share, overwritten: Callable[[int], None]) -> None:
        self.connection = connection
        self.taken = 0
        """Layers taken in, of those the sender queued."""
        self._share = share
        self._overwritten = overwritten

    def take(self) -> None:
        """Take in one piece; waits for it if it is not there.

        Raises:
            Corruption: no piece of ours. OSError: the connection broke.
        """
        message = read(self.connection)
        if message is None:
            raise ConnectionResetError("the connection for blocks has closed")
        if message.kind != Kind.BLOCKS:
            raise Corruption(f"a message of kind {message.kind.name} came among blocks")
        count, layout = message.rows, self._share.layout
        blocks = np.frombuffer(message.body, np.int32, count)
        rows = np.frombuffer(message.body, layout.numpy_dtype, offset=4 * count)
        for block in blocks.tolist():
            self._overwritten(block)
        self._share.storage[blocks, message.layer] = rows.reshape(count, *layout.block_shape[1:])
        self.taken += message.lane

    def until(self, count: int) -> None:
        """Take in pieces until ``count`` layers are here."""
        while self.taken < count:
            self.take()
