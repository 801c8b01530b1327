"""The file systems of one slot: a base of sources, and roots above it, each an overlay with a layer of its own.

The host's root is left behind for good when the slot is made. A tenant changes nothing but its layer, which is a
tmpfs; a slot is made clean by a new layer, never by deleting (a deleted file can stay visible in an overlay's caches).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from statepool.native import _sandbox  # type: ignore[attr-defined]

__all__ = ["Base", "Root"]

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "fd": "/proc/self/fd",
    "ptmx": "pts/ptmx",
    "shm": "/run/shm",
    "stderr": "/proc/self/fd/2",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
}
_MASKED = ("config.gz", "kallsyms", "key-users", "keys", "sched_debug", "timer_list")
"""What anybody could read in /proc; the rest is for root, who is not inside. Few: every root has a copy of the tree."""
_HIGH = 300
_MOST_ROOTS = 1200
MOST_LAYERS = 60
"""Of one root: their paths have to fit in one page."""


@dataclass(slots=True)
class Root:
    """One root directory: its mount, its own layer, and the layers below it, uppermost first."""

    path: str
    upper: str
    lowers: tuple[str, ...]
    fd: int
    device: int


class Base:
    """Makes and drops the roots of a slot. Runs as PID 1 of it."""

    def __init__(self, message: dict[str, Any]) -> None:
        """Leave the host's root: ``folder`` becomes a small tmpfs that holds the sources, and the new root."""
        self._userns: bool = message["userns"]
        self._free = [*range(_MOST_ROOTS - 1, -1, -1)]
        self._layers: set[str] = set()
        self._targets: list[str] = message["sources"]
        _sandbox.mount("none", "/", "", _REC | _PRIVATE)
        folder: str = message["folder"]
        _sandbox.mount("base", folder, "tmpfs", _NOSUID | _NODEV, "size=4m,mode=0700")
        for name in ("old", "src", "dev", "proc", "shown", "u", "g"):
            os.mkdir(f"{folder}/{name}", 0o700)
        for name in ("u", "g"):  # stay writable: places for layers and roots are made when they are needed
            _sandbox.mount("places", f"{folder}/{name}", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=0700")
        for number, source in enumerate([message["skeleton"], *message["layers"], *self._targets]):
            self._bind_source(source, f"{folder}/src/{number}")
        _devices(f"{folder}/dev", self._userns)
        # Before the old one goes: in a user namespace a new proc may show no more than one that is there.
        _sandbox.mount("proc", f"{folder}/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
        _mount_proc(f"{folder}/shown")
        first = 1 + len(message["layers"])
        self._lowers = tuple(f"/src/{number}" for number in range(first - 1, -1, -1))
        self._binds = [(f"/src/{first + number}", target) for number, target in enumerate(self._targets)]
        _sandbox.pivot_root(folder, f"{folder}/old")
        os.chdir("/")
        _sandbox.umount("/old", _DETACH)
        os.rmdir("/old")
        # Whoever breaks out of a root lands here, and may own this folder in a user namespace: nothing to see or to
        # change.
        os.chmod("/", 0)
        _sandbox.mount("", "/", "", _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)

    def fresh(self, files_bytes: int, inodes: int) -> Root:
        """A root as the template has it."""
        return self._make(self._lowers, files_bytes, inodes)

    def above(self, root: Root, files_bytes: int, inodes: int) -> Root:
        """A root that begins with the files of ``root``, whose own layer must not change any more.

        Raises:
            OSError: too many layers.
        """
        lowers = (root.upper, *root.lowers)
        if len(lowers) > MOST_LAYERS:
            raise OSError(f"{len(lowers)} layers of files lie above each other; at most {MOST_LAYERS}")
        return self._make(lowers, files_bytes, inodes)

    def drop(self, root: Root, left: Iterable[Root]) -> None:
        """Take a root away, and every layer that none of the roots ``left`` needs. Another thread frees the memory."""
        freed = [root.fd, self._detach(root.path)]
        needed = {layer for other in left for layer in (other.upper, *other.lowers)}
        for layer in self._layers - needed:
            freed.append(self._detach(os.path.dirname(layer)))
            self._free.append(int(layer.split("/")[2]))
        self._layers &= needed
        _sandbox.close_later(freed)

    def own(self, root: Root, uid: int) -> None:
        """Give a fresh root to its tenant."""
        if not self._userns:
            os.chown(f"{root.path}/home/user", uid, uid)
            self._write(
                root, "etc/passwd", f"root:x:0:0:root:/root:/bin/sh\nuser:x:{uid}:{uid}:user:/home/user:/bin/bash\n"
            )
            self._write(root, "etc/group", f"root:x:0:\nuser:x:{uid}:\n")

    def _write(self, root: Root, name: str, text: str) -> None:
        fd = os.open(f"{root.path}/{name}", os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        os.write(fd, text.encode())
        os.close(fd)

    def _make(self, lowers: tuple[str, ...], files_bytes: int, inodes: int) -> Root:
        if not self._free:
            raise OSError(f"a slot holds at most {_MOST_ROOTS} roots: close forks or snapshots")
        number = self._free.pop()
        layer, path = f"/u/{number}", f"/g/{number}"
        for place in (layer, path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(place, 0o700)
        _sandbox.mount("layer", layer, "tmpfs", _NOSUID | _NODEV, f"size={files_bytes},nr_inodes={inodes},mode=0755")
        upper = f"{layer}/up"
        os.mkdir(upper, 0o755)
        os.mkdir(f"{layer}/work", 0o755)
        options = f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={layer}/work,"
        options += "userxattr" if self._userns else "index=off,metacopy=off"
        _sandbox.mount("root", path, "overlay", _NOSUID | _NODEV, options)
        for source, target in self._binds:
            _sandbox.mount(source, path + target, "", _BIND | _REC)
        for tree, target in (("/dev", "dev"), ("/shown", "proc")):
            _sandbox.mount(tree, f"{path}/{target}", "", _BIND | _REC)
        _sandbox.mount("devpts", f"{path}/dev/pts", "devpts", _NOSUID | _NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
        low = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _HIGH)  # above what a child puts its own descriptors over
        os.close(low)
        self._layers.add(upper)
        return Root(path, upper, lowers, fd, os.stat(path).st_dev)

    def _bind_source(self, source: str, target: str) -> None:
        os.mkdir(target, 0o755)
        _sandbox.mount(source, target, "", _BIND | _REC)
        flags = _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV
        try:
            _sandbox.mount("", target, "", flags)
        except PermissionError:  # flags that were set outside a user namespace cannot be cleared inside
            _sandbox.mount("", target, "", flags | _locked(target))

    def _detach(self, path: str) -> int:
        """Take a mount away; the descriptor that is answered keeps its memory until it is closed."""
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _sandbox.umount(path, _DETACH)
        return fd


def _devices(folder: str, userns: bool) -> None:
    """The tree of /dev that every root shows; its terminals and shared memory are the root's own."""
    _sandbox.mount("dev", folder, "tmpfs", _NOSUID | _NOEXEC, "size=64k,mode=0755")
    for name in _DEVICES:
        if userns:  # which makes no devices
            os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
            _sandbox.mount(f"/dev/{name}", f"{folder}/{name}", "", _BIND)
        else:
            os.mknod(f"{folder}/{name}", stat.S_IFCHR, os.stat(f"/dev/{name}").st_rdev)
            os.chmod(f"{folder}/{name}", 0o666)  # noqa: S103  # as on the host
    for name, target in _LINKS.items():
        os.symlink(target, f"{folder}/{name}")
    os.mkdir(f"{folder}/pts", 0o755)
    _sandbox.mount("", folder, "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NOEXEC)


def _mount_proc(proc: str) -> None:
    """The proc that every root shows: other users' processes are not in it."""
    _sandbox.mount("proc", proc, "proc", _NOSUID | _NODEV | _NOEXEC, "hidepid=invisible")
    for name in _MASKED:
        with contextlib.suppress(FileNotFoundError):
            _sandbox.mount("/dev/null", f"{proc}/{name}", "", _BIND)


def _locked(path: str) -> int:
    """Flags of the mount at ``path`` as mount(2) takes them."""
    return os.statvfs(path).f_flag & (_NOSUID | _NODEV | _NOEXEC | 1024 | 2048 | (1 << 21))
