"""Dictionaries of every kind against ``dict`` and ``SortedDict``; reopening and checkpoints are moves of the game."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sortedcontainers import SortedDict as Oracle

import statepool.store
from statepool.core.errors import InvalidRequest, NotFound, SnapshotExpired
from statepool.store.native import Verb

from .stores import killed, taken_over

KINDS: dict[str, Callable[[statepool.store.Store], Any]] = {
    "dict": lambda store: store.dict("d"),
    "b+tree": lambda store: store.sorted_dict("d"),
    "skip list": lambda store: store.sorted_dict("d", structure="skip list"),
    "bst": lambda store: store.sorted_dict("d", structure="bst"),
    "versioned b+tree": lambda store: store.versioned_dict("d"),
    "versioned bst": lambda store: store.versioned_dict("d", structure="bst"),
}
SMALL = {"durability": "process", "capacity": "64MiB", "segment_size": "128KiB", "checkpoint_every": "1MiB"}

# Few keys, so that they meet; long common prefixes and an empty key, for those are what trees get wrong.
keys = st.one_of(
    st.integers(0, 40).map(lambda n: b"%d" % n),
    st.integers(0, 12).map(lambda n: b"long common prefix " + b"%02d" % n),
    st.sampled_from([b"", b"\0", b"\0\0", b"\xff" * 8, b"\xff" * 9, b"a" * 300]),
)
values = st.one_of(st.binary(max_size=40), st.integers(0, 9000).map(lambda n: b"x" * n))


class Machine(RuleBasedStateMachine):
    """One dictionary and its oracle."""

    kind = "dict"
    known = Bundle("known")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.oracle = Oracle()
        self.open()

    def open(self) -> None:
        self.store = statepool.store.open(self.folder, **SMALL)
        self.attach()

    def attach(self) -> None:
        self.mine = KINDS[self.kind](self.store)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    @rule(target=known, key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> bytes:
        self.mine[key] = value
        self.oracle[key] = value
        return key

    @rule(key=st.one_of(known, keys))
    def get(self, key: bytes) -> None:
        assert self.mine.get(key) == self.oracle.get(key)
        assert (key in self.mine) == (key in self.oracle)

    @rule(key=st.one_of(known, keys))
    def remove(self, key: bytes) -> None:
        if key in self.oracle:
            del self.mine[key]
            del self.oracle[key]
        else:
            with pytest.raises(KeyError):
                del self.mine[key]

    @rule(pairs=st.dictionaries(keys, values, max_size=30))
    def update(self, pairs: dict[bytes, bytes]) -> None:
        self.mine.update(pairs)
        self.oracle.update(pairs)

    @rule(key=st.one_of(known, keys), expected=values, value=values, right=st.booleans())
    def compare_and_set(self, key: bytes, expected: bytes, value: bytes, right: bool) -> None:
        expected = self.oracle.get(key) if right else expected
        done = self.oracle.get(key) == expected
        assert self.mine.compare_and_set(key, expected, value) is done
        if done:
            self.oracle[key] = value

    @rule(key=keys, value=values)
    def setdefault_and_pop(self, key: bytes, value: bytes) -> None:
        assert self.mine.setdefault(key, value) == self.oracle.setdefault(key, value)
        assert self.mine.pop(key) == self.oracle.pop(key)
        assert self.mine.pop(key, None) is None

    @rule(many=st.integers(300, 700))
    def grow_and_shrink(self, many: int) -> None:
        names = [b"grown %d" % (i * 7919 % many) for i in range(many)]
        self.mine.update((name, name) for name in names)
        assert len(self.mine) == len(self.oracle) + many
        assert self.mine.get_many(names[::97]) == names[::97]
        for name in names:
            del self.mine[name]

    @rule(changes=st.lists(st.tuples(st.booleans(), keys, values), min_size=1, max_size=12))
    def a_transaction_that_fails(self, changes: list[tuple[bool, bytes, bytes]]) -> None:
        """The last operation is none of a dictionary's: all before it is undone, memory they gave back included."""
        identity = self.mine.identity
        operations = [(Verb.PUT if put else Verb.ERASE, identity, key, value, 0, 0) for put, key, value in changes]
        with pytest.raises(InvalidRequest, match="no such operation"):
            self.store.native.commit([*operations, (Verb.PUSH, identity, b"", b"", 0, 0)], [])

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

    @invariant()
    def same(self) -> None:
        assert len(self.mine) == len(self.oracle)
        assert dict(self.mine.entries()) == dict(self.oracle)


class SortedMachine(Machine):
    """What order adds."""

    kind = "b+tree"

    @rule(
        low=st.none() | keys,
        high=st.none() | keys,
        inclusive=st.booleans(),
        reverse=st.booleans(),
        limit=st.none() | st.integers(0, 9),
    )
    def scan(self, low: bytes | None, high: bytes | None, inclusive: bool, reverse: bool, limit: int | None) -> None:
        wanted = (
            list(self.oracle.irange(low, high, (True, inclusive), reverse))
            if not low or not high or low <= high
            else []
        )
        found = list(self.mine.range(low, high, inclusive=inclusive, reverse=reverse, limit=limit))
        assert found == [(key, self.oracle[key]) for key in wanted[:limit]]

    @rule(key=keys)
    def neighbours(self, key: bytes) -> None:
        below = [k for k in self.oracle if k <= key]
        above = [k for k in self.oracle if k >= key]
        prefixes = [k for k in self.oracle if key.startswith(k)]
        for found, wanted in (
            (self.mine.floor(key), below[-1:]),
            (self.mine.ceiling(key), above[:1]),
            (self.mine.longest_prefix(key), prefixes[-1:]),
            (self.mine.first(), list(self.oracle)[:1]),
            (self.mine.last(), list(self.oracle)[-1:]),
        ):
            assert found == ((wanted[0], self.oracle[wanted[0]]) if wanted else None)

    @invariant()
    def in_order(self) -> None:
        assert list(self.mine) == list(self.oracle)
        assert list(reversed(self.mine)) == list(reversed(self.oracle))


