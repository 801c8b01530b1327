"""A9 to A11, A16: block attention's forward against SDPA, drafts that hold, and what the tests of both recorded."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional

from bench.checkpoint import to_bf16
from bench.machine import LoadWatch
from bench.proofs import Proof
from bench.proofs import run as prove
from bench.row import Row, asked
from statepool.engine.attention.full import FullAttention
from statepool.engine.attention.moba import MobaAttention, MobaConfig
from statepool.engine.batch import Batch, Context
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.kv.layout import BLOCK_SIZE
from statepool.kv.tiers import Resident
from statepool.native import kernels
from statepool.train.moba import moba_attention
from statepool.train.probe.judge import TAIL, facts

_BLOCK, _TOPK, _HEADS, _WIDTH = 512, 3, 2, 128
_TESTS = "tests/attention"
PROOFS = (
    Proof(
        "A10",
        "largest distance of block attention and its gradients from a mask in float64, float32",
        "",
        "lower",
        1e-5,
        "max",
        (f"{_TESTS}/test_moba.py::test_values_and_gradients_are_those_of_the_mask",),
        "distance",
    ),
    Proof(
        "A11a",
        "tokens decoded one by one whose bits differ from the prompt's rows",
        "tokens",
        "lower",
        0.0,
        "sum",
        (f"{_TESTS}/test_moba.py::test_the_engine_s_kernel_agrees_with_torch_row_by_row_and_whole",),
        "different",
    ),
    Proof(
        "A11b",
        "rows a decoded token reads, of 2 topk B + N / B",
        "x",
        "lower",
        1.0,
        "max",
        (f"{_TESTS}/test_moba.py::test_a_decoded_token_reads_few_rows",),
        "share",
    ),
    Proof(
        "A16a",
        "drafts by the wave index: cases whose bits are not those without drafts",
        "failures",
        "lower",
        0.0,
        "failed",
        (
            f"{_TESTS}/test_draft.py::test_same_bits_whatever_happens",
            f"{_TESTS}/test_draft.py::test_drafts_are_made_and_held",
        ),
    ),
)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A9a at 16K and A9b at 32K tokens, A9c in the engine, then the proofs, then A16b."""
    for name, count, target in (("A9a", 16384, 0.9), ("A9b", 32768, 11.0)):
        if asked(name, only):
            yield _forward(name, count // 4 if quick else count, target, 1 if quick else 3)
    if asked("A9c", only):
        yield _prompt(4096 if quick else 16384, 1 if quick else 5)
    yield from prove(PROOFS, only)
    if asked("A16b", only):
        yield _drafts(4 if quick else 30)


def _drafts(prompts: int) -> Row:
    """Greedy answers of the bundled model to questions about its context, with drafts of four and without."""
    what = "draft tokens that hold for each pass over the context, bundled model at 1,900 tokens, drafts of 4, greedy"
    row = Row("A16b", what, "tokens", "higher", 2.5, command="python -m bench attention --only A16")
    watch = LoadWatch()
    with_drafts, without = (
        Engine(EngineConfig(quant="fp32", speculate=speculate, max_draft=4, threads=1)) for speculate in ("wave", "off")
    )
    tokens = held = other = 0
    for i, question in enumerate(facts(without, prompts, 1900)):
        prompt = question.tokens[: question.body + TAIL]
        request = Request(f"r{i}", prompt, SamplingParams(max_tokens=64, temperature=0.0, logprobs=0, ignore_eos=True))
        drafted, plain = (engine.generate([request])[request.id] for engine in (with_drafts, without))
        usage = drafted[-1].usage
        assert usage is not None
        tokens, held = tokens + usage.completion_tokens, held + usage.accepted_tokens
        same = [[each for output in outputs for each in output.logprobs] for outputs in (drafted, plain)]
        other += same[0] != same[1]
    row.value = held / (tokens - held)
    row.own = (
        f"{tokens} tokens in {tokens - held} passes; {other} of {prompts} answers differ from those without drafts"
    )
    row.load = watch.stop()
    return row


def _forward(name: str, count: int, target: float, pairs: int) -> Row:
    """The two in turn, one thread each, the CPU time of each."""
    where = f"{count // 1024}K tokens, block {_BLOCK}, topk {_TOPK}, {_HEADS} heads, d = {_WIDTH}, float32"
    ideal = (count / 2) / ((_TOPK - 1) * _BLOCK + _BLOCK / 2)
    of_ideal = name == "A9a"
    what = "block attention forward, speed-up over SDPA" + (", of what the products allow" if of_ideal else "")
    row = Row(name, f"{what}, {where}", "x", "higher", target, command="python -m bench attention --only A9")
    torch.set_num_threads(1)
    kernels.set_threads(1)
    watch = LoadWatch()
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(count, _HEADS, _WIDTH, generator=g) for _ in range(3))
    dense = [x.transpose(0, 1)[None].contiguous() for x in (q, k, v)]
    ratios, own = [], []
    with torch.no_grad():
        moba_attention(q[:2048], k[:2048], v[:2048], None, _BLOCK, _TOPK)
        for _ in range(pairs):
            own.append(_seconds(lambda: moba_attention(q, k, v, None, _BLOCK, _TOPK)))
            full = _seconds(lambda: functional.scaled_dot_product_attention(*dense, is_causal=True))
            ratios.append(full / own[-1])
    ratio = statistics.median(ratios)
    row.value = ratio / ideal if of_ideal else ratio
    row.own = f"{statistics.median(own):.3g} s of CPU"
    row.peer, row.peer_value, row.peer_unit = "torch SDPA", ratio * statistics.median(own), "s of CPU"
    row.note = f"{ratio:.2f} times SDPA, {ideal:.1f} allowed"
    row.load = watch.stop()
    return row


