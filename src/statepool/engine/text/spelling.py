"""Bytes to tokens for grammars: which tokens spell a byte string, with how few, and what a mask allows."""

from __future__ import annotations

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
        """Byte string -> its smallest token id."""
        silent = tokenizer.control_ids | set(self.eos_ids)
        for i, data in enumerate(self.tokens):
            if data and i not in silent:
                self.ids.setdefault(data, i)
        self._longest = max(map(len, self.ids), default=0)
        self.single = {data[0]: i for data, i in self.ids.items() if len(data) == 1}
        """Byte -> the token that is this byte alone."""
        self._bits = [(byte, i >> 3, 1 << (i & 7)) for byte, i in sorted(self.single.items())]
        self._sets: dict[bytes, frozenset[int]] = {}
        self.backend = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer, self.tokens, sorted(silent), self.eos_ids[0])),
            n_vocab=size,
            eos_token=list(self.eos_ids),
        )

    def allowed_bytes(self, matcher: LLMatcher) -> frozenset[int]:
        """The bytes that may come next, as far as single-byte tokens exist for them."""
        mask = matcher.compute_bitmask()
        found = self._sets.get(mask)
        if found is None:
            found = frozenset(byte for byte, index, bit in self._bits if mask[index] & bit)
            if len(self._sets) > 4096:
                self._sets.clear()
            self._sets[mask] = found
        return found

    def bytewise(self, data: bytes) -> list[int]:
        """Some spelling of ``data``: single bytes where they exist, else the shortest. Empty if there is none."""
        try:
            return [self.single[byte] for byte in data]
        except KeyError:
            return self.spell(data) or []

    def fits(self, matcher: LLMatcher, data: bytes) -> bool:
        """Whether ``data`` may come next."""
        tokens = self.bytewise(data)
        return bool(tokens) and matcher.validate_tokens(tokens) == len(tokens)

    def ends(self, matcher: LLMatcher, data: bytes) -> bool:
        """Whether the text may end after ``data``."""
        tokens = self.bytewise(data)
        if len(tokens) < bool(data):
            return False
        return bool(matcher.validate_tokens([*tokens, self.eos_ids[0]]) == len(tokens) + 1)

    def costs(self, data: bytes) -> list[int]:
        """For each start, the fewest tokens that spell ``data[start:]``; ``-1`` where none do. One longer than data."""
        best = [-1] * len(data) + [0]
        for start in range(len(data) - 1, -1, -1):
            for end in range(start + 1, min(len(data), start + self._longest) + 1):
                if best[end] >= 0 and (best[start] < 0 or best[end] + 1 < best[start]) and data[start:end] in self.ids:
                    best[start] = best[end] + 1
        return best

    def spell(self, data: bytes) -> list[int] | None:
        """The fewest tokens that spell ``data``, or None."""
        best = self.costs(data)
        if best[0] < 0:
            return None
        tokens, start = [], 0
        while start < len(data):
            for end in range(min(len(data), start + self._longest), start, -1):
                if best[end] == best[start] - 1 and data[start:end] in self.ids:
                    tokens.append(self.ids[data[start:end]])
                    start = end
                    break
        return tokens

    def on_path(self, data: bytes, budget: int) -> list[int]:
        """Every token that begins ``data`` such that the rest can be spelled with ``budget - 1`` more."""
        best = self.costs(data)
        ends = range(1, min(len(data), self._longest) + 1)
        return [self.ids[data[:end]] for end in ends if data[:end] in self.ids and 0 <= best[end] <= budget - 1]

    def mask_of(self, tokens: list[int]) -> np.ndarray:
        """A mask that allows exactly ``tokens``; uint32 ``[words]``."""
        mask = np.zeros(self.words, dtype=np.uint32)
        for token in tokens:
            mask[token >> 5] |= np.uint32(1 << (token & 31))
        return mask


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special: list[int], eos: int) -> None:
        self.eos_token_id = eos
        self.bos_token_id = None
        self.tokens = tokens
        self.special_token_ids = special
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", errors="replace"))
