"""A store that other machines can use: an asyncio server around the native core.

Calls run in the event loop as they come, from all connections; replies to writes wait until the disk, or the mirror,
has them. One thread waits for the disk, so whatever came meanwhile shares the next write of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from statepool.core.errors import (
    Fenced,
    InvalidRequest,
    MirrorLost,
    OutcomeUnknown,
    StatepoolError,
    StoreError,
    Unavailable,
)
from statepool.store.net.framing import REPLIES, REQUESTS, Reply, Request, Splitter, address, described, pack
from statepool.store.net.roles import Primary
from statepool.store.net.service import Service, Session

_MIRROR = 2
_MANY = 10_000
"""Replies under way on one connection; beyond it nothing more is read from it."""


@dataclass(frozen=True)
class _Waiting:
    lsn: int
    until: float
    reply: Callable[[StatepoolError | None], None]


class Durability:
    """Replies that wait for the disk or for the mirror. All methods but the thread's own run in the event loop."""

    def __init__(self, native: Any, role: Primary) -> None:
        self._native, self._role = native, role
        self._loop = asyncio.get_running_loop()
        self._disk: deque[_Waiting] = deque()
        self._mirror: deque[_Waiting] = deque()
        self._wanted, self._wake, self._stopping = 0, threading.Event(), False
        self._failure: StatepoolError | None = None
        self.on_durable: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._wait_for_disk, name="statepool-durability", daemon=True)
        self._thread.start()

    def add(self, lsn: int, level: int, reply: Callable[[StatepoolError | None], None]) -> None:
        """Call ``reply`` once operation ``lsn`` is as durable as ``level`` says, or with an error."""
        if self._failure is not None:
            reply(self._failure)
            return
        waiting = _Waiting(lsn, time.monotonic() + self._role.patience, reply)
        (self._mirror if level == _MIRROR else self._disk).append(waiting)
        self._wanted = max(self._wanted, lsn)
        self._wake.set()

    def advance(self) -> None:
        """Let go what is durable by now, and what waited too long for the mirror."""
        now, durable = time.monotonic(), self._native.durable_lsn
        refusal = None
        if not self._role.may_acknowledge(now):
            refusal = _refusal(self._role)
        self._release(self._disk, durable, refusal)
        self._release(self._mirror, min(durable, self._role.mirrored), refusal)
        while self._mirror and self._mirror[0].until < now:
            late = "mirror: it did not confirm in time; the operation is durable here and may or may not be there"
            self._mirror.popleft().reply(OutcomeUnknown(late))
        for call in self.on_durable:
            call()

    def _release(self, queue: deque[_Waiting], lsn: int, refusal: StatepoolError | None) -> None:
        while queue and (queue[0].lsn <= lsn or self._failure is not None):
            queue.popleft().reply(self._failure or refusal)

    def _wait_for_disk(self) -> None:
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            try:
                self._native.wait(self._wanted)
            except StatepoolError as error:
                self._failure = error
            with contextlib.suppress(RuntimeError):  # the loop ended first
                self._loop.call_soon_threadsafe(self.advance)
            if self._failure is not None:
                return

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join()


def _refusal(role: Primary) -> StatepoolError:
    if role.fenced:
        return Fenced(f"daemon: its term {role.term} is over, term {role.fenced} has begun; ask the new primary")
    return Unavailable("daemon: it cannot renew its lease at the witness, so another one may reign")


class Daemon:
    """Serves one store; ``extra`` adds methods by name: coroutines that get a session and the arguments."""

    def __init__(self, native: Any, role: Primary, service: Service) -> None:
        self.native, self.role, self.service = native, role, service
        self.durability = Durability(native, role)
        self.threads = ThreadPoolExecutor(8, thread_name_prefix="statepool-store")
        self.extra: dict[str, Callable[..., Any]] = {"hello": self._hello, "bye": self._bye}
        self.connections: set[_Connection] = set()
        self._server: asyncio.AbstractServer | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, listen: str) -> None:
        """Begin to listen at ``tcp://host:port`` or ``unix:///path``.

        Raises:
            InvalidRequest: the address is malformed or cannot be taken.
        """
        self._server = await listen_at(listen, lambda: _Connection(self))
        self._ticking = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(0.1, self.role.patience / 4))
            self.durability.advance()

    async def _hello(self, session: Session, level: int, term: int) -> int:
        self.role.heard(term)
        if not self.role.may_acknowledge(time.monotonic()):
            raise _refusal(self.role)
        session.level = level
        return self.role.term

    async def _bye(self, session: Session) -> None:
        self.service.release(session)

    async def stop(self) -> None:
        """Close all connections."""
        if self._ticking is not None:
            self._ticking.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close()
        await asyncio.get_running_loop().run_in_executor(None, self.durability.stop)
        self.threads.shutdown(wait=False)


