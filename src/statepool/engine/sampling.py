"""The arithmetic of choosing one token: counter-based noise and truncated softmax, in NumPy.

These are the twins of the native functions (``statepool.native``), equal to the bit: the oracle in tests, and
what runs where there is no native module. Sums that decide are integers: a token weighs
floor(2**42 * exp((logit - max) / temperature)), so neither the order of work nor the machine can change a choice.
Order of operations: logit bias and grammar mask, penalties, temperature, top-k, top-p, min-p, then the inverse of
the cumulative distribution in token-id order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
_MASK = 0xFFFFFFFF
WEIGHT_BITS = 42
"""The likeliest token weighs 2**42, so that 2**20 tokens still add up below 2**63."""


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


def logprob_of(row: F32, token: int) -> float:
    """Log-probability of one token, rounded to float32 once."""
    return float(np.float32((float(row[token]) - float(row.max())) - math.log(_exp_sum(row))))


def top_logprobs(row: F32, k: int) -> tuple[npt.NDArray[np.int32], F32]:
    """Ids and log-probabilities of the ``k`` likeliest tokens, best first, equals by id; none that is ``-inf``."""
    best = _falling(row)[:k].astype(np.int32)
    best = best[row[best] > -np.inf]
    top, log_sum = float(row.max()), math.log(_exp_sum(row))
    return best, np.array([(float(row[i]) - top) - log_sum for i in best], np.float32)


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

    Raises:
        ValueError: every token is masked, or a logit is infinite.
    """
    if not np.isfinite(row.max()):
        raise ValueError("row: no token is left to choose, or a logit is infinite")
    if temperature == 0.0:
        token = int(row.argmax())
        return token, logprob_of(row, token), 0.0
    scaled = (row - row.max()) * np.float32(min(1.0 / temperature, 1e30))
    weights = (_exp(scaled).astype(np.float64) * 2.0**WEIGHT_BITS).astype(np.uint64)
    order = _falling(row)
    if 0 < top_k < row.size:
        weights[order[top_k:]] = 0
    if top_p < 1.0:
        total = int(weights.sum())
        need = min(max(math.ceil(top_p * float(total)), 1), total)
        mass = np.cumsum(weights[order])
        weights[order[int(np.searchsorted(mass, np.uint64(need))) + 1 :]] = 0
    weights[weights < np.uint64(math.ceil(min_p * 2.0**WEIGHT_BITS))] = 0
    cumulative = np.cumsum(weights)
    total = int(cumulative[-1])
    target = int(u * 2.0**53) * total >> 53
    token = int(np.searchsorted(cumulative, np.uint64(target), side="right"))
    return token, logprob_of(row, token), math.log(float(weights[token]) / float(total))


def _falling(row: F32) -> npt.NDArray[np.intp]:
    return np.lexsort((np.arange(row.size), -row))


def _exp(x: F32) -> F32:
    # The kernels' polynomial lives with the other torch twins; torch is here anyway where this runs.
    import torch

    from statepool.engine.ops.arithmetic import exp

    result: F32 = exp(torch.from_numpy(x)).numpy()
    return result


def _exp_sum(row: F32) -> float:
    # Per 1024 tokens sixteen lanes ascending and a tree, these in float64, ascending.
    terms = np.zeros(-(-row.size // 1024) * 1024, np.float32)
    terms[: row.size] = _exp(row - row.max())
    blocks = terms.reshape(-1, 64, 16)
    lanes = np.zeros_like(blocks[:, 0])
    for i in range(64):
        lanes = lanes + blocks[:, i]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return sum(lanes[:, 0].tolist(), 0.0)
