"""E8 and E9: whole servers, from a cold start, under one client."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.checkpoint import CACHE, checkpoint
from bench.duel import ROOT, Parked, WorkerError
from bench.engine.client import Served, burst, stream
from bench.peers.setup import python_of
from bench.row import Row
from bench.workers.turns import prompts

_REQUESTS, _PROMPT, _ANSWER, _CONCURRENCY = 24, 64, 32, 8
_PATIENCE = 240.0


@dataclass(slots=True)
class Server(Parked):
    """A server process that has answered its first request."""

    process: subprocess.Popen[bytes]
    port: int
    model: str
    seconds: float
    """From the start of the process to the first streamed token."""

    def measure(self, seed: int) -> Served:
        """One burst: 24 prompts of 64 tokens, 32 tokens each, 8 in flight."""
        self.wake()
        answer = burst(self.port, self.model, prompts(_REQUESTS, _PROMPT, seed), _ANSWER, _CONCURRENCY)
        self.park()
        return answer


def start(command: Sequence[str], model: str, env: dict[str, str], log: Path) -> Server:
    """Start a server (``{port}`` in the command is filled in) and wait for its first token.

    Raises:
        WorkerError: it ended, or did not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.format(port=port) for part in command],
            env=os.environ | env,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=ROOT,
        )
    machine.favour(process.pid)
    server = Server(process, port, model, 0.0)
    prompt = prompts(1, _PROMPT, 0)[0]
    while time.perf_counter() - started < _PATIENCE:
        if process.poll() is not None:
            raise WorkerError(f"{command[0]} ended with code {process.returncode}; see {log}")
        waited = time.perf_counter() - started
        try:
            first, _, _ = stream(port, model, prompt, 2)
        except (OSError, RuntimeError):
            time.sleep(0.02)
            continue
        server.seconds = waited + first
        return server
    server.kill()
    raise WorkerError(f"{command[0]} did not answer within {_PATIENCE:.0f} s; see {log}")


def serve_ours(model: Path, *options: str) -> Server:
    """``statepool serve`` of ``model``, ready."""
    command = [sys.executable, "-m", "statepool.cli", "serve", str(model), "--port", "{port}", *options]
    return start(command, model.name, {"PYTHONPATH": str(ROOT / "src")}, CACHE / "logs" / "serve-ours.log")


def _vllm(model: Path) -> Server:
    python = python_of("vllm")
    if python is None:
        raise WorkerError("vllm is not installed (make bench-setup): no ratio")
    tool = str(python.with_name("vllm"))
    options = ["--dtype", _vllm_type(), "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "8"]
    options += ["--no-enable-prefix-caching", "--host", "127.0.0.1"]
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "HF_HUB_OFFLINE": "1",
    }
    command = [tool, "serve", str(model), "--served-model-name", model.name, "--port", "{port}", *options]
    return start(command, model.name, env, CACHE / "logs" / "serve-vllm.log")


def _vllm_type() -> str:
    """The type vLLM serves fastest here: without bf16 instructions that is float32, by three times."""
    return "bfloat16" if "avx512_bf16" in machine.describe()["instructions"] else "float32"


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """E8a tokens/s, E8b time to first token, E9a cold start, E9b memory, E9c the command's own start."""
    rows = {row.id: row for row in _rows()}
    wanted = [row for row in rows.values() if not only or row.id in only or row.id[:2] in only]
    watch = machine.LoadWatch()
    model = checkpoint("small")
    with ExitStack() as stack:
        try:
            ours = serve_ours(model)
            stack.callback(ours.kill)
            rows["E9a"].value, rows["E9b"].value = ours.seconds, machine.rss(ours.process.pid) / 1e9
            _command_start(rows["E9c"])
            ours.park()
            peer = _vllm(model)
            stack.callback(peer.kill)
            rows["E9a"].peer_value, rows["E9b"].peer_value = peer.seconds, machine.rss(peer.process.pid) / 1e9
            peer.park()
            if any(row.id.startswith("E8") for row in wanted):
                _compare(rows, ours, peer, pairs=2 if quick else 5)
        except (WorkerError, OSError, RuntimeError) as error:
            for row in wanted:
                row.note = row.note or str(error)
    load = watch.stop()
    for row in wanted:
        row.load = load
        yield row


def _compare(rows: dict[str, Row], ours: Server, peer: Server, pairs: int) -> None:
    found: list[tuple[Served, Served]] = []
    for turn in range(pairs + 1):
        pair = ours.measure(turn + 1), peer.measure(turn + 1)
        if turn:
            found.append(pair)
    rows["E8a"].value = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in found)
    rows["E8b"].value = statistics.median(a.ttft / b.ttft for a, b in found)
    rows["E8a"].peer_value = statistics.median(b.tokens_per_second for _, b in found)
    rows["E8b"].peer_value = statistics.median(b.ttft * 1e3 for _, b in found)
    rows["E8a"].own = f"{statistics.median(a.tokens_per_second for a, _ in found):.4g} tok/s"
    rows["E8b"].own = f"{statistics.median(a.ttft for a, _ in found) * 1e3:.4g} ms"
    gaps = [statistics.median(served.tpot for served in side) * 1e3 for side in zip(*found, strict=True)]
    rows[
        "E8a"
    ].note = f"time per output token {gaps[0]:.3g} ms against {gaps[1]:.3g} ms; ours int8, vLLM {_vllm_type()}"


def _command_start(row: Row) -> None:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        subprocess.run([sys.executable, "-m", "statepool.cli", "--help"], check=True, capture_output=True, env=env)
        times.append(time.perf_counter() - started)
    row.value = statistics.median(times)


def _rows() -> list[Row]:
    what = f"{_REQUESTS} prompts {_PROMPT}→{_ANSWER}, concurrency {_CONCURRENCY}, small model"
    peer = f"vllm serve {_vllm_type()}"
    rows = [
        Row("E8a", f"served throughput, {what}", "x", "higher", 2.0, peer=peer, peer_unit="tok/s"),
        Row("E8b", f"time to first token, {what}", "x", "lower", 0.5, peer=peer, peer_unit="ms"),
        Row("E9a", "cold start to the first streamed token, small model", "s", "lower", 4.0, peer=peer, peer_unit="s"),
        Row(
            "E9b",
            "resident memory of the process tree after the first token, touched KV pages included",
            "GB",
            "lower",
            0.7,
            peer=f"{peer}, its 2 GiB KV pool included",
            peer_unit="GB",
        ),
        Row("E9c", "statepool --help", "s", "lower", 0.25),
    ]
    for row in rows:
        row.command = f"python -m bench engine --only {row.id}"
    return rows
