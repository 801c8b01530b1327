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
from statepool.tasks.sequences.errors import InvalidSequence

__all__ = ["Filter", "best_filter", "exact_filter", "padded", "sir", "sir_batch", "sir_reference"]

_SCALE = 1 << 24
_FLOAT_RATIO = 1e6
"""Above this, 1 - m has fewer than nine right digits left."""


@dataclass(frozen=True)
class Filter:
    """Whole-number taps x and what they do to a code, exactly; with four phases real parts, then imaginary ones."""

    taps: tuple[int, ...]
    sir: Fraction
    """|x's|² over the sum of |x' J(n) s|² at all shifts n but 0."""
    gain: Fraction
    """|x's|² / (n x'x): at most 1, reached by the matched filter."""

    @property
    def loss(self) -> float:
        """Loss in processing gain, dB, at most 0."""
        return 10 * math.log10(self.gain)


def padded(code: Code, length: int | None) -> np.ndarray:
    """int64 [length]: a binary code in the middle of zeros ((length - n) // 2 of them before it).

    Raises:
        InvalidRequest: The filter is shorter than the code.
        InvalidSequence: The code is not binary.
    """
    return _in_zeros(code.signs, length)


def _in_zeros(symbols: np.ndarray, length: int | None) -> np.ndarray:
    n = len(symbols)
    taps = n if length is None else length
    if taps < n:
        raise InvalidRequest(f"length: a filter for {n} symbols needs at least {n} taps, not {taps}", param="length")
    row = np.zeros(taps, np.int64)
    row[(taps - n) // 2 : (taps - n) // 2 + n] = symbols
    return row


def sir_batch(signs: np.ndarray, length: int | None = None, ridge: float = 0.0) -> np.ndarray:
    """float64 [count]: best ratio of each row of int8 [count, n].

    Its relative error grows as the ratio: below 1e-9 for n up to 256 and ratios up to 1e6, and 25 % at 3e15, which
    filters 16 times as long as Barker's code reach. NaN marks a row that rounding leaves undecided. ``ridge`` is the
    power of white noise in units of one symbol's.
    """
    rows = np.ascontiguousarray(signs, np.int8)
    found: np.ndarray = core.sir(rows, rows.shape[1] if length is None else length, ridge)
    return found


def sir(code: Code, length: int | None = None) -> float:
    """Best ratio of one code, in double precision, by the exact solution where rounding decides."""
    taps = len(padded(code, length))
    value = float(sir_batch(code.signs[None, :], taps)[0])
    return value if value < _FLOAT_RATIO else float(exact_filter(code, length).sir)  # NaN is not less


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
    """The best filter without a limit of loss, in whole numbers: its ratio is the maximum itself.

    Raises:
        InvalidSequence: The code has neither two nor four phases.
        InvalidRequest: The filter is shorter than the code.
    """
    parts = _parts(code)
    s = np.concatenate([_in_zeros(part, length) for part in parts])
    taps = len(s) // len(parts)
    rho = np.zeros((2, taps), np.int64)
    # exact: sums of few products of whole numbers
    rho[:, : len(code)] = np.rint([autocorrelation(code).real, autocorrelation(code).imag])
    lags = np.subtract.outer(np.arange(taps), np.arange(taps))
    system = rho[0][np.abs(lags)]
    if len(parts) == 2:
        # T is Hermitian, T(i, j) = C(j - i): as real numbers, [[Re, -Im], [Im, Re]]
        turned = np.where(lags > 0, -1, 1) * rho[1][np.abs(lags)]
        system = np.block([[system, -turned], [turned, system]])
    solution = _solve(system.tolist(), s.tolist())
    common = math.lcm(*(x.denominator for x in solution))
    whole = [int(x * common) for x in solution]
    shared = math.gcd(*whole)
    return _measure(code, tuple(tap // shared for tap in whole))


def best_filter(code: Code, length: int | None = None, loss_min: float | None = None) -> Filter:
    """The best filter whose loss is at least ``loss_min`` dB (taps in double precision, rounded to 24 bits).

    A filter for interference plus white noise of power u, (R + u I)^-1 s, loses less and suppresses less the larger u
    is; the least u that keeps the limit gives the best filter under it.

    Raises:
        InvalidRequest: ``loss_min`` is above 0 dB or not a number.
        InvalidSequence: The code's phases have no exact filter; with ``loss_min`` it must be binary.
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
        return _measure(code, tuple(int(t) for t in np.rint(taps / np.abs(taps).max() * _SCALE)))

    limit = Fraction(10.0 ** (loss_min / 10))
    free = at(0.0)
    if free.gain >= limit:
        return free
    low, high = -12.0, 6.0 + math.log10(len(code))
    kept = at(10.0**high)
    if kept.gain < limit:  # the matched filter itself: loses nothing
        return _measure(code, tuple(int(x) for x in s))
    for _ in range(60):
        middle = (low + high) / 2
        tried = at(10.0**middle)
        if tried.gain >= limit:
            high, kept = middle, tried
        else:
            low = middle
    return kept


def _parts(code: Code) -> list[np.ndarray]:
    """Real part, and for four phases imaginary part, of the symbols as int64 [n]."""
    if code.alphabet not in (2, 4):
        raise InvalidSequence(f"alphabet: filters are exact for 2 and 4 phases, not for {code.alphabet}")
    values = np.rint([code.values.real, code.values.imag]).astype(np.int64)
    return list(values[: 1 if code.binary else 2])


def _measure(code: Code, taps: tuple[int, ...]) -> Filter:
    symbols = [part.tolist() for part in _parts(code)]
    length = len(taps) // len(symbols)
    filters = [taps[i * length : (i + 1) * length] for i in range(len(symbols))]
    power = [sum(x * x for x in _response(filters, symbols, n)) for n in range(1 - len(code), length)]
    peak = power.pop((length - len(code)) // 2 + len(code) - 1)
    gain = Fraction(peak, len(code) * sum(tap * tap for tap in taps))
    return Filter(taps, Fraction(peak, sum(power)), gain)


def _response(taps: list[tuple[int, ...]], symbols: list[list[int]], shift: int) -> tuple[int, ...]:
    """x' J(shift) s: its real part, and for four phases its imaginary part."""
    first, last = max(0, shift), min(len(taps[0]), shift + len(symbols[0]))

    def along(x: tuple[int, ...], s: list[int]) -> int:
        return sum(x[i] * s[i - shift] for i in range(first, last))

    if len(taps) == 1:
        return (along(taps[0], symbols[0]),)
    (a, b), (c, d) = taps, symbols
    return along(a, c) + along(b, d), along(a, d) - along(b, c)


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
