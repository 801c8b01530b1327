"""A kernel's memory as a tree: hold the state of now as a frozen process, and let new kernels grow from it.

A holder is a fork that waits on a socket; each child of it is a kernel with the state of that moment. Files go along:
the manager
puts a new layer on what the holder saw, and a kernel moves into it, its working directory and open files included.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import re
import sys
import threading
from typing import TYPE_CHECKING, Any

from statepool.native import _sandbox  # type: ignore[attr-defined]
from statepool.sandbox.channel import encode
from statepool.sandbox.inside import forked, turn
from statepool.sandbox.inside.attach import attach, region

if TYPE_CHECKING:
    from statepool.sandbox.inside.kernel import Kernel

__all__ = ["OPERATIONS"]

_MINE = 4
"""Descriptors 0 to 3 are the kernel's own: input, output, error, manager."""
_SHARED = re.compile(rb"^\S+ rw.s \S+ \S+ \S+ +(/.*)$", re.MULTILINE)
"""In /proc/self/maps: files that are mapped for writing, and whose changes are everybody's."""
_CREATING = os.O_CREAT | os.O_TRUNC | os.O_EXCL


def _obstacles(mine: list[int]) -> list[str]:
    """What lives here and cannot be carried into a fork; the descriptors ``mine`` are no part of it."""
    found = [f"the thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    others = len(os.listdir("/proc/self/task")) - 1 - len(found)
    if others > 0:
        found.append(f"{others} threads of a library")
    for fd, target in _descriptors():
        if fd in mine:
            continue
        if target.startswith(("socket:", "anon_inode:[io_uring")):
            found.append(f"the open {target.split(':')[0]} {fd}")
        elif target.endswith(" (deleted)") and not target.startswith(("/memfd:", "/dev/")):
            found.append(f"the deleted file {target.removesuffix(' (deleted)')}")
    with open("/proc/self/maps", "rb") as maps:
        shared = _SHARED.findall(maps.read())
    return found + [f"the writable mapping of {os.fsdecode(path)}" for path in shared if b"memfd" not in path]


def _descriptors() -> list[tuple[int, str]]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _MINE:
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


def _open_files(mine: list[int]) -> list[tuple[int, str, int, int]]:
    """Descriptor, path, flags and offset of each file that lies in the sandbox's own layers; not of those in
    ``mine``.
    """
    found = []
    for fd, target in _descriptors():
        if fd in mine or not target.startswith("/") or target.startswith(("/proc/", "/dev/", "/memfd:")):
            continue
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            info = dict(line.split(":", 1) for line in file if ":" in line)
        found.append((fd, target, int(info["flags"], 8), int(info["pos"])))
    return found


def _move(root: int, cwd: str, files: list[tuple[int, str, int, int]]) -> None:
    """Into another root directory, with the same working directory and the same open files at the same offsets."""
    os.fchdir(root)
    os.chroot(".")
    os.close(root)
    os.chdir(cwd)
    for fd, path, flags, offset in files:
        fresh = os.open(path, flags & ~_CREATING)
        if not os.path.isdir(path):
            os.lseek(fresh, offset, os.SEEK_SET)
        inheritable = os.get_inheritable(fd)
        os.dup2(fresh, fd, inheritable)
        os.close(fresh)


def look(kernel: Kernel, message: dict[str, Any], fds: list[int]) -> None:
    """Say whether anything may have changed since the last moment: nothing has run, or what to compare with it."""
    untouched = not kernel.turn and not kernel.told
    space = kernel.module.__dict__
    quiet = not untouched and all(turn.quiet(code, space) for code in kernel.turn)
    kernel.tell({"op": "looked", "untouched": untouched, "digest": _digest(kernel) if quiet else None})


def _digest(kernel: Kernel) -> str:
    return turn.digest(kernel.module.__dict__, _open_files([]))


def hold(kernel: Kernel, message: dict[str, Any], fds: list[int]) -> None:
    """Fork a holder on ``fds[0]`` and move on into the layer ``fds[1]``; or say what would be lost."""
    line, root = fds
    if obstacles := _obstacles(fds):
        for fd in fds:
            os.close(fd)
        kernel.tell({"op": "held", "obstacles": obstacles})
        return
    cwd, files = os.getcwd(), _open_files(fds)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kernel.turn, kernel.told = [], False
    made = _sandbox.hold(line, root)
    if not isinstance(made, int):
        _grow(kernel, made, cwd, files)
        return
    os.close(line)
    error = None
    try:
        _move(root, cwd, files)
    except OSError as raised:
        error = str(raised)
    kernel.tell({"op": "held", "pid": made, "error": error})


def _grow(kernel: Kernel, order: tuple[bytes, list[int]], cwd: str, files: list[tuple[int, str, int, int]]) -> None:
    """In a new kernel: go on from the moment, as the message and descriptors of ``order`` ask."""
    message = marshal.loads(order[0])  # noqa: S302  # the manager is trusted here
    if message["op"] == "digest":
        _sandbox.tell(order[1][0], encode({"digest": _digest(kernel)}))
        os._exit(0)
    forked.after()
    control, out, err, root = order[1]
    for fd, number in ((out, 1), (err, 2), (control, kernel.line)):
        os.dup2(fd, number)
        os.close(fd)
    from statepool.sandbox.inside.kernel import reseed

    error = None
    try:
        _move(root, cwd, files)
        if message["reseed"]:
            reseed(message["seed"])
        os.environ.update(message["env"])
    except OSError as raised:
        error = str(raised)
    kernel.tell({"op": "ready", "error": error})


OPERATIONS = {"attach": attach, "hold": hold, "look": look, "region": region}
