"""What the gateway needs of whatever serves it: one engine, or a cluster of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from statepool.core.errors import InvalidRequest, Overloaded, StatepoolError
from statepool.engine.config import EngineStats, ModelInfo
from statepool.engine.request import Output, Request

__all__ = ["EngineLoad", "Outputs", "Serving", "check_entry"]


def check_entry(names: Sequence[str], in_flight: Container[str], count: int, most: int) -> None:
    """Whether requests of these ids may come in beside ``count`` that are ``in_flight``.

    Raises:
        Overloaded: there would be more than ``most``.
        InvalidRequest: an id is in use, or twice among ``names``.
    """
    if count + len(names) > most:
        raise Overloaded(f"{count} sequences are in flight; try again later")
    for i, name in enumerate(names):
        if name in in_flight or name in names[:i]:
            raise InvalidRequest(f"request id {name!r} is in use", param="request_id")


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One engine process: who it is, and the counters and gauges of ``EngineStats`` that tell its load."""

    number: int
    role: str
    pid: int | None
    usable: bool
    replaced: int
    running: int
    waiting: int
    queued_tokens: int
    """Prompt tokens given to it that have no first token yet."""
    held_tokens: int
    """Tokens of the requests it decodes."""
    kv_blocks_total: int
    kv_blocks_free: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    pool_loaded_blocks: int
    pool_saved_blocks: int
    generated_tokens: int
    forward_tokens: int

    @classmethod
    def of(
        cls,
        stats: EngineStats,
        pid: int | None,
        *,
        number: int = 0,
        role: str = "mixed",
        usable: bool = True,
        replaced: int = 0,
        queued_tokens: int = 0,
        held_tokens: int = 0,
    ) -> EngineLoad:
        """From an engine's last pulse and what its server has on its books."""
        shared = {item.name for item in fields(EngineStats)} & {item.name for item in fields(cls)}
        figures = {name: getattr(stats, name) for name in shared}
        return cls(number, role, pid, usable, replaced, queued_tokens=queued_tokens, held_tokens=held_tokens, **figures)


class Outputs(Protocol):
    """Outputs of some requests in order. Iterate to the end, or ``aclose``; both free the requests."""

    def __aiter__(self) -> Outputs:
        """Itself."""
        ...

    async def __anext__(self) -> Output:
        """The next output."""
        ...

    async def aclose(self) -> None:
        """Take what still runs out of the batch."""
        ...


class Serving(Protocol):
    """``AsyncEngine`` and ``Cluster``."""

    failure: str | None
    on_queue_seconds: Callable[[float], None] | None

    @property
    def stats(self) -> EngineStats:
        """Counters as of the last pulse."""
        ...

    @property
    def in_flight(self) -> int:
        """Sequences accepted and not finished."""
        ...

    async def wait_ready(self) -> ModelInfo:
        """What is being served, once it is loaded."""
        ...

    async def submit(self, *requests: Request) -> Outputs:
        """Queue requests."""
        ...

    async def call(self, method: str, **arguments: Any) -> Any:
        """Run one of ``commands.Commands``."""
        ...

    async def refresh_stats(self) -> EngineStats:
        """Counters of this moment."""
        ...

    async def idle(self) -> None:
        """Wait until no sequence is in flight."""
        ...

    async def abort_all(self) -> None:
        """End every stream with the finish reason ``abort``."""
        ...

    async def close(self) -> None:
        """Stop it and free what it used."""
        ...

    def loads(self) -> list[EngineLoad]:
        """Every engine and what it does, as of the last pulses."""
        ...

    def pool_addresses(self) -> list[str]:
        """The nodes of the KV pool; none where there is no pool."""
        ...

    def gone(self) -> StatepoolError:
        """The error for whoever needs it after its end."""
        ...
