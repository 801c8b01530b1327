"""Token counts and log-probabilities in OpenAI's words."""

from __future__ import annotations

from typing import Any

from statepool.engine.request import TokenLogprob, Usage
from statepool.engine.text.tokenizer import Tokenizer
from statepool.serve.turn import total

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot hold."""


def finite(logprob: float) -> float:
    """``logprob``, or ``LOWEST_LOGPROB`` if it is below that."""
    return max(logprob, LOWEST_LOGPROB)


def logprob_entry(entry: TokenLogprob, tokenizer: Tokenizer) -> dict[str, Any]:
    """One item of ``logprobs.content``."""
    top = [_candidate(token, logprob, tokenizer) for token, logprob in entry.top]
    return {**_candidate(entry.token, entry.logprob, tokenizer), "top_logprobs": top}


def _candidate(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    text = data.decode("utf-8", "replace") if data else f"token_id:{token}"
    return {"token": text, "logprob": finite(logprob), "bytes": list(data)}


def usage_body(usages: list[Usage], prompt_tokens: int) -> dict[str, Any]:
    """``usage`` of a call whose sequences have the prompt in common, which is counted once.

    ``cached_tokens`` is of the first sequence: its siblings find in the cache what the first computed.
    """
    spent = total(usages)
    return usage_counts(prompt_tokens, spent, usages[0].cached_tokens if usages else 0)


def usage_counts(prompt_tokens: int, spent: Usage, cached_tokens: int) -> dict[str, Any]:
    """``usage`` from counts; of ``spent`` only what was generated is read."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": prompt_tokens + spent.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": spent.accepted_tokens,
            "rejected_prediction_tokens": spent.draft_tokens - spent.accepted_tokens,
            "reasoning_tokens": 0,
        },
    }