def _prompt(count: int, pairs: int) -> Row:
    """A prompt's last chunk over the engine's pool, by blocks and exact, in turn, one thread, the CPU time of each."""
    chunk, width, heads, kv_heads = 512, _WIDTH, 16, 8
    shape = f"block {_BLOCK}, topk {_TOPK}, {heads} heads over {kv_heads}, d = {width}, bf16"
    where = f"the last {chunk} of {count // 1024}K tokens, {shape}"
    what = "a prompt in the engine, block attention's speed-up over exact, of what the products allow"
    row = Row("A9c", f"{what}, {where}", "x", "higher", 0.9, command="python -m bench attention --only A9")
    kernels.set_threads(1)
    watch = LoadWatch()
    rng = np.random.default_rng(0)
    pool = to_bf16(rng.standard_normal((count // BLOCK_SIZE, 1, 2, kv_heads, BLOCK_SIZE * width), np.float32))
    query = rng.standard_normal((chunk, heads * width), np.float32)
    out = np.empty_like(query)
    backends = (
        MobaAttention(Resident(pool), width, MobaConfig(_BLOCK, _TOPK)),
        FullAttention(kernels, pool, width),
    )
    batch = Batch.build([(range(chunk), count - chunk, range(count // BLOCK_SIZE))], [Context(0)])
    times: list[list[float]] = [[], []]
    for _ in range(pairs + 1):
        for mine, backend in zip(times, backends, strict=True):
            mine.append(_seconds(lambda backend=backend: backend.attend(0, query, batch, out)))  # type: ignore[misc]
    blocks, exact = (statistics.median(mine[1:]) for mine in times)  # the first computes the mean keys too
    ideal = (count - chunk / 2) / ((_TOPK - 1) * _BLOCK + chunk / 2)
    row.value, row.own = exact / blocks / ideal, f"{blocks:.3g} s of CPU"
    row.peer, row.peer_value, row.peer_unit = "our exact attention", exact, "s of CPU"
    row.note = f"{exact / blocks:.2f} times exact attention, {ideal:.1f} allowed"
    row.load = watch.stop()
    return row


def _seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began
