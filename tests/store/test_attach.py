"""After a killed owner, a store goes on from its note of the log's end, or from the log itself where that is wrong."""

from __future__ import annotations

import logging
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import crc32c
import pytest

import statepool.store
from statepool.core.errors import StoreCorrupt
from statepool.store.logreader import Files

_TAILS, _TAIL = 640, struct.Struct("<QQQQII")  # in the control page: two notes, written in turn
_ROUNDS = 300


def killed(path: Path) -> Path:
    """A store of many frames in several segments, whose owner was killed; its shared memory."""
    pid = os.fork()
    if pid == 0:
        try:
            store = statepool.store.open(path, capacity="16MiB", segment_size="64KiB")
            for i in range(_ROUNDS):
                store.dict("d")[b"%d" % (i % 40)] = b"%d" % i
            store.dict("d").put(b"last", b"in the ring only", durability="process")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    return Path(f"/dev/shm/statepool-{Files(path).meta.uuid.hex()}")


def notes(memory: Path) -> list[tuple[int, ...]]:
    with memory.open("rb") as file:
        file.seek(_TAILS)
        return list(_TAIL.iter_unpack(file.read(2 * _TAIL.size)))


def rewrite(memory: Path, change: Callable[[list[int]], None]) -> None:
    """Change both notes and make their checksums right again."""
    changed = b""
    for note in notes(memory):
        fields = list(note)
        change(fields)
        body = _TAIL.pack(*fields)[:-4]
        changed += body + struct.pack("<I", crc32c.crc32c(body))
    with memory.open("r+b") as file:
        file.seek(_TAILS)
        file.write(changed)


def check(path: Path, hinted: bool) -> None:
    with statepool.store.open(path) as store:
        assert store.stat()["attached"] == 1
        assert store.stat()["log_hinted"] == hinted
        assert dict(store.dict("d")) == {
            b"last": b"in the ring only",
            **{b"%d" % (i % 40): b"%d" % i for i in range(_ROUNDS - 40, _ROUNDS)},
        }
        store.dict("d")[b"more"] = b"v"
    with statepool.store.open(path, shared=False) as store:  # what was written behind it continues the log
        assert len(store.dict("d")) == 42


def test_an_owner_after_a_killed_one_starts_at_the_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = killed(tmp_path / "s")
    last = max(record.lsn for record in Files(tmp_path / "s").records())
    # Each of these frames has one operation. The kill may have come between the last frame's write and its note.
    assert max(note[2] for note in notes(memory)) in (last - 1, last)
    check(tmp_path / "s", hinted=True)
    assert not caplog.records


def _earlier_segment(note: list[int]) -> None:
    note[0] -= 1


def _other_byte(note: list[int]) -> None:
    note[1] += 4096


def _inside_a_frame(note: list[int]) -> None:
    note[1] += 8


def _other_operation(note: list[int]) -> None:
    note[2] -= 1


def _operation_to_come(note: list[int]) -> None:
    note[2] += 5


def _other_chain(note: list[int]) -> None:
    note[4] ^= 1


def _segment_that_is_not_there(note: list[int]) -> None:
    note[0] += 7


@pytest.mark.parametrize(
    "change",
    [
        _earlier_segment,
        _other_byte,
        _inside_a_frame,
        _other_operation,
        _operation_to_come,
        _other_chain,
        _segment_that_is_not_there,
    ],
)
def test_a_wrong_note_is_found_out(
    change: Callable[[list[int]], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(killed(tmp_path / "s"), change)
    with caplog.at_level(logging.WARNING, logger="statepool.store"):
        check(tmp_path / "s", hinted=False)
    assert [record.message for record in caplog.records if "note of the log's end" in record.message]


@pytest.mark.parametrize("torn", [(0,), (1,), (0, 1)])
def test_a_torn_note_does_not_count(torn: tuple[int, ...], tmp_path: Path) -> None:
    memory = killed(tmp_path / "s")
    with memory.open("r+b") as file:
        for slot in torn:
            file.seek(_TAILS + slot * _TAIL.size + 8)
            file.write(b"\xff")
    check(tmp_path / "s", hinted=len(torn) == 1)


def test_a_damaged_last_frame_is_not_taken_for_a_torn_one(tmp_path: Path) -> None:
    """The heap outlived its owner and knows what was durable: an acknowledged operation may not vanish."""
    memory = killed(tmp_path / "s")
    segment, at = max(notes(memory), key=lambda note: note[2])[:2]
    with (tmp_path / "s" / "log" / f"{segment:016x}").open("r+b") as file:
        file.seek(at + 70)
        file.write(b"\xff\xff")
    with pytest.raises(StoreCorrupt, match="was durable; its end is damaged"):
        statepool.store.open(tmp_path / "s")
    memory.unlink()
