"""One pool node as a client sees it: questions over a socket, blocks through memory where that can be reached."""

from __future__ import annotations

import logging
import mmap
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from statepool.core import sockets
from statepool.core.errors import Corruption, InvalidConfig
from statepool.core.sockets import receive, send, wait_answer
from statepool.kv.pool import protocol
from statepool.kv.pool.checksum import Row, as_bytes, checksum, copy_checked, receive_checked
from statepool.kv.pool.mooncake import Mover, shared
from statepool.kv.pool.protocol import reply_codec, request_codec

__all__ = ["BATCH", "NodeLink", "Row"]

log = logging.getLogger("statepool.pool")

BATCH = 256
"""Blocks of one question."""

_REST_SECONDS = 0.5
_STAGING = 32 << 20
"""Bytes of memory that blocks pass through on their way by Mooncake."""
R = TypeVar("R")


class NodeLink:
    """A connection to one node, made when it is needed and again after it broke.

    Args:
        address: of the node.
        block_bytes: size of this client's blocks; None for one that only asks for figures.
        timeout: seconds without any progress after which the node counts as gone.

    Raises:
        InvalidConfig: not an address.
    """

    def __init__(self, address: str, block_bytes: int | None = None, timeout: float = 0.5) -> None:
        sockets.check_address(address)
        self.address = address
        self._size = block_bytes or 0
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._memory: _Mapped | _Moved | None = None
        """The node's slots, where this process can reach them itself."""
        self._lease_s = 0.0
        self._ahead = _Ahead(0, (), 0.0)
        self._resting_until = 0.0

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading blocks the node has."""
        reply = self._ask(protocol.Match(list(keys)), protocol.Count)
        return min(reply.count, len(keys))

    def load(self, keys: Sequence[bytes], rows: Sequence[Row]) -> tuple[int, int, bool]:
        """Copy leading blocks to ``rows``: (how many are right, how many were wrong and stopped it, are they hot)."""
        self._connected()
        if self._memory is None:
            return self._load_sent(keys, rows)
        lease = self._ask(protocol.Get(list(keys)), protocol.Granted)
        good = 0
        try:
            for block, told, row in zip(self._memory.read(lease.slots), lease.checksums, rows, strict=False):
                if copy_checked(row, block) != told:
                    break
                good += 1
        finally:
            if lease.slots:
                self._tell(protocol.Release(lease.lease))
        return good, self._report(keys, lease.checksums, good), lease.hot

    def save(self, keys: Sequence[bytes], rows: Sequence[Row]) -> int:
        """Give the node the blocks it does not have; how many those were."""
        self._connected()
        if self._memory is None:
            sums = [checksum(row) for row in rows]
            return self._ask(protocol.Write(list(keys), sums), protocol.Count, rows).count
        ahead = self._ahead
        if len(keys) <= len(ahead.slots) and time.monotonic() < ahead.until:
            sums = self._memory.write(ahead.slots[: len(keys)], rows)
            count = self._place(protocol.Put(ahead.lease, list(keys), sums))
            if count >= 0:
                return count
        lease = self._ask(protocol.Begin(list(keys)), protocol.Granted)
        if not lease.slots:
            return 0
        sums = self._memory.write(lease.slots, [rows[index] for index in lease.indices])
        return self._place(protocol.Finish(lease.lease, sums))

    def stats(self) -> protocol.Stored:
        """Figures of the node."""
        return self._ask(protocol.Stats(), protocol.Stored)

    @property
    def resting(self) -> bool:
        """Whether the node failed so recently that nobody should wait for it again."""
        return self._resting_until > time.monotonic()

    def rest(self) -> None:
        """Leave the node alone for a moment: it does not answer, or wrongly."""
        self._resting_until = time.monotonic() + _REST_SECONDS
        self.close()

    def close(self) -> None:
        """End the connection, and with it every lease."""
        if self._socket is not None:
            self._socket.close()
        if self._memory is not None:
            self._memory.close()
        self._socket = self._memory = None
        self._ahead = _Ahead(0, (), 0.0)

    # -- small parts -------------------------------------------------------------------------------

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = sockets.connect(self.address, self._timeout)
            try:
                self._meet()
            except BaseException:  # one that was never greeted is no connection
                self.close()
                raise
        return self._socket

    def _meet(self) -> None:
        """Greet the node, and find its memory."""
        welcome = self._ask(protocol.Hello(self._size), protocol.Welcome)
        self._lease_s = welcome.lease_s
        if self._size and self.address.startswith("unix:"):
            self._memory = self._attach(welcome)
        elif self._size and welcome.transfer:
            self._memory = self._reach(welcome)

    def _attach(self, welcome: protocol.Welcome) -> _Mapped | None:
        """The node's memory in this process; None where it cannot be reached."""
        try:
            descriptor = os.open(f"/proc/{welcome.pid}/fd/{welcome.descriptor}", os.O_RDWR)
        except OSError as error:
            log.warning("blocks of %s travel through its socket: its memory cannot be opened: %s", self.address, error)
            return None
        try:
            return _Mapped(mmap.mmap(descriptor, welcome.slots * welcome.slot_bytes), welcome.slot_bytes, self._size)
        finally:
            os.close(descriptor)

    def _reach(self, welcome: protocol.Welcome) -> _Moved | None:
        """The node's memory through Mooncake; None where this side cannot."""
        assert self._socket is not None
        try:
            mover = shared(self._socket.getsockname()[0], welcome.transfer)
            return _Moved(mover, welcome, self._size)
        except InvalidConfig as error:
            log.warning("blocks of %s travel through its socket: %s", self.address, error.message)
            return None

    def _load_sent(self, keys: Sequence[bytes], rows: Sequence[Row]) -> tuple[int, int, bool]:
        sent = self._ask(protocol.Read(list(keys)), protocol.Blocks)
        if len(sent.checksums) > len(rows):
            raise Corruption(f"pool node {self.address} sends {len(sent.checksums)} blocks, asked for {len(rows)}")
        sums = receive_checked(self._connected(), rows[: len(sent.checksums)])
        good = next((i for i, told in enumerate(sent.checksums) if sums[i] != told), len(sums))
        return good, self._report(keys, sent.checksums, good), sent.hot

    def _place(self, written: protocol.Finish | protocol.Put) -> int:
        """Tell the node what is written: how many blocks it did not have, -1 if the slots are no longer ours."""
        asked = time.monotonic()
        placed = self._ask(written, protocol.Placed)
        # Whoever has slept must not write to slots that are somebody else's: half of the lease is left for writing.
        self._ahead = _Ahead(placed.lease, placed.slots, asked + self._lease_s / 2)
        return placed.count

    def _report(self, keys: Sequence[bytes], checksums: Sequence[int], good: int) -> int:
        if good == len(checksums):
            return 0
        self._ask(protocol.Drop([keys[good]], [checksums[good]]), protocol.Count)
        return 1

    def _ask(self, request: protocol.Request, kind: type[R], blocks: Sequence[Row] = ()) -> R:
        """Send a question and wait for its answer.

        Raises:
            InvalidConfig: the node refuses this client. OSError, Corruption: it is gone, slow or mad.
        """
        connection = self._tell(request, blocks)
        wait_answer(connection, self._timeout)
        body = receive(connection)
        if body is None:
            raise ConnectionResetError(f"the pool node {self.address} has closed")
        reply = reply_codec.decode(body)
        if isinstance(reply, protocol.Refused):
            raise InvalidConfig(f"pool node {self.address}: {reply.message}", param="pool")
        if not isinstance(reply, kind):
            raise Corruption(f"pool node {self.address} answered {type(reply).__name__}")
        return reply

    def _tell(self, request: protocol.Request, blocks: Sequence[Row] = ()) -> socket.socket:
        connection = self._connected()
        send(connection, request_codec.encode(request), [as_bytes(block) for block in blocks])
        return connection


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Slots to write blocks to before the node is told which, until a moment of this side's clock."""

    lease: int
    slots: Sequence[int]
    until: float


