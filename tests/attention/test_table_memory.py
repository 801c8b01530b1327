"""Pieces of memory for tables: nobody shares one, and what is let go is the system's again."""

from __future__ import annotations

import mmap
import random
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from statepool.engine.attention.wave.memory import take


def test_no_two_live_pieces_overlap():
    rng = random.Random(3)
    live: list[tuple[np.ndarray, int]] = []
    for number in range(400):
        if live and rng.random() < 0.5:
            live.pop(rng.randrange(len(live)))
        size = rng.choice([1, 5000, (1 << 19) + 1, 3 << 19, 17 << 20])
        array = take(size)
        assert array.nbytes == size
        array[[0, -1]] = number % 251
        live.append((array, number % 251))
        live = live[-12:]
        for held, mark in live:
            assert held[0] == held[-1] == mark
        borders = sorted((held.ctypes.data, held.ctypes.data + held.nbytes) for held, _ in live)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(borders))


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"), reason="reads Linux's counters")
def test_pieces_that_nobody_looks_into_are_not_resident():
    size, before = 3 << 20, resident()
    pieces = [take(size) for _ in range(32)]
    for piece in pieces:
        piece[:] = 1
    assert resident() - before > 24 * size
    kept = pieces[5][100:200].view(np.uint32).reshape(5, 5)
    del piece, pieces
    assert resident() - before < 8 * size  # the view's piece, and rests of huge pages
    assert (kept == 0x01010101).all()
    again = [take(size) for _ in range(31)]
    assert all(
        (array.ctypes.data + size <= kept.ctypes.data) or (array.ctypes.data > kept.ctypes.data) for array in again
    )


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
