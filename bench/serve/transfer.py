"""Rows A9 to A11: blocks between processes, by the pool, a bare socket, a bare copy and Mooncake's engine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.duel import Result, Worker, WorkerError, duel
from bench.machine import LoadWatch
from bench.peers.setup import python_of
from bench.row import Row

MIB = 1 << 20


def run(wanted: Callable[[str], bool], quick: bool) -> Iterator[Row]:
    """The wanted rows; ``quick`` takes two pairs."""
    pairs, log = (2 if quick else 9), Path(tempfile.gettempdir()) / "statepool-bench-transfer.log"
    if wanted("A9"):
        yield from _same_host(pairs, log)
    if wanted("A10"):
        yield from _sockets(pairs, log)
    if wanted("A11"):
        yield from _store(pairs, log)


def _pool(kind: str, block: int, count: int, log: Path, connections: int = 1) -> Worker:
    worker = Worker(kind, Path(sys.executable), "pool.py", log, 2)
    worker.load(kind=kind, block=block, count=count, connections=connections)
    return worker


def _same_host(pairs: int, log: Path) -> Iterator[Row]:
    """16 MiB between two processes of one machine, verified, against the transfer engine and against one copy."""
    block, count, case = 16 * MIB, 8, {"what": "load", "repeats": 2}
    what = "16 MiB blocks from another process of this machine over 2 connections, with the checksum verified"
    watch = LoadWatch()
    row = Row("A9a", what, "x", "higher", 5.0, peer="Mooncake transfer engine, TCP, no checksum", peer_unit="GB/s")
    share = Row("A9b", f"{what}, against one bare copy", "x", "higher", 0.6, peer="numpy copy", peer_unit="GB/s")
    with _pool("unix", block, count, log, 2) as ours:
        with _pool("copy", block, count, log) as copy:
            _fill(share, duel(ours, copy, case, pairs))
        python = python_of("serve")
        if python is None:
            row.note = "the peer is not installed: python -m bench.peers.setup serve"
        else:
            try:
                with Worker("mooncake", python, "mooncake_te.py", log, 2) as peer:
                    peer.load(block=block, count=count)
                    _fill(row, duel(ours, peer, case, pairs))
                    row.limit = share.value
            except WorkerError as error:
                row.note = str(error)
    load = watch.stop()
    for each in (row, share):
        each.load, each.command = load, "python -m bench serve --only A9"
        yield each


def _sockets(pairs: int, log: Path) -> Iterator[Row]:
    """Blocks over TCP, verified, against a bare blocking socket; both on the loopback."""
    for name, block, count, connections, target in (("A10a", 256 << 10, 4, 1, 1.0), ("A10b", 4 * MIB, 4, 2, 1.3)):
        watch = LoadWatch()
        what = (
            f"{block * count // MIB} MiB over TCP ({connections} connections) in blocks of {block >> 10} KiB, verified"
        )
        row = Row(name, what, "x", "higher", target, peer="bare socket, no checksum", peer_unit="GB/s")
        case = {"what": "load", "repeats": 200 * MIB // (block * count)}
        with _pool("tcp", block, count, log, connections) as ours, _pool("socket", block, count, log) as bare:
            _fill(row, duel(ours, bare, case, pairs))
        row.load, row.command = watch.stop(), "python -m bench serve --only A10"
        yield row


def _store(pairs: int, log: Path) -> Iterator[Row]:
    """Blocks of 1 MiB given to a node and taken from it, verified, against Mooncake's store, each as it is fastest."""
    block, count = MIB, 32
    python = python_of("serve")
    cases = (
        ("A11a", "given to the pool one by one", "save", 1, 8.0),
        ("A11b", "given in batches of 32", "save", 32, 8.0),
        ("A11c", "taken from the pool one by one", "load", 1, 3.0),
        ("A11d", "taken in batches of 32", "load", 32, 3.0),
    )
    watch = LoadWatch()
    peer_name = "Mooncake store, TCP, registered memory"
    rows = [
        Row(name, f"blocks of 1 MiB, verified, {what}{over}", "x", "higher", target, peer=peer_name, peer_unit="GB/s")
        for name, what, _, batch, target in cases
        for over in (" over 2 connections" if batch > 1 else "",)
    ]
    if python is None:
        for row in rows:
            row.note = "the peer is not installed: python -m bench.peers.setup serve"
    else:
        try:
            with (
                _pool("unix", block, count, log, 2) as ours,
                Worker("mooncake", python, "mooncake_store.py", log, 2) as peer,
            ):
                peer.load(block=block, count=count)
                for row, (_, _, what, batch, _) in zip(rows, cases, strict=True):
                    _fill(row, duel(ours, peer, {"what": what, "repeats": 4, "batch": batch}, pairs))
        except WorkerError as error:
            for row in rows:
                row.note = row.note or str(error)
    load = watch.stop()
    for row in rows:
        row.load, row.command = load, "python -m bench serve --only A11"
        yield row


def _fill(row: Row, result: Result) -> None:
    row.value, row.own = result.ratio, f"{result.ours / 1e9:.3g} GB/s"
    row.peer_value = None if result.theirs is None else result.theirs / 1e9
    row.note = f"spread {result.spread:.0%}"