class _Mapped:
    """A node's slots in this process, as memory of the same machine."""

    def __init__(self, memory: mmap.mmap, stride: int, size: int) -> None:
        self._memory, self._stride, self._size = memory, stride, size

    def read(self, slots: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Each block, where it lies."""
        return (np.frombuffer(self._memory, np.uint8, self._size, slot * self._stride) for slot in slots)

    def write(self, slots: Sequence[int], rows: Sequence[Row]) -> list[int]:
        """Fill slots; the checksums of what they hold then."""
        return [copy_checked(into, row) for into, row in zip(self.read(slots), rows, strict=True)]

    def close(self) -> None:
        """The mapping ends with the last view of it."""


class _Moved:
    """A node's slots through Mooncake, by way of registered memory of this side."""

    def __init__(self, mover: Mover, welcome: protocol.Welcome, size: int) -> None:
        self._mover, self._node, self._size = mover, welcome, size
        self._staging = np.empty((max(1, min(BATCH, _STAGING // size)), size), np.uint8)
        self._at = int(self._staging.ctypes.data)
        mover.register(self._at, self._staging.nbytes)

    def read(self, slots: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Each block, until the next few are read."""
        for some, mine, theirs in self._pieces(slots):
            self._mover.read(self._node.session, mine, theirs, self._size)
            yield from self._staging[: len(some)]

    def write(self, slots: Sequence[int], rows: Sequence[Row]) -> list[int]:
        """Fill slots; the checksums of what they hold then."""
        sums: list[int] = []
        for some, mine, theirs in self._pieces(slots):
            sums += [copy_checked(self._staging[i], rows[len(sums) + i]) for i in range(len(some))]
            self._mover.write(self._node.session, mine, theirs, self._size)
        return sums

    def close(self) -> None:
        """Give the memory back."""
        self._mover.release(self._at)

    def _pieces(self, slots: Sequence[int]) -> Iterator[tuple[Sequence[int], list[int], list[int]]]:
        for at in range(0, len(slots), len(self._staging)):
            some = slots[at : at + len(self._staging)]
            mine = [self._at + i * self._size for i in range(len(some))]
            yield some, mine, [self._node.base + slot * self._node.slot_bytes for slot in some]
