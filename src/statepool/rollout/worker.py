"""An engine process of a rollout: ``python -m statepool.rollout.worker ENDPOINT``.

It steps as long as it has jobs and listens between two steps. It leaves when told to, when its parent is gone, or when
a step fails; it ignores the signals of a terminal.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import zmq

from statepool.core.errors import StatepoolError
from statepool.rollout import messages
from statepool.rollout.budget import StepCost
from statepool.rollout.draft_server import DraftClient
from statepool.rollout.drafts import GroupDrafts
from statepool.rollout.instance import FolderStates, Instance, MemoryStates
from statepool.serve.channel import engine_end
from statepool.serve.messages import Problem

log = logging.getLogger("statepool.rollout")

_IDLE_MS = 200


class Worker:
    """An engine, its jobs and its socket. ``run`` returns when the process should exit."""

    def __init__(self, socket: Any, build: messages.Build) -> None:
        from statepool.engine.engine import Engine

        self._socket = socket
        engine = Engine(build.config)
        self._carried = MemoryStates(build.states_bytes) if build.states is None else None
        states = self._carried or FolderStates(Path(build.states or ""), build.states_bytes)
        self._client = DraftClient(build.server, build.fetch_every) if build.server is not None else None
        drafts = None
        if build.drafts != "off":
            drafts = GroupDrafts(build.drafts, self._client, paths=build.paths, cost=StepCost(*build.cost))  # type: ignore[arg-type]
        self._instance = Instance(engine, states, build.report_every, drafts)
        self.send(messages.Ready(engine.info, engine.pool.total))

    def run(self, alive: Any) -> None:
        """Serve until told to stop or ``alive()`` is false."""
        while True:
            wait = 0 if self._instance.busy else _IDLE_MS
            while self._socket.poll(wait):
                message = messages.to_worker.decode(self._socket.recv())
                if isinstance(message, messages.Stop):
                    return
                try:
                    self._obey(message)
                except StatepoolError as error:
                    self.send(messages.Failed(Problem.of(error)))
                wait = 0
            if not self._instance.busy:
                if not alive():
                    return
                continue
            gains = self._instance.step()
            if gains:
                self.send(messages.Gains(gains))

    def close(self) -> None:
        """Leave the draft server."""
        if self._client is not None:
            self._client.close()

    def send(self, message: messages.FromWorker) -> None:
        """Tell the fleet."""
        self._socket.send(messages.from_worker.encode(message))

    def _obey(self, message: messages.ToWorker) -> None:
        instance = self._instance
        match message:
            case messages.Begin(iteration):
                instance.begin(iteration)
            case messages.Run(task, state):
                if self._carried is not None and state is not None:
                    self._carried.put(instance.state_name(task), state)
                refused = instance.start(task)
                if refused is not None:
                    self.send(messages.Gains([refused]))
            case messages.Release(name):
                key = instance.release(name)
                state = None
                if self._carried is not None and key is not None:
                    state = self._carried.get(key)
                    self._carried.drop(key)
                self.send(messages.Released(name, state))
            case messages.Drop(name):
                instance.abort(name)
            case messages.Lengths(probe, rest, paths):
                instance.draft(probe, rest, paths)
            case messages.Weights(tensors, version):
                instance.engine.update_weights(tensors.items(), version)
                self._count()
            case messages.Count():
                self._count()

    def _count(self) -> None:
        instance = self._instance
        self.send(messages.Counters(instance.engine.stats(), instance.refilled))


def main(endpoint: str) -> int:
    """Connect to the fleet at ``endpoint``, build the engine it asks for, and serve it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    context = zmq.Context()
    socket = engine_end(context, zmq.PAIR, endpoint)
    try:
        if not socket.poll(30_000):
            return 1
        build = messages.to_worker.decode(socket.recv())
        assert isinstance(build, messages.Build), "a fleet says first what to build"
        if build.core is not None:
            os.sched_setaffinity(0, {build.core})
        try:
            worker = Worker(socket, build)
            try:
                worker.run(lambda: os.getppid() == parent)
            finally:
                worker.close()
        except StatepoolError as error:
            socket.send(messages.from_worker.encode(messages.Failed(Problem.of(error))))
            return 2
        return 0
    finally:
        socket.close()
        context.term()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main(sys.argv[1]))
