"""Codes: a leaderboard per problem, and the correlations of one code."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statepool.core.errors import InvalidRequest, NotFound
from statepool.dashboard.tail import Tail

if TYPE_CHECKING:
    from statepool.tasks.sequences.records import Record

__all__ = ["Codes"]

_PLACES = 10


class Codes:
    """Certificates of a search, the archive of a store, or both.

    Args:
        records: file that a search appends to.
        archive: folder or address of a store; opened at each look and closed again, so that searches can write.
    """

    def __init__(self, records: Path | None, archive: str | None) -> None:
        self._tail = None if records is None else Tail(records, b'"problem"')
        self._archive = archive
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, Record]] = {}
        """Records by board and orbit."""

    def look(self) -> dict[str, Any]:
        """The boards, each with its best records, best first."""
        boards = self._boards()
        return {
            "boards": [
                {
                    "name": name,
                    "problem": records[0].problem,
                    "n": len(records[0].codes[0]),
                    "better": _better(records[0]),
                    "best": [_row(record) for record in records],
                }
                for name, records in boards.items()
            ]
        }

    def code(self, query: dict[str, str]) -> dict[str, Any]:
        """Correlations of the code at a place of a board: ``query`` has ``board`` and ``place``, from 0.

        Raises:
            NotFound: there is no such code.
        """
        import numpy as np

        from statepool.tasks.sequences.correlation import autocorrelation

        place = query.get("place", "0")
        if not place.isdigit():
            raise InvalidRequest(f"place must be a number from 0, got {place!r}", param="place")
        records = self._boards().get(query.get("board", ""), [])
        if int(place) >= len(records):
            raise NotFound(f"there is no code {place} on the board {query.get('board', '')!r}")
        record = records[int(place)]
        curves = []
        for code in record.codes:
            half = np.abs(autocorrelation(code)).astype(float)
            both = np.concatenate([half[:0:-1], half]) / half[0]
            curves.append([round(float(each), 5) for each in both])
        return {**_row(record), "correlations": curves}

    def _boards(self) -> dict[str, list[Record]]:
        with self._lock:
            boards = self._searched()
        if self._archive is not None:
            boards |= _archived(self._archive)
        return dict(sorted(boards.items()))

    def _searched(self) -> dict[str, list[Record]]:
        from statepool.tasks.sequences.records import Record

        if self._tail is not None:
            anew, lines = self._tail.look()
            if anew:
                self._found.clear()
            for line in lines:
                record = Record.parse(json.dumps(line))
                held = self._found.setdefault(_board(record), {}).get(record.orbit_key)
                if held is None or _rank(record) < _rank(held):
                    self._found[_board(record)][record.orbit_key] = record
        return {name: sorted(found.values(), key=_rank)[:_PLACES] for name, found in self._found.items()}


def _archived(where: str) -> dict[str, list[Record]]:
    from statepool.tasks.sequences.archive import Archive

    with Archive(where) as archive:
        leaders = list(archive.boards())
        return {
            _board(record): list(archive.best(record.problem, len(record.codes[0]), record.params, _PLACES))
            for _, record in leaders
        }


def _board(record: Record) -> str:
    params = " ".join(f"{name}={value}" for name, value in sorted(record.params.items()))
    return f"{record.problem} n={len(record.codes[0])} {params}".strip()


def _better(record: Record) -> str:
    from statepool.tasks.sequences.objectives import KINDS

    return str(KINDS[record.problem].better)


def _rank(record: Record) -> float:
    return -record.number if _better(record) == "higher" else record.number


def _row(record: Record) -> dict[str, Any]:
    return {
        "value": record.number,
        "exact": record.value,
        "codes": [code.text for code in record.codes],
        "seed": record.seed,
    }
