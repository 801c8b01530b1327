"""Correlations: C(k) is the sum over i of a(i) times the conjugate of b(i + k); integers where the symbols are."""

from __future__ import annotations

from typing import Any

import numpy as np

from statepool.tasks.sequences.codes import Code

try:
    from statepool.native import _sequences  # type: ignore[attr-defined]  # compiled: no source for mypy to find
except ImportError as error:  # pragma: no cover - a machine without a compiler
    raise ImportError(
        f"statepool.tasks.sequences needs its native module ({error}); run `make native` with a C++ compiler"
    ) from error

__all__ = ["ambiguity", "autocorrelation", "autocorrelations", "core", "crosscorrelation", "squares"]

core: Any = _sequences


def autocorrelations(signs: np.ndarray) -> np.ndarray:
    """int32 [count, n] of int8 [count, n]: lags 0 to n - 1 of each row."""
    found: np.ndarray = core.autocorrelations(np.ascontiguousarray(signs, np.int8))
    return found


def crosscorrelation(a: Code, b: Code) -> np.ndarray:
    """Lags 0 to n - 1 of ``a`` against ``b``: int64 for binary codes, else complex128."""
    n = len(a)
    if a.binary and b.binary:
        return np.correlate(b.signs.astype(np.int64), a.signs.astype(np.int64), "full")[n - 1 :]
    # np.correlate conjugates its second argument
    return np.conj(np.correlate(b.values, a.values, "full")[n - 1 :])


def autocorrelation(code: Code) -> np.ndarray:
    """Lags 0 to n - 1 of one code."""
    return crosscorrelation(code, code)


def squares(code: Code) -> list[int] | None:
    """|rho(k)|² at lags 1 to n - 1 as whole numbers; None for an alphabet in which they are not.

    With two, three, four or six phases, rho is a whole combination of 1 and a root of unity w, and |x + y w|² is
    x² + y² (w = i) or x² ± xy + y² (w of order 6 or 3).
    """
    if code.binary:
        return [int(r) ** 2 for r in autocorrelation(code)[1:]]
    if code.alphabet not in (3, 4, 6):
        return None
    basis = {3: [(1, 0), (0, 1), (-1, -1)], 4: [(1, 0), (0, 1), (-1, 0), (0, -1)]}
    basis[6] = [(1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)]
    mixed = {3: -1, 4: 0, 6: 1}[code.alphabet]
    found = []
    for k in range(1, len(code)):
        steps = [(p - q) % code.alphabet for p, q in zip(code.phases, code.phases[k:], strict=False)]
        x, y = (sum(basis[code.alphabet][step][axis] for step in steps) for axis in (0, 1))
        found.append(x * x + mixed * x * y + y * y)
    return found


def ambiguity(code: Code, dopplers: np.ndarray) -> np.ndarray:
    """|A(k, v)| as float64 [2n - 1, len(dopplers)]: delays 1 - n to n - 1, Doppler v in cycles per pulse of n symbols.

    A(k, v) is the sum over i of s(i) conj(s(i + k)) exp(2 pi j v i / n).
    """
    n, values = len(code), code.values
    table = np.zeros((2 * n - 1, n), np.complex128)
    for k in range(1 - n, n):
        first, last = max(0, -k), min(n, n - k)
        table[k + n - 1, first:last] = values[first:last] * np.conj(values[first + k : last + k])
    turns = np.exp(2j * np.pi * np.outer(np.arange(n), np.asarray(dopplers, float)) / n)
    return np.abs(table @ turns)
