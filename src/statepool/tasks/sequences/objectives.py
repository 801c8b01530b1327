"""What a code or a set of codes is judged by: an exact value where there is one, a float where there is none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code
from statepool.tasks.sequences.correlation import autocorrelation, autocorrelations, squares
from statepool.tasks.sequences.errors import InvalidSequence
from statepool.tasks.sequences.filters import best_filter, sir_batch

__all__ = ["Energy", "Merit", "Objective", "PeakSidelobe", "Score", "Sir", "counted", "make", "register"]


@dataclass(frozen=True)
class Score:
    """A value with what it was computed from."""

    value: float
    exact: Fraction | None = None
    """The value itself where it is rational."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """More that an engineer asks about the same codes."""
    filter: tuple[int, ...] | None = None
    """Taps of the mismatched filter, for objectives that have one."""

    @property
    def text(self) -> str:
        """``p/q``, a whole number, or 17 digits."""
        return repr(self.value) if self.exact is None else str(self.exact)


class Objective(Protocol):
    """One way to judge. Parameters are the fields of the class."""

    name: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"]]

    @property
    def codes(self) -> int:
        """How many codes are judged together."""
        ...

    def score(self, codes: Sequence[Code]) -> Score:
        """Judge a set of codes.

        Raises:
            InvalidSequence: Number, length or alphabet of the codes do not fit.
        """
        ...

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """float64 [count] of int8 [count, codes, n]: what a search makes small, in double precision."""
        ...


KINDS: dict[str, type[Any]] = {}
"""Objectives by name."""


def register(kind: type[Any]) -> type[Any]:
    """Make an objective known by its name."""
    KINDS[kind.name] = kind
    return kind


def make(name: str, params: Mapping[str, Any] | None = None) -> Any:
    """The objective of this name with these parameters.

    Raises:
        InvalidRequest: No such objective, or a parameter it does not have.
    """
    if name not in KINDS:
        raise InvalidRequest(f"objective: '{name}' is none of {', '.join(sorted(KINDS))}", param="objective")
    known = {item.name for item in dataclasses.fields(KINDS[name])}
    given = {key: value for key, value in (params or {}).items() if value is not None}
    unknown = sorted(set(given) - known)
    if unknown:
        raise InvalidRequest(
            f"{unknown[0]}: '{name}' takes {', '.join(sorted(known)) or 'no parameters'}", param=unknown[0]
        )
    return KINDS[name](**given)


def counted(codes: Sequence[Code], count: int) -> int:
    """Check that there are ``count`` codes of one length; answers the length."""
    if len(codes) != count:
        raise InvalidSequence(f"codes: {count} expected, {len(codes)} given")
    lengths = {len(code) for code in codes}
    if len(lengths) != 1:
        raise InvalidSequence(f"codes: all must have one length; these have {sorted(lengths)}")
    return lengths.pop()


def _sidelobes(code: Code) -> np.ndarray:
    sidelobes: np.ndarray = np.abs(autocorrelation(code)[1:])
    return sidelobes


@register
@dataclass(frozen=True)
class Energy:
    """E, the sum over lags k >= 1 of |rho(k)|²; twice that is the integrated sidelobe level."""

    name: ClassVar[str] = "labs"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    codes: ClassVar[int] = 1

    def score(self, codes: Sequence[Code]) -> Score:
        """E with merit factor n² / 2E, peak sidelobe and integrated sidelobe level."""
        n = counted(codes, 1)
        whole = squares(codes[0])
        sidelobes = _sidelobes(codes[0])
        energy = float((sidelobes**2).sum()) if whole is None else float(sum(whole))
        facts = {"psl": float(sidelobes.max()), "isl": 2 * energy}
        if energy > 0:
            facts["merit"] = n * n / (2 * energy)
        return Score(energy, None if whole is None else Fraction(sum(whole)), facts)

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """E."""
        rho = autocorrelations(signs[:, 0])[:, 1:].astype(np.float64)
        total: np.ndarray = (rho * rho).sum(1)
        return total


@register
@dataclass(frozen=True)
class Merit(Energy):
    """Golay's merit factor n² / 2E."""

    name: ClassVar[str] = "merit"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def score(self, codes: Sequence[Code]) -> Score:
        """The merit factor.

        Raises:
            InvalidSequence: There is no sidelobe at all, so the factor has no value.
        """
        energy = super().score(codes)
        if energy.value == 0:
            raise InvalidSequence("code: has no sidelobes; its merit factor is infinite")
        n = len(codes[0])
        exact = None if energy.exact is None else Fraction(n * n) / (2 * energy.exact)
        return Score(n * n / (2 * energy.value), exact, {**energy.facts, "energy": energy.value})


@register
@dataclass(frozen=True)
class PeakSidelobe:
    """The largest |rho(k)| at a lag k >= 1."""

    name: ClassVar[str] = "psl"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    codes: ClassVar[int] = 1

    def score(self, codes: Sequence[Code]) -> Score:
        """The peak, exact where it is a whole number."""
        counted(codes, 1)
        whole = squares(codes[0])
        peak = float(_sidelobes(codes[0]).max()) if whole is None else math.sqrt(max(whole))
        exact = Fraction(math.isqrt(max(whole))) if whole and math.isqrt(max(whole)) ** 2 == max(whole) else None
        return Score(peak, exact, {"peaks": int(np.isclose(_sidelobes(codes[0]), peak).sum())})

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """The peak, then how high the sidelobes are as a whole: a slope for the search."""
        rho = np.abs(autocorrelations(signs[:, 0])[:, 1:]).astype(np.float64)
        peak = rho.max(1)
        cost: np.ndarray = peak + (rho**4).sum(1) / (rho.shape[1] * (peak + 1) ** 4)
        return cost


@register
@dataclass(frozen=True)
class Integrated(Energy):
    """Integrated sidelobe level: twice the energy, since both signs of a lag count."""

    name: ClassVar[str] = "isl"

    def score(self, codes: Sequence[Code]) -> Score:
        """Twice E."""
        energy = super().score(codes)
        return Score(2 * energy.value, None if energy.exact is None else 2 * energy.exact, energy.facts)


@register
@dataclass(frozen=True)
class Sir:
    """Signal to interference ratio with the best mismatched filter of ``length`` taps that loses at most ``loss_min``.

    ``loss_min`` (dB, at most 0) bounds the processing gain lost to the matched filter; None sets no bound.
    ``ridge`` is white noise that a *search* adds, to be led to codes whose filters lose little; it changes no score.
    """

    name: ClassVar[str] = "mmf-sir"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    codes: ClassVar[int] = 1
    length: int | None = None
    loss_min: float | None = None
    ridge: float = 0.0

    def score(self, codes: Sequence[Code]) -> Score:
        """The ratio as a fraction, with the filter, its loss and the merit factor (the matched filter's ratio)."""
        counted(codes, 1)
        found = best_filter(codes[0], self.length, self.loss_min)
        energy = Energy().score(codes)
        facts = {
            "loss_db": found.loss,
            "sir_db": 10 * math.log10(found.sir),
            "taps": self.length or len(codes[0]),
            **energy.facts,
        }
        return Score(float(found.sir), found.sir, facts, found.taps)

    def costs(self, signs: np.ndarray) -> np.ndarray:
        """Minus the ratio; where rounding left nothing, minus infinity, so that the exact score decides."""
        ratios = sir_batch(signs[:, 0], self.length, self.ridge)
        return -np.where(np.isnan(ratios), np.inf, ratios)
