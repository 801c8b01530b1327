"""The pool against a model written with plain dictionaries, after every operation."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from statepool.core.errors import OutOfBlocks
from statepool.kv import BlockPool, block_keys, root_key
from statepool.kv.layout import BLOCK_SIZE

ROOT = root_key("test")


def sequence(seed: int, blocks: int) -> list[int]:
    # Few distinct blocks, so that prefixes often coincide.
    return [(seed >> i) & 1 for i in range(blocks) for _ in range(BLOCK_SIZE)]


class PoolMachine(RuleBasedStateMachine):
    """Tables come, are published and go; the oracle keeps its own LRU and reference counts."""

    def __init__(self):
        super().__init__()
        self.total = 6
        self.pool = BlockPool(self.total)
        self.tables: list[tuple[list[int], list[int]]] = []
        self.index: dict[bytes, int] = {}
        self.lru: list[int] = []

    def key_of(self, block):
        return next((key for key, b in self.index.items() if b == block), None)

    def held(self):
        return [b for _, blocks in self.tables for b in blocks]

    @rule(seed=st.integers(0, 15), blocks=st.integers(1, 4))
    def open(self, seed, blocks):
        tokens = sequence(seed, blocks)
        keys = block_keys(tokens, BLOCK_SIZE, ROOT)
        expected = []
        for key in keys:
            if key not in self.index:
                break
            expected.append(self.index[key])
        found = self.pool.match(keys, tokens)
        assert found == expected
        self.pool.hold(found)
        self.lru = [b for b in self.lru if b not in found]
        need = blocks - len(found)
        free = self.total - len(set(self.held()) | set(found))
        assert self.pool.free == free
        if need > free:
            with pytest.raises(OutOfBlocks):
                self.pool.take(need)
            self.pool.release(found)
            self.lru += [b for b in reversed(found) if b not in self.held()]
            return
        empty = free - len(self.lru)
        evicted = [self.lru.pop(0) for _ in range(max(need - empty, 0))]
        for block in evicted:
            del self.index[self.key_of(block)]
        taken = self.pool.take(need)
        assert set(evicted) <= set(taken)
        assert not set(taken) & set(self.held())
        self.tables.append((tokens, found + taken))
        for i, block in enumerate(found + taken):
            self.pool.publish(block, keys[i], tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE])
            if keys[i] not in self.index and block not in self.index.values():
                self.index[keys[i]] = block

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 100))
    def close(self, which):
        _, blocks = self.tables.pop(which % len(self.tables))
        self.pool.release(blocks)
        for block in reversed(blocks):
            if block not in self.held() and block in self.index.values():
                self.lru.append(block)

    @rule()
    def clear(self):
        self.pool.clear()
        self.index, self.lru = {}, []

    @invariant()
    def books_balance(self):
        self.pool.check()
        held = self.held()
        assert self.pool.free == self.total - len(set(held))
        assert self.pool.cached == len(self.lru)
        assert all(self.pool.references(b) == held.count(b) for b in range(self.total))


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase


def test_a_colliding_key_is_a_miss():
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.publish(block, b"same key", [1] * BLOCK_SIZE)
    assert pool.match([b"same key"], [2] * BLOCK_SIZE) == []
    assert pool.match([b"same key"], [1] * BLOCK_SIZE) == [block]


def test_an_empty_pool_is_refused():
    with pytest.raises(OutOfBlocks, match="at least 1"):
        BlockPool(0)


def test_blocks_that_outlived_an_earlier_pool_are_found():
    tokens = list(range(32))
    keys = block_keys(tokens, 16, root_key("model", ""))
    pool = BlockPool(4)
    (held,) = pool.take(1)
    entries = [(3, keys[0], tokens[:16]), (2, keys[1], tokens[16:]), (1, keys[1], tokens[16:]), (held, keys[1], [0])]
    pool.recover(entries)
    pool.check()
    assert pool.match(keys, tokens) == [3, 2], "the first block under a key stays, and a held one is not touched"
    assert (pool.cached, pool.free, pool.key_of(3), pool.key_of(held)) == (2, 3, keys[0], None)


def test_reset_forgets_holders_too():
    tokens = list(range(16))
    keys = block_keys(tokens, 16, root_key("model", ""))
    pool = BlockPool(3)
    (block,) = pool.take(1)
    pool.publish(block, keys[0], tokens)
    pool.reset()
    pool.check()
    assert (pool.free, pool.cached, pool.match(keys, tokens)) == (3, 0, [])
