"""Damaged messages and files, very many of them: refused by a clear error, or harmless."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.store.logs import Logged, drawn, record
from tests.store.stores import SMALL, content

import statepool.store
from statepool.core.errors import (
    Corruption,
    InvalidRequest,
    StatepoolError,
    StoreCorrupt,
    StoreError,
    StoreFormat,
)
from statepool.native import _store  # type: ignore[attr-defined]
from statepool.store.coordination import Counter
from statepool.store.net.framing import LIMIT, REPLIES, REQUESTS, Reply, Request, Splitter, pack
from statepool.store.net.service import Service, Session

# ---- messages ------------------------------------------------------------------------------------------------------


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Cut, prolonged, garbled, doubled or mixed up."""
    out, way = bytearray(data or b"\0"), draw.randrange(6)
    at = draw.randrange(len(out) + 1)
    if way == 0:
        del out[at:]
    elif way == 1:
        out[at:at] = draw.randbytes(draw.randrange(1, 9))
    elif way == 2:
        del out[at : at + draw.randrange(1, 9)]
    elif way == 3:
        out[at:at] = out[: draw.randrange(len(out) + 1)]
    else:
        for _ in range(1 if way == 4 else 5):
            out[draw.randrange(len(out))] = draw.randrange(256)
    return bytes(out)


@contextmanager
def served(path: Path) -> Iterator[Callable[[bytes], int]]:
    """What a daemon does with bytes that come in, without a socket; gives how many requests it took for such."""
    with statepool.store.open(path, durability="process", shared=False, **SMALL) as store:
        store.dict("d")[b"kept"] = b"value"
        store.sorted_dict("t")[b"k"] = b"v"
        store.queue("q").put(b"v")
        store.stack("s").push(b"v")
        store.versioned_dict("v")[b"k"] = b"v"
        service, session = Service(store.native, 0, Counter(store._cells("counter"), "slots")), Session()

        def take(data: bytes) -> int:
            taken = 0
            try:
                for body in Splitter().feed(data):
                    request = REQUESTS.decode(body)
                    taken += 1
                    try:
                        if request.method == "commit":
                            result: Any = service.commit(request.arguments)[0]
                        else:
                            result = service.run(session, request.method, request.arguments)
                        pack(REPLIES.encode(Reply(request.number, result)))
                    except (StatepoolError, TypeError, ValueError):  # what the daemon answers
                        continue
            except (Corruption, StoreFormat):  # what ends a connection
                return taken
            return taken

        yield take
        service.end(session)
        for face in (store.dict("d"), store.sorted_dict("t"), store.versioned_dict("v")):
            assert len(face) == sum(1 for _ in face)


def requests(draw: random.Random) -> bytes:
    """Some well-formed calls."""
    operation = (draw.randint(3, 13), draw.randrange(6), b"key", b"value", draw.randrange(99), draw.randrange(99))
    calls: list[tuple[str, list[Any]]] = [
        ("get", [0, b"kept"]),
        ("get_many", [0, [b"kept", b"x"]]),
        ("range", [1, (None, b"z", True, False, False), 10]),
        ("scan", [0, draw.choice([0, 1 << 63, 77])]),
        ("peek", [draw.randrange(6), 0, 10]),
        ("dead", [2, 10]),
        ("commit", [[operation] * draw.randrange(1, 4), [(0, b"kept", 1)][: draw.randrange(2)], 0, 0, 0]),
        ("commit", [[operation], [], draw.randrange(1, 9), draw.randrange(99), 0]),
        ("structure", [draw.choice(["d", "new", ""]), draw.randrange(1, 9), True]),
        ("pin", [4, 10]),
        ("range_at", [1, (b"a", None, True, True, True), 5]),
        ("last_of", [3]),
        ("get", [0, np.arange(5)]),
        ("wait", [draw.randrange(3)]),
    ]
    chosen = draw.choices(calls, k=draw.randint(1, 3))
    return b"".join(pack(REQUESTS.encode(Request(i, name, args))) for i, (name, args) in enumerate(chosen))


def fuzz_messages(path: Path, count: int, seed: int) -> None:
    draw, taken = random.Random(seed), 0
    with served(path) as take:
        for _ in range(count):
            data = requests(draw)
            for _ in range(draw.randrange(3)):
                data = damaged(draw, data)
            taken += take(data)
        assert count / 2 < taken, "most of it was not even looked at"
        assert take(pack(REQUESTS.encode(Request(1, "get", [0, b"kept"])))) == 1


