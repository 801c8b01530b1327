"""The stem of a slot: a frozen image of the template's memory in the slot's namespaces, from which its kernels fork.

It waits in C (``native/sandbox/frozen.cpp``) and never runs Python itself: PID 1, which does, would write to pages
that every later kernel had to copy again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from statepool.native import _sandbox  # type: ignore[attr-defined]
from statepool.sandbox import seccomp
from statepool.sandbox.channel import Channel
from statepool.sandbox.inside import attach, kernel

__all__ = ["Stem", "sow"]

_DUMPABLE = 4
_CHROOT = 1 << 18
"""CAP_SYS_CHROOT: a kernel moves itself to the next layer of its files with it. Nothing but its own roots can be
reached.
"""


def sow(line: int, debug: bool) -> NoReturn:
    """In the process that holds a template's memory: fork a stem for each message on ``line``, until it closes."""
    program = seccomp.program(debug)
    try:  # what comes back is a new kernel
        body, fds = _sandbox.sow(line)
        _become(json.loads(body), fds, program)
    finally:
        os._exit(1)


def _become(order: dict[str, Any], fds: list[int], program: bytes) -> None:
    try:
        signal.set_wakeup_fd(-1)
        memory = None
        if "memory" in order:
            length, parts = order["memory"]
            memory = _region(length, parts, fds[4], fds[0])
        for fd, number in zip(fds[:3], (3, 1, 2), strict=True):
            os.dup2(fd, number)
        uid, groups = order["uid"], order["groups"]
        limits = [(name, value) for name, value in order["rlimits"]]
        _sandbox.enter(_sandbox.Confinement(uid, uid, program, limits, _CHROOT, groups), fds[3])
        os.closerange(4, 1 << 20)
        _sandbox.prctl(_DUMPABLE, 1)  # after setresuid the files of /proc/self would be root's
        os.chdir("/home/user")
        kernel.serve(3, memory)
    except BaseException as error:  # noqa: BLE001  # a fork must not return into the zygote
        with contextlib.suppress(OSError):
            Channel(socket.socket(fileno=3)).send({"op": "failed", "error": f"{type(error).__name__}: {error}"})


def _region(length: int, parts: list[list[Any]], device: int, line: int) -> tuple[mmap.mmap, list[list[Any]]]:
    """Before the kernel loses its rights: memory whose pages the manager will fetch."""
    space, address, uffd = attach.region(device, length)
    Channel(socket.socket(fileno=os.dup(line))).send({"op": "memory", "address": address}, [uffd])
    os.close(uffd)
    return space, parts


class Stem:
    """PID 1's hold on it.

    Args:
        line: the socket that it listens on.
        exited: hears process id and exit code of each kernel that ends.
    """

    def __init__(self, line: Channel, exited: Callable[[int, int], None]) -> None:
        self._line, self._exited = line, exited
        self.pid = self.host_pid = 0
        """Inside, and as the manager sees it."""

    def fileno(self) -> int:
        """For ``poll``."""
        return self._line.fileno()

    def join(self, spaces: Sequence[str]) -> None:
        """Bring it into the namespaces of these kinds of the calling process.

        Raises:
            OSError: it could not enter.
        """
        fds = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in spaces]
        try:
            self._line.send({"op": "join"}, fds)
        finally:
            for fd in fds:
                os.close(fd)
        if self.pid:
            self._answer("joined")
        else:  # the first time; two processes speak: who forked it, and itself
            for _ in range(2):
                said = self._answer("planted", "waits")
                if said["op"] == "planted":
                    self.host_pid = said["pid"]
                else:
                    self.pid = said["pid"]

    def grow(self, order: dict[str, Any], fds: Sequence[int]) -> int:
        """Fork a kernel, on ``fds``: its socket, output, error and root directory. Answers its process id inside.

        Raises:
            OSError: no further process may be.
        """
        self._line.send({"op": "grow"} | order, fds)
        return int(self._answer("grown")["pid"])

    def kill_others(self) -> bool:
        """End all processes inside but PID 1 and the stem; answers whether there was any left."""
        self._line.send({"op": "kill"})
        return bool(self._answer("killed")["others"])

    def hear(self) -> None:
        """Take what it says unasked: ends of kernels.

        Raises:
            Closed: it has ended, and the slot with it.
        """
        self._note(self._line.receive()[0])

    def _answer(self, *wanted: str) -> dict[str, Any]:
        while True:
            said, _ = self._line.receive()
            if said["op"] in wanted:
                return said
            if said["op"] == "failed":
                raise OSError(said["errno"], f"{os.strerror(said['errno'])} ({said['step']})")
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        if said.get("op") != "exit":
            raise OSError(errno.EPROTO, f"the stem said {said}")
        self._exited(said["pid"], said["code"])
