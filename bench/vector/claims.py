"""Rows without a peer: memory, precision, determinism, and rows that are added while others search."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import LoadWatch
from bench.row import Row
from bench.vector import data

K, WIDTH = 10, 110
AGAIN = "import sys; from bench.vector.claims import again; print(again(sys.argv[1]))"


Measure = Callable[[bool], Iterator[Row]]


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The wanted rows; ``quick`` takes fewer runs and rows."""
    rows = {"V10": _bytes, "V11": _writers, "V12": _acked, "V17": _precision, "V20": _same}
    yield from measured(rows, wanted, quick)


def measured(measures: dict[str, Measure], wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The wanted rows of ``measures``, each with its load and command; none where data is missing."""
    for name, measure in measures.items():
        if not wanted(name):
            continue
        watch = LoadWatch()
        try:
            rows = list(measure(quick))
        except data.Missing as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        load = watch.stop()
        for row in rows:
            row.load, row.command = load, f"python -m bench vector --only {name}"
            yield row


@cache
def built(dtype: str, sealed: bool, count: int) -> Any:
    """Ours over the first rows of ``mini``, made once for all measures that want it."""
    from statepool.vector import Index

    rows = data.load("mini")[0][:count]
    index = Index(rows.shape[1], "cos", dtype)  # type: ignore[arg-type]
    index.build(rows)
    if sealed:
        index.seal()
    return index


def _recall(index: Any, truth: np.ndarray, queries: np.ndarray, width: int = WIDTH, threads: int = 1) -> float:
    found = [index.search(query, K, width, threads=threads).ids for query in queries]
    return sum(len(np.intersect1d(ids, best)) for ids, best in zip(found, truth, strict=True)) / truth.size


def _truth(count: int, quick: bool) -> tuple[np.ndarray, np.ndarray]:
    rows, queries, truth = data.load("mini")
    queries, truth = queries[: 200 if quick else 1000], truth[: 200 if quick else 1000, :K]
    if count < len(rows):
        scores = queries @ rows[:count].T
        truth = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return queries, truth


def _bytes(quick: bool) -> Iterator[Row]:
    count = 5000 if quick else 20_000
    # The peers' figures for 384 dimensions: hnswlib adds 9 % to raw rows, RaBitQ's quantised graph is 2.2 times them.
    for dtype, sealed, target in (("f32", False, 1.09), ("i8", True, 2.2)):
        stats = built(dtype, sealed, count).stats()
        raw = 4 * stats["dim"] * count
        total = stats["vector_bytes"] + stats["link_bytes"] + stats["code_bytes"]
        name = f"{dtype}{' sealed' if sealed else ''}"
        yield Row(
            f"V10-{name.replace(' ', '-')}", f"bytes of an index over those of its raw float32 rows ({name})", "x",
            "lower", target, total / raw, f"{total / count:.0f} bytes a row", peer_value=4.0 * stats["dim"],
            peer="raw rows", peer_unit="bytes a row",
        )  # fmt: skip


def _writers(quick: bool) -> Iterator[Row]:
    """Every row must come back from a search that keeps all of them as candidates."""
    from statepool.vector import LiveIndex

    runs, count, writers, lost = 2 if quick else 20, 10_000, 8, 0
    for seed in range(runs):
        rows = np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)
        index = LiveIndex(32, "l2", R=16, build_window=40)

        def write(part: int, index: Any = index, rows: np.ndarray = rows) -> None:
            for first in range(part * 50, count, writers * 50):
                index.add(rows[first : first + 50], range(first, first + 50))

        threads = [threading.Thread(target=write, args=(part,)) for part in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lost += count - len(index.search(rows[0], count, count).ids)
    what = f"rows that no search reaches after {writers} writers added 10,000 at once, {runs} runs"
    yield Row("V11", what, "rows", "lower", 0, lost, f"{lost} of {runs * count}")


def _acked(quick: bool) -> Iterator[Row]:
    """A search that starts after ``add`` returned must find what was added."""
    from statepool.vector import LiveIndex

    base, more = 10_000, 500 if quick else 3000
    rows = data.load("mini")[0]
    index = LiveIndex.over(built("f32", False, base))
    acked, seen, done = [base], [], threading.Event()

    def search() -> None:
        random = np.random.default_rng(0)
        while not done.is_set():
            one = int(random.integers(base, acked[0])) if acked[0] > base else 0
            seen.append(one in index.search(rows[one], 1, WIDTH).ids)

    searcher = threading.Thread(target=search)
    searcher.start()
    found = 0
    for first in range(base, base + more, 10):
        index.add(rows[first : first + 10], range(first, first + 10))
        acked[0] = first + 10
        found += first + 9 in index.search(rows[first + 9], 1, WIDTH).ids
    done.set()
    searcher.join()
    share = (found + sum(seen)) / (more // 10 + len(seen))
    what = "share of rows added beside a searching thread that the next search finds"
    yield Row("V12", what, "", "higher", 0.98, share, f"{len(seen)} searches beside {more} additions")


def _precision(quick: bool) -> Iterator[Row]:
    count = 5000 if quick else 20_000
    queries, truth = _truth(count, quick)
    for dtype, sealed in (("f16", False), ("i8", False), ("f32", True), ("i8", True)):
        recall = _recall(built(dtype, sealed, count), truth, queries, 220)
        name = f"{dtype}{'-sealed' if sealed else ''}"
        what = f"recall at 10 against exact float32, ef 220, {count} rows ({name})"
        yield Row(f"V17-{name}", what, "", "higher", 0.99, recall, f"{recall:.4f}")


def again(path: str) -> str:
    """What one thread answers, as a hash, from the file of an index."""
    from statepool import vector

    index, digest = vector.open(path), hashlib.sha256()
    for query in data.load("mini")[1][:200]:
        found = index.search(query, K, WIDTH)
        digest.update(found.ids.tobytes() + found.distances.tobytes())
    return digest.hexdigest()


def _same(quick: bool) -> Iterator[Row]:
    count = 5000 if quick else 20_000
    index = built("f32", True, count)
    queries, truth = _truth(count, quick)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.index"
        index.save(path)
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-c", AGAIN, str(path)]
        others = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=root) for _ in range(3)]
        different = len({other.stdout.strip() for other in others} | {again(str(path))}) - 1
    yield Row("V20-bits", "processes whose one-threaded answers differ in a bit, of 4", "", "lower", 0, different)
    found = [_recall(index, truth, queries, threads=2) for _ in range(3 if quick else 20)]
    alone = _recall(index, truth, queries)
    spread = 100 * max(abs(one - alone) for one in found)
    what = f"points of recall between one thread and two, worst of {len(found)} runs"
    yield Row("V20-recall", what, "points", "lower", 0.2, spread, f"{alone:.4f} with one")
