"""A7, A8: the wave buffer: how often a cluster is in memory, and what a step costs when most of the KV is in a file."""

from __future__ import annotations

import json
import mmap
import os
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bench.checkpoint import CACHE
from bench.machine import LoadWatch
from bench.row import Row
from statepool.engine.attention.measure import draw
from statepool.engine.attention.wave import Segment, WaveBuffer, WaveConfig
from statepool.engine.attention.wave.index import SegmentView
from statepool.engine.attention.wave.segment import LANES
from statepool.engine.attention.wave.trace import SelectionTrace
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.kv.tiers import open_scratch
from statepool.native import kernels
from statepool.train.probe.judge import TAIL, facts

THREADS, HEADS, KV_HEADS, CONTEXT, WIDTH, LAYERS = 2, 16, 8, 131072, 128, 2
_SHARE, _CHUNK = 0.05, 20
_NOISE, _TOPICS, _SWITCH = 0.15, 64, 16
"""Queries: one of 64 topics by Zipf's law, another every 16 steps, and noise of so much of their length."""


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A7a on the bundled model, A7b, A7c and A8 on drawn keys."""
    if not only or any(name.startswith("A7") for name in only):
        yield _recorded(quick)
    if not only or any(name.startswith(("A7", "A8")) for name in only):
        rows = list(_steps(quick))
        yield from (row for row in rows if not only or any(row.id.startswith(name) for name in only))


def _recorded(quick: bool) -> Row:
    """Answers of 128 tokens over prompts of 1,800, one after the other; the cache holds 5 % of such a context."""
    row = Row("A7a", "clusters found in memory, 5 % of the KV, bundled model at 1,900 tokens", "hits", "higher", 0.90)
    watch = LoadWatch()
    engine = Engine(EngineConfig(attention="wave:least=0", kv_budget=60 << 20, kv_bytes=64 << 20))
    wave: Any = engine.runner
    wave = wave.backends[0]
    wave.buffer = WaveBuffer(64, int(_SHARE * 1900 * engine.info.kv_token_bytes), _folder())
    trace = CACHE / "attention-selection.jsonl"
    wave._trace = SelectionTrace(str(trace))
    steps = 0
    for i, asked in enumerate(facts(engine, 3 if quick else 32, 1900)):
        params = SamplingParams(max_tokens=128, temperature=1.0, seed=i, ignore_eos=True)
        outputs = engine.generate([Request(f"r{i}", asked.tokens[: asked.body + TAIL], params)])[f"r{i}"]
        steps += sum(len(output.tokens) for output in outputs)
    counts = wave.buffer.counts
    row.value = counts.hit_ratio
    row.own = f"{steps} steps, {counts.hits + counts.misses:,} clusters"
    most = 1 - _first_reads(trace, WaveConfig())
    row.limit = row.value / most
    row.note = f"{most:.3f} if only the first read of each cluster missed: none is in memory before it"
    row.command, row.load = "python -m bench attention --only A7", watch.stop()
    return row


def _first_reads(trace: Path, config: WaveConfig) -> float:
    """Share of a trace's reads that no cache can have: the first ones of a cluster."""
    seen, reads = set(), 0
    for line in map(json.loads, trace.read_text().splitlines()):
        borders = config.segments(line["tokens"])
        sizes = [-(-config.clusters(*border) // LANES) * LANES for border in borders]
        ends = list(accumulate(sizes))
        for head, clusters in enumerate(line["read"]):
            reads += len(clusters)
            for cluster in clusters:
                at = bisect_right(ends, cluster)
                seen.add((line["request"], line["layer"], head, borders[at], ends[at] - cluster))
    return len(seen) / reads


def _folder() -> str:
    CACHE.mkdir(exist_ok=True)
    return str(CACHE)


@dataclass(slots=True)
class _Variant:
    buffer: WaveBuffer | None
    views: list[SegmentView]
    seconds: float = 0.0


def _steps(quick: bool) -> Iterator[Row]:
    """One layer's attention of one token, layers in turn, all variants in turn over the same queries."""
    kernels.set_threads(THREADS)
    watch = LoadWatch()
    config, rng = WaveConfig.paper(update_segment=256), np.random.default_rng(0)
    layers: list[list[Segment]] = []
    for _ in range(LAYERS):
        keys, values = draw(rng, KV_HEADS, CONTEXT, WIDTH)
        borders = config.segments(config.indexed(CONTEXT))
        layers.append([Segment.build(keys[:, a:b], values[:, a:b], a, config) for a, b in borders])
    kv = LAYERS * CONTEXT * KV_HEADS * 2 * WIDTH * 2
    made: dict[str, _Variant] = {}
    for name, share, background in (
        ("memory", None, False),
        ("file", 0.0, False),
        ("cache", _SHARE, False),
        ("thread", _SHARE, True),
    ):
        buffer = None if share is None else WaveBuffer(2 * WIDTH, int(share * kv), _folder(), background)
        made[name] = _Variant(buffer, [_view(segments, config, buffer) for segments in layers])
    tables = sum(segment.meta_bytes for view in made["thread"].views for segment in view.segments)
    steps = 60 if quick else 400
    asked = list(_queries(steps))
    warm = len(asked) // 4 // _CHUNK * _CHUNK
    for at in range(0, len(asked), _CHUNK):
        if at == warm:
            before = {name: each.buffer.counts for name, each in made.items() if each.buffer is not None}
        for each in made.values():
            began = time.perf_counter()
            for layer, query in asked[at : at + _CHUNK]:
                each.views[layer].partial(query, WIDTH**-0.5)
            each.seconds += time.perf_counter() - began if at >= warm else 0
    times = {name: 1e3 * each.seconds / (len(asked) - warm) for name, each in made.items()}
    thread, base = made["thread"].buffer, made["file"].buffer
    assert thread is not None and base is not None
    found, missed = thread.counts.hits - before["thread"].hits, thread.counts.misses - before["thread"].misses
    rate = (base.counts.bytes_read - before["file"].bytes_read) / made["file"].seconds / 1e9
    load = watch.stop()
    command = "python -m bench attention --only A7,A8"
    where = "128K tokens, 16 heads over 8, d = 128"
    cached = Row("A7b", f"a step with 5 % of the clusters in memory against none, {where}", "x", "higher", 1.0)
    cached.value, cached.own = times["file"] / times["cache"], f"{times['cache']:.3g} ms"
    cached.peer, cached.peer_value, cached.peer_unit = "all from the file", times["file"], "ms"
    behind = Row("A7c", "the same with a thread that keeps the cache, against without", "x", "higher", 1.0)
    behind.value, behind.own = times["cache"] / times["thread"], f"{times['thread']:.3g} ms"
    share = Row(
        "A8", f"a step with {100 * tables / kv + 100 * _SHARE:.0f} % of the KV in memory, {where}", "%", "higher", 60.0
    )
    share.value, share.own = 100 * times["memory"] / times["thread"], f"{times['thread']:.3g} ms"
    share.peer, share.peer_value, share.peer_unit = "all in memory", times["memory"], "ms"
    share.note = (
        f"{found / (found + missed):.3f} of the clusters in memory; the file gives {rate:.2f} GB/s for clusters "
        f"without a cache and {_sequential():.2f} GB/s for reads of 1 MiB, past the system's cache"
    )
    for row in (cached, behind, share):
        row.command, row.load = command, load
        yield row


def _view(segments: list[Segment], config: WaveConfig, buffer: WaveBuffer | None) -> SegmentView:
    view, coming = SegmentView(KV_HEADS, WIDTH, True, config), iter(segments)
    view.advance(segments[-1].stop, lambda *_: next(coming) if buffer is None else buffer.store(next(coming)))
    return view


def _queries(steps: int) -> Iterator[tuple[int, Any]]:
    rng, choice = np.random.default_rng(1), Random(1)
    topics = rng.standard_normal((LAYERS, _TOPICS, HEADS, WIDTH))
    weights = [1 / (i + 1) for i in range(_TOPICS)]
    topic = 0
    for step in range(steps):
        if step % _SWITCH == 0:
            (topic,) = choice.choices(range(_TOPICS), weights)
        for layer in range(LAYERS):
            noise = rng.standard_normal((HEADS, WIDTH))
            query = (1 - _NOISE**2) ** 0.5 * topics[layer, topic] + _NOISE * noise
            yield layer, (2 * query).astype(np.float32)


def _sequential() -> float:
    """GB/s of reads of 1 MiB one after the other from a fresh file of 256 MiB."""
    file, area, count = open_scratch(_folder()), mmap.mmap(-1, 1 << 20), 256
    area.write(os.urandom(1 << 20))
    for i in range(count):
        os.pwrite(file, area, i << 20)
    began = time.perf_counter()
    for i in range(count):
        os.preadv(file, [area], i << 20)
    rate = (count << 20) / (time.perf_counter() - began) / 1e9
    os.close(file)
    return rate
