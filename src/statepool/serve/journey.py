"""One request from its first engine to its last token, over every engine that is lost on the way.

A journey may change its own tokens, its ticket and where its outputs go. Which engine is next it asks ``Seating``, what
it did there it tells the ``Dispatcher``; engines and other journeys it does not touch.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from statepool.core.errors import StatepoolError, Unavailable
from statepool.engine.request import Output, Request
from statepool.serve.dispatcher import Ticket
from statepool.serve.engine_client import OutputStream
from statepool.serve.seating import Seating
from statepool.serve.workers import Worker

__all__ = ["Arrivals", "ClusterStream", "Journey"]

log = logging.getLogger("statepool.serve")

Arrivals: TypeAlias = "asyncio.Queue[Output | StatepoolError]"
"""Where the outputs of all requests of one call arrive, or the error that ended one."""

_TRIES = 8
"""Engines a request may lose before it is given up."""


class Journey:
    """``begin`` it; its outputs arrive until the last, or an error.

    Args:
        request: what is asked.
        seating: says which engine is next.
        arrivals: gets the outputs.
        left: called with the request whenever it has ended, one way or another; twice does no harm.
    """

    def __init__(self, request: Request, seating: Seating, arrivals: Arrivals, left: Callable[[Request], None]) -> None:
        seed = request.params.seed
        # Drawn here, so that whoever goes on with it draws the same tokens.
        self._seed = secrets.randbits(63) if seed is None else seed
        self.request = replace(request, params=replace(request.params, seed=self._seed))
        self._seating = seating
        self._arrivals = arrivals
        self._left = left
        self._tokens: list[int] = []
        self._ticket: Ticket | None = None
        self._leaving = False
        """Its engine lets it go with its first token."""
        self._losses = 0
        self._stream: OutputStream | None = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Be accepted by a first engine. Raises like ``AsyncEngine.submit``; then ``end`` it."""
        self._stream = await self._enter()
        self._task = asyncio.create_task(self._run(self._stream))

    async def end(self) -> None:
        """Leave, wherever it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._stream is not None:
            await self._stream.aclose()
        self._settle(finished=False)
        self._left(self.request)

    async def abort(self) -> None:
        """Leave, and tell the client so."""
        await self.end()
        self._arrivals.put_nowait(Output(self.request.id, finish_reason="abort"))

    async def _run(self, stream: OutputStream) -> None:
        try:
            await self._travel(stream)
        except StatepoolError as error:
            self._arrivals.put_nowait(error)
        except Exception as error:
            log.exception("request %s was lost", self.request.id)
            self._arrivals.put_nowait(StatepoolError(f"the cluster failed: {type(error).__name__}: {error}"))
        finally:
            self._settle(finished=False)
            self._left(self.request)

    async def _travel(self, stream: OutputStream) -> None:
        while True:
            state = None
            try:
                async for output in stream:
                    self._note(output)
                    self._arrivals.put_nowait(output)
                    if output.finish_reason is not None:
                        self._settle(finished=True)
                        return
                state = stream.moved
                assert state is not None, "a stream without an end has moved"
            except Unavailable as error:
                self._lost(error)
                log.warning(
                    "request %s goes on with another engine behind %d tokens", self.request.id, len(self._tokens)
                )
            self._stream = stream = await self._enter(state)

    async def _enter(self, state: bytes | None = None) -> OutputStream:
        """Be accepted by the next engine: with ``state``, or, where there is none, behind the tokens that are known."""
        while True:
            worker = await self._next()
            engine = worker.engine
            try:
                if state is not None:
                    return await engine.adopt(self.request.id, state)
                if self._tokens:
                    return await engine.take_over(self.request, self._seed, self._tokens)
                wanted = self.request.params.max_tokens > 1 and not self.request.embed
                self._leaving = worker.role == "prefill" and wanted
                return await engine.submit(self.request, handoff=self._leaving)
            except Unavailable as error:
                self._lost(error)
            except StatepoolError as error:
                if state is None:
                    raise
                log.warning("the state of request %s is refused, its KV is computed again: %s", self.request.id, error)
            state = None

    async def _next(self) -> Worker:
        """Who is to have it now, with the books to match."""
        if not self._tokens:
            self._settle(finished=False)
            worker, self._ticket = await self._seating.first(self.request)
            return worker
        worker = await self._seating.next(self._ticket)
        if self._ticket is not None:
            self._seating.dispatcher.joined(self._ticket, worker.number)
        return worker

    def _lost(self, error: Unavailable) -> None:
        self._losses += 1
        if self._losses == _TRIES:
            raise error

    def _note(self, output: Output) -> None:
        dispatcher, ticket = self._seating.dispatcher, self._ticket
        if ticket is not None and output.tokens:
            if not self._tokens:
                dispatcher.prefilled(ticket)
                if not self._leaving:
                    dispatcher.joined(ticket, ticket.prefill)
            dispatcher.wrote(ticket, len(output.tokens))
        self._tokens += output.tokens

    def _settle(self, finished: bool) -> None:
        """Take this request off the books."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._seating.dispatcher.ended(ticket, finished)


class ClusterStream:
    """Outputs of some requests in order. Iterate to the end, or ``aclose``; both free the requests."""

    def __init__(self, journeys: Sequence[Journey], arrivals: Arrivals) -> None:
        self._journeys = {journey.request.id: journey for journey in journeys}
        self._arrivals = arrivals

    def __aiter__(self) -> ClusterStream:
        return self

    async def __anext__(self) -> Output:
        """The next output.

        Raises:
            Unavailable: no engine could go on with it.
            StatepoolError: an engine gave a request up.
        """
        if not self._journeys:
            raise StopAsyncIteration
        item = await self._arrivals.get()
        if isinstance(item, StatepoolError):
            await self.aclose()
            raise item
        if item.finish_reason is not None:
            self._journeys.pop(item.id, None)
        return item

    async def aclose(self) -> None:
        """Take what still runs out of the engines."""
        journeys, self._journeys = list(self._journeys.values()), {}
        for journey in journeys:
            await journey.end()
