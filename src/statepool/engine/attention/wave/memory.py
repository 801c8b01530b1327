"""Memory for segments: pieces of larger areas, because one segment's tables are shorter than a huge page.

A step reads from thousands of places in them. In pages of 4 KiB that is more than a processor remembers the addresses
of, and looking those up takes as long as reading.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

_HUGE, _AREA, _SMALLEST, _LINE = 2 << 20, 16 << 20, 1 << 19, 64

_Piece = tuple[mmap.mmap, int]
_free: dict[int, deque[_Piece]] = {}
"""Pieces in no use, by size."""


def take(size: int) -> npt.NDArray[np.uint8]:
    """``size`` bytes that hold anything, from the begin of a cache line on.

    Their pages go back to the system once no array looks into them; the addresses wait for the next of the same size.
    """
    if size < _SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        plain = np.empty(size + _LINE, np.uint8)
        begin = -plain.ctypes.data % _LINE
        return plain[begin : begin + size]
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    # Single operations of a deque are atomic: the garbage collector gives back in any thread, at any time.
    free = _free.setdefault(whole, deque())
    try:
        area, start = free.pop()
    except IndexError:
        (area, start), *others = _pieces(whole)
        free.extend(reversed(others))
    piece = np.frombuffer(area, np.uint8, size, start)
    weakref.finalize(piece, _give_back, area, start, whole).atexit = False
    return piece


def _pieces(whole: int) -> list[_Piece]:
    """The pieces of a new area, whose memory is taken from the system when it is written."""
    count = max(_AREA // whole, 1)
    area = mmap.mmap(-1, count * whole + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    first = -np.frombuffer(area, np.uint8).ctypes.data % _HUGE
    return [(area, first + i * whole) for i in range(count)]


def _give_back(area: mmap.mmap, start: int, whole: int) -> None:
    area.madvise(mmap.MADV_DONTNEED, start, whole)
    _free[whole].append((area, start))
