"""The zygote: a template's memory as a process, and the process that forks the PID 1 of slots.

The memory is a child that imports, freezes and then waits in C: stems fork from it and share its pages. One thread, no
CUDA, no open files: everything it holds is inherited by every sandbox (TrEnv's memory template, by fork). PID 1 needs
none of it, and forks from the small process that talks to the manager.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from statepool.native import _sandbox  # type: ignore[attr-defined]
from statepool.sandbox.channel import Channel, Closed, pair
from statepool.sandbox.inside import kernel, slot, stem

__all__ = ["main"]

_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_CGROUP = 0x00020000, 0x04000000, 0x08000000, 0x02000000
_SUBREAPER = 36


def main(fd: int) -> None:
    """Serve the manager on ``fd`` until it goes away, with a child that holds the memory."""
    channel = Channel(socket.socket(fileno=fd))
    wake, wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    spec, _ = channel.receive()
    image, far_end = pair()
    if os.fork() == 0:
        channel.close()
        image.close()
        _image(far_end, spec)
    far_end.close()
    _sandbox.prctl(_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
    try:
        hello, _ = image.receive()
    except Closed:
        hello = {"op": "failed", "error": "the preload ended the process"}
    if hello["op"] != "ready":
        channel.send(hello)
        return
    front = _front(spec)
    channel.send(hello)
    while True:
        ready, _, _ = select.select([channel.fileno(), wake, image.fileno()], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap()
        if image.fileno() in ready:  # it says nothing more: it has ended
            return
        if channel.fileno() in ready:
            try:
                message, fds = channel.receive(rights=True)
                _fork_slot(image, front, message, fds[0])
            except Closed:  # the manager, or one of the two, has gone
                return
            for number in fds:
                os.close(number)


def _image(line: Channel, spec: dict[str, Any]) -> NoReturn:
    """The process that holds the memory; once it is loaded, no Python runs in it, so all stems have the same pages."""
    try:
        _load(spec)
        line.send({"op": "ready", "pid": os.getpid()})
    except Exception as error:  # noqa: BLE001  # a template's code may raise anything; the manager says what
        line.send({"op": "failed", "error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    stem.sow(line.fileno(), spec["debug"])


def _load(spec: dict[str, Any]) -> None:
    """Import what sandboxes share, and move it out of the collector's sight, so that it writes to none of it."""
    for name in (
        "encodings.idna",
        "encodings.ascii",
        "encodings.latin_1",
        "traceback",
        "linecache",
        "tokenize",
        "asyncio",
        *spec["preload"],
    ):
        importlib.import_module(name)
    kernel.warm()
    if spec["warm"]:
        exec(compile(spec["warm"], "<template>", "exec"), {"__name__": "__main__"})  # noqa: S102  # the operator's code
    kernel.prepare(spec["variables"])
    gc.collect()
    gc.freeze()
    _sandbox.collapse()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(
            f"{threads} threads run after the preload; a fork would lose them. Leave out what starts them"
        )


def _front(spec: dict[str, Any]) -> Channel:
    """Fork the process that waits to fork PID 1 for each slot, and runs no Python meanwhile either."""
    gc.collect()
    gc.freeze()
    front, far_end = pair()
    forked = _sandbox.hold(far_end.fileno(), front.fileno())
    if isinstance(forked, int):
        far_end.close()
        return front
    body, fds = forked  # a slot is wanted
    control, line = (Channel(socket.socket(fileno=number)) for number in fds)
    try:
        signal.set_wakeup_fd(-1)
        _become_slot(control, line, json.loads(body), spec)
    except BaseException as error:  # noqa: BLE001  # nothing may return into the zygote's loop
        control.send({"op": "failed", "error": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _fork_slot(image: Channel, front: Channel, message: dict[str, Any], control: int) -> None:
    """A stem that waits for the namespaces of its PID 1, and the process that makes them."""
    line, far_end = pair()
    joins = [os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for path in message["cgroups"]]
    image.send({}, [far_end.fileno(), *joins])
    front.send(message, [control, line.fileno()])
    front.receive()
    for number in joins:
        os.close(number)
    far_end.close()
    line.close()


def _become_slot(control: Channel, line: Channel, message: dict[str, Any], spec: dict[str, Any]) -> None:
    """In the process between: enter cgroups and namespaces; its child is PID 1 of them, and adopted by the zygote."""
    for path in message["cgroups"]:
        Path(path, "cgroup.procs").write_text(str(os.getpid()))
    user = os.geteuid()
    if message["userns"]:
        _sandbox.unshare(_NEW_USER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"1000 {user} 1")
        Path("/proc/self/gid_map").write_text(f"1000 {os.getegid()} 1")
    _sandbox.unshare(_NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_NET | _NEW_CGROUP | _NEW_PID)
    child = os.fork()
    if child:
        control.send({"op": "born", "pid": child})
        os._exit(0)
    slot.main(control, line, message, spec)


def _reap() -> None:
    """Slots are children of the zygote once the process between has ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
