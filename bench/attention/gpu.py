"""A13, A14: Triton's block attention and wave decode on a GPU against torch's attention; without a GPU, no value."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional

from bench.machine import LoadWatch
from bench.row import Row, asked

_NO_GPU = "no CUDA device here; on a machine with one: python -m bench attention --only A13,A14"


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A13a forward, A13b forward and backward at 64K tokens, A14 a batch of 32 contexts of 128K."""
    rows = (
        Row("A13a", "block attention forward at 64K tokens, block 128, topk 8, bf16, against SDPA", "x", "higher", 2.5),
        Row("A13b", "the same with gradients", "x", "higher", 2.0),
        Row(
            "A14",
            "wave decode on the device, 32 contexts of 128K tokens, 8 KV heads, d = 128, against SDPA",
            "x",
            "higher",
            8.0,
        ),
    )
    for row in rows:
        if not asked(row.id, only):
            continue
        row.command = "python -m bench attention --only A13,A14"
        watch = LoadWatch()
        if not torch.cuda.is_available():
            row.note = _NO_GPU
        elif row.id == "A14":
            _decode(row, quick)
        else:
            _blocks(row, row.id == "A13b", 8192 if quick else 65536)
        row.load = watch.stop()
        yield row


def _milliseconds(work: Callable[[], object]) -> float:
    """Median of seven by the device's own clock, after two that warm it."""
    times = []
    for _ in range(9):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[2:])


def _fill(row: Row, ours: float, theirs: float) -> None:
    row.value, row.own = theirs / ours, f"{ours:.3g} ms"
    row.peer, row.peer_value, row.peer_unit = "torch SDPA", theirs, "ms"
    row.versions = {"peer": {"torch": torch.__version__, "device": torch.cuda.get_device_name()}}


def _blocks(row: Row, gradients: bool, count: int) -> None:
    from statepool.train.moba import moba_attention

    options = {"dtype": torch.bfloat16, "device": "cuda", "requires_grad": gradients}
    q, k, v = torch.randn(count, 8, 128, **options), *(torch.randn(count, 2, 128, **options) for _ in range(2))

    def blocks() -> None:
        out = moba_attention(q, k, v, None, 128, 8)
        if gradients:
            out.sum().backward()

    def dense() -> None:
        parts = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = functional.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
        if gradients:
            out.sum().backward()

    _fill(row, _milliseconds(blocks), _milliseconds(dense))


def _decode(row: Row, quick: bool) -> None:
    from statepool.engine.attention.wave.config import WaveConfig
    from statepool.engine.attention.wave.device.index import DeviceWaveIndex

    contexts, count, kv_heads, group, width = (2, 16384, 8, 2, 128) if quick else (32, 131072, 8, 2, 128)
    streams, options = contexts * kv_heads, {"dtype": torch.bfloat16, "device": "cuda"}
    # Built stream by stream: the float32 copies of all keys at once would not fit beside them.
    keys, values = (torch.randn(streams, count, width, **options) for _ in range(2))
    config = WaveConfig.paper(iterations=2)
    query = torch.randn(streams, group, width, device="cuda")
    wide = query.to(torch.bfloat16).view(streams, 1, group, width)
    theirs = _milliseconds(
        lambda: functional.scaled_dot_product_attention(wide, keys[:, None], values[:, None], is_causal=False)
    )
    parts = [DeviceWaveIndex.build(keys[i : i + 8], values[i : i + 8], config) for i in range(0, streams, 8)]
    index = DeviceWaveIndex.joined(parts)
    _fill(row, _milliseconds(lambda: index.decode(query)), theirs)
