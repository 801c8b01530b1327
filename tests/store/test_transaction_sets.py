"""What a transaction has read and written: checked at its end, seen inside it, durable after it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import statepool.store
from statepool.core.errors import Conflict, InvalidRequest
from statepool.store.transaction import Pending

SMALL = {"capacity": "32MiB", "segment_size": "128KiB"}


def test_a_block_that_only_reads_has_read_one_moment(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, **SMALL) as store:
        one, two = store.dict("one"), store.sorted_dict("two")
        one[b"k"] = two[b"k"] = b"1"
        with store.transaction() as tx:
            assert (tx[one][b"k"], tx[two][b"k"]) == (b"1", b"1")
        with pytest.raises(Conflict), store.transaction() as tx:
            assert tx[one][b"k"] == b"1"
            store_both(store, b"2")
            assert tx[two][b"k"] == b"2"
        with pytest.raises(Conflict), store.transaction() as tx:
            assert tx[one].get(b"absent") is None
            one[b"absent"] = b"now"
        with pytest.raises(Conflict), store.transaction() as tx:
            assert len(tx[two]) == 1
            two[b"other"] = b"now"


def store_both(store: statepool.store.Store, value: bytes) -> None:
    with store.transaction() as tx:
        tx[store.dict("one")][b"k"] = value
        tx[store.sorted_dict("two")][b"k"] = value


@pytest.mark.parametrize("ending", ["nothing written", "something written", "an error"])
def test_what_was_read_is_durable_when_the_block_ends(ending: str, tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, **SMALL) as store:
        d = store.dict("d")
        for i in range(200):
            d.put(b"k", b"%d" % i, durability="process")
            read = store.applied_lsn
            try:
                with store.transaction(durability="process") as tx:
                    assert tx[d][b"k"] == b"%d" % i
                    if ending == "something written":
                        tx[d][b"other"] = b"%d" % i
                    if ending == "an error":
                        raise LookupError
            except LookupError:
                pass
            assert store.durable_lsn >= read


def test_types_are_checked_inside_too(tmp_path: Path) -> None:
    with statepool.store.open(tmp_path, **SMALL) as store:
        d = store.dict("d")
        for act in (
            lambda face: face.__setitem__(b"k", "text"),
            lambda face: face.get("k"),
            lambda face: face.__delitem__("k"),
        ):
            with pytest.raises(InvalidRequest, match="expected bytes"), store.transaction() as tx:
                act(tx[d])
        with statepool.store.open(tmp_path / "other", **SMALL) as other, other.transaction() as tx:
            with pytest.raises(InvalidRequest, match="another store"):
                tx[d]
            with pytest.raises(InvalidRequest, match="cannot take part"):
                tx[store.counter("c")]  # type: ignore[index]


@pytest.mark.parametrize("seed", range(6))
def test_the_core_and_its_twin_see_the_same(seed: int, tmp_path: Path) -> None:
    """The same drawn steps, few and many, through the core's transaction, its twin in Python, and a dict."""
    draw = random.Random(seed)
    with statepool.store.open(tmp_path / "a", **SMALL) as a, statepool.store.open(tmp_path / "b", **SMALL) as b:
        ids = {}
        for store in (a, b):
            for name, face in (("d", store.dict("d")), ("t", store.sorted_dict("t"))):
                face.update((b"%d" % i, b"old") for i in range(0, 40, 2))
                ids[name] = face.identity
        model = {name: {b"%d" % i: b"old" for i in range(0, 40, 2)} for name in ids}
        for size in (1, 3, 17, 60, 200):
            sides: list[Any] = [a.native.transaction(-1, 0, 0), Pending(b.native, -1, 0, 0)]
            inside = {name: dict(entries) for name, entries in model.items()}
            written: dict[str, dict[bytes, bytes | None]] = {name: {} for name in ids}
            for step in range(size):
                name, key, what = draw.choice("dt"), b"%d" % draw.randrange(40), draw.randrange(3)
                if what == 0:
                    found = [side.get(ids[name], key, b"none") for side in sides]
                    assert found == [inside[name].get(key, b"none")] * 2
                elif what == 1:
                    assert [side.erase(ids[name], key) for side in sides] == [key in inside[name]] * 2
                    if inside[name].pop(key, None) is not None:
                        written[name][key] = None
                else:
                    value = b"%d-%d" % (size, step)
                    for side in sides:
                        side.put(ids[name], key, value)
                    inside[name][key] = written[name][key] = value
            for side in sides:
                assert {name: side.writes(identity) for name, identity in ids.items()} == written
                side.commit()
            model = inside
            for store in (a, b):
                assert {"d": dict(store.dict("d").entries()), "t": dict(store.sorted_dict("t").entries())} == model
