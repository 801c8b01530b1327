"""Drafts never change a token, whatever the source, paths, policy and chunk; how many to verify is the best choice."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.rollout import LocalHosts, rollout
from statepool.rollout.budget import (
    Calibration,
    ClassPlanner,
    StepCost,
    optimal_lengths,
    paper_lengths,
    step_rate,
    worthwhile,
)
from statepool.rollout.costs import StepTimes
from statepool.rollout.draft_server import TokenLogs
from statepool.rollout.drafts import GroupDrafts
from statepool.rollout.events import Draft

FREE = StepCost(1e-3, 0.0, 1e-9)
"""A step so dear and a row so cheap that everything is drafted."""


@pytest.mark.parametrize("policy", ["verl_group", "divided_rr", "seer_paper", "auto"])
@pytest.mark.parametrize(("source", "paths"), [("self", 1), ("group", 1), ("group", 3)])
def test_tokens_and_logprobs_are_those_without_drafts(engine, groups, policy, source, paths):
    def told(done):
        return [(r.tokens, r.logprobs, r.text, r.finish_reason) for r in done.responses]

    wanted = told(rollout(engine(128), groups))
    for blocks, chunk in ((32, 16), (64, 1000)):
        engines = [engine(blocks), engine(blocks, 1)]
        before = [each.stats().preemptions for each in engines]
        hosts = LocalHosts(engines, drafts=lambda _: GroupDrafts(source, paths=paths, cost=FREE))
        done = rollout(hosts, groups, policy=policy, chunk=chunk)
        assert told(done) == wanted
        drafted, accepted = (sum(getattr(r, name) for r in done.responses) for name in ("drafted", "accepted"))
        assert 0 < accepted < drafted
        if not policy.startswith("verl"):
            assert [each.stats().preemptions for each in engines] == before and done.refilled == 0
        for each in engines:
            each.pool.check()
            assert each.pool.free == each.pool.total


@pytest.mark.parametrize("rule", ["paper", "optimal"])
def test_draft_lengths_by_class_are_decisions_of_the_scheduler(engine, groups, rule):
    wanted = [r.tokens for r in rollout(engine(128), groups).responses]
    made = []
    planner = ClassPlanner(StepTimes(1e-3, 1e-6), [0.8**i for i in range(1, 9)], rule)
    hosts = LocalHosts([engine(64)], drafts=lambda _: GroupDrafts("group", cost=FREE))
    record = lambda events, decisions: made.extend(d for d in decisions if isinstance(d, Draft))  # noqa: E731
    done = rollout(hosts, groups, policy="seer_paper", planner=planner, record=record)
    assert [r.tokens for r in done.responses] == wanted
    assert made and all(0 <= d.probe <= 8 and 0 <= d.rest <= 8 for d in made)


@pytest.mark.parametrize("limit", [1, 3, 9])
def test_a_limit_inside_an_accepted_draft_cuts_exactly(engine, groups, limit):
    from dataclasses import replace

    short = [replace(group, params=replace(group.params, max_tokens=limit)) for group in groups]
    wanted = [r.tokens for r in rollout(engine(128), short).responses]
    hosts = LocalHosts([engine(64)], drafts=lambda _: GroupDrafts("group", paths=2, cost=FREE))
    done = rollout(hosts, short, policy="seer_paper", chunk=4)
    assert [r.tokens for r in done.responses] == wanted
    assert all(len(r.tokens) <= limit for r in done.responses)


def test_a_very_large_group_drafts_for_its_first_thousand(engine, groups):
    from dataclasses import replace

    large = [replace(groups[0], size=1030, params=replace(groups[0].params, max_tokens=2))]
    hosts = LocalHosts([engine(64)], drafts=lambda _: GroupDrafts("group", cost=FREE))
    done = rollout(hosts, large, policy="verl_request")
    assert len(done.responses) == 1030 and all(r.drafted == 0 for r in done.responses[1000:])


def test_a_group_name_may_come_again_with_another_prompt(engine, groups):
    from dataclasses import replace

    hosts = LocalHosts([engine(64)], drafts=lambda _: GroupDrafts("group", cost=FREE))
    rollout(hosts, groups)
    swapped = [replace(a, prompt=b.prompt) for a, b in zip(groups, groups[::-1], strict=True)]
    wanted = [r.tokens for r in rollout(engine(128), swapped).responses]
    assert [r.tokens for r in rollout(hosts, swapped).responses] == wanted


FALLING = st.lists(st.floats(0.01, 1.0), max_size=4).map(lambda each: sorted(each, reverse=True))


@given(st.lists(FALLING, min_size=1, max_size=4), st.integers(0, 3), st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))
def test_no_other_choice_of_draft_lengths_gives_more_tokens_per_second(chances, more, base, row):
    cost, batch = StepCost(base, 0.1, row), len(chances) + more
    kept = worthwhile(chances, batch, cost)

    def rate(lengths):
        gain = batch + sum(sum(each[:n]) for each, n in zip(chances, lengths, strict=True))
        return gain / (cost.base + cost.sequence * batch + cost.row * (batch + sum(lengths)))

    best = max(rate(lengths) for lengths in itertools.product(*(range(len(each) + 1) for each in chances)))
    assert rate(kept) == pytest.approx(best, rel=1e-9)
    assert rate(kept) >= rate([0] * len(chances)) * (1 - 1e-12)


@given(st.integers(0, 20), st.integers(0, 60), st.lists(st.floats(0.05, 0.95), min_size=8, max_size=8), st.randoms())
def test_class_lengths_are_the_best_and_the_printed_ones_within_their_budget(probes, rest, steps, rng):
    beta = list(itertools.accumulate(steps, lambda a, b: a * b))
    rows = sorted({1, *(rng.randint(2, 700) for _ in range(6))})
    table = tuple(zip(rows, sorted(rng.random() + 0.05 for _ in rows), strict=True))
    times = StepTimes(0, 0, table=table)
    if probes + rest:
        high, low = optimal_lengths(times, beta, probes, rest, 1.0)
        best = max(
            step_rate(times, beta, probes, rest, h, l)
            for h in range(9 if probes else 1)
            for l in range(9 if rest else 1)
        )
        assert step_rate(times, beta, probes, rest, high, low) == pytest.approx(best)
    high, low = paper_lengths(times, beta, probes, rest)
    assert 0 <= high <= 8 and 0 <= low <= 8


def test_the_printed_rule_feeds_those_it_means_to_hold_back():
    """With one chance for every token the fall of acceptance is what moves budget: away from the probes."""
    beta = [0.8**i for i in range(1, 9)]
    times = StepTimes(1.0, 0.005)
    high, low = paper_lengths(times, [0.8] * 8, 4, 4)
    assert high < low
    assert step_rate(times, beta, 4, 4, *optimal_lengths(times, beta, 4, 4)) >= step_rate(times, beta, 4, 4, high, low)
    assert ClassPlanner(times, beta).plan(None, 4, 4)[:2] == optimal_lengths(times, beta, 4, 4)


def test_calibration_learns_how_far_a_sure_guess_is_right():
    rng, calibration = random.Random(0), Calibration()
    for _ in range(2000):
        (chance,) = calibration.of([1.0])
        calibration.observe([chance], int(rng.random() < 0.6))
    assert calibration.of([1.0])[0] == pytest.approx(0.6, abs=0.06)


@given(st.lists(st.integers(0, 99), max_size=30), st.randoms())
def test_token_logs_stand_lost_doubled_and_reordered_messages(tokens, rng):
    logs, now = TokenLogs(), 0.0
    pieces = []
    at = 0
    while at < len(tokens):
        stop = rng.randint(at + 1, len(tokens))
        pieces.append((max(at - rng.randint(0, 3), 0), stop))
        at = stop
    pieces = pieces * 2
    rng.shuffle(pieces)
    for start, stop in pieces:
        gap = logs.append("g", 0, start, tokens[start:stop], now)
        if gap is not None:
            assert gap < start
    have = sum(len(each.tokens) for each in logs.news("g", {}, now))
    logs.append("g", 0, have, tokens[have:], now)  # asked to send again from the gap
    found = logs.news("g", {0: 3}, now)
    assert [t for each in found for t in each.tokens] == tokens[3:]
    assert logs.behind("g", {0: len(tokens) + 2, 5: 1}) == [("g", 0, len(tokens)), ("g", 5, 0)]


def test_groups_that_nobody_names_are_forgotten_and_may_come_back():
    logs = TokenLogs(ttl=10)
    logs.append("a", 0, 0, [1, 2], 0.0)
    logs.append("b", 0, 0, [3], 8.0)
    assert logs.expire(12.0) == 1 and len(logs) == 1
    assert logs.append("a", 0, 2, [5], 13.0) == 0, "what was forgotten is asked for from its beginning"
    assert logs.append("a", 0, 0, [1, 2, 5], 13.0) is None
