"""What a store is given that it must not take: each is refused by a clear error, and nothing that was there is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import statepool.store
from statepool.core.errors import (
    InvalidRequest,
    StatepoolError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)
from statepool.store.net.calls import Caller
from statepool.store.net.files import LogReader, first_segment, read_superblock
from statepool.store.net.mirror import Copying
from statepool.store.net.node import read_node
from statepool.store.net.roles import Answer, Mirror, Renewal

from .net_processes import kill, processes, unix
from .stores import SMALL, content, taken_over

# ---- folders and processes -----------------------------------------------------------------------------------------


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    """Another process, and another object of this one; and the folder by another name."""
    script = "import sys, statepool.store as s\ntry: s.open(sys.argv[1])\nexcept s.StoreLocked as e: print(e)"
    for shared in (False, True):
        path = tmp_path / f"s {shared}"
        with statepool.store.open(path, shared=shared, **SMALL) as store:
            store.dict("d")[b"k"] = b"v"
            (tmp_path / f"link {shared}").symlink_to(path)
            for name in (path, tmp_path / f"link {shared}"):
                with pytest.raises(StoreLocked, match="is open already"):
                    statepool.store.open(name, shared=False)
                said = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True)
                assert "close it there" in said.stdout, said.stderr
            store.dict("d")[b"k"] = b"w"
        assert content(path) == {b"k": b"w"}


def as_nobody(act: Callable[[], str]) -> str:
    """What `act` says in a child without root's rights."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(into, act().encode())
        finally:
            os._exit(0)
    os.close(into)
    os.waitpid(pid, 0)
    with os.fdopen(out) as pipe:
        return pipe.read()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in itertools.takewhile(lambda path: path != Path(tempfile.gettempdir()), tmp_path.parents):
        parent.chmod(0o755)
    with statepool.store.open(tmp_path / "s", shared=False, **SMALL) as store:
        store.dict("d")[b"k"] = b"v"
    for path in (tmp_path / "s").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "s").chmod(0o555)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}

    def attempt(path: Path) -> str:
        try:
            statepool.store.open(path, shared=False, **SMALL).close()
        except StoreReadOnly as error:
            return error.message
        except StatepoolError as error:
            return repr(error)
        return "opened"

    assert as_nobody(lambda: attempt(tmp_path / "s")).endswith("cannot be written")
    assert "Permission denied" in as_nobody(lambda: attempt(tmp_path / "s" / "below"))
    (tmp_path / "s").chmod(0o755)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == before
    assert content(tmp_path / "s") == {b"k": b"v"}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many bytes at `folder`; what is given can make it larger."""
    folder.mkdir()

    def mount(*options: str) -> int:
        return subprocess.run(["mount", "-t", "tmpfs", *options, "none", folder], capture_output=True).returncode

    if os.getuid() != 0 or shutil.which("mount") is None or mount("-o", f"size={size}") != 0:
        pytest.skip("this user may not mount a file system")
    try:
        yield lambda larger: mount("-o", f"remount,size={larger}") and None
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full_at(folder: Path, sizes: range) -> None:
    for size in sizes:
        disk = folder / f"disk of {size}"
        with small_disk(disk, size) as enlarge:
            done = [0]

            def write(disk: Path = disk, done: list[int] = done) -> None:
                with statepool.store.open(disk / "s", shared=False, checkpoint_every="128KiB", **SMALL) as store:
                    while done[0] < 2000:
                        store.dict("d")[b"%d" % done[0]] = b"%d" % done[0] * 400
                        done[0] += 1

            with pytest.raises(StoreError) as caught:
                write()
            assert isinstance(caught.value, StoreFull | StoreReadOnly | statepool.store.OutcomeUnknown), caught.value
            enlarge(64 << 20)
            with statepool.store.open(disk / "s", shared=False, **SMALL) as store:
                found = dict(store.dict("d"))
                assert len(found) in (done[0], done[0] + 1)
                assert found == {b"%d" % i: b"%d" % i * 400 for i in range(len(found))}
                store.dict("d")[b"more"] = b"v"


def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    full_at(tmp_path, range(8 << 10, 600 << 10, 70 << 10))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_disk_that_becomes_full_anywhere(tmp_path: Path) -> None:
    full_at(tmp_path, range(4 << 10, 700 << 10, 4 << 10))


def test_a_daemon_whose_disk_is_full(tmp_path: Path) -> None:
    """Its clients are told what kind of error it is, go on reading, and it serves again where there is room."""
    with small_disk(tmp_path / "disk", 132 << 20) as enlarge, processes() as start:
        serve = ("serve", tmp_path / "disk" / "s", "--listen", unix(tmp_path, "socket"), "--capacity", "64MiB")
        daemon = start(*serve)
        with statepool.store.open(unix(tmp_path, "socket"), timeout=20.0) as store:
            entries, done = store.dict("d"), 0
            with pytest.raises(StoreError) as caught:
                while done < 300:
                    entries[b"%d" % (done % 40)] = b"%d" % done + bytes(1 << 20)
                    done += 1
            assert isinstance(caught.value, StoreFull | StoreReadOnly | statepool.store.OutcomeUnknown)
            assert done >= 40
            assert bytes(entries[b"%d" % ((done - 2) % 40)]).startswith(b"%d" % (done - 2))
            with pytest.raises(StoreError):
                entries[b"more"] = b"v"
            enlarge(512 << 20)
            kill(daemon)
            start(*serve)
            for i in range(done - 40, done):
                assert bytes(entries[b"%d" % (i % 40)]).startswith((b"%d" % i, b"%d" % (i + 40)))
            entries[b"more"] = b"v"


def test_keys_of_no_bytes_and_the_largest_values(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, shared=False, capacity="256MiB", durability="process") as store:
        faces = [store.dict("d"), store.versioned_dict("v"), store.versioned_dict("w", structure="bst")]
        faces += [store.sorted_dict(name, structure=name) for name in ("b+tree", "skip list", "bst")]
        for face in faces:
            face[b""] = b""
            assert face[b""] == b"" and list(face) == [b""]
            with pytest.raises(InvalidRequest, match="value: 16777217 bytes, the limit is 16 MiB"):
                face[b"k"] = bytes((16 << 20) + 1)
            face[b"k"] = bytes(16 << 20)
            del face[b""]
            assert len(face) == 1 and len(face[b"k"]) == 16 << 20
            del face[b"k"]
        store.queue("q").put(b"", dedup="")
        store.stack("s").push(b"")
        assert store.stack("s").pop() == b""
        with pytest.raises(InvalidRequest, match="name: it is empty"):
            store.dict("")


def make_structures(path: Path, count: int, capacity: str) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with statepool.store.open(path, shared=False, capacity=capacity, durability="process") as store:
        for i in range(count):
            store.stack(f"s{i}")
        store.stack("s7").push(b"v")
        assert len(store.structures()) == count
    with statepool.store.open(path, shared=False) as store:
        assert len(store.structures()) == count
        assert store.stack("s7").pop() == b"v"
        assert len(store.stack(f"s{count - 1}")) == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limit


def test_many_structures(tmp_path: Path) -> None:
    make_structures(tmp_path, 3_000, "64MiB")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_structures(tmp_path: Path) -> None:
    make_structures(tmp_path, 1_000_000, "2GiB")


def test_more_structures_than_the_heap_holds(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, shared=False, capacity="1MiB", durability="process") as store:
        made = 0
        with pytest.raises(StoreFull, match="larger capacity"):
            while made < 100_000:
                store.dict(f"d{made}")
                made += 1
        assert len(store.structures()) == made > 100
        store.drop("d0")
        store.dict("d0")
        assert len(store.structures()) == made


# ---- mirrors and witnesses -----------------------------------------------------------------------------------------


def test_a_mirror_refuses_what_is_not_the_next_frame(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path / "s", shared=False, **SMALL) as store:
        for i in range(6):
            store.dict("d")[b"%d" % i] = b"v" * 300
    reader = LogReader(tmp_path / "s")
    block = read_superblock(tmp_path / "s")
    assert block is not None
    before = first_segment(tmp_path / "s", 1).before
    assert reader.seek(before)
    pieces = []
    while (piece := reader.next(1 << 60)) is not None:
        pieces.append(piece)
    reader.close()
    copying, role, draw = Copying(tmp_path / "m", part=True), Mirror("m", 0, before), random.Random(1)
    (tmp_path / "m" / "log").mkdir(parents=True)
    copying.append(role, pieces[:2])
    held = {p: p.read_bytes() for p in (tmp_path / "m").rglob("0*")}
    at = role.position
    wrong = [[pieces[3]], [pieces[1]], [pieces[0]]]
    for _ in range(200):
        data = bytearray(pieces[2].data)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        wrong.append([msgspec.structs.replace(pieces[2], data=bytes(data))])
    wrong.append([msgspec.structs.replace(pieces[2], data=pieces[2].data[:-4096])])
    wrong.append([msgspec.structs.replace(pieces[2], data=pieces[2].data + bytes(4096))])
    for bad in wrong:
        with pytest.raises(StoreCorrupt, match="mirror"):
            copying.append(role, bad)
        assert role.position == at
    assert {p: p.read_bytes() for p in (tmp_path / "m").rglob("0*")} == held
    for i in (0, 20, 45, 60):  # the header of a segment, with its first frame
        start = bytearray(pieces[0].start)
        start[i] ^= 1
        with pytest.raises(StoreCorrupt, match="header came damaged"):
            copying.append(Mirror("m", 0, before), [msgspec.structs.replace(pieces[0], start=bytes(start))])
    older = Mirror("m", 0, msgspec.structs.replace(at, epoch=at.epoch + 1))
    with pytest.raises(StoreCorrupt, match="after operation"):
        copying.append(older, [pieces[2]])
    copying.append(role, pieces[2:])
    assert role.position.lsn == 7


def test_a_mirror_of_a_log_that_begins_with_an_empty_segment(tmp_path: Path) -> None:
    """The first frame did not fit into the first segment: the mirror's copy needs that segment all the same."""
    options: dict[str, Any] = {"durability": "process", **SMALL}
    while True:
        store = statepool.store.open(tmp_path / "s", **options)
        store.dict("d")[b"k"] = bytes(100_000)
        store.sync()
        if not any((tmp_path / "s" / "log" / f"{1:016x}").read_bytes()[4096:4100]):
            break  # or else the structure had a frame of its own
        store.close()
        shutil.rmtree(tmp_path / "s")
    store = taken_over(store, str(tmp_path / "s"), **options)
    assert store.dict("d")[b"k"] == bytes(100_000)
    store.close()


