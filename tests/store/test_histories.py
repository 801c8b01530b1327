"""Real processes use one store at once, are killed and start again: what they saw must be one copy's history.

A call of a killed process, and one that raised OutcomeUnknown, is of unknown outcome: it may have taken effect at any
later instant or never. One that raised Unavailable must have changed nothing.
"""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statepool.store.logreader import Files

from .linearizability import ENTRY, LOG, QUEUE, STACK, TOGETHER, Call, Sequential, check
from .net_processes import kill, processes, unix
from .simulator import World

HERE = Path(__file__).parent
MODELS = {"entry": ENTRY, "queue": QUEUE, "stack": STACK, "together": TOGETHER}


def model(part: Any) -> Sequential:
    return MODELS[part[0]]


class Recording:
    """The processes that record, and their files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, 0
        self.running: list[subprocess.Popen[str]] = []

    def start(self, **request: Any) -> subprocess.Popen[str]:
        self.started += 1
        request = {"out": str(self.folder / f"calls {self.started}"), "seed": self.started, "threads": 1} | request
        command = [sys.executable, str(HERE / "record_child.py"), json.dumps(request)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.running.append(child)
        return child

    def ready(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"

    def finish(self, **request: Any) -> list[Call]:
        """Kill all, have one look at what is left, and read what was recorded."""
        for child in self.running:
            kill(child)
        last = self.start(last=True, **request)
        assert last.wait(60) == 0
        history: list[Call] = []
        for path in self.folder.glob("calls *"):
            history += read(path)
        return history


def read(path: Path) -> list[Call]:
    calls: dict[str, Call] = {}
    for line in path.read_text().splitlines():
        thread, number, what, at, *rest = json.loads(line)
        if what == "start":
            part, name, arguments = rest
            calls[number] = Call(tuple(part), name, hashable(arguments), at, by=f"{path.name}, thread {thread}")
        elif what == "end":
            calls[number] = replace(calls[number], end=at, result=hashable(rest[0]))
        else:
            del calls[number]
    return list(calls.values())


def hashable(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(hashable, value)) if isinstance(value, list) else value


def narrowed(history: list[Call]) -> list[Call]:
    """The same question with less to search: every value is put once, so who took it proves a put of unknown outcome,
    and one that nobody took can be left out together with the unknown take that may have got it.
    """
    seen = {(call.part, call.result): call.end for call in history if call.name in ("take", "pop") and call.known}
    kept = []
    for call in history:
        if call.part[0] in ("queue", "stack") and call.name in ("put", "push") and not call.known:
            end = seen.get((call.part, call.arguments[0]), math.inf)
            if end == math.inf:
                continue
            call = replace(call, end=end, result=None)
        kept.append(call)
    return kept


def verify(history: list[Call], least: int) -> None:
    check(narrowed(history), model)
    assert sum(call.known for call in history) >= least
    assert {call.name for call in history} >= {"get", "put", "pop", "set", "add", "take", "push", "run"}


@contextmanager
def recording(folder: Path) -> Iterator[Recording]:
    it = Recording(folder)
    try:
        yield it
    finally:
        for child in it.running:
            kill(child)


def lose_the_heap(path: Path) -> None:
    """What a machine that loses power loses."""
    for heap in Path("/dev/shm").glob(f"statepool-{Files(path).meta.uuid.hex()}*"):
        heap.unlink()


def through_a_daemon(folder: Path, kills: int, seed: int, *, power: bool) -> None:
    draw, path, where = random.Random(seed), folder / "s", unix(folder, "socket")
    serve = ("serve", path, "--listen", where, "--capacity", "16MiB")
    with processes() as start, recording(folder) as record:
        daemon = start(*serve)
        clients = [record.start(where=where, role="client", threads=2, timeout=0.4) for _ in range(2)]
        if not power:  # in the daemon's memory
            clients.append(record.start(where=str(path), role="reader"))
        for client in clients:
            record.ready(client)
        for _ in range(kills):
            time.sleep(draw.uniform(0.3, 0.6))
            kill(daemon)
            if power:
                lose_the_heap(path)
            time.sleep(draw.choice([0.0, 0.5]))  # the longer one leaves outcomes unknown
            daemon = start(*serve)
        time.sleep(0.3)
        verify(record.finish(where=where, role="client", timeout=10.0), 50 * kills)


@pytest.mark.parametrize("power", [False, True])
def test_through_a_daemon_that_is_killed(power: bool, tmp_path: Path) -> None:
    through_a_daemon(tmp_path, 2, 1, power=power)


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_through_a_daemon_that_is_killed_often(seed: int, power: bool, tmp_path: Path) -> None:
    through_a_daemon(tmp_path, 12, seed, power=power)


def beside_an_owner(folder: Path, kills: int, seed: int, durability: str, *, power: bool) -> None:
    draw, path = random.Random(seed), folder / "s"
    with recording(folder) as record:

        def begin(role: str, threads: int = 1) -> subprocess.Popen[str]:
            child = record.start(where=str(path), role=role, threads=threads, durability=durability)
            record.ready(child)
            return child

        owner = begin("owner", 3)
        readers = [begin("reader") for _ in range(2)]
        for _ in range(kills):
            time.sleep(draw.uniform(0.2, 0.5))
            kill(owner)
            if power:  # the machine's other processes end with it
                for reader in readers:
                    kill(reader)
                lose_the_heap(path)
            owner = begin("owner", 3)
            if power:
                readers = [begin("reader") for _ in range(2)]
        time.sleep(0.3)
        kill(owner, signal.SIGKILL)
        verify(record.finish(where=str(path), role="owner", durability=durability), 50 * kills)


@pytest.mark.parametrize(("durability", "power"), [("process", False), ("power", True)])
def test_readers_beside_an_owner_that_is_killed(durability: str, power: bool, tmp_path: Path) -> None:
    beside_an_owner(tmp_path, 1, 1, durability, power=power)


@pytest.mark.slow
@pytest.mark.parametrize(("durability", "power"), [("process", False), ("power", False), ("power", True)])
@pytest.mark.parametrize("seed", range(4))
def test_readers_beside_an_owner_that_is_killed_often(seed: int, durability: str, power: bool, tmp_path: Path) -> None:
    beside_an_owner(tmp_path, 12, seed, durability, power=power)


def simulated(seeds: range) -> int:
    known = 0
    for seed in seeds:
        history = World(seed).run().history()
        check(history, lambda _: LOG)
        known += sum(call.known for call in history)
        assert {call.name for call in history if call.known} == {"append", "length"}
    return known


def test_of_simulated_machines() -> None:
    assert simulated(range(2000, 2012)) > 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_many_simulated_machines() -> None:
    assert simulated(range(3000, 3400)) > 40_000
