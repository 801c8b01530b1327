"""A17: answers of a server that keeps half of a context in memory and reads a part, beside its own exact answers.

A18: how fast they come, by length of context.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.beside import ROOT
from bench.checkpoint import SHAPES, checkpoint
from bench.machine import LoadWatch
from bench.row import Row, asked
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.train.probe.judge import TAIL, facts
from statepool.web.client import open_url

_LENGTH = 1900
_OPTIONS = (
    "--port",
    "0",
    "--kv-bytes",
    "8MiB",
    "--kv-budget",
    "2MiB",
    "--max-batched-tokens",
    "128",
    "--max-seqs",
    "2",
)
"""A context of 1,900 tokens has 3.7 MiB of keys and values; less memory than two windows of it no budget allows."""
_LENGTHS = {"A18a": 8192, "A18b": 32768, "A18c": 131072}
_TOKENS, _PAIRS = 65, 5


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A17a with the default settings, A17b at 5 % of the clusters, A17c at the paper's 1.8 %; A18 by length."""
    ways = {
        "A17a": ("with the default settings", "wave"),
        "A17b": ("by reading 5 % of the clusters", "wave:retrieve=0.05,least=0"),
        "A17c": ("by reading 1.8 % of the clusters", "wave:least=0"),
    }
    for name, (how, kind) in ways.items():
        if asked(name, only):
            yield _answers(name, how, kind, 10 if quick else 100)
    lengths = {name: tokens for name, tokens in _LENGTHS.items() if asked(name, only)}
    yield from _speeds({name: tokens for name, tokens in lengths.items() if name == "A18a" or not quick})


def _answers(name: str, how: str, kind: str, count: int) -> Row:
    """Greedy answers to questions about facts: the prompt is exact, as on any server, and the answer is not."""
    where = f"bundled model at {_LENGTH:,} tokens over HTTP, KV budget of half a context"
    row = Row(name, f"right answers lost {how}, {where}", "points", "lower", 1.0)
    row.command = "python -m bench attention --only A17"
    watch = LoadWatch()
    engine = Engine(EngineConfig())
    right = {"wave": 0, "full": 0}
    equal = 0
    with _server("--attention", kind, *_OPTIONS) as port:
        for question in facts(engine, count, _LENGTH):
            split = question.body + TAIL
            wanted = engine.tokenizer.decode(question.tokens[split:])
            answers = {}
            for way in right:
                body = {
                    "prompt": question.tokens[:split],
                    "max_tokens": len(question.tokens) - split,
                    "temperature": 0,
                }
                answers[way] = _complete(port, body | ({"attention": way} if way == "full" else {}))
                right[way] += answers[way].strip() == wanted.strip()
            equal += answers["wave"] == answers["full"]
    row.value = 100 * (right["full"] - right["wave"]) / count
    row.own = f"{right['wave']} of {count} right"
    row.peer, row.peer_value, row.peer_unit = "exact answers of the same server", float(right["full"]), f"of {count}"
    row.note = f"{equal} of {count} answers are those of exact attention, letter by letter"
    row.load = watch.stop()
    return row


def _complete(port: str, body: dict[str, object]) -> str:
    sent = json.dumps(body).encode()
    with open_url(f"http://127.0.0.1:{port}", "/v1/completions", sent, timeout_s=300) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text


def _speeds(lengths: dict[str, int]) -> Iterator[Row]:
    """Tokens per second behind the first, exact and wave in turn; a random model with more context than weights."""
    if not lengths:
        return
    longest, shape = max(lengths.values()), SHAPES["long"]
    tokens = random.Random(18).choices(range(shape.vocab - 3), k=longest)
    pool = shape.kv_bytes(longest) + (8 << 20)
    # Segments double as they fill: room for those of before and after, so that only the first turn builds any.
    sizes = ("--kv-bytes", str(pool), "--wave-bytes", str(3 * pool))
    options = ("--port", "0", *sizes, "--max-seqs", "1", "--attention", "wave")
    with _server(str(checkpoint("long")), *options) as port:
        for name, count in lengths.items():
            what = (
                f"decode over HTTP after {count // 1024}K tokens, wave against exact attention in one server, "
                f"{shape.layers} layers of {shape.heads} heads over {shape.kv_heads}, d = {shape.head_dim}"
            )
            row = Row(name, what, "x", "higher", 1.0, command="python -m bench attention --only A18")
            watch, speeds = LoadWatch(), {"wave": [], "full": []}
            for turn in range(_PAIRS + 1):  # the first computes the prompt and builds the index
                for way, found in speeds.items():
                    speed = _speed(port, tokens[:count], {"attention": "full"} if way == "full" else {})
                    found.extend([speed] if turn else [])
            wave, full = (statistics.median(found) for found in speeds.values())
            row.value = statistics.median(a / b for a, b in zip(*speeds.values(), strict=True))
            row.own, row.peer, row.peer_value = f"{wave:.4g} tokens/s", "exact attention", full
            row.peer_unit, row.load = "tokens/s", watch.stop()
            yield row


def _speed(port: str, prompt: list[int], more: dict[str, object]) -> float:
    body = {"prompt": prompt, "max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    sent = json.dumps(body | more).encode()
    with open_url(f"http://127.0.0.1:{port}", "/v1/completions", sent, timeout_s=None) as answer:
        times = [time.perf_counter() for line in answer if line.startswith(b"data: {")]
    return (_TOKENS - 1) / (times[-1] - times[0])


@contextmanager
def _server(*options: str) -> Iterator[str]:
    """The port of a server, which is stopped at the end."""
    command = [sys.executable, "-m", "statepool.cli", "serve", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (port,) = next(
                found.groups() for line in server.stdout if (found := re.search(r"API\s+http://.*:(\d+)/", line))
            )
            yield port
        finally:
            server.terminate()
