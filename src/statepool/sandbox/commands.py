"""``statepool sandbox …``: run code in isolation, and look at what this host can isolate."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statepool.core.command import adder, run, serve
from statepool.core.errors import InvalidRequest
from statepool.core.sockets import listen_at
from statepool.sandbox import remote_commands, template_commands
from statepool.sandbox.archive import Archive

if TYPE_CHECKING:
    from statepool.cluster import Program
    from statepool.sandbox.sandbox import Sandbox
    from statepool.sandbox.template import Template

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run a command; returns its status, 1 if the code inside failed, 2 for what a user can repair."""
    return run("statepool sandbox", parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    tree = argparse.ArgumentParser(prog="statepool sandbox", description="Run untrusted code in isolation.")
    command = adder(tree)
    once = command("run", "run a cell of Python, or with --shell a line of shell, in a new sandbox", _run)
    once.add_argument("code", nargs="?", help="the code; - or nothing: standard input")
    once.add_argument("--shell", action="store_true", help="it is a line of shell")
    once.add_argument("--file", type=Path, action="append", default=[], metavar="FILE", help="copy this file in first")
    once.add_argument("--json", action="store_true", help="print everything as one JSON object")
    once.add_argument("--seconds", type=float, default=300.0, metavar="S", help="most time (default 300)")
    once.add_argument("--restore", metavar="NAME", help="go on from a sandbox that was kept on disk")
    once.add_argument("--save", metavar="NAME", help="keep it on disk afterwards, also if the code fails")
    _add_archive(once)
    _add_kind(once)

    kept = adder(command("archive", "sandboxes that run --save has kept on disk: list, delete", None))
    _add_archive(kept("list", "what is kept, the oldest first", _list))
    gone = kept("delete", "forget one", _delete)
    gone.add_argument("name", help="as it was saved")
    _add_archive(gone)

    serve = command("serve", "serve sandboxes over HTTP: E2B's SDKs work with it", _serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8100, help="port to listen on (default 8100)")
    serve.add_argument("--api-key", help="key every request must carry (default none)")
    serve.add_argument("--template", type=Path, action="append", default=[], metavar="FILE", help="offer this kind too")
    serve.add_argument("--driver", default="auto", help="ns (root), userns (any user) or auto (default)")
    serve.add_argument("--ready", type=int, default=2, metavar="N", help="slots that wait ready per kind (default 2)")
    serve.add_argument("--most", type=int, default=512, metavar="N", help="sandboxes at once (default 512)")
    serve.add_argument("--network", action="store_true", help="let sandboxes ask for hosts they may reach")
    serve.add_argument(
        "--nodes", type=int, metavar="N", help="N servers behind this address, each with --most of its own"
    )
    serve.add_argument("--ray", metavar="ADDRESS", help="let this Ray cluster place the nodes; auto, local")

    remote_commands.add(command)
    template_commands.add(command)

    tools = command("mcp", "offer one sandbox as tools over MCP, on standard input and output", _mcp)
    _add_kind(tools)

    possible = command("doctor", "what this host can isolate, found by trying", _doctor)
    possible.add_argument("--json", action="store_true", help="print plain values")
    return tree


def _add_archive(command: argparse.ArgumentParser) -> None:
    base = "~/.local/share/statepool/sandboxes"
    command.add_argument("--archive", type=Path, default=Path(base), metavar="DIR", help=f"folder (default {base})")


def _add_kind(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("sandbox")
    group.add_argument("--template", type=Path, metavar="FILE", help="manifest in TOML (default: plain Python)")
    group.add_argument("--driver", default="auto", help="ns (root), userns (any user) or auto (default)")
    group.add_argument("--memory", metavar="SIZE", help="most memory (default 512MiB)")
    group.add_argument("--cpus", type=float, metavar="N", help="most cores (default 1)")
    group.add_argument(
        "--allow", action="append", default=[], metavar="HOST", help="reach this host, such as *.example.com"
    )
    group.add_argument("--wheels", type=Path, metavar="DIR", help="folder of wheels that --install and pip take from")
    group.add_argument("--install", action="append", default=[], metavar="NAME", help="install this package first")
    group.add_argument("--seed", type=int, metavar="N", help="of random and numpy.random (default: drawn)")


@contextlib.contextmanager
def _sandbox(options: argparse.Namespace, restore: str | None = None) -> Iterator[Sandbox]:
    """A sandbox of the kind that options name, in a pool of its own."""
    from statepool.sandbox.pool import Pool
    from statepool.sandbox.sandbox import Sandbox
    from statepool.sandbox.template import Template

    template = Template.read(options.template) if options.template else Template()
    if options.wheels:
        template = replace(template, wheels=str(options.wheels.resolve()))
    settings = {"memory": options.memory, "cpus": options.cpus, "seed": options.seed, "network": options.allow}
    with Pool([template], driver=options.driver, low=0) as pool:
        make = Archive(options.archive.expanduser()).restore if restore else Sandbox
        with make(restore or template.name, pool=pool, **settings) as sandbox:
            if options.install:
                sandbox.install(*options.install)
            yield sandbox


def _run(options: argparse.Namespace) -> int:
    code = sys.stdin.read() if options.code in (None, "-") else options.code
    if options.seconds <= 0:
        raise InvalidRequest(f"--seconds: must be positive, got {options.seconds}", param="seconds")
    given = {path.name: path.read_bytes() for path in options.file}
    with _sandbox(options, options.restore) as sandbox:
        for name, data in given.items():
            sandbox.files.write(name, data)
        status = (_show_command if options.shell else _show_cell)(sandbox, code, options)
        if options.save:
            for name, why in Archive(options.archive.expanduser()).save(sandbox, options.save).lost.items():
                print(f"not kept: {name}: {why}", file=sys.stderr)
    return status


def _list(options: argparse.Namespace) -> int:
    for saved in Archive(options.archive.expanduser()).list():
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(saved.made))
        lost = f", without {', '.join(saved.lost)}" if saved.lost else ""
        print(f"{saved.name:<20} {saved.template:<16} {made}  {saved.length / 1e6:.1f} MB{lost}")
    return 0


def _delete(options: argparse.Namespace) -> int:
    Archive(options.archive.expanduser()).delete(options.name)
    return 0


def _show_command(sandbox: Sandbox, code: str, options: argparse.Namespace) -> int:
    done = sandbox.commands.run(code, timeout=options.seconds, **_shown(options))
    if options.json:
        print(json.dumps(asdict(done)))
    elif done.timed_out:
        print(f"ended after {options.seconds:g} s", file=sys.stderr)
    return 0 if done.exit_code == 0 else 1


def _show_cell(sandbox: Sandbox, code: str, options: argparse.Namespace) -> int:
    done = sandbox.run_code(code, timeout=options.seconds, **_shown(options))
    if options.json:
        results = [result.forms for result in done.results]
        values = {"text": done.text, "results": results, "logs": asdict(done.logs), "seconds": done.seconds}
        ended = {"error": done.error and asdict(done.error), "timed_out": done.timed_out}
        print(json.dumps(values | ended))
    else:
        for result in done.results:
            print(result.text)
        if done.error:
            print(done.error.traceback or f"{done.error.name}: {done.error.value}", file=sys.stderr, end="")
    return 1 if done.error else 0


def _shown(options: argparse.Namespace) -> dict[str, Any]:
    """Where output goes while it is made; nowhere if all of it is printed as JSON in the end."""
    streams = {} if options.json else {"on_stdout": sys.stdout, "on_stderr": sys.stderr}
    return {name: partial(print, end="", flush=True, file=stream) for name, stream in streams.items()}


def _serve(options: argparse.Namespace) -> int:
    from statepool.sandbox.pool import Pool
    from statepool.sandbox.server.app import create_app
    from statepool.sandbox.server.registry import Registry
    from statepool.sandbox.template import Template
    from statepool.web import HttpServer

    templates = [Template.read(path) for path in options.template]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen_at(options.host, options.port, "another --host or --port", "port"))
        if options.nodes is not None or options.ray is not None:
            return _serve_nodes(options, templates, listener)
        pool = stack.enter_context(Pool(templates, driver=options.driver, low=options.ready, most=options.most))
        for name in pool.templates:
            pool.fill(name, options.ready)
        app = create_app(Registry(pool, network=options.network), api_key=options.api_key)
        server = HttpServer(app, listener)
        return serve(server, lambda: f"sandboxes on {server.url}, driver {pool.driver}", with_parent=False)


