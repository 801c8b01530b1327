"""An attention worker: it owns KV blocks and runs the attention over them for whoever has the rest of the model.

It outlives the model worker: a new one with the same model finds the full blocks of its predecessor. Only one model
worker is served at a time, the newest; ``start`` it, then ``close`` it.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from statepool.core.errors import Corruption, InvalidConfig
from statepool.core.sockets import address_of, listen, tune
from statepool.engine.attention.remote.incoming import Incoming
from statepool.engine.attention.remote.protocol import (
    Entry,
    Figures,
    Follow,
    Held,
    Hello,
    Joined,
    Kind,
    Message,
    Plan,
    Publish,
    Read,
    Refused,
    Reply,
    Request,
    Rows,
    Stats,
    read,
    reply_codec,
    request_codec,
    send,
)
from statepool.engine.attention.remote.share import Share
from statepool.kv.layout import KVLayout
from statepool.native import kernels, reason

__all__ = ["AttentionNode"]

log = logging.getLogger("statepool.attention")


class AttentionNode:
    """The blocks of one attention worker and the thread that serves its model worker.

    Args:
        address: to listen at.

    Raises:
        InvalidConfig: there are no native kernels, or the address cannot be listened on.
    """

    def __init__(self, address: str) -> None:
        if kernels is None:
            raise InvalidConfig(f"attention workers need the native kernels: {reason}", param="attention_workers")
        self.address = address
        self._hello: Hello | None = None
        self._share: Share | None = None
        self._entries: dict[int, Entry] = {}
        self._stored: set[int] = set()
        self._incoming: Incoming | None = None
        self._answers = self._in_gaps = self._in_steps = 0
        self._lock = threading.Lock()
        self._serving: socket.socket | None = None
        self._stopping = False
        self._listener = listen(address)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def reachable(self) -> str:
        """The address with the port that was given to it, where the one asked for was 0."""
        return address_of(self._listener, self.address)

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving; the blocks are gone."""
        self._stopping = True
        for connection in (self._listener, self._serving):
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._share = None
        self._thread.join(5)
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)

    def hold(self, layout: KVLayout, blocks: int) -> Share:
        """The share of a model worker that is new here."""
        return Share(kernels, layout, blocks)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            tune(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Whoever connects says first what it is: a model worker, its second connection, or somebody who asks."""
        try:
            message = read(connection)
            match None if message is None else self._words(message):
                case Hello() as hello:
                    self._take_over(connection, hello)
                case Follow():
                    self._incoming = Incoming(connection, self._ready(), self._overwritten)
                    self._tell(connection, Joined())
                    return  # read by whoever serves the model worker
                case Stats():
                    self._tell(connection, self.figures())
                case None:
                    pass
                case other:
                    raise Corruption(f"{type(other).__name__} came before a Hello")
        except (OSError, Corruption, ValueError, IndexError) as error:
            if not self._stopping:
                log.info("a model worker left: %s", error)
            with suppress(OSError):
                self._tell(connection, Refused(str(error)))
        connection.close()

    def _take_over(self, connection: socket.socket, hello: Hello) -> None:
        previous, self._serving = self._serving, connection
        if previous is not None:
            with suppress(OSError):
                previous.shutdown(socket.SHUT_RDWR)  # one that was replaced must not write any more
        with self._lock:
            self._stored.clear()
            try:
                self._tell(connection, self._meet(hello))
                while self._serving is connection and (message := self._next(connection)) is not None:
                    self._take(connection, message)
            finally:
                incoming, self._incoming = self._incoming, None
                if incoming is not None:
                    incoming.connection.close()

    def _next(self, connection: socket.socket) -> Message | None:
        """The next message of the model worker; in the gaps between two, pieces of incoming blocks."""
        while (incoming := self._incoming) is not None:
            poll = select.poll()
            for each in (connection, incoming.connection):
                poll.register(each, select.POLLIN)
            if any(number == connection.fileno() for number, _ in poll.poll()):
                break
            incoming.take()
            self._in_gaps += 1
        return read(connection)

    def _take(self, connection: socket.socket, message: Message) -> None:
        if message.kind == Kind.WORDS:
            reply = self._obey(self._words(message))
            if reply is not None:
                self._tell(connection, reply)
            return
        share, lane, layer = self._ready(), message.lane, message.layer
        # Of the last blocks that came before this step, the layers up to this one.
        self._until(share.after(lane) - (share.layout.layers - 1 - layer))
        if message.kind == Kind.QUERY:
            width = share.layout.head_dim
            heads = len(message.body) // max(message.rows * width * 4, 1)
            if share.begin(lane, layer, message.array("<f4", heads, width)) and lane not in self._stored:
                return  # its keys and values are still to come
        else:
            for block in share.append(lane, layer, message.array(share.layout.numpy_dtype, *share.row_shape)):
                self._overwritten(int(block))
            if not share.waits(lane):
                self._stored.add(lane)
                return  # its queries are still to come
        self._stored.discard(lane)
        send(connection, Kind.OUT, share.end(lane), lane, layer, message.rows)
        self._answers += 1

    def _obey(self, request: Request) -> Reply | None:
        match request:
            case Plan():
                self._ready().plan(request)
                return None
            case Publish(entries=entries):
                self._entries |= {entry.block: entry for entry in entries}
                return None
            case Read(blocks=blocks, after=after):
                self._until(after)
                return Rows(self._ready().storage[blocks])
        raise Corruption(f"{type(request).__name__} came in the middle of the work")

    def _meet(self, hello: Hello) -> Reply:
        known = msgspec.structs.replace(hello, fresh=False)
        if hello.fresh:
            self._entries.clear()
        if known != self._hello:
            layout = KVLayout(hello.layers, hello.kv_heads, hello.head_dim, hello.dtype)
            self._entries.clear()
            self._share, self._hello = self.hold(layout, hello.blocks), known
        return Held(list(self._entries.values()))

    def figures(self) -> Figures:
        """What it did so far."""
        blocks = 0 if self._share is None else len(self._share.storage)
        return Figures(blocks, len(self._entries), self._answers, self._in_gaps, self._in_steps)

    def _until(self, count: int) -> None:
        while self._incoming is not None and self._incoming.taken < count:
            self._incoming.take()
            self._in_steps += 1

    def _overwritten(self, block: int) -> None:
        self._entries.pop(block, None)

    @staticmethod
    def _words(message: Message) -> Request:
        return request_codec.decode(memoryview(message.body))

    @staticmethod
    def _tell(connection: socket.socket, reply: Reply) -> None:
        send(connection, Kind.WORDS, reply_codec.encode(reply))

    def _ready(self) -> Share:
        if self._share is None:
            raise Corruption("a model worker must say hello first")
        return self._share
