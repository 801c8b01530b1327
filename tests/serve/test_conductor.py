"""The conductor against Algorithm 1 written out node by node, and each placement by what it promises."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.snapshots import line, snapshot

from statepool.core.errors import InvalidRequest
from statepool.serve.conductor import CacheCentric, Conductor
from statepool.serve.costs import NODES
from statepool.serve.dispatch import KvRouter, LeastLoad, RandomNode, RoundRobin
from statepool.serve.overload import CheckBoth, Everyone
from statepool.serve.prefixes import PrefixIndex, PrefixTable
from statepool.serve.sizeaware import SizeAware
from statepool.serve.snapshot import SLO, Ask

COSTS = NODES["a800"]
PLACEMENTS = [
    CacheCentric(COSTS),
    CacheCentric(COSTS, float("inf")),
    RandomNode(COSTS, 3),
    RoundRobin(COSTS),
    LeastLoad(COSTS),
    KvRouter(COSTS),
    SizeAware(COSTS, inline=False),
]


def algorithm_1(tokens, queue_s, held, link_s, threshold):
    """Mooncake's Algorithm 1 as printed, one node at a time: (node, reuse, source or -1, ttft)."""
    best = max(held)
    source = held.index(best)
    found = None
    for node, own in enumerate(held):
        ratio = float("inf") if own == 0 else best / own
        if best > own and ratio > threshold:
            use, src = best, source
            copy_s = link_s[source] + (best - own) * COSTS.kv_bytes / COSTS.nic_bytes_s
        else:
            use, src, copy_s = own, -1, 0.0
        ttft = max(copy_s, queue_s[node]) + COSTS.prefill_s(tokens, min(use, tokens - 1))
        if found is None or ttft < found[3]:
            found = (node, min(use, tokens - 1), src, ttft)
    return found


nodes = st.lists(
    st.tuples(st.floats(0, 100), st.integers(0, 64), st.floats(0, 5)),
    min_size=1,
    max_size=9,
)


@given(nodes=nodes, blocks=st.integers(1, 64), threshold=st.sampled_from([1.0, 1.3, 4.0, float("inf")]))
def test_algorithm_1(nodes, blocks, threshold):
    tokens = blocks * 512 + 17
    queue_s, held, link_s = ([node[i] for node in nodes] for i in range(3))
    held = [min(each, blocks) * 512 for each in held]
    decision = CacheCentric(COSTS, threshold).place(Ask(0, 5.0, tokens), snapshot(queue_s, held, link_s=link_s))
    node, reuse, source, ttft = algorithm_1(tokens, queue_s, held, link_s, threshold)
    assert decision.ttft_s == pytest.approx(ttft)
    assert (decision.prefill, decision.reuse, decision.source) == (node, reuse, source)


def test_no_own_prefix_is_an_infinite_ratio():
    """Any threshold but infinity fetches to a node that has nothing."""
    busy_source = snapshot([50.0, 0.0], [20 * 512, 0])
    for threshold in (1.3, 1000.0):
        decision = CacheCentric(COSTS, threshold).place(Ask(0, 0, 30 * 512), busy_source)
        assert (decision.prefill, decision.source, decision.fetched) == (1, 0, 20 * 512)
    assert CacheCentric(COSTS, float("inf")).place(Ask(0, 0, 30 * 512), busy_source).source == -1


def test_what_a_node_is_yet_to_compute_cannot_be_copied():
    now = snapshot([50.0, 0.0], held=[20 * 512, 0], ready=[0, 0])
    decision = CacheCentric(COSTS).place(Ask(0, 0, 30 * 512), now)
    assert (decision.prefill, decision.source, decision.reuse) == (1, -1, 0)


@given(nodes=nodes, blocks=st.integers(1, 64), number=st.integers(0, 99))
def test_placements_are_pure_and_make_sense(nodes, blocks, number):
    tokens = blocks * 512
    queue_s, held, link_s = ([node[i] for node in nodes] for i in range(3))
    held = [min(each, blocks) * 512 for each in held]
    now = snapshot(queue_s, held, link_s=link_s)
    before = copy.deepcopy(now)
    ask = Ask(number, 5.0, tokens)
    for placement in PLACEMENTS:
        decision = placement.place(ask, now)
        assert decision == placement.place(ask, now)
        assert 0 <= decision.prefill < len(nodes)
        assert 0 <= decision.reuse < tokens
        assert decision.source != decision.prefill
        assert (decision.source >= 0) == (decision.fetched > 0)
        if decision.source < 0:
            assert decision.reuse == min(held[decision.prefill], tokens - 1)
    for name in ("queue_s", "held", "ready", "link_s"):
        assert np.array_equal(getattr(now.prefill, name), getattr(before.prefill, name))


