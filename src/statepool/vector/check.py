"""Arguments as the index needs them, or an error that names the field."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest

from .errors import DimensionError

__all__ = ["check_search", "cores", "floats", "labels", "one_of", "same_width", "within"]


def floats(name: str, array: Any, axes: int) -> np.ndarray:
    """As C-contiguous float32, without a copy where it is that already."""
    found = np.asarray(array)
    if found.dtype == np.float32 and found.ndim == axes and found.flags.c_contiguous:
        return found  # most are; what follows takes as long as some expansions of a search
    if found.dtype.kind not in "fiu":
        raise InvalidRequest(f"{name}: dtype {found.dtype} is not numeric; pass floats", param=name)
    if found.ndim != axes:
        raise DimensionError(f"{name}: has {found.ndim} axes, not {axes}", param=name)
    with np.errstate(over="ignore"):  # what is too large is infinite then, and refused as such
        return np.ascontiguousarray(found, dtype=np.float32)


def same_width(name: str, got: int, dim: int) -> None:
    """Raise DimensionError unless a vector has as many values as the index."""
    if got != dim:
        raise DimensionError(f"{name}: has {got} values per vector; the index has {dim}", param=name)


def labels(ids: Any, count: int) -> np.ndarray:
    """As int64 ``[count]``, each once."""
    found = np.asarray(ids, dtype=np.int64 if count == 0 else None)
    if found.dtype.kind not in "iu" or found.shape != (count,):
        raise InvalidRequest(f"ids: must be {count} integers, one per row of X", param="ids")
    if count and int(found.max()) >= 2**63:
        raise InvalidRequest(f"ids: {found.max()} is above 2^63 - 1", param="ids")
    if len(np.unique(found)) != count:
        raise InvalidRequest("ids: an id occurs twice; every row needs its own", param="ids")
    return found.astype(np.int64)


def cores(threads: int) -> int:
    """Threads to use; 0 means all cores."""
    within("threads", threads, 0, 1024)
    return threads or os.cpu_count() or 1


def one_of(name: str, value: str, known: dict[str, int]) -> None:
    """Raise InvalidRequest unless the value has a name that is known."""
    if value not in known:
        raise InvalidRequest(f"{name}: '{value}' is none of {', '.join(known)}", param=name)


def within(name: str, value: int, least: int, most: int) -> None:
    """Raise InvalidRequest unless the value is an integer of the range."""
    if not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequest(f"{name}: {value!r} is no integer from {least} to {most}", param=name)


def check_search(k: int, ef: int | None) -> int:
    """How many candidates to keep.

    Raises:
        InvalidRequest: ``k`` is below 1 or above ``ef``.
    """
    width = max(64, 2 * k) if ef is None else ef
    if not 1 <= k <= width:
        raise InvalidRequest(f"k: {k} is outside 1 to ef ({width}); raise ef", param="k")
    return width