class _Connection(asyncio.Protocol):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._splitter, self._session = daemon, Splitter(), Session()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._under_way = 0
        self._full = False
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- the transport's calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._daemon.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._daemon.connections.discard(self)
        self._daemon.service.end(self._session)

    def pause_writing(self) -> None:
        self._full = True
        self._throttle()

    def resume_writing(self) -> None:
        self._full = False
        self._throttle()

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._under_way += 1
                self._handle(REQUESTS.decode(body))
        except StatepoolError as error:  # not our protocol: nothing that follows can be understood
            self._reply(0, error=error)
            self.close()
        self._throttle()

    def close(self) -> None:
        """Drop the connection once what was said is sent."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _throttle(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._full or self._under_way > _MANY:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # ---- requests -------------------------------------------------------------------------------------------------

    def _handle(self, request: Request) -> None:
        daemon, number = self._daemon, request.number
        try:
            if request.method in daemon.extra:
                self._later(number, daemon.extra[request.method](self._session, *request.arguments))
                return
            if not daemon.role.may_acknowledge(time.monotonic()):
                raise _refusal(daemon.role)
            if request.method == "commit":
                self._commit(number, request.arguments)
            elif daemon.service.is_slow(request.method):
                call = partial(daemon.service.run, self._session, request.method, request.arguments)
                self._later(number, asyncio.get_running_loop().run_in_executor(daemon.threads, call))
            else:
                self._settle(number, daemon.service.run(self._session, request.method, request.arguments), 0)
        except StatepoolError as error:
            self._reply(number, error=error)
        except (TypeError, ValueError) as error:
            self._reply(number, error=InvalidRequest(f"arguments: {error}"))

    def _commit(self, number: int, arguments: list[Any]) -> None:
        daemon = self._daemon
        if arguments[-1:] == [_MIRROR] and daemon.role.mirror_lost(time.monotonic()):
            raise MirrorLost("mirror: none follows this store now; nothing was changed")
        outcomes, level = daemon.service.commit(arguments)
        self._settle(number, outcomes, level)

    def _settle(self, number: int, result: Any, level: int) -> None:
        """Reply once the level is reached. To a reader at the level ``mirror`` only what a takeover keeps is told."""
        daemon, level = self._daemon, max(level, self._session.level if self._session.level == _MIRROR else 0)
        lsn = daemon.native.applied_lsn
        if level == 0 or lsn <= (daemon.role.mirrored if level == _MIRROR else daemon.native.durable_lsn):
            self._reply(number, result)
            return
        daemon.durability.add(lsn, level, lambda error: self._reply(number, result, error))

    def _later(self, number: int, work: Any) -> None:
        async def finish() -> None:
            try:
                self._reply(number, await work)
            except StatepoolError as error:
                self._reply(number, error=error)
            except (TypeError, ValueError) as error:
                self._reply(number, error=InvalidRequest(f"arguments: {error}"))
            except OSError as error:
                self._reply(number, error=StoreError(f"daemon: {error}"))

        task = asyncio.ensure_future(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reply(self, number: int, result: Any = None, error: StatepoolError | None = None) -> None:
        self._under_way -= 1
        if self._transport is None:
            return
        reply = Reply(number, result) if error is None else Reply(number, None, described(error))
        try:
            packed = pack(REPLIES.encode(reply))
        except InvalidRequest as too_large:
            packed = pack(REPLIES.encode(Reply(number, None, described(too_large))))
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(packed)

    def _flush(self) -> None:
        """One write for all replies of a turn of the loop."""
        out, self._out = self._out, []
        if out and self._transport is not None:
            self._transport.write(b"".join(out))
            self._throttle()


async def listen_at(url: str, protocol: Callable[[], asyncio.Protocol]) -> asyncio.AbstractServer:
    """A server at an address; the file of a unix socket that nobody listens at any more is replaced.

    Raises:
        InvalidRequest: the address is malformed or cannot be taken.
    """
    where, loop = address(url), asyncio.get_running_loop()
    try:
        if isinstance(where, str):
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                _, writer = await asyncio.open_unix_connection(where)
                writer.close()
                raise InvalidRequest(f"listen: somebody listens at {url} already", param="listen")
            Path(where).unlink(missing_ok=True)  # noqa: ASYNC240 - one call before anything is served
            return await loop.create_unix_server(protocol, where)
        return await loop.create_server(protocol, *where)
    except OSError as error:
        raise InvalidRequest(f"listen: {url}: {error.strerror or error}", param="listen") from error
