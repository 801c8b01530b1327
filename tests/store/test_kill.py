"""A real process, really killed: nothing that was acknowledged may be gone."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import statepool.store

# Writes numbered entries and says each number once its write has returned. `both` changes two structures at once.
CHILD = """
import sys
import statepool.store
path, level, start = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = statepool.store.open(path, durability=level, capacity="64MiB", segment_size="256KiB", checkpoint_every="512KiB")
entries, tree, queue, stack = store.dict("d"), store.sorted_dict("t"), store.queue("q"), store.stack("s")
i = start
while True:
    with store.transaction() as tx:
        tx[entries][b"%d" % (i % 5000)] = b"%d" % i * (1 + i % 30)
        tx[tree][b"%08d" % i] = b"%d" % i
        tx[queue].put(b"%d" % i)
        tx[stack].push(b"%d" % i)
    if i % 7 == 0:
        queue.take(0.0)
    sys.stdout.write("%d\\n" % i)
    sys.stdout.flush()
    i += 1
"""


def run_and_kill(path: Path, level: str, start: int, seconds: float) -> int:
    """The last number that was acknowledged before the kill; start - 1 if there is none."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), level, str(start)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    said = (first + child.stdout.read()).splitlines(keepends=True)
    child.wait()
    child.stdout.close()
    return max([int(line) for line in said if line.endswith(b"\n")], default=start - 1)


def last_of(store: statepool.store.Store, acknowledged: int) -> int:
    """Checks that all structures agree and hold everything acknowledged; returns the last number they hold."""
    tree = store.sorted_dict("t")
    newest = tree.last()
    last = 0 if newest is None else int(newest[0])
    assert last >= acknowledged
    assert len(tree) == last
    assert store.stack("s")[-1] == b"%d" % last
    assert len(store.stack("s")) == last
    entries = store.dict("d")
    for i in range(max(1, last - 4999), last + 1):
        assert entries[b"%d" % (i % 5000)] == b"%d" % i * (1 + i % 30)
    in_queue = store.queue("q").peek_range(0, last + 1)
    assert [value for _, value in in_queue] == [b"%d" % number for number, _ in in_queue]
    assert in_queue[-1][0] == last
    return last


@pytest.mark.parametrize(("level", "kills"), [("process", 10), ("power", 10)])
def test_killed_at_random_instants(level: str, kills: int, tmp_path: Path) -> None:
    instants, last = random.Random(level), 0
    for _ in range(kills):
        acknowledged = run_and_kill(tmp_path / "s", level, last + 1, instants.uniform(0.0, 0.15))
        with statepool.store.open(tmp_path / "s") as store:
            assert store.stat()["attached"] == 1
            last = last_of(store, acknowledged)


def test_without_the_heap_what_was_durable_is_there(tmp_path: Path) -> None:
    """The shared memory goes too, as in a power loss: checkpoint and log must do."""
    instants, last = random.Random(5), 0
    for _ in range(6):
        acknowledged = run_and_kill(tmp_path / "s", "power", last + 1, instants.uniform(0.0, 0.3))
        shutil.copytree(tmp_path / "s", tmp_path / "copy")
        uuid = (tmp_path / "s" / "meta").read_bytes()[4096 + 8 : 4096 + 24].hex()
        Path(f"/dev/shm/statepool-{uuid}").unlink()
        with statepool.store.open(tmp_path / "copy") as store:
            assert store.stat()["attached"] == 0
            last = last_of(store, acknowledged)
        shutil.rmtree(tmp_path / "s")
        (tmp_path / "copy").rename(tmp_path / "s")
