"""Runs a history of changes again and again, each time killed at another place; the test looks at what is left.

Every run is a process forked from this one. `effects`: it kills itself just before the n-th call that touches a file.
`moments`: it is killed from outside, whenever. With power lost too, what no sync covered is partly undone: bytes of a
log, and renames whose folder was not synced.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import statepool.vector as vector

DIM, FIRST = 8, 40
SECTOR = 512


@cache
def row(one: int, version: int) -> np.ndarray:
    return np.random.default_rng([one, version]).normal(size=DIM).astype(np.float32)


def history(seed: int, length: int) -> list[tuple[str, list[int], int]]:
    """Operations and their version; each changes something."""
    dice, there, names = random.Random(seed), set(range(FIRST)), FIRST
    found: list[tuple[str, list[int], int]] = []
    for version in range(1, length + 1):
        kind = dice.choice(["add", "add", "update", "delete", "compact", "reopen"])
        some = sorted(dice.sample(sorted(there), min(len(there), dice.randrange(1, 6))))
        if kind == "add":
            some = list(range(names, names + dice.randrange(1, 6)))
            names += len(some)
            there |= set(some)
        elif kind == "delete":
            there -= set(some)
        found.append((kind, [] if kind in ("compact", "reopen") else some, version))
    return found


def states(operations: list[tuple[str, list[int], int]]) -> list[dict[int, int]]:
    """Version of every row, before the first operation and after each."""
    now = dict.fromkeys(range(FIRST), 0)
    found = [dict(now)]
    for kind, ids, version in operations:
        if kind == "delete":
            for one in ids:
                del now[one]
        else:
            now |= dict.fromkeys(ids, version)
        found.append(dict(now))
    return found


def play(folder: Path, operations: list[tuple[str, list[int], int]], level: Any) -> None:
    acks = os.open(folder / "acks", os.O_WRONLY | os.O_CREAT)
    index = vector.open(folder / "index", "rw", durability=level)
    for kind, ids, version in operations:
        rows = np.stack([row(one, version) for one in ids]) if ids else None
        columns = {"version": [version] * len(ids)}
        if kind == "add":
            index.add(rows, ids, columns=columns)
        elif kind == "update":
            index.update(ids, rows, columns=columns)
        elif kind == "delete":
            index.delete(ids)
        elif kind == "compact":
            index.compact()
        else:
            index.close()
            index = vector.open(folder / "index", "rw", durability=level)
        _write(acks, b"+")
    index.close()
    _write(acks, b".")


_write, _pwrite, _fsync, _fdatasync, _replace = os.write, os.pwrite, os.fsync, os.fdatasync, Path.replace


class Effects:
    """Counts calls that touch files, and dies at one of them."""

    def __init__(self, last: int, power: bool) -> None:
        self.left, self.power, self.dice = last, power, random.Random(last)
        self.synced: dict[int, tuple[int, int]] = {}  # inode of a log: descriptor, bytes that are on disk
        self.whole: set[int] = set()  # inodes of files that were synced
        self.renames: list[tuple[Path, Path]] = []  # not on disk yet: what was there before, where

    def arm(self) -> None:
        os.pwrite = self.around(_pwrite, self.pwrite)  # type: ignore[assignment]
        os.fsync = self.around(_fsync, self.fsync)  # type: ignore[assignment]
        os.fdatasync = self.around(_fdatasync, self.fsync)  # type: ignore[assignment]
        Path.replace = self.around(_replace, self.replace)  # type: ignore[assignment, method-assign]

    def around(self, call: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.step()
            return note(call, *arguments)

        return counted

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            if self.power:
                self.lose_power()
            os.kill(os.getpid(), signal.SIGKILL)

    def pwrite(self, call: Callable[..., Any], handle: int, data: bytes, offset: int) -> Any:
        self.synced.setdefault(os.fstat(handle).st_ino, (handle, offset))
        return call(handle, data, offset)

    def fsync(self, call: Callable[..., Any], handle: int) -> None:
        call(handle)
        facts = os.fstat(handle)
        self.whole.add(facts.st_ino)
        self.renames = []
        if facts.st_ino in self.synced:
            self.synced[facts.st_ino] = (handle, facts.st_size)

    def replace(self, call: Callable[..., Any], source: Path, target: Path) -> Any:
        if source.stat().st_ino not in self.whole:
            sys.exit(f"{source} is renamed before it is synced")
        if target.exists():
            self.synced.pop(target.stat().st_ino, None)  # its number may soon be another file's
            before = target.with_name("before " + target.name)
            shutil.copy(target, before)
            self.renames.append((before, target))
        return call(source, target)

    def lose_power(self) -> None:
        for inode, (handle, end) in self.synced.items():
            try:
                facts = os.fstat(handle)
            except OSError:
                continue
            if facts.st_ino != inode:
                continue  # a log that was replaced
            size = facts.st_size
            for at in range(end, size, SECTOR):
                if self.dice.random() < 0.5:
                    _pwrite(handle, bytes(min(SECTOR, size - at)), at)
            if self.dice.random() < 0.3:
                os.ftruncate(handle, self.dice.randrange(end, size + 1))
        for before, target in self.renames:
            if self.dice.random() < 0.5:
                _replace(before, target)


def main(base: Path, options: dict[str, Any]) -> None:
    operations = history(options["seed"], options["length"])
    dice = random.Random(options["seed"])
    for number in range(options["first"], options["first"] + options["runs"]):
        folder = base / str(number)
        folder.mkdir()
        shutil.copy(base / "index", folder / "index")
        child = os.fork()
        if child == 0:
            if options["how"] == "effects":
                Effects(number, options["power"]).arm()
            play(folder, operations, options["level"])
            os._exit(0)
        if options["how"] == "moments":
            time.sleep(dice.random() * options["seconds"])
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status not in (0, signal.SIGKILL):
            sys.exit(f"run {number} ended with status {status}")
        if status == 0 and options["how"] == "effects":
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
