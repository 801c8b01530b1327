"""Incremental decoding: text as soon as its bytes are complete, and never a byte lost."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable

from statepool.engine.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns a stream of ids into text.

    The concatenation of all returned strings equals ``tokenizer.decode`` of all ids that have text. Bytes that
    may still become a code point are held back (at most three).
    """

    def __init__(self, tokenizer: Tokenizer, show_special: Collection[str] | None = (), at_start: bool = True) -> None:
        """Special tokens have no text, but for those in ``show_special`` (None: all of them have).

        ``at_start=False`` keeps the leading space of sentencepiece models, for text that continues a text.
        """
        self._tokenizer = tokenizer
        shown = show_special
        self._skip = frozenset(
            i for i in tokenizer.special_ids if shown is not None and tokenizer.added[i].content not in shown
        )
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = at_start and tokenizer.drops_first_space

    def push(self, ids: Iterable[int]) -> str:
        """The text that ``ids`` complete; ids beyond the vocabulary have no text."""
        data = b"".join([self._tokenizer.token_bytes(i) for i in ids if i not in self._skip])
        whole = data.isascii() and not self.pending
        return self._first(data.decode() if whole else self._decoder.decode(data))

    def finish(self) -> str:
        """What is held back: U+FFFD for an unfinished code point, else nothing."""
        return self._first(self._decoder.decode(b"", final=True))

    @property
    def pending(self) -> bytes:
        """The bytes held back; a moved request replays its ids instead of carrying them."""
        return self._decoder.getstate()[0]

    def _first(self, text: str) -> str:
        if text and self._drop_space:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
