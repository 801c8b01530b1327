"""Framing of the messages between processes: msgpack, typed by the receiver, with arrays as raw bytes."""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from statepool.core.errors import Corruption

T = TypeVar("T")

_ARRAY = 1
"""Extension code of an array: a msgpack header ``[dtype, shape]``, then the bytes in C order."""


class Codec(Generic[T]):
    """Writes and reads one type of message, usually a union of tagged structs.

    Dataclasses, tuples and ``numpy`` arrays are carried; an array inside a field of type ``Any``
    comes back as an array with its dtype and shape.
    """

    def __init__(self, kind: Any) -> None:
        """``kind`` is the type, or the union of types, this codec reads."""
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
        self._decoder = msgspec.msgpack.Decoder(kind, ext_hook=_decode_extension)

    def encode(self, message: T) -> bytes:
        """The message as bytes."""
        return self._encoder.encode(message)

    def decode(self, data: bytes | memoryview) -> T:
        """The message in ``data``.

        Raises:
            Corruption: ``data`` is not a message of this type.
        """
        try:
            message: T = self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Corruption(f"a message could not be read: {error}") from error
        return message


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"{type(value).__name__} cannot be sent between processes")
    array = np.ascontiguousarray(value)
    header = msgspec.msgpack.encode((array.dtype.str, value.shape))
    return msgspec.msgpack.Ext(_ARRAY, len(header).to_bytes(4, "little") + header + array.tobytes())


def _decode_extension(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise Corruption(f"a message holds an unknown extension {code}")
    length = int.from_bytes(data[:4], "little")
    try:
        dtype, shape = msgspec.msgpack.decode(data[4 : 4 + length], type=tuple[str, tuple[int, ...]])
        if re.fullmatch(r"[<>|=]?[biufcSUV]\d{1,4}", dtype) is None:
            raise Corruption(f"a message holds an array of {dtype!r}, which is no type of numbers")
        return np.frombuffer(data[4 + length :], dtype=np.dtype(dtype)).reshape(shape)
    except (msgspec.DecodeError, TypeError, ValueError, OverflowError) as error:
        raise Corruption(f"a message holds a damaged array: {error}") from error
