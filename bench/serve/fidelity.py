"""Row A17: what the simulator says of a cluster, and what clients of that cluster see, on the same requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from bench.checkpoint import checkpoint
from bench.duel import WorkerError
from bench.engine.served import serve_ours
from bench.machine import LoadWatch
from bench.row import Row
from statepool.serve.policies import conductor
from statepool.serve.snapshot import SLO
from statepool.sim.calibrate import calibrate
from statepool.sim.cluster import Cluster, Shape
from statepool.sim.nodes import Job
from statepool.sim.replay import Answer, play
from statepool.sim.traces import BLOCK, read_trace, scaled, sped_up

_TRACE = "AzureLLMInferenceTrace_conv.csv"
_SCALE = 0.2
_BUSY = 0.6
"""Share of the time in which the prefill engine computes."""
_SLO = SLO(30.0, 1.0)


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """A17a: error of the means. A17b: error of the P90s."""
    if not wanted("A17"):
        return
    watch, requests = LoadWatch(), 60 if quick else 400
    what = f"simulated against live, 1P+1D, {requests} requests of the Azure conversation trace, largest error of"
    rows = [
        Row("A17a", f"{what} mean TTFT and TBT", "%", "lower", 7.0),
        Row("A17b", f"{what} P90 TTFT and TBT", "%", "lower", 12.0),
    ]
    folder = os.environ.get("STATEPOOL_TRACES")
    if folder is None:
        for row in rows:
            row.note = f"STATEPOOL_TRACES names no folder with {_TRACE}"
    else:
        try:
            _compare(rows, Path(folder) / _TRACE, requests)
        except WorkerError as error:
            for row in rows:
                row.note = str(error)
    load = watch.stop()
    for row in rows:
        row.load, row.command = load, "python -m bench serve --only A17"
        yield row


def _compare(rows: Sequence[Row], trace: Path, requests: int) -> None:
    calls = read_trace(trace)[:requests]
    model = checkpoint("small" if requests < 100 else "qwen3-0.6b")
    server = serve_ours(
        model, "--prefill", "1", "--decode", "1", "--threads", "1", "--kv-bytes", "1GiB", "--max-model-len", "4096"
    )
    try:
        url = f"http://127.0.0.1:{server.port}"
        found = calibrate(url, longest=1024)
        short = scaled(calls, _SCALE)
        work_s = sum(found.costs.prefill_s(call.prompt) for call in short)
        speed = _BUSY * calls[-1].at / work_s
        answers = play(sped_up(calls, speed), url, block=BLOCK, scale=_SCALE)
    finally:
        server.kill()
    shape = Shape(1, 1, found.costs.dram_tokens, max(1, round(BLOCK * _SCALE)))
    jobs = Cluster(found.costs, shape, conductor("global", "none", found.costs, _SLO), _SLO).run(sped_up(short, speed))
    for row, figure in zip(rows, (fmean, lambda values: float(np.quantile(values, 0.9))), strict=True):
        live = {"TTFT": figure(_ttft(answers)), "TBT": figure([a.tbt for a in answers if a.gaps])}
        told = {"TTFT": figure(_simulated(jobs)), "TBT": figure([j.tbt_s for j in jobs if j.call.output > 1])}
        errors = {name: 100 * abs(told[name] / live[name] - 1) for name in live}
        row.value = max(errors.values())
        row.own = ", ".join(f"{name} {told[name] * 1e3:.1f} ms" for name in told)
        row.note = "live " + ", ".join(f"{name} {live[name] * 1e3:.1f} ms" for name in live)
        row.note += (
            f"; calibrated to {found.prefill_error:.0%} and {found.step_error:.0%}; side by side a prefill takes "
        )
        row.note += f"{found.costs.prefill_beside:.2f}x as long and a step {found.costs.decode_beside:.2f}x"
        row.note += f"; trace at x{speed:.2f}"


def _ttft(answers: Sequence[Answer]) -> list[float]:
    return [answer.ttft for answer in answers if answer.ttft is not None]


def _simulated(jobs: Sequence[Job]) -> list[float]:
    return [job.first_token - job.call.at for job in jobs]
