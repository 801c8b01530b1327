"""The words between gateway and engine process. One codec for each direction."""

from __future__ import annotations

from typing import Any

import msgspec

from statepool.core import errors
from statepool.core.errors import Overloaded, StatepoolError
from statepool.core.wire import Codec
from statepool.engine.config import EngineConfig, EngineStats, ModelInfo
from statepool.engine.request import Output, Request

ENGINE_FACTORY = "statepool.engine.engine:Engine"
"""``module:name`` of what the engine process calls with its EngineConfig."""


class Problem(msgspec.Struct, frozen=True):
    """A StatepoolError on its way through a socket."""

    kind: str
    message: str
    param: str | None = None
    retry_after: float = 1.0

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        """Describe ``error``. One that was not raised on purpose becomes an internal error."""
        if isinstance(error, StatepoolError):
            retry_after = error.retry_after if isinstance(error, Overloaded) else 1.0
            return cls(type(error).__name__, error.message, error.param, retry_after)
        return cls("StatepoolError", f"{type(error).__name__}: {error}")

    def error(self) -> StatepoolError:
        """The error again, as an instance of its own class."""
        if self.kind == "Overloaded":
            return Overloaded(self.message, retry_after=self.retry_after)
        kind = getattr(errors, self.kind, StatepoolError)
        known = isinstance(kind, type) and issubclass(kind, StatepoolError)
        error: StatepoolError = (kind if known else StatepoolError)(self.message, param=self.param)
        return error


class Start(msgspec.Struct, frozen=True, tag=True):
    """First message to the engine process: build this engine."""

    config: EngineConfig
    factory: str = ENGINE_FACTORY


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Extend a sequence; answered by Accepted or Refused."""

    request: Request
    handoff: bool = False
    """Let it go with Moved as soon as its first token is out, its KV given to the shared pool."""


class Adopt(msgspec.Struct, frozen=True, tag=True):
    """Go on with a request that another engine let go; answered by Accepted or Refused."""

    id: str
    state: bytes


class TakeOver(msgspec.Struct, frozen=True, tag=True):
    """Go on with a request of an engine that is gone, behind the tokens it handed out; answered like Adopt."""

    request: Request
    seed: int
    output: list[int]


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Drop a request before the next step. Not answered."""

    id: str


class Call(msgspec.Struct, frozen=True, tag=True):
    """Run one method of the engine between steps; answered by Reply."""

    id: int
    method: str
    arguments: dict[str, Any] = {}


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Leave. Not answered."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is loaded."""

    info: ModelInfo


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The engine could not be built, or a step failed; the process exits after this."""

    problem: Problem


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """The request is queued."""

    id: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The request was not queued."""

    id: str
    problem: Problem


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """What one step produced."""

    outputs: list[Output]


class Moved(msgspec.Struct, frozen=True, tag=True):
    """A request has left the engine; ``state`` is for Adopt."""

    id: str
    state: bytes


class Reply(msgspec.Struct, frozen=True, tag=True):
    """Result of a Call: a value, or a problem."""

    id: int
    value: Any = None
    problem: Problem | None = None


class Pulse(msgspec.Struct, frozen=True, tag=True):
    """Counters of the engine, sent a few times a second while it works and once when it rests."""

    stats: EngineStats
    queue_seconds: list[float] = []
    """Waits, from submission to the first step that ran the request, that ended since the last pulse."""


ToEngine = Start | Submit | Adopt | TakeOver | Abort | Call | Stop
FromEngine = Ready | Fatal | Accepted | Refused | Outputs | Moved | Reply | Pulse

to_engine: Codec[ToEngine] = Codec(ToEngine)
from_engine: Codec[FromEngine] = Codec(FromEngine)
