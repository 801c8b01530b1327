"""Check a certificate with the standard library alone: whole numbers and fractions, from the definitions.

It shares no code with the searches: what it accepts is true whatever they did. ``python checker.py FILE`` prints one
line per certificate and exits 1 if one is refused.
"""

from __future__ import annotations

import cmath
import json
import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

__all__ = ["check"]

FORMAT = "statepool-sequence/1"
TOLERANCE = 1e-9
"""Relative, for objectives without an exact value (wisl, pmepr, polyphase codes)."""


def check(record: dict[str, Any]) -> str | None:
    """Why a certificate is refused, or None if what it claims is so."""
    try:
        if record["format"] != FORMAT:
            return f"format: is {record['format']!r}, not {FORMAT!r}"
        n, alphabet, problem, params = record["n"], record["alphabet"], record["problem"], record["params"]
        codes = [_symbols(code, n, alphabet) for code in record["codes"]]
        if not codes or n < 2:
            return "codes: there are none"
        if problem not in _VALUES:
            return f"problem: '{problem}' is unknown"
        if problem == "mmf-sir":
            return _filter(record, codes[0], params)
        value = _VALUES[problem](codes, alphabet, params)
        claimed = record["value"]
        if isinstance(value, Fraction):
            return None if Fraction(claimed) == value else f"value: {claimed} is claimed, {value} is true"
        close = math.isclose(float(claimed), value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return None if close else f"value: {claimed} is claimed, {value!r} is true"
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError, AttributeError) as error:
        return f"malformed: {type(error).__name__} {error}"


