"""The scheduler alone: whatever happens in whatever order, memory is never promised twice and everything is placed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.rollout.core import Core
from statepool.rollout.events import (
    ChunkDone,
    Dispatch,
    Finished,
    Free,
    InstanceJoined,
    InstanceLost,
    Progress,
    Submit,
    ToolReturn,
    ToolWait,
)
from statepool.rollout.lengths import LengthPrior, Posterior
from statepool.rollout.policies import NAMES, make
from statepool.rollout.state import Group, Job

DIVIDED = [name for name in NAMES if name not in ("verl_group", "verl_request", "partial")]


def campaign(policy: str, seed: int, faults: bool):
    """Random lengths, tools and losses; returns the core, the true lengths and all decisions."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(12)]
    core = Core(make(policy, rng.choice([1, 7, 16]), seed=seed, length=lengths.__getitem__), block=4)
    capacity = 100
    decisions = core.on_event(
        *(InstanceJoined(i, capacity, 4) for i in range(3)),
        *(Submit(job, job // 4, job % 4, 10, 64) for job in range(12)),
    )
    running = {d.job: d for d in decisions if isinstance(d, Dispatch)}
    log = list(decisions)
    waiting_tool: set[int] = set()
    down: set[int] = set()
    for _ in range(5000):
        if not core.state.left:
            break
        for instance in core.state.instances:
            assert instance.reserved == sum(job.reserved for job in instance.running.values())
            assert instance.reserved <= capacity and len(instance.running) <= 4
            assert instance.probes == sum(job.probe for job in instance.running.values())
        roll = rng.random()
        events = []
        if faults and roll < 0.03 and len(down) < 2:
            number = rng.choice([i for i in range(3) if i not in down])
            down.add(number)
            mine = [job for job, d in running.items() if d.instance == number]
            events.append(InstanceLost(number, tuple((j, core.state.jobs[j].generated) for j in mine)))
            for job in mine:
                del running[job]
        elif down and roll < 0.1:
            number = down.pop()
            events.append(InstanceJoined(number, capacity, 4))
        elif waiting_tool and roll < 0.3:
            events.append(ToolReturn(waiting_tool.pop(), 0))
        elif running:
            number = rng.choice(sorted(running))
            dispatch, job = running.pop(number), core.state.jobs[number]
            goal = min(job.generated + dispatch.tokens, lengths[number])
            if goal >= lengths[number]:
                events.append(Finished(number, goal))
            elif faults and rng.random() < 0.2:
                waiting_tool.add(number)
                events.append(ToolWait(number, goal))
            else:
                events += [Progress(number, goal - 1), ChunkDone(number, goal)]
        else:
            continue
        made = core.on_event(*events)
        log += made
        for decision in made:
            if isinstance(decision, Dispatch):
                assert decision.job not in running and decision.instance not in down
                assert decision.source not in down
                running[decision.job] = decision
    return core, lengths, log


@settings(max_examples=40)
@given(policy=st.sampled_from([*DIVIDED, "lrpt_oracle"]), seed=st.integers(0, 10_000), faults=st.booleans())
def test_every_job_ends_within_its_memory_whatever_happens(policy, seed, faults):
    core, lengths, log = campaign(policy, seed, faults)
    assert core.state.left == 0
    assert [core.state.jobs[job].generated for job in range(12)] == lengths
    assert sorted(d.job for d in log if isinstance(d, Free)) == list(range(12))
    assert all(not i.running and i.reserved == 0 for i in core.state.instances)
    assert campaign(policy, seed, faults)[2] == log


def test_events_that_contradict_the_state_are_refused():
    core = Core(make("divided_rr", 8))
    core.on_event(InstanceJoined(0, 100, 4), Submit(0, 0, 0, 4, 20))
    for event in (Submit(0, 0, 0, 4, 20), ChunkDone(7, 1), ToolReturn(0), InstanceJoined(5, 1, 1)):
        with pytest.raises(InvalidRequest):
            core.on_event(event)
    core.on_event(Finished(0, 3))
    with pytest.raises(InvalidRequest, match="does not run"):
        core.on_event(Finished(0, 3))


def test_seer_serves_probes_shortest_first_then_the_longest_group():
    core = Core(make("seer_paper", 10))
    submit = [Submit(group * 3 + i, group, i, 0, 100) for group in range(2) for i in range(3)]
    first = core.on_event(InstanceJoined(0, 10, 8), *submit)
    assert [d.job for d in first] == [0]
    assert [d.job for d in core.on_event(ChunkDone(0, 10)) if isinstance(d, Dispatch)] == [3]
    assert [d.job for d in core.on_event(Finished(3, 9)) if isinstance(d, Dispatch)] == []  # 0 needs 20 of 10 tokens

    core = Core(make("seer_paper", 100))
    core.on_event(InstanceJoined(0, 100, 8), *submit)
    core.on_event(Finished(0, 5))
    placed = [d.job for d in core.on_event(Finished(3, 50)) if isinstance(d, Dispatch)]
    assert placed == [4], "group 1 has the longer member so far"


def test_a_chunk_stays_with_its_kv_while_loads_are_even_and_moves_when_there_is_no_room():
    core = Core(make("divided_rr", 10))
    core.on_event(InstanceJoined(0, 60, 8), InstanceJoined(1, 60, 8), Submit(0, 0, 0, 0, 90), Submit(1, 1, 0, 0, 30))
    assert core.state.jobs[0].at == 0 and core.state.jobs[1].at == 1
    (decision,) = core.on_event(ChunkDone(0, 10))
    assert decision == Dispatch(0, 0, 10, 0)
    (decision,) = core.on_event(ToolWait(1, 10), ChunkDone(0, 20))
    assert decision.instance == 0
    core.on_event(Submit(2, 2, 0, 50, 5))
    (decision,) = core.on_event(ToolReturn(1))
    assert (decision.instance, decision.source) == (0, 1)


@pytest.mark.parametrize("name", ["fastest", "lrpt_oracle"])
def test_a_policy_that_cannot_be_is_refused(name):
    with pytest.raises(InvalidConfig) as caught:
        make(name, 8)
    assert caught.value.param == "policy"


def test_the_posterior_finds_group_means_from_ends_and_from_silence():
    rng = random.Random(3)
    prior = LengthPrior(6.0, 0.8, 0.4)
    posterior = Posterior(prior)
    group = Group(0)
    for number in range(40):
        job = Job(number, group, number, 0, 10_000, round(2.718281828 ** (7.0 + 0.4 * rng.gauss(0, 1))))
        posterior.see(job, finished=True)
    mean, variance = posterior.group(group)
    assert abs(mean - 7.0) < 0.2 and variance < 0.01
    silent = Group(1)
    for i in range(8):
        for tokens in (200, 500, 1000, 2000):
            posterior.see(Job(1000 + i, silent, i, 0, 10_000, tokens), finished=False)
    mean, _ = posterior.group(silent)
    assert mean > 7.2, "eight members beyond 2000 tokens and none has ended"
    job = Job(5000, group, 0, 0, 10_000, 1500)
    low, high = posterior.remaining(job, 0.5), posterior.remaining(job, 0.99)
    assert 0 < low < high <= 8500


def test_a_prior_is_found_again_in_what_was_drawn_from_it():
    rng = random.Random(1)
    groups = []
    for _ in range(400):
        mean = 6 + 0.7 * rng.gauss(0, 1)
        groups.append([max(round(2.718281828 ** (mean + 0.3 * rng.gauss(0, 1))), 1) for _ in range(8)])
    prior = LengthPrior.fit(groups)
    assert abs(prior.mean - 6) < 0.1 and abs(prior.between - 0.7) < 0.07 and abs(prior.within - 0.3) < 0.02
