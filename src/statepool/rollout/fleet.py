"""Engines in processes of their own, with the face of ``Hosts``: started, watched, replaced when they end."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import zmq

from statepool.cluster import Process, Program
from statepool.cluster.blocking import BlockingLauncher
from statepool.core.errors import InvalidConfig, InvalidRequest, Unavailable
from statepool.engine.config import EngineConfig, EngineStats, ModelInfo
from statepool.kv.layout import BLOCK_SIZE
from statepool.rollout import messages
from statepool.rollout.budget import StepCost
from statepool.rollout.draft_server import DraftServer
from statepool.rollout.hosts import Joined, Lost, Notice, Seat
from statepool.rollout.instance import Task
from statepool.serve.channel import KEYS_VARIABLE, ChannelKeys, starters_end

__all__ = ["Fleet"]

log = logging.getLogger("statepool.rollout")

_POLL_MS = 100
_END_SECONDS = 5.0
_LIVES = 5
"""Deaths of one engine after which it is given up."""


@dataclass(slots=True)
class _Seat:
    """One engine process."""

    number: int
    process: Process
    socket: Any
    ready: bool = False
    seat: Seat = field(default_factory=lambda: Seat(0, 0))
    jobs: int = 0
    heard: float = field(default_factory=time.monotonic)
    deaths: int = 0
    counters: messages.Counters | None = None


class Fleet:
    """``count`` engine processes, of this machine or placed by Ray. Use it as a context manager.

    On one machine the KV of jobs that move lies in memory that the engines share; between machines messages carry it,
    guarded by keys that nobody else has.

    Args:
        config: of each engine; its model must be found on every machine.
        count: how many.
        ray: address of a Ray cluster, ``auto`` for the one this machine belongs to, ``local`` for one made here; None:
            processes of this machine.
        capacity: tokens of KV to use on each; None: all.
        states_bytes: most bytes of KV that wait between chunks.
        report_every: steps after which engines tell what running jobs have gained.
        drafts: ``off``, ``self`` (from a response's own text) or ``group`` (from all siblings).
        paths: guesses that a draft may hold at once.
        fetch_every: steps between two looks at what siblings elsewhere have made.
        cost: of a step, which decides how much is drafted.
        pin: give each engine one processor core, in turn.
        stall_seconds: silence of a busy engine after which it is replaced.
        start_seconds: time an engine has to load.

    Raises:
        InvalidConfig: a count below 1, or no Ray cluster at the address.
        StatepoolError: an engine could not be built.
    """

    def __init__(
        self,
        config: EngineConfig,
        count: int,
        *,
        ray: str | None = None,
        capacity: int | None = None,
        states_bytes: int = 1 << 30,
        report_every: int = 16,
        drafts: str = "off",
        paths: int = 1,
        fetch_every: int = 8,
        cost: StepCost | None = None,
        pin: bool = False,
        stall_seconds: float = 60.0,
        start_seconds: float = 120.0,
    ) -> None:
        if count < 1:
            raise InvalidConfig(f"engines must be at least 1, got {count}", param="engines")
        self._config = config
        self._capacity = capacity
        self._stall = stall_seconds
        self._start = start_seconds
        self._version = "0"
        self._info: ModelInfo | None = None
        self._weights: tuple[dict[str, Any], str] | None = None
        self._iteration = ""
        shared = Path("/dev/shm")  # noqa: S108 - memory that processes share
        self._folder = Path(tempfile.mkdtemp(prefix="statepool-", dir=shared if shared.is_dir() else None))
        self._states = self._folder / "states"
        self._states.mkdir()
        try:
            self._launcher = BlockingLauncher(ray)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._keys = ChannelKeys.new() if self._launcher.remote else None
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._build: Mapping[str, Any] = {
            "config": config,
            "states": None if self._launcher.remote else str(self._states),
            "states_bytes": states_bytes,
            "report_every": report_every,
            "drafts": drafts,
            "paths": paths,
            "fetch_every": fetch_every,
            "cost": astuple(cost or StepCost()),
        }
        self._pin = pin
        self.drafts = None if drafts == "off" else drafts
        self._seats: list[_Seat] = []
        self._moving: dict[str, tuple[int, int, Task]] = {}  # from, to
        self._server: DraftServer | None = None
        try:
            if drafts == "group" and count > 1:
                self._server = DraftServer(self._launcher, self._folder, self._keys)
            self._seats = [self._spawn(number) for number in range(count)]
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    # -- the face of Hosts ---------------------------------------------------------------------------------

    def seats(self) -> list[Seat]:
        """See ``Hosts.seats``."""
        return [each.seat for each in self._seats]

    def info(self) -> ModelInfo:
        """See ``Hosts.info``."""
        assert self._info is not None, "a fleet is ready once it is made"
        return self._info

    def version(self) -> str:
        """See ``Hosts.version``."""
        return self._version

    def begin(self, iteration: str) -> None:
        """See ``Hosts.begin``."""
        self._iteration = iteration
        self._moving.clear()
        for each in list(self._seats):
            if each.process.returncode is not None:
                self._replace(each)
        self._wait_ready()
        for each in self._seats:
            each.jobs = 0
            self._send(each.number, messages.Begin(iteration))
        for path in self._states.iterdir():
            path.unlink(missing_ok=True)

    def start(self, number: int, task: Task, source: int | None) -> None:
        """See ``Hosts.start``."""
        self._seats[number].jobs += 1
        if source is None or source == number:
            self._send(number, messages.Run(task))
        else:
            self._moving[task.request.id] = (source, number, task)
            self._send(source, messages.Release(task.request.id))

    def abort(self, number: int, name: str) -> None:
        """See ``Hosts.abort``."""
        self._seats[number].jobs -= 1
        if self._moving.pop(name, None) is None:
            self._send(number, messages.Drop(name))

    def forget(self, number: int, name: str) -> None:
        """See ``Hosts.forget``."""
        self._send(number, messages.Drop(name))

    def draft(self, number: int, probe: int, rest: int, paths: int) -> None:
        """See ``Hosts.draft``."""
        self._send(number, messages.Lengths(probe, rest, paths))

    def poll(self, seconds: float) -> list[tuple[int, Notice]]:
        """See ``Hosts.poll``.

        Raises:
            Unavailable: an engine ends again and again.
            StatepoolError: an engine refuses what it was told.
        """
        found: list[tuple[int, Notice]] = []
        ready = dict(self._poller.poll(round(seconds * 1000)))
        for each in self._seats:
            if each.socket in ready:
                for message in self._receive(each):
                    if isinstance(message, messages.Gains):
                        each.jobs -= sum(gain.left for gain in message.gains)
                        found += [(each.number, gain) for gain in message.gains]
                    elif isinstance(message, messages.Released):
                        self._arrive(message.id, message.state)
                    elif isinstance(message, messages.Ready):
                        found.append((each.number, Joined(each.seat)))
        for each in list(self._seats):
            if self._gone(each):
                found.append((each.number, Lost()))
                self._replace(each)
        return found

    def stats(self) -> list[EngineStats]:
        """See ``Hosts.stats``."""
        return [found.stats for found in self.counters()]

    def refilled(self) -> int:
        """See ``Hosts.refilled``."""
        return sum(found.refilled for found in self.counters())

    def update_weights(self, tensors: Iterable[tuple[str, npt.NDArray[Any]]], version: str) -> None:
        """See ``Hosts.update_weights``.

        Raises:
            InvalidRequest: an iteration is under way.
            InvalidCheckpoint: the tensors do not fit the model; nothing was changed.
        """
        if any(each.jobs for each in self._seats):
            raise InvalidRequest("weights change between two iterations, and one is under way", param="version")
        known = dict(self._weights[0]) if self._weights else {}
        fresh = dict(tensors)
        self._ask(messages.Weights(fresh, version))
        self._weights = ({**known, **fresh}, version)
        self._version = version

    # -- more ----------------------------------------------------------------------------------------------

    def counters(self) -> list[messages.Counters]:
        """Counters of each engine."""
        self._ask(messages.Count())
        return [each.counters for each in self._seats if each.counters is not None]

    def pids(self) -> list[int]:
        """Process ids of the engines."""
        return [each.process.pid for each in self._seats]

    @property
    def draft_server(self) -> DraftServer | None:
        """The server that shares texts between engines, if one does."""
        return self._server

    def close(self) -> None:
        """End all processes. Safe to call twice."""
        for each in self._seats:
            if each.process.returncode is None:
                _tell(each.socket, messages.Stop())
        for each in self._seats:
            self._launcher.end(each.process, _END_SECONDS)
            each.socket.close(0)
        self._seats = []
        if self._context.closed:
            return
        if self._server is not None:
            self._server.close()
        self._launcher.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arrive(self, name: str, state: bytes | None = None) -> None:
        """The KV of a job that moves is in the state pool, here, or lost: its chunk begins where it is to run."""
        moving = self._moving.pop(name, None)
        if moving is not None:
            self._send(moving[1], messages.Run(moving[2], state))

    # -- processes -----------------------------------------------------------------------------------------

    def _spawn(self, number: int, deaths: int = 0) -> _Seat:
        endpoint = self._launcher.launcher.endpoint(self._folder / f"{number}-{deaths}")
        socket = starters_end(self._context, zmq.PAIR, endpoint, self._keys)
        program = Program(
            "statepool.rollout.worker",
            (socket.getsockopt_string(zmq.LAST_ENDPOINT),),
            {} if self._keys is None else {KEYS_VARIABLE: self._keys.text()},
            cpus=self._config.threads or 1,
            memory_bytes=self._config.kv_bytes,
        )
        try:
            process = self._launcher.spawn(program)
        except BaseException:
            socket.close(0)
            raise
        cores = sorted(os.sched_getaffinity(0)) if self._pin else []
        core = cores[number % len(cores)] if cores else None
        self._poller.register(socket, zmq.POLLIN)
        server = None if self._server is None else self._server.address
        build = messages.Build(**self._build, server=server, core=core)
        deadline = time.monotonic() + self._start
        while not socket.poll(_POLL_MS, zmq.POLLOUT) and process.returncode is None and time.monotonic() < deadline:
            pass  # it has not come yet
        _tell(socket, build)
        _tell(socket, messages.Begin(self._iteration))
        if self._weights is not None:
            _tell(socket, messages.Weights(*self._weights))
        return _Seat(number, process, socket, deaths=deaths)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._start
        while not all(each.ready for each in self._seats):
            self._poller.poll(_POLL_MS)
            for each in self._seats:
                self._receive(each)
                if each.process.returncode is not None and not each.ready:
                    raise Unavailable(f"engine {each.number} ended while it was loading")
            if time.monotonic() > deadline:
                raise Unavailable(f"the engines have not loaded within {self._start:g} s")

    def _gone(self, each: _Seat) -> bool:
        if each.process.returncode is not None:
            return True
        silent = time.monotonic() - each.heard
        if each.ready and not each.jobs:
            each.heard = time.monotonic()
            return False
        return silent > (self._stall if each.ready else self._start)

    def _replace(self, each: _Seat) -> None:
        status = each.process.returncode
        log.warning("engine %d is replaced: %s", each.number, "silent" if status is None else f"ended with {status}")
        each.process.send_signal(signal.SIGKILL)
        self._launcher.end(each.process, _END_SECONDS)
        self._poller.unregister(each.socket)
        each.socket.close(0)
        if each.deaths + 1 >= _LIVES:
            raise Unavailable(f"engine {each.number} has ended {_LIVES} times")
        for name, (source, target, _) in list(self._moving.items()):
            if target == each.number:
                del self._moving[name]
            elif source == each.number:
                self._arrive(name)
        self._seats[each.number] = self._spawn(each.number, each.deaths + 1)

    def _send(self, number: int, message: messages.ToWorker) -> None:
        _tell(self._seats[number].socket, message)

    def _receive(self, each: _Seat) -> list[messages.FromWorker]:
        found: list[messages.FromWorker] = []
        while each.socket.poll(0):
            message = messages.from_worker.decode(each.socket.recv())
            each.heard = time.monotonic()
            if isinstance(message, messages.Failed):
                raise message.problem.error()
            if isinstance(message, messages.Ready):
                blocks = message.blocks * BLOCK_SIZE
                capacity = min(self._capacity or blocks, blocks)
                each.seat = Seat(capacity, self._config.max_seqs, message.info.max_model_len)
                each.ready = True
                self._info = message.info
            elif isinstance(message, messages.Counters):
                each.counters = message
            found.append(message)
        return found

    def _ask(self, message: messages.ToWorker) -> None:
        """Send to all and wait for their counters; one that has ended is replaced, and its successor asked."""
        for each in self._seats:
            each.counters = None
            self._send(each.number, message)
        deadline = time.monotonic() + self._stall + self._start
        while not all(each.counters for each in self._seats):
            self._poller.poll(_POLL_MS)
            for each in list(self._seats):
                self._receive(each)
                if each.process.returncode is not None and not each.counters:
                    self._replace(each)
                    self._send(each.number, message)
            if time.monotonic() > deadline:
                raise Unavailable("an engine does not answer")


def _tell(socket: zmq.Socket[bytes], message: messages.ToWorker) -> None:
    """Send without waiting: what is meant for an engine that has just ended is lost with it, and ``poll`` tells."""
    with contextlib.suppress(zmq.Again):
        socket.send(messages.to_worker.encode(message), zmq.NOBLOCK)
