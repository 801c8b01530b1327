"""The conductor's eyes in a live cluster: books of who does what, from which it gets the snapshots it decides on.

The same ``Conductor`` decides here and in the simulator. Everything below is counted at the gateway, so a decision asks
nobody: which engine was given what, what came back, and which blocks an engine that computed a prompt holds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import numpy as np

from statepool.core.errors import Overloaded
from statepool.engine.request import Request
from statepool.kv.keys import block_keys, root_key
from statepool.kv.layout import BLOCK_SIZE
from statepool.serve.conductor import Conductor
from statepool.serve.costs import NodeCosts
from statepool.serve.estimate import Estimator
from statepool.serve.overload import Patience
from statepool.serve.prefixes import PrefixIndex
from statepool.serve.snapshot import Ask, Completion, Decision, DecodePool, PrefillPool, Snapshot, Underway

__all__ = ["Dispatcher", "Ticket"]

P = TypeVar("P")

_SILENT_GAP_S = 5.0
"""A longer pause between two tokens was no decode step."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on the books, from decision to end."""

    ask: Ask
    decision: Decision
    prefill: int
    decode: int
    keys: list[bytes]
    given: float
    joined: float | None = None
    last: float | None = None
    written: int = 0


@dataclass(slots=True, eq=False)
class _Seat:
    """What one engine does, as the gateway knows it."""

    queue: dict[int, Ticket] = field(default_factory=dict)
    running: dict[int, Ticket] = field(default_factory=dict)
    free_at: float = 0.0
    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    @property
    def held(self) -> int:
        """Tokens of what it decodes."""
        return sum(ticket.ask.tokens + ticket.written for ticket in self.running.values())


