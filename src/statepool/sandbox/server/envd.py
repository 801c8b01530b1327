"""The inside of an E2B sandbox as its SDK sees it: files over HTTP, processes and folders over Connect.

Messages and framing are those of the ``e2b`` package itself; this is what it talks to.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from e2b.envd.process import process_pb as pb
from e2b.envd.process.process_connect import ProcessASGIApplication
from protobuf import Oneof
from starlette.concurrency import run_in_threadpool

from statepool.core.errors import StatepoolError
from statepool.sandbox.process import Command, Terminal
from statepool.sandbox.sandbox import Sandbox
from statepool.sandbox.template import HOME

__all__ = ["application", "guarded"]

_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    404: Code.NOT_FOUND,
    409: Code.FAILED_PRECONDITION,
    429: Code.RESOURCE_EXHAUSTED,
}
_KEEPALIVE_SECONDS = 25.0
T = TypeVar("T")


async def guarded(act: Callable[[], T]) -> T:
    """Run blocking work in a thread; what a user can repair becomes an error of the protocol."""
    try:
        return await run_in_threadpool(act)
    except StatepoolError as error:
        raise ConnectError(_CODES.get(error.status, Code.INTERNAL), error.message) from None


def application(sandbox: Sandbox) -> ProcessASGIApplication:
    """The process service of one sandbox."""
    return ProcessASGIApplication(_Processes(sandbox))


class _Running:
    """A process and those who watch it. Its output goes to all of them; the end is kept for who asks later."""

    def __init__(self, command: Command | Terminal, config: Any, tag: str, loop: asyncio.AbstractEventLoop) -> None:
        self.command, self.config, self.tag = command, config, tag
        self.end: Any = None
        self._loop = loop
        self._watchers: set[asyncio.Queue[Any]] = set()
        self._ready = threading.Event()
        threading.Thread(target=self._collect, name=f"process {command.pid}", daemon=True).start()

    async def events(self) -> AsyncIterator[Any]:
        """Start, data and end as they happen; a sign of life where nothing does."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._watchers.add(queue)
        yield pb.ProcessEvent(event=Oneof("start", pb.ProcessEvent.StartEvent(pid=self.command.pid)))
        self._ready.set()
        try:
            while self.end is None or not queue.empty():
                try:
                    yield await asyncio.wait_for(queue.get(), _KEEPALIVE_SECONDS)
                except TimeoutError:
                    yield pb.ProcessEvent(event=Oneof("keepalive", pb.ProcessEvent.KeepAlive()))
            if self.end is not None:
                yield self.end
        finally:
            self._watchers.discard(queue)

    def _collect(self) -> None:
        self._ready.wait(5)  # the first watcher misses nothing
        if isinstance(self.command, Terminal):
            while data := self.command.read():
                self._say("pty", data)
            code = self.command.wait(None)
            self.command.close()
        else:
            done = self.command.wait(
                None, lambda text: self._say("stdout", text.encode()), lambda text: self._say("stderr", text.encode())
            )
            code = done.exit_code
        shown = code if code >= 0 else 128 - code
        status = f"exit status {shown}" if code >= 0 else f"signal: {signal.Signals(-code).name}"
        end = pb.ProcessEvent(
            event=Oneof("end", pb.ProcessEvent.EndEvent(exit_code=shown, exited=code >= 0, status=status))
        )
        self._loop.call_soon_threadsafe(self._finish, end)

    def _say(self, kind: Any, data: bytes) -> None:
        event = pb.ProcessEvent(event=Oneof("data", pb.ProcessEvent.DataEvent(output=Oneof(kind, data))))
        self._loop.call_soon_threadsafe(self._spread, event)

    def _spread(self, event: Any) -> None:
        for queue in self._watchers:
            queue.put_nowait(event)

    def _finish(self, end: Any) -> None:
        self.end = end
        for queue in self._watchers:  # wakes them; the loop in events() then sees the end
            queue.put_nowait(pb.ProcessEvent(event=Oneof("keepalive", pb.ProcessEvent.KeepAlive())))


