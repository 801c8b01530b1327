"""The gateway's side of the engine process: start it, stream from it, notice its death."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import zmq
import zmq.asyncio

from statepool.cluster import Launcher, LocalLauncher, Process, Program
from statepool.core.errors import StatepoolError, Unavailable
from statepool.engine.config import EngineConfig, EngineStats, ModelInfo
from statepool.engine.request import Output, Request
from statepool.serve import messages
from statepool.serve.channel import KEYS_VARIABLE, ChannelKeys, starters_end
from statepool.serve.config import START_SECONDS
from statepool.serve.surface import EngineLoad, check_entry

_Inbox: TypeAlias = "asyncio.Queue[messages.Accepted | messages.Refused | messages.Moved | Output | None]"

_SILENT_SECONDS = 60.0
"""Silence that is borne of one that loads: the import of a library or a device may hold the interpreter."""
_LOOK_SECONDS = 0.1
_END_SECONDS = 5.0
_GONE = "the engine process ended unexpectedly; restart the server"


class AsyncEngine:
    """An engine in a child process, as an asynchronous object.

    Every waiting caller gets ``Unavailable`` when the process dies. Not safe to share between event loops.
    """

    def __init__(
        self, max_in_flight: int = 1024, launcher: Launcher | None = None, start_seconds: float = START_SECONDS
    ) -> None:
        """An engine that is not started yet.

        Args:
            max_in_flight: sequences accepted at once; more raise ``Overloaded``.
            launcher: who starts the process; by default this machine does.
            start_seconds: time it has to load; the process of one that takes longer is ended.
        """
        self.stats: EngineStats = EngineStats()
        """Counters as of the last pulse: at most a fraction of a second old while the engine works."""
        self.failure: str | None = None
        """Why the engine is gone, once it is."""
        self.on_queue_seconds: Callable[[float], None] | None = None
        """Called with each wait from submission to the first output."""
        self._max_in_flight = max_in_flight
        self._launcher = LocalLauncher() if launcher is None else launcher
        self._start_seconds = start_seconds
        self._process: Process | None = None
        self._streams: dict[str, _Inbox] = {}
        self._left = asyncio.Event()
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count()
        self._info: asyncio.Future[ModelInfo] | None = None
        self._folder: Path | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._last_beat: float | None = None
        self._pool: list[str] = []

    async def start(
        self,
        config: EngineConfig,
        *,
        factory: str = messages.ENGINE_FACTORY,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Spawn the process and tell it what to build; ``wait_ready`` waits for the result."""
        self._pool = config.pool_addresses
        info = self._info = asyncio.get_running_loop().create_future()
        self._folder = Path(tempfile.mkdtemp(prefix="statepool-"))
        self._context = zmq.asyncio.Context()
        keys = ChannelKeys.new() if self._launcher.remote else None
        self._socket, self._beats = (
            starters_end(self._context, kind, self._launcher.endpoint(self._folder / name), keys)
            for name, kind in (("engine", zmq.PAIR), ("beats", zmq.PULL))
        )
        program = Program(
            "statepool.serve.engine_process",
            tuple(socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (self._socket, self._beats)),
            {**(environment or {}), **({} if keys is None else {KEYS_VARIABLE: keys.text()})},
            cpus=config.threads or 1,
            memory_bytes=config.kv_bytes,
        )
        process = self._process = await self._launcher.spawn(program)
        self._last_beat = time.monotonic()
        self._ended = asyncio.get_running_loop().create_future()
        tasks = (self._listen(), self._feel(), self._watch(process), self._limit(info))
        self._tasks = [asyncio.create_task(each) for each in tasks]
        await self._send(messages.Start(config, factory))

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    @property
    def silent_seconds(self) -> float:
        """How long the process has given no sign of life, of which its start is the first."""
        return 0.0 if self._last_beat is None else time.monotonic() - self._last_beat

    @property
    def in_flight(self) -> int:
        """Sequences accepted and not finished."""
        return len(self._streams)

    async def wait_ready(self) -> ModelInfo:
        """What is being served, once it is loaded.

        Raises:
            StatepoolError: the engine could not be built, with its own reason.
            Unavailable: it hung, or took longer than it may.
        """
        assert self._info is not None, "start() comes first"
        return await asyncio.shield(self._info)

    async def submit(self, *requests: Request, handoff: bool = False) -> OutputStream:
        """Queue requests; returns their outputs as they come, the last of each with a finish reason.

        Closing the stream before its end takes the requests out of the batch before the next step. With ``handoff`` a
        request leaves with its first token: the stream ends, and has its state in ``moved``.

        Raises:
            InvalidRequest: the engine refuses one of the requests; then none of them runs.
            Overloaded: too many sequences are in flight.
            Unavailable: the engine is gone.
        """
        return await self._open([(request.id, messages.Submit(request, handoff)) for request in requests])

    async def adopt(self, name: str, state: bytes) -> OutputStream:
        """Go on with request ``name``, that another engine let go; its outputs from here on. Raises like ``submit``."""
        return await self._open([(name, messages.Adopt(name, state))])

    async def take_over(self, request: Request, seed: int, output: Sequence[int]) -> OutputStream:
        """Go on with a request behind the tokens of its ``output``, as an engine that is gone would have."""
        return await self._open([(request.id, messages.TakeOver(request, seed, list(output)))])

    async def _open(self, entries: Sequence[tuple[str, messages.ToEngine]]) -> OutputStream:
        if self.failure is not None:
            raise self.gone()
        names = [name for name, _ in entries]
        check_entry(names, self._streams, len(self._streams), self._max_in_flight)
        stream = OutputStream(self, names)
        try:
            for name, message in entries:
                self._streams[name] = stream.inbox
                await self._send(message)
            await stream.accepted()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def stream(self, request: Request) -> AsyncIterator[Output]:
        """``submit`` one request and iterate."""
        async with contextlib.aclosing(await self.submit(request)) as outputs:
            async for output in outputs:
                yield output

    async def call(self, method: str, **arguments: Any) -> Any:
        """Run one of ``commands.Commands`` between two steps.

        Raises:
            StatepoolError: what the method raised.
            Unavailable: the engine is gone.
        """
        if self.failure is not None:
            raise self.gone()
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(messages.Call(number, method, arguments))
            return await reply
        finally:
            del self._replies[number]

    async def refresh_stats(self) -> EngineStats:
        """Counters of this moment, also left in ``stats``."""
        self.stats = msgspec.convert(await self.call("stats"), EngineStats)
        return self.stats

    async def idle(self) -> None:
        """Wait until no sequence is in flight."""
        while self._streams:
            self._left.clear()
            await self._left.wait()

    async def abort_all(self) -> None:
        """End every stream with the finish reason ``abort``."""
        for name, inbox in list(self._streams.items()):
            await self._send(messages.Abort(name))
            inbox.put_nowait(Output(name, finish_reason="abort"))

    def kill(self, why: str = _GONE) -> None:
        """End the process at once; everybody who waits for it is told."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
        self._fail(Unavailable(why))

    async def close(self) -> None:
        """Stop the process and free what it used. Safe to call twice."""
        if self._folder is None:
            return
        folder, self._folder = self._folder, None
        process = self._process
        if process is not None and process.returncode is None:
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await self._send(messages.Stop())  # one that hangs before it has connected does not take it
                    await process.wait()
            except TimeoutError:
                process.send_signal(signal.SIGKILL)
                # A machine that is cut off does not tell that its process has ended.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _END_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(Unavailable("the server is shutting down"))
        self._socket.close(0)
        self._beats.close(0)
        self._context.term()
        shutil.rmtree(folder, ignore_errors=True)

    async def leave(self, name: str) -> None:
        """Take a request out of the batch before the next step; nothing happens if it is not in it."""
        known = self._streams.pop(name, None) is not None
        self._left.set()
        if known and self.failure is None:
            with contextlib.suppress(Unavailable):
                await self._send(messages.Abort(name))

    def finished(self, name: str) -> None:
        """Forget a request that reached its end."""
        self._streams.pop(name, None)
        self._left.set()

    def loads(self) -> list[EngineLoad]:
        """This engine and what it does."""
        return [EngineLoad.of(self.stats, self.pid, usable=self.failure is None)]

    def pool_addresses(self) -> list[str]:
        """The nodes of its KV pool."""
        return self._pool

    def gone(self) -> StatepoolError:
        """The error for whoever needs the engine after its end."""
        return Unavailable(self.failure or _GONE)

    async def _send(self, message: messages.ToEngine) -> None:
        """Hand over a message; if the process is gone, drop it: whoever waits for an answer is told by ``_fail``.

        Raises:
            Unavailable: the engine has been closed.
        """
        data = messages.to_engine.encode(message)
        if self._socket.closed:
            raise self.gone()
        sending = asyncio.ensure_future(self._socket.send(data))
        try:
            if not sending.done():
                # Not connected yet, or no longer: only the end of the process tells which.
                await asyncio.wait({sending, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if sending.cancelled():
                raise self.gone()  # the socket was closed under it
            if sending.done():
                sending.result()
        finally:
            sending.cancel()  # or whatever is sent later would wait behind it

    async def _listen(self) -> None:
        while True:
            self._take(messages.from_engine.decode(await self._socket.recv()))
            # A message that is there already is received without a pause: others must have their turn.
            await asyncio.sleep(0)

    async def _feel(self) -> None:
        while True:
            await self._beats.recv()
            self._last_beat = time.monotonic()

    def _take(self, message: messages.FromEngine) -> None:
        match message:
            case messages.Outputs(outputs=outputs):
                for output in outputs:
                    inbox = self._streams.get(output.id)
                    if inbox is not None:
                        inbox.put_nowait(output)
            case messages.Accepted(id=name) | messages.Refused(id=name) | messages.Moved(id=name):
                inbox = self._streams.get(name)
                if inbox is not None:
                    inbox.put_nowait(message)
            case messages.Reply(id=number, value=value, problem=problem):
                reply = self._replies.get(number)
                if reply is not None and not reply.done():
                    if problem is None:
                        reply.set_result(value)
                    else:
                        reply.set_exception(problem.error())
            case messages.Pulse(stats=stats, queue_seconds=waits):
                self.stats = stats
                for wait in waits if self.on_queue_seconds is not None else ():
                    self.on_queue_seconds(wait)  # type: ignore[misc]
            case messages.Ready(info=info):
                if self._info is not None and not self._info.done():
                    self._info.set_result(info)
            case messages.Fatal(problem=problem):
                self._fail(problem.error())

    async def _limit(self, info: asyncio.Future[ModelInfo]) -> None:
        """End a process that hangs while it loads, or takes too long."""
        deadline = time.monotonic() + self._start_seconds
        while not info.done():
            if self.silent_seconds > _SILENT_SECONDS:
                self.kill(f"the engine gave no sign of life for {_SILENT_SECONDS:g} s while it loaded")
            elif time.monotonic() > deadline:
                self.kill(f"the engine did not load within the {self._start_seconds:g} s that start_seconds allows")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _watch(self, process: Process) -> None:
        await process.wait()
        self._ended.set_result(None)
        # Its last words may still be in the socket: let _listen have them.
        await asyncio.sleep(0.1)
        self._fail(Unavailable(_GONE))

    def _fail(self, error: StatepoolError) -> None:
        if self._info is not None and not self._info.done():
            self._info.set_exception(error)
            # Nobody may be waiting for it.
            self._info.exception()
        if self.failure is None:
            self.failure = error.message if isinstance(error, Unavailable) else f"the engine stopped: {error.message}"
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(self.gone())
        for inbox in self._streams.values():
            inbox.put_nowait(None)


class OutputStream:
    """Outputs of some requests in order. Iterate to the end, or ``aclose``; both free the requests."""

    def __init__(self, engine: AsyncEngine, names: list[str]) -> None:
        self._engine = engine
        self._running = dict.fromkeys(names)
        self._early: deque[Output | messages.Moved] = deque()
        self.moved: bytes | None = None
        """State of the request, once it has left the engine with ``handoff``."""
        self.inbox: _Inbox = asyncio.Queue()
        """Where the engine's messages about these requests arrive; ``None`` means the engine is gone."""

    async def accepted(self) -> None:
        """Wait until the engine took every request.

        Raises:
            InvalidRequest: it refused one.
            Unavailable: it died.
        """
        waiting = len(self._running)
        while waiting:
            match await self.inbox.get():
                case messages.Accepted():
                    waiting -= 1
                case (Output() | messages.Moved()) as early:
                    self._early.append(early)
                case messages.Refused(problem=problem):
                    raise problem.error()
                case None:
                    raise self._engine.gone()

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> Output:
        """The next output.

        Raises:
            Unavailable: the engine died.
            StatepoolError: the engine gave a request up.
        """
        if not self._running:
            raise StopAsyncIteration
        item = self._early.popleft() if self._early else await self.inbox.get()
        if isinstance(item, messages.Moved):
            self._engine.finished(item.id)
            self._running.pop(item.id, None)
            self.moved = item.state
            return await anext(self)
        if not isinstance(item, Output):
            await self.aclose()
            raise self._engine.gone()
        if item.finish_reason is not None:
            self._engine.finished(item.id)
            self._running.pop(item.id, None)
        if item.error is not None:
            await self.aclose()
            raise StatepoolError(item.error)
        return item

    async def aclose(self) -> None:
        """Take what still runs out of the batch."""
        names, self._running = list(self._running), {}
        for name in names:
            await self._engine.leave(name)
