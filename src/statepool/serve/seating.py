"""Which engine a request takes: the one that keeps its session, or the one the conductor decided on."""

from __future__ import annotations

import asyncio
from hashlib import blake2b

from statepool.core.errors import Unavailable
from statepool.engine.request import Request
from statepool.serve.dispatcher import Dispatcher, Ticket
from statepool.serve.workers import Role, Worker, Workers, nobody

__all__ = ["Seating"]

_WAIT_SECONDS = 20.0
"""How long a request waits for an engine of the role it needs."""


class Seating:
    """All engines, and who goes where.

    Args:
        workers: the engines.
        dispatcher: decides, and keeps the books of requests that have no session.
    """

    def __init__(self, workers: Workers, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.closed = False
        """Nobody is seated any more."""
        self._workers = workers
        self._homes: dict[tuple[str, str], int] = {}  # (salt, session) -> number of its engine

    def home(self, salt: str, session: str) -> Worker:
        """The engine that keeps a session: always the same for one name, whatever roles change.

        Raises:
            Unavailable: it is just being replaced.
        """
        number = self._homes.get((salt, session))
        if number is None:
            seats = [worker.number for worker in self._workers.all if worker.role != "prefill"]
            digest = blake2b(f"{len(salt)}:{salt}{session}".encode(), digest_size=8).digest()
            number = seats[int.from_bytes(digest, "little") % len(seats)]
        seat = self._workers.all[number]
        if not seat.usable:
            raise Unavailable(f"the engine of session {session!r} is being replaced; retry later")
        return seat

    def keep(self, salt: str, session: str, home: Worker) -> None:
        """A session lives on ``home`` from now on."""
        self._homes[salt, session] = home.number

    def forget(self, salt: str, session: str) -> None:
        """A session is no more."""
        self._homes.pop((salt, session), None)

    async def first(self, request: Request) -> tuple[Worker, Ticket | None]:
        """The engine a request starts on, and what the conductor decided; no ticket for a session, which has its place.

        Raises:
            Overloaded: it is not admitted. Unavailable: no engine is there.
        """
        if request.session is not None:
            home = self.home(request.salt, request.session)
            self.keep(request.salt, request.session, home)
            return home, None
        ticket = await self.dispatcher.admit(request, self._seats)
        return self._workers.all[ticket.prefill], ticket

    async def next(self, ticket: Ticket | None) -> Worker:
        """The engine a request goes on with behind its first token: the one decided on, if it is still there.

        Raises:
            Unavailable: no engine is there.
        """
        usable = await self._usable("decode", "mixed")
        chosen = [worker for worker in usable if ticket is not None and worker.number == ticket.decode]
        return chosen[0] if chosen else min(usable, key=lambda worker: self.dispatcher.load(worker.number)[1])

    async def _seats(self) -> tuple[list[int], list[int]]:
        starts, goes_on = await self._usable("prefill", "mixed"), await self._usable("decode", "mixed")
        return [worker.number for worker in starts], [worker.number for worker in goes_on]

    async def _usable(self, *roles: Role) -> list[Worker]:
        deadline = asyncio.get_running_loop().time() + _WAIT_SECONDS
        while self.closed or not (found := self._workers.of(*roles)):
            if self.closed or asyncio.get_running_loop().time() > deadline:
                raise nobody(" or ".join(roles))
            await asyncio.sleep(0.05)
        return found
