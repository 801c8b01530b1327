"""Scans: every slope of many manifolds decided, certified, and watched for what the theorems forbid.

A scan appends one block per manifold: its certificate, one certificate per slope, a summary. A block is synced before
the next begins, and a torn one is cut off when the scan goes on, so a killed scan neither loses nor repeats a
manifold.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.tasks.topology.boundary import Boundary, Slope
from statepool.tasks.topology.checker import FORMAT, Checker
from statepool.tasks.topology.errors import BadCertificate
from statepool.tasks.topology.handles import certify, decide, manifold_record, record_of
from statepool.tasks.topology.manifold import from_isosig

__all__ = ["Plan", "Progress", "block", "read_summaries", "scan"]


@dataclass(frozen=True)
class Plan:
    """What is done with each manifold; the same plan gives the same bytes."""

    slopes: int = 40
    """At most so many slopes per manifold, those that cross the boundary model least."""
    separating: bool = True
    seed: int = 0
    effort: int = 1
    check: bool = False
    """Pass every certificate through the independent checker at once."""


@dataclass
class Progress:
    """Where a scan stands."""

    manifolds: int = 0
    skipped: int = 0
    """Manifolds whose frozen triangulation carries no strict angle structure: not certified, so not scanned."""
    verdicts: Counter[str] = field(default_factory=Counter)
    pairs: list[tuple[str, int]] = field(default_factory=list)
    """(isosig, distance) of every pair of boundary-reducing separating slopes of one manifold."""
    breaches: list[str] = field(default_factory=list)
    resumed: int = 0

    def add(self, summary: dict[str, Any]) -> None:
        """Count a manifold."""
        if summary["kind"] == "skipped":
            self.skipped += 1
            return
        self.manifolds += 1
        self.verdicts.update(summary["verdicts"])
        self.pairs += [(summary["isosig"], distance) for _, _, distance in summary["distances"]]
        self.breaches += summary["breaches"]


def block(isosig: str, plan: Plan) -> list[dict[str, Any]]:
    """The records of one manifold, the summary last.

    Raises:
        BadCertificate: The independent checker refuses one; the record is in the message.
    """
    manifold = from_isosig(isosig)
    angles = certify(manifold)
    if angles is None:
        return [{"format": FORMAT, "kind": "skipped", "isosig": isosig, "reason": "no strict angle structure"}]
    boundary = Boundary(manifold)
    records = [manifold_record(manifold, angles)]
    verdicts: Counter[str] = Counter()
    reducing: list[Slope] = []
    for slope in boundary.slopes(plan.slopes, separating=plan.separating):
        decision = decide(boundary, slope, seed=plan.seed, effort=plan.effort)
        verdicts[decision.verdict] += 1
        if decision.verdict == "boundary-reducible" and slope.separating:
            reducing.append(slope)
        records.append(record_of(boundary, slope, decision))
    if plan.check:
        checker = Checker()
        for record in records:
            reason = checker.check(record)
            if reason is not None:
                raise BadCertificate(f"certificate: {reason}: {json.dumps(record)}")
    distances = [(i, j, boundary.distance(reducing[i], reducing[j])) for i in range(len(reducing)) for j in range(i)]
    records.append(
        {
            "format": FORMAT,
            "kind": "summary",
            "manifold": manifold.id,
            "isosig": isosig,
            "genus": manifold.genus,
            "slopes": sum(verdicts.values()),
            "verdicts": dict(sorted(verdicts.items())),
            "reducing": [list(slope.weights) for slope in reducing],
            "distances": [list(item) for item in distances],
            "breaches": _breaches(isosig, manifold.genus, boundary, reducing, distances),
        }
    )
    return records


def _breaches(
    isosig: str, genus: int, boundary: Boundary, reducing: Sequence[Slope], distances: Iterable[tuple[int, int, int]]
) -> list[str]:
    """What would contradict a theorem, after it was looked at again in other ways."""
    from statepool.tasks.topology.watch import breach

    told = []
    for i, j, distance in distances:
        if distance > 8 or genus == 2:
            told.append(breach(isosig, boundary, (reducing[i], reducing[j]), distance))
    return told


def scan(
    isosigs: Iterable[str],
    plan: Plan,
    out: Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    show: Callable[[Progress], None] | None = None,
) -> Progress:
    """Scan manifolds into a file; a second run with the same file goes on where the first stopped.

    Args:
        isosigs: The manifolds.
        plan: What to do with each.
        out: JSONL; beside it, ``.plan`` keeps the plan.
        workers: Processes on this machine; with 1 all is done in this one.
        ray: Address of a Ray cluster whose processes work instead; ``auto`` for the one this machine belongs to,
            ``local`` for one made here.
        show: Called after every manifold.

    Raises:
        InvalidRequest: The file belongs to another plan.
        InvalidConfig: Ray is not installed, or no cluster answers.
    """
    progress = Progress()
    done = _resume(out, plan, progress)
    wanted = (sig for sig in dict.fromkeys(isosigs) if sig not in done)
    with out.open("a") as file:
        for lines in _results(wanted, plan, workers, ray):
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
            progress.add(json.loads(lines[-1]))
            if show is not None:
                show(progress)
    return progress


def _results(wanted: Iterable[str], plan: Plan, workers: int, ray: str | None) -> Iterator[list[str]]:
    if ray is not None:
        from statepool.cluster.on_ray import join

        join(ray)
        from ray.util.multiprocessing import Pool as RayPool

        with RayPool(processes=workers) as pool:
            yield from pool.imap(_Work(plan), wanted, chunksize=1)
    elif workers > 1:
        import multiprocessing

        with multiprocessing.get_context("spawn").Pool(workers) as local:
            yield from local.imap(_Work(plan), wanted, chunksize=1)
    else:
        yield from map(_Work(plan), wanted)


@dataclass(frozen=True)
class _Work:
    plan: Plan

    def __call__(self, isosig: str) -> list[str]:
        return [json.dumps(record, separators=(",", ":")) for record in block(isosig, self.plan)]


def _resume(out: Path, plan: Plan, progress: Progress) -> set[str]:
    """Manifolds that are done; what is behind the last whole block is cut off."""
    kept = {name: getattr(plan, name) for name in ("slopes", "separating", "seed", "effort")}
    beside = out.with_name(out.name + ".plan")
    if out.exists() and out.stat().st_size:
        try:
            before = json.loads(beside.read_text())
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"out: {out} is there without its plan {beside.name}; name another file") from error
        if before != kept:
            raise InvalidRequest(f"out: {out} belongs to another scan ({before}); name another file", param="out")
    else:
        beside.write_text(json.dumps(kept))
        return set()
    done, whole, at = set(), 0, 0
    with out.open("rb") as file:
        for line in file:
            at += len(line)
            if not line.endswith(b"\n"):
                break
            if b'"kind":"summary"' in line[:80] or b'"kind":"skipped"' in line[:80]:
                summary = json.loads(line)
                done.add(summary["isosig"])
                progress.add(summary)
                whole = at
    if whole < out.stat().st_size:
        with out.open("r+b") as file:
            file.truncate(whole)
    progress.resumed = len(done)
    return done


def read_summaries(path: Path) -> Iterator[dict[str, Any]]:
    """The summaries of a scan, in order."""
    with path.open() as file:
        for line in file:
            if '"kind":"summary"' in line[:80]:
                yield json.loads(line)
