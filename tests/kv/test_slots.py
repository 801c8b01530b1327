"""A node's books against a model of dicts, and the rules of leases."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from statepool.kv.eviction import LeastRecent
from statepool.kv.pool import SlotTable

SLOTS, LEASE = 6, 10.0
KEYS = [bytes([i + 1]) * 16 for i in range(12)]


class Books(RuleBasedStateMachine):
    """Two owners put and read chains; the model knows what every readable block must hold."""

    def __init__(self):
        super().__init__()
        self.table = SlotTable(SLOTS, LeastRecent(), LEASE, most_ahead=3)
        self.now = 0.0
        self.memory = [None] * SLOTS
        self.reads, self.writes, self.ahead = {}, {}, {}

    @rule(owner=st.integers(1, 2), keys=st.lists(st.sampled_from(KEYS), unique=True, max_size=5))
    def begin(self, owner, keys):
        known = {key for key in keys if self.table.known(key)}
        lease = self.table.begin(owner, keys, self.now)
        assert list(lease.keys) == [key for key in keys if key not in known][: len(lease.keys)]
        for slot in lease.slots:
            assert self._is_free(slot)
        for key, slot in zip(lease.keys, lease.slots, strict=True):
            self.memory[slot] = key
        if lease.keys:
            self.writes[lease.id] = lease

    @rule(data=st.data())
    def finish(self, data):
        if self.writes:
            lease = self.writes.pop(data.draw(st.sampled_from(sorted(self.writes))))
            done = self.table.finish(lease.id, [int.from_bytes(key, "little") for key in lease.keys], self.now)
            assert done == (lease.keys if lease.deadline > self.now else ())

    @rule(owner=st.integers(1, 2), chain=st.lists(st.sampled_from(KEYS), unique=True, max_size=3))
    def give_ahead(self, owner, chain):
        self.ahead = {number: lease for number, lease in self.ahead.items() if lease.owner != owner}
        here = [key for key in chain if key in self.table]
        lease = self.table.ahead(owner, self.now, chain)
        assert all(key in self.table for key in here), "nothing of the chain goes for it"
        assert (lease.keys, self.table.finish(lease.id, [], self.now)) == ((), ())
        assert sum(len(each.slots) for each in [*self.ahead.values(), lease]) <= 3
        assert all(self._is_free(slot) for slot in lease.slots)
        if lease.slots:
            self.ahead[lease.id] = lease

    @rule(data=st.data(), keys=st.lists(st.sampled_from(KEYS), max_size=4))
    def put(self, data, keys):
        """It writes first, and says with what then; of keys that are known, or named twice, one block stays."""
        if self.ahead:
            lease = self.ahead.pop(data.draw(st.sampled_from(sorted(self.ahead))))
            fits = len(keys) <= len(lease.slots)
            known = {key for key in keys if self.table.known(key)}
            for key, slot in zip(keys, lease.slots, strict=False):
                self.memory[slot] = key
            done = self.table.put(lease.id, keys, [int.from_bytes(key, "little") for key in keys], self.now)
            assert done == (tuple(dict.fromkeys(key for key in keys if key not in known)) if fits else None)
            if not fits:
                assert self.table.release(lease.id)

    @rule(owner=st.integers(1, 2), keys=st.lists(st.sampled_from(KEYS), unique=True, max_size=5))
    def read(self, owner, keys):
        count = self.table.match(keys)
        lease = self.table.read(owner, keys, self.now)
        assert lease.keys == tuple(keys[:count])
        assert lease.checksums == tuple(int.from_bytes(key, "little") for key in lease.keys)
        if lease.keys:
            self.reads[lease.id] = lease

    @rule(data=st.data())
    def release(self, data):
        if self.reads:
            lease = self.reads.pop(data.draw(st.sampled_from(sorted(self.reads))))
            assert self.table.release(lease.id)
            assert not self.table.release(lease.id)

    @rule(owner=st.integers(1, 2))
    def leave(self, owner):
        self.table.leave(owner)
        self._forget(lambda lease: lease.owner == owner)

    @rule(seconds=st.floats(0.5, LEASE))
    def pass_time(self, seconds):
        self.now += seconds
        self.table.expire(self.now)
        self._forget(lambda lease: lease.deadline <= self.now)

    @rule(key=st.sampled_from(KEYS))
    def drop(self, key):
        assert self.table.drop(key, 0) is False, "another checksum"
        here = key in self.table
        assert self.table.drop(key) is here
        assert key not in self.table

    def _is_free(self, slot):
        there = (*self.reads.values(), *self.writes.values(), *self.ahead.values())
        return all(slot not in lease.slots for lease in there)

    def _forget(self, ended):
        for leases in (self.reads, self.writes, self.ahead):
            for number in [number for number, lease in leases.items() if ended(lease)]:
                del leases[number]

    @invariant()
    def books_balance(self):
        self.table.check()

    @invariant()
    def readers_keep_what_they_read(self):
        for lease in self.reads.values():
            assert [self.memory[slot] for slot in lease.slots] == list(lease.keys)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_is_not_finished_is_not_found():
    table = SlotTable(2, LeastRecent())
    lease = table.begin(1, KEYS[:2], 0.0)
    assert table.match(KEYS[:2]) == 0
    assert table.begin(2, KEYS[:1], 0.0).keys == ()
    assert table.finish(lease.id, [1], 0.0) == (), "a checksum is missing"
    assert table.finish(lease.id, [1, 2], 0.0) == tuple(KEYS[:2])
    assert table.match(KEYS) == 2


def test_a_writer_behind_its_deadline_is_refused():
    table = SlotTable(2, LeastRecent(), lease_s=5.0)
    late = table.begin(1, KEYS[:1], 0.0)
    assert table.expire(5.0) == 1
    again = table.begin(2, KEYS[:1], 5.0)
    assert table.finish(late.id, [1], 6.0) == ()
    assert table.finish(again.id, [2], 6.0) == (KEYS[0],)
    assert table.read(3, KEYS[:1], 6.0).checksums == (2,)


def test_slots_given_ahead_end_like_any_lease():
    table = SlotTable(4, LeastRecent(), lease_s=5.0, most_ahead=2)
    lease = table.ahead(1, 0.0)
    assert len(lease.slots) == 2
    assert table.ahead(2, 0.0).slots == (), "no more than two are out"
    assert table.expire(5.0) == 0, "nobody who has written something is late"
    assert table.put(lease.id, KEYS[:1], [1], 5.0) is None
    table.check()
    assert len(table.begin(2, KEYS[:4], 5.0).slots) == 4, "they are free again"


def test_held_blocks_are_not_given_up():
    table = SlotTable(2, LeastRecent())
    table.finish(table.begin(1, KEYS[:2], 0.0).id, [1, 2], 0.0)
    lease = table.read(1, KEYS[:2], 1.0)
    assert table.begin(1, KEYS[2:4], 2.0).keys == ()
    table.release(lease.id)
    assert table.begin(1, KEYS[2:4], 3.0).keys == tuple(KEYS[2:4])
    assert table.evicted == 2
