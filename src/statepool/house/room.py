"""One room in a process of its own: ``python -m statepool.house.room store|sandbox|vector … --listen ADDRESS``.

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
from statepool.web import HttpServer

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
    vector = command("vector", "the server of an index", lambda options: _serve(_vector(options), options))
    vector.add_argument("path", type=Path)
    for each in (store, sandbox, vector):
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
    from statepool.sandbox.pool import Pool
    from statepool.sandbox.server.app import create_app
    from statepool.sandbox.server.registry import Registry
    from statepool.sandbox.template import Template

    listener = _listen(options)
    templates = [Template.read(path) for path in options.template]
    with listener, Pool(templates, driver=options.driver, low=options.ready, most=options.most) as pool:
        for name in pool.templates:
            await asyncio.to_thread(pool.fill, name, options.ready)
        with HttpServer(create_app(Registry(pool, network=options.network)), listener) as server:
            yield server.url


@asynccontextmanager
async def _vector(options: argparse.Namespace) -> AsyncIterator[str]:
    from statepool.vector import open as open_index
    from statepool.vector.serving import create_app

    with (
        _listen(options) as listener,
        open_index(options.path, "rw") as index,
        HttpServer(create_app(index, options.path), listener) as server,
    ):
        yield server.url


def _listen(options: argparse.Namespace) -> socket.socket:
    parts, setting = urlsplit(options.listen), f"{options.command}.port"
    assert parts.hostname is not None, "the house gives an address with a host"
    return listen_at(parts.hostname, parts.port or 0, f"another {setting}", setting)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
