"""What a client keeps of a remote store: never older than allowed, never older than its own writes, never too much."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import statepool.store
from statepool.core.errors import Conflict, InvalidRequest, SnapshotExpired
from statepool.store.net.read_cache import ReadCache

from .net_processes import processes, unix

AGE = 5.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Server:
    """Keys with everything they ever held, and since when."""

    def __init__(self, clock: Clock, draw: random.Random) -> None:
        self._clock, self._draw = clock, draw
        self.past: dict[bytes, list[tuple[float, bytes]]] = {b"%d" % i: [(0.0, b"0")] for i in range(6)}

    def write(self, key: bytes) -> int:
        self.past[key].append((self._clock.now, b"%d" % len(self.past[key])))
        return int(self.past[key][-1][1])

    def ask(self, key: bytes) -> bytes:
        """Time passes and others write before it answers, and after."""
        self._clock.now += self._draw.random()
        if self._draw.random() < 0.3:
            self.write(self._draw.choice(list(self.past)))
        answer = self.past[key][-1][1]
        self._clock.now += self._draw.random()
        if self._draw.random() < 0.3:
            self.write(key)
        return answer

    def held(self, key: bytes, since: float) -> set[bytes]:
        """All that the key has held since then."""
        past = self.past[key]
        ends = [at for at, _ in past[1:]] + [float("inf")]
        return {value for (_, value), end in zip(past, ends, strict=True) if end >= since}


@pytest.mark.parametrize("seed", range(20))
def test_no_answer_is_older_than_its_age_or_than_the_own_writes(seed: int) -> None:
    draw, clock = random.Random(seed), Clock()
    server, cache = Server(clock, draw), ReadCache(1500, clock)
    own, asked, read = dict.fromkeys(server.past, 0), 0, 0

    def ask(key: bytes) -> bytes:
        nonlocal asked
        asked += 1
        answer = server.ask(key)
        if draw.random() < 0.2:  # another thread of this client writes while the answer travels
            own[key] = server.write(key)
            cache.forget([key])
        return answer

    for _ in range(2000):
        key = draw.choice(list(server.past))
        before, written = clock.now, own[key]
        if draw.random() < 0.2:
            own[key] = server.write(key)
            cache.forget([key])
        else:
            read += 1
            answer = cache.read(key, lambda key=key: ask(key), AGE)
            assert answer in server.held(key, before - AGE) and int(answer) >= written
        assert cache.held <= 1500
        clock.now += draw.random() / 4
    assert 0 < asked < read, "nothing was kept"


def test_what_is_used_stays_and_the_rest_goes() -> None:
    cache, asked = ReadCache(2000, Clock()), []

    def read(key: bytes) -> None:
        cache.read(key, lambda: asked.append(key) or bytes(100), AGE)

    for i in range(50):
        read(b"often")
        read(b"%d" % i)
    assert asked.count(b"often") == 1 and len(asked) == 51 and cache.held <= 2000
    cache.read(b"large", lambda: bytes(4000), AGE)
    assert cache.held <= 2000
    cache.close()
    read(b"often")
    assert asked.count(b"often") == 2 and cache.held == 0


def test_many_threads_share_it() -> None:
    cache, wrong = ReadCache(3000), []
    numbers = [0] * 8

    def work(me: int) -> None:
        draw = random.Random(me)
        for _ in range(3000):
            if draw.random() < 0.3:
                numbers[me] += 1
                cache.forget([me])
            else:
                other = draw.randrange(8)
                before = numbers[other] if other == me else 0
                if cache.read(other, lambda other=other: numbers[other], 60.0) < before:
                    wrong.append(other)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and 0 <= cache.held <= 3000


@pytest.fixture
def daemon(tmp_path: Path):
    where = unix(tmp_path, "socket")
    with processes() as start:
        yield where, start("serve", tmp_path / "s", "--listen", where, "--capacity", "64MiB")


def test_entries_are_told_without_a_message_and_own_writes_at_once(daemon: Any) -> None:
    url, server = daemon
    with statepool.store.open(url, max_age=60.0) as store, statepool.store.open(url) as other:
        mine, theirs = store.dict("d"), other.dict("d")
        mine.update({b"k": b"1", b"l": b"1"})
        assert mine[b"k"] == b"1" and mine.get(b"new") is None
        theirs[b"k"] = theirs[b"new"] = b"2"
        assert mine[b"k"] == b"1" and mine.get(b"new") == b"2"  # kept for a minute; what was absent is asked for
        with store.transaction() as tx:  # sees no kept value
            tx[mine][b"l"] = tx[mine][b"k"]
        assert mine[b"l"] == b"2"
        assert not mine.compare_and_set(b"k", b"1", b"3") and mine.compare_and_set(b"k", b"2", b"3")
        assert mine[b"k"] == b"3" and b"l" in mine
        with pytest.raises(Conflict), store.transaction() as tx:
            tx[mine][b"k"] += b"!"
            theirs[b"k"] = b"4"
        server.send_signal(signal.SIGSTOP)  # whoever asks it now gets no answer
        assert mine[b"l"] == b"2"
        server.send_signal(signal.SIGCONT)
        assert mine[b"k"] == b"4"  # the transaction that failed had named it


def test_an_entry_is_asked_for_again_when_it_is_too_old(daemon: Any) -> None:
    url, _ = daemon
    with statepool.store.open(url, max_age=0.05) as store, statepool.store.open(url) as other:
        mine, theirs = store.dict("d"), other.dict("d")
        mine[b"k"] = b"1"
        assert mine[b"k"] == b"1"
        theirs[b"k"] = b"2"
        time.sleep(0.06)
        assert mine[b"k"] == b"2"


def test_counters_locks_and_logs_are_never_kept(daemon: Any) -> None:
    url, _ = daemon
    with statepool.store.open(url, max_age=60.0) as one, statepool.store.open(url, max_age=60.0) as two:
        counters = one.counter("n"), two.counter("n")
        assert [counters[i % 2].add() for i in range(6)] == [1, 2, 3, 4, 5, 6] and counters[0].value == 6
        first, second = one.lock("l"), two.lock("l")
        assert first.acquire() and not second.acquire(timeout=0.0)
        first.release()
        assert second.acquire(timeout=5.0) and not first.acquire(timeout=0.0)
        logs = one.log("log"), two.log("log")
        assert [logs[i % 2].append(b"x") for i in range(4)] == [0, 1, 2, 3]


def test_a_snapshot_is_asked_once_and_ends_when_it_should(daemon: Any) -> None:
    url, server = daemon
    with statepool.store.open(url) as store:
        versioned = store.versioned_dict("v")
        versioned.update({b"a": b"1", b"b": b"2"})
        kept, short = versioned.snapshot(lease=600.0), versioned.snapshot(lease=0.2)
        assert dict(kept) == {b"a": b"1", b"b": b"2"}
        with contextlib.suppress(SnapshotExpired):  # on a machine that is very busy
            assert short[b"a"] == b"1"
        versioned[b"a"] = b"3"
        server.send_signal(signal.SIGSTOP)
        assert dict(kept) == {b"a": b"1", b"b": b"2"}
        server.send_signal(signal.SIGCONT)
        time.sleep(0.25)
        with pytest.raises(SnapshotExpired):
            short[b"a"]
        assert kept[b"a"] == b"1"
        kept.close()
        with pytest.raises(SnapshotExpired):
            kept[b"a"]


def test_an_age_that_is_none_is_refused(tmp_path: Path) -> None:
    for age in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidRequest, match="max_age"):
            statepool.store.open("tcp://127.0.0.1:1", max_age=age)
    with pytest.raises(InvalidRequest, match="max_age"):
        statepool.store.open(tmp_path, max_age=1.0)
    with pytest.raises(InvalidRequest, match="cache"):
        statepool.store.open("tcp://127.0.0.1:1", cache="much")
