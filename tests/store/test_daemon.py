"""A store behind a real socket, in a real process: the same faces, exactly-once retries, clear errors."""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path

import pytest

import statepool.store
from statepool.core.errors import (
    Conflict,
    InvalidRequest,
    MirrorLost,
    NotFound,
    OutcomeUnknown,
    SnapshotExpired,
    StoreReadOnly,
    Unavailable,
)
from statepool.store import sequences
from statepool.store.net.framing import LIMIT, REPLIES, REQUESTS, Reply, Request, Splitter, address, pack
from statepool.store.net.link import Link
from statepool.store.net.remote import RemoteNative

from .net_processes import kill, processes, tcp, unix


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("daemon")
    where = unix(folder, "socket")
    with processes() as start:
        start("serve", folder / "s", "--listen", where, "--capacity", "64MiB")
        yield where


def test_the_faces_are_the_same(url: str) -> None:
    with statepool.store.open(url) as store:
        users = store.dict("users", keys="str", values="msgpack")
        users["ada"] = {"born": 1815}
        users.update(bob={"born": 1990})
        assert dict(users.entries()) == {"ada": {"born": 1815}, "bob": {"born": 1990}}
        assert users.get_many(["bob", "eve"]) == [{"born": 1990}, None]
        assert users.setdefault("ada", 1) == {"born": 1815} and users.pop("bob") == {"born": 1990} and len(users) == 1
        with pytest.raises(KeyError):
            del users["bob"]
        tree = store.sorted_dict("tree")
        tree.update((b"%04d" % i, b"v") for i in range(600))
        assert [key for key, _ in tree.range(b"0100", b"0103")] == [b"0100", b"0101", b"0102"]
        assert tree.floor(b"0099x") == (b"0099", b"v") and sum(1 for _ in tree) == 600
        queue = store.queue("queue")
        assert queue.put(b"job", dedup="1") == queue.put(b"job", dedup="1") == 1
        item = queue.take()
        assert item is not None and item.value == b"job" and item.ack() and queue.take() is None
        stack = store.stack("stack")
        stack.extend([b"a", b"b"])
        assert stack[-1] == b"b" and stack.pop() == b"b" and len(stack) == 1
        log = store.log("log")
        assert [log.append(b"x"), log.append(b"y")] == [0, 1] and list(log.read()) == [(0, b"x"), (1, b"y")]
        assert store.counter("n").add(3) == 3
        with store.lock("l"):
            pass
        versioned = store.versioned_dict("versioned")
        versioned[b"k"] = b"old"
        with versioned.snapshot() as snapshot:
            versioned[b"k"] = b"new"
            assert dict(snapshot) == {b"k": b"old"} and snapshot[b"k"] == b"old"
        with pytest.raises(SnapshotExpired):
            snapshot[b"k"]
        with store.transaction() as tx:
            tx[tree][b"0000"] = tx[tree][b"0001"] + b"2"
            tx[queue].put(b"with it")
        assert tree[b"0000"] == b"v2" and len(queue) == 1
        assert store.structures()["tree"] == "sorted_dict"
        store.drop("stack")
        assert "stack" not in store.structures() and store.durable_lsn == store.applied_lsn
        store.sync(), store.checkpoint()


