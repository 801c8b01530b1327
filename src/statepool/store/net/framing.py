"""Messages of the store between processes: a header of 8 bytes, then msgpack; sizes are checked first."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from statepool.core import errors
from statepool.core.errors import Corruption, InvalidRequest, StatepoolError, StoreError, StoreFormat
from statepool.core.wire import Codec

VERSION = 1
LIMIT = 64 << 20
"""Bytes of one message at most."""

_HEADER = struct.Struct("<2sHI")  # magic, version, length of what follows
_MAGIC = b"SP"


class Request(msgspec.Struct, array_like=True):
    """A call; ``number`` comes back with its reply, so that many can be under way."""

    number: int
    method: str
    arguments: list[Any]


class Reply(msgspec.Struct, array_like=True):
    """What a call gave: a result, or the class and the message of an error."""

    number: int
    result: Any = None
    error: tuple[str, str] | None = None


REQUESTS: Codec[Request] = Codec(Request)
REPLIES: Codec[Reply] = Codec(Reply)


def pack(body: bytes) -> bytes:
    """A message with its header.

    Raises:
        InvalidRequest: it is larger than the other side accepts.
    """
    if len(body) > LIMIT:
        raise InvalidRequest(f"message: {len(body)} bytes, the limit is {LIMIT}; send it in parts")
    return _HEADER.pack(_MAGIC, VERSION, len(body)) + body


class Splitter:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now.

        Raises:
            Corruption: this is no message, or it announces more than the limit.
            StoreFormat: the other side speaks another version.
        """
        self._held += data
        at = 0
        while len(self._held) - at >= _HEADER.size:
            magic, version, length = _HEADER.unpack_from(self._held, at)
            if magic != _MAGIC or length > LIMIT:
                raise Corruption("message: not one of a statepool store, or larger than the limit")
            if version != VERSION:
                raise StoreFormat(f"message: version {version}, this program speaks {VERSION}")
            end = at + _HEADER.size + length
            if end > len(self._held):
                break
            yield bytes(memoryview(self._held)[at + _HEADER.size : end])
            at = end
        if at:
            del self._held[:at]


def described(error: StatepoolError) -> tuple[str, str]:
    """An error as it travels."""
    return type(error).__name__, error.message


def raised(error: tuple[str, str]) -> StatepoolError:
    """The error that was described, as the class that the other side raised."""
    kind = getattr(errors, error[0], StoreError)
    if isinstance(kind, type) and issubclass(kind, StatepoolError):
        return kind(error[1])
    return StoreError(error[1])


def address(url: str) -> tuple[str, int] | str:
    """Host and port of ``tcp://host:port``, or the path of ``unix:///path``.

    Raises:
        InvalidRequest: it is neither.
    """
    kind, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    if kind == "unix" and rest.startswith("/"):
        return rest
    if kind == "tcp" and host and port.isdigit() and int(port) < 65536:
        return host.strip("[]"), int(port)
    raise InvalidRequest(f"address: '{url}' is neither tcp://host:port nor unix:///path", param="address")
