"""Counts of all there are: pairs by meeting in the middle, complementary sets from Golay pairs and their mates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.correlation import autocorrelations
from statepool.tasks.sequences.sets import ZeroZone

__all__ = ["complementary_sets", "pairs"]

_LONGEST = 20


def all_signs(n: int) -> np.ndarray:
    """int8 [2^n, n]: every binary code, counting up with + as 0 and the first symbol as the highest bit.

    Raises:
        InvalidRequest: n is not from 2 to 20.
    """
    if not 2 <= n <= _LONGEST:
        raise InvalidRequest(f"n: a census takes 2 to {_LONGEST} symbols, not {n}", param="n")
    return (1 - 2 * (np.arange(1 << n)[:, None] >> np.arange(n - 1, -1, -1) & 1)).astype(np.int8)


def pairs(n: int, kind: int = 1) -> Iterator[np.ndarray]:
    """Every ordered optimal pair (of even length: Golay pair), as int8 [m, 2, n] in pieces.

    Codes are filed by their correlation at the lags of the zone; a partner has the opposite correlation there, and only
    pairs of such files are tried against the rule for the other lags.

    Raises:
        InvalidRequest: n is not from 2 to 20.
    """
    signs = all_signs(n)
    rho = autocorrelations(signs)
    first, last = ZeroZone(kind=kind).loose(n)
    inside = np.array([k for k in range(1, n) if not first <= k < last])
    order = np.lexsort(rho[:, inside].T)
    keys = rho[order][:, inside]
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(1)])
    ends = np.r_[starts[1:], len(order)]
    files = {keys[start].tobytes(): order[start:end] for start, end in zip(starts, ends, strict=True)}
    for start, end in zip(starts, ends, strict=True):
        partners = files.get((-keys[start]).tobytes())
        if partners is None:
            continue
        own = order[start:end]
        sums = rho[own][:, None, first:last] + rho[partners][None, :, first:last]
        a, b = np.nonzero((np.abs(sums) == 2).all(2))
        if len(a):
            yield np.stack([signs[own[a]], signs[partners[b]]], 1)


def complementary_sets(n: int) -> np.ndarray:
    """int8 [m, 4, n]: every ideal set of 2 users with 2 elements (user after user).

    The second user's pair is the mate (b reversed, -a reversed) of the first one's, or that negated: there is no other.
    """
    found = list(pairs(n)) if n % 2 == 0 else []
    if not found:
        return np.zeros((0, 4, n), np.int8)
    first = np.concatenate(found)
    mates = np.stack([first[:, 1, ::-1], -first[:, 0, ::-1]], 1)
    return np.concatenate([np.concatenate([first, mates], 1), np.concatenate([first, -mates], 1)])
