"""Objectives of several codes and of the signal: complementary pairs and sets, Doppler windows, envelope peaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code
from statepool.tasks.sequences.correlation import ambiguity, autocorrelations, crosscorrelation
from statepool.tasks.sequences.objectives import Score, counted, register

__all__ = ["Complementary", "DopplerEnergy", "EnvelopePeak", "ZeroZone", "mate", "zone"]


def zone(sums: Sequence[int] | np.ndarray, kind: int) -> int:
    """Width Z of the zero zone of correlation sums at lags 0 to n - 1.

    Type 1: the sums vanish at lags 1 to Z - 1. Type 2: at lags n - Z + 1 to n - 1.
    """
    rest = list(sums[1:]) if kind == 1 else list(sums[:0:-1])
    return next((k for k, value in enumerate(rest) if value), len(rest)) + 1


@register
@dataclass(frozen=True)
class ZeroZone:
    """Binary pair whose autocorrelation sums vanish in a zone (``kind`` 1: small lags, 2: large lags).

    The cost is the sum of S² inside the widest possible zone, plus S² - 4 outside where positive: 0 means optimal, that
    is width (n + 1) / 2 and |S| = 2 at every other lag for odd n (Liu, Parampalli, Guan, IEEE TIT 2014), a Golay pair
    for even n.
    """

    name: ClassVar[str] = "zcp"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    codes: ClassVar[int] = 2
    kind: int = 1

    def __post_init__(self) -> None:
        if self.kind not in (1, 2):
            raise InvalidRequest(
                f"kind: must be 1 (zone at small lags) or 2 (at large lags), not {self.kind}", param="kind"
            )

    def loose(self, n: int) -> tuple[int, int]:
        """Lags [from, to) outside the widest possible zone."""
        if n % 2 == 0:
            return (n, n)
        return ((n + 1) // 2, n) if self.kind == 1 else (1, (n + 1) // 2)

    def score(self, codes: Sequence[Code]) -> Score:
        """The cost, with the sums, the width of the zone, and whether the pair is Z-optimal and optimal."""
        n = counted(codes, 2)
        sums = [int(s) for s in sum(autocorrelations(code.signs[None])[0] for code in codes)]
        first, last = self.loose(n)
        cost = sum(max(0, s * s - 4 * (first <= k < last)) for k, s in enumerate(sums) if k)
        width = zone(sums, self.kind)
        widest = width >= ((n + 1) // 2 if n % 2 else n)
        outside = [abs(s) for s in sums[first:last]]
        optimal = widest and all(s == 2 for s in outside)
        return Score(cost, Fraction(cost), {"zone": width, "z_optimal": widest, "optimal": optimal, "sums": sums})

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """The cost."""
        count, _, n = signs.shape
        sums = autocorrelations(signs.reshape(2 * count, n)).reshape(count, 2, n).sum(1).astype(np.float64)
        square = sums**2
        first, last = self.loose(n)
        square[:, first:last] = np.maximum(0, square[:, first:last] - 4)
        total: np.ndarray = square[:, 1:].sum(1)
        return total


@register
@dataclass(frozen=True)
class Complementary:
    """Mutually orthogonal complementary sets: ``users`` sets of ``elements`` codes, user after user.

    The cost is the sum of |S| over all lags but 0 of each user's summed autocorrelation and all lags of each two users'
    summed crosscorrelation: 0 for ideal sets.
    """

    name: ClassVar[str] = "moccs"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    users: int = 2
    elements: int = 2

    def __post_init__(self) -> None:
        if self.users < 1 or self.elements < 1 or self.users > self.elements:
            raise InvalidRequest(
                "users: must be from 1 to the number of elements; more cannot be orthogonal", param="users"
            )

    @property
    def codes(self) -> int:
        """Users times elements."""
        return self.users * self.elements

    def score(self, codes: Sequence[Code]) -> Score:
        """The cost: a whole number for binary codes."""
        counted(codes, self.codes)
        sets = [codes[u * self.elements : (u + 1) * self.elements] for u in range(self.users)]
        total, binary = 0.0, all(code.binary for code in codes)
        for u, own in enumerate(sets):
            for other in sets[u:]:
                forward = np.sum([crosscorrelation(a, b) for a, b in zip(own, other, strict=True)], 0)
                back = np.sum([crosscorrelation(b, a) for a, b in zip(own, other, strict=True)], 0)
                parts = [forward[1:]] if other is own else [forward, back[1:]]
                total += sum(float(np.abs(part).sum()) for part in parts) * (2 if other is own else 1)
        return Score(total, Fraction(int(total)) if binary else None, {"ideal": total == 0 if binary else total < 1e-9})

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """The cost."""
        count, _, n = signs.shape
        spectrum = np.fft.rfft(signs.astype(np.float64), 2 * n).reshape(count, self.users, self.elements, n + 1)
        cross = np.einsum("bumf,bvmf->buvf", spectrum, spectrum.conj())
        sums = np.rint(np.fft.irfft(cross, 2 * n))
        for u in range(self.users):
            sums[:, u, u, 0] = 0
        one_way = np.triu(np.ones((self.users, self.users)))
        total: np.ndarray = (np.abs(sums).sum(3) * one_way).sum((1, 2))
        return total


@register
@dataclass(frozen=True)
class DopplerEnergy:
    """Weighted sidelobe level of the ambiguity function: the sum of |A(k, v)|² over delays and Doppler shifts.

    ``doppler`` is the half width of the window in cycles per pulse, read at ``bins`` points; ``delays`` how many delays
    on each side count (None: all). The peak at delay 0 is left out at every Doppler shift.
    """

    name: ClassVar[str] = "wisl"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    codes: ClassVar[int] = 1
    doppler: float = 0.5
    bins: int = 5
    delays: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.doppler < math.inf:
            raise InvalidRequest(f"doppler: must be at least 0 cycles per pulse, not {self.doppler}", param="doppler")
        if self.bins < 1 or (self.delays is not None and self.delays < 1):
            raise InvalidRequest("bins, delays: must be at least 1", param="bins")

    def score(self, codes: Sequence[Code]) -> Score:
        """The level, in double precision."""
        n = counted(codes, 1)
        shifts = np.linspace(-self.doppler, self.doppler, self.bins) if self.bins > 1 else np.zeros(1)
        reach = n - 1 if self.delays is None else min(self.delays, n - 1)
        surface = ambiguity(codes[0], shifts)[n - 1 - reach : n + reach] ** 2
        surface[reach] = 0
        return Score(float(surface.sum()), None, {"peak": float(np.sqrt(surface.max()))})

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """The level."""
        return np.array([self.score([_code(row[0])]).value for row in signs])


@register
@dataclass(frozen=True)
class EnvelopePeak:
    """Peak to mean envelope power of the code on ``n`` carriers, read at ``oversampling`` n instants.

    Between two instants the power cannot exceed the value told by more than 1 / cos(pi (n - 1) / (oversampling n)),
    since it is a trigonometric polynomial of degree n - 1: ``facts["bound"]`` is that ceiling. A Golay code stays at or
    below 2.
    """

    name: ClassVar[str] = "pmepr"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    codes: ClassVar[int] = 1
    oversampling: int = 64

    def __post_init__(self) -> None:
        if self.oversampling < 4:
            raise InvalidRequest("oversampling: must be at least 4 for the bound to hold", param="oversampling")

    def score(self, codes: Sequence[Code]) -> Score:
        """The largest power read and the ceiling of the true one."""
        n = counted(codes, 1)
        power = np.abs(np.fft.fft(codes[0].values, self.oversampling * n)) ** 2 / n
        peak = float(power.max())
        return Score(peak, None, {"bound": peak / math.cos(math.pi * (n - 1) / (self.oversampling * n))})

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """The largest power read."""
        n = signs.shape[2]
        power = np.abs(np.fft.rfft(signs[:, 0].astype(np.float64), self.oversampling * n)) ** 2 / n
        peak: np.ndarray = power.max(1)
        return peak


def _code(signs: np.ndarray) -> Code:
    return Code(tuple(int(sign < 0) for sign in signs))


def mate(a: Code, b: Code) -> tuple[Code, Code]:
    """The pair orthogonal to a binary Golay pair: b reversed, and a reversed and negated."""
    return Code(tuple(reversed(b.phases))), Code(tuple(1 - phase for phase in reversed(a.phases)))
