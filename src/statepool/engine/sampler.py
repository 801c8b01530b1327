"""Turns a row of logits into a token, for one sequence. Depends on nothing outside the sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from statepool.engine import sampling
from statepool.engine.request import SamplingParams, TokenLogprob
from statepool.native import kernels

F32 = npt.NDArray[np.float32]
_ops: Any = kernels or sampling


class Sampled(msgspec.Struct, frozen=True, gc=False):
    """A chosen token, with its raw model log-probability and that of the distribution sampled from."""

    token: int
    logprob: float
    sampled_logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Sampling state of one sequence.

    Args:
        params: what the request asked for.
        seed: 64-bit seed; with ``index`` the key of all noise.
        index: number of this sibling among ``n``.
        eos: tokens forbidden before ``min_tokens``.
        vocab: ids at and above it are padding of the model's head and never chosen.
    """

    def __init__(self, params: SamplingParams, seed: int, index: int, eos: Sequence[int], vocab: int) -> None:
        self.params = params
        self.seed = seed & 0xFFFFFFFFFFFFFFFF
        self.index = index
        self._vocab = vocab
        self._stops = np.array(sorted({*eos, *params.stop_token_ids}), np.int64)
        self._bias = (
            np.array(list(params.logit_bias), np.int64),
            np.array(list(params.logit_bias.values()), np.float32),
        )
        self._counts: Counter[int] = Counter()
        self._seen: set[int] = set()
        self._penal = bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0)

    def begin(self, prompt: Sequence[int]) -> None:
        """Tell the sampler the prompt, which repetition_penalty counts."""
        if self._penal:
            self._seen = set(prompt)

    def accept(self, token: int) -> None:
        """Count a token that became part of the output."""
        if self._penal:
            self._counts[token] += 1
            self._seen.add(token)

    def sample(self, logits: F32, position: int, generated: int, mask: npt.NDArray[np.uint32] | None) -> Sampled:
        """Choose the token at ``position`` of the sequence; ``logits`` is not changed.

        Args:
            logits: float32 ``[vocab]`` of the model for this position.
            position: absolute index of the token in the sequence: the noise counter.
            generated: output tokens so far (``min_tokens``).
            mask: grammar bitmask, or None.
        """
        p = self.params
        top = _best(logits, p.logprobs or 0)
        u = 0.0 if p.temperature == 0.0 else _ops.philox_uniform(self.seed, self.index, position)
        early = generated < p.min_tokens and self._stops.size > 0
        padded = self._vocab < logits.size
        if not (self._penal or p.logit_bias or early or padded or mask is not None):
            token, raw, drawn = _ops.sample(logits, p.temperature, p.top_k, p.top_p, p.min_p, u)
            return Sampled(token, raw, drawn, top)
        row = logits.copy()
        if padded:
            row[self._vocab :] = -np.inf
        if p.logit_bias:
            row[self._bias[0]] += self._bias[1]
        if mask is not None:
            _ops.apply_bitmask(row, mask)
        if early and (mask is None or not _only(mask, self._stops)):
            row[self._stops] = -np.inf
        if self._penal:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            sampling.apply_penalties(
                row, self._counts, seen, p.presence_penalty, p.frequency_penalty, p.repetition_penalty
            )
        token, _, drawn = _ops.sample(row, p.temperature, p.top_k, p.top_p, p.min_p, u)
        return Sampled(token, _ops.logprob_of(logits, token), drawn, top)


def token_logprob(row: F32, token: int, k: int) -> TokenLogprob:
    """Log-probability of a given token and of the ``k`` best (for prompts and scoring)."""
    return TokenLogprob(token, _ops.logprob_of(row, token), _best(row, k))


def _best(row: F32, k: int) -> tuple[tuple[int, float], ...]:
    if k == 0:
        return ()
    ids, values = _ops.top_logprobs(row, k)
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def _only(mask: npt.NDArray[np.uint32], ids: npt.NDArray[np.int64]) -> bool:
    # A finished grammar allows nothing but the end: min_tokens cannot be kept then.
    rest = mask.copy()
    for token in ids.tolist():
        if token // 32 < rest.size:
            rest[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
    return not rest.any()
