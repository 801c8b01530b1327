"""``statepool up`` and ``statepool config``: start the platform that a file describes, and check the file."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from statepool.core.command import adder, run
from statepool.core.errors import InvalidConfig

if TYPE_CHECKING:
    from statepool.house.config import House

__all__ = ["main"]

DEFAULT = Path(__file__).with_name("default.yaml")


def main(arguments: list[str]) -> int:
    """Run ``up`` or ``config``, named by the first argument; returns the exit status."""
    name, rest = arguments[0], arguments[1:]
    tree = _up_parser() if name == "up" else _config_parser()
    options = tree.parse_args(rest)
    if name == "up":
        options.command, options.run = "up", _up
    return run("statepool" if name == "up" else "statepool config", options)


def _up_parser() -> argparse.ArgumentParser:
    tree = argparse.ArgumentParser(
        prog="statepool up",
        description="Start the whole platform: server, dashboard, sandboxes, store and vectors behind one file. "
        "SIGTERM and Ctrl-C end all of it.",
    )
    tree.add_argument("config", type=Path, nargs="?", default=DEFAULT, help="YAML (default: that of `config default`)")
    tree.add_argument("--ray", metavar="ADDRESS", help="let this Ray cluster place the processes; auto, local")
    tree.add_argument("--host", help="instead of the file's serve.host")
    tree.add_argument("--port", type=int, help="instead of the file's serve.port; 0 takes a free one")
    return tree


def _config_parser() -> argparse.ArgumentParser:
    tree = argparse.ArgumentParser(prog="statepool config", description="The file of `statepool up`.")
    command = adder(tree)
    check = command("check", "name every mistake in a file", _check)
    check.add_argument("config", type=Path, help="YAML")
    check.add_argument("--elsewhere", action="store_true", help="it is for another machine: look at the file alone")
    command("default", "print the file that `statepool up` takes without one", _default)
    return tree


def _check(options: argparse.Namespace) -> int:
    from statepool.house.check import mistakes

    found = mistakes(options.config, here=not options.elsewhere)
    for mistake in found:
        print(f"{options.config}: {mistake}")
    if not found:
        print(f"{options.config}: nothing is wrong")
    return 1 if found else 0


def _default(_: argparse.Namespace) -> int:
    print(DEFAULT.read_text(), end="")
    return 0


def _up(options: argparse.Namespace) -> int:
    import uvloop

    from statepool.house.check import read

    house = read(options.config)
    serve, ray = house.serve, options.ray or house.serve.cluster.ray
    if ray is not None:
        if not serve.cluster.engines:
            raise InvalidConfig("--ray places engines: set serve.workers, or prefill and decode", param="ray")
        serve = replace(serve, cluster=replace(serve.cluster, ray=ray))
    serve = replace(
        serve,
        host=serve.host if options.host is None else options.host,
        port=serve.port if options.port is None else options.port,
    )
    return uvloop.run(_run(house.model_copy(update={"serve": serve}), ray))


async def _run(house: House, ray: str | None) -> int:
    from statepool.dashboard import CHAT, mounted
    from statepool.house.rooms import Rooms
    from statepool.serve.server import run as run_server

    async with Rooms(house, ray) as rooms:
        if rooms.sandbox is not None:
            sys.stderr.write(f"sandboxes at {rooms.sandbox}\n")
        if rooms.vector is not None:
            sys.stderr.write(f"vectors at {rooms.vector}\n")
        serve = replace(house.serve, chat_page=CHAT)
        return await run_server(serve, extend=mounted(house.sources(rooms.sandbox, rooms.vector)))
