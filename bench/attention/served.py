"""A17: answers of a server that keeps half of a context in memory and reads a part, beside its own exact answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

from bench.beside import ROOT
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


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """A17a with the default settings, A17b at 5 % of the clusters, A17c at the paper's 1.8 %."""
    ways = {
        "A17a": ("with the default settings", "wave"),
        "A17b": ("by reading 5 % of the clusters", "wave:retrieve=0.05,least=0"),
        "A17c": ("by reading 1.8 % of the clusters", "wave:least=0"),
    }
    for name, (how, kind) in ways.items():
        if asked(name, only):
            yield _answers(name, how, kind, 10 if quick else 100)


def _answers(name: str, how: str, kind: str, count: int) -> Row:
    """Greedy answers to questions about facts: the prompt is exact, as on any server, and the answer is not."""
    where = f"bundled model at {_LENGTH:,} tokens over HTTP, KV budget of half a context"
    row = Row(name, f"right answers lost {how}, {where}", "points", "lower", 1.0)
    row.command = "python -m bench attention --only A17"
    watch = LoadWatch()
    engine = Engine(EngineConfig())
    right = {"wave": 0, "full": 0}
    equal = 0
    command = [sys.executable, "-m", "statepool.cli", "serve", "--attention", kind, *_OPTIONS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (port,) = next(
                found.groups() for line in server.stdout if (found := re.search(r"API\s+http://.*:(\d+)/", line))
            )
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
        finally:
            server.terminate()
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
