"""M6 to M9: what each mechanism of AsymNVM buys, and what readers pay for a writer.

M6 and M8 run the shipped front-end over a simulated port with the timing of RDMA and non-volatile memory: a model to
compare mechanisms by, not a measurement of a network. Its arms are switches of the same code.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from bench.machine import LoadWatch
from bench.row import Row
from bench.store.cases import wanted
from bench.store.contest import FOLDER

_KINDS = {
    "hash table": 1,
    "B+tree": 2,
    "skip list": 3,
    "BST": 4,
    "MV-BST": 5,
    "MV-B+tree": 6,
    "stack": 7,
    "queue": 8,
}
_MIXES = (100, 50, 10)
"""Percent of operations that write."""
_ARMS = {
    "naive": (False, False, False),
    "R": (True, False, False),
    "RC": (True, True, False),
    "RCB": (True, True, True),
}
_APPEND = 2300
"""Simulated ns of one durable record: a round trip and a write (sim_port.h). No arm of a durable store has less."""
_READ = 2120
"""Simulated ns of one page that is read remotely (sim_port.h)."""
_PAGES, _ROOM = 200_000, 20_000
_SKEWS = (0.9, 0.99)
_WRITER = """
import random, sys, time
import statepool.store
store = statepool.store.open(sys.argv[1], durability="process", capacity="256MiB")
table, value = store.dict("d"), b"v" * 128
keys = [b"key%013d" % i for i in range(100_000)]
table.update((key, value) for key in keys)
draw = random.Random(1)
chosen = [draw.choice(keys) for _ in range(100_000)]
print("ready", flush=True)
sys.stdin.readline()
end, done, i = time.monotonic() + float(sys.argv[2]), 0, 0
while time.monotonic() < end:
    for _ in range(100):
        key = chosen[i % 100_000]
        i += 1
        if i % 10 == 0:
            table[key] = value
        else:
            table.get(key)
    done += 100
print(done, flush=True)
sys.stdin.readline()
"""


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows."""
    if wanted("M6a", only) or wanted("M6b", only):
        yield from _ablation(50_000 if quick else 200_000, 10_000 if quick else 50_000)
    if wanted("M7a", only) or wanted("M7b", only):
        yield from _cache(100_000 if quick else 1_000_000)
    if wanted("M8", only):
        yield _allocator(20_000 if quick else 100_000)
    if wanted("M9", only):
        yield _readers(1.0 if quick else 5.0)


def _arm(kind: int, arm: tuple[bool, bool, bool], items: int, operations: int, mix: int) -> dict[str, int]:
    from statepool.native import _store

    measured: dict[str, int] = _store.ablation(kind, *arm, items, operations, mix, 0.99, 0.1, 1)
    return measured


def _ablation(items: int, operations: int) -> Iterator[Row]:
    watch, ratios, bounds, table = LoadWatch(), {}, {}, []
    for name, kind in _KINDS.items():
        for mix in _MIXES:
            arms = {arm: _arm(kind, switches, items, operations, mix) for arm, switches in _ARMS.items()}
            if len({(arm["found"], arm["size"]) for arm in arms.values()}) != 1:
                raise AssertionError(f"{name}: the arms disagree about what is in it")
            naive = arms["naive"]["simulated_ns"]
            ratios[name, mix] = naive / arms["RCB"]["simulated_ns"]
            bounds[name, mix] = naive / (arms["RCB"]["appends"] * _APPEND)
            steps = " / ".join(f"{naive / arms[arm]['simulated_ns']:.1f}" for arm in ("R", "RC", "RCB"))
            table.append(f"{name} {mix} % writes: {steps}")
    load = watch.stop()
    note = (
        f"{items:,} items, {operations:,} operations after as many to warm up, Zipf 0.99, cache of 10 %; the bound is "
        "one durable record per write and nothing else; R / RC / RCB over naive: " + "; ".join(table)
    )
    for identity, choose, target, what in (
        ("M6a", min, 6.0, "the structure and mix that gain least"),
        ("M6b", max, 22.0, "the structure and mix that gain most"),
    ):
        key = choose(ratios, key=lambda k: ratios[k])
        yield Row(
            identity,
            f"simulated: operation log, cache and batches against the naive port; {what}",
            "x",
            "higher",
            target,
            ratios[key],
            own=f"{key[0]}, {key[1]} % writes",
            peer="the same code, naive arm",
            limit=ratios[key] / bounds[key],
            load=load,
            note=note if identity == "M6a" else "",
        )


