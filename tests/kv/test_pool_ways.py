"""The short ways of a pool: a put in one question, and copies of what is read very often."""

import time

import numpy as np
import pytest
from tests.kv.pools import BLOCK, chain, client, empty, free_port, running, until

from statepool.kv.pool.heat import Heat
from statepool.kv.pool.link import NodeLink


@pytest.fixture
def asked(monkeypatch):
    """What links ask, by name, in order."""
    names, ask = [], NodeLink._ask

    def noted(link, request, kind, blocks=()):
        names.append(type(request).__name__)
        return ask(link, request, kind, blocks)

    monkeypatch.setattr(NodeLink, "_ask", noted)
    return names


def test_a_few_blocks_are_put_in_one_question(tmp_path, asked):
    address, (keys, rows) = f"unix:{tmp_path / 'node'}", chain(20)
    with running(address, memory_bytes=512 * BLOCK) as node:
        pool, other = client([address], BLOCK), client([address], BLOCK)
        assert pool.save(keys[:5], rows[:5]) == 5
        assert asked == ["Hello", "Begin", "Finish"]
        asked.clear()
        assert [pool.save(keys[i : i + 2], rows[i : i + 2]) for i in (5, 7, 9)] == [2, 2, 2]
        assert pool.save(keys[9:12], rows[9:12]) == 1, "of what is known already nothing is kept twice"
        assert asked == ["Put"] * 4
        out = empty(20)
        assert other.load(keys, out) == 12
        assert all(np.array_equal(a, b) for a, b in zip(out[:12], rows, strict=False))
        node._table.check()
        pool.close()
        until(lambda: len(node._table._free) + 12 == 512)


def test_slots_given_ahead_are_not_written_when_their_lease_may_have_ended(tmp_path, asked):
    """Within half of the lease a client uses them; later it asks anew; if they were taken away, its put is not lost."""
    address, (keys, rows) = f"unix:{tmp_path / 'node'}", chain(20)
    with running(address, memory_bytes=512 * BLOCK, lease_s=1.0) as node:
        pool = client([address], BLOCK)
        link = pool.links[0].lanes[0]
        assert pool.save(keys[:1], rows[:1]) == 1
        until(lambda: time.monotonic() > link._ahead.until)
        asked.clear()
        assert pool.save(keys[1:2], rows[1:2]) == 1
        assert asked == ["Begin", "Finish"]
        for lease in list(node._table._ahead.values()):
            node._table.release(lease.id)
        asked.clear()
        assert pool.save(keys[2:3], rows[2:3]) == 1
        assert asked == ["Put", "Begin", "Finish"]
        assert pool.load(keys[:3], out := empty(3)) == 3
        assert all(np.array_equal(a, b) for a, b in zip(out, rows, strict=False))


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_what_is_read_very_often_gets_another_node_and_is_read_from_all_in_turn(tmp_path, kind):
    addresses = [f"unix:{tmp_path / name}" if kind == "unix" else f"tcp://127.0.0.1:{free_port()}" for name in "abc"]
    (keys, rows), (cold, cold_rows) = chain(6, 1), chain(6, 2)
    with running(addresses[0]), running(addresses[1]), running(addresses[2]):
        pool = client(addresses, BLOCK)
        pool.save(keys, rows)
        pool.save(cold, cold_rows)

        def holders(some):
            return sum(link.match(some) == len(some) for link in pool.links)

        def reads():
            return [link.lanes[0].stats().hits for link in pool.links]

        for _ in range(7):
            assert pool.load(keys, out := empty(6)) == 6
        assert (holders(keys), holders(cold)) == (1, 1)
        assert pool.load(keys, empty(6)) == 6
        assert (holders(keys), holders(cold)) == (2, 1), "the eighth read calls for a copy"
        before = reads()
        for _ in range(8):
            assert pool.load(keys, out := empty(6)) == 6
            assert all(np.array_equal(a, b) for a, b in zip(out, rows, strict=True))
        assert sorted(after - then for after, then in zip(reads(), before, strict=True)) == [0, 24, 24]
        pool._order(keys, None)[0].rest()
        assert pool.load(keys, empty(6)) == 6, "and it outlives its node"


def test_a_copy_that_is_gone_is_not_looked_for_again(tmp_path, asked):
    addresses, (keys, rows) = [f"unix:{tmp_path / name}" for name in "ab"], chain(3)
    with running(addresses[0]) as one, running(addresses[1]) as two:
        pool = client(addresses, BLOCK)
        pool.save(keys, rows)
        for _ in range(8):
            pool.load(keys, empty(3))
        node = {one.address: one, two.address: two}[pool._order(keys, None)[1].address]
        assert node.stats().blocks == 3
        for key in keys:
            node._table.drop(key)
        assert [pool.load(keys, empty(3)) for _ in range(4)] == [3, 3, 3, 3]
        asked.clear()
        assert pool.load(keys, empty(3)) == 3
        assert asked == ["Get"]


@pytest.mark.parametrize(("gaps", "expected"), [([0.1] * 8, 1), ([0.1] * 16, 2), ([10.0] * 100, 0), ([0.1] * 7, 0)])
def test_only_many_reads_in_a_short_time_call_for_a_copy(gaps, expected):
    heat, now, called = Heat(enough=7, half_s=10.0), 0.0, 0
    for gap in gaps:
        now += gap
        called += heat.read(b"chain", now)
        heat.read(now.hex().encode(), now)
    assert called == expected
