"""Orders of eviction against naive ones, the index against its definition, and learning against a load that teaches."""

import math
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.core.errors import InvalidConfig
from statepool.kv.eviction import EVICTIONS, LeastFrequent, LeastRecent, LengthAware, eviction
from statepool.kv.gittins import LikelyReuse, gittins_table


def hits(policy, chains, capacity):
    """Leading blocks found, of a cache of that many blocks; ``chains`` are (time, keys)."""
    held, found = set(), 0
    for at, chain in chains:
        depth = next((i for i, key in enumerate(chain) if key not in held), len(chain))
        found += depth
        kept = chain[:capacity]
        held.update(kept)
        policy.used(kept, at)
        pinned = frozenset(kept)
        while len(held) > capacity:
            victim = policy.victim(pinned)
            assert victim in held, "the policy knows what is there"
            assert victim not in pinned
            held.remove(victim)
    return found


def forest(draw, count, branch=0.5):
    """Chains over a growing tree: each extends or forks an earlier one, or begins anew."""
    past, fresh, at = [(0,)], 1, 0.0
    for _ in range(count):
        at += draw.expovariate(1.0)
        before = draw.choice(past)
        before = before[: draw.randrange(1, len(before) + 1)] if draw.random() < branch else (0,)
        chain = (*before, *range(fresh, fresh + draw.randrange(0, 6)))
        fresh = max(fresh, max(chain) + 1)
        past.append(chain)
        yield at, chain


@pytest.mark.parametrize("name", EVICTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_every_policy_names_blocks_that_are_there_and_all_of_them(name, seed):
    draw = random.Random(seed)
    chains = list(forest(draw, 400))
    hits(eviction(name), chains, 60)
    policy, held = eviction(name), set()
    for at, chain in chains[:50]:
        policy.used(chain, at)
        held.update(chain)
    gone = draw.sample(sorted(held), 10)
    for key in gone:
        policy.forget(key)
    left = []
    while (victim := policy.victim()) is not None:
        left.append(victim)
    assert Counter(left) == Counter(held - set(gone))
    assert policy.victim() is None


@pytest.mark.parametrize("seed", range(4))
def test_learned_reuse_never_gives_up_a_block_before_one_that_needs_it(seed):
    policy, parents, held = LikelyReuse(), {}, set()
    draw = random.Random(seed)
    for at, chain in forest(draw, 300):
        policy.used(chain, at)
        held.update(chain)
        parents.update(zip(chain[1:], chain, strict=False))
        while len(held) > 80:
            victim = policy.victim(frozenset(chain))
            held.remove(victim)
            assert victim not in {parents.get(key) for key in held}


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), min_size=1, max_size=12))
def test_the_classic_orders_against_sorting(chains):
    uses, last, first = Counter(), {}, {}
    policies = {LeastRecent: None, LeastFrequent: None, LengthAware: None}
    made = {kind: kind() for kind in policies}
    for at, chain in enumerate(chains):
        for policy in made.values():
            policy.used(chain, float(at))
        for depth, key in enumerate(chain):
            uses[key] += 1
            last[key] = at
            first[key] = depth
    orders = {
        LeastRecent: lambda key: (last[key], -first[key]),
        LeastFrequent: lambda key: (uses[key], last[key], -first[key]),
        LengthAware: lambda key: (uses[key], -first[key], last[key]),
    }
    for kind, order in orders.items():
        drained = [made[kind].victim() for _ in uses]
        assert drained == sorted(uses, key=order)


def test_the_index_is_the_best_ratio_over_all_horizons():
    """By its definition: simulate holding on from each age and stopping at each later one."""
    edges = np.array([0.0, 10.0, 30.0, 100.0])
    hazard = np.array([[0.001, 0.03, 0.002, 0.0005], [0.05, 0.01, 0.01, 0.001]])
    exposure = np.full_like(hazard, 1000.0)
    table = gittins_table(hazard * exposure, exposure, edges)
    ends = [10.0, 30.0, 100.0, 200.0]
    for kind in range(2):
        for start in range(4):
            best = 0.0
            for stop in range(start, 4):
                alive, won, held = 1.0, 0.0, 0.0
                for age in range(start, stop + 1):
                    steps = 2000
                    width = (ends[age] - edges[age]) / steps
                    for _ in range(steps):
                        lost = alive * (1 - math.exp(-hazard[kind, age] * width))
                        held += width * (alive - lost / 2)
                        won += lost
                        alive -= lost
                best = max(best, won / held)
            assert table[kind, start] == pytest.approx(best, rel=1e-3)


def talkers(seed, count=3000):
    """A third of the prompts begin conversations that go on every 60 s for ten turns; the others never come back."""
    draw = random.Random(seed)
    events, fresh = [], 1
    for _ in range(count):
        at, turns = draw.uniform(0, 6000), 10 if draw.random() < 0.33 else 1
        chain = (0,)
        for _ in range(turns):
            chain = (*chain, *range(fresh, fresh + 10))
            fresh += 10
            events.append((at, chain))
            at += draw.uniform(40, 80)
    return sorted(events)


def test_learning_who_comes_back_pays():
    chains = talkers(1, 1200)
    recent, learned = hits(LeastRecent(), chains, 1500), hits(LikelyReuse(), chains, 1500)
    assert learned > 1.15 * recent


def test_unknown_names():
    with pytest.raises(InvalidConfig, match="known are lru, lfu, length, likely"):
        eviction("fifo")


@pytest.mark.slow
def test_never_below_lru_on_the_published_trace():
    folder = os.environ.get("STATEPOOL_TRACES")
    if folder is None:
        pytest.skip("STATEPOOL_TRACES does not name a folder with conversation_trace.jsonl")
    import json

    rows = map(json.loads, (Path(folder) / "conversation_trace.jsonl").read_text().splitlines())
    chains = [(row["timestamp"] / 1000, tuple(row["hash_ids"][: row["input_length"] // 512])) for row in rows]
    for capacity in (1_000, 10_000, 30_000, 50_000, 100_000):
        recent = hits(LeastRecent(), chains, capacity)
        assert hits(LikelyReuse(), chains, capacity) >= 0.99 * recent
