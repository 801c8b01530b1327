"""An index behind HTTP. What clients ask while a search runs is searched next, all at once, on all cores.

Each query has one thread, so an answer has the same bits whatever else was in its batch.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from statepool.core.errors import InvalidRequest, NotFound, Overloaded, PayloadTooLarge, StatepoolError, Unauthorized
from statepool.web import shows_key

from .answer import Result
from .errors import DimensionError, ReadOnlyError
from .index import Index
from .live import LiveIndex
from .log import log_path
from .names import Ids
from .protocol import Answers, Change, Found, Named, Rows, Search, described

__all__ = ["create_app"]

_MOST_BYTES = 64 << 20
_MOST_WAITING = 4096
"""Queries that wait; more are refused, so that nobody waits long."""

Shape = TypeVar("Shape")


def create_app(index: Index | LiveIndex, path: Path, *, api_key: str | None = None, workers: int = 0) -> ASGIApp:
    """The application over an index that is open.

    Args:
        index: what is asked, and changed if it was opened for that.
        path: its file.
        api_key: every request but that of ``/health`` must carry it.
        workers: queries searched at once; 0 means all cores.
    """
    together, changes = _Together(index, workers), [0]

    async def search(asked: Search) -> Any:
        return Answers([_found(one) for one in await together.search(asked)])

    def change(act: Callable[[LiveIndex, Any], int]) -> Callable[[Any], Awaitable[Any]]:
        def changed(asked: Any) -> dict[str, int]:
            if not isinstance(index, LiveIndex):
                raise ReadOnlyError("mode: this server was started with --read-only and takes no changes", param="mode")
            count = act(index, asked)
            changes[0] += 1
            return {"changed": count, "rows": len(index)}

        return lambda asked: run_in_threadpool(changed, asked)

    async def get(asked: Named) -> Any:
        return {"vectors": (await run_in_threadpool(index.get, _ids(index, asked.ids))).tolist()}

    def stat() -> dict[str, Any]:
        log = log_path(path)
        return {
            "path": str(path),
            "file_bytes": path.stat().st_size,
            "log_bytes": log.stat().st_size if log.exists() else 0,
            **index.stats(),
            "settings": index.settings.plain(),
            "searches": {"requests": together.requests, "queries": together.queries, "batches": together.batches},
            "changes": changes[0],
        }

    async def standing(_: Request) -> Response:
        return _json(await run_in_threadpool(stat))

    async def health(_: Request) -> Response:
        return _json({"status": "ok", "rows": len(index)})

    async def metrics(_: Request) -> Response:
        counts = {"requests": together.requests, "queries": together.queries, "batches": together.batches}
        return PlainTextResponse(_metrics(counts | {"changes": changes[0]}, len(index)))

    posts: dict[str, tuple[type, Callable[[Any], Awaitable[Any]]]] = {
        "/search": (Search, search),
        "/get": (Named, get),
        "/add": (Rows, change(_add)),
        "/update": (Rows, change(_update)),
        "/delete": (
            Change,
            change(lambda live, asked: live.delete(_ids(live, asked.ids), durability=asked.durability)),
        ),
        "/compact": (_Nothing, change(lambda live, _: len(live.compact()))),
    }
    routes = [Route(route, _posted(shape, act), methods=["POST"]) for route, (shape, act) in posts.items()]
    routes += [Route(route, act) for route, act in (("/stat", standing), ("/health", health), ("/metrics", metrics))]
    plane = Starlette(routes=routes, exception_handlers={StatepoolError: _failed, HTTPException: _failed})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and api_key is not None and scope["path"] != "/health":
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            if not shows_key(headers, api_key):
                locked = Unauthorized("the API key is missing or wrong; send it as 'X-API-Key: KEY'")
                await _refused(locked)(scope, receive, send)
                return
        await plane(scope, receive, send)

    return app


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """A body without fields."""


def _posted(shape: type[Shape], act: Callable[[Shape], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return _json(await act(_parsed(shape, await _body(request))))

    return answer


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise PayloadTooLarge(f"body: larger than {_MOST_BYTES} bytes; send the rows in several requests")
    return bytes(body) or b"{}"


def _parsed(shape: type[Shape], body: bytes) -> Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$.")
        place = place.removesuffix("`")
        field = place.partition("[")[0].partition(".")[0] or None
        raise InvalidRequest(f"{place or 'body'}: {said[:1].lower()}{said[1:]}", param=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"body: is no JSON ({error})") from None


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _failed(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        known = "/search, /get, /add, /update, /delete and /compact take POST; /stat, /health and /metrics GET"
        refusal = NotFound(f"path: {known}")
        refusal.status = error.status_code
        return _refused(refusal)
    assert isinstance(error, StatepoolError)
    return _refused(error)


def _refused(error: StatepoolError) -> Response:
    headers = {"Retry-After": "1"} if isinstance(error, Overloaded) else {}
    return Response(msgspec.json.encode(described(error)), error.status, headers, "application/json")


def _add(index: LiveIndex, asked: Rows) -> int:
    rows = _array("vectors", asked.vectors, index.dim)
    index.add(rows, _ids(index, asked.ids), columns=asked.columns, durability=asked.durability)
    return len(rows)


def _update(index: LiveIndex, asked: Rows) -> int:
    rows = _array("vectors", asked.vectors, index.dim)
    index.update(_ids(index, asked.ids), rows, columns=asked.columns, durability=asked.durability)
    return len(rows)


def _ids(index: Index | LiveIndex, ids: list[int | str]) -> Ids:
    """As the index has them."""
    kind, word = (str, "text") if index.settings.text_ids else (int, "integer")
    for number, one in enumerate(ids):
        if not isinstance(one, kind):
            raise InvalidRequest(f"ids[{number}]: {one!r} is no {word}, as the ids of this index are", param="ids")
    return cast("Ids", ids)


def _array(name: str, rows: list[list[float]], dim: int) -> np.ndarray:
    """float32 ``[len(rows), dim]``."""
    for number, row in enumerate(rows):
        if len(row) != dim:
            raise DimensionError(f"{name}[{number}]: has {len(row)} values; the index has {dim}", param=name)
    with np.errstate(over="ignore"):  # what is too large is infinite then, and refused as such
        return np.array(rows, np.float32).reshape(len(rows), dim)


def _found(result: Result) -> Found:
    return Found(result.ids.tolist(), result.distances.tolist(), result.truncated, result.stats)


def _metrics(counters: dict[str, int], rows: int) -> str:
    """In Prometheus' text format."""
    lines = []
    for name, value in counters.items():
        lines += [f"# TYPE statepool_vector_{name}_total counter", f"statepool_vector_{name}_total {value}"]
    return "\n".join([*lines, "# TYPE statepool_vector_rows gauge", f"statepool_vector_rows {rows}"]) + "\n"


