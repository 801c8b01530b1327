"""Cells over HTTP: E2B's code interpreter (a line of JSON per event), and SandboxFusion's ``/run_code``."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from statepool.core.errors import InvalidRequest, StatepoolError
from statepool.sandbox.execution import Execution
from statepool.sandbox.sandbox import Context, Sandbox
from statepool.sandbox.server.registry import Record, Registry
from statepool.sandbox.template import HOME

__all__ = ["fusion", "interpreter"]

_FORMS = ("text", "html", "markdown", "svg", "png", "jpeg", "pdf", "latex", "json", "javascript", "data", "chart")
_LANGUAGES = ("python", "python3", "bash", "sh")


async def interpreter(record: Record, request: Request) -> Response:
    """One request of the code interpreter's port."""
    parts = request.url.path.strip("/").split("/")
    body: dict[str, Any] = await request.json() if request.method == "POST" and await request.body() else {}
    if parts == ["health"]:
        return Response(status_code=204)
    if parts == ["execute"] and request.method == "POST":
        return await _execute(record, body)
    if parts == ["contexts"] and request.method == "POST":
        _language(body)
        made = await run_in_threadpool(record.sandbox.create_context, body.get("cwd") or HOME)
        return JSONResponse(_context(made))
    if parts == ["contexts"]:
        return JSONResponse([_context(context) for context in record.sandbox.contexts.values()])
    if parts[0] == "contexts" and len(parts) in (2, 3):
        context = record.context(parts[1])
        await run_in_threadpool(context.kill)
        if len(parts) == 2 and request.method == "DELETE":
            record.sandbox.contexts.pop(context.id, None)
        return Response(status_code=204)
    return JSONResponse({"message": f"no such path: {request.url.path}"}, 404)


async def _execute(record: Record, body: dict[str, Any]) -> Response:
    code = body.get("code")
    if not isinstance(code, str):
        raise InvalidRequest("code: must be a string", param="code")
    language = _language(body)
    context = record.context(body.get("context_id"))
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def say(**line: Any) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def printed(kind: str) -> Any:
        return lambda text: say(type=kind, text=text, timestamp=time.time_ns() // 1000)

    def work() -> None:
        try:
            shown = {"on_stdout": printed("stdout"), "on_stderr": printed("stderr")}
            if language in ("bash", "sh"):
                done = record.sandbox.commands.run(code, env=body.get("env_vars"), timeout=None, **shown)
                if done.exit_code:
                    say(type="error", name="ExitCode", value=str(done.exit_code), traceback=done.stderr)
            else:
                _tell(
                    say, record.sandbox.run_code(code, context=context, timeout=None, env=body.get("env_vars"), **shown)
                )
        except StatepoolError as error:
            say(type="error", name=type(error).__name__, value=error.message, traceback="")
        finally:
            loop.call_soon_threadsafe(lines.put_nowait, None)

    task = asyncio.ensure_future(run_in_threadpool(work))

    async def stream() -> AsyncIterator[bytes]:
        finished = False
        try:
            while (line := await lines.get()) is not None:
                yield json.dumps(line).encode() + b"\n"
            finished = True
        finally:
            if not finished:  # the client has left: so does the cell
                await run_in_threadpool(context.interrupt)
            await task

    return StreamingResponse(stream(), media_type="application/x-ndjson")


def _tell(say: Any, done: Execution) -> None:
    for result in done.results:
        forms = {name: result.forms[name] for name in _FORMS if name in result.forms}
        say(type="result", is_main_result=result.main, **forms)
    if done.error is not None:
        say(type="error", name=done.error.name, value=done.error.value, traceback=done.error.traceback)
    say(type="number_of_executions", execution_count=done.execution_count)


def _language(body: dict[str, Any]) -> str:
    language = body.get("language") or "python"
    if language not in _LANGUAGES:
        raise InvalidRequest(
            f"language: {language!r} is not here; take one of {', '.join(_LANGUAGES)}", param="language"
        )
    return str(language)


def _context(context: Context) -> dict[str, str]:
    return {"id": context.id, "language": "python", "cwd": context.cwd}


def fusion(registry: Registry) -> Route:
    """SandboxFusion's way: code and files in, what was printed and files out, in a sandbox of its own each time."""

    def work(body: dict[str, Any]) -> dict[str, Any]:
        code, language = body.get("code"), _language(body)
        if not isinstance(code, str):
            raise InvalidRequest("code: must be a string", param="code")
        seconds = float(body.get("run_timeout") or 10)
        with Sandbox(pool=registry.pool) as sandbox:
            for name, content in (body.get("files") or {}).items():
                sandbox.files.write(name, _decoded(name, content))
            name = "main.py" if language.startswith("python") else "main.sh"
            sandbox.files.write(name, code)
            began = time.monotonic()
            program = "python3" if name.endswith(".py") else "bash"
            done = sandbox.commands.run(f"{program} {name}", timeout=seconds, stdin=body.get("stdin"))
            fetched = {}
            for path in body.get("fetch_files") or []:
                if sandbox.files.exists(path):
                    fetched[path] = base64.b64encode(sandbox.files.read(path)).decode()
        status = "TimeLimitExceeded" if done.timed_out else "Finished"
        result = {
            "status": status,
            "execution_time": time.monotonic() - began,
            "return_code": done.exit_code,
            "stdout": done.stdout,
            "stderr": done.stderr,
        }
        good = done.exit_code == 0 and not done.timed_out
        return {"status": "Success" if good else "Failed", "message": "", "run_result": result, "files": fetched}

    async def answer(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(work, await request.json()))

    return Route("/run_code", answer, methods=["POST"])


def _decoded(name: str, content: Any) -> bytes:
    try:
        return base64.b64decode(content or "", validate=True)
    except (binascii.Error, TypeError):
        raise InvalidRequest(f"files: {name!r} is no base64", param="files") from None
