"""Checkpoints of whole process trees with CRIU, where one works: what a fork of a kernel cannot hold, this can."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from statepool.sandbox.errors import IsolationUnavailable, SandboxError

__all__ = ["dump", "probe", "restore"]

_COUNTER = """
import os, sys, time
count = 0
while True:
    count += 1
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(str(count))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(0.01)
"""


def dump(pid: int, folder: Path, *, keep: bool = False) -> None:
    """Write the tree of ``pid`` into ``folder``; it ends unless ``keep``.

    Raises:
        SandboxError: CRIU's last error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    more = ["--leave-running"] if keep else []
    _run(["dump", "--tree", str(pid), "--images-dir", str(folder), "--shell-job", *more], folder / "dump.log")


def restore(folder: Path) -> int:
    """Bring the tree back; answers the process id of its root.

    Raises:
        SandboxError: CRIU's last error.
    """
    file = folder / "pid"
    file.unlink(missing_ok=True)
    options = ["--images-dir", str(folder), "--shell-job", "--restore-detached", "--pidfile", str(file)]
    _run(["restore", *options], folder / "restore.log")
    return int(file.read_text())


@lru_cache(maxsize=1)
def probe() -> None:
    """See a process go on counting after a dump and a restore. ``criu check`` passing is not enough.

    Raises:
        IsolationUnavailable: it does not; the message says where it stopped.
    """
    if shutil.which("criu") is None:
        raise IsolationUnavailable("criu: it is not installed", param="driver")
    with tempfile.TemporaryDirectory(prefix="statepool-criu-") as folder:
        state = Path(folder) / "count"
        command = [sys.executable, "-S", "-c", _COUNTER, str(state)]
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
        pid = process.pid
        try:
            _wait(lambda: state.exists() and int(state.read_text()) > 2)
            dump(pid, Path(folder) / "images")
            process.wait(10)
            before = int(state.read_text())
            pid = restore(Path(folder) / "images")
            _wait(lambda: int(state.read_text()) > before + 2)
        except (SandboxError, TimeoutError, subprocess.TimeoutExpired) as error:
            raise IsolationUnavailable(f"criu: a process did not come back: {error}", param="driver") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            process.wait()


def _run(arguments: list[str], log: Path) -> None:
    command = ["criu", *arguments, "--log-file", log.name, "-v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else done.stderr.splitlines()
        raise SandboxError(f"criu {arguments[0]}: {(lines or ['it gave no reason'])[-1]}")


def _wait(done: object) -> None:
    deadline = time.monotonic() + 10
    while not done():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError("it stopped counting")
        time.sleep(0.01)
