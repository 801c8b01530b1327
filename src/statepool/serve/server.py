"""Runs one server: engine process first, then the HTTP stack, then requests until a signal says to stop.

The engine loads while the HTTP stack is still being imported, so the imports of the latter are inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import uvloop

from statepool.core.errors import StatepoolError
from statepool.core.sockets import listen_at
from statepool.serve.config import ServeConfig
from statepool.serve.engine_client import AsyncEngine
from statepool.serve.messages import ENGINE_FACTORY
from statepool.web import url_of, uvicorn_server

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from statepool.serve.cluster import Cluster
    from statepool.serve.state import GatewayState
    from statepool.serve.surface import Serving

log = logging.getLogger("statepool.serve")

Extend: TypeAlias = "Callable[[FastAPI], None]"

_LAST_BYTES_SECONDS = 3


def serve(config: ServeConfig, *, factory: str = ENGINE_FACTORY, extend: Extend | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status. See ``run``."""
    return uvloop.run(run(config, factory=factory, extend=extend))


async def run(config: ServeConfig, *, factory: str = ENGINE_FACTORY, extend: Extend | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status.

    The first signal stops admission and lets running requests finish for ``drain_seconds``; a second one
    ends them.

    Args:
        config: what to serve, and where.
        factory: what makes an engine.
        extend: adds routes to the application, such as those of the dashboard.

    Raises:
        InvalidConfig: the address cannot be listened on.
        StatepoolError: the engine could not be built.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # It warns once per write to a connection that is lost, until it says so itself; a crowd that leaves fills the log.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    listener = _listen(config)
    engine = await _start(config, factory)
    try:
        ready = asyncio.create_task(engine.wait_ready())
        from statepool.serve.containers import Containers
        from statepool.serve.gateway import build_app
        from statepool.serve.metrics import QUEUE, ServerMetrics
        from statepool.serve.response_store import ResponseStore
        from statepool.serve.state import GatewayState

        containers = Containers(config.code)
        metrics, responses = ServerMetrics(config.vllm_metric_names), ResponseStore(config.stored_responses)
        state = GatewayState(config, engine, metrics, responses, containers)
        engine.on_queue_seconds = lambda seconds: state.metrics.observe(QUEUE, seconds)
        app = build_app(state)
        if extend is not None:
            extend(app)
        server = uvicorn_server(
            app,
            lifespan="off",
            timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
            server_header=False,
            http="httptools",
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await _load(state, ready)
            _announce(config, listener, state)
            with _signals(state, server):
                await serving
        finally:
            server.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            await containers.aclose()
    finally:
        listener.close()
        await engine.close()
    return 0


async def _start(config: ServeConfig, factory: str) -> Serving:
    """The one engine, or all of them, on their way to being ready."""
    if config.engine.attention_workers is not None and not config.cluster.engines:
        # Alone, but replaced when it ends: the KV is not its own.
        config = replace(config, cluster=replace(config.cluster, workers=1))
    serving: Cluster | AsyncEngine
    if config.cluster.engines:
        from statepool.serve.cluster import Cluster

        serving = Cluster(config, factory)
        started = serving.start()
    else:
        serving = AsyncEngine(config.max_in_flight, start_seconds=config.start_seconds)
        started = serving.start(config.engine, factory=factory)
    try:
        await started
    except BaseException:
        await serving.close()
        raise
    return serving


async def _load(state: GatewayState, ready: asyncio.Task[object]) -> None:
    """Wait for the engine, reading the tokenizer in the meantime where that is possible."""
    from statepool.engine.text.template import ChatTemplate
    from statepool.engine.text.tokenizer import Tokenizer
    from statepool.serve.served_model import ServedModel

    await ready
    info = await state.engine.wait_ready()
    state.model = ServedModel(
        info=info,
        tokenizer=Tokenizer.load(info.path),
        template=ChatTemplate.load(info.path),
        created=int(state.wall_clock()),
        tool_format=state.config.tool_format,
        attention=state.config.engine.attention,
    )
    state.model.tool_parser([])


def _listen(config: ServeConfig) -> socket.socket:
    listener = listen_at(config.host, config.port, "another --host or --port", "port")
    listener.setblocking(False)
    return listener


def _announce(config: ServeConfig, listener: socket.socket, state: GatewayState) -> None:
    assert state.model is not None, "announced before the model was there"
    url = url_of(listener)
    lines = [f"serving {state.model.id} ({state.model.info.quant})", f"  API   {url}/v1"]
    if config.chat_page is not None:
        lines.append(f"  chat  {url}/")
    lines += [f"  {label}  {url}{path}" for label, path in state.pages.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _signals(state: GatewayState, server: uvicorn.Server) -> Iterator[None]:
    """Drain on the first SIGINT or SIGTERM, leave at once on the second."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        if state.draining:
            server.should_exit = server.force_exit = True
            return
        state.draining = True
        tasks.append(asyncio.create_task(_drain(state, server)))

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
        for task in tasks:
            task.cancel()


async def _drain(state: GatewayState, server: uvicorn.Server) -> None:
    log.info("shutting down: %d sequences may finish for %g s", state.engine.in_flight, state.config.drain_seconds)
    try:
        await asyncio.wait_for(state.engine.idle(), state.config.drain_seconds)
    except TimeoutError:
        log.warning("ending %d sequences that did not finish in time", state.engine.in_flight)
        await state.engine.abort_all()
    except StatepoolError as error:
        log.warning("nothing to wait for: %s", error.message)
    server.should_exit = True
