"""What can go wrong around segments in a file: giant clusters, neighbours that leave, a killed process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from statepool.engine.attention.wave import Segment, WaveBuffer, WaveConfig
from statepool.engine.attention.wave.index import SegmentView
from statepool.native import kernels

pytestmark = pytest.mark.skipif(kernels is None, reason="needs the native module")

CONFIG = WaveConfig(update_segment=256, segment=1024, local=0, shortest=0, retrieve=0.3, least=0)
HEADS, WIDTH, TOKENS = 2, 32, 2048


def segments(keys, values):
    return [Segment.build(keys[:, a:b], values[:, a:b], a, CONFIG) for a, b in CONFIG.segments(keys.shape[1])]


def view(parts):
    found, coming = SegmentView(HEADS, WIDTH, False, CONFIG), iter(parts)
    found.advance(parts[-1].stop, lambda *_: next(coming))
    return found


def drawn(seed):
    return np.random.default_rng(seed).standard_normal((2, HEADS, TOKENS, WIDTH)).astype(np.float32)


def asked(seed, count):
    return np.random.default_rng(seed).standard_normal((count, 2 * HEADS, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("pages", [1, 120])
def test_a_giant_cluster_in_a_file(pages):
    """Of 896 keys, or 112 pages: larger than a cache of one, and nearly all that a cache of 120 can hold."""
    keys, values = drawn(1)
    keys[:, :900] = keys[:, :1] + 1e-4 * keys[:, :900]
    parts = segments(keys, values)
    assert max(np.diff(part.offsets).max() for part in parts) > 64 * 8
    buffer = WaveBuffer(4 * WIDTH, pages * 16 * 4 * WIDTH)
    memory, file = view(parts), view([buffer.store(part) for part in parts])
    for query in [*asked(2, 3), np.repeat(keys[:, :1], 2, axis=0).reshape(4, WIDTH)] * 2:
        assert [x.tobytes() for x in file.partial(query, 0.3)] == [x.tobytes() for x in memory.partial(query, 0.3)]


def test_a_neighbour_that_frees_shared_segments_changes_nothing():
    """Two contexts read the same segments through a small cache; a third takes others and leaves, again and again."""
    shared, other = segments(*drawn(3)), segments(*drawn(4))
    queries = asked(5, 40)
    wanted = [view(shared).partial(query, 0.3)[2].tobytes() for query in queries]
    buffer = WaveBuffer(4 * WIDTH, 60 * 16 * 4 * WIDTH)
    stored = [buffer.store(part) for part in shared]
    reading, done, wrong = [view(stored), view(stored)], threading.Event(), []
    del stored

    def read(mine):
        for _ in range(3):
            wrong.extend(i for i, q in enumerate(queries) if mine.partial(q, 0.3)[2].tobytes() != wanted[i])
        mine.advance(0, lambda *_: pytest.fail("nothing is to be loaded"))

    def come_and_go():
        while not done.is_set():
            passing = view([buffer.store(part) for part in other])
            passing.partial(queries[0], 0.3)
            passing.advance(0, lambda *_: pytest.fail("nothing is to be loaded"))

    threads = [threading.Thread(target=read, args=[mine]) for mine in reading]
    passer = threading.Thread(target=come_and_go)
    for thread in (passer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    passer.join()
    assert not wrong
    assert buffer.counts.evicted > 100


_WRITER = """
import sys
import numpy as np
from statepool.engine.attention.wave import Segment, WaveBuffer, WaveConfig
buffer, config = WaveBuffer(128, 1 << 16, sys.argv[1]), WaveConfig(update_segment=256, segment=512)
keys = np.random.default_rng(0).standard_normal((2, 512, 32)).astype(np.float32)
kept = [buffer.store(Segment.build(keys, keys, 0, config))]
print("stored", flush=True)
while True:
    kept.append(buffer.store(Segment.build(keys, keys, 0, config)))
    kept = kept[-8:]
"""


def test_a_process_killed_while_it_writes_leaves_no_file(tmp_path):
    """So the next one finds nothing that is half of something: it clusters anew."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "stored\n"
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    keys, values = drawn(6)
    buffer = WaveBuffer(4 * WIDTH, 0, str(tmp_path))
    parts = segments(keys, values)
    (query,) = asked(7, 1)
    file = view([buffer.store(part) for part in parts])
    assert file.partial(query, 0.3)[2].tobytes() == view(parts).partial(query, 0.3)[2].tobytes()
