"""A25 and A26: a GPU with the model, the machine around it with the KV; and the paged decode kernel on the GPU.

Without a GPU the rows have no value and say so.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.machine import LoadWatch
from bench.row import Row
from statepool.engine import cuda

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_hidden_layers": 16,
    "max_position_embeddings": 8192,
}


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    offload = "tokens/s with KV on the host's attention workers, over GPU only with an eighth of that KV"
    kernel = "paged GQA decode attention with log-sum-exp, share of the GPU's copy bandwidth"
    rows = {
        "A25": Row("A25", offload, "x", "higher", 1.3, peer="the same engine with that KV budget"),
        "A26": Row("A26", kernel, "%", "higher", 85.0),
    }
    for name, row in rows.items():
        if only and name not in only:
            continue
        watch, why = LoadWatch(), cuda.missing()
        if why is not None:
            row.note = f"not run: {why}"
        elif name == "A25":
            _offloaded(row, quick)
        else:
            _bandwidth(row, quick)
        row.command, row.load = f"python -m bench lamina --only {name}", watch.stop()
        yield row


def _offloaded(row: Row, quick: bool) -> None:
    from tests.small_models import write_model

    from statepool.engine.config import EngineConfig
    from statepool.engine.engine import Engine, kv_layout
    from statepool.engine.request import Request, SamplingParams

    requests, prompt, answer = (16, 512, 32) if quick else (64, 2048, 128)
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_model(Path(folder) / "model", **SHAPE))
        settings: dict[str, Any] = {"model": model, "quant": "bf16", "backend": "cuda", "max_seqs": requests}
        settings |= {"max_batched_tokens": 2048, "max_model_len": 4096}
        demand = requests * (prompt + answer + 16) * kv_layout(EngineConfig(**settings)).token_bytes
        rates, gaps = {}, {}
        for name, own in (
            ("alone", {"kv_bytes": demand // 8}),
            ("apart", {"kv_bytes": demand, "attention_workers": "2"}),
        ):
            engine = Engine(EngineConfig(**settings, **own))
            for i in range(requests):
                tokens = tuple((31 * i + 7 * j) % 250 + 3 for j in range(prompt))
                engine.submit(Request(f"r{i}", tokens, SamplingParams(max_tokens=answer, ignore_eos=True)))
            while engine.stats().generated_tokens < requests:  # prompts are not what is measured
                engine.step()
            first, began, steps = engine.stats().generated_tokens, time.perf_counter(), []
            while engine.has_work:
                at = time.perf_counter()
                engine.step()
                steps.append(time.perf_counter() - at)
            rates[name] = (engine.stats().generated_tokens - first) / (time.perf_counter() - began)
            gaps[name] = statistics.median(steps)
        row.value, row.own = rates["apart"] / rates["alone"], f"{rates['apart']:.0f} tokens/s"
        row.peer_value, row.peer_unit = rates["alone"], "tokens/s"
        row.note = (
            f"{requests} requests of {prompt} + {answer} tokens; between tokens {gaps['apart'] * 1000:.1f} ms against "
            f"{gaps['alone'] * 1000:.1f} ms; all KV on two workers, none left on the GPU"
        )


def _bandwidth(row: Row, quick: bool) -> None:
    import torch

    from statepool.engine.ops.device import DeviceOps

    place = torch.device("cuda")
    ops = DeviceOps(place)
    requests, context, heads, kv_heads, width = (16, 4096, 32, 8, 128) if quick else (64, 8192, 32, 8, 128)
    pages = context // 16
    pool = torch.randn(requests * pages, 1, 2, kv_heads, 16 * width, device=place).to(torch.bfloat16)
    tables = torch.randperm(requests * pages, device=place).to(torch.int32).view(requests, pages)
    start = torch.arange(requests + 1, dtype=torch.int32, device=place)
    lengths = torch.full((requests,), context, dtype=torch.int32, device=place)
    query = torch.randn(requests, heads, width, device=place)
    out = torch.empty(requests, heads * width, device=place)
    lse = torch.empty(requests, heads, device=place)
    other = torch.empty_like(pool)

    def seconds(work: Any) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def attend() -> None:
        ops.attention(query, pool, 0, tables, start, lengths, width**-0.5, out, lse)

    def copy() -> None:
        other.copy_(pool)

    pairs = [(seconds(attend), seconds(copy)) for _ in range(12)][2:]
    read = pool.numel() * 2
    rate, bound = read / statistics.median(a for a, _ in pairs), 2 * read / min(c for _, c in pairs)
    row.value, row.own, row.limit = 100 * rate / bound, f"{rate / 1e9:.0f} of {bound / 1e9:.0f} GB/s", rate / bound
    row.note = f"{torch.cuda.get_device_name()}, {requests} requests of {context} tokens, ops {ops.chosen}"
