"""The changes of a log all at once: what is left of them in the end is linked by one build, on all cores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statepool.core.errors import Corruption

from .changes import Change, Kind
from .check import cores
from .view import Parts

__all__ = ["load"]


def load(parts: Parts, changes: Sequence[tuple[Kind, Change]]) -> None:
    """Bring ``parts``, which nobody else has yet, to where the changes lead, one after the other.

    Rows that a later change replaced or deleted are passed over, so an index of many changes opens as fast as one of
    the few rows that are left.

    Raises:
        Corruption: a row that no index would have taken.
    """
    if parts.names is not None:
        for kind, change in changes:
            if kind == "add" and change.texts is not None:
                parts.names.learn(change.texts, change.ids)
    last: dict[int, tuple[int, int]] = {}
    for number, (kind, change) in enumerate(changes):
        named = change.ids.tolist()
        if kind != "add":
            for one in named:
                last.pop(one, None)
                place = parts.base.place(one)
                if place is not None:
                    parts.gone[place] = True
        if kind != "delete":
            last.update((one, (number, row)) for row, one in enumerate(named))
    if not last:
        return
    by_change: dict[int, list[int]] = {}
    for number, row in last.values():
        by_change.setdefault(number, []).append(row)
    chosen = [(changes[number][1], rows) for number, rows in by_change.items()]
    labels = np.concatenate([change.ids[rows] for change, rows in chosen])
    try:
        parts.live.fill(
            np.ascontiguousarray(np.concatenate([change.rows[rows] for change, rows in chosen]), np.float32),
            labels.astype(np.uint64),
            cores(0),
        )
    except ValueError as error:
        raise Corruption(f"log: holds a change that no index takes ({error})") from None
    values = {
        name: np.concatenate([change.columns[name][rows] for change, rows in chosen]) for name in parts.columns.types
    }
    parts.columns.put(np.arange(len(labels)), values)
