"""Settings of one server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What to serve, where, and for whom.

    Args:
        engine: the model and how to run it.
        host: address to listen on. The default is reachable from this machine only.
        port: port to listen on; 0 takes a free one.
        api_key: when set, every request but ``/health`` must carry it.
        chat_page: folder of the page served at ``/``; ``None`` serves none.
        max_body_bytes: larger request bodies are refused with 413.
        max_in_flight: sequences accepted at once; more are refused with 429.
        drain_seconds: how long running requests may finish after SIGTERM.
        tool_format: name of the tool-call format; ``None`` takes the one the chat template speaks.
        vllm_metric_names: export the metrics under vLLM's names as well.
        stored_responses: answers of ``/v1/responses`` kept for ``previous_response_id``.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    chat_page: Path | None = None
    max_body_bytes: int = 8 << 20
    max_in_flight: int = 1024
    drain_seconds: float = 30.0
    tool_format: str | None = None
    vllm_metric_names: bool = False
    stored_responses: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidConfig(f"port must be between 0 and 65535, got {self.port}", param="port")
        if self.api_key is not None and not self.api_key:
            raise InvalidConfig("api_key must not be empty; leave it out to ask for none", param="api_key")
        for name in ("max_body_bytes", "max_in_flight", "stored_responses"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
        if not self.drain_seconds >= 0:
            raise InvalidConfig(f"drain_seconds must not be negative, got {self.drain_seconds}", param="drain_seconds")
