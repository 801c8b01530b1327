"""All rows of the room: sweeps over the pool's width, compared at equal recall."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.duel import Worker, WorkerError
from bench.machine import LoadWatch
from bench.peers.setup import python_of
from bench.row import Row
from bench.vector import agents, arrivals, claims, data, lasting, simulated

OURS = ("ours", "ours sealed")
PEERS = ("rabitq", "hnswlib", "faiss", "usearch", "svs")
WIDTHS = (20, 30, 40, 60, 80, 110, 150, 220)
LOG = data.CACHE / "vector"
SETS = ("mini", "head", "syn")


@dataclass(slots=True)
class Curve:
    """Recall and a figure, width after width."""

    points: list[tuple[float, float, int]] = field(default_factory=list)

    def at(self, recall: float) -> float | None:
        """The figure between the two widths around this recall; None if no width reaches it."""
        points = sorted(self.points)
        for (low, before, _), (high, after, _) in pairwise(points):
            if low < recall <= high:
                return before + (after - before) * (recall - low) / (high - low)
        return None

    def width(self, recall: float) -> int | None:
        """The least width that reaches this recall."""
        return min((width for found, _, width in self.points if found >= recall), default=None)


@dataclass(slots=True)
class Sweep:
    """Everything measured over one set."""

    latency: dict[tuple[str, int], Curve] = field(default_factory=dict)
    """By index and threads per query, µs."""
    rate: dict[str, float] = field(default_factory=dict)
    """Queries per second of two callers at recall .99."""
    build: dict[str, float] = field(default_factory=dict)
    """Processor seconds."""
    versions: dict[str, str] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)

    def us(self, name: str, threads: int, recall: float) -> float | None:
        """Latency at this recall."""
        curve = self.latency.get((name, threads))
        return curve.at(recall) if curve else None

    def best(self, recall: float) -> tuple[str, float]:
        """The fastest peer with one thread.

        Raises:
            WorkerError: no peer reached the recall.
        """
        found = [(value, name) for name in PEERS if (value := self.us(name, 1, recall)) is not None]
        if not found:
            raise WorkerError(f"no peer reached recall {recall}; run `make bench-setup ARGS=vector`")
        value, name = min(found)
        return name, value


def sweep(data_set: str, repeats: int) -> Sweep:
    """Build every index, then go through the widths in turn: ours, peer, peer, … at each."""
    found, watch = Sweep(), LoadWatch()
    LOG.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in OURS + PEERS:
            python = Path(sys.executable) if name in OURS else python_of("vector")
            if python is None:
                continue
            log = LOG / f"{name.replace(' ', '_')}.log"
            worker = stack.enter_context(Worker(name, python, "vector.py", log, threads=1))
            try:
                worker.load(system=name, data_set=data_set, realtime=os.geteuid() == 0)
            except WorkerError as error:
                print(error, file=sys.stderr)
                continue
            workers[name] = worker
            found.build[name] = worker.loaded["build_seconds"]
            found.versions |= worker.loaded["versions"]
        for width in WIDTHS:
            for threads in (1, 2):
                for name in workers if threads == 1 else [name for name in OURS if name in workers]:
                    done = workers[name].run({"width": width, "threads": threads, "repeats": repeats})
                    curve = found.latency.setdefault((name, threads), Curve())
                    curve.points.append((done["recall"], done["us"], width))
        for name, worker in workers.items():
            if width := found.latency[name, 1].width(0.99):
                found.rate[name] = worker.run({"width": width, "repeats": 1, "callers": 2})["rate"]
    found.load = watch.stop()
    return found


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows, set after set."""
    for data_set in SETS:
        wanted = [row for row in ("V1", "V2", "V3", "V4", "V7", "V9") if not only or row in only]
        if not wanted:
            continue
        try:
            found = sweep(data_set, 2 if quick else 5)
            rows = list(_rows(data_set, found))
        except (WorkerError, data.Missing) as error:
            print(f"{data_set}: {error}", file=sys.stderr)
            continue
        yield from (row for row in rows if row.id.split("-")[0] in wanted)
    for part in (claims, arrivals, agents, lasting, simulated):
        yield from part.run(lambda name: not only or name in only, quick)


def _rows(data_set: str, found: Sweep) -> Iterator[Row]:
    facts: dict[str, Any] = {
        "command": f"python -m bench vector ({data_set})",
        "versions": {"peer": found.versions},
        "load": found.load,
    }

    def ratio(
        name: str, what: str, target: float, ours: float | None, peer: str, theirs: float | None, **more: Any
    ) -> Row:
        value = None if ours is None or not theirs else ours / theirs
        own = "" if ours is None else f"{ours:.4g} {more.get('unit_of', 'µs')}"
        return Row(
            id=f"{name}-{data_set}",
            what=what,
            unit="x",
            better=more.get("better", "lower"),
            target=target,
            value=value,
            own=own,
            peer=peer,
            peer_value=theirs,
            peer_unit=more.get("unit_of", "µs"),
            note=more.get("note", ""),
            **facts,
        )

    for recall in (0.95, 0.99):
        name, theirs = found.best(recall)
        all_of_them = ", ".join(
            f"{peer} {value:.0f}" for peer in ("ours", *PEERS) if (value := found.us(peer, 1, recall)) is not None
        )
        what = f"one query, one thread, recall {recall} ({data_set}): sealed against the fastest peer"
        row = ratio(
            "V1", what, 1.0, found.us("ours sealed", 1, recall), name, theirs, note=f"µs: {all_of_them} (ours: float32)"
        )
        row.id = f"V1-{data_set}-{recall:.2f}".replace("0.", "")
        yield row
    for name, label in (("ours", "float32"), ("ours sealed", "sealed")):
        one, two = found.us(name, 1, 0.99), found.us(name, 2, 0.99)
        row = ratio(
            "V2",
            f"one query on two threads against one, recall .99 ({data_set}, {label})",
            0.60,
            two,
            "one thread",
            one,
        )
        row.id += f"-{label}"
        yield row
        if one and two:
            value = one / (2 * two)
            yield Row(
                id=f"V4-{data_set}-{label}", what=f"throughput kept on two threads, recall .99 ({data_set}, {label})",
                unit="x", better="higher", target=0.88, value=value, own=f"{two:.4g} µs", **facts,
            )  # fmt: skip
    peer, theirs = found.best(0.99)
    what = f"one query on two threads against the fastest peer's one, recall .99 ({data_set})"
    yield ratio("V3", what, 0.70, found.us("ours sealed", 2, 0.99), peer, theirs)
    if data_set == "mini":
        rates = {name: value for name, value in found.rate.items() if name in PEERS}
        if rates:
            fastest = max(rates, key=lambda name: rates[name])
            yield ratio(
                "V7", "queries per second of two callers, recall .99", 1.0, found.rate.get("ours sealed"), fastest,
                rates[fastest], better="higher", unit_of="1/s",
            )  # fmt: skip
        if "hnswlib" in found.build:
            yield ratio(
                "V9", "processor time of the build", 1.0, found.build["ours"], "hnswlib", found.build["hnswlib"],
                unit_of="s", note=f"sealing included: {found.build['ours sealed']:.1f} s",
            )  # fmt: skip
