"""Rounds of the store benchmarks: what is kept, what is discarded, what a failure does; real stores where installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench.duel import WorkerError
from bench.peers.setup import python_of
from bench.report import _order
from bench.store import contest as module
from bench.store.cases import MATCHES, wanted
from bench.store.contest import contest, enter, fresh


class Scripted:
    """A worker that takes its rates from a list and fails where there is none."""

    def __init__(self, *rates: float | None) -> None:
        self._rates = iter(rates)

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        rate = next(self._rates)
        if rate is None:
            raise WorkerError("it broke")
        return {"done": rate, "seconds": 1.0}


def _contest(floor: Scripted, rounds: int, **lanes: Scripted) -> module.Outcome:
    return contest(floor, lanes, {}, rounds)


def test_rounds_around_which_the_floor_moved_do_not_count() -> None:
    outcome = _contest(
        Scripted(10, 10, 25, 25, 24),
        3,
        ours=Scripted(1, 20, 999, 30, 40),  # the first is the warm turn, the third belongs to the moved floor
        peer=Scripted(1, 10, 1, 10, 10),
    )
    assert outcome.rates == {"ours": [20, 30, 40], "peer": [10, 10, 10]}
    assert outcome.ratios("ours", "peer") == [2, 3, 4]
    assert outcome.floor == 24.5
    assert "1 rounds discarded" in outcome.story


def test_a_floor_that_never_rests_gives_no_result() -> None:
    with pytest.raises(WorkerError, match="the floor moved in 6 of 6 rounds"):
        _contest(Scripted(*[10, 30] * 4), 2, ours=Scripted(*[1] * 9))


def test_a_store_that_breaks_is_out_with_its_reason() -> None:
    outcome = _contest(
        Scripted(*[10] * 3), 2, ours=Scripted(1, 5, 5), peer=Scripted(1, 7, None), other=Scripted(1, 2, 2)
    )
    assert outcome.errors == {"peer": "it broke"}
    assert outcome.best(["peer", "other"]) == "other"
    assert outcome.ratios("ours", "peer") == []


def test_ids_are_asked_for_whole_or_by_number() -> None:
    assert wanted("M13c", ["M13"])
    assert wanted("M13c", ["M13c"])
    assert not wanted("M13c", ["M1"])
    assert not wanted("M10a", ["M1"])
    ids = [case.id for match in MATCHES for case in match.cases]
    assert len(set(ids)) == len(ids)
    assert sorted(["M10a", "M2", "M1", "E1"], key=_order) == ["E1", "M1", "M2", "M10a"]


@pytest.mark.parametrize("name", ["floor", "ours", "rocksdb", "lmdb", "sqlite", "redis"])
def test_a_real_store_takes_every_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "ours":
        pytest.importorskip("statepool.store")
    elif name != "floor" and python_of("store") is None:
        pytest.skip("the peers are not installed (make bench-setup ARGS=store)")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "CACHE", tmp_path)
    try:
        folder = fresh(name)
        with enter(name, folder) as worker:
            options = {"system": name, "folder": str(folder), "level": "power", "realtime": False}
            fill = "smallbank" if name in ("ours", "sqlite", "redis") else "empty"
            worker.load(fill=fill, size=200, **options)
            for case in _loads(name):
                assert worker.run({"seconds": 0.02, "seed": 1} | case)["done"] > 0
            if fill == "smallbank":
                worker.run({"load": "check"})
    except WorkerError as error:
        if "nothing written there is durable" in str(error) or "redis-server" in str(error):
            pytest.skip(str(error))
        raise


def _loads(name: str) -> list[dict[str, Any]]:
    every = [{"load": "put_one"}, {"load": "puts", "threads": 5}]
    if name != "floor":
        every += [
            {"load": "put_many", "batch": 1000},
            {"load": "get", "table": "main" if name == "ours" else "ordered"},
        ]
    if name in ("ours", "sqlite", "redis"):
        every.append({"load": "steps", "threads": 5})
    if name in ("ours", "redis"):
        every.append({"load": "queue", "batch": 4})
    return every
