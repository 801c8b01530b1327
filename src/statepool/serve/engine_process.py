"""The engine's own process: a step loop that listens for commands between steps.

Started by ``engine_client`` as ``python -m statepool.serve.engine_process ENDPOINT BEATS``; to ``BEATS`` it sends a
byte a few times a second, for as long as it is not stopped, whatever it computes. It leaves when told to stop, when its
parent is gone, or when a step fails; it ignores the signals of a terminal, since the gateway drains first and then
tells it to stop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import zmq

from statepool.core.errors import StatepoolError, Unavailable
from statepool.serve import messages
from statepool.serve.channel import engine_end
from statepool.serve.commands import Commands

log = logging.getLogger("statepool.engine")

_IDLE_POLL_MS = 500
_PULSE_SECONDS = 0.25
_BEAT_SECONDS = 0.2


class EngineLoop:
    """One engine and its command socket. ``run`` returns when the process should exit."""

    def __init__(
        self,
        engine: Any,
        receive: Callable[[int], messages.ToEngine | None],
        send: Callable[[messages.FromEngine], None],
        alive: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Drive ``engine``.

        Args:
            engine: anything with the methods of ``statepool.engine.engine.Engine``.
            receive: next command, waiting at most so many milliseconds (0 = not at all).
            send: hands a message to the gateway.
            alive: whether the gateway still exists.
            clock: seconds, monotonic.
        """
        self._engine = engine
        self._receive = receive
        self._send = send
        self._alive = alive
        self._clock = clock
        self._commands = Commands(engine)
        self._submitted: dict[str, float] = {}
        self._leaving: set[str] = set()
        self._queue_seconds: list[float] = []
        self._last_pulse = 0.0
        self._resting = False

    def run(self) -> None:
        """Serve until Stop arrives or the gateway is gone."""
        while self._listen():
            if self._engine.has_work:
                self._step()
                self._pulse()
            elif not self._resting:
                self._pulse(force=True)
                self._resting = True

    def _listen(self) -> bool:
        """Take every waiting command; sleep for the first one when there is nothing to compute."""
        wait = 0 if self._engine.has_work or not self._resting else _IDLE_POLL_MS
        while True:
            command = self._receive(wait)
            if command is None:
                return wait == 0 or self._alive()
            if isinstance(command, messages.Stop):
                return False
            self._obey(command)
            self._resting = False
            wait = 0

    def _obey(self, command: messages.ToEngine) -> None:
        match command:
            case messages.Submit(request=request, handoff=handoff):
                if self._admit(request.id, lambda: self._engine.submit(request)) and handoff:
                    self._leaving.add(request.id)
            case messages.Adopt(id=name, state=state):
                self._admit(name, lambda: self._engine.import_state(state))
            case messages.TakeOver(request=request, seed=seed, output=output):
                self._admit(request.id, lambda: self._engine.take_over(request, seed, output))
            case messages.Abort(id=name):
                self._submitted.pop(name, None)
                self._leaving.discard(name)
                self._engine.abort(name)
            case messages.Call(id=number, method=method, arguments=arguments):
                try:
                    value = self._commands.run(method, arguments)
                except StatepoolError as error:
                    self._send(messages.Reply(number, problem=messages.Problem.of(error)))
                else:
                    self._send(messages.Reply(number, value))
            case _:
                raise Unavailable(f"the engine process cannot obey {type(command).__name__} now")

    def _admit(self, name: str, enter: Callable[[], object]) -> bool:
        try:
            enter()
        except StatepoolError as error:
            self._send(messages.Refused(name, messages.Problem.of(error)))
            return False
        self._submitted[name] = self._clock()
        self._send(messages.Accepted(name))
        return True

    def _step(self) -> None:
        outputs = self._engine.step()
        self._note_admissions()
        if outputs:
            self._send(messages.Outputs(list(outputs)))
        for output in outputs:
            if output.id in self._leaving:
                self._leaving.remove(output.id)
                if output.finish_reason is None:
                    self._send(messages.Moved(output.id, self._engine.export_state(output.id, pooled=True)))

    def _note_admissions(self) -> None:
        """Requests start in order of arrival (priorities aside): whoever is beyond the queue's length has started."""
        if not self._submitted:
            return
        waiting, now = self._engine.stats().waiting, self._clock()
        for name in list(self._submitted)[: max(len(self._submitted) - waiting, 0)]:
            self._queue_seconds.append(now - self._submitted.pop(name))

    def _pulse(self, force: bool = False) -> None:
        now = self._clock()
        if force or now - self._last_pulse >= _PULSE_SECONDS:
            self._last_pulse = now
            self._send(messages.Pulse(self._engine.stats(), self._queue_seconds))
            self._queue_seconds = []


def build(factory: str, config: Any) -> Any:
    """The engine that ``module:name`` makes of ``config``."""
    module, _, name = factory.partition(":")
    return getattr(import_module(module), name)(config)


def _beat(endpoint: str) -> None:
    """Show that this process runs, for as long as it does."""
    socket = engine_end(zmq.Context(), zmq.PUSH, endpoint, 16)
    while True:
        with contextlib.suppress(zmq.Again):  # nobody has read for long; there is enough to read
            socket.send(b".", zmq.NOBLOCK)
        time.sleep(_BEAT_SECONDS)


def main(endpoint: str, beats: str) -> int:
    """Connect to the gateway at ``endpoint``, build the engine it asks for, and serve it."""
    threading.Thread(target=_beat, args=(beats,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    context = zmq.Context()
    socket = engine_end(context, zmq.PAIR, endpoint)

    def receive(wait: int) -> messages.ToEngine | None:
        if not socket.poll(wait):
            return None
        return messages.to_engine.decode(socket.recv())

    def send(message: messages.FromEngine) -> None:
        socket.send(messages.from_engine.encode(message))

    def alive() -> bool:
        return os.getppid() == parent

    try:
        start = receive(30_000)
        if not isinstance(start, messages.Start):
            return 1
        try:
            engine = build(start.factory, start.config)
            send(messages.Ready(engine.info))
            EngineLoop(engine, receive, send, alive).run()
        except StatepoolError as error:
            send(messages.Fatal(messages.Problem.of(error)))
            return 2
        except Exception as error:
            log.exception("the engine failed")
            send(messages.Fatal(messages.Problem.of(error)))
            return 1
        return 0
    finally:
        socket.close()
        context.term()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main(sys.argv[1], sys.argv[2]))
