"""A2: 64 streaming clients for a minute, half of which leave at a random token."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

from bench import machine
from bench.checkpoint import checkpoint
from bench.duel import WorkerError
from bench.engine.served import Server, serve_ours
from bench.row import Row
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams

_CLIENTS, _ANSWER = 64, 48
_WARM, _SECONDS = 15.0, 60.0
_POOL = ("--kv-bytes", "96MiB")
"""Small enough that the warm time touches every page of it: what grows later is a leak."""


def run(quick: bool) -> Iterator[Row]:
    """A2b latency, A2c memory, A2d blocks."""
    rows = [
        Row("A2b", "64 clients, half leave: 99th over 50th percentile of the gap between tokens", "x", "lower", 2.0),
        Row("A2c", "64 clients, half leave: growth of resident memory over a minute", "%", "lower", 5.0),
        Row("A2d", "64 clients, half leave: KV blocks or requests left behind", "left", "lower", 0.0),
    ]
    watch = machine.LoadWatch()
    with ExitStack() as stack:
        try:
            server = serve_ours(checkpoint("small"), *_POOL)
            stack.callback(server.kill)
            _measure(rows, server, _SECONDS / 6 if quick else _SECONDS)
        except (WorkerError, OSError, RuntimeError) as error:
            for row in rows:
                row.note = str(error)
    rows[0].peer, rows[0].peer_unit = "the engine alone, same mix, no server", "x"
    rows[0].peer_value = _steps_alone(_SECONDS / 6)
    for row in rows:
        row.command = "python -m bench engine --only A2"
        row.load = watch.stop()
        yield row


def _measure(rows: list[Row], server: Server, seconds: float) -> None:
    crowd(server, _WARM, seed=1)
    before = machine.rss(server.process.pid)
    gaps, ended, left = crowd(server, seconds, seed=2)
    grown = machine.rss(server.process.pid)
    cuts = statistics.quantiles(gaps, n=100)
    rows[0].value = cuts[98] / cuts[49]
    rows[0].own = f"{cuts[49] * 1e3:.3g} ms, 99th {cuts[98] * 1e3:.3g} ms"
    rows[1].value = max(0.0, (grown / before - 1) * 100)
    rows[1].own = f"{before / 1e6:.0f} MB to {grown / 1e6:.0f} MB"
    rows[2].value = float(_left_behind(server))
    rows[2].own = f"{ended} answers read to their end, {left} left early"


def _steps_alone(seconds: float) -> float:
    """99th over 50th percentile of the time of a step with the crowd's prompts and answers and nothing else running:
    what the machine itself leaves of the target."""
    engine = Engine(EngineConfig(model=str(checkpoint("small")), kv_bytes=96 << 20))
    dice, names = random.Random(1), itertools.count()

    def join() -> None:
        prompt = tuple(dice.randrange(10, 8000) for _ in range(dice.randrange(8, 64)))
        answer = dice.randrange(1, _ANSWER // 2) if dice.random() < 0.5 else _ANSWER
        engine.submit(Request(str(next(names)), prompt, SamplingParams(max_tokens=answer, ignore_eos=True)))

    for _ in range(_CLIENTS):
        join()
    steps: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        outputs = engine.step()
        steps.append(time.perf_counter() - began)
        for output in outputs:
            if output.finish_reason is not None:
                join()
    cuts = statistics.quantiles(steps, n=100)
    return cuts[98] / cuts[49]


def crowd(server: Server, seconds: float, seed: int) -> tuple[list[float], int, int]:
    """Keep 64 streams open for ``seconds``: gaps between tokens, streams that ended, streams that were left."""
    gaps: list[float] = []
    counts = {True: 0, False: 0}
    failures: list[Exception] = []
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        while time.perf_counter() < end and not failures:
            leave = dice.randrange(1, _ANSWER // 2) if dice.random() < 0.5 else None
            try:
                stamps = _stream(server, [dice.randrange(10, 8000) for _ in range(dice.randrange(8, 64))], leave)
            except (OSError, RuntimeError) as error:
                failures.append(error)
                return
            gaps.extend(b - a for a, b in itertools.pairwise(stamps))
            counts[leave is None] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return gaps, counts[True], counts[False]


def _stream(server: Server, prompt: list[int], leave: int | None) -> list[float]:
    """Time stamps of the tokens of one stream, which is closed after ``leave`` of them."""
    body = {"model": server.model, "prompt": prompt, "max_tokens": _ANSWER, "ignore_eos": True, "stream": True}
    stamps: list[float] = []
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        with closing(connection.getresponse()) as response:
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {response.read(300).decode(errors='replace')}")
            for line in response:
                if line.startswith(b"data: {"):
                    stamps.append(time.perf_counter())
                    if leave is not None and len(stamps) >= leave:
                        return stamps
    return stamps


def _left_behind(server: Server) -> int:
    """Requests running or waiting plus blocks held, five seconds after the last client left."""
    time.sleep(5)
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("statepool_"):
            found[name.partition("{")[0].removeprefix("statepool_")] = float(value)
    held = found["kv_blocks_total"] - found["kv_blocks_free"]
    return int(found["requests_running"] + found["requests_waiting"] + held)
