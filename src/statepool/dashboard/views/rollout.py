"""A rollout as it happens: who runs where and when, how many are left, what drafts were worth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statepool.dashboard.tail import Tail

__all__ = ["RolloutView"]

_MOST_BARS = 1500
_MOST_POINTS = 300


@dataclass(slots=True)
class _Iteration:
    """What a timeline has told so far."""

    began: float = 0.0
    engines: int = 0
    policy: str = ""
    at: float = 0.0
    jobs: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(group, index) of each."""
    tokens: dict[int, int] = field(default_factory=dict)
    running: dict[int, tuple[int, float]] = field(default_factory=dict)
    """(engine, since) of those that run."""
    bars: list[tuple[int, int, float, float]] = field(default_factory=list)
    """(engine, group, from, to) of every chunk that has ended."""
    done: list[float] = field(default_factory=list)
    """When each response was complete."""
    drafted: int = 0
    accepted: int = 0


class RolloutView:
    """One timeline; a new iteration in the same file takes the place of the one before."""

    def __init__(self, path: Path, wall: Callable[[], float] = time.time) -> None:
        self._tail = Tail(path)
        self._wall = wall
        self._now = _Iteration()

    def look(self) -> dict[str, Any]:
        """Chunks as bars, those that run to now; the tail; the share of drafts that were right."""
        anew, lines = self._tail.look()
        if anew:
            self._now = _Iteration()
        for line in lines:
            _take(self._now, line)
        return self._picture()

    def _picture(self) -> dict[str, Any]:
        now = self._now
        over = bool(now.jobs) and len(now.done) == len(now.jobs)
        until = now.at if over else max(now.at, min(self._wall() - now.began, now.at + 5.0))
        open_bars = [(engine, now.jobs[job][0], since, until) for job, (engine, since) in now.running.items()]
        bars = now.bars + open_bars
        shown = bars[:: -(-len(bars) // _MOST_BARS)] if bars else []
        finished = sorted(now.done)
        left = [[0.0, len(now.jobs)], *([at, len(now.jobs) - i] for i, at in enumerate(finished, 1))]
        longest = sorted(((now.tokens.get(job, 0), job) for job in now.running), reverse=True)[:8]
        return {
            "policy": now.policy,
            "engines": now.engines,
            "over": over,
            "seconds": round(until, 3),
            "responses": len(now.jobs),
            "done": len(now.done),
            "groups": len({group for group, _ in now.jobs.values()}),
            "tokens": sum(now.tokens.values()),
            "chunks": len(now.bars),
            "tail_seconds": _tail_seconds(finished, len(now.jobs), until),
            "drafted": now.drafted,
            "accepted": now.accepted,
            "bars": [[engine, group, round(a, 3), round(b, 3)] for engine, group, a, b in shown],
            "left": left[:: -(-len(left) // _MOST_POINTS)],
            "running": [[*now.jobs[job], tokens, now.running[job][0]] for tokens, job in longest],
        }


def _take(now: _Iteration, line: dict[str, Any]) -> None:
    if "began" in line:
        now.began, now.engines, now.policy = line["began"], line["engines"], line["policy"]
        return
    at = now.at = line["at"]
    for job, group, index, _ in line.get("submit", ()):
        now.jobs[job] = (group, index)
    for job, tokens in line.get("tokens", ()):
        now.tokens[job] = tokens
    for job, tokens, _ in line.get("stop", ()):
        now.tokens[job] = max(tokens, now.tokens.get(job, 0))
        engine, since = now.running.pop(job)
        now.bars.append((engine, now.jobs[job][0], since, at))
    for job, engine in line.get("start", ()):
        now.running[job] = (engine, at)
    # Answers that an earlier run had finished come before anything is submitted, and are not of this one.
    for _, _, _, drafted, accepted in line.get("answer", ()) if now.jobs else ():
        now.done.append(at)
        now.drafted += drafted
        now.accepted += accepted


def _tail_seconds(finished: list[float], responses: int, until: float) -> float | None:
    """Seconds that the last tenth of the responses has taken, once the others are done; the paper's tail."""
    first = responses - max(responses // 10, 1)
    if not responses or len(finished) < first or first < 1:
        return None
    return round((finished[-1] if len(finished) == responses else until) - finished[first - 1], 3)
