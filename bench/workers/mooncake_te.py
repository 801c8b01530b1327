"""Mooncake's transfer engine over TCP: reads blocks out of another process's memory."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
from mooncake.engine import TransferEngine
from turns import serve

TARGET = """
import sys, time, numpy as np
from mooncake.engine import TransferEngine
size = int(sys.argv[1])
memory = np.random.default_rng(1).integers(0, 256, size, np.uint8)
engine = TransferEngine()
assert engine.initialize("127.0.0.1:" + sys.argv[2], "P2PHANDSHAKE", "tcp", "") == 0
assert engine.register_memory(memory.ctypes.data, size) == 0
print("READY", engine.get_rpc_port(), memory.ctypes.data, int(memory[:1000].sum()), flush=True)
time.sleep(1e6)
"""


class Engine:
    """One engine that reads from a target process."""

    def load(self, block: int, count: int) -> dict[str, Any]:
        """Both sides register ``count`` blocks."""
        self._block, self._count = block, count
        self._memory = np.zeros(block * count, np.uint8)
        self._engine = TransferEngine()
        assert self._engine.initialize("127.0.0.1:12451", "P2PHANDSHAKE", "tcp", "") == 0
        assert self._engine.register_memory(self._memory.ctypes.data, self._memory.size) == 0
        command = [sys.executable, "-c", TARGET, str(self._memory.size), "12452"]
        target = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert target.stdout is not None
        while not (line := target.stdout.readline()).startswith("READY"):
            assert line, "the target did not start"
        _, port, address, checksum = line.split()
        self._target, self._address, self._sum = f"127.0.0.1:{port}", int(address), int(checksum)
        self.run(1)
        return {}

    def run(self, repeats: int, seed: int = 0, what: str = "load") -> dict[str, Any]:
        """Read all blocks ``repeats`` times, one call a block."""
        started = time.perf_counter()
        for _ in range(repeats):
            for i in range(self._count):
                at = i * self._block
                mine, theirs = self._memory.ctypes.data + at, self._address + at
                assert self._engine.transfer_sync_read(self._target, mine, theirs, self._block) == 0
        seconds = time.perf_counter() - started
        assert int(self._memory[:1000].sum()) == self._sum, "other bytes came than were sent"
        return {"seconds": seconds, "tokens": repeats * self._block * self._count}


if __name__ == "__main__":
    serve(Engine())
