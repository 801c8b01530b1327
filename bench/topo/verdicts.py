"""T2 and T4 to T7: verdicts on planted and on plain slopes, their speed, and the scan with the theorem watch."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from bench.machine import LoadWatch
from bench.row import Row
from statepool.tasks.topology.boundary import Boundary
from statepool.tasks.topology.censuses import census
from statepool.tasks.topology.checker import check_file
from statepool.tasks.topology.drill import planted
from statepool.tasks.topology.handles import certify, decide
from statepool.tasks.topology.manifold import from_isosig
from statepool.tasks.topology.scans import Plan, scan

SIZES = ((2, 1), (3, 1), (4, 2), (4, 1))
"""Censuses of the scan: tetrahedra and edges."""


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    parts = (("T2", _controls), ("T4", _speed), ("T5", _scan), ("T7", _planting))
    for name, rows in parts:
        if not only or name in only or (name == "T5" and "T6" in only):
            watch = LoadWatch()
            for row in rows(quick):
                row.command, row.load = f"python -m bench topo --only {name}", watch.stop()
                yield row


def _controls(quick: bool) -> Iterator[Row]:
    plants, searched, slopes = (10, 60, 40) if quick else (200, 200, 400)
    row = Row("T2", f"planted slopes that are found: the only positive of {searched} slopes", "%", "higher", 100.0)
    known = found = 0
    for item in islice(planted(1), plants):
        boundary = Boundary(item.manifold)
        known += decide(boundary, item.slope).verdict == "boundary-reducible"
        positive = {s.key for s in boundary.slopes(searched) if decide(boundary, s).verdict == "boundary-reducible"}
        found += positive == {item.slope.key}
    row.value, row.own = 100.0 * found / plants, f"{found} of {plants}"
    row.note = f"decided at the slope known from the drilling: {known} of {plants}"
    yield row
    wrong = Row("T2b", f"boundary-reducing verdicts on 8 x {slopes} slopes that have none", "slopes", "lower", 0.0)
    counts: Counter[str] = Counter()
    for sig in census(2):
        boundary = Boundary(from_isosig(sig))
        counts.update(decide(boundary, slope).verdict for slope in boundary.slopes(slopes))
    wrong.value = float(counts["boundary-reducible"] + counts["splits"])
    wrong.own, wrong.note = f"{int(wrong.value)} of {sum(counts.values())}", _told(counts)
    yield wrong


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items()))


def _speed(quick: bool) -> Iterator[Row]:
    row = Row("T4", "slopes per second and core, attached, decided and certified", "1/s", "higher", 200.0)
    open_row = Row("T4b", "undecided slopes", "%", "lower", 0.02)
    sources = [islice(census(tets, edges), None, None, step) for (tets, edges), step in _sample(quick)]
    boundaries = [Boundary(manifold) for manifold in map(from_isosig, chain(*sources)) if certify(manifold) is not None]
    counts: Counter[str] = Counter()
    spent = 0.0
    for boundary in boundaries:
        slopes = list(boundary.slopes(40))
        started = time.process_time()
        counts.update(decide(boundary, slope).verdict for slope in slopes)
        spent += time.process_time() - started
    total = sum(counts.values())
    row.value, row.own = total / spent, f"{1e3 * spent / total:.2f} ms"
    row.note = f"{total:,} slopes of {len(boundaries)} manifolds of genus 2, 3 and 4; processor seconds of one thread"
    yield row
    open_row.value, open_row.own, open_row.note = (
        100.0 * counts["undecided"] / total,
        f"{counts['undecided']}",
        _told(counts),
    )
    yield open_row


def _sample(quick: bool) -> list[tuple[tuple[int, int], int]]:
    return list(zip(SIZES, (4, 20, 400, 400) if quick else (1, 2, 40, 20), strict=True))


def _scan(quick: bool) -> Iterator[Row]:
    """The published run: all censuses, every certificate through the independent checker."""
    size = Row(
        "T5", "slopes of certified simple manifolds, every verdict checked by the checker", "slopes", "higher", 1e5
    )
    checked = Row("T5b", "certificates the checker accepts", "%", "higher", 100.0)
    watch = Row("T6", "breaches of the bound 8, or of at most one slope in genus 2", "pairs", "lower", 0.0)
    sigs = chain(*(islice(census(tets, edges), 6 if quick else None) for tets, edges in SIZES))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scan.jsonl"
        done = scan(sigs, Plan(slopes=40), out, workers=2)
        good = bad = 0
        for _, _, reason in check_file(out):
            good += reason is None
            bad += reason is not None
    total = sum(done.verdicts.values())
    size.value, size.own = float(total), f"{done.manifolds:,} manifolds"
    size.note = f"{_told(done.verdicts)}; {done.skipped:,} triangulations without a strict certificate left out"
    yield size
    checked.value, checked.own = 100.0 * good / (good + bad), f"{good:,} of {good + bad:,} records"
    yield checked
    largest = max((distance for _, distance in done.pairs), default=None)
    watch.value = float(len(done.breaches))
    watch.own = f"{done.verdicts['boundary-reducible']:,} positives, {len(done.pairs)} pairs"
    watch.note = "no manifold with two of them was met" if largest is None else f"largest distance of a pair: {largest}"
    yield watch


def _planting(quick: bool) -> Iterator[Row]:
    row = Row("T7", "simple arc exteriors with a known boundary-reducing slope, per minute", "1/min", "higher", 20.0)
    count = 20 if quick else 500
    started = time.process_time()
    tries = sum(item.tries for item in islice(planted(7), count))
    row.value = 60.0 * count / (time.process_time() - started)
    row.own, row.note = f"{tries:,} arcs for {count}", "different triangulations; processor seconds of one thread"
    yield row
