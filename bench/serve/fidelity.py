"""Row A17: what the simulator says of a cluster, and what clients of that cluster see, on the same requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np

from bench.checkpoint import checkpoint
from bench.duel import WorkerError
from bench.engine.served import serve_ours
from bench.machine import LoadWatch
from bench.row import Row
from statepool.serve.costs import NodeCosts
from statepool.serve.policies import conductor
from statepool.serve.snapshot import SLO
from statepool.sim.calibrate import again, calibrate
from statepool.sim.cluster import Cluster, Shape
from statepool.sim.nodes import Job
from statepool.sim.replay import Answer, play
from statepool.sim.traces import BLOCK, Call, read_trace, scaled, sped_up

_TRACE = "AzureLLMInferenceTrace_conv.csv"
_SCALE = 0.1
"""Of the trace's lengths: on two cores it takes seven minutes so, and a request's own way counts for more."""
_BUSY = 0.6
"""Share of the time in which the prefill engine computes."""
_SLO = SLO(30.0, 1.0)
_PARTS = 3
"""How fast the machine is now is measured before and after each part, and the part is predicted from the mean."""
_LONGEST = 512
"""Tokens of the longest prompt of a calibration; the longest of the trace has 411."""


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """A17a: error of the means. A17b: error of the P90s."""
    if not wanted("A17"):
        return
    watch, requests = LoadWatch(), 60 if quick else 350
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
            _compare(rows, Path(folder) / _TRACE, requests, watch)
        except WorkerError as error:
            for row in rows:
                row.note = str(error)
    for row in rows:
        row.command = "python -m bench serve --only A17"
        yield row


def _compare(rows: Sequence[Row], trace: Path, requests: int, watch: LoadWatch) -> None:
    calls = read_trace(trace)[:requests]
    model = checkpoint("small" if requests < 100 else "qwen3-0.6b")
    server = serve_ours(
        model, "--prefill", "1", "--decode", "1", "--threads", "1", "--kv-bytes", "1GiB", "--max-model-len", "4096"
    )
    try:
        url = f"http://127.0.0.1:{server.port}"
        found = calibrate(url, longest=_LONGEST)
        pace = [again(url, found.costs, longest=_LONGEST)]
        work_s = sum(found.costs.prefill_s(call.prompt) for call in scaled(calls, _SCALE))
        speed = _BUSY * calls[-1].at / work_s
        answers: list[Answer] = []
        jobs: list[Job] = []
        for part in _parts(calls):
            answers += play(sped_up(part, speed), url, block=BLOCK, scale=_SCALE)
            pace.append(again(url, found.costs, longest=_LONGEST))
            costs = _slower(found.costs, *map(fmean, zip(*pace[-2:], strict=True)))
            shape = Shape(1, 1, costs.dram_tokens, max(1, round(BLOCK * _SCALE)))
            cluster = Cluster(costs, shape, conductor("global", "none", costs, _SLO), _SLO)
            jobs += cluster.run(sped_up(scaled(part, _SCALE), speed))
        load = watch.stop()  # while the engines live: the time of those that have ended counts as somebody else's
    finally:
        server.kill()
    for row, figure in zip(rows, (fmean, lambda values: float(np.quantile(values, 0.9))), strict=True):
        live = {"TTFT": figure(_ttft(answers)), "TBT": figure([a.tbt for a in answers if a.gaps])}
        told = {"TTFT": figure(_simulated(jobs)), "TBT": figure([j.tbt_s for j in jobs if j.call.output > 1])}
        errors = {name: 100 * abs(told[name] / live[name] - 1) for name in live}
        row.value = max(errors.values())
        row.own = ", ".join(f"{name} {told[name] * 1e3:.1f} ms" for name in told)
        row.note = "live " + ", ".join(f"{name} {live[name] * 1e3:.1f} ms" for name in live)
        prefills, steps = zip(*pace, strict=True)
        row.note += (
            f"; calibrated to {found.prefill_error:.0%} and {found.step_error:.0%}; then a prefill took "
            f"{min(prefills):.2f} to {max(prefills):.2f}x and a step {min(steps):.2f} to {max(steps):.2f}x as long; "
            f"side by side {found.costs.prefill_beside:.2f}x and {found.costs.decode_beside:.2f}x; "
            f"trace at x{speed:.2f}"
        )
        row.load = load


def _parts(calls: Sequence[Call]) -> list[list[Call]]:
    """The calls in parts, each with times from its own start: the machine's speed is measured between them."""
    share = -(-len(calls) // _PARTS)
    cut = [calls[at : at + share] for at in range(0, len(calls), share)]
    return [[replace(call, at=call.at - part[0].at) for call in part] for part in cut]


def _slower(costs: NodeCosts, prefill: float, step: float) -> NodeCosts:
    """The costs where a prefill takes ``prefill`` and a decode step, or a hand-over, ``step`` times as long."""
    c0, c1, c2 = costs.prefill
    return replace(
        costs,
        prefill=(c0 * prefill, c1 * prefill, c2 * prefill),
        reply_s=costs.reply_s * prefill,
        linear_us=tuple(each * step for each in costs.linear_us),
        hbm_bytes_s=costs.hbm_bytes_s / step,
        handoff_base_s=costs.handoff_base_s * step,
        nic_bytes_s=costs.nic_bytes_s / step,
    )


def _ttft(answers: Sequence[Answer]) -> list[float]:
    return [answer.ttft for answer in answers if answer.ttft is not None]


def _simulated(jobs: Sequence[Job]) -> list[float]:
    return [job.first_token - job.call.at for job in jobs]
