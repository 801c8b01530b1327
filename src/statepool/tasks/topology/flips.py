"""A triangulated surface whose edges are flipped under a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from statepool.tasks.topology.boundary import Boundary

__all__ = ["Flippable"]

_SEEN = 20_000


@dataclass
class Flippable:
    """Triangles as three edges in anticlockwise order, and how often a curve crosses each edge."""

    triangles: list[tuple[int, int, int]]
    weights: list[int]

    @staticmethod
    def of(boundary: Boundary, weights: Sequence[int]) -> Flippable:
        """The boundary model with a curve."""
        rows = [tuple(boundary.edge[3 * t : 3 * t + 3]) for t in range(len(boundary.edge) // 3)]
        return Flippable(rows, list(weights))  # type: ignore[arg-type]

    @property
    def crossings(self) -> int:
        """Of the curve with all edges."""
        return sum(self.weights)

    def flip(self, edge: int) -> bool:
        """Replace an edge by the other diagonal; False if it is no edge or has the same triangle on both sides."""
        at = [(t, row.index(edge)) for t, row in enumerate(self.triangles) if edge in row]
        if len(at) != 2:
            return False
        (t, i), (u, j) = at
        a, b = (self.triangles[t][(i + k) % 3] for k in (1, 2))
        c, d = (self.triangles[u][(j + k) % 3] for k in (1, 2))
        w = self.weights
        w[edge] = max(w[a] + w[c], w[b] + w[d]) - w[edge]
        self.triangles[t], self.triangles[u] = (edge, b, c), (edge, d, a)
        return True

    def shortest_descent(self) -> list[int]:
        """Flips that lead to two crossings: few of them, the smallest curve first; [] if none was found."""
        queue: list[tuple[int, int, list[int]]] = [(self.crossings, 0, [])]
        seen = {tuple(self.weights)}
        while queue and len(seen) < _SEEN:
            crossings, _, path = heappop(queue)
            if crossings == 2:
                return path
            for edge in range(len(self.weights)):
                copy = Flippable(list(self.triangles), list(self.weights))
                ok = all(copy.flip(e) for e in [*path, edge])
                if ok and tuple(copy.weights) not in seen:
                    seen.add(tuple(copy.weights))
                    heappush(queue, (copy.crossings, len(path) + 1, [*path, edge]))
        return []
