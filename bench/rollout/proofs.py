"""R6, R7: the same tokens everywhere, the exact distribution, no preemption, nothing computed twice. R11: budgets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np

from bench.machine import LoadWatch
from bench.rollout.data import load
from bench.row import Row
from statepool.engine.engine import Engine
from statepool.rollout import LocalHosts, rollout
from statepool.rollout.budget import StepCost, optimal_lengths, paper_lengths, step_rate, worthwhile
from statepool.rollout.costs import StepTimes
from statepool.rollout.drafts import GroupDrafts

POLICIES = ("verl_group", "verl_request", "divided_rr", "divided_fcfs", "seer_paper", "tail_isolate", "auto")
FREE = StepCost(1e-3, 0.0, 1e-9)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The rows that are wanted."""
    for names, rows in ((("R6", "R7"), _lossless), (("R6c",), _distribution), (("R11",), _budget)):
        if not only or any(name in only for name in names) or (names == ("R6c",) and "R6" in only):
            watch = LoadWatch()
            for row in rows(quick):
                row.command, row.load = f"python -m bench rollout --only {row.id[:3].rstrip('abc')}", watch.stop()
                yield row


def _lossless(quick: bool) -> Iterator[Row]:
    wanted = load(problems=4 if quick else 8, size=4, kv_bytes=600 << 10, most=160)
    engines = [Engine(wanted.engine) for _ in range(4)]
    oracle = [(r.tokens, r.logprobs) for r in rollout(engines[0], wanted.groups, policy="verl_request").responses]
    differing = cases = preempted = refilled = tokens = 0
    chunks = (16, 64, 10_000)
    for policy, chunk, drafts, count in itertools.product(
        POLICIES, chunks, ("off", "self", "linear", "tree"), (1, 2, 3, 4)
    ):
        if quick and (count in (1, 3) or chunk == 64):
            continue
        for engine in engines:
            engine.draft_with(None)
            engine.reset_prefix_cache()
        make = None
        if drafts != "off":
            source, paths = ("self" if drafts == "self" else "group"), (3 if drafts == "tree" else 1)

            def make(_: int, source: str = source, paths: int = paths) -> GroupDrafts:
                return GroupDrafts(source, paths=paths, cost=FREE)  # type: ignore[arg-type]

        done = rollout(LocalHosts(engines[:count], drafts=make), wanted.groups, policy=policy, chunk=chunk)
        found = [(r.tokens, r.logprobs) for r in done.responses]
        differing += sum(
            len(a[0]) != len(b[0]) or sum(x != y for x, y in zip(a[0], b[0], strict=True)) or a[1] != b[1]
            for a, b in zip(oracle, found, strict=True)
        )
        cases, tokens = cases + 1, tokens + done.tokens
        if not policy.startswith("verl"):
            preempted, refilled = preempted + done.preemptions, refilled + done.refilled
    row = Row(
        "R6", "differing tokens or log-probabilities over policies, chunks, drafts and engines", "tokens", "lower", 0
    )
    row.value, row.own = float(differing), f"{cases} iterations, {tokens} tokens at temperature 1.3"
    row.note = (
        "7 policies, chunks 16, 64 and whole, drafts off, own, linear and on 3 paths, 1 to 4 engines that run short"
    )
    yield row
    row = Row("R7", "preemptions and output tokens computed again in divided iterations", "count", "lower", 0)
    row.value, row.own = float(preempted + refilled), f"{preempted} preemptions, {refilled} tokens"
    yield row


