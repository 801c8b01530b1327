"""Files of a sandbox, from outside: the kernel resolves every path inside its root (openat2); no strings are
compared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from statepool.core.errors import InvalidRequest, NotFound, PayloadTooLarge
from statepool.native import _sandbox  # type: ignore[attr-defined]
from statepool.sandbox.template import HOME

__all__ = ["Entry", "Files"]

_IN_ROOT, _NO_MAGIC = 0x10, 0x02
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_MOST_BYTES = 1 << 30
Kind = Literal["file", "dir", "link", "other"]
_KINDS: dict[int, Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder; ``modified`` in seconds since 1970."""

    name: str
    path: str
    kind: Kind
    size: int
    mode: int
    modified: float
    target: str | None = None


class Files:
    """Reads and writes below one root directory, as the sandbox's user would own them."""

    def __init__(self, root: int, uid: int, owns: bool) -> None:
        """``root`` is a descriptor of the root directory; with ``owns`` what is made is given to ``uid``."""
        self._root, self._uid, self._owns = root, uid, owns

    def read(self, path: str, most: int = _MOST_BYTES) -> bytes:
        """The content of a regular file.

        Raises:
            NotFound: no such file.
            InvalidRequest: no regular file, or not a path.
            PayloadTooLarge: more than ``most`` bytes.
        """
        with self._opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            if (size := _regular(fd, path)) > most:
                raise PayloadTooLarge(f"path: {path!r} has {size} bytes; at most {most}", param="path")
            with open(fd, "rb", closefd=False) as file:
                return file.read(most)

    def write(self, path: str, data: str | bytes, mode: int = 0o644) -> Entry:
        """Write a file, and the folders above it; a file that was there is replaced in place."""
        body = data.encode() if isinstance(data, str) else data
        parent = os.path.dirname(self._absolute(path))
        self.make_dir(parent, exist_ok=True)
        with self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, mode) as fd:
            _regular(fd, path)
            os.ftruncate(fd, 0)
            done = 0
            while done < len(body):
                done += os.write(fd, memoryview(body)[done:])
            self._give(fd)
        return self.info(path)

    def list(self, path: str = HOME, depth: int = 1) -> list[Entry]:
        """What is in a folder, sorted by path; ``depth`` folders deep."""
        return sorted(self._walk(self._absolute(path), depth), key=lambda entry: entry.path)

    def info(self, path: str) -> Entry:
        """About one name; a link itself, not where it leads."""
        return self._entry(self._absolute(path))

    def exists(self, path: str) -> bool:
        """Whether there is such a name."""
        try:
            self.info(path)
        except NotFound:
            return False
        return True

    def make_dir(self, path: str, exist_ok: bool = False) -> bool:
        """Make a folder and those above it; answers False if it was there (an error unless ``exist_ok``)."""
        made, done = False, ""
        for part in self._absolute(path).strip("/").split("/"):
            parent, done = done or "/", f"{done}/{part}"
            try:
                with self._opened(done, os.O_PATH | os.O_DIRECTORY):
                    continue
            except NotFound:
                made = True
            with self._opened(parent, _FOLDER, about=done) as fd:
                os.mkdir(part, 0o755, dir_fd=fd)
            with self._opened(done, _FOLDER) as fd:
                self._give(fd)
        if not made and not exist_ok:
            raise InvalidRequest(f"path: {path!r} is there already", param="path")
        return made

    def remove(self, path: str) -> None:
        """Remove a file, a link, or a folder with all that is in it."""
        path = self._absolute(path)
        entry = self._entry(path)
        with self._opened(os.path.dirname(path), _FOLDER, about=path) as fd:
            if entry.kind == "dir":
                _remove_tree(fd, os.path.basename(path))
            else:
                os.unlink(os.path.basename(path), dir_fd=fd)

    def rename(self, old: str, new: str) -> Entry:
        """Move a name."""
        old, new = self._absolute(old), self._absolute(new)
        self.make_dir(os.path.dirname(new), exist_ok=True)
        whence, whither = os.path.dirname(old), os.path.dirname(new)
        with self._opened(whence, _FOLDER) as source, self._opened(whither, _FOLDER, about=old) as target:
            os.rename(os.path.basename(old), os.path.basename(new), src_dir_fd=source, dst_dir_fd=target)
        return self.info(new)

    def _walk(self, path: str, depth: int) -> Iterator[Entry]:
        with self._opened(path, _FOLDER) as fd:
            names = os.listdir(fd)
        for name in names:
            try:
                entry = self._entry(f"{path.rstrip('/')}/{name}")
            except NotFound:  # removed meanwhile
                continue
            yield entry
            if entry.kind == "dir" and depth > 1:
                yield from self._walk(entry.path, depth - 1)

    def _entry(self, path: str) -> Entry:
        with self._opened(path, os.O_PATH | os.O_NOFOLLOW) as fd:
            about = os.fstat(fd)
            kind = _KINDS.get(stat.S_IFMT(about.st_mode), "other")
            target = os.readlink("", dir_fd=fd) if kind == "link" else None
        name, mode = os.path.basename(path) or "/", stat.S_IMODE(about.st_mode)
        return Entry(name, path, kind, about.st_size, mode, about.st_mtime, target)

    def _absolute(self, path: str) -> str:
        if not path or "\0" in path:
            raise InvalidRequest("path: must not be empty or hold a zero byte", param="path")
        joined = path if path.startswith("/") else f"{HOME}/{path.removeprefix('~/')}" if path != "~" else HOME
        # only for names: ".." is resolved by the kernel, so links before it count
        return joined.rstrip("/") or "/"

    @contextlib.contextmanager
    def _opened(self, path: str, flags: int, mode: int = 0, about: str = "") -> Iterator[int]:
        """A descriptor; what goes wrong with it is said of ``about``, or else of ``path``."""
        path = self._absolute(path)
        try:
            fd: int = _sandbox.open_inside(self._root, path, flags, mode, _IN_ROOT | _NO_MAGIC)
        except OSError as error:
            raise self._named(error, path) from None
        except UnicodeEncodeError:
            raise InvalidRequest(f"path: {path!r} cannot be encoded", param="path") from None
        try:
            yield fd
        except OSError as error:
            raise self._named(error, about or path) from None
        finally:
            os.close(fd)

    def _give(self, fd: int) -> None:
        if self._owns:
            os.fchown(fd, self._uid, self._uid)

    @staticmethod
    def _named(error: OSError, path: str) -> NotFound | InvalidRequest | PayloadTooLarge:
        text = f"path: {path!r}: {error.strerror}"
        if error.errno == errno.ENOENT:
            return NotFound(text, param="path")
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return PayloadTooLarge(text, param="path")
        return InvalidRequest(text, param="path")


def _regular(fd: int, path: str) -> int:
    """Size of a regular file."""
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        raise InvalidRequest(f"path: {path!r} is no regular file", param="path")
    return about.st_size


def _remove_tree(folder: int, name: str) -> None:
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        with os.scandir(inner) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_folder in names:
            if is_folder:
                _remove_tree(inner, child)
            else:
                os.unlink(child, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)
