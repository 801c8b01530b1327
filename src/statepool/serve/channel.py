"""The channel between whoever starts an engine and its process: both ends, and their keys between two machines.

With keys nobody else can read it or join it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import zmq

__all__ = ["KEYS_VARIABLE", "ChannelKeys", "engine_end", "join", "starters_end"]

KEYS_VARIABLE = "STATEPOOL_CHANNEL_KEYS"
"""Environment variable by which an engine is told its keys."""


@dataclass(frozen=True, slots=True)
class ChannelKeys:
    """Two pairs of Curve25519 keys, as text in Z85.

    A peer needs the gateway's public key to connect at all, and it is told to nobody but the engine.
    """

    gateway_public: bytes
    gateway_secret: bytes
    engine_public: bytes
    engine_secret: bytes

    @classmethod
    def new(cls) -> ChannelKeys:
        """Keys that nobody has had before."""
        return cls(*zmq.curve_keypair(), *zmq.curve_keypair())

    def text(self) -> str:
        """What the engine has to know."""
        return " ".join(key.decode() for key in (self.gateway_public, self.engine_public, self.engine_secret))

    def server_text(self) -> str:
        """What a server that is a process of its own has to know."""
        return " ".join(key.decode() for key in (self.gateway_public, self.gateway_secret))

    @classmethod
    def of_server(cls, text: str) -> ChannelKeys:
        """The keys by which such a server guards its socket, from ``server_text``."""
        public, secret = text.encode().split()
        return cls(public, secret, b"", b"")

    def guard(self, socket: Any) -> None:
        """Let the gateway's ``socket`` accept only peers with the keys."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self.gateway_public, self.gateway_secret


def join(socket: Any) -> None:
    """Give the engine's ``socket`` its keys, if it has been told any."""
    text = os.environ.get(KEYS_VARIABLE)
    if text is not None:
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = text.encode().split()


def starters_end(context: zmq.Context[Any], kind: int, endpoint: str, keys: ChannelKeys | None) -> Any:
    """A socket that waits at ``endpoint``, for a peer with the ``keys`` if there are any. Sending never waits."""
    socket: Any = context.socket(kind)
    for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
        socket.setsockopt(option, 0)
    if keys is not None:
        keys.guard(socket)
    socket.bind(endpoint)
    return socket


def engine_end(context: zmq.Context[Any], kind: int, endpoint: str, most: int = 0) -> Any:
    """The engine's socket to ``endpoint``; ``most`` messages may wait in it, 0 for any number."""
    socket: Any = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 1000)
    for option in (zmq.SNDHWM, zmq.RCVHWM):
        socket.setsockopt(option, most)
    join(socket)
    socket.connect(endpoint)
    return socket
