"""M10: how soon a store is back, after ``kill -9`` and after a loss of power.

Every store gets 1,000,000 entries that are out of the log and 64 MiB of later writes that are in it (or wherever its
defaults put them), and is killed. A loss of power also takes what lived in shared memory and in the page cache: each
opening then works on a copy of the folder that the kernel no longer holds in memory.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.duel import Worker, WorkerError
from bench.machine import LoadWatch
from bench.row import Row
from bench.store.cases import wanted
from bench.store.contest import FOLDER, Steady, enter, fresh, realtime, steady
from bench.store.data import TAIL

ENTRIES = 1_000_000
_PROBED = 1000
_SHARED = "/dev/shm/"


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """Both rows; one preparation serves them."""
    if not (wanted("M10a", only) or wanted("M10b", only)):
        return
    fair = realtime()
    attach, reopen = _attach_row(), _reopen_row()
    with ExitStack() as stack:
        floor = stack.enter_context(enter("floor"))
        _open(floor, FOLDER / "floor", "empty", 0, fair)
        ready, rounds = Stores(fair, ENTRIES // 10 if quick else ENTRIES), 2 if quick else 5
        for row, measure in ((attach, _attach), (reopen, _reopen)):
            if wanted(row.id, only):
                watch = LoadWatch()
                try:
                    measure(row, ready, partial(steady, floor, rounds))
                except WorkerError as error:
                    row.note = str(error)
                row.load = watch.stop() | {"scheduler": "SCHED_RR 1" if fair else "default"}
                yield row
        ready.clear()


class Stores:
    """Killed stores, each made when first asked for."""

    def __init__(self, fair: bool, entries: int) -> None:
        self.fair, self._entries = fair, entries
        self._made: set[str] = set()
        self._shared: set[Path] = set()

    def killed(self, name: str) -> Path:
        """The folder of a store that was killed after its last write; ``NAME-lost`` beside it is a copy of it.

        Raises:
            WorkerError: it could not be filled.
        """
        folder = FOLDER / name
        if name not in self._made:
            with enter(name, fresh(name)) as worker:
                _open(worker, folder, "tail", self._entries, self.fair)
                self.remember(worker)
                worker.kill()
            shutil.rmtree(_lost(name), ignore_errors=True)
            shutil.copytree(folder, _lost(name), ignore=_no_sockets)
            self._made.add(name)
        return folder

    def remember(self, worker: Worker) -> None:
        """Note the shared memory of a process, before it dies."""
        lines = Path(f"/proc/{worker.process.pid}/maps").read_text().splitlines()
        self._shared |= {Path(line.split(maxsplit=5)[5]) for line in lines if _SHARED in line}

    def without_power(self, name: str) -> Path:
        """A fresh copy of the killed store as the next boot would find it."""
        self.killed(name)
        for path in self._shared:
            path.unlink(missing_ok=True)
        folder = FOLDER / f"{name}-open"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(_lost(name), folder)
        for path in folder.rglob("*"):
            if path.is_file():
                _evict(path)
        return folder

    def clear(self) -> None:
        """Remove the copies and what is left in shared memory."""
        for path in self._shared:
            path.unlink(missing_ok=True)
        for name in self._made:
            for folder in (FOLDER / name, FOLDER / f"{name}-open", _lost(name)):
                shutil.rmtree(folder, ignore_errors=True)


def _attach(row: Row, stores: Stores, rounds: Callable[..., Steady[float]]) -> None:
    folder = stores.killed("ours")

    def once(turn: int) -> float:
        with enter("ours", folder) as worker:
            seconds = _open(worker, folder, "nothing", _PROBED, stores.fair)
            worker.run({"load": "put_one", "seconds": 0.02, "seed": turn})
            stores.remember(worker)
            worker.kill()
        return seconds

    found = rounds(once)
    row.value = 1000 * statistics.median(found.kept)
    row.own = f"{row.value:.3g} ms"
    row.note = f"slowest {1000 * max(found.kept):.3g} ms; {found.story()}"


def _reopen(row: Row, stores: Stores, rounds: Callable[..., Steady[dict[str, float]]]) -> None:
    absent = {}
    for name in ("ours", "rocksdb"):
        try:
            stores.killed(name)
        except WorkerError as error:
            absent[name] = str(error)
    names = [name for name in ("ours", "rocksdb") if name not in absent]
    found = rounds(lambda _: {name: _powered(name, stores) for name in names})
    median = {name: statistics.median(times[name] for times in found.kept) for name in names}
    notes = list(absent.values())
    if "ours" in median:
        row.own = f"{median['ours']:.3g} s"
        notes.append(f"at least {TAIL / median['ours']:.3g} records/s replayed")
    if "rocksdb" in median:
        row.peer_value = median["rocksdb"]
        log = sum(path.stat().st_size for path in _lost("rocksdb").rglob("*.log"))
        notes.append(f"RocksDB replays {log / 2**20:.0f} MiB of log")
    if len(median) == 2:
        row.value = statistics.median(times["rocksdb"] / times["ours"] for times in found.kept)
    row.note = "; ".join([*notes, found.story()])


def _powered(name: str, stores: Stores) -> float:
    folder = stores.without_power(name)
    with enter(name, folder) as worker:
        seconds = _open(worker, folder, "nothing", _PROBED, stores.fair)
        stores.remember(worker)
        worker.kill()
    return seconds


def _open(worker: Worker, folder: Path, fill: str, size: int, fair: bool) -> float:
    worker.load(system=worker.name, folder=str(folder), level="power", fill=fill, size=size, realtime=fair)
    return float(worker.loaded["seconds"])


def _lost(name: str) -> Path:
    return FOLDER / f"{name}-lost"


def _no_sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]


def _evict(path: Path) -> None:
    """Write a file out and take it from the page cache."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def _attach_row() -> Row:
    return Row(
        id="M10a",
        what="open after kill -9, 1 M entries: up to the first value read",
        unit="ms",
        better="lower",
        target=10.0,
        command="python -m bench store --only M10a",
    )


def _reopen_row() -> Row:
    return Row(
        id="M10b",
        what="open after a loss of power, 1 M entries and 64 MiB of log: up to the first value read",
        unit="x",
        better="higher",
        target=1.0,
        peer="RocksDB, sync",
        peer_unit="s",
        command="python -m bench store --only M10b",
    )
