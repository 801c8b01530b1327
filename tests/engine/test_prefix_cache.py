"""K1: prefix hits of the engine equal those of an independent simulator of the same policy, exactly."""

import random

import pytest

from statepool.engine.request import Request, SamplingParams


class Simulator:
    """LRU over whole prefixes: knows token tuples only, no hashes, no block ids."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.cache = []  # prefixes in order of eviction

    def request(self, tokens, final):
        """Hits of a prompt; ``final`` are all tokens whose KV exists at the end. Runs alone."""
        hits = 0
        while (hits + 1) * 16 <= len(tokens) and tuple(tokens[: (hits + 1) * 16]) in self.cache:
            hits += 1
        held = [tuple(tokens[: (i + 1) * 16]) for i in range(hits)]
        for prefix in held:
            self.cache.remove(prefix)
        new = -(-len(final) // 16) - hits
        while len(self.cache) + len(held) + new > self.blocks:
            self.cache.pop(0)
        for i in range(len(final) // 16 - 1, -1, -1):
            prefix = tuple(final[: (i + 1) * 16])
            if prefix not in self.cache:
                self.cache.append(prefix)
        return min(hits * 16, len(tokens) - 1)


@pytest.mark.parametrize("blocks", [8, 14, 40])
def test_hits_equal_an_independent_simulator(blocks, make_engine):
    rng = random.Random(blocks)
    engine, simulator = make_engine(blocks=blocks), Simulator(blocks)
    roots = [[rng.randrange(256) for _ in range(rng.randint(0, 60))] for _ in range(5)]
    queries = hits = 0
    for i in range(120):
        tail = [rng.randrange(256) for _ in range(rng.randint(1, 30))]
        prompt = (rng.choice(roots) + tail)[: engine.info.max_model_len - 12]
        if rng.random() < 0.3:
            roots[rng.randrange(5)] = prompt  # a conversation grows
        params = SamplingParams(max_tokens=rng.randint(1, 10), seed=i, ignore_eos=True)
        outputs = engine.generate([Request(f"r{i}", tuple(prompt), params)])[f"r{i}"]
        answer = [t for o in outputs for t in o.tokens]
        expected = simulator.request(prompt, (prompt + answer)[:-1])
        assert outputs[-1].usage.cached_tokens == expected
        queries, hits = queries + len(prompt), hits + expected
        engine.pool.check()
        assert engine.pool.free == engine.pool.total
    stats = engine.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (queries, hits)
    assert hits > 0
