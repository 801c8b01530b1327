"""Queues, stacks and logs against plain Python models, with reopening as a move of the game."""

from __future__ import annotations

import shutil
import tempfile
import time
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import statepool.store
from statepool.core.errors import Conflict, InvalidRequest
from statepool.store import sequences
from statepool.store.logreader import Files
from statepool.store.logreplay import replay

from .stores import killed, taken_over

SMALL = {"durability": "process", "capacity": "8MiB", "segment_size": "128KiB"}


class Game(RuleBasedStateMachine):
    """What all three have in common."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.begin()
        self.open()

    def begin(self) -> None: ...

    def open(self) -> None:
        self.store = statepool.store.open(self.folder, **SMALL)
        self.attach()

    def attach(self) -> None: ...

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule(heap=st.booleans())
    def kill(self, heap: bool) -> None:
        self.store = killed(self.store, self.folder, heap=heap, **SMALL)
        self.attach()

    @rule()
    def mirror(self) -> None:
        self.store = taken_over(self.store, self.folder, **SMALL)
        self.attach()

    @rule()
    def checkpoint(self) -> None:
        self.store.checkpoint()


class StackGame(Game):
    """A stack against a list."""

    def begin(self) -> None:
        self.model: list[bytes] = []

    def attach(self) -> None:
        self.stack = self.store.stack("s")

    @rule(values=st.lists(st.binary(max_size=20), min_size=1, max_size=80))
    def push(self, values: list[bytes]) -> None:
        self.stack.extend(values)
        self.model += values

    @rule(count=st.integers(1, 90))
    def pop(self, count: int) -> None:
        for _ in range(count):
            if self.model:
                assert self.stack.pop() == self.model.pop()
            else:
                with pytest.raises(IndexError):
                    self.stack.pop()

    @invariant()
    def same(self) -> None:
        assert len(self.stack) == len(self.model)
        for i in (-1, 0, len(self.model) // 2):
            if self.model:
                assert self.stack[i] == self.model[i]
        with pytest.raises(IndexError):
            self.stack[len(self.model)]


class QueueGame(Game):
    """A queue against a list of [number, value, id, lease end, token, attempts]; the clock is ours."""

    def begin(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.dead: list[dict[str, Any]] = []
        self.limit = 0
        self.held: list[tuple[Any, dict[str, Any]]] = []
        self.ids: dict[str, int] = {}
        self.next, self.now = 1, 1_000_000
        sequences.now_ms = lambda: self.now

    def attach(self) -> None:
        self.queue = self.store.queue("q")
        for item, _ in self.held:
            item.queue = self.queue

    @rule(value=st.binary(max_size=30), name=st.none() | st.integers(0, 12).map(str))
    def put(self, value: bytes, name: str | None) -> None:
        number = self.queue.put(value, dedup=name)
        if name in self.ids:
            assert number == self.ids[name]
            return
        assert number == self.next
        self.items.append({"number": number, "value": value, "until": 0, "attempts": 0})
        if name is not None:
            self.ids[name] = number
        self.next += 1

    @rule(count=st.integers(1, 300))
    def put_many(self, count: int) -> None:
        values = [b"%d" % i for i in range(count)]
        assert self.queue.put_many(values) == list(range(self.next, self.next + count))
        self.items += [
            {"number": self.next + i, "value": value, "until": 0, "attempts": 0} for i, value in enumerate(values)
        ]
        self.next += count

    @rule(count=st.integers(1, 200), lease=st.sampled_from([0.0, 1.0, 5.0]))
    def take(self, count: int, lease: float) -> None:
        taken = self.queue.take_many(count, lease)
        if any(item["until"] <= self.now and not self.worn_out(item) for item in self.items):
            self.bury()  # a take that finds nothing changes nothing
        free = [item for item in self.items if item["until"] <= self.now and not self.worn_out(item)][:count]
        assert [(t.sequence, t.value, t.attempts) for t in taken] == [
            (item["number"], item["value"], item["attempts"] + 1) for item in free
        ]
        for mine, item in zip(taken, free, strict=True):
            item["attempts"] += 1
            item["until"], item["token"] = self.now + round(lease * 1000), mine.token
            if lease == 0:
                self.items.remove(item)
            else:
                self.held.append((mine, item))

    def teardown(self) -> None:
        """What another program finds in the log is the same."""
        if not hasattr(self, "store"):
            return
        self.store.close()
        files = Files(self.folder)
        if files.meta.first_segment == 1:
            found = replay(files.records()).queues["q"]
            assert found.values() == {item["number"]: item["value"] for item in self.items}
            assert list(found.dead) == [item["number"] for item in self.dead]
        super().teardown()

    def worn_out(self, item: dict[str, Any]) -> bool:
        """Whether it dies when its lease has ended or it is given back."""
        return item["until"] > 0 and 0 < self.limit <= item["attempts"]

    def bury(self) -> None:
        """What any take that finds something does first: leases that ended end."""
        ended = [item for item in self.items if 0 < item["until"] <= self.now]
        for item in sorted(ended, key=lambda item: (item["until"], item["number"])):
            if self.worn_out(item):
                self.items.remove(item)
                self.dead.append(item)
            else:
                item["until"] = 0

    @rule(attempts=st.integers(0, 3))
    def limit_attempts(self, attempts: int) -> None:
        self.queue.limit_attempts(attempts)
        self.limit = attempts

    @rule()
    def take_dead_letter(self) -> None:
        letter = self.queue.take_dead_letter()
        if not self.dead and any(item["until"] <= self.now and self.worn_out(item) for item in self.items):
            self.bury()
        if not self.dead:
            assert letter is None
            return
        item = self.dead.pop(0)
        assert (letter.sequence, letter.value, letter.attempts) == (item["number"], item["value"], item["attempts"])

    @rule(data=st.data(), what=st.sampled_from(["ack", "nack", "extend"]))
    def settle(self, data: st.DataObject, what: str) -> None:
        if not self.held:
            return
        mine, item = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if item in self.items and item["until"] <= self.now:
            return  # whether an ended lease still counts is not promised
        ours = item in self.items and item["token"] == mine.token and item["until"] > 0
        done = {"ack": mine.ack, "nack": mine.nack, "extend": lambda: mine.extend(9.0)}[what]()
        assert done is ours
        if not ours:
            return
        if what == "ack":
            self.items.remove(item)
        elif what == "nack" and self.worn_out(item):
            self.items.remove(item)
            self.dead.append(item)
        elif what == "nack":
            item["until"] = 0
        else:
            item["until"] = self.now + 9000
            self.held.append((mine, item))

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += round(seconds * 1000)

    @invariant()
    def same(self) -> None:
        assert len(self.queue) == len(self.items)
        assert self.queue.peek_range(0, 1000) == [(item["number"], item["value"]) for item in self.items[:1000]]
        assert [(d.sequence, d.value, d.attempts) for d in self.queue.dead_letters(1000)] == [
            (item["number"], item["value"], item["attempts"]) for item in self.dead
        ]


def play(game: Any, examples: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "now_ms", sequences.now_ms)
    game.TestCase.settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    game.TestCase("runTest").runTest()


@pytest.mark.parametrize("game", [StackGame, QueueGame])
def test_against_the_model(game: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    play(game, 8, 25, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("game", [StackGame, QueueGame])
def test_against_the_model_for_long(game: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    play(game, 80, 60, monkeypatch)


def test_deduplication_remembers_the_last_65536_acknowledged(tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", durability="process", capacity="64MiB") as store:
        queue = store.queue("q")
        first = queue.put(b"first", dedup="first")
        assert queue.put(b"again", dedup="first") == first
        queue.take(0.0)
        assert queue.put(b"again", dedup="first") == first
        names = [str(i) for i in range(65536)]
        queue.put_many([b""] * len(names), dedup=names)
        assert len(queue.take_many(len(names), 0.0)) == len(names)
        assert queue.put(b"anew", dedup="first") != first
        assert queue.put(b"known", dedup="65535") == first + 65536


def test_limits_of_a_queue(tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", durability="process", capacity="64MiB") as store:
        queue = store.queue("q")
        with pytest.raises(InvalidRequest, match="65537 bytes"):
            queue.put(b"", dedup="d" * 65537)
        assert queue.put(b"", dedup="d" * 65536) == 1
        for lease in (-1.0, 1e30, float("nan")):
            with pytest.raises(InvalidRequest, match="lease"):
                queue.take(lease)
        item = queue.take(3.2e10)
        assert item is not None
        with pytest.raises(InvalidRequest, match="lease"):
            item.extend(-1.0)
        assert queue.take() is None
        assert item.ack()
        assert queue.put(b"v" * (16 << 20)) == 2
        taken = queue.take(0.0)
        assert taken is not None
        assert taken.value == b"v" * (16 << 20)


def test_a_stuck_item_does_not_hold_the_memory_of_those_behind_it(tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", durability="process", capacity="64MiB") as store:
        queue = store.queue("q")
        queue.put(b"stuck")
        stuck = queue.take(1000.0)
        used = []
        for _ in range(4):
            queue.put_many([b"value"] * 5000)
            assert queue.ack_many(queue.take_many(5000)) == 5000
            used.append(store.stat()["heap_used"])
        assert used[3] - used[0] < 16 << 10
        assert queue.peek_range() == [(1, b"stuck")]
        assert stuck is not None
        assert stuck.nack()
        assert queue.take_many(2)[0].attempts == 2


def test_a_log_keeps_its_numbers(tmp_path: Any) -> None:
    for _ in range(2):
        with statepool.store.open(tmp_path / "s", **SMALL) as store:
            log = store.log("events", values="json")
            start = len(log)
            assert [log.append({"n": i}) for i in range(5)] == list(range(start, start + 5))
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        log = store.log("events", values="json")
        assert [number for number, _ in log.read(7)] == [7, 8, 9]
        log.truncate(10)
        assert len(log) == 0
        assert log.append("next") == 10
        assert log[10] == "next"
        for missing in (0, 11, -1):
            with pytest.raises(IndexError):
                log[missing]


def test_counters_and_locks(tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        counter = store.counter("c")
        assert [counter.add(), counter.add(5), counter.add(-2), counter.value] == [1, 6, 4, 4]
        one, two = store.lock("l", lease=0.05), store.lock("l", lease=60.0)
        assert one.acquire()
        assert not two.acquire(timeout=0)
        assert two.acquire(timeout=5)  # the lease of the first ends
        assert two.epoch == one.epoch + 1
        one.release()  # too late: it is the second's
        assert not store.lock("l").acquire(timeout=0)
        two.release()
        with store.lock("l") as held:
            assert held.epoch == two.epoch + 1
        with pytest.raises(InvalidRequest, match="lease"):
            store.lock("l", lease=0)


def test_dead_letters(tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        queue = store.queue("jobs", values="str")
        with pytest.raises(InvalidRequest, match="attempts: -1"):
            queue.limit_attempts(-1)
        queue.limit_attempts(2)
        queue.put_many(["poison", "fine"], dedup=["p", "f"])
        for _ in range(2):
            poison, fine = queue.take_many(2)
            assert poison.nack() and (fine.attempts == 2 or fine.nack())
        assert fine.ack()
        assert queue.take() is None and len(queue) == 0
        assert queue.dead_letters() == [sequences.DeadLetter("poison", 1, 2)]
    with (
        statepool.store.open(tmp_path / "s", **SMALL) as store,
        statepool.store.open(tmp_path / "s", mode="read") as reader,
    ):
        queue = store.queue("jobs", values="str")
        assert reader.queue("jobs", values="str").dead_letters() == queue.dead_letters()
        assert queue.put("again", dedup="p") == 1, "a dead letter's id is known"
        letter = queue.take_dead_letter()
        assert letter == sequences.DeadLetter("poison", 1, 2)
        assert queue.take_dead_letter() is None and queue.dead_letters() == []
        assert queue.put(letter.value) == 3


def test_a_clock_that_is_set_ends_no_lease(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's date changes by years while a queue and a lock are used."""
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        queue, one, two = store.queue("q"), store.lock("l", lease=30.0), store.lock("l", lease=30.0)
        queue.put_many([b"a", b"b"])
        held = queue.take(30.0)
        assert held is not None and one.acquire(timeout=0)
        for years in (10, -10):
            there = time.time() + years * 3.15e7
            monkeypatch.setattr(time, "time", lambda there=there: there)
            monkeypatch.setattr(time, "time_ns", lambda there=there: int(there * 1e9))
            assert not two.acquire(timeout=0)
            other = queue.take(0.05)
            assert other is not None and other.value == b"b"
            time.sleep(0.06)  # a lease made meanwhile is as long as it says
        one.renew()
        assert held.ack()


def test_a_lock_that_is_renewed_is_not_lost(tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        one, two = store.lock("l", lease=0.2), store.lock("l", lease=0.2)
        assert one.acquire()
        for _ in range(4):
            assert not two.acquire(timeout=0.1)
            one.renew()
        assert two.acquire(timeout=5)
        with pytest.raises(Conflict, match="is not ours any more"):
            one.renew()
