"""Row A15: a long prefill whose blocks leave over a link that needs as long for them as the computing takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median

from bench.beside import run_beside
from bench.checkpoint import checkpoint
from bench.machine import LoadWatch
from bench.row import Row
from bench.serve.staged import step_seconds
from bench.workers.turns import free_port
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.kv.layout import KVLayout

_CHUNK = 64


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The row; ``quick`` takes a short prompt."""
    if not wanted("A15"):
        return
    watch, tokens = LoadWatch(), 256 if quick else 1024
    what = f"prefill of {tokens} tokens in chunks of {_CHUNK}, its KV stored over a link as slow as it, over the slower"
    row = Row("A15", what, "x", "lower", 1.10, peer="one after the other", peer_unit="x")
    alone = _engine()
    _seconds(alone, _CHUNK, 99)
    compute = median(_seconds(alone, tokens, i) for i in range(3))
    size = tokens * alone.info.kv_token_bytes
    with ExitStack() as stack:
        address = _linked(stack, alone._layout, size / compute)
        engine = _engine(address)
        _seconds(engine, _CHUNK, 99)
        took = []
        for i in range(1 if quick else 3):
            before = engine.stats().pool_saved_blocks
            took.append(_seconds(engine, tokens, 10 + i))
            assert engine.stats().pool_saved_blocks - before == tokens // 16
    row.value, row.own = median(took) / compute, f"{median(took):.2f} s"
    row.peer_value = 2.0
    row.note = f"{compute:.2f} s of computing, {size / 1e6:.0f} MB at {size / compute / 1e6:.1f} MB/s"
    row.note += "; all KV is in the pool; an engine of one thread"
    row.load, row.command = watch.stop(), "python -m bench serve --only A15"
    yield row


def _engine(pool: str | None = None) -> Engine:
    model = str(checkpoint("qwen3-0.6b"))
    # One thread, so that the other core is there for what is hardware elsewhere: the link, and the far end of it.
    return Engine(EngineConfig(model, threads=1, max_batched_tokens=_CHUNK, kv_bytes=1 << 30, pool=pool))


def _seconds(engine: Engine, tokens: int, seed: int) -> float:
    return sum(step_seconds(engine, tokens, seed))


def _linked(stack: ExitStack, layout: KVLayout, rate: float) -> str:
    """The address of a pool node behind a link of ``rate`` bytes a second."""
    node, link = _free(), _free()
    run_beside(stack, "statepool.cli", "pool", "serve", "--listen", node, "--block-bytes", layout.block_bytes)
    run_beside(stack, "bench.paced", link, node, rate)
    return link


def _free() -> str:
    return f"tcp://127.0.0.1:{free_port()}"