def test_conflicts_and_bad_calls(url: str) -> None:
    with statepool.store.open(url) as one, statepool.store.open(url) as two:
        mine, other = one.dict("c"), two.dict("c")
        mine[b"k"] = b"1"
        with pytest.raises(Conflict), one.transaction() as tx:
            tx[mine][b"k"] += b"!"
            other[b"k"] = b"2"
        assert mine[b"k"] == b"2"
        with pytest.raises(Conflict), one.transaction() as tx:  # one that only reads must not see two moments
            seen = tx[mine][b"k"]
            other.update({b"k": b"3", b"l": b"3"})
            assert (seen, tx[mine][b"l"]) == (b"2", b"3")
        mine[b"k"] = b"2"
        with pytest.raises(NotFound):
            one.drop("nothing")
        with pytest.raises(InvalidRequest):
            one.queue("c")
        with pytest.raises(InvalidRequest, match="value"):
            mine[b"k"] = bytes(17 << 20)
        with pytest.raises(InvalidRequest, match="message"):
            mine.update((b"%d" % i, bytes(1 << 20)) for i in range(80))
        with pytest.raises(MirrorLost, match="none follows"):
            mine.put(b"k", b"3", durability="mirror")
        create = [[(1, 0, b"x", b"", 1, 0)], [], 0, 0, 1]
        for method, arguments in (("nonsense", []), ("get", [1]), ("get", [-1, b""]), ("commit", create)):
            with pytest.raises(InvalidRequest):
                one.native._call(method, *arguments)
    with pytest.raises(StoreReadOnly, match="closed"):
        mine[b"k"]


def test_bad_bytes_end_their_connection_only(url: str) -> None:
    where = address(url)
    good = pack(REQUESTS.encode(Request(1, "facts", [])))
    huge = struct.pack("<2sHI", b"SP", 1, LIMIT + 1)
    for bad in (
        b"GET / HTTP/1.1\r\n\r\n",
        huge,
        good[:2] + b"\x09\x00" + good[4:],
        good[:8] + b"\xc1" * (len(good) - 8),
    ):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(10)
            raw.connect(where)
            raw.sendall(bad)
            said = b""
            while data := raw.recv(1 << 16):
                said += data
            assert [REPLIES.decode(body).error is not None for body in Splitter().feed(said)] == [True]
    with statepool.store.open(url) as store:
        assert store.stat()["durability"] == "power"