def _cache(reads: int) -> Iterator[Row]:
    from statepool.native import _store

    watch, above, faster, notes = LoadWatch(), [], [], []
    for skew in _SKEWS:
        trace = page_trace(reads, skew, 1)
        (misses, ns), (of_lru, ns_of_lru) = (
            min((_store.cache_trace(trace.tobytes(), _ROOM, lru) for _ in range(3)), key=lambda found: found[1])
            for lru in (False, True)
        )
        above.append(100 * (misses - of_lru) / reads)
        faster.append((ns_of_lru + of_lru * _READ) / (ns + misses * _READ))
        hybrid, by_chance = (sampled_misses(trace, _ROOM, sample) for sample in (32, 1))
        shares = [f"{100 * found / reads:.1f}" for found in (misses, of_lru, hybrid, by_chance)]
        notes.append(f"Zipf {skew}: " + " / ".join(shares))
        notes.append(f"a look-up {ns / reads:.0f} ns, of the LRU {ns_of_lru / reads:.0f}")
    load = watch.stop()
    what = f"simulated: {_PAGES:,} pages, a cache of a tenth, Zipf 0.9 and 0.99, the worse one:"
    note = "misses in % of ours (SIEVE) / LRU / the paper's hybrid, oldest of 32 / random: " + "; ".join(notes)
    yield Row("M7a", f"{what} misses above those of LRU", "points", "lower", 1.0, max(above), load=load, note=note)
    yield Row(
        "M7b", f"{what} reads per second, misses read remotely", "x", "higher", 1.5, min(faster), peer="LRU", load=load
    )


def page_trace(reads: int, skew: float, seed: int) -> array[int]:
    """Numbers of pages, Zipf-distributed and scattered."""
    draw = random.Random(seed)
    scattered = draw.sample(range(_PAGES), _PAGES)
    weights = list(accumulate(rank**-skew for rank in range(1, _PAGES + 1)))
    return array("I", draw.choices(scattered, cum_weights=weights, k=reads))


def sampled_misses(trace: Sequence[int], room: int, sample: int) -> int:
    """Misses when the least recently used of ``sample`` random pages goes (1: any page)."""
    draw, places, pages, used, misses = random.Random(1), dict[int, int](), list[int](), list[int](), 0
    for now, page in enumerate(trace):
        at = places.get(page)
        if at is None:
            misses += 1
            if len(pages) < room:
                at = len(pages)
                pages.append(page)
                used.append(now)
            else:
                at = min((int(draw.random() * room) for _ in range(sample)), key=used.__getitem__)
                del places[pages[at]]
                pages[at] = page
            places[page] = at
        used[at] = now
    return misses


def _allocator(objects: int) -> Row:
    from statepool.native import _store

    watch = LoadWatch()
    slow, fast = (_store.allocations(slabs, objects, 1)["simulated_ns"] for slabs in (False, True))
    return Row(
        "M8",
        "simulated: objects of 64 B to 4 KiB from the two-tier allocator against one call each",
        "x",
        "higher",
        20.0,
        slow / fast,
        own=f"{fast / objects:.0f} ns each",
        peer="one call each",
        peer_value=round(slow / objects),
        peer_unit="ns",
        load=watch.stop(),
    )


def _readers(seconds: float) -> Row:
    import statepool.store

    folder = FOLDER / "readers"
    watch = LoadWatch()
    command = [sys.executable, "-c", _WRITER, str(folder), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdout.readline()
        with statepool.store.open(folder, mode="read") as store:
            table = store.dict("d")
            alone, _ = _read(store, table, seconds)
            writer.stdin.write("go\n")
            writer.stdin.flush()
            beside, retries = _read(store, table, seconds * 0.9)
            written = int(writer.stdout.readline()) / seconds
        writer.stdin.write("end\n")
        writer.stdin.flush()
    return Row(
        "M9",
        "a reader beside a writer of 10 %: reads that had to be repeated",
        "%",
        "lower",
        0.5,
        100 * retries,
        own=f"{beside:,.0f} reads/s, {100 * beside / alone:.0f} % of those without the writer's work",
        peer="paper (6 readers)",
        peer_value=3.0,
        peer_unit="%",
        load=watch.stop(),
        note=f"the writer did {written:,.0f} operations/s; two processes on two cores",
    )


def _read(store: Any, table: Any, seconds: float) -> tuple[float, float]:
    """Reads per second, and the share of them that was repeated."""
    keys = [b"key%013d" % (i * 7919 % 100_000) for i in range(100_000)]
    before, done, started = store.native.retries, 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for key in keys[done % 100_000 : done % 100_000 + 1000]:
            table.get(key)
        done += 1000
    return done / (time.perf_counter() - started), (store.native.retries - before) / done