def test_a_copy_that_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path / "m", shared=False, **SMALL) as store:
        store.dict("d")[b"k"] = b"v"
    (tmp_path / "m" / "incoming" / "log").mkdir(parents=True)
    (tmp_path / "m" / "incoming" / "meta").write_bytes(b"half of it")
    Copying(tmp_path / "m").close()
    assert not (tmp_path / "m" / "incoming").exists()
    assert content(tmp_path / "m") == {b"k": b"v"}


def test_a_copy_that_is_complete_takes_its_place_whatever_was_moved_already(tmp_path: Path) -> None:
    for name, value in (("old", b"old"), ("new", b"new")):
        with statepool.store.open(tmp_path / name, shared=False, **SMALL) as store:
            store.dict("d")[b"k"] = value
            store.checkpoint()
    for moved in ([], ["meta"], ["meta", "log"], ["meta", "log", "ckpt"]):
        shutil.copytree(tmp_path / "old", tmp_path / "m")
        shutil.copytree(tmp_path / "new", tmp_path / "m" / "incoming")
        (tmp_path / "m" / "incoming" / "complete").touch()
        for name in moved:  # by a process that was killed then
            target = tmp_path / "m" / name
            target.unlink() if name == "meta" else shutil.rmtree(target)
            (tmp_path / "m" / "incoming" / name).rename(target)
        Copying(tmp_path / "m").close()
        assert content(tmp_path / "m") == {b"k": b"new"}
        shutil.rmtree(tmp_path / "m")


