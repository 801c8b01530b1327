"""The keys and values every side gets: 16 bytes and 128 bytes, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from bench.store.systems.base import Pair

KEY, VALUE = 16, 128
KEYS = 100_000
TAIL = (64 << 20) // (KEY + VALUE)
"""Writes that make 64 MiB."""
_VALUES = 1009  # a prime: no key meets the same value each time it is written
_COMMIT = 1000


def keys(count: int = KEYS) -> list[bytes]:
    """``count`` random keys."""
    noise = random.Random(1).randbytes(KEY * count)
    return [noise[start : start + KEY] for start in range(0, KEY * count, KEY)]


def pairs(among: Sequence[bytes], count: int, seed: int) -> list[Pair]:
    """``count`` writes to keys drawn from ``among``."""
    return list(zip(drawn(among, count, seed), values(count, seed), strict=True))


def drawn(among: Sequence[bytes], count: int, seed: int) -> list[bytes]:
    """``count`` keys in random order, copied so that they lie in memory in that order.

    Otherwise the loop itself waits for memory at every key, as long as some stores take for a whole operation.
    """
    return [bytes(bytearray(key)) for key in random.Random(seed).choices(among, k=count)]


def values(count: int, seed: int) -> list[bytes]:
    """``count`` values that do not compress."""
    noise = random.Random(seed).randbytes(VALUE * _VALUES)
    pool = [noise[start : start + VALUE] for start in range(0, VALUE * _VALUES, VALUE)]
    return [pool[place % _VALUES] for place in range(count)]


def commits(found: Sequence[Pair] | Iterator[Pair], size: int = _COMMIT) -> Iterator[list[Pair]]:
    """``found`` in commits of ``size``."""
    rest = iter(found)
    while part := list(islice(rest, size)):
        yield part
