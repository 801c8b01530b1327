"""One room in a process of its own: ``python -m statepool.house.room store|sandbox … --listen ADDRESS``.

It prints ``… at ADDRESS`` once it answers, and ends with SIGTERM or, asked with ``--with-parent``, with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from statepool.core.command import adder, run
from statepool.core.sockets import listen_at

__all__ = ["main"]

_PARENT_POLL_SECONDS = 0.5


def main(arguments: list[str]) -> int:
    """Run one room until it is told to end."""
    tree = argparse.ArgumentParser(prog="statepool.house.room", description="One room of the platform.")
    command = adder(tree)
    store = command("store", "the durable store", lambda options: _serve(_store(options), options))
    store.add_argument("path", type=Path)
    store.add_argument("--capacity", required=True)
    sandbox = command("sandbox", "the sandbox server", lambda options: _serve(_sandbox(options), options))
    sandbox.add_argument("--driver", required=True)
    sandbox.add_argument("--ready", type=int, required=True)
    sandbox.add_argument("--most", type=int, required=True)
    sandbox.add_argument("--network", action="store_true")
    sandbox.add_argument("--template", type=Path, action="append", default=[])
    for each in (store, sandbox):
        each.add_argument("--listen", required=True)
        each.add_argument("--with-parent", action="store_true")
    return run("statepool.house.room", tree.parse_args(arguments))


def _serve(room: AbstractAsyncContextManager[str], options: argparse.Namespace) -> int:
    async def until_told() -> None:
        stop, parent = asyncio.Event(), os.getppid()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        # A terminal sends Ctrl-C to parent and child alike; the parent ends its rooms when their users are served.
        loop.add_signal_handler(signal.SIGINT, (lambda: None) if options.with_parent else stop.set)
        async with room as address:
            print(f"{options.command} at {address}", flush=True)
            while not stop.is_set() and not (options.with_parent and os.getppid() != parent):
                try:
                    await asyncio.wait_for(stop.wait(), _PARENT_POLL_SECONDS)
                except TimeoutError:
                    continue

    asyncio.run(until_told())
    return 0


@asynccontextmanager
async def _store(options: argparse.Namespace) -> AsyncIterator[str]:
    from statepool.store.net.serving import Serving

    options.path.parent.mkdir(parents=True, exist_ok=True)
    serving = Serving(options.path, options.listen, capacity=options.capacity)
    await serving.start()
    try:
        yield options.listen
    finally:
        await serving.stop()


@asynccontextmanager
async def _sandbox(options: argparse.Namespace) -> AsyncIterator[str]:
    import uvicorn

    from statepool.sandbox.pool import Pool
    from statepool.sandbox.server.app import create_app
    from statepool.sandbox.server.registry import Registry
    from statepool.sandbox.template import Template

    listener = _listen(options.listen)
    host, port = listener.getsockname()[:2]
    templates = [Template.read(path) for path in options.template]
    with listener, Pool(templates, driver=options.driver, low=options.ready, most=options.most) as pool:
        for name in pool.templates:
            await asyncio.to_thread(pool.fill, name, options.ready)
        app = create_app(Registry(pool, network=options.network))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3))
        server.capture_signals = _no_signals  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            await serving


def _no_signals() -> AbstractAsyncContextManager[None]:
    """In place of uvicorn's handlers: the signals are this module's."""
    import contextlib

    return contextlib.nullcontext()


def _listen(address: str) -> socket.socket:
    parts = urlsplit(address)
    assert parts.hostname is not None, "the house gives an address with a host"
    return listen_at(parts.hostname, parts.port or 0, "another sandbox.port", "sandbox.port")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
