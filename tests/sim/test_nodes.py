"""Nodes against the same thing written out step by step."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.kv.eviction import LeastRecent
from statepool.serve.costs import NODES
from statepool.serve.prefixes import PrefixIndex
from statepool.serve.snapshot import Ask, Decision, worst_tenth
from statepool.sim.nodes import BlockCache, DecodeNode, Job, PrefillNode
from statepool.sim.traces import Call

COSTS = NODES["a800"]


def job(number, at, prompt, output, rank=None, prefill_s=1.0):
    decision = Decision(0, 0, 0, rank=at if rank is None else rank, prefill_s=prefill_s)
    made = Job(Call(at, prompt, output), Ask(number, at, prompt), decision, at)
    made.first_token = at
    return made


def naive(jobs):
    """Token times by a loop over steps: everyone there at a step's begin gets a token at its end."""
    times = {each.ask.id: [each.first_token] for each in jobs}
    left = {each.ask.id: each.call.output - 1 for each in jobs}
    clock = 0.0
    while any(left.values()):
        there = [each for each in jobs if each.ask.at <= clock and left[each.ask.id]]
        if not there:
            clock = min(each.ask.at for each in jobs if left[each.ask.id])
            continue
        tokens = sum(each.ask.tokens + len(times[each.ask.id]) - 1 for each in there)
        clock += COSTS.decode_s(len(there), tokens)
        for each in there:
            times[each.ask.id].append(clock)
            left[each.ask.id] -= 1
    return times


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 4), st.integers(1, 9000), st.integers(2, 60)), min_size=1, max_size=12),
    st.lists(st.floats(0, 5), max_size=5),
)
def test_decoding_step_by_step(drawn, looks):
    """Looking at a node in between changes nothing."""
    jobs = [job(number, at, prompt, output) for number, (at, prompt, output) in enumerate(sorted(drawn))]
    node = DecodeNode(COSTS)
    moments = sorted([(each.ask.at, each) for each in jobs] + [(at, None) for at in looks], key=lambda m: m[0])
    ended = []
    for at, each in moments:
        ended += node.advance(at)
        if each is not None:
            node.join(each, at)
    ended += node.advance(math.inf)
    assert sorted(each.ask.id for each in ended) == list(range(len(jobs)))
    assert (node.batch, node.tokens) == (0, 0)
    expected = naive(jobs)
    for each in jobs:
        assert each.tbt_s == pytest.approx(worst_tenth(np.diff(expected[each.ask.id])), rel=1e-9)


def test_the_worst_tenth():
    draw = random.Random(0)
    gaps = [draw.random() for _ in range(87)]
    assert worst_tenth(np.array(gaps)) == pytest.approx(sum(sorted(gaps)[-9:]) / 9)
    assert worst_tenth(np.array([0.3, 0.1])) == 0.3
    assert worst_tenth(np.array([])) == 0


def test_without_room_a_request_waits():
    node = DecodeNode(COSTS)
    big = [job(number, 0.0, 700_000, 50) for number in range(2)]
    for each in big:
        node.join(each, 0.0)
    first, second = node.advance(math.inf)
    assert (first, second) == tuple(big)
    assert second.joined == pytest.approx(node.ends[48])
    assert node.most_tokens < COSTS.vram_tokens


def test_a_prefill_beside_a_batch_slows_it_and_steps_aside_for_those_who_join():
    alone, shared = DecodeNode(COSTS), DecodeNode(COSTS)
    for node in (alone, shared):
        node.join(job(0, 0.0, 5000, 40), 0.0)
        node.advance(0.0)
    shared.advance(0.1)
    begun = len(shared.ends)
    shared.inline(0.03, 5, 0.1)
    joins = shared.ends[begun - 1] + 0.1
    shared.expect(joins)
    shared.advance(joins)
    shared.join(job(1, joins, 5000, 40), joins)
    shared.advance(math.inf)
    alone.advance(math.inf)
    gaps = np.diff(shared.ends)
    step = np.diff(alone.ends)[0]
    slow = gaps > step + 0.025
    assert slow.sum() == 5
    assert shared.inline_steps == 0
    after = next(i for i, end in enumerate(shared.ends) if end >= joins)
    assert shared.ends[after] - joins < step
    assert gaps[after] < step + 0.01


def test_a_cache_holds_no_more_than_it_may_and_tells_the_index():
    index = PrefixIndex(1)
    cache = BlockCache(0, 4, LeastRecent(), index)
    cache.use((1, 2, 3), 0.0)
    cache.use((1, 4), 1.0)
    assert (cache.held((1, 2, 3)), cache.held((1, 4)), len(cache)) == (3, 2, 4)
    cache.use((7, 8), 2.0)
    assert cache.held((1, 2, 3)) == index.match((1, 2, 3))[0] == 1
    cache.use(range(20, 30), 3.0)
    assert (len(cache), cache.held(range(20, 30))) == (4, 4)


def test_a_line_runs_in_order_of_rank_and_estimates_its_work():
    node = PrefillNode(BlockCache(0, 4, LeastRecent(), PrefixIndex(1)), ttft_s=30.0)
    for number, (rank, seconds) in enumerate([(5.0, 2.0), (1.0, 3.0), (3.0, 4.0)]):
        node.queue(job(number, 0.0, 100, 2, rank, seconds))
    waiting = node.line(1.0)
    assert waiting.ranks.tolist() == [1.0, 3.0, 5.0]
    assert waiting.ahead_s.tolist() == [0.0, 3.0, 7.0, 9.0]
    assert waiting.slack_s.tolist() == [20.0, 20.0, 20.0, math.inf]  # 30 - 9 - 1
    assert node.line(1.0, stretch=2.0).ahead_s.tolist() == [0.0, 6.0, 14.0, 18.0]
    assert node.queue_s(1.0) == pytest.approx(9.0)
    taken = [node.take(1.0).ask.id for _ in range(3)]
    assert taken == [1, 2, 0]
    assert (node.take(1.0), node.queue_s(1.0), node.tokens, node.context) == (None, 0.0, 0, 0)
