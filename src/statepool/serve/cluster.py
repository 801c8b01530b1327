"""Several engines as one: the surface of ``AsyncEngine``, with every request on its way through the workers.

Here are the processes: the pool, the engines, their start and end. A request starts on a prefill engine, which gives
its blocks to the shared pool and lets it go with the first token; a decode engine takes it up from there. A ``Journey``
knows what an engine that died had handed out, so another goes on behind it with the same tokens: noise is keyed by
(seed, index, position), never by where a token is made.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from statepool.cluster import Launcher, launcher
from statepool.core.errors import InvalidRequest, NotFound, StatepoolError, Unavailable
from statepool.engine.config import EngineConfig, EngineStats, ModelInfo
from statepool.engine.request import Request
from statepool.kv.layout import BLOCK_SIZE
from statepool.serve.attention_workers import attended, attention_workers
from statepool.serve.config import ServeConfig
from statepool.serve.dispatcher import Dispatcher
from statepool.serve.estimate import Estimator, live_costs
from statepool.serve.journey import Arrivals, ClusterStream, Journey
from statepool.serve.kept import KeptProcesses
from statepool.serve.messages import ENGINE_FACTORY
from statepool.serve.policies import conductor
from statepool.serve.pool_nodes import pool_nodes
from statepool.serve.seating import Seating
from statepool.serve.snapshot import SLO
from statepool.serve.surface import EngineLoad, check_entry
from statepool.serve.workers import Role, Worker, Workers, nobody

__all__ = ["Cluster"]


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
        self._seating: Seating | None = None
        self._journeys: dict[str, Journey] = {}
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
            roles,
            configs,
            self._config.max_in_flight,
            cluster.stall_seconds,
            self._factory,
            self._launcher,
            self._config.start_seconds,
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
        if self._seating is None:
            cluster, kv_bytes = self._config.cluster, self._config.engine.kv_bytes
            estimator = Estimator(live_costs(info.kv_token_bytes, kv_bytes // info.kv_token_bytes))
            slo = SLO(cluster.slo_ttft, cluster.slo_tbt)
            policies = conductor(cluster.policy, cluster.admission, estimator.costs, slo)
            blocks = kv_bytes // info.kv_token_bytes // BLOCK_SIZE
            dispatcher = Dispatcher(len(self.workers.all), policies, estimator, blocks)
            self.workers.on_loss = dispatcher.lost
            self._seating = Seating(self.workers, dispatcher)
        return info

    @property
    def seating(self) -> Seating:
        """Who says where requests go."""
        assert self._seating is not None, "wait_ready() comes first"
        return self._seating

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
        arrivals: Arrivals = asyncio.Queue()
        journeys = [Journey(request, self.seating, arrivals, self._forget) for request in requests]
        self._journeys |= {journey.request.id: journey for journey in journeys}
        try:
            for journey in journeys:
                await journey.begin()
        except BaseException:
            for journey in journeys:
                await journey.end()
            raise
        return ClusterStream(journeys, arrivals)

    async def call(self, method: str, **arguments: Any) -> Any:
        """Run one of ``commands.Commands``: on every engine, or on the one that has the session named.

        Raises:
            StatepoolError: what an engine raised.
            Unavailable: the engine of the session, or every engine, is gone.
        """
        if method in ("drop_session", "fork_session", "park_session"):
            salt, name = arguments.get("salt", ""), arguments["name"]
            home = self.seating.home(salt, name)
            answer = await home.engine.call(method, **arguments)
            if method == "fork_session":  # it shares blocks with the first, so it lives where that does
                self.seating.keep(salt, arguments["new"], home)
            elif method == "drop_session":
                self.seating.forget(salt, name)
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
        if self._seating is not None:
            self._seating.closed = True
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
            queued, held = self.seating.dispatcher.load(worker.number)
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

    def _forget(self, request: Request) -> None:
        """A request has ended."""
        self._journeys.pop(request.id, None)
        self._left.set()


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