def test_many_threads_share_frames(url: str) -> None:
    with statepool.store.open(url) as store:
        shared, before = store.dict("shared"), store.stat()["commits"]

        def write(j: int) -> None:
            for i in range(25):
                shared[b"%d %d" % (j, i)] = b"%d" % i

        threads = [threading.Thread(target=write, args=(j,)) for j in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(shared) == 400
        assert store.stat()["commits"] - before < 300


def test_a_call_sent_twice_gives_the_first_outcome(url: str) -> None:
    with statepool.store.open(url) as store:
        queue, native = store.queue("twice"), store.native
        assert isinstance(native, RemoteNative)
        queue.put_many([b"a", b"b", b"c"])
        client, last = native._call("slot")
        take = (8, queue.identity, bytes(8), b"", int(time.time() * 1000), 0)
        first = native._call("commit", [take, take], [], client, last + 1, 1)
        again = native._call("commit", [take, take], [], client, last + 1, 1)
        assert first == again and [outcome[4] for outcome in first] == [b"a", b"b"]
        assert len(queue) == 1
        with pytest.raises(InvalidRequest, match="older"):
            native._call("commit", [take], [], client, last, 1)


def test_a_client_whose_clock_is_wrong(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither ends the leases of others nor makes its own last for ever."""
    with statepool.store.open(url) as store:
        queue, right = store.queue("clocks"), sequences.now_ms
        queue.limit_attempts(1)
        queue.put_many([b"a", b"b"])
        held = queue.take(60.0)
        assert held is not None
        for days in (10_000, -10_000):
            monkeypatch.setattr(sequences, "now_ms", lambda days=days: right() + days * 86_400_000)
            assert held.extend(60.0)
            assert queue.take_dead_letter() is None
        other = queue.take(0.05)
        assert other is not None and other.value == b"b" and queue.take() is None
        monkeypatch.undo()
        time.sleep(0.06)
        letter = queue.take_dead_letter()
        assert letter is not None and letter.value == b"b"
        assert held.ack() and len(queue) == 0 and queue.dead_letters() == []


class Flaky(threading.Thread):
    """Between a client and the daemon: passes calls on, and loses every third reply together with the connection."""

    def __init__(self, path: Path, to: str) -> None:
        super().__init__(daemon=True)
        self.path, self.to, self.seen = path, to, 0
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(path))
        self.listening.listen()
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:  # the test is over
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        link, splitter = Link(self.to, 5.0), Splitter()
        with client:
            while data := client.recv(1 << 16):
                for body in splitter.feed(data):
                    request = REQUESTS.decode(body)
                    reply = link.call(request.method, request.arguments, time.monotonic() + 5)
                    self.seen += 1
                    if self.seen % 3 == 0 and request.method == "commit":
                        link.close()
                        return
                    reply.number = request.number
                    client.sendall(pack(REPLIES.encode(reply)))
        link.close()


def test_lost_replies_do_not_double_anything(url: str, tmp_path: Path) -> None:
    flaky = Flaky(tmp_path / "flaky", url)
    with statepool.store.open(f"unix://{flaky.path}") as store:
        stack, queue = store.stack("flaky"), store.queue("flaky q")
        for i in range(40):
            stack.push(b"%d" % i)
            queue.put(b"%d" % i)
        taken = [queue.take(0.0) for _ in range(40)]
        assert [item.value for item in taken if item] == [b"%d" % i for i in range(40)]
        assert len(stack) == 40 and len(queue) == 0
        assert flaky.seen > 130
    flaky.listening.shutdown(socket.SHUT_RDWR)
    flaky.join()
    flaky.listening.close()


def test_killed_daemon_restarts_under_its_clients(tmp_path: Path) -> None:
    where = tcp()
    with processes() as start:
        child = start("serve", tmp_path / "s", "--listen", where, "--capacity", "64MiB")
        with statepool.store.open(where, timeout=30.0) as store:
            counter, entries = store.stack("s"), store.dict("d")
            done = threading.Event()

            def work() -> None:
                for i in range(300):
                    counter.push(b"%d" % i)
                    entries[b"%d" % i] = b"%d" % i
                done.set()

            thread = threading.Thread(target=work)
            thread.start()
            for _ in range(3):
                time.sleep(0.3)
                kill(child)
                child = start("serve", tmp_path / "s", "--listen", where)
            thread.join(60)
            assert done.is_set()
            assert [counter[i] for i in range(300)] == [b"%d" % i for i in range(300)]
            assert len(counter) == 300 and len(entries) == 300


def test_a_refusal_is_told_though_nobody_answers_later(tmp_path: Path) -> None:
    where, listener = unix(tmp_path, "socket"), socket.socket(socket.AF_UNIX)
    place = address(where)
    assert isinstance(place, str)
    listener.bind(place)
    listener.listen()

    def refuse_once() -> None:
        with listener.accept()[0] as connection:
            (body,) = Splitter().feed(connection.recv(1 << 16))
            refusal = ("Fenced", "term 1 has begun")
            connection.sendall(pack(REPLIES.encode(Reply(REQUESTS.decode(body).number, error=refusal))))

    refusing = threading.Thread(target=refuse_once)
    refusing.start()
    with pytest.raises(Unavailable, match="term 1 has begun"):
        statepool.store.open(where, timeout=3.0)
    refusing.join()
    listener.close()


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no answer within"):
        statepool.store.open(tcp(), timeout=0.3)
    with pytest.raises(InvalidRequest, match="neither tcp"):
        statepool.store.open("http://localhost:1")
    where = unix(tmp_path, "socket")
    with processes() as start:
        child = start("serve", tmp_path / "s", "--listen", where, "--capacity", "64MiB")
        store = statepool.store.open(where, timeout=1.0)
        entries = store.dict("d")
        entries[b"k"] = b"v"
        kill(child)
        with pytest.raises(Unavailable):
            entries[b"k"]
        with pytest.raises((Unavailable, OutcomeUnknown)):
            entries[b"k"] = b"w"
        store.close()
        with pytest.raises(InvalidRequest, match="mirror follows a daemon"):
            statepool.store.open(tmp_path / "s", durability="mirror")
