"""A journal of what the manager has made in the kernel: what a killed manager leaves, the next one clears.

Slots end by themselves when their manager's socket closes; what stays are empty cgroups and folders, and slots that
hang.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

from statepool.core.errors import Corruption
from statepool.sandbox.cgroup import PREFIX, Cgroup, roots
from statepool.sandbox.errors import SandboxError

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)
_YOUNG = 60.0
"""Seconds in which a folder without a lock may be one that is just being made."""


def default_parent() -> Path:
    """Folder below which each manager of this user has its own."""
    base = os.environ.get("STATEPOOL_SANDBOX_FOLDER")
    return Path(base) if base else Path(tempfile.gettempdir()) / f"statepool-sandbox-{os.getuid()}"


class Ledger:
    """One manager's folder, held by a lock, and the journal in it."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open ``folder``, or a new one below ``default_parent()`` after clearing what dead managers left there.

        Raises:
            SandboxError: another manager has the folder.
        """
        if folder is None:
            parent = default_parent()
            parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            if parent.stat().st_uid != os.getuid():
                raise SandboxError(f"{parent} belongs to somebody else; set STATEPOOL_SANDBOX_FOLDER", param="folder")
            for other in parent.iterdir():
                _clear_dead(other)
            name = f"{os.getpid()}-{os.urandom(4).hex()}"
            # Under its final name only once it is locked: another manager would take it for a dead one's.
            made = parent / f".{name}"
            made.mkdir(mode=0o711)
            folder = parent / name
        else:
            made = folder
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.folder = folder
        self._lock_file = (made / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise SandboxError(f"{folder}: another manager is at work in this folder", param="folder") from None
        if made != folder:
            made.rename(folder)
        if (folder / "ledger").exists():
            clear(folder)
        self._file = (folder / "ledger").open("ab")
        self._lock = threading.Lock()

    def write(self, **entry: Any) -> None:
        """Append one entry; it is in the file, and so outlives this process, before what it names is made."""
        body = json.dumps(entry, separators=(",", ":")).encode()
        with self._lock:
            self._file.write(b"%08x %s\n" % (zlib.crc32(body), body))
            self._file.flush()

    def close(self) -> None:
        """Forget the folder: everything in it was taken down."""
        with self._lock, contextlib.suppress(OSError):  # a last line that finds no room is needed no more
            self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock_file.close()


def entries(path: Path) -> list[dict[str, Any]]:
    """The journal's entries; a torn last line is left out.

    Raises:
        Corruption: an entry before the last one is damaged.
    """
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines):
        try:
            if not line:
                continue
            crc, body = line.split(b" ", 1)
            if int(crc, 16) != zlib.crc32(body):
                raise ValueError("checksum")
            found.append(json.loads(body))
        except ValueError as error:
            if number >= len(lines) - 1:
                break
            raise Corruption(
                f"{path}: line {number + 1} is damaged ({error}); remove the cgroups named {PREFIX}* by hand"
            ) from None
    return found


def clear(folder: Path) -> int:
    """End and remove all that the journal in ``folder`` names; answers how many things were still there."""
    found = 0
    known = entries(folder / "ledger")
    for entry in known:
        if (pid := entry.get("pid")) and _started(pid) == entry["started"]:
            found += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    parents = roots()
    for entry in known:
        if name := entry.get("cgroup"):
            group = Cgroup(name, parents)
            if any(path.exists() for path in group.paths.values()):
                found += 1
                group.kill()
                if not group.remove():
                    _log.warning("the cgroup %s could not be removed: something in it does not die", group.name)
    for child in folder.iterdir():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)
    (folder / "ledger").unlink(missing_ok=True)
    return found


def started(pid: int) -> int:
    """When a process began, in clock ticks since the machine did: with the id, its name for good. 0 without it."""
    return _started(pid)


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _clear_dead(folder: Path) -> None:
    """Clear the folder of a manager that has died; one that lives holds its lock."""
    lock = folder / "lock"
    try:
        if folder.name.startswith(".") and time.time() - folder.stat().st_mtime < _YOUNG:
            return
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / "ledger").exists():
                count = clear(folder)
                _log.info("cleared %d leftovers of a sandbox manager that died", count)
            shutil.rmtree(folder, ignore_errors=True)
    except FileNotFoundError:
        if folder.is_dir() and time.time() - folder.stat().st_mtime > _YOUNG:
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