def test_messages_with_errors_in_them(tmp_path: Path) -> None:
    fuzz_messages(tmp_path, 8000, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_messages_with_errors_in_them(tmp_path: Path) -> None:
    fuzz_messages(tmp_path, 1_000_000, 2)


def fuzz_codecs(count: int, seed: int) -> None:
    """Requests and replies, read and thrown away."""
    draw, read = random.Random(seed), 0
    replies = [pack(REPLIES.encode(Reply(1, result))) for result in (None, [(True, 1, 2, 3, b"v")], np.arange(9))]
    for _ in range(count):
        data = damaged(draw, draw.choice(replies) if draw.random() < 0.5 else requests(draw))
        for codec in (REQUESTS, REPLIES):
            try:
                read += sum(codec.decode(body) is not None for body in Splitter().feed(data))
            except (Corruption, StoreFormat):
                continue
    assert count / 5 < read < 2 * count


def test_damaged_messages() -> None:
    fuzz_codecs(5_000, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_damaged_messages() -> None:
    fuzz_codecs(1_000_000, 2)


def test_messages_that_are_none() -> None:
    good = pack(REQUESTS.encode(Request(1, "facts", [])))
    assert list(Splitter().feed(good + good[:5])) == [good[8:]]
    for bad, error in (
        (b"GET / HTTP/1.1\r\n", Corruption),
        (good[:4] + (LIMIT + 1).to_bytes(4, "little"), Corruption),  # before any of its body is held
        (good[:2] + b"\x02\x00" + good[4:], StoreFormat),
    ):
        with pytest.raises(error):
            list(Splitter().feed(bad))
    with pytest.raises(InvalidRequest, match="the limit is"):
        pack(bytes(LIMIT + 1))
    for body in (b"", b"\xc1", msgspec.msgpack.encode([1]), msgspec.msgpack.encode([1, "x", 5])):
        with pytest.raises(Corruption):
            REQUESTS.decode(body)


# ---- files ---------------------------------------------------------------------------------------------------------


def fuzz_logs(count: int, seed: int) -> None:
    """Opening says that it is damaged, or gives a beginning of what was there."""
    draw, refused = random.Random(seed), 0
    logged = drawn(seed, 8)
    files, whole = logged.files, logged.records
    for _ in range(count):
        name = draw.choice(sorted(files))
        try:
            again = Logged(files | {name: damaged(draw, files[name])}).open()
        except StoreError:
            refused += 1
        else:
            assert again.records == whole[: len(again.records)]
            assert len(again.records) in logged.ends[-2:] or name != "meta"
    assert refused > count / 3


def test_damaged_logs() -> None:
    fuzz_logs(1500, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_very_many_damaged_logs() -> None:
    for seed in range(50):
        fuzz_logs(4_000, 100 + seed)


def fuzz_records(count: int, seed: int) -> None:
    draw, taken = random.Random(seed), 0
    good = [record(draw.randbytes(n), structure=3, client=1, client_seq=2) for n in (0, 24, 100, 3000)]
    for _ in range(count):
        try:
            _store.decode_record(damaged(draw, draw.choice(good)))
            taken += 1
        except StoreCorrupt:
            continue
    assert 0 < taken < count


def test_damaged_records() -> None:
    fuzz_records(5_000, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_damaged_records() -> None:
    fuzz_records(1_000_000, 2)


def fuzz_folders(path: Path, count: int, seed: int) -> None:
    """Whole folders, checkpoints included; what is refused is left as it was."""
    draw, refused = random.Random(seed), 0
    with statepool.store.open(path / "s", shared=False, **SMALL) as store:
        for i in range(60):
            store.dict("d")[b"%d" % i] = b"%d" % i * 900
            if i == 30:
                store.checkpoint()
    wanted = content(path / "s")
    for _ in range(count):
        shutil.copytree(path / "s", path / "bad", ignore=shutil.ignore_patterns("spare", "unfinished", "lock"))
        target = draw.choice(sorted(p for p in (path / "bad").rglob("*") if p.is_file()))
        data = damaged(draw, target.read_bytes())
        target.write_bytes(data)
        try:
            assert content(path / "bad") == wanted
        except StoreError:
            refused += 1
            assert target.read_bytes() == data
        shutil.rmtree(path / "bad")
    assert refused > count / 4


def test_damaged_folders(tmp_path: Path) -> None:
    fuzz_folders(tmp_path, 60, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_damaged_folders(tmp_path: Path) -> None:
    fuzz_folders(tmp_path, 3_000, 2)


def test_a_segment_of_another_store(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with statepool.store.open(tmp_path / name, shared=False, **SMALL) as store:
            store.dict("d")[b"whose"] = name.encode()
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-killed")
    first = Path("log") / f"{1:016x}"
    shutil.copy(tmp_path / "two" / first, tmp_path / "one" / first)
    with pytest.raises(StoreCorrupt, match="belongs to another store"):
        content(tmp_path / "one")
    assert content(tmp_path / "one-killed") == {b"whose": b"one"}
