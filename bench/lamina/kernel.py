"""A24: paged decode attention of an attention worker, against torch over gathered keys and against the memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bench.bounds import probe
from bench.machine import LoadWatch
from bench.row import Row
from statepool.engine.attention.remote.protocol import Plan
from statepool.engine.attention.remote.share import Share
from statepool.kv import KVLayout
from statepool.native import kernels


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Both rows, if wanted."""
    if only and "A24" not in only:
        return
    watch = LoadWatch()
    for row in _rows(quick):
        row.command, row.load = "python -m bench lamina --only A24", watch.stop()
        yield row


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rows(quick: bool) -> Iterator[Row]:
    import torch

    threads, group, kv_heads, width, context, requests = 2, 8, 4, 128, 32_768, 8
    kernels.set_threads(threads)
    torch.set_num_threads(threads)
    layout = KVLayout(1, kv_heads, width)
    pages = context // 16
    share = Share(kernels, layout, requests * pages)
    rng = np.random.default_rng(0)
    share.storage[:] = (rng.standard_normal(share.storage.shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tables = rng.permutation(requests * pages).astype(np.int32).reshape(requests, pages)
    start, contexts = np.arange(requests + 1, dtype=np.int32), np.full(requests, context, np.int32)
    slots = tables[:, -1].astype(np.int64) * 16 + 15
    share.plan(Plan(0, tables, start, contexts, slots, np.empty((0, 2), np.int32)))
    query = rng.standard_normal((requests, kv_heads * group, width), np.float32)
    kv = share.storage[tables[:, -1], 0].reshape(requests, 2, kv_heads, -1)[..., :width].copy()

    def ours() -> None:
        share.begin(0, 0, query)
        share.append(0, 0, kv)
        share.end(0)

    held = torch.from_numpy(share.storage).view(torch.bfloat16)[torch.from_numpy(tables).long(), 0]
    held = held.permute(0, 2, 3, 1, 4)  # [requests, 2, kv_heads, pages, 16 * width]
    keys = held[:, 0].unflatten(-1, (width, 16)).transpose(-1, -2).flatten(2, 3).contiguous()
    values = held[:, 1].unflatten(-1, (16, width)).flatten(2, 3).contiguous()
    rows = torch.from_numpy(query).to(torch.bfloat16)[:, :, None]

    def theirs() -> None:
        torch.nn.functional.scaled_dot_product_attention(rows, keys, values, enable_gqa=True)

    pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(3 if quick else 15)][1:]
    ratio = statistics.median(b / a for a, b in pairs)
    rate = share.storage.nbytes / statistics.median(a for a, _ in pairs) / 1e9
    stream = probe(threads).read_gbs
    row = Row("A24a", "paged decode attention, bf16 KV, against torch on gathered keys", "x", "higher", 2.0)
    row.peer, row.peer_value, row.peer_unit = "torch SDPA", rate / ratio, "GB/s"
    row.value, row.own = ratio, f"{rate:.2f} GB/s"
    row.note = f"{requests} requests of {context} tokens, {kv_heads} KV heads shared by {group}, {threads} threads"
    yield row
    row = Row("A24b", "the same, of the read bandwidth of both threads", "%", "higher", 80.0)
    row.value, row.own, row.limit = 100 * rate / stream, f"{rate:.2f} of {stream:.2f} GB/s", rate / stream
    row.note = "each key is read once and used by 8 heads: 4 multiply-adds a byte, and a softmax for every one of them"
    yield row
