"""The front-end's page cache against twins of its policy and of LRU, page by page."""

from __future__ import annotations

import random
import subprocess
import sys
from array import array
from collections import OrderedDict

import pytest

from statepool.native import _store  # type: ignore[attr-defined]


def lru(trace: list[int], room: int) -> int:
    """Misses of a cache whose least recently used page goes."""
    kept: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for page in trace:
        if page in kept:
            kept.move_to_end(page)
            continue
        misses += 1
        if len(kept) == room:
            kept.popitem(last=False)
        kept[page] = None
    return misses


def sieve(trace: list[int], room: int) -> int:
    """Misses of SIEVE as its paper (Zhang et al., NSDI 2024, algorithm 1) has it, on a plain list, the newest first."""
    queue: list[int] = []
    visited: dict[int, bool] = {}
    misses, hand = 0, -1  # index from the end of the list, which insertions at the front do not move
    for page in trace:
        if page in visited:
            visited[page] = True
            continue
        misses += 1
        if len(queue) == room:
            while visited[queue[hand]]:
                visited[queue[hand]] = False
                hand = hand - 1 if -hand < room else -1
            del visited[queue[hand]]
            del queue[hand]  # the next newer page has its index now
            if -hand == room:
                hand = -1
        queue.insert(0, page)
        visited[page] = False
    return misses


@pytest.mark.parametrize("room", [1, 2, 7, 100, 2000])
@pytest.mark.parametrize("seed", range(4))
def test_it_keeps_what_its_policy_keeps(room: int, seed: int) -> None:
    draw = random.Random(seed)
    trace = [int(draw.paretovariate(0.7)) % 1500 for _ in range(20_000)]
    packed = array("I", trace).tobytes()
    assert _store.cache_trace(packed, room, False)[0] == sieve(trace, room)
    assert _store.cache_trace(packed, room, True)[0] == lru(trace, room)


_LARGE_BATCHES = """
from statepool.native import _store
for kind in range(1, 9):
    arms = [_store.ablation(kind, *3 * [arm], 20_000, 3000, 100, 0.99, 0.01, 1) for arm in (False, True)]
    assert arms[0]["found"] == arms[1]["found"] and arms[0]["size"] == arms[1]["size"], kind
"""


def test_batches_larger_than_the_cache_come_to_their_end() -> None:
    subprocess.run([sys.executable, "-c", _LARGE_BATCHES], check=True, timeout=100)
