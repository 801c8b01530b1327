"""A scan of 3-manifolds: verdicts, distances of boundary-reducing slopes, and the graph of distances of a manifold."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from statepool.core.errors import NotFound
from statepool.dashboard.tail import Tail

__all__ = ["ScanView"]

_SHOWN = 200
_SLOPES = 12


class ScanView:
    """The summaries of one scan."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path, b'"kind":"summary"', b'"kind":"skipped"')
        self._clear()

    def _clear(self) -> None:
        self._manifolds: list[dict[str, Any]] = []
        self._verdicts: Counter[str] = Counter()
        self._distances: Counter[int] = Counter()
        self._breaches: list[str] = []
        self._skipped = 0

    def look(self) -> dict[str, Any]:
        """Counts over the scan, and the last manifolds."""
        anew, lines = self._tail.look()
        if anew:
            self._clear()
        for line in lines:
            self._take(line)
        return {
            "manifolds": len(self._manifolds),
            "skipped": self._skipped,
            "verdicts": dict(self._verdicts.most_common()),
            "distances": sorted(self._distances.items()),
            "bound": 8,
            "breaches": self._breaches,
            "last": self._manifolds[-_SHOWN:][::-1],
        }

    def slopes(self, query: dict[str, str]) -> dict[str, Any]:
        """The graph of distances of one manifold: ``query["manifold"]`` is its isosig.

        Raises:
            NotFound: the scan has no such manifold.
        """
        name = query.get("manifold", "")
        if all(each["isosig"] != name for each in self._manifolds):
            raise NotFound(f"the scan has no manifold {name!r}")
        return _graph(name)

    def _take(self, line: dict[str, Any]) -> None:
        if line["kind"] == "skipped":
            self._skipped += 1
            return
        self._verdicts.update(line["verdicts"])
        self._distances.update(distance for _, _, distance in line["distances"])
        self._breaches += line["breaches"]
        kept = ("isosig", "genus", "slopes", "verdicts", "distances")
        self._manifolds.append({name: line[name] for name in kept})


@lru_cache(maxsize=64)
def _graph(isosig: str) -> dict[str, Any]:
    from statepool.tasks.topology.boundary import Boundary
    from statepool.tasks.topology.handles import decide
    from statepool.tasks.topology.manifold import from_isosig

    boundary = Boundary(from_isosig(isosig))
    slopes = list(boundary.slopes(_SLOPES))
    return {
        "isosig": isosig,
        "slopes": [
            {
                "weights": list(slope.weights),
                "separating": slope.separating,
                "verdict": decide(boundary, slope).verdict,
            }
            for slope in slopes
        ],
        "distances": [[boundary.distance(one, two) for two in slopes] for one in slopes],
    }
