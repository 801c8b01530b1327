"""M16: bytes that the device gets for a byte of the user, as the kernel counts them (``/proc/PID/io``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.duel import Worker, WorkerError
from bench.machine import LoadWatch
from bench.row import Row
from bench.store.cases import wanted
from bench.store.contest import enter, fresh
from bench.store.data import KEY, KEYS, VALUE

_PAIR = KEY + VALUE
_SINGLE: dict[str, Any] = {"load": "put_one", "seconds": 4.0}
_BATCH: dict[str, Any] = {"load": "put_many", "batch": 1000, "seconds": 4.0}


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows; large commits are counted once files are used again."""
    if not (wanted("M16a", only) or wanted("M16b", only)):
        return
    watch, found, missing = LoadWatch(), dict[str, tuple[float, float]](), ""
    for name in ("ours", "rocksdb"):
        try:
            found[name] = _measure(name, 0.25 if quick else 1.0)
        except WorkerError as error:
            missing = str(error)
    load, ours = watch.stop(), found.get("ours", (None, None))
    peers = found.get("rocksdb", (None, None))
    note = missing or f"pairs of {KEY} + {VALUE} bytes, {KEYS:,} keys; zeros, checkpoints and superblocks included"
    for identity, what, unit, target, place in (
        ("M16a", "bytes written to the device for a durable put alone", "bytes", 4100.0, 0),
        ("M16b", "bytes written to the device for a byte of the user, 1000 puts per commit", "x", 1.25, 1),
    ):
        yield Row(
            identity,
            what,
            unit,
            "lower",
            target,
            ours[place],
            peer="RocksDB, sync",
            peer_value=peers[place],
            peer_unit=unit,
            load=load,
            note=note,
            command=f"python -m bench store --only {identity}",
        )


def _measure(name: str, share: float) -> tuple[float, float]:
    """Bytes of a put alone; bytes per byte in large commits."""
    with ExitStack() as stack:
        folder = fresh(name)
        worker = stack.enter_context(enter(name, folder))
        worker.load(system=name, folder=str(folder), level="power", fill="kv", size=KEYS, realtime=False)
        single, batch = (case | {"seconds": case["seconds"] * share} for case in (_SINGLE, _BATCH))
        alone = _written(worker, single)
        worker.run(batch)
        return alone, _written(worker, batch) / _PAIR


def _written(worker: Worker, case: dict[str, Any]) -> float:
    """Bytes per pair."""
    io = Path(f"/proc/{worker.process.pid}/io")
    before = _bytes(io)
    done = int(worker.run(case)["done"])
    return (_bytes(io) - before) / done


def _bytes(io: Path) -> int:
    fields = dict(line.split(": ") for line in io.read_text().splitlines())
    return int(fields["write_bytes"])
