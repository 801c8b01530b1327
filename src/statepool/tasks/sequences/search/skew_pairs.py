"""Optimal odd pairs of type 1 from two skew-symmetric codes, by meeting in the middle.

Let n = 2m + 1, and let the pair be a = (x, y, z) and b = (x, -y, z) with x of m + 1 symbols, y of m - 1 and z of one.
Then (a + b) / 2 is x, zeros, z, and (a - b) / 2 is y behind zeros, so S(k) / 2 is r_x(k) + r_y(k), plus z x(2m - k)
from lag m on. Above m that last term stands alone: |S| = 2 there, whatever the symbols are. At m, z = -x(0) takes away
the one product left. There remain r_x + r_y = 0 at the lags 1 to m - 1.

Modulo 4 they are products of signs. Divided lag by lag, they say for even m that both codes are skew-symmetric (odd m
leaves symmetric ones, which fit at n = 7 alone up to n = 59). Skew-symmetric codes have no sidelobes at odd lags, so
m / 2 - 1 equations are left between 2^(m/2) codes x and 2^(m/2-1) codes y, few enough to try them all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.correlation import autocorrelations
from statepool.tasks.sequences.search.base import Batch, phases_of, rng
from statepool.tasks.sequences.sets import ZeroZone

__all__ = ["SkewPairs"]

_AT_ONCE = 1 << 12
_LONGEST = 97


def skew_codes(length: int, first: int, count: int) -> np.ndarray:
    """int8 [count, length]: skew-symmetric codes with + at the centre; number ``first`` on, by the bits to the right.

    The symbol j to the left of the centre is (-1)^j times the one j to the right; ``length`` is odd.
    """
    half = length // 2
    places = np.arange(half - 1, -1, -1)
    right = (1 - 2 * (np.arange(first, first + count)[:, None] >> places & 1)).astype(np.int8)
    sign = (1 - 2 * (np.arange(1, half + 1) % 2)).astype(np.int8)
    return np.concatenate([(right * sign)[:, ::-1], np.ones((count, 1), np.int8), right], 1)


class SkewPairs:
    """The searcher: every pair of this form, or the proof that this length has none."""

    name, alphabet = "skew", 2

    def batches(self, objective: ZeroZone, n: int, seed: int, first: int) -> Iterator[Batch]:
        """A round is 2^12 codes x against all y; each pair that fits is a batch, the last of a round counts it.

        Where none fits, the batch holds a neighbour in the order of the keys. ``seed`` plays no part.

        Raises:
            InvalidRequest: The pair is not of type 1, or n is not 9, 13, 17 and so on to 97.
        """
        if objective.kind != 1 or n % 4 != 1 or not 9 <= n <= _LONGEST:
            raise InvalidRequest(
                f"n: pairs of two skew-symmetric codes are of type 1 and have 9, 13, 17 … {_LONGEST} symbols, not {n}",
                param="n",
            )
        m = n // 2
        # a code's key is a sum of random multiples of its sidelobes, so keys add as correlations do (modulo 2^64)
        weights = rng(0, n).integers(1 << 63, size=m // 2 - 1, dtype=np.int64).astype(np.uint64) | np.uint64(1)
        known = np.concatenate([self._keys(codes, m, weights) for _, codes in _blocks(m - 1, 0)])
        order = np.argsort(known, kind="stable")
        ranked = known[order]
        for number, x in _blocks(m + 1, first):
            wanted = np.uint64(0) - self._keys(x, m, weights)
            start, end = (np.searchsorted(ranked, wanted, side) for side in ("left", "right"))
            fits = [(int(i), int(j)) for i in np.flatnonzero(end > start) for j in order[start[i] : end[i]]]
            fits = fits or [(0, int(order[min(int(start[0]), len(order) - 1)]))]
            last = (number + 1) * _AT_ONCE >= 1 << m // 2
            for place, (i, j) in enumerate(fits, 1):
                y = skew_codes(m - 1, j, 1)[0]
                pair = np.array([[*x[i], *y, -x[i, 0]], [*x[i], *-y, -x[i, 0]]])
                whole = place == len(fits)
                cost = float(objective.costs(pair[None].astype(np.int8))[0])
                yield Batch(number, int(whole), phases_of(pair), cost, len(x) if whole else 0, last and whole)

    def _keys(self, codes: np.ndarray, m: int, weights: np.ndarray) -> np.ndarray:
        lags = autocorrelations(codes)[:, 2:m:2].astype(np.int64).astype(np.uint64)
        keys: np.ndarray = (lags * weights[: lags.shape[1]]).sum(1, dtype=np.uint64)
        return keys


def _blocks(length: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """All skew-symmetric codes of this length from block ``first`` on."""
    total = 1 << length // 2
    for start in range(first * _AT_ONCE, total, _AT_ONCE):
        yield start // _AT_ONCE, skew_codes(length, start, min(_AT_ONCE, total - start))