@pytest.mark.parametrize("data", [b"", b"{", b'{"name": 5}', b'{"name": "\xff"}', b"\xff\xfe"])
def test_a_record_of_the_role_that_cannot_be_read(data: bytes, tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, shared=False, **SMALL) as store:
        store.dict("d")[b"k"] = b"v"
    (tmp_path / "node").write_bytes(data)
    for read in (lambda: read_node(tmp_path), lambda: content(tmp_path)):
        with pytest.raises(StoreCorrupt, match="restore it from a copy"):
            read()


def ask(url: str, method: str, *arguments: Any) -> Answer:
    async def call() -> Answer:
        caller = Caller(url)
        try:
            found: Answer = await caller.call(method, list(arguments), 5.0, kind=Answer)
        finally:
            caller.close()
        return found

    return asyncio.run(call())


def test_a_witness_remembers_its_vote(tmp_path: Path) -> None:
    url = unix(tmp_path, "socket")
    serve = ("witness", tmp_path / "w", "--listen", url, "--lease", "0.3")
    with processes() as start:
        witness = start(*serve)
        assert ask(url, "renew", Renewal("p", 0, "m", (1, 1))).granted
        kill(witness)
        witness = start(*serve)
        assert not ask(url, "promote", "m").granted, "the lease may still run"
        time.sleep(0.4)
        assert ask(url, "promote", "m").vote.term == 1
        kill(witness)
        start(*serve)
        assert not ask(url, "renew", Renewal("p", 0, "", (1, 2))).granted, "its term is over"
        for method, arguments in (("promote", []), ("renew", [5]), ("nonsense", [])):
            with pytest.raises(InvalidRequest):
                ask(url, method, *arguments)
    (tmp_path / "w" / "vote").write_bytes(b"[1,")
    command = [sys.executable, "-m", "statepool.cli", "store", *map(str, serve)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 2 and "must not forget its vote" in refused.stderr
