"""The loads of the store benchmarks against a store that is a dictionary: what they count, write and check."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from bench.store import data, loads
from bench.store.smallbank import SmallBank
from bench.store.systems.base import MAIN, Change, Get, Pair, Place, Session
from bench.store.tatp import Tatp


class Memory(Session):
    """A dictionary and a lock; ``put`` may be made to lose writes."""

    def __init__(self, loses: bool = False) -> None:
        self.values: dict[Place, bytes] = {}
        self.commits: Counter[int] = Counter()
        self._lock, self._loses, self._queue = threading.Lock(), loses, list[bytes]()

    def put(self, key: bytes, value: bytes) -> None:
        self.fill(MAIN, [(key, value)])

    def fill(self, table: str, pairs: Sequence[Pair]) -> None:
        with self._lock:
            self.values |= {(table, key): value for key, value in pairs}
            self.commits[len(pairs)] += 1

    @contextmanager
    def getter(self, table: str) -> Iterator[Get]:
        yield lambda key: self.values.get((table, key))

    def read(self, places: Sequence[Place]) -> list[bytes | None]:
        with self._lock:
            return [self.values.get(place) for place in places]

    def update(self, places: Sequence[Place], change: Change) -> None:
        with self._lock:
            change([self.values.get(place) for place in places])  # as after a conflict: the second call counts
            for place, value in change([self.values.get(place) for place in places]).items():
                if value is None:
                    del self.values[place]
                elif not self._loses:
                    self.values[place] = value

    def pass_through(self, values: Sequence[bytes]) -> int:
        return len(values) - self._loses


def _fill(session: Session, bench: SmallBank | Tatp) -> None:
    for table, part in bench.rows():
        session.fill(table, part)


def test_puts_are_counted_as_they_are_committed() -> None:
    session = Memory()
    done, seconds = loads.put_one(session, data.keys(10), 0.01, seed=1)
    assert seconds >= 0.01
    assert session.commits == {1: done}
    done, _ = loads.put_many(session, data.keys(1000), 0.01, seed=1, batch=100)
    assert session.commits[100] * 100 == done
    assert len(next(iter(session.values.values()))) == data.VALUE


def test_threads_count_what_all_of_them_did() -> None:
    session = Memory()
    done, _ = loads.puts([session] * 7, data.keys(10), 0.02, seed=1)
    assert session.commits == {1: done}


def test_a_failing_thread_fails_the_load() -> None:
    with pytest.raises(NotImplementedError, match="no transactions"):
        loads.steps([Session()] * 3, lambda draw: lambda session: session.read([]), 0.01, seed=1)


def test_reads_and_queues_refuse_a_store_that_loses() -> None:
    with pytest.raises(LookupError, match="not found"):
        loads.get(Memory(), data.keys(10), 0.01, seed=1)
    with pytest.raises(LookupError, match="15 of 16"):
        loads.queue(Memory(loses=True), 0.01, seed=1, batch=16)


def test_the_first_keys_are_the_same_however_many_there_are() -> None:
    assert data.keys(1000)[:10] == data.keys(10)
    assert len(set(data.keys(1000))) == 1000


def test_smallbank_keeps_all_money_under_threads() -> None:
    session, bank = Memory(), SmallBank(50)
    _fill(session, bank)
    assert len(session.values) == 100
    loads.steps([session] * 4, bank.plan, 0.2, seed=1)
    assert len(set(session.values.values())) > 10, "something happened"
    bank.check(session)


def test_smallbank_notices_lost_writes() -> None:
    session, bank = Memory(loses=True), SmallBank(50)
    _fill(session, bank)
    draw = random.Random(1)
    for _ in range(100):
        bank.plan(draw)(session)
    with pytest.raises(ArithmeticError, match="cents instead of"):
        bank.check(session)


def test_tatp_changes_forwardings_only_where_facilities_are() -> None:
    session, register = Memory(), Tatp(300)
    _fill(session, register)
    before = Counter(table for table, _ in session.values)
    assert before["subscriber"] == before["number"] == 300
    assert 2.2 < before["facility"] / 300 < 2.8
    assert 1.2 < before["forwarding"] / before["facility"] < 1.8
    draw = random.Random(2)
    for _ in range(5000):
        register.plan(draw)(session)
    after = Counter(table for table, _ in session.values)
    assert after | {"forwarding": 0} == before | {"forwarding": 0}
    assert all(("facility", key[:5]) in session.values for table, key in session.values if table == "forwarding")
    register.check(session)
