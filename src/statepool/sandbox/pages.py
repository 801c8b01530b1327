"""The page server: datasets as chunks named by their hash, for sandboxes elsewhere. Equal chunks are held once."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from statepool.core.errors import Corruption, NotFound
from statepool.core.sockets import receive, send
from statepool.core.wire import Codec

if TYPE_CHECKING:
    from statepool.sandbox.memory import Dataset

__all__ = ["CHUNK", "Ask", "Hello", "PageServer", "Told", "digest", "tuned"]

CHUNK = 256 << 10
"""Bytes fetched at once: 64 pages, past which a fault costs no less per page."""
_MOST_MESSAGE = 1 << 20
_BUFFER = 1 << 20


def digest(data: bytes | memoryview) -> bytes:
    """Name of a chunk: SHA-256, for which processors have instructions (1.5 GB/s here; BLAKE2b 0.8)."""
    return hashlib.sha256(data).digest()


def tuned(line: socket.socket) -> socket.socket:
    """A connection on which short requests do not wait for each other, and chunks fit."""
    if line.family != socket.AF_UNIX:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        line.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    return line


class Hello(msgspec.Struct, tag=True):
    """The first message of a client: which dataset."""

    name: str


class Ask(msgspec.Struct, tag=True):
    """So many chunks from this one on, please; their bytes follow as they are."""

    index: int
    count: int = 1


class Told(msgspec.Struct):
    """About a dataset: its arrays, its length, the hash of each chunk."""

    length: int
    parts: list[list[Any]]
    chunks: list[bytes]
    error: str = ""


class PageServer:
    """Holds datasets and serves their chunks on a listening socket, one thread per client."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._chunks: dict[bytes, tuple[bytes, int]] = {}
        self._sets: dict[str, Told] = {}
        self._codec = Codec[Hello | Ask](Hello | Ask)
        threading.Thread(target=self._accept, name="page server", daemon=True).start()

    def publish(self, name: str, dataset: Dataset) -> int:
        """Take a dataset in under a name; answers how many bytes were new."""
        hashes, new = [], 0
        with self._lock:
            for offset in range(0, dataset.length, CHUNK):
                data = dataset.read(offset, min(CHUNK, dataset.length - offset))
                name_of = digest(data)
                held, count = self._chunks.get(name_of, (data, 0))
                new += len(data) if count == 0 else 0
                self._chunks[name_of] = (held, count + 1)
                hashes.append(name_of)
            self._sets[name] = Told(dataset.length, [part.plain() for part in dataset.parts], hashes)
        return new

    def forget(self, name: str) -> None:
        """Drop a dataset; a chunk goes with the last dataset that holds it.

        Raises:
            NotFound: there is none of this name.
        """
        with self._lock:
            told = self._sets.pop(name, None)
            if told is None:
                raise NotFound(f"dataset: there is no {name!r}", param="name")
            for chunk in told.chunks:
                data, count = self._chunks[chunk]
                if count == 1:
                    del self._chunks[chunk]
                else:
                    self._chunks[chunk] = (data, count - 1)

    @property
    def held_bytes(self) -> int:
        """Bytes of all chunks."""
        with self._lock:
            return sum(len(data) for data, _ in self._chunks.values())

    def close(self) -> None:
        """Serve no more."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(tuned(client),), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, Corruption):
            hello = self._receive(client)
            with self._lock:
                told = self._sets.get(hello.name) if isinstance(hello, Hello) else None
            answer = told or Told(0, [], [], error="name: this page server has no such dataset")
            send(client, Codec[Told](Told).encode(answer))
            while told is not None:
                ask = self._receive(client)
                if not isinstance(ask, Ask) or not 0 <= ask.index < ask.index + ask.count <= len(told.chunks):
                    return
                for chunk in told.chunks[ask.index : ask.index + ask.count]:
                    with self._lock:
                        found = self._chunks.get(chunk)
                    if found is None:
                        return  # the dataset was forgotten meanwhile
                    client.sendall(found[0])

    def _receive(self, client: socket.socket) -> Hello | Ask:
        message = receive(client, _MOST_MESSAGE)
        if message is None:
            raise ConnectionResetError("the client has gone")
        return self._codec.decode(message)
