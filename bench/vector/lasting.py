"""V13 to V16: rows that come and go, files that are damaged, processes that are killed, and searches under filters."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.row import Row
from bench.vector import data
from bench.vector.claims import measured

K, WIDTH = 10, 80
SHARES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0)
WRITER = """
import sys
import numpy as np
import statepool.vector as vector
rows = np.load(sys.argv[2])
with vector.open(sys.argv[1], "rw", durability="process") as index:
    first = int(index.ids().max()) + 1
    print("open", flush=True)
    for one in range(first, first + 1_000_000, 5):
        index.add(rows[np.arange(one, one + 5) % len(rows)], range(one, one + 5))
        print(one + 4, flush=True)
        if one % 200 == first % 200 and one > first:
            index.compact()
"""


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The wanted rows; ``quick`` takes fewer runs and rows."""
    rows = {"V13": _turnover, "V14": _damage, "V15": _kills, "V16": _filters}
    yield from measured(rows, wanted, quick)


def _recall(index: Any, queries: np.ndarray, width: int) -> float:
    hits = 0
    for query in queries:
        hits += len(np.intersect1d(index.search(query, K, width).ids, index.exact(query, K).ids))
    return hits / K / len(queries)


def _turnover(quick: bool) -> Iterator[Row]:
    from statepool.vector import LiveIndex

    count, times = (1000, 5) if quick else (3000, 20)
    rows, queries, _ = data.load("mini")
    queries = queries[: 100 if quick else 500]
    index = LiveIndex(rows.shape[1])
    index.add(rows[:count], range(count))
    dice, at = np.random.default_rng(0), count
    now = rows[:count].copy()
    for turn in range(1, times + 1):
        for chosen in np.array_split(dice.permutation(count), count // 100):
            fresh = rows[np.arange(at, at + len(chosen)) % len(rows)]
            at += len(chosen)
            index.delete(chosen[::2])
            index.add(fresh[::2], chosen[::2])
            index.update(chosen[1::2], fresh[1::2])
            now[chosen] = fresh
        if turn not in (5, 20):
            continue
        new = LiveIndex(rows.shape[1])
        new.add(now, range(count))
        wanted = {width: _recall(new, queries, width) for width in (20, 40)}
        falls = {}
        for when in (f"{index.stats()['dead']} deleted rows in the graph", "just repaired"):
            falls |= {f"ef {w}, {when}": 100 * (best - _recall(index, queries, w)) for w, best in wanted.items()}
            index.repair()
        text = "; ".join(f"{which}: {fall:.2f}" for which, fall in falls.items())
        what = f"points of recall at 10 lost after all {count} rows were replaced {turn} times, against a fresh index"
        yield Row(f"V13-{turn}x", what, "points", "lower", 0.5, max(falls.values()), text)


def _damage(quick: bool) -> Iterator[Row]:
    from statepool.vector import Index, IndexCorruptError, open, verify  # noqa: A004 - its name there
    from statepool.vector.errors import InvalidRequest

    count, dice = 50 if quick else 500, random.Random(0)
    rows = data.load("mini")[0][:2000]
    index = Index(rows.shape[1])
    index.build(rows)
    index.seal()
    silent: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.index"
        index.save(path)
        raw = path.read_bytes()
        for _ in range(count):
            bad, how = bytearray(raw), dice.choice(["flip", "zero", "ones", "cut", "head"])
            at, size = dice.randrange(len(raw)), dice.choice([1, 64, 4096])
            if how == "flip":
                bad[at] ^= 1 << dice.randrange(8)
            elif how == "head":
                bad[dice.randrange(4096)] ^= 1 << dice.randrange(8)
            elif how == "cut":
                del bad[at:]
            else:
                bad[at : at + size] = (b"\0" if how == "zero" else b"\xff") * len(bad[at : at + size])
            if bad == raw:
                continue
            path.write_bytes(bad)
            try:
                found = verify(path)
                if found.ok:
                    silent.append(how)
                open(path, verify="full")
            except (IndexCorruptError, InvalidRequest):
                continue
            silent.append(how)
    what = f"of {count} random corruptions of an index file, those that nothing noticed"
    yield Row("V14", what, "files", "lower", 0, len(silent), f"{len(silent)} of {count}")


def _kills(quick: bool) -> Iterator[Row]:
    from statepool.vector import Index, open  # noqa: A004 - its name there

    kills, dice, lost, acked = 10 if quick else 200, random.Random(0), 0, 0
    rows = data.load("mini")[0][:2000, :64]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.index"
        index = Index(64, R=16, build_window=40)
        index.build(rows[:200])
        np.save(Path(folder) / "rows.npy", rows)
        known = 200
        for kill in range(kills):
            if kill % 20 == 0:  # small again, so that most of the time goes into writing and not into compactions
                index.save(path)
                known = 200
            command = [sys.executable, "-c", WRITER, str(path), f"{folder}/rows.npy"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                assert writer.stdout is not None, "its output is a pipe"
                writer.stdout.readline()
                time.sleep(dice.uniform(0, 0.3))
                writer.send_signal(signal.SIGKILL)
                said = [int(line) for line in writer.stdout if line.endswith("\n")]
            known = max([known, *(one + 1 for one in said)])
            started = time.perf_counter()
            again = open(path)
            seconds.append(time.perf_counter() - started)
            there = again.ids()
            wrong = [one for one in range(known) if one not in again]
            if not wrong:
                wanted = rows[np.arange(known) % len(rows)]
                found = again.get(range(known))
                wrong = np.flatnonzero(np.abs(found - wanted / np.linalg.norm(wanted, axis=1)[:, None]).max(1) > 1e-5)
            lost, acked, known = lost + len(wrong), acked + len(said) * 5, int(there.max()) + 1
    own = f"{lost} of {acked}, reopened in {np.median(seconds) * 1e3:.0f} ms"
    yield Row("V15", f"acknowledged rows lost or changed by {kills} kills while rows were added and compacted", "rows",
              "lower", 0, lost, own)  # fmt: skip


@cache
def _columned(count: int) -> tuple[Any, np.ndarray, np.ndarray]:
    from statepool.vector import Index

    rows = data.load("mini")[0][:count]
    dice = np.random.default_rng(0).permutation(count)
    index = Index(rows.shape[1], columns={"any": "i64", "near": "f64"})
    index.build(rows, columns={"any": dice, "near": rows[:, 0].astype(float)})
    return index, rows, dice


def _filters(quick: bool) -> Iterator[Row]:
    """``apart``: nothing to do with the vectors; ``near`` and ``far``: rows that lie as the query does, or do not."""
    count = 5000 if quick else 50_000
    index, rows, dice = _columned(count)
    queries = data.load("mini")[1][: 50 if quick else 200]
    near, scores = rows[:, 0].astype(float), queries @ rows.T
    ranked = np.sort(near)

    def passing(kind: str, share: float, query: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        wanted = round(share * count)
        if kind == "apart":
            return {"any": {"lt": wanted}}, dice < wanted
        at = int(np.clip(np.searchsorted(ranked, query[0]) - wanted // 2, 0, count - max(1, wanted)))
        low, high = float(ranked[at]), float(ranked[at + max(1, wanted) - 1])
        if kind == "near":
            return {"near": {"ge": low, "le": high}}, (near >= low) & (near <= high)
        cut = float(ranked[wanted - 1] if query[0] > np.median(ranked) else ranked[count - wanted])
        if query[0] > np.median(ranked):
            return {"near": {"le": cut}}, near <= cut
        return {"near": {"ge": cut}}, near >= cut

    def least(ask: Callable[[np.ndarray], Any]) -> float:
        spent = np.full((3, len(queries)), np.inf)
        for repeat in range(3):
            for number, query in enumerate(queries):
                at = time.perf_counter_ns()
                ask(query)
                spent[repeat, number] = time.perf_counter_ns() - at
        return float(spent.min(axis=0).mean())

    worst, slowest, texts, short = 1.0, 0.0, [], 0
    for kind in ("apart", "near", "far"):
        for share in SHARES:
            if kind != "apart" and share in (0.0, 1.0):
                continue
            chosen = {query.tobytes(): passing(kind, share, query) for query in queries}
            hits = total = 0
            for number, query in enumerate(queries):
                wanted, allowed = chosen[query.tobytes()]
                found = index.search(query, K, WIDTH, filter=wanted)
                places = np.flatnonzero(allowed)
                best = places[np.argsort(-scores[number, places], kind="stable")[:K]]
                short += len(found.ids) != len(best)
                hits, total = hits + len(np.intersect1d(found.ids, best)), total + len(best)
            # One filter for all queries: its rows are counted once.
            free = least(lambda query: index.search(query, K, WIDTH))
            one = chosen[queries[0].tobytes()][0]
            asked = least(lambda query, one=one: index.search(query, K, WIDTH, filter=one))
            recall = hits / max(1, total)
            worst, slowest = min(worst, recall if total else 1.0), max(slowest, asked / free)
            texts.append(f"{kind} {share:.1%}: {recall if total else 1:.3f}, {asked / free:.2f}x")
    note = "; ".join(texts)
    what = f"recall at 10 under filters that 100 to 0.1 % of {count} rows pass, worst"
    yield Row("V16-recall", what, "", "higher", 0.95, worst, f"{worst:.3f}", note=note)
    yield Row("V16-rows", "searches under a filter with fewer than min(k, matches) rows", "searches", "lower", 0, short)
    what = "latency under a filter that was there before, over none, worst"
    yield Row("V16-latency", what, "x", "lower", 2.0, slowest, f"{slowest:.2f}x", note=note)
