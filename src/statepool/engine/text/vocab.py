"""From a vocabulary entry to the bytes it stands for.

Two families cover the models served here: byte-level BPE (each character of a token stands for
one byte) and sentencepiece style (``▁`` is a space, ``<0xNN>`` is one byte). Knowing a token's bytes
makes decoding a concatenation, which is what streams, logprobs and grammars need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from statepool.core.errors import InvalidCheckpoint

Family = Literal["byte_level", "sentencepiece"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def byte_alphabet() -> dict[str, int]:
    """The byte-level alphabet: character -> byte. Printable Latin-1 stands for itself, the rest starts at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in table]
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_ALPHABET = byte_alphabet()


def _decoders(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [inner for item in decoder["decoders"] for inner in _decoders(item)]
    return [decoder]


def family(decoder: Mapping[str, Any] | None) -> tuple[Family, bool]:
    """Which family a tokenizer's ``decoder`` section belongs to, and whether decoding drops one leading space.

    Raises:
        InvalidCheckpoint: the decoder is of another kind, or missing.
    """
    steps = _decoders(decoder)
    names = {str(step["type"]) for step in steps}
    if "ByteLevel" in names:
        return "byte_level", False
    if names & {"Metaspace", "ByteFallback"} and names <= {"Metaspace", "ByteFallback", "Replace", "Fuse", "Strip"}:
        return "sentencepiece", any(_drops_space(step) for step in steps)
    found = ", ".join(sorted(names)) or "none"
    raise InvalidCheckpoint(
        f"tokenizer.json: decoder {found} is not supported; use a byte-level or sentencepiece tokenizer"
    )


def _drops_space(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Strip":
        return bool(step.get("content") == " " and step.get("start", 0))
    return bool(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")


def token_to_bytes(token: str, kind: Family) -> bytes:
    """The bytes of one entry of the model's own vocabulary (not of an added token, which is literal text)."""
    if kind == "byte_level":
        try:
            return bytes(_ALPHABET[char] for char in token)
        except KeyError:
            return token.encode()
    match = _BYTE_TOKEN.match(token)
    if match:
        return bytes([int(match.group(1), 16)])
    return token.replace("\u2581", " ").encode()
