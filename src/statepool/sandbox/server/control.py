"""The control plane of E2B's wire: create, list, pause, fork, snapshot and end sandboxes."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.sandbox.server.registry import Record, Registry
from statepool.sandbox.template import Template

__all__ = ["page", "refused", "routes"]

ENVD_VERSION = "0.6.4"
"""Which features the SDK believes the inside to have."""
_SECONDS = 300
_PAGE = 100


def routes(registry: Registry) -> list[Route]:
    """All routes of the control plane."""

    def work(act: Callable[[Request, dict[str, Any]], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            body = await _body(request)
            found = await run_in_threadpool(act, request, body)
            return found if isinstance(found, Response) else JSONResponse(found)

        return answer

    def record(request: Request) -> Record:
        return registry.get(request.path_params["id"])

    def create(request: Request, body: dict[str, Any]) -> Response:
        network = body.get("network") or {}
        allowed = tuple(str(host) for host in network.get("allowOut") or ())
        made = registry.create(
            str(body.get("templateID", "base")),
            seconds=_seconds(body),
            metadata=_texts(body, "metadata"),
            env=_texts(body, "envVars"),
            auto_pause=bool(body.get("autoPause")),
            network=allowed,
        )
        return JSONResponse(_created(made), 201)

    def listing(request: Request, body: dict[str, Any]) -> Response:
        query = request.query_params
        states = [state for text in query.getlist("state") for state in text.split(",")]
        wanted = dict(pair.split("=", 1) for pair in query.get("metadata", "").split("&") if "=" in pair)
        found = [
            item
            for item in registry.records()
            if (not states or item.state in states) and wanted.items() <= item.metadata.items()
        ]
        return page([_detail(item) for item in found], query)

    def end(request: Request, body: dict[str, Any]) -> Response:
        if registry.close(request.path_params["id"]):
            return Response(status_code=204)
        return _missing(request.path_params["id"])

    def pause(request: Request, body: dict[str, Any]) -> Response:
        found = record(request)
        if found.sandbox.paused:
            return _error(409, f"Sandbox {found.id} is paused already")
        found.sandbox.pause()
        return Response(status_code=204)

    def resume(request: Request, body: dict[str, Any]) -> Response:
        found = record(request)
        was = found.sandbox.paused
        found.sandbox.resume()
        registry.set_timeout(found, _seconds(body))
        return JSONResponse(_created(found), 201 if was else 200)

    def timeout(request: Request, body: dict[str, Any]) -> Response:
        registry.set_timeout(record(request), _seconds(body, "timeout", "duration"))
        return Response(status_code=204)

    def fork(request: Request, body: dict[str, Any]) -> Response:
        made = registry.fork(request.path_params["id"], int(body.get("count", 1)), _seconds(body))
        return JSONResponse([{"sandbox": _created(item)} for item in made], 201)

    def snapshot(request: Request, body: dict[str, Any]) -> Response:
        name, _ = registry.snapshot(request.path_params["id"], body.get("name"))
        return JSONResponse({"snapshotID": name, "names": [name]}, 201)

    def snapshots(request: Request, body: dict[str, Any]) -> Response:
        names = registry.snapshots(request.query_params.get("sandboxID"))
        return JSONResponse([{"snapshotID": name, "names": [name]} for name in names])

    def forget(request: Request, body: dict[str, Any]) -> Response:
        found = registry.forget(request.path_params["id"])
        return Response(status_code=204) if found else _missing(request.path_params["id"])

    def templates(request: Request, body: dict[str, Any]) -> Any:
        return [_kind(template) for template in registry.pool.templates.values()]

    def metrics(request: Request, body: dict[str, Any]) -> Any:
        found = record(request)
        usage, limits = found.sandbox.metrics(), found.sandbox.limits
        alive = max(time.time() - found.sandbox.started, 1e-3)
        return [
            {
                "timestamp": _time(time.time()),
                "timestampUnix": int(time.time()),
                "cpuCount": max(1, round(limits.cpus)),
                "cpuUsedPct": round(100 * usage.cpu_seconds / alive, 2),
                "memUsed": usage.memory_bytes,
                "memTotal": limits.memory_bytes,
                "memCache": 0,
                "diskUsed": 0,
                "diskTotal": limits.files_bytes,
            }
        ]

    named = "/sandboxes/{id}"
    table: list[tuple[str, str, Callable[[Request, dict[str, Any]], Any]]] = [
        ("POST", "/v2/sandboxes", create),
        ("POST", "/sandboxes", create),
        ("GET", "/v2/sandboxes", listing),
        ("GET", "/sandboxes", listing),
        ("GET", named, lambda request, _: _detail(record(request))),
        ("DELETE", named, end),
        ("POST", f"{named}/pause", pause),
        ("POST", f"{named}/resume", resume),
        ("POST", f"{named}/connect", resume),
        ("POST", f"/v2{named}/connect", resume),
        ("POST", f"{named}/timeout", timeout),
        ("POST", f"{named}/refreshes", timeout),
        ("POST", f"{named}/fork", fork),
        ("POST", f"{named}/snapshots", snapshot),
        ("GET", "/snapshots", snapshots),
        ("GET", "/templates", templates),
        ("DELETE", "/templates/{id}", forget),
        ("GET", f"{named}/metrics", metrics),
        ("GET", f"{named}/logs", lambda request, _: {"logs": [], "logEntries": []}),
    ]
    return [Route(path, work(act), methods=[method]) for method, path, act in table]


def page(found: Sequence[Any], query: Mapping[str, str]) -> JSONResponse:
    """The part of a list that was asked for; a header says where the next one begins."""
    try:
        start, limit = int(query.get("nextToken") or 0), min(int(query.get("limit") or _PAGE), _PAGE)
    except ValueError:
        raise InvalidRequest("nextToken, limit: must be whole numbers", param="limit") from None
    headers = {"x-next-token": str(start + limit)} if start + limit < len(found) else {}
    return JSONResponse(found[start : start + limit], headers=headers)


def refused(error: StatepoolError) -> JSONResponse:
    """An error as this wire shows it."""
    return _error(error.status, error.message)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"code": status, "message": message}, status)


def _missing(name: str) -> JSONResponse:
    return _error(404, f"{name} was not found")


async def _body(request: Request) -> dict[str, Any]:
    raw = await request.body()
    try:
        body = json.loads(raw) if raw else {}
    except ValueError as error:
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return body


def _texts(body: dict[str, Any], name: str) -> dict[str, str]:
    found = body.get(name) or {}
    if not isinstance(found, dict) or not all(isinstance(item, str) for pair in found.items() for item in pair):
        raise InvalidRequest(f"{name}: must be an object of strings", param=name)
    return found


def _seconds(body: dict[str, Any], *names: str) -> float:
    for name in names or ("timeout",):
        if (found := body.get(name)) is not None:
            if isinstance(found, bool) or not isinstance(found, int | float):
                raise InvalidRequest(f"{name}: must be a number of seconds, got {found!r}", param=name)
            return float(found)
    return _SECONDS


def _created(record: Record) -> dict[str, Any]:
    return {
        "templateID": record.template,
        "sandboxID": record.id,
        "clientID": "statepool",
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": record.token,
        "trafficAccessToken": record.token,  # some calls of the code interpreter's SDK send this one only
        "domain": None,
    }


def _detail(record: Record) -> dict[str, Any]:
    limits = record.sandbox.limits
    return {
        **_created(record),
        "startedAt": _time(record.sandbox.started),
        "endAt": _time(record.ends),
        "cpuCount": max(1, round(limits.cpus)),
        "memoryMB": limits.memory_bytes >> 20,
        "diskSizeMB": limits.files_bytes >> 20,
        "state": record.state,
        "metadata": record.metadata,
    }


def _kind(template: Template) -> dict[str, Any]:
    limits = template.limits
    return {
        "templateID": template.name,
        "names": [template.name],
        "public": False,
        "buildStatus": "ready",
        "cpuCount": max(1, round(limits.cpus)),
        "memoryMB": limits.memory_bytes >> 20,
        "diskSizeMB": limits.files_bytes >> 20,
        "envdVersion": ENVD_VERSION,
        "about": f"imports {', '.join(template.preload)}" if template.preload else "plain Python",
    }


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()
