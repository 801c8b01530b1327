"""Several engines as one: the surface of ``AsyncEngine``, with every request on its way through the workers.

A request starts on a prefill engine, which gives its blocks to the shared pool and lets it go with the first token;
a decode engine takes it up from there. What an engine that died had handed out is known here, so another goes on
behind it with the same tokens: noise is keyed by (seed, index, position), never by where a token is made.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from statepool.cluster import Launcher, launcher
from statepool.core.errors import InvalidRequest, NotFound, StatepoolError, Unavailable
from statepool.engine.config import EngineConfig, EngineStats, ModelInfo
from statepool.engine.request import Output, Request
from statepool.kv.layout import BLOCK_SIZE
from statepool.serve.attention_workers import attended, attention_workers
from statepool.serve.config import ServeConfig
from statepool.serve.dispatcher import Dispatcher, Ticket
from statepool.serve.engine_client import OutputStream
from statepool.serve.estimate import Estimator, live_costs
from statepool.serve.kept import KeptProcesses
from statepool.serve.messages import ENGINE_FACTORY
from statepool.serve.policies import conductor
from statepool.serve.pool_nodes import pool_nodes
from statepool.serve.snapshot import SLO
from statepool.serve.surface import EngineLoad, check_entry
from statepool.serve.workers import Role, Worker, Workers, nobody

__all__ = ["Cluster", "ClusterStream"]

log = logging.getLogger("statepool.serve")

_Outputs: TypeAlias = "asyncio.Queue[Output | StatepoolError]"
"""Where the outputs of all requests of one call arrive, or the error that ended one."""

_TRIES = 8
"""Engines a request may lose before it is given up."""
_WAIT_SECONDS = 20.0
"""How long a request waits for an engine of the role it needs."""


class Cluster:
    """Engines by role behind one surface. ``start`` it, ``wait_ready``, ``close`` it.

    Args:
        config: of the server; ``config.cluster`` says how many engines of which role.
        factory: what makes an engine.
    """

    def __init__(self, config: ServeConfig, factory: str = ENGINE_FACTORY) -> None:
        self._config = config
        self._factory = factory
        self._folder: Path | None = None
        self._launcher: Launcher | None = None
        self.nodes: KeptProcesses | None = None
        self.attention: KeptProcesses | None = None
        self._workers: Workers | None = None
        self._dispatcher: Dispatcher | None = None
        self._journeys: dict[str, _Journey] = {}
        self._homes: dict[tuple[str, str], int] = {}  # (salt, session) -> number of its engine
        self._left = asyncio.Event()
        self.failure: str | None = None
        """Why no request can be served, ever; engines that end are replaced, so nothing but ``close`` sets it."""
        self.on_queue_seconds: Callable[[float], None] | None = None

    async def start(self) -> None:
        """Start the pool and the engines; ``wait_ready`` waits for these.

        Raises:
            InvalidConfig: the pool cannot start.
        """
        cluster, engine = self._config.cluster, self._config.engine
        self._launcher = launcher(cluster.ray)
        self._folder = Path(tempfile.mkdtemp(prefix="statepool-"))
        counts: dict[Role, int] = {"prefill": cluster.prefill, "decode": cluster.decode, "mixed": cluster.workers}
        roles = [role for role, count in counts.items() for _ in range(count)]
        # One engine whose KV outlives it on attention workers has nobody to share it with.
        alone = engine.attention_workers is not None and len(roles) == 1 and cluster.pool_dir is None
        if engine.pool is None and not alone:
            self.nodes = pool_nodes(cluster, self._folder, _block_bytes(engine), self._launcher)
            await self.nodes.start()
            engine = replace(engine, pool=",".join(self.nodes.addresses))
        self.attention = attention_workers(engine, len(roles), self._folder, self._launcher)
        workers = [address for address in (engine.attention_workers or "").split(",") if address]
        if self.attention is not None:
            await self.attention.start()
            workers = self.attention.addresses
        configs = attended(engine, len(roles), workers)
        self._workers = Workers(
            roles, configs, self._config.max_in_flight, cluster.stall_seconds, self._factory, self._launcher
        )
        self._workers.on_queue_seconds = lambda seconds: self.on_queue_seconds and self.on_queue_seconds(seconds)
        await self._workers.start()

    @property
    def workers(self) -> Workers:
        """All engines."""
        assert self._workers is not None, "start() comes first"
        return self._workers

    async def wait_ready(self) -> ModelInfo:
        """What is being served, once every engine has loaded it."""
        info = await self.workers.wait_ready()
        if self._dispatcher is None:
            cluster, kv_bytes = self._config.cluster, self._config.engine.kv_bytes
            estimator = Estimator(live_costs(info.kv_token_bytes, kv_bytes // info.kv_token_bytes))
            slo = SLO(cluster.slo_ttft, cluster.slo_tbt)
            policies = conductor(cluster.policy, cluster.admission, estimator.costs, slo)
            blocks = kv_bytes // info.kv_token_bytes // BLOCK_SIZE
            self._dispatcher = Dispatcher(len(self.workers.all), policies, estimator, blocks)
            self.workers.on_loss = self._dispatcher.lost
        return info

    @property
    def dispatcher(self) -> Dispatcher:
        """Who decides where requests go."""
        assert self._dispatcher is not None, "wait_ready() comes first"
        return self._dispatcher

    @property
    def stats(self) -> EngineStats:
        """Counters and gauges of all engines together, as of their last pulses."""
        return _sum([worker.engine.stats for worker in self.workers.all])

    async def refresh_stats(self) -> EngineStats:
        """Counters of this moment."""
        await asyncio.gather(*(worker.engine.refresh_stats() for worker in self.workers.all if worker.usable))
        return self.stats

    @property
    def in_flight(self) -> int:
        """Sequences accepted and not finished."""
        return len(self._journeys)

    async def submit(self, *requests: Request) -> ClusterStream:
        """Queue requests; see ``AsyncEngine.submit``."""
        if self.failure is not None:
            raise self.gone()
        names = [request.id for request in requests]
        check_entry(names, self._journeys, len(self._journeys), self._config.max_in_flight)
        outputs: _Outputs = asyncio.Queue()
        journeys = [_Journey(self, request, outputs) for request in requests]
        self._journeys |= {journey.request.id: journey for journey in journeys}
        try:
            for journey in journeys:
                await journey.begin()
        except BaseException:
            for journey in journeys:
                await journey.end()
            raise
        return ClusterStream(journeys, outputs)

    async def call(self, method: str, **arguments: Any) -> Any:
        """Run one of ``commands.Commands``: on every engine, or on the one that has the session named.

        Raises:
            StatepoolError: what an engine raised.
            Unavailable: the engine of the session, or every engine, is gone.
        """
        if method in ("drop_session", "fork_session", "park_session"):
            salt, name = arguments.get("salt", ""), arguments["name"]
            home = self.home(salt, name)
            answer = await home.engine.call(method, **arguments)
            if method == "fork_session":  # it shares blocks with the first, so it lives where that does
                self._homes[salt, arguments["new"]] = home.number
            elif method == "drop_session":
                self._homes.pop((salt, name), None)
            return answer
        if method in ("pause", "resume", "update_weights"):
            return await self.workers.order(method, **arguments)
        usable = [worker for worker in self.workers.all if worker.usable]
        if not usable:
            raise nobody("")
        answers = await asyncio.gather(*(worker.engine.call(method, **arguments) for worker in usable))
        return sorted(name for names in answers for name in names) if method == "session_names" else answers[0]

    def seat(self, number: int) -> Worker:
        """The engine of a number.

        Raises:
            NotFound: there is none.
        """
        if not 0 <= number < len(self.workers.all):
            raise NotFound(f"there is no engine {number}; there are {len(self.workers.all)}, from 0", param="number")
        return self.workers.all[number]

    def set_role(self, number: int, role: Role) -> None:
        """Let an engine do something else from now on; what runs on it stays.

        Raises:
            NotFound: no such engine.
            InvalidRequest: nobody would be left for prefill, or for decode.
        """
        worker = self.seat(number)
        after = [role if each is worker else each.role for each in self.workers.all]
        for needed in ("prefill", "decode"):
            if needed not in after and "mixed" not in after:
                raise InvalidRequest(f"then no engine would be left for {needed}", param="role")
        worker.role = role

    async def restart(self, number: int) -> None:
        """Give one engine a new process; requests that outlast ``drain_seconds`` go on elsewhere."""
        await self.workers.restart(self.seat(number), self._config.drain_seconds)

    async def idle(self) -> None:
        """Wait until no sequence is in flight."""
        while self._journeys:
            self._left.clear()
            await self._left.wait()

    async def abort_all(self) -> None:
        """End every stream with the finish reason ``abort``."""
        for journey in list(self._journeys.values()):
            await journey.abort()

    async def close(self) -> None:
        """Stop everything and free what it used. Safe to call twice."""
        if self._folder is None:
            return
        folder, self._folder = self._folder, None
        self.failure = "the server is shutting down"
        for journey in list(self._journeys.values()):
            await journey.end()
        if self._workers is not None:
            await self._workers.close()
        if self.nodes is not None:
            await self.nodes.close()
        if self.attention is not None:
            await self.attention.close()
        if self._launcher is not None:
            await self._launcher.close()
        shutil.rmtree(folder, ignore_errors=True)

    def loads(self) -> list[EngineLoad]:
        """Every engine and what it does."""
        found = []
        for worker in self.workers.all:
            queued, held = self.dispatcher.load(worker.number)
            found.append(
                EngineLoad.of(
                    worker.engine.stats,
                    worker.engine.pid if worker.ready.is_set() else None,
                    number=worker.number,
                    role=worker.role,
                    usable=worker.usable,
                    replaced=worker.replaced,
                    queued_tokens=queued,
                    held_tokens=held,
                )
            )
        return found

    def pool_addresses(self) -> list[str]:
        """The nodes of the KV pool."""
        return self.workers.configs[0].pool_addresses

    def gone(self) -> StatepoolError:
        """The error for whoever comes after the end."""
        return Unavailable(self.failure or "the cluster has ended")

    # -- where a request goes ----------------------------------------------------------------------

    def home(self, salt: str, session: str) -> Worker:
        """The engine that keeps a session: always the same for one name, whatever roles change.

        Raises:
            Unavailable: it is just being replaced.
        """
        number = self._homes.get((salt, session))
        if number is None:
            seats = [worker.number for worker in self.workers.all if worker.role != "prefill"]
            digest = blake2b(f"{len(salt)}:{salt}{session}".encode(), digest_size=8).digest()
            number = seats[int.from_bytes(digest, "little") % len(seats)]
        seat = self.workers.all[number]
        if not seat.usable:
            raise Unavailable(f"the engine of session {session!r} is being replaced; retry later")
        return seat

    async def first(self, request: Request) -> tuple[Worker, Ticket | None]:
        """The engine a request starts on, and what the conductor decided; no ticket for a session, which has its place.

        Raises:
            Overloaded: it is not admitted. Unavailable: no engine is there.
        """
        if request.session is not None:
            home = self.home(request.salt, request.session)
            self._homes[request.salt, request.session] = home.number
            return home, None
        ticket = await self.dispatcher.admit(request, self._places)
        return self.workers.all[ticket.prefill], ticket

    async def next(self, ticket: Ticket | None) -> Worker:
        """The engine a request goes on with behind its first token: the one decided on, if it is still there."""
        usable = await self._usable("decode", "mixed")
        chosen = [worker for worker in usable if ticket is not None and worker.number == ticket.decode]
        return chosen[0] if chosen else min(usable, key=lambda worker: self.dispatcher.load(worker.number)[1])

    def left(self, request: Request) -> None:
        """A request has ended, one way or another."""
        self._journeys.pop(request.id, None)
        self._left.set()

    async def _places(self) -> tuple[list[int], list[int]]:
        starts, goes_on = await self._usable("prefill", "mixed"), await self._usable("decode", "mixed")
        return [worker.number for worker in starts], [worker.number for worker in goes_on]

    async def _usable(self, *roles: Role) -> list[Worker]:
        deadline = asyncio.get_running_loop().time() + _WAIT_SECONDS
        while not (found := self.workers.of(*roles)):
            if self.failure is not None or asyncio.get_running_loop().time() > deadline:
                raise nobody(" or ".join(roles))
            await asyncio.sleep(0.05)
        return found


class _Journey:
    """One request from its first engine to its last token."""

    def __init__(self, cluster: Cluster, request: Request, outputs: _Outputs) -> None:
        seed = request.params.seed
        # Drawn here, so that whoever goes on with it draws the same tokens.
        self.seed = secrets.randbits(63) if seed is None else seed
        self.request = replace(request, params=replace(request.params, seed=self.seed))
        self._outputs = outputs
        self._cluster = cluster
        self._tokens: list[int] = []
        self._stream: OutputStream | None = None
        self._ticket: Ticket | None = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Be accepted by a first engine. Raises like ``AsyncEngine.submit``."""
        for attempt in range(_TRIES):
            worker, self._ticket = await self._cluster.first(self.request)
            try:
                self._stream = await worker.engine.submit(self.request, handoff=self._leaves(worker))
            except StatepoolError as error:
                self._settle(finished=False)
                if attempt == _TRIES - 1 or not isinstance(error, Unavailable):
                    raise
                continue
            self._task = asyncio.create_task(self._run())
            return

    async def end(self) -> None:
        """Leave, wherever it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._stream is not None:
            await self._stream.aclose()
        self._settle(finished=False)
        self._cluster.left(self.request)

    async def abort(self) -> None:
        """Leave, and tell the client so."""
        await self.end()
        self._outputs.put_nowait(Output(self.request.id, finish_reason="abort"))

    async def _run(self) -> None:
        try:
            await self._travel()
        except StatepoolError as error:
            self._outputs.put_nowait(error)
        except Exception as error:
            log.exception("request %s was lost", self.request.id)
            self._outputs.put_nowait(StatepoolError(f"the cluster failed: {type(error).__name__}: {error}"))
        finally:
            self._settle(finished=False)
            self._cluster.left(self.request)

    async def _travel(self) -> None:
        losses = 0
        while True:
            assert self._stream is not None
            try:
                async for output in self._stream:
                    self._note(output)
                    self._outputs.put_nowait(output)
                    if output.finish_reason is not None:
                        self._settle(finished=True)
                        return
                # Its prefill engine let it go.
                assert self._stream.moved is not None, "a stream without an end has moved"
                self._stream = await self._go_on(self._stream.moved)
            except Unavailable:
                losses += 1
                if losses == _TRIES or self._cluster.failure is not None:
                    raise
                log.warning(
                    "request %s goes on with another engine behind %d tokens", self.request.id, len(self._tokens)
                )
                self._stream = await self._go_on(None)

    async def _go_on(self, state: bytes | None) -> OutputStream:
        """Enter another engine: with ``state``, or, if that is lost, behind the tokens that are known."""
        while True:
            if self._tokens:
                worker = await self._cluster.next(self._ticket)
                if self._ticket is not None:
                    self._cluster.dispatcher.joined(self._ticket, worker.number)
            else:
                self._settle(finished=False)
                worker, self._ticket = await self._cluster.first(self.request)
            engine = worker.engine
            try:
                if state is not None:
                    return await engine.adopt(self.request.id, state)
                if not self._tokens:
                    return await engine.submit(self.request, handoff=self._leaves(worker))
                return await engine.take_over(self.request, self.seed, self._tokens)
            except Unavailable:
                if self._cluster.failure is not None:
                    raise
            except StatepoolError as error:
                if state is None:
                    raise
                log.warning("the state of request %s is refused, its KV is computed again: %s", self.request.id, error)
            state = None

    def _leaves(self, worker: Worker) -> bool:
        """Whether another engine is to go on behind the first token."""
        return worker.role == "prefill" and self.request.params.max_tokens > 1 and not self.request.embed

    def _note(self, output: Output) -> None:
        dispatcher, ticket = self._cluster.dispatcher, self._ticket
        if ticket is not None and output.tokens:
            if not self._tokens:
                dispatcher.prefilled(ticket)
                if not self._leaves(self._cluster.workers.all[ticket.prefill]):
                    dispatcher.joined(ticket, ticket.prefill)
            dispatcher.wrote(ticket, len(output.tokens))
        self._tokens += output.tokens

    def _settle(self, finished: bool) -> None:
        """Take this request off the books."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._cluster.dispatcher.ended(ticket, finished)


class ClusterStream:
    """Outputs of some requests in order. Iterate to the end, or ``aclose``; both free the requests."""

    def __init__(self, journeys: Sequence[_Journey], outputs: _Outputs) -> None:
        self._journeys = {journey.request.id: journey for journey in journeys}
        self._outputs = outputs

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
        item = await self._outputs.get()
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


def _block_bytes(config: EngineConfig) -> int:
    from statepool.engine.engine import kv_layout

    return kv_layout(config).block_bytes


def _sum(parts: Sequence[EngineStats]) -> EngineStats:
    """Counters of several engines together."""
    values: dict[str, Any] = {}
    for item in fields(EngineStats):
        each = [getattr(part, item.name) for part in parts]
        values[item.name] = (
            any(each) if isinstance(each[0], bool) else each[0] if isinstance(each[0], str) else sum(each)
        )
    return EngineStats(**values)
