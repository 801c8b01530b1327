"""All oriented ideal triangulations with one boundary component and a given number of tetrahedra and edges.

With one edge they are the hyperbolic manifolds with geodesic boundary of least complexity (Fujii; Frigerio, Martelli
and Petronio): 8, 74, 2340 for two, three, four tetrahedra. Regina's search cannot be interrupted, so it runs in a
process of its own, which ends with whoever reads it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

from statepool.core.errors import InvalidRequest
from statepool.tasks.topology.errors import OutOfTime

__all__ = ["census"]

_MOST = 7


def census(tetrahedra: int, edges: int = 1, *, seconds: float | None = None) -> Iterator[str]:
    """Isomorphism signatures, as they are found; the boundary has genus tetrahedra + 1 - edges.

    Raises:
        InvalidRequest: There are no such manifolds.
        OutOfTime: The search took longer than ``seconds``.
    """
    if not 1 <= tetrahedra <= _MOST:
        raise InvalidRequest(f"tets: a census takes 1 to {_MOST} tetrahedra, not {tetrahedra}", param="tets")
    if not 1 <= edges <= tetrahedra - 1:
        raise InvalidRequest(
            f"edges: with {tetrahedra} tetrahedra a boundary of genus two or more needs 1 to {tetrahedra - 1} edges, "
            f"not {edges}",
            param="edges",
        )
    return _read(tetrahedra, edges, seconds)


def _read(tetrahedra: int, edges: int, seconds: float | None) -> Iterator[str]:
    command = [sys.executable, "-m", "statepool.tasks.topology.censuses", str(tetrahedra), str(edges)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as search:
        late = threading.Event()

        def stop() -> None:
            late.set()
            search.kill()

        timer = threading.Timer(seconds, stop) if seconds is not None else None
        if timer is not None:
            timer.start()
        try:
            assert search.stdout is not None
            for line in search.stdout:
                yield line.strip()
            if search.wait() and not late.is_set():
                raise InvalidRequest("census: Regina's search failed; pip install 'statepool[topology]' brings it")
        finally:
            search.kill()
            if timer is not None:
                timer.cancel()
        if late.is_set():
            raise OutOfTime(f"census: the search for {tetrahedra} tetrahedra took longer than {seconds:g} s")


def _search(tetrahedra: int, edges: int) -> None:
    """Print the signatures."""
    import regina

    def keep(search: object) -> None:
        if search is None:
            return
        found = search.triangulate()  # type: ignore[attr-defined]
        if found.isValid() and found.countVertices() == 1 and found.countEdges() == edges:
            sys.stdout.write(found.isoSig() + "\n")

    def fill(pairing: object, symmetries: object) -> None:
        if pairing is not None:
            regina.GluingPermSearcher3.findAllPerms(pairing, symmetries, True, False, regina.CensusPurge(0), keep)
            sys.stdout.flush()

    regina.FacetPairing3.findAllPairings(tetrahedra, regina.BoolSet(False), 0, fill)


if __name__ == "__main__":
    _search(int(sys.argv[1]), int(sys.argv[2]))