class VersionedMachine(SortedMachine):
    """What snapshots add: they stay as they were."""

    def attach(self) -> None:
        super().attach()
        self.snapshots: list[tuple[Any, dict[bytes, bytes]]] = []

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.mine.snapshot(), dict(self.oracle)))

    @rule(data=st.data())
    def close_one(self, data: st.DataObject) -> None:
        if self.snapshots:
            mine, _ = self.snapshots.pop(data.draw(st.integers(0, len(self.snapshots) - 1)))
            mine.close()
            with pytest.raises(SnapshotExpired):
                mine.get(b"1")

    @invariant()
    def unchanged(self) -> None:
        for mine, oracle in self.snapshots[-3:]:
            assert len(mine) == len(oracle)
            assert list(mine.range()) == sorted(oracle.items())
            assert all(mine.get(key) == oracle.get(key) for key in (b"1", b"", b"long common prefix 03"))


def play(kind: str, examples: int, steps: int) -> None:
    base = VersionedMachine if "versioned" in kind else Machine if kind == "dict" else SortedMachine
    machine = type("M", (base,), {"kind": kind})
    machine.TestCase.settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    machine.TestCase("runTest").runTest()


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_oracle(kind: str) -> None:
    play(kind, 8, 25)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_oracle_for_long(kind: str) -> None:
    play(kind, 60, 60)


@pytest.mark.parametrize("kind", KINDS)
def test_adding_while_iterating_is_an_error_as_with_a_dict(kind: str, tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        mine = KINDS[kind](store)
        mine.update((b"%d" % i, b"") for i in range(1000))
        with pytest.raises(RuntimeError, match="changed size"):
            for key in mine:
                mine[key + b"!"] = b""


def test_codecs_and_their_limits(tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        mine = store.dict("m", keys="str", values="msgpack")
        mine["é"] = {"a": [1, 2.5, None, b"bytes"], "b": "ü"}
        assert mine["é"] == {"a": [1, 2.5, None, b"bytes"], "b": "ü"}
        with pytest.raises(InvalidRequest, match="codec: 'pickle' is none of"):
            store.dict("m", values="pickle")  # type: ignore[arg-type]
        plain = store.dict("plain")
        for bad in ("text", 5, None):
            with pytest.raises(InvalidRequest, match="expected bytes"):
                plain[bad] = b""
        with pytest.raises(InvalidRequest, match="key: 65537 bytes"):
            plain[b"k" * 65537] = b""
        with pytest.raises(InvalidRequest, match="value: 16777217 bytes"):
            plain[b"k"] = b"v" * ((16 << 20) + 1)
        assert len(plain) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_structure_can_be_dropped(kind: str, tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", durability="process", capacity="1GiB") as store:
        empty = store.stat()["heap_used"]
        mine = KINDS[kind](store)
        for start in range(0, 1_500_000, 50_000):
            mine.update((b"%08d" % i, b"") for i in range(start, start + 50_000))
        store.drop("d")
        assert store.structures() == {}
        assert store.stat()["heap_used"] <= empty + 1024  # the catalog has grown by a line


def test_structures_have_names_and_kinds(tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        store.dict("a")[b"k"] = b"v"
        store.sorted_dict("b", structure="bst")[b"k"] = b"v"
        assert store.structures() == {"a": "dict", "b": "bst"}
        with pytest.raises(InvalidRequest, match="'a' is a dict, not a queue"):
            store.queue("a")
        gone = store.dict("a")
        used = store.stat()["heap_used"]
        store.drop("a")
        assert store.stat()["heap_used"] < used
        with pytest.raises(NotFound, match="dropped"):
            gone[b"k"]
        with pytest.raises(NotFound, match="no structure 'a'"):
            store.drop("a")
        store.queue("a").put(b"now a queue")
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        assert store.structures() == {"a": "queue", "b": "bst"}


@pytest.mark.parametrize("kind", ["b+tree", "versioned b+tree"])
def test_keys_before_a_removed_first_leaf(kind: str, tmp_path: Any) -> None:
    """The leaf that takes over the range of a removed first one is split below where it used to begin."""
    with statepool.store.open(tmp_path, **SMALL) as store:
        mine = KINDS[kind](store)
        mine.update({b"m%06d" % n: b"" for n in range(1000)})
        for n in range(400):
            del mine[b"m%06d" % n]
        low = {b"a%06d" % (n * 7919 % 2000): b"%d" % n for n in range(2000)}
        for key, value in low.items():
            mine[key] = value
        assert list(mine) == sorted(low) + [b"m%06d" % n for n in range(400, 1000)]
        assert all(mine[key] == value for key, value in low.items())


@pytest.mark.parametrize("kind", ["versioned b+tree", "versioned bst"])
def test_a_snapshot_ends_with_its_lease(kind: str, tmp_path: Any) -> None:
    with statepool.store.open(tmp_path / "s", **SMALL) as store:
        mine = KINDS[kind](store)
        mine[b"k"] = b"old"
        snapshot, longer = mine.snapshot(lease=0.05), mine.snapshot(lease=60.0)
        mine[b"k"] = b"new"
        time.sleep(0.06)
        for read in (lambda: snapshot[b"k"], lambda: list(snapshot)):
            with pytest.raises(SnapshotExpired, match="lease has ended"):
                read()
        for i in range(300):  # what nobody may read any more is used again
            mine[b"k"] = b"%d" % i
        assert longer[b"k"] == b"old"
