"""The process behind the Python tool: one line of JSON in, a fork that runs the code, one line of JSON out.

Imports the standard library only, and is run by path: the code of a call must find nothing of statepool in its process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import select
import signal
import sys
import time


def main() -> None:
    """Serve until standard input ends."""
    for line in sys.stdin.buffer:
        answer = serve(json.loads(line))
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def serve(ask: dict[str, object]) -> dict[str, object]:
    """Run one call in a fork and return what it printed and whether it was too late."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(writing, ask)
    os.close(writing)
    said, late = _read(reading, float(ask["seconds"]), int(ask["output"]))  # type: ignore[arg-type, call-overload]
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # whatever it started goes with it
    os.waitpid(child, 0)
    return {"said": said.decode(errors="replace"), "late": late}


def _read(reading: int, seconds: float, most: int) -> tuple[bytes, bool]:
    end = time.monotonic() + seconds
    said = b""
    while True:
        left = end - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            return said, True
        piece = os.read(reading, 1 << 16)
        if not piece:
            return said, False
        said = (said + piece)[:most]


def _run(writing: int, ask: dict[str, object]) -> None:
    """Never returns."""
    os.setpgid(0, 0)
    memory, seconds = int(ask["memory"]), int(float(ask["seconds"])) + 1  # type: ignore[call-overload, arg-type]
    for name, limit in (("RLIMIT_AS", memory), ("RLIMIT_CPU", seconds), ("RLIMIT_FSIZE", 1 << 20), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name)
        resource.setrlimit(kind, (limit, min(limit, resource.getrlimit(kind)[1]) if limit else 0))
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(str(ask["code"]), "<code>", "exec"), {"__name__": "__main__"})  # noqa: S102 - its purpose
    except SystemExit:
        pass
    except BaseException as error:  # noqa: BLE001 - the model is told what went wrong, whatever it is
        out.write(f"{type(error).__name__}: {error}"[:200])
    with contextlib.suppress(OSError), open(writing, "wb") as pipe:
        pipe.write(out.getvalue().encode(errors="replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
