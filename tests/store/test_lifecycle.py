"""Opening, closing, forking, and what fails in between."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest

import statepool.store
from statepool.core.errors import (
    Conflict,
    InvalidRequest,
    OutcomeUnknown,
    StatepoolError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)
from statepool.store.logreader import FRAME, Files

from .stores import in_child

SMALL = {"capacity": "16MiB", "segment_size": "64KiB"}


@pytest.mark.parametrize("large", [b"x", b"x" * 5000, b"x" * 70_000])
def test_a_failed_transaction_leaves_what_it_had_erased(large: bytes, tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, capacity="12MiB") as store:
        faces = [store.dict("d"), store.sorted_dict("t"), store.sorted_dict("l", structure="skip list")]
        faces += [store.sorted_dict("b", structure="bst"), store.versioned_dict("v")]
        for face in faces:
            for i in range(6):
                face[b"%d" % i] = b"%d" % i + large
        before = [dict(face) for face in faces]
        used = store.stat()["heap_used"]
        for _ in range(3):
            with pytest.raises(StatepoolError), store.transaction() as tx:
                for face in faces:
                    for i in range(6):
                        del tx[face][b"%d" % i]
                        tx[face][b"new %d" % i] = b"%d" % (9 - i) + large
                tx[faces[0]][b"no room"] = b"x" * (13 << 20)
            assert [dict(face) for face in faces] == before
        assert store.stat()["heap_used"] == used


def test_a_copy_of_an_open_store_does_not_get_its_heap(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        store.dict("d")[b"k"] = b"v"
        shutil.copytree(tmp_path / "s", tmp_path / "copy")
        with pytest.raises(StoreLocked, match="copy of a store that is open"):
            statepool.store.open(tmp_path / "copy")
        with statepool.store.open(tmp_path / "copy", shared=False) as copy:
            copy.dict("d")[b"k"] = b"other"
        assert store.dict("d")[b"k"] == b"v"


def test_an_older_folder_does_not_get_a_newer_heap(tmp_path: Path) -> None:
    def work() -> None:
        store = statepool.store.open(tmp_path / "s", **SMALL)
        store.dict("d")[b"k"] = b"1"
        shutil.copytree(tmp_path / "s", tmp_path / "backup")
        store.dict("d")[b"k"] = b"2"
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == signal.SIGKILL
    with pytest.raises(StatepoolError, match=r"older than the heap in shared memory /(statepool-[0-9a-f]+)") as caught:
        statepool.store.open(tmp_path / "backup")
    # What the message names is what stands in the way.
    name = str(caught.value).rsplit("/", 1)[1]
    (Path("/dev/shm") / name).unlink()
    with statepool.store.open(tmp_path / "backup") as store:
        assert store.dict("d")[b"k"] == b"1"


def test_a_fork_cannot_use_or_destroy_its_parents_store(tmp_path: Path) -> None:
    store = statepool.store.open(tmp_path / "s", **SMALL)
    d = store.dict("d")
    d[b"k"] = b"v"

    def work() -> None:
        for act in (lambda: d.__setitem__(b"k", b"w"), lambda: d[b"k"], store.checkpoint, store.sync):
            with pytest.raises(StoreReadOnly, match="forked"):
                act()
        store.close()

    assert in_child(work) == 0
    d[b"k"] = b"x"
    store.close()
    with statepool.store.open(tmp_path / "s") as store:
        assert store.dict("d")[b"k"] == b"x"


def test_a_surviving_fork_does_not_keep_the_folder_locked(tmp_path: Path) -> None:
    store = statepool.store.open(tmp_path / "s", **SMALL)
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        store.close()
        statepool.store.open(tmp_path / "s").close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_what_was_acknowledged_outlives_a_failed_disk(tmp_path: Path) -> None:
    """A limit on file sizes makes the next segment fail. What had been promised at `process` is in the heap then."""
    acks, keys = tmp_path / "acks", 1000

    def work() -> None:
        store = statepool.store.open(tmp_path / "s", durability="process", **SMALL)
        d = store.dict("d")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 10, resource.RLIM_INFINITY))
        done = 0
        failure: list[type] = []
        while not failure:
            try:
                d[b"%d" % (done % keys)] = b"%d" % done + bytes(
                    900
                )  # few keys: a busy machine writes much before it fails
                done += 1
            except StatepoolError as error:
                failure.append(type(error))
        assert failure[0] in (OutcomeUnknown, StoreReadOnly)
        with pytest.raises(StoreReadOnly):
            d[b"more"] = b"v"
        with pytest.raises(StoreReadOnly):
            store.checkpoint()
        assert d[b"0"].endswith(bytes(900))  # reading goes on
        with pytest.raises(OutcomeUnknown):
            store.close()
        store.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        acks.write_text(str(done))

    assert in_child(work) == 0
    with statepool.store.open(tmp_path / "s") as store:
        assert store.stat()["attached"] == 1
        done, d = int(acks.read_text()), store.dict("d")
        assert done > 50
        for number in range(max(0, done - keys), done):  # the one that failed, number `done`, may be there
            assert int(d[b"%d" % (number % keys)][:-900]) in (number, done)


def test_all_who_wait_are_told_that_the_disk_failed(tmp_path: Path) -> None:
    """Many threads wait for the frame that cannot be written, and for the one behind it."""

    def work() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not the test's own, which would wait for its turn
        signal.alarm(30)  # or it would hang
        store = statepool.store.open(tmp_path / "s", shared=False, **SMALL)
        d, ended = store.dict("d"), []
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 10, resource.RLIM_INFINITY))

        begin = threading.Barrier(12)  # one that began before the others might meet the failure alone

        def write(thread: int) -> None:
            begin.wait()
            try:
                for i in range(10_000):
                    d[b"%d %d" % (thread, i)] = b"v" * 900
            except (OutcomeUnknown, StoreReadOnly, StoreFull) as error:
                ended.append(error)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ended) == 12
        with pytest.raises(StatepoolError):
            store.close()

    assert in_child(work) == 0


def test_closing_while_others_write(tmp_path: Path) -> None:
    store = statepool.store.open(tmp_path / "s", **SMALL)
    d = store.dict("d")
    written = [0] * 4
    ended: list[StatepoolError] = []

    def work(thread: int) -> None:
        try:
            while True:
                d[b"%d-%d" % (thread, written[thread])] = b"v" * 100
                written[thread] += 1
        except StatepoolError as error:
            ended.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while min(written) < 20:
        threading.Event().wait(0.01)
    store.close()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    assert [type(error) for error in ended] == [StoreReadOnly] * 4
    with statepool.store.open(tmp_path / "s") as store:
        for thread_number, count in enumerate(written):
            for i in range(count):
                assert store.dict("d")[b"%d-%d" % (thread_number, i)] == b"v" * 100


def test_what_is_too_large_is_refused_before_it_is_logged(tmp_path: Path) -> None:
    """A record that the log could not be read back with would make the store unreadable for good."""
    with statepool.store.open(tmp_path, shared=False, capacity="128MiB") as store:
        d, queue = store.dict("d"), store.queue("q")
        for act in (
            lambda: d.__setitem__(b"k" * 65_537, b""),
            lambda: d.__setitem__(b"k", bytes((16 << 20) + 1)),
            lambda: queue.put(bytes((16 << 20) + 1)),
            lambda: queue.put(b"", dedup="i" * 65_537),
            lambda: store.dict("n" * 65_537),
        ):
            with pytest.raises(InvalidRequest, match="the limit is"):
                act()
        d[b"k" * 65_536] = bytes(16 << 20)
        queue.put(bytes(16 << 20), dedup="i" * 65_536)
    with statepool.store.open(tmp_path, shared=False) as store:
        assert len(store.dict("d")) == len(store.queue("q")) == 1


def test_a_checkpoint_is_of_one_moment(tmp_path: Path) -> None:
    """Blocks that change while it is written are kept as they were: pushes replayed on later ones would be doubled."""
    with statepool.store.open(tmp_path, shared=False, capacity="64MiB", durability="process") as store:
        store.dict("ballast").update({b"%d" % i: b"v" * 4000 for i in range(3000)})
        stack, done = store.stack("s"), threading.Event()

        def push() -> None:
            i = 0
            while not done.is_set():
                stack.push(b"%d" % i)
                i += 1

        thread = threading.Thread(target=push)
        thread.start()
        for _ in range(8):
            store.checkpoint()
        done.set()
        thread.join()
        # The copy has the last checkpoint and the log behind it.
        store.sync()
        pushed = len(stack)
        shutil.copytree(tmp_path, tmp_path.with_name("killed"), ignore=shutil.ignore_patterns("spare*", "unfinished"))
    with statepool.store.open(tmp_path.with_name("killed"), shared=False) as store:
        stack = store.stack("s")
        assert len(stack) == pushed
        assert all(stack[i] == b"%d" % i for i in range(0, pushed, 7))


def test_waiting_for_what_is_not_there(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, **SMALL) as store:
        store.dict("d")[b"k"] = b"v"
        store.wait(store.applied_lsn)
        with pytest.raises(InvalidRequest, match="no operation 1000 yet"):
            store.wait(1000)


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a/b", "c", "./d/e/", "f//g"):
        statepool.store.open(path, **SMALL).close()
        statepool.store.open(path, create=False).close()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Checkpoints and segments that nothing names any more go, also those of a process that was killed."""
    with statepool.store.open(tmp_path / "s", shared=False, **SMALL) as store:
        for round_number in range(4):
            for i in range(40):
                store.dict("d")[b"%d" % i] = b"%d" % round_number * 2000
            store.checkpoint()
        names = sorted(str(p.relative_to(tmp_path / "s")) for p in (tmp_path / "s").rglob("0*"))
    assert len([n for n in names if n.startswith("ckpt")]) == 1
    assert len([n for n in names if n.startswith("log")]) <= 2
    (tmp_path / "s" / "ckpt" / f"{9:016x}").write_bytes(b"unfinished")
    shutil.copy(tmp_path / "s" / names[-1], tmp_path / "s" / "log" / f"{0:016x}")
    with statepool.store.open(tmp_path / "s", shared=False) as store:
        store.dict("d")[b"k"] = b"v"
        store.checkpoint()
        left = [p.name for p in (tmp_path / "s").rglob("0*")]
    assert f"{9:016x}" not in left
    assert f"{0:016x}" not in left


