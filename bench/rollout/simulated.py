"""R1 to R5: the published iterations on the validated simulator, medians of ten seeds; R15: what a decision costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

from bench.machine import LoadWatch
from bench.row import Row
from statepool.rollout.core import Core
from statepool.rollout.costs import MOONLIGHT, QWEN_VL, Workload
from statepool.rollout.des import Outcome, Simulation, Wanted
from statepool.rollout.events import ChunkDone, Dispatch, Finished, InstanceJoined, Submit
from statepool.rollout.lengths import LengthPrior
from statepool.rollout.policies import make
from statepool.rollout.sd import Speculation
from statepool.rollout.study import by_group
from statepool.rollout.workloads import draw, lognormal_lengths

CHUNK = 512
CASES = tuple((workload, rho) for workload in (QWEN_VL, MOONLIGHT) for rho in (0.65, 0.85))


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    parts = (
        (("R0",), _ladder), (("R1", "R2"), _plain), (("R3", "R4"), _drafted), (("R5",), _never_lose), (("R15",), _cost),
    )  # fmt: skip
    for names, rows in parts:
        if not only or any(name in only for name in names):
            watch = LoadWatch()
            for row in rows(range(2 if quick else 10)):
                row.command, row.load = f"python -m bench rollout --only {row.id.rstrip('abcdefghijkl')}", watch.stop()
                yield row


@cache
def _workers() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(mp_context=get_context("spawn"))


@cache
def outcomes(workload: Workload, rho: float, seeds: range, policy: str, drafts: str | None = None) -> list[Outcome]:
    """One iteration per seed, as large as published, on all cores."""
    return list(_workers().map(partial(outcome, workload, rho, policy, drafts), seeds))


def outcome(workload: Workload, rho: float, policy: str, drafts: str | None, seed: int) -> Outcome:
    """One iteration. The prior of ``auto`` is fitted to another draw, as an iteration before would give it."""
    prior = LengthPrior.fit(by_group(draw(workload, rho, seed + 1_000_003)))
    out = play(workload, draw(workload, rho, seed), policy, prior, drafts)
    out.chunks.clear()  # no row asks for them, and they would be most of what travels between processes
    return out


def play(workload: Workload, wanted: list[Wanted], policy: str, prior: LengthPrior, drafts: str | None) -> Outcome:
    """One iteration of a policy."""
    made = make(policy, CHUNK, length=lambda job: wanted[job].length, times=workload.times, prior=prior, drafts=drafts)
    speculation = Speculation(workload.times, drafts) if drafts else None  # type: ignore[arg-type]
    settings: dict[str, Any] = {"instances": workload.instances, "capacity": workload.capacity, "seats": workload.seats}
    out = Simulation(wanted, made, workload.times, speculation=speculation, **settings).run()
    assert out.tokens == sum(want.length for want in wanted), "a policy that makes fewer tokens is no policy"
    assert out.preemptions == 0 or not made.divided
    return out


def _ladder(seeds: range) -> Iterator[Row]:
    """The paper's baseline: run time and share of the tail."""
    for (workload, rho), letter in zip(((QWEN_VL, 0.65), (MOONLIGHT, 0.85)), "ab", strict=True):
        outs = outcomes(workload, rho, seeds, "verl_group")
        seconds = statistics.median(out.seconds for out in outs)
        tail = statistics.median(out.tail / out.seconds for out in outs)
        row = Row(
            f"R0{letter}", f"simulated baseline, {workload.name}: run time off the published", "share", "lower", 0.1
        )
        row.value, row.own = abs(seconds / workload.seconds - 1), f"{seconds:.0f} s, tail {tail:.2f} of it"
        row.peer, row.peer_value, row.peer_unit = "veRL as published", workload.seconds, f"s, tail {workload.tail}"
        row.note = (
            f"median of {len(outs)} seeds, {min(o.seconds for o in outs):.0f} to {max(o.seconds for o in outs):.0f} s"
        )
        yield row


