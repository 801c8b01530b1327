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


class PlainJob(Protocol):
    """What a dialect makes of one call: the transport feeds it every output, then sends its answer."""

    requests: list[Request]

    def push(self, output: Output) -> Any:
        """Take one output."""
        ...

    def answer(self) -> dict[str, Any]:
        """The whole answer, after the last output."""
        ...


class Job(PlainJob, Protocol):
    """One that can be streamed too: ``opening``, ``push`` for every output, ``closing``."""

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
