"""An iteration as it happens, for whoever looks on: lines of JSON that say what began and ended where, and when.

Unlike the list of events (``trace.EventLog``) it has times and no decisions; unlike the trace it is there before the
end. The first line has ``began`` (Unix time), ``engines`` and ``policy``; each one after that ``at``, seconds since,
and any of ``submit`` [job, group, index, limit], ``start`` [job, engine], ``stop`` [job, tokens, finished], ``tokens``
[job, tokens] and ``answer`` [group, index, tokens, drafted, accepted].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import msgspec

from statepool.rollout.events import (
    Abort,
    ChunkDone,
    Decision,
    Dispatch,
    Event,
    Finished,
    InstanceLost,
    Progress,
    Submit,
    ToolWait,
)
from statepool.rollout.groups import Response

__all__ = ["Timeline"]


class Timeline:
    """Writes what a controller tells it: ``record`` and ``answered`` are its ``record`` and ``on_response``.

    Args:
        file: that grows by a line per moment.
        engines: how many there are.
        policy: its name.
        clock: seconds; wall: Unix time.
    """

    def __init__(
        self,
        file: TextIO,
        engines: int,
        policy: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._clock = clock
        self._wall = wall
        self._about = {"engines": engines, "policy": policy}
        self._began: float | None = None  # with the first moment: engines take their time to start
        self._running: set[int] = set()

    def record(self, events: Sequence[Event], decisions: Sequence[Decision]) -> None:
        """Write one moment."""
        found: dict[str, list[list[Any]]] = {}
        for event in events:
            match event:
                case Submit(job, group, index, _, limit):
                    found.setdefault("submit", []).append([job, group, index, limit])
                case Progress(job, generated):
                    found.setdefault("tokens", []).append([job, generated])
                case ChunkDone(job, generated) | Finished(job, generated) | ToolWait(job, generated):
                    self._stop(found, job, generated, isinstance(event, Finished))
                case InstanceLost(_, generated):
                    for job, tokens in generated:
                        self._stop(found, job, tokens, False)
        for decision in decisions:
            match decision:
                case Dispatch(job, instance):
                    self._running.add(job)
                    found.setdefault("start", []).append([job, instance])
                case Abort(job):
                    self._stop(found, job, 0, False)
        if found:
            self._write({"at": self._at(), **found})

    def answered(self, response: Response) -> None:
        """Write that a response is complete, with what its drafts were worth."""
        line = [response.group, response.index, len(response.tokens), response.drafted, response.accepted]
        self._write({"at": self._at(), "answer": [line]})

    def _stop(self, found: dict[str, list[list[Any]]], job: int, tokens: int, finished: bool) -> None:
        if job in self._running:
            self._running.discard(job)
            found.setdefault("stop", []).append([job, tokens, finished])

    def _at(self) -> float:
        if self._began is None:
            self._began = self._clock()
            self._write({"began": self._wall(), **self._about})
        return round(self._clock() - self._began, 4)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(msgspec.json.encode(line).decode() + "\n")
        self._file.flush()
