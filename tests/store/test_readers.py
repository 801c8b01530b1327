"""Other processes read the live store: never a torn value, never a value of another key, through kills and restarts."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import statepool.store
from statepool.core.errors import InvalidRequest, NotFound, StoreReadOnly

KINDS = ("dict", "b+tree", "skip list", "bst", "versioned")

# Rewrites entries of changing sizes; a value names its key and carries its own checksum.
WRITER = """
import hashlib, random, sys
import statepool.store
store = statepool.store.open(sys.argv[1], durability="process", capacity="256MiB")
faces = [store.dict("dict"), store.sorted_dict("b+tree"), store.sorted_dict("skip list", structure="skip list"),
         store.sorted_dict("bst", structure="bst"), store.versioned_dict("versioned")]
draw = random.Random(int(sys.argv[2]))
def value(key):
    body = key + b":" + bytes([draw.randrange(256)]) * draw.randrange(400)
    return hashlib.blake2b(body, digest_size=8).digest() + body
for face in faces:
    face.update((b"%04d" % i, value(b"%04d" % i)) for i in range(500))
print("ready", flush=True)
while True:
    for face in faces:
        key = b"%04d" % draw.randrange(500)
        if draw.randrange(4) == 0:
            face.pop(key, None)
        else:
            face[key] = value(key)
"""


def writer(path: Path, seed: int) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(seed)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    return child


def stop(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def faces_of(store: statepool.store.Store) -> list[Any]:
    return [
        store.dict("dict"),
        store.sorted_dict("b+tree"),
        store.sorted_dict("skip list", structure="skip list"),
        store.sorted_dict("bst", structure="bst"),
        store.versioned_dict("versioned"),
    ]


def check(key: bytes, value: bytes) -> None:
    assert value[8:].startswith(key + b":")
    assert hashlib.blake2b(value[8:], digest_size=8).digest() == value[:8]


def read_for(faces: list[Any], seconds: float) -> int:
    end, reads, i = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        for face in faces:
            i = (i + 77) % 500
            value = face.get(b"%04d" % i)
            if value is not None:
                check(b"%04d" % i, value)
            reads += 1
        if i % 11 == 0:
            for face in faces[1:]:
                page = list(face.range(b"0100", b"0200", limit=50))
                assert [key for key, _ in page] == sorted({key for key, _ in page})
                for key, value in page:
                    check(key, value)
    return reads


def test_reads_are_never_torn_and_survive_the_owner(tmp_path: Path) -> None:
    child = writer(tmp_path / "s", 1)
    try:
        with statepool.store.open(tmp_path / "s", mode="read") as store:
            faces = faces_of(store)
            assert read_for(faces, 1.5) > 1000
            stop(child)
            child = writer(tmp_path / "s", 2)  # repairs the heap, in which the reader still reads
            assert read_for(faces, 1.0) > 1000
            assert store.stat()["applied_lsn"] > 5
    finally:
        stop(child)


def test_what_a_reader_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no store"):
        statepool.store.open(tmp_path / "s", mode="read")
    with pytest.raises(InvalidRequest, match="mode"):
        statepool.store.open(tmp_path / "s", mode="append")  # type: ignore[arg-type]
    owner = statepool.store.open(tmp_path / "s")
    owner.dict("d")[b"k"] = b"v"
    reader = statepool.store.open(tmp_path / "s", mode="read")
    seen = reader.dict("d")
    assert seen[b"k"] == b"v"
    for attempt in (
        lambda: seen.__setitem__(b"k", b"w"),
        lambda: seen.pop(b"k"),
        lambda: reader.drop("d"),
        reader.sync,
    ):
        with pytest.raises(StoreReadOnly, match="mode='read'"):
            attempt()
    with pytest.raises(NotFound, match="no structure 'other'"):
        reader.dict("other")
    other = owner.queue("other")
    other.put(b"item")
    assert reader.queue("other").peek_range() == [(1, b"item")]
    owner.drop("d")
    with pytest.raises(NotFound, match="dropped"):
        seen[b"k"]
    owner.close()
    with pytest.raises(NotFound, match="no process has"):
        reader.queue("other")


# Writes without waiting for the disk, and stops at once, its committing thread too.
STOPPED = """
import os, signal, sys
import statepool.store
store = statepool.store.open(sys.argv[1], capacity="16MiB")
entries, tree, queue = store.dict("d"), store.sorted_dict("t"), store.queue("q")
print("ready", flush=True)
number = 0
for _ in sys.stdin:
    number += 1
    with store.transaction(durability="process") as tx:
        tx[entries][b"%d" % number] = tx[tree][b"%d" % number] = b"v"
        tx[queue].put(b"v")
    os.kill(os.getpid(), signal.SIGSTOP)
"""


Stopped = tuple[statepool.store.Store, "subprocess.Popen[bytes]", int]


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Stopped]:
    """A reader of an owner that stopped before its last transaction was durable, and that transaction's number."""
    pipe = subprocess.PIPE
    owner = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path / "s")], stdin=pipe, stdout=pipe, bufsize=0)
    try:
        assert owner.stdin is not None and owner.stdout is not None and owner.stdout.readline() == b"ready\n"
        with statepool.store.open(tmp_path / "s", mode="read") as store:
            number = 0
            while store.durable_lsn == store.applied_lsn:  # or else the disk was quicker than the signal
                number += 1
                owner.send_signal(signal.SIGCONT)
                owner.stdin.write(b"\n")
                os.waitpid(owner.pid, os.WUNTRACED)
            yield store, owner, number
    finally:
        owner.kill()
        owner.wait()
        for end in (owner.stdin, owner.stdout):
            if end is not None:
                end.close()


def test_a_reader_waits_for_the_disk(stopped: Stopped) -> None:
    """What lies in memory alone is told to nobody: not a value, not a range, not even a length."""
    store, owner, number = stopped
    entries, tree, queue = store.dict("d"), store.sorted_dict("t"), store.queue("q")
    key, told = b"%d" % number, []
    looks = [
        lambda: entries[key] == b"v",
        lambda: tree[key] == b"v",
        lambda: len(entries) == number,
        lambda: sorted(entries) == sorted(b"%d" % i for i in range(1, number + 1)),
        lambda: len(list(tree)) == number,
        lambda: len(queue) == number,
        lambda: len(queue.peek_range()) == number,
    ]
    threads = [threading.Thread(target=lambda look=look: told.append(look())) for look in looks]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    early = list(told)
    owner.send_signal(signal.SIGCONT)
    for thread in threads:
        thread.join(10.0)
    assert early == [], "it told what is not durable"
    assert told == [True] * len(looks)


def test_a_reader_is_closed_while_it_waits(stopped: Stopped) -> None:
    store, owner, number = stopped
    entries, told = store.dict("d"), []
    thread = threading.Thread(target=lambda: told.append(entries[b"%d" % number]))
    thread.start()
    time.sleep(0.1)
    store.close()
    with pytest.raises(StoreReadOnly, match="closed"):
        store.dict("d")
    owner.send_signal(signal.SIGCONT)
    thread.join(10.0)
    assert told == [b"v"]
