"""Files of a sandbox on E2B's wire: contents over plain HTTP, names and watching over Connect."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import stat
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from e2b.envd.filesystem import filesystem_pb as pb
from e2b.envd.filesystem.filesystem_connect import FilesystemASGIApplication
from protobuf import Oneof
from protobuf.wkt.google.protobuf.timestamp_pb import Timestamp
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from statepool.core.errors import InvalidRequest, Unauthorized
from statepool.sandbox.files import Entry
from statepool.sandbox.sandbox import Sandbox
from statepool.sandbox.server.envd import guarded
from statepool.sandbox.server.registry import Record
from statepool.sandbox.template import HOME

__all__ = ["application", "transfer"]

_LOOK_SECONDS = 0.1
_KINDS = {
    "file": pb.FileType.FILE,
    "dir": pb.FileType.DIRECTORY,
    "link": pb.FileType.SYMLINK,
    "other": pb.FileType.UNSPECIFIED,
}
_MOST_BYTES = 256 << 20


async def transfer(record: Record, request: Request) -> Response:
    """GET or POST /files: one file out, one or more in."""
    path = request.query_params.get("path", "")
    _check_signature(record, request, "read" if request.method == "GET" else "write")
    files = record.sandbox.files
    if request.method == "GET":
        return Response(await run_in_threadpool(files.read, path), media_type="application/octet-stream")
    sent: list[tuple[str, bytes]] = []
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form() as form:
            parts = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
            sent = [(path if path and len(parts) == 1 else part.filename or path, await part.read()) for part in parts]
    else:
        sent = [(path, await request.body())]
    if request.headers.get("content-encoding") == "gzip":
        sent = [(name, _unzipped(data)) for name, data in sent]
    made = []
    for name, data in sent:
        entry = await run_in_threadpool(files.write, name, data)
        made.append({"name": entry.name, "type": "file", "path": entry.path})
    return JSONResponse(made)


def application(sandbox: Sandbox) -> FilesystemASGIApplication:
    """The file system service of one sandbox."""
    return FilesystemASGIApplication(_Folders(sandbox))


class _Folders:
    """filesystem.Filesystem of one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._watchers: dict[str, _Watcher] = {}

    async def stat(self, request: pb.StatRequest, ctx: Any) -> pb.StatResponse:
        """About one name."""
        return pb.StatResponse(entry=_info(await guarded(lambda: self._sandbox.files.info(request.path))))

    async def make_dir(self, request: pb.MakeDirRequest, ctx: Any) -> pb.MakeDirResponse:
        """A new folder."""
        if not await guarded(lambda: self._sandbox.files.make_dir(request.path, exist_ok=True)):
            raise ConnectError(Code.ALREADY_EXISTS, f"{request.path} is there already")
        return pb.MakeDirResponse(entry=_info(await guarded(lambda: self._sandbox.files.info(request.path))))

    async def move(self, request: pb.MoveRequest, ctx: Any) -> pb.MoveResponse:
        """Another name."""
        return pb.MoveResponse(
            entry=_info(await guarded(lambda: self._sandbox.files.rename(request.source, request.destination)))
        )

    async def list_dir(self, request: pb.ListDirRequest, ctx: Any) -> pb.ListDirResponse:
        """What is in a folder."""
        found = await guarded(lambda: self._sandbox.files.list(request.path or HOME, max(1, request.depth)))
        return pb.ListDirResponse(entries=[_info(entry) for entry in found])

    async def remove(self, request: pb.RemoveRequest, ctx: Any) -> pb.RemoveResponse:
        """Away with it."""
        await guarded(lambda: self._sandbox.files.remove(request.path))
        return pb.RemoveResponse()

    async def watch_dir(self, request: pb.WatchDirRequest, ctx: Any) -> AsyncIterator[pb.WatchDirResponse]:
        """Changes as they are seen."""
        watcher = _Watcher(self._sandbox, request.path, request.recursive)
        await guarded(watcher.look)
        yield pb.WatchDirResponse(event=Oneof("start", pb.WatchDirResponse.StartEvent()))
        while self._sandbox.alive:
            await asyncio.sleep(_LOOK_SECONDS)
            for event in await guarded(watcher.look):
                yield pb.WatchDirResponse(event=Oneof("filesystem", event))

    async def create_watcher(self, request: pb.CreateWatcherRequest, ctx: Any) -> pb.CreateWatcherResponse:
        """A watcher that is asked, instead of one that tells."""
        watcher = _Watcher(self._sandbox, request.path, request.recursive)
        await guarded(watcher.look)
        name = secrets.token_hex(8)
        self._watchers[name] = watcher
        return pb.CreateWatcherResponse(watcher_id=name)

    async def get_watcher_events(self, request: pb.GetWatcherEventsRequest, ctx: Any) -> pb.GetWatcherEventsResponse:
        """What has changed since it was last asked."""
        watcher = self._watchers.get(request.watcher_id)
        if watcher is None:
            raise ConnectError(Code.NOT_FOUND, f"there is no watcher {request.watcher_id}")
        return pb.GetWatcherEventsResponse(events=await guarded(watcher.look))

    async def remove_watcher(self, request: pb.RemoveWatcherRequest, ctx: Any) -> pb.RemoveWatcherResponse:
        """No more watching."""
        self._watchers.pop(request.watcher_id, None)
        return pb.RemoveWatcherResponse()


