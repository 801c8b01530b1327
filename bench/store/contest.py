"""Many stores in turn, the raw floor between the rounds, and what is kept of it."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.checkpoint import CACHE
from bench.duel import Worker, WorkerError
from bench.peers.setup import python_of

FOLDER = CACHE / "store"
_MOVED = 2.0
"""A round is discarded if the floor before it and the floor after it differ by more than this factor."""
_PATIENCE = 3
"""Rounds tried for each round wanted."""
_FLOOR_SECONDS = 0.1


T = TypeVar("T")


@dataclass(slots=True)
class Steady(Generic[T]):
    """The rounds in which the floor stood still."""

    kept: list[T] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    """Raw writes per second around each kept round."""
    discarded: int = 0

    @property
    def floor(self) -> float:
        """Median of the raw writes per second."""
        return statistics.median(self.floors)

    def story(self) -> str:
        """For a note."""
        moved = f"; {self.discarded} rounds discarded: the floor moved" if self.discarded else ""
        return f"raw O_DSYNC floor {self.floor:.4g}/s{moved}"


def steady(floor: Worker, rounds: int, play: Callable[[int], T]) -> Steady[T]:
    """Play until ``rounds`` rounds are kept.

    Raises:
        WorkerError: the floor moved too often.
    """
    found: Steady[T] = Steady()
    before = _floor(floor)
    for turn in range(1, rounds * _PATIENCE + 1):
        played = play(turn)
        after = _floor(floor)
        if max(before, after) > _MOVED * min(before, after):
            found.discarded += 1
        else:
            found.kept.append(played)
            found.floors.append((before + after) / 2)
        before = after
        if sys.stderr.isatty():
            print(f"\r  {turn}/{rounds}", end="", file=sys.stderr)
        if len(found.kept) == rounds:
            return found
    raise WorkerError(f"the floor moved in {found.discarded} of {turn} rounds: no result")


@dataclass(slots=True)
class Outcome:
    """Operations per second of every store in every round that was kept."""

    rates: dict[str, list[float]]
    errors: dict[str, str]
    """Why a store dropped out."""
    floor: float
    story: str

    def rate(self, name: str) -> float | None:
        """Median of one store."""
        return statistics.median(self.rates[name]) if name in self.rates else None

    def ratios(self, over: str, under: str) -> list[float]:
        """Round by round."""
        return [a / b for a, b in zip(self.rates.get(over, []), self.rates.get(under, []), strict=False)]

    def best(self, names: Sequence[str]) -> str | None:
        """The store of the highest median."""
        found = [(rate, name) for name in names if (rate := self.rate(name)) is not None]
        return max(found)[1] if found else None

    def drop(self, name: str, reason: str) -> None:
        """Forget all rounds of a store."""
        self.rates.pop(name, None)
        self.errors[name] = reason


def contest(floor: Worker, lanes: Mapping[str, Worker], case: dict[str, Any], rounds: int) -> Outcome:
    """Run ``case`` on every lane in turn, again and again, after one warm turn each.

    Raises:
        WorkerError: the floor moved too often.
    """
    errors: dict[str, str] = {}
    _round(lanes, case, errors, 0)
    found = steady(floor, rounds, lambda turn: _round(lanes, case, errors, turn))
    rates = {name: [kept[name] for kept in found.kept] for name in lanes if name not in errors}
    return Outcome(rates, errors, found.floor, found.story())


def _round(lanes: Mapping[str, Worker], case: dict[str, Any], errors: dict[str, str], turn: int) -> dict[str, float]:
    """One turn of every lane. One that fails is out for good."""
    rates = {}
    for name, worker in lanes.items():
        if name not in errors:
            try:
                answer = worker.run(case | {"seed": turn})
            except WorkerError as error:
                errors[name] = str(error)
            else:
                rates[name] = answer["done"] / answer["seconds"]
    return rates


def _floor(worker: Worker) -> float:
    answer = worker.run({"load": "put_one", "seconds": _FLOOR_SECONDS})
    return float(answer["done"] / answer["seconds"])


def enter(name: str, folder: Path | None = None) -> Worker:
    """A process for the store ``name``, nothing opened yet.

    Raises:
        WorkerError: the packages of the peers are not installed.
    """
    if folder is None:
        folder = fresh(name)
    if name in ("ours", "floor"):
        python: Path | None = Path(sys.executable)
    else:
        python = python_of("store")
    if python is None:
        raise WorkerError(f"{name} is not installed (make bench-setup ARGS=store)")
    logs = CACHE / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return Worker(name, python, "store.py", logs / f"store-{name}.log", threads=1)


def fresh(name: str) -> Path:
    """An empty folder on a real disk.

    Raises:
        WorkerError: it would be in memory, where nothing is durable.
    """
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False
    ).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        raise WorkerError(f"{folder} is on {kind}: nothing written there is durable")
    return folder


def realtime() -> bool:
    """Whether this process may have the real-time scheduling that all sides then get (as by ``chrt -r 1``).

    With both cores busy, a wait for the disk otherwise ends at the next tick of the scheduler, for every store alike.
    """
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        os.sched_setscheduler(0, policy, priority)
        return True
    return False
