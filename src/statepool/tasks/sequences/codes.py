"""A code: phases from a finite alphabet, and the texts it is written as."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from statepool.tasks.sequences.errors import InvalidSequence

__all__ = ["Code", "from_hex", "from_runs", "from_signs", "from_values", "parse"]

SHORTEST, LARGEST_ALPHABET = 2, 4096


@dataclass(frozen=True)
class Code:
    """Symbols exp(2 pi j p / alphabet), one phase p per symbol; alphabet 2 is +1 (0) and -1 (1).

    Raises:
        InvalidSequence: Fewer than 2 symbols, or a phase outside the alphabet.
    """

    phases: tuple[int, ...]
    alphabet: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.alphabet <= LARGEST_ALPHABET:
            raise InvalidSequence(f"alphabet: must be from 2 to {LARGEST_ALPHABET}, not {self.alphabet}")
        if len(self.phases) < SHORTEST:
            raise InvalidSequence(f"code: needs at least {SHORTEST} symbols, has {len(self.phases)}")
        for place, phase in enumerate(self.phases):
            if not 0 <= phase < self.alphabet:
                raise InvalidSequence(f"code: phase {phase} at place {place} must be from 0 to {self.alphabet - 1}")

    def __len__(self) -> int:
        return len(self.phases)

    @property
    def binary(self) -> bool:
        """Whether the symbols are +1 and -1."""
        return self.alphabet == 2

    @property
    def signs(self) -> np.ndarray:
        """int8 [n] of +1 and -1.

        Raises:
            InvalidSequence: The code is not binary.
        """
        if not self.binary:
            raise InvalidSequence(f"code: must be binary here; its alphabet has {self.alphabet} phases")
        return (1 - 2 * np.array(self.phases)).astype(np.int8)

    @property
    def values(self) -> np.ndarray:
        """complex128 [n]; exact for alphabets 2 and 4."""
        if self.alphabet in (2, 4):
            return np.array([1, -1] if self.binary else [1, 1j, -1, -1j], np.complex128)[list(self.phases)]
        return np.exp(2j * np.pi * np.array(self.phases) / self.alphabet)

    @property
    def text(self) -> str:
        """``+`` and ``-``, or the phases with spaces between."""
        return "".join("+-"[p] for p in self.phases) if self.binary else " ".join(map(str, self.phases))

    @property
    def hex(self) -> str:
        """A binary code as a number: the first symbol is the most significant of n bits, bit 1 is -1."""
        bits = int("".join("01"[int(sign < 0)] for sign in self.signs), 2)
        return f"{bits:0{math.ceil(len(self) / 4)}x}"

    @property
    def runs(self) -> str:
        """Lengths of the runs of equal symbols of a binary code; the first symbol is not told (it is taken as +)."""
        return " ".join(str(len(list(run))) for _, run in groupby(self.signs.tolist()))


def from_signs(text: str) -> Code:
    """A binary code written with ``+`` and ``-`` (white space is ignored)."""
    text = "".join(text.split())
    wrong = re.search(r"[^+\-]", text)
    if wrong:
        raise InvalidSequence(f"code: '{wrong[0]}' at place {wrong.start()} is neither + nor -")
    return Code(tuple("+-".index(sign) for sign in text))


def from_values(values: Iterable[Any]) -> Code:
    """A binary code of numbers that are +1 or -1."""
    phases = []
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or value not in (1, -1):
            raise InvalidSequence(f"code: symbol {place} is {value!r}; it must be 1 or -1")
        phases.append(int(value < 0))
    return Code(tuple(phases))


def from_hex(text: str, n: int) -> Code:
    """The inverse of :attr:`Code.hex`; ``n`` is the number of symbols."""
    digits = text.removeprefix("0x").lower()
    if n < SHORTEST:
        raise InvalidSequence(f"n: must be at least {SHORTEST}, not {n}")
    if not re.fullmatch(r"[0-9a-f]+", digits):
        raise InvalidSequence(f"hex: '{text}' is no hexadecimal number")
    if len(digits) != math.ceil(n / 4):
        raise InvalidSequence(f"hex: {n} symbols need {math.ceil(n / 4)} digits, there are {len(digits)}")
    number = int(digits, 16)
    if number >> n:
        raise InvalidSequence(f"hex: '{text}' has bits set before the first of {n} symbols")
    return Code(tuple(number >> (n - 1 - i) & 1 for i in range(n)))


def from_runs(text: str) -> Code:
    """A binary code from its run lengths: with separators, or one digit (then letters from a = 10) per run."""
    parts = re.split(r"[\s,]+", text.strip())
    if len(parts) == 1:
        parts = [str(int(c, 36)) if c.isalnum() and c.isascii() else c for c in parts[0]]
    phases: list[int] = []
    for number, part in enumerate(parts):
        if not part.isdigit() or int(part) < 1 or int(part) > 1 << 20:
            raise InvalidSequence(f"runs: '{part}' is no length of a run")
        phases += [number % 2] * int(part)
    return Code(tuple(phases))


def parse(text: str, *, alphabet: int = 2, n: int | None = None) -> Code:
    """A code from whatever it is written as: signs, 1 and -1, phases (alphabet > 2), ``hex:…`` with n, ``runs:…``.

    Raises:
        InvalidSequence: The text is none of these, or does not fit the alphabet or the length.
    """
    text = text.strip()
    if text.startswith("hex:"):
        if n is None:
            raise InvalidSequence("n: a code in hexadecimal digits needs its number of symbols")
        return from_hex(text[4:], n)
    if text.startswith("runs:"):
        code = from_runs(text[5:])
    elif alphabet == 2 and (set("".join(text.split())) <= {"+", "-"} or set(text[:2]) <= {"+", "-"}):
        code = from_signs(text)
    else:
        numbers = _numbers(re.split(r"[\s,]+", text.strip("[]() ")))
        if alphabet == 2:
            code = from_values(numbers)
        else:
            for place, number in enumerate(numbers):
                if number != int(number):
                    raise InvalidSequence(f"code: phase {number} at place {place} is no whole number")
            code = Code(tuple(map(int, numbers)), alphabet)
    if n is not None and len(code) != n:
        raise InvalidSequence(f"n: the code has {len(code)} symbols, not {n}")
    return code


def _numbers(parts: Sequence[str]) -> list[float]:
    numbers = []
    for place, part in enumerate(parts):
        try:
            number = float(part)
        except ValueError:
            raise InvalidSequence(f"code: '{part[:20]}' at place {place} is no symbol") from None
        if not math.isfinite(number):
            raise InvalidSequence(f"code: symbol {place} is {part}; it must be a finite number")
        numbers.append(number)
    return numbers