def _plain(seeds: range) -> Iterator[Row]:
    for (workload, rho), letter in zip(CASES, "abcd", strict=True):
        runs = {
            policy: outcomes(workload, rho, seeds, policy)
            for policy in ("verl_group", "verl_request", "divided_rr", "seer_paper", "auto", "lrpt_oracle")
        }
        about = f"{workload.name}, correlation {rho}"
        over = {name: _median(runs["verl_group"], outs) for name, outs in runs.items()}
        others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in over.items())
        aim = 1.75 if workload is QWEN_VL else 1.80
        row = Row(
            f"R1{letter}", f"throughput over groups on engines, no drafts: {about}", "x", "higher", aim, over["auto"]
        )
        row.own, row.peer = f"{_rate(runs['auto']):.0f} tokens/s", "verl_group (the paper's baseline)"
        row.peer_value, row.peer_unit = _rate(runs["verl_group"]), "tokens/s"
        row.note = f"{_spread(runs['verl_group'], runs['auto'])}; all policies: {others}"
        yield row
        row = Row(f"R2{letter}", f"over veRL 0.9's rule, no drafts: {about}", "x", "higher", 1.35)
        row.value, row.own = _median(runs["verl_request"], runs["auto"]), f"{_rate(runs['auto']):.0f} tokens/s"
        row.peer, row.peer_value, row.peer_unit = "verl_request", _rate(runs["verl_request"]), "tokens/s"
        row.note = _spread(runs["verl_request"], runs["auto"])
        yield row
        row = Row(f"R2{'efgh'['abcd'.index(letter)]}", f"share of the oracle that knows all lengths: {about}", "share",
                  "higher", 0.92)  # fmt: skip
        row.value = _median(runs["lrpt_oracle"], runs["auto"])
        row.own, row.peer, row.peer_value = (
            f"{_rate(runs['auto']):.0f} tokens/s",
            "lrpt_oracle",
            _rate(runs["lrpt_oracle"]),
        )
        row.peer_unit = "tokens/s"
        robin, paper = (_median(runs["lrpt_oracle"], runs[name]) for name in ("divided_rr", "seer_paper"))
        row.note = f"round robin {robin:.3f}, the paper's rule {paper:.3f}"
        yield row


def _drafted(seeds: range) -> Iterator[Row]:
    for (workload, rho), letter in zip(CASES, "abcd", strict=True):
        about = f"{workload.name}, correlation {rho}"
        base = outcomes(workload, rho, seeds, "verl_group")
        own = outcomes(workload, rho, seeds, "auto", "group")
        request = outcomes(workload, rho, seeds, "verl_request", "self")
        oracle = outcomes(workload, rho, seeds, "lrpt_oracle", "group")
        paper = outcomes(workload, rho, seeds, "seer_paper", "group")
        aim, published = (2.6, 2.04) if workload is QWEN_VL else (2.5, 1.90)
        row = Row(
            f"R3{letter}", f"throughput with drafts from siblings over groups on engines: {about}", "x", "higher", aim
        )
        row.value, row.own, row.peer = _median(base, own), f"{_rate(own):.0f} tokens/s", "verl_group without drafts"
        row.peer_value, row.peer_unit = _rate(base), "tokens/s"
        row.note = (
            f"{_spread(base, own)}; the paper's rule {_median(base, paper):.2f}x here, {published} published; "
            "acceptance by the paper's table"
        )
        yield row
        others = (
            ("efgh", "over verl_request with drafts of its own", "verl_request/self", 1.35, request),
            ("ijkl", "share of the oracle with drafts", "lrpt_oracle/group", 0.97, oracle),
        )
        for letters, what, name, least, outs in others:
            row = Row(f"R3{letters['abcd'.index(letter)]}", f"with drafts from siblings, {what}: {about}", "x",
                      "higher", least, _median(outs, own))  # fmt: skip
            row.own, row.peer = f"{_rate(own):.0f} tokens/s", name
            row.peer_value, row.peer_unit, row.note = _rate(outs), "tokens/s", _spread(outs, own)
            yield row
        row = Row(
            f"R4{letter}", f"tail time, with drafts: {about}", "share", "lower", 0.08, peer="verl_group without drafts"
        )
        row.value = statistics.median(a.tail / b.tail for a, b in zip(own, base, strict=True))
        row.own = f"{statistics.median(out.tail for out in own):.0f} s"
        row.peer_value, row.peer_unit = statistics.median(out.tail for out in base), "s"
        row.note = "published: 0.06 (Qwen2-VL), 0.16 (Moonlight)"
        yield row


