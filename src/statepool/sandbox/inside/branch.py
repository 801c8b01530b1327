"""A kernel's memory as a tree: hold the state of now as a frozen process, and let new kernels grow from it.

A holder is a fork that waits on a socket; each child of it is a kernel with the state of that moment. Files go along:
the manager
puts a new layer on what the holder saw, and a kernel moves into it, its working directory and open files included.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import re
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from statepool.native import _sandbox  # type: ignore[attr-defined]
from statepool.sandbox.channel import encode
from statepool.sandbox.inside import forked, turn
from statepool.sandbox.inside.attach import attach, region

if TYPE_CHECKING:
    from statepool.sandbox.inside.kernel import Kernel

__all__ = ["OPERATIONS"]

_QUERY, _WRITABLE_SHARED_FILE_OR_NEXT = 0xC0686611, 0x3A
"""Of PROCMAP_QUERY."""
_MINE = 4
"""Descriptors 0 to 3 are the kernel's own: input, output, error, manager."""
_SHARED = re.compile(rb"^\S+ rw.s \S+ \S+ \S+ +(/.*)$", re.MULTILINE)
"""In /proc/self/maps: files that are mapped for writing, and whose changes are everybody's."""
_CREATING = os.O_CREAT | os.O_TRUNC | os.O_EXCL


def _obstacles(descriptors: list[tuple[int, str]]) -> list[str]:
    """What lives here and cannot be carried into a fork."""
    found = [f"the thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    for wait in (0.001, 0.01, 0.1, 0.0):  # a thread that was joined takes a moment to end
        if (others := len(os.listdir("/proc/self/task")) - 1 - len(found)) <= 0:
            break
        time.sleep(wait)
    else:
        found.append(f"{others} threads of a library")
    for fd, target in descriptors:
        if target.startswith(("socket:", "anon_inode:[io_uring")):
            found.append(f"the open {target.split(':')[0]} {fd}")
        elif target.endswith(" (deleted)") and not target.startswith(("/memfd:", "/dev/")):
            found.append(f"the deleted file {target.removesuffix(' (deleted)')}")
    return found + [f"the writable mapping of {path}" for path in _shared() if "memfd" not in path]


def _shared() -> list[str]:
    """Files that are mapped for writing, and whose changes are everybody's. To list all mappings takes half a
    millisecond, so Linux is asked first whether there is one (6.11).
    """
    with open("/proc/self/maps", "rb", 0) as maps:
        try:
            fcntl.ioctl(maps, _QUERY, struct.pack("13Q", 104, _WRITABLE_SHARED_FILE_OR_NEXT, *[0] * 11))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
        return [os.fsdecode(path) for path in _SHARED.findall(maps.read())]


def _descriptors(mine: tuple[int, ...] = ()) -> list[tuple[int, str]]:
    """Open descriptors and what they lead to, without the kernel's own and ``mine``."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _MINE and int(name) not in mine:
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


def _open_files(descriptors: list[tuple[int, str]]) -> list[tuple[int, str, int, int]]:
    """Descriptor, path, flags and offset of each file that lies in the sandbox's own layers."""
    found = []
    for fd, target in descriptors:
        if not target.startswith("/") or target.startswith(("/proc/", "/dev/", "/memfd:")):
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
    return turn.digest(kernel.module.__dict__, _open_files(_descriptors()))


def _told(kernel: Kernel) -> tuple[dict[str, Any], list[int]]:
    """The manager's next message."""
    told = _sandbox.receive(kernel.line, False)
    if told is None:
        os._exit(0)
    return marshal.loads(told[0]), told[1]  # noqa: S302  # the manager is trusted here


def hold(kernel: Kernel, message: dict[str, Any], fds: list[int]) -> None:
    """Fork a holder on ``fds[0]`` and move on into another layer; or say what would be lost.

    Two more messages follow, while this works: whether nobody else is at work here, and the layer, if there is one.
    """
    (line,) = fds
    descriptors = _descriptors((line,))
    obstacles = _obstacles(descriptors)
    cwd, files = os.getcwd(), _open_files(descriptors)
    kernel.holders = [pid for pid in kernel.holders if _runs(pid)]
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    alone, before = _told(kernel)[0]["alone"], (kernel.turn, kernel.told)
    kernel.turn, kernel.told = [], False
    made = _sandbox.hold(line) if alone and not obstacles else None
    if isinstance(made, tuple):
        _grow(kernel, made, cwd, files)
        return
    os.close(line)
    kernel.holders += [made] if made else []
    _, roots = _told(kernel)
    error = None
    if made is None or not roots:
        kernel.turn, kernel.told = before
        for root in roots:
            os.close(root)
    else:
        try:
            _move(roots[0], cwd, files)
        except OSError as raised:
            error = str(raised)
    kernel.tell({"op": "held", "pid": made, "obstacles": obstacles, "error": error})


def _runs(child: int) -> bool:
    """Whether a child still runs; one that has ended would count among a sandbox's processes until it is waited for."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(child, os.WNOHANG)[0] == 0
    return False


def _grow(kernel: Kernel, order: tuple[bytes, list[int]], cwd: str, files: list[tuple[int, str, int, int]]) -> None:
    """In a new kernel: go on from the moment, as the message and descriptors of ``order`` ask."""
    message = marshal.loads(order[0])  # noqa: S302  # the manager is trusted here
    if message["op"] == "digest":
        _sandbox.tell(order[1][0], encode({"digest": _digest(kernel)}))
        os._exit(0)
    forked.after()
    control, out, err = order[1]
    for fd, number in ((out, 1), (err, 2), (control, kernel.line)):
        os.dup2(fd, number)
        os.close(fd)
    from statepool.sandbox.inside.kernel import reseed

    if message["reseed"]:
        reseed(message["seed"])
    os.environ.update(message["env"])
    (root,) = _told(kernel)[1]  # made meanwhile
    error = None
    try:
        _move(root, cwd, files)
    except OSError as raised:
        error = str(raised)
    kernel.tell({"op": "ready", "error": error})


OPERATIONS = {"attach": attach, "hold": hold, "look": look, "region": region}