class Dispatcher:
    """Decides where requests go, and learns from how they went.

    Args:
        seats: how many engines there are.
        conductor: the policies, under the estimator's first costs; they get new ones as these become known better.
        estimator: the costs.
        blocks: how many blocks an engine holds.
        clock: seconds.
    """

    def __init__(
        self,
        seats: int,
        conductor: Conductor,
        estimator: Estimator,
        blocks: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.estimator = estimator
        self.refused = 0
        self._conductor = _live(conductor)
        self._made_for = estimator.costs
        self._blocks = blocks
        self._clock = clock
        self._seats = [_Seat() for _ in range(seats)]
        self._index: PrefixIndex[bytes] = PrefixIndex(seats)
        self._asked = 0

    async def admit(self, request: Request, seats: Callable[[], Awaitable[tuple[list[int], list[int]]]]) -> Ticket:
        """``decide`` among the ``seats`` there are, and again for as long as the policy keeps the request.

        Raises:
            Overloaded: the admission policy refuses it for good.
        """
        came, keys = self._clock(), _keys(request)
        while True:
            there = await seats()
            answer = self.decide(request, *there, self._clock() - came, keys)
            if isinstance(answer, Ticket):
                return answer
            await asyncio.sleep(answer)

    def decide(
        self,
        request: Request,
        prefill: Sequence[int],
        decode: Sequence[int],
        waited_s: float = 0.0,
        keys: list[bytes] | None = None,
    ) -> Ticket | float:
        """Put a request on the books of one of the ``prefill`` and one of the ``decode`` seats.

        Args:
            waited_s: seconds since it arrived, if it was kept.
            keys: of its prompt's blocks, if they are known.

        Returns:
            Its ticket, or the seconds after which the admission policy wants to be asked again.

        Raises:
            Overloaded: the admission policy refuses it; with the time after which to try again.
        """
        now = self._clock()
        keys = _keys(request) if keys is None else keys
        ask = Ask(self._asked, now, len(request.prompt), -request.priority, waited_s)
        self._asked += 1
        decision = self._current().decide(ask, self._snapshot(keys, prefill, decode, now))
        if decision.ask_again_s:
            return decision.ask_again_s
        if decision.refused:
            self.refused += 1
            raise Overloaded(f"the server is busy: {decision.refused}; retry later", retry_after=decision.retry_after_s)
        ticket = Ticket(ask, decision, prefill[decision.prefill], decode[decision.decode], keys, now)
        self._seats[ticket.prefill].queue[ask.id] = ticket
        return ticket

    def prefilled(self, ticket: Ticket) -> None:
        """The first token of a request came."""
        now, seat = self._clock(), self._seats[ticket.prefill]
        seat.queue.pop(ticket.ask.id, None)
        self.estimator.prefilled(ticket.ask.tokens, ticket.decision.reuse, now - max(ticket.given, seat.free_at))
        seat.free_at = now
        for key in ticket.keys:
            if key in seat.blocks:
                seat.blocks.move_to_end(key)
                continue
            seat.blocks[key] = None
            self._index.add(ticket.prefill, key)
            if len(seat.blocks) > self._blocks:
                self._index.drop(ticket.prefill, seat.blocks.popitem(last=False)[0])

    def joined(self, ticket: Ticket, seat: int) -> None:
        """A request goes on in the batch of ``seat``."""
        self._seats[ticket.decode].running.pop(ticket.ask.id, None)
        ticket.decode, ticket.joined, ticket.last = seat, self._clock(), None
        self._seats[seat].running[ticket.ask.id] = ticket

    def wrote(self, ticket: Ticket, tokens: int) -> None:
        """Tokens of a request came."""
        now, seat = self._clock(), self._seats[ticket.decode]
        ticket.written += tokens
        if ticket.joined is not None and tokens:
            if ticket.last is not None and now - ticket.last < _SILENT_GAP_S:
                self.estimator.stepped(len(seat.running), seat.held, (now - ticket.last) / tokens)
            ticket.last = now

    def ended(self, ticket: Ticket, finished: bool) -> None:
        """A request is over; ``finished`` if its answer is whole."""
        self._seats[ticket.prefill].queue.pop(ticket.ask.id, None)
        self._seats[ticket.decode].running.pop(ticket.ask.id, None)
        if finished:
            self._conductor = self._conductor.told(Completion(ticket.ask.tokens, ticket.written))

    def lost(self, seat: int) -> None:
        """The engine of a seat has ended, and its blocks with it."""
        books = self._seats[seat]
        for key in books.blocks:
            self._index.drop(seat, key)
        self._seats[seat] = _Seat(running=books.running)

    def load(self, seat: int) -> tuple[int, int]:
        """Prompt tokens a seat has not computed yet, and tokens it decodes."""
        books = self._seats[seat]
        return sum(ticket.ask.tokens for ticket in books.queue.values()), books.held

    def _current(self) -> Conductor:
        """The conductor under the costs of now; what its admission has learnt stays."""
        if self._made_for is not self.estimator.costs:
            self._made_for = self.estimator.costs
            now = self._conductor
            self._conductor = Conductor(_under(now.placement, self._made_for), _under(now.admission, self._made_for))
        return self._conductor

    def _snapshot(self, keys: Sequence[bytes], prefill: Sequence[int], decode: Sequence[int], now: float) -> Snapshot:
        ready = self._index.match(keys)[list(prefill)] * BLOCK_SIZE
        seats = [self._seats[i] for i in prefill]
        queues = [list(seat.queue.values()) for seat in seats]
        queue_s = [
            max(sum(t.decision.prefill_s for t in queue) - (now - max(queue[0].given, seat.free_at) if queue else 0), 0)
            for seat, queue in zip(seats, queues, strict=True)
        ]
        pool = PrefillPool(
            queue_s=np.array(queue_s, np.float64),
            busy_s=np.zeros(len(seats)),
            queued_tokens=np.array([sum(t.ask.tokens - t.decision.reuse for t in queue) for queue in queues], np.int64),
            queued_context=np.array([sum(t.ask.tokens for t in queue) for queue in queues], np.int64),
            held=ready,
            ready=ready,
            after_rank=np.full(len(seats), -math.inf),
            link_s=np.zeros(len(seats)),
            stretch=np.ones(len(seats)),
        )
        coming: dict[int, list[Ticket]] = {i: [] for i in decode}
        for seat in self._seats:
            for ticket in seat.queue.values():
                coming.setdefault(ticket.decode, []).append(ticket)
        running = [self._seats[i] for i in decode]
        places = {seat: place for place, seat in enumerate(decode)}
        underway = [
            Underway(places[i], t.joined - now if t.joined is not None else 0.0, t.ask.tokens + t.written, t.written)
            for i in decode
            for t in self._seats[i].running.values()
        ]
        underway += [
            Underway(places[i], max(t.given + t.decision.ttft_s - now, 0.0), t.ask.tokens, 1)
            for i in decode
            for t in coming[i]
        ]
        return Snapshot(
            pool,
            DecodePool(
                batch=np.array([len(seat.running) for seat in running], np.int64),
                tokens=np.array([seat.held for seat in running], np.int64),
                coming=np.array([len(coming[i]) for i in decode], np.int64),
                coming_tokens=np.array([sum(t.ask.tokens for t in coming[i]) for i in decode], np.int64),
                underway=tuple(underway),
            ),
        )


def _live(conductor: Conductor) -> Conductor:
    """Here a first token is handed out as soon as it is there: to wait for room behind it would be a gap."""
    admission = conductor.admission
    if not isinstance(admission, Patience):
        return conductor
    return replace(conductor, admission=replace(admission, wait_share=0.0))


def _keys(request: Request) -> list[bytes]:
    return block_keys(request.prompt, BLOCK_SIZE, root_key(request.salt))


def _under(policy: P, costs: NodeCosts) -> P:
    """``policy`` with other costs, if it has any."""
    known = {item.name for item in fields(policy)}  # type: ignore[arg-type]
    return replace(policy, costs=costs) if "costs" in known else policy  # type: ignore[type-var]
