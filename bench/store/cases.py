"""M1 to M5, M12 and M13: every claim about speed, and the stores it is a claim against."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.duel import Worker, WorkerError
from bench.machine import LoadWatch
from bench.row import Row
from bench.store.contest import Outcome, contest, enter, fresh, realtime
from bench.store.data import KEYS
from bench.store.systems.base import Level

LABELS = {
    "rocksdb": "RocksDB",
    "lmdb": "LMDB",
    "sqlite": "SQLite",
    "redis": "redis-py",
    "redis-pipelined": "redis-py pipelined",
}
_LEVELS = {
    ("rocksdb", "power"): "sync",
    ("rocksdb", "process"): "no sync",
    ("lmdb", "power"): "sync",
    ("lmdb", "process"): "no sync, writemap",
    ("sqlite", "power"): "WAL full",
    ("sqlite", "process"): "WAL normal",
    ("redis", "power"): "appendfsync always",
    ("redis", "process"): "appendfsync everysec",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One claim. ``judge`` are the peers it is about (the best of them counts); the others are told beside it."""

    id: str
    what: str
    target: float
    judge: tuple[str, ...]
    load: str
    options: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.3
    others: tuple[str, ...] = ()
    unit: str = "op/s"
    check: bool = False
    bounded: bool = False
    """Whether one raw write per operation is the bound."""


@dataclass(frozen=True, slots=True)
class Match:
    """Stores filled alike, and the cases they are compared in."""

    fill: str
    size: int
    level: Level
    peers_level: Level
    cases: tuple[Case, ...]
    crowd: bool = False
    """Many threads: every side runs under the default policy, as its users do. With a real-time slice, a thread that
    others wait for keeps its core, and what is measured is the policy."""


ROUNDS = 9
"""Many short rounds: the machine drifts by a quarter within seconds, which neighbours in time share."""

_ALL = ("rocksdb", "lmdb", "sqlite", "redis")
_SQL = ("sqlite", "redis")
_CROWD = {"threads": 64}