def test_decode_goes_where_the_next_token_is_soonest_and_fits():
    full = COSTS.vram_tokens
    now = snapshot([0.0], [0], decode=((30, 400_000), (3, full - 100), (30, 390_000)))
    decision = CacheCentric(COSTS).place(Ask(0, 0, 1000), now)
    assert decision.decode == 2
    assert decision.tbt_s == pytest.approx(COSTS.decode_s(31, 391_000))
    packed = snapshot([0.0], [0], decode=((1, full), (1, full - 100)))
    decision = CacheCentric(COSTS).place(Ask(0, 0, 1000), packed)
    assert (decision.decode, decision.tbt_s) == (1, float("inf"))


def test_refusals_say_why_and_when_to_come_back():
    conductor = Conductor(LeastLoad(COSTS), CheckBoth(COSTS, SLO()))
    assert conductor.decide(Ask(0, 0, 8192), snapshot([25.0], [0])).refused == ""
    late = conductor.decide(Ask(0, 0, 8192), snapshot([29.5], [0]))
    assert "first token" in late.refused
    assert late.retry_after_s > 1
    slow = conductor.decide(Ask(0, 0, 8192), snapshot([0.0], [0], decode=((600, 1_300_000),)))
    assert "slowly" in slow.refused
    assert Conductor(LeastLoad(COSTS), Everyone()).decide(Ask(0, 0, 8192), snapshot([99.0], [0])).refused == ""


def test_the_cost_rule_of_kv_router():
    """10 blocks asked: node 0 holds 8 but has 30 queued, node 1 holds none and has 5 queued."""
    now = snapshot(
        [0.0, 0.0],
        [8 * 512, 0],
        queued_tokens=np.array([30 * 512, 5 * 512]),
        queued_context=np.array([40 * 512, 5 * 512]),
    )
    ask = Ask(0, 0, 10 * 512)
    assert KvRouter(COSTS).place(ask, now).prefill == 1  # 32 + 50 against 15 + 15
    light = snapshot([0.0, 0.0], [8 * 512, 0], queued_context=np.array([7 * 512, 0]))
    assert KvRouter(COSTS).place(ask, light).prefill == 0  # 2 + 17 against 10 + 10


def test_random_draws_every_node_and_depends_on_the_number_alone():
    idle = snapshot([0.0] * 4, [0] * 4)
    drawn = [RandomNode(COSTS, 1).place(Ask(number, 0, 100), idle).prefill for number in range(400)]
    assert {drawn.count(node) > 60 for node in range(4)} == {True}
    assert drawn != [RandomNode(COSTS, 2).place(Ask(number, 0, 100), idle).prefill for number in range(400)]
    assert [RoundRobin(COSTS).place(Ask(number, 0, 100), idle).prefill for number in range(6)] == [0, 1, 2, 3, 0, 1]


jobs = st.lists(st.tuples(st.floats(0, 300), st.floats(0.1, 9), st.floats(0, 60)), max_size=8)


@given(jobs=jobs, busy_s=st.floats(0, 3), tokens=st.integers(100, 60_000))
def test_no_promise_is_broken_by_a_newcomer(jobs, busy_s, tokens):
    jobs = sorted(jobs)
    now = 100.0
    deadlines = [now + spare for _, _, spare in jobs]
    waiting = line(now, [(rank, seconds, end) for (rank, seconds, _), end in zip(jobs, deadlines, strict=True)], busy_s)
    decision = SizeAware(COSTS, inline=False).place(
        Ask(9, now, tokens), snapshot([0.0], [0], lines=[waiting], busy_s=np.array([busy_s]))
    )
    at, done_before, done_after = now + busy_s, [], []
    for _, seconds, _ in jobs:
        at += seconds
        done_before.append(at)
    at, own = now + busy_s, None
    for rank, seconds, _ in jobs:
        if own is None and decision.rank < rank:
            at += decision.prefill_s
            own = at
        at += seconds
        done_after.append(at)
    own = at + decision.prefill_s if own is None else own
    for end, before, after in zip(deadlines, done_before, done_after, strict=True):
        assert after <= end or before > end - 1e-9
    assert decision.ttft_s == pytest.approx(own - now)


def test_short_prompts_overtake_long_ones_but_not_their_own_context():
    long = line(100.0, [(200.0, 20.0, 200.0)])
    ask = Ask(9, 100.0, 1000)
    decision = SizeAware(COSTS, inline=False).place(ask, snapshot([20.0], [0], lines=[long]))
    assert decision.rank < 200.0
    assert decision.ttft_s < 1
    waits = snapshot([20.0], [512], ready=[0], lines=[long], after_rank=np.array([200.0]))
    assert SizeAware(COSTS, inline=False).place(ask, waits).rank > 200.0


