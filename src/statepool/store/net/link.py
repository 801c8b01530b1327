"""A connection to a daemon that many threads share: whoever waits and finds nobody receiving receives for all."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from typing import Any

from statepool.core.errors import Corruption, StoreFormat
from statepool.store.net.framing import REPLIES, REQUESTS, Reply, Request, Splitter, address, pack


class LinkLost(Exception):
    """The connection broke, or the other side did not answer in time."""


class Link:
    """One connection. Made by connecting; of no use any more once a method raised ``LinkLost``."""

    def __init__(self, url: str, timeout: float) -> None:
        where = address(url)
        self.url = url
        try:
            self._socket = _connected(where, timeout)
        except OSError as error:
            raise LinkLost(f"{url}: {error.strerror or error}") from error
        self._sending, self._turn = threading.Lock(), threading.Condition()
        self._splitter, self._numbers = Splitter(), itertools.count(1)
        self._replies: dict[int, Reply] = {}
        self._receiving = False
        self._lost: str = ""

    def call(self, method: str, arguments: list[Any], until: float) -> Reply:
        """Send a request and wait for its reply, until that time of ``time.monotonic``.

        Raises:
            LinkLost: it came not in time, or the connection broke.
            InvalidRequest: the request is larger than a message may be.
        """
        number = next(self._numbers)
        packed = pack(REQUESTS.encode(Request(number, method, arguments)))
        try:
            with self._sending:
                self._socket.sendall(packed)
        except OSError as error:
            raise self._broken(f"{self.url}: {error.strerror or error}") from error
        return self._wait(number, until)

    def _wait(self, number: int, until: float) -> Reply:
        with self._turn:
            while self._receiving and number not in self._replies and not self._lost:
                if not self._turn.wait(until - time.monotonic()):
                    raise self._broken(f"{self.url}: no answer in time")
            if number in self._replies:
                return self._replies.pop(number)
            if self._lost:
                raise LinkLost(self._lost)
            self._receiving = True
        try:
            return self._receive(number, until)
        finally:
            with self._turn:
                self._receiving = False
                self._turn.notify_all()

    def _receive(self, number: int, until: float) -> Reply:
        while True:
            try:
                self._socket.settimeout(max(until - time.monotonic(), 0.001))
                data = self._socket.recv(1 << 18)
                replies = [REPLIES.decode(body) for body in self._splitter.feed(data)]
            except OSError as error:
                raise self._broken(f"{self.url}: {error.strerror or 'no answer in time'}") from error
            except (Corruption, StoreFormat) as error:
                raise self._broken(f"{self.url}: {error.message}") from error
            if not data:
                raise self._broken(f"{self.url}: the connection was closed")
            with self._turn:
                self._replies.update((reply.number, reply) for reply in replies)
                found = self._replies.pop(number, None)
                if len(replies) > (found is not None):
                    self._turn.notify_all()
            if found is not None:
                return found

    def _broken(self, why: str) -> LinkLost:
        with self._turn:
            self._lost = self._lost or why
            self._turn.notify_all()
        self.close()
        return LinkLost(self._lost)

    @property
    def lost(self) -> bool:
        """Whether it is of no use any more."""
        return bool(self._lost)

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _connected(where: tuple[str, int] | str, timeout: float) -> socket.socket:
    if not isinstance(where, str):
        connection = socket.create_connection(where, timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(where)
    except OSError:
        connection.close()
        raise
    return connection
