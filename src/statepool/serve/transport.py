"""Runs a job against the engine and sends what it makes: one JSON answer, or server-sent events.

A client that goes away closes the engine's stream, so its sequences leave the batch before the next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from statepool.core.errors import StatepoolError
from statepool.engine.request import Output
from statepool.serve.interpreter import CodeJob, Interpreted
from statepool.serve.job import Event, Job, PlainJob
from statepool.serve.metrics import CANCELLED, E2E, GENERATED, ITL, PROMPT, SUCCESS, TTFT
from statepool.serve.state import GatewayState
from statepool.serve.surface import Outputs

log = logging.getLogger("statepool.serve")

ARRIVED = "statepool.arrived"
"""Key of the ASGI scope under which the gateway notes when a request came in."""

_LARGE_BODY = 32 << 10
T = TypeVar("T")


class ClientGoneError(Exception):
    """The client closed its connection before the answer; nobody is left to tell."""


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """``body`` as JSON."""
    return Response(orjson.dumps(body), status, headers, "application/json")


async def translate(request: HttpRequest, make: Callable[[], T]) -> T:
    """Run a translation, beside the event loop if the body is large enough to hold others up."""
    if len(await request.body()) > _LARGE_BODY:
        return await asyncio.to_thread(make)
    return make()


async def answer(request: HttpRequest, state: GatewayState, job: Job, *, stream: bool) -> Response:
    """The HTTP response for ``job``.

    Raises:
        StatepoolError: the engine refuses the job; nothing has been sent.
    """
    if not stream:
        return await answer_whole(request, state, job)
    clock = Watch(state, request.scope.get(ARRIVED))
    outputs = await unless_gone(request, submit(state, job))
    return EventResponse(state, job, outputs, clock)


async def submit(state: GatewayState, job: PlainJob) -> Outputs:
    """What the engine makes of ``job``; of one that runs code, with the cells and the turns that follow them."""
    outputs = await state.engine.submit(*job.requests)
    if isinstance(job, CodeJob) and job.runs_code:
        return Interpreted(state.engine, state.containers, job, outputs)
    return outputs


async def answer_whole(request: HttpRequest, state: GatewayState, job: PlainJob) -> Response:
    """``job``'s answer in one piece.

    Raises:
        StatepoolError: the engine refuses the job.
    """
    clock = Watch(state, request.scope.get(ARRIVED))
    outputs = await unless_gone(request, submit(state, job))
    async with contextlib.aclosing(outputs):
        try:
            await unless_gone(request, _collect(job, outputs, clock))
        except ClientGoneError:
            state.metrics.count(CANCELLED)
            raise
    return json_response(job.answer())


async def _collect(job: PlainJob, outputs: Outputs, clock: Watch) -> None:
    async for output in outputs:
        clock.note(output)
        job.push(output)
    clock.finish()


async def unless_gone(request: HttpRequest, work: Awaitable[T]) -> T:
    """Await ``work``, but give it up when the client disconnects.

    Raises:
        ClientGoneError: it did.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (watcher, task):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventResponse(Response):
    """A stream of server-sent events that follows a job to its end, or to its client's."""

    media_type = "text/event-stream"

    def __init__(self, state: GatewayState, job: Job, outputs: Outputs, clock: Watch) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._state = state
        self._job = job
        self._outputs = outputs
        self._clock = clock

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        watcher = asyncio.ensure_future(_disconnected(receive))
        sender = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({watcher, sender}, return_when=asyncio.FIRST_COMPLETED)
            if not sender.done():
                self._state.metrics.count(CANCELLED)
            else:
                sender.result()
        finally:
            for each in (watcher, sender):
                if not each.done():
                    each.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await each
            await self._outputs.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._put(send, self._job.opening())
        try:
            async for output in self._outputs:
                self._clock.note(output)
                await self._put(send, self._job.push(output))
        except StatepoolError as error:
            log.warning("a stream ended early: %s", error.message)
            await self._put(send, self._job.failed(error))
        else:
            self._clock.finish()
            await self._put(send, self._job.closing())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, send: Send, events: list[Event]) -> None:
        if events:
            body = b"".join(event.encode() for event in events)
            await send({"type": "http.response.body", "body": body, "more_body": True})


class Watch:
    """Takes the times of one call."""

    def __init__(self, state: GatewayState, arrived: float | None) -> None:
        """``arrived`` is when the request came in, on the state's clock."""
        self._state = state
        self._start = state.clock() if arrived is None else arrived
        self._last: dict[str, float] = {}

    def note(self, output: Output) -> None:
        """Put one output on the books."""
        metrics, now = self._state.metrics, self._state.clock()
        if output.tokens or output.finish_reason is not None:
            last = self._last.get(output.id)
            if last is None:
                metrics.observe(TTFT, now - self._start)
            elif output.tokens:
                # A step may add several tokens; each gets its share of the wait.
                for _ in output.tokens:
                    metrics.observe(ITL, (now - last) / len(output.tokens))
            self._last[output.id] = now
        if output.finish_reason is not None:
            metrics.count(SUCCESS, output.finish_reason)
            if output.usage is not None:
                metrics.observe(PROMPT, output.usage.prompt_tokens)
                metrics.observe(GENERATED, output.usage.completion_tokens)

    def finish(self) -> None:
        """The call is answered."""
        self._state.metrics.observe(E2E, self._state.clock() - self._start)