def test_priority_counts_as_waiting_but_breaks_no_promise():
    placement = SizeAware(COSTS, inline=False)
    relaxed, tight = (line(100.0, [(95.0, 5.0, end)]) for end in (130.0, 105.2))
    plain, urgent = Ask(9, 100.0, 20_000), Ask(9, 100.0, 20_000, priority=2)
    assert placement.place(plain, snapshot([5.0], [0], lines=[relaxed])).rank > 95.0
    first = placement.place(urgent, snapshot([5.0], [0], lines=[relaxed]))
    assert first.rank < 95.0
    assert first.ttft_s == pytest.approx(first.prefill_s)
    assert placement.place(urgent, snapshot([5.0], [0], lines=[tight])).rank > 95.0


def test_a_decode_node_takes_prefills_only_where_it_may():
    lines = [line(0.0, [(0.0, 9.0, 30.0)]), line(0.0, [])]
    now = snapshot([9.0, 0.0], [0, 0], lines=lines, stretch=np.array([1.0, 2.0]))
    decision = SizeAware(COSTS).place(Ask(0, 0, 4000), now)
    assert (decision.prefill, decision.decode) == (1, 0)
    assert decision.ttft_s == pytest.approx(2 * COSTS.prefill_s(4000))
    closed = snapshot([9.0, 0.0], [0, 0], lines=lines, stretch=np.array([1.0, np.inf]))
    assert SizeAware(COSTS).place(Ask(0, 0, 4000), closed).prefill == 0


@given(count=st.integers(25, 200), seed=st.integers(0, 999))
def test_among_many_nodes_the_shortlist_holds_the_best(count, seed):
    """Without lines the cost is busy time plus prefill, so the best of all nodes can be found by looking at each."""
    draw = np.random.default_rng(seed)
    busy_s, held = draw.uniform(0, 20, count), draw.integers(0, 60, count) * 512
    now = snapshot(busy_s, held, busy_s=busy_s, link_s=np.full(count, 1e6))
    decision = SizeAware(COSTS, inline=False).place(Ask(0, 0.0, 60 * 512), now)
    each = [wait + COSTS.chunked_s(60 * 512, int(h), 8192) for wait, h in zip(busy_s, held, strict=True)]
    assert decision.ttft_s <= min(each) * 1.02


@given(
    held=st.lists(st.sets(st.integers(0, 12)), min_size=1, max_size=20),
    dropped=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 12))),
    keys=st.lists(st.integers(0, 12), unique=True),
)
def test_the_prefix_index_is_a_set_per_node(held, dropped, keys):
    index = PrefixIndex(len(held))
    for node, blocks in enumerate(held):
        for key in blocks:
            index.add(node, key)
    for node, key in dropped:
        if node < len(held) and key in held[node]:
            held[node].remove(key)
            index.drop(node, key)
    naive = [next((i for i, key in enumerate(keys) if key not in blocks), len(keys)) for blocks in held]
    assert index.match(keys).tolist() == naive


@given(
    count=st.sampled_from([1, 5, 64, 65, 200]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 199), st.integers(0, 40), st.integers(1, 60)), max_size=40),
    asked=st.lists(st.integers(0, 99), unique=True, max_size=40),
)
def test_the_native_table_is_a_set_per_node(count, steps, asked):
    """Keys collide in their low bits, so that probing and tombstones are met; the table grows from 64 slots."""
    table, held = PrefixTable(count), [set() for _ in range(count)]
    for adds, node, start, length in steps:
        node %= count
        keys = range(start, start + length)
        (table.add if adds else table.drop)(node, np.array(keys, dtype=np.uint64) << np.uint64(40))
        held[node] = held[node] | set(keys) if adds else held[node] - set(keys)
    naive = [next((i for i, key in enumerate(asked) if key not in blocks), len(asked)) for blocks in held]
    assert table.match(np.array(asked, dtype=np.uint64) << np.uint64(40)).tolist() == naive
    assert len(table) == len(set().union(*held))


def test_a_table_of_many_keys_under_churn():
    draw, table, held = np.random.default_rng(1), PrefixTable(70), {}
    for _ in range(300):
        node, keys = int(draw.integers(70)), draw.integers(0, 5000, 200).astype(np.uint64)
        adds = draw.random() < 0.55
        (table.add if adds else table.drop)(node, keys)
        for key in keys.tolist():
            there = held.setdefault(key, set())
            there.add(node) if adds else there.discard(node)
    for key in range(5000):
        found = np.flatnonzero(table.match(np.array([key], dtype=np.uint64))).tolist()
        assert found == sorted(held.get(key, ()))
    with pytest.raises(InvalidRequest, match="node is 70"):
        table.add(70, np.zeros(1, dtype=np.uint64))