def _never_lose(seeds: range) -> Iterator[Row]:
    worst, where, shares = 9.0, "", []
    cases = (
        "no correlation",
        "probes shortest",
        "room for all",
        "outliers in short groups",
        "outliers for the first time",
    )
    for name in cases:
        for workload in (QWEN_VL, MOONLIGHT):
            small = replace(workload, instances=workload.instances // 4, groups=workload.groups // 4)
            for seed in list(seeds)[:2]:
                case, wanted = _hard(name, small, seed)
                known = "probes shortest" if name == "outliers for the first time" else name
                _, before = _hard(known, small, seed + 1_000_003)
                prior = LengthPrior.fit(by_group(before))
                best = min(
                    play(case, wanted, policy, prior, None).seconds
                    for policy in ("divided_rr", "divided_fcfs", "verl_request")
                )
                share = best / play(case, wanted, "auto", prior, None).seconds
                shares.append(share)
                if share < worst:
                    worst, where = share, f"{name}, {workload.name}, seed {seed}"
    row = Row(
        "R5", "never lose: share of the best of round robin, arrival and request, worst case", "share", "higher", 0.98
    )
    row.value, row.own = worst, where
    row.note = f"median {statistics.median(shares):.3f} of {len(shares)} cases, 2 seeds each; a quarter of the engines"
    yield row


def _hard(name: str, workload: Workload, seed: int) -> tuple[Workload, list[Wanted]]:
    rho = 0.0 if name == "no correlation" else 0.65
    lengths = lognormal_lengths(workload.groups, workload.size, workload.mean, workload.most, workload.sigma, rho, seed)
    if name == "probes shortest":
        lengths.sort(axis=1)
    if name.startswith("outliers"):
        shortest = lengths.mean(axis=1).argsort()[: workload.groups // 10]
        lengths[shortest, -1] = (lengths[shortest, -1] * 10).clip(max=workload.most)
    if name == "room for all":
        workload = replace(workload, capacity=1 << 40, seats=1 << 20)
    wanted = [
        Wanted(group, index, 0, workload.most, int(length))
        for group, members in enumerate(lengths)
        for index, length in enumerate(members)
    ]
    return workload, wanted


def _cost(seeds: range) -> Iterator[Row]:
    del seeds
    active, rates = 10_000, {}
    for policy in ("divided_rr", "seer_paper", "auto"):
        core = Core(make(policy, CHUNK, prior=LengthPrior(8.5, 0.7, 0.5)))
        core.on_event(
            *(InstanceJoined(i, 1_000_000, 512) for i in range(32)),
            *(Submit(job, job // 16, job % 16, 256, 40_960) for job in range(active + 2000)),
        )
        running = [job.number for instance in core.state.instances for job in instance.running.values()]
        count, at, began = 0, 0, time.process_time()
        while count < 60_000:
            number = running[at % len(running)]
            at += 1
            job = core.state.jobs[number]
            if job.phase != "running":
                continue
            have = job.generated + CHUNK
            event = Finished(number, have) if at % 97 == 0 else ChunkDone(number, have)
            made = [d for d in core.on_event(event) if isinstance(d, Dispatch)]
            count += len(made)
            running += [d.job for d in made]
            if at > 40 * active:
                break
        rates[policy] = count / (time.process_time() - began)
    row = Row("R15", "decisions per second with 10,000 active requests on 32 engines", "1/s", "higher", 50_000)
    row.value, row.own = rates["auto"], f"{1e6 / rates['auto']:.1f} us each"
    row.note = ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items()) + "; processor time, one event each"
    yield row


def _median(base: Sequence[Outcome], own: Sequence[Outcome]) -> float:
    return statistics.median(b.seconds / o.seconds for b, o in zip(base, own, strict=True))


def _spread(base: Sequence[Outcome], own: Sequence[Outcome]) -> str:
    ratios = sorted(b.seconds / o.seconds for b, o in zip(base, own, strict=True))
    return f"median of {len(ratios)} seeds, {ratios[0]:.2f} to {ratios[-1]:.2f}"


def _rate(outs: Sequence[Outcome]) -> float:
    return statistics.median(out.throughput for out in outs)