class _Watcher:
    """Compares a folder with how it last was: names, sizes, times."""

    def __init__(self, sandbox: Sandbox, path: str, recursive: bool) -> None:
        self._sandbox, self._path, self._depth = sandbox, path, 32 if recursive else 1
        self._seen: dict[str, tuple[float, int, int]] | None = None

    def look(self) -> list[pb.FilesystemEvent]:
        """Events since the last look; none the first time."""
        base = self._sandbox.files.info(self._path)
        if base.kind != "dir":
            raise InvalidRequest(f"path: {self._path!r} is no folder", param="path")
        now = {
            entry.path.removeprefix(base.path.rstrip("/") + "/"): (entry.modified, entry.size, entry.mode)
            for entry in self._sandbox.files.list(self._path, self._depth)
        }
        before, self._seen = self._seen, now
        if before is None:
            return []
        events = [(name, pb.EventType.CREATE) for name in now.keys() - before.keys()]
        events += [
            (name, pb.EventType.WRITE) for name in now if name not in before or now[name][:2] != before[name][:2]
        ]
        events += [(name, pb.EventType.CHMOD) for name in now.keys() & before.keys() if now[name][2] != before[name][2]]
        events += [(name, pb.EventType.REMOVE) for name in before.keys() - now.keys()]
        return [pb.FilesystemEvent(name=name, type=kind) for name, kind in events]


def _info(entry: Entry) -> pb.EntryInfo:
    letters = stat.filemode(entry.mode)[1:]
    return pb.EntryInfo(
        name=entry.name,
        type=_KINDS[entry.kind],
        path=entry.path,
        size=entry.size,
        mode=entry.mode,
        permissions=("d" if entry.kind == "dir" else "-") + letters,
        owner="user",
        group="user",
        modified_time=Timestamp(seconds=int(entry.modified), nanos=int(entry.modified % 1 * 1e9)),
        symlink_target=entry.target,
        is_symlink=entry.kind == "link",
    )


def _unzipped(data: bytes) -> bytes:
    """At most so much: a small upload must not become all of memory."""
    try:
        unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        body = unzip.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not gzip: {error}") from None
    if unzip.unconsumed_tail:
        raise InvalidRequest(f"the body is more than {_MOST_BYTES} bytes unpacked")
    return body


def _check_signature(record: Record, request: Request, operation: str) -> None:
    """A link that was signed with the sandbox's token needs no header."""
    query = request.query_params
    given = query.get("signature")
    if given is None:
        return  # the token was checked at the door
    parts = [query.get("path", ""), operation, query.get("username", ""), record.token]
    if expires := query.get("signature_expiration"):
        parts.append(expires)
        if not expires.isdigit() or int(expires) < time.time():
            raise Unauthorized("signature: it has expired")
    digest = hashlib.sha256(":".join(parts).encode()).digest()
    want = "v1_" + base64.b64encode(digest).rstrip(b"=").decode()
    if not hmac.compare_digest(given, want):
        raise Unauthorized("signature: not made with this sandbox's token")