MATCHES = (
    Match(
        "kv",
        KEYS,
        "power",
        "power",
        (
            Case("M1", "durable puts, one per commit, one thread", 1.5, _ALL, "put_one", bounded=True),
            Case(
                "M2",
                "durable puts, 100 per commit, one thread",
                5.0,
                ("rocksdb",),
                "put_many",
                {"batch": 100},
                others=("lmdb", "sqlite", "redis"),
            ),
            Case("M5a", "gets from the hash table, one process", 1.2, ("lmdb",), "get", others=("rocksdb", "sqlite")),
            Case("M5b", "gets from the hash table against a server", 100.0, ("redis",), "get"),
            Case("M5c", "gets from the sorted table", 0.9, ("lmdb",), "get", {"table": "ordered"}, others=("rocksdb",)),
        ),
    ),
    Match(
        "kv",
        KEYS,
        "power",
        "power",
        (
            Case(
                "M3a",
                "durable puts, one per commit, 16 threads",
                10.0,
                ("rocksdb",),
                "puts",
                {"threads": 16},
                others=("lmdb", "sqlite", "redis"),
            ),
            Case(
                "M3b",
                "durable puts, one per commit, 64 threads",
                20.0,
                ("rocksdb",),
                "puts",
                _CROWD,
                others=("lmdb", "sqlite", "redis"),
            ),
        ),
        crowd=True,
    ),
    Match(
        "kv",
        KEYS,
        "process",
        "process",
        (
            Case(
                "M4",
                "puts that survive kill -9, one per commit",
                3.0,
                ("lmdb",),
                "put_one",
                others=("rocksdb", "sqlite", "redis"),
            ),
        ),
    ),
    Match(
        "empty",
        0,
        "power",
        "process",
        (
            Case(
                "M12",
                "queue items put, taken, acknowledged: ours durable, 16 at a time; the peer one at a time, synced once "
                "per second",
                3.0,
                ("redis",),
                "queue",
                {"batch": 16},
                others=("redis-pipelined",),
                unit="item/s",
            ),
        ),
    ),
    Match(
        "tatp",
        100_000,
        "power",
        "power",
        (Case("M13a", "TATP, durable, 1 client", 2.0, _SQL, "steps", seconds=0.5, unit="tx/s", check=True),),
    ),
    Match(
        "tatp",
        100_000,
        "power",
        "power",
        (Case("M13c", "TATP, durable, 64 clients", 10.0, _SQL, "steps", _CROWD, 0.5, unit="tx/s", check=True),),
        crowd=True,
    ),
    Match(
        "smallbank",
        100_000,
        "power",
        "power",
        (Case("M13b", "SmallBank, durable, 1 client", 2.0, _SQL, "steps", seconds=0.5, unit="tx/s", check=True),),
    ),
    Match(
        "smallbank",
        100_000,
        "power",
        "power",
        (Case("M13d", "SmallBank, durable, 64 clients", 10.0, _SQL, "steps", _CROWD, 0.5, unit="tx/s", check=True),),
        crowd=True,
    ),
)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Play every match that has a wanted case. A store that cannot run leaves its reason in the row."""
    for match in MATCHES:
        cases = [case for case in match.cases if wanted(case.id, only)]
        if cases:
            yield from _play(match, cases, quick)


def wanted(name: str, only: Sequence[str]) -> bool:
    """``M13`` asks for M13a to M13d, ``M1`` for itself alone."""
    return not only or name in only or name.rstrip("abcd") in only


def _play(match: Match, cases: Sequence[Case], quick: bool) -> Iterator[Row]:
    names = ["floor", "ours", *dict.fromkeys(name for case in cases for name in (*case.judge, *case.others))]
    fair = not match.crowd and realtime()
    with ExitStack() as stack:
        lanes: dict[str, Worker] = {}
        absent: dict[str, str] = {}
        for name in names:
            try:
                lanes[name] = _load(stack, name, match, fair, quick)
            except WorkerError as error:
                absent[name] = str(error)
        for case in cases:
            row = _row(case)
            chosen = {name: lanes[name] for name in _sides(case) if name in lanes}
            row.versions = {name: _versions(chosen, name == "ours") for name in ("ours", "peer")}
            watch = LoadWatch()
            try:
                outcome = _measure(case, lanes["floor"], chosen, quick)
            except (KeyError, WorkerError) as error:
                row.note = absent.get("floor", str(error))
            else:
                outcome.errors |= {name: absent[name] for name in _sides(case) if name in absent}
                _judge(case, match, row, outcome)
            row.load = watch.stop() | {"scheduler": "SCHED_RR 1" if fair else "default"}
            yield row


def _load(stack: ExitStack, name: str, match: Match, fair: bool, quick: bool) -> Worker:
    folder = fresh(name)
    worker = stack.enter_context(enter(name, folder))
    fill, level = ("empty", "power") if name == "floor" else (match.fill, match.peers_level)
    size = match.size // 10 if quick else match.size
    worker.load(
        system=name,
        folder=str(folder),
        level=match.level if name == "ours" else level,
        fill=fill,
        size=size,
        realtime=fair,
    )
    return worker


def _measure(case: Case, floor: Worker, lanes: dict[str, Worker], quick: bool) -> Outcome:
    seconds = case.seconds / 4 if quick else case.seconds
    spec = {"load": case.load, "seconds": seconds} | case.options
    outcome = contest(floor, lanes, spec, rounds=2 if quick else ROUNDS)
    for name, worker in lanes.items() if case.check else ():
        try:
            worker.run({"load": "check"})
        except WorkerError as error:
            outcome.drop(name, str(error))
    return outcome


def _row(case: Case) -> Row:
    return Row(
        id=case.id,
        what=case.what,
        unit="x",
        better="higher",
        target=case.target,
        peer=" or ".join(LABELS[name] for name in case.judge),
        peer_unit=case.unit,
        command=f"python -m bench store --only {case.id}",
    )


def _sides(case: Case) -> tuple[str, ...]:
    return ("ours", *case.judge, *case.others)


def _versions(lanes: dict[str, Worker], ours: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, worker in lanes.items():
        if (name == "ours") is ours:
            found |= worker.loaded["versions"]
    return found


def _judge(case: Case, match: Match, row: Row, outcome: Outcome) -> None:
    best = outcome.best(case.judge)
    notes = [
        f"{LABELS[name]} {outcome.rate(name):.4g}"
        for name in (*case.judge, *case.others)
        if name != best and name in outcome.rates
    ]
    if best is not None:
        row.peer, row.peer_value = _label(best, match.peers_level), outcome.rate(best)
        if ratios := outcome.ratios("ours", best):
            row.value = statistics.median(ratios)
            row.versions["spread"] = round(max(ratios) / min(ratios) - 1, 3)
            notes.append(f"spread {row.versions['spread']:.0%}")
    if own := outcome.rate("ours"):
        row.own = f"{own:.4g} {case.unit}"
        row.limit = own / outcome.floor if case.bounded else None
    row.note = "; ".join([*notes, outcome.story, *outcome.errors.values()])


def _label(name: str, level: Level) -> str:
    return f"{LABELS[name]}, {_LEVELS[name, level]}"
