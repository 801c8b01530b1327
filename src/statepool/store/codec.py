"""How Python values become bytes. The store itself knows bytes only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from statepool.core.errors import InvalidRequest

CodecName = Literal["bytes", "str", "msgpack", "json"]


@dataclass(frozen=True, slots=True)
class Codec:
    """A pair of inverse functions between values and bytes."""

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _plain(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise InvalidRequest(f"expected bytes, got {type(value).__name__}; encode it or name a codec (str, msgpack, json)")


_CODECS = {
    "bytes": Codec("bytes", _plain, bytes),
    "str": Codec("str", str.encode, bytes.decode),
    "msgpack": Codec("msgpack", msgspec.msgpack.Encoder(order="deterministic").encode, msgspec.msgpack.decode),
    "json": Codec("json", msgspec.json.Encoder(order="deterministic").encode, msgspec.json.decode),
}


def codec(name: str) -> Codec:
    """The codec by that name.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in _CODECS:
        raise InvalidRequest(f"codec: '{name}' is none of {', '.join(_CODECS)}", param="codec")
    return _CODECS[name]
