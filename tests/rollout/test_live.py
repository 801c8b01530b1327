"""Live iterations on engines of this process: the same tokens whatever the policy, chunk, and number of engines."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from statepool.core.errors import InvalidRequest
from statepool.engine.request import Request
from statepool.kv import block_keys
from statepool.kv.layout import BLOCK_SIZE
from statepool.rollout import Group, rollout
from statepool.rollout.costs import StepTimes
from statepool.rollout.des import Wanted, simulate
from statepool.rollout.policies import make


def alone(engine, groups, seed=0):
    """What the engine says to each member on its own: the oracle."""
    found = {}
    for group in groups:
        for index in range(group.size):
            request = group.request(index, seed)
            request = Request("alone", request.prompt, request.params, index=index)
            outputs = engine.generate([request])["alone"]
            found[group.id, index] = (
                tuple(t for o in outputs for t in o.tokens),
                tuple(p for o in outputs for p in o.sampled_logprobs),
                "".join(o.text for o in outputs),
                outputs[-1].finish_reason,
            )
    return found


def told(done):
    return {(r.group, r.index): (r.tokens, r.logprobs, r.text, r.finish_reason) for r in done.responses}


@pytest.mark.parametrize("policy", ["verl_group", "verl_request", "divided_rr", "divided_fcfs", "seer_paper"])
def test_tokens_do_not_depend_on_the_policy_the_chunk_or_the_engines(engine, groups, policy):
    wanted = alone(engine(128), groups)
    for chunk, count in ((16, 2), (37, 3), (1000, 1)):
        engines = [engine(24, place) for place in range(count)]
        before = [each.stats() for each in engines]
        done = rollout(engines, groups, policy=policy, chunk=chunk)
        assert told(done) == wanted
        if policy.startswith("verl"):
            continue
        after = done.engines
        assert sum(b.preemptions - a.preemptions for a, b in zip(before, after, strict=True)) == 0
        assert sum(b.recomputed_tokens - a.recomputed_tokens for a, b in zip(before, after, strict=True)) == 0
        assert all(instance.pool.free == instance.pool.total for instance in engines)


@pytest.mark.parametrize("blocks", [24, 40])
def test_the_simulator_preempts_and_computes_again_as_often_as_the_engines_do(engine, groups, blocks):
    engines = [engine(blocks, place) for place in range(2)]
    before = [each.stats() for each in engines]
    done = rollout(engines, groups, policy="verl_group")
    gone = {
        name: sum(getattr(b, name) - getattr(a, name) for a, b in zip(before, done.engines, strict=True))
        for name in ("preemptions", "recomputed_tokens", "steps")
    }
    texts = {group.id: group.prompt for group in groups}
    places = {group.id: place for place, group in enumerate(groups)}
    wanted = [
        Wanted(
            places[r.group], r.index, len(texts[r.group]), 100, len(r.tokens),
            tuple(block_keys([*texts[r.group], *r.tokens], BLOCK_SIZE, b"")),
        )
        for r in done.responses
    ]  # fmt: skip
    config = engines[0].config
    out = simulate(
        wanted, make("verl_group", 1), StepTimes(1e-3, 1e-4), instances=2, capacity=blocks * BLOCK_SIZE,
        seats=config.max_seqs, batched=config.max_batched_tokens,
    )  # fmt: skip
    assert {"preemptions": out.preemptions, "recomputed_tokens": out.recomputed, "steps": out.steps} == gone
    assert out.preemptions > 0 or blocks > 24


def test_another_seed_gives_other_tokens_and_members_differ(engine, groups):
    first, second = (told(rollout(engine(128), groups, seed=seed)) for seed in (0, 1))
    assert first != second
    assert len({tokens for (group, _), (tokens, *_) in first.items() if group == "g3"}) > 1


def test_responses_arrive_as_they_end_and_cover_their_chunks(engine, groups):
    seen = []
    done = rollout([engine(64), engine(64, 1)], groups, policy="divided_rr", chunk=16, on_response=seen.append)
    assert sorted((r.group, r.index) for r in seen) == sorted((r.group, r.index) for r in done.responses)
    assert set(seen) == set(done.responses)
    for response in done.responses:
        edges = [(chunk.start, chunk.stop) for chunk in response.chunks]
        assert edges[0][0] == 0 and edges[-1][1] == len(response.tokens)
        assert all(a[1] == b[0] for a, b in pairwise(edges))
        assert all(stop - start <= 16 for start, stop in edges)


def test_a_group_of_one_and_all_members_at_the_limit(engine, groups):
    short = [replace(group, size=1, params=replace(group.params, max_tokens=3)) for group in groups]
    done = rollout(engine(24), short, chunk=2)
    assert [len(r.tokens) for r in done.responses] == [3, 3, 3, 3]
    assert {r.finish_reason for r in done.responses} == {"length"}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"id": "a/b"}, "id"),
        ({"prompt": ()}, "prompt"),
        ({"size": 0}, "size"),
    ],
)
def test_a_bad_group_is_refused_by_name(groups, change, names):
    with pytest.raises(InvalidRequest) as caught:
        replace(groups[0], **change)
    assert caught.value.param == names


def test_what_cannot_run_is_refused_before_anything_does(engine, groups):
    with pytest.raises(InvalidRequest, match="no engine has more"):
        rollout(engine(24), [replace(groups[0], params=replace(groups[0].params, max_tokens=2000))])
    with pytest.raises(InvalidRequest, match="same id"):
        rollout(engine(24), [groups[0], groups[0]])
    with pytest.raises(InvalidRequest, match="at least one group"):
        rollout(engine(24), [])
    bad = Group("bad", (5000,), 1, groups[0].params)
    with pytest.raises(Exception, match="token id outside"):
        rollout(engine(24), [bad])
