"""Bytes to tokens for grammars: which tokens spell a byte string, with how few, and what a mask allows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from statepool.core.errors import InvalidCheckpoint
from statepool.engine.text.tokenizer import Tokenizer


class Spelling:
    """The vocabulary as a grammar sees it: byte strings, control tokens apart.

    ``vocab_size`` is the width of the model's logits when they are padded beyond the tokenizer;
    tokens in the padding are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        """Build the tables once per tokenizer.

        Raises:
            InvalidCheckpoint: there is no end token, or ``vocab_size`` is smaller than the tokenizer.
        """
        size = tokenizer.vocab_size if vocab_size is None else vocab_size
        if size < tokenizer.vocab_size:
            raise InvalidCheckpoint(f"vocab_size {size} is smaller than the tokenizer's {tokenizer.vocab_size}")
        if not tokenizer.eos_ids:
            raise InvalidCheckpoint("structured output needs an end token: set eos_token_id in generation_config.json")
        self.vocab_size = size
        self.words = (size + 31) // 32
        """Length of a mask in uint32."""
        self.eos_ids = tuple(i for i in tokenizer.eos_ids if i < tokenizer.vocab_size)
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.ids: dict[bytes, int] = {}
        """Byte string -> the one token that may write it."""
        silent = tokenizer.control_ids | set(self.eos_ids)
        # Sentencepiece vocabularies begin with 256 byte tokens that many pieces repeat: the piece, which comes
        # later, is what a model writes. llguidance 1.9.1 gives wrong masks for repeated tokens, so the others go.
        self.ids.update((data, i) for i, data in enumerate(self.tokens) if data and i not in silent)
        written = set(self.ids.values())
        distinct = [data if i in written or i in silent else b"" for i, data in enumerate(self.tokens)]
        self._beginnings = {data[:end] for data in self.ids for end in range(1, len(data) + 1)}
        self._own_bytes = (tokenizer.vocab_size + 31) // 32 * 4
        self.backend = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer, distinct, self)),
            n_vocab=tokenizer.vocab_size,
            eos_token=list(self.eos_ids),
        )

    def mask(self, matcher: LLMatcher) -> np.ndarray:
        """The tokens the grammar allows next; a fresh uint32 ``[words]``, zero in the padding."""
        mask = np.zeros(self.words, dtype=np.uint32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, self._own_bytes)
        return mask

    def costs(self, data: bytes) -> list[int]:
        """For each start, the fewest tokens that spell ``data[start:]``; ``-1`` where none do. One longer than data."""
        best = [-1] * len(data) + [0]
        for start in range(len(data) - 1, -1, -1):
            for end in self._ends(data, start):
                if best[end] >= 0 and (best[start] < 0 or best[end] + 1 < best[start]):
                    best[start] = best[end] + 1
        return best

    def spell(self, data: bytes) -> list[int] | None:
        """The fewest tokens that spell ``data``, or None."""
        best = self.costs(data)
        if best[0] < 0:
            return None
        tokens, start = [], 0
        while start < len(data):
            end = next(end for end in self._ends(data, start) if best[end] == best[start] - 1)
            tokens.append(self.ids[data[start:end]])
            start = end
        return tokens

    def _ends(self, data: bytes, start: int) -> Iterator[int]:
        """Where tokens that begin at ``start`` end."""
        for end in range(start + 1, len(data) + 1):
            part = data[start:end]
            if part in self.ids:
                yield end
            if part not in self._beginnings:
                return

    def on_path(self, ending: Ending, budget: int) -> list[int]:
        """Every token that begins ``ending`` such that the rest can be spelled with ``budget - 1`` more."""
        costs = ending.costs(self)
        ends = self._ends(ending.data, 0)
        return [self.ids[ending.data[:end]] for end in ends if 0 <= costs[end] <= budget - 1]

    def mask_of(self, tokens: list[int]) -> np.ndarray:
        """A mask that allows exactly ``tokens``; uint32 ``[words]``."""
        mask = np.zeros(self.words, dtype=np.uint32)
        for token in tokens:
            mask[token >> 5] |= np.uint32(1 << (token & 31))
        return mask


class Ending:
    """Bytes that end a text, with the number of tokens they take worked out when asked for."""

    __slots__ = ("_costs", "data")

    def __init__(self, data: bytes, costs: list[int] | None = None) -> None:
        self.data = data
        self._costs = costs

    def costs(self, spelling: Spelling) -> list[int]:
        """``spelling.costs`` of the bytes."""
        if self._costs is None:
            self._costs = spelling.costs(self.data)
        return self._costs

    def tokens(self, spelling: Spelling) -> int:
        """The fewest tokens that spell it."""
        return self.costs(spelling)[0]

    def after(self, count: int) -> Ending:
        """What is left once ``count`` bytes are written."""
        return Ending(self.data[count:], None if self._costs is None else self._costs[count:])


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], spelling: Spelling) -> None:
        self.eos_token_id = spelling.eos_ids[0]
        self.bos_token_id = None
        self.tokens = tokens
        self.special_token_ids = sorted(tokenizer.control_ids | set(spelling.eos_ids))
        self._tokenizer = tokenizer
        self._spelling = spelling

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids that spell exactly ``text``, the tokenizer's own if it adds nothing. Forced text is masked to them."""
        data = text.encode() if isinstance(text, str) else text
        try:
            written = data.decode()
        except UnicodeDecodeError:
            return self._spelling.spell(data) or []
        ids = self._tokenizer.encode(written)
        if not self._spells(ids, data) and self._tokenizer.drops_first_space:
            ids = self._tokenizer.encode_plain(written, after_control=True)
        return ids if self._spells(ids, data) else self._spelling.spell(data) or []

    def _spells(self, ids: list[int], data: bytes) -> bool:
        parts = [self.tokens[i] for i in ids]
        return b"".join(parts) == data and all(parts)
