"""Keeps control tokens typed by users apart from those of the chat template.

Wherever a user's string spells a control token, the spelling is replaced by one private-use
character before the template runs. Templates may then trim, split and join as they like. After
rendering, every control token in the text is the template's own, and the private-use
characters are encoded as the plain text they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from statepool.engine.text.tokenizer import Tokenizer

_PRIVATE_USE = range(0x100000, 0x10FF00)


class Guard:
    """The replacement of one request: control token spellings to private-use characters and back.

    Assistant messages may hold the model's own markup (``<think>``), which templates look for: there only
    special tokens are replaced. A string that ends in the beginning of a control token gets that ending
    replaced as well, so that two strings joined by a template cannot spell one.
    """

    def __init__(self, tokenizer: Tokenizer, source: str, values: Any) -> None:
        """``source`` is the template, ``values`` all user values: their characters are not used as stand-ins."""
        self._all = _spellings(tokenizer, tokenizer.control_ids)
        self._special = _spellings(tokenizer, tokenizer.special_ids)
        self._values = values
        self._source = source
        self._free: Iterator[str] | None = None
        self._stand_in: dict[str, str] = {}
        self.meaning: dict[str, str] = {}
        """Stand-in character -> the text it stands for. Empty when nothing was replaced."""

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """``message`` with its strings guarded according to its role."""
        pattern = self._special if message.get("role") == "assistant" else self._all
        guarded: dict[str, Any] = self._walk(dict(message), pattern)
        return guarded

    def value(self, value: Any) -> Any:
        """Any JSON-like value with its strings guarded."""
        return self._walk(value, self._all)

    def _walk(self, value: Any, pattern: re.Pattern[str] | None) -> Any:
        if pattern is None:
            return value
        if isinstance(value, str):
            return pattern.sub(lambda match: self._replace(match.group()), value)
        if isinstance(value, Mapping):
            return {self._walk(key, pattern): self._walk(item, pattern) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._walk(item, pattern) for item in value]
        return value

    def _replace(self, spelling: str) -> str:
        known = self._stand_in.get(spelling)
        if known is None:
            if self._free is None:
                used = set(self._source).union(*_strings(self._values))
                self._free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
            known = self._stand_in[spelling] = next(self._free)
            self.meaning[known] = spelling
        return known


def encode_guarded(tokenizer: Tokenizer, text: str, guard: Guard) -> list[int]:
    """Ids of a rendered template: control tokens parsed, stand-ins encoded as the text they stand for."""
    if not guard.meaning:
        return tokenizer.encode(text, allow_special=True)
    table = str.maketrans(guard.meaning)
    stand_in = re.compile("[" + re.escape("".join(guard.meaning)) + "]")
    ids: list[int] = []
    trusted_from = 0
    for start, end in _plain_spans(tokenizer, text):
        if stand_in.search(text, start, end):
            ids += tokenizer.encode(text[trusted_from:start], allow_special=True)
            ids += tokenizer.encode_plain(text[start:end].translate(table), after_control=start > 0)
            trusted_from = end
    return ids + tokenizer.encode(text[trusted_from:], allow_special=True)


def _plain_spans(tokenizer: Tokenizer, text: str) -> Iterator[tuple[int, int]]:
    """The stretches between control tokens, where a token also owns the white space it strips."""
    parts = []
    for i in sorted(tokenizer.control_ids, key=lambda i: -len(tokenizer.added[i].content)):
        token = tokenizer.added[i]
        parts.append((r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else ""))
    start = 0
    for match in re.finditer("|".join(parts), text) if parts else ():
        if match.start() > start:
            yield start, match.start()
        start = match.end()
    if start < len(text):
        yield start, len(text)


def _spellings(tokenizer: Tokenizer, ids: frozenset[int]) -> re.Pattern[str] | None:
    return _pattern(frozenset(tokenizer.added[i].content for i in ids if tokenizer.added[i].content))


@lru_cache(maxsize=8)
def _pattern(spellings: frozenset[str]) -> re.Pattern[str] | None:
    """Matches any control token, or at the end of a string the beginning of one."""
    contents = sorted(spellings, key=len, reverse=True)
    if not contents:
        return None
    beginnings = {content[:length] for content in contents for length in range(1, len(content))}
    tails = sorted(beginnings, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, contents), "(?:" + "|".join(map(re.escape, tails)) + r")\Z"]))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
