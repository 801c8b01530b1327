"""Settings of one server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig
from statepool.kv.eviction import EVICTIONS
from statepool.serve.policies import ADMISSIONS, PLACEMENTS

LIVE_POLICIES = tuple(name for name in PLACEMENTS if not name.startswith("size-aware"))
"""Those that leave the order of an engine's prefills to the engine."""
START_SECONDS = 1800.0
"""What an engine has to load, unless told otherwise: its weights may have to come over a network first."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Several engines behind one server, and the pool of KV blocks between them.

    Args:
        workers: engines that do both prefill and decode.
        prefill: engines that compute prompts and hand the request on with its first token.
        decode: engines that go on from there.
        pool_bytes: memory of the shared pool, over all its nodes.
        pool_nodes: processes that hold it; with ``pool_replicas`` above 1 a block survives the loss of one.
        pool_dir: folder for blocks on disk, which survive a restart; None keeps none.
        pool_disk_bytes: most bytes in it.
        policy: where requests go: ``global`` (Mooncake's Algorithm 1), ``local``, ``kv-router``, ``least-load``,
            ``round-robin`` or ``random``.
        admission: whom to refuse with 429: ``none``, ``late``, ``both``, ``early``, ``predicted``, ``foresight``
            or ``patience``, which keeps a request for as long as its promise can be held.
        slo_ttft: seconds to the first token that ``admission`` keeps.
        slo_tbt: seconds between two tokens that it keeps.
        pool_eviction: which block goes first: ``lru``, ``lfu``, ``length`` or ``likely``.
        ray: address of a Ray cluster that places engines and pool nodes (``auto`` for the one this machine belongs to,
            ``local`` for one made here); None keeps them on this machine.
        stall_seconds: an engine that shows no sign of life for so long is replaced.

    Raises:
        InvalidConfig: prefill without decode or the reverse; a number out of range.
    """

    workers: int = 0
    prefill: int = 0
    decode: int = 0
    pool_bytes: int = 1 << 30
    pool_nodes: int = 1
    pool_dir: Path | None = None
    pool_disk_bytes: int = 4 << 30
    pool_eviction: str = "lru"
    policy: str = "global"
    admission: str = "none"
    slo_ttft: float = 30.0
    slo_tbt: float = 0.1
    stall_seconds: float = 1.5
    ray: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("prefill", 0), ("decode", 0), ("pool_bytes", 1), ("pool_nodes", 1)):
            if getattr(self, name) < least:
                raise InvalidConfig(f"{name} must be at least {least}, got {getattr(self, name)}", param=name)
        if (self.prefill > 0) != (self.decode > 0) and self.workers == 0:
            missing = "decode" if self.prefill else "prefill"
            raise InvalidConfig(f"{missing} must be at least 1, since the other half has engines", param=missing)
        for name in ("stall_seconds", "slo_ttft", "slo_tbt"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} must be above 0, got {getattr(self, name)}", param=name)
        names = {"policy": LIVE_POLICIES, "admission": tuple(ADMISSIONS), "pool_eviction": tuple(EVICTIONS)}
        for name, allowed in names.items():
            if getattr(self, name) not in allowed:
                raise InvalidConfig(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}", param=name
                )

    @property
    def engines(self) -> int:
        """Engines in all; 0 means one that is alone."""
        return self.workers + self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class CodeConfig:
    """The code interpreter: sandboxes in which the server runs what the model writes.

    Args:
        code_containers: sandboxes at once; 0 runs no code.
        code_seconds: most time of one cell.
        code_idle_seconds: a container that nobody has used for so long ends.
        code_memory_bytes: most memory of one container.
        code_calls: most cells of one response.
        code_driver: ``ns`` (root), ``userns`` (any user) or ``auto``, the strongest that works here.
        code_template: manifest of the kind of sandbox, in TOML; None is plain Python.
    """

    code_containers: int = 0
    code_seconds: float = 60.0
    code_idle_seconds: float = 1200.0
    code_memory_bytes: int = 1 << 30
    code_calls: int = 16
    code_driver: str = "auto"
    code_template: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("code_containers", 0), ("code_memory_bytes", 16 << 20), ("code_calls", 1)):
            if getattr(self, name) < least:
                raise InvalidConfig(f"{name} must be at least {least}, got {getattr(self, name)}", param=name)
        for name in ("code_seconds", "code_idle_seconds"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} must be above 0, got {getattr(self, name)}", param=name)


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
        start_seconds: time an engine has to load; one that takes longer is ended, and the server if it just starts.
        drain_seconds: how long running requests may finish after SIGTERM.
        tool_format: name of the tool-call format; ``None`` takes the one the chat template speaks.
        vllm_metric_names: export the metrics under vLLM's names as well.
        stored_responses: answers of ``/v1/responses`` kept for ``previous_response_id``.
        cluster: several engines instead of one.
        code: the code interpreter; off by default.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    chat_page: Path | None = None
    max_body_bytes: int = 8 << 20
    max_in_flight: int = 1024
    start_seconds: float = START_SECONDS
    drain_seconds: float = 30.0
    tool_format: str | None = None
    vllm_metric_names: bool = False
    stored_responses: int = 512
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    code: CodeConfig = field(default_factory=CodeConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidConfig(f"port must be between 0 and 65535, got {self.port}", param="port")
        if self.api_key is not None and not self.api_key:
            raise InvalidConfig("api_key must not be empty; leave it out to ask for none", param="api_key")
        for name in ("max_body_bytes", "max_in_flight", "stored_responses"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
        if not self.start_seconds > 0:
            raise InvalidConfig(f"start_seconds must be above 0, got {self.start_seconds}", param="start_seconds")
        if not self.drain_seconds >= 0:
            raise InvalidConfig(f"drain_seconds must not be negative, got {self.drain_seconds}", param="drain_seconds")
