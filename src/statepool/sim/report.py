"""What a simulation showed: goodput by requests and by tokens, who was refused, and each request as a line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statepool.serve.snapshot import SLO
from statepool.sim.cluster import Load
from statepool.sim.nodes import Job

__all__ = ["Report", "report", "write_requests"]


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of one run. Shares are of all requests, or of all prompt tokens, that arrived."""

    requests: int
    effective: float
    """Share of requests that kept both promises."""
    effective_tokens: float
    """The same by prompt tokens: refusing the longest costs few requests and many tokens."""
    effective_output: int
    """Answer tokens of effective requests."""
    refused: int
    """Refused on arrival."""
    wasted: int
    """Refused by a decode node after the prefill."""
    wasted_s: float
    """Seconds of prefill of requests that did not become effective."""
    reuse: float
    """Share of the prompt tokens that were not computed because they were cached."""
    reuse_bound: float
    """The most a cache without limit could have reused of the requests that ran."""
    reuse_ran: float
    """``reuse`` among the requests that ran, to be compared with ``reuse_bound``."""
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    tbt_p50_s: float
    tbt_p90_s: float
    tbt_p99_s: float
    refused_by_length: tuple[float, ...]
    """Share of the requests refused, early or late, in each tenth by prompt length."""
    load_correlation: float
    """Between the load of the prefill and of the decode pool; below 0 they swing against each other."""
    decode_load_std: float


def report(jobs: Sequence[Job], loads: Sequence[Load], slo: SLO, block: int) -> Report:
    """The figures of ``jobs``, which ran under ``slo`` with blocks of ``block`` tokens."""
    prompts = np.array([job.ask.tokens for job in jobs])
    outputs = np.array([job.call.output for job in jobs])
    ran = np.array([job.prefilled for job in jobs])
    ttft = np.array([job.first_token - job.ask.at for job in jobs])
    tbt = np.array([job.tbt_s for job in jobs])
    reused = np.array([job.reused for job in jobs])
    good = np.array([job.status == "done" for job in jobs]) & (ttft <= slo.ttft_s) & (tbt <= slo.tbt_s)
    refused = np.array([job.status == "refused" for job in jobs])
    wasted = np.array([job.status == "wasted" for job in jobs])
    correlation, deviation = _swing(loads)
    return Report(
        requests=len(jobs),
        effective=float(good.mean()),
        effective_tokens=float(prompts[good].sum() / prompts.sum()),
        effective_output=int(outputs[good].sum()),
        refused=int(refused.sum()),
        wasted=int(wasted.sum()),
        wasted_s=float(sum(job.prefill_spent_s for job, kept in zip(jobs, good, strict=True) if not kept)),
        reuse=float(reused.sum() / prompts.sum()),
        reuse_bound=_reuse_bound(jobs, block),
        reuse_ran=float(reused[ran].sum() / max(1, prompts[ran].sum())),
        ttft_mean_s=_mean(ttft[ran]),
        ttft_p50_s=_quantile(ttft[ran], 0.5),
        ttft_p90_s=_quantile(ttft[ran], 0.9),
        ttft_p99_s=_quantile(ttft[ran], 0.99),
        tbt_p50_s=_quantile(tbt[np.isfinite(tbt)], 0.5),
        tbt_p90_s=_quantile(tbt[np.isfinite(tbt)], 0.9),
        tbt_p99_s=_quantile(tbt[np.isfinite(tbt)], 0.99),
        refused_by_length=tuple(
            float((refused | wasted)[part].mean())
            for part in np.array_split(np.argsort(prompts, kind="stable"), min(10, len(jobs)))
        ),
        load_correlation=correlation,
        decode_load_std=deviation,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else math.nan


def _reuse_bound(jobs: Sequence[Job], block: int) -> float:
    seen: set[int] = set()
    reused = tokens = 0
    for job in jobs:
        if not job.prefilled:
            continue
        depth = next((depth for depth, key in enumerate(job.keys) if key not in seen), len(job.keys))
        seen.update(job.keys)
        reused += min(depth * block, job.ask.tokens - 1)
        tokens += job.ask.tokens
    return reused / max(1, tokens)


def _swing(loads: Sequence[Load], window_s: float = 5.0) -> tuple[float, float]:
    """Correlation of the pools' loads and deviation of the decode pool's, in means of 5 s, the first minute aside."""
    windows: dict[int, list[Load]] = {}
    for load in loads:
        if load.at >= 60:
            windows.setdefault(int(load.at / window_s), []).append(load)
    if len(windows) < 3:
        return math.nan, math.nan
    prefill = np.array([np.mean([load.prefill for load in part]) for part in windows.values()])
    decode = np.array([np.mean([load.decode for load in part]) for part in windows.values()])
    if prefill.std() == 0 or decode.std() == 0:
        return 0.0, float(decode.std())
    return float(np.corrcoef(prefill, decode)[0, 1]), float(decode.std())


def lines(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """Each request as a record; times in seconds, what did not happen is null."""
    for job in jobs:
        decision = job.decision
        yield {
            "id": job.ask.id,
            "arrival": round(job.ask.at, 6),
            "prompt": job.ask.tokens,
            "output": job.call.output,
            "status": job.status,
            "refused": decision.refused or None,
            "prefill_node": None if decision.refused else decision.prefill,
            "decode_node": None if decision.refused else decision.decode,
            "source_node": None if decision.source < 0 else decision.source,
            "fetched_tokens": decision.fetched,
            "reused_tokens": job.reused,
            "expected_ttft": round(decision.ttft_s, 6),
            "ttft": _known(job.first_token - job.ask.at),
            "tbt": _known(job.tbt_s),
            "other_policy": job.shadow,
        }


def _known(seconds: float) -> float | None:
    return round(seconds, 6) if math.isfinite(seconds) else None


def write_requests(path: Path, jobs: Sequence[Job]) -> None:
    """Write a line of JSON per request."""
    with path.open("w") as file:
        for line in lines(jobs):
            file.write(json.dumps(line) + "\n")


def as_json(figures: Report) -> dict[str, Any]:
    """The figures as plain JSON; what is not a number is null."""
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(figures).items()}
