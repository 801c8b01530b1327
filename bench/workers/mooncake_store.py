"""Mooncake's store over TCP: a master, a process that lends memory, and this client, which lends none."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from mooncake.store import MooncakeDistributedStore
from turns import free_port, serve

LENDER = """
import sys, time
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
host, size, master = sys.argv[1], int(sys.argv[2]), sys.argv[3]
assert store.setup(host, "P2PHANDSHAKE", size, 16 << 20, "tcp", "", master) == 0
print("READY", flush=True)
time.sleep(1e6)
"""
_SOFT = 30.0


class Store:
    """Values of one size, put and got through registered memory, one by one or in batches."""

    def load(self, block: int, count: int) -> dict[str, Any]:
        """Start the master and the lender, with room for all that a run puts."""
        master = f"127.0.0.1:{free_port()}"
        program = Path(sys.executable).with_name("mooncake_master")
        port = ["--rpc_port", master.rpartition(":")[2], "--metrics_port", str(free_port())]
        subprocess.Popen([program, *port, "--default_kv_lease_ttl=5000"], stdout=sys.stderr)
        self._memory = np.random.default_rng(1).integers(0, 256, (count, block), np.uint8)
        self._out = np.zeros_like(self._memory)
        until = time.monotonic() + _SOFT
        while True:
            size = str(max(64 << 20, 8 * block * count))
            lender = subprocess.Popen(
                [sys.executable, "-c", LENDER, "127.0.0.1", size, master], stdout=subprocess.PIPE, text=True
            )
            assert lender.stdout is not None
            while (line := lender.stdout.readline()) and not line.startswith("READY"):
                pass
            if line:
                break
            assert time.monotonic() < until, "the process that lends memory did not start"
        self._store = MooncakeDistributedStore()
        assert self._store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 << 20, "tcp", "", master) == 0
        for memory in (self._memory, self._out):
            assert self._store.register_buffer(memory.ctypes.data, memory.nbytes) == 0
        self._number = 0
        self._keys = self._put(1)[1]
        return {}

    def run(self, what: str, repeats: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
        """Move all values ``repeats`` times, ``batch`` at once."""
        seconds = 0.0
        for _ in range(repeats):
            if what == "save":
                spent, keys = self._put(batch)
                for key in keys:
                    assert self._store.remove(key) == 0
            else:
                spent = self._get(batch)
            seconds += spent
        if what == "load":
            assert np.array_equal(self._out, self._memory), "other bytes came than were put"
        return {"seconds": seconds, "tokens": repeats * self._memory.nbytes}

    def _put(self, batch: int) -> tuple[float, list[str]]:
        self._number += 1
        keys = [f"{self._number}/{i}" for i in range(len(self._memory))]
        at, size = self._memory.ctypes.data, self._memory.shape[1]
        started = time.perf_counter()
        for i in range(0, len(keys), batch):
            some = range(i, min(i + batch, len(keys)))
            places = [at + j * size for j in some]
            if batch == 1:
                assert self._store.put_from(keys[i], places[0], size) == 0
            else:
                assert not any(self._store.batch_put_from([keys[j] for j in some], places, [size] * len(some)))
        return time.perf_counter() - started, keys

    def _get(self, batch: int) -> float:
        at, size = self._out.ctypes.data, self._out.shape[1]
        started = time.perf_counter()
        for i in range(0, len(self._keys), batch):
            some = range(i, min(i + batch, len(self._keys)))
            places = [at + j * size for j in some]
            if batch == 1:
                assert self._store.get_into(self._keys[i], places[0], size) == size
            else:
                got = self._store.batch_get_into([self._keys[j] for j in some], places, [size] * len(some))
                assert all(count == size for count in got)
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(Store())
