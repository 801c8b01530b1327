"""M6, M8 and M9: what each mechanism of AsymNVM buys, and what readers pay for a writer.

M6 and M8 run the shipped front-end over a simulated port with the timing of RDMA and non-volatile memory: a model to
compare mechanisms by, not a measurement of a network. Its arms are switches of the same code.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
        yield from _ablation(50_000 if quick else 200_000, 10_000 if quick else 20_000)
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
    least = min(bounds, key=lambda k: bounds[k])
    note = (
        f"{items:,} items, Zipf 0.99, cache of 10 %; with one durable record per write and nothing else, {least[0]}, "
        f"{least[1]} % writes, would gain {bounds[least]:.1f}; R / RC / RCB over naive: " + "; ".join(table)
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
            load=load,
            note=note if identity == "M6a" else "",
        )


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