def _distribution(quick: bool) -> Iterator[Row]:
    """Second tokens drawn with drafts against the exact probabilities of the model, by a chi-square test."""
    from dataclasses import replace

    wanted = load(problems=1, size=2000 if quick else 50_000, kv_bytes=8 << 20)
    group = replace(wanted.groups[0], params=replace(wanted.groups[0].params, max_tokens=4, temperature=3.0))
    engine = Engine(wanted.engine)
    engine.draft_with(None)
    hosts = LocalHosts([engine], drafts=lambda _: GroupDrafts("group", paths=3, cost=FREE))
    done = rollout(hosts, [group], policy="verl_request")
    counts: dict[tuple[int, ...], int] = {}
    chances: dict[tuple[int, ...], float] = {}
    for response in done.responses:
        key = response.tokens[:1]
        counts[key] = counts.get(key, 0) + 1
        chances[key] = float(np.exp(response.logprobs[0]))
        if len(response.tokens) >= 2:
            pair = response.tokens[:2]
            counts[pair] = counts.get(pair, 0) + 1
            chances[pair] = float(np.exp(sum(response.logprobs[:2])))
    total = len(done.responses)
    accepted = sum(response.accepted for response in done.responses)
    worst = 1.0
    for length in (1, 2):
        seen = [
            (n, chances[key] * total) for key, n in counts.items() if len(key) == length and chances[key] * total >= 8
        ]
        rest_seen, rest = total - sum(n for n, _ in seen), total - sum(e for _, e in seen)
        statistic = sum((n - e) ** 2 / e for n, e in seen) + (rest_seen - rest) ** 2 / max(rest, 1e-9)
        freedom = len(seen)
        # Wilson and Hilferty's normal approximation.
        z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
        worst = min(worst, 0.5 * float(_erfc(z / np.sqrt(2))))
    row = Row(
        "R6c", "chi-square of tokens drawn with drafts on 3 paths against the exact distribution", "p", "higher", 0.01
    )
    row.value, row.own = worst, f"{2 * total} tokens at temperature 3, {accepted} of them accepted drafts"
    yield row


def _erfc(x: float) -> float:
    import math

    return math.erfc(x)


def _budget(quick: bool) -> Iterator[Row]:
    rng = random.Random(0)
    least, beaten, printed = 1.0, 0, []
    for _ in range(100 if quick else 1000):
        rows = sorted({1, *(rng.randint(2, 2500) for _ in range(8))})
        seconds = sorted(rng.uniform(0.01, 0.2) for _ in rows)
        times = StepTimes(0, 0, table=tuple(zip(rows, seconds, strict=True)))
        beta = list(itertools.accumulate((rng.uniform(0.1, 0.98) for _ in range(8)), lambda a, b: a * b))
        probes, rest = rng.randint(0, 40), rng.randint(1, 250)
        rates = {
            (h, l): step_rate(times, beta, probes, rest, h, l) for h in range(9 if probes else 1) for l in range(9)
        }
        best = max(rates.values())
        least = min(least, rates[optimal_lengths(times, beta, probes, rest, 1.0)] / best)
        printed.append(rates[_within(paper_lengths(times, beta, probes, rest), probes)] / best)
        batch = rng.randint(1, 5)
        cost = StepCost(rng.uniform(0.01, 1), 0.1, rng.uniform(0.001, 0.5))
        chances = [sorted((rng.random() for _ in range(rng.randint(0, 4))), reverse=True) for _ in range(batch)]

        def rate(lengths: Sequence[int], chances: list[list[float]] = chances, cost: StepCost = cost) -> float:
            gain = len(chances) + sum(sum(each[:n]) for each, n in zip(chances, lengths, strict=True))
            return gain / (cost.base + cost.sequence * len(chances) + cost.row * (len(chances) + sum(lengths)))

        choices = itertools.product(*(range(len(each) + 1) for each in chances))
        kept = rate(worthwhile(chances, batch, cost))
        least = min(least, kept / max(map(rate, choices)))
        beaten += kept < rate([0] * batch) * (1 - 1e-12)
    row = Row(
        "R11", "draft lengths chosen against all possible ones, worst of random tables", "share", "higher", 0.99, least
    )
    row.own = f"{beaten} of {len(printed)} below no drafts at all"
    row.peer, row.peer_value, row.peer_unit = "the paper's printed rule, median", float(np.median(printed)), "share"
    row.note = f"the printed rule at its worst {min(printed):.2f}"
    yield row


def _within(lengths: tuple[int, int], probes: int) -> tuple[int, int]:
    return (lengths[0] if probes else 0, lengths[1])
