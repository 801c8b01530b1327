"""Opening what was saved: the file, and the changes in its log."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Literal, overload

from .check import one_of
from .errors import IndexCorruptError
from .file import IndexFile, Verify
from .index import Index
from .live import LiveIndex
from .log import LEVELS, Durability, Lock, Log, Replay, log_path, read

__all__ = ["open"]


@overload
def open(  # noqa: A001
    path: str | Path,
    mode: Literal["r"] = "r",
    *,
    mmap: bool = True,
    verify: Verify = "lazy",
) -> Index | LiveIndex: ...
@overload
def open(  # noqa: A001
    path: str | Path,
    mode: Literal["rw"],
    *,
    mmap: bool = True,
    verify: Verify = "lazy",
    durability: Durability = "power",
) -> LiveIndex: ...
def open(  # noqa: A001 - the name users know from files
    path: str | Path,
    mode: Literal["r", "rw"] = "r",
    *,
    mmap: bool = True,
    verify: Verify = "lazy",
    durability: Durability = "power",
) -> Index | LiveIndex:
    """The index at ``path`` with every change that was acknowledged.

    Args:
        path: The file that ``save`` wrote; its log is beside it.
        mode: ``r`` to search; that is a ``LiveIndex`` only if there are changes. ``rw`` for changes too, by one owner.
        mmap: Map the file; else read it, which checks all of it.
        verify: ``lazy`` checks each 64 KiB when a search first reads it, ``full`` all now, ``off`` none.
        durability: What a change has survived when it returns: ``process``, the death of this one, or ``power``.

    Raises:
        FileNotFoundError: there is no such file.
        IndexCorruptError: the file or the log is damaged, or they do not belong together; with ``lazy``, searches
            raise it too.
        StoreLocked: the index has a writer already.
        StoreReadOnly: mode ``rw`` where the folder cannot be written.
        InvalidRequest: an unknown mode, or a file of a newer version.
    """
    one_of("mode", mode, {"r": 0, "rw": 1})
    one_of("verify", verify, {"lazy": 0, "full": 1, "off": 2})
    one_of("durability", durability, LEVELS)
    path = Path(path)
    if mode == "rw":
        return _open_for_changes(path, mmap, verify, durability)
    while True:
        file = IndexFile(path, mmap=mmap, verify=verify)
        try:
            replay = _replay(path, file)
        except IndexCorruptError:
            if IndexFile(path, verify="off").identity == file.identity:
                raise
            continue  # a compaction came between the two
        index = Index.attach(file)
        if replay is None or not replay.records:
            return index
        return LiveIndex.resume(index, replay, read_only=True)


def _open_for_changes(path: Path, mmap: bool, verify: Verify, durability: Durability) -> LiveIndex:
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    with contextlib.ExitStack() as undo:
        lock = Lock(path)
        undo.callback(lock.close)
        file = IndexFile(path, mmap=mmap, verify=verify)
        replay = _replay(path, file)
        index = LiveIndex.resume(Index.attach(file), replay)
        if replay is None or replay.last < int(file.head.get("lsn", 0)):
            log = Log.create(log_path(path), str(file.head.get("log", file.identity)), int(file.head.get("lsn", 0)))
        else:
            log = Log(log_path(path), replay.index, replay.last, replay.end)
        undo.callback(log.close)
        index.keep(path, log, lock, durability)
        undo.pop_all()
    return index


def _replay(path: Path, file: IndexFile) -> Replay | None:
    """The changes since the file was written."""
    name = str(file.head.get("log", file.identity))
    try:
        replay = read(log_path(path))
    except FileNotFoundError:
        return None
    if replay.index != name:
        raise IndexCorruptError(
            f"{log_path(path)}: belongs to another index than {path}; delete the log if its changes are not wanted",
            "log",
            0,
        )
    done = int(file.head.get("lsn", 0))
    if replay.before > done:
        missing = f"its log begins with operation {replay.before + 1}, {done + 1} is missing"
        raise IndexCorruptError(f"{path}: {missing}", "log", 0)
    return replace(replay, records=tuple(one for one in replay.records if one.lsn > done))
