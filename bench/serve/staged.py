"""Row A16b: one long prefill over two processes, against the flow-shop formula on its own chunks' times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np

from bench.checkpoint import checkpoint
from bench.machine import LoadWatch
from bench.row import Row
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams

_CHUNK = 256


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The row; ``quick`` takes a short prompt."""
    if not wanted("A16"):
        return
    watch, tokens = LoadWatch(), 1024 if quick else 4096
    what = f"prefill of {tokens} tokens in chunks of {_CHUNK} over 2 processes of one thread, away from the formula"
    row = Row("A16b", what, "%", "lower", 10.0, peer="one process of one thread", peer_unit="s")
    alone, staged = _engine(1), _engine(2)
    pairs = [(step_seconds(alone, tokens, i), sum(step_seconds(staged, tokens, i))) for i in range(1 if quick else 3)]
    told = [(sum(steps) + max(steps)) / 2 for steps, _ in pairs]
    errors = [100 * abs(seconds / expected - 1) for (_, seconds), expected in zip(pairs, told, strict=True)]
    took = median(seconds for _, seconds in pairs)
    row.value, row.own = median(errors), f"{took:.2f} s"
    row.peer_value = median(sum(steps) for steps, _ in pairs)
    row.limit = row.peer_value / 2 / took
    row.note = f"formula {median(told):.2f} s; {row.peer_value / took:.2f}x the peer's speed"
    row.load, row.command = watch.stop(), "python -m bench serve --only A16"
    yield row


def _engine(stages: int) -> Engine:
    model = str(checkpoint("qwen3-0.6b"))
    config = EngineConfig(model, threads=1, stages=stages, max_batched_tokens=_CHUNK, kv_bytes=1 << 30)
    return Engine(config)


def step_seconds(engine: Engine, tokens: int, seed: int) -> list[float]:
    """Seconds of each step until the first token of a new prompt, drawn from ``seed``."""
    prompt = np.random.default_rng(seed).integers(10, 250, tokens).tolist()
    engine.submit(Request(f"prompt{seed}", tuple(prompt), SamplingParams(max_tokens=1, temperature=0)))
    found = []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        found.append(time.perf_counter() - start)
    return found
