"""Codes with a formula: where searches start, and what their results are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code, from_signs
from statepool.tasks.sequences.sets import ZeroZone

__all__ = [
    "BY_NAME",
    "barker",
    "complementary_set",
    "frank",
    "golay",
    "legendre",
    "m_sequence",
    "odd_pairs",
    "rudin_shapiro",
    "zadoff_chu",
]

_BARKER = {
    2: "+-", 3: "++-", 4: "++-+", 5: "+++-+", 7: "+++--+-", 11: "+++---+--+-", 13: "+++++--++-+-+",
}  # fmt: skip
_KERNELS = {
    2: ("++", "+-"),
    10: ("++-+-+--++", "++-+++++--"),
    26: ("++++-++--+-+-+--+-+++--+++", "++++-++--+-+++++-+---++---"),
}


def _code(signs: np.ndarray) -> Code:
    return Code(tuple(int(sign < 0) for sign in signs))


def barker(n: int) -> Code:
    """Barker's code of 2, 3, 4, 5, 7, 11 or 13 symbols."""
    if n not in _BARKER:
        raise InvalidRequest(f"n: there is no Barker code of {n} symbols, only of {sorted(_BARKER)}", param="n")
    return from_signs(_BARKER[n])


def legendre(p: int, rotation: int | None = None) -> Code:
    """Quadratic residues of an odd prime, symbol 0 set to +1, rotated to the left (default: round(3p / 4) + 1).

    At p = 59 the default is the rotation by 45 that published comparisons use.
    """
    if p < 3 or any(p % q == 0 for q in range(2, math.isqrt(p) + 1)):
        raise InvalidRequest(f"n: a Legendre code needs an odd prime length, not {p}", param="n")
    signs = [1 if i == 0 or pow(i, (p - 1) // 2, p) == 1 else -1 for i in range(p)]
    turn = (round(3 * p / 4) + 1 if rotation is None else rotation) % p
    return _code(np.array(signs[turn:] + signs[:turn]))


def m_sequence(degree: int) -> Code:
    """A shift register's longest sequence, 2^degree - 1 symbols, from a primitive polynomial.

    Raises:
        InvalidRequest: The degree is not from 2 to 16.
    """
    if not 2 <= degree <= 16:
        raise InvalidRequest(f"degree: must be from 2 to 16, not {degree}", param="degree")
    for taps in range(1, 1 << degree, 2):
        state = 1
        seen: list[int] = []
        while not seen or state != 1:
            seen.append(state & 1)
            state = state >> 1 | (bin(state & taps).count("1") & 1) << (degree - 1)
            if len(seen) > 1 << degree:
                break
        if len(seen) == (1 << degree) - 1:
            return Code(tuple(seen))
    raise AssertionError("a primitive polynomial exists for every degree")


def rudin_shapiro(n: int) -> Code:
    """Symbol i is -1 where the binary digits of i hold an odd number of pairs 11."""
    return Code(tuple(bin(i & i >> 1).count("1") & 1 for i in range(n)))


def golay(n: int) -> tuple[Code, Code]:
    """A binary Golay pair of n = 2^a 10^b 26^c symbols, by Turyn's product of kernels.

    Raises:
        InvalidRequest: n has no such form.
    """
    pair, left = (np.array([1]), np.array([1])), n
    for size in (26, 10, 2):
        while left % size == 0:
            c, d = (from_signs(text).signs.astype(int) for text in _KERNELS[size])
            a, b = pair
            plus, minus = (c + d) // 2, (c - d) // 2
            pair = (np.kron(a, plus) + np.kron(b[::-1], minus), np.kron(b, plus) - np.kron(a[::-1], minus))
            left //= size
    if left != 1:
        raise InvalidRequest(
            f"n: no Golay pair of {n} symbols is known here; 2^a 10^b 26^c symbols have one", param="n"
        )
    return _code(pair[0]), _code(pair[1])


def odd_pairs(n: int, kind: int) -> Iterator[tuple[Code, Code]]:
    """Optimal odd pairs that follow from a Golay pair.

    Type 1: one symbol inserted into each code of a pair of n - 1 symbols (Adhikary et al., arXiv 1909.10204: in each
    form of the pair, every place and sign is tried). Type 2: the last symbol deleted from one of n + 1 symbols (Liu,
    Parampalli, Guan 2014).
    """
    cost = ZeroZone(kind=kind)
    try:
        a, b = golay(n - 1 if kind == 1 else n + 1)
    except InvalidRequest:
        return  # no such pair is known, so nothing follows from it
    for form in _forms(a.signs, b.signs):
        if kind == 2:
            yield from _optimal(cost, form[0][:-1], form[1][:-1])
        else:
            for place, x, y in product(range(n), (1, -1), (1, -1)):
                yield from _optimal(cost, np.insert(form[0], place, x), np.insert(form[1], place, y))


def _forms(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    sign = 1 - 2 * (np.arange(len(a)) % 2)
    for x, y in ((a, b), (a[::-1], b), (a, b[::-1]), (a[::-1], b[::-1])):
        yield x, y
        yield x * sign, y * sign
    with suppress(InvalidRequest):  # the doubled forms of half the length have other insertions than Turyn's product
        c, d = (code.signs for code in golay(len(a) // 2))
        yield np.concatenate([c, d]), np.concatenate([c, -d])
        yield np.stack([c, d], 1).ravel(), np.stack([c, -d], 1).ravel()


def _optimal(cost: ZeroZone, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[Code, Code]]:
    if cost.costs(np.stack([a, b])[None].astype(np.int8))[0] == 0:
        yield _code(a), _code(b)


def complementary_set(users: int, n: int) -> tuple[Code, ...]:
    """Complete complementary codes: ``users`` sets of as many codes, users = 2^k, from a Golay pair and its mate.

    Each doubling takes sets C to [C, C] and [C, -C].

    Raises:
        InvalidRequest: ``users`` is no power of two from 2 on, or there is no Golay pair of n symbols.
    """
    if users < 2 or users & (users - 1):
        raise InvalidRequest(f"users: must be a power of two from 2 on, not {users}", param="users")
    a, b = (code.signs for code in golay(n))
    sets = np.array([[a, b], [b[::-1], -a[::-1]]])
    while len(sets) < users:
        sets = np.concatenate([np.concatenate([sets, sets], 1), np.concatenate([sets, -sets], 1)])
    return tuple(_code(row) for user in sets for row in user)


def zadoff_chu(n: int, root: int = 1) -> Code:
    """exp(-j pi root i (i + n mod 2) / n): a perfect periodic autocorrelation for every n, even ones too.

    Raises:
        InvalidRequest: ``root`` shares a factor with n.
    """
    if math.gcd(root, n) != 1:
        raise InvalidRequest(f"root: {root} and {n} must have no common factor", param="root")
    return Code(tuple(-root * i * (i + n % 2) % (2 * n) for i in range(n)), 2 * n)


def frank(order: int) -> Code:
    """Frank's polyphase code of order² symbols: phase i j of order at place i order + j."""
    return Code(tuple(i * j % order for i in range(order) for j in range(order)), order)


BY_NAME: dict[str, Callable[[int], tuple[Code, ...]]] = {
    "barker": lambda n: (barker(n),),
    "legendre": lambda n: (legendre(n),),
    "m-sequence": lambda n: (m_sequence(n),),
    "rudin-shapiro": lambda n: (rudin_shapiro(n),),
    "golay": golay,
    "zadoff-chu": lambda n: (zadoff_chu(n),),
    "frank": lambda n: (frank(n),),
}
"""Families with one number: symbols, the degree of an m-sequence, the order of Frank's code."""
