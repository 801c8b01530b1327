"""A search under a budget, with a journal: what was found is on the disk, and a killed search goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.codes import Code
from statepool.tasks.sequences.errors import BadCertificate
from statepool.tasks.sequences.objectives import Objective, Sir
from statepool.tasks.sequences.records import Record, certify, read_records
from statepool.tasks.sequences.search.base import Searcher

__all__ = ["Budget", "Found", "Journal", "search"]


@dataclass(frozen=True)
class Budget:
    """When a search ends: whichever comes first. Seconds and rounds count what earlier runs of a journal used."""

    seconds: float | None = None
    rounds: int | None = None
    target: float | None = None
    """A value at least this good ends the search."""

    def __post_init__(self) -> None:
        if self.seconds is None and self.rounds is None and self.target is None:
            raise InvalidRequest("time: a search needs a limit: time, rounds or a target", param="time")


@dataclass
class Found:
    """Where a search stands."""

    best: Record | None = None
    rounds: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    records: int = 0
    """Written by this search, earlier runs included: improvements, and equals in another orbit."""
    finished: bool = False
    """The search has nothing left."""


@dataclass
class Journal:
    """Records in ``path``, one a line, and progress in ``path`` + ``.state``.

    Records are synced before the progress that counts their rounds: after a kill, some rounds run twice, and what they
    find again is known by its orbit key.

    Raises:
        InvalidRequest: The journal belongs to another search.
    """

    path: Path
    settings: dict[str, Any]
    known: dict[str, Record] = field(default_factory=dict)
    state: dict[str, Any] = field(
        default_factory=lambda: {"rounds": 0, "evaluations": 0, "seconds": 0.0, "finished": False}
    )

    def __post_init__(self) -> None:
        progress = self._progress
        if progress.exists():
            try:
                kept = json.loads(progress.read_text())
                settings, self.state = kept["settings"], kept["state"]
            except (ValueError, KeyError, TypeError) as error:
                raise BadCertificate(f"{progress}: is no progress of a search; remove it to start anew") from error
            if settings != json.loads(json.dumps(self.settings)):
                raise InvalidRequest(
                    f"out: {self.path} belongs to another search ({settings}); name another file", param="out"
                )
        elif self.path.exists() and self.path.stat().st_size:
            raise InvalidRequest(f"out: {self.path} exists and has no {progress.name}; name another file", param="out")
        if self.path.exists():
            self._drop_torn_line()
            self.known = {record.orbit_key: record for record in read_records(self.path)}

    @property
    def _progress(self) -> Path:
        return self.path.with_name(self.path.name + ".state")

    def _drop_torn_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def write(self, record: Record) -> bool:
        """Append a record; False if its orbit is there already."""
        if record.orbit_key in self.known:
            return False
        with self.path.open("a") as file:
            file.write(record.json() + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.known[record.orbit_key] = record
        return True

    def save(self, found: Found) -> None:
        """Remember how far the search is."""
        kept = {name: value for name, value in asdict(found).items() if name in self.state}
        self.state = kept
        part = self._progress.with_name(self._progress.name + ".part")
        with part.open("w") as file:
            json.dump({"settings": self.settings, "state": kept}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._progress)


def search(
    using: Searcher,
    objective: Objective,
    n: int,
    budget: Budget,
    *,
    seed: int = 0,
    journal: Journal | None = None,
    show: Callable[[Found], None] | None = None,
) -> Found:
    """Search until the budget is spent; every value is certified exactly before it counts.

    Args:
        using: The search.
        objective: What to make good.
        n: Symbols per code.
        budget: When to stop.
        seed: Same seed and rounds, same codes.
        journal: Where records go and where an earlier run is continued.
        show: Called after every batch.

    Raises:
        InvalidRequest: The search does not fit the objective or the length.
    """
    found = Found()
    if journal is not None:
        found = Found(**journal.state, records=len(journal.known))
        for record in journal.known.values():
            if found.best is None or _better(objective, record.number, found.best.number):
                found.best = record
    least = float("inf") if found.best is None else _cost_of(objective, found.best)
    started, before = time.monotonic(), found.seconds
    if found.finished or _spent(budget, objective, found):
        return found
    for batch in using.batches(objective, n, seed, found.rounds):
        found.rounds, found.finished = batch.first + batch.rounds, batch.last
        found.evaluations += batch.evaluations
        # single precision may order equals either way: certify whatever is within its rounding
        if batch.cost <= least + 1e-4 * abs(least) or least == float("inf"):
            record, _ = certify(objective, [Code(tuple(map(int, row)), using.alphabet) for row in batch.phases], seed)
            ahead = found.best is None or _better(objective, record.number, found.best.number)
            if ahead or (found.best is not None and Fraction(record.value) == Fraction(found.best.value)):
                known = (
                    record.orbit_key in journal.known
                    if journal
                    else record.orbit_key == getattr(found.best, "orbit_key", "")
                )
                found.records += not known
                if journal is not None:
                    journal.write(record)
            if ahead:
                found.best, least = record, min(least, batch.cost)
        found.seconds = before + time.monotonic() - started
        if journal is not None:
            journal.save(found)
        if show is not None:
            show(found)
        if _spent(budget, objective, found):
            break
    return found


def _better(objective: Objective, one: float, other: float) -> bool:
    return one > other if objective.better == "higher" else one < other


def _cost_of(objective: Objective, record: Record) -> float:
    if isinstance(objective, Sir) or not record.codes[0].binary:
        return -record.number if objective.better == "higher" else record.number
    return float(objective.costs(np.array([[code.signs for code in record.codes]]))[0])


def _spent(budget: Budget, objective: Objective, found: Found) -> bool:
    if (
        budget.target is not None
        and found.best is not None
        and not _better(objective, budget.target, found.best.number)
    ):
        return True
    return (budget.seconds is not None and found.seconds >= budget.seconds) or (
        budget.rounds is not None and found.rounds >= budget.rounds
    )
