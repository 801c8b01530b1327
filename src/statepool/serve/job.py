"""One call of a generation endpoint: pure state between the engine's outputs and the client's events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from statepool.core.errors import StatepoolError
from statepool.engine.request import Output, Request


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. ``data`` is JSON-ready, or text sent as it is."""

    data: Any
    name: str | None = None

    def encode(self) -> bytes:
        """The event on the wire."""
        body = self.data.encode() if isinstance(self.data, str) else orjson.dumps(self.data)
        head = b"" if self.name is None else b"event: " + self.name.encode() + b"\n"
        return head + b"data: " + body + b"\n\n"


class Job(Protocol):
    """What a dialect makes of one call. The transport feeds it outputs and sends what it returns.

    A streamed call goes ``opening``, ``push`` for every output, ``closing``; a plain one ``push`` for
    every output, then ``answer``.
    """

    requests: list[Request]

    def opening(self) -> list[Event]:
        """Events before the first output."""
        ...

    def push(self, output: Output) -> list[Event]:
        """Events one output causes."""
        ...

    def closing(self) -> list[Event]:
        """Events after the last output."""
        ...

    def failed(self, error: StatepoolError) -> list[Event]:
        """Events that end a stream which cannot go on."""
        ...

    def answer(self) -> dict[str, Any]:
        """The whole answer, after the last output."""
        ...