class _Processes:
    """process.Process of one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._running: dict[int, _Running] = {}

    async def list(self, request: pb.ListRequest, ctx: Any) -> pb.ListResponse:
        """What runs."""
        live = [item for item in self._running.values() if item.end is None]
        return pb.ListResponse(
            processes=[pb.ProcessInfo(config=item.config, pid=item.command.pid, tag=item.tag or None) for item in live]
        )

    async def start(self, request: pb.StartRequest, ctx: Any) -> AsyncIterator[pb.StartResponse]:
        """Start a process and follow it."""
        config = request.process
        if config is None or not config.cmd:
            raise ConnectError(Code.INVALID_ARGUMENT, "process: names no command")
        argv, cwd, env = [config.cmd, *config.args], config.cwd or HOME, dict(config.envs)
        command: Command | Terminal
        if request.pty is not None and request.pty.size is not None:
            size = request.pty.size
            command = await guarded(
                lambda: self._sandbox.commands.terminal(argv, rows=size.rows, cols=size.cols, cwd=cwd, env=env)
            )
        else:
            command = await guarded(lambda: self._sandbox.commands.start(argv, cwd=cwd, env=env))
            if not request.stdin:
                command.close_stdin()
        running = _Running(command, config, request.tag, asyncio.get_running_loop())
        self._running[command.pid] = running
        async for event in running.events():
            yield pb.StartResponse(event=event)

    async def connect(self, request: pb.ConnectRequest, ctx: Any) -> AsyncIterator[pb.ConnectResponse]:
        """Follow a process that runs already."""
        async for event in self._find(request.process).events():
            yield pb.ConnectResponse(event=event)

    async def update(self, request: pb.UpdateRequest, ctx: Any) -> pb.UpdateResponse:
        """A new size of the window."""
        command = self._find(request.process).command
        if isinstance(command, Terminal) and request.pty is not None and request.pty.size is not None:
            command.resize(request.pty.size.rows, request.pty.size.cols)
        return pb.UpdateResponse()

    async def send_input(self, request: pb.SendInputRequest, ctx: Any) -> pb.SendInputResponse:
        """Type, or write to standard input."""
        await self._input(self._find(request.process).command, request.input)
        return pb.SendInputResponse()

    async def stream_input(self, request: AsyncIterator[pb.StreamInputRequest], ctx: Any) -> pb.StreamInputResponse:
        """The same, one message after the other."""
        command: Command | Terminal | None = None
        async for message in request:
            match message.event:
                case Oneof(field="start", value=start):
                    command = self._find(start.process).command
                case Oneof(field="data", value=data) if command is not None:
                    await self._input(command, data.input)
        return pb.StreamInputResponse()

    async def send_signal(self, request: pb.SendSignalRequest, ctx: Any) -> pb.SendSignalResponse:
        """SIGTERM or SIGKILL to the process and its group."""
        pid = self._find(request.process).command.pid
        number = signal.SIGKILL if request.signal == pb.Signal.SIGKILL else signal.SIGTERM
        if not await guarded(lambda: self._sandbox.lease.signal(pid, number, group=True)):
            raise ConnectError(Code.NOT_FOUND, f"process {pid} has ended")
        return pb.SendSignalResponse()

    async def close_stdin(self, request: pb.CloseStdinRequest, ctx: Any) -> pb.CloseStdinResponse:
        """End of standard input."""
        command = self._find(request.process).command
        if isinstance(command, Command):
            command.close_stdin()
        return pb.CloseStdinResponse()

    async def _input(self, command: Command | Terminal, given: Any) -> None:
        if given is None or given.input is None:
            raise ConnectError(Code.INVALID_ARGUMENT, "input: empty")
        data: bytes = given.input.value
        await guarded(lambda: command.write(data) if isinstance(command, Terminal) else command.send_stdin(data))

    def _find(self, selector: Any) -> _Running:
        chosen = selector.selector if selector is not None else None
        for running in self._running.values():
            if chosen is not None and chosen.value in (running.command.pid, running.tag) and running.end is None:
                return running
        raise ConnectError(Code.NOT_FOUND, f"there is no process {chosen and chosen.value}")