def _serve_nodes(options: argparse.Namespace, templates: list[Template], listener: socket.socket) -> int:
    """A front before nodes that are processes here, or where Ray puts them."""
    from statepool.cluster import launcher
    from statepool.sandbox.server.front import serve_front
    from statepool.sandbox.server.node import program
    from statepool.sandbox.server.nodes import Nodes

    count = 1 if options.nodes is None else options.nodes
    if count < 1:
        raise InvalidRequest(f"--nodes: must be at least 1, got {count}", param="nodes")
    starter, key = launcher(options.ray), secrets.token_hex(20)

    def make(name: str) -> Program:
        settings = {name: getattr(options, name) for name in ("driver", "ready", "most", "network")}
        return program(name, key, templates, remote=starter.remote, **settings)

    serve_front(Nodes(starter, make, count, key), listener, options.api_key)
    return 0


def _mcp(options: argparse.Namespace) -> int:
    from statepool.sandbox.server.mcp import build

    with _sandbox(options) as sandbox:
        build(sandbox).run("stdio")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from statepool.sandbox.caps import probe

    found = probe()
    if options.json:
        print(json.dumps([{"name": item.name, "works": item.works, "found": item.found} for item in found], indent=2))
    else:
        for item in found:
            print(f"{'ok' if item.works else '--'}  {item.name:<12}  {item.found}")
    return 0 if any(item.works for item in found if item.name in ("ns", "userns")) else 1
