"""Settings of one engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from statepool.core.errors import InvalidConfig

Quant = Literal["int8", "int4", "bf16", "fp32"]
QUANTS: tuple[Quant, ...] = ("int8", "int4", "bf16", "fp32")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to run one model.

    Args:
        model: directory of a checkpoint in Hugging Face layout, or ``"tiny"`` for the bundled one.
        quant: arithmetic of the linear layers; see docs/engine.md. Keys and values are stored in
            bf16, except for ``fp32``.
        kv_bytes: size of the KV pool in bytes; rounded down to whole blocks.
        max_batched_tokens: most tokens computed in one step.
        max_seqs: most sequences in one step.
        max_model_len: longest prompt plus output; ``None`` takes the model's own limit.
        threads: threads of the native kernels; ``None`` takes all cores.
        speculate: ``"ngram"`` drafts from the sequence's own text; ``"wave"``, or ``"wave:NAME=VALUE,…"`` as in
            ``attention``, drafts with the model itself, reading a part of the context. Never changes a result.
        max_draft: most draft tokens per sequence and step.
        stages: processes that share the model's layers, so that the chunks of a long prompt follow each other through
            them, each with ``threads`` threads.
        max_waiting: requests in the queue before ``Overloaded``.
        backend: ``"native"`` (C++), ``"torch"`` (its reference twin), ``"cuda"`` (a GPU; see docs/gpu.md), or
            ``"auto"``: the GPU where there is one, else native, else the reference.
        attention: ``"full"``, or a sparse kind with its settings, such as ``"wave"``, ``"wave:retrieve=0.05,last=1"``
            or ``"moba:block=256,topk=4"``; see docs/attention.md.
        pool: addresses of pool nodes, separated by commas, this machine's own first; see docs/cluster.md.
        pool_replicas: how many of them get each block.
        pool_connections: to each of them; above 1, blocks travel in as many parts at once, each with a thread.
        kv_budget: most bytes of memory for keys, values and wave tables; what of ``kv_bytes`` does not fit is in a
            file, so that contexts may be larger than memory. ``None`` keeps all of ``kv_bytes`` in memory.
        kv_folder: where that file lies; ``None`` takes the system's folder for temporary files.
        attention_workers: a number of attention workers to start, or addresses of such that run already, separated by
            commas: KV blocks and attention are theirs; see docs/lamina.md. ``None`` keeps both here.
        attention_split: what each of them has: ``"heads"``, ``"request"``, ``"sequence"``, or ``"auto"``.
        attention_here: KV heads that stay with the model; it attends for them while the workers do for the others.
        attention_patience: seconds without an answer after which an attention worker counts as lost.
        attention_batches: parts of a batch under way at once, so that the model computes while they attend.
        trace_selection: a file that gets a line of JSON for every token and layer: which clusters wave attention read.
        wave_bytes: most bytes of finished wave segments to keep for reuse; ``None`` takes as many as ``kv_bytes``.
    """

    model: str = "tiny"
    quant: Quant = "int8"
    kv_bytes: int = 1 << 30
    max_batched_tokens: int = 512
    max_seqs: int = 16
    max_model_len: int | None = None
    threads: int | None = None
    speculate: str = "off"
    max_draft: int = 8
    stages: int = 1
    max_waiting: int = 1024
    backend: Literal["auto", "native", "torch", "cuda"] = "auto"
    served_name: str | None = None
    attention: str = "full"
    wave_bytes: int | None = None
    pool: str | None = None
    pool_replicas: int = 1
    pool_connections: int = 1
    kv_budget: int | None = None
    kv_folder: str | None = None
    trace_selection: str | None = None
    attention_workers: str | None = None
    attention_split: str = "auto"
    attention_batches: int = 2
    attention_here: int = 0
    attention_patience: float = 10.0

    def __post_init__(self) -> None:
        if self.quant not in QUANTS:
            raise InvalidConfig(f"quant must be one of {', '.join(QUANTS)}, got {self.quant!r}", param="quant")
        if self.speculate not in ("off", "ngram") and self.speculate.partition(":")[0] != "wave":
            raise InvalidConfig(f"speculate must be off, ngram or wave, got {self.speculate!r}", param="speculate")
        for name in (
            "kv_bytes",
            "max_batched_tokens",
            "max_seqs",
            "max_draft",
            "max_waiting",
            "pool_replicas",
            "pool_connections",
            "stages",
            "attention_batches",
        ):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
        if self.max_batched_tokens < self.max_seqs:
            raise InvalidConfig(
                f"max_batched_tokens ({self.max_batched_tokens}) must not be below max_seqs ({self.max_seqs})",
                param="max_batched_tokens",
            )
        if not self.attention_patience > 0:
            raise InvalidConfig(
                f"attention_patience must be above 0, got {self.attention_patience}", param="attention_patience"
            )
        if self.attention_here < 0 or (self.attention_here and self.attention_workers is None):
            raise InvalidConfig("attention_here must be 0, or more with attention_workers", param="attention_here")
        for name in ("max_model_len", "threads", "wave_bytes", "kv_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {value}", param=name)

        if self.stages > 1:
            exact = self.attention == "full" and not self.speculate.startswith("wave")
            if not exact or self.kv_budget is not None or self.attention_workers is not None:
                raise InvalidConfig(
                    "stages needs attention 'full', here and in memory: no wave drafts, kv_budget or attention_workers",
                    param="stages",
                )

    @property
    def pool_addresses(self) -> list[str]:
        """The nodes of ``pool``."""
        return [address.strip() for address in (self.pool or "").split(",") if address.strip()]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is being served."""

    id: str
    path: str
    family: str
    fingerprint: str
    quant: str
    backend: str
    max_model_len: int
    vocab_size: int
    hidden_size: int
    layers: int
    parameters: int
    eos_ids: tuple[int, ...]
    kv_token_bytes: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since start and gauges of now. Tokens, blocks and bytes, never seconds."""

    running: int = 0
    waiting: int = 0
    kv_blocks_total: int = 0
    kv_blocks_free: int = 0
    kv_blocks_cached: int = 0
    sessions: int = 0
    session_bytes_parked: int = 0
    steps: int = 0
    forward_tokens: int = 0
    """Tokens fed to the model: prompt misses + generated + drafts + recomputed."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    aborted: int = 0
    pool_hit_tokens: int = 0
    """Prompt tokens whose KV came from the shared pool."""
    pool_loaded_blocks: int = 0
    pool_saved_blocks: int = 0
    pool_corrupt_blocks: int = 0
    pool_failures: int = 0
    attention_workers_lost: int = 0
    """How often KV was computed again because an attention worker was gone."""
    paused: bool = False
    weight_version: str = "0"
