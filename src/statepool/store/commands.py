"""``statepool store …``: look into a store, check it, measure it, cut its power on a simulated disk, serve it."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import statepool.store
from statepool.core.command import adder, run
from statepool.core.errors import InvalidRequest, NotFound
from statepool.store.native import Kind, core
from statepool.store.net import commands as net
from statepool.store.selfbench import measure

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run a command; returns 0, 1 if what was checked is wrong, 2 for what a user can repair."""
    return run("statepool store", parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    tree = argparse.ArgumentParser(prog="statepool store", description="Durable shared structures.")
    command = adder(tree)
    for name, text, what in (
        ("status", "figures of a store and its structures", _status),
        ("dump", "all entries of a store, a JSON object a line", _dump),
        ("fsck", "open a store as after a crash and walk all of it", _fsck),
    ):
        place = "the store's folder" if what is _fsck else "the store's folder, or the address of its daemon"
        command(name, text, what).add_argument("path", help=place)
    net.add(command)
    crash = command("crashtest", "cut the power at every point of drawn histories on a simulated disk", _crashtest)
    crash.add_argument("--seed", type=int, default=0, help="first history (default 0)")
    crash.add_argument("--histories", type=int, default=10, help="how many (default 10)")
    crash.add_argument("--operations", type=int, default=30, help="length of each (default 30)")
    bench = command("bench", "rates of the disk and of a temporary store on it", _bench)
    bench.add_argument("path", type=Path, nargs="?", default=Path(), help="a folder on the disk (default: this one)")
    bench.add_argument("--seconds", type=float, default=1.0, help="for each measurement (default 1)")
    bench.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return tree


def _open(path: str) -> statepool.store.Store:
    """As a reader beside the process that has it, as its owner if none has, or through its daemon."""
    if "://" in path:
        return statepool.store.open(path)
    try:
        return statepool.store.open(path, mode="read")
    except NotFound:
        return statepool.store.open(path, create=False)


def _status(options: argparse.Namespace) -> int:
    with _open(options.path) as store:
        for name, value in store.stat().items():
            print(f"{name:16} {value}")
        for name, identity, kind in store.native.structures():
            print(f"{Kind(kind).name.lower():16} {name}: {store.native.size(identity)} entries")
    return 0


def _dump(options: argparse.Namespace) -> int:
    with _open(options.path) as store:
        for record in _records(store):
            print(json.dumps(record, ensure_ascii=False))
    return 0


def _fsck(options: argparse.Namespace) -> int:
    """Opening replays the log and checks all checksums; walking finds what does not hang together."""
    with statepool.store.open(options.path, create=False) as store:
        wrong = 0
        for name, identity, kind in store.native.structures():
            found, said = sum(1 for _ in _entries(store, identity, Kind(kind))), store.native.size(identity)
            if found != said:
                print(f"{name}: {found} entries found, {said} counted")
                wrong += 1
        print(
            f"{len(store.structures())} structures, {store.applied_lsn} operations: {'damaged' if wrong else 'sound'}"
        )
    return 1 if wrong else 0


def _crashtest(options: argparse.Namespace) -> int:
    for name in ("histories", "operations"):
        if getattr(options, name) < 1:
            raise InvalidRequest(f"{name}: with fewer than one nothing would be tested", param=name)
    total = 0
    for seed in range(options.seed, options.seed + options.histories):
        report = core.crash_test(seed, options.operations)
        total += report.states
        print(f"seed {seed}: {report.states} states of {report.events} disk operations", flush=True)
        if report.violation:
            print(f"seed {seed}: {report.violation}", file=sys.stderr)
            return 1
    print(f"{total} states, 0 violations")
    return 0


def _bench(options: argparse.Namespace) -> int:
    found = {}
    for name, rate in measure(options.path, options.seconds):
        found[name] = rate
        if not options.json:
            print(f"{rate:14,.0f} /s  {name}", flush=True)
    if options.json:
        print(json.dumps(found))
    return 0


def _records(store: statepool.store.Store) -> Iterator[dict[str, Any]]:
    for name, identity, kind in store.native.structures():
        for key, value in _entries(store, identity, Kind(kind)):
            yield {"structure": name, "kind": Kind(kind).name.lower(), "key": _plain(key), "value": _plain(value)}


def _entries(store: statepool.store.Store, identity: int, kind: Kind) -> Iterator[tuple[bytes | int, bytes]]:
    native = store.native
    if kind is Kind.DICT:
        cursor = 0
        while True:
            cursor, page = native.scan(identity, cursor)
            yield from ((key, value) for key, value, _ in page)
            if cursor == 0:
                return
    elif kind in (Kind.STACK, Kind.QUEUE):
        start = 0
        while page := native.peek(identity, start, 256):
            yield from page
            start = page[-1][0] + 1
    else:
        low = None
        while page := native.range(identity, core.Range(low, None, low is None, False, False), 256):
            yield from ((key, value) for key, value, _ in page)
            low = page[-1][0]


def _plain(value: bytes | int) -> Any:
    """Text as it is, other bytes as {"base64": …}."""
    if isinstance(value, int):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
