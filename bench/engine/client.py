"""The one HTTP client that loads every server: streamed completions from token-id prompts. Standard library only."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Served:
    """What one burst of requests saw."""

    tokens_per_second: float
    ttft: float
    """Median seconds to the first token."""
    tpot: float
    """Median seconds per later token."""


def stream(port: int, model: str, prompt: Sequence[int], tokens: int) -> tuple[float, float, int]:
    """One greedy streamed completion: seconds to the first token, seconds in all, tokens by ``usage``.

    Raises:
        OSError: the server is not there or closed the connection.
        RuntimeError: it answered with an error.
    """
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {response.read(500).decode(errors='replace')}")
    first, made = 0.0, 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        if not first:
            first = time.perf_counter() - started
        if b'"usage"' in line and (usage := json.loads(line[6:]).get("usage")):
            made = usage["completion_tokens"]
    connection.close()
    return first, time.perf_counter() - started, made


def burst(port: int, model: str, prompts: Sequence[Sequence[int]], tokens: int, concurrency: int) -> Served:
    """Send ``prompts`` with ``concurrency`` in flight."""
    queue = list(enumerate(prompts))
    answers: dict[int, tuple[float, float, int]] = {}
    failures: list[Exception] = []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not queue or failures:
                    return
                number, prompt = queue.pop()
            try:
                answers[number] = stream(port, model, prompt, tokens)
            except (OSError, RuntimeError) as error:
                failures.append(error)

    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    wall = time.perf_counter() - started
    made = sum(count for _, _, count in answers.values())
    if made != tokens * len(prompts):
        raise RuntimeError(f"{made} tokens came back, {tokens * len(prompts)} were asked for")
    later = [(total - first) / (count - 1) for first, total, count in answers.values()]
    return Served(made / wall, statistics.median(first for first, _, _ in answers.values()), statistics.median(later))
