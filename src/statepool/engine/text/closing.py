"""How to end a constrained text soon: a search for a short ending that the grammar itself confirms.

Every ending returned here was accepted by the matcher byte by byte, followed by the end token, so
whoever holds one can always finish. Being short is a matter of search effort, being valid is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

MAX_ENDING = 4096
"""Longest ending searched for, in bytes, unless a longer one is known to be needed."""

_END = 256
_BEAM_WIDTH = 32
_SAME_MASK = 4
_LONG_RUN = 5
_WHITE = frozenset(b" \n\r\t")
_NUMERIC = frozenset(b"0123456789+-.eE")
_AFTER_VALUE = frozenset(b",:]}")


@dataclass(frozen=True, slots=True)
class Pieces:
    """Complete values and members (``"key":value``) of a schema, as JSON bytes, to try in this order."""

    values: tuple[bytes, ...] = (b"0", b'""', b"[]", b"{}", b"null", b"true")
    members: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class JsonPosition:
    """Where in a JSON text we are: ``string`` holds what was typed since the opening quote, or None outside."""

    string: bytes | None = None
    escaped: bool = False
    number: bool = False
    """Whether a number is being written."""

    def after(self, data: bytes) -> JsonPosition:
        """The position once ``data`` follows."""
        string, escaped, last = self.string, self.escaped, 0x30 if self.number else 0
        for byte in data:
            if string is None:
                string = b"" if byte == 0x22 else None
                last = byte
            elif escaped:
                string, escaped = string + bytes([byte]), False
            elif byte == 0x22:
                string = None
            else:
                string, escaped = string + bytes([byte]), byte == 0x5C
        return JsonPosition(string, escaped, string is None and last in _NUMERIC)


@lru_cache(maxsize=1)
def byte_backend() -> LLTokenizer:
    """A vocabulary of the 256 bytes and an end token: searches do not depend on the model's vocabulary."""
    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=_END + 1, eos_token=_END)


def fits(matcher: LLMatcher, data: bytes) -> bool:
    """Whether ``data`` may come next in a matcher over ``byte_backend``."""
    return bool(matcher.validate_tokens(list(data)) == len(data))


def ends(matcher: LLMatcher, data: bytes) -> bool:
    """Whether the text may end after ``data``."""
    return bool(matcher.validate_tokens([*data, _END]) == len(data) + 1)


def shortest(
    matcher: LLMatcher, done: Callable[[LLMatcher, frozenset[int]], bool] | None = None, limit: int = MAX_ENDING
) -> bytes | None:
    """A short byte string after which ``done`` holds (default: the grammar accepts), or None.

    A breadth-first search by bytes that keeps few states per layer; exact for grammars whose
    states show in the set of bytes they allow next.
    """

    def reached(state: LLMatcher, allowed: frozenset[int]) -> bool:
        return state.is_accepting() if done is None else done(state, allowed)

    layer: list[tuple[bytes, LLMatcher, frozenset[int]]] = [(b"", matcher, _allowed(matcher))]
    if reached(matcher, layer[0][2]):
        return b""
    for _ in range(limit):
        following: list[tuple[bytes, LLMatcher, frozenset[int]]] = []
        seen: dict[frozenset[int], int] = {}
        for path, state, allowed in layer:
            for byte in _representatives(allowed):
                child = state.deep_copy()
                if not child.consume_token(byte):
                    continue
                onward = _allowed(child)
                if reached(child, onward):
                    return path + bytes([byte])
                count = seen.get(onward, 0)
                if count < _SAME_MASK and len(following) < _BEAM_WIDTH:
                    seen[onward] = count + 1
                    following.append((path + bytes([byte]), child, onward))
        if not following:
            return None
        layer = following
    return None


def json_ending(matcher: LLMatcher, position: JsonPosition, pieces: Pieces, limit: int = MAX_ENDING) -> bytes | None:
    """A short ending of a JSON text from ``position``, or None if none was found.

    Closes what is open, fills in what is required from ``pieces``, and searches by bytes only inside
    strings and numbers that no piece fits. ``matcher`` is over ``byte_backend`` and left as it was.
    """
    state = matcher.deep_copy()
    path = bytearray()
    while len(path) < limit:
        if state.is_accepting():
            return bytes(path)
        step = bytes(state.compute_ff_bytes()) or _step(state, position, pieces)
        if not step or not state.consume_tokens(list(step)):
            return None
        position = position.after(step)
        path += step
    return None


def _step(state: LLMatcher, position: JsonPosition, pieces: Pieces) -> bytes | None:
    allowed = _allowed(state)
    if position.string is not None:
        if 0x22 in allowed:
            return b'"'
        typed = b'"' + position.string
        for piece in (*pieces.members, *pieces.values):
            if piece.startswith(typed) and len(piece) > len(typed) and fits(state, piece[len(typed) :]):
                return piece[len(typed) :]
        return _filler(state) or shortest(state, lambda _, onward: 0x22 in onward)
    allowed -= _WHITE
    for byte in b"}],:":
        if byte in allowed:
            return bytes([byte])
    for piece in () if position.number else (*pieces.members, *pieces.values):
        if piece[0] in allowed and fits(state, piece):
            return piece
    return shortest(state, lambda at, onward: at.is_accepting() or bool(onward & _AFTER_VALUE))


def _filler(state: LLMatcher) -> bytes | None:
    """One letter repeated until the string may end, for strings that only have to be long."""
    most = state.validate_tokens([0x61] * MAX_ENDING)
    if not fits(state, b"a" * most + b'"'):
        return None
    least = 0
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(state, b"a" * middle + b'"') else (middle + 1, most)
    return b"a" * least


def _allowed(matcher: LLMatcher) -> frozenset[int]:
    return _members(matcher.compute_bitmask())


@lru_cache(maxsize=4096)
def _members(mask: bytes) -> frozenset[int]:
    return frozenset(byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1)


class _Bytes:
    """What llguidance asks of a tokenizer, for the vocabulary of bytes."""

    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (_END,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@lru_cache(maxsize=1024)
def _representatives(allowed: frozenset[int]) -> tuple[int, ...]:
    """Bytes to try: the ends of long runs, all of short ones and all digits; printable before others."""
    chosen: list[int] = []
    run: list[int] = []
    for byte in [*sorted(allowed), -2]:
        if run and (byte != run[-1] + 1 or _kind(byte) != _kind(run[-1])):
            chosen += run if len(run) < _LONG_RUN or _kind(run[0]) == 1 else [run[0], run[-1]]
            run = []
        run.append(byte)
    return tuple(sorted(chosen, key=lambda byte: (not 0x21 <= byte < 0x7F, byte)))


def _kind(byte: int) -> int:
    character = chr(byte) if byte >= 0 else ""
    return 1 if character.isdigit() else 2 if "a" <= character <= "z" else 3 if "A" <= character <= "Z" else 4
