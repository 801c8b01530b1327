"""The model worker's end of the connection to one attention worker."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy.typing as npt

from statepool.core.errors import Corruption, InvalidConfig, KVLost
from statepool.core.sockets import connect
from statepool.engine.attention.remote import protocol
from statepool.engine.attention.remote.incoming import Outgoing
from statepool.engine.attention.remote.protocol import Entry, Hello, Kind, Message, Reply, reply_codec, request_codec

__all__ = ["Link", "Traffic", "figures"]

R = TypeVar("R")
log = logging.getLogger("statepool.attention")

_AGAIN_SECONDS = 0.05
_SHARED_WAIT = 0.001
"""How long a thread sleeps before it looks whether another one has read its message."""


class Traffic:
    """Bytes over one link since it was made, headers included; blocks that move whole are not among them."""

    __slots__ = ("keys", "out", "plans", "query")

    def __init__(self) -> None:
        self.plans = self.query = self.keys = self.out = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.plans + self.query + self.keys + self.out


class Link:
    """One attention worker. Threads may share it, each with lanes of its own.

    Sending never waits for the worker to read while the worker waits for this side to: what it has to say meanwhile is
    read and kept.

    Args:
        address: ``unix:/path`` or ``tcp://host:port``.
        hello: what this model worker is.
        patience: seconds without any progress after which the worker counts as lost.
    """

    def __init__(self, address: str, hello: Hello, patience: float) -> None:
        self.address = address
        self.traffic = Traffic()
        self._hello = hello
        self._patience = patience
        self._socket: socket.socket | None = None
        self._peer: int | None = None
        self._outgoing: Outgoing | None = None
        self._lock = threading.Lock()
        self._outs: dict[tuple[int, int], Message] = {}
        self._words: list[Message] = []

    def open(self, within: float, restart: Callable[[], None] | None = None) -> list[Entry]:
        """Connect, trying for ``within`` seconds; the blocks of an earlier model worker that are still there.

        ``restart`` is called before each attempt.

        Raises:
            KVLost: nobody answers there. InvalidConfig: whoever answers is no attention worker, or cannot be one.
        """
        deadline = time.monotonic() + within
        while True:
            if restart is not None:
                restart()
            try:
                self._socket = connect(self.address, self._patience)
                self._peer = _process_behind(self._socket)
                self._socket.setblocking(False)
                held = self.ask(self._hello, protocol.Held).entries
                self._outgoing = self._follow()
                self.tell(protocol.Publish([]))  # it notices the second connection with the first words after that
                return held
            except (OSError, KVLost) as error:
                self.close()
                if time.monotonic() > deadline:
                    raise KVLost(f"no attention worker answers at {self.address}: {error}") from None
                time.sleep(_AGAIN_SECONDS)

    def close(self) -> None:
        """End the connection; the worker keeps its blocks."""
        if self._socket is not None:
            self._socket.close()
        if self._outgoing is not None:
            self._outgoing.close()
        self._socket = self._outgoing = None
        self._outs.clear()
        self._words.clear()

    def tell(self, request: protocol.Request) -> None:
        """Send words that have no answer."""
        self.traffic.plans += self._send(Kind.WORDS, request_codec.encode(request))

    def plan(self, plan: protocol.Plan) -> None:
        """Send the arrays of a step, which waits for all blocks that were written before."""
        after = 0 if self._outgoing is None else self._outgoing.queued
        self.tell(msgspec.structs.replace(plan, after=after))

    def ask(self, request: protocol.Request, kind: type[R]) -> R:
        """Send words and wait for their answer.

        Raises:
            KVLost: the worker is gone. InvalidConfig: it refuses.
        """
        self._send(Kind.WORDS, request_codec.encode(request))
        with self._guard():
            while not self._words:
                self._next()
            reply: Reply = reply_codec.decode(memoryview(self._words.pop(0).body))
        if isinstance(reply, protocol.Refused):
            raise InvalidConfig(f"attention worker {self.address}: {reply.message}", param="attention_workers")
        if not isinstance(reply, kind):
            raise KVLost(f"attention worker {self.address} answered {type(reply).__name__}")
        return reply

    def query(self, lane: int, layer: int, rows: npt.NDArray[Any]) -> None:
        """Send rows of queries, contiguous."""
        self.traffic.query += self._send(Kind.QUERY, rows, lane, layer, len(rows))

    def keys(self, lane: int, layer: int, rows: npt.NDArray[Any]) -> None:
        """Send rows of keys and values, contiguous."""
        self.traffic.keys += self._send(Kind.KEYS, rows, lane, layer, len(rows))

    def out(self, lane: int, layer: int) -> Message:
        """The result for a lane's queries of this layer.

        Raises:
            KVLost: the worker is gone.
        """
        until = time.monotonic() + self._patience
        while True:
            with self._guard():
                found = self._outs.pop((lane, layer), None)
                if found is None and protocol.ready(self._connection()):
                    self._next()
                    found = self._outs.pop((lane, layer), None)
            if found is not None:
                self.traffic.out += protocol.HEADER.size + len(found.body)
                return found
            if time.monotonic() > until:
                self._end_peer()
                raise KVLost(f"attention worker {self.address}: nothing came for {self._patience:g} s")
            with contextlib.suppress(TimeoutError), self._guard(locked=False):
                protocol.wait(self._connection(), _SHARED_WAIT)

    def write(self, blocks: Sequence[int], data: npt.NDArray[Any]) -> None:
        """Overwrite whole blocks of its share; they are there for whatever is sent after this."""
        with self._guard():
            self._connection()
            assert self._outgoing is not None
            self._outgoing.put(blocks, data)

    def read(self, blocks: Sequence[int]) -> npt.NDArray[Any]:
        """Whole blocks of its share."""
        after = 0 if self._outgoing is None else self._outgoing.queued
        data: npt.NDArray[Any] = self.ask(protocol.Read(list(blocks), after), protocol.Rows).data
        return data

    # -- small parts -------------------------------------------------------------------------------

    def _follow(self) -> Outgoing:
        """The second connection, for blocks."""
        connection = connect(self.address, self._patience)
        protocol.send(connection, Kind.WORDS, request_codec.encode(protocol.Follow()))
        message = protocol.read(connection)
        if message is None or not isinstance(reply_codec.decode(memoryview(message.body)), protocol.Joined):
            connection.close()
            raise ConnectionResetError("it takes no blocks")
        connection.settimeout(None)
        return Outgoing(connection, self._hello.layers)

    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError("it is not connected")
        return self._socket

    def _send(self, kind: Kind, body: Any, lane: int = 0, layer: int = 0, rows: int = 0) -> int:
        with self._guard():
            connection = self._connection()

            def stall() -> None:
                if protocol.wait(connection, self._patience, write=True):
                    self._next()

            return protocol.send(connection, kind, body, lane, layer, rows, stall)

    def _next(self) -> None:
        """Read one message and keep it for whoever waits for it."""
        message = protocol.read(self._connection(), self._patience)
        if message is None:
            said = [reply_codec.decode(memoryview(each.body)) for each in self._words]
            why = [reply.message for reply in said if isinstance(reply, protocol.Refused)]
            raise ConnectionResetError("; ".join(why) or "it has closed the connection")
        if message.kind == Kind.OUT:
            self._outs[message.lane, message.layer] = message
        else:
            self._words.append(message)

    @contextlib.contextmanager
    def _guard(self, *, locked: bool = True) -> Any:
        """Whatever goes wrong with the connection means that the worker's KV is lost to this model worker."""
        try:
            with self._lock if locked else contextlib.nullcontext():
                yield
        except (OSError, Corruption) as error:
            if isinstance(error, TimeoutError) and not locked:
                raise
            if isinstance(error, TimeoutError):
                self._end_peer()
            self.close()
            raise KVLost(f"attention worker {self.address} is lost: {error}") from error

    def _end_peer(self) -> None:
        """End a worker of this machine that stands still, so that whoever watches over it starts it again."""
        if self._peer is not None and self._peer != os.getpid():
            log.warning("attention worker %s does not move; process %d is ended", self.address, self._peer)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._peer, signal.SIGKILL)


def figures(address: str, patience: float = 1.0) -> protocol.Figures:
    """What the worker at ``address`` has done so far.

    Raises:
        InvalidConfig: not an address. OSError, Corruption: nobody answers there, or no attention worker.
    """
    connection = connect(address, patience)
    try:
        protocol.send(connection, Kind.WORDS, request_codec.encode(protocol.Stats()))
        message = protocol.read(connection)
        reply = None if message is None else reply_codec.decode(memoryview(message.body))
    finally:
        connection.close()
    if not isinstance(reply, protocol.Figures):
        raise Corruption(f"whoever listens at {address} is no attention worker")
    return reply


def _process_behind(connection: socket.socket) -> int | None:
    """The process at the other end of a local socket, where the system tells."""
    if connection.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    size = struct.calcsize("3i")
    process: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return process
