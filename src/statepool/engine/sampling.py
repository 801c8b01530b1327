"""The arithmetic of choosing one token: counter-based noise and truncated softmax, in NumPy.

These are the twins of the native functions (``statepool.native``): the oracle in tests, and
what runs where there is no native module. Order of operations: logit bias and grammar mask, penalties,
temperature, top-k, top-p, min-p, then the inverse of the cumulative distribution in token-id order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
_MASK = 0xFFFFFFFF


def philox_uniform(seed: int, index: int, position: int) -> float:
    """A uniform number in [0, 1) with 53 random bits: Philox4x32-10 (Salmon et al. 2011).

    Key = the 64-bit seed; counter = (position low, position high, index, 0). A pure function, so a token's
    noise never depends on its batch, worker or history.
    """
    seed, position = seed & 0xFFFFFFFFFFFFFFFF, position & 0xFFFFFFFFFFFFFFFF
    k0, k1 = seed & _MASK, seed >> 32
    c0, c1, c2, c3 = position & _MASK, position >> 32, index & _MASK, 0
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return float(((c1 << 32 | c0) >> 11) * 2.0**-53)


def log_partition(row: F32) -> float:
    """log(sum(exp(row))), stable; ``-inf`` entries count as nothing."""
    top = float(row.max())
    if not np.isfinite(top):
        return top
    return top + float(np.log(np.exp(row.astype(np.float64) - top).sum()))


def top_logprobs(row: F32, k: int) -> tuple[npt.NDArray[np.int32], F32]:
    """Ids and log-probabilities of the ``k`` likeliest tokens, best first, ties by id."""
    k = min(k, row.size)
    best = np.lexsort((np.arange(row.size), -row))[:k].astype(np.int32)
    return best, (row[best] - log_partition(row)).astype(np.float32)


def apply_bitmask(row: F32, mask: npt.NDArray[np.uint32]) -> None:
    """Set to ``-inf``, in place, every token whose bit (little-endian words) is 0 or missing."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    allowed = np.zeros(row.size, bool)
    allowed[: min(bits.size, row.size)] = bits[: row.size]
    row[~allowed] = -np.inf


def apply_penalties(
    row: F32,
    counts: Mapping[int, int],
    seen: npt.NDArray[np.int64],
    presence: float,
    frequency: float,
    repetition: float,
) -> None:
    """Penalise in place. ``counts`` = output tokens; ``seen`` = unique prompt and output tokens."""
    if repetition != 1.0 and seen.size:
        values = row[seen]
        row[seen] = np.where(values > 0, values / np.float32(repetition), values * np.float32(repetition))
    if counts and (presence or frequency):
        ids = np.fromiter(counts.keys(), np.int64, len(counts))
        times = np.fromiter(counts.values(), np.float32, len(counts))
        row[ids] -= np.float32(presence) + np.float32(frequency) * times


def sample(row: F32, temperature: float, top_k: int, top_p: float, min_p: float, u: float) -> tuple[int, float, float]:
    """Choose a token; returns (token, its raw log-probability, its log-probability as sampled).

    ``temperature == 0`` takes the largest logit, the lowest id among equals, with sampled
    log-probability 0.
    """
    partition = log_partition(row)
    if temperature == 0.0:
        token = int(row.argmax())
        return token, float(row[token]) - partition, 0.0
    scaled = row.astype(np.float64) / temperature
    kept = np.isfinite(scaled)
    if 0 < top_k < row.size:
        order = np.lexsort((np.arange(row.size), -scaled))
        kept[order[top_k:]] = False
    weights = np.where(kept, np.exp(scaled - scaled.max()), 0.0)
    if top_p < 1.0:
        order = np.lexsort((np.arange(row.size), -weights))
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= top_p * weights.sum()]] = 0.0
    if min_p > 0.0:
        weights[weights < min_p * weights.max()] = 0.0
    cumulative = np.cumsum(weights)
    token = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    token = min(token, int(np.flatnonzero(weights)[-1]))
    return token, float(row[token]) - partition, float(np.log(weights[token] / cumulative[-1]))