def _symbols(code: Any, n: int, alphabet: int) -> list[Any]:
    if alphabet != 2:
        if len(code) != n or any(type(p) is not int or not 0 <= p < alphabet for p in code):
            raise ValueError("a code has another length or phases outside its alphabet")
        if alphabet == 4:
            return [(1, 1j, -1, -1j)[p] for p in code]
        return [cmath.exp(2j * math.pi * p / alphabet) for p in code]
    if len(code) != -(-n // 4) or int(code, 16) >> n:
        raise ValueError(f"'{code}' does not hold {n} bits")
    bits = int(code, 16)
    return [1 - 2 * (bits >> (n - 1 - i) & 1) for i in range(n)]


def _cross(a: list[Any], b: list[Any], k: int) -> Any:
    if k < 0:
        return _cross(b, a, -k).conjugate()
    return sum(a[i] * b[i + k].conjugate() for i in range(len(a) - k))


def _sidelobes(codes: list[list[Any]]) -> list[Any]:
    return [sum(_cross(code, code, k) for code in codes) for k in range(1, len(codes[0]))]


def _whole(value: float, alphabet: int) -> Fraction | float:
    """Sums of |rho|² are whole numbers for these alphabets, and far enough from each other for a float to tell."""
    return Fraction(round(value)) if alphabet in (2, 3, 4, 6) else value


def _energy(codes: list[list[Any]], alphabet: int, _params: dict[str, Any]) -> Fraction | float:
    if alphabet == 2:
        return Fraction(sum(s * s for s in _sidelobes(codes[:1])))
    return _whole(sum(abs(s) ** 2 for s in _sidelobes(codes[:1])), alphabet)


def _merit(codes: list[list[Any]], alphabet: int, params: dict[str, Any]) -> Fraction | float:
    return len(codes[0]) ** 2 / (2 * _energy(codes, alphabet, params))


def _peak(codes: list[list[Any]], alphabet: int, _params: dict[str, Any]) -> Fraction | float:
    largest = max(abs(s) for s in _sidelobes(codes[:1]))
    return Fraction(largest) if alphabet == 2 else largest


def _zone(codes: list[list[Any]], alphabet: int, params: dict[str, Any]) -> Fraction:
    if alphabet != 2 or len(codes) != 2:
        raise ValueError("a pair of binary codes is needed")
    n, kind = len(codes[0]), params.get("kind", 1)
    cost = 0
    for k, s in enumerate(_sidelobes(codes), 1):
        loose = n % 2 == 1 and (k >= (n + 1) // 2 if kind == 1 else k < (n + 1) // 2)
        cost += max(0, s * s - 4) if loose else s * s
    return Fraction(cost)


def _sets(codes: list[list[Any]], alphabet: int, params: dict[str, Any]) -> Fraction | float:
    users, elements = params.get("users", 2), params.get("elements", 2)
    if len(codes) != users * elements:
        raise ValueError("users times elements codes are needed")
    n, total = len(codes[0]), 0.0
    for u in range(users):
        for v in range(u, users):
            for k in range(1 - n, n):
                if u != v or k:
                    pairs = ((codes[u * elements + m], codes[v * elements + m]) for m in range(elements))
                    total += abs(sum(_cross(a, b, k) for a, b in pairs))
    return Fraction(round(total)) if alphabet == 2 else total


def _doppler(codes: list[list[Any]], _alphabet: int, params: dict[str, Any]) -> float:
    code, n = codes[0], len(codes[0])
    half, bins = params.get("doppler", 0.5), params.get("bins", 5)
    reach = min(params.get("delays") or n, n - 1)
    shifts = [half * (2 * b / (bins - 1) - 1) for b in range(bins)] if bins > 1 else [0.0]
    levels = []
    for shift in shifts:
        turned = [symbol * cmath.exp(2j * math.pi * shift * i / n) for i, symbol in enumerate(code)]
        for k in (k for k in range(-reach, reach + 1) if k):
            span = range(max(0, -k), min(n, n - k))
            levels.append(abs(sum(turned[i] * code[i + k].conjugate() for i in span)) ** 2)
    return math.fsum(levels)


def _envelope(codes: list[list[Any]], _alphabet: int, params: dict[str, Any]) -> float:
    code, points = codes[0], params.get("oversampling", 64) * len(codes[0])
    turn = [cmath.exp(-2j * math.pi * t / points) for t in range(points)]
    powers = (abs(sum(x * turn[i * t % points] for i, x in enumerate(code))) ** 2 for t in range(points))
    return float(max(powers)) / len(code)


def _filter(record: dict[str, Any], code: list[Any], params: dict[str, Any]) -> str | None:
    """The ratio of the filter in the certificate; without a limit of loss, also that no filter has a better one."""
    alphabet, n = record["alphabet"], len(code)
    if alphabet not in (2, 4):
        return "alphabet: mismatched filters are certified for codes of two and four phases"
    symbols = [_Whole(int(symbol.real), int(symbol.imag)) for symbol in code]
    numbers, length = [int(tap) for tap in record["filter"]], params.get("length") or n
    if len(numbers) != length * alphabet // 2 or length < n:
        return f"filter: has {len(numbers)} numbers, {length} taps are claimed"
    # of four phases: all real parts, then all imaginary ones
    taps = [_Whole(numbers[i], numbers[length + i] if alphabet == 4 else 0) for i in range(length)]
    start, none = (length - n) // 2, _Whole(0, 0)
    response = {
        shift: sum(
            (taps[i].conjugate() * symbols[i - shift] for i in range(max(0, shift), min(length, shift + n))), none
        )
        for shift in range(1 - n, length)
    }
    peak = response.pop(start).power
    ratio = Fraction(peak, sum(r.power for r in response.values()))
    if Fraction(record["value"]) != ratio:
        return f"value: {record['value']} is claimed, the filter has {ratio}"
    limit = params.get("loss_min")
    if limit is not None:
        gain = Fraction(peak, n * sum(tap.power for tap in taps))
        return None if gain >= Fraction(10.0 ** (limit / 10)) else f"loss_min: the filter loses more than {limit} dB"
    # The best filter solves R x = c s. R is positive semidefinite, so a solution with c > 0 is the maximum, s'x / c.
    image = [
        sum((symbols[i - shift] * r.conjugate() for shift, r in response.items() if 0 <= i - shift < n), none)
        for i in range(length)
    ]
    signal = [symbols[i - start] if 0 <= i - start < n else none for i in range(length)]
    scale = image[start] * signal[start].conjugate()
    solves = scale.real > 0 and scale.imag == 0
    solves = solves and all(y == scale * x for y, x in zip(image, signal, strict=True))
    return None if solves else "filter: is not the best one for this code"


@dataclass(frozen=True)
class _Whole:
    """A complex number with whole parts."""

    real: int
    imag: int

    def __add__(self, other: _Whole) -> _Whole:
        return _Whole(self.real + other.real, self.imag + other.imag)

    def __mul__(self, other: _Whole) -> _Whole:
        return _Whole(self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real)

    def conjugate(self) -> _Whole:
        return _Whole(self.real, -self.imag)

    @property
    def power(self) -> int:
        return self.real**2 + self.imag**2


_VALUES: dict[str, Any] = {
    "labs": _energy,
    "merit": _merit,
    "isl": lambda codes, alphabet, params: 2 * _energy(codes, alphabet, params),
    "psl": _peak,
    "mmf-sir": None,
    "zcp": _zone,
    "moccs": _sets,
    "wisl": _doppler,
    "pmepr": _envelope,
}


def main(paths: list[str]) -> int:
    """Check every certificate of these files (JSON, or one JSON object per line)."""
    refused = 0
    for path in paths:
        for number, line in enumerate(Path(path).read_text().splitlines(), 1):
            if line.strip():
                try:
                    reason = check(json.loads(line))
                except ValueError as error:
                    reason = f"is no JSON: {error}"
                refused += reason is not None
                sys.stdout.write(f"{path}:{number}: {reason or 'holds'}\n")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
