"""Opening a log: what its changes lead to, linked at once, is what they made one after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.vector.synthetic import clustered, distances

from statepool.vector import Index, open  # noqa: A004 - the name users know from files
from statepool.vector.native import core

K = 10


@pytest.mark.parametrize("dim", [8, 64])
def test_rows_linked_at_once_are_all_reachable_and_stay_so(dim: int) -> None:
    # Noise of many dimensions: what a build leaves unlinked is most there.
    rows = np.random.default_rng(dim).normal(size=(4000, dim)).astype(np.float32)
    live = core.LiveSegment(dim, 0, 0, 16, 10_000, 40, 1.2)
    live.fill(rows[:3000], np.arange(3000, dtype=np.uint64), 2)
    assert live.unreachable() == 0
    assert len(live.search(rows[0], 3000, 3000, 1, 0, 0, 8, 0)[0]) == 3000
    live.erase(np.arange(0, 3000, 3, dtype=np.uint64))
    assert live.repair() == 1000
    assert live.unreachable() == 0
    live.add(rows[3000:], np.arange(3000, 4000, dtype=np.uint64), live.take(1000))
    assert live.unreachable() == 0
    found = live.search(rows[0], 4000, 4000, 1, 0, 0, 8, 0)[0]
    assert set(found.tolist()) == {one for one in range(4000) if one % 3 or one >= 3000}


def test_a_segment_is_filled_once_and_by_sound_rows() -> None:
    live = core.LiveSegment(4, 1, 0, 16, 100, 40, 1.2)
    with pytest.raises(ValueError, match="row 1 is zero"):
        live.fill(np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.float32), np.arange(2, dtype=np.uint64), 1)
    live = core.LiveSegment(4, 1, 0, 16, 100, 40, 1.2)
    live.fill(np.eye(4, dtype=np.float32), np.arange(4, dtype=np.uint64), 1)
    with pytest.raises(RuntimeError, match="has rows already"):
        live.fill(np.eye(4, dtype=np.float32), np.arange(4, 8, dtype=np.uint64), 1)


@pytest.mark.parametrize("metric", ["l2", "cos", "ip"])
def test_a_replayed_log_holds_what_its_changes_made(metric: str, tmp_path: Path) -> None:
    rows, queries = clustered(6000, 24, 40)
    index = Index(24, metric, R=16, build_window=60, columns={"step": "i64", "kind": "str"})
    index.build(rows[:1000], columns={"step": [-1] * 1000, "kind": ["base"] * 1000})
    path = tmp_path / "one.index"
    index.save(path)
    model = {one: (rows[one], -1, "base") for one in range(1000)}
    rng = np.random.default_rng(7)
    with open(path, "rw", durability="process") as live:
        for step in range(60):
            there = np.array(sorted(model))
            some = rng.choice(there, 40, replace=False)
            fresh = rng.choice(np.setdiff1d(np.arange(3000), there), 60, replace=False)
            vectors = rows[rng.choice(6000, 100, replace=False)]
            live.update(some, vectors[:40], columns={"step": [step] * 40, "kind": [f"new {step % 7}"] * 40})
            live.add(vectors[40:], fresh, columns={"step": [step] * 60, "kind": ["add"] * 60})
            model |= {int(one): (v, step, f"new {step % 7}") for one, v in zip(some, vectors[:40], strict=True)}
            model |= {int(one): (v, step, "add") for one, v in zip(fresh, vectors[40:], strict=True)}
            gone = rng.choice(np.array(sorted(model)), 50, replace=False)
            live.delete(gone)
            for one in gone.tolist():
                del model[one]
    ids = np.array(sorted(model))
    vectors = np.stack([model[one][0] for one in ids.tolist()])
    for mode in ("r", "rw"):
        again = open(path, mode)
        assert again.ids().tolist() == ids.tolist()
        np.testing.assert_allclose(again.get(ids), index_of(metric, vectors), rtol=1e-5, atol=1e-6)
        # By distance: some rows are there under several ids.
        truth = np.sort(distances(metric, vectors, queries), axis=1)[:, :K]
        exact = np.stack([again.exact(query, K).distances for query in queries])
        np.testing.assert_allclose(exact, truth, rtol=1e-4, atol=1e-5)
        near = np.stack([again.search(query, K, 80).distances for query in queries])
        assert (near <= truth[:, -1:] * (1 + 1e-4 * np.sign(truth[:, -1:])) + 1e-5).mean() > 0.97
        for chosen, wanted in (
            ({"step": {"ge": 55}}, [one for one in ids.tolist() if model[one][1] >= 55]),
            ({"kind": "new 3"}, [one for one in ids.tolist() if model[one][2] == "new 3"]),
        ):
            assert sorted(again.exact(queries[0], 10_000, filter=chosen).ids.tolist()) == wanted
        assert again.stats()["dead"] == 0, "what was replaced or deleted is not linked at all"
        if mode == "rw":
            again.add(rows[:1], [5000], columns={"step": [99], "kind": ["late"]})
            assert again.exact(queries[0], 1, filter={"step": 99}).ids.tolist() == [5000]
            again.close()


def index_of(metric: str, vectors: np.ndarray) -> np.ndarray:
    """Rows as an index answers them."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cos" else vectors
