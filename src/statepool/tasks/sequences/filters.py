"""Mismatched filters: the best one for a code, with its signal to interference ratio and its loss.

After Stoica, Li and Xue (IEEE SPM 2008): with R the sum of J(n) s s' J(n)' over all shifts but none, the best ratio is
s' R^-1 s. R = T - s s' with T the Toeplitz matrix of the code's autocorrelation, hence the ratio is m / (1 - m) with
m = s' T^-1 s: one Levinson recursion (native, O(length²)) instead of an inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code
from statepool.tasks.sequences.correlation import autocorrelation, core

__all__ = ["Filter", "best_filter", "exact_filter", "padded", "sir", "sir_batch", "sir_reference"]

_SCALE = 1 << 24


@dataclass(frozen=True)
class Filter:
    """Whole-number taps x and what they do to a code, exactly."""

    taps: tuple[int, ...]
    sir: Fraction
    """(x's)² over the sum of (x' J(n) s)² at all shifts n but 0."""
    gain: Fraction
    """(x's)² / (n x'x): at most 1, reached by the matched filter."""

    @property
    def loss(self) -> float:
        """Loss in processing gain, dB, at most 0."""
        return 10 * math.log10(self.gain)


def padded(code: Code, length: int | None) -> np.ndarray:
    """int64 [length]: the code in the middle of zeros ((length - n) // 2 of them before it).

    Raises:
        InvalidRequest: The filter is shorter than the code.
    """
    n = len(code)
    taps = n if length is None else length
    if taps < n:
        raise InvalidRequest(f"length: a filter for {n} symbols needs at least {n} taps, not {taps}", param="length")
    row = np.zeros(taps, np.int64)
    row[(taps - n) // 2 : (taps - n) // 2 + n] = code.signs
    return row


def sir_batch(signs: np.ndarray, length: int | None = None, ridge: float = 0.0) -> np.ndarray:
    """float64 [count]: best ratio of each row of int8 [count, n]; relative error below 1e-9 for n up to 256.

    ``ridge`` is the power of white noise in units of one symbol's. NaN marks a row that rounding leaves undecided.
    """
    rows = np.ascontiguousarray(signs, np.int8)
    found: np.ndarray = core.sir(rows, rows.shape[1] if length is None else length, ridge)
    return found


def sir(code: Code, length: int | None = None) -> float:
    """Best ratio of one code, in double precision, by the exact solution where rounding decides."""
    taps = len(padded(code, length))
    value = float(sir_batch(code.signs[None, :], taps)[0])
    return float(exact_filter(code, length).sir) if math.isnan(value) else value


def sir_reference(code: Code, length: int | None = None) -> float:
    """The same from its definition: R summed over all shifts, then solved. The twin of the native kernel."""
    s = padded(code, length).astype(float)
    taps = len(s)
    total = np.zeros((taps, taps))
    signs = code.signs.astype(float)
    start = int(np.flatnonzero(s)[0])
    for shift in range(1 - start - len(code), taps - start):
        if shift:
            moved = np.zeros(taps)
            first, last = max(0, start + shift), min(taps, start + shift + len(code))
            moved[first:last] = signs[first - start - shift : last - start - shift]
            total += np.outer(moved, moved)
    return float(s @ np.linalg.solve(total, s))


def exact_filter(code: Code, length: int | None = None) -> Filter:
    """The best filter without a limit of loss, in whole numbers: its ratio is the maximum itself."""
    s = padded(code, length)
    rho = [int(r) for r in autocorrelation(code)] + [0] * (len(s) - len(code))
    solution = _solve([[rho[abs(i - j)] for j in range(len(s))] for i in range(len(s))], [int(x) for x in s])
    common = math.lcm(*(x.denominator for x in solution))
    taps = [int(x * common) for x in solution]
    shared = math.gcd(*taps)
    return _measure(code, tuple(tap // shared for tap in taps), s)


def best_filter(code: Code, length: int | None = None, loss_min: float | None = None) -> Filter:
    """The best filter whose loss is at least ``loss_min`` dB (taps in double precision, rounded to 24 bits).

    A filter for interference plus white noise of power u, (R + u I)^-1 s, loses less and suppresses less the larger u
    is; the least u that keeps the limit gives the best filter under it.

    Raises:
        InvalidRequest: ``loss_min`` is above 0 dB or not a number.
    """
    if loss_min is None:
        return exact_filter(code, length)
    if math.isnan(loss_min) or loss_min > 0:
        raise InvalidRequest(f"loss_min: a loss is at most 0 dB, not {loss_min}", param="loss_min")
    s = padded(code, length)
    rho = np.zeros(len(s))
    rho[: len(code)] = autocorrelation(code)
    lags = np.abs(np.subtract.outer(np.arange(len(s)), np.arange(len(s))))
    values, vectors = np.linalg.eigh(rho[lags])
    along = vectors.T @ s

    def at(power: float) -> Filter:
        taps = vectors @ (along / (values + power))
        return _measure(code, tuple(int(t) for t in np.rint(taps / np.abs(taps).max() * _SCALE)), s)

    limit = Fraction(10.0 ** (loss_min / 10))
    free = at(0.0)
    if free.gain >= limit:
        return free
    low, high = -12.0, 6.0 + math.log10(len(code))
    kept = at(10.0**high)
    if kept.gain < limit:  # the matched filter itself: loses nothing
        return _measure(code, tuple(int(x) for x in s), s)
    for _ in range(60):
        middle = (low + high) / 2
        tried = at(10.0**middle)
        if tried.gain >= limit:
            high, kept = middle, tried
        else:
            low = middle
    return kept


def _measure(code: Code, taps: tuple[int, ...], s: np.ndarray) -> Filter:
    signs = [int(x) for x in code.signs]
    start = (len(taps) - len(code)) // 2
    peak = sum(tap * int(x) for tap, x in zip(taps, s, strict=True))
    rest = 0
    for shift in range(1 - len(code), len(taps)):
        if shift != start:
            first, last = max(0, shift), min(len(taps), shift + len(code))
            rest += sum(taps[i] * signs[i - shift] for i in range(first, last)) ** 2
    return Filter(taps, Fraction(peak * peak, rest), Fraction(peak * peak, len(code) * sum(tap * tap for tap in taps)))


def _solve(rows: list[list[int]], right: list[int]) -> list[Fraction]:
    """Solve a symmetric positive definite system of whole numbers, without fractions until the end (Bareiss)."""
    size, previous = len(rows), 1
    table = [[*row, value] for row, value in zip(rows, right, strict=True)]
    for k in range(size - 1):
        pivot, own = table[k][k], table[k]
        for i in range(k + 1, size):
            row, factor = table[i], table[i][k]
            for j in range(k + 1, size + 1):
                row[j] = (pivot * row[j] - factor * own[j]) // previous
            row[k] = 0
        previous = pivot
    solution = [Fraction(0)] * size
    for i in reversed(range(size)):
        rest = table[i][size] - sum((table[i][j] * solution[j] for j in range(i + 1, size)), Fraction(0))
        solution[i] = rest / table[i][i]
    return solution