def test_no_shared_memory_is_left_behind(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        store.dict("d")[b"k"] = b"v"
        store.checkpoint()
    shared = Path(f"/dev/shm/statepool-{Files(tmp_path / 's').meta.uuid.hex()}")
    (file,) = (tmp_path / "s" / "ckpt").iterdir()
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(StatepoolError):
        statepool.store.open(tmp_path / "s")
    assert not shared.exists()


def test_each_opening_has_an_epoch_of_its_own(tmp_path: Path) -> None:
    """On disk, before its first frame; also after a process that was killed."""
    epochs = []

    def work() -> None:
        store = statepool.store.open(tmp_path / "s", **SMALL)
        store.dict("d")[b"k"] = b"v"
        os.kill(os.getpid(), signal.SIGKILL)

    for killed in (False, True, True, False):
        if killed:
            assert in_child(work) == signal.SIGKILL
        else:
            with statepool.store.open(tmp_path / "s", **SMALL) as store:
                store.dict("d")[b"k"] = b"v"
        files = Files(tmp_path / "s")
        last = [FRAME.unpack_from(frame)[6] for frame, _ in files.frames()][-1]
        assert last == files.meta.epoch
        epochs.append(last)
    assert epochs == [1, 2, 3, 4]


def test_a_transaction_that_only_reads_sees_one_moment(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        d = store.dict("d")
        d.update({b"a": b"1", b"b": b"1"})
        with pytest.raises(Conflict), store.transaction() as tx:
            first = tx[d][b"a"]
            d.update({b"a": b"2", b"b": b"2"})
            assert (first, tx[d][b"b"]) == (b"1", b"2")
        with store.transaction() as tx:
            assert (tx[d][b"a"], tx[d][b"b"], len(tx[d])) == (b"2", b"2", 2)
