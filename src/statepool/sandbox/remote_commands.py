"""Commands that talk to a running server: list, create, use, copy, fork, keep and end its sandboxes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from statepool.core.command import Adder
from statepool.core.errors import InvalidRequest, NotFound, StatepoolError, Unauthorized, Unavailable
from statepool.web import open_url

__all__ = ["add", "add_server", "ask"]

_SECONDS = 60.0


def add(command: Adder) -> None:
    """Add the commands to the tree of ``statepool sandbox``."""
    create = command("create", "make a sandbox on a server; prints its id", _create)
    create.add_argument("template", nargs="?", default="py", help="kind, or name of a snapshot (default py)")
    listing = command("ps", "list a server's sandboxes", _ps)
    use = command("exec", "run a cell, or with --shell a line of shell, in a server's sandbox", _exec)
    use.add_argument("id", help="the sandbox")
    use.add_argument("code", nargs="?", help="the code; - or nothing: standard input")
    use.add_argument("--shell", action="store_true", help="it is a line of shell")
    copy = command("cp", "copy a file in or out: one of the two is ID:PATH", _cp)
    copy.add_argument("source", help="FILE or ID:PATH")
    copy.add_argument("target", help="FILE or ID:PATH")
    fork = command("fork", "make sandboxes that go on from where one is; prints their ids", _fork)
    fork.add_argument("id", help="the sandbox")
    fork.add_argument("count", type=int, nargs="?", default=1, help="how many (default 1)")
    keep = command("snapshot", "keep a moment of a sandbox, to create others from; prints its name", _snapshot)
    keep.add_argument("id", help="the sandbox")
    keep.add_argument("--name", help="name of the moment (default: drawn)")
    commands, lasting = [create, listing, use, copy, fork, keep], [create]
    for name, text in (
        ("pause", "stop a sandbox's processes"),
        ("resume", "let them go on"),
        ("kill", "end a sandbox"),
    ):
        made = command(name, text, _plain)
        made.add_argument("id", help="the sandbox")
        commands.append(made)
        if name == "resume":
            lasting.append(made)
    for made in commands:
        add_server(made)
    for made in lasting:
        made.add_argument(
            "--seconds", type=float, default=3600.0, metavar="S", help="until it ends by itself (default 3600)"
        )


def add_server(command: argparse.ArgumentParser) -> None:
    """Options that name the server."""
    command.add_argument("--url", default=os.environ.get("E2B_API_URL", "http://127.0.0.1:8100"), help="the server")
    command.add_argument("--api-key", default=os.environ.get("E2B_API_KEY", ""), help="its key (default $E2B_API_KEY)")


def _create(options: argparse.Namespace) -> int:
    made = ask(options, "POST", "/v2/sandboxes", {"templateID": options.template, "timeout": options.seconds})
    print(made["sandboxID"])
    return 0


def _ps(options: argparse.Namespace) -> int:
    for item in ask(options, "GET", "/v2/sandboxes"):
        print(f"{item['sandboxID']}  {item['state']:<8} {item['templateID']:<16} ends {item['endAt'][:19]}")
    return 0


def _exec(options: argparse.Namespace) -> int:
    code = sys.stdin.read() if options.code in (None, "-") else options.code
    body = {"code": code, "language": "bash" if options.shell else "python"}
    failed = 0
    with _open(
        options, "POST", "/execute", json.dumps(body).encode(), _inside(options, options.id, 49999), None
    ) as answer:
        for line in _lines(answer):
            if line["type"] in ("stdout", "stderr"):
                print(line["text"], end="", flush=True, file=sys.stderr if line["type"] == "stderr" else sys.stdout)
            elif line["type"] == "result":
                print(line["text"])
            elif line["type"] == "error":
                failed = 1
                if not options.shell:
                    print(line["traceback"] or f"{line['name']}: {line['value']}", end="", file=sys.stderr)
    return failed


def _cp(options: argparse.Namespace) -> int:
    (source, inner), (target, outer) = _place(options.source), _place(options.target)
    if (source is None) == (target is None):
        raise InvalidRequest("source, target: exactly one of them must be ID:PATH", param="source")
    path = "/files?" + urllib.parse.urlencode({"path": inner if source else outer})
    if source is not None:
        with _open(options, "GET", path, None, _inside(options, source, 49983)) as answer:
            data = answer.read()
        goal = Path(outer)
        (goal / Path(inner).name if goal.is_dir() else goal).write_bytes(data)
    else:
        headers = _inside(options, str(target), 49983) | {"Content-Type": "application/octet-stream"}
        _open(options, "POST", path, Path(inner).read_bytes(), headers).close()
    return 0


def _fork(options: argparse.Namespace) -> int:
    for item in ask(options, "POST", f"/sandboxes/{options.id}/fork", {"count": options.count, "timeout": 3600}):
        print(item["sandbox"]["sandboxID"])
    return 0


def _snapshot(options: argparse.Namespace) -> int:
    body = {"name": options.name} if options.name else {}
    print(ask(options, "POST", f"/sandboxes/{options.id}/snapshots", body)["snapshotID"])
    return 0


def _plain(options: argparse.Namespace) -> int:
    if options.command == "kill":
        _open(options, "DELETE", f"/sandboxes/{options.id}", None).close()
    else:
        body = {"timeout": options.seconds} if options.command == "resume" else {}
        _open(options, "POST", f"/sandboxes/{options.id}/{options.command}", json.dumps(body).encode()).close()
    return 0


def _place(text: str) -> tuple[str | None, str]:
    name, colon, path = text.partition(":")
    return (name, path) if colon and "/" not in name else (None, text)


def _inside(options: argparse.Namespace, name: str, port: int) -> dict[str, str]:
    """Headers of a request to the inside of a sandbox."""
    token = ask(options, "GET", f"/sandboxes/{name}")["envdAccessToken"]
    return {"E2b-Sandbox-Id": name, "E2b-Sandbox-Port": str(port), "X-Access-Token": token}


def ask(options: argparse.Namespace, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """What the server answers, from JSON.

    Raises:
        StatepoolError: it refuses, or does not answer.
    """
    with _open(options, method, path, None if body is None else json.dumps(body).encode()) as answer:
        return json.loads(answer.read())


def _lines(answer: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in answer:
        yield json.loads(line)


def _open(
    options: argparse.Namespace,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str] | None = None,
    timeout: float | None = _SECONDS,
) -> Any:
    sent = {"X-API-Key": options.api_key} | (headers or {})
    try:
        return open_url(options.url, path, body, timeout_s=timeout, method=method, headers=sent)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        kind: type[StatepoolError] = {401: Unauthorized, 404: NotFound}.get(error.code, InvalidRequest)
        try:
            message = str(json.loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{error.code}: {text[:200]}"
        raise kind(message) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(f"{options.url}: {reason}; start one with statepool sandbox serve") from None
