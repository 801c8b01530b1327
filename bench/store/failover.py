"""M11: a primary under load is killed again and again, and each time its mirror takes over.

Writers push numbers that count as acknowledged only at the level ``mirror``. A prober puts at the level ``power``; from
a kill to its next answer is the time without service, the start of two commands included.
"""

from __future__ import annotations

import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import statepool.store
from bench.duel import ROOT
from bench.machine import LoadWatch
from bench.row import Row
from bench.store.cases import wanted
from bench.store.contest import fresh
from statepool.core.errors import Fenced, MirrorLost, OutcomeUnknown, Unavailable
from statepool.store.net.node import read_node

LEASE = 1.0
_WRITERS = 3
_PATIENCE = 60.0
_COMMAND = [sys.executable, "-m", "statepool.cli", "store"]


@dataclass(slots=True)
class Failovers:
    """What became of what was acknowledged, over all kills."""

    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    unexplained: int = 0
    """Found, though the writer was told of a failure that changes nothing."""
    seconds: list[float] = field(default_factory=list)
    """Without an answer, for each kill."""


class Writer(threading.Thread):
    """Pushes numbers at the level ``mirror`` and remembers what it was told of each."""

    def __init__(self, urls: str, name: str) -> None:
        super().__init__(daemon=True)
        self._store = statepool.store.open(urls, durability="mirror", timeout=_PATIENCE)
        self._stack = self._store.stack(name)
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.stopping = threading.Event()
        self.start()

    def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            try:
                self._stack.push(b"%d" % number)
            except OutcomeUnknown:
                self.unknown.append(number)
            except (MirrorLost, Unavailable, Fenced):
                time.sleep(0.01)
            else:
                self.acknowledged.append(number)
        self._store.close()


class Prober(threading.Thread):
    """Notes when its writes were answered."""

    def __init__(self, urls: str) -> None:
        super().__init__(daemon=True)
        self._store = statepool.store.open(urls, durability="power", timeout=_PATIENCE)
        self._entries = self._store.dict("probe")
        self.answered = time.monotonic()
        self.stopping = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                self._entries[b"k"] = b"v"
            except (OutcomeUnknown, Unavailable, Fenced):
                continue
            self.answered = time.monotonic()
            time.sleep(0.005)
        self._store.close()


class Pair:
    """A primary, its mirror and a witness, each a process; the two change places at every kill."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack, self._folder = stack, folder
        self.urls = [_address(), _address()]
        self._witness, self._place = _address(), 0
        self._start("witness", folder / "w", "--listen", self._witness, "--lease", LEASE)
        self._primary = self._serve(0)
        self._mirror = self._follow(1)

    @property
    def url(self) -> str:
        """Of the primary."""
        return self.urls[self._place]

    def fail_over(self, writer: Writer, prober: Prober) -> float:
        """Kill the primary and let the mirror take over, then make the killed one its mirror.

        Returns the seconds from the kill to the next answer.
        """
        killed = time.monotonic()
        _end(self._primary, signal.SIGKILL)
        _end(self._mirror, signal.SIGTERM)
        old, self._place = self._place, 1 - self._place
        new = str(self._folder / str(self._place))
        command = [*_COMMAND, "promote", new, "--witness", self._witness]
        subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)
        self._primary = self._serve(self._place)
        _until(lambda: prober.answered > killed, "no answer after a failover")
        seconds = prober.answered - killed
        self._end_reign(old)
        self._mirror = self._follow(old)
        before = len(writer.acknowledged)
        _until(lambda: len(writer.acknowledged) > before, "the killed primary did not become a mirror")
        return seconds

    def _serve(self, place: int) -> subprocess.Popen[str]:
        lease = ("--witness", self._witness, "--lease", LEASE)
        path = self._folder / str(place)
        return self._start("serve", path, "--listen", self.urls[place], "--capacity", "64MiB", *lease)

    def _end_reign(self, place: int) -> None:
        """A killed primary must hear of its successor before it can be made a mirror: the witness tells it."""
        old = self._serve(place)

        def fenced() -> bool:
            node = read_node(self._folder / str(place))
            return node is not None and node.fenced > node.term

        _until(fenced, "the killed primary did not hear that its term is over")
        _end(old, signal.SIGTERM)

    def _follow(self, place: int) -> subprocess.Popen[str]:
        return self._start("mirror", self._folder / str(place), "--of", self.url)

    def _start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [*_COMMAND, *map(str, arguments)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        self._stack.callback(_end, child, signal.SIGKILL)
        assert child.stdout is not None
        said = child.stdout.readline()
        if not said.startswith(("serving", "mirroring", "witness")):
            raise RuntimeError(f"{' '.join(command)}: {said}{child.stdout.read()}")
        return child


def failovers(folder: Path, kills: int, seed: int = 1) -> Failovers:
    """Kill ``kills`` primaries at drawn instants; what the last one holds is compared with what writers were told."""
    draw, found = random.Random(seed), Failovers()
    with ExitStack() as stack:
        pair = Pair(folder, stack)
        urls = ",".join(pair.urls)
        writers = [Writer(urls, f"numbers {place}") for place in range(_WRITERS)]
        prober = Prober(urls)
        _until(lambda: all(writer.acknowledged for writer in writers), "the mirror does not follow")
        for _ in range(kills):
            time.sleep(draw.uniform(0.05, 0.5))
            found.seconds.append(pair.fail_over(writers[0], prober))
        for thread in (*writers, prober):
            thread.stopping.set()
        for thread in (*writers, prober):
            thread.join(_PATIENCE)
        with statepool.store.open(pair.url) as store:
            for place, writer in enumerate(writers):
                numbers = store.stack(f"numbers {place}")
                _compare(writer, [int(numbers[i]) for i in range(len(numbers))], found)
    return found


def _compare(writer: Writer, present: list[int], found: Failovers) -> None:
    once = set(present)
    found.acknowledged += len(writer.acknowledged)
    found.lost += len(set(writer.acknowledged) - once)
    found.doubled += len(present) - len(once)
    found.unexplained += len(once - set(writer.acknowledged) - set(writer.unknown))


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """M11."""
    if not wanted("M11", only):
        return
    watch, kills = LoadWatch(), 3 if quick else 50
    found = failovers(fresh("failover"), kills)
    wrong = found.lost + found.doubled + found.unexplained
    yield Row(
        "M11",
        f"a primary under load, killed {kills} times, its mirror taking over: acknowledged writes lost or doubled",
        "writes",
        "lower",
        0,
        wrong,
        own=f"{found.acknowledged:,} acknowledged; {statistics.median(found.seconds):.2f} s without service",
        load=watch.stop(),
        command="python -m bench store --only M11",
        note=f"a lease of {LEASE:g} s; slowest failover {max(found.seconds):.2f} s, starts of two processes included",
    )


def _until(true: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(otherwise)
        time.sleep(0.005)


def _end(child: subprocess.Popen[str], number: signal.Signals) -> None:
    if child.poll() is None:
        child.send_signal(number)
    child.wait(30)
    if child.stdout is not None:
        child.stdout.close()


def _address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{taken.getsockname()[1]}"
