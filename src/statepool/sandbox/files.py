"""Files of a sandbox, from outside: the kernel resolves every path inside its root (openat2); no strings are
compared.
"""

from __future__ import annotations

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
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder; ``modified`` in seconds since 1970."""

    name: str
    path: str
    kind: Literal["file", "dir", "link", "other"]
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
        fd = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise InvalidRequest(f"path: {path!r} is no regular file", param="path")
            if about.st_size > most:
                raise PayloadTooLarge(f"path: {path!r} has {about.st_size} bytes; at most {most}", param="path")
            with open(fd, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(fd)

    def write(self, path: str, data: str | bytes, mode: int = 0o644) -> Entry:
        """Write a file, and the folders above it; a file that was there is replaced in place."""
        body = data.encode() if isinstance(data, str) else data
        parent = os.path.dirname(self._absolute(path))
        self.make_dir(parent, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
        fd = self._open(path, flags, mode)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidRequest(f"path: {path!r} is no regular file", param="path")
            os.ftruncate(fd, 0)
            with open(fd, "wb", buffering=0, closefd=False) as file:
                done = 0
                while done < len(body):
                    done += file.write(memoryview(body)[done:])
            self._give(fd)
        except OSError as error:
            raise self._named(error, path) from None
        finally:
            os.close(fd)
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
                os.close(self._open(done, os.O_PATH | os.O_DIRECTORY))
            except NotFound:
                with _Folder(self, parent) as fd:
                    try:
                        os.mkdir(part, 0o755, dir_fd=fd)
                    except OSError as error:
                        raise self._named(error, done) from None
                with _Folder(self, done) as fd:
                    self._give(fd)
                made = True
        if not made and not exist_ok:
            raise InvalidRequest(f"path: {path!r} is there already", param="path")
        return made

    def remove(self, path: str) -> None:
        """Remove a file, a link, or a folder with all that is in it."""
        path = self._absolute(path)
        entry = self._entry(path)
        with _Folder(self, os.path.dirname(path)) as fd:
            try:
                if entry.kind == "dir":
                    _remove_tree(fd, os.path.basename(path))
                else:
                    os.unlink(os.path.basename(path), dir_fd=fd)
            except OSError as error:
                raise self._named(error, path) from None

    def rename(self, old: str, new: str) -> Entry:
        """Move a name."""
        old, new = self._absolute(old), self._absolute(new)
        self.make_dir(os.path.dirname(new), exist_ok=True)
        with _Folder(self, os.path.dirname(old)) as source, _Folder(self, os.path.dirname(new)) as target:
            try:
                os.rename(os.path.basename(old), os.path.basename(new), src_dir_fd=source, dst_dir_fd=target)
            except OSError as error:
                raise self._named(error, old) from None
        return self.info(new)

    def _walk(self, path: str, depth: int) -> Iterator[Entry]:
        with _Folder(self, path) as fd:
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
        fd = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            about = os.fstat(fd)
            mode = about.st_mode
            kind: Literal["file", "dir", "link", "other"] = (
                "dir"
                if stat.S_ISDIR(mode)
                else "file"
                if stat.S_ISREG(mode)
                else "link"
                if stat.S_ISLNK(mode)
                else "other"
            )
            target = os.readlink("", dir_fd=fd) if kind == "link" else None
        finally:
            os.close(fd)
        return Entry(
            os.path.basename(path) or "/", path, kind, about.st_size, stat.S_IMODE(mode), about.st_mtime, target
        )

    def _absolute(self, path: str) -> str:
        if not path or "\0" in path:
            raise InvalidRequest("path: must not be empty or hold a zero byte", param="path")
        joined = path if path.startswith("/") else f"{HOME}/{path.removeprefix('~/')}" if path != "~" else HOME
        # only for names: ".." is resolved by the kernel, so links before it count
        return joined.rstrip("/") or "/"

    def _open(self, path: str, flags: int, mode: int = 0) -> int:
        path = self._absolute(path)
        try:
            fd: int = _sandbox.open_inside(
                self._root, path, flags, mode if flags & os.O_CREAT else 0, _IN_ROOT | _NO_MAGIC
            )
        except OSError as error:
            raise self._named(error, path) from None
        except UnicodeEncodeError:
            raise InvalidRequest(f"path: {path!r} cannot be encoded", param="path") from None
        return fd

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


class _Folder:
    """A folder opened for ``dir_fd``."""

    def __init__(self, files: Files, path: str) -> None:
        self._fd = files._open(path or "/", os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


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
