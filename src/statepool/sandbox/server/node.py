"""One node of a server of several: sandboxes of this machine over HTTP, for the front that started it.

Run as ``python -m statepool.sandbox.server.node``; it prints its address once it answers, and ends with its parent.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from statepool.cluster import Program
from statepool.core.command import serve
from statepool.core.errors import StatepoolError
from statepool.sandbox.pool import Pool
from statepool.sandbox.server.app import create_app
from statepool.sandbox.server.registry import Registry
from statepool.sandbox.template import Limits, Template
from statepool.web import HttpServer

__all__ = ["main", "program"]

KEY_VARIABLE = "STATEPOOL_SANDBOX_KEY"
"""Environment variable with the key that the front and its nodes share."""


def program(
    name: str,
    key: str,
    templates: Sequence[Template],
    *,
    driver: str,
    ready: int,
    most: int,
    network: bool,
    remote: bool,
) -> Program:
    """What the front starts. ``remote`` nodes can be reached from other machines."""
    flags: dict[str, Any] = {"name": name, "driver": driver, "ready": ready, "most": most}
    arguments = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    arguments += ["--host", "{host}" if remote else "127.0.0.1"]
    arguments += [part for template in templates for part in ("--kind", json.dumps(asdict(template)))]
    if network:
        arguments.append("--network")
    return Program("statepool.sandbox.server.node", tuple(arguments), {KEY_VARIABLE: key}, cpus=1.0, announces=True)


def main(arguments: list[str]) -> int:
    """Serve until told to stop, or until the parent has gone; 2 for what the front's user can repair."""
    options = _parser().parse_args(arguments)
    try:
        return _serve(options)
    except StatepoolError as error:
        sys.stderr.write(f"sandbox node {options.name}: {error.message}\n")
        return 2


def _serve(options: argparse.Namespace) -> int:
    templates = [_template(text) for text in options.kind]
    with Pool(templates, driver=options.driver, low=options.ready, most=options.most) as pool:
        for kind in pool.templates:
            pool.fill(kind, options.ready)
        registry = Registry(pool, network=options.network, node=options.name)
        listener = socket.create_server(
            (options.host, 0), family=socket.AF_INET6 if ":" in options.host else socket.AF_INET
        )
        node = HttpServer(create_app(registry, api_key=os.environ[KEY_VARIABLE]), listener)
        return serve(node, lambda: node.url, with_parent=True)


def _template(text: str) -> Template:
    fields = json.loads(text)
    tuples = {name: tuple(fields[name]) for name in ("preload", "layers", "binds")}
    return Template(**(fields | tuples | {"limits": Limits(**fields["limits"])}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="statepool-sandbox-node", description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--ready", type=int, required=True)
    parser.add_argument("--most", type=int, required=True)
    parser.add_argument("--network", action="store_true")
    parser.add_argument("--kind", action="append", default=[], help="a template as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
