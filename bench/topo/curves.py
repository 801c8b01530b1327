"""T1 and T3: the census, and distances against curver's."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from random import Random

from bench.machine import LoadWatch
from bench.peers.setup import python_of
from bench.row import Row
from statepool.tasks.topology.boundary import Boundary
from statepool.tasks.topology.censuses import census
from statepool.tasks.topology.manifold import from_isosig

PUBLISHED = {2: 8, 3: 74, 4: 2340, 5: 98_204}
"""One edge: Fujii; Frigerio, Martelli and Petronio. The last one was counted here."""
WORKER = Path(__file__).parent.parent / "workers" / "topo_curver.py"
PAIRS, QUICK_PAIRS = 10_000, 160


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    for name, rows in (("T1", _census), ("T3", _distances)):
        if not only or name in only:
            watch = LoadWatch()
            for row in rows(quick):
                row.command, row.load = f"python -m bench topo --only {name}", watch.stop()
                yield row


def _census(quick: bool) -> Iterator[Row]:
    sizes = [n for n in PUBLISHED if n < 5 or not quick]
    row = Row("T1", "censuses with one edge whose count is the published one", f"of {len(sizes)}", "higher", len(sizes))
    right, told = 0, []
    for n in sizes:
        started = time.monotonic()
        count = len(set(census(n)))
        right += count == PUBLISHED[n]
        told.append(f"{n} tetrahedra: {count:,} in {time.monotonic() - started:.1f} s")
    row.value, row.own, row.note = float(right), f"{right}", "; ".join(told)
    yield row


def _distances(quick: bool) -> Iterator[Row]:
    """Pairs of slopes of genus two, as geodesics: those are in least position with the vertex as a puncture too."""
    count = QUICK_PAIRS if quick else PAIRS
    agree = Row("T3", "pairs of slopes whose distance is curver's", "%", "higher", 100.0, peer="curver 0.5.1")
    faster = Row(
        "T3b", "the same pairs, time with what is done once per curve", "x", "higher", 500.0, peer="curver 0.5.1"
    )
    python = python_of("topo")
    if python is None:
        agree.note = faster.note = "curver is not installed: make bench-setup ARGS=topo"
        yield from (agree, faster)
        return
    noise, asked, found, ours = Random(3), [], [], 0.0
    sigs = list(census(2))
    for sig in sigs:
        boundary = Boundary(from_isosig(sig))
        slopes = [*boundary.slopes(120), *boundary.slopes(60, separating=False)]
        pairs = noise.sample(list(combinations(range(len(slopes)), 2)), count // len(sigs))
        used = sorted({i for pair in pairs for i in pair})
        pairs = [(used.index(i), used.index(j)) for i, j in pairs]
        slopes = [slopes[i] for i in used]
        fresh = Boundary(from_isosig(sig))
        fresh.surface  # noqa: B018 - the metric is made once per manifold
        started = time.process_time()
        found += [fresh.distance(slopes[i], slopes[j]) for i, j in pairs]
        ours += time.process_time() - started
        asked.append({"triangles": _triangles(boundary), "curves": [s.key for s in slopes], "pairs": pairs})
    done = subprocess.run([python, WORKER], input=json.dumps(asked), capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    theirs = [distance for answer in answers for distance in answer["found"]]
    total, same = len(found), sum(a == b for a, b in zip(found, theirs, strict=True))
    made, crossed = (sum(answer[name] for answer in answers) for name in ("made", "crossed"))
    agree.value, agree.own = 100.0 * same / total, f"{same:,} of {total:,}"
    faster.value, faster.own = (made + crossed) / ours, f"{1e6 * ours / total:.1f} us"
    faster.peer_value, faster.peer_unit = 1e6 * (made + crossed) / total, "us"
    faster.note = (
        f"processor seconds per pair, with what each side does once per curve (our geodesics, curver's curves); "
        f"curver's pairs alone {1e6 * crossed / total:.0f} us"
    )
    yield from (agree, faster)


def _triangles(boundary: Boundary) -> list[list[int]]:
    """Edges of each triangle; ~e where the edge is met the second time."""
    met: set[int] = set()
    rows = []
    for t in range(len(boundary.edge) // 3):
        row = []
        for edge in boundary.edge[3 * t : 3 * t + 3]:
            row.append(~edge if edge in met else edge)
            met.add(edge)
        rows.append(row)
    return rows
