"""A real process, really killed: nothing that was acknowledged may be gone, with its shared memory or without."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.store.kill_child import open_store

import statepool.store

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src" / "statepool" / "native" / "store"
POINTS = sorted(
    {
        name
        for source in [*SOURCES.glob("*.cpp"), *SOURCES.glob("structures/*.h")]
        for name in re.findall(r'^\s+persist_point\("([a-z ]+)"\)', source.read_text(), re.MULTILINE)
    }
)


class Killer:
    """Has children work on a store and die; remembers what they said was written."""

    def __init__(self, folder: Path) -> None:
        self.path, self.acks = folder / "store", folder / "acks"
        self.last = 0  # number that the store was found to hold
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "kill_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kill(self, **how: Any) -> int:
        """The signal that ended the child: SIGKILL, or its point was not reached."""
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"path": str(self.path), "acks": str(self.acks), **how}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return os.WTERMSIG(int(self.process.stdout.readline()))

    def acknowledged(self, *levels: str) -> int:
        lines = self.acks.read_text().splitlines() if self.acks.exists() else []
        return max([int(line.split()[0]) for line in lines if line.split()[1] in levels], default=0)

    def check(self) -> None:
        """Opens a copy without the heap, then the folder itself: both hold what they promised. And what the heap held
        is what the log says.
        """
        if not (self.path / "meta").exists():
            return  # killed before there was a store
        self.without_heap(self.acknowledged("power"))
        with open_store(self.path) as store:
            self.last = verify(store, self.acknowledged("power", "process"))
            store.sync()
            assert self.without_heap(self.last) == self.last

    def without_heap(self, acknowledged: int) -> int:
        copy = self.path.with_name("copy")
        shutil.copytree(self.path, copy, ignore=shutil.ignore_patterns("spare", "unfinished"))
        with open_store(copy, shared=False) as store:
            last = verify(store, acknowledged)
        shutil.rmtree(copy)
        return last

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        os.killpg(self.process.pid, signal.SIGKILL)  # a child that hangs too
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Killer]:
    it = Killer(tmp_path)
    yield it
    it.close()


def verify(store: statepool.store.Store, acknowledged: int) -> int:
    """All structures agree on the last number, which is not below the acknowledged one; returns it."""
    tree = store.sorted_dict("t")
    newest = tree.last()
    last = 0 if newest is None else int(newest[0])
    assert last >= acknowledged
    assert len(tree) == len(store.stack("s")) == last
    assert last == 0 or store.stack("s")[-1] == b"%d" % last
    assert dict(store.dict("d")) == {
        b"%d" % (i % 50): b"%d" % i * (1 + i % 300) for i in range(max(1, last - 49), last + 1)
    }
    queued = store.queue("q").peek_range(0, last + 1)
    assert [value for _, value in queued] == [b"%d" % number for number, _ in queued]
    assert last == 0 or queued[-1][0] == last
    return last


def kill_at_random(killer: Killer, kills: int, seed: int) -> None:
    instants = random.Random(seed)
    for _ in range(kills):
        assert killer.kill(seconds=instants.uniform(0.0, 0.12)) == signal.SIGKILL
        killer.check()
    assert killer.last > kills


def test_killed_at_random_instants(killer: Killer) -> None:
    kill_at_random(killer, 20, 1)


@pytest.mark.slow
def test_killed_at_many_random_instants(killer: Killer) -> None:
    kill_at_random(killer, 200, 2)


def kill_at(killer: Killer, point: str, passes: list[int]) -> None:
    for n in passes:
        # The store that the point is then looked for in was itself left by a killed process.
        assert killer.kill(point=f"run logged:{5 + n}") == signal.SIGKILL
        assert killer.kill(point=f"{point}:{n}") == signal.SIGKILL, f"'{point}' was not passed {n} times"
        killer.check()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(point: str, killer: Killer) -> None:
    kill_at(killer, point, [1])


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_later_passes_of_a_point(point: str, killer: Killer) -> None:
    # What recovery passes once cannot be passed twice before the store is used.
    kill_at(killer, point, [2, 3, 5, 8])


def test_points_cover_the_steps() -> None:
    assert len(POINTS) >= 28
