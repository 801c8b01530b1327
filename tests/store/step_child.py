"""Forks processes that are killed behind a given machine instruction. Run by test_kill_at_an_instruction.py.

One JSON request a line: path of a store, and after how many instructions (null: never). The child opens the store,
stops, does one transaction and stops again; in between it goes one instruction at a time (ptrace, 2). The answer: how
many instructions it was given, and whether it was killed.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

import statepool.store
from statepool.store.native import Verb

TRACE_ME, KILL, SINGLE_STEP = 0, 8, 9
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def child(path: str) -> None:
    """One transaction on four structures, numbered as test_kill.py's are, between two stops."""
    store = statepool.store.open(path, capacity="8MiB", segment_size="64KiB")
    d, t, q, s = store.dict("d"), store.sorted_dict("t"), store.queue("q"), store.stack("s")
    newest = t.last()
    i = 1 if newest is None else int(newest[0]) + 1
    operations: list[tuple[Any, ...]] = [
        (Verb.PUT, d.identity, b"%d" % (i % 50), b"%d" % i * (1 + i % 300), 0, 0),
        (Verb.PUT, t.identity, b"%08d" % i, b"%d" % i, 0, 0),
        (Verb.ENQUEUE, q.identity, b"%d" % i, b"", 0, 0),
        (Verb.PUSH, s.identity, b"%d" % i, b"", 0, 0),
    ]
    commit = store.native.commit
    if libc.ptrace(TRACE_ME, 0, None, None) != 0:
        os._exit(2)
    os.kill(os.getpid(), signal.SIGSTOP)
    commit(operations, [], 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)


def stepped(pid: int, most: int | None) -> tuple[int, bool]:
    """Give it that many instructions, or all until its second stop; kill it."""
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        return 0, False
    given, step, wait = 0, libc.ptrace, os.waitpid
    while most is None or given < most:
        if step(SINGLE_STEP, pid, None, None) != 0:
            break
        _, status = wait(pid, 0)
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) == signal.SIGSTOP:
            break
        given += 1
    os.kill(pid, signal.SIGKILL)
    while os.WIFSTOPPED(status):
        _, status = os.waitpid(pid, 0)
    return given, os.WIFSIGNALED(status)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(request["path"])
        print(json.dumps(stepped(pid, request["step"])), flush=True)


main()
