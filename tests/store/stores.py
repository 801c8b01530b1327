"""What a test does to a store that is open in its own process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import statepool.store
from statepool.core.errors import StoreCorrupt
from statepool.store.logreader import Files
from statepool.store.net import files as net
from statepool.store.net.mirror import Copying
from statepool.store.net.roles import Mirror

SMALL: dict[str, Any] = {"capacity": "8MiB", "segment_size": "64KiB"}


def content(path: Path) -> dict[bytes, bytes]:
    """What the dictionary `d` holds."""
    with statepool.store.open(path, shared=False) as store:
        return dict(store.dict("d"))


def in_child(act: Callable[[], None]) -> int:
    """Runs `act` in a fork of this process; 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the parent's test must not go on in the child
            os.write(2, repr(error).encode())
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def killed(store: statepool.store.Store, folder: str, *, heap: bool, **options: Any) -> statepool.store.Store:
    """The store as the next process finds it after ``kill -9`` of this one, or without ``heap`` after a power loss.

    Memory and files are copied as they are, then the store is closed and the copies take their places.
    """
    copy = Path(f"{folder}-killed")
    (memory,) = Path("/dev/shm").glob(f"statepool-{Files(folder).meta.uuid.hex()}*")
    kept = memory.with_name(f"kept-{memory.name}")
    if heap:  # first, for what the log learns meanwhile does no harm
        subprocess.run(["cp", "--sparse=always", memory, kept], check=True)
    else:
        store.sync()  # what the level `process` loses then is not the question here
    _copy(Path(folder), copy)
    store.close()
    shutil.rmtree(folder)
    copy.rename(folder)
    if heap:
        kept.rename(memory)
    return statepool.store.open(folder, **options)


def taken_over(store: statepool.store.Store, folder: str, **options: Any) -> statepool.store.Store:
    """The store as a mirror has it that copied it from its beginning, opened in its place."""
    copy = Path(f"{folder}-mirror")
    store.sync()
    while not _mirrored(Path(folder), copy, store.durable_lsn):  # a checkpoint in the background came between
        shutil.rmtree(copy)
    store.close()
    shutil.rmtree(folder)
    copy.rename(folder)
    return statepool.store.open(folder, **options)


def _mirrored(folder: Path, copy: Path, last: int) -> bool:
    (copy / "ckpt").mkdir(parents=True)
    block = net.read_superblock(folder)
    assert block is not None
    name = f"ckpt/{block.checkpoint_id:016x}"
    reader, copying = net.LogReader(folder), Copying(copy, part=True)
    try:
        if block.checkpoint_id:
            shutil.copy(folder / name, copy / name)
        role = Mirror("mirror", 0, net.first_segment(folder, block.first_segment).before)
        if not reader.seek(role.position):
            return False
        block.heap_nonce, block.clean, block.replica = 0, 0, 1
        net.write_superblock(copy, block)
        while (piece := reader.next(last)) is not None:
            copying.append(role, [piece])
    except (FileNotFoundError, StoreCorrupt):
        return False
    finally:
        reader.close()
    return role.position.lsn == last


def _copy(folder: Path, copy: Path) -> None:
    """The folder as it is at one moment: again, if a checkpoint in the background changed it meanwhile."""

    def names() -> tuple[bytes, list[str]]:
        found = sorted(str(path) for path in folder.rglob("0*"))
        return (folder / "meta").read_bytes(), found

    while True:
        before = names()
        try:
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("spare", "unfinished"))
        except shutil.Error:  # a file went while it was looked for
            pass
        else:
            if names() == before:
                return
        shutil.rmtree(copy)
