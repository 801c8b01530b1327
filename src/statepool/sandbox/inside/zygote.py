"""The zygote: a template's memory as a process, from which slots fork, and their kernels from these.

It imports, freezes, and then waits in C (``native/sandbox/frozen.cpp``), where PID 1 of each slot waits as well
(``init.cpp``): no Python runs in either, so that none of their pages differ. One thread, no CUDA, no open files:
everything it holds is inherited by every sandbox (TrEnv's memory template, by fork).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import linecache
import os
import socket
import sys
from typing import Any, NoReturn

from statepool.native import _sandbox  # type: ignore[attr-defined]
from statepool.sandbox import seccomp
from statepool.sandbox.channel import Channel, encode, pair
from statepool.sandbox.inside import forked, kernel

__all__ = ["main"]

_KERNEL = 3
"""Descriptor of a kernel's socket."""
_SHARED = ["encodings.idna", "encodings.ascii", "encodings.latin_1", "traceback", "linecache", "tokenize", "asyncio"]
"""Modules of every template."""
_DRILLS = 100
"""Python 3.11 to 3.13 give up to specialise an instruction after fewer attempts."""


def main(fd: int) -> NoReturn:
    """Load what the manager says on ``fd``, and fork slots for it until it goes away."""
    channel = Channel(socket.socket(fileno=fd))
    spec, _ = channel.receive()
    try:
        program = seccomp.program(spec["debug"])
        _load(spec)
    except Exception as error:  # noqa: BLE001  # a template's code may raise anything; the manager says what
        channel.send({"op": "failed", "error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    _sandbox.expect_writes(_rehearse())
    channel.send({"op": "ready"})
    line = channel.socket.detach()  # a kernel has no such descriptor, and must not close what has its number
    try:
        _sandbox.sow(line, program)  # what comes back is a new kernel
        kernel.serve(_KERNEL)
    except BaseException as error:  # noqa: BLE001  # a fork must not return into the zygote
        with contextlib.suppress(OSError):
            _sandbox.tell(_KERNEL, encode({"op": "failed", "error": f"{type(error).__name__}: {error}"}))
    finally:
        os._exit(1)


def _load(spec: dict[str, Any]) -> None:
    """Import what sandboxes share, and move it out of the collector's sight, so that it writes to none of it."""
    forked.record()
    for name in [*_SHARED, *spec["preload"]]:
        importlib.import_module(name)
    if spec["warm"]:
        exec(compile(spec["warm"], "<template>", "exec"), {"__name__": "__main__"})  # noqa: S102  # the operator's code
    kernel.prepare(spec["variables"])
    _drill()
    gc.collect()
    gc.freeze()
    _sandbox.fill_holes()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(
            f"{threads} threads run after the preload; a fork would lose them. Leave out what starts them"
        )


def _cells(*codes: str) -> tuple[Channel, Channel]:
    """The ends of a line on which a kernel is told to begin, to run these cells, and no more."""
    ours, theirs = pair()
    ours.instruct({"op": "begin", "env": {"STATEPOOL_SANDBOX": "x"}, "cwd": None, "seed": None})
    for code in codes:
        ours.instruct({"op": "run", "code": code, "env": None})
    ours.socket.shutdown(socket.SHUT_WR)
    return ours, theirs


def _drill() -> None:
    """Run cells here: what they import lazily is shared, and the interpreter notes what it will (instructions that it
    specialises, attributes that it finds), each of which would be a page written in a fork.
    """
    ours, theirs = _cells("raise ValueError('warm')", "import asyncio\nawait asyncio.sleep(0)", *["1 + 1"] * _DRILLS)
    kernel.Kernel(theirs.fileno()).loop()
    ours.close()
    theirs.close()
    linecache.clearcache()


def _rehearse() -> list[tuple[int, int]]:
    """Stretches of memory that a kernel writes to until its first cell is done: what a fork here did."""
    ours, theirs = _cells("1 + 1")
    pid = _sandbox.fork()
    if pid == 0:
        try:
            kernel.serve(theirs.fileno())
            _sandbox.tell(theirs.fileno(), encode({"pages": _sandbox.written()}))
        finally:
            os._exit(0)
    theirs.close()
    ours.receive()  # the cell's answer
    pages = ours.receive()[0]["pages"]
    ours.close()
    os.waitpid(pid, 0)
    return [(begin, length) for begin, length in pages]


if __name__ == "__main__":
    main(int(sys.argv[1]))