@dataclass(slots=True)
class _Ask:
    """One request that waits."""

    asked: Search
    queries: np.ndarray
    answer: asyncio.Future[list[Result]]

    @property
    def like(self) -> tuple[Any, ...]:
        """Equal for requests that can be searched together."""
        return self.asked.k, self.asked.ef, self.asked.exact, json.dumps(self.asked.filter, sort_keys=True)


class _Together:
    """Searches of all clients, a batch at a time. Used by one event loop; the index is asked in a thread."""

    def __init__(self, index: Index | LiveIndex, workers: int) -> None:
        self._index, self._workers = index, workers
        self._waiting: list[_Ask] = []
        self._task: asyncio.Task[None] | None = None
        self.requests = self.queries = self.batches = 0

    async def search(self, asked: Search) -> list[Result]:
        """What each query finds.

        Raises:
            Overloaded: too many wait. DimensionError, InvalidRequest: as the index raises them.
        """
        queries = _array("queries", asked.queries, self._index.dim)
        waiting = sum(len(ask.queries) for ask in self._waiting)
        if waiting + len(queries) > _MOST_WAITING:
            raise Overloaded(f"queries: {waiting} wait and at most {_MOST_WAITING} may; ask later, or for fewer")
        ask = _Ask(asked, queries, asyncio.get_running_loop().create_future())
        self._waiting.append(ask)
        self.requests, self.queries = self.requests + 1, self.queries + len(queries)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await ask.answer

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            groups: defaultdict[tuple[Any, ...], list[_Ask]] = defaultdict(list)
            for ask in batch:
                groups[ask.like].append(ask)
            for group in groups.values():
                self.batches += 1
                await asyncio.to_thread(self._answer, group, asyncio.get_running_loop())
        self._task = None

    def _answer(self, group: list[_Ask], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: what is wrong with one request must not fail the others that came with it."""
        try:
            found = iter(self._ask(group[0].asked, np.concatenate([ask.queries for ask in group])))
        except Exception as error:  # noqa: BLE001 - whoever asked is told, and the next batch goes on
            if len(group) > 1:
                for ask in group:
                    self._answer([ask], loop)
                return
            loop.call_soon_threadsafe(_refuse, group[0].answer, error)
            return
        for ask in group:
            results = [next(found) for _ in ask.queries]
            loop.call_soon_threadsafe(_give, ask.answer, results)

    def _ask(self, asked: Search, queries: np.ndarray) -> Iterable[Result]:
        index = self._index
        if asked.exact:
            return [index.exact(query, asked.k, filter=asked.filter) for query in queries]
        if len(queries) == 1:
            return [index.search(queries[0], asked.k, asked.ef, filter=asked.filter)]
        return index.search_batch(queries, asked.k, asked.ef, filter=asked.filter, workers=self._workers)


def _give(answer: asyncio.Future[list[Result]], results: list[Result]) -> None:
    if not answer.done():  # whoever asked may have left
        answer.set_result(results)


def _refuse(answer: asyncio.Future[list[Result]], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
